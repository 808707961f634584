import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn

from scrimp_trainers.common.errors import UserError
from scrimp_trainers.networks.unet import build
from scrimp_trainers.recipe.networks import UNet
from scrimp_trainers.recipe.recipe import load
from scrimp_trainers.recipe.techniques import Sparsity
from scrimp_trainers.techniques import sparsity

shapes = st.dictionaries(
    st.text("abcdef", min_size=1, max_size=3),
    st.lists(st.integers(1, 40), min_size=2, max_size=4).map(tuple),
    min_size=1,
    max_size=8,
)
levels = st.floats(0, 1, exclude_max=True)


def unet(**options) -> nn.Module:
    network = UNet(channels=8, multipliers=(1, 2), blocks=1, attention=(4,))
    return build(network, image_size=8, channels=1, classes=3, augment_labels=9, **options)


def test_convolutions_and_linear_layers_are_masked_but_for_what_is_excluded():
    network = unet()
    masked = sparsity.maskable(Sparsity(), network)
    assert {"unet.conv_in.weight", "unet.mid_block.attentions.0.to_q.weight"} <= set(masked)
    assert "unet.down_blocks.0.resnets.0.time_emb_proj.weight" in masked
    assert all(weight.ndim >= 2 for weight in masked.values())
    left = {name for name, parameter in network.named_parameters() if parameter.ndim >= 2 and name not in masked}
    assert left == {
        "unet.time_embedding.linear_1.weight",
        "unet.time_embedding.linear_2.weight",
        "unet.class_embedding.weight",
        "augment.weight",
    }
    assert "unet.class_embedding.weight" not in sparsity.maskable(Sparsity(exclude=()), network)


def test_excluding_everything_is_refused():
    with pytest.raises(UserError, match=r"sparsity\.exclude: .* leaves no layer"):
        sparsity.maskable(Sparsity(exclude=("",)), unet())


def test_more_gradients_than_there_are_steps_between_changes_are_refused():
    with pytest.raises(ValidationError, match="accumulate 11 exceeds interval 10"):
        Sparsity(accumulate=11, interval=10)


@given(shapes, levels, st.sampled_from(["erk", "uniform"]))
def test_the_number_of_active_weights_is_exact(sizes, level, distribution):
    counts = sparsity.active_weights(Sparsity(level=level, distribution=distribution), sizes)
    assert list(counts) == list(sizes)
    assert sum(counts.values()) == round((1 - level) * sum(math.prod(shape) for shape in sizes.values()))
    assert all(0 <= count <= math.prod(sizes[name]) for name, count in counts.items())


@given(shapes, levels)
def test_uniform_gives_each_layer_its_share_to_a_weight(sizes, level):
    counts = sparsity.active_weights(Sparsity(level=level, distribution="uniform"), sizes)
    assert all(abs(count - (1 - level) * math.prod(sizes[name])) < 2 for name, count in counts.items())


@given(shapes, levels)
def test_erk_gives_densities_in_proportion_to_the_sum_over_the_product_of_the_dimensions(sizes, level):
    """Checked against epsilon found by bisection of sum(min(1, epsilon raw) size) = target."""
    counts = sparsity.active_weights(Sparsity(level=level), sizes)
    size = {name: math.prod(shape) for name, shape in sizes.items()}
    raw = {name: sum(shape) / size[name] for name, shape in sizes.items()}
    low, high = 0.0, 1 / min(raw.values())
    for _ in range(100):
        middle = (low + high) / 2
        enough = sum(min(1, middle * raw[name]) * size[name] for name in size) > sum(counts.values())
        low, high = (low, middle) if enough else (middle, high)
    for name, count in counts.items():
        assert count == pytest.approx(min(1, low * raw[name]) * size[name], abs=1 + 1e-6)


def test_erk_by_hand():
    """Of 804 weights 201 stay. The first layer would get 201 x 4 / 94 > 4 of them; 197 are left for 50 : 40."""
    counts = sparsity.active_weights(Sparsity(level=0.75), {"a": (2, 2), "b": (10, 40), "c": (20, 20)})
    assert counts == {"a": 4, "b": 109, "c": 88}


def test_the_table_says_what_is_masked_and_how_dense_it_is():
    network = unet()
    names = list(sparsity.layer_weights(network))
    rows = sparsity.layer_table(Sparsity(method="static", level=0.5), network, dict.fromkeys(names, 3))
    assert [row.name for row in rows] == names
    assert {row.name for row in rows if not row.masked} >= {"augment.weight", "unet.time_embedding.linear_1.weight"}
    assert all(row.density == 1 for row in rows if not row.masked)
    active = sum(row.density * math.prod(row.shape) for row in rows if row.masked)
    assert active == pytest.approx(round(0.5 * sum(math.prod(row.shape) for row in rows if row.masked)))
    assert sum(row.flops_share for row in rows) == pytest.approx(1)


@pytest.mark.parametrize("name", ["static", "rigl", "magran"])
def test_the_presets_are_within_what_the_paper_calls_safe(name):
    recipe = load(f"{name}-dm")
    assert recipe.sparsity.on
    assert recipe.sparsity.method == name
    assert 0.25 <= recipe.sparsity.level <= 0.5
    assert "reconstruction" in recipe.about
