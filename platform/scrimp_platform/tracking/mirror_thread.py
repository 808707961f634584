"""The thread that keeps MLflow up to date while a sweep runs; the sweep waits for it only at its end."""

import math
import threading
import time
from collections.abc import Callable

from scrimp_platform import store
from scrimp_platform.store import Storage, SweepFolder
from scrimp_platform.tracking import mlflow_server
from scrimp_platform.tracking.mirror import CRASHED, Mirror
from scrimp_platform.tracking.mlflow_server import STEP_TIMEOUT_S, Server
from scrimp_trainers.common.errors import UserError

SYNC_INTERVAL_S = 5.0
MAX_RETRY_INTERVAL_S = 60.0
PROGRESS_INTERVAL_S = 10.0
"""Time between two progress messages while the sweep's end waits for MLflow."""


class MirrorThread:
    """The thread that keeps a mirror up to date while a sweep runs.

    Parameters
    ----------
    folder, storage
        The sweep, and the storage whose embedded server it uses.
    uri : str or None
        Address of another server; None for the embedded one.
    say
        Called with each message for the user.
    interval_s : float
        Seconds between two synchronisations.

    Raises
    ------
    UserError
        If `uri` is not an HTTP address.
    """

    def __init__(
        self,
        folder: SweepFolder,
        storage: Storage,
        uri: str | None,
        say: Callable[[str], object] = print,
        interval_s: float = SYNC_INTERVAL_S,
    ) -> None:
        self._folder = folder
        self._storage = storage
        self._uri = None if uri is None else mlflow_server.check_address(uri)
        self._say = say
        self._interval_s = interval_s

        self._server: Server | None = None
        self._server_lock = threading.Lock()  # held while the embedded server is started or released
        self._stopped = False
        self._mirror: Mirror | None = None
        self._link = ""
        self._refusals_shown = 0
        self._sent: tuple[int, int] | None = None  # runs that are up to date, of how many
        self._failures = 0  # in a row
        self._cause = "it is slow"  # why MLflow is not up to date
        self._started = time.time()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mlflow", daemon=True)

    def start(self) -> None:
        """Start the thread, which starts the embedded server if needed, and return at once."""
        self._thread.start()

    def stop(self, stall_timeout_s: float, total_timeout_s: float = math.inf) -> None:
        """Send the rest and stop.

        This gives up when no run has become up to date for `stall_timeout_s`, after `total_timeout_s` in all, or at
        Ctrl-C. `scrimp sync`, or the sweep's command when it runs again, sends what is missing then. The embedded
        server has `total_timeout_s` again to end, at most 10 s, before it is killed.
        """
        self._ending.set()
        try:
            self._wait(stall_timeout_s, total_timeout_s)
        except KeyboardInterrupt:
            self._cause = "interrupted"
        if self._thread.is_alive() or self._failures:
            self._say(f"MLflow is not up to date ({self._cause}); `scrimp sync {self._folder.path}` sends the rest")

        # The thread may still be running; it prints nothing from now on and starts no further server.
        say = self._say
        self._say = lambda _: None
        with self._server_lock:
            self._stopped = True
            if self._server:
                try:
                    self._server.release(min(total_timeout_s, STEP_TIMEOUT_S))
                except UserError as error:
                    say(str(error))
                if self._link and not mlflow_server.is_reachable(self._server.uri):
                    say(f"MLflow ended with the sweep; `scrimp ui --storage {self._storage.path}` shows it again")

    def _wait(self, stall_timeout_s: float, total_timeout_s: float) -> None:
        """Wait for the thread while it makes progress, and print the progress from time to time."""
        began = time.monotonic()
        progressed = began
        shown = began
        previous = self._sent
        while self._thread.is_alive() and time.monotonic() < min(progressed + stall_timeout_s, began + total_timeout_s):
            self._thread.join(0.1)
            if self._sent != previous:
                previous = self._sent
                progressed = time.monotonic()
            if self._sent and time.monotonic() > shown + PROGRESS_INTERVAL_S:
                shown = time.monotonic()
                sent, total = self._sent
                self._say(f"MLflow: {sent} of {total} runs are up to date; Ctrl-C leaves the rest for later")

    def _note_progress(self, sent: int, total: int) -> None:
        self._sent = (sent, total)

    def _run(self) -> None:
        """Synchronise until the sweep ends and its outcome has been sent."""
        is_last = False
        pause = 0.0
        while not is_last:
            is_last = self._ending.wait(pause)
            began = time.monotonic()
            try:
                outcome = self._outcome() if is_last else ""
                self._sync(outcome)
            except Exception as error:
                self._note_failure(error)
                pause = min(MAX_RETRY_INTERVAL_S, self._interval_s * 2**self._failures)
                continue
            self._note_success()
            # The longer a synchronisation takes, the longer the pause: the server shares the cores that train.
            pause = max(self._interval_s, 3 * (time.monotonic() - began))

    def _note_failure(self, error: Exception) -> None:
        self._failures += 1
        self._cause = self._explain(error)
        if self._failures == 2:  # a single failure may be chance
            self._say(f"MLflow: {self._cause}; the sweep continues, and MLflow receives the missing data later")

    def _note_success(self) -> None:
        if self._failures > 1:
            self._say("MLflow is reachable again and up to date")
        self._failures = 0
        refused = self._mirror.refused if self._mirror else []
        for message in refused[self._refusals_shown :]:
            self._say(f"MLflow refused a value, which will be missing there: {message}")
        self._refusals_shown = len(refused)

    def _sync(self, outcome: str) -> None:
        if not self._folder.description.exists():
            return  # the storage is gone; a server would create its folder again
        uri = self._uri or self._embedded_server()
        if self._mirror is None or self._mirror.uri != uri:
            self._mirror = Mirror(self._folder, uri, self._note_progress)
        self._mirror.sync(outcome)
        if self._link != self._mirror.link:
            self._link = self._mirror.link
            self._say(f"MLflow: {self._link}")

    def _embedded_server(self) -> str:
        """Return the address of the embedded server, started if necessary."""
        try:
            return self._join_server()
        except UserError:
            # When a Ray job ends, Ray kills its server, too, while there is still data to send. Start another one.
            return self._join_server()

    def _join_server(self) -> str:
        with self._server_lock:
            if self._stopped:  # nobody would stop another server
                raise UserError("the sweep has ended")
            if self._server is None:
                self._server = mlflow_server.join_or_start(self._storage)
            server = self._server
        try:
            server.wait_until_ready()
        except UserError:
            with self._server_lock:
                server.release()
                self._server = None
            raise
        server.log_in()
        return server.uri

    def _outcome(self) -> str:
        """Return the outcome that this driver recorded; an older one is that of an earlier driver."""
        outcome = store.read_sound(self._folder.outcome)
        if outcome and outcome["ended"] >= self._started:
            return outcome["reason"]
        return CRASHED

    def _explain(self, error: Exception) -> str:
        if isinstance(error, UserError):
            return str(error)
        if self._mirror and not mlflow_server.is_reachable(self._mirror.uri):
            return f"the server at {self._mirror.uri} does not answer"
        message = " ".join(str(error).split())
        return f"{type(error).__name__}: {message[:200]}"
