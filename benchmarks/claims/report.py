"""`docs/claims.md`, from the records alone: what holds in half a page, a table, and a section a claim."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.claims import claim as claims
from benchmarks.claims import power, records
from benchmarks.claims.claim import (
    Budget,
    Claim,
    Comparison,
    Criterion,
    Paper,
    arms_of,
    budgets_of,
    device_of,
    owner,
    seeds_of,
)
from benchmarks.claims.data import LICENCES
from benchmarks.claims.records import Curves
from benchmarks.claims.verdict import Check, Effect, Verdict, at_end, at_rungs, check, checks, holm, judge
from scrimp_platform.report import formatting

PAPERS: dict[Paper, str] = {
    "prune-reweight": "Pruning then Reweighting (Li et al., ICASSP 2025)",
    "ld-diffusion": "LD-Diffusion (Zhang et al., ICML 2025)",
    "ambient": "Does Generation Require Memorization? (Shah et al., ICML 2025)",
    "sparse-to-sparse": "Sparse-to-Sparse Training of Diffusion Models (Oliveira et al., TMLR 2025)",
}
INTRODUCTION = """# The claims, checked

Four papers claim that diffusion models can do with fewer images or fewer weights, and copy fewer of the images that
they are trained on. This page says which of these claims hold in experiments that a laptop or one GPU can afford. A
verdict holds for the data, the network and the length of training in its section, not for the paper's.

{short}
"""
METHOD = """
## How a claim is decided

An *arm* is one of the recipes that a claim compares. Each is trained from scratch with several seeds and scored at
several lengths, the *rungs*. Everything below was fixed in `benchmarks/claims/*.yaml` before training.

1. **Regime.** A claim about copying says nothing of a model that copies nothing, nor one about final quality of a curve
   that still falls. The baseline has to be in the claim's regime at the last rung: otherwise the claim is *out of its
   regime: undecided*, whatever the numbers are.
2. **One primary comparison** at the last rung decides: a two-sided Welch test over seeds at 5%, corrected by Holm's
   method for the primary comparisons of all claims that have run, so that a verdict may weaken when more are run. An
   effect is the ratio of geometric means, or, for shares of samples, the difference of means; its 95% interval is not
   corrected. *Not supported* means that the other direction is shown; *undecided* that neither is.
3. **Controls** could refute the mechanism. Where the primary comparison holds but a control does not, the verdict is
   *effect supported, mechanism not shown*. Since all controls have to hold, they need no correction.
4. **Secondary** comparisons are shown, uncorrected, and decide nothing. Nor do the earlier rungs; where the effect
   has the opposite sign at one of them, the page says that it reverses.
5. **Seeds** are enough to find the stated effect with 80% power at the strictest of Holm's levels, given how much
   scores varied over seeds in earlier trainings (`docs/claims/pilot.json`; `benchmarks/claims/power.py` computes them).

`fd_classifier` is a Fréchet distance in the features of a small classifier trained on the whole set; it is not an FID.
`fd_features_OtherHalf` is the same of a classifier trained on the half of the images by which no coreset is chosen, and
`fd_features_PixelPCA` of the principal components of the pixels. `no higher (10%)` means: lower than 1.1 times the
other.

`make claims` trains what is missing, the most important claims first, and writes this page; `make claims CLAIM=name`
does one. Each arm with a seed becomes a small file in `docs/claims/`, so that any machine can go on from any other's.
`python -m benchmarks.claims plan` says what is left and what it takes. Do not edit this page: edit
`benchmarks/claims/`.

