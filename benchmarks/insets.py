"""Of pictures within pictures, how many have an inset whose code is near the original's, and what the codes take.

    python benchmarks/insets.py ../shared/data [--half held-back]

Pictures are those of `audit_quality.py --suite real-life`, and such as no threshold was chosen by: pasted into another
picture with round corners, or turned by up to four degrees. Thresholds of `cluster/audit/search/insets.py` were chosen
by this on the tuned half.
"""

import argparse
import time
import zlib
from collections.abc import Iterator
from statistics import median

import numpy as np
from audit_quality import HALVES, altered, files
from PIL import Image, ImageDraw, ImageOps

from cluster.audit.base.tables import DEFAULT_RADIUS
from cluster.audit.search.insets import inset_codes
from pipeline.image.decode import decode, encode_jpeg
from pipeline.image.fingerprint import fingerprint

_KINDS = ("collage", "screenshot", "inside another picture")


def odd_pastes(folder: str, half: str) -> Iterator[tuple[str, bytes, bytes]]:
    """Yield the kind, the upstream and the downstream picture of pictures pasted otherwise than straight."""
    others = [Image.fromarray(decode(data)) for _, data in files(folder)["up"][::40]]
    for name, data in files(folder)[half]:
        image, draw = Image.fromarray(decode(data)), np.random.default_rng(zlib.crc32(f"{half} paste {name}".encode()))
        for kind in ("with round corners", "turned"):
            share, mask = draw.uniform(0.4, 0.65), Image.new("L", image.size, 255)
            if kind == "turned":
                angle = draw.uniform(1, 4)
                part, mask = (each.rotate(angle, Image.Resampling.BICUBIC, expand=True) for each in (image, mask))
            else:
                part, mask = image, Image.new("L", image.size, 0)
                box = (0, 0, image.width - 1, image.height - 1)
                ImageDraw.Draw(mask).rounded_rectangle(box, draw.uniform(0.05, 0.12) * min(image.size), fill=255)
            size = (round(part.width / share), round(part.height / share))
            out = ImageOps.fit(others[int(draw.integers(len(others)))], size)
            x, y = draw.uniform(0.02, 1 - share - 0.02, 2)
            out.paste(part, (round(x * size[0]), round(y * size[1])), mask)
            yield kind, encode_jpeg(np.asarray(out), int(draw.integers(70, 95))), data


def main() -> None:
    """Print what is found of each kind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="folder of tars")
    parser.add_argument("--half", choices=HALVES, default=HALVES[0])
    given = parser.parse_args()
    ups, downs = altered(given.data, "real-life", given.half)
    pairs = [(kind, up, down) for (kind, _, up), (_, _, down) in zip(ups, downs, strict=True)]
    pairs += odd_pastes(given.data, given.half)
    count = len(files(given.data)[given.half])
    for kind in (*_KINDS, *dict.fromkeys(kind for kind, *_ in pairs[len(ups) :])):
        found, numbers, taken = 0, [], []
        for own, up, down in pairs:
            if own == kind:
                pixels, started = decode(up), time.process_time()
                codes = np.frombuffer(b"".join(inset_codes(pixels)), np.uint8).reshape(-1, 32)
                taken.append(time.process_time() - started)
                numbers.append(len(codes))
                bits = np.bitwise_count(codes ^ np.frombuffer(fingerprint(decode(down))[0], np.uint8)).sum(axis=1)
                found += bool(len(bits)) and bits.min() <= DEFAULT_RADIUS
        print(f"{kind}: {found} of {count}, {np.mean(numbers):.1f} codes, {1000 * median(taken):.1f} ms")


if __name__ == "__main__":
    main()
