"""The sweep, START READING HERE: plan, connect, search, race, report.

The ledger decides what is trained next, which repeats are stopped and which trials are repeated (search/). Ray Tune
carries that out (search/tune_loop.py, worker.py). MLflow mirrors what is on disk (tracking/).
"""

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from scrimp_cluster import doctor
from scrimp_cluster import nodes as cluster_nodes
from scrimp_cluster.doctor import ClusterReport
from scrimp_platform import cluster, interrupt, job, storage_loss, store, winner
from scrimp_platform.arrangement import Choice
from scrimp_platform.cli import doctor_view, live, plan_view, result_view, status, terminal
from scrimp_platform.cluster import AUTO, Node, Placement
from scrimp_platform.log import Log
from scrimp_platform.node_pool import NodePool
from scrimp_platform.plan import Plan, SweepOptions, check_options, make_plan
from scrimp_platform.report import leaderboard
from scrimp_platform.search import estimate, feasibility, records, warm_start
from scrimp_platform.search.ledger import Ledger
from scrimp_platform.search.steering import Steering
from scrimp_platform.store import SweepFolder
from scrimp_platform.sweep_record import recorded_choice, software_changes, sweep_record
from scrimp_platform.throttle import Throttle
from scrimp_platform.tracking.mirror_thread import MirrorThread
from scrimp_spaces.space import Space
from scrimp_trainers.common.errors import UserError

GPUS_FREE_S = 60.0
"""Time for which the GPUs of a node may be in use before they are measured."""
MEASURING_S = 3600.0
"""Time for all measurements, in which a dataset may have to be encoded first."""
CUT_SHORT_S = 1.0
"""Time for which a sweep that is cut short waits for MLflow, and then for the end of its server."""

ENDING = "\nEnding the sweep; run the same command again to resume it. Press Ctrl-C again to quit at once."


@dataclass(frozen=True)
class Ending:
    """How a sweep has ended."""

    folder: SweepFolder
    """Where it is; of a dry run, where it would be."""
    status: int = 0
    """Exit status of its command: not 0 if it was interrupted, has no result, or was a job that failed."""


def run_command(options: SweepOptions) -> None:
    """Run one sweep as a command.

    Raises
    ------
    UserError
        If the options cannot be carried out; nothing has been started then.
    SystemExit
        With the sweep's exit status, unless that is 0.
    """
    status = run_sweep(options).status
    if status:
        raise SystemExit(status)


def run_sweep(options: SweepOptions) -> Ending:
    """Run one sweep from the plan to the report; the same options resume it.

    Raises
    ------
    UserError
        If the options cannot be carried out; nothing has been started then.
    """
    # Plan: refuse what can be refused, before the digits are prepared on first use.
    check_options(options)
    placement = cluster.place(cluster.peek(), options.gpus_per_repeat)
    plan = make_plan(options)
    if options.dry_run:
        placement = as_recorded(plan, placement)
        speed = estimate.last_speed(plan, placement.gpus_per_repeat)
        if not speed and not plan.resumed:
            speed = estimate.measure_base_recipe(plan)
        plan_view.show_plan(plan, placement, speed)
        return Ending(plan.folder)

    # On a running cluster the sweep is a job of the cluster, which outlives this terminal.
    mirror = MirrorThread(plan.folder, plan.storage, options.tracking_uri, terminal.say)
    address = cluster.running_address()
    if address and not job.inside():
        return Ending(plan.folder, job.run_as_job(plan, address))

    # Connect: join the running cluster, or start Ray here.
    with cluster.connect() as nodes:
        placement = place_repeats(nodes, plan)
        # `scrimp status` holds the lock for an instant when it checks whether a driver runs.
        with store.exclusive(plan.folder.lock, f"sweep {plan.folder.path.name}", patience=1.0):
            placement = as_recorded(plan, placement)
            if plan.options.gpus_per_repeat == AUTO and not placement.choice:
                placement = measured(plan, placement)
            plan_view.show_plan(plan, placement, estimate.last_speed(plan, placement.gpus_per_repeat))
            with storage_loss.explained(plan.folder):
                in_vain = carry_out(plan, placement, mirror)

    signal_number = interrupt.requested()
    return Ending(plan.folder, 128 + signal_number if signal_number else int(in_vain))


