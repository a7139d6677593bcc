"""The part of a dataset that is to be read, and where each piece of it lies."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from pipeline.base.errors import ConfigError
from pipeline.dataset.dataset import Dataset
from pipeline.dataset.schema import INDEX_FOLDER
from pipeline.streaming.order import Piece

Ints = npt.NDArray[np.int64]
_WHOLE_BLOCK_FRACTION = 0.5
RowsByShard = Mapping[int, Sequence[int] | Ints]


@dataclass(frozen=True)
class Span:
    """A block of a shard, and the samples wanted of it.

    Attributes:
        shard: Number of the shard in its dataset.
        path: Of its tar, below the dataset's root or absolute.
        digest: BLAKE3 of the tar: names the content for caches.
        offset: First byte of the block.
        num_bytes: Of the block.
        crc32c: Of the block.
        first_row: Row of the block's first sample in the shard.
        num_rows: Samples of the block.
        rows: Wanted rows of the shard, ascending, shape (samples,); None for all of the block.
    """

    shard: int
    path: str
    digest: str
    offset: int
    num_bytes: int
    crc32c: int
    first_row: int
    num_rows: int
    rows: Ints | None

    @property
    def wanted(self) -> Ints:
        """Wanted rows of the shard, ascending, shape (samples,)."""
        return np.arange(self.first_row, self.first_row + self.num_rows) if self.rows is None else self.rows

    @property
    def is_read_whole(self) -> bool:
        """Whether so many samples are wanted that one read of the block costs less than a request for each."""
        return self.rows is None or len(self.rows) >= _WHOLE_BLOCK_FRACTION * self.num_rows

    @property
    def held_bytes(self) -> int:
        """Memory that its samples take; an estimate by their share where the block is not read whole."""
        if self.rows is None or self.is_read_whole:
            return self.num_bytes
        return -(-self.num_bytes * len(self.rows) // self.num_rows)


def _keys(dataset: Dataset, rows_by_shard: RowsByShard) -> Ints:
    """Return shard << 32 | row of all rows, ascending and once each: equal choices look equal."""
    sizes = dataset.shards.table["num_samples"].to_numpy()
    parts = [np.empty(0, np.int64)]
    for shard, rows in rows_by_shard.items():
        numbers = np.asarray(rows, np.int64)
        if not 0 <= shard < len(sizes) or (len(numbers) and not 0 <= numbers.min() <= numbers.max() < sizes[shard]):
            raise ConfigError(f"rows {list(rows)[:3]}... of shard {shard} are not all in {dataset.store.url}")
        parts.append((np.int64(shard) << 32) | numbers)
    return np.unique(np.concatenate(parts))


class Selection:
    """All samples of a dataset, the chosen rows of it, or all but some; blocks stay the unit of reading."""

    def __init__(
        self,
        dataset: Dataset,
        rows_by_shard: RowsByShard | None = None,
        *,
        excluded_by_shard: RowsByShard | None = None,
    ) -> None:
        """Open a selection.

        Args:
            dataset: The dataset.
            rows_by_shard: Chosen rows of each shard; all rows of all shards by default.
            excluded_by_shard: Rows that are left out, such as an audit's; eight bytes of memory each.

        Raises:
            ConfigError: A row is not in the dataset, or both choices are given.
        """
        if rows_by_shard is not None and excluded_by_shard is not None:
            raise ConfigError("a selection takes chosen rows or excluded ones, not both")
        self.dataset = dataset
        self._chosen = None if rows_by_shard is None else _keys(dataset, rows_by_shard)
        self._excluded = None if excluded_by_shard is None else _keys(dataset, excluded_by_shard)

    @cached_property
    def identity(self) -> str:
        """Digest of the dataset version and the choice: equal selections have equal identities."""
        digest = hashlib.sha256(self.dataset.version.to_json())
        for name, keys in (("chosen", self._chosen), ("excluded", self._excluded)):
            if keys is not None:
                digest.update(name.encode() + keys.astype("<i8").tobytes())
        return digest.hexdigest()[:16]

    @property
    def addresses(self) -> list[tuple[int, int]] | None:
        """Shard and row of every chosen sample; None where all rows or all but some are selected."""
        if self._chosen is None:
            return None
        return [(key >> 32, key & 0xFFFFFFFF) for key in self._chosen.tolist()]

    @cached_property
    def reads_sidecars(self) -> bool:
        """Whether reading it takes sidecars, too: of adopted tars, and where a block is not wanted whole."""
        sidecars = self.dataset.shards.table["sidecar"]
        is_adopted = bool(pc.any(pc.starts_with(sidecars, INDEX_FOLDER)).as_py())
        return is_adopted or self._chosen is not None or self._excluded is not None

    @cached_property
    def block_counts(self) -> Ints:
        """Selected samples in each block, shape (blocks,)."""
        counts = self._blocks["num_samples"]
        if self._chosen is not None:
            return self._counted(self._chosen)
        return counts if self._excluded is None else counts - self._counted(self._excluded)

    @property
    def num_samples(self) -> int:
        """Selected samples."""
        return int(self.block_counts.sum())

    @property
    def num_bytes(self) -> int:
        """Bytes of the selected samples; an estimate by their share of each block where there is a choice."""
        blocks = self._blocks
        return int(np.sum(blocks["num_bytes"] * (self.block_counts / np.maximum(blocks["num_samples"], 1))))

    @property
    def max_block_bytes(self) -> int:
        """Size of the largest block."""
        return int(self._blocks["num_bytes"].max(initial=0))

    @cached_property
    def _blocks(self) -> dict[str, Ints]:
        table = self.dataset.blocks
        return {name: table[name].to_numpy().astype(np.int64) for name in table.column_names}

    @cached_property
    def _block_keys(self) -> Ints:
        return (self._blocks["shard"] << 32) | self._blocks["first_row"]

    def _counted(self, keys: Ints) -> Ints:
        stops = np.searchsorted(keys, self._block_keys + self._blocks["num_samples"])
        return (stops - np.searchsorted(keys, self._block_keys)).astype(np.int64)

    def _rows(self, block: int) -> Ints:
        """Return the selected rows of a block, ascending."""
        first, count = int(self._blocks["first_row"][block]), int(self._blocks["num_samples"][block])
        key = int(self._block_keys[block])
        if self._chosen is not None:
            start, stop = np.searchsorted(self._chosen, (key, key + count))
            return self._chosen[start:stop] & 0xFFFFFFFF
        rows = np.arange(first, first + count)
        if self._excluded is None:
            return rows
        start, stop = np.searchsorted(self._excluded, (key, key + count))
        return np.setdiff1d(rows, self._excluded[start:stop] & 0xFFFFFFFF, assume_unique=True)

    def span(self, piece: Piece) -> Span:
        """Return where a piece lies."""
        block = {name: int(column[piece.block]) for name, column in self._blocks.items()}
        rows = self._rows(piece.block)[piece.first : piece.first + piece.count]
        return Span(
            shard=block["shard"],
            path=self.dataset.shard_path(block["shard"]),
            digest=self.dataset.shards.table["blake3"][block["shard"]].as_py(),
            offset=block["offset"],
            num_bytes=block["num_bytes"],
            crc32c=block["crc32c"],
            first_row=block["first_row"],
            num_rows=block["num_samples"],
            rows=None if len(rows) == block["num_samples"] else rows,
        )
