"""What a model says of pictures: predictions or features of each one, exactly once, in Parquet files.

The pictures are in numbered parts, and the file of a part is written when it is whole. A start leaves out the parts
whose files are there: so nothing is done twice or left out, whatever was killed, and with any number of ranks.
"""

import itertools
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from pipeline.base.errors import Conflict, Interrupted, NotFound
from pipeline.base.parsing import parse_json
from pipeline.base.quantities import quantity
from pipeline.base.records import json_bytes
from pipeline.dataset.schema import table_of, to_parquet
from pipeline.image.transforms import EvaluationView
from pipeline.store.any_url import open_file
from pipeline.store.base import Store, put
from pipeline.store.url import open_store
from pipeline.streaming.rendered import Picture, rendered
from trainer.checkpoint.record import chosen
from trainer.checkpoint.weights import load_chosen_model
from trainer.jobs.config import EMBEDDINGS, InferenceConfig
from trainer.jobs.pictures import REQUEST_KEY, Inputs, Origin, is_begun, open_inputs
from trainer.model.network import ResNetV2
from trainer.run.classes import classes_of
from trainer.run.controls import Controls
from trainer.run.folder import begin_attempt
from trainer.run.progress import Report
from trainer.step.ranks import World, broadcast, cores_per_rank, gather
from trainer.step.tensors import pixels_to_device

Row = dict[str, Any]
_REPORT_SECONDS = 10.0  # a choice

_ORIGIN_FIELDS = (
    ("source", pa.string()),
    ("labels", pa.list_(pa.string())),
    ("error", pa.string()),  # why a picture has no result; null where it has one
)
PICTURE_PREDICTION_SCHEMA = pa.schema(
    [
        *_ORIGIN_FIELDS,
        ("prediction", pa.int32()),
        ("prediction_name", pa.string()),
        ("probability", pa.float32()),
        ("guesses", pa.list_(pa.int32())),
        ("guess_names", pa.list_(pa.string())),
        ("guess_probabilities", pa.list_(pa.float32())),
    ]
)


def embedding_schema(num_features: int) -> pa.Schema:
    """Return the schema of embeddings: pre-logits of fixed length, null where a picture has none."""
    return pa.schema([*_ORIGIN_FIELDS, ("embedding", pa.list_(pa.float32(), num_features))])


def infer(config: InferenceConfig, world: World, report: Report, controls: Controls | None = None) -> None:
    """Write the results of all pictures below OUT, or go on where an earlier start was ended; every rank must call.

    Raises:
        NotFound: The run has no checkpoint, or a source does not exist.
        Conflict: OUT holds the results of other pictures or another model.
        CorruptShard: A sample of a dataset is damaged.
        Interrupted: It was asked to stop; the parts that are whole are kept.
    """
    source, out = open_store(config.run), open_store(config.out)
    begun = broadcast(world, _begin(config, source, out) if world.is_first else None)
    if isinstance(begun, Conflict):
        raise begun
    result = broadcast(world, _json(out, "result.json") if world.is_first else None)
    if result is not None:
        if world.is_first:
            report(result | {"out": config.out})
        return
    begin_attempt(out, world, 0)
    inputs, done = broadcast(world, _inputs_and_done(config, out) if world.is_first else None)
    parts = [part for part in range(len(inputs.sizes)) if part not in done][world.rank :: world.num_ranks]
    model, record = load_chosen_model(source, world, begun["step"])
    rows_of, schema = _outcome(config, model, lambda: classes_of(source, record))
    clock = _Clock(config, inputs, parts, world, report)
    pictures = _watched(inputs.pictures(parts), (controls or Controls()).wants_stop)
    batches = _batches(config, begun["resolution_px"], model, rows_of, pictures, cores_per_rank(world))
    is_stopped = False
    try:
        for part, rows in zip(parts, _parted(batches, [inputs.sizes[part] for part in parts]), strict=True):
            out.create(_key(config, part), to_parquet(table_of(rows, schema)))
            clock.advance(len(rows))
    except Interrupted:
        is_stopped = True
    if any(gather(world, is_stopped)):
        raise Interrupted("stopped; what is done is kept: run the same command again to go on from there")
    if world.is_first:
        num_unreadable = sum(_num_errors(out, config, part) for part in range(len(inputs.sizes)))
        result = begun | {"num_pictures": sum(inputs.sizes), "num_unreadable": num_unreadable}
        out.create("result.json", json_bytes(result))
        report(result | {"out": config.out})


def _begin(config: InferenceConfig, source: Store, out: Store) -> dict[str, Any] | Conflict:
    """Return what is asked for, with the step that the first start found, or the error if OUT holds something else."""
    found = _json(out, REQUEST_KEY)
    is_same_run = found is not None and found["run"] == config.run
    step = found["step"] if found and is_same_run and config.step is None else chosen(source, config.step).step
    resolution_px = config.resolution_px or chosen(source, step).about["resolution_px"]
    asked = config.model_dump(mode="json", exclude={"out", "batch_size"})
    asked |= {"step": step, "resolution_px": resolution_px}
    if found is None or not is_begun(out):  # the sources of an earlier start could not be read
        put(out, REQUEST_KEY, json_bytes(asked))
        return asked
    changes = [
        f"{name} was {found.get(name)!r}, is {value!r}" for name, value in asked.items() if found.get(name) != value
    ]
    if changes:
        return Conflict(f"{config.out} holds other results ({'; '.join(changes)}); choose another OUT")
    return found


