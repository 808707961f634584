"""One rank of two that walk through all techniques: `python techniques_worker.py RANK MEETING DATASET FOLDER`."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from drawings_small import recipe_of
from safetensors.torch import save_file
from techniques_small import NAMES, examples, session, with_techniques
from torch import Tensor
from trainers_small import small

from benchmarks import text_digits
from scrimp_trainers.data.dataset import open_dataset
from scrimp_trainers.recipe.recipe import Recipe

RANKED = [*NAMES, "codec-vq", "gru", "captions", "snapshots"]
"""The techniques, another kind of codec, a GRU on pen drawings, Stable Diffusion's U-Net on captioned images, and the
averages that snapshots keep."""
CAPTIONED_NETWORK = {
    "network.kind": "unet2d_condition",
    "network.channels": 16,
    "network.multipliers": [1, 2],
    "network.blocks": 1,
    "network.heads": 2,
    "network.text_width": text_digits.WIDTH,
}
"""A small one of Stable Diffusion's class."""
STEPS = 6
"""The last changes the masks."""


def recipe_of_ranks(name: str, folder: Path) -> Recipe:
    """Return a small recipe with a technique."""
    size = {"training__batch_size": 16, "training__microbatch": 4, "training__kimg": 0.16}
    if name == "gru":
        classes = {"conditioning__classes": True, "conditioning__label_drop": 0.2}
        return recipe_of(**size, **classes).replace(examples(folder)["sparsity"])
    if name == "captions":
        return small("tiny-ddpm", **size).replace(
            CAPTIONED_NETWORK | {"conditioning.text": str(folder / "text"), "conditioning.label_drop": 0.2}
        )
    if name == "snapshots":
        return small(**size, ema__snapshots=2)
    technique, _, codec = name.partition("-")
    return with_techniques((technique,), folder, codec=codec or "kl", **size)


def gradients(name: str, digits: Path, folder: Path, out: Path) -> dict[str, Tensor]:
    """Train some steps with a technique and return the gradients given to the optimizer, the masks, the averages."""
    recipe = recipe_of_ranks(name, folder)
    data = {"gru": folder / "data", "captions": folder / "captioned"}.get(name, digits)
    dataset = open_dataset(data)
    repeat = session(recipe, dataset, out / name)
    seen: dict[str, Tensor] = {}

    def look(*_: object) -> None:
        for path, parameter in repeat.state.network.named_parameters():
            assert parameter.grad is not None
            seen[f"{repeat.state.step}/{path}"] = parameter.grad.clone()

    repeat.state.optimizer.register_step_pre_hook(look)
    steps = repeat.steps()
    for _ in range(STEPS):
        next(steps)
    masks = repeat.state.masks.tensors() if repeat.state.masks else {}
    averages = repeat.state.power.tensors() if repeat.state.power else {}
    return seen | {f"masks/{path}": tensor for path, tensor in masks.items()} | averages


def main(rank: int, meeting: str, digits: Path, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    for name in RANKED:
        own = gradients(name, digits, folder, folder / "two")
        save_file(own, folder / f"{name}-{rank}.safetensors")
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