"""
TABLE = """| claim | regime | primary effect | verdict | controls | seeds |
|---|---|---|---|---|---|
"""
BASIC = ("pixel_copied_fraction",)
"""Scores that every table of arms has besides the named ones."""


@dataclass(frozen=True)
class Result:
    """A claim with one budget: what has been recorded, and the verdict if all of it has."""

    claim: Claim
    budget: str
    settings: Budget
    curves: Curves
    p: float = 1.0
    """Of the primary comparison, corrected."""

    @property
    def complete(self) -> bool:
        """Whether all trainings have ended that the claim needs."""
        ended, needed = records.progress(self.claim, self.curves, self.settings)
        return ended >= needed

    @property
    def begun(self) -> bool:
        """Whether any training has ended."""
        return records.progress(self.claim, self.curves, self.settings)[0] > 0

    @property
    def primary(self) -> Effect:
        """The effect that decides."""
        assert self.claim.primary
        return at_end(self.claim.primary, self.curves, self.settings)

    @property
    def verdict(self) -> Verdict:
        """The verdict; only of a complete result."""
        return judge(self.claim, self.curves, self.settings, self.p)

    @property
    def status(self) -> str:
        """The verdict with its length, or how much has been recorded."""
        if self.complete:
            return f"{self.verdict}, at {self.settings.rungs_kimg[-1]:g} kimg{self.reverses}"
        if not self.begun:
            return "not run yet"
        ended, needed = records.progress(self.claim, self.curves, self.settings)
        return f"under way: {ended} of {needed} trainings"

    @property
    def reverses(self) -> str:
        """At which rungs the effect is shown to have the other sign than at the last one; empty if at none."""
        assert self.claim.primary
        effects = at_rungs(self.claim.primary, self.curves, self.settings)
        last = effects.get(self.settings.rungs_kimg[-1])
        opposite = {"holds": "fails", "fails": "holds"}
        if last is None or last.side not in opposite:
            return ""
        others = [f"{rung:g}" for rung, effect in effects.items() if effect.side == opposite[last.side]]
        return f"; reverses at {formatting.conjunction(others)} kimg" if others else ""


def results(kept: Path) -> list[Result]:
    """Return every claim with every budget of it, with verdicts corrected for all that have run."""
    every = []
    for name in claims.names():
        claim = claims.load(name)
        for budget, settings in budgets_of(claim).items() if not claim.not_run else ():
            every.append(Result(claim, budget, settings, records.curves(kept, claim, budget)))
    corrected = holm({_key(each): each.primary.p for each in every if each.complete})
    return [
        Result(each.claim, each.budget, each.settings, each.curves, corrected.get(_key(each), 1.0)) for each in every
    ]


def _key(result: Result) -> str:
    return f"{result.claim.name} {result.budget}"


def page(kept: Path) -> str:
    """Write the whole page."""
    by_claim: dict[str, list[Result]] = {name: [] for name in claims.names()}
    for result in results(kept):
        by_claim[result.claim.name].append(result)

    ordered = [claim for paper in PAPERS for claim in map(claims.load, claims.names()) if claim.paper == paper]
    rows = "".join(row for claim in ordered for row in _rows(claim, by_claim[claim.name]))
    sections = "".join(_section(claim, by_claim[claim.name]) for claim in ordered)
    return INTRODUCTION.format(short=_in_short(ordered, by_claim)) + METHOD + TABLE + rows + sections


def _in_short(ordered: Sequence[Claim], by_claim: Mapping[str, list[Result]]) -> str:
    """Say what holds, what does not and what is open, in the claims' plain words."""
    groups: dict[str, list[str]] = {
        "**What holds**": [],
        "**What holds, though not shown to be for the reason that is claimed**": [],
        "**What does not hold**": [],
        "**What is open**": [],
    }
    holds, effect_only, fails, is_open = groups.values()
    by_verdict: dict[Verdict, list[str]] = {
        "supported": holds,
        "effect supported, mechanism not shown": effect_only,
        "not supported": fails,
    }
    unrun: list[str] = []
    waiting: list[str] = []
    for claim in ordered:
        link = f"{claim.plain} ([{claim.name}](#{claim.name}))"
        own = by_claim[claim.name]
        for result in own:
            if result.complete:
                by_verdict.get(result.verdict, is_open).append(f"{link} {_said_open(result)}".strip())
        if claim.not_run:
            unrun.append(f"  - {link}")
        elif not any(result.complete for result in own):
            waiting.append(f"  - {link}")

    lines = []
    for title, entries in groups.items():
        lines += [f"{title}:\n", *(f"- {entry}" for entry in entries)]
        if entries is is_open:
            lines += (
                ["- Not decided yet, since the trainings have not been run or have not ended:", *waiting]
                if waiting
                else []
            )
            lines += ["- Not to be decided here, for the reason in the section of each:", *unrun] if unrun else []
        elif not entries:
            lines.append("- Nothing so far.")
        lines.append("")
    return "\n".join(lines).rstrip()


def _said_open(result: Result) -> str:
    if result.verdict == "undecided":
        return f"With `{result.budget}` the numbers show neither direction."
    if result.verdict == "out of its regime: undecided":
        return f"With `{result.budget}` the baseline never showed what the claim is about."
    return f"With `{result.budget}`{result.reverses}." if result.reverses else ""


