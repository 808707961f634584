"""Images per second of `scrimp_trainers.train.train` against diffusers' own example of unconditional training.

Their side is the loop of `examples/unconditional_image_generation/train_unconditional.py` with its defaults and its
EMA, on one device and without accelerate, checkpoints and logging. Both train the same network from the same weights.
On CPU cores theirs is one process with a thread a core, as it is when started; ours is shown so too, and as one rank a
core, which our loop can: half a batch in each of two processes wastes less of two cores than two threads in one.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.optimization import get_scheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.training_utils import EMAModel
from PIL import Image
from torch import Tensor, nn
from torch.autograd.graph import register_multi_grad_hook
from torch.optim import Optimizer
from torch.utils.data import DataLoader
from torchvision import transforms

from benchmarks.data import make_dataset
from benchmarks.measure import Clock, Comparison, Side, interleave, show, show_parts
from scrimp_trainers.common import device as devices
from scrimp_trainers.data.dataset import open_dataset
from scrimp_trainers.data.loading import batches
from scrimp_trainers.recipe.recipe import Recipe, load
from scrimp_trainers.training.loop import train
from scrimp_trainers.training.state import State, initial_state

SIZE = 32
IMAGES = 4096
PEER = "diffusers' example"
EXAMPLE = {
    "optimizer.kind": "adamw",
    "optimizer.lr": 1e-4,
    "optimizer.beta1": 0.95,
    "optimizer.weight_decay": 1e-6,
    "training.kimg": 1e6,
}
"""The example's optimizer, in a recipe; a run so long that it does not end here."""


@dataclass(frozen=True)
class Case:
    """A network and batch to compare the two loops on."""

    name: str
    recipe: Recipe
    steps: int
    """Steps a round."""


def cases(device: str) -> list[Case]:
    """Return DDPM as in the paper where there is a GPU, else two smaller ones that a round on CPU cores can finish."""
    if device == "cpu":
        few = EXAMPLE | {"training.batch_size": 32}
        quarter = load("ddpm").replace(few | {"network.channels": 32})
        small = load("tiny-ddpm").replace(few | {"diffusion.prediction": "epsilon", "network.attention": [16]})
        return [Case("ddpm preset at a quarter of its width", quarter, 2), Case("tiny-ddpm preset", small, 4)]
    full = load("ddpm").replace(EXAMPLE)
    half = full.replace({"training.precision": "bf16"})
    return [Case("ddpm preset", full, 50), Case("ddpm preset", half, 50)]


def main(device: str, threads: int, rounds: int) -> None:
    """Measure and print."""
    found, parts = [], []
    with tempfile.TemporaryDirectory() as folder:
        make_dataset(Path(folder), IMAGES, SIZE)
        for case in cases(device):
            task, columns = (case.recipe, Path(folder), device), {}
            peer = Side(threads, theirs, *task)
            for ranks in layouts(device, threads):
                mine = Side(threads, ours, *task, ranks=ranks)
                seconds = interleave(mine, peer, rounds, case.steps)
                ours_now, theirs_now = (
                    [case.recipe.training.batch_size / second for second in side] for side in seconds
                )
                found.append(Comparison(describe(case, ranks), "/s", ours_now, theirs_now, goal(device)))
                columns[f"ours, {in_ranks(ranks)}"] = mine.call(step_parts, ours, case, *task[1:])[0]
                mine.close()
            columns[PEER] = peer.call(step_parts, theirs, case, *task[1:])[0]
            peer.close()
            parts.append((f"A step of the {case.name}", columns))
    show("Training at 32x32 RGB, images per second", found, PEER)
    for title, columns in parts:
        show_parts(title, columns, "ms")


def layouts(device: str, threads: int) -> list[int]:
    """Return into how many ranks our loop is split: on the CPU as many as cores, and one."""
    return [threads, 1] if device == "cpu" and threads > 1 else [1]


def in_ranks(count: int) -> str:
    """Say how many ranks there are."""
    return f"{count} ranks" if count > 1 else "1 rank"


def describe(case: Case, ranks: int) -> str:
    """Say what is trained, and in how many ranks."""
    parameters = sum(parameter.numel() for parameter in new_state(case.recipe, "cpu").network.parameters())
    training = case.recipe.training
    facts = f"{parameters / 1e6:.1f} M parameters, batch {training.batch_size}, {training.precision}"
    return f"{case.name} in {in_ranks(ranks)}: {facts}"


def goal(device: str) -> str:
    """Return what the ratio should be."""
    return "1.1 or more" if device == "cpu" else "1.3 or more"


def new_state(recipe: Recipe, device: str) -> State:
    """Return a network at the weights from which both sides start."""
    return initial_state(recipe, image_size=SIZE, channels=3, classes=0, seed=0, device=torch.device(device))


