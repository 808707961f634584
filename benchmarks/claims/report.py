"""`docs/claims.md`: a table with a row a claim, and a section a claim with its arms. Renewed without training."""

import math
from collections.abc import Sequence

from benchmarks.claims import claim as claims
from benchmarks.claims.claim import Claim, Comparison, Experiment, Paper, Size, owner
from benchmarks.claims.outcome import Outcome, kept, read
from benchmarks.claims.verdict import Interval, combine, difference, judge
from scrimp_platform.report import formatting
from scrimp_platform.search import stats
from scrimp_platform.store import Storage

PAPERS: dict[Paper, str] = {
    "ld-diffusion": "LD-Diffusion (Zhang et al., ICML 2025)",
    "ambient": "Does Generation Require Memorization? (Shah et al., ICML 2025)",
    "sparse-to-sparse": "Sparse-to-Sparse Training of Diffusion Models (Oliveira et al., TMLR 2025)",
    "prune-reweight": "Pruning then Reweighting (Li et al., ICASSP 2025)",
}
HEAD = """# The claims, checked

The claims of the four papers, tested at a size that a laptop or one GPU can afford. `make claims` generates this page;
`python -m benchmarks.claims report` regenerates it from the sweeps' folders, or from the scores kept in `docs/claims/`.
Do not edit it: edit `benchmarks/claims/*.yaml`.

An *arm* is one of the recipes that a claim compares. Every arm is trained from scratch, with each seed, to the same
length. The comparisons, their scores and the expected direction were fixed before training. A difference is between the
arms' means over seeds, with Welch's 95% interval. **Supported**: the interval of every comparison lies on the claimed
side of 0. **Not supported**: the interval of at least one lies entirely on the other side. **Undecided at this scale**:
anything else, which is common with few seeds and small networks. Intervals are not corrected for the number of claims.
`no higher (10%)` means: lower than 1.1 times the other. A verdict holds for the data, network and length in its
section, not for those of the paper. `fd_classifier` is a Fréchet distance in the features of a small classifier trained
on the whole set; it is not an FID.

| claim | paper's figure | measured | seeds | verdict | command | machine |
|---|---|---|---|---|---|---|
"""
SCORES = ("fd_classifier", "precision_classifier", "recall_classifier", "pixel_copied_fraction")


def page(names: Sequence[str], storage: Storage) -> str:
    """Write the whole page."""
    found = [claims.load(name) for name in names]
    ordered = [claim for paper in PAPERS for claim in found if claim.paper == paper]
    results = {claim.name: _results(claim, storage) for claim in ordered}
    rows, sections = "", ""
    for paper, citation in PAPERS.items():
        for claim in (claim for claim in ordered if claim.paper == paper):
            rows += "".join(_rows(claim, results[claim.name]))
            sections += _section(claim, citation, results[claim.name])
    return HEAD + rows + sections


def _results(claim: Claim, storage: Storage) -> dict[Size, Outcome]:
    found: dict[Size, Outcome] = {}
    for size in owner(claim).sizes:
        here = read(claim, size, storage)
        outcome = here if here and here.complete else kept(claim, size) or here
        if outcome:
            found[size] = outcome
    return found


def _rows(claim: Claim, results: dict[Size, Outcome]) -> list[str]:
    name = f"[{claim.name}](#{claim.name}): {claim.claim}"
    command = f"`make claims CLAIM={claim.name}`"
    if claim.not_run:
        return [_row(name, claim.figure, "", "", f"not run: {claim.not_run}", "", "")]
    if not results:
        return [_row(name, claim.figure, "", "", "not run yet", command, "")]
    return [
        _row(
            name,
            claim.figure,
            "<br>".join(said(one, outcome) for one in claim.comparisons) if outcome.complete else "",
            _seeds(claim, outcome),
            verdict(claim, outcome),
            command,
            "; ".join(outcome.machines),
        )
        for outcome in results.values()
    ]


