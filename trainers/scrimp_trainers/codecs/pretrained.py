"""The codec of a frozen autoencoder: what a codec's file has, before any of the autoencoder is loaded.

This file imports no torch, so that mistakes answer at once; the codec itself is in `autoencoder.py`.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scrimp_trainers.codecs.autoencoder_files import KINDS, PART, latent_shape
from scrimp_trainers.codecs.codec import Decoding, Shape
from scrimp_trainers.common.errors import UserError
from scrimp_trainers.recipe.techniques import Autoencoder

if TYPE_CHECKING:  # importing it takes seconds
    from torch import device

    from scrimp_trainers.codecs.autoencoder import AutoencoderCodec
    from scrimp_trainers.data.batch import Batch
    from scrimp_trainers.data.dataset import Dataset

CODEC_FILE = "codec.json"
"""In the folder of a model: the number of channels of its images."""


def shape(settings: Autoencoder, items: Shape) -> Shape | None:
    """Return the shape of the latents of images of this shape; None and errors as in `latent_shape`."""
    latents = latent_shape(settings, items[-1])
    if latents is None:
        return None
    channels, side = latents
    return channels, *(side for _ in items[1:])


def build(settings: Autoencoder, items: Shape, device: "device") -> "AutoencoderCodec":
    """Open the autoencoder for images of this shape; raises as `open_codec` does."""
    from scrimp_trainers.codecs.autoencoder import open_codec

    return open_codec(settings, device, items[0])


def batches(settings: Autoencoder, dataset: "Dataset", *, device: "device", **options: Any) -> Iterator["Batch"]:
    """Yield batches of moments, from the dataset's cache; `options` are those of `loading.batches`."""
    from scrimp_trainers.codecs.cache import latent_batches, open_latents

    latents = open_latents(dataset, settings, device)
    _, labels = dataset.entries("train")
    return latent_batches(latents, labels, device=device, **options)


def save(settings: Autoencoder, items: Shape, folder: Path) -> None:  # noqa: ARG001
    """Write what decoding needs besides the recipe into the folder of a model. The autoencoder is named, not copied."""
    (folder / CODEC_FILE).write_text(json.dumps({"image_channels": items[0]}) + "\n")


def load(settings: Autoencoder, folder: Path, device: "device") -> "AutoencoderCodec":
    """Open the autoencoder of a model.

    Raises
    ------
    UserError
        If it cannot be loaded, or the model does not give the number of channels of the images.
    """
    file = folder / CODEC_FILE
    try:
        channels = json.loads(file.read_text())["image_channels"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        raise UserError(f"{file}: missing or damaged; it holds the number of `image_channels`") from None
    if (folder / PART).is_dir():  # the model has a copy
        settings = settings.model_copy(update={"encoder": str(folder), "decoder": str(folder)})
    return build(settings, (channels,), device)


def decoding(settings: Autoencoder, items: Shape) -> Decoding:
    """Return the code that decodes latents with diffusers alone."""
    kind = KINDS[settings.kind]
    folder = Path(settings.decoder)
    folder = folder / PART if (folder / PART).is_dir() else folder
    where = str(folder.resolve()) if folder.is_dir() else settings.decoder

    unscaling = ""
    if kind.is_scaled:
        unscaling = "    x = x / vae.config.scaling_factor + (vae.config.shift_factor or 0)\n"
    to_grey = ".mean(1, keepdim=True)" if items[0] == 1 else ""
    return Decoding(
        imports=f"{kind.class_name}, ",
        loading=f'decoder = folder / "{PART}"\n'
        f"vae = {kind.class_name}.from_pretrained(\n"
        f"    decoder if decoder.is_dir() else {where!r}, use_safetensors=True\n)\n",
        lines=f"{unscaling}    x = vae.decode(x).sample{to_grey}\n",
    )
