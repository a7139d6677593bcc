"""Which decoder reads Huffman codes: ours only those of trusted images, beside a known libjpeg, unless switched off."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from pipeline.image.jpeg_region.region import DECODER_VARIABLE, decode_region, libjpeg_version
from tests.pipeline.image.jpeg_region.fuzz import noisy

pytestmark = pytest.mark.usefixtures("program")
BOX = (0, 0, 300, 260)
PHOTO = noisy("420", 90)
DIGEST = hashlib.sha256(decode_region(PHOTO, BOX).pixels.tobytes()).hexdigest()
# In a process of its own, since a libjpeg is loaded and the switch is read once.
PROGRAM = """
import hashlib, sys
from pipeline.image.jpeg_region.region import decode_region, libjpeg_version
region = decode_region(sys.stdin.buffer.read(), (0, 0, 300, 260), is_trusted=True)
print(libjpeg_version() or "none", region.decoder, hashlib.sha256(region.pixels.tobytes()).hexdigest(), sep=chr(10))
"""


class Decoded(NamedTuple):
    version: str
    decoder: str
    digest: str


def run(environment: dict[str, str]) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-c", PROGRAM]
    return subprocess.run(command, input=PHOTO, env={**os.environ, **environment}, capture_output=True, check=False)


def decoded(**environment: str) -> Decoded:
    done = run(environment)
    assert done.returncode == 0, done.stderr.decode()
    return Decoded(*done.stdout.decode().splitlines())


def loaded_libjpeg() -> Path:
    """Return the file of the libjpeg that region.c is linked with."""
    assert libjpeg_version()
    paths = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines()}
    return Path(next(path for path in paths if Path(path).name.startswith("libjpeg.so.")))


def test_ours_reads_trusted_images_only() -> None:
    assert decode_region(PHOTO, BOX, is_trusted=True).decoder == "ours"
    assert decode_region(PHOTO, BOX, is_trusted=False).decoder == "libjpeg"
    assert decode_region(PHOTO, BOX).decoder == "libjpeg"


@pytest.mark.parametrize(
    ("mark", "decoder"),
    [
        (b"libjpeg-turbo version 2.1.", "ours"),
        (b"libjpeg-turbo version 3.1.", "ours"),
        (b"libjpeg-turbo version 3.2.", "libjpeg"),
        (b"libjpeg-turbo version 1.5.", "libjpeg"),
        (b"libjpeg-other version 2.1.", "libjpeg"),
    ],
)
def test_beside_a_libjpeg_that_it_does_not_know_ours_stands_aside(mark: bytes, decoder: str, tmp_path: Path) -> None:
    libjpeg, release = loaded_libjpeg(), b"libjpeg-turbo version " + libjpeg_version()[:4].encode()
    body, soname = libjpeg.read_bytes(), ".".join(libjpeg.name.split(".")[:3])
    assert body.count(release) == 1
    (tmp_path / soname).write_bytes(body.replace(release, mark))
    there = decoded(LD_LIBRARY_PATH=str(tmp_path))
    expected = mark.removeprefix(b"libjpeg-turbo version ").decode() if b"turbo" in mark else "none"
    assert there.version.startswith(expected)
    assert there[1:] == (decoder, DIGEST)


def test_the_switch_turns_ours_off() -> None:
    assert decoded(**{DECODER_VARIABLE: ""})[1:] == ("ours", DIGEST)
    assert decoded(**{DECODER_VARIABLE: "libjpeg"})[1:] == ("libjpeg", DIGEST)


def test_a_switch_of_an_unknown_value_is_rejected() -> None:
    done = run({DECODER_VARIABLE: "Libjpeg"})
    assert done.returncode
    assert b"ConfigError: BIT_JPEG_DECODER is 'Libjpeg'; set it to libjpeg, or leave it out" in done.stderr
