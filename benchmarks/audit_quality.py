"""What the audit finds and what it wrongly accepts: altered copies among others, and pictures with nothing in them.

    python benchmarks/audit_quality.py ../shared/data --scratch /dev/shm/quality --suite real-life
    python benchmarks/audit_quality.py ../shared/data --scratch /dev/shm/quality-old --suite transforms

Both sides of a pair come from a picture of the test parts of the tars. Upstream are the altered copies, other pictures,
and pictures with nothing in them; downstream the originals (for some kinds another part of the same scene), more
pictures of the test parts, and those with nothing in them. Every pair of pictures of different files is a negative: it
counts as soon as both are in a join, whether or not a search proposes it. Thresholds were chosen on pictures and random
numbers of the tuned half; the held-back one has others. What was computed is kept in the scratch folder.
"""

import argparse
import multiprocessing
import pickle
import tarfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from look_alikes import degenerate
from PIL import Image
from real_life import KINDS
from transforms import TRANSFORMS, copy_of

from cluster.audit.base.tables import ADDRESS_COLUMNS, DEFAULT_RADIUS, Evidence
from cluster.audit.result.best_match import keep_best_matches
from cluster.audit.search.crops import crop_codes
from cluster.audit.search.embedding.embedding import ViewVectors, view_candidates
from cluster.audit.search.embedding.models import load
from cluster.audit.search.features import inset_rows
from cluster.audit.search.insets import inset_codes
from cluster.audit.search.join import (
    CROPS_COLUMN,
    INSETS_COLUMN,
    VARIANTS_COLUMN,
    candidates,
    cap_hubs,
    closest,
    index_crops,
    index_downstream,
    index_wholes,
)
from cluster.audit.search.variants import variant_codes
from cluster.audit.verify.evidence import judge, verify_pair
from cluster.audit.verify.measure import Agreement
from cluster.audit.verify.prepare import Prepared
from pipeline.image.decode import decode, encode_jpeg
from pipeline.image.fingerprint import fingerprint
from trainer.scores.intervals import wilson_interval

# Of each tar: the part that originals come from, and how many; other pictures upstream, and downstream.
SETS = {"photos-200": ("", 15, 150, 0), "clothing": ("test", 10, 900, 300), "grocery": ("test", 10, 900, 350),
        "flowers12": ("test", 8, 300, 100), "tiny-imagenet-100": ("test", 9, 800, 500),
        "cifar10-mini": ("test", 15, 800, 500)}  # fmt: skip
HALVES = ("tuned", "held-back")
CHUNK = 60  # pictures per call
MOST_MATCHES = 20
PICTURES_PER_INDEX = 512  # whose crops are in memory
# What an audit searches by: "by hash" is what it does without an embedding, and with one it leaves crops out.
SEARCHES = {
    "by hash, whole images": {"wholes"},
    "by hash, no insets": {"crops"},
    "by hash": {"crops and insets"},
    "with the embedding": {"insets", "vectors"},
    "with both": {"crops and insets", "vectors"},
}
Picture = tuple[str, str, bytes]  # kind or "", name of the original file, JPEG


@cache
def files(folder: str) -> dict[str, list[tuple[str, bytes]]]:
    """Return (name, bytes) of the originals of both halves, and of other pictures of both sides."""
    found: dict[str, list[tuple[str, bytes]]] = defaultdict(list)
    for name, (split, each, up, down) in SETS.items():
        with tarfile.open(Path(folder) / f"{name}.tar") as tar:
            members = {member.name: member for member in tar if member.isfile()}
            order = np.random.default_rng(1).permutation(sorted(members)).tolist()
            tests = [member for member in order if member.startswith(split)]
            parts = {"tuned": tests[:each], "held-back": tests[each : 2 * each],
                     "down": tests[2 * each : 2 * each + down]}  # fmt: skip
            taken = {member for part in parts.values() for member in part}
            # The projection of the embedding was fitted on pictures of `train`: others come first.
            others = sorted(
                (member for member in order if member not in taken), key=lambda own: own.startswith("train/")
            )
            for part, names in (parts | {"up": others[:up]}).items():
                found[part] += [(f"{name}/{own}", tar.extractfile(members[own]).read()) for own in names]
    return found


