"""Digits with captions, and a stand-in for Stable Diffusion: its classes and its layout, small, with random weights.

    python -m benchmarks.text_digits FOLDER

writes FOLDER/images, which `scrimp prepare` reads, and FOLDER/model, which a recipe names in `conditioning.text`. The
space `sd-ambient-small` is searched with both.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
WIDTH = 32
"""Numbers in the embedding of a token."""
LENGTH = 40
"""Tokens of a caption, each a letter."""


def caption(digit: int) -> str:
    """Return the caption of a picture of a digit."""
    return f"a photo of the digit {WORDS[digit]}"


def write_images(folder: Path) -> None:
    """Write scikit-learn's digits as PNGs in folders of classes, each with its caption beside it."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    for word in WORDS:
        (folder / word).mkdir(parents=True)
    for number, (image, label) in enumerate(zip(pixels.reshape(-1, 8, 8), labels, strict=True)):
        grey = np.round(image * 255 / 16).astype(np.uint8)
        file = folder / WORDS[label] / f"{number:04d}.png"
        Image.fromarray(grey).save(file)
        file.with_suffix(".txt").write_text(caption(int(label)))


def write_text_encoder(folder: Path, seed: int = 0) -> None:
    """Write a tokenizer of single letters, and a text encoder with random weights."""
    import torch
    from transformers import CLIPTextConfig, CLIPTextModel

    tokens = _tokens()
    tokenizer = folder / "tokenizer"
    tokenizer.mkdir(parents=True)
    (tokenizer / "vocab.json").write_text(json.dumps(tokens))
    (tokenizer / "merges.txt").write_text("#version: 0.2\n")
    special = {f"{name}_token": END for name in ("eos", "unk", "pad")} | {"bos_token": START}
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": LENGTH} | special
    (tokenizer / "tokenizer_config.json").write_text(json.dumps(config))

    torch.manual_seed(seed)
    ids: dict[str, Any] = {"bos_token_id": tokens[START], "eos_token_id": tokens[END], "pad_token_id": tokens[END]}
    shape = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPTextConfig(
        vocab_size=len(tokens), max_position_embeddings=LENGTH, initializer_factor=20.0, **shape, **ids
    )
    CLIPTextModel(config).save_pretrained(folder / "text_encoder")


def write_unet(folder: Path, channels: int = 4, size: int = 8, seed: int = 0, **options: Any) -> None:
    """Write a denoising network with random weights."""
    import torch
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    torch.manual_seed(seed)
    blocks: Any = {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "block_out_channels": (8, 16)}
    blocks |= {"up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "layers_per_block": 1, "norm_num_groups": 4}
    unet = UNet2DConditionModel(
        sample_size=size,
        in_channels=channels,
        out_channels=channels,
        attention_head_dim=2,
        cross_attention_dim=WIDTH,
        **blocks,
        **options,
    )
    unet.save_pretrained(folder / "unet")


def write_vae(folder: Path, seed: int = 0) -> None:
    """Write an autoencoder with random weights, whose latents have half the side of its images."""
    import torch
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    torch.manual_seed(seed)
    blocks: Any = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    blocks |= {"block_out_channels": (8, 8), "layers_per_block": 1, "norm_num_groups": 4}
    vae = AutoencoderKL(**blocks)
    vae.save_pretrained(folder / "vae")


def write_model(folder: Path) -> None:
    """Write all parts in the layout of Stable Diffusion."""
    for write in (write_text_encoder, write_unet, write_vae):
        write(folder)
    scheduler = {"_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear", "steps_offset": 1}
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    parts: dict[str, Any] = {
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    none = {name: [None, None] for name in ("feature_extractor", "safety_checker")}
    index = {"_class_name": "StableDiffusionPipeline", "requires_safety_checker": False} | parts | none
    (folder / "model_index.json").write_text(json.dumps(index))


START, END = "<|startoftext|>", "<|endoftext|>"


def _tokens() -> dict[str, int]:
    """Give each byte a number, as CLIP's tokenizer writes them, inside of words and at their ends."""
    printed = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [256 + number for number in range(256 - len(printed))]
    letters = [chr(code) for code in [*printed, *others]]
    names = [*letters, *(f"{letter}</w>" for letter in letters), START, END]
    return {name: number for number, name in enumerate(names)}


def main(folder: Path) -> None:
    """Write the images and the stand-in."""
    write_images(folder / "images")
    write_model(folder / "model")
    print(f"images in {folder / 'images'}, model in {folder / 'model'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
