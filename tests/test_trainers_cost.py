import copy

import pytest
import torch
from torch import Tensor, nn

from scrimp_trainers.metrics import cost


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
        def forward(self, x: Tensor, mask: None) -> Tensor:
            return nn.functional.scaled_dot_product_attention(x, x, x, attn_mask=mask)

    tokens, width = 64, 32
    assert (
        cost.forward_flops(Attention(), torch.zeros(1, 2, tokens, width), None) == 2 * 2 * 2 * tokens * tokens * width
    )


def test_counting_leaves_the_network_as_it_was():
    network = small_network()
    before = copy.deepcopy(network.state_dict())
    cost.forward_flops(network, torch.randn(1, 3, 16, 16))
    torch.testing.assert_close(dict(network.state_dict()), dict(before), rtol=0, atol=0)
    assert network(torch.zeros(2, 3, 16, 16)).shape == (2, 5)


def test_a_repeats_cost_counts_three_passes_a_training_image_and_the_weights_that_are_left():
    network = small_network()
    weight = network[3].weight
    assert isinstance(weight, Tensor)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(1)
        weight[:, :2] = 0
    total = 3 * 8 * 9 + 8 + 8 + 8 + 8 * 4 * 9 + 4 * 49 * 5 + 5
    assert cost.cost(network, 10**6, images=2000, nfe=35, samples=50, seconds=1800, devices=2) == {
        "parameters": total,
        "nonzero_parameters": total - 4 * 2 * 9,
        "train_flops": pytest.approx(6e9),
        "sample_flops": pytest.approx(1.75e9),
        "device_hours": pytest.approx(1.0),
    }
