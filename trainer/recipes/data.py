"""What a pretraining run reads: its dataset, others mixed in, and what is left out."""

import numpy as np
from pydantic import PositiveFloat

from pipeline.base.errors import ConfigError
from pipeline.base.records import Record
from pipeline.packing.foreign_tars.open_any import open_any
from pipeline.streaming.choose import Rows, listed_rows
from pipeline.streaming.selection import Selection
from pipeline.streaming.stream import WeightedSelection
from trainer.recipes.held_out import HeldOut, held_out_rows


class MixedData(Record):
    """A dataset that is mixed in.

    Attributes:
        data: URL of the dataset.
        data_version: Its manifest version.
        weight: Its share of the samples, against the other weights.
    """

    data: str
    data_version: int
    weight: PositiveFloat


class TrainingData(Record):
    """All that decides which samples a run sees.

    Attributes:
        data: URL of the dataset, or of WebDataset tars.
        data_version: Its manifest version.
        weight: Its share of the samples, where others are mixed in.
        mix: Further datasets with the same classes.
        exclude: URL of a Parquet file with `shard` and `row` of samples of `data` to leave out, such as an audit's.
        held_out: What the run is measured on while it trains; None for nothing.
    """

    data: str
    data_version: int
    weight: PositiveFloat = 1.0
    mix: tuple[MixedData, ...] = ()
    exclude: str | None = None
    held_out: HeldOut | None = None


def selection_without(data: str, version: int, exclude: str | None) -> Selection:
    """Open a dataset, or WebDataset tars, without the samples that a list leaves out.

    Args:
        data: URL of the dataset.
        version: Its manifest version.
        exclude: URL of a Parquet file with `shard` and `row`, such as an audit's; None leaves nothing out.

    Raises:
        NotFound: The dataset or the list is not there.
        ConfigError: A listed row is not in the dataset or is another sample, or nothing is left.
    """
    dataset = open_any(data, version)
    selection = Selection(dataset, excluded_by_shard=listed_rows(exclude, dataset) if exclude else None)
    if not selection.num_samples:
        raise ConfigError(f"{exclude} leaves no sample of {data}; give another list")
    return selection


def training_sources(config: TrainingData) -> tuple[WeightedSelection, ...]:
    """Open the datasets of a run, its own first, without what is held out of it.

    Raises:
        NotFound: A dataset or the list is not there.
        ConfigError: The classes differ, a listed row is not in the dataset, or nothing is left.
    """
    selection = selection_without(config.data, config.data_version, config.exclude)
    dataset = selection.dataset
    kept_aside = _rows_held_out(config)
    if kept_aside:
        excluded = listed_rows(config.exclude) if config.exclude else {}
        selection = Selection(dataset, excluded_by_shard=_union(excluded, kept_aside))
        if not selection.num_samples:
            raise ConfigError(f"exclude and held_out together leave no sample of {config.data}; hold out fewer")
    sources = [WeightedSelection(selection, config.weight)]
    for mixed in config.mix:
        other = open_any(mixed.data, mixed.data_version)
        if other.classes_sha256 != dataset.classes_sha256:
            raise ConfigError(f"{mixed.data} has other classes than {config.data}; pack both with one --classes file")
        sources.append(WeightedSelection(Selection(other), mixed.weight))
    return tuple(sources)


def held_out_selection(config: TrainingData) -> Selection | None:
    """Open what a run is measured on, without samples that are excluded; None where nothing is held out.

    Raises:
        NotFound: A dataset or the list is not there.
        ConfigError: No sample is left.
    """
    if config.held_out is None:
        return None
    if config.held_out.data:
        return Selection(open_any(config.held_out.data, config.held_out.data_version))
    rows = _rows_held_out(config)
    for shard, excluded in listed_rows(config.exclude).items() if config.exclude else ():
        if shard in rows:
            rows[shard] = np.setdiff1d(rows[shard], excluded)
    selection = Selection(open_any(config.data, config.data_version), rows)
    if not selection.num_samples:
        raise ConfigError(f"{config.exclude} leaves no held-out sample of {config.data}; hold out more")
    return selection


def _rows_held_out(config: TrainingData) -> Rows:
    held_out = config.held_out
    if held_out is None or held_out.num_samples is None:
        return {}
    sizes = open_any(config.data, held_out.data_version).shards.table["num_samples"].to_pylist()
    return held_out_rows(sizes, held_out.num_samples, held_out.seed)


def _union(one: Rows, other: Rows) -> Rows:
    empty = np.empty(0, np.int64)
    return {shard: np.union1d(one.get(shard, empty), other.get(shard, empty)) for shard in {*one, *other}}
