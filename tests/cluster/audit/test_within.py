"""Copies within one set are grouped, and all but one of each group are excluded."""

from pathlib import Path

import pyarrow.parquet as pq

from tests.conftest import class_folders, pack, run_cli


def test_copies_within_a_set_form_a_group_and_all_but_one_are_excluded(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "in", classes=2, each=6)
    first = (source / "class0" / "000.jpg").read_bytes()
    for number in range(25):  # more than are verified of any one picture
        (source / "class1" / f"copy-{number}.jpg").write_bytes(first)
    pack(source, str(tmp_path / "set"), shard_bytes=20_000)
    done = run_cli("cluster", "audit-within", "set", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "1 of 37 pictures have copies, 25 of them" in done.stdout
    assert pq.read_table(tmp_path / "out" / "exclude.parquet").num_rows == 25
    assert len(set(pq.read_table(tmp_path / "out" / "stars.parquet")["centre_key"].to_pylist())) == 1
