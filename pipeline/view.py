"""The part of a dataset that is to be read, and the reading of one piece of it, checked."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from pipeline.dataset import Address, Dataset
from pipeline.errors import ConfigError, CorruptShard
from pipeline.manifest import image_digest
from pipeline.order import Piece
from pipeline.tar import BLOCK_BYTES


@dataclass(frozen=True)
class Sample:
    """One sample as it lies in the tar.

    Attributes:
        address: Where it lies.
        image: Encoded picture.
        labels: May be empty.
    """

    address: Address
    image: bytes
    labels: tuple[int, ...]


def _checked_rows(dataset: Dataset, rows_by_shard: Mapping[int, Sequence[int]]) -> dict[int, tuple[int, ...]]:
    """Gives the chosen rows sorted and once each, without shards that have none; equal choices look equal."""
    chosen = {int(shard): tuple(sorted({int(row) for row in rows})) for shard, rows in rows_by_shard.items()}
    for shard, rows in chosen.items():
        if not 0 <= shard < len(dataset.shards) or (
            rows and not 0 <= rows[0] <= rows[-1] < dataset.shards[shard]["num_samples"]
        ):
            raise ConfigError(f"rows {rows[:3]}... of shard {shard} are not all in {dataset.store.url}")
    return {shard: rows for shard, rows in sorted(chosen.items()) if rows}


class View:
    """All samples of a dataset, or the chosen rows of it; blocks stay the unit of reading."""

    def __init__(self, dataset: Dataset, rows_by_shard: Mapping[int, Sequence[int]] | None = None) -> None:
        """Opens a view.

        Args:
            dataset: The dataset.
            rows_by_shard: Chosen rows of each shard; all rows of all shards by default.

        Raises:
            ConfigError: A chosen row is not in the dataset.
        """
        self.dataset = dataset
        self.rows_by_shard = None if rows_by_shard is None else _checked_rows(dataset, rows_by_shard)
        self._in_memory: dict[int, list[Sample]] = {}

    @cached_property
    def identity(self) -> str:
        """Digest of the dataset version and the choice: equal views have equal identities."""
        digest = hashlib.sha256(self.dataset.version.to_json())
        if self.rows_by_shard is not None:
            digest.update(repr(sorted(self.rows_by_shard.items())).encode())
        return digest.hexdigest()[:16]

    @cached_property
    def block_counts(self) -> npt.NDArray[np.int64]:
        """Chosen samples of each block, shape (blocks,)."""
        if self.rows_by_shard is None:
            return np.asarray(self._blocks["num_samples"], np.int64)
        return np.array([len(self._rows(block)) for block in range(len(self._blocks["shard"]))], np.int64)

    @property
    def num_samples(self) -> int:
        """Chosen samples of all blocks."""
        return int(self.block_counts.sum())

    @cached_property
    def _blocks(self) -> dict[str, npt.NDArray[np.int64]]:
        table = self.dataset.blocks
        return {name: table[name].to_numpy().astype(np.int64) for name in table.column_names}

    def _rows(self, block: int) -> npt.NDArray[np.int64]:
        first = int(self._blocks["first_row"][block])
        stop = first + int(self._blocks["num_samples"][block])
        if self.rows_by_shard is None:
            return np.arange(first, stop)
        chosen = np.array(self.rows_by_shard.get(int(self._blocks["shard"][block]), ()), np.int64)
        return chosen[np.searchsorted(chosen, first) : np.searchsorted(chosen, stop)]

    def preload(self) -> None:
        """Keeps the encoded pictures of the whole view in memory: for few-shot sets that are read hundreds of times."""
        for block, count in enumerate(self.block_counts.tolist()):
            if count:
                self._in_memory[block] = self.read_piece(Piece(block, 0, count))

    def read_piece(self, piece: Piece) -> list[Sample]:
        """Gives the samples of a piece, in row order, from one ranged read.

        A whole block is checked by its checksum, a part of one by the digest of each image.

        Raises:
            CorruptShard: A checksum differs, or the tar is shorter than its manifest says.
        """
        if piece.block in self._in_memory:
            return self._in_memory[piece.block][piece.first : piece.first + piece.count]
        shard = int(self._blocks["shard"][piece.block])
        rows = self._rows(piece.block)[piece.first : piece.first + piece.count]
        sidecar = self.dataset.samples(shard).take(rows)
        offsets = sidecar["image_offset"].to_numpy()
        sizes = sidecar["image_bytes"].to_numpy().astype(np.int64)
        whole = len(rows) == int(self._blocks["num_samples"][piece.block])
        if whole:
            start = int(self._blocks["offset"][piece.block])
            body = self.dataset.read_block(
                shard,
                start,
                int(self._blocks["num_bytes"][piece.block]),
                int(self._blocks["crc32c"][piece.block]),
            )
        else:
            start = int(offsets[0]) - BLOCK_BYTES
            body = self.dataset.read_span(shard, start, int(offsets[-1] + sizes[-1]) - start)
        labels = sidecar["labels"].to_pylist()
        samples = []
        for index, row in enumerate(rows.tolist()):
            first = int(offsets[index]) - start
            image = body[first : first + int(sizes[index])]
            samples.append(Sample(Address(shard, row), image, tuple(labels[index])))
        if not whole:
            self._check_digests(samples, sidecar["digest"].to_pylist())
        return samples

    def _check_digests(self, samples: list[Sample], digests: list[bytes]) -> None:
        for sample, digest in zip(samples, digests, strict=True):
            if image_digest(sample.image) != digest:
                raise CorruptShard(
                    f"{self.dataset.store.url}/{self.dataset.shards[sample.address.shard]['path']}, sample "
                    f"{sample.address.row}: digest differs from the sidecar; run `pipeline verify` on the dataset"
                )
