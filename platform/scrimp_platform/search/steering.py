"""Requests to a sweep that runs: change a limit of its budget, stop a trial, pause the sweep.

A request is a file in the sweep's folder. A command on any node writes it, and the driver carries it out between two of
its decisions and writes its answer into the same file, which stays as a record of who changed what. What a request
changes is on disk before it acts and before it is answered: if the driver is killed in between, the next one carries
the request out again, which then changes nothing.
"""

import getpass
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from scrimp_platform import store
from scrimp_platform.search import budget_changes
from scrimp_platform.search.record_writer import RecordWriter
from scrimp_platform.search.records import Trial
from scrimp_platform.store import SweepFolder
from scrimp_trainers.common.errors import DamagedRecord, UserError

if TYPE_CHECKING:
    from scrimp_platform.search.ledger import Ledger

Action = Literal["set", "stop", "pause"]

CHECK_INTERVAL_S = 1.0
"""How often the driver looks for requests."""
ANSWER_TIMEOUT_S = 15.0
"""How long a command waits for the driver's answer."""
SILENCE_TIMEOUT_S = 3.0
"""The same where no driver is seen. On storage without locks between machines there may be one nevertheless."""
POLL_INTERVAL_S = 0.2
PAUSED = "paused"
"""Why a sweep has ended that was asked to pause."""


@dataclass(frozen=True)
class Request:
    """What a user asks of a sweep, and what the driver answered."""

    action: Action
    by: str
    """Who asks, and on which node."""
    made: float
    field: str = ""
    """Of `set`: a limit of the budget."""
    value: Any = None
    trial: int | None = None
    """Of `stop`."""
    answered: float | None = None
    answer: str = ""
    refused: bool = False

    def text(self) -> str:
        """Describe what is asked."""
        if self.action == "set":
            value = self.value if isinstance(self.value, str) else budget_changes.text_of(self.value)
            return f"{self.by} has set budget.{self.field} to {value}"
        target = "the sweep" if self.trial is None else f"trial {self.trial}"
        return f"{self.by} has asked to {self.action} {target}"


