"""Predictions of a model on a whole dataset, and their accuracy."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from pipeline.base.errors import ConfigError, Conflict, Interrupted, NotFound
from pipeline.base.parsing import parse_json
from pipeline.base.records import json_bytes
from pipeline.dataset.dataset import Dataset, label_matrix
from pipeline.dataset.schema import table_of, to_parquet
from pipeline.image.transforms import EvaluationView
from pipeline.store.base import Store, put
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
from trainer.scores.classification import (
    average_precisions,
    calibration,
    calibration_error,
    confusions,
    per_class,
)
from trainer.scores.predictions import NAMED_PREDICTION_SCHEMA, NUM_GUESSES, SCORES_FIELD, summary
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
    view: EvaluationView,
    batch_size: int,
    wants_stop: Callable[[], bool] = lambda: False,
    probabilities: str = "softmax",
) -> pa.Table:
    """Classify every picture of a test set; every rank must call and gets the whole table, in dataset order.

    Args:
        model: Returns logits.
        test: The pictures.
        world: This rank.
        view: Of each picture.
        batch_size: Pictures in one forward pass.
        wants_stop: Whether to end before all are classified.
        probabilities: `softmax`, or `sigmoid` for the probability of each class by itself.

    Returns:
        Table of NAMED_PREDICTION_SCHEMA; `correct` says whether the highest logit is one of the labels. Pictures all of
        whose labels the model does not know are left out. Where pictures have several labels it has SCORES_FIELD, too.

    Raises:
        Interrupted: A rank wanted to stop.
    """
    model.eval()
    dataset = test.selection.dataset
    rows: list[dict[str, Any]] = []
    is_stopped, is_multi_label = False, has_several_labels(dataset)
    batches = one_pass(
        test.selection,
        view,
        view.out_px,
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
            scores = logits.sigmoid() if probabilities == "sigmoid" else logits.softmax(1)
            guesses = logits.topk(min(NUM_GUESSES, logits.shape[1]), dim=1).indices  # high ones have equal sigmoids
            best = scores.gather(1, guesses)
            kept = scores.cpu().numpy() if is_multi_label else [None] * len(batch.labels)
            for address, source, given, chances, guessed, of_classes in zip(
                batch.addresses, batch.sources, batch.labels, best.tolist(), guesses.tolist(), kept, strict=True
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
                        "guess_names": [test.classes[guess] for guess in guessed],
                        "guess_probabilities": chances,
                        "scores": of_classes,
                    }
                )
    parts = [part for part in gather(world, None if is_stopped else rows) if part is not None]
    if len(parts) < world.num_ranks:
        raise Interrupted("stopped before all pictures were classified; nothing is kept: run the same command again")
    schema = NAMED_PREDICTION_SCHEMA.append(SCORES_FIELD) if is_multi_label else NAMED_PREDICTION_SCHEMA
    return table_of([row for part in parts for row in part], schema)


def has_several_labels(dataset: Dataset) -> bool:
    """Return whether a picture of a dataset has more than one label."""
    counts = (pa.compute.list_value_length(dataset.samples(shard)["labels"]) for shard in range(len(dataset.shards)))
    return any((pa.compute.max(count).as_py() or 0) > 1 for count in counts)


def details(predictions: pa.Table, classes: Sequence[str]) -> tuple[dict[str, Any], dict[str, pa.Table]]:
    """Return further figures of an evaluation, and tables by name: classes, what is confused, calibration."""
    labelled = predictions.filter(pa.compute.greater(pa.compute.list_value_length(predictions["labels"]), 0))
    bins = calibration(labelled["probability"].to_numpy(), labelled["correct"].to_numpy())
    figures: dict[str, Any] = {"calibration_error": calibration_error(bins)}
    precisions = None
    if "scores" in labelled.column_names and labelled.num_rows:
        scores = np.stack(labelled["scores"].to_numpy())
        targets = label_matrix(labelled["labels"].to_pylist(), len(classes)) > 0
        precisions, micro = average_precisions(scores, targets)
        figures |= {"macro_average_precision": float(np.nanmean(precisions)), "micro_average_precision": micro}
    tables = {"classes": per_class(labelled, classes, precisions), "confusions": confusions(labelled, classes)}
    return figures, tables | {"calibration": bins}


def evaluate(config: EvaluateConfig, world: World, report: Report, controls: Controls | None = None) -> None:
    """Write `predictions.parquet` and `result.json` below OUT, or repeat what is there; every rank must call.

    Raises:
        NotFound: The run has no checkpoint.
        ConfigError: The test set has classes that the model does not know, or less is resized than is cut out.
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
    if config.shorter_side_px is not None and config.shorter_side_px < resolution_px:
        raise ConfigError(
            f"shorter_side_px={config.shorter_side_px} is less than the {resolution_px} px that are cut out; give "
            f"more, or a smaller resolution_px"
        )
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
    view = EvaluationView(resolution_px, config.shorter_side_px)
    predictions = predict(model, test, world, view, config.batch_size, wants_stop, config.probabilities)
    figures, tables = details(predictions, classes)
    result = identity | summary(predictions) | figures
    if world.is_first:
        for name, table in {"predictions": predictions, **tables}.items():  # a start may have died before its result
            put(out, f"{name}.parquet", to_parquet(table))
        out.create("result.json", json_bytes(result))
        report(result)


# Of results that were written before these were asked for.
_ABSENT: dict[str, Any] = {"ignore_unknown_classes": False, "probabilities": "softmax", "shorter_side_px": None}


def evaluation_lines(row: dict[str, Any]) -> str:
    """Return a result as lines for people."""
    unlabelled = f"; {row['num_unlabelled']:,} without a label are predicted only" if "num_unlabelled" in row else ""
    figures = [
        f"{title} {row[name]:.1%}"
        for name, title in (
            ("top5_accuracy", "top-5"),
            ("macro_average_precision", "mean average precision of classes"),
            ("micro_average_precision", "of all pairs"),
            ("calibration_error", "calibration error"),
        )
        if name in row
    ]
    return (
        f"accuracy {row['accuracy']:.1%} [{row['low']:.1%}, {row['high']:.1%}]: {row['num_correct']:,} of "
        f"{row['num_test']:,} pictures of {row['data']}{unlabelled}\n"
        f"{', '.join(figures)}{chr(10) if figures else ''}"
        f"model {row['run']}, step {row['step']:,}, at {row['resolution_px']} px\n"
        f"predictions: {row['out'].rstrip('/')}/predictions.parquet"
    )


def _existing(out: Store) -> dict[str, Any] | None:
    try:
        body = out.read("result.json")
    except NotFound:
        return None
    return parse_json(body, f"{out.url}/result.json", dict)
