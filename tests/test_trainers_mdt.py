"""A masked diffusion transformer trains, resumes, samples, is exported and read back, with the techniques it takes."""

import itertools
import re

import pytest
import torch
from techniques_small import NAMES, TRANSFORMER, train_and_resume, with_techniques
from trainers_small import CPU, random_batches, small, small_state
from without_scrimp import run_card

from scrimp_trainers.common.errors import UserError
from scrimp_trainers.conditioning.conditions import Conditions
from scrimp_trainers.data.dataset import open_dataset
from scrimp_trainers.data.options import Options
from scrimp_trainers.export import export_model, load_model
from scrimp_trainers.ingest import prepare
from scrimp_trainers.metrics import cost
from scrimp_trainers.networks.mdt import build, grid_waves, places_between
from scrimp_trainers.recipe.networks import MDT
from scrimp_trainers.recipe.recipe import parse
from scrimp_trainers.sampling import generate
from scrimp_trainers.training.loop import read_losses, train

SMALL = MDT(channels=16, layers=4, decoder_layers=2, heads=2)
MASKED = TRANSFORMER | {"masking.ratio": 0.3, "masking.spread": 0.2}
REFUSED = {
    "mafp": "mafp needs augmentation labels; use network.kind unet, or turn mafp off",
    "patches": "patches needs coordinates; use network.kind unet, or turn patches off",
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return tmp_path_factory.mktemp("mdt")


@pytest.fixture(scope="module")
def few_digits(files):
    prepare("digits", files / "digits", Options(limit=96, classifier=False))
    return open_dataset(files / "digits")


def awake(section=SMALL, classes=10, masked=True, variances=False):
    """Make a network with weights as if it had been trained, so that every input matters."""
    torch.manual_seed(0)
    network = build(section, image_size=8, channels=1, classes=classes, masked=masked, variances=variances).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return network


# --- size and cost


@pytest.mark.parametrize(
    ("section", "millions"),
    [(MDT(), 38.45),
     (MDT(channels=768, heads=12, decoder_layers=4), 150.93),
     (MDT(channels=1024, layers=24, heads=16, decoder_layers=4), 507.02),
     (MDT(channels=1152, layers=28, heads=16, decoder_layers=4), 742.26)],
    ids=["S/2", "B/2", "L/2", "XL/2"],
)  # fmt: skip
def test_version_2_has_the_published_number_of_parameters(section, millions):
    with torch.device("meta"):
        network = build(section, image_size=32, channels=4, classes=1000, masked=True, variances=True)
    assert round(sum(parameter.numel() for parameter in network.parameters()) / 1e6, 2) == millions


def flops_of(version, kept):
    """Count by hand: 16 tokens of 2x2 pixels of one channel, 16 channels; a decoder of two blocks of four."""
    tokens, width = 16, 16
    seen = kept or tokens

    def block(count, skip):
        layers = 12 + (2 if skip else 0)
        return layers * count * width**2 + 2 * count**2 * width + 6 * width**2

    skips = version == 2
    encoder = block(seen, False) + block(seen, skips)
    decoder = 2 * block(tokens, skips) + (block(tokens, False) if kept else 0)
    inputs = tokens * width * 4 + 256 * width + width**2
    outputs = 2 * width**2 + tokens * width * 4
    return 2 * (inputs + encoder + decoder + outputs)


@pytest.mark.parametrize("version", [1, 2])
def test_its_flops_are_those_of_its_layers_and_its_attention(version):
    network = awake(SMALL.model_copy(update={"version": version}))
    inputs = torch.zeros(1, 1, 8, 8), torch.zeros(1)
    labels = torch.zeros(1, dtype=torch.long)
    assert cost.forward_flops(network, *inputs, Conditions(labels)) == flops_of(version, None)
    seen = Conditions(labels, kept=torch.arange(9)[None])
    assert cost.forward_flops(network, *inputs, seen) == flops_of(version, 9)


# --- what it computes


def test_places_are_told_apart_by_their_offsets():
    numbers = places_between(3)
    assert numbers.shape == (9, 9)
    for (first, second), (third, fourth) in itertools.product(itertools.product(range(9), repeat=2), repeat=2):
        offset = (first // 3 - second // 3, first % 3 - second % 3)
        other = (third // 3 - fourth // 3, third % 3 - fourth % 3)
        assert (numbers[first, second] == numbers[third, fourth]) == (offset == other)
    assert numbers.min() == 0
    assert numbers.max() == 24


def test_positions_begin_as_sines_and_cosines_of_column_and_row():
    waves = grid_waves(4, 8)
    column, row = 3.0, 1.0
    expected = [function(torch.tensor(place / 10_000**power)) for place in (column, row)
                for function in (torch.sin, torch.cos) for power in (0, 0.5)]  # fmt: skip
    torch.testing.assert_close(waves[1 * 4 + 3], torch.stack(expected))


@torch.no_grad()
@pytest.mark.parametrize("version", [1, 2])
def test_a_masked_pass_sees_the_kept_tokens_alone_in_the_encoder(version):
    network = awake(SMALL.model_copy(update={"version": version})).transformer
    tokens, condition = torch.randn(2, 16, 16), torch.randn(2, 16)
    kept = torch.stack([torch.randperm(16)[:9] for _ in range(2)])
    changed = tokens + 1
    seen = changed.scatter(1, kept[..., None].expand(-1, -1, 16), tokens.gather(1, kept[..., None].expand(-1, -1, 16)))
    assert torch.equal(network.encoded(tokens, condition, kept), network.encoded(seen, condition, kept))
    assert not torch.allclose(network.encoded(tokens, condition, kept), network.encoded(changed, condition, kept))


@torch.no_grad()
@pytest.mark.parametrize("version", [1, 2])
def test_the_order_of_the_kept_tokens_does_not_matter_and_all_of_them_are_the_full_pass(version):
    network = awake(SMALL.model_copy(update={"version": version}))
    x, levels, labels = torch.randn(2, 1, 8, 8), torch.tensor([0.1, -0.5]), torch.tensor([1, 2])
    kept = torch.stack([torch.randperm(16)[:9] for _ in range(2)])
    masked = network(x, levels, Conditions(labels, kept=kept))
    torch.testing.assert_close(network(x, levels, Conditions(labels, kept=kept.flip(1))), masked)

    full = network(x, levels, Conditions(labels))
    assert not torch.allclose(masked, full, atol=0.1)
    everything = torch.stack([torch.randperm(16) for _ in range(2)])
    torch.testing.assert_close(network(x, levels, Conditions(labels, kept=everything)), full)


@torch.no_grad()
def test_only_version_1_forgets_what_was_hidden():
    """In version 2 the patches go past the encoder to the decoder."""
    kept = torch.arange(8)[None]  # the upper half
    x = torch.randn(1, 1, 8, 8)
    other = x.clone()
    other[:, :, 4:] += 1
    for version in (1, 2):
        network = awake(SMALL.model_copy(update={"version": version}))
        same = torch.equal(*(network(each, torch.zeros(1), Conditions(kept=kept)) for each in (x, other)))
        assert same == (version == 1)


@torch.no_grad()
def test_labels_matter_and_none_means_hidden_ones():
    network = awake()
    x, levels = torch.randn(2, 1, 8, 8), torch.tensor([0.1, -0.5])
    plain = network(x, levels)
    assert torch.equal(plain, network(x, levels, Conditions(torch.tensor([10, 10]))))
    assert not torch.allclose(plain, network(x, levels, Conditions(torch.tensor([3, 4]))))


@torch.no_grad()
def test_it_starts_as_the_papers_code_does():
    torch.manual_seed(0)
    network = build(MDT(channels=32, layers=3, decoder_layers=1, heads=4, version=1), image_size=8, channels=1)
    assert network(torch.randn(2, 1, 8, 8), torch.zeros(2)).abs().max() == 0
    tokens, condition = torch.randn(2, 16, 32), torch.randn(2, 32)
    assert torch.equal(network.transformer.first[0](tokens, condition, network.transformer.places), tokens)


def test_without_masking_it_has_nothing_that_only_a_masked_pass_trains():
    masked, plain = (dict(awake(masked=masked).named_parameters()) for masked in (True, False))
    assert {name.split(".")[1] for name in masked.keys() - plain.keys()} == {"interpolater", "hidden"}


# --- training


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("preset", ["tiny-edm", "tiny-ddpm"])
def test_the_loss_falls_on_64_images(preset, version):
    long = {"training__kimg": 1.6, "optimizer__lr": 3e-3, "optimizer__warmup_kimg": 0}
    recipe = small(preset, **long).replace(MASKED | {"network.version": version})
    images = list(itertools.islice(random_batches(8), 8))
    losses = read_losses(list(train(recipe, small_state(recipe), itertools.cycle(images), device=CPU)))
    assert sum(losses[-20:]) < 0.7 * sum(losses[:20])


@pytest.mark.parametrize("names", [(), *((name,) for name in NAMES)], ids=lambda names: "-".join(names) or "plain")
def test_it_trains_resumes_bit_exactly_and_samples_with_each_technique_that_it_takes(
    names, files, few_digits, tmp_path, monkeypatch
):
    monkeypatch.setattr("scrimp_trainers.metrics.cost.forward_flops", lambda *_: 1)
    recipe = with_techniques((), files).replace(TRANSFORMER)
    added = with_techniques(names, files).model_dump()
    values = {name: added[name] for name in names}
    if set(names) & set(REFUSED):
        with pytest.raises(UserError, match=re.escape(REFUSED[names[0]])):
            recipe.replace(values)
        return

    recipe = recipe.replace(values)
    whole = train_and_resume(recipe, few_digits, tmp_path / "run", 40, 80)
    assert whole.state.step == 10
    drawn = torch.cat(list(generate(whole.state.ema, recipe, 2, seed=1, codec=whole.prepared.codec)))
    assert drawn.shape == (2, 1, 8, 8)


# --- export


@pytest.mark.parametrize("classes", [pytest.param(0, marks=pytest.mark.slow), 10])
@pytest.mark.parametrize(
    ("preset", "version", "values"),
    [("tiny-edm", 1, {}),
     ("tiny-ddpm", 2, {}),
     ("tiny-ddpm", 2, {"diffusion.kind": "iddpm"}),
     ("tiny-ddpm", 2, {"diffusion.kind": "iddpm", "sampler.kind": "ancestral", "sampler.variance": "learned"})],
    ids=["edm", "ddpm", "iddpm-ddim", "iddpm-learned"],
)  # fmt: skip
def test_its_card_samples_without_our_code_and_it_is_read_back(preset, version, values, classes, few_digits, tmp_path):
    recipe = small(preset, conditioning__classes=bool(classes)).replace(MASKED | values | {"network.version": version})
    variances = recipe.diffusion.kind == "iddpm"
    network = awake(SMALL.model_copy(update={"version": version}), classes, variances=variances)
    export_model(tmp_path / "model", network, recipe, few_digits.manifest, {})
    assert not (tmp_path / "model" / "model_index.json").exists()  # diffusers has no class for it

    check = "\nassert images.shape == (16, 1, 8, 8), images.shape\nassert images.float().std() > 5\n"
    check += "x = torch.linspace(-1, 1, 192).view(3, 1, 8, 8)\n"
    check += f"labels = torch.tensor([0, 1, 9]) if {classes} else None\n"
    check += "with torch.no_grad():\n    torch.save(network(x, torch.ones(3), labels), 'output.pt')\n"
    run_card(tmp_path / "model", check)

    loaded, again = load_model(tmp_path / "model", "cpu")
    assert again == recipe
    assert loaded.classes == classes
    assert loaded.tokens == 16
    assert loaded.variances == variances
    x = torch.linspace(-1, 1, 192).view(3, 1, 8, 8)
    conditions = Conditions(torch.tensor([0, 1, 9]) if classes else None)
    with torch.no_grad():
        expected = network(x, torch.ones(3), conditions)
        assert torch.equal(loaded(x, torch.ones(3), conditions), expected)
    torch.testing.assert_close(torch.load(tmp_path / "model" / "output.pt", weights_only=True), expected)


# --- what is refused


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"layers": 4, "decoder_layers": 4}, "network: decoder_layers 4 leaves no encoder of the 4 layers"),
     ({"layers": 5, "decoder_layers": 2}, "network: layers 5 less decoder_layers 2 must be even in version 2"),
     ({"channels": 16, "heads": 3}, "network: heads 3 does not divide the 16 channels")],
)  # fmt: skip
def test_layers_and_heads_that_do_not_fit_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        parse({"network": {"kind": "mdt"} | fields}, "recipe")


def test_images_that_cannot_be_cut_into_patches_are_refused():
    with pytest.raises(UserError, match=r"network\.patch_size: 3 does not divide 8 pixels"):
        build(MDT(patch_size=3), image_size=8, channels=1)
