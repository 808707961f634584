"""Wherever weights are loaded, a missing, misshapen or foreign tensor is refused by name."""

import hashlib
import json
import shutil
import subprocess

import pytest
import torch
from autoencoders_small import settings_of
from safetensors.torch import load_file, save, save_file
from torchvision import models
from trainers_small import CPU, random_batches, small, small_state

from scrimp_platform.cli import commands
from scrimp_trainers import sampling
from scrimp_trainers.codecs.autoencoder import open_codec
from scrimp_trainers.codecs.autoencoder_files import WEIGHTS
from scrimp_trainers.common.errors import UserError
from scrimp_trainers.common.file_sums import SUMS, files_below, sums_of
from scrimp_trainers.conditioning import text_files
from scrimp_trainers.data.manifest import Manifest, Split
from scrimp_trainers.export import export_model, load_codec, load_model
from scrimp_trainers.metrics import dinov2
from scrimp_trainers.metrics.classifier import Classifier, load_classifier
from scrimp_trainers.metrics.features import open_extractor
from scrimp_trainers.networks.unet import UNetDenoiser
from scrimp_trainers.recipe.scoring import Scoring
from scrimp_trainers.training import checkpoint
from scrimp_trainers.training.loop import train
from scrimp_trainers.training.state import initial_state

MANIFEST = Manifest(
    name="dots", content_hash="c0ffee", size=8, channels=1, classes=["a", "b"], reference="train", provenance={},
    splits={"train": Split(count=300, per_class=None, shards=[])},
)  # fmt: skip


def lacking(tensors, name):
    return {key: value for key, value in tensors.items() if key != name}


def misshapen(tensors, name):
    return tensors | {name: torch.cat([tensors[name].flatten(), torch.zeros(1)])}


def foreign(tensors, name):
    return tensors | {f"{name}_twice": tensors[name].clone()}


each_fault = pytest.mark.parametrize("fault", [lacking, misshapen, foreign])


def refused(what, *named):
    """Call it; the error must be one line that names these."""
    with pytest.raises(UserError) as caught:
        what()
    line = str(caught.value)
    assert "\n" not in line
    for part in named:
        assert part in line


def rewrite(file, fault, name):
    save_file(fault(load_file(file), name), file)


@pytest.fixture
def model(tmp_path):
    recipe = small()
    export_model(tmp_path / "model", small_state(recipe).ema, recipe, MANIFEST, {})
    return tmp_path / "model"


@each_fault
def test_a_wrong_tensor_is_refused_in_a_model_folder(model, fault):
    file = model / "unet" / "diffusion_pytorch_model.safetensors"
    (model / SUMS).unlink()
    rewrite(file, fault, "mid_block.resnets.0.conv1.weight")
    refused(lambda: load_model(model), str(file), "mid_block.resnets.0.conv1.weight")


def test_a_damaged_or_missing_file_of_a_model_folder_without_checksums_is_refused(model):
    (model / SUMS).unlink()
    file = model / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    refused(lambda: load_model(model), str(file), "cannot be read")
    file.unlink()
    refused(lambda: load_model(model), str(file), "cannot be read")
    config = model / "unet" / "config.json"
    for text in ("{", "[]", json.dumps(json.loads(config.read_text()) | {"block_out_channels": "wide"})):
        config.write_text(text)
        refused(lambda: load_model(model), str(config), "not the config")


def test_a_config_of_another_network_is_named_and_not_the_weights_that_do_not_fit_it(model):
    config = model / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"layers_per_block": 3}))
    refused(lambda: load_model(model), str(config), "damaged or changed")


def test_a_changed_file_of_a_model_folder_is_named_and_without_checksums_taken_as_it_is(model):
    config = model / "unet" / "config.json"
    changed = json.loads(config.read_text()) | {"norm_eps": 0.5}
    config.write_text(json.dumps(changed))
    refused(lambda: load_model(model), str(config), "damaged or changed", "remove SHA256SUMS")
    (model / SUMS).unlink()
    network, _ = load_model(model)
    assert isinstance(network, UNetDenoiser)
    assert network.unet.config["norm_eps"] == 0.5


@pytest.mark.parametrize("place", [0.2, 0.5, 0.99])
def test_a_bit_flipped_in_the_weights_of_a_model_is_named(model, place):
    file = model / "unet" / "diffusion_pytorch_model.safetensors"
    content = bytearray(file.read_bytes())
    content[int(place * len(content))] ^= 1
    file.write_bytes(content)
    refused(lambda: load_model(model), file.name)


def test_the_checksums_of_a_model_are_those_of_sha256sum_and_leave_out_its_card(model):
    (model / "README.md").write_text("my own words")
    command = ["sha256sum", "--check", "--strict", SUMS]
    answer = subprocess.run(command, cwd=model, capture_output=True, text=True, check=True)
    checked = {line.removesuffix(": OK") for line in answer.stdout.splitlines()}
    files = {path.relative_to(model).as_posix() for path in model.rglob("*") if path.is_file()}
    assert checked == files - {"README.md", SUMS}
    load_model(model)


def test_checksums_of_a_model_that_are_damaged_themselves_are_named(model):
    sums = model / SUMS
    lines = sums.read_text().splitlines(keepends=True)
    damaged = [lines[0].replace("  ", "\t\x85 "), "0" + lines[0], "", lines[0].rstrip("\n") + lines[1]]
    for text in damaged:
        sums.write_text(text)
        refused(lambda: load_model(model), SUMS)


