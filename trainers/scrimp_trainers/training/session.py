"""One repeat while it is trained: its state, its clock and its files. `run.py` tells the story."""

import io
import json
import math
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from scrimp_trainers.codecs.cache import latent_batches, open_latents
from scrimp_trainers.common import checksums, environment, heartbeat, metrics_log, parts, ranks
from scrimp_trainers.common.errors import DeviceOutOfMemory, UserError
from scrimp_trainers.common.files import write_atomic
from scrimp_trainers.common.metrics_log import MetricsRow
from scrimp_trainers.data.dataset import Dataset
from scrimp_trainers.data.loading import batches
from scrimp_trainers.export import export_model, is_current
from scrimp_trainers.metrics import cost
from scrimp_trainers.recipe.recipe import Recipe
from scrimp_trainers.recipe.scoring import Scoring
from scrimp_trainers.sampling import GRID_IMAGES, generate, image_grid
from scrimp_trainers.techniques import sparsity
from scrimp_trainers.training import checkpoint, expected_cost, memory
from scrimp_trainers.training.inputs import NOTHING_PREPARED, Prepared, write_artifacts
from scrimp_trainers.training.loop import Step, read_losses, refuse_explosion, train
from scrimp_trainers.training.state import count_steps, initial_state, learning_rate

MASK_SCHEDULE = "training.kimg, which sets the masks' schedule,"
"""How a checkpoint names the length of a training of which anything but its end depends on it."""
TICKS = 100
"""Lines a run, about."""
LOOK_STEPS, LOOK_IMAGES = 16, 1000
"""Losses are read, and a checkpoint may be written, every so many steps and images: seldom enough to cost nothing."""


@dataclass
class Progress:
    """What a checkpoint holds besides the state of training."""

    seconds: float = 0.0
    """Time spent on training and scoring, over all attempts."""
    lowest: float = float("inf")
    """Lowest mean loss of a tick."""
    best: float | None = None
    """Best value of the objective."""
    loss_sum: float = 0.0
    """Sum of the losses since the last line."""
    loss_steps: int = 0
    """Their number."""
    lines: list[MetricsRow] = field(default_factory=list)
    """What metrics.jsonl held."""
    environments: list[dict[str, Any]] = field(default_factory=list)
    """What trained each attempt, from which `images` on."""


