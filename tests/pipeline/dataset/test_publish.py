"""A version is published once, by whoever is first."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pipeline.base.errors import Conflict
from pipeline.dataset.dataset import Dataset, open_dataset
from pipeline.dataset.publish import Addition, publish
from pipeline.dataset.schema import BLOCK_SCHEMA, SHARD_SCHEMA
from pipeline.dataset.versions import published_version
from pipeline.store.url import open_store
from tests.conftest import class_folders, cli, jpeg, pack, picture


def test_an_addition_does_not_make_older_fingerprints_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as earlier:
        earlier.setattr("pipeline.dataset.publish.DESCRIPTOR_VERSION", "dct256-sign/1")
        pack(class_folders(tmp_path / "old", each=2), str(tmp_path / "set"))
    new = tmp_path / "new" / "class0"
    new.mkdir(parents=True)
    (new / "later.jpg").write_bytes(jpeg(picture(77)))
    cli("append", new.parent, tmp_path / "set")
    version = open_dataset(str(tmp_path / "set")).version
    assert (version.version, version.descriptor) == (2, "dct256-sign/1")


def test_of_two_publishers_one_gets_a_conflict(small_dataset: Dataset, tmp_path: Path) -> None:
    """Versions are swung by compare-and-swap: two appends at once cannot both replace version 1."""
    store = open_store(str(tmp_path / "set"))
    source = class_folders(tmp_path / "in", each=2)
    pack(source, str(tmp_path / "set"))
    before = published_version(store)

    def addition(plan_id: str) -> Addition:
        nothing = SHARD_SCHEMA.empty_table(), BLOCK_SCHEMA.empty_table(), ()
        return Addition(plan_id, "train", *nothing, False, (), 3, 0, True)

    def attempt(plan_id: str) -> Any:
        try:
            return publish(store, before, addition(plan_id))
        except Conflict as error:
            return error

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(attempt, ["a" * 16, "b" * 16, "c" * 16, "d" * 16]))
    assert sum(isinstance(result, Conflict) for result in results) == 3
    after = published_version(store)
    assert after is not None
    assert after.version in results
    assert open_dataset(str(tmp_path / "set"), 1).version == before.version
