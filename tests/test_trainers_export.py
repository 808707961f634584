import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from trainers_small import small, small_state

from scrimp_trainers import sampling
from scrimp_trainers.common import parts
from scrimp_trainers.common.errors import UserError
from scrimp_trainers.conditioning.conditions import Conditions
from scrimp_trainers.data.manifest import Manifest, Split
from scrimp_trainers.export import export_model, load_model
from scrimp_trainers.export.sampling_code import exported_sampler
from scrimp_trainers.networks.unet import build
from scrimp_trainers.recipe.networks import UNet

MANIFEST = Manifest(
    name="dots", content_hash="c0ffee", size=8, channels=1, classes=None, reference="train", provenance={},
    splits={"train": Split(count=300, per_class=None, shards=[])},
)  # fmt: skip
CONDITIONAL = {"conditioning__classes": True, "network__channels": 16}
RECIPES = {
    "edm": small(diffusion__sigma_data=0.7, diffusion__sigma_max=60.0),
    "edm-classes": small(**CONDITIONAL),
    "ddpm": small("tiny-ddpm", sampler__kind="ancestral", sampler__steps=50, diffusion__betas="linear"),
    "ddpm-large": small("tiny-ddpm", sampler__kind="ancestral", sampler__steps=50, sampler__variance="fixed_large"),
    "ddim": small("tiny-ddpm"),
    "ddim-eta": small("tiny-ddpm", sampler__eta=1.0),
    "ddim-classes": small("tiny-ddpm", **CONDITIONAL, conditioning__label_drop=0.1, sampler__guidance=2.0),
}

# Runs without any of our code: the card's own lines, then the denoiser on given inputs.
STRANGER = """
import os, re, sys
import numpy as np, torch, diffusers
root = sys.argv[1]
for name in sorted(os.listdir(root)):
    os.chdir(os.path.join(root, name))
    torch.manual_seed(0)
    card = {}
    exec(re.search("```python\\n(.*?)```", open("README.md").read(), re.DOTALL)[1], card)
    found = {"images": card["images"].numpy(), "steps": len(card["scheduler"].timesteps)}
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(4, 1, 8, 8, generator=generator)
    labels = torch.arange(4) if card["unet"].config.num_class_embeds else None
    with torch.no_grad():
        if name.startswith("edm"):
            sigma = torch.tensor([0.01, 0.3, 2.0, 40.0])
            scheduler, shape = card["scheduler"], (4, 1, 1, 1)
            inputs = scheduler.precondition_inputs(x, sigma.reshape(shape))
            output = card["unet"](inputs, scheduler.precondition_noise(sigma), labels).sample
            found["estimate"] = scheduler.precondition_outputs(x, output, sigma.reshape(shape)).numpy()
        else:
            found["estimate"] = card["unet"](x, torch.tensor([0, 9, 400, 999]), labels).sample.numpy()
    if os.path.exists("model_index.json"):
        pipeline = diffusers.DDPMPipeline.from_pretrained(".") if name == "ddpm" else (
            diffusers.DiffusionPipeline.from_pretrained("."))
        found["pipeline"] = type(pipeline).__name__
        pipeline.set_progress_bar_config(disable=True)
        found["drawn"] = pipeline(batch_size=2, num_inference_steps=5, output_type="np").images
    np.savez(os.path.join(root, name, "found.npz"), **found)
assert not any(module.startswith("scrimp") for module in sys.modules)
"""