def altered(folder: str, suite: str, half: str) -> tuple[list[Picture], list[Picture]]:
    """Return the altered copies, and the downstream pictures of their pairs, in the same order."""
    ups, downs = [], []
    others = [Image.fromarray(decode(data)) for _, data in files(folder)["up"][::40]]
    for name, data in files(folder)[half]:
        image = Image.fromarray(decode(data))
        if suite == "transforms":
            ups += [(kind, name, copy_of(image, kind)) for kind in TRANSFORMS]
            downs += [("", name, data)] * len(TRANSFORMS)
            continue
        for kind, alter in KINDS.items():
            draw = np.random.default_rng(zlib.crc32(f"{half} {kind} {name}".encode()))
            one, other = alter(image, others, draw)
            ups.append((kind, name, encode_jpeg(np.asarray(one.convert("RGB")), int(draw.integers(70, 95)))))
            downs.append(("", name, data) if other is image else (kind, name, encode_jpeg(np.asarray(other), 92)))
    return ups, downs


def other_pictures(folder: str, side: str) -> list[Picture]:
    """Return the other pictures of a side, and those with nothing in them."""
    return [("", name, data) for name, data in [*files(folder)[side], *degenerate()]]


def described(side: str, pictures: Sequence[Picture]) -> list[dict[str, Any]]:
    """Return code, quality, vectors and codes of pictures: upstream of insets, downstream of variants and crops."""
    embedder, rows = load(), []
    for _, _, data in pictures:
        pixels = decode(data)
        code, quality = fingerprint(pixels)
        variants = variant_codes(pixels) if side == "down" else []
        crops = crop_codes(pixels).tobytes() if side == "down" else b""
        insets = inset_codes(pixels) if side == "up" else []
        rows.append({"code": code, "quality": quality, "variants": variants, "crops": crops, "insets": insets,
                     "vectors": embedder.embed(pixels).astype(np.float16)})  # fmt: skip
    return rows


def codes_table(rows: Sequence[dict[str, Any]]) -> pa.Table:
    """Return what the join by code takes."""
    return pa.table({
        "shard": pa.array(np.zeros(len(rows), np.int32)), "row": pa.array(np.arange(len(rows), dtype=np.int32)),
        "code": pa.array([row["code"] for row in rows], pa.binary(32)),
        VARIANTS_COLUMN: pa.array([row["variants"] for row in rows], pa.list_(pa.binary(32))),
        CROPS_COLUMN: pa.array([row["crops"] for row in rows], pa.binary()),
        INSETS_COLUMN: pa.array([row["insets"] for row in rows], pa.list_(pa.binary(32))),
    })  # fmt: skip


def vectors_of(rows: Sequence[dict[str, Any]]) -> ViewVectors:
    """Return what the join by vector takes."""
    counts = [len(row["vectors"]) for row in rows]
    number = np.repeat(np.arange(len(rows), dtype=np.int32), counts)
    view = np.concatenate([np.arange(count, dtype=np.int8) for count in counts])
    return ViewVectors(np.zeros_like(number), number, view,
                       np.concatenate([row["vectors"] for row in rows]).astype(np.float32))  # fmt: skip


@lru_cache(maxsize=600)
def _prepared(data: bytes) -> Prepared:
    return Prepared(decode(data))


def verified(pairs: Sequence[tuple[bytes, bytes, int, int | None]]) -> list[dict[str, Any]]:
    """Return evidence, correlation and measures of pairs of (upstream, downstream, lower quality, distance)."""
    rows = []
    for up, down, quality, distance in pairs:
        found = verify_pair(up, down, _prepared(up), _prepared(down), quality, distance=distance)
        measures = vars(found.alignment.agreement) if found.alignment else {}
        rows.append({"evidence": str(found.evidence), "correlation": found.correlation, "measures": measures})
    return rows


