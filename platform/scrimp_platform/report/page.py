"""`report.html`: what a sweep found, on one page that needs nothing else, not even a network.

It is made from the sweep's folder alone, at any moment: what has not happened yet is said to be missing.
"""

import re
import shlex
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import plotly.graph_objects as go
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from scrimp_platform import store
from scrimp_platform.report import classwise, formatting, importance, leaderboard, pictures, plots
from scrimp_platform.report.classwise import ClassWise
from scrimp_platform.report.ranking import MEANINGS, TrialRow
from scrimp_platform.search import records
from scrimp_platform.search.records import Repeat, Trial
from scrimp_platform.store import RepeatFolder, SweepFolder
from scrimp_spaces.space import Space
from scrimp_trainers.common import metrics_log
from scrimp_trainers.common.errors import DamagedRecord, UserError
from scrimp_trainers.data import manifest
from scrimp_trainers.data.manifest import Manifest

TEMPLATE = Path(__file__).with_name("page.html")


@dataclass(frozen=True)
class Plot:
    """A figure with its heading and what to see in it; without data it has a note in its place."""

    title: str
    caption: str
    body: Markup | None
    wide: bool = False


def write_report(folder: SweepFolder) -> None:
    """Write a sweep's `report.html` from what is on disk."""
    sweep, space, known = records.sweep_description(folder), records.space_of(folder), records.read_as_observer(folder)
    trials, problems = known.trials, known.problems
    rows = leaderboard.rank(trials, space)
    repeats = known.repeats
    best = leaderboard.best(rows)
    facts = _manifest(sweep)
    by_class = classwise.gather(rows, plots.leaders(rows), facts.classes if facts else None)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters.update(number=formatting.number, short=formatting.short, duration=formatting.duration)
    page = environment.from_string(TEMPLATE.read_text()).render(
        name=sweep["name"],
        verdict=leaderboard.verdict(rows, space),
        ending=_ending(folder),
        problems=problems,
        facts=_facts(sweep, space, repeats, rows),
        space=space,
        rows=rows,
        score=leaderboard.score,
        chosen=leaderboard.chosen,
        fields=formatting.short_names(space.search),
        meanings={status: MEANINGS[status] for status in MEANINGS if status in {row.status for row in rows}},
        race=_race_plots(rows, space),
        by_class=by_class,
        interval=formatting.interval,
        class_plots=_class_plots(by_class, rows),
        training=_training_plots(folder, trials, rows, space),
        search=_search_plots(trials, rows, space),
        samples=_samples(folder, rows, space, problems),
        use=_use(folder, sweep, best, space) if best else None,
        failures=[(r, _cause(folder, r)) for r in repeats if r.attempt > 1 or r.status == "failed"],
        origin=_origin(sweep),
        space_yaml=space.to_yaml(),
        plotly=Markup(get_plotlyjs()),  # noqa: S704 - plotly's own file
    )
    store.write_atomic(folder.report, page)


def _cause(folder: SweepFolder, repeat: Repeat) -> str:
    """Say why a repeat failed; of one that a further attempt mended, the last line of its traceback."""
    if repeat.status in ("failed", "waiting"):
        return repeat.cause
    error = folder.repeat(repeat.trial, repeat.repeat).error
    metrics_log = error.read_text(errors="replace").split("\n") if error.exists() else []
    return next((line for line in reversed(metrics_log) if line.strip()), "")


def _ending(folder: SweepFolder) -> str:
    outcome = store.read_sound(folder.outcome)
    if outcome is None:
        return "Not ended: this is what is known so far"
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(outcome["ended"]))
    return f"Complete, {when}" if outcome["reason"] == "complete" else f"Ended early, {when}: {outcome['reason']}"


def _facts(sweep: dict[str, Any], space: Space, repeats: Sequence[Repeat], rows: Sequence[TrialRow]) -> dict[str, str]:
    """Return the summary: names of facts, and the facts."""
    statuses = Counter(row.status for row in rows)
    ends = Counter(repeat.status for repeat in repeats)
    goals = [f"{direction} {name}" for name, direction in space.objectives.items()]
    limits = [f"{name} {formatting.limit(bound)}" for name, bound in space.constraints.items()]
    spent = formatting.duration(sum(repeat.device_hours for repeat in repeats)) or "0 s"
    hours = space.budget.max_gpu_hours
    return {
        "Dataset": _dataset(sweep),
        "Objective": ", ".join(goals + limits),
        "Scored by": f"{space.scoring.samples:,} samples, extractor {space.scoring.extractor}",
        "Trials": f"{len(rows)} of {space.budget.trials}"
        + (f": {', '.join(f'{n} {status}' for status, n in statuses.items())}" if rows else ""),
        "Repeats": ", ".join(f"{n} {status}" for status, n in ends.items()) or "none",
        "Device time": spent + (f" of {formatting.duration(hours)}" if hours else ""),
    }


