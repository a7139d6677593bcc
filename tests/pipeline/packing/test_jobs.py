"""Packing: deterministic bytes, exactly once, readable by the tools users have."""

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import datasets
import psutil
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
import webdataset
from PIL import Image

from pipeline.base.errors import ConfigError, TooManyRejects
from pipeline.dataset.dataset import Address, Dataset, open_dataset
from pipeline.image.decode import is_jpeg
from pipeline.store.url import open_store
from pipeline.upkeep.statistics import class_counts
from pipeline.upkeep.verify import LEVELS, Fault
from pipeline.upkeep.verify import verify as verify_on
from pipeline.work.pools import InProcess
from tests.conftest import class_folders, jpeg, pack, picture, run_cli, shared_data


def tree(folder: Path) -> dict[str, bytes]:
    """All objects but leases, which tell who ran when, and what a killed writer left aside."""
    found = {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
    return {name: body for name, body in found.items() if not name.startswith("leases/") and "/.tmp-" not in f"/{name}"}


def verify(dataset: Dataset, level: str) -> list[Fault]:
    return list(verify_on(dataset, level, InProcess()))


def tars(dataset: Dataset, root: Path) -> list[Path]:
    return [root / shard["path"] for shard in dataset.shards]


def test_the_bytes_do_not_depend_on_workers_or_store(
    small_folder: Path, tmp_path: Path, s3_url: Callable[[str], str]
) -> None:
    options = ["--shard-mb", "0.15", "--block-mib", "0.04"]
    for name, workers in (("one", "1"), ("three", "3")):
        assert (
            run_cli(
                "pipeline", "shard", str(small_folder), str(tmp_path / name), *options, "--workers", workers
            ).returncode
            == 0
        )
    assert run_cli("pipeline", "shard", str(small_folder), s3_url("set"), *options).returncode == 0
    first = tree(tmp_path / "one")
    assert len([name for name in first if name.endswith(".tar")]) > 3
    assert first == tree(tmp_path / "three")
    store = open_store(s3_url("set"))
    found = {entry.key: store.read(entry.key) for entry in store.list("") if not entry.key.startswith("leases/")}
    assert first == found


def test_every_picture_is_in_exactly_once_with_its_label(small_folder: Path, small_dataset: Dataset) -> None:
    sources = {}
    for shard in small_dataset.shards:
        for row in range(shard["num_samples"]):
            about = small_dataset.read_about(Address(shard["shard"], row))
            image = small_dataset.read_image(Address(shard["shard"], row))
            assert image == (small_folder / about["source"]).read_bytes()
            assert about["labels"] == [int(about["source"][5])]
            sources[about["source"]] = sources.get(about["source"], 0) + 1
    assert sources == {str(p.relative_to(small_folder)): 1 for p in small_folder.rglob("*.jpg")}
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


def test_real_photos_round_trip_with_sidecars_below_60_bytes_a_sample(tmp_path: Path) -> None:
    with tarfile.open(shared_data("tiny-imagenet-100.tar")) as archive:
        members = [m for m in archive.getmembers() if m.name.startswith("train/")][:4000]
        archive.extractall(tmp_path, members=members, filter="data")
    dataset = pack(tmp_path / "train", str(tmp_path / "set"))
    assert sum(shard["sidecar_bytes"] for shard in dataset.shards) / dataset.version.num_samples <= 60
    assert verify(dataset, "decode") == []


def test_pictures_that_are_not_jpeg_become_jpeg(tmp_path: Path) -> None:
    (tmp_path / "in" / "a").mkdir(parents=True)
    Image.fromarray(picture(1)).save(tmp_path / "in" / "a" / "x.png")
    dataset = pack(tmp_path / "in", str(tmp_path / "set"))
    assert is_jpeg(dataset.read_image(Address(0, 0)))


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "in", each=60)
    options = ["--shard-mb", "0.1", "--block-mib", "0.04"]
    assert run_cli("pipeline", "shard", str(source), str(tmp_path / "calm"), *options).returncode == 0
    command = [str(Path(sys.executable).parent / "pipeline"), "shard", str(source), str(tmp_path / "killed"), *options]
    for wanted in (1, 3, 5):
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            while process.poll() is None and len(list((tmp_path / "killed").glob("commits/*/*"))) < wanted:
                time.sleep(0.002)
            process.send_signal(signal.SIGKILL)
        assert not (tmp_path / "killed" / "MANIFEST.json").exists()
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    assert tree(tmp_path / "killed") == tree(tmp_path / "calm")


