"""The tables of the comparison, from the cells that have been run."""

import json
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.search import cells
from benchmarks.search.races import NAME as RACES
from benchmarks.search.simulate import STEP
from benchmarks.search.statistics import Difference, holm, paired, wilson
from benchmarks.search.surfaces import HORIZON as SYNTHETIC_HORIZON
from benchmarks.search.tables import HORIZON as TABLE_HORIZON

Record = Mapping[str, Any]

WITHIN = 0.05
MARGIN = 0.02
"""A recommended recipe is as good as the best of the raced if it is worse by at most this share."""
JUDGED = {SYNTHETIC_HORIZON: (400.0, SYNTHETIC_HORIZON), TABLE_HORIZON: (800.0, TABLE_HORIZON)}
"""GPU-hours after which regrets are compared, by the surface's horizon."""
SPENT = {
    "GPU-h": "spent",
    "idle, %": "idle",
    "recipes": "trials",
    "to the end": "finished",
    "driver s": "driver_seconds",
}
"""What the tables of several goals say of what was spent, and its name in the records."""


def show(
    console: Console, surfaces: Iterable[str], methods: Sequence[str], seeds: Sequence[int], results: Path
) -> None:
    """Print a table for each surface that has cells."""
    for surface in surfaces:
        records = {method: cells.load(surface, method, seeds, results) for method in methods}
        some = next((record for own in records.values() for record in own.values()), None)
        if some is not None:
            console.print(table_of(some)(surface, records, results), "")
    console.print(verdicts(surfaces, seeds, results), "")


def table(surface: str, records: Mapping[str, Mapping[int, Record]], results: Path) -> Table:
    """Return a surface's table: a line a method, and how far Scrimp is from it on the seeds that both have."""
    early, late = judged_at(records)
    columns = [
        "seeds",
        f"at {early:g} GPU-h",
        f"at {late:g}",
        f"Scrimp minus it at {early:g}",
        f"at {late:g}",
        "Holm p",
    ]
    columns += [f"GPU-h to {100 * WITHIN:g}%", "idle, %", "recipes", "to the end", "driver s"]
    layout = empty_table(f"{surface}: mean true regret, %; in brackets 95% intervals", columns)

    scrimp = records.get(cells.SCRIMP, {})
    differences = {
        method: [difference(scrimp, own, hours) for hours in (early, late)]
        for method, own in records.items()
        if method != cells.SCRIMP and len(scrimp.keys() & own.keys()) > 1
    }
    corrected = dict(zip(differences, holm([pair[1].p for pair in differences.values()]), strict=True))
    for method, own in records.items():
        if not own:
            layout.add_row(f"{method}: {reason(results, surface, method)}")
            continue
        gaps = [signed(gap) for gap in differences.get(method, [])] or ["", ""]
        p = f"{corrected[method]:.3f}" if method in corrected else ""
        layout.add_row(method, *regret_cells(own.values(), early, late), *gaps, p, *other_cells(own.values(), late))
    return layout


def empty_table(title: str, columns: Sequence[str]) -> Table:
    """Return a table without rows, whose first column is the method."""
    layout = Table(title=title, title_justify="left")
    layout.add_column("method")
    for column in columns:
        layout.add_column(column, justify="right")
    return layout


def table_of(record: Record) -> Callable[[str, Mapping[str, Mapping[int, Record]], Path], Table]:
    """Return what makes the table of a surface, by one of its records."""
    if "volumes" in record:
        return table_of_fronts
    return table_of_constraints if "violations" in record else table


def table_of_constraints(surface: str, records: Mapping[str, Mapping[int, Record]], results: Path) -> Table:
    """Return the table of a surface with constraints: also how often what is recommended truly breaks them."""
    early, late = JUDGED[SYNTHETIC_HORIZON]
    title = (
        f"{surface}: mean true regret, %, of the recommendations that keep the constraints; in brackets 95% intervals; "
        "broken: share of recommendations that truly break them"
    )
    columns = ["seeds", f"broken at {early:g} GPU-h", f"at {late:g}", f"regret at {early:g}", f"at {late:g}"]
    columns += [f"Scrimp minus it at {late:g} where both keep", "infeasible GPU-h, %", *SPENT]
    layout = empty_table(title, columns)

    scrimp = records.get(cells.SCRIMP, {})
    for method, own in records.items():
        if not own:
            layout.add_row(f"{method}: {reason(results, surface, method)}")
            continue
        rows = own.values()
        broken = [share([breaks(record, hours) for record in rows]) for hours in (early, late)]
        regrets = [mean_regret_of_kept(rows, hours) for hours in (early, late)]
        gap = "" if method == cells.SCRIMP else gap_of_kept(scrimp, own, late)
        infeasible = percent(record["infeasible"] / record["spent"] for record in rows)
        layout.add_row(method, str(len(own)), *broken, *regrets, gap, infeasible, *spent_cells(rows))
    return layout


