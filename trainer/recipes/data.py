"""What a pretraining run reads: its dataset, others mixed in, and what is left out."""

from pydantic import PositiveFloat

from pipeline.base.errors import ConfigError
from pipeline.base.records import Record
from pipeline.packing.foreign_tars.open_any import open_any
from pipeline.streaming.choose import listed_rows
from pipeline.streaming.selection import Selection
from pipeline.streaming.stream import WeightedSelection


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
    """

    data: str
    data_version: int
    weight: PositiveFloat = 1.0
    mix: tuple[MixedData, ...] = ()
    exclude: str | None = None


def selection_without(data: str, version: int, exclude: str | None) -> Selection:
    """Open a dataset, or WebDataset tars, without the samples that a list leaves out.

    Args:
        data: URL of the dataset.
        version: Its manifest version.
        exclude: URL of a Parquet file with `shard` and `row`, such as an audit's; None leaves nothing out.

    Raises:
        NotFound: The dataset or the list is not there.
        ConfigError: A listed row is not in the dataset, or nothing is left.
    """
    selection = Selection(open_any(data, version), excluded_by_shard=listed_rows(exclude) if exclude else None)
    if not selection.num_samples:
        raise ConfigError(f"{exclude} leaves no sample of {data}; give another list")
    return selection


def training_sources(config: TrainingData) -> tuple[WeightedSelection, ...]:
    """Open the datasets of a run, its own first.

    Raises:
        NotFound: A dataset or the list is not there.
        ConfigError: The classes differ, or a listed row is not in the dataset.
    """
    selection = selection_without(config.data, config.data_version, config.exclude)
    dataset = selection.dataset
    sources = [WeightedSelection(selection, config.weight)]
    for mixed in config.mix:
        other = open_any(mixed.data, mixed.data_version)
        if other.classes_sha256 != dataset.classes_sha256:
            raise ConfigError(f"{mixed.data} has other classes than {config.data}; pack both with one --classes file")
        sources.append(WeightedSelection(Selection(other), mixed.weight))
    return tuple(sources)
