"""What a claim's sweep has measured so far, read from its folder, or from what was kept of it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.claims.claim import Claim, Comparison, Size, owner
from scrimp_platform import store
from scrimp_platform.search import records
from scrimp_platform.search.records import Repeat, Trial
from scrimp_platform.store import Storage, SweepFolder
from scrimp_spaces.space import Space
from scrimp_trainers.common.metrics_log import MetricsRow

MACHINE = "machine.json"
KEPT = Path("docs/claims")


@dataclass(frozen=True)
class Outcome:
    """The sweep of a claim, under way or complete."""

    space: Space
    trials: dict[str, Trial]
    """The trial of each arm that has begun, by the arm's name."""
    dataset: dict[str, Any]
    """Name and hash of the images."""
    machines: list[str]
    """What it ran on."""

    @property
    def planned(self) -> int:
        """Repeats of all arms together."""
        return len(self.space.arms) * self.space.budget.repeats

    @property
    def ended(self) -> int:
        """Repeats that nothing will be added to; an arm whose first repeat failed gets no others."""
        repeats = self.space.budget.repeats
        return sum(
            repeats if trial.status == "failed" else sum(not repeat.open for repeat in trial.repeats)
            for trial in self.trials.values()
        )

    @property
    def complete(self) -> bool:
        """Whether every repeat has ended; no verdict before that, since one would stop when it pleases."""
        return self.ended >= self.planned

    def values(self, arm: str, score: str, share: float = 1.0) -> list[float]:
        """Return a score of an arm's finished repeats after this share of the training."""
        trial = self.trials.get(arm)
        kimg = share * self.space.budget.rungs_kimg[-1]
        return records.finite_scores(trial.finished_repeats(kimg), score, kimg) if trial else []

    def sides(self, comparison: Comparison) -> tuple[list[float], list[float]]:
        """Return the values of the two arms of a comparison."""
        arm = self.values(comparison.arm, comparison.score, comparison.at)
        return arm, self.values(comparison.against, comparison.score)


def sweep_folder(claim: Claim, size: Size, storage: Storage) -> SweepFolder:
    """Return the folder of the sweep that a claim reads."""
    return storage.sweep(f"{owner(claim).name}-{size}")


def read(claim: Claim, size: Size, storage: Storage) -> Outcome | None:
    """Read the sweep of a claim; none if it has not begun, or is of what the claim's file once said."""
    folder = sweep_folder(claim, size, storage)
    sweep = store.read_json(folder.description)
    if sweep is None:
        return None
    machines = (store.read_json(folder.path / MACHINE) or {"names": ["not known"]})["names"]
    return _outcome(claim, size, sweep | {"machines": machines}, records.read_records(folder).trials)


def keep(claim: Claim, size: Size, outcome: Outcome) -> None:
    """Keep every score of a complete sweep, so that the page can be written where its folder is not."""
    trials = [_to_json(trial) for trial in outcome.trials.values()]
    space = outcome.space.model_dump(mode="json")
    dataset = {name: outcome.dataset[name] for name in ("name", "content_hash")}
    record = {"space": space, "dataset": dataset, "machines": outcome.machines, "trials": trials}
    store.write_atomic(_kept_file(claim, size), json.dumps(record, indent=2, ensure_ascii=False) + "\n")


def kept(claim: Claim, size: Size) -> Outcome | None:
    """Read what was kept of a claim's sweep; none if nothing was, or it is of what the claim's file once said."""
    if not _kept_file(claim, size).exists():
        return None
    record = json.loads(_kept_file(claim, size).read_text())
    return _outcome(claim, size, record, [_from_json(trial) for trial in record["trials"]])


def _outcome(claim: Claim, size: Size, record: dict[str, Any], trials: list[Trial]) -> Outcome | None:
    space = owner(claim).space(size)
    if Space.model_validate(record["space"]) != space:
        return None
    by_arm = {name: trial for name, arm in space.arms.items() for trial in trials if trial.params == arm}
    return Outcome(space, by_arm, record["dataset"], record["machines"])


def _to_json(trial: Trial) -> dict[str, Any]:
    repeats = []
    for repeat in trial.repeats:
        record = dict(vars(repeat))
        rungs = record.pop("rungs")
        record["scores"] = {rung: row.to_entries() for rung, row in rungs.items()}
        repeats.append(record)
    return {**vars(trial), "repeats": repeats}


def _from_json(record: dict[str, Any]) -> Trial:
    repeats = []
    for kept_repeat in record["repeats"]:
        rows = kept_repeat.pop("scores").values()
        rungs = {row["rung"]: MetricsRow.from_entries(row) for row in rows}
        repeats.append(Repeat(**kept_repeat, rungs=rungs))
    return Trial(**{**record, "repeats": repeats})


def _kept_file(claim: Claim, size: Size) -> Path:
    return KEPT / f"{owner(claim).name}-{size}.json"


def note_machine(folder: SweepFolder, machine: str) -> None:
    """Keep in the sweep's folder on which machines it ran."""
    known = (store.read_json(folder.path / MACHINE) or {"names": []})["names"]
    if machine not in known:
        store.write_json(folder.path / MACHINE, {"names": [*known, machine]})
