"""Of pictures within pictures, how many have an inset whose code is near the original's, and what the codes take.

    python benchmarks/insets.py ../shared/data [--half held-back]

Pictures are those of `audit_quality.py --suite real-life`. Thresholds of `cluster/audit/search/insets.py` were chosen
by this on the tuned half.
"""

import argparse
import time
from statistics import median

import numpy as np
from audit_quality import HALVES, altered, files
from real_life import KINDS

from cluster.audit.base.tables import DEFAULT_RADIUS
from cluster.audit.search.insets import inset_codes
from pipeline.image.decode import decode
from pipeline.image.fingerprint import fingerprint

_KINDS = ("collage", "screenshot", "inside another picture")


def main() -> None:
    """Print what is found of each kind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="folder of tars")
    parser.add_argument("--half", choices=HALVES, default=HALVES[0])
    given = parser.parse_args()
    count, pairs = len(files(given.data)[given.half]), altered(given.data, "real-life", given.half)
    assert set(_KINDS) <= set(KINDS)
    for kind in _KINDS:
        found, numbers, taken = 0, [], []
        for (own, _, up), (_, _, down) in zip(*pairs, strict=True):
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