def verdict(claim: Claim, outcome: Outcome) -> str:
    """Say what the comparisons show together, once every repeat has ended."""
    if not outcome.complete:
        return f"under way: {outcome.ended} of {outcome.planned} repeats"
    return combine(judge(one, *outcome.sides(one)) for one in claim.comparisons)


def said(comparison: Comparison, outcome: Outcome) -> str:
    """Say the two means of a comparison and their difference with its interval."""
    arm, against = outcome.sides(comparison)
    gap = difference(arm, against)
    at = "" if comparison.at == 1 else f" at {comparison.at:.3g} of the training"
    margin = f" ({comparison.margin:.0%})" if comparison.margin else ""
    means = " vs ".join(formatting.number(stats.summarize(side).mean) or "nothing" for side in (arm, against))
    return (
        f"{comparison.score}: {comparison.arm}{at} {comparison.expect}{margin} than {comparison.against}? "
        f"{means}, difference {_interval(gap)}"
    )


def _section(claim: Claim, citation: str, results: dict[Size, Outcome]) -> str:
    text = f"\n## {claim.name}\n\n{claim.claim}. {citation}; its figure: {claim.figure}.\n"
    if claim.note:
        text += f"\n{claim.note}\n"
    if claim.not_run:
        text += f"\nNot run: {claim.not_run}.\n"
    for size, experiment in owner(claim).sizes.items():
        text += f"\n**{size}**: {_describe(experiment)}\n"
        if size in results:
            text += _measured(claim, results[size])
    return text


def _describe(experiment: Experiment) -> str:
    data = experiment.data
    many = (
        f"{data.limit} images of " if data.limit else f"{data.per_class} images a class of " if data.per_class else ""
    )
    size = f" at {data.size} pixels" if data.size else ""
    reference = "the whole set" if data.full_reference else "the training images"
    changed = ", ".join(f"{path} {value}" for path, value in experiment.override.items())
    return (
        f"{many}{data.source}{size}, scored against {reference}; recipe `{experiment.recipe}`"
        + (f" with {changed}" if changed else "")
        + f", {experiment.kimg:g} kimg, {experiment.repeats} seeds, {experiment.samples:,} samples a score."
    )


def _measured(claim: Claim, outcome: Outcome) -> str:
    if not outcome.complete:
        return f"\nUnder way: {outcome.ended} of {outcome.planned} repeats have ended.\n"
    text = f"\nDataset content {outcome.dataset['content_hash'][:12]}.\n\n"
    for role, comparisons in (("", claim.comparisons), ("Control: ", claim.controls)):
        text += "".join(f"- {role}{said(one, outcome)}: {judge(one, *outcome.sides(one))}\n" for one in comparisons)
    scores = list(dict.fromkeys([*(one.score for one in [*claim.comparisons, *claim.controls]), *SCORES]))
    if claim.experiment:
        return f"{text}\nArms: see [{claim.experiment}](#{claim.experiment}).\n"
    text += f"\n| arm | recipe | seeds | {' | '.join(scores)} |\n|---|---|---|{'---|' * len(scores)}\n"
    for arm in outcome.space.arms:
        fields = ", ".join(f"{path} {value}" for path, value in claim.arms[arm].items()) or "as above"
        means = [formatting.interval(stats.summarize(outcome.values(arm, score))) for score in scores]
        text += _row(arm, fields, str(len(outcome.values(arm, scores[0]))), *means)
    return text


def _seeds(claim: Claim, outcome: Outcome) -> str:
    arms = {arm for one in claim.comparisons for arm in (one.arm, one.against)}
    counts = sorted({len(outcome.values(arm, claim.comparisons[0].score)) for arm in arms})
    return " to ".join(map(str, dict.fromkeys((counts[0], counts[-1]))))


def _interval(gap: Interval) -> str:
    if math.isnan(gap.mean):
        return "not known (fewer than two repeats finished)"
    return formatting.interval(stats.Summary(2, gap.mean, math.nan, gap.low, gap.high))


def _row(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n"
