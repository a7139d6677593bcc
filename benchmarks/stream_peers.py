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
import tarfile
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image

Batch = tuple[Any, Any]  # images, labels

_SHUFFLE_SAMPLES = 1000
_RAY_STORE_BYTES, _RAY_BLOCK_BYTES = 1_000_000_000, 32_000_000
_IN_MEMORY = 2000  # pictures of the bare loop
_MIN_AREA, _ASPECTS = 0.05, (3 / 4, 4 / 3)


@dataclass(frozen=True)
class Settings:
    """What a contender is to do.

    Attributes:
        contender: Key of CONTENDERS or BYTES.
        url: Our dataset.
        tars: The same dataset as webdataset's and Ray Data's readers want it.
        litdata: The same bytes as litdata stores them.
        mode: "rate" times batches, "epoch" gives what comes out, "bytes" times samples without decoding, "pack" writes
            the folder of litdata.
        decoder: "pil" as the peers' documentation has it, or "simplejpeg", which is what ours uses.
        workers: Processes.
        warm: Batches (samples in mode "bytes") before the clock starts.
        count: Batches (samples) that are timed.
        memory: Samples the memory of all processes as well; costs time, so that rates of it do not count.
        budget_bytes: Of our stream; None leaves its own default.
    """

    contender: str
    url: str
    tars: list[str]
    litdata: str
    mode: str = "rate"
    decoder: str = "pil"
    workers: int = 1
    batch: int = 64
    px: int = 224
    warm: int = 24
    count: int = 48
    memory: bool = False
    budget_bytes: int | None = None

    @property
    def endless(self) -> bool:
        """Epoch after epoch, not one."""
        return self.mode != "epoch"


# ---- ours: the one place that knows our programming interface ----


def our_stream(settings: Settings) -> Any:
    """Gives our stream over the dataset."""
    from pipeline.augment import PretrainView  # noqa: PLC0415 - not in peers' environments
    from pipeline.dataset import open_dataset  # noqa: PLC0415
    from pipeline.order import OrderConfig  # noqa: PLC0415
    from pipeline.stream import LoaderConfig, Source, Stream  # noqa: PLC0415
    from pipeline.view import View  # noqa: PLC0415

    order = OrderConfig(batch_size=settings.batch, num_lanes=16, window_blocks=4)
    budget = {} if settings.budget_bytes is None else {"budget_bytes": settings.budget_bytes}
    loader = LoaderConfig(num_workers=settings.workers, **budget)
    return Stream([Source(View(open_dataset(settings.url)))], order, PretrainView(settings.px), loader=loader)


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
    from pipeline.dataset import open_dataset  # noqa: PLC0415

    return int(open_dataset(settings.url).version.num_samples)


def our_bytes(settings: Settings) -> Iterator[tuple[bytes, Any]]:
    """Our blocks, checked, cut into samples."""
    from pipeline.dataset import open_dataset  # noqa: PLC0415
    from pipeline.loader.blocks import BlockReader  # noqa: PLC0415
    from pipeline.order import Piece  # noqa: PLC0415
    from pipeline.ranged import RangeReader  # noqa: PLC0415
    from pipeline.view import View  # noqa: PLC0415

    view = View(open_dataset(settings.url))
    reader = BlockReader(view.dataset, RangeReader(), None)
    while True:
        for block, count in enumerate(view.block_counts.tolist()):
            loaded = reader.read(view.span(Piece(block, 0, count)))
            yield from ((loaded.body[entry.start : entry.stop], entry.labels) for entry in loaded.samples)


# ---- the others ----


def augmented(image: Image.Image, px: int) -> np.ndarray:
    """Crops 5-100 % of the area at aspect 3/4 to 4/3, resizes, flips every second one."""
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
    """Decodes a JPEG."""
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
    """The loop: simplejpeg, PIL and np.stack over bytes in memory, in order."""
    kept = list(itertools.islice(tar_samples(settings), _IN_MEMORY if settings.endless else None))
    numbers = itertools.cycle(range(len(kept))) if settings.endless else iter(range(len(kept)))
    while chosen := list(itertools.islice(numbers, settings.batch)):
        images = [augmented(decoded(kept[number][0], "simplejpeg"), settings.px) for number in chosen]
        yield np.stack(images), [kept[number][1] for number in chosen]


def tar_samples(settings: Settings) -> Iterator[tuple[bytes, int]]:
    """Gives the samples of the tars, once, with the standard library."""
    for path in settings.tars:
        with tarfile.open(path) as archive:
            image = b""
            for member in archive:
                extension = member.name.rpartition(".")[2]
                if extension == "jpg":
                    image = archive.extractfile(member).read()
                elif extension == "cls":
                    yield image, int(archive.extractfile(member).read())


def pack_litdata(settings: Settings) -> None:
    """Writes the samples of the tars as litdata's chunks."""
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
    """The anchor: reads the tars in 8 MiB pieces with their crc32c, as many times as they have samples."""
    from crc32c import crc32c  # noqa: PLC0415

    per_tar = _samples_of(settings) / len(settings.tars)
    owed = 0.0
    while True:
        for path in settings.tars:
            with Path(path).open("rb") as source:
                while body := source.read(8 << 20):
                    crc32c(body)
            owed += per_tar
            yield from itertools.repeat((b"", 0), int(owed))
            owed -= int(owed)


CONTENDERS: dict[str, Callable[[Settings], Iterator[Batch]]] = {
    "bare": bare, "ours": ours, "webdataset": webdataset, "litdata": litdata, "ray": ray_data,
}  # fmt: skip
BYTES: dict[str, Callable[[Settings], Iterator[tuple[bytes, Any]]]] = {
    "reading": reading, "ours": our_bytes, "webdataset": webdataset_bytes, "litdata": litdata_bytes,
}  # fmt: skip
_IMPORTS = {
    "bare": (), "reading": ("crc32c",), "ours": ("pipeline.stream", "pipeline.augment"), "litdata": ("litdata",),
    "webdataset": ("webdataset", "torch.utils.data"), "ray": ("ray.data",),
}  # fmt: skip


# ---- timing ----


def timed(units: Iterable[object], warm: int, count: int) -> float:
    """Gives the seconds that `count` units take after `warm` ones."""
    iterator = iter(units)
    for _ in itertools.islice(iterator, warm):
        pass
    started = time.perf_counter()
    for _ in itertools.islice(iterator, count):
        pass
    return time.perf_counter() - started


def bare_rate(settings: Settings) -> float:
    """Gives the seconds of the bare loop: as many processes as workers, each with its share; the slowest counts."""
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


def proportional_bytes() -> int:
    """Gives the proportional set size of this process and all below it."""
    total, waiting = 0, [os.getpid()]
    while waiting:
        pid = waiting.pop()
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            total += 1024 * next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
            for task in Path(f"/proc/{pid}/task").iterdir():
                waiting += [int(child) for child in (task / "children").read_text().split()]
        except (OSError, StopIteration):  # it has ended
            continue
    return total


class Peak(threading.Thread):
    """The highest growth of the memory of all processes from now on, looked at 20 times a second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._before = proportional_bytes()
        self.growth = 0
        self.start()

    def run(self) -> None:
        """Looks."""
        while True:
            self.growth = max(self.growth, proportional_bytes() - self._before)
            time.sleep(0.05)


def outcome(batches: Iterator[Batch], settings: Settings) -> dict[str, Any]:
    """Gives how often each label came in one epoch, and the mean of all pixels."""
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
    """Runs the contender."""
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
