"""The samples of a tar are those that WebDataset finds in it, each with where it lies and what it is labelled."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
import webdataset
from hypothesis import given, strategies as st

from pipeline.base.errors import CorruptShard
from pipeline.dataset.tar_reader import TarSample, labels_of, scan_tar, split_name
from tests.tars import Members, write_tar

NAMES = st.from_regex(r"([a-c. ]{1,3}/){0,2}[ab]{1,2}(\.[A-Za-z]{1,4}){0,2}", fullmatch=True)


def samples_of(path: Path) -> list[TarSample]:
    with path.open("rb") as file:
        return scan_tar(file, str(path))[0]


@given(NAMES)
def test_names_are_split_as_webdataset_splits_them(name: str) -> None:
    key, extension = webdataset.tariterators.base_plus_ext(name)
    if key is None:  # such members are in no sample
        assert split_name(name)[1] == ""
    else:
        assert split_name(name) == (key, extension.lower())


@given(st.lists(st.tuples(st.sampled_from(["a", "b", "d/a"]), st.sampled_from(["jpg", "cls", "txt"])), max_size=9))
def test_members_of_a_name_are_a_sample_wherever_they_stand(
    tmp_path_factory: pytest.TempPathFactory, parts: Any
) -> None:
    path = tmp_path_factory.mktemp("tar") / "a.tar"
    write_tar(path, [(f"{key}.{extension}", b"7") for key, extension in parts])
    found = samples_of(path)
    assert [sample.key for sample in found] == list(dict.fromkeys(key for key, _ in parts))
    for sample in found:
        places = [number for number, (key, _) in enumerate(parts) if key == sample.key]
        assert sample.is_apart == (places[-1] - places[0] >= len(places))


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_images_and_json_lie_where_they_are_said_to(tmp_path: Path, kind: int) -> None:
    about = json.dumps({"label": 4}).encode()
    members: Members = [("d/1.JPG", b"first"), ("d/1.json", about), ("d/2.png", b"other" * 200), ("d/2.jpg", b"second")]
    write_tar(tmp_path / "a.tar", members, kind)
    body = (tmp_path / "a.tar").read_bytes()
    with tarfile.open(tmp_path / "a.tar") as archive:
        offsets = [member.offset for member in archive]
    one, other = samples_of(tmp_path / "a.tar")

    def at(span: tuple[int, int] | None) -> bytes:
        assert span
        return body[span[0] : span[0] + span[1]]

    assert (at(one.image), one.image_extension, at(one.about_span), one.about) == (b"first", "jpg", about, {"label": 4})
    assert (at(other.image), other.image_extension) == (b"other" * 200, "png")  # the first of its images
    assert (one.start, other.start) == (offsets[0], offsets[2])


def test_the_end_is_where_the_end_mark_stands_and_metadata_is_no_sample(tmp_path: Path) -> None:
    members: Members = [("__meta__/a.json", b"{}"), ("README", b"text"), ("a.jpg", b"x" * 700), ("__key__", b"k")]
    write_tar(tmp_path / "a.tar", members, tarfile.USTAR_FORMAT)
    with (tmp_path / "a.tar").open("rb") as file:
        [sample], end = scan_tar(file, "a.tar")
    assert sample.key == "a"
    body = (tmp_path / "a.tar").read_bytes()
    assert body[end:].strip(b"\0") == b""
    assert body[end - 512 : end].rstrip(b"\0") == b"k"


@given(st.data())
def test_a_tar_that_is_cut_anywhere_before_its_end_mark_is_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("tar") / "a.tar"
    write_tar(path, [(f"{number}.jpg", bytes(number * 300)) for number in range(4)], tarfile.USTAR_FORMAT)
    body = path.read_bytes()
    _, end = scan_tar(io.BytesIO(body), "a.tar")
    cut = data.draw(st.integers(0, end + 511))
    with pytest.raises(CorruptShard, match=r"a\.tar"):
        scan_tar(io.BytesIO(body[:cut]), "a.tar")


@pytest.mark.parametrize(
    ("cls", "about", "labels"),
    [
        (b"3\n", None, [3]),
        (b"3 5", None, [3, 5]),
        (b"3", {"labels": [1, 2]}, [1, 2]),  # a list says more than the one number beside it
        (b"3", {"label": 1}, [3]),
        (None, {"label": 1, "cls": 2}, [1]),
        (None, {"cls": [2, 4]}, [2, 4]),
        (None, {"labels": [], "label": 6}, [6]),
        (None, {"label": "6"}, [6]),
        (b"cat", {"label": "dog"}, ["cat"]),
        (b"-1", None, []),
        (None, ["no object"], []),
        (None, None, []),
    ],
)
def test_labels_come_from_the_member_that_says_most(
    tmp_path: Path, cls: bytes | None, about: Any, labels: list[int | str]
) -> None:
    members: Members = [("a.jpg", b"image")]
    members += [("a.cls", cls)] if cls is not None else []
    members += [("a.json", json.dumps(about).encode())] if about is not None else []
    write_tar(tmp_path / "a.tar", members)
    [sample] = samples_of(tmp_path / "a.tar")
    assert labels_of(sample) == labels


def test_text_too_large_for_labels_makes_its_sample_unusable(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("a.jpg", b"image"), ("a.cls", b"3" + b" " * (1 << 20)), ("b.jpg", b"")])
    one, other = samples_of(tmp_path / "a.tar")
    assert one.problem
    assert one.problem.detail == "a.cls has 1,048,577 bytes, at most 1,048,576 are read"
    assert not other.problem
