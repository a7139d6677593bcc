"""Choosing rows of a dataset, by its sidecars or by a list, without rewriting a shard."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.base.errors import ConfigError, CorruptShard
from pipeline.dataset.dataset import Address, Dataset
from pipeline.dataset.tables import from_parquet
from pipeline.store.any_url import read_file

Rows = dict[int, npt.NDArray[np.int64]]  # of each shard
Keep = Callable[[pa.Table], npt.NDArray[np.bool_]]
_NUM_COMPARED = 8  # listed samples that are looked up in the dataset: in another one nearly all of them differ


def rows_where(dataset: Dataset, columns: Sequence[str], keep: Keep) -> Rows:
    """Return the rows of every shard that `keep` chooses from the sidecars, as a Selection takes them.

    Args:
        dataset: The dataset.
        columns: Of schema.SAMPLE_SCHEMA, those that `keep` needs.
        keep: From a shard's table of these columns to a mask of shape (samples,).

    Raises:
        ConfigError: There is no such column.
    """
    chosen: Rows = {}
    for shard in range(len(dataset.shards)):
        sidecar = dataset.samples(shard)
        missing = set(columns) - set(sidecar.column_names)
        if missing:
            raise ConfigError(f"sidecars have no column {sorted(missing)}; they have {sidecar.column_names}")
        rows = np.flatnonzero(keep(sidecar.select(list(columns))))
        if len(rows):
            chosen[shard] = rows
    return chosen


def listed_rows(url: str, dataset: Dataset | None = None) -> Rows:
    """Return the rows that a Parquet file lists by `shard` and `row`, such as those an audit wants left out.

    Args:
        url: Of the file.
        dataset: Whose rows they are. Where the file has a column `digest`, as an audit's has, a few listed samples are
            looked up there.

    Raises:
        NotFound: There is no such file.
        ConfigError: It is no Parquet file with these two columns, or it lists samples of another dataset.
    """
    try:
        table = from_parquet(read_file(url), url)
        whole = [pa.field(name, pa.int64(), nullable=False) for name in ("shard", "row")]
        places = table.select(["shard", "row"]).cast(pa.schema(whole))
    except (pa.ArrowException, ValueError, KeyError, CorruptShard) as error:
        raise ConfigError(f"{url} is no Parquet file with whole numbers as columns shard and row ({error})") from error
    if dataset is not None and "digest" in table.column_names:
        _check_digests(url, places.append_column("digest", table["digest"]), dataset)
    shards, rows = (places[name].to_numpy().astype(np.int64) for name in ("shard", "row"))
    if not len(shards):
        return {}
    order = np.argsort(shards, kind="stable")
    numbers, starts = np.unique(shards[order], return_index=True)
    parts = np.split(rows[order], starts[1:])
    return {int(number): part for number, part in zip(numbers, parts, strict=True)}


def _check_digests(url: str, listed: pa.Table, dataset: Dataset) -> None:
    looked_up = np.unique(np.linspace(0, listed.num_rows - 1, _NUM_COMPARED).round().astype(int))
    for row in listed.take(looked_up).to_pylist() if listed.num_rows else ():
        shard, number = row["shard"], row["row"]
        is_there = 0 <= shard < len(dataset.shards) and 0 <= number < dataset.shards[shard]["num_samples"]
        if not is_there or dataset.sample(Address(shard, number))["digest"].hex() != row["digest"]:
            raise ConfigError(
                f"{url} lists samples of another dataset than {dataset.store.url}: row {number} of shard {shard} is "
                f"{'another' if is_there else 'not there'}; give the list that was made for it, or make it again"
            )
