"""Label tables are packed whole: any file format, image bytes or paths, names or numbers, local or remote."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pyarrow.parquet as pq
import pytest

from pipeline.base.errors import BitError
from pipeline.dataset.dataset import Address, open_dataset
from pipeline.store.url import open_store
from tests.conftest import class_folders, cli, jpeg, pack, picture, run_here
from tests.contents import abouts, images, originals
from tests.serving import serving


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_a_label_table_packs_what_it_lists(small_folder: Path, tmp_path: Path, kind: str) -> None:
    paths = sorted(str(path) for path in small_folder.rglob("*.jpg"))[::3]
    rows = [{"file": path, "kind": "dog" if n % 2 else "cat", "photographer": f"p{n}"} for n, path in enumerate(paths)]
    path = tmp_path / f"labels.{kind}"
    table = pa.Table.from_pylist(rows)
    if kind == "parquet":
        pyarrow.parquet.write_table(table, path)
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        options = pyarrow.csv.WriteOptions(delimiter="\t" if kind == "tsv" else ",")
        pyarrow.csv.write_csv(table, path, write_options=options)
    done = run_here("shard", str(path), str(tmp_path / "set"), "--image-column", "file", "--label-column", "kind")
    assert done.returncode == 0, done.stderr
    dataset = open_dataset(str(tmp_path / "set"))
    assert dataset.classes == ("cat", "dog")
    abouts = [dataset.read_about(Address(0, row)) for row in range(len(rows))]
    assert {(a["source"], a["labels"][0], a["photographer"]) for a in abouts} == {
        (row["file"], int(row["kind"] == "dog"), row["photographer"]) for row in rows
    }


def test_several_labels_a_picture_travel_with_it(small_folder: Path, tmp_path: Path) -> None:
    lines = [
        {"image": str(path), "label": [n % 5, 7]} for n, path in enumerate(sorted(small_folder.rglob("*.jpg"))[:10])
    ]
    (tmp_path / "many.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert run_here("shard", "many.jsonl", "set", cwd=tmp_path).returncode == 0
    dataset = open_dataset(str(tmp_path / "set"))
    assert dataset.version.num_classes == 8
    assert sorted(dataset.samples(0)["labels"].to_pylist()) == sorted(line["label"] for line in lines)


def test_class_names_that_look_like_numbers_stay_names(small_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "names").write_text("001\n002\n")
    pictures = sorted(small_folder.rglob("*.jpg"))[:2]
    (tmp_path / "t.csv").write_text(f"image,label\n{pictures[0]},002\n{pictures[1]},001\n")
    assert run_here("shard", "t.csv", "set", "--classes", "names", cwd=tmp_path).returncode == 0
    dataset = open_dataset(str(tmp_path / "set"))
    found = {
        dataset.read_about(Address(0, row))["source"]: dataset.samples(0)["labels"][row].as_py() for row in range(2)
    }
    assert found == {str(pictures[0]): [1], str(pictures[1]): [0]}


def test_numbers_that_json_does_not_know_become_null(small_folder: Path, tmp_path: Path) -> None:
    rows = [{"image": str(path), "label": 1, "score": float("nan")} for path in sorted(small_folder.rglob("*.jpg"))[:2]]
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    assert run_here("shard", "t.parquet", "set", cwd=tmp_path).returncode == 0
    assert open_dataset(str(tmp_path / "set")).read_about(Address(0, 0))["score"] is None


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
        found = abouts(dataset)
        assert {about["source"] for about in found} == {
            f"train-{n}.parquet#{row}" for n in range(3) for row in range(30)
        }
        assert {about["note"] for about in found} == {"n"}


def test_pictures_without_labels(small_folder: Path, tmp_path: Path) -> None:
    paths = sorted(small_folder.rglob("*.jpg"))[:5]
    (tmp_path / "t.csv").write_text("image\n" + "\n".join(map(str, paths)) + "\n")
    done = run_here("shard", "t.csv", "set", "--no-labels", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    dataset = open_dataset(str(tmp_path / "set"))
    assert dataset.version.num_classes == 0
    assert dataset.samples(0)["labels"].to_pylist() == [[]] * 5


def test_urls_are_read_over_http_and_dead_ones_rejected(small_folder: Path, tmp_path: Path) -> None:
    with serving(small_folder) as url:
        names = [str(p.relative_to(small_folder)) for p in sorted(small_folder.rglob("*.jpg"))[:6]] + [
            "class0/gone.jpg"
        ]
        rows = [f"{url}/{name},{name[5]}" for name in names]
        (tmp_path / "t.csv").write_text("image,label\n" + "\n".join(rows) + "\n")
        done = run_here("shard", "t.csv", "set", "--max-reject-fraction", "0.5", "--log-jsonl", "log", cwd=tmp_path)
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
    done = run_here("shard", s3_url("in/list.parquet"), s3_url("set"))
    assert done.returncode == 0, done.stderr
    assert images(open_dataset(s3_url("set"))) == originals(small_folder)[:0] + sorted(
        path.read_bytes() for path in sorted(small_folder.rglob("*.jpg"))[:12]
    )
    again = run_here("shard", s3_url("set"), s3_url("again"))
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
    first = run_here("shard", "t.csv", "set", cwd=tmp_path)
    assert first.returncode == 1
    victim.write_bytes(good)
    done = run_here("shard", "t.csv", "set", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "planning" not in done.stderr
    assert len(list((tmp_path / "set" / "plans").iterdir())) == 1
    assert open_dataset(str(tmp_path / "set")).version.num_samples == 6


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", "image,label\na.jpg,1\nb.jpg,cat\n", r"t\.csv, row 2 has 'cat', .*t\.csv, row 1 has '1'"),
        ("t.csv", "image,label\na.jpg,1\nb.jpg,NaN\n", r"t\.csv, row 2: label 'NaN' is neither"),
        ("t.csv", "image,label\na.jpg,\nb.jpg,\n", "all rows of column 'label' are empty"),
        ("t.csv", b"image,label\na.jpg,cat\nb.jpg,k\xe4fer\n", r"line 3 is not UTF-8 \('b.jpg,käfer'\)"),
        ("t.csv", "path,kind\na.jpg,1\n", "no column 'image'; it has path, kind; try --image-column 'path'"),
        ("t.csv", "image,kind\na.jpg,1\n", "try --label-column 'kind', or write --no-labels"),
        (
            "t.jsonl",
            '{"image": "a", "label": 1}\n{"image": "b", "label": "c"}\n',
            "cannot be read as a table",
        ),
    ],
)
def test_what_is_doubtful_in_a_table_is_refused_with_its_row(
    tmp_path: Path, name: str, content: str | bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(BitError, match=message):
        pack(tmp_path / name, str(tmp_path / "set"))
    assert not (tmp_path / "set" / "MANIFEST.json").exists()


def test_text_of_csv_stays_text_unless_the_whole_column_is_numbers(tmp_path: Path) -> None:
    rows = [
        ("00000", "0.0", "00501", "1", "x"),
        ("00001", "10.0", "10115", "2", "3"),
        ("00002", "", "94305", "1.5", ""),
    ]
    for name, *_ in rows:
        (tmp_path / name).write_bytes(jpeg(picture(int(name))))
    lines = ["image;label;zip;score;mixed", *(";".join(row) for row in rows)]
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    printed = cli("shard", tmp_path / "t.csv", tmp_path / "set")
    assert "1 image has no label: 00002" in printed
    found = {about["source"]: about for about in abouts(open_dataset(str(tmp_path / "set")))}
    assert {name: about["labels"] for name, about in found.items()} == {"00000": [0], "00001": [10], "00002": []}
    assert [found["00000"][name] for name in ("zip", "score", "mixed")] == ["00501", 1.0, "x"]
    assert found["00001"]["mixed"] == "3"


def test_tables_of_several_splits_are_refused(small_folder: Path, tmp_path: Path) -> None:
    table = pa.table({"image": [str(next(small_folder.rglob("*.jpg")))], "label": [1]})
    (tmp_path / "in" / "data").mkdir(parents=True)
    for name in ("train-0", "test-0"):
        pq.write_table(table, tmp_path / "in" / "data" / f"{name}.parquet")
    for source in (tmp_path / "in", tmp_path / "in" / "data" / "*.parquet"):
        printed = cli("shard", source, tmp_path / "set", code=2)
        assert "holds the splits test (test-0.parquet), train (train-0.parquet)" in printed
    assert "1 sample in" in cli("shard", tmp_path / "in" / "data" / "train-*.parquet", tmp_path / "set")