def place_repeats(nodes: tuple[Node, ...], plan: Plan) -> Placement:
    """Fit repeats onto the nodes; of several nodes the unfit ones are left out and reported.

    Raises
    ------
    UserError
        If no node is fit, or those with GPUs have not joined yet: a sweep trains either on GPUs or on CPU cores.
    """
    gpus_per_repeat = plan.options.gpus_per_repeat
    missing = doctor.missing_nodes(nodes)
    doctor_view.show_faults(missing)
    if missing and not any(node.gpus for node in nodes):
        names = ", ".join(fault.node for fault in missing)
        raise UserError(f"no GPU yet: wait until {names} joins (`ray status`), or remove it from cluster.yaml")
    if len(nodes) == 1:
        return cluster.place(nodes, gpus_per_repeat)

    report = examine_nodes(nodes, plan, gpus_per_repeat != 1)
    doctor_view.show_faults(report.faults)
    fit = tuple(node_report.node for node_report in report.nodes if not node_report.unfit)
    all_gpus_unfit = any(node.gpus for node in nodes) and not any(node.gpus for node in fit)
    if all_gpus_unfit or not fit or any(fault.stops for fault in report.head):
        raise UserError(f"no node can train: {report.faults[0]}; `scrimp doctor` shows all faults")
    return cluster.place(fit, gpus_per_repeat, avoided=tuple(node for node in nodes if node not in fit))


def as_recorded(plan: Plan, placement: Placement) -> Placement:
    """With `--gpus-per-repeat auto`, return the placement that an earlier run of the sweep has chosen, if one has."""
    choice = recorded_choice(plan.folder) if plan.options.gpus_per_repeat == AUTO else None
    return with_choice(placement, choice) if choice else placement


def measured(plan: Plan, placement: Placement) -> Placement:
    """Measure on one node with how many GPUs per repeat most repeats finish, and return the placement with so many.

    Raises
    ------
    UserError
        If the node's GPUs are in use, or nothing could be measured.
    """
    from scrimp_platform import arrangement_times  # it imports torch

    node = min((node for node in placement.nodes if node.gpus), key=lambda node: node.gpus)
    terminal.say(f"Measuring on {node.name} how many GPUs per repeat let the most repeats finish; this takes minutes.")
    probe = cluster_nodes.start(node, arrangement_times.is_free, gpus=node.gpus)
    if cluster_nodes.wait_for({node: probe}, GPUS_FREE_S)[node].late:
        raise UserError(f"--gpus-per-repeat auto: the GPUs of {node.name} are in use; wait, or give a number")

    save_own_parts(plan)
    asked = (plan.space.model_dump(mode="json"), str(plan.dataset), plan.options.seed, node.gpus, node.cpus)
    started = cluster_nodes.start(node, arrangement_times.measure, *asked, gpus=node.gpus)
    answer = cluster_nodes.wait_for({node: started}, MEASURING_S)[node]
    if answer.error:
        raise UserError(f"--gpus-per-repeat auto: not measured on {node.name}: {answer.error}; give a number")
    choice = Choice(node.name, tuple(answer.value))
    if not choice.best:
        problem = choice.arrangements[0].problem
        raise UserError(f"--gpus-per-repeat auto: the base recipe does not train on {node.name}: {problem}")
    return with_choice(placement, choice)


def with_choice(placement: Placement, choice: Choice) -> Placement:
    """Return the placement with as many GPUs per repeat as was chosen."""
    gpus = choice.best.gpus if choice.best else None
    return replace(cluster.place(placement.nodes, gpus, placement.avoided), choice=choice)


def examine_nodes(nodes: Sequence[Node], plan: Plan, together: bool) -> ClusterReport:
    """Ask the doctor whether nodes can train this sweep's repeats, with several GPUs together or each alone."""
    return doctor.examine(nodes, plan.storage.path, plan.dataset, together)


def carry_out(plan: Plan, placement: Placement, mirror: MirrorThread) -> bool:
    """Search, race and report while MLflow is kept up to date; return whether the sweep has no result."""
    folder = plan.folder
    changes = software_changes(store.read_json(folder.description) or {})
    save_own_parts(plan)
    if not plan.resumed:
        warm_start.save(plan.warm_start, folder)
    store.write_json(folder.description, sweep_record(plan, placement.choice))
    mirror.start()
    cut_short = True
    try:
        # Search and race: until the ledger has nothing left to do, or a limit is reached.
        ledger = open_ledger(plan, placement)
        if changes:
            ledger.say(f"changed since the last run: {changes}; sweep.json lists the repeats that ended before")
        reason = search_and_race(ledger, plan, placement)

        # Report.
        ledger.show_race()
        store.retry_when_disk_full(lambda: save_outcome(ledger, plan, placement, reason), terminal.say)
        store.retry_when_disk_full(lambda: conclude(folder, ledger.space, reason), terminal.say)
        cut_short = False
        return ledger.in_vain
    finally:
        if cut_short:
            mirror.stop(stall_timeout_s=CUT_SHORT_S, total_timeout_s=CUT_SHORT_S)
        else:
            mirror.stop(stall_timeout_s=60.0)