class Session:
    """The training of one repeat in this process: its state, its clock and its files.

    In a process group every rank has one, and that of rank 0 writes.

    Parameters
    ----------
    prepared
        What the recipe's techniques need, made before.
    alone
        Train in this process by itself although there is a process group.
    """

    def __init__(
        self,
        recipe: Recipe,
        dataset: Dataset,
        folder: Path,
        seed: int,
        prepared: Prepared = NOTHING_PREPARED,
        scoring: Scoring | None = None,
        *,
        device: torch.device,
        alone: bool = False,
    ) -> None:
        self.recipe = recipe
        self.dataset = dataset
        self.folder = folder
        self.prepared = prepared
        self.scoring = scoring
        self.device = device
        self.rank, self.world = (0, 1) if alone else ranks.rank_and_world()
        self.progress, self.began = Progress(), time.monotonic()
        self.saved, self.told = self.began, (0, self.began)
        self.microbatch = recipe.training.batch_size // self.world  # until a step says what fits
        self.sound = True  # whether checkpoint/last, if there is one, may become checkpoint/previous
        manifest, codec = dataset.manifest, self.prepared.codec
        self.state = initial_state(
            recipe,
            image_size=manifest.size // codec.factor if codec else manifest.size,
            channels=codec.channels if codec else manifest.channels,
            classes=len(manifest.classes or []),
            seed=seed,
            device=self.device,
        )
        self.dense_flops, self.flops, self.layers = expected_cost.network_flops(recipe, self.state.network)
        self.scorer = None
        if scoring:
            from scrimp_trainers.metrics.score import Scorer  # its extractors take seconds to import

            self.scorer = Scorer(dataset, scoring, self.device, self.rank, self.world)

    def resume(self) -> str:
        """Load the last sound checkpoint if there is one, and forget the lines after it.

        Returns what a person should hear of it: what was damaged, or that other code or libraries train from here on.
        """
        checkpoints = [self.folder / "checkpoint" / name for name in ("last", "previous", "best")]
        saved, damage = checkpoint.restore(checkpoints, self.state, self._identity())
        self.sound = not damage
        self._refuse_longer()
        self.progress = Progress(**saved or {})
        written, lost = metrics_log.scan_rows(self._metrics)
        self.progress.seconds = max([self.progress.seconds, *(line["seconds"] for line in written)])
        if not saved and not damage and any("rung" in line for line in written):
            damage = f"{self.folder / 'checkpoint'}: no checkpoint is left; training starts again"
        other = self._note_environment()
        if self.rank == 0:
            write_atomic(self.folder / "recipe.yaml", self.recipe.to_yaml())
            metrics_log.write_rows(self._metrics, self.progress.lines)
            write_artifacts(self.prepared, self.dataset, self.folder)
            if self.layers:
                sparsity.write_layer_table(self.layers, self.folder / "layers.csv")
        if self.world > 1:
            self._agree()  # rank 0 may write the next checkpoint only when all have read this one
        self.told = self.state.images, time.monotonic()
        heartbeat.pause()  # the caller hears first of what is behind
        return "; ".join(part for part in (damage, lost, other) if part)

    def steps(self) -> Iterator[Step]:
        """Train from the state on."""
        training = self.recipe.training
        mine = {"device": self.device, "rank": self.rank, "world": self.world}
        how = {
            "batch_size": training.batch_size,
            "seed": self.state.seed,
            "flip": training.flip,
            "start": self.state.step,
            "kept": self.prepared.kept,
            "chances": self.prepared.chances,
            **mine,
        }
        if self.prepared.codec:
            latents = open_latents(self.dataset, self.recipe.codec, self.device)
            images = latent_batches(latents, self.dataset.entries("train")[1], **how)
        else:
            images = batches(self.dataset, **how)
        return train(self.recipe, self.state, images, self.prepared, **mine)

    def marks(self, rungs_kimg: Sequence[float] = ()) -> list[tuple[int, float | None]]:
        """Return after how many images a line is still due, in order, each with its rung if it is one.

        The end of the recipe's training always is one.
        """
        batch = self.recipe.training.batch_size
        total = self.recipe.training.kimg
        tick = max(1, round(total / TICKS))
        marks: dict[int, float | None] = {}
        for kimg in range(tick, math.floor(total) + 1, tick):
            marks[math.ceil(kimg * 1000 / batch) * batch] = None
        for rung in [*(rung for rung in rungs_kimg if rung < total), total]:
            marks[math.ceil(rung * 1000 / batch) * batch] = rung
        written = self.progress.lines[-1]["images"] if self.progress.lines else -1
        return sorted((images, rung) for images, rung in marks.items() if images > written)

    def train_to(self, images: int, steps: Iterator[Step], checkpoint_seconds: float) -> None:
        """Take steps until so many images have been seen."""
        look = max(LOOK_STEPS, math.ceil(LOOK_IMAGES / self.recipe.training.batch_size))
        taken: list[Step] = []
        heartbeat.beat()
        while self.state.images < images:
            taken.append(self._take(steps))
            self.microbatch = taken[-1].microbatch
            if self.state.step % look == 0 or self.state.images >= images:
                # One by one, so that the sum does not depend on where a run was interrupted.
                for loss in read_losses(taken, self.world):
                    self.progress.loss_sum += loss
                self.progress.loss_steps += len(taken)
                taken.clear()
                heartbeat.beat()
                if time.monotonic() - self.saved > checkpoint_seconds:
                    self.save("last")

    def _take(self, steps: Iterator[Step]) -> Step:
        try:
            return next(steps)
        except torch.OutOfMemoryError:
            pass  # until this is over, the error holds what the step had taken
        raise memory.out_of_memory_error(self.recipe, memory.measure_memory(self.recipe, self.state, self.device))

    def line(self) -> MetricsRow:
        """Sum up the training since the last line."""
        progress, images = self.progress, self.state.images
        loss = progress.loss_sum / progress.loss_steps
        refuse_explosion(self.state.step, loss, progress.lowest)
        progress.lowest, progress.loss_sum, progress.loss_steps = min(loss, progress.lowest), 0.0, 0
        (before, then), self.told = self.told, (images, time.monotonic())
        return {
            "kimg": images / 1000,
            "images": images,
            "step": self.state.step,
            "loss": loss,
            "lr": learning_rate(self.recipe.optimizer, images),
            "microbatch": self.microbatch,
            "seconds": self._seconds(),
            "nonzero_fraction": self.state.masks.nonzero_fraction if self.state.masks else 1.0,
            "train_flops": self._train_flops(),
            "images_per_second": (images - before) / (self.told[1] - then),
        }

    def score(self, rung: float) -> MetricsRow:
        """Sample from the averaged weights, keep a grid, and score the samples if that is asked for."""
        count = self.scoring.samples if self.scoring else GRID_IMAGES
        shown: list[Tensor] = []
        drawn = generate(
            self.state.ema,
            self.recipe,
            count,
            seed=self.state.seed,
            batch_size=self.microbatch,  # what fits in training fits here
            rank=self.rank,
            world=self.world,
            codec=self.prepared.codec,
        )
        values: MetricsRow = {}
        if self.scorer:
            try:
                scores = self.scorer.score(_keep_first(drawn, shown), classes=self.state.ema.classes)
            except torch.OutOfMemoryError as error:
                size = self.scorer.scoring.batch_size
                raise DeviceOutOfMemory(
                    f"scoring.batch_size {size} does not fit beside what is trained; halve it"
                ) from error
            values = dict(scores.values)
            pairs = torch.stack([scores.samples, scores.nearest], 1).flatten(0, 1)
            self._picture(self.folder / "neighbours.png", pairs)
        else:
            for _ in _keep_first(drawn, shown):
                pass
        self._picture(self.folder / "samples" / f"{rung:g}.png", torch.cat(shown))
        self._picture(self.folder / "samples.png", torch.cat(shown))
        seconds = self._seconds()
        spent = cost.cost(
            self.state.ema,
            self.flops,
            train_flops=self._train_flops(),
            nfe=self.recipe.nfe,
            samples=count,
            seconds=seconds,
            devices=self.world,
        )
        self.told = self.state.images, time.monotonic()
        return values | spent | {"seconds": seconds}

    def write(self, line: MetricsRow) -> None:
        """Append a line to metrics.jsonl."""
        self.progress.lines.append(line)
        if self.rank == 0:
            metrics_log.append_row(self._metrics, line)

    def rewrite_last(self, line: MetricsRow) -> None:
        """Replace the last line of metrics.jsonl."""
        self.progress.lines[-1] = line
        if self.rank == 0:
            metrics_log.write_rows(self._metrics, self.progress.lines)

    def best(self, line: MetricsRow, objective: str | None, direction: str) -> MetricsRow:
        """Return the best value of the objective at any rung so far, as `<objective>_best`, beside that of this rung.

        The last model's score is what a recipe gives; the best of many snapshots is a choice by the score itself.
        """
        value = line.get(objective) if objective else None
        if not isinstance(value, float) or not math.isfinite(value):
            return {}
        known = self.progress.best
        better = {"minimize": min, "maximize": max}[direction]
        return {f"{objective}_best": value if known is None else better(known, value)}

    def keep_best(self, line: MetricsRow, objective: str | None) -> None:
        """Write `checkpoint/best` if this rung is better than ever."""
        best = line.get(f"{objective}_best")
        if best is not None and best != self.progress.best:
            self.progress.best = float(best)
            self.save("best")

    def save(self, name: Literal["last", "best"]) -> None:
        """Write a checkpoint. The last one becomes `checkpoint/previous`, unless it was found damaged."""
        self.progress.seconds, self.began, self.saved = self._seconds(), time.monotonic(), time.monotonic()
        if self.rank == 0:
            folder, extra = self.folder / "checkpoint", asdict(self.progress)
            previous = folder / "previous" if name == "last" and self.sound else None
            checkpoint.save(folder / name, self.state, self._identity(), extra, previous)
        self.sound = self.sound or name == "last"

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Stop the clock: what the caller does with a line is not the repeat's time."""
        stopped = time.monotonic()
        heartbeat.pause()
        yield
        away = time.monotonic() - stopped
        self.began, self.told = self.began + away, (self.told[0], self.told[1] + away)

    def export(self, line: MetricsRow) -> None:
        """Leave the model behind, with the scores of the last line, in the place of an earlier one."""
        heartbeat.beat()
        folder = self.folder / "model"
        if self.rank == 0:
            what = self.state.ema, self.recipe, self.dataset.manifest, line
            if folder.exists() and not is_current(folder, *what):
                shutil.rmtree(folder)
            if not folder.exists():
                export_model(folder, *what)
        if self.world > 1:
            dist.barrier()  # when this returns on any rank, all files are there
        heartbeat.pause()

    @property
    def _metrics(self) -> Path:
        return self.folder / "metrics.jsonl"

    def _agree(self) -> None:
        """Wait for all ranks; refuse to train where they have read different checkpoints."""
        steps = torch.tensor([self.state.step, -self.state.step], device=self.device)
        dist.all_reduce(steps, dist.ReduceOp.MAX)
        if steps.sum():
            raise RuntimeError("the ranks read different checkpoints")

    def _seconds(self) -> float:
        return self.progress.seconds + time.monotonic() - self.began

    def _train_flops(self) -> float:
        return expected_cost.train_flops(self.recipe, self.state.network, self.dense_flops, self.flops, self.state.step)

    def _identity(self) -> dict[str, Any]:
        """Return what must stay the same. A run may become longer, unless a schedule is spread over its length."""
        recipe, content = self.recipe.model_dump(mode="json"), self.dataset.manifest.content_hash
        kimg = recipe["training"].pop("kimg")
        recipe["parts"] = parts.digests(self.recipe.parts)
        moving = {MASK_SCHEDULE: kimg} if self.recipe.sparsity.moves else {}
        return {**recipe, **moving, "dataset": content, "seed": self.state.seed}

    def _note_environment(self) -> str:
        """Record what trains from here on, and say what is not as it was."""
        if self.state.step == count_steps(self.recipe.training):
            return ""
        now = environment.describe_environment(self.dataset.manifest.content_hash)
        earlier = self.progress.environments
        changes = environment.describe_changes(earlier[-1], now) if earlier else ""
        earlier.append({"images": self.state.images, **now})
        if self.rank == 0:
            record = checksums.seal({"attempts": earlier})
            write_atomic(self.folder / "environments.json", json.dumps(record, indent=2) + "\n")
        return f"changed since the last attempt: {changes}" if changes else ""

    def _refuse_longer(self) -> None:
        training = self.recipe.training
        if self.state.step > count_steps(training):
            raise UserError(
                f"{self.folder}: has been trained for {self.state.images / 1000:g} kimg, more than training.kimg "
                f"{training.kimg:g}; name another folder"
            )

    def _picture(self, path: Path, images: Tensor) -> None:
        if self.rank == 0 and len(images):
            content = io.BytesIO()
            image_grid(images).save(content, "PNG")
            write_atomic(path, content.getvalue())


def _keep_first(drawn: Iterable[Tensor], shown: list[Tensor]) -> Iterator[Tensor]:
    """Pass batches on and keep the first images for a grid."""
    for images in drawn:
        room = GRID_IMAGES - sum(len(part) for part in shown)
        shown.append(images[:room].cpu())
        yield images
