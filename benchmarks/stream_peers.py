"""One contender of stream.py in a process of its own; also run by the Python of peers' environments.

    python stream_peers.py JSON      (fields of Settings)

Every contender is an iterator of batches: images as uint8 (64, px, px, 3) in one array, and labels. All but ours run
the same code on a picture: decode, Inception-style crop, resize with a box, flip. Prints one JSON line.
"""

import ctypes
import dataclasses
import importlib
import io
import itertools
import json
import multiprocessing
import os
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from measure import Peak, timed
from PIL import Image
from stream_settings import Settings, tar_samples

Batch = tuple[Any, Any]  # images, labels

_SHUFFLE_SAMPLES = 1000
_RAY_STORE_BYTES, _RAY_BLOCK_BYTES = 1_000_000_000, 32_000_000
_IN_MEMORY = 2000  # pictures of the bare loop
_MIN_AREA, _ASPECTS = 0.05, (3 / 4, 4 / 3)


# ---- ours: the one place that knows our programming interface ----


def our_stream(settings: Settings) -> Any:
    """Return our stream over the dataset."""
    from pipeline.dataset.dataset import open_dataset  # noqa: PLC0415
    from pipeline.image.transforms import PretrainView  # noqa: PLC0415 - not in peers' environments
    from pipeline.streaming.order import OrderConfig  # noqa: PLC0415
    from pipeline.streaming.selection import Selection  # noqa: PLC0415
    from pipeline.streaming.stream import LoaderConfig, Stream, WeightedSelection  # noqa: PLC0415

    order = OrderConfig(batch_size=settings.batch, num_lanes=16, window_blocks=4)
    budget = {} if settings.budget_bytes is None else {"budget_bytes": settings.budget_bytes}
    loader = LoaderConfig(num_workers=settings.workers, **budget)
    return Stream(
        [WeightedSelection(Selection(open_dataset(settings.url)))], order, PretrainView(settings.px), loader=loader
    )


def ours(settings: Settings) -> Iterator[Batch]:
    """Our stream: checksums, exact order, resume."""
    stream, left = our_stream(settings), None
    if not settings.endless:
        left = _samples_of(settings)
    try:
        while left is None or left > 0:
            batch = next(stream)
            if left is None:
                yield batch.images, batch.labels
            else:  # lanes roll into the next epoch one by one
                first = np.asarray(batch.epochs) == 0
                left -= int(first.sum())
                yield batch.images[first], [labels for labels, mine in zip(batch.labels, first, strict=True) if mine]
    finally:
        stream.close()


def _samples_of(settings: Settings) -> int:
    from pipeline.dataset.dataset import open_dataset  # noqa: PLC0415

    return int(open_dataset(settings.url).version.num_samples)


def our_bytes(settings: Settings, *, mapped: bool = False) -> Iterator[tuple[memoryview, Any]]:
    """Our blocks, checked, cut into samples, in dataset order."""
    from pipeline.dataset.dataset import open_dataset  # noqa: PLC0415
    from pipeline.streaming.one_pass import encoded_samples  # noqa: PLC0415
    from pipeline.streaming.selection import Selection  # noqa: PLC0415

    selection = Selection(open_dataset(settings.url))
    while True:
        yield from ((sample.image, sample.labels) for sample in encoded_samples(selection, mapped=mapped))


# ---- the others ----


def augmented(image: Image.Image, px: int) -> np.ndarray:
    """Crop 5-100 % of the area at aspect 3/4 to 4/3, resizes, flips every second one."""
    width, height = image.size
    box = (0, 0, width, height)
    for _ in range(100):
        area, aspect = width * height * random.uniform(_MIN_AREA, 1.0), random.uniform(*_ASPECTS)
        crop_width, crop_height = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
        if 0 < crop_width <= width and 0 < crop_height <= height:
            left, top = random.randint(0, width - crop_width), random.randint(0, height - crop_height)
            box = (left, top, left + crop_width, top + crop_height)
            break
    view = np.asarray(image.resize((px, px), Image.Resampling.BILINEAR, box=box))
    return view[:, ::-1] if random.random() < 0.5 else view


def decoded(data: bytes, decoder: str) -> Image.Image:
    """Decode a JPEG."""
    if decoder == "simplejpeg":
        return Image.fromarray(simplejpeg.decode_jpeg(data, colorspace="RGB"))
    return Image.open(io.BytesIO(data)).convert("RGB")