def _rows(claim: Claim, own: Sequence[Result]) -> list[str]:
    name = f"[{claim.name}](#{claim.name}): {claim.claim}"
    if claim.not_run:
        return [_row(name, "", "", f"not run: {claim.not_run}", "", "")]
    return [
        _row(
            f"{name} (`{result.budget}`)",
            "; ".join(map(_checked, checks(claim, result.curves, result.settings))) if result.complete else "",
            _effect(result.primary) if result.complete else "",
            result.status,
            "; ".join(_controls(result)) if result.complete else "",
            _seeds(result),
        )
        for result in own
    ]


def _seeds(result: Result) -> str:
    assert result.claim.primary
    counts = sorted({seeds_of(result.settings, arm) for arm in result.claim.primary.arms})
    return " and ".join(map(str, counts))


def _controls(result: Result) -> list[str]:
    words = {"holds": "holds", "fails": "is refuted", "undecided": "is not shown"}
    return [
        f"{control.shows}: {words[at_end(control, result.curves, result.settings).side]}"
        for control in result.claim.controls
    ]


def _section(claim: Claim, own: Sequence[Result]) -> str:
    text = f"\n## {claim.name}\n\n{claim.claim}. {PAPERS[claim.paper]}; its figure: {claim.figure}.\n"
    for paragraph in (claim.note, claim.features or owner(claim).features):
        if paragraph:
            text += f"\n{paragraph}\n"
    if claim.not_run:
        return f"{text}\nNot run: {claim.not_run}.\n"

    text += f"\n{_stated(claim)}"
    for result in own:
        text += f"\n### {claim.name}, {result.budget}: {result.status}\n\n{_describe(result)}\n"
        if result.begun:
            text += _measured(result)
    return text


def _stated(claim: Claim) -> str:
    """Say what was stated before training."""
    assert claim.primary
    text = "".join(f"- Regime: {_asked(each)}.\n" for each in claim.regime)
    text += f"- Primary: {_compared(claim.primary)}\n"
    text += "".join(f"- Control, {each.shows}: {_compared(each)}\n" for each in claim.controls)
    return text + "".join(f"- Secondary: {_compared(each)}\n" for each in claim.secondary)


def _asked(criterion: Criterion) -> str:
    if criterion.at_least is not None:
        return f"{criterion.score} of {criterion.arm} is at least {criterion.at_least:g}"
    return f"{criterion.score} of {criterion.arm} has changed by at most {criterion.settled:.0%} since the rung before"


def _checked(result: Check) -> str:
    value = f"{result.value:.0%}" if result.criterion.settled else formatting.number(result.value)
    bound = (
        f"at most {result.criterion.settled:.0%}"
        if result.criterion.settled
        else f"at least {result.criterion.at_least:g}"
    )
    what = f"change of {result.criterion.score}" if result.criterion.settled else result.criterion.score
    return f"{what} of {result.criterion.arm} {value or 'not known'}, {bound}: {'met' if result.met else 'not met'}"


def _compared(comparison: Comparison) -> str:
    def arm(name: str, at: float) -> str:
        return name if at == 1 else f"{name} at {at:g} of the training"

    margin = f" ({comparison.margin:.0%})" if comparison.margin else ""
    return (
        f"{comparison.score} of {arm(comparison.arm, comparison.at)} {comparison.expect}{margin} than of "
        f"{arm(comparison.against, comparison.against_at)}?"
    )


def _describe(result: Result) -> str:
    """Say what is trained, how long, with how many seeds and why."""
    budget, own = result.settings, owner(result.claim)
    many = f"{budget.data.limit:,} items of " if budget.data.limit else ""
    reference = "the whole set" if budget.data.full_reference else "the training items"
    changed = ", ".join(f"{path} {value}" for path, value in budget.override.items())
    longer = ", ".join(f"{arm} {factor:g} times as long" for arm, factor in own.lengths.items())
    rungs = formatting.conjunction([f"{rung:g}" for rung in budget.rungs_kimg])
    return (
        f"{many}{LICENCES[budget.data.source]}; scored against {reference}, {budget.samples:,} samples a score. Recipe "
        f"`{budget.recipe}`{f' with {changed}' if changed else ''}; scored at {rungs} kimg"
        f"{f' ({longer})' if longer else ''}. {_planned(result)}"
    )


