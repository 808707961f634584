"""`python -m benchmarks.claims run [NAME]` trains what the claims need; `report` writes docs/claims.md from it."""

import os
from pathlib import Path

import click

from benchmarks.background import take_idle_time
from benchmarks.claims import claim as claims
from benchmarks.claims import power, records, report
from benchmarks.claims.claim import Claim, device_of, owner
from scrimp_platform.cli.main import main
from scrimp_trainers.common.errors import UserError
from scrimp_trainers.common.files import write_atomic

STORAGE = Path("runs/claims")
PAGE = Path("docs/claims.md")
BUDGETS = ("cpu", "cpu-cifar10", "cpu-kanji", "gpu")
"""All budgets that a claim may have, in the order in which they are run."""

storage_option = click.option(
    "--storage",
    type=click.Path(path_type=Path),
    default=STORAGE,
    show_default=True,
    help="Folder of prepared datasets and of trainings under way.",
)
budget_option = click.option(
    "--budget", type=click.Choice(BUDGETS), help="Which budget.  [default: gpu where there is one, else all of the CPU]"
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def command() -> None:
    """Check the papers' claims."""


@command.command("run")
@click.argument("name", required=False)
@budget_option
@storage_option
def run_command(name: str | None, budget: str | None, storage: Path) -> None:
    """Train what claim NAME needs, or all claims in turn, and write docs/claims.md. The same command goes on.

    It takes only the time that nobody else wants of one core.
    """
    work_in_background()
    from benchmarks.claims.run import run

    chosen = _chosen(name, budget)
    budgets = [budget] if budget else budgets_here()
    for file in run(chosen, budgets, records.KEPT, storage.absolute()):
        click.echo(str(file))
        write_page()
    write_page()


@command.command("report")
def report_command() -> None:
    """Write docs/claims.md from the records in docs/claims/."""
    write_page()


@command.command("plan")
@click.option("--gpu", is_flag=True, help="Of the budgets for GPUs.")
def plan_command(gpu: bool) -> None:
    """Say how many seeds each claim needs and has, and what is left to run."""
    click.echo("\n".join(plan_lines("gpu" if gpu else "cpu")))


@command.command("time")
@click.argument("name")
@click.argument("budget", type=click.Choice(BUDGETS))
@storage_option
def time_command(name: str, budget: str, storage: Path) -> None:
    """Measure the minutes of one core that one arm with one seed takes, from brief trainings."""
    use_one_thread()
    from benchmarks.claims.run import minutes_of

    (claim,) = _chosen(name, budget)
    click.echo(f"{name}, {budget}: {minutes_of(owner(claim), budget, storage.absolute()):.1f} minutes")


def _chosen(name: str | None, budget: str | None) -> list[Claim]:
    """Return the claims to run.

    Raises
    ------
    UserError
        If the one that is named has no experiment, or not this budget.
    """
    if name is None:
        return claims.order([claims.load(each) for each in claims.names()])
    claim = claims.load(name)
    if claim.not_run:
        raise UserError(f"claim {name}: is not run: {claim.not_run}")
    known = claims.budgets_of(claim)
    if budget and budget not in known:
        raise UserError(f"claim {name}: has no budget {budget}, only {', '.join(known)}")
    return [claim]


def budgets_here() -> list[str]:
    """Return the budgets for this machine."""
    import torch

    device = "gpu" if torch.cuda.is_available() else "cpu"
    return [name for name in BUDGETS if device_of(name) == device]


def plan_lines(device: str) -> list[str]:
    """Return a line for each claim with each budget on one kind of machine, and the sum of what is left."""
    size, level = power.family_size(device), power.level_of(device)
    lines = [f"{size} primary comparisons, so Holm's strictest level is {level:.2g}"]
    for claim, name, budget in claims.runnable():
        if device_of(name) != device:
            continue
        assert claim.primary
        assert claim.power
        have = min(claims.seeds_of(budget, arm) for arm in claim.primary.arms)
        needed, deviation = power.seeds_for(claim, device), power.deviation_of(claim)
        why = f"needs {needed} for {claim.power.effect:.0%}, deviation {deviation:.3f}" if deviation else "no pilot"
        lines.append(f"{claim.name}, {name}: {have} seeds; {why}")

    lines.append("")
    left = 0.0
    for claim, name, budget in claims.runnable():
        if claim.experiment or device_of(name) != device:
            continue
        arms = claims.arms_of(claim, budget)
        total = sum(claims.seeds_of(budget, arm) for arm in arms)
        done = len(records.curves(records.KEPT, claim, name).all)
        line = f"{claim.name}, {name}: {done} of {total} trainings"
        if budget.minutes:
            hours = budget.minutes * (total - done) / 60
            left += hours
            line += f", {budget.minutes:g} minutes each, {hours:.1f} hours left"
        lines.append(line)
    return [*lines, f"left: {left:.1f} hours"] if left else lines


def work_in_background() -> None:
    """Use only what nobody else wants of a core, and one thread."""
    take_idle_time()
    use_one_thread()


def use_one_thread() -> None:
    """Use one thread, which does not spin while it waits."""
    # Set before torch is imported: the classifiers' two threads would spin while they wait for each other.
    os.environ["OMP_WAIT_POLICY"] = "passive"
    import torch

    torch.set_num_threads(1)


def write_page() -> None:
    """Write docs/claims.md."""
    write_atomic(PAGE, report.page(records.KEPT))


if __name__ == "__main__":
    main(command=command)
