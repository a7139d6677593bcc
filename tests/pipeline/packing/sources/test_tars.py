"""Tars are packed whole, ours and third-party ones in every tar format, or refused by name."""

import json
import tarfile
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset

from pipeline.base.errors import CorruptShard
from pipeline.dataset.dataset import Dataset
from tests.conftest import jpeg, pack, picture
from tests.contents import abouts, images
from tests.tars import write_tar


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_tars_without_an_index_in_every_tar_format(tmp_path: Path, kind: int) -> None:
    for number in range(3):
        members = []
        for row in range(4):
            members += [
                (f"d/{number}-{row}.jpg", jpeg(picture(10 * number + row))),
                (f"d/{number}-{row}.cls", b"%d" % row),
                (f"d/{number}-{row}.json", json.dumps({"caption": f"c{row}", "width": 1}).encode()),
            ]
        write_tar(tmp_path / f"{number:03d}.tar", members, kind)
    dataset = pack(tmp_path / "{000..002}.tar", str(tmp_path / "set"))
    found = {about["source"]: about for about in abouts(dataset)}
    assert found["001.tar#d/1-2"]["labels"] == [2]
    assert found["001.tar#d/1-2"]["caption"] == "c2"
    assert found["001.tar#d/1-2"]["width"] == 64  # ours, not theirs
    assert len(found) == 12


def test_a_dataset_of_ours_is_packed_again_with_all_it_knows(small_dataset: Dataset, tmp_path: Path) -> None:
    again = pack(Path(small_dataset.store.url), str(tmp_path / "set"), shard_bytes=50_000, block_bytes=20_000)
    assert again.classes == small_dataset.classes
    order = partial(sorted, key=lambda about: about["source"])
    assert order(abouts(again)) == order(abouts(small_dataset))
    assert images(again) == images(small_dataset)


def test_what_webdataset_wrote_is_packed(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with webdataset.ShardWriter(str(tmp_path / "in" / "w-%03d.tar"), maxcount=4, verbose=0) as writer:
        for number in range(10):
            writer.write({"__key__": f"{number:04d}", "jpg": jpeg(picture(number)), "cls": number % 3})
    dataset = pack(tmp_path / "in", str(tmp_path / "set"))
    assert sorted(about["labels"][0] for about in abouts(dataset)) == sorted(number % 3 for number in range(10))


def test_img2dataset_output_brings_the_columns_of_its_parquet_file(tmp_path: Path) -> None:
    rows = []
    members = []
    for number in range(5):
        key = f"{number:09d}"
        failed = number == 3
        rows.append(
            {"key": key, "url": f"http://x/{number}", "caption": f"c{number}", "width": 64, "height": 48,
             "status": "failed_to_download" if failed else "success", "error_message": "404" if failed else None}
        )  # fmt: skip
        if not failed:
            members += [(f"{key}.jpg", jpeg(picture(number))), (f"{key}.txt", b"c"), (f"{key}.json", b"{}")]
    (tmp_path / "in").mkdir()
    write_tar(tmp_path / "in" / "00000.tar", members)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in" / "00000.parquet")
    (tmp_path / "in" / "00000_stats.json").write_text("{}")
    dataset = pack(tmp_path / "in", str(tmp_path / "set"))
    assert {about["url"] for about in abouts(dataset)} == {f"http://x/{number}" for number in (0, 1, 2, 4)}
    assert dataset.version.num_rejects == 0


@pytest.mark.parametrize("damage", ["cut between members", "cut in a member", "flipped header", "no end mark"])
def test_a_damaged_tar_is_an_error_not_a_gap(tmp_path: Path, damage: str) -> None:
    members = [(f"{number}.jpg", jpeg(picture(number))) for number in range(6)]
    write_tar(tmp_path / "a.tar", members, tarfile.USTAR_FORMAT)
    body = bytearray((tmp_path / "a.tar").read_bytes())
    with tarfile.open(tmp_path / "a.tar") as archive:
        infos = archive.getmembers()
    if damage == "cut between members":
        body = body[: infos[3].offset]
    elif damage == "cut in a member":
        body = body[: infos[3].offset_data + 100]
    elif damage == "flipped header":
        body[infos[3].offset + 5] ^= 1
    else:
        body = body[: infos[5].offset_data + -(-infos[5].size // 512) * 512]
    (tmp_path / "a.tar").write_bytes(body)
    with pytest.raises(CorruptShard, match=r"a\.tar"):
        pack(tmp_path / "a.tar", str(tmp_path / "set"))
    assert not (tmp_path / "set" / "MANIFEST.json").exists()


def test_json_of_others_with_nan_large_numbers_and_a_source_of_its_own(tmp_path: Path) -> None:
    text = '{"score": NaN, "id": 123456789012345678901234567890, "source": "flickr", "odd": "\\ud83d"}'
    members = [
        (f"{n}.{kind}", body) for n in range(4) for kind, body in (("jpg", jpeg(picture(n))), ("json", text.encode()))
    ]
    write_tar(tmp_path / "a.tar", members)
    found = abouts(pack(tmp_path / "a.tar", str(tmp_path / "set")))
    assert {about["source"] for about in found} == {f"a.tar#{n}" for n in range(4)}
    assert found[0]["score"] is None
    assert found[0]["id"] == 123456789012345678901234567890