def awake(recipe):
    network = small_state(recipe, classes=10).ema
    generator = torch.Generator().manual_seed(5)
    for parameter in network.parameters():
        parameter.data.normal_(std=0.2, generator=generator)
    return network


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A model of each kind, and what diffusers alone made of it."""
    root = tmp_path_factory.mktemp("models")
    networks = {name: awake(recipe) for name, recipe in RECIPES.items()}
    for name, recipe in RECIPES.items():
        export_model(root / name, networks[name], recipe, MANIFEST, {"fd_classifier": 1.25, "extractor": "classifier"})
    command = [sys.executable, "-c", STRANGER, str(root)]
    subprocess.run(command, check=True, cwd=root, env={"PATH": "", "OMP_NUM_THREADS": "1", "HOME": str(root)})
    return {name: (root / name, networks[name], np.load(root / name / "found.npz")) for name in RECIPES}


each = pytest.mark.parametrize("name", RECIPES)


@each
def test_the_cards_own_lines_sample_without_our_code(models, name):
    found = models[name][2]
    assert found["images"].shape == (16, 1, 8, 8)
    assert found["images"].dtype == np.uint8
    assert found["images"].std() > 5
    recipe = RECIPES[name]
    assert found["steps"] == recipe.sampler.steps


@each
@torch.no_grad()
def test_diffusers_alone_computes_our_denoiser(models, name):
    _, network, found = models[name]
    settings = RECIPES[name].diffusion
    x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(4) if name.endswith("classes") else None
    levels = torch.tensor([0.01, 0.3, 2.0, 40.0] if name.startswith("edm") else [0, 9, 400, 999])
    ours = parts.build("diffusion", settings).denoise(network, x, levels, Conditions(labels))
    assert ours.std() > 0.01
    torch.testing.assert_close(torch.from_numpy(found["estimate"]), ours, rtol=1e-4, atol=1e-5)


def test_a_pipeline_is_named_only_where_it_samples_as_the_model_needs(models):
    assert str(models["ddpm"][2]["pipeline"]) == "DDPMPipeline"
    assert str(models["ddim"][2]["pipeline"]) == "DDIMPipeline"
    for name in ("ddpm", "ddim"):
        assert models[name][2]["drawn"].shape == (2, 8, 8, 1)
    for name in ("edm", "edm-classes", "ddpm-large", "ddim-eta", "ddim-classes"):
        assert not (models[name][0] / "model_index.json").exists()


@each
@torch.no_grad()
def test_a_model_is_read_back_with_its_recipe(models, name):
    folder, network, _ = models[name]
    loaded, recipe = load_model(folder)
    assert recipe == RECIPES[name]
    assert loaded.classes == network.classes
    conditions = Conditions(torch.tensor([0, 1]) if network.classes else None)
    inputs = torch.randn(2, 1, 8, 8), torch.tensor([0.3, 0.5]), conditions
    assert torch.equal(loaded(*inputs), network(*inputs))


def test_the_card_tells_data_scores_and_recipe(models):
    card = (models["edm"][0] / "README.md").read_text()
    for fact in ("dots, 300 images of 1 x 8 x 8", "`c0ffee`", "| fd_classifier | 1.25 |", "| extractor | classifier |"):
        assert fact in card
    (block,) = re.findall("```yaml\n(.*?)```", card, re.DOTALL)
    assert yaml.safe_load(block) == yaml.safe_load(RECIPES["edm"].to_yaml())


def test_the_card_samples_as_the_recipe_does_or_says_how_not(models):
    cards = {name: (folder / "README.md").read_text() for name, (folder, _, _) in models.items()}
    assert [name for name, card in cards.items() if "step(output, t, x, eta=1.0)" in card] == ["ddim-eta"]
    assert [name for name, card in cards.items() if "x = step.pred_original_sample" in card] == ["ddpm-large"]
    assert [name for name, card in cards.items() if "torch.lerp(hidden, output, 2)" in card] == ["ddim-classes"]


ALONE = RECIPES | {
    "churn": small(sampler__s_churn=10.0),
    "edm-guided": small(**CONDITIONAL, conditioning__label_drop=0.1, sampler__guidance=2.0),
    "dpmpp-edm": small(sampler__kind="dpmpp"),
    "dpmpp": small("tiny-ddpm", sampler__kind="dpmpp", sampler__steps=20),
}


def load_script(folder: Path) -> Any:
    spec: Any = importlib.util.spec_from_file_location("sample", folder / "sample.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


@pytest.mark.parametrize("name", ALONE)
def test_the_script_beside_the_card_draws_from_the_same_noise_what_we_draw(tmp_path, monkeypatch, name):
    recipe = ALONE[name]
    network = awake(recipe)
    export_model(tmp_path / "model", network, recipe, MANIFEST, {})
    theirs = load_script(tmp_path / "model").sample(4, seed=3)

    noise = lambda network, numbers, _: lambda: torch.randn(len(numbers), *network.shape)  # noqa: E731
    monkeypatch.setattr(sampling, "_noise_source", noise)
    torch.manual_seed(3)
    ours = torch.cat(list(sampling.generate(network, recipe, 4, seed=0)))
    assert (theirs.shape, theirs.dtype) == ((4, 8, 8, 1), np.uint8)
    np.testing.assert_allclose(theirs.transpose(0, 3, 1, 2).astype(int), ours.numpy().astype(int), atol=1)
    assert ours.float().std() > 5


@pytest.mark.parametrize(
    "values",
    [
        {"sampler__steps": 18},  # the chain has 1,000 steps: diffusers would take others than we do
        CONDITIONAL | {"conditioning__label_drop": 0.1, "sampler__guidance": 2.0, "sampler__guidance_power": 4.0},
    ],
)
def test_there_is_no_script_and_no_pipeline_where_they_would_draw_something_else(tmp_path, values):
    recipe = small("tiny-ddpm", **values)
    export_model(tmp_path / "model", awake(recipe), recipe, MANIFEST, {})
    assert not (tmp_path / "model" / "sample.py").exists()
    assert not (tmp_path / "model" / "model_index.json").exists()
    card = (tmp_path / "model" / "README.md").read_text()
    assert "18 does not divide the 1000" in card or "without the recipe's guidance of 2" in card


def test_coordinate_channels_are_exported_and_read_back(tmp_path, monkeypatch):
    recipe = small()
    assert isinstance(recipe.network, UNet)
    unet = build(recipe.network, image_size=8, channels=1, coordinates=True)
    export_model(tmp_path / "model", unet, recipe, MANIFEST, {})
    config = json.loads((tmp_path / "model" / "unet" / "config.json").read_text())
    assert (config["in_channels"], config["out_channels"]) == (3, 1)
    assert load_model(tmp_path / "model")[0].coordinates
    (code,) = re.findall("```python\n(.*?)```", (tmp_path / "model" / "README.md").read_text(), re.DOTALL)
    card = {}
    monkeypatch.chdir(tmp_path / "model")
    exec(code, card)  # noqa: S102
    assert card["images"].shape == (16, 1, 8, 8)
    assert card["frame"][0, :, 0, -1].tolist() == [1, -1]  # x, then y


def test_a_folder_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(UserError, match="not a model"):
        load_model(tmp_path)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_the_exported_scheduler_has_the_variance_of_the_sampler(variance):
    exported: Any = exported_sampler(small("tiny-ddpm", sampler__kind="ancestral", sampler__variance=variance))
    assert exported.scheduler.config["variance_type"] == variance


@pytest.mark.parametrize("kind", ["ancestral", "ddim"])
def test_the_exported_scheduler_clips_pixels_and_no_latents(kind):
    latents = {"codec__kind": "kl", "codec__encoder": "vae", "codec__decoder": "vae"}
    for values, clips in (({}, True), (latents, False)):
        recipe = small("tiny-ddpm", sampler__kind=kind, **values)
        exported: Any = exported_sampler(recipe)
        assert exported.scheduler.config["clip_sample"] is clips
