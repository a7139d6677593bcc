"""A dataset is opened at a version, reads only what is asked, and keeps a bounded share of its sidecars."""

from pathlib import Path

import pytest

import pipeline.dataset.dataset
from pipeline.base.errors import ConfigError, NotFound
from pipeline.dataset.dataset import Dataset, open_dataset
from tests.conftest import class_folders, pack


def test_sidecars_that_are_kept_stay_within_their_share_and_are_the_ones_used_last(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    each = [open_dataset(dataset.store.url).samples(shard).nbytes for shard in range(4)]
    monkeypatch.setattr(pipeline.dataset.dataset, "SIDECAR_CACHE_BYTES", sum(each[:3]) + 100)
    opened = open_dataset(dataset.store.url)
    first = [opened.samples(shard) for shard in range(3)]
    assert opened.samples(0) is first[0]
    opened.samples(3)
    assert opened.samples(0) is first[0]
    assert opened.samples(1) is not first[1]
    monkeypatch.setattr(pipeline.dataset.dataset, "SIDECAR_CACHE_BYTES", 10)
    assert opened.samples(2).equals(first[2])  # larger than its share: read anew each time
    assert opened.samples(2) is not opened.samples(2)


def test_opening_a_manifest_of_131072_shards_reads_only_what_is_asked(tmp_path: Path) -> None:
    dataset = pack(class_folders(tmp_path / "in", each=2), str(tmp_path / "set"))
    row = dataset.shards[0]
    assert dataset.shards[-1] == row
    assert list(dataset.shards) == [row]
    with pytest.raises(IndexError):
        dataset.shards[1]


def test_an_older_format_is_named(tmp_path: Path) -> None:
    (tmp_path / "MANIFEST.json").write_text('{"format": "bit-wds/1"}')
    with pytest.raises(ConfigError, match="is of format bit-wds/1"):
        open_dataset(str(tmp_path))
    with pytest.raises(NotFound):
        open_dataset(str(tmp_path / "elsewhere"))
