"""The trained model in diffusers' own format: what a repeat leaves behind, and what `scrimp sample` reads."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from scrimp_trainers.codecs.autoencoder import OpenCodec, open_codec
from scrimp_trainers.codecs.pretrained import CLASSES
from scrimp_trainers.common import parts
from scrimp_trainers.common.device import select_device
from scrimp_trainers.common.errors import UserError
from scrimp_trainers.common.files import atomic_folder, match_folder_mode
from scrimp_trainers.data.manifest import Manifest
from scrimp_trainers.diffusion.samplers.exported import Exported
from scrimp_trainers.networks.denoiser import Denoiser
from scrimp_trainers.recipe import recipe as recipes
from scrimp_trainers.recipe.recipe import Recipe
from scrimp_trainers.recipe.techniques import Codec

CODEC = "codec.json"
"""Holds what decoding needs to know besides the recipe: whether the images were grey."""


def export_model(
    folder: Path, network: Denoiser, recipe: Recipe, manifest: Manifest, scores: Mapping[str, Any]
) -> None:
    """Write a model into a new folder.

    The network's folder (`unet/`) and `scheduler/` load with diffusers alone; `README.md` is the model card with the
    code that does. There is a `model_index.json` only where one of diffusers' pipelines samples as this model needs:
    none of them scales the input of an EDM network, passes classes or coordinates on or decodes what it drew, and they
    would give noise without a word; nor do they know of DDIM's eta. A codec's autoencoder is named, not copied.

    Raises
    ------
    UserError
        If the folder exists or cannot be written.
    """
    with atomic_folder(folder) as part:
        exported = _sampler(recipe)
        network.save(part / network.folder)
        if exported:
            exported.scheduler.save_pretrained(part / "scheduler")
        if exported and exported.pipeline and network.takes_only_images_and_levels and not recipe.codec.on:
            (part / "model_index.json").write_text(_index(network, exported))
        (part / "recipe.yaml").write_text(recipe.to_yaml())
        if recipe.codec.on:
            (part / CODEC).write_text(json.dumps({"image_channels": manifest.channels}) + "\n")
        (part / "README.md").write_text(_card(network, recipe, manifest, scores))
        for file in part.rglob("*.safetensors"):
            match_folder_mode(file)


def is_current(folder: Path, network: Denoiser, recipe: Recipe, manifest: Manifest, scores: Mapping[str, Any]) -> bool:
    """Whether a folder holds the model that `export` would write; its card names all that it depends on."""
    card = folder / "README.md"
    return card.is_file() and card.read_text() == _card(network, recipe, manifest, scores)


def load_model(folder: Path, device: torch.device | str | None = None) -> tuple[Denoiser, Recipe]:
    """Read a model that `export` wrote, onto the device asked for or the best there is.

    Raises
    ------
    UserError
        If the folder holds none, or a file of it is damaged; weights that are missing or misshapen are named.
    """
    if not (folder / "recipe.yaml").is_file() or not any(folder.glob("*/config.json")):
        raise UserError(f"{folder}: not a model (no network or no recipe.yaml); name the model folder of a repeat")
    recipe = recipes.read(folder / "recipe.yaml")
    network: Denoiser = parts.module("networks", recipe.network.kind).load(folder)
    return network.to(select_device(device)).eval(), recipe


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


def require_same_shape(folder: Path, network: Denoiser, codec: OpenCodec | None, manifest: Manifest) -> None:
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


def _sampler(recipe: Recipe) -> Exported | None:
    """Return how diffusers samples as the recipe does; none where a user's own sampler does not say it."""
    process = parts.build("diffusion", recipe.diffusion)
    sampler = parts.module("diffusion.samplers", recipe.sampler.kind)
    if not hasattr(sampler, "export"):
        return None
    return sampler.export(process, recipe.sampler, clip=not recipe.codec.on)


def _index(network: Denoiser, exported: Exported) -> str:
    import diffusers

    index = {
        "_class_name": exported.pipeline,
        "_diffusers_version": diffusers.__version__,
        "scheduler": ["diffusers", type(exported.scheduler).__name__],
        network.folder: ["diffusers", network.library_class],
    }
    return json.dumps(index, indent=2) + "\n"


def _card(network: Denoiser, recipe: Recipe, manifest: Manifest, scores: Mapping[str, Any]) -> str:
    rows = "\n".join(f"| {name} | {_shown(value)} |" for name, value in scores.items())
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

{_use(network, recipe, manifest.channels)}

## Scores

| score | value |
|---|---|
{rows}

## Recipe

```yaml
{recipe.to_yaml()}```
"""


def _use(network: Denoiser, recipe: Recipe, channels: int) -> str:
    """Say how to sample: with diffusers alone, or with Scrimp where diffusers has no class for a part."""
    exported = _sampler(recipe)
    if not exported or not network.library_class:
        files = ", ".join(f'"{file.name}"' for file in recipe.parts)
        own = f"scrimp.load_parts({files})\n" if files else ""
        return f"With Scrimp:\n\n```python\nimport scrimp\n\n{own}images = scrimp.load_model('.').sample(16)\n```"

    note = exported.note
    if recipe.sampler.guidance != 1:
        note += f", without the recipe's guidance of {recipe.sampler.guidance:g}"
    code = _code(network, recipe, channels, exported)
    return f"With diffusers alone, in this folder; {note}:\n\n```python\n{code}```"


def _code(network: Denoiser, recipe: Recipe, channels: int, exported: Exported) -> str:
    """Return the lines that sample with diffusers; a test runs them."""
    scheduler = type(exported.scheduler).__name__
    labels = f"labels = torch.arange(16) % {network.classes}\n" if network.classes else ""
    given = "scheduler.scale_model_input(x, t)"
    if network.coordinates:
        labels += (
            f"line = torch.linspace(-1, 1, {network.shape[1]})\n"
            "frame = torch.stack(torch.meshgrid(line, line, indexing='xy')).expand(16, -1, -1, -1)\n"
        )
        given = f"torch.cat([{given}, frame], 1)"
    more, opened, decoded = _decoding(recipe.codec, channels) if recipe.codec.on else ("", "", "")
    return f"""import torch
from diffusers import {more}{scheduler}, {network.library_class}

{network.folder} = {network.library_class}.from_pretrained("{network.folder}")
scheduler = {scheduler}.from_pretrained("scheduler")
scheduler.set_timesteps({exported.steps})
{opened}{labels}x = torch.randn(16, {", ".join(str(side) for side in network.shape)}) * scheduler.init_noise_sigma
with torch.no_grad():
    for t in scheduler.timesteps:
        output = {network.call(given, "labels" if network.classes else None)}
        x = scheduler.step(output, t, x{exported.arguments}).prev_sample
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
