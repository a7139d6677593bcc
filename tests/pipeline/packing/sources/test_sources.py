"""Every kind of source is packed whole: tables, inline Parquet, tars of ours and of others, several at once."""

import io
import json
import socket
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset

from pipeline.base.errors import BadImage, BitError, ConfigError, CorruptShard, Unreachable
from pipeline.dataset.dataset import Address, Dataset, open_dataset
from pipeline.dataset.schema import PLAN_SCHEMA, table_of
from pipeline.packing.fetch import fetch
from pipeline.packing.sources.open import open_sources
from pipeline.packing.sources.table import Columns
from pipeline.store.any_url import read_file
from pipeline.store.url import open_store
from tests.conftest import class_folders, jpeg, pack, picture, run_cli


def abouts(dataset: Dataset) -> list[dict[str, Any]]:
    """The JSON of every sample."""
    return [
        dataset.read_about(Address(shard["shard"], row))
        for shard in dataset.shards
        for row in range(shard["num_samples"])
    ]


def images(dataset: Dataset) -> list[bytes]:
    """The bytes of every picture, sorted."""
    return sorted(
        dataset.read_image(Address(shard["shard"], row))
        for shard in dataset.shards
        for row in range(shard["num_samples"])
    )


def originals(folder: Path) -> list[bytes]:
    return sorted(path.read_bytes() for path in folder.rglob("*.jpg"))


@pytest.mark.parametrize("as_struct", [True, False])
def test_parquet_with_image_bytes(small_folder: Path, tmp_path: Path, as_struct: bool) -> None:
    """The Hugging Face layout: a struct of bytes and path, class names in the schema's metadata."""
    paths = sorted(small_folder.rglob("*.jpg"))
    values: list[Any] = [{"bytes": p.read_bytes(), "path": p.name} if as_struct else p.read_bytes() for p in paths]
    names = ["class0", "class1", "class2"]
    table = pa.table(
        {"image": values, "label": [names.index(p.parent.name) for p in paths], "note": ["n"] * len(paths)}
    )
    features = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
    table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    (tmp_path / "in").mkdir()
    for part in range(3):
        pq.write_table(table.slice(part * 30, 30), tmp_path / "in" / f"train-{part}.parquet", row_group_size=7)
    for source in (tmp_path / "in" / "train-*.parquet", tmp_path / "in"):
        dataset = pack(source, str(tmp_path / f"set-{source.name[0]}"), shard_bytes=100_000, block_bytes=40_000)
        assert images(dataset) == originals(small_folder)
        assert dataset.classes == tuple(names)
        told = abouts(dataset)
        assert {about["source"] for about in told} == {
            f"train-{n}.parquet#{row}" for n in range(3) for row in range(30)
        }
        assert {about["note"] for about in told} == {"n"}


def write_tar(path: Path, members: list[tuple[str, bytes]], kind: int = tarfile.PAX_FORMAT) -> None:
    with tarfile.open(path, "w", format=kind) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(content), 1.5
            archive.addfile(info, io.BytesIO(content))


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
    told = {about["source"]: about for about in abouts(dataset)}
    assert told["001.tar#d/1-2"]["labels"] == [2]
    assert told["001.tar#d/1-2"]["caption"] == "c2"
    assert told["001.tar#d/1-2"]["width"] == 64  # ours, not theirs
    assert len(told) == 12


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


def test_several_sources_keep_their_names_apart(tmp_path: Path) -> None:
    for name in ("a", "b"):
        class_folders(tmp_path / name / "train", classes=2, each=2, seed=ord(name))
    done = run_cli("pipeline", "shard", f"one={tmp_path}/a/train", f"two={tmp_path}/b/train", str(tmp_path / "set"))
    assert done.returncode == 0, done.stderr
    told = abouts(open_dataset(str(tmp_path / "set")))
    assert {about["source"] for about in told} == {
        f"{name}/class{label}/{number:03d}.jpg" for name in ("one", "two") for label in (0, 1) for number in (0, 1)
    }
    with pytest.raises(ConfigError, match="NAME=URL"):
        open_sources([f"{tmp_path}/a/train", f"{tmp_path}/b/train"], Columns())


def test_a_class_list_numbers_folders(small_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "names").write_text("class2\nclass0\nother\nclass1\n")
    done = run_cli("pipeline", "shard", str(small_folder), str(tmp_path / "set"), "--classes", str(tmp_path / "names"))
    assert done.returncode == 0, done.stderr
    dataset = open_dataset(str(tmp_path / "set"))
    assert dataset.version.num_classes == 4
    assert {(about["source"][:6], about["labels"][0]) for about in abouts(dataset)} == {
        ("class0", 1),
        ("class1", 3),
        ("class2", 0),
    }


