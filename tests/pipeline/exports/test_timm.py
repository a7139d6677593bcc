"""The file that timm reads names the shards, their lengths and where labels are."""

import json

import webdataset

from pipeline.dataset.dataset import Dataset
from tests.pipeline.exports.exporting import labels_by_key, root_of


def test_webdataset_reads_the_shards_that_the_file_names(exported: Dataset) -> None:
    root = root_of(exported)
    split = json.loads((root / "_info.json").read_text())["splits"]["train"]
    assert split["name"] == "train"
    read = {}
    for name, length in zip(split["filenames"], split["shard_lengths"], strict=True):
        found = {s["__key__"]: int(s["cls"]) for s in webdataset.WebDataset(str(root / name), shardshuffle=False)}
        assert len(found) == length
        read |= found
    assert read == labels_by_key(exported)
    assert split["num_samples"] == len(read)


def test_labels_of_foreign_tars_are_found_in_their_json_and_rejects_left_out(adopted: Dataset) -> None:
    split = json.loads((root_of(adopted) / "_info.json").read_text())["splits"]["train"]
    assert split["alt_label"] == "label"
    assert split["shard_lengths"] == [7, 5]
