"""timm: `_info.json` at the root, read by its reader_wds."""

from typing import Any

from pipeline.base.records import json_bytes
from pipeline.dataset.dataset import Dataset
from pipeline.exports.base import MARK, Export, Written
from pipeline.exports.labels import CLS, label_place
from pipeline.exports.shard_tar import ShardTar
from pipeline.store.base import put

_KEY = "_info.json"


class Timm(Export):
    """See Export."""

    hand_written = (_KEY,)

    def __init__(self, dataset: Dataset) -> None:
        super().__init__(dataset)
        self._splits: dict[str, dict[str, Any]] = {}

    def add(self, shard: ShardTar) -> None:
        """See Export.add."""
        if shard.split not in self._splits:
            self._splits[shard.split] = self._new_split(shard)
        split = self._splits[shard.split]
        split["num_samples"] += shard.num_samples
        split["filenames"].append(shard.path)
        split["shard_lengths"].append(shard.num_samples)

    def _new_split(self, shard: ShardTar) -> dict[str, Any]:
        split = {"name": shard.split, "num_samples": 0, "filenames": [], "shard_lengths": []}
        place = label_place(self._dataset, shard)
        # timm takes `.cls` without `alt_label`; for a list of labels it wants a target format that only the user knows.
        return split if place in (CLS, "", "labels") else split | {"alt_label": place}

    def finish(self) -> Written:
        """See Export.finish."""
        put(self._dataset.store, _KEY, json_bytes({"writer": MARK, "splits": self._splits}, end=""))
        split = next(iter(self._splits))
        return Written("timm", _KEY, f'timm.data.create_dataset("wds/", root="{self._url}", split="{split}")')