def ours(recipe: Recipe, data: Path, device: str, clock: Clock | None = None) -> Iterator[object]:
    """Set our loop up as a repeat does."""
    where, training = devices.select_device(device), recipe.training
    state = new_state(recipe, device)
    dataset = open_dataset(data / "dataset")
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    images = batches(
        dataset,
        batch_size=training.batch_size,
        seed=0,
        device=where,
        flip=training.flip,
        rank=rank,
        world=world,
    )
    if clock:
        listen(clock, state.network, state.optimizer)
        images = timed(images, clock)
    return train(recipe, state, images, device=where, rank=rank, world=world)


def plain(unet: UNet2DModel) -> UNet2DModel:
    """Return the same network with the same weights as diffusers alone makes it, without our dropout."""
    same = cast(UNet2DModel, UNet2DModel.from_config(unet.config))
    same.load_state_dict(unet.state_dict())
    same.to(unet.device)  # type: ignore[arg-type]
    return same


def theirs(recipe: Recipe, data: Path, device: str, clock: Clock | None = None) -> Iterator[object]:
    """Set up and run the example's loop. Yields the losses, which its progress bar shows."""
    network = plain(cast(UNet2DModel, new_state(recipe, device).network.unet)).train()
    parameters = list(network.parameters())
    noising = DDPMScheduler(num_train_timesteps=1000)
    optimizer = torch.optim.AdamW(
        parameters,
        lr=recipe.optimizer.lr,
        betas=(recipe.optimizer.beta1, recipe.optimizer.beta2),
        weight_decay=recipe.optimizer.weight_decay,
        eps=recipe.optimizer.eps,
    )
    schedule = get_scheduler("cosine", optimizer, num_warmup_steps=500, num_training_steps=100_000)
    ema = EMAModel(parameters, decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=3 / 4)
    pictures = Pictures(data / "pictures", recipe.training.flip)
    loaded = forever(DataLoader(pictures, recipe.training.batch_size, shuffle=True, num_workers=0))
    if clock:
        listen(clock, network, optimizer)
        loaded = timed(loaded, clock)

    for batch in loaded:
        images = batch.to(device)
        noise = torch.randn(images.shape, device=device)
        t = torch.randint(0, 1000, (len(images),), device=device)
        noisy = noising.add_noise(images, noise, t)  # type: ignore[arg-type]
        with torch.autocast(device, torch.bfloat16, enabled=recipe.training.precision == "bf16"):
            predicted = network(noisy, t).sample
        loss = F.mse_loss(predicted.float(), noise)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        ema.step(parameters)
        yield loss.item()


class Pictures(torch.utils.data.Dataset[Tensor]):
    """The image files of a folder, decoded and transformed when asked for, as in the example."""

    def __init__(self, folder: Path, flip: bool) -> None:
        self.paths = sorted(folder.iterdir())
        self.transform = transforms.Compose(
            [
                transforms.Resize(SIZE, interpolation=transforms.InterpolationMode.BILINEAR),
                transforms.CenterCrop(SIZE),
                *([transforms.RandomHorizontalFlip()] if flip else []),
                transforms.ToTensor(),
                transforms.Normalize([0.5], [0.5]),
            ]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        with Image.open(self.paths[index]) as image:
            return cast(Tensor, self.transform(image.convert("RGB")))


def forever(loader: DataLoader[Tensor]) -> Iterator[Tensor]:
    """Yield batches, epoch after epoch."""
    while True:
        yield from loader


REST = "average weights, and the rest"


def step_parts(make: Any, case: Case, data: Path, device: str) -> dict[str, float]:
    """Return the milliseconds that each part of a step takes."""
    clock = Clock()
    steps = make(case.recipe, data, device, clock)
    next(steps)
    clock.mark(REST)
    clock.seconds.clear()
    for _ in range(case.steps):
        next(steps)
    clock.mark(REST)
    return {name: seconds * 1000 / case.steps for name, seconds in clock.seconds.items()}


def timed(images: Iterator[Any], clock: Clock) -> Iterator[Any]:
    """Pass batches on and mark on the clock how long each took to load."""
    while True:
        clock.mark(REST)
        batch = next(images)
        clock.mark("load images")
        yield batch


def listen(clock: Clock, network: nn.Module, optimizer: Optimizer) -> None:
    """Mark on the clock what can be seen of a step from outside the loop."""
    network.register_forward_pre_hook(lambda *_: clock.mark("draw and add noise"))
    network.register_forward_hook(lambda *_: clock.mark("forward"))
    register_multi_grad_hook(list(network.parameters()), lambda *_: clock.mark("loss, backward"))
    optimizer.register_step_pre_hook(lambda *_: clock.mark("average over ranks, sanitise or clip gradients"))
    optimizer.register_step_post_hook(lambda *_: clock.mark("optimizer"))
