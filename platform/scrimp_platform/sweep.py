"""The sweep, START READING HERE: plan, connect, search, race, report.

What is trained next, who is stopped and who is repeated is the ledger's to decide (search/).
Ray Tune runs what it decides (search/tune_loop.py, worker.py). MLflow mirrors what is on disk (tracking/).
"""

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass

from scrimp_cluster import doctor
from scrimp_platform import cluster, interrupt, job, plan, storage_loss, store
from scrimp_platform.cli import terminal
from scrimp_platform.cluster import Node, Placement
from scrimp_platform.log import Log
from scrimp_platform.node_pool import NodePool
from scrimp_platform.plan import Options, Plan
from scrimp_platform.report import leaderboard
from scrimp_platform.search import estimate, records
from scrimp_platform.search.ledger import Ledger
from scrimp_platform.store import SweepFolder
from scrimp_platform.throttle import Throttle
from scrimp_platform.tracking.mirror import Tracker
from scrimp_spaces.space import Space
from scrimp_trainers.common.errors import UserError

ENDING = "\nEnding the sweep; run the same command again to resume it. Ctrl-C again leaves at once."


@dataclass(frozen=True)
class Ending:
    """How a sweep has ended."""

    folder: SweepFolder
    """Where it is; of a dry run, where it would be."""
    status: int = 0
    """Exit status of its command: not 0 if it was interrupted or in vain, or was a job that did not end well."""


def sweep(options: Options) -> None:
    """Run one sweep as a command.

    Raises
    ------
    UserError
        If what was asked for cannot be done; nothing has been started then.
    SystemExit
        With the sweep's exit status, unless that is 0.
    """
    if status := run_sweep(options).status:
        raise SystemExit(status)


def run_sweep(options: Options) -> Ending:
    """Run one sweep from the plan to the report; the same options again resume it.

    Raises
    ------
    UserError
        If what was asked for cannot be done; nothing has been started then.
    """
    # Plan: whatever can be refused is refused here, and before digits are prepared on first use.
    plan.check(options)
    placement = cluster.place(cluster.peek(), options.gpus_per_repeat)
    the_plan = plan.make(options)
    if options.dry_run:
        speed = estimate.last(the_plan, placement.gpus_per_repeat) or estimate.probe(the_plan)
        terminal.show_plan(the_plan, placement, speed)
        return Ending(the_plan.folder)

    # On a running cluster the sweep is a job of the cluster's own, which outlives this terminal.
    tracker = Tracker(the_plan.folder, the_plan.storage, options.tracking_uri, terminal.say)
    if (address := cluster.address()) and not job.inside():
        return Ending(the_plan.folder, job.run(the_plan, address))

    # Connect: join the running cluster, or start Ray here.
    with cluster.connect() as nodes:
        placement = place(nodes, the_plan)
        terminal.show_plan(the_plan, placement, estimate.last(the_plan, placement.gpus_per_repeat))
        # `scrimp status` holds the lock for an instant when it looks.
        alone = store.exclusive(the_plan.folder.lock, f"sweep {the_plan.folder.path.name}", patience=1.0)
        with alone, storage_loss.explained(the_plan.folder):
            in_vain = carry_out(the_plan, placement, tracker)

    number = interrupt.requested()
    return Ending(the_plan.folder, 128 + number if number else int(in_vain))


def place(nodes: tuple[Node, ...], the_plan: Plan) -> Placement:
    """Fit repeats onto the nodes; of several nodes those on which nothing can train are left out, and named.

    Raises
    ------
    UserError
        If no node is left, or those with GPUs have not joined yet: a sweep keeps to GPUs or to CPU cores to its end.
    """
    gpus_per_repeat = the_plan.options.gpus_per_repeat
    missing = doctor.missing_nodes(nodes)
    terminal.show_faults(missing)
    if missing and not any(node.gpus for node in nodes):
        names = ", ".join(fault.node for fault in missing)
        raise UserError(f"no GPU yet: wait until {names} joins (`ray status`), or take it out of cluster.yaml")
    if len(nodes) == 1:
        return cluster.place(nodes, gpus_per_repeat)
    report = examine(nodes, the_plan)
    terminal.show_faults(report.faults)
    fit = tuple(node_report.node for node_report in report.nodes if not node_report.unfit)
    lost = any(node.gpus for node in nodes) and not any(node.gpus for node in fit)
    if lost or not fit or any(fault.stops for fault in report.head):
        raise UserError(f"no node can train: {report.faults[0]}; `scrimp doctor` shows all of them")
    return cluster.place(fit, gpus_per_repeat, avoided=tuple(node for node in nodes if node not in fit))


