"""The exact Hamming join beside FAISS: the same pairs, rates at two radii, and an estimate for 300 M codes.

    python benchmarks/join.py ../shared/data --scratch /dev/shm --codes 10000000
    python benchmarks/join.py ../shared/data --scratch /dev/shm --only large --codes 100000000

The 60,000 indexed codes are those of real pictures (tars of JPEG) and, if there are too few, of their mirror images.
The codes that stream through have the statistics of real ones: each bit is the sign of a normal variable with the mean
and the correlations of the real codes' bits. 20,000 of 10 M are planted: an indexed code with 0 to 80 bits flipped.
"""

import argparse
import multiprocessing
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import NormalDist, median
from typing import Any

import faiss
import numpy as np
from side_by_side import environment, peak_bytes

from cluster.audit.search.hamming import build_index, distances, parity_words, plain_words, search
from pipeline.image.decode import decode_luma
from pipeline.image.fingerprint import dihedral_codes, fingerprint_of_luma, luma64

NUM_INDEXED = 60_000
BLOCK = 500_000  # codes per round
PLANTED_PER_BLOCK = 1_000
RADII = (31, 62)


def real_codes(folder: Path, scratch: Path) -> np.ndarray:
    """Return the distinct codes of all JPEGs in the folder's tars, shape (pictures, 32); computed once."""
    kept = scratch / "real-codes.npy"
    if not kept.exists():
        codes = []
        for path in sorted(folder.glob("*.tar")):
            with tarfile.open(path) as tar:
                for member in tar:
                    if member.isfile():
                        data = tar.extractfile(member).read()
                        codes.append(fingerprint_of_luma(luma64(decode_luma(data)))[0])
        np.save(kept, np.unique(np.frombuffer(b"".join(codes), np.uint8).reshape(-1, 32), axis=0))
    return np.load(kept)


def indexed_codes(real: np.ndarray) -> np.ndarray:
    """Return 60,000 codes, of the pictures and of their mirror images."""
    turned = np.concatenate(dihedral_codes(real)[[0, 2]])
    assert len(turned) >= NUM_INDEXED, "too few pictures"
    return np.ascontiguousarray(turned[:NUM_INDEXED])


class CodeGenerator:
    """Codes with the statistics of real ones, block by block; a block is a function of its number."""

    def __init__(self, real: np.ndarray, indexed: np.ndarray) -> None:
        bits = np.unpackbits(real, axis=1).astype(np.float32)
        share = bits.mean(axis=0).clip(1e-6, 1 - 1e-6)
        self.cut = np.array([NormalDist().inv_cdf(float(1 - s)) for s in share], np.float32)
        self.cut[0] = np.inf  # the constant frequency's bit is never set
        # The correlation of normal variables behind signs (exact where the cut is at zero).
        with np.errstate(invalid="ignore"):  # of the constant bit
            correlation = np.sin(np.pi / 2 * np.nan_to_num(np.corrcoef(bits.T)))
        np.fill_diagonal(correlation, 1.0)
        values, vectors = np.linalg.eigh(correlation)
        root = vectors * np.sqrt(values.clip(0))
        self.root = (root / np.linalg.norm(root, axis=1, keepdims=True)).astype(np.float32)
        self.indexed = indexed

    def block(self, number: int, size: int = BLOCK) -> np.ndarray:
        """Return `size` codes, shape (size, 32)."""
        generator = np.random.Generator(np.random.Philox(key=[number, 7]))
        normal = generator.standard_normal((size, 256), dtype=np.float32) @ self.root.T
        codes = np.packbits(normal > self.cut, axis=1)
        for place in generator.choice(size, PLANTED_PER_BLOCK, replace=False):
            bits = np.unpackbits(self.indexed[generator.integers(NUM_INDEXED)])
            bits[1 + generator.choice(255, int(generator.integers(0, 81)), replace=False)] ^= 1
            codes[place] = np.packbits(bits)
        return codes


def pairs_of_faiss(index: faiss.IndexBinaryFlat, codes: np.ndarray, radius: int) -> np.ndarray:
    """Return (query, index) of all pairs, by query and then by index."""
    found = []
    for start in range(0, len(codes), 8192):
        limits, _, ids = index.range_search(codes[start : start + 8192], radius + 1)
        rows = np.repeat(np.arange(len(limits) - 1), np.diff(limits).astype(np.int64)) + start
        found.append(np.stack([rows, ids], axis=1))
    pairs = np.concatenate(found)
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]


