"""Stable Diffusion's U-Net, which attends to captions (Rombach et al. 2022): diffusers' `UNet2DConditionModel`."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from scrimp_trainers.common import weights
from scrimp_trainers.common.errors import UserError
from scrimp_trainers.common.hub import find_part
from scrimp_trainers.conditioning.conditions import NOTHING, Conditions
from scrimp_trainers.networks import dropout
from scrimp_trainers.networks.denoiser import CONFIG, WEIGHTS, Denoiser, load_library_network, make_library_network
from scrimp_trainers.networks.unet import start_as_identity
from scrimp_trainers.recipe import networks

if TYPE_CHECKING:  # importing it takes seconds
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

LORA_FILE = "pytorch_lora_weights.safetensors"
"""The name that diffusers gives LoRA's updates."""
LORA, ADAPTER = ".lora_", ".default."
"""What is in the names of their tensors: that of the adapter, which diffusers' files leave out."""
TOKENS = 77
"""Tokens of a caption in CLIP; the network takes any number, but what it costs depends on it."""


class UNet2DConditionDenoiser(Denoiser):
    """A `UNet2DConditionModel`."""

    convolutional = True
    folder = "unet"
    library_class = "UNet2DConditionModel"

    def __init__(self, unet: "UNet2DConditionModel", *, base: str = "", rank: int = 0) -> None:
        super().__init__()
        self.unet = unet
        self.base = base
        self.rank = rank
        config = unet.config
        self.classes = 0
        self.text = (TOKENS, config["cross_attention_dim"])
        self.shape = torch.Size((config["out_channels"], config["sample_size"], config["sample_size"]))

    def forward(self, images: Tensor, levels: Tensor, conditions: Conditions = NOTHING) -> Tensor:
        """Return the raw output [B, C, H, W] for images [B, C, H, W] and what stands for their noise levels [B].

        Raises
        ------
        ValueError
            If it gets no captions: where they are hidden it takes the empty one.
        """
        if conditions.text is None:
            raise ValueError("a UNet2DConditionModel always takes captions, if only the empty one")
        return self.unet(images, levels, encoder_hidden_states=conditions.text.to(images.dtype)).sample

    @property
    def takes_only_images_and_levels(self) -> bool:
        """No: it always takes captions."""
        return False

    def kept_state(self) -> dict[str, Tensor]:
        """Return all tensors, or with LoRA those of its updates alone."""
        tensors = self.state_dict()
        return {name: tensor for name, tensor in tensors.items() if LORA in name} if self.rank else tensors

    def load_kept(self, tensors: Mapping[str, Tensor], file: Path) -> None:
        """Load what `kept_state` returned, read from a file; raises as `weights.load_weights` does."""
        if not self.rank:
            return super().load_kept(tensors, file)
        weights.require_same(tensors, self.kept_state(), file)
        self.load_state_dict(tensors, strict=False)
        return None

    def save(self, folder: Path) -> None:
        """Write the `UNet2DConditionModel`; or beside its folder LoRA's updates, in the form that diffusers reads."""
        if not self.rank:
            self.unet.save_pretrained(folder)
            return
        folder.mkdir()
        section = networks.UNet2DCondition(pretrained=self.base, lora_rank=self.rank)
        config = {"section": section.model_dump(), "image_size": self.shape[-1], "channels": self.shape[0]}
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        updates = {name.replace(ADAPTER, "."): tensor.contiguous() for name, tensor in self.kept_state().items()}
        save_file(updates, folder.parent / LORA_FILE, {"format": "pt"})

    def call(self, images: str, labels: str | None) -> str:
        """Return the code that asks a `UNet2DConditionModel`."""
        return f"unet({images}, t, encoder_hidden_states=text).sample"


