"""DALI: an index a shard, as its `wds2idx` writes it; without, fn.readers.webdataset scans all tars at every start."""

import json
from collections.abc import Iterator

from pipeline.dataset.dataset import Dataset
from pipeline.exports.base import Export, Written
from pipeline.exports.layout import Layout
from pipeline.exports.shard_tar import ShardTar

_FOLDER = "exports/dali/"


def index(layout: Layout) -> bytes:
    """Return `v1.2 SAMPLES`, then a line a sample: extension, offset, bytes and name of each member.

    Samples that the manifest does not list are left out, so that DALI does not meet them.
    """
    samples = [sample for sample in layout.samples if sample.is_listed]
    lines = [f"v1.2 {len(samples)}"]
    for sample in samples:
        members = (f"{_word(m.extension)} {m.offset} {m.num_bytes} {_word(m.name)}" for m in sample.members)
        lines.append(" ".join(members))
    return "".join(f"{line}\n" for line in lines).encode()


def _word(text: str) -> str:
    """Return the text without blanks, at which DALI splits; it uses no name, and nobody asks for such an extension."""
    return "_".join(text.split()) or "_"


class Dali(Export):
    """See Export."""

    def __init__(self, dataset: Dataset) -> None:
        super().__init__(dataset)
        self._first = ""
        self._extensions: list[str] = []

    def of_shard(self, shard: ShardTar) -> Iterator[tuple[str, bytes]]:
        """See Export.of_shard."""
        yield _key(shard), index(shard.layout)

    def add(self, shard: ShardTar) -> None:
        """See Export.add."""
        if not self._first:
            self._first = _key(shard)
            sample = next(sample for sample in shard.layout.samples if sample.is_listed)
            self._extensions = [member.extension for member in sample.members]

    def finish(self) -> Written:
        """See Export.finish."""
        how = f"fn.readers.webdataset(paths=[...], index_paths=[...], ext={json.dumps(self._extensions)})"
        return Written("dali", self._first, how)


def _key(shard: ShardTar) -> str:
    return f"{_FOLDER}{shard.path.removesuffix('.tar')}.idx"
