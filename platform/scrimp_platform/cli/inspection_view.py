"""The output of `scrimp inspect` in the terminal."""

from collections.abc import Mapping

from scrimp_platform.cli import terminal
from scrimp_platform.inspection import Inspection, Nearness
from scrimp_platform.report import dataset, inspection_page
from scrimp_trainers.common.errors import printable


def show(inspection: Inspection) -> None:
    """Print what is known of a dataset or source, and what to sweep on it."""
    manifest = inspection.manifest
    kind = "dataset" if inspection.prepared else "source, as `scrimp prepare` would read it; nothing was written"
    terminal.say(f"{inspection.data}: {kind}")
    _show_list(inspection_page.facts(inspection))
    for line in dataset.summary_lines(manifest):
        _wrap(line)

    _heading("How near real images are, the floor of any score")
    _show_list(_nearness(inspection.nearness))
    if inspection.cached:
        _heading("Cached")
        _show_list(inspection.cached)

    _heading("Advice")
    _show_list({line.what: f"{line.value}: {line.reason}" for line in inspection.advice.lines})
    for command in inspection.advice.commands:
        terminal.say(f"  {command}")


def _nearness(nearness: Nearness) -> dict[str, str]:
    if nearness.scale is None:
        return {"not known": nearness.unknown, "to know it": nearness.command}
    name = nearness.scale.name
    return {mark.short: f"{name} {mark.text} ({mark.images})" for mark in nearness.scale.real}


def _show_list(entries: Mapping[str, str]) -> None:
    terminal.show_list({name: printable(text) for name, text in entries.items()})


def _wrap(line: str) -> None:
    """Print a line that breaks between words."""
    terminal.console.print(printable(line), markup=False)


def _heading(text: str) -> None:
    terminal.console.print(f"\n[bold]{text}[/bold]")