def gap_of_kept(scrimp: Mapping[int, Record], peer: Mapping[int, Record], hours: float) -> str:
    """Compare Scrimp's regrets with a peer's on the seeds on which what both recommend keeps the constraints."""
    kept = [{seed: record for seed, record in own.items() if not breaks(record, hours)} for own in (scrimp, peer)]
    seeds = kept[0].keys() & kept[1].keys()
    return f"{signed(difference(kept[0], kept[1], hours))}, {len(seeds)} seeds" if len(seeds) > 1 else ""


def breaks(record: Record, hours: float) -> bool:
    """Whether what is recommended after so many GPU-hours truly breaks a constraint, or there is none."""
    broken = record["violations"][round(hours / STEP) - 1]
    return broken is None or broken > 0


def mean_regret_of_kept(records: Iterable[Record], hours: float) -> str:
    """Return the mean regret in percent after so many GPU-hours of the recommendations that keep the constraints."""
    kept = [regret_at(record, hours) for record in records if not breaks(record, hours)]
    return percent(kept) if kept else ""


def table_of_fronts(surface: str, records: Mapping[str, Mapping[int, Record]], results: Path) -> Table:
    """Return the table of a surface with several objectives: the true hypervolumes of the recommended fronts."""
    early, late = JUDGED[SYNTHETIC_HORIZON]
    title = (
        f"{surface}: mean hypervolume of the recommended front, % of that of the true one; in brackets 95% intervals"
    )
    columns = ["seeds", f"at {early:g} GPU-h", f"at {late:g}", f"Scrimp minus it at {early:g}", f"at {late:g}", *SPENT]
    layout = empty_table(title, columns)

    scrimp = records.get(cells.SCRIMP, {})
    for method, own in records.items():
        if not own:
            layout.add_row(f"{method}: {reason(results, surface, method)}")
            continue
        means = [percent(volume_at(record, hours) for record in own.values()) for hours in (early, late)]
        seeds = sorted(scrimp.keys() & own.keys())
        gaps = ["", ""]
        if method != cells.SCRIMP and len(seeds) > 1:
            gaps = [
                signed(paired(*([volume_at(rows[seed], hours) for seed in seeds] for rows in (scrimp, own))))
                for hours in (early, late)
            ]
        layout.add_row(method, str(len(own)), *means, *gaps, *spent_cells(own.values()))
    return layout


def volume_at(record: Record, hours: float) -> float:
    """Return the hypervolume of the front that is recommended after so many GPU-hours."""
    return record["volumes"][round(hours / STEP) - 1]


def spent_cells(records: Iterable[Record]) -> list[str]:
    """Return means of what was spent: GPU-hours, idle nodes, recipes, repeats to the end, the driver's seconds."""
    means = {name: statistics.fmean(record[name] for record in records) for name in SPENT.values()}
    return [
        f"{means['spent']:.0f}",
        f"{100 * means['idle']:.1f}",
        f"{means['trials']:.0f}",
        f"{means['finished']:.0f}",
        f"{means['driver_seconds']:.1f}",
    ]


def reason(results: Path, surface: str, method: str) -> str:
    """Say why a method has no figures."""
    file = cells.unavailable(results, surface, method)
    return json.loads(file.read_text())["reason"] if file.exists() else "not run yet"


def judged_at(records: Mapping[str, Mapping[int, Record]]) -> tuple[float, float]:
    """Return the GPU-hours after which the regrets of a surface are compared."""
    some = next(record for own in records.values() for record in own.values())
    return JUDGED[STEP * len(some["regrets"])]


def regret_at(record: Record, hours: float) -> float:
    """Return the regret after so many GPU-hours; without a recommendation, nan."""
    regret = record["regrets"][round(hours / STEP) - 1]
    return math.nan if regret is None else regret


def difference(scrimp: Mapping[int, Record], peer: Mapping[int, Record], hours: float) -> Difference:
    """Compare Scrimp's regrets with a peer's on the seeds that both have."""
    seeds = sorted(scrimp.keys() & peer.keys())
    return paired([regret_at(scrimp[seed], hours) for seed in seeds], [regret_at(peer[seed], hours) for seed in seeds])


