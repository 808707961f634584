"""Patches: one size a step, one place an image, coordinates of the full frame, and an honest account of the pixels."""

import pytest
import torch

from scrimp_trainers.conditioning.conditions import Conditions
from scrimp_trainers.diffusion import edm
from scrimp_trainers.networks.unet import build, frame
from scrimp_trainers.recipe.diffusion import EDM
from scrimp_trainers.recipe.networks import UNet
from scrimp_trainers.recipe.techniques import Patches
from scrimp_trainers.techniques import patches
from scrimp_trainers.techniques.patches import Window

CPU = torch.device("cpu")
PATCH_DIFFUSION = Patches(real_p=0.5, sizes=(0.25, 0.5), shares=(2, 3))
LD_DIFFUSION = Patches(real_p=0.5, sizes=(0.75,))


def drawn(settings: Patches, step: int, side: int = 32, total: int = 6, mine: slice = slice(0, 6)) -> Window | None:
    generator = torch.Generator().manual_seed(step)
    return patches.draw_window(settings, side, generator, global_batch=total, rank_slice=mine, step_seed=step)


def test_a_part_holds_its_own_pixels_and_their_coordinates():
    images = torch.randn(5, 3, 16, 16)
    window = Window(6, torch.tensor([0, 10, 3, 4, 10]), torch.tensor([0, 10, 7, 0, 2]))
    parts, places = patches.cut_patches(images, window), patches.coordinates(window, 16, CPU)
    for i, (top, left) in enumerate(zip(window.tops, window.lefts, strict=True)):
        here = slice(top, top + 6), slice(left, left + 6)
        assert torch.equal(parts[i], images[i][:, *here])
        assert torch.equal(places[i], frame(images)[i][:, *here])


def test_a_window_of_the_full_size_is_the_full_frame():
    images = torch.randn(2, 3, 8, 8)
    window = Window(8, torch.zeros(2, dtype=torch.long), torch.zeros(2, dtype=torch.long))
    assert torch.equal(patches.cut_patches(images, window), images)
    assert torch.equal(patches.coordinates(window, 8, CPU), frame(images))


@pytest.mark.parametrize("settings", [PATCH_DIFFUSION, LD_DIFFUSION, Patches(real_p=0.0, sizes=(0.5,))])
def test_sizes_are_drawn_as_often_as_the_recipe_says(settings):
    windows = [drawn(settings, step) for step in range(4000)]
    sizes = [window.size if window else 32 for window in windows]
    for size, chance in patches.size_probabilities(settings, 32).items():
        assert sizes.count(size) / 4000 == pytest.approx(chance, abs=0.03)
    assert sum(size**2 for size in sizes) / 4000 / 32**2 == pytest.approx(patches.mean_area(settings, 32), abs=0.02)


@pytest.mark.parametrize(
    ("settings", "area"),
    [
        (Patches(), 1),
        (LD_DIFFUSION, 0.5 + 0.5 * 9 / 16),
        (PATCH_DIFFUSION, 0.5 + 0.5 * (0.4 / 16 + 0.6 / 4)),
        (Patches(real_p=0.25, sizes=(1.0,)), 1),
    ],
)
def test_the_mean_area_is_what_the_probabilities_give(settings, area):
    assert patches.mean_area(settings, 32) == pytest.approx(area)


def test_every_place_is_drawn_and_none_leaves_the_image():
    window = drawn(Patches(real_p=0.0), 0, total=4000, mine=slice(0, 4000))
    assert window
    assert window.size == 24
    for firsts in (window.tops, window.lefts):
        counts = firsts.bincount()
        assert len(counts) == 9
        assert (counts - 4000 / 9).abs().max() < 100
    assert torch.corrcoef(torch.stack([window.tops, window.lefts]).float())[0, 1].abs() < 0.1


def test_the_size_depends_on_the_step_alone_and_ranks_share_the_places():
    for step in range(20):
        whole, first, second = (drawn(LD_DIFFUSION, step, mine=mine) for mine in (slice(6), slice(3), slice(3, 6)))
        if not whole or not first or not second:
            assert whole is first is second is None
        else:
            assert whole.size == first.size == second.size == 24
            assert torch.equal(whole.tops, torch.cat([first.tops, second.tops]))
            assert torch.equal(whole.lefts, torch.cat([first.lefts, second.lefts]))


def test_whole_images_alone_are_no_window():
    assert not any(drawn(Patches(), step) for step in range(100))


def test_a_network_learns_from_whole_images_and_parts_in_turn():
    torch.manual_seed(0)
    settings = Patches(real_p=0.5, sizes=(0.5, 0.75), shares=(1, 1))
    network = build(UNet(channels=8, multipliers=(1, 2), blocks=1), image_size=8, channels=1, coordinates=True)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    images = frame(torch.empty(16, 1, 8, 8))[:, :1]  # a ramp: a part's brightness follows from its place alone
    values, sizes = [], set()
    for step in range(150):
        window = drawn(settings, step, side=8, total=16, mine=slice(16))
        clean = patches.cut_patches(images, window) if window else images
        places = patches.coordinates(window, 8, CPU) if window else None
        levels, noise = torch.full((16,), 2.0), torch.randn(clean.shape)
        estimate = edm.build(EDM()).denoise(
            network, edm.build(EDM()).add_noise(clean, noise, levels), levels, Conditions(coordinates=places)
        )
        loss = edm.build(EDM()).losses(estimate, clean, noise, levels).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
        sizes.add(clean.shape[-1])
    assert sizes == {4, 6, 8}
    assert sum(values[-10:]) < 0.2 * sum(values[:10])