def test_a_second_run_does_nothing_and_says_the_same(small_folder: Path, tmp_path: Path) -> None:
    first = run_cli("pipeline", "shard", str(small_folder), str(tmp_path / "set"))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "set").rglob("*")}
    second = run_cli("pipeline", "shard", str(small_folder), str(tmp_path / "set"))
    assert first.stdout == second.stdout
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "set").rglob("*")}


def test_another_source_cannot_be_mixed_in(small_folder: Path, tmp_path: Path) -> None:
    pack(small_folder, str(tmp_path / "set"))
    other = class_folders(tmp_path / "other", each=2, seed=7)
    with pytest.raises(ConfigError, match="other inputs"):
        pack(other, str(tmp_path / "set"))


def test_rejects_are_listed_counted_and_capped(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "in", each=20)
    (source / "class0" / "bad.jpg").write_bytes(b"not a picture")
    (source / "class1" / "cut.jpg").write_bytes(jpeg(picture(1))[:-100])
    with pytest.raises(TooManyRejects, match="2 of 62 pictures cannot be used"):
        pack(source, str(tmp_path / "strict"))
    assert not (tmp_path / "strict" / "MANIFEST.json").exists()
    allowed = run_cli("pipeline", "shard", str(source), str(tmp_path / "set"), "--max-reject-fraction", "0.05")
    assert allowed.returncode == 0
    dataset = open_dataset(str(tmp_path / "set"))
    rejects = dataset.rejects.to_pylist()
    assert {(row["source"], row["reason"]) for row in rejects} == {
        ("class0/bad.jpg", "not-an-image"),
        ("class1/cut.jpg", "truncated"),
    }
    assert dataset.version.num_samples + dataset.version.num_rejects == 62
    assert "class1/cut.jpg: truncated" in run_cli("pipeline", "inspect", str(tmp_path / "set")).stdout


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
    done = run_cli(
        "pipeline", "shard", str(path), str(tmp_path / "set"), "--image-column", "file", "--label-column", "kind"
    )
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
    assert run_cli("pipeline", "shard", "many.jsonl", "set", cwd=tmp_path).returncode == 0
    dataset = open_dataset(str(tmp_path / "set"))
    assert dataset.version.num_classes == 8
    assert sorted(dataset.samples(0)["labels"].to_pylist()) == sorted(line["label"] for line in lines)


def test_dry_run_writes_nothing(small_folder: Path, tmp_path: Path) -> None:
    done = run_cli("pipeline", "shard", str(small_folder), str(tmp_path / "set"), "--dry-run")
    assert done.returncode == 0
    assert "90 pictures, 3 classes, 1 shards" in done.stdout
    assert "PUT requests" in done.stdout
    assert not (tmp_path / "set").exists()


def test_the_log_has_every_shard(small_folder: Path, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    run_cli(
        "pipeline", "shard", str(small_folder), str(tmp_path / "set"), "--shard-mb", "0.15", "--log-jsonl", str(log)
    )
    events = [json.loads(line) for line in log.read_text().splitlines()]
    assert [event["event"] for event in events[:1] + events[-1:]] == ["plan", "published"]
    assert sum(e["num_samples"] for e in events if e["event"] == "shard") == 90


@pytest.mark.parametrize("damage", ["missing tar", "missing sidecar", "cut", "flipped", "swapped"])
def test_verify_finds_each_damage_at_its_level(small_folder: Path, tmp_path: Path, damage: str) -> None:
    dataset = pack(small_folder, str(tmp_path / "set"), shard_bytes=150_000)
    tar, sidecar = (tmp_path / "set" / dataset.shards[1][name] for name in ("path", "sidecar"))
    body = bytearray(tar.read_bytes())
    first_level = {"missing tar": 0, "missing sidecar": 0, "cut": 1, "flipped": 2, "swapped": 2}[damage]
    for path in (tar, sidecar):
        path.chmod(0o644)
    if damage == "missing tar":
        tar.unlink()
    elif damage == "missing sidecar":
        sidecar.unlink()
    elif damage == "cut":
        tar.write_bytes(body[:-4096])
    elif damage == "flipped":
        body[len(body) // 2] ^= 4
        tar.write_bytes(body)
    else:
        tar.write_bytes(bytes(len(body)))
    for depth, level in enumerate(LEVELS):
        faults = verify(open_dataset(str(tmp_path / "set")), level)
        assert bool(faults) == (depth >= first_level), level
    done = run_cli("pipeline", "verify", str(tmp_path / "set"))
    assert done.returncode == 1
    assert "FAULT" in done.stdout


def test_ctrl_c_says_how_to_go_on(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "in", each=200)
    command = [str(Path(sys.executable).parent / "pipeline"), "shard", str(source), "set", "--shard-mb", "0.1"]
    with subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    ) as process:
        while not list((tmp_path / "set").glob("commits/*/*")):
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGINT)
        said = process.communicate()[1]
    assert process.returncode == 130
    assert "run the same command again" in said
    assert "Traceback" not in said


