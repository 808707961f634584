"""Rows of metrics.jsonl, for tests that do not train."""

from typing import Any

from scrimp_trainers.common.metrics_log import MetricsRow

TICK = {
    "kimg": 1.0,
    "images": 1000,
    "step": 16,
    "loss": 0.25,
    "lr": 0.002,
    "microbatch": 64,
    "seconds": 1.0,
    "nonzero_fraction": 1.0,
    "train_flops": 6e9,
    "images_per_second": 1000.0,
}
"""What every row has, in the file's order."""


def make_row(**entries: Any) -> MetricsRow:
    return MetricsRow.from_entries(TICK | entries)