def _manifest(sweep: dict[str, Any]) -> Manifest | None:
    try:
        return manifest.load(Path(sweep["dataset"]["folder"]))
    except UserError:  # moved or removed since
        return None


def _dataset(sweep: dict[str, Any]) -> str:
    name, facts = sweep["dataset"]["name"], _manifest(sweep)
    if facts is None:
        return name
    colours = "grey" if facts.channels == 1 else "RGB"
    classes = f", {len(facts.classes)} classes" if facts.classes else ""
    return f"{name}: {facts.splits['train'].count:,} images, {facts.size}×{facts.size} {colours}{classes}"


def _race_plots(rows: Sequence[TrialRow], space: Space) -> list[Plot]:
    few = "No trial has a finished repeat with a fresh seed yet."
    caption = (
        "Rings are repeats with fresh seeds, diamonds their means with 95% intervals (Student's t). "
        "A cross is the score by which the search chose the trial: it flatters, and counts in no mean. "
        "A trial leaves the race when it can no longer win, by a t-test with the deviation pooled over the race. "
        "Its own interval, of few repeats, may still be wide enough to overlap."
    )
    figures = {name: plots.race(rows, name) for name in space.objectives}
    result = [_plot(f"{name} of the raced trials", caption, figure, few) for name, figure in figures.items()]
    first, *others = space.objectives
    none = "No trial has been trained to the end yet."
    for other in others:
        caption = "On the front no trial is beaten in both."
        result.append(_plot(f"{first} against {other}", caption, plots.tradeoff(rows, space, first, other), none))
    caption = "What a repeat costs, and what it brings. On the front no trial is beaten in both."
    return [*result, _plot(f"{first} against time", caption, plots.tradeoff(rows, space, first), none)]


def _class_plots(found: ClassWise | None, rows: Sequence[TrialRow]) -> list[Plot]:
    if found is None:
        return []
    caption = (
        "Lower is better; with 95% intervals over the repeats. Fewer images make a distance larger: compare these with "
        "each other, not with the score of all classes together."
    )
    figure = plots.class_wise(found, plots.leaders(rows))
    return [_plot(f"{found.name} by class", caption, figure, "Nothing has been scored yet.", True)]


def _training_plots(folder: SweepFolder, trials: Sequence[Trial], rows: Sequence[TrialRow], space: Space) -> list[Plot]:
    caption = "One thin line a repeat; grey ones are other trials. Thick: mean of the repeats, with its 95% band."
    none = "Nothing has been scored yet."
    result = [
        _plot(f"{name} over training", caption, plots.over_kimg(trials, rows, name), none) for name in space.objectives
    ]
    leading = {row.number: row.trial.repeats for row in rows if row.number in plots.leaders(rows)}
    curves = {
        number: [metrics_log.read(folder.repeat(number, repeat.repeat).metrics) for repeat in repeats]
        for number, repeats in leading.items()
    }
    losses = plots.losses(curves, rows)
    return [*result, _plot("Training loss", "Every repeat of the leading trials.", losses, "No leader yet.")]


def _search_plots(trials: Sequence[Trial], rows: Sequence[TrialRow], space: Space) -> list[Plot]:
    first, none = next(iter(space.objectives)), "Nothing has been scored yet."
    caption = "The first repeat of each trial. Scores of trials that were stopped are those of an earlier rung."
    result = [_plot(f"{name} by trial", caption, plots.history(trials, space, name), none) for name in space.objectives]
    shares = importance.importances(trials, space)
    if isinstance(shares, str):
        result.append(Plot("What mattered", shares, None))
    else:
        caption = "Optuna's PED-ANOVA over the trials trained to the end. Where they are few it is no more than a hint."
        result.append(_plot("What mattered", caption, plots.importances(shares), none))
    caption = "One line a trial: blue is good, orange less so, pale grey was not trained to the end."
    return [*result, _plot("Searched fields", caption, plots.parallel(rows, space, first), none, True)]


