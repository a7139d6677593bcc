"""A shard holds every sample once, as the tools that users have read it."""

import subprocess
import tarfile
from pathlib import Path

import datasets
import webdataset
from PIL import Image

from pipeline.dataset.dataset import Address, Dataset
from pipeline.image.decode import is_jpeg
from pipeline.upkeep.statistics import class_counts
from tests.conftest import pack, picture
from tests.contents import addresses, faults, original_names, source_counts
from tests.photos import photo_tar


def tars(dataset: Dataset, root: Path) -> list[Path]:
    return [root / shard["path"] for shard in dataset.shards]


def test_every_picture_is_in_exactly_once_with_its_label(small_folder: Path, small_dataset: Dataset) -> None:
    for address in addresses(small_dataset):
        about = small_dataset.read_about(address)
        assert small_dataset.read_image(address) == (small_folder / about["source"]).read_bytes()
        assert about["labels"] == [int(about["source"][5])]
    assert source_counts(small_dataset) == dict.fromkeys(original_names(small_folder), 1)
    assert class_counts(small_dataset) == {0: 30, 1: 30, 2: 30}


def test_webdataset_reads_the_shards(small_dataset: Dataset) -> None:
    paths = [str(path) for path in tars(small_dataset, Path(small_dataset.store.url))]
    samples = list(webdataset.WebDataset(paths, shardshuffle=False).decode("rgb8"))
    assert len(samples) == 90
    assert {sample["cls"] for sample in samples} == {0, 1, 2}
    assert all(sample["jpg"].shape == (48, 64, 3) and sample["json"]["labels"] == [sample["cls"]] for sample in samples)


def test_gnu_tar_and_tarfile_read_the_shards(small_dataset: Dataset) -> None:
    for path in tars(small_dataset, Path(small_dataset.store.url)):
        listed = subprocess.run(["tar", "-tf", str(path)], capture_output=True, text=True, check=True).stdout.split()
        with tarfile.open(path) as archive:
            assert archive.getnames() == listed
        extensions = [name.partition(".")[2] for name in listed]
        assert extensions == ["jpg", "cls", "json"] * (len(listed) // 3)


def test_hugging_face_datasets_reads_the_shards(small_dataset: Dataset, tmp_path: Path) -> None:
    paths = [str(path) for path in tars(small_dataset, Path(small_dataset.store.url))]
    loaded = datasets.load_dataset("webdataset", data_files={"train": paths}, split="train", cache_dir=str(tmp_path))
    assert len(loaded) == 90
    assert sorted(set(loaded["cls"])) == [0, 1, 2]
    assert loaded[0]["jpg"].size == (64, 48)
    assert loaded[0]["json"]["width"] == 64


def test_photos_round_trip_with_sidecars_below_60_bytes_a_sample(tmp_path: Path) -> None:
    with tarfile.open(photo_tar("tiny-imagenet-100.tar", tmp_path)) as archive:
        members = [m for m in archive.getmembers() if m.name.startswith("train/")][:1000]
        archive.extractall(tmp_path, members=members, filter="data")
    dataset = pack(tmp_path / "train", str(tmp_path / "set"))
    assert sum(shard["sidecar_bytes"] for shard in dataset.shards) / dataset.version.num_samples <= 60
    assert faults(dataset) == []


def test_pictures_that_are_not_jpeg_become_jpeg(tmp_path: Path) -> None:
    (tmp_path / "in" / "a").mkdir(parents=True)
    Image.fromarray(picture(1)).save(tmp_path / "in" / "a" / "x.png")
    dataset = pack(tmp_path / "in", str(tmp_path / "set"))
    assert is_jpeg(dataset.read_image(Address(0, 0)))
