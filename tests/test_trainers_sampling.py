import pytest
import torch
from PIL import Image
from trainers_small import small, small_state

from scrimp_trainers import sampling
from scrimp_trainers.codecs.pixels import to_pixels
from scrimp_trainers.common.errors import UserError
from scrimp_trainers.diffusion import edm
from scrimp_trainers.networks.unet import UNetDenoiser

KINDS = {
    "heun": small(sampler__steps=6),
    "stochastic": small(sampler__steps=6, sampler__s_churn=10.0),
    "ancestral": small("tiny-ddpm", sampler__kind="ancestral", sampler__steps=8, diffusion__timesteps=8),
    "ddim": small("tiny-ddpm", sampler__steps=8, sampler__eta=0.5),
}
every_kind = pytest.mark.parametrize("recipe", KINDS.values(), ids=KINDS.keys())


def awake(recipe, classes=0):
    """A network with weights as if it had been trained, so that its output matters."""
    network = small_state(recipe, classes=classes).ema
    generator = torch.Generator().manual_seed(5)
    for parameter in network.parameters():
        parameter.data.normal_(std=0.1, generator=generator)
    return network


def drawn(network, recipe, count, **options):
    return torch.cat(list(sampling.generate(network, recipe, count, **{"seed": 3, **options})))


@every_kind
def test_an_image_does_not_depend_on_the_batch_or_the_number_of_ranks(recipe):
    network = awake(recipe)
    together = drawn(network, recipe, 11)
    assert together.shape == (11, 1, 8, 8)
    assert together.dtype == torch.uint8
    assert together.float().std() > 10
    ones = drawn(network, recipe, 11, batch_size=1)
    fours = drawn(network, recipe, 11, batch_size=4)
    ranks = torch.empty_like(together)
    for rank in range(3):
        ranks[rank::3] = drawn(network, recipe, 11, batch_size=2, rank=rank, world=3)
    for other in (ones, fours, ranks):  # sums in another order may round a value to the next grey level
        difference = (together.int() - other.int()).abs()
        assert difference.max() <= 1
        assert (difference > 0).float().mean() < 0.01


@every_kind
def test_seeds_matter(recipe):
    network = awake(recipe)
    assert torch.equal(drawn(network, recipe, 4), drawn(network, recipe, 4))
    assert not torch.equal(drawn(network, recipe, 4), drawn(network, recipe, 4, seed=4))
    images = drawn(network, recipe, 4)
    assert not torch.equal(images[0], images[1])


def test_batches_are_as_large_as_asked():
    recipe = KINDS["heun"]
    sizes = [len(batch) for batch in sampling.generate(awake(recipe), recipe, 11, seed=0, batch_size=4)]
    assert sizes == [4, 4, 3]


def limit_memory(monkeypatch, most):
    """Let the device hold the activations of so many images."""
    forward = UNetDenoiser.forward

    def limited(self, images, *arguments, **inputs):
        if len(images) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return forward(self, images, *arguments, **inputs)

    monkeypatch.setattr(UNetDenoiser, "forward", limited)


@pytest.mark.parametrize("recipe", [KINDS["heun"], KINDS["ancestral"]], ids=["heun", "ancestral"])
def test_sampling_that_runs_out_of_memory_goes_on_in_halves_with_the_same_noise(monkeypatch, recipe):
    network = awake(recipe)
    expected = list(sampling.generate(network, recipe, 11, seed=3, batch_size=3))
    limit_memory(monkeypatch, 5)
    found = list(sampling.generate(network, recipe, 11, seed=3, batch_size=12))
    assert [len(batch) for batch in found] == [3, 3, 3, 2]  # 12, 6, 3
    assert torch.equal(torch.cat(found), torch.cat(expected))


def test_sampling_without_memory_for_one_image_says_that_it_is_sampling_that_does_not_fit(monkeypatch):
    recipe = KINDS["heun"]
    limit_memory(monkeypatch, 0)
    with pytest.raises(UserError, match="sampling: not even one image fits into the memory"):
        drawn(small_state(recipe).ema, recipe, 4)


def test_the_network_is_evaluated_as_often_as_the_recipe_says(monkeypatch):
    recipe = small(conditioning__classes=True, conditioning__label_drop=0.1, sampler__guidance=2.0)
    network = awake(recipe, classes=10)
    calls, forward = [], network.forward
    monkeypatch.setattr(network, "forward", lambda *inputs, **more: calls.append(more) or forward(*inputs, **more))
    drawn(network, recipe, 2)
    assert len(calls) == recipe.nfe == 70


def test_classes_are_drawn_in_turn_over_all_ranks(monkeypatch):
    recipe = small(conditioning__classes=True, sampler__steps=1)
    network = awake(recipe, classes=3)
    told, forward = [], network.forward

    def spy(images, levels, conditions):
        told.append(conditions.labels.tolist())
        return forward(images, levels, conditions)

    monkeypatch.setattr(network, "forward", spy)
    drawn(network, recipe, 7, batch_size=4)
    drawn(network, recipe, 7, rank=1, world=2)
    assert told == [[0, 1, 2, 0], [1, 2, 0], [1, 0, 2]]


def test_guidance_moves_away_from_what_is_drawn_without_a_class(monkeypatch):
    recipe = small(conditioning__classes=True, conditioning__label_drop=0.1, sampler__steps=1, sampler__guidance=3.0)
    network = awake(recipe, classes=3)

    def denoise(process, net, noisy, levels, conditions):
        return noisy * 0 + (0.1 if conditions.labels.item() == 3 else 0.3)

    monkeypatch.setattr(edm.EDMProcess, "denoise", denoise)
    assert drawn(network, recipe, 1).unique().tolist() == [round((0.1 + 3 * 0.2 + 1) * 127.5)]


def test_pixels_survive_the_way_to_numbers_and_back():
    values = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    assert torch.equal(to_pixels(values.float().div_(127.5).sub_(1)), values)
    beyond = torch.tensor([[[[-1.5, 1.5]]]])
    assert to_pixels(beyond).flatten().tolist() == [0, 255]


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_images_are_saved_with_a_grid_of_the_first(tmp_path, channels, mode):
    batches = [torch.full((40, channels, 32, 32), value, dtype=torch.uint8) for value in (10, 20, 30)]
    sampling.save_images(batches, tmp_path / "out")
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == [*(f"{i:06d}.png" for i in range(120)), "grid.png"]
    with Image.open(tmp_path / "out" / "000080.png") as image:
        assert image.mode == mode
        assert image.size == (32, 32)
        assert set(image.convert("L").tobytes()) == {30}
    with Image.open(tmp_path / "out" / "grid.png") as image:  # 64 images: 40 of the first batch, 24 of the second
        tiles = [image.convert("L").getpixel((2 + i % 8 * 34, 2 + i // 8 * 34)) for i in range(64)]
    assert tiles == [10] * 40 + [20] * 24
    with pytest.raises(UserError, match="exists"):
        sampling.save_images(batches, tmp_path / "out")
