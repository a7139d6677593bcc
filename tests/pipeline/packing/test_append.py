"""What comes after the first packing: append, retry, repair, duplicates, gc, statistics, index."""

import itertools
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.base.console import Reporting
from pipeline.base.errors import Conflict
from pipeline.dataset.dataset import open_dataset
from pipeline.dataset.versions import published_version
from pipeline.image.transforms import EvaluationView
from pipeline.packing.commit import record_key
from pipeline.packing.jobs import Job, _pack_and_publish, plan_sources
from pipeline.packing.make_plan import store_plan
from pipeline.packing.plan import ShardConfig
from pipeline.packing.sources.open import open_sources
from pipeline.packing.sources.table import Columns
from pipeline.store.lease import Lease
from pipeline.store.url import open_store
from pipeline.streaming.order import OrderConfig
from pipeline.streaming.selection import Selection
from pipeline.streaming.stream import Stream
from pipeline.work.pools import InProcess
from tests.conftest import class_folders, cli, jpeg, pack, picture
from tests.contents import faults, original_names, source_counts


@pytest.fixture(params=["local", "s3"])
def dest(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "set")
    url: Callable[[str], str] = request.getfixturevalue("s3_url")
    return url("set")


def test_append_packs_what_is_new_into_a_version_of_its_own(tmp_path: Path, dest: str) -> None:
    source = class_folders(tmp_path / "in", classes=2, each=6)
    first = pack(source, dest, shard_bytes=40_000, block_bytes=20_000)
    reader = Stream(Selection(open_dataset(dest)), OrderConfig(batch_size=4, num_lanes=2), EvaluationView(8))
    before = [next(reader).addresses for _ in range(2)]
    (source / "class9").mkdir()
    for number in range(3):
        (source / "class9" / f"{number}.jpg").write_bytes(jpeg(picture(900 + number)))
    cli("append", source, dest)
    dataset = open_dataset(dest)
    assert dataset.version.version == 2
    assert dataset.version.plan_ids[0] == first.version.plan_ids[0]
    assert source_counts(dataset) == dict.fromkeys(original_names(source), 1)
    assert dataset.classes == ("class0", "class1", "class9")  # labels of the first version keep their numbers
    keys = list(
        itertools.chain.from_iterable(dataset.samples(n)["key"].to_pylist() for n in range(len(dataset.shards)))
    )
    assert len(set(keys)) == len(keys) == 15
    assert [shard["shard"] for shard in dataset.shards] == list(range(len(dataset.shards)))
    assert faults(dataset) == []
    # The version that was opened before, and the reader that runs on it, stay what they were.
    assert open_dataset(dest, 1).version == first.version
    again = Stream(Selection(open_dataset(dest, 1)), OrderConfig(batch_size=4, num_lanes=2), EvaluationView(8))
    assert [next(again).addresses for _ in range(2)] == before
    next(reader)
    for stream in (reader, again):
        stream.close()
    assert "version 2" in cli("append", source, dest)  # nothing new, nothing done
    assert "has the versions 1 to 2" in cli("inspect", dest, "--version", 7, code=1)


def test_append_refuses_a_changed_picture_and_other_numbering(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "in", classes=2, each=2)
    pack(source, str(tmp_path / "set"))
    (source / "class0" / "000.jpg").write_bytes(jpeg(picture(77), quality=40))
    assert "write NAME=URL" in cli("append", source, tmp_path / "set", code=2)
    cli("append", f"more={source}", tmp_path / "set")
    dataset = open_dataset(str(tmp_path / "set"))
    assert dataset.version.num_samples == 8
    assert source_counts(dataset)["more/class0/000.jpg"] == 1
    numbers = tmp_path / "t.csv"
    numbers.write_text(f"image,label\n{source}/class0/001.jpg,1\n")
    pack(numbers, str(tmp_path / "numbered"))
    assert "has numbers for labels" in cli("append", source, tmp_path / "numbered", code=2)


