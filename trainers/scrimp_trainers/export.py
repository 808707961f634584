"""The trained model in diffusers' own format: what a repeat leaves behind, and what `scrimp sample` reads."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from scrimp_trainers.codecs.autoencoder import OpenCodec, open_codec
from scrimp_trainers.codecs.pretrained import CLASSES
from scrimp_trainers.common import weights
from scrimp_trainers.common.device import select_device
from scrimp_trainers.common.errors import UserError
from scrimp_trainers.common.files import atomic_folder, share
from scrimp_trainers.data.manifest import Manifest
from scrimp_trainers.networks.unet import UNet
from scrimp_trainers.recipe import recipe as recipes
from scrimp_trainers.recipe.recipe import Recipe
from scrimp_trainers.recipe.sections import EDM
from scrimp_trainers.recipe.techniques import Codec

if TYPE_CHECKING:  # importing it takes seconds
    from diffusers.models.unets.unet_2d import UNet2DModel
    from diffusers.schedulers.scheduling_utils import SchedulerMixin

CODEC = "codec.json"
"""Holds what decoding needs to know besides the recipe: whether the images were grey."""


def export(folder: Path, network: UNet, recipe: Recipe, manifest: Manifest, scores: Mapping[str, Any]) -> None:
    """Write a model into a new folder.

    `unet/` and `scheduler/` load with diffusers alone; `README.md` is the model card with the code that does. There is
    a `model_index.json` only where one of diffusers' pipelines samples as this model needs: none of them scales the
    input of an EDM network, passes classes or coordinates on or decodes what it drew, and they would give noise without
    a word; nor do they know of DDIM's eta. A codec's autoencoder is named, not copied.

    Raises
    ------
    UserError
        If the folder exists or cannot be written.
    """
    with atomic_folder(folder) as part:
        network.unet.save_pretrained(part / "unet")
        scheduler = _scheduler(recipe)
        scheduler.save_pretrained(part / "scheduler")
        told = network.classes or network.coordinates or recipe.codec.on
        if not isinstance(recipe.diffusion, EDM) and not told and not recipe.sampler.eta:
            (part / "model_index.json").write_text(_index(recipe, type(scheduler).__name__))
        (part / "recipe.yaml").write_text(recipe.to_yaml())
        if recipe.codec.on:
            (part / CODEC).write_text(json.dumps({"image_channels": manifest.channels}) + "\n")
        (part / "README.md").write_text(_card(network, recipe, manifest, scores))
        for file in part.rglob("*.safetensors"):
            share(file)


def is_current(folder: Path, network: UNet, recipe: Recipe, manifest: Manifest, scores: Mapping[str, Any]) -> bool:
    """Whether a folder holds the model that `export` would write; its card names all that it depends on."""
    card = folder / "README.md"
    return card.is_file() and card.read_text() == _card(network, recipe, manifest, scores)


def load_model(folder: Path, device: torch.device | str | None = None) -> tuple[UNet, Recipe]:
    """Read a model that `export` wrote, onto the device asked for or the best there is.

    Raises
    ------
    UserError
        If the folder holds none, or a file of it is damaged; weights that are missing or misshapen are named.
    """
    if not (folder / "unet" / "config.json").is_file() or not (folder / "recipe.yaml").is_file():
        raise UserError(f"{folder}: not a model (no unet or no recipe.yaml); name the model folder of a repeat")
    recipe, unet = recipes.load(folder / "recipe.yaml"), _load_unet(folder / "unet")
    coordinates = unet.config["in_channels"] > unet.config["out_channels"]
    return UNet(unet, coordinates=coordinates).to(select_device(device)).eval(), recipe


def load_codec(folder: Path, recipe: Recipe, device: torch.device) -> OpenCodec | None:
    """Open the codec of a model that `export` wrote; none where it draws pixels.

    Raises
    ------
    UserError
        If the recipe's decoder cannot be loaded, or the model does not say of how many channels the images are.
    """
    if not recipe.codec.on:
        return None
    file = folder / CODEC
    try:
        channels = json.loads(file.read_text())["image_channels"]
    except (OSError, ValueError, TypeError, KeyError):
        raise UserError(f"{file}: missing or damaged; it holds the number of `image_channels`") from None
    return open_codec(recipe.codec, device, channels)


def check_images(folder: Path, network: UNet, codec: OpenCodec | None, manifest: Manifest) -> None:
    """Refuse to compare a model's images with those of a dataset of another size or number of channels.

    Raises
    ------
    UserError
        If they differ.
    """
    channels, side = network.shape[0], network.shape[1]
    if codec:
        channels, side = codec.image_channels, side * codec.factor
    if (channels, side) != (manifest.channels, manifest.size):
        raise UserError(
            f"{folder}: draws images of {channels} x {side} x {side}, but those of dataset {manifest.name} are "
            f"{manifest.channels} x {manifest.size} x {manifest.size}; name a dataset of the model's size and channels"
        )


def _load_unet(folder: Path) -> "UNet2DModel":
    """Build and fill the network of a folder. Where tensors are missing, diffusers' own loading leaves them random."""
    from diffusers.models.unets.unet_2d import UNet2DModel

    config, file = folder / "config.json", folder / "diffusion_pytorch_model.safetensors"
    try:
        unet = cast("UNet2DModel", UNet2DModel.from_config(json.loads(config.read_text())))
    except Exception as error:  # each wrong value fails in a different way
        raise UserError(f"{config}: not the config of a UNet2DModel: {weights.reason(error)}") from error
    weights.fill(unet, weights.read(file), file)
    return unet


