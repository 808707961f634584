"""Ctrl-C and SIGTERM: what a command does, in which order, and with which exit status it ends."""

import contextlib
import errno
import os
import signal
import threading
import time

import click
import pytest

from scrimp_platform import cluster, interrupt, store
from scrimp_platform import sweep as the_sweep
from scrimp_platform.cli import main
from scrimp_platform.plan import SweepOptions

STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143}


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    """Leave neither handlers nor a noted signal behind; in the background a shell lets SIGINT be ignored."""
    handlers = {number: signal.getsignal(number) for number in STATUS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr(interrupt, "_requested", None)
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def send(number: int, after: float = 0.0) -> None:
    """Send this process a signal, now or from another thread."""
    if after:
        threading.Timer(after, os.kill, (os.getpid(), number)).start()
    else:
        os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", STATUS)
def test_a_command_that_is_interrupted_ends_with_one_line_and_the_signals_status(number, capsys):
    command = click.Command("work", callback=lambda: send(number))
    with pytest.raises(SystemExit) as left:
        main.main([], command)
    assert left.value.code == STATUS[number]
    assert capsys.readouterr().err.strip() == "scrimp: interrupted; run the same command again to resume"


@pytest.mark.parametrize("number", STATUS)
def test_the_first_signal_is_noted_and_the_second_ends_at_once(number):
    interrupt.listen()
    said = []
    with interrupt.deferred(lambda: said.append("ending")):
        send(number)
        assert interrupt.requested() == number
        with pytest.raises(KeyboardInterrupt) as raised:
            send(number)
    assert interrupt.exit_status(raised.value) == STATUS[number]
    assert said == ["ending"]


@pytest.mark.parametrize("number", STATUS)
def test_a_wait_for_room_on_the_disk_hears_a_signal_that_is_only_noted(number):
    def write() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    began = time.monotonic()
    with interrupt.deferred(lambda: None):
        send(number, after=0.3)
        with pytest.raises(KeyboardInterrupt) as raised:
            store.retry_when_disk_full(write, print)
    assert interrupt.exit_status(raised.value) == STATUS[number]
    assert time.monotonic() - began < 2

    # What the sweep still wants to write after that is tried once, and not waited for.
    said = []
    with pytest.raises(KeyboardInterrupt):
        store.retry_when_disk_full(write, said.append)
    assert said == []


@pytest.fixture
def command(scored_digits, tmp_path, monkeypatch):
    """Run a sweep as a command, on a machine without Ray, in which a function takes the place of all training."""
    monkeypatch.setattr(cluster, "running_address", lambda: None)
    monkeypatch.setattr(cluster, "connect", lambda: contextlib.nullcontext(cluster.peek()))

    def run(carry_out) -> None:
        monkeypatch.setattr(the_sweep, "carry_out", carry_out)
        the_sweep.run_command(SweepOptions(data=str(scored_digits.folder), storage=tmp_path))

    return run


@pytest.mark.parametrize("number", STATUS)
def test_a_sweep_that_was_ended_in_order_has_the_signals_status(number, command):
    def carry_out(*_) -> None:
        with interrupt.deferred(lambda: None):
            send(number)

    with pytest.raises(SystemExit) as left:
        command(carry_out)
    assert left.value.code == STATUS[number]


def test_a_sweep_in_which_no_trial_began_or_all_failed_has_status_1(command):
    with pytest.raises(SystemExit) as left:
        command(lambda *_: True)
    assert left.value.code == 1
    command(lambda *_: False)