def make(action: Action, **values: Any) -> Request:
    """Return a request in the name of this user."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container may have users without names
        user = f"user {os.getuid()}"
    return Request(action, f"{user} on {os.uname().nodename}", time.time(), **values)


def ask(folder: SweepFolder, request: Request) -> Request:
    """Write a request and return it with its answer, or without one if no driver has answered in time.

    A request to pause is withdrawn then, unless a driver runs; any other one stays and is carried out by the next.

    Raises
    ------
    UserError
        If the folder belongs to another user.
    """
    if folder.path.stat().st_uid != os.geteuid():
        raise UserError(f"{folder.path}: belongs to another user; only its owner can change how the sweep runs")
    file = folder.request(f"{time.time_ns():020d}-{os.getpid()}")
    file.parent.mkdir(exist_ok=True)
    store.write_json(file, asdict(request))

    begun = time.monotonic()
    reply = request
    while not reply.answered:
        waited = time.monotonic() - begun
        if waited > ANSWER_TIMEOUT_S or (waited > SILENCE_TIMEOUT_S and not store.holder(folder.lock)):
            break
        time.sleep(POLL_INTERVAL_S)
        reply = _read(file)
    if not reply.answered and request.action == "pause" and not store.holder(folder.lock):
        file.unlink()
    return reply


def _read(file: Path) -> Request:
    """Read a request.

    Raises
    ------
    DamagedRecord
        If it is not what a command has written.
    """
    try:
        return Request(**(store.read_json(file) or {}))
    except TypeError:
        raise DamagedRecord(f"{file}: not a request of this version") from None


def waiting(folder: SweepFolder) -> list[str]:
    """Return a line for each request that the next driver will carry out, or ignore because it is damaged."""
    lines: list[str] = []
    for file in folder.requests():
        try:
            request = _read(file)
        except DamagedRecord as damage:
            lines.append(f"{damage}; this request will be ignored")
            continue
        if not request.answered and request.action != "pause":
            lines.append(request.text())
    return lines


class Steering:
    """The driver's side: carries out requests.

    Parameters
    ----------
    ledger : Ledger
        Of the sweep.
    end : Callable
        Called with the reason when the sweep is to end.
    """

    def __init__(self, ledger: "Ledger", end: Callable[[str], object]) -> None:
        self._ledger = ledger
        self._end = end
        self._writer = RecordWriter(ledger.folder, ledger.say)
        self._settled: set[Path] = set()
        self._due = 0.0

    def begin(self) -> None:
        """Carry out what has waited for a driver; to pause is out of date, since somebody has started the sweep."""
        for trial in self._ledger.trials:
            if trial.stopped:  # the driver may have been killed before it had ended all repeats
                self._end_repeats(trial)
        self._carry_out_all(starting=True)

    def check(self) -> None:
        """Carry out new requests, if it is time to look for them."""
        if time.monotonic() >= self._due:
            self._carry_out_all(starting=False)
            self._due = time.monotonic() + CHECK_INTERVAL_S

    def _carry_out_all(self, starting: bool) -> None:
        for file in self._ledger.folder.requests():
            if file in self._settled:
                continue
            self._settled.add(file)
            try:
                request = _read(file)
            except DamagedRecord as damage:
                self._ledger.say(f"{damage}; this request is ignored")
                continue
            if not request.answered:
                self._settle(file, request, starting)

    def _settle(self, file: Path, request: Request, starting: bool) -> None:
        """Carry out a request and write the answer."""
        refused = False
        try:
            answer = self._carry_out(request, starting)
        except UserError as refusal:
            answer = str(refusal)
            refused = True
            self._ledger.say(f"refusing what {request.by} asked for: {answer}")
        self._writer.write_record(file, asdict(replace(request, answered=time.time(), answer=answer, refused=refused)))
        if request.action == "pause" and not starting:
            self._ledger.say(f"pausing, as {request.by} asked; the sweep's command resumes it")
            self._end(PAUSED)

    def _carry_out(self, request: Request, starting: bool) -> str:
        """Do what is asked and say what was done."""
        if request.action == "set":
            return self._set(request)
        if request.action == "stop":
            return self._stop(request)
        if starting:
            return "out of date: the sweep has been started again since"
        return "the sweep pauses: what runs is ended, and resumes from its checkpoints"

    def _set(self, request: Request) -> str:
        before = self._ledger.space
        after = budget_changes.with_limit(before, request.field, request.value)
        old = getattr(before.budget, request.field)
        new = getattr(after.budget, request.field)
        if old == new:
            return f"budget.{request.field} is {budget_changes.text_of(new)} already"

        self._writer.save_limit(request.field, before, after)
        self._ledger.change_limits(after)
        change = f"budget.{request.field} is {budget_changes.text_of(new)}, was {budget_changes.text_of(old)}"
        self._ledger.say(f"{change}: set by {request.by}")
        return change

    def _stop(self, request: Request) -> str:
        number = request.trial
        trial = next((trial for trial in self._ledger.trials if trial.number == number), None)
        if trial is None or not trial.repeats:
            raise UserError(f"trial {number}: the sweep has begun no such trial")
        if trial.stopped:
            return f"trial {number} was {trial.stopped} already"
        if trial.status in ("pruned", "failed", "damaged"):
            raise UserError(f"trial {number}: there is nothing left to stop; it is {trial.status}")

        trial.stopped = f"stopped by {request.by}"
        self._writer.save_trial(trial)
        self._ledger.say(f"trial {number} is {trial.stopped}: it gets no more repeats")
        self._end_repeats(trial)
        return f"trial {number} is {trial.stopped}"

    def _end_repeats(self, trial: Trial) -> None:
        for repeat in trial.repeats:
            if repeat.open or repeat.status == "paused":
                self._ledger.stop(repeat, trial.stopped)