def regret_cells(records: Iterable[Record], early: float, late: float) -> list[str]:
    """Return how many seeds there are, and the mean regrets."""
    records = list(records)
    means = [statistics.fmean(regret_at(record, hours) for record in records) for hours in (early, late)]
    return [str(len(records)), *(f"{100 * mean:.1f}" for mean in means)]


def signed(gap: Difference) -> str:
    """Return a difference with its interval, in points."""
    return f"{100 * gap.mean:+.1f} [{100 * gap.low:+.1f}, {100 * gap.high:+.1f}]"


def other_cells(records: Iterable[Record], horizon: float) -> list[str]:
    """Return the GPU-hours to near the best, the idle share, and means of counts and of the driver's seconds."""
    records = list(records)
    hours = cells.median_hours(records, WITHIN, STEP)
    to_near = f"over {horizon:g}" if math.isinf(hours) else f"{hours:g}"
    means = {name: statistics.fmean(record[name] for record in records) for name in ("idle", "trials", "finished")}
    seconds = statistics.fmean(record["driver_seconds"] for record in records)
    return [
        to_near,
        f"{100 * means['idle']:.1f}",
        f"{means['trials']:.0f}",
        f"{means['finished']:.0f}",
        f"{seconds:.1f}",
    ]


def verdicts(surfaces: Iterable[str], seeds: Sequence[int], results: Path) -> Table:
    """Return what Scrimp says of the recipe that it recommends, beside the truth."""
    layout = Table(title="Scrimp's verdict at the end of its sweep; means in %", title_justify="left")
    layout.add_column("surface")
    titles = ["races", "GPU-h", "regret", "95% intervals hold the truth", "stated minus true mean", "interval's width"]
    titles += [
        "stated: best",
        "it is",
        "stated: within 2%",
        "it is",
        "alone",
        "the best raced got fewer seeds",
        "race repeats",
    ]
    for title in titles:
        layout.add_column(title, justify="right")
    for surface in surfaces:
        sweeps = cells.load(surface, cells.SCRIMP, seeds, results).values()
        races = cells.load(surface, RACES, seeds, results).values()
        again = [race for searched in races for race in searched["races"]]
        for name, own in ((surface, list(sweeps)), (f"{surface}, races of {len(races)} searches", again)):
            stated = [record for record in own if record["stated"]]
            if stated:
                layout.add_row(name, *verdict_cells(stated))
    return layout


def verdict_cells(records: Sequence[Record]) -> list[str]:
    """Return how far what is stated is from the truth, and how the race went."""
    biases = []
    widths = []
    for record in records:
        mean, low, high = record["stated"]
        biases.append(mean / record["truth"] - 1)
        widths.append((high - low) / record["truth"])
    bias = paired(biases, [0.0] * len(biases))
    return [
        str(len(records)),
        f"{statistics.fmean(record['spent'] for record in records):.0f}",
        percent(record["final_regret"] for record in records),
        share([record["stated"][1] <= record["truth"] <= record["stated"][2] for record in records]),
        signed(bias),
        percent(widths),
        probability(record.get("best") for record in records),
        share([record["truth"] == best_raced(record)[0] for record in records]),
        probability(record.get("near") for record in records),
        share([record["truth"] <= (1 + MARGIN) * best_raced(record)[0] for record in records]),
        share([record["alone"] for record in records]),
        share([best_raced(record)[1] < max(seeds for _, seeds in record["raced"]) for record in records]),
        f"{statistics.fmean(sum(seeds for _, seeds in record['raced']) for record in records):.1f}",
    ]


def best_raced(record: Record) -> tuple[float, int]:
    """Return the truth and the seeds of the truly best recipe of a race; of duplicates, those of the most seeds."""
    return min(record["raced"], key=lambda raced: (raced[0], -raced[1]))


def probability(stated: Iterable[float | None]) -> str:
    """Return the mean of stated probabilities in percent; empty where a record of an earlier version has none."""
    known = [value for value in stated if value is not None]
    return percent(known) if known else ""


def percent(shares: Iterable[float]) -> str:
    """Return the mean of shares in percent."""
    return f"{100 * statistics.fmean(shares):.1f}"


def share(flags: Sequence[bool]) -> str:
    """Return in how many percent something holds, with Wilson's interval."""
    low, high = wilson(sum(flags), len(flags))
    return f"{100 * sum(flags) / len(flags):.0f}% [{100 * low:.0f}, {100 * high:.0f}]"
