"""Score samples against a dataset: fidelity to its reference set, memorisation of its training set."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from scrimp_trainers.common import heartbeat
from scrimp_trainers.common.errors import UserError
from scrimp_trainers.common.fitting import FittingSize, in_parts
from scrimp_trainers.common.metrics_log import EXTRACTOR
from scrimp_trainers.common.ranks import agreed, patient_group, rank_0_first
from scrimp_trainers.conditioning.classes import Classes
from scrimp_trainers.data.dataset import Dataset
from scrimp_trainers.data.manifest import SplitName
from scrimp_trainers.data.modalities.modality import renderer, statistics_of
from scrimp_trainers.metrics import fidelity, memorisation, references
from scrimp_trainers.metrics.extractors.extractor import facts
from scrimp_trainers.metrics.features import open_extractor
from scrimp_trainers.metrics.fidelity import Compared
from scrimp_trainers.metrics.names import CLASS_SMALLEST, check_scoring, class_wise, family, in_full, needs, real_name
from scrimp_trainers.recipe.scoring import SMALLEST, Extractor, Scoring

OF_ALL = ("samples", "reference", "reference_samples", "renderer", EXTRACTOR)
"""What is said of the scores of all extractors together."""


@dataclass(frozen=True)
class Scores:
    """One scoring of one model."""

    values: dict[str, float | str]
    """The scores by name, with the sample count, extractor and reference that they hold for."""
    samples: Tensor
    """uint8 [k, C, H, W]: the first of this rank's samples."""
    nearest: Tensor
    """uint8 [k, C, H, W]: the training image that each of them is most similar to."""


