"""LD-Diffusion's term: jigsaws that never are the image, and the formula against plain numpy."""

from itertools import permutations

import numpy as np
import torch

from scrimp_trainers.diffusion import edm
from scrimp_trainers.recipe.diffusion import EDM
from scrimp_trainers.recipe.techniques import OOD
from scrimp_trainers.techniques import ood


def jigsaws(images, seed=0, total=None, mine=slice(None)):
    generator = torch.Generator().manual_seed(seed)
    return ood.jigsaw(images, generator, global_batch=total or len(images), rank_slice=mine)


def quadrants(image):
    """Upper left, upper right, lower left and lower right of [C, H, W]."""
    h, w = image.shape[1] // 2, image.shape[2] // 2
    return [image[:, :h, :w], image[:, :h, w:], image[:, h:, :w], image[:, h:, w:]]


def test_the_23_orders_that_are_not_the_image_come_equally_often():
    total = 23_000
    image = torch.arange(4.0).view(1, 1, 2, 2)  # each quadrant is one pixel, its own number
    seen = jigsaws(image.expand(total, 1, 2, 2)).flatten(1).int().tolist()
    counts = {order: 0 for order in permutations(range(4)) if order != (0, 1, 2, 3)}
    for order in seen:
        counts[tuple(order)] += 1  # raises for the identity, and for what is no permutation
    square = sum((count - 1000) ** 2 / 1000 for count in counts.values())
    assert square < 50  # chi-squared with 22 degrees of freedom: 0.06%


def test_quadrants_move_whole_with_all_their_channels():
    images = torch.randn(16, 3, 6, 10)
    for image, found in zip(images, jigsaws(images), strict=True):
        pieces = quadrants(image)
        places = [[torch.equal(part, piece) for piece in pieces].index(True) for part in quadrants(found)]
        assert sorted(places) == [0, 1, 2, 3]
        assert places != [0, 1, 2, 3]


def test_ranks_draw_their_share_of_the_one_batch():
    images = torch.randn(8, 1, 4, 4)
    whole = jigsaws(images)
    for mine in (slice(0, 4), slice(4, 8)):
        assert torch.equal(jigsaws(images[mine], total=8, mine=mine), whole[mine])


def test_the_term_is_the_formula():
    settings, diffusion = OOD(weight=0.7, constant=3.0), EDM(sigma_data=0.4)
    estimate, negative, sigma = torch.randn(5, 3, 4, 4), torch.randn(5, 3, 4, 4), torch.rand(5) * 2 + 0.01
    found = ood.ood_loss(settings, edm.build(diffusion), estimate, negative, sigma)
    s, d, y = (tensor.double().numpy() for tensor in (sigma, estimate, negative))
    inverse = (s * 0.4) ** 2 / (s**2 + 0.4**2)
    expected = [0.7 * inverse[i] * np.mean(1 / ((d[i] - y[i]) ** 2 + 3)) for i in range(5)]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5)


def test_the_term_is_on_the_scale_of_edms_loss():
    """Elementwise, (loss of y) + (term of y-) is w d^2 + (1 / w) / (d^2 + constant), averaged alike."""
    estimate, clean, sigma = torch.randn(3, 1, 4, 4), torch.zeros(3, 1, 4, 4), torch.tensor([0.1, 1.0, 20.0])
    both = edm.build(EDM()).losses(estimate, clean, clean, sigma)
    both = both + ood.ood_loss(OOD(weight=1), edm.build(EDM()), estimate, clean, sigma)
    w = ((sigma**2 + 0.25) / (0.25 * sigma**2))[:, None, None, None]
    expected = (w * estimate**2 + 1 / w / (estimate**2 + 100)).mean((1, 2, 3))
    torch.testing.assert_close(both, expected)


def test_the_released_constant_makes_a_weak_term_that_pushes_away():
    estimate = torch.full((1, 1, 2, 2), 0.3, requires_grad=True)
    found = ood.ood_loss(OOD(weight=1), edm.build(EDM()), estimate, torch.zeros(1, 1, 2, 2), torch.tensor([80.0]))
    found.sum().backward()
    assert 0 < found.item() < 0.0025
    assert estimate.grad is not None
    assert (estimate.grad < 0).all()  # a step against the gradient leads away from the negative
