"""Post-hoc EMA: averages of any width, made of snapshots after training."""

import math

import numpy as np
import pytest
import torch
from techniques_small import session
from trainers_small import CPU, random_batches, small, small_state

from scrimp_spaces.space import value_of
from scrimp_trainers.common.errors import UserError
from scrimp_trainers.recipe.recipe import Recipe
from scrimp_trainers.recipe.techniques import Sparsity
from scrimp_trainers.training import checkpoint, snapshots
from scrimp_trainers.training.loop import train
from scrimp_trainers.training.posthoc_ema import (
    WIDEST,
    WIDTHS,
    Average,
    PowerAverages,
    coefficients,
    decay,
    error_bound,
    exponent,
    products,
    profile,
)
from scrimp_trainers.training.snapshots import Snapshots, put

STEPS = 4000
"""Of the made-up trajectories."""


def average_of(trajectory, width):
    """Average theta(tau), constant within each step, by the definition: the integral of its profile, in closed form."""
    gamma = exponent(width)
    edges = (np.arange(len(trajectory) + 1) / len(trajectory)) ** (gamma + 1)
    return np.diff(edges) @ trajectory


@pytest.mark.parametrize("width", [0.01, 0.03, 0.05, 0.1, 0.2, 0.25, WIDEST])
def test_a_width_is_the_standard_deviation_of_its_profile(width):
    edges = np.linspace(0, 1, 400_001)
    times = (edges[1:] + edges[:-1]) / 2
    weights = profile(Average(width, 1.0), times) / len(times)
    mean = weights @ times
    assert weights.sum() == pytest.approx(1, rel=1e-5)
    assert math.sqrt(weights @ (times - mean) ** 2) == pytest.approx(width, rel=1e-4)


def test_the_exponents_are_those_of_the_paper():
    # Karras et al. 2024: widths of 5% and 10% are exponents of 16.97 and 6.94.
    assert [exponent(width) for width in WIDTHS] == pytest.approx([16.97, 6.94], abs=5e-3)
    assert exponent(WIDEST) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("width", [0, -0.1, 0.3, math.nan])
def test_a_width_that_no_average_has_is_refused(width):
    with pytest.raises(UserError, match=r"must be above 0 and at most 0\.289"):
        exponent(width)


@pytest.mark.parametrize("one", [Average(0.05, 3000), Average(0.2, 9000)])
@pytest.mark.parametrize("other", [Average(0.1, 9000), Average(0.03, 7000)])
def test_products_of_profiles_are_their_integrals(one, other):
    times = (np.arange(400_000) + 0.5) / 400_000 * 9000
    integral = (profile(one, times) * profile(other, times)).mean() * 9000
    assert products([one], [other])[0, 0] == pytest.approx(integral, rel=1e-4)


def test_the_first_step_replaces_what_was_before_it():
    assert decay(exponent(0.05), 0, 64) == 0
    assert decay(1.0, 64, 128) == 0.25


@pytest.mark.parametrize("width", WIDTHS)
def test_the_tracked_averages_are_those_of_the_definition(width):
    trajectory = torch.randn(200, 3, generator=torch.Generator().manual_seed(0)).cumsum(0)
    network = torch.nn.Linear(1, 3, bias=False)
    averages = PowerAverages.of(network)
    for step, weights in enumerate(trajectory):
        averages.update([weights[:, None]], 64 * step, 64 * (step + 1))
    tracked = averages.averages[width]["weight"][:, 0].double().numpy()
    assert np.allclose(tracked, average_of(trajectory.double().numpy(), width), rtol=1e-4, atol=1e-5)


def trajectories():
    """Return weights [steps, 4] that wander, approach a value, oscillate on the way, and jump half-way."""
    times = np.arange(1, STEPS + 1) / STEPS
    wander = np.random.default_rng(0).normal(size=STEPS).cumsum() / math.sqrt(STEPS)
    approach = 1 - np.exp(-5 * times)
    return np.stack([wander, approach, approach + np.sin(40 * times) / 3, (times > 0.5) * 1.0], axis=1)


