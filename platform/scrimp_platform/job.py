"""The sweep as a job of the running Ray cluster, so that it survives a lost terminal.

Ray's Jobs API runs the same command again, on the head; this process only prints its log.
"""

import asyncio
import dataclasses
import logging
import os
import re
import shlex
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scrimp_cluster import proxies
from scrimp_platform import interrupt, store
from scrimp_platform.cli import live, status, terminal
from scrimp_platform.plan import ALL, Plan
from scrimp_platform.store import SweepFolder
from scrimp_spaces import space as spaces
from scrimp_spaces.space import Space
from scrimp_trainers.common.errors import UserError

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

STOP_TIMEOUT_S = 300
"""Time that Ray gives a stopped sweep to end before it kills it."""
EXIT_INTERRUPTED = 130
RAYS_LINE = re.compile(r"\S+ \S+\s+INFO job_manager\.py:|Running entrypoint for job ")
"""What Ray writes into a job's log before the sweep's first line."""
CODE = "from scrimp_platform.cli.main import main; main()"


def inside() -> bool:
    """Whether this process is a job of a Ray cluster already."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ  # that is the variable's whole name


def run_as_job(plan: Plan, address: str) -> int:
    """Run the sweep as a job of the cluster at this address, or attach to the job that runs it, until it ends.

    Returns the sweep's exit status.

    Raises
    ------
    UserError
        If the cluster accepts no jobs.
    """
    client = jobs_client(address)
    options = shlex.join(arguments(plan))
    running = find_job(client, plan)
    if running:
        name = str(running.submission_id)
        if running.metadata and running.metadata["options"] != options:
            terminal.say(f"Already running, with other options, kept until it ends: {running.metadata['options']}")
    else:
        name = submit(client, plan, options)

    terminal.say(f"Running as job {name}, which survives this terminal. Run the same command to reattach.")
    terminal.say(f"To stop it: Ctrl-C, or `ray job stop {name}`.\n")
    return follow(client, name, plan.folder)


def jobs_client(address: str) -> "JobSubmissionClient":
    """Connect to the cluster's Jobs API, which its dashboard serves."""
    from ray.exceptions import AuthenticationError, RayError
    from ray.job_submission import JobSubmissionClient

    proxies.bypass([proxies.host_of(address)])
    logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.ERROR)  # it logs each connection
    try:
        return JobSubmissionClient(address)
    except AuthenticationError as error:
        raise UserError(f"the Ray cluster at {address} rejects this user's token: {error}") from None
    except (OSError, RuntimeError, ValueError, RayError):
        raise UserError(
            f"no Ray cluster with a dashboard answers at {address}; start it, or unset RAY_ADDRESS and `ray stop`"
        ) from None


def find_job(client: "JobSubmissionClient", plan: Plan) -> "JobDetails | None":
    """Return the job that is running this sweep, if there is one."""
    sweep = str(plan.folder.path)
    for job in client.list_jobs():
        if not job.status.is_terminal() and (job.metadata or {}).get("sweep") == sweep:
            return job
    return None


def submit(client: "JobSubmissionClient", plan: Plan, options: str) -> str:
    """Start the sweep as a job, in this process's working directory; return the job's name."""
    # Not `-m`: Ray would put the module's folder on the workers' path, where its modules would shadow others.
    python = ["env", f"COLUMNS={terminal.console.width}", sys.executable, "-c", CODE, "sweep"]
    return client.submit_job(
        entrypoint=f"cd {shlex.quote(str(Path.cwd()))} && exec {shlex.join(python)} {options}",
        submission_id=f"{plan.folder.path.name}-{time.strftime('%Y%m%d-%H%M%S')}",
        metadata={"sweep": str(plan.folder.path), "options": options},
        runtime_env={"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_TIMEOUT_S)}},
    )


def arguments(plan: Plan) -> list[str]:
    """Return the sweep's options as command-line arguments, with absolute paths and the resolved name."""
    options = dataclasses.replace(
        plan.options,
        space=_space_argument(plan),
        data=str(plan.dataset),
        name=plan.folder.path.name,
        storage=plan.storage.path,
        warm_start=tuple(path if path == ALL else path.absolute() for path in plan.options.warm_start),
        fresh=False,
    )

    words: list[str] = []
    for field in dataclasses.fields(options):
        option = f"--{field.name.replace('_', '-')}"
        value = getattr(options, field.name)
        if field.name == "rungs" and value:
            value = ",".join(map(str, value))
        for each in value if isinstance(value, tuple) else (value,):
            if each is True:
                words.append(option)
            elif each is not None and each is not False:
                words += [option, str(each)]
    return words


def _space_argument(plan: Plan) -> str:
    """Return a space's name or absolute path; one that was made in Python is written into the sweep's folder first."""
    space = plan.options.space
    if isinstance(space, Space):
        store.write_atomic(plan.folder.space, space.to_yaml())
        return str(plan.folder.space)
    return space if space in spaces.names() else str(Path(space).absolute())


def follow(client: "JobSubmissionClient", name: str, folder: SweepFolder) -> int:
    """Print a job's log until it ends; return the job's exit status. Ctrl-C stops the job."""

    def stop(*_: Any) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        client.stop_job(name)

    try:
        # The job itself has no terminal, so the table is drawn here, from the sweep's files.
        with interrupt.handled(stop, signal.SIGINT), live.live_table(lambda: status.read_sweep(folder)) as refresh:
            asyncio.run(_print_log(client, name, refresh))
            job = client.get_job_info(name)
    except (OSError, RuntimeError):
        terminal.say("The cluster no longer answers. Run the same command again to reattach or to resume the sweep.")
        return 1

    if job.status == "SUCCEEDED":
        return 0
    if job.status == "STOPPED":
        return EXIT_INTERRUPTED
    if job.status == "FAILED" and job.driver_exit_code is None:
        terminal.say(f"The job failed: {job.message}")
    return job.driver_exit_code or 1


async def _print_log(client: "JobSubmissionClient", name: str, refresh: Callable[[], object]) -> None:
    import aiohttp

    async def refresh_often() -> None:
        while True:
            refresh()
            await asyncio.sleep(live.REFRESH_INTERVAL_S)

    table = asyncio.create_task(refresh_often())
    try:
        async for lines in client.tail_job_logs(name):
            for line in lines.splitlines(keepends=True):
                if not RAYS_LINE.match(line):
                    terminal.pass_on(line)
    except aiohttp.ClientError as error:
        raise ConnectionError from error
    finally:
        table.cancel()
