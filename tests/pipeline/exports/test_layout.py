"""Members lie where the rule places them."""

from pathlib import Path

import pytest

from pipeline.dataset.dataset import open_dataset
from pipeline.exports.layout import layout_by_rule, scanned_layout
from tests.conftest import class_folders, run_here
from tests.pipeline.exports.exporting import tars_of


@pytest.mark.parametrize("options", [[], ["--no-labels"]])
def test_the_rule_places_members_where_tarfile_finds_them(options: list[str], tmp_path: Path) -> None:
    pictures = class_folders(tmp_path / "pictures", classes=11, each=2)  # one- and two-digit labels
    done = run_here("shard", str(pictures), str(tmp_path / "set"), *options)
    assert done.returncode == 0, done.stderr
    dataset = open_dataset(str(tmp_path / "set"))
    for row, tar in zip(dataset.shards, tars_of(dataset), strict=True):
        table = dataset.samples(row["shard"])
        with tar.open("rb") as file:
            assert layout_by_rule(table) == scanned_layout(file, "", frozenset(table["image_offset"].to_pylist()))
