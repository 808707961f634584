"""The sweep as a job of the running Ray cluster, so that it goes on when the terminal that asked for it is gone.

Ray's Jobs API runs the same command once more, on the head; what is left here prints its log.
"""

import asyncio
import dataclasses
import logging
import os
import shlex
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scrimp_cluster import proxies
from scrimp_platform import interrupt, store
from scrimp_platform.cli import terminal
from scrimp_platform.plan import Plan
from scrimp_spaces import space as spaces
from scrimp_spaces.space import Space
from scrimp_trainers.common.errors import UserError

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

END = 300  # seconds that a sweep may take to end when it is told to, before Ray kills it
INTERRUPTED = 130
COMMAND = "from scrimp_platform.cli.main import main; main()"


def inside() -> bool:
    """Whether this process is a job of a Ray cluster already."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ  # that is the variable's whole name


def run(the_plan: Plan, address: str) -> int:
    """Run the sweep as a job of the cluster at this address, or attach to the job that runs it, and see it to its end.

    Returns the sweep's exit status.

    Raises
    ------
    UserError
        If the cluster takes no jobs.
    """
    client = connect(address)
    options = shlex.join(arguments(the_plan))
    running = find(client, the_plan)
    if running and running.metadata and running.metadata["options"] != options:
        terminal.say(f"It runs already, with other options, which hold until it ends: {running.metadata['options']}")
    name = str(running.submission_id) if running else submit(client, the_plan, options)
    terminal.say(f"This is job {name}; it goes on without this terminal, and the same command shows it again.")
    terminal.say(f"To end it: Ctrl-C, or `ray job stop {name}`.\n")
    return follow(client, name)


def connect(address: str) -> "JobSubmissionClient":
    """Reach the cluster's Jobs API, which its dashboard serves."""
    from ray.exceptions import AuthenticationError, RayError
    from ray.job_submission import JobSubmissionClient

    proxies.bypass([proxies.host_of(address)])
    logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.ERROR)  # it tells of each socket
    try:
        return JobSubmissionClient(address)
    except AuthenticationError as error:
        raise UserError(f"the Ray cluster at {address} does not know this user: {error}") from None
    except (OSError, RuntimeError, ValueError, RayError):
        raise UserError(
            f"no Ray cluster with a dashboard answers at {address}; start it, or unset RAY_ADDRESS and `ray stop`"
        ) from None


def find(client: "JobSubmissionClient", the_plan: Plan) -> "JobDetails | None":
    """Return the job that runs this sweep now, if there is one."""
    sweep = str(the_plan.folder.path)
    for job in client.list_jobs():
        if not job.status.is_terminal() and (job.metadata or {}).get("sweep") == sweep:
            return job
    return None


def submit(client: "JobSubmissionClient", the_plan: Plan, options: str) -> str:
    """Start the sweep as a job, from the folder in which it was asked for; returns the job's name."""
    # Not `-m`: Ray would put the module's folder on the workers' path, where its names are in the way of others.
    python = ["env", f"COLUMNS={terminal.console.width}", sys.executable, "-c", COMMAND, "sweep"]
    return client.submit_job(
        entrypoint=f"cd {shlex.quote(str(Path.cwd()))} && exec {shlex.join(python)} {options}",
        submission_id=f"{the_plan.folder.path.name}-{time.strftime('%Y%m%d-%H%M%S')}",
        metadata={"sweep": str(the_plan.folder.path), "options": options},
        runtime_env={"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(END)}},
    )


def arguments(the_plan: Plan) -> list[str]:
    """Return the sweep's options as a command line has them: paths absolute, the name as it was resolved."""
    asked = the_plan.options
    asked = dataclasses.replace(
        asked,
        space=_space_argument(the_plan),
        data=str(the_plan.dataset),
        name=the_plan.folder.path.name,
        storage=the_plan.storage.path,
        warm_start=tuple(path.absolute() for path in asked.warm_start),
        fresh=False,
    )
    words: list[str] = []
    for field in dataclasses.fields(asked):
        value, option = getattr(asked, field.name), f"--{field.name.replace('_', '-')}"
        if field.name == "rungs" and value:
            value = ",".join(map(str, value))
        for each in value if isinstance(value, tuple) else (value,):
            if each is not None and each is not False:
                words += [option] if each is True else [option, str(each)]
    return words


def _space_argument(the_plan: Plan) -> str:
    """Return a space's name or absolute path; one that was made in Python is written into the sweep's folder first."""
    asked = the_plan.options.space
    if isinstance(asked, Space):
        store.write_atomic(the_plan.folder.space, asked.to_yaml())
        return str(the_plan.folder.space)
    return asked if asked in spaces.names() else str(Path(asked).absolute())


def follow(client: "JobSubmissionClient", name: str) -> int:
    """Print a job's log from its beginning to its end; returns the job's exit status. Ctrl-C ends the job."""

    def end(*_: Any) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        client.stop_job(name)

    try:
        with interrupt.handled(end, signal.SIGINT):
            asyncio.run(_print_log(client, name))
            job = client.get_job_info(name)
    except (OSError, RuntimeError):
        terminal.say("The cluster does not answer any more. The same command shows the sweep again, or resumes it.")
        return 1
    if job.status == "STOPPED":
        return INTERRUPTED
    if job.status == "FAILED" and job.driver_exit_code is None:
        terminal.say(f"The job has failed: {job.message}")
    return 0 if job.status == "SUCCEEDED" else job.driver_exit_code or 1


async def _print_log(client: "JobSubmissionClient", name: str) -> None:
    import aiohttp

    try:
        async for lines in client.tail_job_logs(name):
            sys.stdout.write(lines)
            sys.stdout.flush()
    except aiohttp.ClientError as error:
        raise ConnectionError from error
