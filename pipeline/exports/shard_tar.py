"""One shard of a dataset, as the exports see it."""

from functools import cached_property
from typing import Any

from pipeline.dataset.dataset import Dataset
from pipeline.exports.layout import Layout, layout_by_rule, scanned_layout
from pipeline.store.any_url import open_file


class ShardTar:
    """One tar; where its samples lie is looked up when the first format asks.

    Attributes:
        path: Key of the tar.
        split: What the shard belongs to.
        num_samples: As the manifest lists them.
        is_ours: Whether this product packed it.
    """

    def __init__(self, dataset: Dataset, row: dict[str, Any]) -> None:
        self._dataset = dataset
        self.number: int = row["shard"]
        self.path: str = row["path"]
        self.split: str = row["split"]
        self.num_samples: int = row["num_samples"]
        self.num_bytes: int = row["num_bytes"]
        self.is_ours: bool = row["sidecar"] == f"{self.path.removesuffix('.tar')}.parquet"

    @cached_property
    def layout(self) -> Layout:
        """Where its samples lie. Raises CorruptShard if the sidecar or the tar is damaged."""
        table = self._dataset.samples(self.number)
        if self.is_ours:
            return layout_by_rule(table)
        url = f"{self._dataset.store.url}/{self.path}"
        with open_file(url) as file:
            return scanned_layout(file, url, frozenset(table["image_offset"].to_pylist()))
