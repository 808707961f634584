"""Long benchmarks take only what time others leave."""

import os
from pathlib import Path


def take_idle_time() -> None:
    """Put this process into the idle scheduling class, where Linux has one.

    Where it also shares the processor between sessions before it does so between processes (autogroup), an idle
    process that leads a session of its own would still get its session's whole share: the session gets the least, too.
    """
    if hasattr(os, "SCHED_IDLE"):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    group = Path("/proc/self/autogroup")
    if group.exists() and os.getsid(0) == os.getpgrp():
        group.write_text("19")
