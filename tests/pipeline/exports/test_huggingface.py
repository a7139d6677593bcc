"""Hugging Face reads every sample; its README says what the hub wants to know."""

from pathlib import Path

import pytest

from pipeline.dataset.dataset import Dataset
from pipeline.exports.huggingface import patterns, size_category
from tests.pipeline.exports.exporting import labels_by_key, root_of


def test_hugging_face_reads_every_sample_with_its_label(exported: Dataset, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    read = datasets.load_dataset(str(root_of(exported)), cache_dir=str(tmp_path))
    assert list(read) == ["train"]
    assert dict(zip(read["train"]["__key__"], read["train"]["cls"], strict=True)) == labels_by_key(exported)
    assert read["train"][0]["jpg"].size == (64, 48)


def test_size_category_is_the_word_of_the_hub() -> None:
    numbers = (0, 999, 1000, 999_999, 300_000_000, 10**12)
    words = ["n<1K", "n<1K", "1K<n<10K", "100K<n<1M", "100M<n<1B", "n>1T"]
    assert [size_category(number) for number in numbers] == words


def test_a_pattern_stands_only_where_it_names_the_shards_and_nothing_else() -> None:
    ours = ["a/train-0.tar", "a/train-1.tar", "b/train-2.tar"]
    present = {"a/": ours[:2], "b/": ["b/orphan.tar", "b/train-2.tar"]}
    assert patterns(ours, present) == ["a/*.tar", "b/train-2.tar"]