class Scorer:
    """Scores samples of one dataset, with one extractor or several.

    What does not depend on the samples is computed here, once.

    Parameters
    ----------
    dataset
        The dataset: its reference split for fidelity, its training split for memorisation, held-out images as control.
    scoring
        How to score.
    device
        Where features are extracted and compared.
    rank, world
        This process's place in the process group, which must exist if `world` is above 1.

    Raises
    ------
    UserError
        If the dataset cannot be scored so, the extractor's weights cannot be had, or not even one image fits into
        memory with it.
    """

    def __init__(
        self, dataset: Dataset, scoring: Scoring, device: torch.device | str, rank: int = 0, world: int = 1
    ) -> None:
        check_scoring(scoring, dataset.manifest)
        self.dataset = dataset
        self.scoring = scoring
        self.rank = rank
        self.world = world
        self.group = patient_group() if world > 1 else None
        self.device = torch.device(device)
        self.extracted = FittingSize(scoring.batch_size)  # images that the extractor takes at once
        with rank_0_first(rank, world):
            self._look_at_the_dataset()
        self.further = [Scorer(dataset, other, device, rank, world) for other in scoring.further]

    def score(
        self,
        samples: Iterable[Tensor],
        classes: int = 0,
        statistics: Sequence[Tensor] = (),
        tokens: Tensor | None = None,
    ) -> Scores:
        """Score this rank's share of the samples, together with the other ranks'.

        Parameters
        ----------
        samples
            uint8 [b, C, H, W], at least one image a rank. Sample i of the whole is rank `i % world`'s.
        classes
            Number of classes that the samples were conditioned on, as `Classes.for_samples` assigns them; 0 for none.
        statistics
            What `sampling.rendered` has collected once it has yielded all samples, [b, k] of each batch.
        tokens
            int64 [n, L], of the captions that all samples were drawn of, if a score needs them.

        Returns
        -------
        Scores
            The same values on every rank.
        """
        images = torch.cat([part.to(self.device) for part in samples])
        numbers = (
            torch.cat(list(statistics)).to(self.device) if statistics else images.new_empty(len(images), 0).float()
        )
        scores = self._score(images, classes, numbers, tokens)
        if not self.further:
            return scores

        values: dict[str, float | str] = {}
        for scorer in (self, *self.further):
            own = scores.values if scorer is self else scorer._score(images, classes, numbers, tokens).values
            values |= {_in_full(name, scorer.extractor.name): value for name, value in own.items()}
        return replace(scores, values=values | {EXTRACTOR: self.scoring.extractors})

    def _score(self, images: Tensor, classes: int, statistics: Tensor, tokens: Tensor | None) -> Scores:
        """Score this rank's images with the first extractor. `statistics` are [b, k], k may be 0."""
        # Compare this rank's images with the training set.
        features, logits = self._extract(images)
        similarity, position = memorisation.nearest(features, self.training_features)
        ratio = memorisation.pixel_ratio(images, self.training)

        # Gather the rows of all ranks, each with all that is known of an image.
        columns = [features, similarity[:, None], ratio[:, None].float(), statistics]
        columns += [] if logits is None else [logits]
        rows = gather(torch.cat(columns, dim=1), self.world)
        if len(rows) < SMALLEST:
            raise UserError(f"{len(rows)} samples are too few to score; {SMALLEST} are needed")

        # Score once for all ranks: the other ones would take its cores.
        values: dict[str, float | str] = {}
        if self.rank == 0:
            values = self._compare(rows, features.shape[1], statistics.shape[1], classes, tokens)
        values = agreed(values, self.group)

        shown = min(self.scoring.neighbours, len(images))
        return Scores(values, images[:shown].cpu(), self.training[position[:shown].cpu()])

    def _compare(
        self, rows: Tensor, width: int, measured: int, classes: int, tokens: Tensor | None
    ) -> dict[str, float | str]:
        """Score the samples of all ranks by what is known of each, the columns of `rows`.

        These are its features, `width` columns; its similarity to the training set; its pixel ratio; `measured` columns
        of statistics; and its logits, if the extractor has any.
        """
        first_logit = width + 2 + measured
        features = rows[:, :width]
        similarity = rows[:, width]
        ratio = rows[:, width + 1]
        statistics = rows[:, width + 2 : first_logit]
        logits = rows[:, first_logit:].cpu() if rows.shape[1] > first_logit else None

        compared = Compared(
            self.extractor.name,
            features,
            logits,
            self.reference,
            self.known,
            self.training_features,
            self.holdout,
            statistics,
            self.reference_statistics,
            self._of_captions(tokens),
        )
        real_distances = self.real_distances
        if len(rows) != self.scoring.samples:
            real_distances = self._real_distances(len(rows))
        values: dict[str, float | str] = {
            **fidelity.scores(compared),
            **self._class_scores(features, classes),
            **memorisation.summary(similarity, ratio, self.threshold, self.extractor.name),
            **self.control,
            **real_distances,
            "similarity_threshold": self.threshold,
            "samples": float(len(rows)),
            EXTRACTOR: self.extractor.name,
            "weights": self.extractor.weights[:16],
            "reference": self.dataset.manifest.reference,
            "reference_samples": float(len(self.reference)),
        }

        if renderer(self.dataset.manifest):
            values["renderer"] = renderer(self.dataset.manifest)
        for kind in self.scoring.also:
            values |= family(kind).scores(compared)

        return values

    def _look_at_the_dataset(self) -> None:
        """Compute what does not depend on the samples, or read it from the dataset's cache."""
        dataset = self.dataset
        scoring = self.scoring
        self.extractor = open_extractor(scoring, dataset.folder, dataset.manifest, self.device)
        images = torch.from_numpy(dataset.images("train")[0])
        features = self._features("train", images)

        # What samples are compared with.
        own = dataset.manifest.reference == "train"
        self.reference = features if own else self._features("reference")
        self.known = self._statistics(self.reference)
        self.reference_statistics = self._reference_statistics()
        labels = dataset.entries(dataset.manifest.reference)[1] if class_wise(scoring, dataset.manifest) else None
        self.labels = None if labels is None else torch.from_numpy(labels).to(self.device)

        # What samples may be copies of.
        kept = torch.from_numpy(memorisation.distinct(images.numpy()))
        self.training = images[kept]
        self.training_features = features[kept.to(self.device)]
        if len(kept) < 2:
            raise UserError(f"{dataset.folder}: all training images are the same; memorisation cannot be measured")
        self.threshold, self.control = self._control()
        self.real_distances = self._real_distances(self.scoring.samples)

    def _class_scores(self, features: Tensor, classes: int) -> dict[str, float]:
        """Score within the classes, if the samples have those of this dataset and there are enough images of each."""
        known = len(self.dataset.manifest.classes or [])
        if self.labels is None or classes != known or len(features) < CLASS_SMALLEST * classes:
            return {}
        labels = Classes(classes).for_samples(range(len(features)), features.device)
        return fidelity.class_scores(self.extractor.name, features, labels, self.reference, self.labels)

    def _extract(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        def extract(part: slice) -> tuple[Tensor, Tensor | None]:
            heartbeat.beat()
            return self.extractor.features(images[part])

        parts = list(in_parts(len(images), self.extracted, extract, f"extractor {self.extractor.name}"))
        logits = [part[1] for part in parts if part[1] is not None]
        return torch.cat([part[0] for part in parts]), torch.cat(logits) if logits else None

    def _of_captions(self, tokens: Tensor | None) -> Tensor | None:
        if tokens is None or self.extractor.text is None:
            return None

        def extract(part: slice) -> Tensor:
            heartbeat.beat()
            return self.extractor.of_captions(tokens[part])

        what = f"extractor {self.extractor.name}, captions"
        return torch.cat(list(in_parts(len(tokens), self.extracted, extract, what)))

    def _features(self, split: SplitName, images: Tensor | None = None) -> Tensor:
        """Features of a whole split, from the cache if they are there."""

        def make() -> dict[str, Tensor]:
            pixels = torch.from_numpy(self.dataset.images(split)[0]) if images is None else images
            return {"features": self._extract(pixels)[0]}

        return references.cached(self._cache_file(split, "features"), make)["features"].to(self.device)

    def _statistics(self, features: Tensor) -> dict[str, Tensor]:
        path = self._cache_file(self.dataset.manifest.reference, "statistics")
        known = references.cached(path, lambda: fidelity.statistics(features))
        return known | {"radii": known["radii"].to(self.device)}

    def _real_distances(self, samples: int) -> dict[str, float]:
        """Return the Fréchet distances of real images by name, computed once for so many samples."""
        path = self._cache_file(self.dataset.manifest.reference, f"real-{samples}")
        distances = references.cached(
            path, lambda: fidelity.real_distances(self.reference, self.known, self.holdout, samples)
        )
        return {real_name(self.extractor.name, which): float(value) for which, value in distances.items()}

    def _reference_statistics(self) -> Tensor | None:
        """Return what the modality measures of the reference items, [m, k], if a further score needs it."""
        if not needs(self.scoring, "STATISTICS"):
            return None
        items, _, _ = self.dataset.items(self.dataset.manifest.reference)
        return statistics_of(self.dataset.modality, items)

    def _cache_file(self, split: SplitName, kind: str) -> Path:
        return references.cache_file(self.dataset.folder, self.dataset.manifest, self.extractor, split, kind)

    def _control(self) -> tuple[float, dict[str, float]]:
        """Settle the threshold, and score as many held-out images as there are samples."""
        fixed = self.scoring.threshold
        if fixed is None:
            fixed = facts(self.extractor.name).similar
        self.holdout = None
        if "holdout" not in self.dataset.manifest.splits:
            if fixed is None:
                fixed = memorisation.calibrate(memorisation.nearest(self.training_features)[0])
            return fixed, {}
        images = torch.from_numpy(self.dataset.images("holdout")[0])
        chosen = np.random.default_rng(0).permutation(len(images))[: self.scoring.samples]
        self.holdout = self._features("holdout", images)
        similarity = memorisation.nearest(self.holdout[chosen], self.training_features)[0]
        ratio = memorisation.pixel_ratio(images[chosen].to(self.device), self.training)
        threshold = memorisation.calibrate(similarity) if fixed is None else fixed
        return threshold, memorisation.summary(similarity, ratio, threshold, self.extractor.name, "_holdout")


def _in_full(name: str, extractor: Extractor) -> str:
    return name if name in OF_ALL else in_full(name, extractor)


def gather(rows: Tensor, world: int) -> Tensor:
    """Collect the rows [b, w] of all ranks, interleaved as ranks take samples; b may differ between them."""
    if world == 1:
        return rows
    counts = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(world)]
    dist.all_gather(counts, torch.tensor([len(rows)], device=rows.device))
    most = int(torch.cat(counts).max())
    padded = rows.new_zeros(most, rows.shape[1])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in range(world)]
    dist.all_gather(parts, padded)
    there = torch.arange(most, device=rows.device)[:, None] < torch.cat(counts)
    return torch.stack(parts, dim=1)[there]
