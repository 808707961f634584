"""`python -m benchmarks.search`: run the cells that are missing, and print the tables of all."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import click
from rich.console import Console

from benchmarks.background import take_idle_time
from benchmarks.search import cells, report
from benchmarks.search import races as scrimp_races
from benchmarks.search.cells import (
    METHODS,
    MISLED,
    PEERS,
    PEERS_PYTHON,
    RESULTS,
    ROOT,
    SCRIMP,
    SURFACES,
    SWEEPS,
    WARM,
    Cell,
)

QUICK_METHODS = (SCRIMP, "random", "optuna-tpe", "optuna-tpe-halving")
QUICK_SURFACES = ("synthetic-2",)
SOURCES = ("", "platform", "search_spaces", "trainers")


def seeds_of(context: click.Context, parameter: click.Parameter, text: str) -> list[int]:
    """Read `0-19` or `3`."""
    del context, parameter
    first, _, last = text.partition("-")
    return list(range(int(first), int(last or first) + 1))


@click.command()
@click.option("--surface", "surfaces", multiple=True, type=click.Choice(list(SURFACES)), help="By default all.")
@click.option("--method", "methods", multiple=True, type=click.Choice(METHODS), help="By default all.")
@click.option("--seeds", default="0-19", callback=seeds_of, help="Tune on 0-19; 1000-1039 are for the report.")
@click.option("--results", default=RESULTS, type=click.Path(path_type=Path), help="Where finished cells are kept.")
@click.option("--quick", is_flag=True, help="Three seeds of one surface, without the peers' environment.")
@click.option("--show", is_flag=True, help="Only print what there is.")
@click.option("--races", default=0, help="Also race the leaders of each seed's search so many times with other seeds.")
@click.option("--here", is_flag=True, help="Run cells in this Python, and print nothing.")
def main(
    surfaces: tuple[str, ...],
    methods: tuple[str, ...],
    seeds: list[int],
    results: Path,
    quick: bool,
    show: bool,
    races: int,
    here: bool,
) -> None:
    """Compare search methods in simulated time on ten nodes."""
    surfaces = surfaces or tuple(SURFACES)
    methods = methods or METHODS
    if here:
        take_idle_time()
        cells.run(plan(surfaces, methods, seeds), results)
        if races:
            scrimp_races.run(surfaces, seeds, races, results)
    elif quick:
        with tempfile.TemporaryDirectory() as folder:
            cells.run(plan(QUICK_SURFACES, QUICK_METHODS, range(3)), Path(folder))
            report.show(console(), QUICK_SURFACES, QUICK_METHODS, range(3), Path(folder))
    else:
        if not show:
            run_all(surfaces, methods, seeds, results, races)
        report.show(console(), surfaces, methods, seeds, results)


def plan(surfaces: tuple[str, ...], methods: tuple[str, ...], seeds: list[int] | range) -> list[Cell]:
    """Return the cells in the order in which they are run: each method has a few seeds before one has many."""
    return [Cell(surface, method, seed) for seed in seeds for surface in surfaces for method in methods]


def run_all(surfaces: tuple[str, ...], methods: tuple[str, ...], seeds: list[int], results: Path, races: int) -> None:
    """Run Scrimp in its own environment and the peers in theirs."""
    own = [method for method in methods if method in (*SWEEPS, WARM, MISLED)]
    peers = [method for method in methods if method in PEERS]
    if own:
        run_in(Path(sys.executable), surfaces, own, seeds, results, races)
    if peers:
        run_in(PEERS_PYTHON, surfaces, peers, seeds, results)


def run_in(
    python: Path, surfaces: tuple[str, ...], methods: list[str], seeds: list[int], results: Path, races: int = 0
) -> None:
    """Run cells in another process."""
    options = ["--here", "--seeds", f"{seeds[0]}-{seeds[-1]}", "--results", str(results.absolute())]
    options += ["--races", str(races)]
    for surface in surfaces:
        options += ["--surface", surface]
    for method in methods:
        options += ["--method", method]
    sources = os.pathsep.join(str(ROOT / source) for source in SOURCES)
    environment = os.environ | {"PYTHONPATH": sources, "OMP_NUM_THREADS": "1"}
    subprocess.run([python, "-m", "benchmarks.search", *options], cwd=ROOT, env=environment, check=True)


def console() -> Console:
    """Return a console that is wide enough for the tables also where there is no terminal."""
    return Console(width=max(180, Console().width))


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.search")
