"""Each published form is read as its authors write it: splits, labels, pixels; and damage is named."""

import io
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.base.errors import ConfigError, CorruptShard, NotFound
from tests.conftest import picture
from tests.trainer.tasks import files
from trainer.tasks.catalogue import task_named
from trainer.tasks.originals.base import Example, Original, png
from trainer.tasks.originals.open import open_original
from trainer.tasks.originals.scenes import videos_split


def read(root: Path, task: str) -> Original:
    return open_original(str(root), task_named(task))


def rows(original: Original, split: str) -> list[Example]:
    size = original.splits[split].size
    found = list(original.splits[split].take(range(size)))
    assert len(found) == size == len({example.name for example in found})
    return found


def labels(original: Original, split: str) -> list[str]:
    return [example.label for example in rows(original, split)]


def pixels(example: Example) -> np.ndarray:
    data = example.image if isinstance(example.image, bytes) else Path(example.image).read_bytes()
    return np.asarray(Image.open(io.BytesIO(data)))


@pytest.mark.parametrize("classes", [10, 100])
def test_cifar_of_python(classes: int, tmp_path: Path) -> None:
    folder = files.cifar_pickled(tmp_path, classes=classes)
    original = read(tmp_path, f"cifar{classes}")
    assert labels(original, "train") == [f"kind{number % (6 if classes == 10 else 30)}" for number in range(30)]
    batch = pickle.loads((folder / ("test" if classes == 100 else "test_batch")).read_bytes())
    example = rows(original, "test")[3]
    red, _, blue = batch[b"data"][3].reshape(3, 32, 32)
    assert np.array_equal(pixels(example)[:, :, 0], red)
    assert np.array_equal(pixels(example)[:, :, 2], blue)
    assert original.classes == tuple(f"kind{number}" for number in range(classes))


def test_the_binary_version_of_cifar_holds_the_same(tmp_path: Path) -> None:
    pickled = files.cifar_pickled(tmp_path / "python")
    files.cifar_binary(tmp_path / "binary", pickled)
    one, other = read(tmp_path / "python", "cifar100"), read(tmp_path / "binary", "vtab/cifar100")
    assert one.classes == other.classes
    for split in ("train", "test"):
        assert rows(one, split) == rows(other, split)


def test_a_pickle_that_runs_something_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return os.system, (f"touch {tmp_path}/ran",)

    (files.cifar_pickled(tmp_path) / "train").write_bytes(pickle.dumps({b"data": Evil()}, protocol=2))
    with pytest.raises(ConfigError, match=r"the pickle asks for (posix|os|nt)\.system"):
        read(tmp_path, "cifar100")
    assert not (tmp_path / "ran").exists()


def test_pets(tmp_path: Path) -> None:
    original = read(files.pets(tmp_path), "pets")
    assert original.classes == ("Abyssinian", "american_bulldog")
    assert labels(original, "train") == ["Abyssinian"] * 3 + ["american_bulldog"] * 3
    assert [example.name for example in rows(original, "test")][:2] == ["Abyssinian_4.jpg", "Abyssinian_5.jpg"]
    assert pixels(rows(original, "test")[0]).shape == (24, 24, 3)


def test_dtd(tmp_path: Path) -> None:
    original = read(files.dtd(tmp_path), "vtab/dtd")
    assert original.classes == ("banded", "woven")
    assert rows(original, "validation")[0].name == "banded/banded_0002.jpg"
    assert labels(original, "test") == ["banded", "banded", "woven", "woven"]


def test_flowers(tmp_path: Path) -> None:
    scipy_io = pytest.importorskip("scipy.io")
    files.photos(tmp_path / "jpg", [f"image_{number:05d}.jpg" for number in range(1, 7)])
    scipy_io.savemat(tmp_path / "imagelabels.mat", {"labels": np.array([[1, 2, 102, 1, 2, 77]])})
    ids = {"trnid": np.array([[2, 3]]), "valid": np.array([[1]]), "tstid": np.array([[4, 5, 6]])}
    scipy_io.savemat(tmp_path / "setid.mat", ids)
    original = read(tmp_path, "flowers102")
    assert labels(original, "train") == ["2", "102"]
    assert labels(original, "test") == ["1", "2", "77"]
    assert [example.name for example in rows(original, "validation")] == ["image_00001.jpg"]


