"""Write the trained model of a repeat in diffusers' format, and load it, as `scrimp sample` does."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from scrimp_trainers.codecs.codec import Codec, Decoding
from scrimp_trainers.common import file_sums, parts
from scrimp_trainers.common.device import select_device
from scrimp_trainers.common.errors import UserError
from scrimp_trainers.common.files import atomic_folder, match_folder_mode
from scrimp_trainers.conditioning import text_files
from scrimp_trainers.conditioning.conditioner import Conditioner
from scrimp_trainers.conditioning.text_files import TextFiles
from scrimp_trainers.data.manifest import Manifest
from scrimp_trainers.data.modalities.modality import modality_of
from scrimp_trainers.diffusion.samplers.exported import Exported
from scrimp_trainers.export import card, sampling_code
from scrimp_trainers.networks.denoiser import Denoiser
from scrimp_trainers.recipe import recipe as recipes
from scrimp_trainers.recipe.recipe import Recipe


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
        exported = sampling_code.exported_sampler(recipe)
        decoding = sampling_code.decoding_of(recipe, manifest)
        network.save(part / network.folder)
        if exported:
            exported.scheduler.save_pretrained(part / "scheduler")
        pipeline = exported and not exported.caveat and exported.pipeline and network.library_class
        if exported and pipeline and network.takes_only_images_and_levels and decoding == Decoding():
            (part / "model_index.json").write_text(_index(network, exported))
        if recipe.conditioning.text and not network.base:
            text_files.of_setting(recipe.conditioning.text).copy(part)
        if recipe.conditioning.text:
            text_files.write_captions(part, captions)
        vae = sampling_code.stable_diffusion_vae(network, recipe)
        if exported and vae and not network.base:
            vae.copy(part)
            (part / "model_index.json").write_text(_stable_diffusion_index(exported))
        (part / "recipe.yaml").write_text(recipe.to_yaml())
        _codec_part(recipe).save(recipe.codec, modality_of(manifest).shape, part)
        card.write_card(part, network, recipe, manifest, scores)
        for file in part.rglob("*.safetensors"):
            match_folder_mode(file)
        _write_sums(part)


def is_current(folder: Path, network: Denoiser, recipe: Recipe, manifest: Manifest, scores: Mapping[str, Any]) -> bool:
    """Whether a folder contains the model that `export_model` would write; its card names all that it depends on."""
    file = folder / card.CARD
    is_same = file.is_file() and file.read_bytes() == card.card(network, recipe, manifest, scores).encode()
    return is_same and not file_sums.fault_of(folder)


def _write_sums(folder: Path) -> None:
    """Write the checksums of a model's files; not of its card, which its owner may edit."""
    names = [name for name in file_sums.files_below(folder) if name != card.CARD]
    (folder / file_sums.SUMS).write_text(file_sums.sums_of(folder, names))


def load_model(folder: Path, device: torch.device | str | None = None) -> tuple[Denoiser, Recipe]:
    """Load a model that `export_model` wrote, onto the given device or by default the best one.

    Raises
    ------
    UserError
        If the folder is not a model, or a file is damaged; missing weights and weights of wrong shape are named.
    """
    if not (folder / "recipe.yaml").is_file() or not any(folder.glob("*/config.json")):
        raise UserError(f"{folder}: not a model (no network or no recipe.yaml); name the model folder of a repeat")
    file_sums.require_intact(folder)  # first, since a changed config makes the weights those of another network
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
            f"{folder}: draws {manifest.modality} of {card.by(shape)}, but those of dataset {manifest.name} are "
            f"{card.by(expected)}; name a dataset of the model's size and channels"
        )


def _codec_part(recipe: Recipe) -> Any:
    return parts.module("codecs", recipe.codec.part)


def _index(network: Denoiser, exported: Exported) -> str:
    import diffusers

    index = {
        "_class_name": exported.pipeline,
        "_diffusers_version": diffusers.__version__,
        "scheduler": ["diffusers", type(exported.scheduler).__name__],
        network.folder: ["diffusers", network.library_class],
    }
    return json.dumps(index, indent=2) + "\n"


def _stable_diffusion_index(exported: Exported) -> str:
    import diffusers

    index = {
        "_class_name": sampling_code.STABLE_DIFFUSION,
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