def webdataset(settings: Settings) -> Iterator[Batch]:
    """WebLoader: shards and 1,000 samples shuffled, batched in the workers."""
    import webdataset as wds  # noqa: PLC0415

    samples = wds.WebDataset(settings.tars, shardshuffle=100)
    samples = (samples.repeat() if settings.endless else samples).shuffle(_SHUFFLE_SAMPLES)
    if settings.decoder == "pil":
        samples = samples.decode("pil").to_tuple("jpg", "cls")
        samples = samples.map_tuple(lambda image: augmented(image, settings.px), int)
    else:
        samples = samples.to_tuple("jpg", "cls")
        samples = samples.map_tuple(lambda data: augmented(decoded(data, settings.decoder), settings.px), int)
    loader = wds.WebLoader(samples.batched(settings.batch), batch_size=None, num_workers=settings.workers)
    yield from ((images.numpy(), labels) for images, labels in loader)


def litdata(settings: Settings) -> Iterator[Batch]:
    """StreamingDataLoader over chunks of JPEG bytes."""
    from litdata import StreamingDataLoader, StreamingDataset  # noqa: PLC0415

    def transform(item: dict[str, Any]) -> Batch:
        return np.ascontiguousarray(augmented(decoded(item["image"], settings.decoder), settings.px)), item["label"]

    samples = StreamingDataset(
        settings.litdata, shuffle=True, seed=os.getpid(), drop_last=settings.endless, transform=transform
    )
    loader = StreamingDataLoader(samples, batch_size=settings.batch, num_workers=settings.workers)
    while True:
        yield from ((images.numpy(), labels) for images, labels in loader)
        if not settings.endless:
            return


