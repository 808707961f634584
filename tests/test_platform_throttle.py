"""Work that takes long is done less often."""

import time

from scrimp_platform import throttle
from scrimp_platform.throttle import Throttle


def test_quick_work_is_done_every_time():
    done, seldom = [], Throttle()
    for _ in range(5):
        seldom(lambda: done.append(1))
    assert len(done) == 5


def test_long_work_takes_a_tenth_of_the_time(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    begun, seldom = [], Throttle()

    def work() -> None:
        begun.append(now[0])
        now[0] += 2 + throttle.FREE_WORK_S

    for _ in range(5000):
        seldom(work)
        now[0] += 0.1
    share = len(begun) * 2 / (now[0] - 1000)
    assert 0.09 < share < 0.11
