"""Figures of a run sent on to MLflow or Weights & Biases, from any machine that reaches the store.

The run itself knows nothing of it: an outage of a tracker holds up no training, and its key is on no node of the
cluster. The tracker keeps until when figures of each kind were sent (rows of metrics are stored later than
measurements), so sending may end and begin again.
"""

import hashlib
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

from pipeline.base.console import echo
from pipeline.base.errors import ConfigError
from pipeline.store.base import Store
from trainer.watching.facts import RunReader
from trainer.watching.scalars import Scalar, scalars
from trainer.watching.state import state_of

_EXPERIMENT = "bit-pretrain"
_MOST_METRICS = 1000  # in one request [MLflow's limit for log-batch]
SentUntil = dict[str, float]  # by the first part of a tag, in seconds since 1970
Send = Callable[[Sequence[Scalar], SentUntil], None]


def relay(store: Store, send: Send, sent_until: SentUntil, *, every_seconds: float, once: bool) -> None:
    """Send the figures of a run as they come, until it is over.

    Args:
        store: The run's folder.
        send: Takes new figures in order of time, and until when figures of each kind are sent then.
        sent_until: The same of what was sent before.
        every_seconds: Between two looks.
        once: Whether to look once and return.

    Raises:
        NotFound: There is no run.
    """
    reader = RunReader(store)
    while True:
        facts = reader.read()
        new = new_scalars(scalars(facts), sent_until)
        if new:
            sent_until = {**sent_until, **{_kind(each): each.time for each in new if each.time}}
            send(new, sent_until)
            echo(f"sent {len(new):,} figures, up to step {max(each.step for each in new):,}")
        if once or state_of(facts, time.time()).is_over:
            return
        time.sleep(every_seconds)


def new_scalars(figures: Iterable[Scalar], sent_until: Mapping[str, float]) -> list[Scalar]:
    """Return the figures that were not sent, in order of time; of those of old releases, which have none, none.

    Args:
        figures: Of a run.
        sent_until: See `relay`.
    """
    new = [each for each in figures if each.time and each.time > sent_until.get(_kind(each), 0.0)]
    return sorted(new, key=lambda each: each.time or 0.0)


def _kind(figure: Scalar) -> str:
    return figure.tag.partition("/")[0]


def to_mlflow(uri: str, run_url: str, name: str) -> tuple[Send, SentUntil]:
    """Return what sends to an MLflow server, and until which time that has been done.

    Args:
        uri: Of the tracking server, such as http://127.0.0.1:5000.
        run_url: Of the run; one run of MLflow belongs to it.
        name: Shown for it.

    Raises:
        ConfigError: `mlflow-skinny` is not installed, or the server does not take it.
    """
    try:
        from mlflow import MlflowClient  # noqa: PLC0415
        from mlflow.entities import Metric  # noqa: PLC0415
        from mlflow.exceptions import MlflowException  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError("MLflow's client is not installed; run: pip install mlflow-skinny") from error
    try:
        client = MlflowClient(tracking_uri=uri)
        found = client.get_experiment_by_name(_EXPERIMENT)
        experiment = found.experiment_id if found else client.create_experiment(_EXPERIMENT)
        runs = client.search_runs([experiment], f"tags.bit_run = '{run_url}'")
        run = runs[0] if runs else client.create_run(experiment, run_name=name, tags={"bit_run": run_url})
    except MlflowException as error:
        raise ConfigError(f"MLflow at {uri} does not take the run: {str(error).splitlines()[0]}") from error

    def send(figures: Sequence[Scalar], until: SentUntil) -> None:
        for first in range(0, len(figures), _MOST_METRICS):
            part = figures[first : first + _MOST_METRICS]
            metrics = [Metric(each.tag, each.value, round(1000 * (each.time or 0)), each.step) for each in part]
            client.log_batch(run.info.run_id, metrics=metrics)
        client.set_tag(run.info.run_id, "bit_sent_until", json.dumps(until))

    return send, json.loads(run.data.tags.get("bit_sent_until", "{}"))


def to_wandb(project: str, run_url: str, name: str) -> tuple[Send, SentUntil]:
    """Return what sends to Weights & Biases, and until which time that has been done.

    Args:
        project: Of the user; `WANDB_MODE=offline` keeps everything in a folder, without a server.
        run_url: Of the run; one run there belongs to it.
        name: Shown for it.

    Raises:
        ConfigError: `wandb` is not installed, or the service does not take it.
    """
    try:
        import wandb  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError("the client of Weights & Biases is not installed; run: pip install wandb") from error
    try:
        run = wandb.init(
            project=project,
            name=name,
            id=hashlib.sha256(run_url.encode()).hexdigest()[:16],
            resume="allow",
            config={"bit_run": run_url},
            settings=wandb.Settings(console="off", silent=True, x_disable_stats=True),
        )
    except wandb.Error as error:
        raise ConfigError(f"Weights & Biases does not take the run: {str(error).splitlines()[0]}") from error
    run.define_metric("*", step_metric="step")

    def send(figures: Sequence[Scalar], until: SentUntil) -> None:
        rows: dict[tuple[float, int], dict[str, float]] = defaultdict(dict)
        for each in figures:
            rows[each.time or 0.0, each.step][each.tag] = each.value
        for (_, step), values in rows.items():
            run.log({"step": step, **values})
        run.summary["bit_sent_until"] = json.dumps(until)

    return send, json.loads(run.summary.get("bit_sent_until") or "{}")
