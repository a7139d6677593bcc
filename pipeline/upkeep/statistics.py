"""Facts of a dataset from its sidecars, without reading a picture."""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.base.charts import Series, histogram, line_chart
from pipeline.base.html import render_page
from pipeline.dataset.dataset import Dataset

_BINS = 40
_SHOWN_CLASSES = 200
_SHOWN_EMPTY = 20  # classes without a sample
_POINTS = 400  # of a line over thousands of classes: one for each 1.4 px of the chart


@dataclass
class Statistics:
    """Counts over all samples.

    Attributes:
        classes: Samples of each label; a sample with several labels counts for each.
        labels_per_sample: Samples with 0, 1, 2... labels.
        shorter_side: Samples by shorter side in px.
        aspect: Samples by tenths of width over height.
        kilobytes: Samples by whole kB of their image.
        num_pixels: Of all pictures.
        num_image_bytes: Of all pictures.
        quality: Samples by quality of the fingerprint.
    """

    classes: Counter[int] = field(default_factory=Counter)
    labels_per_sample: Counter[int] = field(default_factory=Counter)
    shorter_side: Counter[int] = field(default_factory=Counter)
    aspect: Counter[int] = field(default_factory=Counter)
    kilobytes: Counter[int] = field(default_factory=Counter)
    quality: Counter[int] = field(default_factory=Counter)
    num_pixels: int = 0
    num_image_bytes: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return all counts as plain values."""
        return {
            name: dict(sorted(value.items())) if isinstance(value, Counter) else value
            for name, value in vars(self).items()
        }


def _count(counter: Counter[int], values: npt.NDArray[np.int64]) -> None:
    found, counts = np.unique(values, return_counts=True)
    counter.update(dict(zip(found.tolist(), counts.tolist(), strict=True)))


def class_counts(dataset: Dataset) -> Counter[int]:
    """Return the number of samples of each label; a sample with several labels counts for each."""
    return statistics(dataset).classes


def statistics(dataset: Dataset, on_shard: Callable[[int], None] = lambda count: None) -> Statistics:
    """Return the statistics of a dataset; read every sidecar once.

    Raises:
        CorruptShard: One is damaged.
    """
    stats = Statistics()
    for shard in range(len(dataset.shards)):
        samples = dataset.samples(shard)
        labels = samples["labels"].combine_chunks()
        _count(stats.classes, labels.flatten().to_numpy())
        _count(stats.labels_per_sample, np.diff(labels.offsets.to_numpy()))
        width, height, size = (samples[name].to_numpy().astype(np.int64) for name in ("width", "height", "image_bytes"))
        _count(stats.shorter_side, np.minimum(width, height))
        _count(stats.aspect, 10 * width // height)
        _count(stats.kilobytes, size // 1000)
        _count(stats.quality, samples["quality"].drop_null().to_numpy().astype(np.int64))
        stats.num_pixels += int((width * height).sum())
        stats.num_image_bytes += int(size.sum())
        on_shard(1)
    return stats


def percentile(counts: Counter[int], share: float) -> int:
    """Return the value below or at which `share` (0..1) of the counted samples lie; 0 where there is none."""
    wanted = share * sum(counts.values())
    seen = 0
    for value in sorted(counts):
        seen += counts[value]
        if seen >= wanted:
            return value
    return 0


def page(dataset: Dataset, stats: Statistics) -> bytes:
    """Return the statistics as an HTML page that opens offline."""
    ranked = stats.classes.most_common()
    empty = [label for label in range(dataset.version.num_classes) if label not in stats.classes]
    return render_page(
        "pipeline.upkeep",
        "stats.html.j2",
        title=f"{dataset.store.url} version {dataset.version.version}",
        version=dataset.version,
        mean_bytes=stats.num_image_bytes / max(1, dataset.version.num_samples),
        sides=[percentile(stats.shorter_side, share) for share in (0.05, 0.5, 0.95)],
        classes=[(dataset.class_name(label), count) for label, count in ranked[:_SHOWN_CLASSES]],
        smallest=(dataset.class_name(ranked[-1][0]), ranked[-1][1]) if ranked else None,
        num_smaller=max(0, len(ranked) - _SHOWN_CLASSES),
        num_empty=len(empty),
        empty=[dataset.class_name(label) for label in empty[:_SHOWN_EMPTY]],
        charts=[
            ("Samples of each class, the largest first", _by_rank([count for _, count in ranked])),
            _chart(stats.labels_per_sample, "Labels of a sample", "labels"),
            _chart(stats.shorter_side, "Shorter side", "px"),
            _chart(stats.aspect, "Width over height", "", units=10),
            _chart(stats.kilobytes, "Size of an image", "kB"),
            _chart(stats.quality, "Fingerprint quality (below 20 an audit cannot judge)", "gradient score"),
        ],
        rejects=list(reject_lines(dataset, 100)),
    )


def _by_rank(counts: list[int]) -> str:
    """Draw the counts of more classes than the table lists, each as it is, at up to _POINTS ranks."""
    if len(counts) <= _SHOWN_CLASSES:
        return ""
    ranks = sorted({round(place * (len(counts) - 1) / (_POINTS - 1)) for place in range(_POINTS)})
    line = Series("samples", [(rank + 1.0, float(counts[rank])) for rank in ranks])
    return line_chart([line], "Samples of each class, the largest first", "class, the largest first", "samples")


def _chart(counts: Counter[int], title: str, x_label: str, units: int = 1) -> tuple[str, str]:
    """Draw values, counted in 1/units, in bins of a whole number of values each; nothing where all have one value.

    The highest hundredth goes into the last bin.
    """
    if len(counts) < 2:
        return title, ""
    low, high = min(counts), percentile(counts, 0.99)
    width = max(1, math.ceil((high - low + 1) / _BINS))
    last = (high - low) // width
    bins: Counter[int] = Counter()
    for value, count in counts.items():
        bins[min((value - low) // width, last)] += count
    bars = [((low + place * width) / units, count) for place, count in sorted(bins.items())]
    if max(counts) >= low + (last + 1) * width:
        x_label = f"{x_label} (the last bar: {(low + last * width) / units:g} and above)".strip()
    return title, histogram(bars, title, x_label, width / units, "samples")


def reject_lines(dataset: Dataset, limit: int = 10) -> Iterator[str]:
    """Yield up to `limit` rejected pictures with their reasons, and how many more there are."""
    rejects = dataset.rejects
    for row in rejects.slice(0, limit).to_pylist():
        yield f"{row['source']}: {row['reason']} ({row['detail']})"
    if rejects.num_rows > limit:
        yield f"... and {rejects.num_rows - limit:,} more, in {dataset.version.rejects}"
