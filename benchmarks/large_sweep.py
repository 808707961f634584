"""What reading a large sweep takes: its records, leaderboard and report, and how long a browser needs for the report.

The sweep is made up: a folder as 2,000 trials with three repeats each leave it, written without a ledger.
"""

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image
from rich.table import Table

from benchmarks.measure import console
from scrimp_platform import store
from scrimp_platform.report import leaderboard, page
from scrimp_platform.search import records
from scrimp_platform.search.records import Repeat, Trial
from scrimp_platform.store import SweepFolder
from scrimp_spaces import space as spaces
from scrimp_spaces.space import Space
from scrimp_trainers.common import metrics_log
from scrimp_trainers.common.metrics_log import MetricsRow

TRIALS, REPEATS = 2000, 3
LIMIT = 0.03
"""Of the memorised fraction, which half of the trials keep."""
TICKS = 50
"""Rows of a repeat between its rungs; a training writes about a hundred."""
GRID_PX = 512
"""Side of the pictures, which are noise: nothing takes more space."""
NODES = 10
BROWSER = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--dump-dom"),
)
STOPWATCH = """
<script>
addEventListener("load", () => setTimeout(() => { document.title = `loaded in ${performance.now()} ms`; }));
</script>
"""

T = TypeVar("T")


def main(device: str, threads: int, rounds: int, trials: int = TRIALS) -> None:
    """Make the sweep, read it, and print what that takes."""
    del device, threads, rounds
    table = Table("", "", title=f"A sweep of {trials:,} trials with {REPEATS} repeats each", title_justify="left")
    with tempfile.TemporaryDirectory() as storage:
        folder = write_sweep(Path(storage) / "large", trials)
        for name, text in measure(folder).items():
            table.add_row(name, text)
    console.print(table, "")


def measure(folder: SweepFolder) -> dict[str, str]:
    """Return what is measured, as text."""
    space = records.space_of(folder)
    found: dict[str, str] = {}

    def timed(name: str, work: Callable[[], T]) -> T:
        began = time.perf_counter()
        result = work()
        found[name] = f"{time.perf_counter() - began:.1f} s"
        return result

    known = timed("reading the records", lambda: records.read_records(folder))
    rows = timed("ranking", lambda: leaderboard.rank(known.trials, space))
    timed("leaderboard.csv", lambda: leaderboard.write_csv(rows, space, folder))
    timed("report.html, with all of that", lambda: page.write_report(folder))
    found["size of report.html"] = f"{folder.report.stat().st_size / 1e6:.1f} MB"
    found["until a browser has loaded it"] = browser_time(folder.report)
    return found


