"""What comes after the first packing: append, retry, repair, duplicates, gc, statistics, index."""

import itertools
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.base.errors import ConfigError, Conflict, NotFound
from pipeline.dataset.dataset import Address, Dataset, open_dataset
from pipeline.dataset.publish import Addition, publish
from pipeline.dataset.schema import BLOCK_SCHEMA, SHARD_SCHEMA
from pipeline.dataset.versions import published_version
from pipeline.image.transforms import EvaluationView
from pipeline.packing.commit import read_plan, record_key, shard_rows
from pipeline.packing.jobs import Job, Reporting, _pack_and_publish, plan_sources
from pipeline.packing.make_plan import store_plan
from pipeline.packing.plan import ShardConfig
from pipeline.packing.sources.open import open_sources
from pipeline.packing.sources.table import Columns
from pipeline.store.lease import Lease
from pipeline.store.url import open_store
from pipeline.streaming.order import OrderConfig
from pipeline.streaming.selection import Selection
from pipeline.streaming.stream import Stream
from pipeline.upkeep.verify import verify
from pipeline.work.pools import InProcess
from tests.conftest import class_folders, cli, jpeg, pack, picture


def sources(dataset: Dataset) -> Counter[str]:
    return Counter(
        dataset.read_about(Address(shard["shard"], row))["source"]
        for shard in dataset.shards
        for row in range(shard["num_samples"])
    )


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
    assert sources(dataset) == {str(p.relative_to(source)): 1 for p in source.rglob("*.jpg")}
    assert dataset.classes == ("class0", "class1", "class9")  # labels of the first version keep their numbers
    keys = list(
        itertools.chain.from_iterable(dataset.samples(n)["key"].to_pylist() for n in range(len(dataset.shards)))
    )
    assert len(set(keys)) == len(keys) == 15
    assert [shard["shard"] for shard in dataset.shards] == list(range(len(dataset.shards)))
    assert list(verify(dataset, "decode", InProcess())) == []
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
    assert sources(dataset)["more/class0/000.jpg"] == 1
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
    said = cli("retry-rejects", dest)
    dataset = open_dataset(dest)
    assert "version 2: 19 samples" in said
    assert [row["source"] for row in dataset.rejects.to_pylist()] == ["class1/005.jpg"]
    assert dataset.version.reject_reasons == {"truncated": 1}
    (source / "class1/005.jpg").write_bytes(good["class1/005.jpg"])
    cli("retry-rejects", dest)
    dataset = open_dataset(dest)
    assert dataset.version.num_rejects == 0
    assert sources(dataset) == {str(p.relative_to(source)): 1 for p in source.rglob("*.jpg")}
    for row in range(dataset.version.num_shards):
        assert all(label in ([0], [1]) for label in dataset.samples(row)["labels"].to_pylist())
    assert cli("retry-rejects", dest).startswith(f"published {dest} version 3")


def test_equal_pictures_are_packed_once_and_listed(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "in", each=8)
    for number in range(4):
        (source / "class2" / f"copy{number}.jpg").write_bytes((source / "class0" / f"{number:03d}.jpg").read_bytes())
    said = cli("shard", source, tmp_path / "set", "--skip-duplicates", "--shard-mb", 0.05, "--workers", 2)
    assert "24 samples" in said
    assert "4 duplicates left out" in said
    dataset = open_dataset(str(tmp_path / "set"))
    kept = sources(dataset)
    listed = pq.read_table(tmp_path / "set" / "plans" / dataset.version.plan_ids[0] / "duplicates.parquet")
    assert sorted([*kept, *listed["source"].to_pylist()]) == sorted(
        str(p.relative_to(source)) for p in source.rglob("*.jpg")
    )
    bodies = Counter((source / name).read_bytes() for name in kept)
    assert set(bodies.values()) == {1}
    assert cli("shard", source, tmp_path / "set", "--skip-duplicates", "--shard-mb", 0.05).count("24 samples") == 1


