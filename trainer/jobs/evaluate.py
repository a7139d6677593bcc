"""Predictions of a model on a whole dataset, and their accuracy."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import torch
from torch import nn

from pipeline.base.errors import Conflict, Interrupted, NotFound
from pipeline.base.records import json_bytes
from pipeline.dataset.schema import table_of, to_parquet
from pipeline.image.transforms import EvaluationView
from pipeline.store.base import Store
from pipeline.store.url import open_store
from pipeline.streaming.one_pass import one_pass
from pipeline.streaming.selection import Selection
from trainer.checkpoint.record import chosen
from trainer.checkpoint.weights import load_chosen_model
from trainer.jobs.config import EvaluateConfig
from trainer.recipes.classes import match_classes
from trainer.recipes.data import selection_without
from trainer.run.classes import classes_of
from trainer.run.controls import Controls
from trainer.run.progress import Report
from trainer.scores.predictions import NAMED_PREDICTION_SCHEMA, NUM_GUESSES, summary
from trainer.step.ranks import World, broadcast, cores_per_rank, gather
from trainer.step.tensors import images_to_device


@dataclass(frozen=True)
class TestSet:
    """Pictures with the labels that a model gives them.

    Attributes:
        selection: The pictures.
        classes: Class names of the model, by label.
        labels: For each label of the dataset that of the model; -1 where the model has no such class.
    """

    selection: Selection
    classes: tuple[str, ...]
    labels: tuple[int, ...]


def predict(
    model: nn.Module,
    test: TestSet,
    world: World,
    resolution_px: int,
    batch_size: int,
    wants_stop: Callable[[], bool] = lambda: False,
) -> pa.Table:
    """Classify every picture of a test set; every rank must call and gets the whole table, in dataset order.

    Returns:
        Table of NAMED_PREDICTION_SCHEMA; `correct` says whether the highest logit is one of the labels. Pictures all of
        whose labels the model does not know are left out.

    Raises:
        Interrupted: A rank wanted to stop.
    """
    model.eval()
    dataset = test.selection.dataset
    rows: list[dict[str, Any]] = []
    is_stopped = False
    batches = one_pass(
        test.selection,
        EvaluationView(resolution_px),
        resolution_px,
        batch_size,
        rank=world.rank,
        num_ranks=world.num_ranks,
        named=True,
        num_threads=cores_per_rank(world),
    )
    with torch.inference_mode():
        for batch in batches:
            if wants_stop():
                is_stopped = True
                break
            logits = model(images_to_device(batch, world.device)).float()
            probabilities, guesses = logits.softmax(1).topk(min(NUM_GUESSES, logits.shape[1]), dim=1)
            for address, source, given, chances, guessed in zip(
                batch.addresses, batch.sources, batch.labels, probabilities.tolist(), guesses.tolist(), strict=True
            ):
                labels = [test.labels[label] for label in given if test.labels[label] >= 0]
                if given and not labels:
                    continue
                rows.append(
                    {
                        "shard": address.shard,
                        "row": address.row,
                        "labels": labels,
                        "prediction": guessed[0],
                        "probability": chances[0],
                        "correct": guessed[0] in labels,
                        "key": dataset.sample(address)["key"],
                        "source": source,
                        "label_names": [test.classes[label] for label in labels],
                        "prediction_name": test.classes[guessed[0]],
                        "guesses": guessed,
                        "guess_probabilities": chances,
                    }
                )
    parts = [part for part in gather(world, None if is_stopped else rows) if part is not None]
    if len(parts) < world.num_ranks:
        raise Interrupted("stopped before all pictures were classified; nothing is kept: run the same command again")
    return table_of([row for part in parts for row in part], NAMED_PREDICTION_SCHEMA)


def evaluate(config: EvaluateConfig, world: World, report: Report, controls: Controls | None = None) -> None:
    """Write `predictions.parquet` and `result.json` below OUT, or repeat what is there; every rank must call.

    Raises:
        NotFound: The run has no checkpoint.
        ConfigError: The test set has classes that the model does not know.
        Conflict: OUT holds the result of another model or test set.
        Interrupted: The evaluation was asked to stop.
    """
    source, out = open_store(config.run), open_store(config.out)
    record = chosen(source, config.step)
    selection = selection_without(config.data, config.data_version, config.exclude)
    classes = classes_of(source, record, selection.dataset)
    labels = match_classes(
        classes, selection.dataset.classes, config.run, config.data, ignore_unknown=config.ignore_unknown_classes
    )
    resolution_px = config.resolution_px or record.about["resolution_px"]
    identity = config.model_dump(exclude={"batch_size"}) | {"step": record.step, "resolution_px": resolution_px}
    if config.exclude:  # its content decides, not its name
        identity["selection"] = selection.identity
    found = broadcast(world, _existing(out) if world.is_first else None)
    if found is not None:
        different = [
            name for name, value in identity.items() if name != "out" and found.get(name, _ABSENT.get(name)) != value
        ]
        if different == ["step"] and load_chosen_model(source, world, config.step)[1].step == found["step"]:
            different = []  # the newest checkpoint is damaged, as it was then
        if different:
            changes = "; ".join(f"{name} was {found.get(name)!r}, is {identity[name]!r}" for name in different)
            raise Conflict(f"{config.out} holds the result of another evaluation ({changes}); choose another OUT")
        if world.is_first:
            report(found | {"out": config.out})
        return
    model, used = load_chosen_model(source, world, config.step)
    if used.step != record.step:
        identity["step"] = used.step
    test = TestSet(selection, classes, labels)
    wants_stop = (controls or Controls()).wants_stop
    predictions = predict(model, test, world, resolution_px, config.batch_size, wants_stop)
    result = identity | summary(predictions)
    if world.is_first:
        out.delete("predictions.parquet")  # of a start that died before its result
        out.create("predictions.parquet", to_parquet(predictions))
        out.create("result.json", json_bytes(result))
        report(result)


# Of results that were written before these were asked for.
_ABSENT: dict[str, Any] = {"ignore_unknown_classes": False}


def evaluation_lines(row: dict[str, Any]) -> str:
    """Return a result as lines for people."""
    unlabelled = f"; {row['num_unlabelled']:,} without a label are predicted only" if "num_unlabelled" in row else ""
    return (
        f"accuracy {row['accuracy']:.1%} [{row['low']:.1%}, {row['high']:.1%}]: {row['num_correct']:,} of "
        f"{row['num_test']:,} pictures of {row['data']}{unlabelled}\n"
        f"model {row['run']}, step {row['step']:,}, at {row['resolution_px']} px\n"
        f"predictions: {row['out'].rstrip('/')}/predictions.parquet"
    )


def _existing(out: Store) -> dict[str, Any] | None:
    try:
        result: dict[str, Any] = json.loads(out.read("result.json"))
    except NotFound:
        return None
    return result
