"""`python -m benchmarks.claims run [NAME]` trains what the claims need; `report` writes docs/claims.md from it."""

from pathlib import Path

import click

from benchmarks.claims import claim as claims
from benchmarks.claims.claim import Claim, Size, owner
from scrimp_platform.cli.main import main
from scrimp_trainers.common.errors import UserError

STORAGE = Path("runs/claims")
PAGE = Path("docs/claims.md")

storage_option = click.option(
    "--storage", type=click.Path(path_type=Path), default=STORAGE, show_default=True, help="Folder of the sweeps."
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def command() -> None:
    """Check the papers' claims."""


@command.command("run")
@click.argument("name", required=False)
@click.option("--size", type=click.Choice(["cpu", "gpu"]), help="Which budget.  [default: gpu where there is one]")
@storage_option
def run_command(name: str | None, size: Size | None, storage: Path) -> None:
    """Train the arms of claim NAME, or of all in turn, and write docs/claims.md. The same command resumes."""
    chosen = [claims.load(one) for one in ([name] if name else claims.names())]
    for claim in dict.fromkeys(owner(claim).name for claim in chosen if not claim.not_run):
        run(claims.load(claim), size or _size_here(), storage)
        write_page(storage)
    write_page(storage)


@command.command("report")
@storage_option
def report_command(storage: Path) -> None:
    """Write docs/claims.md from the sweeps' folders."""
    write_page(storage)


def run(claim: Claim, size: Size, storage: Path) -> None:
    """Train the arms of a claim as an ordinary sweep; nothing is done if all has been.

    Raises
    ------
    UserError
        If the claim has no such size, its data are not there, or the sweep ended early.
    """
    from benchmarks.claims import outcome
    from benchmarks.claims.data import dataset
    from benchmarks.measure import machine
    from scrimp_platform import store
    from scrimp_platform.plan import SweepOptions
    from scrimp_platform.store import Storage
    from scrimp_platform.sweep import run_command

    if size not in claim.sizes:
        raise UserError(f"claim {claim.name}: has no size {size}, only {', '.join(claim.sizes)}")
    places = Storage(storage.absolute())
    folder = outcome.sweep_folder(claim, size, places)
    before = outcome.read(claim, size, places)
    if before and before.complete:
        return
    file = places.path / "spaces" / f"{folder.path.name}.yaml"
    store.write_atomic(file, claim.space(size).to_yaml())
    images = dataset(claim.sizes[size].data, places.path / "datasets")
    outcome.note_machine(folder, machine(threads=1))
    run_command(SweepOptions(space=str(file), data=str(images), name=folder.path.name, storage=places.path))
    reason = store.read_json(folder.outcome)["reason"]
    if reason != "complete":
        raise UserError(f"claim {claim.name}: ended early ({reason}); the same command goes on from here")
    if complete := outcome.read(claim, size, places):
        outcome.keep(claim, size, complete)


def write_page(storage: Path) -> None:
    """Write docs/claims.md."""
    from benchmarks.claims import report
    from scrimp_platform import store
    from scrimp_platform.store import Storage

    store.write_atomic(PAGE, report.page(claims.names(), Storage(storage.absolute())))


def _size_here() -> Size:
    import torch

    return "gpu" if torch.cuda.is_available() else "cpu"


if __name__ == "__main__":
    main(command=command)