def test_append_leaves_out_pictures_that_the_dataset_has_under_other_names(tmp_path: Path) -> None:
    old = class_folders(tmp_path / "old", each=6)
    (old / "class2" / "copy.jpg").write_bytes((old / "class0" / "001.jpg").read_bytes())  # so there are two plans
    cli("shard", old, tmp_path / "set", "--skip-duplicates", "--shard-mb", 0.05)
    new = tmp_path / "new"
    for name in ("class1", "class2"):
        (new / name).mkdir(parents=True)
    held = (old / "class0" / "000.jpg").read_bytes()
    fresh = jpeg(picture(900))
    for name, body in {"a.jpg": held, "b.jpg": fresh, "c.jpg": fresh, "d.jpg": jpeg(picture(901))}.items():
        (new / "class1" / name).write_bytes(body)
    cli("gc", tmp_path / "set", "--abandoned-runs", "--older-than-hours", 0, "--delete")  # keeps what is compared with
    assert "3 duplicates left out" in cli("append", new, tmp_path / "set")  # with the one before
    dataset = open_dataset(str(tmp_path / "set"))
    assert dataset.version.num_samples == 20
    first, second = dataset.version.plan_ids
    listed = pq.read_table(tmp_path / "set" / "plans" / second / "duplicates.parquet").to_pylist()
    store = open_store(str(tmp_path / "set"))
    whole = read_plan(store, read_plan(store, first).slimmed_from or "")
    row_of = {row["source"]: row for row in listed}
    assert row_of["class1/a.jpg"]["same_as_plan"] == whole.plan_id
    rows = pa.concat_tables(shard_rows(store, whole, number) for number in range(whole.num_shards))
    assert rows["source"][row_of["class1/a.jpg"]["same_as_row"]].as_py() == "class0/000.jpg"
    assert len(row_of) == 2
    (new / "class2" / "e.jpg").write_bytes(held)
    (new / "class2" / "f.jpg").write_bytes(fresh)
    for _ in range(2):
        assert "nothing new; 2 pictures have the bytes of others" in cli("append", new, tmp_path / "set")
    assert open_dataset(str(tmp_path / "set")).version == dataset.version


def test_an_addition_does_not_make_older_fingerprints_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as earlier:
        earlier.setattr("pipeline.dataset.publish.DESCRIPTOR_VERSION", "dct256-sign/1")
        pack(class_folders(tmp_path / "old", each=2), str(tmp_path / "set"))
    new = tmp_path / "new" / "class0"
    new.mkdir(parents=True)
    (new / "later.jpg").write_bytes(jpeg(picture(77)))
    cli("append", new.parent, tmp_path / "set")
    version = open_dataset(str(tmp_path / "set")).version
    assert (version.version, version.descriptor) == (2, "dct256-sign/1")


def test_append_needs_the_digests_of_what_it_compares_with(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "in", each=2)
    (source / "class1" / "copy.jpg").write_bytes((source / "class0" / "000.jpg").read_bytes())
    cli("shard", source, tmp_path / "set", "--skip-duplicates")
    store = open_store(str(tmp_path / "set"))
    plan = read_plan(store, open_dataset(str(tmp_path / "set")).version.plan_ids[0])
    store.delete(f"plans/{plan.slimmed_from}/plan.json")
    (source / "class0" / "later.jpg").write_bytes(jpeg(picture(78)))
    assert "has no digests of its pictures any more" in cli("append", source, tmp_path / "set", code=2)


def test_of_two_publishers_one_gets_a_conflict(small_dataset: Dataset, tmp_path: Path) -> None:
    """Versions are swung by compare-and-swap: two appends at once cannot both replace version 1."""
    store = open_store(str(tmp_path / "set"))
    source = class_folders(tmp_path / "in", each=2)
    pack(source, str(tmp_path / "set"))
    before = published_version(store)

    def addition(plan_id: str) -> Addition:
        nothing = SHARD_SCHEMA.empty_table(), BLOCK_SCHEMA.empty_table(), ()
        return Addition(plan_id, "train", *nothing, False, (), 3, 0, True)

    def attempt(plan_id: str) -> Any:
        try:
            return publish(store, before, addition(plan_id))
        except Conflict as error:
            return error

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(attempt, ["a" * 16, "b" * 16, "c" * 16, "d" * 16]))
    assert sum(isinstance(result, Conflict) for result in results) == 3
    after = published_version(store)
    assert after is not None
    assert after.version in results
    assert open_dataset(str(tmp_path / "set"), 1).version == before.version


def test_indexed_tars_stay_as_they_are_and_can_be_streamed(tmp_path: Path, small_dataset: Dataset) -> None:
    """Tars of others become a dataset in place; pictures that cannot be used are listed, not lost."""
    import webdataset  # noqa: PLC0415

    root = tmp_path / "web"
    (root / "part").mkdir(parents=True)
    with webdataset.ShardWriter(str(root / "part" / "w-%03d.tar"), maxcount=5, verbose=0) as writer:
        for number in range(12):
            data = jpeg(picture(number)) if number != 7 else b"not a picture"
            writer.write({"__key__": f"d.x/{number:04d}", "png" if number % 2 else "jpg": data, "cls": number % 3})
    before = {path: path.read_bytes() for path in root.rglob("*.tar")}
    said = cli("index", root, "--workers", 2, "--block-mib", 0.02)
    assert "11 samples in 3 tars, 1 rejected {'not-an-image': 1}" in said
    dataset = open_dataset(str(root))
    assert {path: path.read_bytes() for path in root.rglob("*.tar")} == before
    assert dataset.version.num_classes == 3
    assert list(verify(dataset, "decode", InProcess())) == []
    stream = Stream(Selection(dataset), OrderConfig(batch_size=11, num_lanes=1), EvaluationView(8))
    batch = next(stream)
    stream.close()
    keys = [dataset.sample(address)["key"] for address in batch.addresses]
    found = dict(zip(keys, batch.labels, strict=True))
    assert found == {f"d.x/{n:04d}": (n % 3,) for n in range(12) if n != 7}
    assert "version 1" in cli("index", root, "--block-mib", 0.02)
    assert "was indexed, not packed" in cli("append", small_dataset.store.url, root, code=2)


