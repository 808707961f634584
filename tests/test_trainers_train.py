import math
import statistics

import pytest
import torch
import torch.distributed as dist
from trainers_small import CPU, random_batches, small, small_state

from scrimp_trainers.common.errors import Diverged, UserError
from scrimp_trainers.recipe.sections import EMA, Optimizer
from scrimp_trainers.training.loop import finish_gradients, read_losses, refuse_explosion, train
from scrimp_trainers.training.state import ema_decay, learning_rate

BOTH = pytest.mark.parametrize("preset", ["tiny-edm", "tiny-ddpm"])


def trained(recipe, **options):
    """Train a small network to its end and return its state and steps."""
    state = small_state(recipe, **options)
    steps = list(train(recipe, state, random_batches(recipe.training.batch_size), device=CPU))
    return state, steps


def weights(state):
    return torch.cat([parameter.detach().flatten() for parameter in state.network.parameters()])


@BOTH
def test_it_trains_until_the_images_are_seen_and_yields_every_step(preset):
    recipe = small(preset, training__kimg=0.033)
    state, steps = trained(recipe)
    assert [step.step for step in steps] == [1, 2, 3, 4, 5]  # 32 images would be too few
    assert [step.images for step in steps] == [8, 16, 24, 32, 40]
    assert (state.step, state.images) == (5, 40)
    assert all(0.2 < loss < 4 for loss in read_losses(steps))


@BOTH
def test_training_lowers_the_loss(preset):
    recipe = small(preset, training__kimg=1.2, training__batch_size=16, optimizer__warmup_kimg=0, optimizer__lr=5e-3)
    _, steps = trained(recipe)
    losses = read_losses(steps)
    assert statistics.mean(losses[-20:]) < 0.75 * statistics.mean(losses[:5])


@BOTH
def test_the_same_seed_trains_the_same_network_and_another_seed_another(preset):
    recipe = small(preset, network__dropout=0.3)
    first, _ = trained(recipe)
    torch.manual_seed(12345)  # whatever else draws random numbers does not matter
    again, _ = trained(recipe)
    other, _ = trained(recipe, number=1)
    torch.testing.assert_close(weights(first), weights(again), rtol=0, atol=0)
    assert not torch.allclose(weights(first), weights(other))


@BOTH
def test_accumulated_gradients_are_those_of_the_whole_batch(preset):
    # 3 does not divide 8: the last part is smaller. SGD-like comparison: one step from the same weights.
    whole, _ = trained(small(preset, training__kimg=0.008, optimizer__eps=1.0, optimizer__warmup_kimg=0))
    parts, _ = trained(
        small(preset, training__kimg=0.008, optimizer__eps=1.0, optimizer__warmup_kimg=0, training__microbatch=3)
    )
    start = weights(small_state(small(preset)))
    moved = (weights(whole) - start).abs().max()
    assert (weights(whole) - weights(parts)).abs().max() < 1e-3 * moved


def test_gradients_are_averaged_over_the_ranks_once_a_step(tmp_path, monkeypatch):
    all_reduce, exchanged = dist.all_reduce, []
    monkeypatch.setattr(dist, "all_reduce", lambda tensor: exchanged.append(len(tensor)) or all_reduce(tensor))
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        recipe = small(training__kimg=0.024, training__microbatch=2)
        state = small_state(recipe)
        assert len(list(train(recipe, state, random_batches(8, world=2), device=CPU, world=2))) == 3
    finally:
        dist.destroy_process_group()
    assert exchanged == [sum(parameter.numel() for parameter in state.network.parameters())] * 3