def _scheduler(recipe: Recipe) -> "SchedulerMixin":
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
    from diffusers.schedulers.scheduling_edm_euler import EDMEulerScheduler

    settings = recipe.diffusion
    if isinstance(settings, EDM):
        return EDMEulerScheduler(
            sigma_min=settings.sigma_min,
            sigma_max=settings.sigma_max,
            sigma_data=settings.sigma_data,
            rho=settings.rho,
        )
    kind = DDPMScheduler if recipe.sampler.kind == "ancestral" else DDIMScheduler
    return kind(
        num_train_timesteps=settings.timesteps,
        beta_start=settings.beta_start,
        beta_end=settings.beta_end,
        beta_schedule="linear" if settings.betas == "linear" else "squaredcos_cap_v2",
        prediction_type="epsilon" if settings.prediction == "epsilon" else "v_prediction",
        timestep_spacing="trailing",
        clip_sample=not recipe.codec.on,
    )


def _index(recipe: Recipe, scheduler: str) -> str:
    import diffusers

    index = {
        "_class_name": "DDPMPipeline" if recipe.sampler.kind == "ancestral" else "DDIMPipeline",
        "_diffusers_version": diffusers.__version__,
        "scheduler": ["diffusers", scheduler],
        "unet": ["diffusers", "UNet2DModel"],
    }
    return json.dumps(index, indent=2) + "\n"


def _card(network: UNet, recipe: Recipe, manifest: Manifest, scores: Mapping[str, Any]) -> str:
    rows = "\n".join(f"| {name} | {_shown(value)} |" for name, value in scores.items())
    sampler = "Euler steps (Scrimp samples with Heun's)" if isinstance(recipe.diffusion, EDM) else "the recipe's steps"
    if recipe.sampler.guidance != 1:
        sampler += f", without the recipe's guidance of {recipe.sampler.guidance:g}"
    return f"""---
library_name: diffusers
tags: [unconditional-image-generation, scrimp]
---
# {recipe.about or "A diffusion model"}

Trained by Scrimp; the weights are the exponential moving average of the training's.

- dataset: {manifest.name}, {manifest.splits["train"].count} images of \
{manifest.channels} x {manifest.size} x {manifest.size}
- content hash: `{manifest.content_hash}`

## Use

With diffusers alone, in this folder; {sampler}:

```python
{_code(network, recipe, manifest.channels)}```

## Scores

| score | value |
|---|---|
{rows}

## Recipe

```yaml
{recipe.to_yaml()}```
"""


def _code(network: UNet, recipe: Recipe, channels: int) -> str:
    """Return the lines that sample with diffusers; a test runs them."""
    scheduler = type(_scheduler(recipe)).__name__
    steps = recipe.nfe if isinstance(recipe.diffusion, EDM) else recipe.sampler.steps
    labels = f"labels = torch.arange(16) % {network.classes}\n" if network.classes else ""
    passed = ", labels" if network.classes else ""
    eta = f", eta={recipe.sampler.eta}" if recipe.sampler.kind == "ddim" and recipe.sampler.eta else ""
    given = "scheduler.scale_model_input(x, t)"
    if network.coordinates:
        labels += (
            f"line = torch.linspace(-1, 1, {network.shape[1]})\n"
            "frame = torch.stack(torch.meshgrid(line, line, indexing='xy')).expand(16, -1, -1, -1)\n"
        )
        given = f"torch.cat([{given}, frame], 1)"
    more, opened, decoded = _decoding(recipe.codec, channels) if recipe.codec.on else ("", "", "")
    return f"""import torch
from diffusers import {more}{scheduler}, UNet2DModel

unet = UNet2DModel.from_pretrained("unet")
scheduler = {scheduler}.from_pretrained("scheduler")
scheduler.set_timesteps({steps})
{opened}{labels}x = torch.randn(16, {", ".join(str(side) for side in network.shape)}) * scheduler.init_noise_sigma
with torch.no_grad():
    for t in scheduler.timesteps:
        output = unet({given}, t{passed}).sample
        x = scheduler.step(output, t, x{eta}).prev_sample
{decoded}images = ((x + 1) * 127.5).round().clamp(0, 255).byte()
"""


def _decoding(codec: Codec, channels: int) -> tuple[str, str, str]:
    """Return what is imported to decode latents, and the lines before and after sampling."""
    kind, folder = CLASSES[codec.kind], Path(codec.decoder)
    where = str(folder.resolve()) if folder.is_dir() else codec.decoder
    grey = ".mean(1, keepdim=True)" if channels == 1 else ""
    after = (
        f"    x = x / vae.config.scaling_factor + (vae.config.shift_factor or 0)\n    x = vae.decode(x).sample{grey}\n"
    )
    return f"{kind}, ", f"vae = {kind}.from_pretrained({where!r})\n", after


def _shown(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
