"""Write the trained model of a repeat in diffusers' format, and load it, as `scrimp sample` does."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from scrimp_trainers.codecs import autoencoder_files
from scrimp_trainers.codecs.autoencoder_files import AutoencoderFiles
from scrimp_trainers.codecs.codec import Codec, Decoding
from scrimp_trainers.common import parts
from scrimp_trainers.common.device import select_device
from scrimp_trainers.common.errors import UserError
from scrimp_trainers.common.files import atomic_folder, match_folder_mode
from scrimp_trainers.common.metrics_log import SELECTED
from scrimp_trainers.conditioning import text_files
from scrimp_trainers.conditioning.conditioner import Conditioner
from scrimp_trainers.conditioning.text_files import TextFiles
from scrimp_trainers.data.manifest import Manifest
from scrimp_trainers.data.modalities.modality import modality_of
from scrimp_trainers.diffusion.samplers.exported import Exported
from scrimp_trainers.networks.denoiser import Denoiser
from scrimp_trainers.recipe import recipe as recipes
from scrimp_trainers.recipe.diffusion import Chain
from scrimp_trainers.recipe.recipe import Recipe
from scrimp_trainers.recipe.techniques import Autoencoder

STABLE_DIFFUSION = "StableDiffusionPipeline"
TEXT_CODE = """from transformers import CLIPTextModel, CLIPTokenizer

