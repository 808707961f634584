"""Write the trained model of a repeat in diffusers' format, and load it, as `scrimp sample` does."""

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

CODEC_FILE = "codec.json"
"""What decoding needs besides the recipe: the number of channels of the images."""


def export_model(
    folder: Path, network: Denoiser, recipe: Recipe, manifest: Manifest, scores: Mapping[str, Any]
) -> None:
    """Write a model into a new folder.

    The network's folder (`unet/`) and `scheduler/` can be loaded with diffusers alone; `README.md` is the model card
    and contains the code for that. A `model_index.json` is written only if one of diffusers' pipelines can sample from
    this model. None of them scales the input of an EDM network, passes on classes or coordinates, or decodes latents:
    they would silently return noise. Nor do they support DDIM's eta. A codec's autoencoder is named, not copied.

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
            (part / CODEC_FILE).write_text(json.dumps({"image_channels": manifest.channels}) + "\n")
        (part / "README.md").write_text(_card(network, recipe, manifest, scores))
        for file in part.rglob("*.safetensors"):
            match_folder_mode(file)


def is_current(folder: Path, network: Denoiser, recipe: Recipe, manifest: Manifest, scores: Mapping[str, Any]) -> bool:
    """Whether a folder contains the model that `export_model` would write; its card names all that it depends on."""
    card = folder / "README.md"
    return card.is_file() and card.read_text() == _card(network, recipe, manifest, scores)


def load_model(folder: Path, device: torch.device | str | None = None) -> tuple[Denoiser, Recipe]:
    """Load a model that `export_model` wrote, onto the given device or by default the best one.

    Raises
    ------
    UserError
        If the folder is not a model, or a file is damaged; missing weights and weights of wrong shape are named.
    """
    if not (folder / "recipe.yaml").is_file() or not any(folder.glob("*/config.json")):
        raise UserError(f"{folder}: not a model (no network or no recipe.yaml); name the model folder of a repeat")
    recipe = recipes.read(folder / "recipe.yaml")
    network: Denoiser = parts.module("networks", recipe.network.kind).load(folder)
    return network.to(select_device(device)).eval(), recipe


def load_codec(folder: Path, recipe: Recipe, device: torch.device) -> OpenCodec | None:
    """Open the codec of a model that `export_model` wrote; None if the model draws pixels.

    Raises
    ------
    UserError
        If the recipe's decoder cannot be loaded, or the model does not give the number of channels of the images.
    """
    if not recipe.codec.on:
        return None
    file = folder / CODEC_FILE
    try:
        channels = json.loads(file.read_text())["image_channels"]
    except (OSError, ValueError, TypeError, KeyError):
        raise UserError(f"{file}: missing or damaged; it holds the number of `image_channels`") from None
    return open_codec(recipe.codec, device, channels)


def require_same_shape(folder: Path, network: Denoiser, codec: OpenCodec | None, manifest: Manifest) -> None:
    """Require that a model's images have the size and number of channels of a dataset's.

    Raises
    ------
    UserError
        If they differ.
    """
    channels = network.shape[0]
    side = network.shape[1]
    if codec:
        channels = codec.image_channels
        side *= codec.factor
    if (channels, side) != (manifest.channels, manifest.size):
        raise UserError(
            f"{folder}: draws images of {channels} x {side} x {side}, but those of dataset {manifest.name} are "
            f"{manifest.channels} x {manifest.size} x {manifest.size}; name a dataset of the model's size and channels"
        )


def _sampler(recipe: Recipe) -> Exported | None:
    """Return how diffusers samples as the recipe does; None for a user's own process, or a sampler without `export`."""
    process = parts.build("diffusion", recipe.diffusion)
    sampler = parts.module("diffusion.samplers", recipe.sampler.kind)
    if parts.is_own(recipe.diffusion.kind) or not hasattr(sampler, "export"):
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
    """Return the model card, a README.md."""
    rows = "\n".join(f"| {name} | {_format_score(value)} |" for name, value in scores.items())
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
    network_input = "scheduler.scale_model_input(x, t)"
    conditions = ""
    labels = None
    if network.classes:
        labels = "labels"
        conditions += f"labels = torch.arange(16) % {network.classes}\n"
    if network.coordinates:
        conditions += (
            f"line = torch.linspace(-1, 1, {network.shape[1]})\n"
            "frame = torch.stack(torch.meshgrid(line, line, indexing='xy')).expand(16, -1, -1, -1)\n"
        )
        network_input = f"torch.cat([{network_input}, frame], 1)"

    codec_import, codec_loading, decoding = "", "", ""
    if recipe.codec.on:
        codec_import, codec_loading, decoding = _decoding_code(recipe.codec, channels)
    shape = ", ".join(str(side) for side in network.shape)
    return f"""import torch
from diffusers import {codec_import}{scheduler}, {network.library_class}

{network.folder} = {network.library_class}.from_pretrained("{network.folder}")
scheduler = {scheduler}.from_pretrained("scheduler")
scheduler.set_timesteps({exported.steps})
{codec_loading}{conditions}x = torch.randn(16, {shape}) * scheduler.init_noise_sigma
with torch.no_grad():
    for t in scheduler.timesteps:
        output = {network.call(network_input, labels)}
        x = scheduler.step(output, t, x{exported.arguments}).prev_sample
{decoding}images = ((x + 1) * 127.5).round().clamp(0, 255).byte()
"""


def _decoding_code(codec: Codec, channels: int) -> tuple[str, str, str]:
    """Return the import for decoding latents, the line that loads the decoder, and those that decode."""
    autoencoder = CLASSES[codec.kind]
    folder = Path(codec.decoder)
    where = str(folder.resolve()) if folder.is_dir() else codec.decoder
    loading = f"vae = {autoencoder}.from_pretrained({where!r})\n"

    to_grey = ".mean(1, keepdim=True)" if channels == 1 else ""
    decoding = (
        "    x = x / vae.config.scaling_factor + (vae.config.shift_factor or 0)\n"
        f"    x = vae.decode(x).sample{to_grey}\n"
    )
    return f"{autoencoder}, ", loading, decoding


def _format_score(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
