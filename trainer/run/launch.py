"""The door to Ray Train: a job runs on a group of workers, and again from its last checkpoint when one dies."""

import json
import logging
import os
import time
import uuid
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from urllib.parse import urlsplit

import click

from pipeline.base.errors import BitError, ServiceError, StorageError
from pipeline.base.records import Record
from pipeline.store.base import Store
from pipeline.store.url import open_store
from trainer.checkpoint.record import latest
from trainer.run.progress import Report
from trainer.step.ranks import World, alone

logger = logging.getLogger(__name__)

# Ray's default of 1800 s would hide a hang for half an hour.
_COLLECTIVE_TIMEOUT_SECONDS = 300
_STARTS_WITHOUT_PROGRESS = 5  # then it is no accident


C = TypeVar("C", bound=Record)


@dataclass(frozen=True)
class Job(Generic[C]):
    """What a command runs on every rank.

    Attributes:
        name: Of the command.
        config_type: Of its configuration; has `out`, the URL of what it writes.
        run: Called on every rank with the configuration, the rank and what takes its rows.
        line_of: From a reported row to a line for people.
    """

    name: str
    config_type: type[C]
    run: Callable[[C, World, Report], None]
    line_of: Callable[[dict[str, Any]], str]


def run(job: Job[C], config: C, *, num_workers: int, use_gpu: bool, max_failures: int) -> None:
    """Run a job to its end.

    Args:
        job: What to run; on Ray its functions are imported by name on the workers.
        config: Its configuration.
        num_workers: Ray Train workers; 0 runs in this process, without Ray.
        use_gpu: One GPU for each worker instead of one CPU.
        max_failures: Restarts after a worker died or raised; -1 for no limit.

    Raises:
        ServiceError: The run failed more often than allowed.
        BitError: As the job, where it runs in this process.
    """
    if num_workers == 0:
        job.run(config, alone(), lambda row: click.echo(job.line_of(row)))
        return
    import ray.train  # noqa: PLC0415 - two seconds that `--help` need not pay
    import ray.train.torch  # noqa: PLC0415

    out = config.model_dump()["out"]
    launch_id = uuid.uuid4().hex[:8]
    loop_config = {
        "job": job,
        "config": config.model_dump_json(),
        "out": out,
        "failures": f"failures/{launch_id}/",
    }
    trainer = ray.train.torch.TorchTrainer(
        _worker,
        train_loop_config=loop_config,
        torch_config=ray.train.torch.TorchConfig(
            backend="cpu:gloo,cuda:nccl" if use_gpu else "gloo", timeout_s=_COLLECTIVE_TIMEOUT_SECONDS
        ),
        scaling_config=ray.train.ScalingConfig(num_workers=num_workers, use_gpu=use_gpu),
        run_config=ray.train.RunConfig(
            # A fresh name: our checkpoints, not Ray's folder, say where a run goes on.
            name=f"{job.name}-{launch_id}",
            storage_path=_ray_storage(out),
            failure_config=ray.train.FailureConfig(max_failures=max_failures),
        ),
    )
    try:
        trainer.fit()
    except (ray.train.TrainingFailedError, ray.exceptions.RayError) as error:
        raise ServiceError(_cause(error)) from error
    message = _final_failure(open_store(out), loop_config["failures"])
    if message:
        raise ServiceError(f"the run stopped on its workers: {message}")


def _worker(loop_config: dict[str, Any]) -> None:
    import ray.train  # noqa: PLC0415
    import ray.train.torch  # noqa: PLC0415

    logging.getLogger("botocore").setLevel(logging.WARNING)
    # Kernels of one pixel have two equal memory layouts; torch warns although only the name differs.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    context = ray.train.get_context()
    world = World(context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device())

    job: Job[Any] = loop_config["job"]

    # Ray starts the group again whatever went wrong, as often as it takes. So failures are written down; a start that
    # finds it cannot succeed returns at once, and the driver says why.
    store = open_store(loop_config["out"])
    if _final_failure(store, loop_config["failures"]):
        return
    try:
        config = job.config_type.model_validate_json(loop_config["config"])
        job.run(config, world, lambda row: click.echo(job.line_of(row)))
    except Exception as error:
        _write_failure(store, loop_config["failures"], world.rank, error)
        raise


def _write_failure(store: Store, folder: str, rank: int, error: Exception) -> None:
    newest = latest(store)
    failure = {
        "rank": rank,
        "step": newest.step if newest else 0,
        "final": isinstance(error, BitError) and not isinstance(error, StorageError),
        "message": f"{error}" if isinstance(error, BitError) else f"{type(error).__name__}: {error}",
    }
    store.create(f"{folder}{time.time_ns()}-{rank}.json", json.dumps(failure).encode())


def _final_failure(store: Store, folder: str) -> str | None:
    """Return why a launch cannot succeed: an error that would come again, or too many starts without a checkpoint."""
    failures = [json.loads(store.read(entry.key)) for entry in store.list(folder)]
    for failure in failures:
        if failure["final"]:
            return str(failure["message"])
    starts = Counter((failure["step"], failure["rank"]) for failure in failures)
    if starts and max(starts.values()) >= _STARTS_WITHOUT_PROGRESS:
        reason = str(failures[-1]["message"]).splitlines()[0]
        return f"{_STARTS_WITHOUT_PROGRESS} starts in a row reached no new checkpoint; the last failed with {reason}"
    return None


def _ray_storage(out: str) -> str:
    """Return Ray's own folder beside the run, as the URL that pyarrow wants."""
    parts = urlsplit(out)
    if parts.scheme != "s3":
        return os.path.abspath(f"{parts.path}/ray")
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if not endpoint:
        return f"{out.rstrip('/')}/ray"
    server = urlsplit(endpoint)
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    options = f"endpoint_override={server.netloc}&scheme={server.scheme}&region={region}"
    return f"{out.rstrip('/')}/ray?{options}"


def _cause(error: BaseException) -> str:
    """Return the first line that names our own error, from the depth of Ray's trace."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    named = [line for line in lines if line.startswith("pipeline.base.errors.")]
    logger.debug("%s", error)
    text = named[-1].partition(": ")[2] if named else (lines[-1] if lines else type(error).__name__)
    return f"the run failed on its workers: {text}"
