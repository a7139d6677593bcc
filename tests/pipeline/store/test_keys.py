"""No stored file leads out of its folder, whatever it names."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, strategies as st

from pipeline.base.errors import CorruptShard
from pipeline.dataset.dataset import Dataset, open_dataset
from pipeline.dataset.schema import POINTER_KEY, sha256_hex, to_parquet
from pipeline.packing.foreign_tars.open_any import open_any
from pipeline.store.base import Store, check_key
from pipeline.store.local import LocalStore
from pipeline.store.s3 import S3Store
from tests.conftest import run_here

OUTSIDE = ["../secret", "a/../../secret", "/etc/hostname", "..", "a/..", "file:///etc/hostname"]
PARTS = st.lists(
    st.text(st.characters(exclude_characters="/\0", codec="utf-8"), min_size=1).filter(lambda p: p != "..")
)


@given(PARTS)
def test_keys_inside_are_let_through(parts: list[str]) -> None:
    if "://" not in (key := "/".join(parts)):
        check_key("s3://b", key)


@pytest.mark.parametrize("key", OUTSIDE)
def test_nothing_outside_is_read_written_or_removed(tmp_path: Path, key: str) -> None:
    (tmp_path / "secret").write_text("mine")
    store = LocalStore(tmp_path / "root")
    for act in (
        lambda: store.read(key),
        lambda: store.read_range(key, 0, 1),
        lambda: store.num_bytes(key),
        lambda: store.create(key, b"theirs"),
        lambda: store.delete(key),
        lambda: list(store.list(f"{key}/x")),
    ):
        with pytest.raises(CorruptShard, match="leads out of it"):
            act()
    assert (tmp_path / "secret").read_text() == "mine"


def test_keys_on_s3_do_not_climb() -> None:
    store = S3Store("bucket", "data/set")
    with pytest.raises(CorruptShard, match=r"^s3://bucket/data/set: '\.\./other/x' leads out of it"):
        store.read("../other/x")


@pytest.mark.parametrize("column", ["path", "sidecar"])
@pytest.mark.parametrize("key", ["../other.tar", "/etc/hostname", "file:///etc/hostname"])
def test_a_manifest_that_names_files_elsewhere_is_refused(
    small_dataset: Dataset, tmp_path: Path, column: str, key: str
) -> None:
    shutil.copytree(small_dataset.store.url, tmp_path / "set")
    _rename(LocalStore(tmp_path / "set"), column, key)
    for opened in (open_dataset(str(tmp_path / "set")), open_any(str(tmp_path / "set"))):
        with pytest.raises(CorruptShard, match="leads out of it"):
            opened.samples(0) if column == "sidecar" else opened.read_span(0, 0, 1)
    done = run_here("verify", tmp_path / "set", "--level", "checksum")
    assert done.returncode == 1
    assert f"{key!r} leads out of it" in done.stderr


def _rename(store: Store, column: str, key: str) -> None:
    """Publish a manifest in which the first shard's file is another one."""
    pointer = Path(store.url, POINTER_KEY)
    version = json.loads(pointer.read_text())
    table = open_dataset(store.url).shards.table
    values = [key, *table[column].to_pylist()[1:]]
    place = table.schema.get_field_index(column)
    body = to_parquet(table.set_column(place, column, pa.array(values)))
    Path(store.url, "forged.parquet").write_bytes(body)
    pointer.write_text(json.dumps(version | {"shards": "forged.parquet", "shards_sha256": sha256_hex(body)}))
