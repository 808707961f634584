"""`report.html`: the result of a sweep on one page, which needs no other file and no network.

It can be made from the sweep's folder at any time; the page says what is still missing.
"""

import math
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from markupsafe import Markup
from plotly.offline import get_plotlyjs

from scrimp_platform import recommended, store
from scrimp_platform.report import (
    classwise,
    faults,
    figures,
    formatting,
    frame,
    leaderboard,
    next_steps,
    pictures,
    plots,
    scale,
    sections,
)
from scrimp_platform.report.ranking import MEANINGS, TrialRow
from scrimp_platform.search import gain, records
from scrimp_platform.search.records import Records, Repeat
from scrimp_platform.search.verdict import MARGIN
from scrimp_platform.store import RepeatFolder, SweepFolder
from scrimp_spaces.space import Space
from scrimp_trainers.common.errors import DamagedRecord, UserError
from scrimp_trainers.data import manifest as manifests
from scrimp_trainers.data.manifest import Manifest

TEMPLATE = "page.html"
SCRIPT = Path(__file__).with_name("leaderboard.js")
AT_FIRST = 100
"""Trials that the leaderboard shows until all are asked for."""
MAX_STEPS = 6
"""Rungs whose samples are shown."""


def write_report(folder: SweepFolder) -> None:
    """Write a sweep's `report.html` from the files on disk."""
    sweep = records.sweep_description(folder)
    space = records.space_of(folder)
    known = records.read_as_observer(folder)
    rows = leaderboard.rank(known.trials, space)
    best = recommended.repeat_of(folder, rows, space)

    manifest = _manifest(sweep)
    classes = manifest.classes if manifest else None
    by_class = classwise.class_scores(rows, plots.leader_colours(rows), classes)
    statuses = {row.status for row in rows}
    measured = scale.scales(rows, space, manifest)
    faults_found = faults.faults(folder, known)

    environment = frame.environment()
    environment.filters.update(sortable=_sortable)
    page = environment.get_template(TEMPLATE).render(
        name=sweep["name"],
        verdict=leaderboard.verdict(rows, space),
        outlook=gain.of_more_trials(known.trials, space, folder),
        ending=_ending(folder),
        problems=known.problems,
        links=next_steps.links(folder, best),
        steps=next_steps.steps(folder, best, space),
        card=next_steps.python_code(best.files.model / "README.md") if best else "",
        recipe=_recipe(best.files) if best else "",
        target=partial(next_steps.target, folder),
        facts=_facts(sweep, space, known, rows),
        space=space,
        rows=rows,
        at_first=AT_FIRST,
        folder=folder,
        score_text=leaderboard.score_text,
        chosen_at_text=leaderboard.chosen_at_text,
        probability_text=leaderboard.probability_text,
        means=_means(rows, space),
        fields=formatting.short_names(space.search),
        meanings={status: meaning for status, meaning in MEANINGS.items() if status in statuses},
        race=sections.race(rows, space),
        by_class=by_class,
        interval=formatting.interval,
        class_plots=sections.by_class(by_class, rows),
        scales=measured,
        not_measured=scale.NOT_MEASURED,
        training=sections.training(folder, known.trials, rows, space, measured) + sections.layers(folder, rows, space),
        search=sections.search(known.trials, rows, space),
        samples=_samples(folder, rows, space, known.problems),
        cost=sections.cost(known),
        faults=faults_found,
        causes=faults.causes(faults_found),
        max_faults=faults.MAX_ROWS,
        origin=_origin(sweep),
        space_yaml=space.to_yaml(),
        plotly=Markup(get_plotlyjs()),  # noqa: S704 - plotly's own file
        script=Markup(SCRIPT.read_text()),  # noqa: S704 - a file of ours
    )
    store.write_atomic(folder.report, page)


def _recipe(files: RepeatFolder) -> str:
    return files.recipe.read_text() if files.recipe.exists() else ""


def _ending(folder: SweepFolder) -> str:
    outcome = store.read_sound(folder.outcome)
    if outcome is None:
        return "Not ended: this is what is known so far"
    ended = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(outcome["ended"]))
    if outcome["reason"] == "complete":
        return f"Complete, {ended}"
    return f"Ended early, {ended}: {outcome['reason']}. The sweep's command resumes it"


def _facts(sweep: dict[str, Any], space: Space, known: Records, rows: Sequence[TrialRow]) -> dict[str, str]:
    """Return the entries of the summary at the top of the page, by heading."""
    objectives = [f"{direction} {name}" for name, direction in space.objectives.items()]
    constraints = [f"{name} {formatting.bound(bound)}" for name, bound in space.constraints.items()]

    trials = f"{len(rows)}"
    if space.budget.trials is not None:
        trials += f" of {space.budget.trials}"
    if rows:
        trials += f": {_status_counts(rows)}"

    device_time = formatting.duration(known.device_hours) or "0 s"
    if space.budget.max_gpu_hours:
        device_time += f" of {formatting.duration(space.budget.max_gpu_hours)}"

    facts = {
        "Dataset": _dataset(sweep),
        "Objective": ", ".join(objectives + constraints),
        "Scored by": f"{_sample_counts(space)}, extractor {space.scoring.extractors}",
        "Trials": trials,
        "Repeats": _status_counts(known.repeats) or "none",
        "Device time": device_time,
    }
    if known.preparations:
        facts["Needed first"] = formatting.preparations(known.preparations)
    if known.skipped:
        skipped = formatting.plural(len(known.skipped), "proposal")
        facts["Not trained"] = f"{skipped}: contradictory, or known beforehand to break a constraint"
    return facts