def _planned(result: Result) -> str:
    claim = result.claim
    assert claim.power
    assert claim.primary
    deviation, device = power.deviation_of(claim), device_of(result.budget)
    unit = "" if claim.primary.scale == "ratio" else " of samples, as a difference"
    effect = f"{claim.power.effect:.0%}{unit}"
    if deviation is None:
        why = claim.power.why or "no seed changes what is counted"
        return f"{_seeds(result)} seeds of each arm of the primary comparison: {why}."
    needed = power.seeds_for(claim, device)
    text = (
        f"{_seeds(result)} seeds of each arm of the primary comparison; {needed} find an effect of {effect} with 80% "
        f"power at the level {power.level_of(device):.2g}, given a deviation of {deviation:.2g} over seeds"
    )
    if not claim.power.why:
        return f"{text}."
    return f"{text}. An effect of 10% would take {power.seeds_for(claim, device, power.USUAL)}: {claim.power.why}."


def _measured(result: Result) -> str:
    claim, curves, budget = result.claim, result.curves, result.settings
    assert claim.primary
    text = ""
    if result.complete:
        text += "".join(f"\n- Regime: {_checked(each)}." for each in checks(claim, curves, budget))
        ps = f"p {_p(result.primary.p)}, corrected {_p(result.p)}"
        text += f"\n- Primary: {_effect(result.primary)}, {ps}: {result.verdict}."
        text += "".join(
            f"\n- Control: {said} ({_effect(at_end(each, curves, budget))})."
            for said, each in zip(_controls(result), claim.controls, strict=True)
        )
        for each in claim.secondary:
            if set(each.arms) <= set(arms_of(owner(claim), budget)):
                effect = at_end(each, curves, budget)
                text += f"\n- Secondary: {_compared(each)} {_effect(effect)}: {effect.side}."
        text += "\n"
    text += _over_rungs(result)
    if claim.experiment:
        return f"{text}\nOther scores of the arms: see [{claim.experiment}](#{claim.experiment}).\n"
    return text + _origin(curves)


def _over_rungs(result: Result) -> str:
    """Return tables over kimg: the regime and the primary effect, and the mean of each score in each arm."""
    claim, curves, budget = result.claim, result.curves, result.settings
    assert claim.primary
    head = [f"{rung:g} kimg" for rung in budget.rungs_kimg]
    text = f"\n| | {' | '.join(head)} |\n|---|{'---|' * len(head)}\n"
    for criterion in claim.regime:
        checked = [check(criterion, curves, budget, rung) for rung in budget.rungs_kimg]
        text += _row(f"regime: {_asked(criterion)}", *("met" if each.met else "not met" for each in checked))
    effects = at_rungs(claim.primary, curves, budget)
    if effects:
        cells = [f"{_effect(each)}: {each.side}" for each in effects.values()]
        text += _row(f"primary: {claim.primary.arm} against {claim.primary.against}", *cells)

    named = [each.score for each in [*claim.comparisons, *claim.regime]]
    for score in dict.fromkeys([*named, *BASIC]):
        for arm in arms_of(owner(claim), budget):
            values = [curves.values(arm, score, rung) for rung in budget.rungs_kimg]
            if any(values) and (not claim.experiment or arm in claims.needed_arms(claim)):
                text += _row(f"{score}, {arm} ({curves.count(arm)})", *map(_mean, values))
    return text


def _mean(values: Sequence[float]) -> str:
    return formatting.number(statistics.fmean(values)) if values else ""


def _origin(curves: Curves) -> str:
    rows = curves.all
    machines = formatting.conjunction(sorted({row["machine"] for row in rows}))
    hours = sum(row["device_hours"] for row in rows)
    lost = sum(row["ending"] != "finished" for row in rows)
    diverged = f"; {lost} diverged" if lost else ""
    return f"\n{len(rows)} trainings, {formatting.number(hours)} device-hours{diverged}, on {machines}.\n"


def _effect(effect: Effect) -> str:
    if math.isnan(effect.estimate):
        return "not known"
    digits = [f"{end:.3g}" for end in (effect.estimate, effect.low, effect.high)]
    return f"{effect.scale} {digits[0]} [{digits[1]}, {digits[2]}]"


def _p(p: float) -> str:
    return "below 0.0001" if p < 0.0001 else f"{p:.2g}"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n"