def test_the_loss_scale_is_undone():
    options = {"training__kimg": 0.008, "optimizer__eps": 1.0, "optimizer__warmup_kimg": 0}
    plain, _ = trained(small(**options))
    scaled, _ = trained(small(**options, training__loss_scale=128.0))
    torch.testing.assert_close(weights(plain), weights(scaled), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_gradients_that_are_not_finite_are_replaced_and_all_others_scaled(scale):
    values = [math.nan, math.inf, -math.inf, 3e38, -3e38, 3e5, -3e5, -0.0, 1e-30, 2.0, math.nan, -1.0]
    replaced = {"nan": 0.0, "inf": 1e5, "-inf": -1e5}
    expected = [replaced.get(str(value), value * scale) for value in values]

    gradients = [torch.tensor(values), torch.tensor(values).view(2, 3, 2, 1), torch.tensor(values).view(4, 3).T]
    gradients += [torch.tensor(value) for value in values]
    parameters = [torch.nn.Parameter(torch.zeros(gradient.shape)) for gradient in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.clone()
    without = torch.nn.Parameter(torch.zeros(3))

    finish_gradients([*parameters, without], 1, scale)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    wanted = [torch.tensor(expected), torch.tensor(expected).view(2, 3, 2, 1), torch.tensor(expected).view(4, 3).T]
    wanted += [torch.tensor(value) for value in expected]
    for one, other in zip(gradients, wanted, strict=True):
        assert torch.equal(one.view(torch.int32), other.view(torch.int32))
    assert without.grad is None


def test_gradients_are_clipped_as_torch_clips_them():
    """Where eps exceeds every gradient, Adam's first step is -lr g / eps."""
    options = {"training__kimg": 0.008, "optimizer__eps": 1e4, "optimizer__warmup_kimg": 0, "optimizer__lr": 1e4}
    start = weights(small_state(small(**options)))
    gradient = start - weights(trained(small(**options))[0])
    parameter = torch.nn.Parameter(torch.zeros_like(gradient))
    parameter.grad = gradient.clone()
    norm = torch.nn.utils.clip_grad_norm_([parameter], 0.5).item()
    assert norm > 1

    for scale in (1.0, 128.0):
        clipped, _ = trained(small(**options, optimizer__max_gradient_norm=0.5, training__loss_scale=scale))
        torch.testing.assert_close(start - weights(clipped), parameter.grad, rtol=1e-2, atol=1e-5)


def test_gradients_of_a_smaller_norm_are_left_as_they_are():
    plain, _ = trained(small())
    clipped, _ = trained(small(optimizer__max_gradient_norm=1e9))
    torch.testing.assert_close(weights(plain), weights(clipped), rtol=0, atol=0)


def test_a_sparse_network_is_clipped_by_the_gradients_of_its_active_weights():
    options = {"training__kimg": 0.008, "optimizer__eps": 1e4, "optimizer__warmup_kimg": 0, "optimizer__lr": 1e4}
    recipe = small(**options, optimizer__max_gradient_norm=0.5, sparsity__method="static", sparsity__level=0.5)
    start = weights(small_state(recipe))
    assert (start - weights(trained(recipe)[0])).norm().item() == pytest.approx(0.5, rel=1e-2)


@pytest.mark.parametrize("rampup", [None, 0.5])
def test_the_average_is_its_closed_form(rampup):
    """EMA_k = sum_j w_j (1 - kept_j) prod_{i > j} kept_i, with kept = 0.5^(batch / half-life)."""
    recipe = small(training__kimg=0.08, ema__halflife_kimg=0.02, ema__rampup_ratio=rampup)
    state = small_state(recipe)
    history = [weights(state), *(weights(state) for _ in train(recipe, state, random_batches(8), device=CPU))]
    kept = []
    for step in range(10):
        halflife = 20 if rampup is None else min(20, rampup * 8 * step)
        kept.append(0.5 ** (8 / halflife) if halflife else 0.0)
    expected = sum(
        (history[j + 1] * (1 - kept[j]) * math.prod(kept[j + 1 :]) for j in range(10)), history[0] * math.prod(kept)
    )
    average = torch.cat([parameter.flatten() for parameter in state.ema.parameters()])
    torch.testing.assert_close(average, expected, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(average, weights(state), atol=1e-4)
    assert not any(parameter.requires_grad for parameter in state.ema.parameters())  # nor does it keep a graph


def test_the_half_life_ramps_up_and_zero_takes_the_raw_weights():
    ema = EMA(halflife_kimg=500, rampup_ratio=0.05)
    assert ema_decay(ema, 0, 512) == 0
    assert ema_decay(ema, 1_000_000, 512) == pytest.approx(0.5 ** (512 / 50_000))
    assert ema_decay(ema, 10_000_000, 512) == ema_decay(ema, 20_000_000, 512) == pytest.approx(0.5 ** (512 / 500_000))
    assert ema_decay(EMA(halflife_kimg=0), 1_000_000, 512) == 0


def test_the_learning_rate_ramps_up_linearly_with_the_images():
    optimizer = Optimizer(lr=1e-3, warmup_kimg=10)
    assert learning_rate(optimizer, 2_500) == pytest.approx(2.5e-4)
    assert learning_rate(optimizer, 10_000) == learning_rate(optimizer, 99_000) == 1e-3
    assert learning_rate(Optimizer(lr=1e-3, warmup_kimg=0), 1) == 1e-3


@pytest.mark.parametrize(("kind", "cls"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)])
def test_the_optimizer_is_the_one_of_the_recipe(kind, cls):
    recipe = small(optimizer__kind=kind, optimizer__weight_decay=0.1, optimizer__beta1=0.8)
    optimizer = small_state(recipe).optimizer
    assert type(optimizer) is cls
    assert optimizer.param_groups[0]["weight_decay"] == 0.1
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.999)


def test_a_loss_that_is_not_finite_ends_training_with_its_step_and_spares_the_weights():
    recipe = small(training__kimg=0.048)
    state, steps = small_state(recipe), []
    for step in train(recipe, state, random_batches(8), device=CPU):
        steps.append(step)
        if step.step == 3:
            with torch.no_grad():
                state.network.get_parameter("unet.conv_out.bias").fill_(float("nan"))
        if step.step == 4:
            assert all(torch.isfinite(p).all() for n, p in state.network.named_parameters() if "conv_out.bias" not in n)
    with pytest.raises(Diverged, match=r"step 4: loss is nan"):
        read_losses(steps)


def test_a_loss_that_explodes_ends_training():
    refuse_explosion(8, 4.0, lowest=0.5)
    with pytest.raises(Diverged, match=r"step 8: loss has exploded to 4 from 0\.2"):
        refuse_explosion(8, 4.0, lowest=0.2)


def test_half_precision_trains_like_full_precision():
    full, _ = trained(small(training__kimg=0.08))
    half, steps = trained(small(training__kimg=0.08, training__precision="bf16"))
    assert next(half.network.parameters()).dtype == torch.float32
    assert all(0.2 < loss < 4 for loss in read_losses(steps))
    assert not torch.equal(weights(full), weights(half))
    torch.testing.assert_close(weights(full), weights(half), rtol=0, atol=5e-3)


def test_a_processor_computes_fp16_as_fp32():
    half, _ = trained(small(training__precision="fp16"))
    full, _ = trained(small())
    assert torch.equal(weights(full), weights(half))


def test_labels_are_shown_and_dropped_as_the_recipe_says(monkeypatch):
    seen, true = [], []
    recipe = small(
        conditioning__classes=True, conditioning__label_drop=0.25, training__batch_size=32, training__kimg=0.96
    )
    state = small_state(recipe, classes=10)

    def batches():
        for batch in random_batches(32):
            true.append(batch.labels)
            yield batch

    def forward(images, levels, conditions):
        seen.append(conditions.labels)
        return images * sum(parameter.sum() * 0 for parameter in state.network.parameters())

    monkeypatch.setattr(state.network, "forward", forward)
    for _ in train(recipe, state, batches(), device=CPU):
        pass
    shown = torch.cat(seen)
    hidden = shown == 10
    assert hidden.float().mean().item() == pytest.approx(0.25, abs=0.05)
    assert torch.equal(shown[~hidden], torch.cat(true)[~hidden])


def test_classes_need_labels():
    with pytest.raises(UserError, match=r"conditioning\.classes: the dataset has no labels"):
        small_state(small(conditioning__classes=True))


@pytest.mark.slow
def test_a_compiled_network_trains_like_the_one_it_was_made_of():
    plain, _ = trained(small(training__kimg=0.04))
    compiled, _ = trained(small(training__kimg=0.04, training__compile=True))
    torch.testing.assert_close(weights(plain), weights(compiled), rtol=0, atol=1e-3)