def browser_time(report: Path) -> str:
    """Return how long Chromium takes to load a page, plots and leaderboard included; without Chromium, say so."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        return "not measured: no Chromium"
    timed = report.with_name("timed.html")
    timed.write_text(report.read_text().replace("</body>", f"{STOPWATCH}</body>"))
    with tempfile.TemporaryDirectory() as profile:
        command = [browser, *BROWSER, f"--user-data-dir={profile}", timed.as_uri()]
        shown = subprocess.run(command, capture_output=True, text=True, timeout=300).stdout
    match = re.search(r"<title>loaded in ([\d.]+) ms", shown)
    return f"{float(match[1]) / 1000:.1f} s" if match else "not measured: the page did not finish"


def write_sweep(path: Path, trials: int) -> SweepFolder:
    """Write the folder of a sweep in which every trial got all repeats, except for some that failed."""
    folder = SweepFolder(path)
    space = make_space(trials)
    now = time.time()
    description = {
        "name": "large",
        "id": "large",
        "space": space.model_dump(mode="json"),
        "space_name": "quickstart",
        "dataset": {"name": "digits", "content_hash": "0" * 64, "folder": str(path / "digits")},
        "seed": 0,
        "started": now,
        "driver_started": now,
        "versions": {"scrimp": "0"},
    }
    path.mkdir(parents=True)
    store.write_json(folder.description, description)

    rng = np.random.default_rng(0)
    picture = path / "noise.png"
    Image.fromarray(rng.integers(0, 255, (GRID_PX, GRID_PX, 3), dtype=np.uint8)).save(picture)
    for number in range(trials):
        write_trial(folder, space, number, rng, picture)
    store.write_json(folder.outcome, {"reason": "complete", "ended": now, "trials": trials})
    return folder


def make_space(trials: int) -> Space:
    """Return the quickstart space with a constraint and so many trials."""
    tree = spaces.load_space("quickstart").model_dump()
    tree["budget"] |= {"trials": trials, "leaders": trials, "repeats": REPEATS}
    tree["constraints"] = {"memorized_fraction": {"max": LIMIT}}
    return Space.model_validate(tree)


def write_trial(folder: SweepFolder, space: Space, number: int, rng: np.random.Generator, picture: Path) -> None:
    """Write a trial's records, metrics and pictures."""
    values = draw(space, rng)
    trial = Trial(number, values, "complete")
    level = 10 + 30 * rng.random()
    memorised = 2 * LIMIT * rng.random()
    for index in range(REPEATS):
        failed = index == REPEATS - 1 and number % 20 == 0
        repeat = Repeat(number, index, index, "race" if index else "search", "failed" if failed else "finished")
        files = folder.repeat(number, index)
        files.samples.mkdir(parents=True)
        started = 600.0 * ((REPEATS * number + index) // NODES)
        repeat.stints = [[f"ws{(REPEATS * number + index) % NODES}", started, started + 550.0]]
        repeat.spent = 550.0
        if failed:
            repeat.cause = f"step {number}: loss is nan"
        else:
            write_metrics(files.metrics, repeat, space, level * (1 + 0.05 * rng.normal()), memorised)
        for shown in (files.samples_png, files.neighbours_png):
            os.link(picture, shown)
        repeat.save(files)
        trial.repeats.append(repeat)
    trial.save(folder)


def draw(space: Space, rng: np.random.Generator) -> dict[str, Any]:
    """Draw the searched fields."""
    values: dict[str, Any] = {}
    for path, span in space.search.items():
        low, high = span.uniform or span.loguniform or (0.0, 1.0)
        values[path] = rng.choice(span.choice).item() if span.choice else float(rng.uniform(low, high))
    return values


def write_metrics(path: Path, repeat: Repeat, space: Space, level: float, memorised: float) -> None:
    """Write a learning curve that ends at this level."""
    last = space.budget.rungs_kimg[-1]
    ticks = {last * (tick + 1) / TICKS: None for tick in range(TICKS)}
    marks: dict[float, float | None] = {**ticks, **{rung: rung for rung in space.budget.rungs_kimg}}
    rows = [
        make_row(kimg, rung, level * (1 + 3 * (1 - kimg / last)), memorised) for kimg, rung in sorted(marks.items())
    ]
    path.write_text("".join(map(metrics_log.row_text, rows)))
    repeat.rungs = {row.rung: row for row in rows if row.rung is not None}


def make_row(kimg: float, rung: float | None, score: float, memorised: float) -> MetricsRow:
    """Return a row of a learning curve."""
    entries = {"kimg": kimg, "images": round(1000 * kimg), "step": round(16 * kimg), "loss": 0.1 + 1 / (1 + kimg)}
    entries |= {"lr": 1e-3, "seconds": 12 * kimg, "nonzero_fraction": 1.0, "train_flops": 1e9 * kimg}
    entries |= {"images_per_second": 100.0}
    if rung is None:
        return MetricsRow.from_entries(entries)
    scores = {"fd_classifier": score, "memorized_fraction": memorised, "memorized_fraction_holdout": 0.01}
    scores |= {"parameters": 7e5, "samples": 1000.0, "reference_samples": 1618.0}
    words = {"extractor": "classifier", "reference": "train"}
    real = {"fd_classifier_real": 1.0, "fd_classifier_holdout": 3.0}
    return MetricsRow.from_entries(entries | {"rung": rung} | scores | real | words)
