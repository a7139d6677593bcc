"""The sizes that open_clip reads are beside the shards, and count what can be used."""

import json

from pipeline.dataset.dataset import Dataset
from tests.pipeline.exports.exporting import members_of, root_of, tars_of


def test_sizes_are_those_of_the_tars(exported: Dataset) -> None:
    for tar in tars_of(exported):
        assert json.loads((tar.parent / "sizes.json").read_text())[tar.name] * 3 == len(members_of(tar))


def test_rejects_of_foreign_tars_do_not_count(adopted: Dataset) -> None:
    root = root_of(adopted)
    assert json.loads((root / "sizes.json").read_text()) == {"a.tar": 7}
    assert json.loads((root / "more/sizes.json").read_text()) == {"b.tar": 5}