tokenizer = CLIPTokenizer.from_pretrained("tokenizer")
encoder = CLIPTextModel.from_pretrained("text_encoder")
captions = ["a caption"] * 16
length = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)
tokens = tokenizer(captions, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
with torch.no_grad():
    text = encoder(tokens.input_ids).last_hidden_state
"""
"""Makes embeddings of captions."""
OWN_IMPORTS = """import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
"""
"""What the code of a network that diffusers does not have imports."""


def export_model(
    folder: Path,
    network: Denoiser,
    recipe: Recipe,
    manifest: Manifest,
    scores: Mapping[str, Any],
    captions: Sequence[str] = (),
) -> None:
    """Write a model into a new folder.

    The network's folder and `scheduler/` can be loaded with diffusers alone; `README.md` is the model card
    and contains the code for that. A `model_index.json` is written only if one of diffusers' pipelines can sample from
    this model. None of them scales the input of an EDM network, passes on classes or coordinates, or decodes latents:
    they would silently return noise. Nor do they support DDIM's eta. A network conditioned on captions that denoises
    latents of an AutoencoderKL is sampled by `StableDiffusionPipeline`, for which `vae/` is copied, too.

    The text encoder and the tokenizer of a network conditioned on captions are copied; `captions` are those that
    samples are drawn of where none are given.

    Raises
    ------
    UserError
        If the folder exists or cannot be written.
    """
    with atomic_folder(folder) as part:
        exported = _sampler(recipe)
        decoding = _decoding(recipe, manifest)
        network.save(part / network.folder)
        if exported:
            exported.scheduler.save_pretrained(part / "scheduler")
        pipeline = exported and exported.pipeline and network.library_class
        if exported and pipeline and network.takes_only_images_and_levels and decoding == Decoding():
            (part / "model_index.json").write_text(_index(network, exported))
        if recipe.conditioning.text and not network.base:
            text_files.of_setting(recipe.conditioning.text).copy(part)
        if recipe.conditioning.text:
            text_files.write_captions(part, captions)
        vae = _stable_diffusion_vae(network, recipe)
        if exported and vae and not network.base:
            vae.copy(part)
            (part / "model_index.json").write_text(_stable_diffusion_index(exported))
        (part / "recipe.yaml").write_text(recipe.to_yaml())
        _codec_part(recipe).save(recipe.codec, modality_of(manifest).shape, part)
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


def load_codec(folder: Path, recipe: Recipe, device: torch.device) -> Codec:
    """Open the codec of a model that `export_model` wrote.

    Raises
    ------
    UserError
        If the recipe's decoder cannot be loaded, or the folder lacks what it needs.
    """
    return _codec_part(recipe).load(recipe.codec, folder, device)


def load_conditioner(
    folder: Path, recipe: Recipe, device: torch.device, captions: Sequence[str] = ()
) -> Conditioner | None:
    """Open the captions of a model that `export_model` wrote; None for one that takes none.

    Without `captions`, samples are drawn of those that the model keeps.

    Raises
    ------
    UserError
        If there are captions for a model that takes none, or a file is missing or damaged.
    """
    if not recipe.conditioning.text:
        if captions:
            raise UserError(f"{folder}: the model takes no captions; leave them out")
        return None

    from scrimp_trainers.conditioning.text import load_encoder, texts_of

    encoder = load_encoder(text_files_of(folder, recipe), device)
    return texts_of(captions or text_files.read_captions(folder), encoder)


def text_files_of(folder: Path, recipe: Recipe) -> TextFiles:
    """Find the text encoder of a model that `export_model` wrote: its own, or, with LoRA, that of the recipe.

    Raises
    ------
    UserError
        If a file is missing.
    """
    if (folder / text_files.ENCODER).is_dir():
        return text_files.find(str(folder), str(folder))
    return text_files.of_setting(str(recipe.conditioning.text))


def require_same_shape(folder: Path, network: Denoiser, recipe: Recipe, codec: Codec, manifest: Manifest) -> None:
    """Require that a model draws items as a dataset has, of the same shape.

    Raises
    ------
    UserError
        If they differ.
    """
    if recipe.codec.modality not in manifest.kinds:
        raise UserError(
            f"{folder}: draws {recipe.codec.modality}, but dataset {manifest.name} is of {manifest.modality}; name a "
            "dataset of what the model draws"
        )
    shape = codec.item_shape(tuple(network.shape))
    expected = modality_of(manifest).shape
    if shape != expected:
        raise UserError(
            f"{folder}: draws {manifest.modality} of {_by(shape)}, but those of dataset {manifest.name} are "
            f"{_by(expected)}; name a dataset of the model's size and channels"
        )


def _by(shape: Sequence[int]) -> str:
    return " x ".join(str(side) for side in shape)


def _codec_part(recipe: Recipe) -> Any:
    return parts.module("codecs", recipe.codec.part)


def _decoding(recipe: Recipe, manifest: Manifest) -> Decoding | None:
    """Return how diffusers alone decodes; None for a codec without `decoding`."""
    part = _codec_part(recipe)
    return part.decoding(recipe.codec, modality_of(manifest).shape) if hasattr(part, "decoding") else None


def _sampler(recipe: Recipe) -> Exported | None:
    """Return how diffusers samples as the recipe does; None for a user's own process, or a sampler without `export`."""
    process = parts.build("diffusion", recipe.diffusion)
    sampler = parts.module("diffusion.samplers", recipe.sampler.kind)
    if parts.is_own(recipe.diffusion.kind) or not hasattr(sampler, "export"):
        return None
    return sampler.export(process, recipe.sampler, clip=recipe.codec.bounded)


def _index(network: Denoiser, exported: Exported) -> str:
    import diffusers

    index = {
        "_class_name": exported.pipeline,
        "_diffusers_version": diffusers.__version__,
        "scheduler": ["diffusers", type(exported.scheduler).__name__],
        network.folder: ["diffusers", network.library_class],
    }
    return json.dumps(index, indent=2) + "\n"


def _stable_diffusion_vae(network: Denoiser, recipe: Recipe) -> AutoencoderFiles | None:
    """Return the autoencoder of a model that Stable Diffusion's pipeline samples as the recipe does; None of others.

    The pipeline knows no shift of latents.
    """
    if not (network.text and isinstance(recipe.codec, Autoencoder) and isinstance(recipe.diffusion, Chain)):
        return None
    if recipe.codec.kind != "kl":
        return None
    files = autoencoder_files.find(recipe.codec, "decoder")
    return None if files.shift else files


def _stable_diffusion_index(exported: Exported) -> str:
    import diffusers

    index = {
        "_class_name": STABLE_DIFFUSION,
        "_diffusers_version": diffusers.__version__,
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", type(exported.scheduler).__name__],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
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

- dataset: {manifest.name}, {manifest.splits["train"].count} {manifest.modality} of \
{_by(modality_of(manifest).shape)}
- content hash: `{manifest.content_hash}`

## Use

{_use(network, recipe, _decoding(recipe, manifest))}

## Scores

{_selection(scores)}| score | value |
|---|---|
{rows}

## Recipe

```yaml
{recipe.to_yaml()}```
"""


def _selection(scores: Mapping[str, Any]) -> str:
    """Say of a model that was chosen by its score that the score is optimistic; nothing of any other."""
    if SELECTED not in scores:
        return ""
    return (
        f"The model was {scores[SELECTED]}. A score by which a model was chosen is optimistic, and so is what goes "
        "with it. `scrimp evaluate` with another `--seed` than that of the training scores this model by samples that "
        "had no part in the choice.\n\n"
    )


def _use(network: Denoiser, recipe: Recipe, decoding: Decoding | None) -> str:
    """Say how to sample: with diffusers alone, or with Scrimp where diffusers has no class for a part."""
    exported = _sampler(recipe)
    if not exported or not decoding or not (network.library_class or network.code):
        files = ", ".join(f'"{file.name}"' for file in recipe.parts)
        own = f"scrimp.load_parts({files})\n" if files else ""
        return f"With Scrimp:\n\n```python\nimport scrimp\n\n{own}images = scrimp.load_model('.').sample(16)\n```"

    if _stable_diffusion_vae(network, recipe):
        code = _stable_diffusion_code(network, recipe, exported)
        return f"With diffusers alone, in this folder:\n\n```python\n{code}```"

    note = exported.note
    if recipe.sampler.guidance != 1:
        note += f", without the recipe's guidance of {recipe.sampler.guidance:g}"
    code = _code(network, exported, decoding)
    if network.code:
        return f"With torch, and the scheduler of diffusers, in this folder; {note}:\n\n```python\n{code}```"
    return f"With diffusers alone, in this folder; {note}:\n\n```python\n{code}```"


def _stable_diffusion_code(network: Denoiser, recipe: Recipe, exported: Exported) -> str:
    scheduler = type(exported.scheduler).__name__
    loading = f"""from diffusers import {STABLE_DIFFUSION}

pipeline = {STABLE_DIFFUSION}.from_pretrained(".")
"""
    if network.base:
        folder = Path(network.base)
        loading = f"""from diffusers import {scheduler}, {STABLE_DIFFUSION}

pipeline = {STABLE_DIFFUSION}.from_pretrained({str(folder.resolve()) if folder.is_dir() else network.base!r})
pipeline.scheduler = {scheduler}.from_pretrained("scheduler")
pipeline.load_lora_weights(".")
"""
    return f"""{loading}caption = "a caption"
image = pipeline(
    caption, num_inference_steps={exported.steps}, guidance_scale={recipe.sampler.guidance:g}{exported.arguments}
).images[0]
"""


def _code(network: Denoiser, exported: Exported, decoding: Decoding) -> str:
    """Return the lines that sample with diffusers; a test runs them."""
    scheduler = type(exported.scheduler).__name__
    network_input = "scheduler.scale_model_input(x, t)"
    conditions = ""
    labels = None
    if network.classes:
        labels = "labels"
        conditions += f"labels = torch.arange(16) % {network.classes}\n"
    if network.text:
        conditions += TEXT_CODE
    if network.coordinates:
        conditions += (
            f"line = torch.linspace(-1, 1, {network.shape[1]})\n"
            "frame = torch.stack(torch.meshgrid(line, line, indexing='xy')).expand(16, -1, -1, -1)\n"
        )
        network_input = f"torch.cat([{network_input}, frame], 1)"

    output = network.call(network_input, labels)
    if network.variances and not exported.takes_variances:
        output += f"[:, :{network.shape[0]}]"

    shape = ", ".join(str(side) for side in network.shape)
    imports = f"import torch\nfrom diffusers import {decoding.imports}{scheduler}, {network.library_class}\n\n"
    loading = f'{network.folder} = {network.library_class}.from_pretrained("{network.folder}")\n'
    if network.code:
        imports = f"{OWN_IMPORTS}from diffusers import {scheduler}\n\n\n"
        loading = network.code
    return f"""{imports}{loading}scheduler = {scheduler}.from_pretrained("scheduler")
scheduler.set_timesteps({exported.steps})
{decoding.loading}{conditions}x = torch.randn(16, {shape}) * scheduler.init_noise_sigma
with torch.no_grad():
    for t in scheduler.timesteps:
        output = {output}
        step = scheduler.step(output, t, x{exported.arguments})
        x = step.prev_sample
{exported.result}{decoding.lines}{decoding.result}"""


def _format_score(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