def save_own_parts(plan: Plan) -> None:
    """Copy the user's own parts into the sweep's folder, where all nodes can read them."""
    for file in plan.own_parts:
        plan.folder.parts.mkdir(exist_ok=True)
        store.write_atomic(plan.folder.parts / file.name, file.read_text())


def open_ledger(plan: Plan, placement: Placement) -> Ledger:
    """Open the sweep's ledger."""
    log = Log(plan.folder.log)
    throttle = Throttle()
    ledger = None

    def say(decision: str) -> None:
        log(decision)
        with contextlib.suppress(OSError):  # a full disk: the next decision writes it again
            throttle(write_leaderboard)

    def write_leaderboard() -> None:
        # The ledger already reports while it is being opened.
        if ledger and plan.folder.journal.exists():
            leaderboard.write_csv(leaderboard.rank(ledger.trials, ledger.space), ledger.space, plan.folder)

    known_costs = partial(feasibility.known_costs, plan.space, plan.manifest)
    ledger = Ledger(plan.folder, plan.space, plan.options.seed, placement.devices, say, plan.warm_start, known_costs)
    return ledger


def search_and_race(ledger: Ledger, plan: Plan, placement: Placement) -> str:
    """Train until the sweep is complete or has to end; return why it ended."""
    from scrimp_platform.search import tune_loop
    from scrimp_platform.worker import tune_repeat

    gpus = placement.gpus_per_repeat
    task = {"sweep": str(plan.folder.path), "dataset": str(plan.dataset), "gpus": gpus}
    pool = NodePool(placement, lambda nodes: examine_nodes(nodes, plan, gpus > 1), ledger.say)
    limits = tune_loop.Limits(ledger)
    steering = Steering(ledger, limits.end)
    steering.begin()

    def each_step() -> None:
        steering.check()
        refresh()

    with interrupt.deferred(lambda: terminal.say(ENDING)), live.live_table(lambda: status.of_driver(ledger)) as refresh:
        tune_loop.run_repeats(
            ledger,
            tune_repeat,
            task,
            pool.places,
            limits,
            pool.fit_nodes,
            pool.record_failure,
            reuse=not gpus,
            each_step=each_step,
        )
    return limits.reached or "complete"


def save_outcome(ledger: Ledger, plan: Plan, placement: Placement, reason: str) -> None:
    """Write why the sweep has ended, and how fast it was, for the next plan."""
    trials = len(ledger.folder.trial_numbers())
    store.write_json(ledger.folder.outcome, {"reason": reason, "ended": time.time(), "trials": trials})
    speed = estimate.measure_repeats(ledger.folder, ledger.repeats, list(ledger.preparations.values()))
    if speed:
        estimate.save_speed(plan, placement.gpus_per_repeat, speed)


def conclude(folder: SweepFolder, space: Space, reason: str) -> None:
    """Write the leaderboard, the recommended recipe and model and the report, and print a summary."""
    rows, problems = write_results(folder, space)
    result_view.show_result(folder, rows, space, reason)
    terminal.show_problems(problems)


def write_results(folder: SweepFolder, space: Space) -> tuple[list[leaderboard.TrialRow], list[str]]:
    """Write the leaderboard, the recommended recipe and model and the report.

    Returns the leaderboard, and what could not be read or copied, in words.
    """
    from scrimp_platform.report import page

    known = records.read_as_observer(folder)
    rows = leaderboard.rank(known.trials, space)
    problems = list(known.problems)
    leaderboard.write_csv(rows, space, folder)
    # A trial whose records are damaged may be the best: no other trial takes its place meanwhile.
    is_known = not any(map(leaderboard.may_hide_best, known.trials))
    if is_known:
        save_recipe(folder, leaderboard.best(rows))
    page.write_report(folder)
    if is_known:
        problems += winner.write_models(folder, rows, space)
    return rows, problems


def save_recipe(folder: SweepFolder, best: leaderboard.TrialRow | None) -> None:
    """Write the recipe of the best trial; if there is none, remove an earlier one."""
    if best:
        recipe = folder.repeat(best.number, best.counted[0].repeat).recipe
        store.write_atomic(folder.best_recipe, recipe.read_text())
    else:
        folder.best_recipe.unlink(missing_ok=True)
