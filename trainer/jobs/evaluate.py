"""Predictions of a model on a whole dataset, and their accuracy."""

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import nn

from pipeline.base.errors import ConfigError, Conflict, NotFound
from pipeline.base.records import Record
from pipeline.dataset.schema import table_of, to_parquet
from pipeline.image.transforms import EvaluationView
from pipeline.store.base import Store
from pipeline.store.url import open_store
from pipeline.streaming.one_pass import one_pass
from pipeline.streaming.selection import Selection
from trainer.checkpoint.record import require_latest
from trainer.checkpoint.weights import load_model
from trainer.recipes.data import selection_without
from trainer.run.progress import Report
from trainer.scores.predictions import PREDICTION_SCHEMA, summary
from trainer.step.ranks import World, broadcast, gather
from trainer.step.tensors import to_device


class EvaluateConfig(Record):
    """An evaluation.

    Attributes:
        run: URL of a training run, whose newest checkpoint is taken.
        data: URL of the test set.
        data_version: Its manifest version.
        exclude: URL of a Parquet file with `shard` and `row` of samples to leave out, such as an audit's.
        out: URL of the results.
        resolution_px: Side of the input; 0 for that of the run.
        batch_size: Pictures in one forward pass.
    """

    run: str
    data: str
    data_version: int
    exclude: str | None = None
    out: str
    resolution_px: NonNegativeInt = 0
    batch_size: PositiveInt = 64


def predict(model: nn.Module, selection: Selection, world: World, resolution_px: int, batch_size: int) -> pa.Table:
    """Classify every sample of the view; every rank must call and gets the whole table, in dataset order.

    Returns:
        Table of PREDICTION_SCHEMA; `correct` says whether the highest logit is one of the labels.
    """
    model.eval()
    rows: list[dict[str, Any]] = []
    batches = one_pass(
        selection, EvaluationView(resolution_px), resolution_px, batch_size, rank=world.rank, num_ranks=world.num_ranks
    )
    num_classes = selection.dataset.version.num_classes
    with torch.inference_mode():
        for batch in batches:
            logits = model(to_device(batch, num_classes, world.device).images_BCHW).float()
            probabilities, predictions = logits.softmax(1).max(1)
            for index, address in enumerate(batch.addresses):
                prediction = int(predictions[index])
                rows.append(
                    {
                        "shard": address.shard,
                        "row": address.row,
                        "labels": list(batch.labels[index]),
                        "prediction": prediction,
                        "probability": float(probabilities[index]),
                        "correct": prediction in batch.labels[index],
                    }
                )
    return table_of([row for part in gather(world, rows) for row in part], PREDICTION_SCHEMA)


def check_classes(first_url: str, first: Sequence[str], second_url: str, second: Sequence[str]) -> None:
    """Refuse to compare labels of two sets whose classes differ.

    Raises:
        ConfigError: Names the first difference.
    """
    if len(first) != len(second):
        raise ConfigError(
            f"{first_url} has {len(first)} classes, {second_url} has {len(second)}; they must be the same"
        )
    for label, (one, other) in enumerate(zip(first, second, strict=True)):
        if one != other:
            raise ConfigError(f"class {label} is {one!r} in {first_url} and {other!r} in {second_url}; pack both alike")


def evaluate(config: EvaluateConfig, world: World, report: Report) -> None:
    """Write `predictions.parquet` and `result.json` below OUT, or repeats what is there; every rank must call.

    Raises:
        NotFound: The run has no checkpoint.
        ConfigError: The test set has other classes than the model.
        Conflict: OUT holds the result of another model or test set.
    """
    source, out = open_store(config.run), open_store(config.out)
    record = require_latest(source)
    if record.about["classes_sha256"] is None:
        raise ConfigError(f"{config.run} was imported without class names; import it again with --classes")
    selection = selection_without(config.data, config.data_version, config.exclude)
    if selection.dataset.classes_sha256 != record.about["classes_sha256"]:
        raise ConfigError(
            f"{config.data} has other classes ({selection.dataset.version.num_classes}) than the model of {config.run} "
            f"({record.about['num_classes']}); fine-tune it on this task first"
        )
    resolution_px = config.resolution_px or record.about["resolution_px"]
    identity = config.model_dump(exclude={"batch_size"}) | {"step": record.step, "resolution_px": resolution_px}
    found = broadcast(world, _existing(out) if world.is_first else None)
    if found is not None:
        if any(found.get(name) != value for name, value in identity.items()):
            raise Conflict(f"{config.out} holds the result of another model or test set; choose another OUT")
        report(found)
        return
    predictions = predict(load_model(source, world, record), selection, world, resolution_px, config.batch_size)
    result = identity | summary(predictions)
    if world.is_first:
        out.delete("predictions.parquet")  # of a start that died before its result
        out.create("predictions.parquet", to_parquet(predictions))
        out.create("result.json", (json.dumps(result, indent=1) + "\n").encode())
        report(result)


def _existing(out: Store) -> dict[str, Any] | None:
    try:
        result: dict[str, Any] = json.loads(out.read("result.json"))
    except NotFound:
        return None
    return result
