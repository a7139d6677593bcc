"""A contact sheet of a stream's batches: a page that opens offline, or a picture."""

import base64
import io
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from pipeline.base.html import render_page
from pipeline.dataset.dataset import Dataset
from pipeline.image.decode import Pixels
from pipeline.image.transforms import EvaluationView, FinetuneView, PretrainView, Transform
from pipeline.streaming.order import OrderConfig
from pipeline.streaming.selection import Selection
from pipeline.streaming.stream import Batch, Stream

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage

VIEWS: dict[str, Callable[[int], Transform]] = {
    "pretrain": PretrainView,
    "finetune": lambda px: FinetuneView(round(px * 448 / 384), px),  # the paper's larger pair of sides [3.3]
    "evaluate": EvaluationView,
}
_MOST_LANES = 16
_QUALITY = 90
_COLUMNS = 8  # of the picture
_GAP_PX, _LABEL_PX, _HEADING_PX, _BORDER_PX = 6, 18, 26, 4
_INK, _SOFT, _ALARM = (26, 34, 51), (91, 101, 121), (200, 30, 30)


@dataclass(frozen=True)
class Tile:
    """A picture of a batch.

    Attributes:
        pixels: uint8 RGB, shape (px, px, 3).
        name: Its classes.
        place: Where it came from.
        replaced: Which damaged sample it took the place of, and why; empty where it was due itself.
    """

    pixels: Pixels
    name: str
    place: str
    replaced: str


def batches_of(dataset: Dataset, transform: Transform, *, seed: int, batch_size: int, count: int) -> Iterator[Batch]:
    """Yield the first batches of a run with this seed: in its order, augmented as it would be.

    Windows hold one block, so that little has to be read.

    Raises:
        BitError: The stream's own.
    """
    order = OrderConfig(seed=seed, batch_size=batch_size, num_lanes=math.gcd(batch_size, _MOST_LANES), window_blocks=1)
    stream = Stream(Selection(dataset), order, transform)
    try:
        for _ in range(count):
            yield next(stream)
    finally:
        stream.close()


def tiles(dataset: Dataset, batch: Batch) -> Iterator[Tile]:
    """Yield the pictures of a batch with their captions."""
    due = {(bad.source, bad.epoch, *bad.substitute): bad for bad in batch.bad}
    left = Counter((bad.source, bad.epoch, *bad.substitute) for bad in batch.bad)
    for pixels, labels, row in zip(batch.images, batch.labels, batch.places.tolist(), strict=True):
        place, replaced = tuple(row), ""
        if left[place]:  # a substitute comes before its own turn, so the first of two equal places is the substitute
            left[place] -= 1
            bad = due[place]
            replaced = f"in place of shard {bad.shard}, row {bad.row}: {bad.reason}"
        yield Tile(
            pixels=pixels,
            name=", ".join(dataset.class_name(label) for label in labels) or "no label",
            place=f"epoch {place[1]}, shard {place[2]}, row {place[3]}",
            replaced=replaced,
        )


def page(title: str, about: str, batches: Sequence[Sequence[Tile]]) -> bytes:
    """Return batches as an HTML page that opens offline."""
    shown = [[(tile, _inlined(tile)) for tile in batch] for batch in batches]
    return render_page("pipeline.upkeep", "peek.html.j2", title=title, about=about, batches=shown)


def _inlined(tile: Tile) -> Markup:
    from PIL import Image  # noqa: PLC0415 - 40 ms that other commands need not pay

    sink = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(tile.pixels)).save(sink, "JPEG", quality=_QUALITY)
    data = base64.b64encode(sink.getvalue()).decode()
    return Markup('<img src="data:image/jpeg;base64,{}" alt="{}">').format(data, tile.name)


def sheet(batches: Sequence[Sequence[Tile]]) -> bytes:
    """Return batches as one PNG, eight pictures a row."""
    from PIL import Image, ImageDraw  # noqa: PLC0415

    side = batches[0][0].pixels.shape[0]
    columns = min(_COLUMNS, max(len(batch) for batch in batches))
    step_x, step_y = side + _GAP_PX, side + _LABEL_PX + _GAP_PX
    heights = [_HEADING_PX + math.ceil(len(batch) / columns) * step_y for batch in batches]
    canvas = Image.new("RGB", (columns * step_x + _GAP_PX, sum(heights) + _GAP_PX), "white")
    draw = ImageDraw.Draw(canvas)
    top = _GAP_PX
    for number, (batch, height) in enumerate(zip(batches, heights, strict=True), start=1):
        draw.text((_GAP_PX, top), f"Batch {number}", fill=_INK, font=_font(15))
        for index, tile in enumerate(batch):
            corner = (_GAP_PX + index % columns * step_x, top + _HEADING_PX + index // columns * step_y)
            _draw_tile(canvas, tile, *corner)
        top += height
    sink = io.BytesIO()
    canvas.save(sink, "PNG")
    return sink.getvalue()


def _draw_tile(canvas: "PilImage", tile: Tile, left: int, top: int) -> None:
    from PIL import Image, ImageDraw  # noqa: PLC0415

    side = tile.pixels.shape[0]
    canvas.paste(Image.fromarray(np.ascontiguousarray(tile.pixels)), (left, top))
    draw = ImageDraw.Draw(canvas)
    if tile.replaced:
        draw.rectangle((left, top, left + side - 1, top + side - 1), outline=_ALARM, width=_BORDER_PX)
    font, name = _font(12), tile.name
    while len(name) > 1 and draw.textlength(name, font=font) > side:
        name = name.rstrip("…")[:-1] + "…"
    draw.text((left, top + side + 1), name, fill=_ALARM if tile.replaced else _SOFT, font=font)


def _font(px: int) -> Any:
    from PIL import ImageFont  # noqa: PLC0415

    return ImageFont.load_default(px)
