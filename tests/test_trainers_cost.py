import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from scrimp_trainers.metrics import cost
from scrimp_trainers.networks.unet import build
from scrimp_trainers.recipe.networks import UNet
from scrimp_trainers.recipe.techniques import Sparsity
from scrimp_trainers.techniques import sparsity


def small_network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.SiLU(), nn.Conv2d(8, 4, 3, stride=2, bias=False),
        nn.Flatten(), nn.Linear(4 * 7 * 7, 5),
    )  # fmt: skip


def test_flops_of_convolutions_and_matrix_products_are_two_a_multiply_add():
    first, second, linear = 16 * 16 * 8 * 3 * 9, 7 * 7 * 4 * 8 * 9, 5 * 4 * 7 * 7
    assert cost.forward_flops(small_network(), torch.zeros(1, 3, 16, 16)) == 2 * (first + second + linear)


def test_flops_of_attention():
    class Attention(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.scaled_dot_product_attention(x, x, x)

    tokens, width = 64, 32
    assert cost.forward_flops(Attention(), torch.zeros(1, 2, tokens, width)) == 2 * 2 * 2 * tokens * tokens * width


def test_flops_of_each_layer():
    counts = cost.layer_flops(small_network(), torch.zeros(1, 3, 16, 16))
    first, second, linear = 16 * 16 * 8 * 3 * 9, 7 * 7 * 4 * 8 * 9, 5 * 4 * 7 * 7
    assert counts == {"0.weight": 2 * first, "3.weight": 2 * second, "5.weight": 2 * linear}
    assert cost.layer_flops(nn.Linear(3, 4), torch.zeros(1, 3)) == {"weight": 24}


def test_layers_and_attention_are_all_that_a_network_costs():
    """Attention here: three blocks at 4x4 pixels and one at the middle, of 16 channels, queries by keys by values."""
    network = build(UNet(channels=8, multipliers=(1, 2), blocks=1, attention=(4,)), image_size=8, channels=1)
    inputs = torch.zeros(1, 1, 8, 8), torch.zeros(1)
    attention = 4 * 2 * (2 * 16 * 16 * 16)
    total = sum(cost.layer_flops(network, *inputs).values()) + attention
    assert total == cost.forward_flops(network, *inputs)


def test_a_masked_layer_costs_its_density():
    layers = {"a.weight": 100, "b.weight": 300}
    assert cost.sparse_flops(450, layers, {"b.weight": 0.5}) == 300
    assert cost.sparse_flops(450, layers, {}) == 450


def test_a_masked_network_costs_the_multiply_adds_of_the_weights_that_are_left():
    network, image = small_network(), torch.zeros(1, 3, 16, 16)
    rule = Sparsity(method="static", level=0.6)
    ema, optimizer = copy.deepcopy(network), torch.optim.Adam(network.parameters())
    masks = sparsity.start_masks(rule, network, ema, optimizer, seed=0, total_steps=1)
    flops = cost.forward_flops(network, image)
    sparse = cost.sparse_flops(flops, cost.layer_flops(network, image), sparsity.densities(rule, network))
    positions = {"0.weight": 16 * 16, "3.weight": 7 * 7, "5.weight": 1}
    assert sparse == sum(2 * positions[name] * int(mask.sum()) for name, mask in masks.masks.items())


@given(
    st.integers(1, 100).flatmap(lambda interval: st.tuples(st.just(interval), st.integers(1, interval))),
    st.integers(1, 50),
)
def test_rigls_training_costs_what_its_formula_says(schedule, changes):
    interval, accumulate = schedule
    rule = Sparsity(method="rigl", interval=interval, accumulate=accumulate, end=1)
    f_d, f_s, batch, steps = 1000.0, 400.0, 8, changes * (interval + 1)
    counted = cost.training_flops(rule, f_d, f_s, steps=steps, total_steps=steps, batch_size=batch)
    ordinary = interval + 1 - accumulate
    mean = (ordinary * 3 * f_s + accumulate * (2 * f_s + f_d)) / (interval + 1)
    assert counted == pytest.approx(mean * steps * batch)


def test_training_costs_three_sparse_passes_where_no_dense_gradient_is_needed():
    of = {"steps": 1000, "total_steps": 1000, "batch_size": 2}
    assert cost.training_flops(Sparsity(method="dense"), 10.0, 10.0, **of) == 3 * 10 * 2000
    for method in ("static", "magran"):
        assert cost.training_flops(Sparsity(method=method), 10.0, 4.0, **of) == 3 * 4 * 2000
    rigl = Sparsity(method="rigl", interval=99, end=0.5)
    first = cost.training_flops(rigl, 10.0, 4.0, steps=500, total_steps=1000, batch_size=2)
    assert first == 2 * (500 * 3 * 4 + 5 * 6)
    assert cost.training_flops(rigl, 10.0, 4.0, **of) == first + 2 * 500 * 3 * 4


def test_counting_leaves_the_network_as_it_was():
    network = small_network()
    before = copy.deepcopy(network.state_dict())
    cost.forward_flops(network, torch.randn(1, 3, 16, 16))
    torch.testing.assert_close(dict(network.state_dict()), dict(before), rtol=0, atol=0)
    assert network(torch.zeros(2, 3, 16, 16)).shape == (2, 5)


def test_a_repeats_cost_counts_the_weights_that_are_left():
    network = small_network()
    weight = network[3].weight
    assert isinstance(weight, Tensor)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(1)
        weight[:, :2] = 0
    total = 3 * 8 * 9 + 8 + 8 + 8 + 8 * 4 * 9 + 4 * 49 * 5 + 5
    assert cost.cost(network, 10**6, nfe=35, samples=50, seconds=1800, devices=2) == {
        "parameters": total,
        "nonzero_parameters": total - 4 * 2 * 9,
        "sample_flops": pytest.approx(1.75e9),
        "device_hours": pytest.approx(1.0),
    }