def test_pictures_without_labels(small_folder: Path, tmp_path: Path) -> None:
    paths = sorted(small_folder.rglob("*.jpg"))[:5]
    (tmp_path / "t.csv").write_text("image\n" + "\n".join(map(str, paths)) + "\n")
    done = run_cli("pipeline", "shard", "t.csv", "set", "--no-labels", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    dataset = open_dataset(str(tmp_path / "set"))
    assert dataset.version.num_classes == 0
    assert dataset.samples(0)["labels"].to_pylist() == [[]] * 5


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """A real HTTP server of a folder's files."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def test_urls_are_read_over_http_and_dead_ones_rejected(small_folder: Path, tmp_path: Path) -> None:
    with serving(small_folder) as url:
        names = [str(p.relative_to(small_folder)) for p in sorted(small_folder.rglob("*.jpg"))[:6]] + [
            "class0/gone.jpg"
        ]
        rows = [f"{url}/{name},{name[5]}" for name in names]
        (tmp_path / "t.csv").write_text("image,label\n" + "\n".join(rows) + "\n")
        done = run_cli(
            "pipeline", "shard", "t.csv", "set", "--max-reject-fraction", "0.5", "--log-jsonl", "log", cwd=tmp_path
        )
    assert done.returncode == 0, done.stderr
    dataset = open_dataset(str(tmp_path / "set"))
    assert dataset.version.num_samples == 6
    assert dataset.version.reject_reasons == {"missing": 1}


def test_tables_and_pictures_on_s3(small_folder: Path, s3_url: Callable[[str], str]) -> None:
    store = open_store(s3_url("in"))
    rows = []
    for path in sorted(small_folder.rglob("*.jpg"))[:12]:
        store.create(f"photos/{path.parent.name}-{path.name}", path.read_bytes())
        rows.append({"image": f"photos/{path.parent.name}-{path.name}", "label": path.parent.name})
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    store.create("list.parquet", sink.getvalue())
    done = run_cli("pipeline", "shard", s3_url("in/list.parquet"), s3_url("set"))
    assert done.returncode == 0, done.stderr
    assert images(open_dataset(s3_url("set"))) == originals(small_folder)[:0] + sorted(
        path.read_bytes() for path in sorted(small_folder.rglob("*.jpg"))[:12]
    )
    again = run_cli("pipeline", "shard", s3_url("set"), s3_url("again"))
    assert again.returncode == 0, again.stderr
    assert images(open_dataset(s3_url("again"))) == images(open_dataset(s3_url("set")))


def test_a_table_that_did_not_change_is_not_listed_again(small_folder: Path, tmp_path: Path) -> None:
    """A run goes on with the plan it began, even when reading the list again would give another."""
    source = class_folders(tmp_path / "in", each=2)
    rows = [f"{path},{path.parent.name}" for path in sorted(source.rglob("*.jpg"))]
    (tmp_path / "t.csv").write_text("image,label\n" + "\n".join(rows) + "\n")
    victim = source / "class0" / "000.jpg"
    good = victim.read_bytes()
    victim.write_bytes(b"not a picture")
    first = run_cli("pipeline", "shard", "t.csv", "set", cwd=tmp_path)
    assert first.returncode == 1
    victim.write_bytes(good)
    done = run_cli("pipeline", "shard", "t.csv", "set", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "planning" not in done.stderr
    assert len(list((tmp_path / "set" / "plans").iterdir())) == 1
    assert open_dataset(str(tmp_path / "set")).version.num_samples == 6


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", "image,label\na.jpg,1\nb.jpg,cat\n"),
        ("t.jsonl", '{"image": "a", "label": 1}\n{"image": "b", "label": "c"}\n'),
    ],
)
def test_numbers_and_names_in_one_column(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    if name == "t.jsonl":
        with pytest.raises(BitError, match="cannot be read as a table"):
            pack(tmp_path / name, str(tmp_path / "set"))
    else:  # a column of CSV with a word in it is a column of words
        (tmp_path / "a.jpg").write_bytes(jpeg(picture(1)))
        (tmp_path / "b.jpg").write_bytes(jpeg(picture(2)))
        assert pack(tmp_path / name, str(tmp_path / "set")).classes == ("1", "cat")


def test_json_of_others_with_nan_large_numbers_and_a_source_of_its_own(tmp_path: Path) -> None:
    text = '{"score": NaN, "id": 123456789012345678901234567890, "source": "flickr", "odd": "\\ud83d"}'
    members = [
        (f"{n}.{kind}", body) for n in range(4) for kind, body in (("jpg", jpeg(picture(n))), ("json", text.encode()))
    ]
    write_tar(tmp_path / "a.tar", members)
    told = abouts(pack(tmp_path / "a.tar", str(tmp_path / "set")))
    assert {about["source"] for about in told} == {f"a.tar#{n}" for n in range(4)}
    assert told[0]["score"] is None
    assert told[0]["id"] == 123456789012345678901234567890


@contextmanager
def stalling() -> Iterator[str]:
    """A server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_a_server_that_never_answers_costs_one_time_out_a_picture(tmp_path: Path) -> None:
    row = {"source": "", "base": 0, "path": None, "container": "file", "offset": 0, "num_bytes": -1, "labels": [],
           "extra": "{}", "run": None}  # fmt: skip
    with stalling() as url:
        rows = table_of([row | {"source": f"{url}/{number}.jpg"} for number in range(3)], PLAN_SCHEMA)
        found = [data for _, data in fetch(rows, [str(tmp_path)], [None], 10**6, source_seconds=0.5)]
    assert [data.reason for data in found if isinstance(data, BadImage)] == ["timeout"] * 3


def test_a_store_that_stalls_is_an_error_and_rejects_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"source": "a.jpg", "base": 0, "path": None, "container": "file", "offset": 0, "num_bytes": -1, "labels": [],
           "extra": "{}", "run": None}  # fmt: skip
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    with stalling() as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        with pytest.raises(Unreachable):
            list(fetch(table_of([row], PLAN_SCHEMA), ["s3://stalled/x"], [None], 10**6, source_seconds=0.5))


def test_a_file_of_unknown_size_above_the_limit_is_not_read_whole(tmp_path: Path) -> None:
    large = tmp_path / "large.jpg"
    large.write_bytes(bytes(50_000_000))
    with serving(tmp_path) as url:
        for place in (str(large), f"file://{large}"):
            assert len(read_file(place, 1000)) == 1001
        (tmp_path / "t.csv").write_text(f"image,label\n{large},1\n{url}/large.jpg,1\n")
        said = run_cli("pipeline", "shard", "t.csv", "set", "--max-image-mb", "1", cwd=tmp_path)
    assert "'too-large': 2" in said.stderr
