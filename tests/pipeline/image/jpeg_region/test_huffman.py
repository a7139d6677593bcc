"""Our Huffman decoder beside libjpeg's: the same pixels from sound JPEGs, and damage is libjpeg's to judge."""

import subprocess
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import simplejpeg

from tests.conftest import jpeg, picture

ONE_SCAN = ["444", "422", "420", "440", "411", "Gray"]


class Counts(NamedTuple):
    """What huffman_check.c prints."""

    sound: int
    read: int
    damaged: int
    read_damaged: int
    different: int


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both decoders side by side, built so that a read or write out of place ends the program."""
    source, program = Path(__file__).with_name("huffman_check.c"), tmp_path_factory.mktemp("huffman") / "check"
    checks = ["-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    done = subprocess.run(["cc", *checks, "-o", program, source, "-ljpeg"], capture_output=True, text=True, check=False)
    if "no jpegint.h" in done.stderr:
        pytest.skip("this system's libjpeg comes without jpegint.h: our decoder is not built in")
    assert done.returncode == 0, done.stderr
    return program


def counts(program: Path, rounds: int, pictures: list[bytes]) -> Counts:
    """Compare the decoders on the pictures, in turn, and on `rounds` damaged copies of each."""
    files = [program.with_name(f"{number}.jpg") for number in range(len(pictures))]
    for file, data in zip(files, pictures, strict=True):
        file.write_bytes(data)
    done = subprocess.run([program, str(rounds), *files], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return Counts(*map(int, done.stdout.split()))


def noise(seed: int = 0) -> np.ndarray:
    """Return a picture with so much in it that tables are worth making for it alone."""
    return np.random.default_rng(seed).integers(0, 256, (260, 300, 3), np.uint8)


def noisy(kind: str, quality: int) -> bytes:
    """Return a JPEG of some subsampling, or with Huffman tables made for it."""
    if kind == "own tables":
        return jpeg(noise(quality), quality, optimize=True)
    pixels, colorspace = (noise(quality)[..., :1], "GRAY") if kind == "Gray" else (noise(quality), "RGB")
    return bytes(simplejpeg.encode_jpeg(pixels.copy(), quality, colorspace=colorspace, colorsubsampling=kind))


def test_ours_reads_what_libjpegs_reads_to_the_last_bit_and_leaves_damage_to_it(program: Path) -> None:
    # Tables made for a picture stand between others, so those that a thread keeps change all the time.
    pictures = [noisy(kind, quality) for quality in (20, 90, 100) for one in ONE_SCAN for kind in (one, "own tables")]
    found = counts(program, 80, pictures)
    assert found.sound == found.read == len(pictures)
    assert found.damaged == 80 * len(pictures)
    assert 0.1 * found.damaged < found.read_damaged < found.damaged
    assert found.different == 0


def test_a_small_picture_is_read_by_ours_once_its_tables_were_seen(program: Path) -> None:
    found = counts(program, 50, [jpeg(picture(0, 260, 300), 20)])
    assert (found.sound, found.read, found.different) == (1, 1, 0)


def test_scans_of_other_kinds_are_left_to_libjpeg(program: Path) -> None:
    others = [jpeg(noise(), progressive=True), jpeg(noise(), restart_marker_blocks=5)]
    assert counts(program, 50, others) == (2, 0, 100, 0, 0)


def test_a_picture_without_an_end_is_left_to_libjpeg(program: Path) -> None:
    endless = noisy("444", 90).removesuffix(b"\xff\xd9")
    assert counts(program, 0, [endless] * 20) == (20, 0, 0, 0, 0)


def test_tables_that_differ_in_two_symbols_are_told_apart(program: Path) -> None:
    whole = noisy("444", 90)
    first_ac = whole.index(b"\x10\x00\x02\x01\x03") + 17  # symbols of the usual table, of codes of 2, 2 and 3 bits
    assert whole[first_ac : first_ac + 3] == b"\x01\x02\x03"
    swapped = whole[:first_ac] + b"\x02\x01" + whole[first_ac + 2 :]
    found = counts(program, 0, [whole, swapped, whole])
    assert (found.sound, found.read, found.different) == (3, 2, 0)
