"""Jobs on a Ray cluster, through Ray's own job API."""

import asyncio
import itertools
import logging
import os
import re
import shlex
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.base.console import echo
from pipeline.base.errors import Interrupted, NotFound, ServiceError

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

_ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
# Ray's job supervisor reads it from its environment, and kills a job that much later than it asked it to end. Its own
# 3 s are too short for a run that saves its state.
STOP_WAIT = {"RAY_JOB_STOP_WAIT_TIME_S": "120"}
_LOOK_SECONDS = 0.5
# How Ray marks what a process of the cluster printed.
ACTOR_PREFIX = re.compile(r"^(?:\x1b\[\d+m)*\((\w+) pid=\d+(?:, ip=[\d.]+)?\)(?:\x1b\[\d+m)* ?")
_OF_RAY = ("TrainController", "PreemptionWatcher", "PlacementGroupCleaner", "autoscaler")
_RAY_LINE = re.compile(
    r"\d{4}-\d\d-\d\d [\d:,]+\tINFO \w+\.py:\d+ -- |Running entrypoint for job |Setting up process group for: "
    r"|\[\d{4}-\d\d-\d\d [\d:,]+ [A-Z] \d+ \d+\] (\(\w+\) )?\w+\.cc:\d+: "
)
_FUTURE_WARNING = re.compile(r"\S+:\d+: FutureWarning: ")


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
    logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.WARNING)  # "WebSocket closed with code 1000"
    try:
        return JobSubmissionClient(url)
    except (ConnectionError, RuntimeError, ValueError, RayError) as error:
        raise ServiceError(
            f"no Ray job API answers at {url} ({_reason(error)}); check the address, and RAY_AUTH_TOKEN_PATH"
        ) from error


def submit(
    client: "JobSubmissionClient",
    command: Sequence[str],
    environment: Mapping[str, str],
    job: str | None,
    code: Sequence[Path] = (),
) -> str:
    """Submit a command line; return the job's id, a random one unless `job` is given.

    A job of that id that has ended keeps it, with its output; the new one is JOB-2, JOB-3 and so on.

    Args:
        client: Of the cluster.
        command: Of the job.
        environment: Of the job.
        job: Its id.
        code: Folders that every node gets to import from, each by its name; the rest is the nodes' own.

    Raises:
        ServiceError: The cluster refused the job, or one of that id runs.
    """
    if job:
        statuses = {row["job"]: row["status"] for row in all_jobs(client)}
        if statuses.get(job, _ENDED[0]) not in _ENDED:
            raise ServiceError(
                f"job {job} is {statuses[job]} already; follow it with `cluster logs {job} --follow`, end it with "
                f"`cluster stop {job}`, or give another --job"
            )
        numbered = (f"{job}-{number}" for number in itertools.count(2))
        job = next(name for name in itertools.chain([job], numbered) if name not in statuses)
    try:
        submitted: str = client.submit_job(
            entrypoint=shlex.join(command),
            submission_id=job,
            runtime_env={"env_vars": STOP_WAIT | dict(environment)} | _modules(code),
        )
    except RuntimeError as error:
        raise ServiceError(f"the cluster refused the job: {_reason(error)}") from error
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
    """Copy the job's output to stdout until it ends, without Ray's own lines; return its final status.

    Raises:
        Interrupted: Ctrl-C; the job goes on.
        ServiceError: The cluster went away.
    """

    async def copy() -> None:
        rest = ""
        async for part in client.tail_job_logs(job):
            *lines, rest = (rest + part).split("\n")
            for line in without_ray(lines):
                echo(line)
            sys.stdout.flush()
        if rest:
            echo(rest)

    with _goes_on(job):
        asyncio.run(copy())
        return status(client, job)


def without_ray(lines: Iterable[str]) -> Iterator[str]:
    """Yield the lines of a job's output that are not Ray's own; `cluster logs` prints all."""
    warned = False
    for line in lines:
        prefix = ACTOR_PREFIX.match(line)
        text = line[prefix.end() :] if prefix else line
        was_warned, warned = warned, bool(_FUTURE_WARNING.match(text))
        if warned or (was_warned and text.startswith("  ")) or (prefix and prefix[1] in _OF_RAY):
            continue
        if not _RAY_LINE.match(text):
            yield text if prefix and prefix[1] == "RayTrainWorker" else line


@contextmanager
def _goes_on(job: str) -> Iterator[None]:
    """Say what becomes of the job when this process no longer waits for it."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise Interrupted(
            f"job {job} goes on; follow it with `cluster logs {job} --follow`, end it with `cluster stop {job}`"
        ) from error
    except BrokenPipeError:  # of who reads our output
        raise
    except (RuntimeError, OSError) as error:
        raise ServiceError(f"the cluster no longer answers about job {job} ({_reason(error)})") from error


def logs(client: "JobSubmissionClient", job: str) -> str:
    """Return the job's output so far.

    Raises:
        NotFound: There is no such job.
    """
    status(client, job)
    text: str = client.get_job_logs(job)
    return text


def stop(client: "JobSubmissionClient", job: str, *, wait: bool) -> str:
    """Ask the job to stop; no error if it has ended.

    Args:
        client: Of the cluster.
        job: Its id.
        wait: Until it has ended, and print what it prints on the way, such as that its state is saved.

    Returns:
        Its status.

    Raises:
        NotFound: There is no such job.
        Interrupted: Ctrl-C; the job goes on stopping.
    """
    now = status(client, job)
    if now in _ENDED:
        return now
    printed = len(logs(client, job))
    client.stop_job(job)
    with _goes_on(job):
        while wait and (now := status(client, job)) not in _ENDED:
            printed = _print_from(client, job, printed)
            time.sleep(_LOOK_SECONDS)
        if wait:
            _print_from(client, job, printed)
    return now


def last_words(client: "JobSubmissionClient", job: str) -> str:
    """Return the line in which a job of the trainer says what it saved when it was stopped; "" if there is none."""
    lines = without_ray(logs(client, job).splitlines())
    return next((line for line in reversed(list(lines)) if line.startswith("stopped after ")), "")


def _print_from(client: "JobSubmissionClient", job: str, start: int) -> int:
    """Print the whole lines of the job's output from a position; return the position after them."""
    text = logs(client, job)
    end = text.rfind("\n") + 1
    for line in without_ray(text[start:end].splitlines()):
        echo(line)
    return max(start, end)


def _modules(code: Sequence[Path]) -> dict[str, list[str]]:
    """Return what Ray is told of code that travels with a job; an empty list would fail on the cluster."""
    return {"py_modules": [str(folder) for folder in code]} if code else {}


def _reason(error: BaseException) -> str:
    """Return an error's cause: the last line of a traceback that the cluster sent, the first of other messages."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1] if "Traceback" in lines[0] else lines[0]