def _plot(title: str, caption: str, figure: go.Figure, missing: str, wide: bool = False) -> Plot:
    if not figure.data:
        return Plot(title, missing, None)
    config = {"displayModeBar": False, "responsive": True}
    name = re.sub(r"\W+", "-", title)
    body = figure.to_html(full_html=False, include_plotlyjs=False, div_id=name, config=config)
    return Plot(title, caption, Markup(body), wide)  # noqa: S704 - plotly escapes what is in the figure


def _samples(
    folder: SweepFolder, rows: Sequence[TrialRow], space: Space, problems: list[str]
) -> dict[str, list[pictures.Picture]]:
    """Return the grids of the three best, how the best came along, and its nearest training images."""

    def read(path: Path, caption: str) -> pictures.Picture | None:
        try:
            return pictures.read(path, caption)
        except DamagedRecord as damage:
            problems.append(f"{damage}; the picture is left out")
            return None

    kimg = space.budget.rungs_kimg[-1]
    typical = {row.number: _typical(folder, row, space) for row in rows if row.finished}
    named = {f"Trial {trial}, repeat {files.repeat}": files for trial, files in list(typical.items())[:3]}
    grids = [read(files.samples_png, f"{title}, {kimg:g} kimg") for title, files in named.items()]
    best = next(iter(typical.values()), None)
    steps = [read(best.samples / f"{rung:g}.png", f"{rung:g} kimg") for rung in space.budget.rungs_kimg if best]
    pairs = [read(best.neighbours_png, _copies(rows[0]))] if best else []
    shown = {"best": grids, "steps": steps, "neighbours": pairs}
    return {name: [picture for picture in group if picture] for name, group in shown.items()}


def _typical(folder: SweepFolder, row: TrialRow, space: Space) -> RepeatFolder:
    nearest = leaderboard.typical(row, space)
    return folder.repeat(nearest.trial, nearest.repeat)


def _copies(row: TrialRow) -> str:
    """Say how much of what the best trial samples is copied from its training images."""
    scores = next((repeat.scores[row.kimg] for repeat in row.trial.repeats if row.kimg in repeat.scores), {})
    share, control = scores.get("memorized_fraction"), scores.get("memorized_fraction_holdout")
    text = f"Trial {row.number}: samples, each followed by its nearest training image"
    if share is not None:
        text += f". Memorised: {share:.1%} of the samples"
        text += f", {control:.1%} of held-out images as a control" if control is not None else ""
    return text


def _use(folder: SweepFolder, sweep: dict[str, Any], best: TrialRow, space: Space) -> dict[str, str]:
    """Return what to type to train and to sample the winner."""
    files = _typical(folder, best, space)
    card = files.model / "README.md"
    code = re.search(r"```python\n(.*?)```", card.read_text(errors="replace"), re.DOTALL) if card.exists() else None
    train = ["scrimp", "train", str(folder.best_recipe), sweep["dataset"]["folder"], "OUT", "--seed", "1"]
    return {
        "train": shlex.join(train),
        "sample": shlex.join(["scrimp", "sample", str(files.model), "SAMPLES", "-n", "64"]),
        "model": str(files.model),
        "diffusers": code.group(1) if code else "",
        "recipe": files.recipe.read_text() if files.recipe.exists() else "",
    }


def _origin(sweep: dict[str, Any]) -> dict[str, str]:
    versions = ", ".join(f"{package} {version}" for package, version in sweep["versions"].items())
    data = sweep["dataset"]
    return {
        "Seed of the sweep": str(sweep["seed"]),
        "Dataset": f"{data['name']}, content {data['content_hash']}",
        "Dataset's folder": data["folder"],
        "Packages": versions,
        **_earlier(sweep),
    }


def _earlier(sweep: dict[str, Any]) -> dict[str, str]:
    """Say which repeats ended with other code or packages, if any did."""
    texts = []
    for entry in sweep.get("earlier", []):
        if entry["repeats"]:
            software = f"torch {entry['versions'].get('torch', 'unknown')}, code {entry['code'][:12]}"
            texts.append(f"{', '.join(entry['repeats'])} with {software}")
    return {"Repeats that ended with other code or packages": "; ".join(texts)} if texts else {}
