"""ChiroDiff's GRU is trained, made sparse, resumed and sampled on pen drawings."""

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from drawings_small import recipe_of, small_drawings
from hypothesis import given, settings
from hypothesis import strategies as st
from techniques_small import NAMES, examples, train_and_resume
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from trainers_small import CPU, small

from scrimp_trainers import fit
from scrimp_trainers.codecs.strokes import StrokeCodec
from scrimp_trainers.common import parts
from scrimp_trainers.common.errors import UserError
from scrimp_trainers.conditioning.conditions import Conditions
from scrimp_trainers.data.batch import Batch, alike_in_length
from scrimp_trainers.data.dataset import Dataset, open_dataset
from scrimp_trainers.data.loading import batches
from scrimp_trainers.data.manifest import RESIDENT, load_manifest
from scrimp_trainers.data.modalities.modality import lengths_of
from scrimp_trainers.metrics import cost
from scrimp_trainers.networks.gru import GRUDenoiser
from scrimp_trainers.precompute.prepare import prepare_techniques
from scrimp_trainers.recipe.recipe import Recipe
from scrimp_trainers.sampling import generate, generate_items
from scrimp_trainers.techniques import sparsity
from scrimp_trainers.training import expected_cost
from scrimp_trainers.training.inputs import Prepared
from scrimp_trainers.training.loop import read_losses, train
from scrimp_trainers.training.session import Session
from scrimp_trainers.training.state import build_network, initial_state

PAPER = {"diffusion__timesteps": 1000, "diffusion__beta_start": 1e-4, "diffusion__beta_end": 0.02}
TAKEN = ("ambient", "sparsity", "coreset", "reweighting")
"""The techniques that do not need images."""
COMBINATIONS = [*((name,) for name in TAKEN), *itertools.combinations(TAKEN, 2), TAKEN]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Dataset:
    folder = tmp_path_factory.mktemp("strokes")
    small_drawings(folder, holdout=16)
    return open_dataset(folder / "data")


def session(recipe: Recipe, dataset: Dataset, folder: Path) -> Session:
    fit.check_fit(recipe, dataset.manifest)
    return Session(recipe, dataset, folder, 3, prepare_techniques(recipe, dataset, 3, CPU), device=CPU)


def points(count: int, size: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, size, generator=torch.Generator().manual_seed(seed))


def network_of(recipe: Recipe, size: int = 40) -> GRUDenoiser:
    network = build_network(recipe, size, 3, 0, seed=0)
    assert isinstance(network, GRUDenoiser)
    return network


# --- the network


