"""The door to Ray Train: a job runs on a group of workers, and again from its last checkpoint when one dies."""

import logging
import os
import sys
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar
from urllib.parse import urlsplit

from pipeline.base.console import echo
from pipeline.base.errors import ClusterLost, Interrupted, ServiceError
from pipeline.base.logs import FORMAT_VARIABLE, formatter, wants_json
from pipeline.base.records import Record, json_bytes
from pipeline.store.lease import Lease
from pipeline.store.retry import waiting_for_outages
from pipeline.store.url import open_store
from pipeline.work.on_ray import connect, quieten, require_capacity, require_cluster
from trainer.run.board import Board, BoardState
from trainer.run.controls import Controls
from trainer.run.drain import DrainDeadline
from trainer.run.lives import ALL_PHASES, SILENT_SECONDS, Watch, collective_seconds, least_step_seconds
from trainer.run.progress import Report, json_line
from trainer.run.pulse import Pulse, beating
from trainer.run.signals import stop_requests
from trainer.run.starts import begins_in_vain, failure_text, final_failure, num_starts, write_failure
from trainer.step.ranks import World, alone, broadcast

logger = logging.getLogger(__name__)

# For the nodes of a group that grows and shrinks, which asks for what it sees alone: a node that is about to go is seen
# until it has gone, and Ray Train would wait a minute for it each time.
_ELASTIC_START = ("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "10")
_EMPTY_SECONDS = 30.0  # without a worker, before that is said, and said again
_LOOK_SECONDS = 2.0  # between two looks of the driver at its workers
C = TypeVar("C", bound=Record)


@dataclass(frozen=True)
class Job(Generic[C]):
    """What a command runs on every rank.

    Attributes:
        name: Of the command.
        config_type: Of its configuration; has `out`, the URL of what it writes.
        run: Called on every rank with the configuration, the rank, what takes its rows, and the launch's controls.
        line_of: From a reported row to a line for people.
    """

    name: str
    config_type: type[C]
    run: Callable[[C, World, Report, Controls], None]
    line_of: Callable[[dict[str, Any]], str]


def run(
    job: Job[C],
    config: C,
    *,
    num_workers: tuple[int, int],
    use_gpu: bool,
    max_failures: int,
    wait: bool = False,
    as_json: bool = False,
) -> None:
    """Run a job to its end.

    Args:
        job: What to run; on Ray its functions are imported by name on the workers.
        config: Its configuration.
        num_workers: Least and most Ray Train workers: where they differ, the group grows and shrinks with the cluster.
            0 runs in this process, without Ray.
        use_gpu: One GPU for each worker instead of one CPU.
        max_failures: Restarts after a worker died or raised; -1 for no limit.
        wait: Whether to wait until the cluster has the workers free, instead of failing at once.
        as_json: Whether rows are printed as JSON instead of lines for people.

    Raises:
        ServiceError: The run failed more often than allowed, or without progress.
        NonFinite: It diverged.
        Interrupted: It was asked to stop (Ctrl-C, SIGTERM, `cluster stop`); its state is saved.
        BitError: As the job, where it runs in this process.
    """
    line_of = json_line if as_json else job.line_of
    if num_workers[1] == 0:
        _run_here(job, config, line_of, use_gpu=use_gpu)
        return
    _run_on_ray(job, config, line_of, num_workers, use_gpu=use_gpu, max_failures=max_failures, wait=wait)


def _run_here(job: Job[C], config: C, line_of: Callable[[dict[str, Any]], str], *, use_gpu: bool) -> None:
    world, pulse, board = alone(use_gpu), Pulse(0), BoardState(least_step_seconds())
    store = open_store(config.model_dump()["out"])
    _show_messages(formatter(run=store.url, rank=0, step=lambda: pulse.step))
    with stop_requests() as wants_stop, beating(pulse, board.sign, store):
        controls = Controls(wants_stop=wants_stop, on_phase=pulse.on_phase, on_step=pulse.on_step)
        job.run(config, world, lambda row: echo(line_of(row)), controls)


def _run_on_ray(
    job: Job[C],
    config: C,
    line_of: Callable[[dict[str, Any]], str],
    num_workers: tuple[int, int],
    *,
    use_gpu: bool,
    max_failures: int,
    wait: bool,
) -> None:
    require_cluster()
    quieten()
    import ray  # noqa: PLC0415 - two seconds that `--help` need not pay
    import ray.train  # noqa: PLC0415
    import ray.train.torch  # noqa: PLC0415

    from trainer.run.controller import ShowController  # noqa: PLC0415
    from trainer.run.reservations import RecordReservation, give_back  # noqa: PLC0415
    from trainer.run.resize import SaveBeforeResize  # noqa: PLC0415

    out = config.model_dump()["out"]
    store, launch_id = open_store(out), uuid.uuid4().hex[:8]
    shown = formatter(run=store.url)
    _show_messages(shown)
    connect(None)  # what a run has to say comes by its board; the rest is in Ray's logs
    missing = require_capacity(num_workers[0], use_gpu=use_gpu, wait=wait)
    if missing:
        logger.warning("waiting: %s", missing)
    store.create(f"failures/{launch_id}/launch.json", json_bytes({"job": job.name, "time": time.time()}))
    board = Board.start(launch_id, least_step_seconds())
    loop_config = {
        "job": job,
        "line_of": line_of,
        "config": config.model_dump_json(),
        "out": out,
        "launch_id": launch_id,
        "log": "json" if wants_json() else "text",  # as here; nodes have environments of their own
        "lease_number": Lease.take(store).number,
    }
    give_back(store)
    trainer = ray.train.torch.TorchTrainer(
        _worker,
        train_loop_config=loop_config,
        torch_config=ray.train.torch.TorchConfig(
            backend="cpu:gloo,cuda:nccl" if use_gpu else "gloo", timeout_s=int(collective_seconds(ALL_PHASES))
        ),
        scaling_config=_scaling(num_workers, use_gpu=use_gpu),
        run_config=ray.train.RunConfig(
            # A fresh name: our checkpoints, not Ray's folder, say where a run goes on.
            name=f"{job.name}-{launch_id}",
            storage_path=_ray_storage(out),
            failure_config=ray.train.FailureConfig(max_failures=max_failures),
            callbacks=[ShowController(launch_id), RecordReservation(out), SaveBeforeResize(out, launch_id, shown)],
        ),
    )
    with stop_requests() as wants_stop, _default_variable(*_ELASTIC_START, holds=num_workers[0] < num_workers[1]):
        error = _fitted(
            trainer, board, wants_stop, partial(require_capacity, num_workers[0], use_gpu=use_gpu, wait=True)
        )
    why = final_failure(store, launch_id)
    if why:
        raise type(why)(f"the run stopped on its workers: {why}")
    if isinstance(error, Interrupted):
        raise error
    if error:
        gave_up = isinstance(error, ray.train.TrainingFailedError)  # else what decides such things is gone
        raise (ServiceError if gave_up else ClusterLost)(_cause(error)) from error
    stopped = board.stopped()
    if stopped:
        raise Interrupted(stopped)


@contextmanager
def _default_variable(name: str, value: str, *, holds: bool) -> Iterator[None]:
    """Set an environment variable inside, unless it is set already, if that holds."""
    if not holds or name in os.environ:
        yield
        return
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]


