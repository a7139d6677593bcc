"""What the audit finds and what it wrongly accepts: transforms, distractors, and pictures with nothing in them.

    python benchmarks/audit_quality.py ../shared/data --scratch /dev/shm/quality --stage fingerprints
    python benchmarks/audit_quality.py ../shared/data --scratch /dev/shm/quality --stage verify
    python benchmarks/audit_quality.py ../shared/data --scratch /dev/shm/quality --stage table

Originals (the test set) come from the test parts of the tars; distractors are other pictures, from the test and
validation parts as far as these suffice. All altered copies and all distractors are upstream. Every pair of an original
with a copy of another one, or with a distractor, is a negative. A stage that was stopped continues.
"""

import argparse
import multiprocessing
import tarfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image, ImageDraw
from transforms import TRANSFORMS, copy_of

from cluster.audit.base.tables import ADDRESS_COLUMNS, DEFAULT_RADIUS, MIN_QUALITY, Evidence
from cluster.audit.search.embedding.embedding import COSINE_FROM, embedding_candidates, load, sign_codes
from cluster.audit.search.join import candidates
from cluster.audit.verify.best_match import keep_best_matches
from cluster.audit.verify.evidence import judge, verify_pair
from cluster.audit.verify.measure import Agreement
from pipeline.image.decode import decode, encode_jpeg
from pipeline.image.fingerprint import fingerprint

ORIGINALS = {"photos-200": ("all", 200), "clothing": ("test", 110), "grocery": ("test", 90), "flowers12": ("test", 60),
             "tiny-imagenet-100": ("test", 40)}  # fmt: skip
DISTRACTORS = {"clothing": 1200, "grocery": 1200, "flowers12": 300, "tiny-imagenet-100": 1800, "cifar10-mini": 400,
               "sign-digits": 150}  # fmt: skip
CHUNK = 20  # originals per call, or 700 distractors


@cache
def pictures(folder: str) -> tuple[list[tuple[str, bytes]], list[tuple[str, bytes]]]:
    """Return (name, bytes) of originals and distractors."""
    originals, distractors = [], []
    for path in sorted(Path(folder).glob("*.tar")):
        with tarfile.open(path) as tar:
            members = {member.name: member for member in tar if member.isfile()}
            split, most = ORIGINALS.get(path.stem, ("-", 0))
            order = np.random.default_rng(1).permutation(sorted(members)).tolist()
            chosen = [name for name in order if name.startswith(split)][:most]
            # The projection of the embedding was fitted on pictures of `train`: others come first.
            others = [name for name in order if name not in set(chosen)]
            others.sort(key=lambda name: name.startswith("train/"))
            for target, names in ((originals, chosen), (distractors, others[: DISTRACTORS.get(path.stem, 0)])):
                target += [(f"{path.stem}/{name}", tar.extractfile(members[name]).read()) for name in names]
    return originals, [*distractors, *degenerate()]


def degenerate() -> list[tuple[str, bytes]]:
    """Return pictures that look alike without being copies: solid, gradient, product on white, sky, page of text."""
    images = []
    generator = np.random.default_rng(5)
    for number in range(25):
        grey, size = int(generator.integers(20, 240)), (320, 240)
        solid = Image.new("RGB", size, tuple(generator.integers(0, 256, 3).tolist()))
        ramp = (
            np.linspace(grey / 3, grey, size[0])[None, :, None]
            + generator.uniform(-20, 20) * np.linspace(-1, 1, size[1])[:, None, None]
        )
        gradient = Image.fromarray(np.clip(np.broadcast_to(ramp, (240, 320, 3)), 0, 255).astype(np.uint8))
        product = Image.new("RGB", size, "white")
        half = generator.uniform(60, 120, 2)
        box = (160 - half[0], 120 - half[1] * 0.8, 160 + half[0], 120 + half[1] * 0.8)
        draw = ImageDraw.Draw(product)
        (draw.ellipse if number % 2 else draw.rectangle)(box, fill=tuple(generator.integers(0, 200, 3).tolist()))
        sky = np.linspace(220, 120, 240)[:, None, None] * np.ones((240, 320, 3))
        line = int(generator.integers(150, 220))
        ridge = line + np.cumsum(generator.normal(0, 1.2, 320))
        sky[np.arange(240)[:, None] > ridge[None, :]] = 25
        page = Image.new("RGB", size, "white")
        for y in range(12, 228, 12):
            x = 14
            while x < 290:
                width = int(generator.integers(6, 34))
                ImageDraw.Draw(page).rectangle((x, y, min(x + width, 304), y + 5), fill="black")
                x += width + 6
        for kind, image in (
            ("solid", solid),
            ("gradient", gradient),
            ("product", product),
            ("sky", Image.fromarray(sky.astype(np.uint8))),
            ("page", page),
        ):
            images.append((f"degenerate/{kind}/{number}", encode_jpeg(np.asarray(image), 88)))
    return images


