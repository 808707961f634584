"""One repeat in training: its state, its clock and its files. `run.py` calls these methods in order."""

import io
import json
import math
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor

from scrimp_trainers.common import checksums, environment, heartbeat, metrics_log, parts, ranks
from scrimp_trainers.common.device import devices_held
from scrimp_trainers.common.errors import DeviceOutOfMemory, UserError
from scrimp_trainers.common.files import write_atomic
from scrimp_trainers.common.metrics_log import SELECTED, MetricsRow
from scrimp_trainers.data.dataset import Dataset
from scrimp_trainers.export import export_model, is_current
from scrimp_trainers.metrics import cost
from scrimp_trainers.metrics.names import scores_captions
from scrimp_trainers.networks.denoiser import Denoiser
from scrimp_trainers.recipe.recipe import Recipe
from scrimp_trainers.recipe.scoring import Scoring
from scrimp_trainers.sampling import GRID_IMAGES, generate_items, image_grid, neighbour_grid, rendered
from scrimp_trainers.techniques import sparsity
from scrimp_trainers.training import checkpoint, expected_cost, memory, snapshots
from scrimp_trainers.training.checkpoint_writer import CheckpointWriter
from scrimp_trainers.training.inputs import NOTHING_PREPARED, Prepared, draw_batches, write_artifacts
from scrimp_trainers.training.loop import Step, read_losses, refuse_explosion, train
from scrimp_trainers.training.microbatch import Microbatch
from scrimp_trainers.training.state import count_steps, initial_state, learning_rate

if TYPE_CHECKING:  # importing it takes seconds
    from scrimp_trainers.metrics.score import Scorer

MASK_SCHEDULE = "training.kimg, which sets the masks' schedule,"
"""How a checkpoint's identity names the length of training, if the schedule of the masks depends on it."""
TICKS = 100
"""Approximate number of rows in `metrics.jsonl`."""
SHOWN_CAPTIONS = 64
"""Captions of training images that an exported model keeps, of which it draws samples where none are given."""
CHECK_INTERVAL_STEPS = 16
CHECK_INTERVAL_IMAGES = 1000
"""Losses are read, and a checkpoint may be written, after at least this many steps and images, which costs little."""


@dataclass
class Progress:
    """What a checkpoint stores besides the training state, under these names."""

    seconds: float = 0.0
    """Time spent on training and scoring, over all attempts."""
    lowest: float = float("inf")
    """Lowest mean loss of any row."""
    best: float | None = None
    """Best value of the objective."""
    best_kimg: float = 0.0
    """Where it was measured."""
    loss_sum: float = 0.0
    """Sum of the losses since the last row."""
    loss_steps: int = 0
    """Number of steps since the last row."""
    lines: list[MetricsRow] = field(default_factory=list)
    """The rows of `metrics.jsonl`."""
    environments: list[dict[str, Any]] = field(default_factory=list)
    """Code, libraries and data of each attempt, and from which number of `images` on."""

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> "Progress":
        """Return what `to_json` was called on."""
        lines = [MetricsRow.from_entries(entries) for entries in saved["lines"]]
        return cls(**{**saved, "lines": lines})

    def to_json(self) -> dict[str, Any]:
        """Return it as a checkpoint stores it."""
        return vars(self) | {"lines": [row.to_entries() for row in self.lines]}


