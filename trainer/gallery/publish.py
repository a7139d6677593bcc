"""The gallery: pictures, a page that filters all mistakes, a sheet for verdicts, and what the verdicts make of it."""

import hashlib
import io
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.base.errors import BadImage, ConfigError, CorruptShard, NotFound
from pipeline.base.html import render_page
from pipeline.base.records import json_bytes
from pipeline.base.text import printable
from pipeline.dataset.dataset import Address, Dataset
from pipeline.dataset.tables import read_table
from pipeline.image.decode import Pixels, decode
from pipeline.store.base import Store, put
from pipeline.streaming.one_pass import encoded_samples
from pipeline.streaming.selection import Selection
from trainer.scores.predictions import NAMED_PREDICTION_SCHEMA, summary
from trainer.scores.review import VERDICTS, corrected_accuracy, drawn_for_review, parse_verdicts

_MOST_PX = 256  # of a picture's longer side: what a phone shows sharply, at about 12 kB
_QUALITY = 85
_PER_PAGE = 60
FACTS_KEY = "gallery.json"
_NEWER = ("source", "guess_names")  # columns that predictions of earlier releases lack
_DATA = ('id="data">', "</script>")  # around the mistakes, in a page


def mistakes_of(predictions: pa.Table) -> list[dict[str, Any]]:
    """Return every wrong picture with what pages show of it, the most confident first; hidden characters written out.

    Args:
        predictions: Table of NAMED_PREDICTION_SCHEMA. Where it is older than the names of guesses, classes that are
            nowhere a label or the first guess are shown by number.
    """
    has_label = pa.compute.greater(pa.compute.list_value_length(predictions["labels"]), 0)
    wrong = predictions.filter(pa.compute.and_(has_label, pa.compute.invert(predictions["correct"])))
    names = _names(predictions)
    rows = [
        {
            "name": printable(row.get("source") or row["key"]),
            "shard": row["shard"],
            "row": row["row"],
            "picture": f"pictures/{row['shard']:05d}-{row['row']:06d}.jpg",
            "labels": [printable(name) for name in row["label_names"]],
            "guesses": [
                [printable(name), round(chance, 4)]
                for name, chance in zip(
                    row.get("guess_names") or [names.get(guess, str(guess)) for guess in row["guesses"]],
                    row["guess_probabilities"],
                    strict=True,
                )
            ],
        }
        for row in wrong.to_pylist()
    ]
    counts = Counter(row["name"] for row in rows)
    for row in rows:
        if counts[row["name"]] > 1:  # members of several tars may be named alike
            row["name"] += f" ({row['shard']}-{row['row']})"
    return sorted(rows, key=lambda row: (-row["guesses"][0][1], row["shard"], row["row"]))


def _names(predictions: pa.Table) -> dict[int, str]:
    """Return the class names that the predictions themselves tell."""
    found = dict(zip(predictions["prediction"].to_pylist(), predictions["prediction_name"].to_pylist(), strict=True))
    for labels, names in zip(predictions["labels"].to_pylist(), predictions["label_names"].to_pylist(), strict=True):
        found |= dict(zip(labels, names, strict=True))
    return found


def publish_gallery(
    out: Store,
    predictions: pa.Table,
    dataset: Dataset,
    *,
    title: str,
    num_for_review: int = 200,
    on_picture: Callable[[int], None] = lambda count: None,
) -> dict[str, Any]:
    """Write `index.html`, `review.html` and `pictures/`; return the facts that `gallery.json` keeps.

    Args:
        out: Where to.
        predictions: Table of NAMED_PREDICTION_SCHEMA of the dataset's pictures.
        dataset: The pictures.
        title: Of the pages.
        num_for_review: Random mistakes on the sheet.
        on_picture: Called with the number of pictures written since the last call.

    Raises:
        ConfigError: The predictions lack names, or are those of another dataset.
    """
    missing = [name for name in NAMED_PREDICTION_SCHEMA.names if name not in (*predictions.column_names, *_NEWER)]
    if missing:
        raise ConfigError(f"the predictions have no {', '.join(missing)}; evaluate the run again with this release")
    _check_origin(predictions, dataset)
    mistakes = mistakes_of(predictions)
    _write_pictures(out, dataset, mistakes, on_picture)
    facts = {"title": title, "data": dataset.store.url, "data_version": dataset.version.version, **summary(predictions)}
    drawn = drawn_for_review([row["name"] for row in mistakes], num_for_review)
    by_name = {row["name"]: row for row in mistakes}
    put(out, FACTS_KEY, json_bytes(facts))
    put(out, "index.html", _page(title, facts, mistakes, review=False))
    put(out, "review.html", _page(title, facts, [by_name[name] for name in drawn], review=True))
    return facts


