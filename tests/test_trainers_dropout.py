"""Dropout is PyTorch's, whatever draws the mask."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn

from scrimp_trainers.networks.dropout import Dropout, of_step, replace
from scrimp_trainers.networks.unet import build
from scrimp_trainers.recipe.networks import UNet

SHARES = st.floats(1e-3, 1 - 1e-3)
SHAPES = st.lists(st.integers(1, 7), max_size=4)


@given(p=SHARES, shape=SHAPES, seed=st.integers(0, 2**32))
def test_an_element_is_dropped_or_scaled_and_so_is_its_gradient(p, shape, seed):
    images = torch.ones(shape, requires_grad=True)
    torch.manual_seed(seed)
    out = Dropout(p)(images)
    out.sum().backward()

    kept = out[out != 0]
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - p)), rtol=1e-4 / (1 - p), atol=0)
    torch.testing.assert_close(images.grad, out.detach(), rtol=0, atol=0)


@settings(max_examples=20)
@given(p=st.sampled_from([0.001, 0.1, 0.13, 0.5, 0.9]), seed=st.integers(0, 2**32))
def test_the_share_dropped_is_what_was_asked_for_at_each_place_of_a_draw(p, seed):
    torch.manual_seed(seed)
    dropped = (Dropout(p)(torch.ones(100_000, 4)) == 0).sum(0)

    for count in dropped.tolist():
        assert stats.binomtest(count, 100_000, p).pvalue > 1e-7


def test_neighbours_are_dropped_independently():
    torch.manual_seed(0)
    dropped = (Dropout(0.5)(torch.ones(100_000, 4)) == 0).double()
    correlations = torch.corrcoef(dropped.T) - torch.eye(4)
    assert correlations.abs().max() < 5 / 100_000**0.5


@pytest.mark.parametrize(("p", "training"), [(0.3, False), (0.0, True)])
def test_nothing_is_dropped_where_nothing_is_to_be(p, training):
    images = torch.randn(3, 5)
    assert torch.equal(Dropout(p).train(training)(images), images)


def test_everything_is_dropped_where_everything_is_to_be():
    assert Dropout(1.0)(torch.ones(3, 5)).tolist() == [[0] * 5] * 3


def test_a_network_has_no_other_dropout():
    network = build(UNet(channels=8, multipliers=(1, 2), attention=(4,), dropout=0.2), image_size=8, channels=1)
    shares = [(type(module), module.p) for module in network.modules() if isinstance(module, nn.Dropout)]
    assert (Dropout, 0.2) in shares
    assert {kind for kind, _ in shares} == {Dropout}


def test_dropout_without_replacement_is_left_alone():
    network = nn.Sequential(nn.Dropout(0.1), nn.Dropout2d(0.2))
    replace(network)
    assert [(type(module), module.p) for module in network] == [(Dropout, 0.1), (nn.Dropout2d, 0.2)]


@pytest.mark.parametrize("sizes", [[1] * 6, [2, 4], [5, 1]])
def test_a_mask_belongs_to_its_image_however_a_step_is_cut(sizes):
    network = nn.Sequential(Dropout(0.5), nn.Unflatten(1, (1, 7)), Dropout(0.3)).train()
    images = torch.ones(6, 7)
    with of_step(network, rows=6, first=0, seed=3):
        whole = network(images)
    parts, first = [], 0
    for part in images.split(sizes):
        with of_step(network, rows=6, first=first, seed=3):
            parts.append(network(part))
        first += len(part)
    assert torch.equal(torch.cat(parts), whole)
