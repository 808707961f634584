import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from scrimp_trainers.recipe.techniques import Sparsity
from scrimp_trainers.techniques import sparsity
from scrimp_trainers.techniques.sparsity import Masks

IMAGES = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(0))

rules = st.builds(
    Sparsity,
    method=st.sampled_from(["static", "rigl", "magran"]),
    level=st.floats(0.01, 0.99),
    distribution=st.sampled_from(["erk", "uniform"]),
    interval=st.integers(3, 4),
    drop=st.floats(0, 1),
    schedule=st.sampled_from(["constant", "cosine"]),
    end=st.floats(0.3, 1),
    accumulate=st.integers(1, 3),
    exclude=st.just(("time_embedding",)),
)
widths = st.lists(st.integers(1, 7), min_size=1, max_size=3).map(tuple)
seeds = st.integers(0, 2**31)
optimizers = st.sampled_from([torch.optim.Adam, torch.optim.AdamW])


def small(widths: tuple[int, ...], seed: int = 0) -> nn.Module:
    """Make a network of convolutions of several shapes, linear layers, a norm, and what its rule excludes."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        into = [2, *widths]
        parts: list[nn.Module] = []
        for i, width in enumerate(widths):
            parts += [nn.Conv2d(into[i], width, 1 + 2 * (i % 2), padding=i % 2), nn.GroupNorm(1, width), nn.SiLU()]
        parts += [nn.Flatten(), nn.Linear(9 * widths[-1], 5)]
        network = nn.Sequential(*parts)
        network.add_module("time_embedding", nn.Linear(5, 3))
    return network


@dataclass
class Run:
    """A training as the loop does it, on random targets."""

    network: nn.Module
    ema: nn.Module
    optimizer: torch.optim.Optimizer
    masks: Masks | None
    step: int = 0

    def gradients(self) -> None:
        generator = torch.Generator().manual_seed(self.step)
        self.optimizer.zero_grad(set_to_none=True)
        (self.network(IMAGES) - torch.randn(4, 3, generator=generator)).square().sum().backward()

    def train(self, steps: int, watch: Callable[["Run"], None] = lambda run: None) -> None:
        for _ in range(steps):
            self.gradients()
            if not (self.masks and self.masks.apply(self.step)):
                self.optimizer.step()
            torch._foreach_lerp_(
                [*map(torch.Tensor.detach, self.ema.parameters())], list(self.network.parameters()), 0.3
            )
            self.step += 1
            watch(self)

    def numbers(self) -> dict[str, Tensor]:
        state = {**self.network.state_dict(), **{f"ema/{name}": value for name, value in self.ema.state_dict().items()}}
        for name, parameter in self.network.named_parameters():
            state |= {f"{kind}/{name}": value for kind, value in self.optimizer.state[parameter].items()}
        return {name: torch.as_tensor(value).clone() for name, value in state.items()}


def begin(rule: Sparsity | None, widths=(3, 4), seed: int = 0, kind=torch.optim.Adam, total_steps: int = 20) -> Run:
    network = small(widths, seed)
    ema = copy.deepcopy(network).requires_grad_(False)
    optimizer = kind(network.parameters(), lr=0.02, weight_decay=0.1, fused=True)
    masks = sparsity.start_masks(rule, network, ema, optimizer, seed, total_steps) if rule else None
    return Run(network, ema, optimizer, masks)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=0)


@given(rules, widths, seeds)
@settings(max_examples=20)
def test_a_start_draws_exact_masks_and_zeroes_weights_and_their_averages(rule, widths, seed):
    run = begin(rule, widths, seed)
    assert run.masks
    dense = dict(small(widths, seed).named_parameters())
    averages = dict(run.ema.named_parameters())
    for name, weight in run.network.named_parameters():
        mask = run.masks.masks.get(name, torch.ones_like(weight))
        torch.testing.assert_close(weight, dense[name] * mask, rtol=0, atol=0)
        torch.testing.assert_close(averages[name], weight, rtol=0, atol=0, check_device=False)
        assert mask.count_nonzero() == run.masks.active.get(name, weight.numel())
    assert run.masks.nonzero_fraction == pytest.approx(nonzero_share(run.network), abs=1e-9)


def nonzero_share(network: nn.Module) -> float:
    """Count what is not zero; biases, which may start at zero, count anyway."""
    everything = list(network.named_parameters())
    nonzero = sum(
        parameter.numel() if name.endswith("bias") else int(parameter.count_nonzero()) for name, parameter in everything
    )
    return nonzero / sum(parameter.numel() for _, parameter in everything)


@given(rules, widths, seeds, optimizers)
@settings(max_examples=30)
def test_while_masks_move_inactive_weights_averages_and_moments_stay_exactly_zero(rule, widths, seed, kind):
    run = begin(rule, widths, seed, kind)
    assert run.masks
    total = sum(run.masks.active.values())

    def watch(run: Run) -> None:
        assert run.masks
        averages = dict(run.ema.named_parameters())
        for name, weight in run.masks.weights.items():
            inactive = run.masks.masks[name] == 0
            held = [weight, averages[name], *run.optimizer.state[weight].values()]
            assert all(not value[inactive].any() for value in held if value.shape == weight.shape)
            assert weight.numel() - inactive.sum() == run.masks.active[name]
        assert sum(int(mask.sum()) for mask in run.masks.masks.values()) == total

    run.train(20, watch)


@given(rules, widths, seeds, optimizers)
@settings(max_examples=30)
def test_a_change_drops_the_smallest_and_grows_as_many_afresh(rule, widths, seed, kind):
    rule = rule.model_copy(update={"method": "rigl", "accumulate": 1, "end": 1.0})
    run = begin(rule, widths, seed, kind)
    assert run.masks
    run.train(rule.interval)
    assert run.masks.is_change_due(run.step)
    run.gradients()
    before = {name: mask.clone() for name, mask in run.masks.masks.items()}
    numbers, gradients = run.numbers(), {name: weight.grad for name, weight in run.masks.weights.items()}
    run.masks.change(run.step)
    share = sparsity.drop_fraction(rule, run.step, 20)
    after = run.numbers()
    for name, mask in run.masks.masks.items():
        dropped = math.ceil(share * run.masks.active[name])
        new, old = mask.bool(), before[name].bool()
        stayed, gone, grown = new & old, old & ~new, new & ~old
        assert grown.sum() == gone.sum() <= dropped
        for kind_ in ("", "exp_avg/", "exp_avg_sq/", "ema/"):
            values = after[kind_ + name]
            assert not values[grown].any()
            assert not values[gone].any()
            torch.testing.assert_close(values[stayed], numbers[kind_ + name][stayed], rtol=0, atol=0)
        # All that went is among the `dropped` smallest; all that came, among the largest gradients of the rest.
        smallest = numbers[name][old].abs().sort().values[:dropped]
        assert not gone.any() or numbers[name][gone].abs().max() <= smallest[-1]
        strength = gradients[name].abs()  # type: ignore[union-attr]
        lost = ~new
        assert not (grown.any() and lost.any()) or strength[grown].min() >= strength[lost].max()


def test_a_change_by_hand():
    """Of four active weights the two smallest are dropped, and one of these grows back where its gradient is large."""
    rule = Sparsity(method="rigl", level=0.5, interval=1, drop=0.5, schedule="constant", end=1, exclude=())
    layer = nn.Linear(8, 1, bias=False)
    ema = copy.deepcopy(layer).requires_grad_(False)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1, fused=True)
    masks = sparsity.start_masks(rule, layer, ema, optimizer, seed=0, total_steps=10)
    mask = torch.tensor([[1.0, 1, 1, 1, 0, 0, 0, 0]])
    masks.load({"mask/weight": torch.tensor([0b00001111], dtype=torch.uint8)})
    torch.testing.assert_close(masks.masks["weight"], mask)
    layer.weight.data = torch.tensor([[0.1, -5.0, -0.2, 3.0, 0, 0, 0, 0]])
    ema.weight.data = layer.weight.data.clone()
    optimizer.state[layer.weight] = {"step": torch.tensor(3.0), "exp_avg": mask * 2, "exp_avg_sq": mask * 3}
    layer.weight.grad = torch.tensor([[9.0, 9, 1, 0, 2, -8, 3, 0.5]])
    assert masks.is_change_due(1)
    assert masks.apply(1)
    assert masks.masks["weight"].tolist() == [[1, 1, 0, 1, 0, 1, 0, 0]]
    torch.testing.assert_close(layer.weight.data, torch.tensor([[0.1, -5.0, 0, 3.0, 0, 0, 0, 0]]))
    torch.testing.assert_close(ema.weight.data, layer.weight.data)
    assert optimizer.state[layer.weight]["exp_avg"].tolist() == [[2, 2, 0, 2, 0, 0, 0, 0]]
    assert optimizer.state[layer.weight]["exp_avg_sq"].tolist() == [[3, 3, 0, 3, 0, 0, 0, 0]]
    assert optimizer.state[layer.weight]["step"] == 3


def test_what_magran_drops_and_grows_back_starts_again_at_zero():
    rule = Sparsity(method="magran", level=0.01, interval=1, drop=1.0, schedule="constant", end=1, exclude=())
    run = begin(rule)
    assert run.masks
    run.train(1)
    run.gradients()
    assert run.masks.apply(1)
    for weight in run.masks.weights.values():
        assert not weight.any()
        assert not run.optimizer.state[weight]["exp_avg"].any()


def test_magran_grows_anywhere_alike():
    """Over many seeds every weight that is not kept is as likely to grow: binomial, within five standard deviations."""
    rule = Sparsity(method="magran", level=0.5, interval=1, drop=0.5, schedule="constant", end=1, exclude=())
    counts, draws = torch.zeros(40), 600
    for seed in range(draws):
        layer = nn.Linear(40, 1, bias=False)
        optimizer = torch.optim.Adam(layer.parameters())
        masks = sparsity.start_masks(rule, layer, copy.deepcopy(layer), optimizer, seed, total_steps=10)
        masks.load({"mask/weight": torch.tensor([255, 255, 15, 0, 0], dtype=torch.uint8)})
        layer.weight.data = torch.arange(40.0)[None] + 1  # of 20 active weights, 10 to 19 stay
        layer.weight.grad = torch.zeros(1, 40)
        masks.change(1)
        counts += masks.masks["weight"][0]
    assert (counts[10:20] == draws).all()
    others = torch.cat([counts[:10], counts[20:]])
    spread = math.sqrt(draws * (1 / 3) * (2 / 3))
    assert ((others - draws / 3).abs() < 5 * spread).all()


def test_growth_can_look_at_the_average_of_several_gradients():
    rule = Sparsity(
        method="rigl", level=0.5, interval=3, drop=0.5, schedule="constant", end=1, accumulate=3, exclude=()
    )
    layer = nn.Linear(6, 1, bias=False)
    masks = sparsity.start_masks(
        rule, layer, copy.deepcopy(layer), torch.optim.Adam(layer.parameters()), seed=0, total_steps=40
    )
    # Two are dropped. Of the last three gradients the sums are 9, 4 and 6, the first being too old to count; and 1, 3
    # and 2, where nothing of the first change is left.
    first = [[0, 0, 0, 99, 0, 0], [0, 0, 0, 3, -4, 0], [0, 0, 0, 3, 4, 5], [0, 0, 0, 3, 4, 1]]
    second = [[0, 0, 0, 99, 0, 0], [0, 0, 0, 0, 2, 0], [0, 0, 0, 1, 1, 0], [0, 0, 0, 0, 0, 2]]
    for begun, dense, expected in ((0, first, [1, 0, 0, 1, 0, 1]), (4, second, [1, 0, 0, 0, 1, 1])):
        masks.load({"mask/weight": torch.tensor([0b000111], dtype=torch.uint8), "sum/weight": masks.sums["weight"]})
        layer.weight.data = torch.tensor([[3.0, 2.0, 1.0, 0, 0, 0]])
        for step, gradient in enumerate(dense):
            layer.weight.grad = torch.tensor([gradient]).float()
            assert masks.apply(begun + step) == (step == 3)
        assert masks.masks["weight"].tolist() == [expected]


@given(rules, st.integers(1, 60))
def test_changes_come_after_every_interval_until_the_end(rule, total_steps):
    masks = begin(rule, total_steps=total_steps).masks
    assert masks
    due = [step for step in range(total_steps) if masks.is_change_due(step)]
    possible = range(rule.interval, math.ceil(rule.end * total_steps), rule.interval + 1)
    assert due == ([] if rule.method == "static" else list(possible))


@given(rules, st.integers(1, 60))
def test_steps_that_need_dense_gradients_are_counted_as_they_come(rule, total_steps):
    masks = begin(rule, total_steps=total_steps).masks
    assert masks
    changes = [step for step in range(total_steps) if masks.is_change_due(step)] if rule.method == "rigl" else []
    needing = {step - back for step in changes for back in range(rule.accumulate)}
    for steps in range(total_steps + 1):
        counted = sparsity.count_dense_gradients(rule, steps, total_steps)
        assert counted == sum(step < steps for step in needing)


def test_the_share_that_moves_goes_down_to_zero_or_stays():
    cosine = Sparsity(method="rigl", drop=0.4, end=0.5)
    assert sparsity.drop_fraction(cosine, 0, 100) == pytest.approx(0.4)
    assert sparsity.drop_fraction(cosine, 25, 100) == pytest.approx(0.2)
    assert sparsity.drop_fraction(cosine, 50, 100) == pytest.approx(0)
    assert sparsity.drop_fraction(cosine.model_copy(update={"schedule": "constant"}), 49, 100) == 0.4


@given(rules, widths, seeds, st.integers(0, 19))
@example(Sparsity(method="rigl", interval=3, accumulate=3, drop=0.5, end=1, exclude=()), (7, 7), 0, 2)
@settings(max_examples=20)
def test_a_run_that_goes_on_from_a_checkpoint_is_the_run_that_never_stopped(rule, widths, seed, stop):
    whole = begin(rule, widths, seed)
    whole.train(20)
    first = begin(rule, widths, seed)
    first.train(stop)
    second = begin(rule, widths, seed)
    assert first.masks
    assert second.masks
    second.network.load_state_dict(first.network.state_dict())
    second.ema.load_state_dict(first.ema.state_dict())
    second.optimizer.load_state_dict(copy.deepcopy(first.optimizer.state_dict()))
    second.masks.load({name: value.clone() for name, value in first.masks.tensors().items()})
    second.step = stop
    second.train(20 - stop)
    same(second.numbers(), whole.numbers())
    same(second.masks.tensors(), whole.masks.tensors() if whole.masks else {})


def test_a_checkpoint_holds_eight_weights_a_byte():
    run = begin(Sparsity(method="rigl", exclude=()))
    assert run.masks
    for name, packed in run.masks.tensors().items():
        assert packed.dtype == torch.uint8
        assert packed.numel() == math.ceil(run.masks.masks[name.removeprefix("mask/")].numel() / 8)


@given(rules, widths, seeds)
@settings(max_examples=15)
def test_masks_are_the_same_on_every_rank(rule, widths, seed):
    """Whatever else a rank has drawn: masks depend on the seed, and on gradients that are averaged over the ranks."""
    runs = [begin(rule, widths, seed) for _ in range(2)]
    for rank, run in enumerate(runs):
        torch.manual_seed(rank)
        torch.rand(1 + rank)
        run.train(20)
    assert runs[0].masks
    assert runs[1].masks
    same(runs[0].masks.tensors(), runs[1].masks.tensors())


def test_another_seed_draws_another_mask():
    one, other = (begin(Sparsity(method="static"), (7, 7), seed).masks for seed in (0, 1))
    assert one
    assert other
    assert any((one.masks[name] != other.masks[name]).any() for name in one.masks)


@given(rules, widths, seeds, optimizers)
@settings(max_examples=15)
def test_level_zero_is_dense_training_bit_for_bit(rule, widths, seed, kind):
    nothing = rule.model_copy(update={"level": 0.0, "method": "static"})
    assert not nothing.on
    masked, dense = begin(nothing, widths, seed, kind), begin(None, widths, seed, kind)
    masked.train(10)
    dense.train(10)
    same(masked.numbers(), dense.numbers())