def _scaling(num_workers: tuple[int, int], *, use_gpu: bool) -> Any:
    import ray.train  # noqa: PLC0415

    from trainer.run.resize import resize_seconds  # noqa: PLC0415

    least, most = num_workers
    if least == most:
        return ray.train.ScalingConfig(num_workers=most, use_gpu=use_gpu)
    return ray.train.ScalingConfig(
        num_workers=(least, most), use_gpu=use_gpu, elastic_resize_monitor_interval_s=resize_seconds()
    )


def _fitted(
    trainer: Any, board: Board, wants_stop: Callable[[], bool], missing: Callable[[], str | None]
) -> BaseException | None:
    """Wait for Ray Train in a thread, so that this one can take signals and look after the workers.

    Returns:
        What ended the run but its own success; Interrupted where it was asked to stop while no worker ran.
    """
    import ray  # noqa: PLC0415
    import ray.train  # noqa: PLC0415

    from trainer.run.controller import end_controller  # noqa: PLC0415

    failed: list[BaseException] = []

    def fit() -> None:
        try:
            trainer.fit()
        except (ray.train.TrainingFailedError, ray.exceptions.RayError) as error:
            failed.append(error)

    thread = threading.Thread(target=fit, name="ray-train", daemon=True)
    thread.start()
    watch, seen = Watch(least_step_seconds()), time.monotonic()
    said = seen
    while thread.is_alive():
        thread.join(_LOOK_SECONDS)
        if wants_stop():
            board.request_stop()  # each time: an actor that Ray had to start again has forgotten it
        _print_lines(board)
        lives, now = board.lives(), time.monotonic()
        for line in watch.news(lives, now):
            logger.warning("%s", line)
        if any(not life.is_silent for life in lives):
            seen = said = now
        elif wants_stop() and now - seen > SILENT_SECONDS:
            end_controller(board)
            thread.join(_EMPTY_SECONDS)  # Ray's threads may not outlive Python
            return Interrupted("stopped while no worker was running: the same command goes on from the last checkpoint")
        elif now - said > _EMPTY_SECONDS:
            said = now
            why = missing()
            logger.warning("no worker is running yet; Ray is to start them%s", f" ({why})" if why else "")
    _print_lines(board)
    return failed[0] if failed else None