def build(
    section: networks.UNet2DCondition,
    *,
    image_size: int,
    channels: int,
    classes: int = 0,
    augment_labels: int = 0,
    coordinates: bool = False,
) -> UNet2DConditionDenoiser:
    """Make a new network for square images, with weights from torch's global generator, or read a pretrained one.

    Raises
    ------
    UserError
        If the images cannot be halved as often as the network has levels, or a pretrained network cannot be read or is
        for images of other channels.
    ValueError
        If it is to take classes, augmentation labels or coordinates, which its section does not offer.
    """
    if classes or augment_labels or coordinates:
        raise ValueError("a UNet2DConditionModel takes neither classes nor augmentation labels nor coordinates")

    unet = _pretrained(section.pretrained, channels) if section.pretrained else _new(section, channels)
    halvings = len(unet.config["block_out_channels"]) - 1
    if image_size % 2**halvings:
        raise UserError(
            f"network: its levels halve the images {halvings} times, but {image_size} is not a multiple of "
            f"{2**halvings}; use fewer levels or another --size"
        )
    unet.register_to_config(sample_size=image_size)  # diffusers draws images of this size by default
    if section.lora_rank:
        _add_updates(unet, section.lora_rank)
        return UNet2DConditionDenoiser(unet, base=str(section.pretrained), rank=section.lora_rank)
    dropout.replace(unet)
    return UNet2DConditionDenoiser(unet)


def load(folder: Path) -> UNet2DConditionDenoiser:
    """Read the network of an exported model; raises as `load_library_network` does, and where LoRA's base is gone."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    if (folder / LORA_FILE).is_file():
        return _load_updated(folder)
    return UNet2DConditionDenoiser(load_library_network(UNet2DConditionModel, folder / UNet2DConditionDenoiser.folder))


def _new(section: networks.UNet2DCondition, channels: int) -> "UNet2DConditionModel":
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    lower = len(section.multipliers) - 1
    unet = UNet2DConditionModel(
        in_channels=channels,
        out_channels=channels,
        block_out_channels=tuple(section.channels * multiplier for multiplier in section.multipliers),
        layers_per_block=section.blocks,
        down_block_types=("CrossAttnDownBlock2D",) * lower + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * lower,
        norm_num_groups=math.gcd(32, section.channels),
        attention_head_dim=section.heads,  # diffusers' name for their number
        cross_attention_dim=section.text_width,
    )
    start_as_identity(unet)
    return unet


def _pretrained(name: str, channels: int) -> "UNet2DConditionModel":
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    where = f"network.pretrained {name}"
    if torch.get_default_device().type == "meta":  # its cost is counted, for which its weights are not read
        folder = find_part(name, UNet2DConditionDenoiser.folder, (CONFIG,), where)
        unet = make_library_network(UNet2DConditionModel, folder)
    else:
        folder = find_part(name, UNet2DConditionDenoiser.folder, (CONFIG, WEIGHTS), where)
        unet = load_library_network(UNet2DConditionModel, folder)
    taken = {unet.config["in_channels"], unet.config["out_channels"]}
    if taken != {channels}:
        raise UserError(f"{where}: takes {min(taken)} channels, but x has {channels}; name the codec that it is for")
    return unet


def _add_updates(unet: "UNet2DConditionModel", rank: int) -> None:
    """Add LoRA's updates to the linear layers of all attention, and leave everything else as it is."""
    from diffusers.models.attention_processor import Attention

    try:
        from peft import LoraConfig
    except ImportError:
        raise UserError("network.lora_rank needs the package peft: pip install 'scrimp[text]'") from None

    updated = [
        f"{name}.{inner}"
        for name, block in unet.named_modules()
        if isinstance(block, Attention)
        for inner, layer in block.named_modules()
        if isinstance(layer, nn.Linear)
    ]
    unet.requires_grad_(False)
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=updated))


def _load_updated(folder: Path) -> UNet2DConditionDenoiser:
    """Read LoRA's base, and its updates."""
    config_file, file = folder / UNet2DConditionDenoiser.folder / CONFIG, folder / LORA_FILE
    try:
        config = json.loads(config_file.read_text())
        section = networks.UNet2DCondition.model_validate(config.pop("section"))
        network = build(section, **config)
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(f"{config_file}: not the config of a network with LoRA: {weights.one_line(error)}") from error
    kept = {name.replace(ADAPTER, "."): name for name in network.kept_state()}
    updates = weights.read_weights(file)
    weights.require_same(updates, {name: network.kept_state()[own] for name, own in kept.items()}, file)
    network.load_kept({kept[name]: tensor for name, tensor in updates.items()}, file)
    return network
