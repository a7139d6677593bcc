"""wids: `wids.json` at the root, the list of shards of webdataset's indexed reader."""

from collections.abc import Iterator
from typing import Any

from pipeline.base.records import json_bytes
from pipeline.dataset.dataset import Dataset
from pipeline.exports.base import MARK, Export, Written
from pipeline.exports.shard_tar import ShardTar
from pipeline.store.base import put

_KEY = "wids.json"


class Wids(Export):
    """See Export."""

    hand_written = (_KEY,)

    def __init__(self, dataset: Dataset) -> None:
        super().__init__(dataset)
        self._shards: list[dict[str, Any]] = []

    def of_shard(self, shard: ShardTar) -> Iterator[tuple[str, bytes]]:
        """See Export.of_shard."""
        _count(shard)  # reads the headers of an adopted tar, here where many threads do it
        return iter(())

    def add(self, shard: ShardTar) -> None:
        """See Export.add."""
        self._shards.append({"url": shard.path, "nsamples": _count(shard), "filesize": shard.num_bytes})

    def finish(self) -> Written:
        """See Export.finish."""
        version = self._dataset.version
        described = {
            "__kind__": "wids-shard-index-v1",
            "wids_version": 1,
            "name": f"{self._url.rpartition('/')[2]}-v{version.version}",
            "info": f"version {version.version}, {MARK}",
            # No "base": the reader then takes the folder that this file is in, wherever it was copied to.
            "shardlist": self._shards,
        }
        put(self._dataset.store, _KEY, json_bytes(described, end=""))
        return Written("wids", _KEY, f'wids.ShardListDataset("{self._url}/{_KEY}")')


def _count(shard: ShardTar) -> int:
    """Return the samples that wids meets: it counts them in the tar, so what other formats leave out counts too."""
    if shard.is_ours:
        return shard.num_samples
    return len(shard.layout.samples) + shard.layout.num_skipped