def _inputs_and_done(config: InferenceConfig, out: Store) -> tuple[Inputs, set[int]]:
    inputs = open_inputs(out, config.sources, config.data_version, config.image_column, config.part_size)
    names = [entry.key.rpartition("-")[2].removesuffix(".parquet") for entry in out.list(f"{config.output}/")]
    return inputs, {int(name) for name in names if name.isdigit()}


def _outcome(
    config: InferenceConfig, model: ResNetV2, classes: Callable[[], Sequence[str]]
) -> tuple[Callable[[Tensor], list[Row]], pa.Schema]:
    """Return what makes rows of a batch of images, and the schema of the rows."""
    if config.output == EMBEDDINGS:
        return lambda images: [{"embedding": values} for values in _features(model, images)], embedding_schema(
            model.head.fc.in_channels
        )
    names = classes()

    def rows_of(images: Tensor) -> list[Row]:
        logits = model(images).float()
        probabilities = logits.sigmoid() if config.probabilities == "sigmoid" else logits.softmax(1)
        guesses = logits.topk(min(config.top, len(names)), dim=1).indices  # high ones have equal sigmoids
        chances = probabilities.gather(1, guesses)
        return [
            {
                "prediction": guessed[0],
                "prediction_name": names[guessed[0]],
                "probability": likely[0],
                "guesses": guessed,
                "guess_names": [names[guess] for guess in guessed],
                "guess_probabilities": likely,
            }
            for likely, guessed in zip(chances.tolist(), guesses.tolist(), strict=True)
        ]

    return rows_of, PICTURE_PREDICTION_SCHEMA


def _features(model: ResNetV2, images: Tensor) -> list[Any]:
    return list(model.features(images).float().flatten(1).cpu().numpy())


def _watched(pictures: Generator[Picture[Origin]], wants_stop: Callable[[], bool]) -> Generator[Picture[Origin]]:
    for picture in pictures:
        if wants_stop():
            raise Interrupted("asked to stop")
        yield picture


def _batches(
    config: InferenceConfig,
    resolution_px: int,
    model: ResNetV2,
    rows_of: Callable[[Tensor], list[Row]],
    pictures: Generator[Picture[Origin]],
    num_threads: int,
) -> Iterator[Row]:
    """Yield a row for each picture."""
    device = next(model.parameters()).device
    view = EvaluationView(resolution_px)
    with torch.inference_mode():
        for batch in rendered(pictures, view, resolution_px, config.batch_size, num_threads):
            rows = rows_of(pixels_to_device(batch.images, device))
            for place, (origin, row) in enumerate(zip(batch.abouts, rows, strict=True)):
                error = batch.errors.get(place)
                about = {"source": origin.source, "labels": list(origin.labels)}
                yield about | ({"error": str(error)} if error else row)


def _parted(rows: Iterator[Row], sizes: Sequence[int]) -> Iterator[list[Row]]:
    """Yield the rows of one part after the other."""
    for size in sizes:
        yield list(itertools.islice(rows, size))


class _Clock:
    """Reports now and then how far rank 0 is, and by that all of them."""

    def __init__(
        self, config: InferenceConfig, inputs: Inputs, parts: Sequence[int], world: World, report: Report
    ) -> None:
        self._num_pictures = sum(inputs.sizes)
        self._num_mine = sum(inputs.sizes[part] for part in parts)
        self._num_done = 0
        self._world = world
        self._report = report
        self._started = self._reported = time.perf_counter()

    def advance(self, count: int) -> None:
        """Count pictures of this rank."""
        self._num_done += count
        now = time.perf_counter()
        if not self._world.is_first or now - self._reported < _REPORT_SECONDS:
            return
        self._reported = now
        rate = self._num_done / (now - self._started)
        left = self._num_mine - self._num_done
        self._report(
            {
                "num_done": self._num_pictures - left * self._world.num_ranks,
                "num_pictures": self._num_pictures,
                "images_per_second": round(rate * self._world.num_ranks, 1),
                "eta_seconds": round(left / rate),
            }
        )


def inference_lines(row: dict[str, Any]) -> str:
    """Return a reported row as lines for people."""
    if "eta_seconds" in row:
        return (
            f"{max(0, row['num_done']):,} of {row['num_pictures']:,} pictures  "
            f"{row['images_per_second']:,.0f} images/s  {row['eta_seconds']:,} s left"
        )
    unreadable = f"; {row['num_unreadable']:,} could not be read (column `error`)" if row["num_unreadable"] else ""
    return (
        f"{quantity(row['num_pictures'], 'picture')}{unreadable}\n"
        f"model {row['run']}, step {row['step']:,}, at {row['resolution_px']} px\n"
        f"{row['output']}: {row['out'].rstrip('/')}/{row['output']}/"
    )


def _key(config: InferenceConfig, part: int) -> str:
    return f"{config.output}/part-{part:06d}.parquet"


def _num_errors(out: Store, config: InferenceConfig, part: int) -> int:
    with open_file(f"{out.url}/{_key(config, part)}") as file:
        errors = pq.ParquetFile(file, pre_buffer=False).read(columns=["error"], use_threads=False)["error"]
    return len(errors) - int(errors.null_count)


def _json(out: Store, key: str) -> dict[str, Any] | None:
    try:
        body = out.read(key)
    except NotFound:
        return None
    return parse_json(body, f"{out.url}/{key}", dict)