@pytest.mark.parametrize(("count", "narrowest", "widest"), [(16, 0.04, 0.18), (32, 0.03, 0.24), (40, 0.03, 0.25)])
def test_so_many_snapshots_make_averages_of_these_widths_within_one_percent(count, narrowest, widest):
    trajectory = trajectories()
    marks = [STEPS * number // count for number in range(1, count + 1)]
    kept = [Average(width, mark) for mark in marks for width in WIDTHS]
    values = np.stack([average_of(trajectory[: int(own.time)], own.width) for own in kept])
    stored = values.astype(np.float16).astype(float)
    moved = trajectory.max(axis=0) - trajectory.min(axis=0)

    for width in np.linspace(narrowest, widest, 8):
        factors = coefficients(kept, Average(width, STEPS))
        bound = error_bound(kept, Average(width, STEPS), factors)
        exact = average_of(trajectory, width)
        assert (np.abs(factors @ values - exact) / moved).max() <= bound + 1e-9
        assert bound < 0.01, (width, bound)
        assert (np.abs(factors @ stored - exact) / moved).max() < 0.01
        assert factors.sum() == pytest.approx(1)


def test_a_tracked_width_is_its_last_snapshot():
    kept = [Average(width, mark) for mark in range(100, 900, 100) for width in WIDTHS]
    factors = coefficients(kept, Average(0.10, 800))
    assert factors == pytest.approx([0] * 15 + [1], abs=1e-9)


def test_a_recipe_without_snapshots_is_written_as_before_and_trains_as_before():
    assert "snapshots" not in Recipe().to_yaml()
    assert value_of(Recipe(), "ema.snapshots") == 0
    assert value_of(Recipe().replace({"ema.snapshots": 4}), "ema.snapshots") == 4
    with pytest.raises(UserError, match=r"ema\.snapshot: a recipe has no such field"):
        value_of(Recipe(), "ema.snapshot")
    recipe = small(training__kimg=0.08)
    kept = small_state(recipe.replace({"ema.snapshots": 4}))
    plain = small_state(recipe)
    assert plain.power is None
    for state, own in ((plain, recipe), (kept, recipe.replace({"ema.snapshots": 4}))):
        list(train(own, state, random_batches(8), device=CPU))
    for name, tensor in plain.ema.state_dict().items():
        assert torch.equal(tensor, kept.ema.state_dict()[name]), name


def test_checkpoints_hold_the_averages_and_training_goes_on_bit_for_bit(tmp_path):
    recipe = small(training__kimg=0.08, ema__snapshots=4)
    whole = small_state(recipe)
    steps = train(recipe, whole, random_batches(8), device=CPU)
    for _ in range(5):
        next(steps)
    checkpoint.write(tmp_path / "last", checkpoint.copy_content(whole, {}, {}))
    list(steps)

    resumed = small_state(recipe)
    checkpoint.load(tmp_path / "last", resumed, {})
    list(train(recipe, resumed, random_batches(8, start=5), device=CPU))
    assert whole.power
    assert resumed.power
    for name, tensor in whole.power.tensors().items():
        assert torch.equal(tensor, resumed.power.tensors()[name]), name


@pytest.fixture(scope="module")
def trained(digits_dataset, tmp_path_factory):
    """A session of ten steps that keeps five snapshots, after its end."""
    repeat = session(small(training__kimg=0.08, ema__snapshots=5), digits_dataset, tmp_path_factory.mktemp("trained"))
    repeat.train_to(80, repeat.steps(), math.inf)
    return repeat


def test_snapshots_are_evenly_spaced_and_the_last_is_the_end(trained):
    assert snapshots.due(trained.recipe) == {16, 32, 48, 64, 80}
    assert Snapshots.find(trained.folder, 80).images == (16, 32, 48, 64, 80)
    assert Snapshots.find(trained.folder, 50).images == (16, 32, 48)
    assert snapshots.due(small()) == frozenset()


def test_half_precision_changes_a_tracked_average_by_less_than_it_can_hold(trained):
    made = Snapshots.find(trained.folder, 80).average(0.05)
    for name, exact in trained.state.power.averages[0.05].items():
        assert torch.allclose(made[name], exact, rtol=2**-11, atol=1e-6), name


def test_a_number_beyond_half_precision_is_kept_whole(tmp_path):
    network = torch.nn.Linear(2, 1, bias=False)
    network.weight.data = torch.tensor([[1e6, 1.0]])
    for images in (64, 128):
        snapshots.write(tmp_path, PowerAverages.of(network), images)
    assert torch.equal(Snapshots.find(tmp_path, 128).average(0.05)["weight"], torch.tensor([[1e6, 1.0]]))


def test_a_resumed_training_keeps_the_same_snapshots(trained, digits_dataset, tmp_path):
    first = session(trained.recipe, digits_dataset, tmp_path)
    steps = first.steps()
    first.train_to(40, steps, math.inf)
    first.save("last")
    first.train_to(72, steps, math.inf)  # beyond the checkpoint, and then killed
    assert Snapshots.find(tmp_path, 80).images == (16, 32, 48, 64)

    resumed = session(trained.recipe, digits_dataset, tmp_path)
    resumed.resume()
    assert Snapshots.find(tmp_path, 80).images == (16, 32)
    resumed.train_to(80, resumed.steps(), math.inf)
    files = sorted((tmp_path / "snapshots").iterdir())
    assert [file.read_bytes() for file in files] == [
        (trained.folder / "snapshots" / file.name).read_bytes() for file in files
    ]
    assert len(files) == 5


def test_what_cannot_be_made_is_refused_with_the_reason(trained, tmp_path):
    with pytest.raises(UserError, match=r"has no snapshots/; train it with ema\.snapshots set"):
        Snapshots.find(tmp_path, 80).require(0.05)
    without_the_end = Snapshots.find(trained.folder, 88)
    assert not without_the_end.can_make(0.05)
    few = Snapshots.find(trained.folder, 80)
    assert few.can_make(0.05)
    assert not few.can_make(0.2)
    with pytest.raises(UserError, match=r"width 0\.2 cannot be made of 5 snapshots: weights may be wrong by \d+\.\d%"):
        few.average(0.2)


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_damaged_snapshot_is_named(trained, tmp_path, damage):
    assert trained.state.power
    snapshots.write(tmp_path, trained.state.power, 80)
    (file,) = (tmp_path / "snapshots").iterdir()
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content[:-8] if damage == "cut" else content)
    with pytest.raises(UserError, match="remove it to do without") as refused:
        Snapshots.find(tmp_path, 80).average(0.05)
    assert str(file) in str(refused.value)


def test_weights_that_the_masks_have_left_at_zero_stay_there(tmp_path):
    recipe = small(sparsity__method="magran", sparsity__level=0.5, sparsity__interval=2, ema__snapshots=1)
    assert recipe.sparsity == Sparsity(method="magran", level=0.5, interval=2)
    state = small_state(recipe)
    list(train(recipe, state, random_batches(8), device=CPU))
    assert state.power
    assert state.masks
    tracked = state.power.averages[0.1]
    assert any(tracked[name][mask == 0].any() for name, mask in state.masks.masks.items())

    put(tracked, state.ema, recipe, tmp_path)
    for name, mask in state.masks.masks.items():
        assert not state.ema.get_parameter(name)[mask == 0].any()
    unmasked = next(name for name, _ in state.ema.named_parameters() if name not in state.masks.masks)
    assert torch.equal(state.ema.get_parameter(unmasked), tracked[unmasked])


def test_averages_of_another_network_are_refused(tmp_path):
    recipe = small(ema__snapshots=1)
    averages = PowerAverages.of(small_state(recipe.replace({"network.channels": 16})).network).averages[0.1]
    with pytest.raises(UserError, match=r"has the shape"):
        put(averages, small_state(recipe).ema, recipe, tmp_path)
