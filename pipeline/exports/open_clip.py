"""open_clip: `sizes.json` beside the shards, from which it counts the samples of an epoch.

open_clip reads only the one beside the first shard it is given and finds all shards there by their base names. So each
folder of our shards lists all of them: their names are different in the whole dataset, whichever plan they are of.
"""

from collections import defaultdict

from pipeline.base.records import json_bytes
from pipeline.dataset.dataset import Dataset
from pipeline.exports.base import Export, Written, folder_of
from pipeline.exports.shard_tar import ShardTar
from pipeline.store.base import put

_NAME = "sizes.json"


class OpenClip(Export):
    """See Export."""

    def __init__(self, dataset: Dataset) -> None:
        super().__init__(dataset)
        self._ours: dict[str, int] = {}
        self._by_folder: defaultdict[str, dict[str, int]] = defaultdict(dict)

    def add(self, shard: ShardTar) -> None:
        """See Export.add."""
        folder = folder_of(shard.path)
        sizes = self._by_folder[folder] = self._ours if shard.is_ours else self._by_folder[folder]
        sizes[shard.path.removeprefix(folder)] = shard.num_samples

    def finish(self) -> Written:
        """See Export.finish."""
        for folder, sizes in self._by_folder.items():
            put(self._dataset.store, f"{folder}{_NAME}", json_bytes(sizes, end=""))
        first = next(iter(self._by_folder))
        return Written("open-clip", f"{first}{_NAME}", "--train-data without --train-num-samples; samples need a .txt")
