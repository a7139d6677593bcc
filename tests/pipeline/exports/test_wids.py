"""The index of wids counts what is in the tars."""

import json

from pipeline.dataset.dataset import Dataset
from tests.pipeline.exports.exporting import members_of, root_of, tars_of


def test_every_shard_is_listed_with_its_samples_and_bytes(exported: Dataset) -> None:
    root = root_of(exported)
    wids = json.loads((root / "wids.json").read_text())
    assert wids["wids_version"] == 1
    assert [root / shard["url"] for shard in wids["shardlist"]] == tars_of(exported)
    for shard in wids["shardlist"]:
        tar = root / shard["url"]
        assert shard["nsamples"] * 3 == len(members_of(tar))
        assert shard["filesize"] == tar.stat().st_size


def test_rejects_and_metadata_of_foreign_tars_count(adopted: Dataset) -> None:
    """It goes by the number of a sample in its tar, where a reject and `__meta__/about` are samples like others."""
    shards = json.loads((root_of(adopted) / "wids.json").read_text())["shardlist"]
    assert [shard["nsamples"] for shard in shards] == [9, 5]