def in_parts(scratch: Path, name: str, work: Callable[[Any], list[Any]], items: Sequence[Any]) -> list[Any]:
    """Do the work on chunks of the items in two processes, unless the scratch folder has the results."""
    chunks = {scratch / f"{name}-{start}.pkl": items[start : start + CHUNK] for start in range(0, len(items), CHUNK)}
    missing = [path for path in chunks if not path.exists()]
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        for path, rows in zip(missing, pool.map(work, [chunks[path] for path in missing]), strict=True):
            path.write_bytes(pickle.dumps(rows))
            print(path.name, flush=True)
    return [row for path in chunks for row in pickle.loads(path.read_bytes())]


@dataclass(frozen=True)
class Side:
    """Pictures with their codes and vectors."""

    pictures: list[Picture]
    rows: list[dict[str, Any]]

    def taken(self, numbers: Sequence[int]) -> "Side":
        """Return some of them."""
        return Side([self.pictures[number] for number in numbers], [self.rows[number] for number in numbers])

    def __add__(self, other: "Side") -> "Side":
        return Side(self.pictures + other.pictures, self.rows + other.rows)


def joined(up: Side, down: Side) -> tuple[list[dict[str, Any]], int]:
    """Return the candidates that an audit would verify, and the number of all pairs of different files."""
    codes, tests = codes_table(up.rows), codes_table(down.rows)
    by_variant = candidates(codes, index_downstream(tests, DEFAULT_RADIUS), DEFAULT_RADIUS)
    parts = (tests.slice(start, PICTURES_PER_INDEX) for start in range(0, tests.num_rows, PICTURES_PER_INDEX))
    by_crop = closest(candidates(codes, index_crops(part, DEFAULT_RADIUS), DEFAULT_RADIUS) for part in parts)
    by_inset = candidates(inset_rows(0, codes), index_wholes(tests, DEFAULT_RADIUS), DEFAULT_RADIUS)
    by_vector = view_candidates(vectors_of(up.rows), vectors_of(down.rows), load().nearness)
    capped = {
        "vectors": cap_hubs(by_vector, MOST_MATCHES, by="cosine")[0],
        "crops and insets": cap_hubs(closest([by_variant, by_crop, by_inset]), MOST_MATCHES)[0],
        "crops": cap_hubs(closest([by_variant, by_crop]), MOST_MATCHES)[0],
        "insets": cap_hubs(closest([by_variant, by_inset]), MOST_MATCHES)[0],
        "wholes": cap_hubs(by_variant, MOST_MATCHES)[0],
    }
    found: dict[tuple[int, int], dict[str, Any]] = {}
    for search, table in capped.items():
        for row in table.to_pylist():
            pair = found.setdefault((row["up_row"], row["down_row"]), {"searches": set()})
            pair.update(row)
            pair["searches"].add(search)
    rows = []
    for (one, other), row in sorted(found.items()):
        quality = min(up.rows[one]["quality"], down.rows[other]["quality"])
        rows.append(row | {"distance": row.get("distance"), "element": 0, "quality": quality,
                           "up": up.pictures[one], "down": down.pictures[other]})  # fmt: skip
    names = Counter(name for _, name, _ in down.pictures)
    return rows, len(up.pictures) * len(down.pictures) - sum(names[name] for _, name, _ in up.pictures)


def measure(folder: str, scratch: Path, suite: str, half: str) -> list[dict[str, Any]]:
    """Return every candidate pair of a half, or of the others, with its evidence; print the numbers of pairs."""

    def side(name: str, kind: str, pictures: list[Picture]) -> Side:
        return Side(pictures, in_parts(scratch, f"{name}-{kind}", partial(described, kind), pictures))

    others = {kind: side("others", kind, other_pictures(folder, kind)) for kind in ("up", "down")}
    pairs = {own: altered(folder, suite, own) for own in HALVES}
    if half == "others":
        parts = [(others["up"], sum((side(own, "down", pairs[own][1]) for own in HALVES), others["down"]))]
    else:
        ups, downs = (side(half, kind, pictures) for kind, pictures in zip(("up", "down"), pairs[half], strict=True))
        parts = []
        # Each kind is an audit of its own: copies of one picture do not crowd each other out.
        for kind in dict.fromkeys(kind for kind, *_ in ups.pictures):
            numbers = [number for number, picture in enumerate(ups.pictures) if picture[0] == kind]
            parts.append((ups.taken(numbers), downs.taken(numbers) + others["down"]))
    rows, num_pairs = [], 0
    for up, down in parts:
        found, count = joined(up, down)
        rows, num_pairs = rows + found, num_pairs + count
    print(f"{half}: {num_pairs:,} pairs of different files, {len(rows):,} candidates", flush=True)
    compared = [(row["up"][2], row["down"][2], row["quality"], row["distance"]) for row in rows]
    results = in_parts(scratch, f"{half}-pairs", verified, compared)
    return [row | result for row, result in zip(rows, results, strict=True)]


