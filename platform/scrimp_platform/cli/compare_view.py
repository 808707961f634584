"""The winners of sweeps side by side, printed in the terminal."""

from collections.abc import Iterator, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from scrimp_platform.cli import terminal
from scrimp_platform.report.compare import Comparison, Group, Winner

MAX_NAME_WIDTH = 26
"""Of the first column, in characters; longer names of fields are folded."""


def show(comparison: Comparison) -> None:
    """Print a table for each group of sweeps whose scores were measured alike, and what sets the groups apart."""
    for group in comparison.groups:
        for name, text in group.basis.items():
            terminal.console.print(f"[bold]{escape(name)}[/bold]  {escape(text)}")
        if group.differs:
            reasons = "; ".join(group.differs)
            terminal.console.print(f"Not compared with the first table: {escape(reasons)}.")
        for table in tables(group, terminal.console.width):
            terminal.console.print(table)
    for winner in comparison.without:
        terminal.console.print(f"{escape(str(winner.folder))}: no winner. {escape(winner.verdict)}\n")


def tables(group: Group, width: int) -> Iterator[Table]:
    """Yield a column for each winner: in one table if they fit into the width, else in several below each other."""
    places: list[int] = []
    for place in range(len(group.winners)):
        if places and _width(group, [*places, place]) > width:
            yield _table(group, places)
            places = []
        places.append(place)
    yield _table(group, places)


def _width(group: Group, places: Sequence[int]) -> int:
    return Console(width=1000).measure(_table(group, places)).maximum


def _table(group: Group, places: Sequence[int]) -> Table:
    winners = [group.winners[place] for place in places]
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("", max_width=MAX_NAME_WIDTH, overflow="fold")
    for winner in winners:
        table.add_column(escape(winner.sweep), overflow="fold")

    for name in winners[0].result:
        style = "bold" if name in winners[0].scores else ""
        table.add_row(*map(escape, [name, *_results(winners, name)]), style=style)
    table.add_section()
    for path, values in group.settings.items():
        table.add_row(*map(escape, [path, *(values[place] for place in places)]))
    return table


def _results(winners: Sequence[Winner], name: str) -> list[str]:
    return [winner.result.get(name, "-") for winner in winners]
