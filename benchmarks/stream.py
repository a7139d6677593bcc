"""Streams training batches in one process.

    python benchmarks/stream.py FOLDER       (class folders of JPEG files)

Physical limit: one JPEG decode a picture. The contenders, each with crop, resize to 224, flip, batches of 64 as uint8:
- bare loop: simplejpeg, pillow-simd, over bytes in memory; no shuffle, no check, no resume
- ours: the stream with checksums, shuffle and resume
- webdataset: WebDataset, shuffle buffer 1,000, the same simplejpeg and pillow-simd code in `map`
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import simplejpeg
import webdataset
from side_by_side import compare

from pipeline.augment import pretrain_view
from pipeline.dataset import open_dataset
from pipeline.order import OrderConfig
from pipeline.plan import ShardConfig
from pipeline.shard import Job, shard
from pipeline.sources.open import open_sources
from pipeline.sources.table import Columns
from pipeline.store.url import open_store
from pipeline.stream import Stream
from pipeline.view import View
from pipeline.work.pools import InProcess

_BATCH, _NUM_BATCHES, _PX = 64, 30, 224


def main(folder: str) -> None:
    """Compares the three."""
    with tempfile.TemporaryDirectory() as scratch, tempfile.TemporaryDirectory() as plans:
        job = Job(open_store(scratch), InProcess(), Path(plans))
        shard(job, open_sources([folder], Columns()), ShardConfig(shard_bytes=20_000_000))
        dataset = open_dataset(scratch)
        urls = [f"{scratch}/{row['path']}" for row in dataset.shards]
        transform = pretrain_view(_PX)
        generator = np.random.default_rng(0)
        in_memory = [sample["jpg"] for sample in webdataset.WebDataset(urls, shardshuffle=False)]

        def decoded(data: bytes) -> np.ndarray:
            return transform(simplejpeg.decode_jpeg(data, colorspace="RGB"), generator)

        def bare() -> int:
            for batch in range(_NUM_BATCHES):
                np.stack([decoded(in_memory[(batch * _BATCH + i) % len(in_memory)]) for i in range(_BATCH)])
            return _BATCH * _NUM_BATCHES

        def ours() -> int:
            stream = Stream(View(dataset), OrderConfig(batch_size=_BATCH, num_lanes=16), transform)
            for _ in range(_NUM_BATCHES):
                next(stream)
            stream.close()
            return _BATCH * _NUM_BATCHES

        def theirs() -> int:
            samples = webdataset.WebDataset(urls, shardshuffle=True).repeat().shuffle(1000)
            batches = samples.map(lambda s: (decoded(s["jpg"]), int(s["cls"]))).batched(_BATCH)
            for _, _batch in zip(range(_NUM_BATCHES), batches, strict=False):
                pass
            return _BATCH * _NUM_BATCHES

        compare(
            f"streaming {dataset.version.num_samples:,} JPEG",
            {"bare loop": bare, "ours": ours, "webdataset": theirs},
            "images",
            5,
        )


if __name__ == "__main__":
    main(sys.argv[1])
