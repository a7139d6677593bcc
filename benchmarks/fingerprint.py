"""Fingerprints beside PDQ, decoding included, on one core; and how far codes move when less is decoded.

    python benchmarks/fingerprint.py ../shared/data/photos-200.tar

Ours reads and checks all of the JPEG and transforms its luma at a fraction of the size, and, as packing does, whole.
PDQ (`pdqhash`, in an environment of its own) takes RGB pixels from simplejpeg, the fastest decoder here. Contenders
take turns. 256 px pictures are resized from the photos.
"""

import argparse
import io
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from peers import peer_python
from PIL import Image
from side_by_side import compare

from pipeline.image.decode import read_jpeg_header
from pipeline.image.fingerprint import fingerprint_of_image, fingerprint_of_jpeg

REPEATS = 3  # of the photos, in a round
PEER = """
import sys, time, pathlib, pdqhash, simplejpeg
images = [path.read_bytes() for path in sorted(pathlib.Path(sys.argv[1]).iterdir())]
for line in sys.stdin:
    started = time.perf_counter()
    for _ in range(int(line)):
        for data in images:
            pdqhash.compute(simplejpeg.decode_jpeg(data, colorspace="RGB"))
    print(time.perf_counter() - started, flush=True)
"""


def shrunk(data: bytes, side_px: int) -> bytes:
    """Return the JPEG with its longer side at `side_px`."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    factor = side_px / max(image.size)
    sink = io.BytesIO()
    image.resize(tuple(round(side * factor) for side in image.size), Image.Resampling.BICUBIC).save(
        sink, "JPEG", quality=92
    )
    return sink.getvalue()


def ours(images: list[bytes], take: Callable[[bytes], object]) -> tuple[int, float]:
    """Return the number of fingerprints and the seconds they took."""
    started = time.perf_counter()
    for _ in range(REPEATS):
        for data in images:
            take(data)
    return REPEATS * len(images), time.perf_counter() - started


def whole(data: bytes) -> tuple[bytes, int]:
    """Return the fingerprint that packing takes."""
    return fingerprint_of_jpeg(data, read_jpeg_header(data))


def moved(images: list[bytes]) -> np.ndarray:
    """Return the bits by which decoding at a fraction of the size moves each code from the one that packing takes."""
    pairs = [(fingerprint_of_image(data)[0], whole(data)[0]) for data in images]
    codes = np.frombuffer(b"".join(code for pair in pairs for code in pair), np.uint8).reshape(-1, 2, 32)
    return np.bitwise_count(codes[:, 0] ^ codes[:, 1]).sum(axis=1)


def main() -> None:
    """Time both at two sizes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, help="tar of JPEG photos of about 500 px")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    with tarfile.open(given.photos) as tar:
        photos = [tar.extractfile(member).read() for member in tar if member.isfile()]
    python = peer_python("pdqhash", "pdqhash==0.2.8", "simplejpeg==1.9.0", "numpy")
    for title, images in (("photos of about 500 px", photos), ("256 px", [shrunk(data, 256) for data in photos])):
        with tempfile.TemporaryDirectory() as folder:
            for number, data in enumerate(images):
                Path(folder, f"{number:04d}.jpg").write_bytes(data)
            peer = subprocess.Popen(
                [python, "-c", PEER, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )

            def pdq(peer: subprocess.Popen = peer, count: int = len(images)) -> tuple[int, float]:
                print(REPEATS, file=peer.stdin, flush=True)
                return REPEATS * count, float(peer.stdout.readline())

            pdq()  # its imports and first calls
            contenders = {
                "PDQ, full decode": pdq,
                "ours": partial(ours, images, fingerprint_of_image),
                "ours as packing does": partial(ours, images, whole),
            }
            compare(
                f"{title}, median {np.median([len(data) for data in images]) / 1e3:.0f} kB",
                contenders,
                "images",
                given.rounds,
            )
            peer.stdin.close()
            peer.wait()
        bits = moved(images)
        print(f"codes of packing and of fingerprinting only: {np.median(bits):.0f} bits apart in the median, "
              f"{np.percentile(bits, 95):.0f} at the 95th percentile, at most {bits.max()}")  # fmt: skip


if __name__ == "__main__":
    main()