def upstream(folder: str, number: int) -> list[tuple[str, str, bytes]]:
    """Return chunk `number` of the upstream side: (transform, name, bytes)."""
    originals, distractors = pictures(folder)
    num_chunks = -(-len(originals) // CHUNK)
    if number < num_chunks:
        return [
            (transform, name, copy_of(Image.fromarray(decode(data)), transform))
            for name, data in originals[number * CHUNK : (number + 1) * CHUNK]
            for transform in TRANSFORMS
        ]
    part = distractors[(number - num_chunks) * 700 : (number - num_chunks + 1) * 700]
    return [("", name, data) for name, data in part]


def describe(names: list[tuple[str, str]], images: list[bytes], shard: int) -> pa.Table:
    """Return the fingerprints of pictures under their (transform, name)."""
    embedder = load()
    taken = [fingerprint(decode(data)) for data in images]
    vectors = np.concatenate([embedder.embed([decode(data)]) for data in images])
    rows = pa.array(np.arange(len(images), dtype=np.int32))
    return pa.table(
        {
            "shard": pa.array(np.full(len(images), shard, np.int32)), "row": rows,
            "transform": [transform for transform, _ in names], "name": [name for _, name in names],
            "code": pa.array([code for code, _ in taken], pa.binary(32)),
            "quality": pa.array([quality for _, quality in taken], pa.uint8()),
            "sign_code": pa.array([code.tobytes() for code in sign_codes(vectors)], pa.binary(32)),
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), 256),
        }
    )  # fmt: skip


def fingerprint_chunk(task: tuple[str, Path, int]) -> int:
    """Write the fingerprints of a chunk, unless they exist."""
    folder, scratch, number = task
    path = scratch / f"up-{number:03d}.parquet"
    if not path.exists():
        found = upstream(folder, number)
        table = describe([(t, n) for t, n, _ in found], [data for *_, data in found], number)
        pq.write_table(table, path.with_suffix(".part"))
        path.with_suffix(".part").rename(path)
    return number


def either_candidates(up: pa.Table, down: pa.Table) -> pa.Table:
    """Return each pair of either search once.

    Distance and element are null if only the embedding found it, the cosine if only the hash did.
    """
    hashed, embedded = candidates(up, down, DEFAULT_RADIUS), embedding_candidates(up, down, COSINE_FROM)
    both = hashed.join(embedded, list(ADDRESS_COLUMNS), join_type="full outer")
    return both.sort_by([(name, "ascending") for name in ADDRESS_COLUMNS])


def verify_chunk(task: tuple[str, Path, int, pa.Table]) -> int:
    """Write the comparisons of a chunk's pairs, unless they exist."""
    folder, scratch, number, pairs = task
    path = scratch / f"pairs-{number:03d}.parquet"
    if path.exists():
        return number
    originals, distractors = pictures(folder)
    degenerates = [data for name, data in distractors if name.startswith("degenerate")]
    downs = [data for _, data in originals] + degenerates
    images = upstream(folder, number)
    rows = []
    for pair in pairs.to_pylist():
        transform, name, data = images[pair["up_row"]]
        down = downs[pair["down_row"]]
        quality = min(fingerprint(decode(data))[1], fingerprint(decode(down))[1])
        result = verify_pair(data, down, decode(data), decode(down), min_quality=quality, distance=pair["distance"])
        measured = vars(result.alignment.agreement) if result.alignment else {}
        rows.append(
            pair
            | {"transform": transform, "name": name, "quality": quality, "evidence": str(result.evidence)}
            | measured
        )
    schema = pa.schema(
        [
            *pairs.schema,
            ("transform", pa.string()),
            ("name", pa.string()),
            ("quality", pa.int32()),
            ("evidence", pa.string()),
            *((field, pa.float64()) for field in Agreement.__dataclass_fields__),
        ]
    )
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path.with_suffix(".part"))
    path.with_suffix(".part").rename(path)
    return number


def downstream(folder: str, scratch: Path) -> pa.Table:
    """Return the fingerprints of the originals and of the pictures with nothing in them."""
    path = scratch / "down.parquet"
    if not path.exists():
        originals, distractors = pictures(folder)
        both = originals + [each for each in distractors if each[0].startswith("degenerate")]
        pq.write_table(describe([("", name) for name, _ in both], [data for _, data in both], 0), path)
    return pq.read_table(path)


def judged(row: dict[str, object]) -> str:
    """Return the evidence by the rule as it stands in the code: a changed rule needs no new alignment."""
    if row["quality"] < MIN_QUALITY or row["local"] is None:
        return str(row["evidence"])
    measures = {field: row.get(field) for field in Agreement.__dataclass_fields__}
    agreement = Agreement(**(measures | {"side_px": measures["side_px"] or 256}))
    return str(judge(agreement, row["distance"], row["quality"]))