def test_the_network_has_as_many_parameters_as_chirodiffs():
    network = network_of(recipe_of(network__width=96, network__layers=3))
    assert cost.parameters(network) == 416_859
    assert sum(weight.numel() for weight in network.gru.parameters()) == 398_016


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=5), st.sampled_from(["delta", "absolute"]))
def test_what_is_beside_a_drawing_does_not_matter(lengths, form):
    """Neither what stands at its padding nor the drawings it is with: packed, it is as if it were alone."""
    network = network_of(recipe_of(codec__form=form), size=12)
    x = points(len(lengths), 12)
    t = torch.arange(len(lengths)) * 7
    mask = torch.arange(12) < torch.tensor(lengths)[:, None, None]
    with torch.no_grad():
        conditions = Conditions(mask=mask, lengths=np.array(lengths))
        together = network(x, t, conditions)
        with_junk = network(torch.where(mask, x, 1e4), t, conditions)
        assert torch.equal(together.masked_select(mask), with_junk.masked_select(mask))
        for row, length in enumerate(lengths):
            alone = network(x[row : row + 1, :, :length], t[row : row + 1])
            torch.testing.assert_close(together[row : row + 1, :, :length], alone, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_drawings_are_packed_as_torch_packs_them():
    network = network_of(recipe_of())
    seen = torch.randn(4, 12, network.gru.input_size)
    lengths = np.array([5, 9, 1, 5])
    packed = pack_padded_sequence(seen, torch.from_numpy(lengths), batch_first=True, enforce_sorted=False)
    expected, _ = pad_packed_sequence(network.gru(packed)[0], batch_first=True, total_length=12)
    assert torch.equal(network._along_packed(seen, lengths), expected)

    there = torch.arange(12) < torch.from_numpy(lengths)[:, None]
    torch.testing.assert_close(network._along(seen, lengths)[there], expected[there])


def test_both_forms_show_the_network_the_same():
    absolute, delta = (network_of(recipe_of(codec__form=form)) for form in ("absolute", "delta"))
    items = points(4, 40)
    x = StrokeCodec("delta", 0.8).encode(items, lambda shape: torch.zeros(*shape))
    t = torch.tensor([0, 10, 20, 49])
    torch.testing.assert_close(absolute(items, t), delta(x, t), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", ["delta", "absolute"])
def test_a_codec_gives_back_the_drawings(form, dataset):
    items, _, _ = dataset.items("train")
    codec = StrokeCodec(form, 0.8)
    decoded = codec.decode(codec.encode(items.values, lambda shape: torch.zeros(*shape)))
    assert items.mask is not None
    torch.testing.assert_close(decoded.values * items.mask, items.values, rtol=0, atol=1e-4)


@torch.no_grad()
def test_labels_matter_and_none_means_hidden_ones():
    network = build_network(recipe_of(conditioning__classes=True), 40, 3, 10, seed=0)
    x, t = points(3, 40), torch.tensor([3, 10, 40])
    plain = network(x, t)
    assert torch.equal(plain, network(x, t, Conditions(torch.tensor([10, 10, 10]))))
    conditional = network(x, t, Conditions(torch.tensor([0, 4, 4])))
    assert not torch.allclose(plain, conditional, atol=1e-3)
    assert not torch.allclose(conditional, network(x, t, Conditions(torch.tensor([0, 4, 5]))), atol=1e-3)
    assert torch.equal(conditional[:2], network(x, t, Conditions(torch.tensor([0, 4, 5])))[:2])


def test_a_step_is_conditions_apart_from_the_next_and_its_features_repeat_after_a_reload(tmp_path):
    network = network_of(recipe_of())
    features = network._time(torch.arange(50))
    assert features.shape == (50, 8)
    assert (features.square().reshape(50, 2, 4).sum(1) - 1).abs().max() < 1e-5
    assert torch.pdist(features).min() > 1e-3
    network.save(tmp_path / "network")
    assert torch.equal(GRUDenoiser.from_folder(tmp_path)._time(torch.arange(50)), features)


# --- batches


def test_batches_are_alike_in_length_and_draw_everything_once():
    lengths = np.random.default_rng(0).integers(1, 300, 1003)
    order = np.random.default_rng(1).permutation(1003)
    for epoch, first in ((0, 0), (1, 1003)):
        moved = alike_in_length(order, lengths, 10, first, 5, epoch)
        assert sorted(moved) == list(range(1003))
        begin = -first % 10
        whole = moved[begin : begin + (1003 - begin) // 10 * 10].reshape(-1, 10)
        spread = np.ptp(lengths[whole], axis=1)
        assert np.median(spread) < 15
        assert np.array_equal(alike_in_length(order, lengths, 10, first, 5, epoch), moved)
    assert not np.array_equal(
        alike_in_length(order, lengths, 10, 0, 6, 0), alike_in_length(order, lengths, 10, 0, 5, 0)
    )


def test_ranks_share_a_batch_and_resuming_draws_the_same(dataset):
    def drawn(**options: Any) -> list[Tensor]:
        sequence = batches(dataset, batch_size=8, seed=0, device=CPU, **options)
        return [batch.index for batch in itertools.islice(sequence, 20)]

    whole = drawn()
    ranks = [torch.cat(pair) for pair in zip(drawn(rank=0, world=2), drawn(rank=1, world=2), strict=True)]
    assert all(map(torch.equal, whole, ranks))
    assert all(map(torch.equal, whole[7:], drawn(start=7)))
    epoch = torch.cat(whole)[: dataset.manifest.splits["train"].count]
    assert len(epoch.unique()) == len(epoch)


@pytest.mark.parametrize("resident_bytes", [RESIDENT, 0])
def test_a_batch_says_on_the_host_how_long_its_drawings_are(resident_bytes, dataset):
    options: dict[str, Any] = {"kept": np.arange(5, 50), "rank": 1, "world": 2, "workers": 0}
    sequence = batches(dataset, batch_size=8, seed=0, device=CPU, resident_bytes=resident_bytes, **options)
    for batch in itertools.islice(sequence, 24):
        assert batch.mask is not None
        assert batch.lengths is not None
        assert batch.lengths.tolist() == batch.mask.sum((1, 2)).tolist()


@pytest.mark.parametrize("workers", [0, 2])
def test_streamed_batches_are_alike_in_length_draw_everything_once_and_resume(workers, dataset):
    def drawn(**options: Any) -> list[Batch]:
        sequence = batches(dataset, batch_size=8, seed=0, device=CPU, resident_bytes=0, workers=workers, **options)
        return list(itertools.islice(sequence, 24))

    whole = drawn()
    count = dataset.manifest.splits["train"].count
    assert Counter(torch.cat([batch.index for batch in whole]).tolist()) == dict.fromkeys(range(count), 24 * 8 // count)
    for batch, again in zip(whole[5:], drawn(start=5), strict=False):
        assert torch.equal(batch.index, again.index)
        assert torch.equal(batch.values, again.values)

    lengths = [batch.mask.sum(-1).float() for batch in whole if batch.mask is not None]
    within = torch.stack([each.std() for each in lengths]).median()
    assert within < 0.3 * torch.cat(lengths).std()


# --- training


def trained(recipe: Recipe, dataset: Dataset, count: int = 64, mangle: bool = False) -> tuple[list[float], Tensor]:
    """Train on the first items; return the losses and all weights."""
    items, _, _ = dataset.items("train")
    items = items[:count]
    values = items.values
    assert items.mask is not None
    if mangle:
        values = torch.where(items.mask, values, 5.0)
    state = initial_state(recipe, image_size=values.shape[-1], channels=3, classes=0, seed=0, device=CPU)
    size = recipe.training.batch_size

    masks = items.mask
    lengths = lengths_of(items)
    assert lengths is not None

    def endless():
        for start in itertools.cycle(range(0, count, size)):
            part = slice(start, start + size)
            index = torch.arange(count)[part]
            yield Batch(values[part], None, index, torch.zeros(size).bool(), masks[part], lengths[part])

    codec = StrokeCodec(recipe.codec.form, 0.8)  # type: ignore[union-attr]
    steps = list(train(recipe, state, endless(), Prepared(codec=codec), device=CPU))
    return read_losses(steps), torch.cat([weight.flatten() for weight in state.network.parameters()])


@pytest.mark.parametrize("form", ["delta", "absolute"])
def test_the_loss_falls(form, dataset):
    losses, _ = trained(recipe_of(codec__form=form, training__kimg=1.6), dataset)
    assert np.mean(losses[-25:]) < 0.7 * np.mean(losses[:5])


def test_the_loss_is_of_what_is_no_padding(dataset):
    recipe = recipe_of()
    losses, weights = trained(recipe, dataset)
    same_losses, same_weights = trained(recipe, dataset, mangle=True)
    assert losses == same_losses
    assert torch.equal(weights, same_weights)


def test_a_network_conditioned_on_classes_knows_drawings_better_by_their_own(dataset, tmp_path):
    recipe = recipe_of(training__kimg=2, conditioning__classes=True, codec__form="absolute", network__layers=1)
    run = session(recipe, dataset, tmp_path)
    run.train_to(2000, run.steps(), 1e9)

    items, labels, _ = dataset.items("train")
    assert dataset.manifest.classes == ["circle", "zigzag"]
    assert labels is not None
    assert items.mask is not None
    mask = items.mask
    process = parts.build("diffusion", recipe.diffusion)
    own = torch.from_numpy(labels)
    noise = points(len(items), items.values.shape[-1])
    t = torch.full((len(items),), 20)
    noisy = process.add_noise(items.values, noise, t)

    @torch.no_grad()
    def error(classes: Tensor) -> float:
        estimate = run.state.network(noisy, t, Conditions(classes, mask=mask, lengths=lengths_of(items)))
        return float(((estimate - noise) * mask).square().sum())

    assert error(own) < 0.9 * error(1 - own)


@pytest.mark.parametrize("method", ["dense", "rigl"])
def test_an_interrupted_training_ends_with_the_same_weights(method, dataset, tmp_path):
    recipe = recipe_of(sparsity__method=method, sparsity__interval=1, sparsity__end=1)
    whole = train_and_resume(recipe, dataset, tmp_path / "run", 48, 80)
    assert whole.state.network.state_dict()["lengths"].tolist() == dataset.manifest.lengths


@pytest.mark.parametrize("names", COMBINATIONS, ids="-".join)
def test_ten_steps_with_the_techniques_that_it_takes_resume_bit_exactly(names, dataset, tmp_path):
    (tmp_path / "reference.yaml").write_text(recipe_of().to_yaml())
    known = examples(tmp_path)
    known["reweighting"] |= {"reweighting.recipe": str(tmp_path / "reference.yaml")}
    on = {path: value for name in names for path, value in known[name].items()}
    classes = {"conditioning__classes": True, "conditioning__label_drop": 0.2}
    recipe = recipe_of(training__kimg=0.16, **classes).replace(on)
    assert [name for name in NAMES if getattr(recipe, name).on] == [name for name in NAMES if name in names]

    whole = train_and_resume(recipe, dataset, tmp_path / "run", 80, 160)
    assert whole.state.step == 10


@pytest.mark.parametrize("name", [name for name in NAMES if name not in TAKEN])
def test_the_other_techniques_need_images_and_are_refused(name, tmp_path):
    with pytest.raises(UserError, match=r" needs (pen strokes|a grid|augmentation labels|coordinates|tokens)"):
        recipe_of().replace({path: value for path, value in examples(tmp_path)[name].items() if name in path})


@pytest.mark.parametrize("method", ["static", "rigl", "magran"])
def test_sparse_methods_act_on_the_recurrent_matrices(method, dataset, tmp_path):
    recipe = recipe_of(sparsity__method=method, sparsity__level=0.75, sparsity__interval=1, sparsity__end=1)
    run = session(recipe, dataset, tmp_path)
    masks = run.state.masks
    assert masks is not None
    before = {name: mask.clone() for name, mask in masks.masks.items()}
    run.train_to(80, run.steps(), 1e9)

    recurrent = [name for name in masks.masks if name.startswith("gru.weight_")]
    assert len(recurrent) == 8
    weights = dict(run.state.network.named_parameters())
    for name in recurrent:
        assert int(masks.masks[name].sum()) == masks.active[name]
        assert int(weights[name].count_nonzero()) <= masks.active[name] < weights[name].numel()
        assert not run.state.ema.get_parameter(name)[masks.masks[name] == 0].any()
        assert torch.equal(masks.masks[name], before[name]) == (method == "static")
    assert not any("bias" in name for name in masks.masks)
    total = sum(weight.numel() for weight in sparsity.layer_weights(run.state.network).values())
    assert sum(masks.active.values()) == round(0.25 * total)


# --- cost


def test_flops_are_two_for_each_weight_and_point(dataset):
    recipe = recipe_of(network__width=96, network__layers=3)
    network = network_of(recipe, size=50)
    weights = sum(weight.numel() for weight in sparsity.layer_weights(network).values())
    dense, _, _ = expected_cost.network_flops(recipe, network)
    assert dense == 2 * 50 * weights
    half, _, _ = expected_cost.network_flops(recipe, network, 25)
    assert half == 50 * weights


@pytest.mark.parametrize("level", [0.5, 0.9])
def test_a_uniformly_sparse_gru_costs_its_share(level):
    recipe = recipe_of(sparsity__method="static", sparsity__level=level, sparsity__distribution="uniform")
    dense, sparse, layers = expected_cost.network_flops(recipe, network_of(recipe))
    assert sparse == pytest.approx((1 - level) * dense, rel=2e-3)
    assert sum(row.flops_share for row in layers) == pytest.approx(1)


def test_what_is_expected_to_be_spent_is_what_is_counted(dataset, tmp_path):
    recipe = recipe_of(sparsity__method="rigl", sparsity__interval=1)
    run = session(recipe, dataset, tmp_path)
    run.train_to(80, run.steps(), 1e9)
    expected = expected_cost.expected_costs(recipe, dataset.manifest, samples=10)
    assert expected is not None
    assert run.metrics_row(0.08).train_flops == pytest.approx(expected["train_flops"])


# --- samples


@pytest.mark.parametrize(
    ("values", "evaluations"),
    [
        pytest.param(PAPER | {"sampler__steps": 1000}, 1000, marks=pytest.mark.slow),
        ({"diffusion__timesteps": 35, "sampler__steps": 35}, 35),
        ({"sampler__kind": "ddim", "sampler__steps": 7}, 7),
    ],
    ids=["1000", "35", "ddim"],
)
def test_a_sample_depends_on_its_number_alone(values, evaluations, dataset, tmp_path):
    recipe = recipe_of(network__width=4, network__layers=1, **values)
    assert recipe.nfe == evaluations
    run = session(recipe, dataset, tmp_path)
    codec = run.prepared.codec
    options = {"seed": 0, "codec": codec}
    together = next(generate_items(run.state.ema, recipe, 3, **options))
    for number, item in enumerate(generate_items(run.state.ema, recipe, 3, batch_size=1, **options)):
        assert together.mask is not None
        assert item.mask is not None
        mask = together.mask[number]
        assert torch.equal(mask, item.mask[0])
        torch.testing.assert_close(together.values[number] * mask, item.values[0] * mask, rtol=1e-3, atol=1e-3)


def test_samples_have_the_lengths_of_training_items(dataset, tmp_path):
    recipe = recipe_of(network__width=4, sampler__steps=1)
    run = session(recipe, dataset, tmp_path)
    items = next(generate_items(run.state.ema, recipe, 256, seed=0, codec=run.prepared.codec))
    assert items.mask is not None
    counts = np.bincount(items.mask.sum(-1).flatten().tolist(), minlength=dataset.manifest.size + 1)
    known = np.array(dataset.manifest.lengths)
    assert not counts[known == 0].any()
    expected = known / known.sum() * 256
    assert np.abs(counts - expected).max() < 5 * np.sqrt(expected.max())
    pictures = next(generate(run.state.ema, recipe, 4, seed=0, codec=run.prepared.codec))
    assert pictures.shape == (4, 1, 64, 64)


# --- what does not go together


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"codec.kind": "none"}, r"network.kind: 'gru' needs pen strokes; use codec.kind strokes"),
        ({"network.kind": "unet"}, r"network.kind: 'unet' needs a grid"),
        ({"network.kind": "dit"}, r"network.kind: 'dit' needs a grid"),
        ({"mafp.p1": 0.1}, r"mafp needs a grid|mafp needs augmentation labels"),
        ({"mafp.p2": 0.1}, r"mafp needs a grid"),
        ({"patches.real_p": 0.5}, r"patches needs a grid"),
        ({"ood.weight": 1.0}, r"ood needs a grid"),
        ({"diffusion.kind": "edm", "sampler.kind": "heun"}, r"network.kind: 'gru' needs a chain of steps"),
    ],
)
def test_parts_that_need_images_say_so(values, complaint):
    with pytest.raises(UserError, match=complaint):
        recipe_of().replace(values)


def test_what_the_dataset_cannot_be_trained_with_is_refused(dataset):
    with pytest.raises(UserError, match=r"codec.kind: 'none' is for images, but dataset data is of strokes"):
        fit.check_fit(small(), dataset.manifest)
    with pytest.raises(UserError, match=r"training.flip: strokes of dataset data have no mirror images"):
        fit.check_fit(recipe_of(training__flip=True), dataset.manifest)


def test_drawings_do_not_go_to_image_datasets(digits_dataset):
    with pytest.raises(UserError, match=r"codec.kind: 'strokes' is for strokes, but dataset digits is of images"):
        fit.check_fit(recipe_of(), load_manifest(digits_dataset.folder))