def _sample_counts(space: Space) -> str:
    """Return how many samples are scored, at the last rung and, if they are fewer, at the others."""
    text = f"{space.scoring.samples:,} samples"
    if not space.is_scored_in_full(0):
        text += f" at the last rung and {space.samples_at(0):,} at the others"
    return text


def _status_counts(items: Sequence[TrialRow] | Sequence[Repeat]) -> str:
    counts = Counter(item.status for item in items)
    return ", ".join(f"{count} {status}" for status, count in counts.items())


def _manifest(sweep: dict[str, Any]) -> Manifest | None:
    try:
        return manifests.load_manifest(Path(sweep["dataset"]["folder"]))
    except UserError:  # the dataset has been moved or removed
        return None


def _dataset(sweep: dict[str, Any]) -> str:
    name = sweep["dataset"]["name"]
    manifest = _manifest(sweep)
    if manifest is None:
        return name
    items = f"images, {manifest.size}×{manifest.size} {'grey' if manifest.channels == 1 else 'RGB'}"
    if "images" not in manifest.kinds:
        items = f"{manifest.modality} of up to {manifest.size} points"
    classes = f", {len(manifest.classes)} classes" if manifest.classes else ""
    return f"{name}: {manifest.splits['train'].count:,} {items}{classes}"


def _means(rows: Sequence[TrialRow], space: Space) -> str:
    """Say what the means and probabilities of raced trials are; empty if there are none."""
    if not any(row.raced for row in rows):
        return ""
    chance = f"within {MARGIN:.0%} of the best of the raced trials"
    if len(space.objectives) > 1:
        chance = "dominated by no other raced trial"
    return (
        "The scores of raced trials are means over fresh seeds with 95% intervals, by a model of all raced trials in "
        "which the noise of seeds is common. The seeds that choose the best trial also report its score. Its plain "
        "mean would flatter it, so each mean is drawn towards that of all, the more so the fewer and noisier its seeds."
        " After that the choice biases nothing. The score of the search (chosen at) is left out. "
        f"The probability is that of the trial to be {chance}."
    )


def _samples(
    folder: SweepFolder, rows: Sequence[TrialRow], space: Space, problems: list[str]
) -> dict[str, list[pictures.Picture]]:
    """Return the sample grids of the three best trials, and of the best one its earlier rungs and nearest neighbours.

    Of trials with a coreset, also the picture of it. Each damaged image adds a line to `problems`.
    """
    groups: dict[str, list[pictures.Picture]] = {"best": [], "steps": [], "neighbours": [], "coresets": []}

    def add(group: str, path: Path, caption: str) -> None:
        try:
            picture = pictures.read_picture(path, caption)
        except DamagedRecord as damage:
            problems.append(f"{damage}; the picture is left out")
            return
        if picture:
            groups[group].append(picture)

    rungs = space.budget.rungs_kimg
    finished = [row for row in rows if row.finished]
    for row in finished[:3]:
        files = _typical_files(folder, row, space)
        add("best", files.samples_png, f"Trial {row.number}, repeat {files.repeat}, {rungs[-1]:g} kimg")
        add("coresets", files.coreset_png, f"Trial {row.number}: what its coreset keeps most clearly, and drops")
    if finished:
        files = _typical_files(folder, finished[0], space)
        for rung in figures.spread(rungs[::-1], MAX_STEPS)[::-1]:
            add("steps", files.samples / f"{rung:g}.png", f"{rung:g} kimg")
        add("neighbours", files.neighbours_png, _memorisation(rows[0]))
    return groups


def _typical_files(folder: SweepFolder, row: TrialRow, space: Space) -> RepeatFolder:
    typical = leaderboard.typical_repeat(row, space)
    return folder.repeat(typical.trial, typical.repeat)


def _memorisation(row: TrialRow) -> str:
    """Return the caption of the nearest training images: which fraction of the samples is memorised."""
    scored = [repeat.rungs[row.kimg] for repeat in row.trial.repeats if row.kimg in repeat.rungs]
    scores = scored[0].scores if scored else {}
    name = next((name for name in scores if name.startswith("memorized_fraction")), "")  # the first extractor's
    fraction = scores.get(name)
    control = scores.get(f"{name}_holdout")
    text = f"Trial {row.number}: samples, each followed by its nearest training image"
    if fraction is not None:
        text += f". Memorised: {fraction:.1%} of the samples"
        if control is not None:
            text += f", {control:.1%} of held-out images as a control"
    return text


def _sortable(value: Any) -> str:
    """Return what the leaderboard is sorted by: a number in full precision, the empty text if there is none."""
    if isinstance(value, float) and math.isnan(value):
        return ""
    return str(value)


def _origin(sweep: dict[str, Any]) -> dict[str, str]:
    versions = ", ".join(f"{package} {version}" for package, version in sweep["versions"].items())
    data = sweep["dataset"]
    return {
        "Seed of the sweep": str(sweep["seed"]),
        "Dataset": f"{data['name']}, content {data['content_hash']}",
        "Dataset's folder": data["folder"],
        "Packages": versions,
        **_earlier_software(sweep),
    }


def _earlier_software(sweep: dict[str, Any]) -> dict[str, str]:
    """Return an entry that lists the repeats that ended with other code or packages; empty if there are none."""
    texts = []
    for entry in sweep.get("earlier", []):
        if entry["repeats"]:
            repeats = ", ".join(entry["repeats"])
            torch_version = entry["versions"].get("torch", "unknown")
            texts.append(f"{repeats} with torch {torch_version}, code {entry['code'][:12]}")
    if not texts:
        return {}
    return {"Repeats that ended with other code or packages": "; ".join(texts)}
