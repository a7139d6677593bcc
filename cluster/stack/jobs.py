"""Jobs on a Ray cluster, through Ray's own job API."""

import asyncio
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from pipeline.base.errors import NotFound, ServiceError

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

_ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
# Ray's job supervisor reads it from its environment, and kills a job that much later than it asked it to end. Its own
# 3 s are too short for a run that saves its state.
STOP_WAIT = {"RAY_JOB_STOP_WAIT_TIME_S": "120"}


def connect(address: str | None) -> "JobSubmissionClient":
    """Connect to the job API at `address`, or at RAY_API_SERVER_ADDRESS.

    Raises:
        ServiceError: No address is given, or nothing answers there.
    """
    url = address or os.environ.get("RAY_API_SERVER_ADDRESS")
    if not url:
        raise ServiceError("no cluster is named; give --address http://HEAD:8265 or set RAY_API_SERVER_ADDRESS")
    from ray.exceptions import RayError  # noqa: PLC0415 - takes a second that `--help` need not pay
    from ray.job_submission import JobSubmissionClient  # noqa: PLC0415

    # Ray prefers the variable to the argument, and would go to another cluster than the one the user named.
    os.environ["RAY_API_SERVER_ADDRESS"] = url
    try:
        return JobSubmissionClient(url)
    except (ConnectionError, RuntimeError, ValueError, RayError) as error:
        raise ServiceError(
            f"no Ray job API answers at {url} ({_first_line(error)}); check the address, and RAY_AUTH_TOKEN_PATH"
        ) from error


def submit(
    client: "JobSubmissionClient", command: Sequence[str], environment: Mapping[str, str], job: str | None
) -> str:
    """Submit a command line; return the job's id, a random one unless `job` is given.

    Raises:
        ServiceError: The cluster refused the job.
    """
    try:
        submitted: str = client.submit_job(
            entrypoint=shlex.join(command), submission_id=job, runtime_env={"env_vars": STOP_WAIT | dict(environment)}
        )
    except RuntimeError as error:
        raise ServiceError(f"the cluster refused the job: {_first_line(error)}") from error
    return submitted


def status(client: "JobSubmissionClient", job: str) -> str:
    """Return PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED.

    Raises:
        NotFound: There is no such job.
    """
    try:
        return str(client.get_job_status(job).value)
    except RuntimeError as error:
        raise NotFound(f"no job {job!r} on this cluster; `cluster status` lists them") from error


def all_jobs(client: "JobSubmissionClient") -> list[dict[str, Any]]:
    """Return id, status and command of every submitted job, oldest first."""
    details = [job for job in client.list_jobs() if job.submission_id]
    return [
        {
            "job": job.submission_id,
            "status": str(job.status.value),
            "command": job.entrypoint,
        }
        for job in sorted(details, key=lambda job: job.start_time or 0)
    ]


def follow(client: "JobSubmissionClient", job: str) -> str:
    """Copy the job's output to stdout until it ends; return its final status."""

    async def copy() -> None:
        async for part in client.tail_job_logs(job):
            click.echo(part, nl=False)
            sys.stdout.flush()

    asyncio.run(copy())
    return status(client, job)


def logs(client: "JobSubmissionClient", job: str) -> str:
    """Return the job's output so far.

    Raises:
        NotFound: There is no such job.
    """
    status(client, job)
    text: str = client.get_job_logs(job)
    return text


def stop(client: "JobSubmissionClient", job: str) -> None:
    """Ask the job to stop; no error if it has ended.

    Raises:
        NotFound: There is no such job.
    """
    if status(client, job) not in _ENDED:
        client.stop_job(job)


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