def evidence_of(row: dict[str, Any]) -> str:
    """Return the evidence by the rule as it stands in the code: a changed rule needs no new alignment."""
    return (
        str(judge(Agreement(**row["measures"]), row["distance"], row["quality"]))
        if row["measures"]
        else row["evidence"]
    )


def judged(rows: list[dict[str, Any]]) -> list[tuple[dict[str, Any], bool]]:
    """Return the pairs of one audit, each with whether its upstream picture is a copy, after all pairs competed."""
    names = (*ADDRESS_COLUMNS, "element", "quality", "correlation")
    table = pa.Table.from_pylist([
        {name: row[name] for name in names}
        | {"distance": 128 if row["distance"] is None else row["distance"], "evidence": evidence_of(row)}
        for row in rows
    ])  # fmt: skip
    evidence = keep_best_matches(table)["evidence"].to_pylist()
    return [(row, Evidence(each).is_copy_upstream) for row, each in zip(rows, evidence, strict=True)]


def is_copy(row: dict[str, Any]) -> bool:
    """Return whether a pair is of one picture."""
    return bool(row["up"][0]) and row["up"][1] == row["down"][1]


def copies(audits: dict[str, list[dict[str, Any]]], search: str) -> list[dict[str, Any]]:
    """Return the copies that audits find by a search; only what it proposes competes."""
    proposed = ([row for row in rows if row["searches"] & SEARCHES[search]] for rows in audits.values())
    return [row for rows in proposed if rows for row, is_found in judged(rows) if is_found and is_copy(row)]


def report(part: str, rows: list[dict[str, Any]], kinds: Sequence[str], count: int) -> None:
    """Print what was found of each kind by each search, and all accepted different files."""
    audits: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        audits[row["up"][0]].append(row)
    pairs = [pair for own in audits.values() for pair in judged(own)]
    found = {search: Counter(row["up"][0] for row in copies(audits, search)) for search in SEARCHES}
    found["candidates of both"] = Counter(row["up"][0] for row, _ in pairs if is_copy(row))
    if kinds:
        print(
            f"\n{part}, {count} pictures of each kind\n\n| kind | {' | '.join(found)} |\n| ---{' | ---' * len(found)} |"
        )
    for kind in kinds:
        cells = []
        for counts in found.values():
            low, high = wilson_interval(counts[kind], count)
            cells.append(f"{100 * counts[kind] / count:.0f} % ({100 * low:.0f} to {100 * high:.0f})")
        print(f"| {kind} | {' | '.join(cells)} |")
    if kinds:
        shares = [100 * counts.total() / count / len(kinds) for counts in found.values()]
        print(f"| **all** | {' | '.join(f'**{share:.1f} %**' for share in shares)} |")
    false = [row for row, is_found in pairs if is_found and row["up"][1] != row["down"][1]]
    print(f"{part}: {len(false)} accepted pairs of different files")
    for row in false:
        print(row["up"][:2], row["down"][:2], row["distance"], row["quality"], row["measures"])


def main() -> None:
    """Measure a suite and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="folder of tars")
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--suite", choices=["real-life", "transforms"], required=True)
    parser.add_argument("--part", choices=[*HALVES, "others"], action="append")
    given = parser.parse_args()
    given.scratch.mkdir(parents=True, exist_ok=True)
    kinds = list(KINDS if given.suite == "real-life" else TRANSFORMS)
    for part in given.part or [*HALVES, "others"]:
        rows = measure(given.data, given.scratch, given.suite, part)
        report(part, rows, kinds if part in HALVES else [], len(files(given.data)[part]))


if __name__ == "__main__":
    main()
