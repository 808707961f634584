"""What is exported of a model that takes captions: diffusers and transformers alone draw with it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from test_trainers_text import fine_tuned, recipe_of

from benchmarks import text_digits
from scrimp_platform.model import Model
from scrimp_trainers.codecs import pretrained
from scrimp_trainers.common.errors import UserError
from scrimp_trainers.common.file_sums import SUMS
from scrimp_trainers.common.seeds import seed_of
from scrimp_trainers.conditioning import text_files
from scrimp_trainers.conditioning.text import load_encoder, texts_of
from scrimp_trainers.data.manifest import Manifest, Split
from scrimp_trainers.export import export_model
from scrimp_trainers.networks.unet2d_condition import build
from scrimp_trainers.recipe.networks import UNet2DCondition
from scrimp_trainers.recipe.techniques import Autoencoder
from scrimp_trainers.sampling import generate

CPU = torch.device("cpu")
CAPTIONS = ["a photo of the digit two", "a photo of the digit seven"]

# Runs without any of our code: Stable Diffusion's pipeline from given noise, and the lines of both cards.
STRANGER = """
import os, re, sys
import numpy as np, torch
root = sys.argv[1]
def card(name):
    os.chdir(os.path.join(root, name))
    torch.manual_seed(0)
    drawings = {}
    exec(re.search("```python\\n(.*?)```", open("README.md").read(), re.DOTALL)[1], drawings)
    return drawings
drawings = {"pixels": card("pixels")["images"].numpy(), "image": np.asarray(card("latents")["image"])}
from diffusers import StableDiffusionPipeline
pipeline = StableDiffusionPipeline.from_pretrained(os.path.join(root, "latents"))
pipeline.set_progress_bar_config(disable=True)
noise = torch.from_numpy(np.load(os.path.join(root, "noise.npy")))
drawn = pipeline(sys.argv[2:], latents=noise, num_inference_steps=4, guidance_scale=3, output_type="np")
assert not any(name.startswith("scrimp") for name in sys.modules)
np.savez(os.path.join(root, "drawings.npz"), drawn=drawn.images, **drawings)
"""


def manifest(channels: int) -> Manifest:
    return Manifest(
        name="digits", content_hash="c0ffee", size=8, channels=channels, classes=None, reference="train",
        provenance={}, splits={"train": Split(count=300, per_class=None, shards=[])}, modality="captioned",
    )  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, stand_in: Path) -> Path:
    """A model on pixels and one in latents, and what others draw with them."""
    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(5)
    section = UNet2DCondition(channels=16, multipliers=(1, 2), blocks=1, heads=2, text_width=text_digits.WIDTH)
    export_model(
        root / "pixels", build(section, image_size=8, channels=1), recipe_of(stand_in), manifest(1), {}, CAPTIONS
    )
    latents = fine_tuned(stand_in, sampler__guidance=3)
    network = build(UNet2DCondition(pretrained=str(stand_in)), image_size=4, channels=4)
    export_model(root / "latents", network, latents, manifest(3), {}, CAPTIONS)

    noise = [torch.randn(4, 4, 4, generator=torch.Generator().manual_seed(seed_of("sample", 1, i))) for i in range(2)]
    np.save(root / "noise.npy", torch.stack(noise).numpy())
    subprocess.run([sys.executable, "-c", STRANGER, str(root), *CAPTIONS], check=True)
    return root


def test_stable_diffusions_pipeline_draws_what_we_draw(models: Path, stand_in: Path):
    recipe = fine_tuned(stand_in, sampler__guidance=3)
    network = build(UNet2DCondition(pretrained=str(stand_in)), image_size=4, channels=4)
    texts = texts_of(CAPTIONS, load_encoder(text_files.find(str(stand_in), "here"), CPU))
    assert isinstance(recipe.codec, Autoencoder)
    codec = pretrained.build(recipe.codec, (3,), CPU)
    ours = torch.cat(list(generate(network, recipe, 2, seed=1, codec=codec, conditioner=texts)))
    theirs = np.load(models / "drawings.npz")["drawn"].transpose(0, 3, 1, 2) * 255
    # Ours come from embeddings in half precision, and are rounded to grey levels.
    np.testing.assert_allclose(ours.numpy(), theirs, atol=2)
    assert np.abs(theirs[0] - theirs[1]).max() > 10


def test_a_pipeline_is_named_only_for_latents(models: Path):
    assert not (models / "pixels" / "model_index.json").exists()
    index = json.loads((models / "latents" / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionPipeline"
    assert {path.name for path in (models / "latents").iterdir() if path.is_dir()} == {
        "unet", "vae", "text_encoder", "tokenizer", "scheduler",
    }  # fmt: skip


def test_the_cards_own_lines_draw(models: Path):
    drawings = np.load(models / "drawings.npz")
    assert drawings["pixels"].shape == (16, 1, 8, 8)
    assert drawings["image"].shape == (8, 8, 3)


def test_a_model_is_read_back_from_its_folder_alone(models: Path, stand_in: Path):
    recipe = fine_tuned(stand_in, sampler__guidance=3)
    network = build(UNet2DCondition(pretrained=str(stand_in)), image_size=4, channels=4)
    texts = texts_of(CAPTIONS, load_encoder(text_files.find(str(stand_in), "here"), CPU))
    assert isinstance(recipe.codec, Autoencoder)
    codec = pretrained.build(recipe.codec, (3,), CPU)
    before = torch.cat(list(generate(network, recipe, 2, seed=1, codec=codec, conditioner=texts)))

    text = (models / "latents" / "recipe.yaml").read_text()
    (models / "latents" / "recipe.yaml").write_text(text.replace(str(stand_in), "/gone"))
    (models / "latents" / SUMS).unlink()  # it was changed on purpose
    model = Model.load(models / "latents", "cpu")
    np.testing.assert_array_equal(model.sample(2, seed=1), before.numpy())
    swapped = Model.load(models / "latents", "cpu", CAPTIONS[::-1]).sample(2, seed=1)
    assert (swapped != before.numpy()).any()


def test_captions_are_refused_by_a_model_that_takes_none(tmp_path: Path):
    from test_trainers_export import MANIFEST
    from trainers_small import small, small_state

    recipe = small("tiny-ddpm")
    export_model(tmp_path / "model", small_state(recipe).ema, recipe, MANIFEST, {})
    with pytest.raises(UserError, match="takes no captions; leave them out"):
        Model.load(tmp_path / "model", "cpu", ["a cat"])
