"""Records of finished trainings: one JSON file for each arm and seed, `docs/claims/CLAIM/BUDGET/ARM-seedN.json`."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.claims.claim import Budget, Claim, arms_of, design, needed_arms, owner, seeds_of

KEPT = Path("docs/claims")


@dataclass(frozen=True)
class Curves:
    """The scores of all finished arms and seeds of an experiment with one budget."""

    records: Mapping[str, list[dict[str, Any]]]
    """Records of each arm, in the order of their seeds."""

    def values(self, arm: str, score: str, rung: float) -> list[float]:
        """Return a score at a rung, one a seed; without the seeds that have none there."""
        values = [_at(record, rung).get(score, math.nan) for record in self.records.get(arm, [])]
        return [value for value in values if math.isfinite(value)]

    def count(self, arm: str) -> int:
        """Return how many seeds of an arm have ended."""
        return len(self.records.get(arm, []))

    def diverged(self, arm: str) -> int:
        """Return how many seeds of an arm did not reach the end."""
        return sum(record["ending"] != "finished" for record in self.records.get(arm, []))

    @property
    def all(self) -> list[dict[str, Any]]:
        """All records."""
        return [record for records in self.records.values() for record in records]


def file_of(kept: Path, claim: Claim, budget: str, arm: str, seed: int) -> Path:
    """Return the file of a record. Claims that share an experiment share its records."""
    return kept / owner(claim).name / budget / f"{arm}-seed{seed}.json"


def read(kept: Path, claim: Claim, budget: str, arm: str, seed: int) -> dict[str, Any] | None:
    """Read a record; none if there is none, or it is of what the claim's file once said."""
    file = file_of(kept, claim, budget, arm, seed)
    if not file.is_file():
        return None
    record = json.loads(file.read_text())
    own = owner(claim)
    return record if record["design"] == _plain(design(own, own.budgets[budget], arm)) else None


def curves(kept: Path, claim: Claim, budget: str) -> Curves:
    """Read all records of a claim's experiment with a budget."""
    own = owner(claim)
    settings = own.budgets[budget]
    by_arm = {}
    for arm in arms_of(own, settings):
        seeds = range(1, seeds_of(settings, arm) + 1)
        by_arm[arm] = [record for seed in seeds if (record := read(kept, claim, budget, arm, seed))]
    return Curves(by_arm)


def progress(claim: Claim, trained: Curves, budget: Budget) -> tuple[int, int]:
    """Return how many of the trainings have ended that a claim needs, and how many these are.

    There is no verdict before the last, since one would stop when it pleases.
    """
    arms = needed_arms(claim) & set(arms_of(owner(claim), budget))
    return sum(trained.count(arm) for arm in arms), sum(seeds_of(budget, arm) for arm in arms)


def text(record: Mapping[str, Any]) -> str:
    """Return a record as JSON, a line for each entry and for each rung of its curve."""
    lines = [f"{json.dumps(name)}: {_entry(name, value)}" for name, value in record.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _entry(name: str, value: Any) -> str:
    if name != "curve":
        return json.dumps(value, ensure_ascii=False)
    return "[\n" + ",\n".join(json.dumps(rung) for rung in value) + "\n]"


def _at(record: dict[str, Any], rung: float) -> dict[str, float]:
    return next((row for row in record["curve"] if row["rung"] == rung), {})


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))
