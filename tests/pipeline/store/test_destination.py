"""Nothing is written among other things; what is empty, or of the same kind, is free."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.base.errors import ConfigError
from pipeline.store.base import Store
from pipeline.store.destination import require_free
from pipeline.store.url import open_store
from tests.conftest import class_folders, cli

MARKS = ("MANIFEST.json", "leases/")


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        return open_store(str(tmp_path / "store"))
    url: Callable[[str], str] = request.getfixturevalue("s3_url")
    return open_store(url("destination"))


def test_what_is_empty_or_of_the_same_kind_is_free(store: Store) -> None:
    require_free(store, "dataset", MARKS)
    store.create(".DS_Store", b"of the system")
    require_free(store, "dataset", MARKS)
    store.create("leases/000001.json", b"{}")
    store.create("notes.txt", b"of the user")
    require_free(store, "dataset", MARKS)


def test_other_things_are_named(store: Store) -> None:
    for key in ("cats/1.jpg", "cats/2.jpg", "dogs/1.jpg", "labels.csv", "notes.txt"):
        store.create(key, b"x")
    with pytest.raises(ConfigError) as caught:
        require_free(store, "dataset", MARKS)
    assert f"{store.url} holds other things and no dataset (cats/, dogs/, labels.csv, ...)" in str(caught.value)


def test_swapped_arguments_publish_nothing_among_photos(tmp_path: Path) -> None:
    photos = class_folders(tmp_path / "photos", classes=1, each=1)
    other = class_folders(tmp_path / "other", classes=1, each=1)
    before = sorted(photos.rglob("*"))
    printed = cli("shard", other, photos, code=2)
    assert f"{photos} holds other things and no dataset (class0/)" in printed
    assert sorted(photos.rglob("*")) == before


def test_a_dataset_is_not_packed_above_another(tmp_path: Path) -> None:
    photos = class_folders(tmp_path / "photos", classes=1, each=2)
    cli("shard", photos, tmp_path / "data" / "train")
    cli("shard", photos, tmp_path / "data" / "train")  # again: nothing to do
    assert "holds other things and no dataset (train/)" in cli("shard", photos, tmp_path / "data", code=2)
