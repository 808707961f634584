"""Diffusion in the latents of a frozen autoencoder of diffusers'.

LD-Diffusion's (sd-vae-ft-mse and -ema) is an AutoencoderKL: the encoder gives a posterior for each cell of the latents,
of which every step draws a new sample, and the network sees (sample - shift) * scale, with shift and scale from the
autoencoder's config.

Latent diffusion's for images of 256x256 (Rombach et al. 2022, VQ-f4) is a VQModel: the network sees the latents before
they are quantised, as they are, and the decoder quantises. In latent diffusion's code their scale is 1. The config's
`scaling_factor` is not used, since diffusers writes its default, 0.18215, into the config of every VQModel.
"""

import importlib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from scrimp_trainers.codecs import autoencoder_files
from scrimp_trainers.codecs.autoencoder_files import KINDS, AutoencoderFiles
from scrimp_trainers.codecs.codec import Draw, Shape
from scrimp_trainers.codecs.pixels import scaled, to_pixels
from scrimp_trainers.common import weights
from scrimp_trainers.common.errors import UserError
from scrimp_trainers.data.modalities.modality import Items
from scrimp_trainers.recipe.techniques import Autoencoder

if TYPE_CHECKING:  # importing them takes seconds
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
    from diffusers.models.autoencoders.vq_model import VQModel

    Network = AutoencoderKL | AutoencoderTiny | VQModel

MAX_PIXELS_AT_ONCE = 2**20
"""What goes through the autoencoder at once: its activations take a few GiB then."""


@dataclass(frozen=True)
class AutoencoderCodec:
    """An autoencoder's two halves, frozen. The encoder is loaded when it is first used: a full cache needs none."""

    settings: Autoencoder
    """Which autoencoder."""
    decoder: "Network"
    """What makes images of latents."""
    channels: int
    """Channels of a latent."""
    factor: int
    """Pixels to a latent cell, along each side."""
    scale: float
    """Factor on latents, which brings them to about unit variance."""
    shift: float
    """Taken off latents before that."""
    image_channels: int
    """Channels of the dataset's images."""
    device: torch.device
    """Where it runs."""

    @cached_property
    def encoder(self) -> "Network":
        """What makes latents of images."""
        files = autoencoder_files.find(self.settings, "encoder")
        if self.settings.encoder == self.settings.decoder:
            return self.decoder
        network = _load(files, self.settings, self.device)
        scaling = _scaling(network, self.settings)
        if (files.channels, files.factor, *scaling) != (self.channels, self.factor, self.scale, self.shift):
            raise UserError(
                f"{files.where}: its latents are not those of codec.decoder {self.settings.decoder} (channels, "
                "downsampling, scaling_factor or shift_factor differ); name two that belong together"
            )
        return network

    @torch.no_grad()
    def moments(self, images: Tensor) -> Tensor:
        """Encode.

        Parameters
        ----------
        images
            uint8 [b, 1 or 3, H, W]; grey is repeated to RGB.

        Returns
        -------
        Tensor
            The posterior's mean, then its log-variance, float32 [b, 2c, h, w]. An AutoencoderTiny and a VQModel have
            no posterior: their latents, [b, c, h, w].
        """
        return torch.cat([self._moments(part) for part in images.split(_at_once(images.shape[-1]))])

    def shape(self, items: Shape) -> Shape:
        """Return the shape of the latents [c, h, w] of images of this shape [C, H, W]."""
        return self.channels, *(side // self.factor for side in items[1:])

    def item_shape(self, x: Shape) -> Shape:
        """Return the shape of the images [C, H, W] of latents of this shape [c, h, w]."""
        return self.image_channels, *(side * self.factor for side in x[1:])

    def encode(self, values: Tensor, draw: Draw) -> Tensor:
        """Draw latents as the network sees them, [b, c, h, w], from moments [b, 2c, h, w]; or scale fixed ones."""
        if values.shape[1] == self.channels:
            return values.sub(self.shift).mul_(self.scale)
        normal = draw((len(values), self.channels, *values.shape[2:]))
        return draw_latents(values, normal, self.scale, self.shift)

    def decode(self, x: Tensor) -> Items:
        """Make images, uint8 [b, 1 or 3, H, W], of latents [b, c, h, w] as the network sees them."""
        return Items(to_pixels(self.decoded(x)))

    @torch.no_grad()
    def decoded(self, latents: Tensor) -> Tensor:
        """Make images [b, 1 or 3, H, W], about in [-1, 1], of latents [b, c, h, w] as the network sees them."""
        decode: Any = self.decoder.decode
        parts = latents.float().div(self.scale).add(self.shift).split(_at_once(latents.shape[-1] * self.factor))
        images = torch.cat([decode(part).sample for part in parts])
        return images.mean(1, keepdim=True) if self.image_channels == 1 else images

    def _moments(self, images: Tensor) -> Tensor:
        pixels = scaled(images.to(self.device)).expand(-1, 3, -1, -1)
        encode: Any = self.encoder.encode
        if not KINDS[self.settings.kind].draws:
            return encode(pixels).latents
        posterior = encode(pixels).latent_dist
        return torch.cat([posterior.mean, posterior.logvar], dim=1)


def open_codec(settings: Autoencoder, device: torch.device, image_channels: int) -> AutoencoderCodec:
    """Open the autoencoder of a recipe, for a dataset of grey or RGB images.

    Raises
    ------
    UserError
        If it cannot be loaded; the line says what to put where.
    """
    files = autoencoder_files.find(settings, "decoder")
    decoder = _load(files, settings, device)
    scale, shift = _scaling(decoder, settings)
    return AutoencoderCodec(settings, decoder, files.channels, files.factor, scale, shift, image_channels, device)


def draw_latents(moments: Tensor, normal: Tensor, scale: float, shift: float) -> Tensor:
    """Draw latents [b, c, h, w] from posteriors [b, 2c, h, w] with standard normal noise [b, c, h, w], and scale them.

    The order is that of diffusers' pipelines: (sample - shift) * scale.
    """
    mean, log_variance = moments.chunk(2, dim=1)
    return torch.addcmul(mean, log_variance.mul(0.5).exp_(), normal).sub_(shift).mul_(scale)


def _at_once(side: int) -> int:
    """Return how many images of `side` pixels go through the autoencoder together."""
    return max(1, MAX_PIXELS_AT_ONCE // side**2)


def _scaling(network: "Network", settings: Autoencoder) -> tuple[float, float]:
    """Return scale and shift of latents."""
    if not KINDS[settings.kind].is_scaled:
        return 1.0, 0.0
    return float(network.config["scaling_factor"]), float(network.config["shift_factor"] or 0)


def _load(files: AutoencoderFiles, settings: Autoencoder, device: torch.device) -> "Network":
    kind = KINDS[settings.kind]
    module = importlib.import_module(f"diffusers.models.autoencoders.{kind.module}")
    try:
        network, loaded = getattr(module, kind.class_name).from_pretrained(
            files.folder, use_safetensors=True, low_cpu_mem_usage=False, output_loading_info=True
        )
    except Exception as error:  # each wrong value of the config fails in a different way
        why = weights.one_line(error)
        raise UserError(f"{files.where}: cannot be loaded ({why}); fetch {autoencoder_files.WEIGHTS} again") from error
    for fault, names in (("lacks", loaded["missing_keys"]), ("has an unknown", loaded["unexpected_keys"])):
        if names:
            raise UserError(f"{files.where}: {autoencoder_files.WEIGHTS} {fault} {min(names)}; fetch it again")
    return network.requires_grad_(False).eval().to(device)