def _print_lines(board: Board) -> None:
    for line in board.take_lines():
        echo(line.text, err=not line.is_row)


class _ToBoard(logging.Handler):
    """Messages of a rank, for whoever started the run: all of rank 0's, and warnings of others."""

    def __init__(self, board: Board, world: World, shown: logging.Formatter) -> None:
        super().__init__(logging.INFO if world.is_first else logging.WARNING)
        self.setFormatter(shown)
        self._board = board

    def emit(self, record: logging.LogRecord) -> None:
        self._board.say(self.format(record))


def _show_messages(shown: logging.Formatter) -> None:
    """Print what the trainer has to say."""
    ours = logging.getLogger("trainer")
    if not ours.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(shown)
        ours.addHandler(handler)
        ours.propagate = False
    ours.setLevel(min(ours.getEffectiveLevel(), logging.INFO))


def _worker(loop_config: dict[str, Any]) -> None:
    import ray.train  # noqa: PLC0415
    import ray.train.torch  # noqa: PLC0415

    logging.getLogger("botocore").setLevel(logging.WARNING)
    # Kernels of one pixel have two equal memory layouts; torch warns although only the name differs.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
    context = ray.train.get_context()
    world = World(context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device())
    job: Job[Any] = loop_config["job"]

    # Ray starts the group again whatever went wrong, as often as it takes. So starts and failures are written down; a
    # start that finds it cannot succeed returns at once, on all ranks, and the driver says why.
    store, launch_id = open_store(loop_config["out"]), loop_config["launch_id"]
    if begins_in_vain(world, store, launch_id):
        return
    group = broadcast(world, num_starts(store, launch_id) if world.is_first else None)
    board, pulse = Board.join(launch_id), Pulse(world.rank, group)
    os.environ[FORMAT_VARIABLE] = loop_config["log"]
    shown = formatter(run=store.url, rank=world.rank, step=lambda: pulse.step)
    _show_messages(shown)
    for name in ("trainer", "pipeline"):
        logging.getLogger(name).addHandler(_ToBoard(board, world, shown))

    def report(row: dict[str, Any]) -> None:
        board.say(loop_config["line_of"](row), is_row=True)

    with board.leaving(world.rank, group), beating(pulse, board.sign, store):
        controls = Controls(
            lease=Lease(store, loop_config["lease_number"]),
            wants_stop=board.wants_stop,
            wants_save=board.wants_save,
            drain_deadline=DrainDeadline(),
            on_phase=pulse.on_phase,
            on_step=pulse.on_step,
        )
        try:
            config = job.config_type.model_validate_json(loop_config["config"])
            with waiting_for_outages():
                job.run(config, world, report, controls)
        except Interrupted as stop:  # asked for: not to be started again
            if world.is_first:
                board.report_stop(str(stop))
        except BaseException as error:
            write_failure(store, launch_id, world.rank, error)
            logger.error("rank %d ended: %s", world.rank, failure_text(error).splitlines()[0])  # noqa: TRY400
            raise


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
