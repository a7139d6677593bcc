"""Our Huffman decoder beside libjpeg's: the same pixels from sound JPEGs, and damage is libjpeg's to judge."""

from pathlib import Path

from tests.conftest import jpeg, picture
from tests.pipeline.image.jpeg_region.fuzz import (
    Counts,
    fuzz,
    noise,
    noisy,
    noisy_images,
    written,
)

ROUNDS = 250  # 9,000 damaged images: a quarter of a minute of one core; fuzz.py makes as many as wanted


def counts(program: Path, rounds: int, images: list[bytes]) -> Counts:
    return fuzz(program, rounds, written(program.parent, images))


def test_ours_reads_what_libjpegs_reads_to_the_last_bit_and_leaves_damage_to_it(program: Path) -> None:
    images = noisy_images()
    found = counts(program, ROUNDS, images)
    assert found.sound == found.read == len(images)
    assert found.damaged == ROUNDS * len(images)
    assert 0.1 * found.damaged < found.read_damaged < found.damaged
    assert found.different == 0


def test_a_small_image_is_read_by_ours_once_its_tables_were_seen(program: Path) -> None:
    found = counts(program, 50, [jpeg(picture(0, 260, 300), 20)])
    assert (found.sound, found.read, found.different) == (1, 1, 0)


def test_scans_of_other_kinds_are_left_to_libjpeg(program: Path) -> None:
    others = [jpeg(noise(), progressive=True), jpeg(noise(), restart_marker_blocks=5)]
    assert counts(program, 50, others) == (2, 0, 100, 0, 0)


def test_an_image_without_an_end_is_left_to_libjpeg(program: Path) -> None:
    endless = noisy("444", 90).removesuffix(b"\xff\xd9")
    assert counts(program, 0, [endless] * 20) == (20, 0, 0, 0, 0)


def test_tables_that_differ_in_two_symbols_are_distinguished(program: Path) -> None:
    whole = noisy("444", 90)
    first_ac = whole.index(b"\x10\x00\x02\x01\x03") + 17  # symbols of the usual table, of codes of 2, 2 and 3 bits
    assert whole[first_ac : first_ac + 3] == b"\x01\x02\x03"
    swapped = whole[:first_ac] + b"\x02\x01" + whole[first_ac + 2 :]
    found = counts(program, 0, [whole, swapped, whole])
    assert (found.sound, found.read, found.different) == (3, 2, 0)
