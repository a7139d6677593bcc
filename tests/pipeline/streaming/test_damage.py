"""Damage: found, reported, replaced by the same samples on any ranks and workers; never a silent loss."""

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.stack.services import Stack
from pipeline.base.errors import CorruptShard, Unreachable
from pipeline.store.local import LocalStore
from pipeline.streaming.stream import LoaderConfig
from tests.soak.damage import (
    NETWORK_KINDS,
    ROOMY,
    Epoch,
    Line,
    all_keys,
    cached_damage,
    epoch_of,
    network_damage,
    suffer,
    upload,
)
from tests.soak.damages import DAMAGES, SHARD, Damage, damaged_copy, make, tar_of

Sets = tuple[Path, Path]
# What webdataset yields of 200 samples where it is to go on, and what it raises if not.
BY_WEBDATASET = {
    "nothing": ("200", "none"),
    "shard truncated at a sample's border": ("182", "none"),
    "shard truncated inside a picture": ("182", "ReadError"),
    "one bit flipped in a picture": ("200", "none"),
    "one bit flipped in a tar header": ("182", "none"),
    "shard missing": ("175", "FileNotFoundError"),
    "shard replaced by another sound tar": ("200", "none"),
}


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Sets:
    return make(tmp_path_factory.mktemp("damage"))


@pytest.fixture(scope="module")
def plain(sets: Sets) -> Epoch:
    """An epoch of the sound dataset."""
    return epoch_of(str(sets[0]))


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.name)
def test_each_damaged_sample_is_reported_and_replaced_alike_on_any_ranks_and_no_other_is_lost(
    damage: Damage, sets: Sets, tmp_path: Path
) -> None:
    line = suffer(damage, sets, tmp_path / "set")
    assert (line.due, line.handed_out, line.lost) == (200, 200, 0)
    assert line.replaced == line.reported
    measured = (line.webdataset_samples, line.webdataset_error)
    assert BY_WEBDATASET.get(damage.name, measured) == measured


def test_damaged_blocks_of_the_disk_cache_are_read_anew(sets: Sets, tmp_path: Path) -> None:
    assert cached_damage(sets, tmp_path).reported == 0


@pytest.mark.parametrize("kind", NETWORK_KINDS)
def test_a_network_that_damages_now_and_then_gives_the_same_batches_and_no_bad_sample(
    kind: str, s3: Stack, s3_url: Callable[[str], str], sets: Sets, plain: Epoch
) -> None:
    upload(sets[0], s3_url("set"))
    assert network_damage(kind, s3_url("set"), plain) == Line(
        f"network: {kind} now and then", 200, 200, 0, 0, "-", "-", 0
    )


def test_behind_a_network_that_damages_too_only_the_samples_damaged_in_storage_are_reported(
    s3: Stack, s3_url: Callable[[str], str], sets: Sets, tmp_path: Path
) -> None:
    [damage] = [damage for damage in DAMAGES if damage.name == "one bit flipped in a picture"]
    dataset, expected = damaged_copy(damage, sets, tmp_path / "set")
    alone = epoch_of(dataset)
    assert alone.reported() == expected
    upload(tmp_path / "set", s3_url("set"))
    assert network_damage("flipped byte", s3_url("set"), alone).reported == 1


def test_a_damaged_sample_is_due_again_in_the_next_epoch_and_replaced_by_another_draw(
    sets: Sets, tmp_path: Path
) -> None:
    [damage] = [damage for damage in DAMAGES if damage.name == "one bit flipped in a picture"]
    dataset, expected = damaged_copy(damage, sets, tmp_path / "set")
    first, second = epoch_of(dataset), epoch_of(dataset, num_epochs=2)
    assert first.reported() == second.reported() == expected
    assert [bad.epoch for bad in (*first.bad, *second.bad)] == [0, 1]
    assert not second.lost()
    [bad] = first.bad
    assert 0 <= bad.step < 10
    assert bad.path == dataset.shard_path(SHARD)
    assert bad.substitute in all_keys() - set(expected)


@pytest.mark.parametrize(("num_bad", "stops"), [(16, False), (17, True)])
def test_above_sixteen_and_the_allowed_share_the_stream_stops_and_says_what_to_do(
    num_bad: int, stops: bool, sets: Sets, tmp_path: Path
) -> None:
    dataset, _ = damaged_copy(DAMAGES[0], sets, tmp_path / "set")
    start = dataset.samples(SHARD)["image_offset"][25 - num_bad].as_py()
    tar = tar_of(dataset)
    tar.chmod(0o644)
    tar.write_bytes(tar.read_bytes()[:start])
    allowed = epoch_of(dataset, loader=ROOMY)
    assert len(allowed.bad) == num_bad
    if not stops:
        assert epoch_of(dataset, loader=LoaderConfig()).is_like(allowed)
        return
    for num_ranks, num_workers in ((1, 0), (1, 2)):
        with pytest.raises(CorruptShard, match=r"17 of [\d,]+ samples were bad") as raised:
            epoch_of(dataset, num_ranks, LoaderConfig(num_workers=num_workers))
        message = str(raised.value)
        assert re.search(
            rf"{dataset.shard_path(SHARD)} \(truncated: .*`pipeline verify` and `pipeline repair`", message
        )
        assert "raise max_bad_fraction (0.001)" in message


def test_damage_of_everything_stops_at_once_whatever_is_allowed(sets: Sets, tmp_path: Path) -> None:
    dataset, _ = damaged_copy(DAMAGES[0], sets, tmp_path / "set")
    for number in range(len(dataset.shards)):
        tar_of(dataset, number).unlink()
    with pytest.raises(CorruptShard, match=r"no sample of two windows near .*pipeline verify"):
        epoch_of(dataset, loader=LoaderConfig(max_bad_fraction=1.0))


def test_the_size_and_the_sidecar_of_a_damaged_shard_are_asked_for_until_storage_answers(
    sets: Sets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [damage] = [damage for damage in DAMAGES if damage.name == "one bit flipped in a picture"]
    dataset, expected = damaged_copy(damage, sets, tmp_path / "set")
    refused: Counter[str] = Counter()

    def now_and_then(name: str) -> None:
        plain = getattr(LocalStore, name)

        def answer(store: LocalStore, key: str) -> Any:
            refused[key] += 1
            if refused[key] <= 2:
                raise Unreachable(f"no answer for {key}")
            return plain(store, key)

        monkeypatch.setattr(LocalStore, name, answer)

    assert (len(dataset.shards), dataset.blocks.num_rows) > (0, 0)
    row = dataset.shards[SHARD]
    now_and_then("num_bytes")
    now_and_then("read")
    assert epoch_of(dataset).reported() == expected
    assert min(refused[row["path"]], refused[row["sidecar"]]) > 2