def test_opening_a_manifest_of_131072_shards_reads_only_what_is_asked(tmp_path: Path) -> None:
    dataset = pack(class_folders(tmp_path / "in", each=2), str(tmp_path / "set"))
    row = dataset.shards[0]
    assert dataset.shards[-1] == row
    assert list(dataset.shards) == [row]
    with pytest.raises(IndexError):
        dataset.shards[1]


def test_commands_on_nothing_say_so(tmp_path: Path) -> None:
    for command in (["append", str(tmp_path)], ["retry-rejects"], ["repair"], ["stats"], ["export"]):
        said = cli(*command, tmp_path / "nowhere", code=1)
        assert "holds no published dataset" in said
    assert "holds no .tar file" in cli("index", class_folders(tmp_path / "in", each=1), code=1)


def test_an_older_format_is_named(tmp_path: Path) -> None:
    (tmp_path / "MANIFEST.json").write_text('{"format": "bit-wds/1"}')
    with pytest.raises(ConfigError, match="is of format bit-wds/1"):
        open_dataset(str(tmp_path))
    with pytest.raises(NotFound):
        open_dataset(str(tmp_path / "elsewhere"))


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
    assert sources(dataset) == {str(p.relative_to(source)): 1 for p in source.rglob("*.jpg")}
    assert "-r1" in dataset.shards[0]["path"]
    assert list(verify(dataset, "decode", InProcess())) == []


def test_a_stricter_run_beside_a_published_one_takes_nothing_back(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "in", classes=2, each=5)
    (source / "class1" / "003.jpg").write_bytes(b"broken")
    with tempfile.TemporaryDirectory() as scratch:
        job = Job(open_store(str(tmp_path / "set")), InProcess(), Path(scratch))
        opened = open_sources([str(source)], Columns())
        plan = store_plan(job.store, plan_sources(job, opened, ShardConfig()))  # planned while the other still ran
        pack(source, str(tmp_path / "set"), max_reject_fraction=0.5)
        version = _pack_and_publish(job, plan, None, Lease(job.store))
    assert version == open_dataset(str(tmp_path / "set")).version
    assert list(verify(open_dataset(str(tmp_path / "set")), "decode", InProcess())) == []


def test_leaving_out_duplicates_goes_on_after_a_kill_and_says_the_same_again(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "in", classes=2, each=10)
    for number in range(5):
        (source / "class1" / f"copy{number}.jpg").write_bytes((source / "class0" / f"{number:03d}.jpg").read_bytes())
    table = tmp_path / "t.csv"
    table.write_text("image,label\n" + "".join(f"{p},{p.parent.name}\n" for p in sorted(source.rglob("*.jpg"))))
    command = ["shard", str(table), str(tmp_path / "set"), "--skip-duplicates", "--shard-mb", "0.03"]
    pipeline = [str(Path(sys.executable).parent / "pipeline"), *command]
    with subprocess.Popen(pipeline, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not list((tmp_path / "set").glob("plans/*/digests/*")):
            time.sleep(0.002)
        process.kill()
    for _ in range(2):
        assert "20 samples" in cli(*command)
    extra = source / "class0" / "new.jpg"
    extra.write_bytes(jpeg(picture(500)))
    with table.open("a") as file:
        file.write(f"{extra},class0\n")
    assert "25 rows have names that the dataset has" in cli("append", table, tmp_path / "set")
    assert open_dataset(str(tmp_path / "set")).version.num_samples == 21  # no duplicate comes back


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
            _pack_and_publish(replace(job, reporting=reporting), plan, None, Lease(job.store))
    assert published_version(job.store) is None


def test_the_same_sources_in_another_order_are_the_same_dataset(tmp_path: Path) -> None:
    for name in ("a", "b"):
        class_folders(tmp_path / name, classes=2, each=3, seed=ord(name))
    first = cli("shard", tmp_path / "a", tmp_path / "b", tmp_path / "set")
    assert cli("shard", tmp_path / "b", tmp_path / "a", tmp_path / "set") == first.partition("packing")[0]
