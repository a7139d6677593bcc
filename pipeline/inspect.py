"""Facts of a dataset that its sidecars tell, without reading a picture."""

from collections import Counter
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from pipeline.dataset import Dataset
from pipeline.manifest import from_parquet
from pipeline.store.base import Store


def class_counts(dataset: Dataset) -> Counter[int]:
    """Gives the number of samples of each label; a sample with several labels counts for each."""
    total: Counter[int] = Counter()
    for shard in dataset.shards:
        labels = dataset.samples(shard["shard"])["labels"].combine_chunks().flatten().to_numpy()
        values, counts = np.unique(labels, return_counts=True)
        total.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
    return total


def reject_lines(dataset: Dataset, limit: int = 10) -> Iterator[str]:
    """Gives up to `limit` rejected pictures with their reasons, and how many more there are."""
    for plan_id in dataset.version.plan_ids:
        rejects = read_rejects(dataset.store, plan_id)
        if rejects is None:
            continue
        for row in rejects.slice(0, limit).to_pylist():
            yield f"{row['source']}: {row['reason']} ({row['detail']})"
        if rejects.num_rows > limit:
            yield f"... and {rejects.num_rows - limit:,} more, in rejects/{plan_id}/"


def read_rejects(store: Store, plan_id: str) -> pa.Table | None:
    """Gives all rejected rows of a plan, or None if there are none."""
    parts = [from_parquet(store.read(entry.key)) for entry in store.list(f"rejects/{plan_id}/")]
    return pa.concat_tables(parts) if parts else None
