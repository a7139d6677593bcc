"""Equal images are packed once and the others listed; which of them stays follows from the plan alone."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, strategies as st

from pipeline.dataset.dataset import open_dataset
from pipeline.dataset.schema import DIGEST_BYTES
from pipeline.packing.commit import read_plan, shard_rows
from pipeline.packing.duplicates import _later_copies
from pipeline.packing.label_conflicts import find_conflicts, hash_labels
from pipeline.store.url import open_store
from tests.conftest import class_folders, cli, jpeg, picture
from tests.contents import original_names, source_counts
from tests.waiting import wait_until

# What images of the same bytes share, and what those share that cannot be read.
DIGESTS = [bytes([number, *range(DIGEST_BYTES - 1)]) for number in (0, 1, 16, 17, 255)] + [bytes(DIGEST_BYTES)]


@given(st.lists(st.sampled_from(DIGESTS), max_size=30), st.integers(0, 30))
def test_of_equal_digests_the_first_stays_and_unread_images_are_equal_to_none(digests: list[bytes], start: int) -> None:
    array = np.frombuffer(b"".join(digests), np.uint8).reshape(-1, DIGEST_BYTES)
    dropped, kept_instead = _later_copies(array, min(start, len(digests)))
    expected = [
        (position - start, digests.index(digest))
        for position, digest in enumerate(digests)
        if position >= start and any(digest) and digests.index(digest) < position
    ]
    assert list(zip(dropped.tolist(), kept_instead.tolist(), strict=True)) == expected


def test_equal_pictures_are_packed_once_and_listed(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "in", each=8)
    for number in range(4):
        (source / "class2" / f"copy{number}.jpg").write_bytes((source / "class0" / f"{number:03d}.jpg").read_bytes())
    printed = cli("shard", source, tmp_path / "set", "--skip-duplicates", "--shard-mb", 0.05, "--workers", 2)
    assert "24 samples" in printed
    assert "4 duplicates left out" in printed
    dataset = open_dataset(str(tmp_path / "set"))
    kept = source_counts(dataset)
    listed = pq.read_table(tmp_path / "set" / "plans" / dataset.version.plan_ids[0] / "duplicates.parquet")
    assert sorted([*kept, *listed["source"].to_pylist()]) == original_names(source)
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
        assert "nothing new; 2 pictures with the bytes of others" in cli("append", new, tmp_path / "set")
    assert open_dataset(str(tmp_path / "set")).version == dataset.version


def test_append_leaves_out_pictures_that_were_rejected_once_and_retried(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "in", classes=2, each=10)
    late = source / "class0" / "003.jpg"
    whole = late.read_bytes()
    late.write_bytes(whole[:-300])
    cli("shard", source, tmp_path / "set", "--skip-duplicates", "--max-reject-fraction", 0.2)
    late.write_bytes(whole)
    cli("retry-rejects", tmp_path / "set")
    assert open_dataset(str(tmp_path / "set")).version.num_samples == 20
    new = tmp_path / "new" / "class0"
    new.mkdir(parents=True)
    (new / "again.jpg").write_bytes(whole)
    for _ in range(2):
        assert "nothing new; 1 picture with the bytes of others" in cli("append", new.parent, tmp_path / "set")
    (new / "other.jpg").write_bytes(jpeg(picture(901)))
    cli("append", new.parent, tmp_path / "set")
    assert open_dataset(str(tmp_path / "set")).version.num_samples == 21


def test_append_needs_the_digests_of_what_it_compares_with(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "in", each=2)
    (source / "class1" / "copy.jpg").write_bytes((source / "class0" / "000.jpg").read_bytes())
    cli("shard", source, tmp_path / "set", "--skip-duplicates")
    store = open_store(str(tmp_path / "set"))
    plan = read_plan(store, open_dataset(str(tmp_path / "set")).version.plan_ids[0])
    store.delete(f"plans/{plan.slimmed_from}/plan.json")
    (source / "class0" / "later.jpg").write_bytes(jpeg(picture(78)))
    assert "has no digests of its pictures any more" in cli("append", source, tmp_path / "set", code=2)


def test_leaving_out_duplicates_goes_on_after_a_kill_and_says_the_same_again(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "in", classes=2, each=10)
    for number in range(5):
        (source / "class1" / f"copy{number}.jpg").write_bytes((source / "class0" / f"{number:03d}.jpg").read_bytes())
    table = tmp_path / "t.csv"
    table.write_text("image,label\n" + "".join(f"{p},{p.parent.name}\n" for p in sorted(source.rglob("*.jpg"))))
    command = ["shard", str(table), str(tmp_path / "set"), "--skip-duplicates", "--shard-mb", "0.03"]
    pipeline = [str(Path(sys.executable).parent / "pipeline"), *command]
    with subprocess.Popen(pipeline, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        wait_until(lambda: list((tmp_path / "set").glob("plans/*/digests/*")), "the first digests")
        process.kill()
    for _ in range(2):
        assert "20 samples" in cli(*command)
    extra = source / "class0" / "new.jpg"
    extra.write_bytes(jpeg(picture(500)))
    with table.open("a") as file:
        file.write(f"{extra},class0\n")
    assert "25 rows have names that the dataset has" in cli("append", table, tmp_path / "set")
    assert open_dataset(str(tmp_path / "set")).version.num_samples == 21  # no duplicate comes back


def test_an_image_that_could_not_be_read_once_is_compared_again(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "in", classes=2, each=4)
    copy = source / "class1" / "copy.jpg"
    table = tmp_path / "t.csv"
    table.write_text(
        "image,label\n" + "".join(f"{p},{p.parent.name}\n" for p in [*sorted(source.rglob("*.jpg")), copy])
    )
    for _ in range(2):
        cli("shard", table, tmp_path / "set", "--skip-duplicates", code=1)
    copy.write_bytes((source / "class1" / "000.jpg").read_bytes())
    for _ in range(2):
        printed = cli("shard", table, tmp_path / "set", "--skip-duplicates")
        assert "8 samples" in printed
        assert "1 duplicate left out" in printed


@pytest.mark.parametrize("options", [[], ["--skip-duplicates"]])
def test_the_same_image_with_two_labels_is_counted_and_shown(tmp_path: Path, options: list[str]) -> None:
    source = class_folders(tmp_path / "in", each=4)
    for number in range(2):
        (source / "class2" / f"copy{number}.jpg").write_bytes((source / "class0" / f"{number:03d}.jpg").read_bytes())
    (source / "class1" / "same.jpg").write_bytes((source / "class1" / "000.jpg").read_bytes())  # and the same label
    for _ in range(2):
        printed = cli("shard", source, tmp_path / "set", "--shard-mb", 0.02, *options)
        assert "4 images have bytes that come with different labels, such as" in printed
        assert "(class0)" in printed
        assert "(class2)" in printed


@pytest.mark.parametrize("options", [[], ["--skip-duplicates"]])
def test_append_compares_labels_with_earlier_versions_and_tells_what_is_new(tmp_path: Path, options: list[str]) -> None:
    old = class_folders(tmp_path / "old", each=4)
    (old / "class2" / "copy.jpg").write_bytes((old / "class0" / "000.jpg").read_bytes())
    assert "2 images have bytes" in cli("shard", old, tmp_path / "set", "--shard-mb", 0.02, *options)
    new = class_folders(tmp_path / "new", each=1, seed=500)
    assert "different labels" not in cli("append", f"more={new}", tmp_path / "set")  # what is known is not told again
    (new / "class1" / "again.jpg").write_bytes((old / "class2" / "003.jpg").read_bytes())
    printed = cli("append", f"more={new}", tmp_path / "set")
    assert "2 images have bytes that come with different labels, such as class2/003.jpg (class2) and " in printed
    assert "more/class1/again.jpg (class1)" in printed


def test_append_reads_images_again_that_an_earlier_release_left_uncompared(tmp_path: Path) -> None:
    old = class_folders(tmp_path / "old", classes=1, each=4)
    cli("shard", old, tmp_path / "set", "--skip-duplicates")
    [stored] = (tmp_path / "set").glob("plans/*/digests/*.bin")
    stored.write_bytes(bytes(DIGEST_BYTES) + stored.read_bytes()[DIGEST_BYTES:])
    new = tmp_path / "new" / "class0"
    new.mkdir(parents=True)
    for path in old.rglob("*.jpg"):
        (new / f"copy-{path.name}").write_bytes(path.read_bytes())
    assert "nothing new; 4 pictures with the bytes of others" in cli("append", tmp_path / "new", tmp_path / "set")


_LABELLED = st.lists(st.tuples(st.integers(0, 5), st.lists(st.integers(0, 2), max_size=2)), max_size=30)


@given(_LABELLED, st.integers(0, 30))
def test_conflicts_are_what_a_dictionary_finds(rows: list[tuple[int, list[int]]], num_known: int) -> None:
    digests = np.array([[image] * 15 + [0] for image, _ in rows], np.uint8).reshape(-1, 16)
    hashes = hash_labels(pa.array([labels for _, labels in rows], pa.list_(pa.int32())))
    found = find_conflicts(digests, hashes, num_known)
    new = {image for image, labels in rows[num_known:] if labels}
    labels_of: dict[int, set[tuple[int, ...]]] = {}
    for image, labels in rows:
        if labels:
            labels_of.setdefault(image, set()).add(tuple(sorted(set(labels))))
    assert found.num_images == sum(bool(labels) and len(labels_of[image]) > 1 for image, labels in rows if image in new)
    for one, other in found.pairs:
        assert rows[one][0] == rows[other][0]
        assert sorted(set(rows[one][1])) != sorted(set(rows[other][1]))
