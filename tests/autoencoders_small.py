"""Autoencoders with random weights, in folders as diffusers keeps them."""

from pathlib import Path
from typing import Any

import torch

from scrimp_trainers.recipe.techniques import Autoencoder


def new_autoencoder(kind: str, seed: int, **options: Any) -> Any:
    """An autoencoder with random weights, whose posteriors are as wide as their means are."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
    from diffusers.models.autoencoders.vq_model import VQModel

    torch.manual_seed(seed)
    if kind == "tiny":
        width = {"encoder_block_out_channels": (8,) * 4, "decoder_block_out_channels": (8,) * 4}
        return AutoencoderTiny(**width, num_encoder_blocks=(1,) * 4, num_decoder_blocks=(1,) * 4, **options)
    levels = 3 if kind == "vq" else 4
    blocks: Any = {"down_block_types": ("DownEncoderBlock2D",) * levels, "block_out_channels": (8,) * levels}
    blocks |= {"up_block_types": ("UpDecoderBlock2D",) * levels, "layers_per_block": 1, "norm_num_groups": 4}
    if kind == "kl":
        return AutoencoderKL(**blocks, **options)

    network = VQModel(**blocks, latent_channels=3, num_vq_embeddings=8192, **options)
    torch.nn.init.normal_(network.quantize.embedding.weight)  # as new, all codes are almost zero
    return network


def save_autoencoders(folder: Path) -> None:
    new_autoencoder("kl", 0, scaling_factor=0.4, shift_factor=0.1).save_pretrained(folder / "kl")
    new_autoencoder("kl", 1, scaling_factor=0.4, shift_factor=0.1).save_pretrained(folder / "other")
    new_autoencoder("kl", 1, latent_channels=3).save_pretrained(folder / "three")
    new_autoencoder("tiny", 0, scaling_factor=0.7).save_pretrained(folder / "tiny")
    new_autoencoder("vq", 0).save_pretrained(folder / "vq")


def settings_of(folder: Path, kind: str) -> Autoencoder:
    return Autoencoder.model_validate({"kind": kind, "encoder": str(folder / kind), "decoder": str(folder / kind)})