def timed(run: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    """Return the seconds and the result of a call."""
    started = time.perf_counter()
    result = run(*arguments)
    return time.perf_counter() - started, result


def compare(source: CodeGenerator, blocks: range) -> None:
    """Join the same blocks in turn. FAISS searches at radius 62; its cost does not depend on the radius."""
    faiss.omp_set_num_threads(1)
    flat = faiss.IndexBinaryFlat(256)
    flat.add(source.indexed)
    plain = {radius: build_index(plain_words(source.indexed), radius, folded=False) for radius in RADII}
    both = np.concatenate([source.indexed, dihedral_codes(source.indexed)[4]])
    turned = {radius: build_index(parity_words(both), radius, folded=True) for radius in RADII}
    rates: dict[str, list[float]] = {}
    num_pairs, num_planted = dict.fromkeys(RADII, 0), 0
    for number in blocks:
        codes = source.block(number)
        seconds, expected = timed(pairs_of_faiss, flat, codes, 62)
        rates.setdefault("FAISS IndexBinaryFlat", []).append(BLOCK / seconds)
        apart = distances(codes[expected[:, 0]], source.indexed[expected[:, 1]])
        for radius in RADII:
            seconds, found = timed(search, plain[radius], plain_words(codes))
            assert np.array_equal(np.stack(found, axis=1), expected[apart <= radius]), (
                f"block {number}, radius {radius}"
            )
            rates.setdefault(f"ours, radius {radius}", []).append(BLOCK / seconds)
            num_pairs[radius] += len(found[0])
            part = codes[: BLOCK // 10]
            seconds, _ = timed(lambda r=radius, p=part: search(turned[r], parity_words(p)))
            rates.setdefault(f"ours, radius {radius}, all eight turns", []).append(len(part) / seconds)
        num_planted += PLANTED_PER_BLOCK
    reference = rates["FAISS IndexBinaryFlat"]
    print(f"\n{len(blocks) * BLOCK:,} codes x {NUM_INDEXED:,}, {num_planted:,} planted; equal pairs: {num_pairs}")
    print("| contender | codes/s, median | ratio to FAISS (lowest to highest) |\n| --- | --- | --- |")
    for name, found_rates in rates.items():
        ratios = [one / other for one, other in zip(found_rates, reference, strict=True)]
        print(
            f"| {name} | {median(found_rates):,.0f} | {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |"
        )
    print(f"peak memory {peak_bytes() / 1e6:,.0f} MB", environment(("faiss-cpu",)))


def work(task: tuple[np.ndarray, np.ndarray, int, int]) -> tuple[int, float, int]:
    """Join one worker's part of the codes; return the number of codes, the seconds of joining and the peak memory."""
    indexed, seed_codes, num_codes, radius = task
    index = build_index(plain_words(indexed), radius, folded=False)
    done, seconds = 0, 0.0
    while done < num_codes:
        taken, _ = timed(search, index, plain_words(seed_codes))
        seconds += taken
        done += len(seed_codes)
    return done, seconds, peak_bytes()


def large(source: CodeGenerator, num_codes: int, radius: int) -> None:
    """Print the rates of one worker and of two, and the time that 300 M codes would take."""
    blocks = [source.block(10_000 + number) for number in range(4)]
    context = multiprocessing.get_context("spawn")
    rates = []
    for workers in (1, 2):
        each = num_codes // (10 if workers == 1 else 2)  # one worker is timed on a tenth
        with context.Pool(workers) as pool:
            tasks = [
                (source.indexed, np.concatenate(blocks[worker::workers]), each, radius) for worker in range(workers)
            ]
            results = pool.map(work, tasks, chunksize=1)
        rates.append(sum(done / seconds for done, seconds, _ in results))
        total, longest = sum(done for done, *_ in results), max(seconds for _, seconds, _ in results)
        peak = max(peak for *_, peak in results)
        print(f"radius {radius}, {workers} workers: {total:,} codes in {longest:,.1f} s, {rates[-1]:,.0f} codes/s; a "
              f"worker's peak {peak / 1e6:,.0f} MB", flush=True)  # fmt: skip
    print(f"two workers over one: {rates[1] / rates[0]:.2f}; 300 M x {NUM_INDEXED:,} on 2 cores: "
          f"{3e8 / rates[1] / 60:.1f} min", environment(("faiss-cpu",)))  # fmt: skip


def main() -> None:
    """Run the comparison, or the large join."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of tars of JPEG")
    parser.add_argument("--scratch", type=Path, required=True, help="folder for the real codes")
    parser.add_argument("--codes", type=int, default=10_000_000)
    parser.add_argument("--first", type=int, default=0, help=f"first block of {BLOCK:,} codes, to go on in parts")
    parser.add_argument("--only", choices=["compare", "large"], default="compare")
    parser.add_argument("--radius", type=int, choices=RADII, default=31, help="of --only large")
    given = parser.parse_args()
    given.scratch.mkdir(parents=True, exist_ok=True)
    real = real_codes(given.data, given.scratch)
    source = CodeGenerator(real, indexed_codes(real))
    if given.only == "large":
        large(source, given.codes, given.radius)
    else:
        compare(source, range(given.first, given.first + given.codes // BLOCK))


if __name__ == "__main__":
    main()