def test_a_model_of_latents_without_the_images_channels_is_refused(model):
    recipe = small(codec__kind="kl")
    refused(lambda: load_codec(model, recipe, CPU), "codec.json", "image_channels")
    for damaged in ("{", "[]", "{}", "[" * 100_000):
        (model / "codec.json").write_text(damaged)
        refused(lambda: load_codec(model, recipe, CPU), "codec.json", "image_channels")


@pytest.mark.parametrize("damaged", ["{", "[]", '"one"', "[1]", "[" * 100_000])
def test_damaged_captions_of_a_model_are_refused(tmp_path, damaged):
    refused(lambda: text_files.read_captions(tmp_path), "captions.json", "missing")
    (tmp_path / text_files.CAPTIONS_FILE).write_text(damaged)
    refused(lambda: text_files.read_captions(tmp_path), "captions.json", "damaged")


@each_fault
@pytest.mark.parametrize(("kind", "name"), [("kl", "encoder.conv_in.weight"), ("vq", "quantize.embedding.weight")])
def test_a_wrong_tensor_is_refused_in_an_autoencoder(autoencoders, tmp_path, fault, kind, name):
    folder = shutil.copytree(autoencoders / kind, tmp_path / kind)
    rewrite(folder / WEIGHTS, fault, name)
    refused(lambda: open_codec(settings_of(tmp_path, kind), CPU, 3), str(folder), WEIGHTS, name)


@each_fault
def test_a_wrong_tensor_is_refused_in_a_classifier(tmp_path, fault):
    content = save(fault(Classifier(1, 8, 2).state_dict(), "head.weight"))
    (tmp_path / "classifier.safetensors").write_bytes(content)
    facts = {
        "file": "classifier.safetensors",
        "sha256": hashlib.sha256(content).hexdigest(),
        "accuracy": 1.0,
        "seed": 0,
    }
    manifest = Manifest.model_validate(MANIFEST.model_dump() | {"classifier": facts})
    refused(lambda: load_classifier(tmp_path, manifest), "classifier.safetensors", "head.weight")


@each_fault
@pytest.mark.parametrize(
    ("extractor", "network", "name"),
    [
        ("resnet18", models.resnet18, "layer1.0.conv1.weight"),
        ("dinov2", lambda: dinov2.VisionTransformer(64, 2, 14, 17), "blocks.1.mlp.fc1.weight"),
    ],
)
def test_a_wrong_tensor_is_refused_in_an_extractor(tmp_path, extractor, network, name, fault):
    path = tmp_path / "weights.pth"
    torch.save(fault(network().state_dict(), name), path)
    scoring = Scoring(extractor=extractor, weights=path)
    refused(lambda: open_extractor(scoring, tmp_path, MANIFEST, CPU), str(path), name)


@each_fault
@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("network", "unet.conv_in.weight"),
        ("ema", "unet.conv_in.weight"),
        ("optimizer", "exp_avg_sq/unet.conv_in.weight"),
        ("masks", "mask/unet.down_blocks.0.resnets.0.conv1.weight"),
    ],
)
def test_a_wrong_tensor_is_refused_in_a_checkpoint(tmp_path, file, name, fault):
    recipe = small(sparsity__method="static")
    state = small_state(recipe)
    next(train(recipe, state, random_batches(8), device=CPU))
    folder = tmp_path / "last"
    checkpoint.write(folder, checkpoint.copy_content(state, {}, {}))
    path = folder / f"{file}.safetensors"
    rewrite(path, fault, name)
    (folder / SUMS).write_text(sums_of(folder, files_below(folder)))  # as another version would have written it
    refused(lambda: checkpoint.load(folder, small_state(recipe), {}), str(path), name)


@pytest.mark.parametrize(("channels", "side"), [(3, 8), (1, 16)])
def test_a_model_is_not_compared_with_images_of_another_kind(tmp_path, digits_dataset, channels, side):
    recipe = small()
    network = initial_state(recipe, image_size=side, channels=channels, classes=0, seed=0, device=CPU).ema
    export_model(tmp_path / "model", network, recipe, MANIFEST, {})
    refused(
        lambda: commands.evaluate(tmp_path / "model", digits_dataset.folder, 0, None, extractor="inception"),
        f"draws images of {channels} x {side} x {side}, but those of dataset digits are 1 x 8 x 8",
    )


def test_an_unfit_extractor_and_a_grid_without_a_folder_are_refused_before_sampling(
    model, digits_dataset, tmp_path, monkeypatch
):
    monkeypatch.setattr(sampling, "generate_items", lambda *_, **__: pytest.fail("sampled"))
    torch.save(models.resnet18().state_dict(), tmp_path / "weights.pth")
    scoring = {"extractor": "vgg16", "weights": tmp_path / "weights.pth"}
    refused(lambda: commands.evaluate(model, digits_dataset.folder, 0, None, **scoring), "weights.pth", "vgg16")
    grid = tmp_path / "nowhere" / "grid.png"
    refused(lambda: commands.evaluate(model, digits_dataset.folder, 0, grid, **scoring), f"--grid {grid}")