def examine(nodes: Sequence[Node], the_plan: Plan) -> doctor.ClusterReport:
    """Ask the doctor whether nodes can train this sweep's repeats."""
    together = the_plan.options.gpus_per_repeat != 1
    return doctor.examine(nodes, the_plan.storage.path, the_plan.dataset, together)


def carry_out(the_plan: Plan, placement: Placement, tracker: Tracker) -> bool:
    """Search, race and report; MLflow hears of it as it happens. Return whether that was in vain."""
    folder = the_plan.folder
    changes = plan.changes(store.read_json(folder.sweep) or {})
    store.write_json(folder.sweep, plan.record(the_plan))
    tracker.start()
    cut_short = True
    try:
        # Search and race: until the ledger has nothing left to do, or a limit is reached.
        ledger = open_ledger(the_plan, placement)
        if changes:
            ledger.say(f"changed since the last run: {changes}; sweep.json lists which repeats ended before")
        reason = run(ledger, the_plan, placement)

        # Report.
        store.patiently(lambda: keep_outcome(ledger, the_plan, placement, reason), terminal.say)
        store.patiently(lambda: conclude(folder, ledger.space, reason), terminal.say)
        cut_short = False
        return ledger.in_vain
    finally:
        if cut_short:
            tracker.stop(patience=2.0, most=2.0)
        else:
            tracker.stop(patience=60.0)


def open_ledger(the_plan: Plan, placement: Placement) -> Ledger:
    """Open the sweep's books, with the best of earlier sweeps proposed first if it has no trial yet."""
    log, throttle = Log(the_plan.folder.log), Throttle()
    ledger = None

    def say(decision: str) -> None:
        log(decision)
        with contextlib.suppress(OSError):  # a full disk: the next decision writes it again
            throttle(write_leaderboard)

    def write_leaderboard() -> None:
        if ledger and the_plan.folder.journal.exists():  # it has things to say already while it is opened
            leaderboard.write_csv(leaderboard.rank(ledger.trials, the_plan.space), the_plan.space, the_plan.folder)

    ledger = Ledger(the_plan.folder, the_plan.space, the_plan.options.seed, placement.devices, say)
    if not ledger.trials or ledger.rebuilt:
        for values in the_plan.warm_start:
            ledger.warm_start(values)
    return ledger


def run(ledger: Ledger, the_plan: Plan, placement: Placement) -> str:
    """Train until the sweep is complete or has to end; return why it ended."""
    from scrimp_platform.search import tune_loop
    from scrimp_platform.worker import tune_repeat

    gpus = placement.gpus_per_repeat
    task = {"sweep": str(the_plan.folder.path), "dataset": str(the_plan.dataset), "gpus": gpus}
    pool = NodePool(placement, lambda nodes: examine(nodes, the_plan), ledger.say)
    limits = tune_loop.Limits(ledger)
    with interrupt.deferred(lambda: terminal.say(ENDING)):
        tune_loop.run(ledger, tune_repeat, task, pool.places, limits, pool.fit_nodes, pool.blame, reuse=not gpus)
    return limits.reached or "complete"


def keep_outcome(ledger: Ledger, the_plan: Plan, placement: Placement, reason: str) -> None:
    """Write down why the sweep has ended, and how fast it was, for the next plan."""
    trials = len(ledger.folder.trial_numbers())
    store.write_json(ledger.folder.outcome, {"reason": reason, "ended": time.time(), "trials": trials})
    if speed := estimate.measured(ledger.folder, ledger.repeats):
        estimate.save(the_plan, placement.gpus_per_repeat, speed)


def conclude(folder: SweepFolder, space: Space, reason: str) -> None:
    """Write the leaderboard, the winning recipe and the report, and print what a person wants to know."""
    from scrimp_platform.report import page

    known = records.look(folder)
    rows = leaderboard.rank(known.trials, space)
    leaderboard.write_csv(rows, space, folder)
    # While records are damaged that may be the winner's, another trial does not take its place.
    if not any(map(leaderboard.lost, known.trials)):
        keep_recipe(folder, leaderboard.best(rows))
    page.write_report(folder)
    terminal.show_result(folder, rows, space, reason)
    terminal.show_problems(known.problems)


def keep_recipe(folder: SweepFolder, best: leaderboard.Row | None) -> None:
    """Write the recipe of the best trial; where there is none, an earlier end's goes."""
    if best:
        recipe = folder.repeat(best.number, best.counted[0].repeat).recipe
        store.write_atomic(folder.best_recipe, recipe.read_text())
    else:
        folder.best_recipe.unlink(missing_ok=True)
