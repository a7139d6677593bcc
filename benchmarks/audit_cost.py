"""What an audit of 300 M upstream pictures against a test set of 60,000 costs, from the CPU time of its parts.

    python benchmarks/audit_cost.py ../shared/data/photos-200.tar ../shared/data/grocery.tar

Parts are timed on one thread by the CPU time of the process, several rounds each; the total is calculated.
"""

import argparse
import statistics
import tarfile
import time
from collections.abc import Callable

import numpy as np
import pyarrow as pa

from cluster.audit.base.tables import DEFAULT_RADIUS
from cluster.audit.search.crops import crop_codes, num_crops
from cluster.audit.search.embedding.models import load
from cluster.audit.search.fingerprints import pixel_digest
from cluster.audit.search.insets import inset_codes
from cluster.audit.search.join import CROPS_COLUMN, candidates, index_crops, index_downstream
from cluster.audit.search.variants import variant_codes
from cluster.audit.verify.evidence import verify_pair
from cluster.audit.verify.prepare import Prepared
from pipeline.image.decode import decode
from pipeline.image.fingerprint import fingerprint_of_image

_ROUNDS = 5
_UPSTREAM, _DOWNSTREAM = 300_000_000, 60_000
_JOIN_CODES = 100_000
_CROPPED, _CROP_CODES = 1_000, 2_000  # test pictures, and codes compared with their crops
_PAIRS = 20


def seconds_each(work: Callable[[], object], count: int) -> tuple[float, float, float]:
    """Return median, least and most CPU seconds of one of `count` items."""
    taken = []
    for _ in range(_ROUNDS):
        started = time.process_time()
        work()
        taken.append((time.process_time() - started) / count)
    return statistics.median(taken), min(taken), max(taken)


def codes(generator: np.random.Generator, count: int) -> pa.Table:
    """Return random codes: no worse for the search than real ones, which the join's own benchmark uses."""
    body = generator.integers(0, 256, (count, 32), dtype=np.uint8)
    rows = pa.array(np.arange(count, dtype=np.int32))
    return pa.table({"shard": pa.array(np.zeros(count, np.int32)), "row": rows,
                     "code": pa.array([code.tobytes() for code in body], pa.binary(32))})  # fmt: skip


def time_parts(images: list[bytes]) -> None:
    """Print what each part takes a picture or a pair."""
    pixels = [decode(data) for data in images]
    print(f"  {len(images)} pictures, median longer side {np.median([max(each.shape) for each in pixels]):.0f} px")
    embedder, one = load(), Prepared(pixels[0])
    others = images[1 : _PAIRS + 1]
    parts: dict[str, tuple[Callable[[], object], int]] = {
        "code and quality": (lambda: [fingerprint_of_image(data) for data in images], len(images)),
        "digest of pixels": (lambda: [pixel_digest(data) for data in images], len(images)),
        "variant codes": (lambda: [variant_codes(each) for each in pixels], len(images)),
        "codes of insets, with decoding": (lambda: [inset_codes(decode(data)) for data in images], len(images)),
        "codes of crops": (lambda: [crop_codes(each) for each in pixels], len(images)),
        "embedding": (lambda: [embedder.embed(each) for each in pixels[:_PAIRS]], _PAIRS),
        # As an audit does it: the test picture is prepared for all its candidates, each of them is decoded once.
        "verification of a pair": (
            lambda: [verify_pair(b"a", b"b", Prepared(decode(each)), one, 50, distance=50) for each in others],
            len(others),
        ),
    }
    for name, (work, count) in parts.items():
        middle, low, high = seconds_each(work, count)
        line = f"  {name}: {1000 * middle:.2f} ms ({1000 * low:.2f} to {1000 * high:.2f})"
        print(line + f", {middle * _UPSTREAM / 3600:,.0f} core hours for 300 M", flush=True)


def main() -> None:
    """Time the parts and print the total."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tars", nargs="+")
    parser.add_argument("--pictures", type=int, default=100)
    given = parser.parse_args()
    for path in given.tars:
        with tarfile.open(path) as tar:
            members = [member for member in tar if member.isfile()][: given.pictures]
            images = [tar.extractfile(member).read() for member in members]
        print(f"{path.rpartition('/')[2]}:")
        time_parts(images)
    generator = np.random.default_rng(0)
    index, upstream = index_downstream(codes(generator, _DOWNSTREAM), DEFAULT_RADIUS), codes(generator, _JOIN_CODES)
    middle, low, high = seconds_each(lambda: candidates(upstream, index, DEFAULT_RADIUS), _JOIN_CODES)
    print(f"join at radius {DEFAULT_RADIUS}: {1 / middle:,.0f} codes/s ({1 / high:,.0f} to {1 / low:,.0f}), "
          f"{middle * _UPSTREAM / 3600:.1f} core hours for 300 M x 60,000")  # fmt: skip
    bodies = [body.tobytes() for body in generator.integers(0, 256, (_CROPPED, num_crops() * 32), dtype=np.uint8)]
    cropped = codes(generator, _CROPPED).append_column(CROPS_COLUMN, pa.array(bodies, pa.binary()))
    few, by_crops = codes(generator, _CROP_CODES), index_crops(cropped, DEFAULT_RADIUS)
    middle, low, high = seconds_each(lambda: candidates(few, by_crops, DEFAULT_RADIUS), _CROP_CODES)
    rate = _CROPPED * num_crops() / 1e9
    print(f"join by crops: {rate / middle:.1f} G crops/s ({rate / high:.1f} to {rate / low:.1f}), "
          f"{middle * _DOWNSTREAM / _CROPPED * _UPSTREAM / 3600:,.0f} core hours for 300 M x 60,000")  # fmt: skip


if __name__ == "__main__":
    main()