def test_a_mended_picture_is_packed_on_the_next_run(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "in", each=3)
    victim = source / "class1" / "001.jpg"
    good = victim.read_bytes()
    victim.write_bytes(bytes(len(good)))
    assert run_cli("pipeline", "shard", str(source), str(tmp_path / "set")).returncode == 1
    victim.write_bytes(good)
    assert run_cli("pipeline", "shard", str(source), str(tmp_path / "set")).returncode == 0
    assert open_dataset(str(tmp_path / "set")).version.num_samples == 9


def test_linked_folders_odd_names_and_moved_sources_lose_nothing(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "in", each=2)
    (source / "class0").rename(tmp_path / "elsewhere")
    (source / "cat: #1? 100%").symlink_to(tmp_path / "elsewhere")
    dataset = pack(source, str(tmp_path / "set"))
    assert dataset.classes == ("cat: #1? 100%", "class1", "class2")
    assert dataset.version.num_samples == 6
    (tmp_path / "moved").symlink_to(source)
    assert pack(tmp_path / "moved", str(tmp_path / "set")).version == dataset.version


def test_an_unreadable_class_folder_is_an_error_not_a_gap(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root reads everything")
    source = class_folders(tmp_path / "in", each=2)
    (source / "class1").chmod(0)
    assert run_cli("pipeline", "shard", str(source), str(tmp_path / "set")).returncode == 1


def test_class_names_that_look_like_numbers_stay_names(small_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "names").write_text("001\n002\n")
    pictures = sorted(small_folder.rglob("*.jpg"))[:2]
    (tmp_path / "t.csv").write_text(f"image,label\n{pictures[0]},002\n{pictures[1]},001\n")
    assert run_cli("pipeline", "shard", "t.csv", "set", "--classes", "names", cwd=tmp_path).returncode == 0
    dataset = open_dataset(str(tmp_path / "set"))
    found = {
        dataset.read_about(Address(0, row))["source"]: dataset.samples(0)["labels"][row].as_py() for row in range(2)
    }
    assert found == {str(pictures[0]): [1], str(pictures[1]): [0]}


def test_numbers_that_json_does_not_know_become_null(small_folder: Path, tmp_path: Path) -> None:
    rows = [{"image": str(path), "label": 1, "score": float("nan")} for path in sorted(small_folder.rglob("*.jpg"))[:2]]
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    assert run_cli("pipeline", "shard", "t.parquet", "set", cwd=tmp_path).returncode == 0
    assert open_dataset(str(tmp_path / "set")).read_about(Address(0, 0))["score"] is None


def test_packing_processes_end_when_the_run_is_killed(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "in", each=300)
    command = [
        str(Path(sys.executable).parent / "pipeline"),
        "shard",
        str(source),
        "set",
        "--shard-mb",
        "0.1",
        "--workers",
        "2",
    ]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while not list((tmp_path / "set").glob("commits/*/*")):
            time.sleep(0.01)
        family = psutil.Process(process.pid).children(recursive=True)
        process.kill()
    gone, alive = psutil.wait_procs(family, timeout=20)
    assert len(gone) >= 2
    assert alive == []


@pytest.mark.parametrize("name", ["blocks", "classes"])
def test_verify_checks_the_tables_of_the_manifest(small_folder: Path, tmp_path: Path, name: str) -> None:
    dataset = pack(small_folder, str(tmp_path / "set"))
    path = tmp_path / "set" / getattr(dataset.version, name)
    path.chmod(0o644)
    path.write_text('["x"]')
    faults = verify(open_dataset(str(tmp_path / "set")), "exists")
    assert [fault.path for fault in faults] == [getattr(dataset.version, name)]