def ray_data(settings: Settings) -> Iterator[Batch]:
    """read_webdataset, map_batches, iter_batches with a local shuffle buffer."""
    import ray  # noqa: PLC0415
    import ray.data  # noqa: PLC0415

    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    with tempfile.TemporaryDirectory(prefix="bit-", dir="/tmp") as scratch:
        ray.init(num_cpus=settings.workers, object_store_memory=_RAY_STORE_BYTES, include_dashboard=False,
                 _temp_dir=scratch, _node_ip_address="127.0.0.1", log_to_driver=False, logging_level="error",
                 configure_logging=False)  # fmt: skip
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.target_max_block_size = _RAY_BLOCK_BYTES

        def transform(rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            images = [augmented(decoded(data, settings.decoder), settings.px) for data in rows["jpg"]]
            return {"image": np.stack(images), "label": np.array([int(label) for label in rows["cls"]])}

        try:
            while True:
                rows = ray.data.read_webdataset(settings.tars, decoder=None, suffixes=["jpg", "cls"], shuffle="files")
                rows = rows.map_batches(
                    transform, batch_size=None, batch_format="numpy"
                )  # whole blocks: fused with reading
                for batch in rows.iter_batches(
                    batch_size=settings.batch,
                    batch_format="numpy",
                    prefetch_batches=4,
                    local_shuffle_buffer_size=_SHUFFLE_SAMPLES,
                    drop_last=settings.endless,
                ):
                    yield batch["image"], batch["label"]
                if not settings.endless:
                    return
        finally:
            ray.shutdown()


def bare(settings: Settings) -> Iterator[Batch]:
    """Run the loop: simplejpeg, PIL and np.stack over bytes in memory, in order."""
    kept = list(itertools.islice(tar_samples(settings), _IN_MEMORY if settings.endless else None))
    numbers = itertools.cycle(range(len(kept))) if settings.endless else iter(range(len(kept)))
    while chosen := list(itertools.islice(numbers, settings.batch)):
        images = [augmented(decoded(kept[number][0], "simplejpeg"), settings.px) for number in chosen]
        yield np.stack(images), [kept[number][1] for number in chosen]


def pack_litdata(settings: Settings) -> None:
    """Write the samples of the tars as litdata's chunks."""
    os.environ["DATA_OPTIMIZER_CACHE_FOLDER"] = f"{settings.litdata}-cache"
    from litdata import optimize  # noqa: PLC0415

    def rows(tar: str) -> Iterator[dict[str, Any]]:
        for image, label in tar_samples(dataclasses.replace(settings, tars=[tar])):
            yield {"image": image, "label": label}

    optimize(rows, settings.tars, settings.litdata, chunk_bytes="64MB", num_workers=1, start_method="fork")


def webdataset_bytes(settings: Settings) -> Iterator[tuple[bytes, Any]]:
    """Webdataset without decoding, in this process."""
    import webdataset as wds  # noqa: PLC0415

    yield from wds.WebDataset(settings.tars, shardshuffle=False).repeat().to_tuple("jpg", "cls")


def litdata_bytes(settings: Settings) -> Iterator[tuple[bytes, Any]]:
    """Litdata's dataset without a loader, in this process."""
    from litdata import StreamingDataset  # noqa: PLC0415

    samples = StreamingDataset(settings.litdata, shuffle=False)
    while True:
        yield from ((item["image"], item["label"]) for item in samples)


def reading(settings: Settings) -> Iterator[tuple[bytes, Any]]:
    """Read the tars with crc32c, 8 MiB at a time into the same memory, as often as they have samples: the anchor."""
    from crc32c import crc32c  # noqa: PLC0415

    per_tar = _samples_of(settings) / len(settings.tars)
    owed, memory = 0.0, memoryview(bytearray(8 << 20))
    while True:
        for path in settings.tars:
            with Path(path).open("rb", buffering=0) as source:
                while num_bytes := source.readinto(memory):
                    crc32c(memory[:num_bytes])
            owed += per_tar
            yield from itertools.repeat((b"", 0), int(owed))
            owed -= int(owed)


CONTENDERS: dict[str, Callable[[Settings], Iterator[Batch]]] = {
    "bare": bare, "ours": ours, "webdataset": webdataset, "litdata": litdata, "ray": ray_data,
}  # fmt: skip
BYTES: dict[str, Callable[[Settings], Iterator[tuple[bytes | memoryview, Any]]]] = {
    "reading": reading, "ours": our_bytes, "mapped": partial(our_bytes, mapped=True), "webdataset": webdataset_bytes,
    "litdata": litdata_bytes,
}  # fmt: skip
_IMPORTS = {
    "bare": (), "reading": ("crc32c",), "ours": ("pipeline.streaming.stream", "pipeline.image.transforms"),
    "mapped": ("pipeline.streaming.one_pass",), "litdata": ("litdata",),
    "webdataset": ("webdataset", "torch.utils.data"), "ray": ("ray.data",),
}  # fmt: skip


def bare_rate(settings: Settings) -> float:
    """Return the seconds of the bare loop: as many processes as workers, each with its share; the slowest counts."""
    if settings.workers == 1:
        return timed(bare(settings), settings.warm, settings.count)
    share = settings.count // settings.workers
    context = multiprocessing.get_context("fork")
    together, times = context.Barrier(settings.workers), context.SimpleQueue()

    def work() -> None:
        batches = bare(settings)
        timed(batches, settings.warm // settings.workers, 0)
        together.wait()
        times.put(timed(batches, 0, share))

    processes = [context.Process(target=work) for _ in range(settings.workers)]
    for process in processes:
        process.start()
    seconds = [times.get() for _ in processes]
    for process in processes:
        process.join()
    return max(seconds) * settings.count / (share * settings.workers)


def outcome(batches: Iterator[Batch], settings: Settings) -> dict[str, Any]:
    """Return how often each label came in one epoch, and the mean of all pixels."""
    labels: Counter[int] = Counter()
    total, number = 0.0, 0
    for batch, (images, found) in enumerate(batches):
        full = (settings.batch, settings.px, settings.px, 3)
        assert (images.dtype, images.shape[1:]) == (np.uint8, full[1:]), (images.dtype, images.shape)
        assert batch or images.shape == full, images.shape
        assert len(found) == len(images)
        labels.update(int(label[0]) if isinstance(label, tuple) else int(label) for label in found)
        total, number = total + float(images.mean(dtype=np.float64)) * len(images), number + len(images)
    return {"labels": dict(sorted(labels.items())), "mean": total / number}


def main(settings: Settings) -> dict[str, Any]:
    """Run the contender."""
    for name in _IMPORTS[settings.contender]:
        importlib.import_module(name)
    if settings.mode == "pack":
        pack_litdata(settings)
        return {}
    if settings.mode == "epoch":
        return outcome(CONTENDERS[settings.contender](settings), settings)
    if settings.mode == "bytes":
        return {
            "count": settings.count,
            "seconds": timed(BYTES[settings.contender](settings), settings.warm, settings.count),
        }
    ctypes.CDLL(None).malloc_trim(0)
    peak = Peak() if settings.memory else None
    if settings.contender == "bare":
        seconds = bare_rate(settings)
    else:
        batches = CONTENDERS[settings.contender](settings)
        seconds = timed(batches, settings.warm, settings.count)
        batches.close()
    return {"count": settings.count * settings.batch, "seconds": seconds, "growth": peak.growth if peak else None}


if __name__ == "__main__":
    print(json.dumps(main(Settings(**json.loads(sys.argv[1])))), flush=True)
