"""The small spaces of the papers' other models end with a leaderboard, by the user's command, on two CPU cores."""

import csv
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from drawings_small import small_drawings

from scrimp_platform.store import Storage, read_json

ROOT = Path(__file__).parents[1]
MINUTES = 10
pytestmark = pytest.mark.slow


@pytest.mark.parametrize("space", ["chirodiff-small", "ldm-small", "mdt-small", "sd-ambient-small"])
def test_a_small_space_ends_with_a_leaderboard_in_less_than_ten_minutes(
    space, scored_digits, scored_captions, stand_in, tmp_path
):
    data = scored_captions.folder if space == "sd-ambient-small" else scored_digits.folder
    (tmp_path / "text-digits").mkdir()
    (tmp_path / "text-digits" / "model").symlink_to(stand_in)
    if space == "chirodiff-small":
        small_drawings(tmp_path, 2000, classifier=True)
        data = tmp_path / "data"
    command = [sys.executable, str(ROOT / "sweep.py"), "--space", space, "--data", str(data), "--name", "small"]

    start = time.monotonic()
    home = os.environ | {"HOME": str(tmp_path)}  # the space names the text encoder there
    command += ["--storage", str(tmp_path / "runs")]
    answer = subprocess.run(command, capture_output=True, text=True, env=home)
    minutes = (time.monotonic() - start) / 60
    assert answer.returncode == 0, answer.stderr
    assert minutes < MINUTES

    folder = Storage(tmp_path / "runs").sweep("small")
    assert read_json(folder.outcome)["reason"] == "complete"
    rows = list(csv.DictReader(folder.leaderboard.read_text().splitlines()))
    assert len(rows) == 6
    assert rows[0]["rank"] == "1"
    assert float(rows[0]["fd_classifier_ci_low"]) < float(rows[0]["fd_classifier_mean"])
    assert "data:image/" in folder.report.read_text()
    assert list((tmp_path / "runs" / "mlflow").rglob("*samples*.png"))
