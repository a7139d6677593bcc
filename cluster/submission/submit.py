"""Submits a command of the trainer: checked, with the code of this machine, under an entry point that keeps it up."""

import io
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cluster.stack import jobs
from cluster.submission.checks import checked_command, require_room, resources
from cluster.submission.wheel import Wheel, code_wheel
from trainer.run.starts import WHEEL_VARIABLE

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

# -P: the folder in which a node was started may hold other code of the same names.
_ENTRY_POINT = ("python", "-P", "-m", "cluster.submission.supervise")


class Submitted(NamedTuple):
    """A job of the trainer.

    Attributes:
        job: Its id.
        wheel: Its code.
    """

    job: str
    wheel: Wheel


def submit_run(
    client: "JobSubmissionClient", command: Sequence[str], environment: Mapping[str, str], job: str | None
) -> Submitted:
    """Submit a command of the trainer.

    Args:
        client: Of the cluster.
        command: Name of the command and its arguments.
        environment: Of the job.
        job: Its id; a random one by default.

    Raises:
        BitError: The command could not run, or the cluster is too small for it; nothing was submitted.
    """
    wanted = checked_command(command[0], command[1:])
    require_room(wanted, resources(client.get_address()))
    wheel = code_wheel()
    # Of a wheel, Ray looks at the name of its file, and would take that of an earlier submission; it installs it with
    # pip, and with all that it requires, over the network. Folders it tells apart by their content.
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(io.BytesIO(wheel.body)) as archive:
            archive.extractall(folder)
        entry_point = [*_ENTRY_POINT, wanted.out, *command]
        variables = {WHEEL_VARIABLE: wheel.sha256} | dict(environment)
        started = jobs.submit(client, entry_point, variables, job, sorted(Path(folder).iterdir()))
    return Submitted(started, wheel)