def test_rejects_are_retried_alone(tmp_path: Path, dest: str) -> None:
    source = class_folders(tmp_path / "in", classes=2, each=10)
    good = {}
    for name in ("class0/003.jpg", "class1/004.jpg", "class1/005.jpg"):
        good[name] = (source / name).read_bytes()
        (source / name).write_bytes(good[name][:-300])
    cli("shard", source, dest, "--max-reject-fraction", 0.2, "--shard-mb", 0.05)
    assert open_dataset(dest).rejects.num_rows == 3
    for name in ("class0/003.jpg", "class1/004.jpg"):
        (source / name).write_bytes(good[name])
    printed = cli("retry-rejects", dest)
    dataset = open_dataset(dest)
    assert "version 2: 19 samples" in printed
    assert [row["source"] for row in dataset.rejects.to_pylist()] == ["class1/005.jpg"]
    assert dataset.version.reject_reasons == {"truncated": 1}
    (source / "class1/005.jpg").write_bytes(good["class1/005.jpg"])
    cli("retry-rejects", dest)
    dataset = open_dataset(dest)
    assert dataset.version.num_rejects == 0
    assert source_counts(dataset) == dict.fromkeys(original_names(source), 1)
    for row in range(dataset.version.num_shards):
        assert all(label in ([0], [1]) for label in dataset.samples(row)["labels"].to_pylist())
    assert cli("retry-rejects", dest).startswith(f"published {dest} version 3")


def test_commands_on_nothing_say_so(tmp_path: Path) -> None:
    for command in (["append", str(tmp_path)], ["retry-rejects"], ["repair"], ["stats"], ["export"]):
        printed = cli(*command, tmp_path / "nowhere", code=1)
        assert "holds no published dataset" in printed
    assert "holds no .tar file" in cli("index", class_folders(tmp_path / "in", each=1), code=1)


def test_a_picture_mended_between_two_attempts_ends_up_in_the_dataset(tmp_path: Path, dest: str) -> None:
    """The first attempt left a tar without the broken picture and without a record; the next one writes its own."""
    source = class_folders(tmp_path / "in", classes=2, each=5)
    victim = source / "class1" / "003.jpg"
    good = victim.read_bytes()
    victim.write_bytes(bytes(len(good)))
    cli("shard", source, dest, code=1)
    store = open_store(dest)
    for entry in list(store.list("commits/")):  # as if it had been killed before the record
        store.delete(entry.key)
    victim.write_bytes(good)
    cli("shard", source, dest)
    dataset = open_dataset(dest)
    assert source_counts(dataset) == dict.fromkeys(original_names(source), 1)
    assert "-r1" in dataset.shards[0]["path"]
    assert faults(dataset) == []


def test_a_stricter_run_beside_a_published_one_takes_nothing_back(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "in", classes=2, each=5)
    (source / "class1" / "003.jpg").write_bytes(b"broken")
    with tempfile.TemporaryDirectory() as scratch:
        job = Job(open_store(str(tmp_path / "set")), InProcess(), Path(scratch))
        opened = open_sources([str(source)], Columns())
        Lease.take(job.store)
        plan = store_plan(job.store, plan_sources(job, opened, ShardConfig()))  # planned while the other still ran
        pack(source, str(tmp_path / "set"), max_reject_fraction=0.5)
        version = _pack_and_publish(job, plan, None, Lease.take(job.store))
    assert version == open_dataset(str(tmp_path / "set")).version
    assert faults(open_dataset(str(tmp_path / "set"))) == []


def test_what_somebody_removed_is_missed_before_it_is_published(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "in", each=4)
    with tempfile.TemporaryDirectory() as scratch:
        job = Job(open_store(str(tmp_path / "set")), InProcess(), Path(scratch))
        plan = store_plan(job.store, plan_sources(job, open_sources([str(source)], Columns()), ShardConfig()))

        def remove(event: str, **values: Any) -> None:
            if event == "shard":
                job.store.delete(record_key(plan.plan_id, 0))

        reporting = Reporting(event=remove)
        with pytest.raises(Conflict, match="somebody removed"):
            _pack_and_publish(replace(job, reporting=reporting), plan, None, Lease.take(job.store))
    assert published_version(job.store) is None


def test_the_same_sources_in_another_order_are_the_same_dataset(tmp_path: Path) -> None:
    for name in ("a", "b"):
        class_folders(tmp_path / name, classes=2, each=3, seed=ord(name))
    first = cli("shard", tmp_path / "a", tmp_path / "b", tmp_path / "set")
    assert cli("shard", tmp_path / "b", tmp_path / "a", tmp_path / "set") == first.partition("packing")[0]
