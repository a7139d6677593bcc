"""`pipeline export`: writes index files for other tools beside the shards of a dataset."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from pipeline.base.errors import ConfigError
from pipeline.dataset.dataset import Dataset
from pipeline.exports.base import Export, Written, check_ours
from pipeline.exports.dali import Dali
from pipeline.exports.energon import Energon
from pipeline.exports.huggingface import HuggingFace
from pipeline.exports.open_clip import OpenClip
from pipeline.exports.shard_tar import ShardTar
from pipeline.exports.timm import Timm
from pipeline.exports.wids import Wids
from pipeline.store.base import put

FORMATS: dict[str, type[Export]] = {
    "timm": Timm,
    "open-clip": OpenClip,
    "wids": Wids,
    "dali": Dali,
    "energon": Energon,
    "huggingface": HuggingFace,
}
# Reading a sidecar and writing two small files takes S3 about 100 ms a shard; threads hide that.
_THREADS = 8


def export(dataset: Dataset, formats: Sequence[str], on_shard: Callable[[int], None]) -> Iterator[Written]:
    """Write the files of each format, replacing those of an earlier export; yield the formats as they are done.

    One pass over the shards serves all formats. The files describe this version of the dataset: after `append`,
    export again.

    Args:
        dataset: What to export; its shards are not touched.
        formats: Names of FORMATS.
        on_shard: Called with 1 after each shard, once for each format.

    Raises:
        ConfigError: There is no such format.
        Conflict: A file that somebody else wrote is in the way; nothing was written then.
        CorruptShard: A sidecar or a tar is damaged.
        StorageError: As the dataset's store.
    """
    for name in formats:
        if name not in FORMATS:
            raise ConfigError(f"there is no format {name!r}; choose from {', '.join(FORMATS)}")
    for name in formats:
        for key in FORMATS[name].hand_written:
            check_ours(dataset.store, key)
    exports = [FORMATS[name](dataset) for name in formats]
    try:
        for shard in _with_own_files(dataset, exports):
            for one in exports:
                one.add(shard)
                on_shard(1)
        for one in exports:
            yield one.finish()
    finally:
        for one in exports:
            one.close()


def _with_own_files(dataset: Dataset, exports: Sequence[Export]) -> Iterator[ShardTar]:
    """Yield the shards in order, each after the files that belong to it alone are written."""
    threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="export")
    running: deque[Future[ShardTar]] = deque()

    def write(shard: ShardTar) -> ShardTar:
        for one in exports:
            for key, body in one.of_shard(shard):
                put(dataset.store, key, body)
        return shard

    try:
        for row in dataset.shards:
            running.append(threads.submit(write, ShardTar(dataset, row)))
            if len(running) > _THREADS:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
    finally:
        threads.shutdown(cancel_futures=True)