def table(scratch: Path, down: pa.Table, num_originals: int, chunks: range) -> None:
    """Print recall by transform, what look-alikes reach, and every accepted pair of different pictures."""
    pairs = pa.concat_tables(
        [pq.read_table(path) for path in sorted(scratch.glob("pairs-*.parquet"))], promote_options="default"
    )
    evidence = pa.array([judged(row) for row in pairs.to_pylist()])
    pairs = pairs.set_column(pairs.schema.get_field_index("evidence"), "evidence", evidence)
    correlation = pc.fill_null(pairs["correlation"], 0.0)  # of rejected flat pictures
    pairs = pairs.set_column(pairs.schema.get_field_index("correlation"), "correlation", correlation)
    # Each transform is an upstream set of its own: its copies do not compete with those of other transforms.
    rows = [
        row
        for transform in ("", *TRANSFORMS)
        for row in keep_best_matches(pairs.filter(pc.equal(pairs["transform"], transform))).to_pylist()
    ]
    names = down["name"].to_pylist()
    copies: dict[str, list[dict[str, Any]]] = {transform: [] for transform in TRANSFORMS}
    others = []
    for row in rows:
        row["original"] = names[row["down_row"]]
        if row["original"] != row["name"]:
            others.append(row)
        elif row["transform"]:
            copies[row["transform"]].append(row)
    done = [n for n in chunks if (scratch / f"pairs-{n:03d}.parquet").exists()]
    num_done = CHUNK * sum(n * CHUNK < num_originals for n in done)
    num_up = sum(pq.read_metadata(scratch / f"up-{n:03d}.parquet").num_rows for n in done)
    print(f"copies of {num_done} originals; {num_up * num_originals - num_done * len(TRANSFORMS):,} negative pairs")
    print("| transform | found % | candidate of the hash % | of the embedding % | of either % |")
    print("| --- | --- | --- | --- | --- |")
    shares = np.array([_shares(own, num_done) for own in copies.values()])
    for transform, share in zip(copies, shares, strict=True):
        print(f"| {transform} | " + " | ".join(f"{100 * each:.1f}" for each in share) + " |")
    print("| **mean** | " + " | ".join(f"**{100 * each:.2f}**" for each in shares.mean(axis=0)) + " |")
    compared = [row for row in others if row["local"] is not None]
    print(f"{len(others):,} candidates of different pictures, {len(compared):,} with texture:")
    for measure in ("local", "whole", "core", "correlation", "inliers"):
        reached = np.percentile([row[measure] for row in compared], (50, 90, 99, 99.9, 100))
        print(f"{measure}: " + ", ".join(f"{each:.3f}" for each in reached) + " (50, 90, 99, 99.9, 100 %)")
    accepted = [row for row in others if Evidence(row["evidence"]).is_copy_upstream]
    print(f"{len(accepted)} accepted pairs of different pictures")
    for row in sorted(accepted, key=lambda row: -row["local"]):
        print({key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()})


def _shares(own: list[dict[str, Any]], num_done: int) -> list[float]:
    """Return the shares of found copies and of candidates by hash, embedding, either."""
    counts = [
        sum(Evidence(row["evidence"]).is_duplicate for row in own),
        sum(row["distance"] is not None for row in own),
        sum(row["cosine"] is not None for row in own),
        len(own),
    ]
    return [count / num_done for count in counts]


def main() -> None:
    """Run one stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="folder of tars")
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--stage", choices=["fingerprints", "verify", "table"], required=True)
    given = parser.parse_args()
    given.scratch.mkdir(parents=True, exist_ok=True)
    originals, distractors = pictures(given.data)
    chunks = range(-(-len(originals) // CHUNK) + -(-len(distractors) // 700))
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        if given.stage == "fingerprints":
            downstream(given.data, given.scratch)
            for number in pool.imap_unordered(fingerprint_chunk, [(given.data, given.scratch, n) for n in chunks]):
                print("fingerprints", number, flush=True)
            return
        down = pq.read_table(given.scratch / "down.parquet")
        if given.stage == "verify":
            tasks = []
            for number in chunks:
                up = pq.read_table(given.scratch / f"up-{number:03d}.parquet")
                tasks.append((given.data, given.scratch, number, either_candidates(up, down)))
            print(sum(task[3].num_rows for task in tasks), "pairs", flush=True)
            for number in pool.imap_unordered(verify_chunk, tasks[::-1]):
                print("verified", number, flush=True)
            return
    table(given.scratch, down, len(originals), chunks)


if __name__ == "__main__":
    main()