class Session:
    """The training of one repeat in this process: its state, its clock and its files.

    In a process group every rank has a session; that of rank 0 writes the files.

    Parameters
    ----------
    prepared
        What the recipe's techniques need, from `precompute.prepare`.
    rung_samples
        How many samples are scored before the end of the training; None: as many as there.
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
        rung_samples: int | None = None,
        device: torch.device,
    ) -> None:
        self.recipe = recipe
        self.dataset = dataset
        self.folder = folder
        self.prepared = prepared
        self.scoring = scoring
        self.rung_samples = rung_samples
        self.device = device
        self.rank, self.world = ranks.rank_and_world()

        # The clock, all in `time.monotonic`.
        now = time.monotonic()
        self.clock_start = now  # `progress.seconds` counts the time before it
        self.rate_start = (0, now)  # images and time from which images per second are measured

        self.progress = Progress()
        self.writer = CheckpointWriter()
        self.microbatch = Microbatch(recipe.training, recipe.training.batch_size // self.world)
        self.snapshots_due = snapshots.due(recipe)
        self.last_is_intact = True  # whether checkpoint/last, if it exists, may become checkpoint/previous

        manifest = dataset.manifest
        shape = prepared.codec.shape(dataset.modality.shape)
        self.state = initial_state(
            recipe,
            image_size=shape[-1],
            channels=shape[0],
            classes=len(manifest.classes or []),
            seed=seed,
            device=self.device,
        )
        _require_width(self.state.network, recipe, prepared.conditioner)
        for network in (self.state.network, self.state.ema):
            network.tell_lengths(manifest.lengths)
        dense_flops, self.flops, self.layers = expected_cost.network_flops(
            recipe, self.state.network, manifest.mean_length
        )
        self.step_flops = expected_cost.step_flops(recipe, self.state.network, dense_flops, self.flops)

        self.scorer = None
        self.tokens = None
        if scoring:
            from scrimp_trainers.metrics.score import Scorer  # takes seconds to import

            if scores_captions(scoring, prepared.conditioner is not None) and prepared.conditioner:
                self.tokens = prepared.conditioner.tokens(scoring.samples)
            self.scorer = Scorer(dataset, scoring, self.device, self.rank, self.world)

    def resume(self) -> str:
        """Load the last intact checkpoint if there is one, and drop the rows written after it.

        Returns a message for the user: what was damaged, and whether code or libraries have changed; empty if neither.
        """
        best = self._restore_best() if self.recipe.training.select == "best" else None
        checkpoints = [self.folder / "checkpoint" / name for name in ("last", "previous", "best")]
        saved, damage = checkpoint.restore(checkpoints, self.state, self._identity(), self.recipe.fields_at_default)
        self.last_is_intact = not damage
        self._refuse_if_trained_longer()
        if saved:
            self.progress = Progress.from_json(saved)
        if best:
            # Its rung may lie after the checkpoint from which training resumes.
            self.progress.best = best.best
            self.progress.best_kimg = best.best_kimg
        elif self.recipe.training.select == "best" and self.progress.best is not None:
            raise UserError(f"{self._best}: missing, so the best model is lost; remove {self.folder} to train it again")

        # Time spent after the checkpoint counts too.
        written, damaged_rows = metrics_log.scan_rows(self._metrics)
        self.progress.seconds = max([self.progress.seconds, *(row.seconds for row in written)])
        if not saved and not damage and any(row.rung is not None for row in written):
            damage = f"{self.folder / 'checkpoint'}: no checkpoint is left; training starts again"
        changes = self._record_environment()

        if self.rank == 0:
            write_atomic(self.folder / "recipe.yaml", self.recipe.to_yaml())
            metrics_log.write_rows(self._metrics, self.progress.lines)
            write_artifacts(self.prepared, self.dataset, self.folder)
            snapshots.drop_later(self.folder, self.state.images)
            if self.layers:
                sparsity.write_layer_table(self.layers, self.folder / "layers.csv")
        if self.world > 1:
            self._require_same_step()  # rank 0 must not write the next checkpoint before all ranks have read this one
        self.rate_start = (self.state.images, time.monotonic())
        heartbeat.pause()  # the caller first processes the result
        return "; ".join(part for part in (damage, damaged_rows, changes) if part)

    def steps(self) -> Iterator[Step]:
        """Return the training loop, which goes on from the current state."""
        batches = draw_batches(
            self.recipe, self.dataset, self.prepared, seed=self.state.seed, start=self.state.step, device=self.device
        )
        return train(
            self.recipe,
            self.state,
            batches,
            self.prepared,
            microbatch=self.microbatch,
            device=self.device,
            rank=self.rank,
            world=self.world,
        )

    def due_rows(self, rungs_kimg: Sequence[float] = ()) -> list[tuple[int, float | None]]:
        """Return the numbers of images after which rows are still due, in order, each with its rung in kimg or None.

        The end of the recipe's training is always a rung.
        """
        batch_size = self.recipe.training.batch_size
        total_kimg = self.recipe.training.kimg
        tick_kimg = max(1, round(total_kimg / TICKS))

        def images_at(kimg: float) -> int:
            """Round up to whole batches."""
            return math.ceil(kimg * 1000 / batch_size) * batch_size

        rung_at: dict[int, float | None] = {}
        for kimg in range(tick_kimg, math.floor(total_kimg) + 1, tick_kimg):
            rung_at[images_at(kimg)] = None
        for rung in rungs_kimg:
            if rung < total_kimg:
                rung_at[images_at(rung)] = float(rung)
        rung_at[images_at(total_kimg)] = total_kimg

        last_images = self.progress.lines[-1].images if self.progress.lines else -1
        return sorted((images, rung) for images, rung in rung_at.items() if images > last_images)

    def train_to(self, images: int, steps: Iterator[Step], checkpoint_seconds: float) -> None:
        """Take steps until `images` images have been seen.

        Checkpoints are begun every `checkpoint_seconds`, or less often if they cost much, and written while training
        goes on. If one fails, its error is raised here a few steps later, or by `save`.
        """
        check_interval_images = math.ceil(CHECK_INTERVAL_IMAGES / self.recipe.training.batch_size)
        check_interval = max(CHECK_INTERVAL_STEPS, check_interval_images)
        taken: list[Step] = []
        heartbeat.beat()
        while self.state.images < images:
            step = self._next_step(steps)
            taken.append(step)
            self._keep_snapshot_if_due()

            if self.state.step % check_interval == 0 or self.state.images >= images:
                # Add one by one, so that the sum does not depend on where a run was interrupted.
                for loss in read_losses(taken, self.world):
                    self.progress.loss_sum += loss
                self.progress.loss_steps += len(taken)
                taken.clear()
                self.microbatch.size = ranks.least(self.microbatch.size, self.device)
                heartbeat.beat()
                if self.rank == 0 and self.writer.due(checkpoint_seconds):
                    self._begin_save("last")

    def _keep_snapshot_if_due(self) -> None:
        if self.state.power and self.rank == 0 and self.state.images in self.snapshots_due:
            snapshots.write(self.folder, self.state.power, self.state.images)
            heartbeat.beat()

    def _next_step(self, steps: Iterator[Step]) -> Step:
        try:
            return next(steps)
        except torch.OutOfMemoryError:
            pass  # measure outside this block: until it ends, the exception keeps the step's tensors alive
        raise memory.out_of_memory_error(self.recipe, memory.measure_memory(self.recipe, self.state, self.device))

    def metrics_row(self, rung: float | None = None) -> MetricsRow:
        """Summarise the training since the last row, at a rung or between two."""
        progress = self.progress
        images = self.state.images
        loss = progress.loss_sum / progress.loss_steps
        refuse_explosion(self.state.step, loss, progress.lowest)
        progress.lowest = min(loss, progress.lowest)
        progress.loss_sum = 0.0
        progress.loss_steps = 0

        images_before, time_before = self.rate_start
        now = time.monotonic()
        self.rate_start = (images, now)
        return MetricsRow(
            kimg=images / 1000,
            images=images,
            step=self.state.step,
            loss=loss,
            lr=learning_rate(self.recipe.optimizer, images),
            microbatch=self.microbatch.size,
            seconds=self._seconds(),
            nonzero_fraction=self.state.masks.nonzero_fraction if self.state.masks else 1.0,
            train_flops=self._train_flops(),
            images_per_second=(images - images_before) / (now - time_before),
            rung=rung,
        )

    def score_rung(self, row: MetricsRow) -> MetricsRow:
        """Sample from the averaged weights, write a grid of samples, and score them if there is a `scoring`.

        Returns the rung's row with scores and costs.
        """
        count = self._samples_of(row)
        shown: list[Tensor] = []
        statistics: list[Tensor] = []
        items = generate_items(
            self.state.ema,
            self.recipe,
            count,
            seed=self.state.seed,
            rank=self.rank,
            world=self.world,
            codec=self.prepared.codec,
            conditioner=self.prepared.conditioner,
        )
        samples = rendered(items, self.dataset.modality, statistics)
        values: dict[str, float | str] = {}
        if self.scorer:
            values = self._compare(self.scorer, _keep_first(samples, shown), statistics, count)
        else:
            for _ in _keep_first(samples, shown):
                pass
        grid = image_grid(torch.cat(shown))
        self._write_grid(self.folder / "samples" / f"{row.rung:g}.png", grid)
        self._write_grid(self.folder / "samples.png", grid)

        seconds = self._seconds()
        costs = self._costs(count, seconds)
        self.rate_start = (self.state.images, time.monotonic())
        return replace(row, seconds=seconds, scores=row.scores | values | costs)

    def _compare(
        self, scorer: "Scorer", samples: Iterable[Tensor], statistics: list[Tensor], count: int
    ) -> dict[str, float | str]:
        """Return the scores of `count` samples; write a grid of some with their nearest training images."""
        tokens = None if self.tokens is None else self.tokens[:count]
        try:
            scores = scorer.score(samples, self.state.ema.classes, statistics, tokens)
        except torch.OutOfMemoryError as error:
            raise DeviceOutOfMemory(
                f"scoring: to compare {count} samples with the dataset's images takes more memory than training "
                "leaves on the device; set scoring.samples lower"
            ) from error
        if len(scores.samples):
            self._write_grid(self.folder / "neighbours.png", neighbour_grid(scores.samples, scores.nearest))
        return scores.values

    def _costs(self, count: int, seconds: float) -> dict[str, float]:
        """Return what the training has cost so far, with the reference and proxy that it needed."""
        costs = cost.cost(
            self.state.ema,
            self.flops,
            nfe=self.recipe.nfe,
            samples=self.scoring.samples if self.scoring else count,
            seconds=seconds,
            devices=devices_held(),
        )
        if self.prepared.class_weights is not None:
            costs["prepared_device_hours"] = self.prepared.device_hours
            costs["device_hours"] += self.prepared.device_hours
        return costs

    def _samples_of(self, row: MetricsRow) -> int:
        """Return how many samples are drawn of the model at a rung."""
        if self.scoring is None:
            return GRID_IMAGES
        if self.rung_samples is None or row.rung == self.recipe.training.kimg:
            return self.scoring.samples
        return self.rung_samples

    def write_row(self, row: MetricsRow) -> None:
        """Append a row to metrics.jsonl."""
        self.progress.lines.append(row)
        if self.rank == 0:
            metrics_log.append_row(self._metrics, row)

    def replace_last_row(self, row: MetricsRow) -> None:
        """Replace the last row of metrics.jsonl."""
        self.progress.lines[-1] = row
        if self.rank == 0:
            metrics_log.write_rows(self._metrics, self.progress.lines)

    def with_best(self, row: MetricsRow, objective: str | None, direction: str) -> MetricsRow:
        """Add the objective's best value at this rung or any before, as `<objective>_best`, if it has a value here.

        A recipe's result is the score of its last model: to take the best of many snapshots is to choose by the score.
        A score of fewer samples than the last one's is not compared with any other.
        """
        if self.scoring and self._samples_of(row) < self.scoring.samples:
            return row
        value = row.value(objective) if objective else math.nan
        best = self.progress.best
        best_kimg = self.progress.best_kimg
        better_of = {"minimize": min, "maximize": max}[direction]
        if math.isfinite(value) and (best is None or better_of(best, value) != best):
            best = value
            best_kimg = row.kimg

        scores: dict[str, float | str] = {}
        if best is not None and math.isfinite(value):
            scores[f"{objective}_best"] = best
        if best is not None and self.recipe.training.select == "best":
            count = sum(math.isfinite(each.value(str(objective))) for each in [*self.progress.lines, row])
            scores[SELECTED] = f"chosen as the best of {count} evaluations by {objective}, at {best_kimg:g} kimg"
        return replace(row, scores=row.scores | scores)

    def load_best(self, objective: str) -> MetricsRow:
        """Load `checkpoint/best`, and return its row, which says of how many evaluations it was chosen as the best.

        The costs are those of the whole training, without which nothing could have been chosen.

        Raises
        ------
        UserError
            If it is damaged, or no rung has a score.
        """
        best = self._restore_best()
        if best is None:
            raise UserError(f"{self.folder}: no rung has a finite {objective}, so training.select: best has no choice")

        chosen = best.lines[-1]
        last = self.progress.lines[-1]
        whole = {name: last.scores[name] for name in ("device_hours", SELECTED)}
        return replace(chosen, seconds=last.seconds, train_flops=last.train_flops, scores=chosen.scores | whole)

    def _restore_best(self) -> Progress | None:
        """Load `checkpoint/best`; return what is stored with it, or None if there is none."""
        saved, damage = checkpoint.restore([self._best], self.state, self._identity(), self.recipe.fields_at_default)
        if damage:
            raise UserError(f"{damage.partition('; ')[0]}; the best model is lost, remove {self.folder} to train again")
        return Progress.from_json(saved) if saved else None

    def save_if_best(self, row: MetricsRow, objective: str | None) -> None:
        """Write `checkpoint/best` if this rung is the best so far."""
        best = row.value(f"{objective}_best")
        if math.isfinite(best) and best != self.progress.best:
            self.progress.best = best
            self.progress.best_kimg = row.kimg
            self.save("best")

    def save(self, name: Literal["last", "best"]) -> None:
        """Write a checkpoint. The old `checkpoint/last` becomes `checkpoint/previous`, unless it is damaged."""
        self._begin_save(name)
        self.writer.wait()

    def close(self) -> None:
        """Wait for the checkpoint that is being written: nothing writes to the folder afterwards."""
        self.writer.close()

    def _begin_save(self, name: Literal["last", "best"]) -> None:
        """Begin to write a checkpoint of this moment."""
        self.progress.seconds = self._seconds()
        self.clock_start = time.monotonic()

        if self.rank == 0:
            folder = self.folder / "checkpoint"
            previous = None
            if name == "last" and self.last_is_intact:
                previous = folder / "previous"
            self.writer.begin(folder / name, self.state, self._identity(), self.progress.to_json(), previous)

        if name == "last":
            self.last_is_intact = True

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Stop the clock: what the caller does with a row does not count as the repeat's time."""
        stopped = time.monotonic()
        heartbeat.pause()
        yield
        pause = time.monotonic() - stopped
        self.clock_start += pause
        images, rate_start_time = self.rate_start
        self.rate_start = (images, rate_start_time + pause)

    def export(self, row: MetricsRow) -> None:
        """Write the model, with the scores of the last row; it replaces an outdated one."""
        heartbeat.beat()
        folder = self.folder / "model"
        if self.rank == 0:
            content = (self.state.ema, self.recipe, self.dataset.manifest, row.to_entries())
            if folder.exists() and not is_current(folder, *content):
                shutil.rmtree(folder)
            if not folder.exists():
                texts = self.prepared.conditioner
                export_model(folder, *content, captions=texts.captions[:SHOWN_CAPTIONS] if texts else ())
        if self.world > 1:
            dist.barrier()  # all files exist when this method returns on any rank
        heartbeat.pause()

    @property
    def _best(self) -> Path:
        return self.folder / "checkpoint" / "best"

    @property
    def _metrics(self) -> Path:
        return self.folder / "metrics.jsonl"

    def _require_same_step(self) -> None:
        """Wait for all ranks, and require that they have read the same checkpoint."""
        # The largest step plus the largest negated step is zero if all are equal.
        steps = torch.tensor([self.state.step, -self.state.step], device=self.device)
        dist.all_reduce(steps, dist.ReduceOp.MAX)
        if steps.sum():
            raise RuntimeError("the ranks read different checkpoints")

    def _seconds(self) -> float:
        """Return the time spent so far, over all attempts."""
        return self.progress.seconds + time.monotonic() - self.clock_start

    def _train_flops(self) -> float:
        return expected_cost.train_flops(self.recipe, self.state.network, *self.step_flops, self.state.step)

    def _identity(self) -> dict[str, Any]:
        """Return what must be the same to resume. The length may grow, unless the masks' schedule depends on it."""
        identity = self.recipe.model_dump(mode="json")
        kimg = identity["training"].pop("kimg")
        identity["parts"] = parts.digests(self.recipe.parts)  # their content counts, not their place
        if self.recipe.sparsity.moves:
            identity[MASK_SCHEDULE] = kimg
        identity["dataset"] = self.dataset.manifest.content_hash
        identity["seed"] = self.state.seed
        return identity

    def _record_environment(self) -> str:
        """Record the code, libraries and data of this attempt, and return what differs from the last one."""
        if self.state.step == count_steps(self.recipe.training):
            return ""

        now = environment.describe_environment(self.dataset.manifest.content_hash)
        attempts = self.progress.environments
        changes = environment.describe_changes(attempts[-1], now) if attempts else ""
        attempts.append({"images": self.state.images, **now})
        if self.rank == 0:
            record = checksums.seal({"attempts": attempts})
            write_atomic(self.folder / "environments.json", json.dumps(record, indent=2) + "\n")
        return f"changed since the last attempt: {changes}" if changes else ""

    def _refuse_if_trained_longer(self) -> None:
        training = self.recipe.training
        if self.state.step > count_steps(training):
            raise UserError(
                f"{self.folder}: has been trained for {self.state.images / 1000:g} kimg, more than training.kimg "
                f"{training.kimg:g}; name another folder"
            )

    def _write_grid(self, path: Path, grid: Image.Image) -> None:
        if self.rank == 0:
            content = io.BytesIO()
            grid.save(content, "PNG")
            write_atomic(path, content.getvalue())


def _require_width(network: Denoiser, recipe: Recipe, conditioner: Any) -> None:
    """Require that embeddings of captions are as wide as the network takes them."""
    if network.text and network.text[1] != conditioner.shape[1]:
        raise UserError(
            f"conditioning.text {recipe.conditioning.text}: its tokens have {conditioner.shape[1]} numbers, but the "
            f"network takes {network.text[1]}; name an encoder of the network's, or set network.text_width"
        )


def _keep_first(image_batches: Iterable[Tensor], shown: list[Tensor]) -> Iterator[Tensor]:
    """Yield the batches, and add the first images of them to `shown`, for a grid."""
    for images in image_batches:
        missing = GRID_IMAGES - sum(len(part) for part in shown)
        shown.append(images[:missing].cpu())
        yield images