def _check_origin(predictions: pa.Table, dataset: Dataset) -> None:
    """Refuse predictions of another dataset: they name other pictures at the same places."""
    names = [name for name in ("shard", "row", "key", "source") if name in predictions.column_names]
    for row in {row["shard"]: row for row in predictions.select(names).to_pylist()}.values():  # one of each shard
        address, found = Address(row["shard"], row["row"]), None
        if address.shard < len(dataset.shards) and address.row < dataset.shards[address.shard]["num_samples"]:
            found = dataset.sample(address)["key"]
            if row.get("source"):
                found = dataset.read_about(address).get("source", found)
        name = row.get("source") or row["key"]
        if name != found:
            raise ConfigError(
                f"the predictions name {name} at row {address.row} of shard {address.shard}, where "
                f"{dataset.store.url}, version {dataset.version.version}, has {found or 'nothing'}; give the dataset "
                f"that was evaluated"
            )


def _page(title: str, facts: Mapping[str, Any], mistakes: Sequence[Mapping[str, Any]], *, review: bool) -> bytes:
    shown = [{name: row[name] for name in ("name", "picture", "labels", "guesses")} for row in mistakes]
    data = json.dumps(shown, ensure_ascii=False).replace("<", "\\u003c")  # no name can end the script
    return render_page(
        "trainer.gallery",
        "gallery.html.j2",
        title=title,
        facts=facts,
        data=data,
        is_review=review,
        verdicts=VERDICTS,
        per_page=_PER_PAGE,
        key=_digest(data),
    )


def _write_pictures(
    out: Store, dataset: Dataset, mistakes: Sequence[Mapping[str, Any]], on_picture: Callable[[int], None]
) -> None:
    rows_by_shard: dict[int, list[int]] = {}
    for row in mistakes:
        rows_by_shard.setdefault(row["shard"], []).append(row["row"])
    keys = {(row["shard"], row["row"]): row["picture"] for row in mistakes}
    for sample in encoded_samples(Selection(dataset, rows_by_shard)) if rows_by_shard else ():
        put(out, keys[sample.shard, sample.row], _small_jpeg(bytes(sample.image)))
        on_picture(1)


def _small_jpeg(data: bytes) -> bytes:
    from PIL import Image  # noqa: PLC0415 - 40 ms that the command line's help need not pay

    try:
        pixels: Pixels = decode(data)
    except BadImage:
        pixels = np.full((64, 64, 3), 128, np.uint8)
    image = Image.fromarray(np.ascontiguousarray(pixels))
    factor = min(1.0, _MOST_PX / max(image.size))
    if factor < 1:
        image = image.resize((max(1, round(image.width * factor)), max(1, round(image.height * factor))))
    sink = io.BytesIO()
    image.save(sink, "JPEG", quality=_QUALITY)
    return sink.getvalue()


def read_predictions(store: Store, key: str) -> pa.Table:
    """Return predictions of a file.

    Raises:
        ConfigError: It holds something else.
        NotFound: It is not there.
    """
    try:
        return read_table(store, key)
    except CorruptShard as error:
        raise ConfigError(f"{error}, or give predictions of `trainer`") from error


def add_verdicts(out: Store, body: bytes, name: str) -> dict[str, Any]:
    """Keep the verdicts of a review sheet beside its gallery, and return the corrected accuracy.

    Raises:
        ConfigError: The file holds no verdicts, or one on a picture that was not drawn.
        NotFound: There is no gallery.
    """
    try:
        facts = json.loads(out.read(FACTS_KEY))
    except NotFound as error:
        raise NotFound(f"{out.url} holds no gallery; give the OUT of `trainer gallery`") from error
    verdicts, sheet = parse_verdicts(body, name)
    data = out.read("review.html").decode().partition(_DATA[0])[2].partition(_DATA[1])[0]
    unknown = sorted(set(verdicts) - {row["name"] for row in json.loads(data)})
    if unknown:
        raise ConfigError(f"{name}: {unknown[0]} is not on the review sheet of {out.url}; give its own verdicts")
    if sheet not in (None, _digest(data)):
        raise ConfigError(
            f"{name} holds verdicts on another model's mistakes, or on another test of it; give those that were saved "
            f"by {out.url}/review.html"
        )
    result = corrected_accuracy(facts["num_correct"], facts["num_test"], list(verdicts.values()))
    put(out, "verdicts.json", json_bytes({"sheet": _digest(data), "verdicts": verdicts, "result": result}))
    return result


def _digest(data: str) -> str:
    """Return what tells a page from others: a digest of its mistakes and what the model took them for."""
    return hashlib.sha256(data.encode()).hexdigest()[:16]