def test_svhn_calls_its_class_ten_the_digit_zero(tmp_path: Path) -> None:
    scipy_io = pytest.importorskip("scipy.io")
    images = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 4), np.uint8)
    for split in ("train", "test"):
        scipy_io.savemat(tmp_path / f"{split}_32x32.mat", {"X": images, "y": np.array([[1], [10], [9], [2]])})
    original = read(tmp_path, "vtab/svhn")
    assert labels(original, "train") == ["1", "0", "9", "2"]
    assert np.array_equal(pixels(rows(original, "test")[2]), images[..., 2])
    scipy_io.savemat(tmp_path / "train_32x32.mat", {"X": images, "y": np.array([[1], [10], [27], [2]])})
    with pytest.raises(ConfigError, match=r"train_32x32.mat: label 27 is outside of the 10 classes"):
        read(tmp_path, "vtab/svhn")


def test_patch_camelyon(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    images = np.random.default_rng(0).integers(0, 256, (3, 96, 96, 3), np.uint8)
    for name in ("train", "valid", "test"):
        for kind, values in (("x", images), ("y", np.array([0, 1, 0]).reshape(3, 1, 1, 1))):
            with h5py.File(tmp_path / f"camelyonpatch_level_2_split_{name}_{kind}.h5", "w") as file:
                file[kind] = values
    original = read(tmp_path, "vtab/patch-camelyon")
    assert labels(original, "validation") == ["no tumour", "tumour", "no tumour"]
    assert np.array_equal(pixels(next(original.splits["test"].take([2]))), images[2])
    with h5py.File(tmp_path / "camelyonpatch_level_2_split_test_y.h5", "w") as file:
        file["y"] = np.array([0, 2, 0]).reshape(3, 1, 1, 1)
    with pytest.raises(ConfigError, match=r"split_test_y.h5: label 2 is outside of the 2 classes"):
        read(tmp_path, "vtab/patch-camelyon")


def test_sun397(tmp_path: Path) -> None:
    names = [f"/{place}/sun_{number}.jpg" for place in ("a/abbey", "b/bar/indoor") for number in range(3)]
    files.photos(tmp_path / "SUN397", [name[1:] for name in names])
    for ending, chosen in (("tr", names[0:4]), ("va", names[4:5]), ("te", names[5:])):
        (tmp_path / f"sun397_tfds_{ending}.txt").write_text("\n".join(chosen) + "\n")
    original = read(tmp_path, "vtab/sun397")
    assert original.classes == ("/a/abbey", "/b/bar/indoor")
    assert labels(original, "train") == ["/a/abbey"] * 3 + ["/b/bar/indoor"]
    assert pixels(rows(original, "test")[0]).shape == (24, 24, 3)


def test_retinopathy_keeps_the_public_test_pictures_for_validation(tmp_path: Path) -> None:
    files.photos(tmp_path, ["train/1_left.jpeg", "test/2_left.jpeg", "test/3_right.jpeg"])
    (tmp_path / "trainLabels.csv").write_text("image,level\n1_left,4\n")
    (tmp_path / "retinopathy_solution.csv").write_text("image,level,Usage\n2_left,0,Private\n3_right,2,Public\n")
    original = read(tmp_path, "vtab/retinopathy")
    assert [(example.name, example.label) for example in rows(original, "validation")] == [("3_right.jpeg", "2")]
    assert labels(original, "test") == ["0"]


@pytest.mark.parametrize("flat", [None, "", "val/"])
def test_ilsvrc_with_a_flat_folder_for_validation_or_one_by_class(flat: str | None, tmp_path: Path) -> None:
    files.photos(tmp_path / "train", ["n01/n01_1.JPEG", "n01/n01_2.JPEG", "n02/n02_1.JPEG"])
    names = ["ILSVRC2012_val_00000001.JPEG", "ILSVRC2012_val_00000002.JPEG"]
    files.photos(tmp_path / "val", [f"n02/{names[0]}", f"n01/{names[1]}"] if flat is None else names)
    if flat is not None:
        (tmp_path / f"{flat}imagenet_2012_validation_synset_labels.txt").write_text("n02\nn01\n")
    original = read(tmp_path, "ilsvrc2012")
    found = {example.name.rpartition("/")[2]: example.label for example in rows(original, "validation")}
    assert found == {names[0]: "n02", names[1]: "n01"}
    assert labels(original, "train") == ["n01", "n01", "n02"]
    if flat is not None:
        (tmp_path / f"{flat}imagenet_2012_validation_synset_labels.txt").write_text("n02\nn03\n")
        with pytest.raises(ConfigError, match=r"val has pictures of n03, for which .*train has no folder"):
            read(tmp_path, "ilsvrc2012")


def test_class_folders_and_caltechs_thirty_a_class(tmp_path: Path) -> None:
    names = [f"{kind}/image_{number:04d}.jpg" for kind in ("ant", "BACKGROUND_Google") for number in range(32)]
    files.photos(tmp_path / "101_ObjectCategories", names)
    original = read(tmp_path, "vtab/caltech101")
    assert sorted(labels(original, "test")) == ["BACKGROUND_Google"] * 3 + ["ant"] * 2  # 3,059 of the whole set
    both = [example.name for split in ("train", "test") for example in rows(original, split)]
    assert sorted(both) == sorted(names)
    files.photos(tmp_path / "euro" / "2750", ["Forest/Forest_1.jpg", "River/River_1.jpg"])
    for root in (tmp_path / "euro", tmp_path / "euro" / "2750"):
        assert labels(read(root, "vtab/eurosat"), "train") == ["Forest", "River"]


def test_clevr(tmp_path: Path) -> None:
    depths = [[12.0, 8.0, 9.3], [11.0] * 10, [8.6, 9.0, 20.0, 30.0]]
    root = files.clevr(tmp_path, {"train": depths, "val": depths[:1]})
    assert labels(read(root, "vtab/clevr-count"), "train") == ["3", "10", "4"]
    assert labels(read(root, "vtab/clevr-distance"), "train") == ["to 8.0", "over 10.0", "8.5 to 9.0"]
    assert read(root, "vtab/clevr-count").splits["validation"].size == 1


def test_kitti_keeps_a_video_in_one_split(tmp_path: Path) -> None:
    depths = [None, 8.0, 8.1, 25.0] * 10
    original = read(files.kitti(tmp_path, depths, num_videos=20), "vtab/kitti-distance")
    expected = {
        f"{n:06d}.png": label for n, label in enumerate(["no vehicle", "to 8 m", "8 to 20 m", "over 20 m"] * 10)
    }
    found = [example for split in original.splits for example in rows(original, split)]
    assert {example.name: example.label for example in found} == expected
    assert [original.splits[split].size for split in ("train", "validation", "test")] == [32, 4, 4]
    videos = [f"drive_{number % 20}" for number in range(40)]
    split = videos_split(videos)
    assert not {videos[n] for n in split["train"]} & {videos[n] for n in split["test"] + split["validation"]}
    assert split == videos_split(videos)


def test_dsprites_bins_its_factors(tmp_path: Path) -> None:
    files.dsprites(tmp_path)
    orientation = labels(read(tmp_path, "vtab/dsprites-orientation"), "train")[:40]
    assert [orientation.count(str(label)) for label in range(16)] == [3, 2] * 8  # 2.5 of 40 each
    location = read(tmp_path, "vtab/dsprites-location")
    assert labels(location, "train")[40:] == [str(value // 2) for value in range(32)]
    assert set(np.unique(pixels(next(location.splits["train"].take([5]))))) == {0, 255}


def test_smallnorb(tmp_path: Path) -> None:
    files.smallnorb(tmp_path)
    assert labels(read(tmp_path, "vtab/smallnorb-azimuth"), "test") == [str(number % 18) for number in range(36)]
    elevation = read(tmp_path, "vtab/smallnorb-elevation")
    assert labels(elevation, "train") == [str(number % 9) for number in range(36)]
    whole = np.random.default_rng(0).integers(0, 256, (36, 2, 96, 96), np.uint8)
    assert np.array_equal(pixels(rows(elevation, "train")[7]), whole[7, 0])  # the left camera
    path = next(tmp_path.glob("*training-dat.mat"))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CorruptShard, match=r"its header says \[36, 2, 96, 96\] elements"):
        read(tmp_path, "vtab/smallnorb-azimuth")


def test_parquet_of_the_hub(tmp_path: Path) -> None:
    original = read(files.hub(tmp_path, train=120, test=20), "cifar100")
    assert [example.label for example in original.splits["train"].take([3, 101])] == ["kind3", "kind1"]
    assert np.array_equal(pixels(next(original.splits["test"].take([19]))), picture(19, 32, 32))
    with pytest.raises(ConfigError, match="its label is derived"):
        read(tmp_path, "vtab/clevr-count")


def test_splits_of_the_hub_that_a_task_does_not_use_are_left_and_what_cannot_be_packed_is_named(tmp_path: Path) -> None:
    assert set(read(files.hub(tmp_path / "a", train=20, test=20, extra=5), "cifar100").splits) == {"train", "test"}
    unlabelled = next(files.hub(tmp_path / "d", train=20, test=20, validation=5).rglob("validation-*"))
    table = pq.read_table(unlabelled)
    pq.write_table(table.set_column(1, "fine_label", pa.array([-1] * 5)), unlabelled)
    read(tmp_path / "d", "cifar100")
    with pytest.raises(ConfigError, match=r"has no Parquet file of test: .*, and there are data/extra-00000"):
        read(files.hub(tmp_path / "b", train=20, extra=5), "cifar100")
    shutil.copytree(tmp_path / "a" / "data", tmp_path / "a" / "full")
    with pytest.raises(ConfigError, match="in several forms, data, full; give the folder of one of them"):
        read(tmp_path / "a", "cifar100")
    bad = next(files.hub(tmp_path / "c", train=20, test=20).rglob("test-*"))
    table = pq.read_table(bad)
    pq.write_table(table.set_column(1, "fine_label", pa.array([100] * 20)), bad)
    with pytest.raises(ConfigError, match=r"test-00000-of-00001.parquet: label 100 is outside of the 100 classes"):
        read(tmp_path / "c", "cifar100")


def test_tfds_keeps_its_order_over_files(tmp_path: Path) -> None:
    records = [{"image": [png(picture(n, 8, 8))], "label": [n % 37], "file_name": [b"x"]} for n in range(50)]
    original = read(
        files.tfds(tmp_path, "oxford_iiit_pet", {"train": [records[:20], records[20:45]], "test": [records[45:]]}, 37),
        "vtab/pets",
    )
    assert original.in_order
    assert original.classes[:2] == ("kind 0", "kind 1")
    assert labels(original, "train") == [f"kind {n % 37}" for n in range(45)]
    assert np.array_equal(pixels(next(original.splits["train"].take([30]))), picture(30, 8, 8))
    files.tfds(tmp_path / "again", "oxford_iiit_pet", {"train": [records]}, 37)
    with pytest.raises(ConfigError, match=r"holds several sets of TFDS; give one of .*oxford_iiit_pet"):
        read(tmp_path, "vtab/pets")
    path = next(tmp_path.rglob("*train.tfrecord-00001*"))
    path.write_bytes(path.read_bytes()[:-9] + b"123456789")
    with pytest.raises(CorruptShard, match="checksum is wrong"):
        rows(original, "train")


def test_labels_are_derived_from_the_features_of_tfds(tmp_path: Path) -> None:
    image = [png(picture(0, 8, 8))]
    scene = {
        "image": image,
        "objects/size": [0] * 4,
        "objects/pixel_coords": [1.0, 2.0, 12.0, 1.0, 2.0, 8.25, 1.0, 2.0, 9.0, 1.0, 2.0, 9.0],
    }
    files.tfds(tmp_path / "a", "clevr", {"train": [[scene]], "validation": [[scene]]})
    assert labels(read(tmp_path / "a", "vtab/clevr-count"), "train") == ["4"]
    assert labels(read(tmp_path / "a", "vtab/clevr-distance"), "train") == ["8.0 to 8.5"]
    street = {"image": image, "objects/type": [3, 2], "objects/location": [1.0, 2.0, 3.0, 1.0, 2.0, 19.0]}
    files.tfds(tmp_path / "b", "kitti", {"train": [[street]]})
    assert labels(read(tmp_path / "b", "vtab/kitti-distance"), "train") == ["8 to 20 m"]
    sprite = {"image": [png(np.eye(8, dtype=np.uint8))], "label_x_position": [31], "label_orientation": [39]}
    files.tfds(tmp_path / "c", "dsprites", {"train": [[sprite]]})
    assert labels(read(tmp_path / "c", "vtab/dsprites-orientation"), "train") == ["15"]
    assert np.array_equal(pixels(rows(read(tmp_path / "c", "vtab/dsprites-location"), "train")[0]), np.eye(8) * 255)
    pose = {"image": image, "label_azimuth": [17], "label_elevation": [8]}
    files.tfds(tmp_path / "d", "smallnorb", {"train": [[pose]]})
    assert labels(read(tmp_path / "d", "vtab/smallnorb-azimuth"), "train") == ["17"]
    assert labels(read(tmp_path / "d", "vtab/smallnorb-elevation"), "train") == ["8"]


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="is no folder; unpack the archives"):
        read(tmp_path / "none", "pets")
    with pytest.raises(NotFound, match=r"holds neither annotations/trainval\.txt nor trainval\.txt"):
        read(tmp_path, "pets")
    with pytest.raises(ConfigError, match="is read from a folder of TFDS only"):
        read(tmp_path, "vtab/dmlab")
