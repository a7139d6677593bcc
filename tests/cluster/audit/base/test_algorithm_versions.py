"""Whoever changes what an algorithm of the audit returns raises its version, or stored results would be taken for new.

A failure means: the output on a fixed small input is no longer that of the version. If that is wanted, raise the
constant and enter the new digest here.
"""

import hashlib
import json
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest

from cluster.audit.result.canaries import CANARIES_VERSION, plant
from cluster.audit.search.crops import CROPS_VERSION, crop_codes
from cluster.audit.search.embedding.embedding import EMBEDDING_VERSION, ViewVectors, view_candidates
from cluster.audit.search.embedding.models import Nearness
from cluster.audit.search.insets import INSETS_VERSION, inset_codes
from cluster.audit.search.join import JOIN_VERSION, candidates, cap_hubs
from cluster.audit.search.matches import shard_matches
from cluster.audit.search.variants import VARIANTS_VERSION, variant_codes
from cluster.audit.verify.evidence import EVIDENCE_VERSION, verify_pair
from pipeline.dataset.dataset import Dataset
from pipeline.image.decode import decode
from pipeline.image.fingerprint import dihedral_codes
from tests.cluster.audit.audits import ALTERED, scene
from tests.cluster.audit.search.codes import code_table, flipped, random_codes


def joined() -> object:
    """Join codes at all distances and turns."""
    down, up = random_codes(8, 1), random_codes(24, 2)
    for number in range(24):
        up[number] = flipped(dihedral_codes(down[number % 4 : number % 4 + 1])[number % 8, 0], 3 * number, number)
    pairs = candidates(code_table(up), code_table(down), 62)
    kept, hubs = cap_hubs(pairs, 3)
    vectors = pairs.append_column("cosine", pa.array(np.linspace(0.5, 1.0, pairs.num_rows, dtype=np.float32)))
    matches = shard_matches(pairs, vectors, {(0, 0, 0): "same bytes"}, [-row for row in range(24)], 2)
    return [pairs.to_pylist(), kept.to_pylist(), sorted(hubs.items()), matches.to_pylist()]


def varied() -> object:
    """Return variant codes of a tall picture with a border."""
    pixels = np.pad(scene(3, 120, 80), ((10, 10), (10, 10), (0, 0)), constant_values=255)
    return [code.hex() for code in variant_codes(pixels)]


def cropped() -> object:
    """Return the codes of all crops of pictures that are larger and smaller than the lattice."""
    return [crop_codes(scene(3, *size)).tobytes().hex() for size in ((320, 240), (48, 40))]


def parts() -> object:
    """Return the codes of the insets of a picture in another one."""
    pixels = scene(3, 320, 240).copy()
    pixels[40:160, 100:260] = scene(4, 160, 120)
    return [code.hex() for code in inset_codes(pixels)]


def embedded() -> object:
    """Join vectors of two views around the smallest cosine and the background."""
    generator = np.random.default_rng(0)
    down = generator.normal(size=(12, 256))
    up = down + generator.normal(size=(12, 256)) * np.linspace(0.1, 6, 12)[:, None]
    sides = []
    for vectors in (up, down):
        unit = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
        rows = np.arange(12, dtype=np.int32)
        sides.append(ViewVectors(np.zeros(12, np.int32), rows // 2, (rows % 2).astype(np.int8), unit))
    found = view_candidates(sides[0], sides[1], Nearness()).to_pylist()
    return [{**row, "cosine": round(row["cosine"], 2)} for row in found]


def verified() -> object:
    """Compare altered copies and another picture with an original."""
    pixels = scene(1)
    others = {name: np.ascontiguousarray(alter(pixels)) for name, alter in ALTERED.items()} | {"other": scene(2)}
    return [
        (name, found.evidence, round(found.correlation, 1), found.alignment and found.alignment.element)
        for name, other in others.items()
        if (found := verify_pair(b"a", b"b", other, pixels, min_quality=90, distance=50))
    ]


def planted(dataset: Dataset) -> object:
    """Plant canaries; their brightness alone, because encoders differ."""
    canaries = plant(dataset, 1, seed=0)
    return [
        (canary.transform, canary.origin.shard, canary.origin.row, pixels.shape, round(float(pixels.mean()) / 4))
        for canary in canaries
        if len(pixels := decode(canary.image))
    ]


def digest(output: object) -> str:
    return hashlib.sha256(json.dumps(output).encode()).hexdigest()[:16]


@pytest.mark.parametrize(
    ("compute", "version", "golden"),
    [
        (joined, JOIN_VERSION, {1: "8fb4ea2dfd1a63ed", 2: "313d2c52f39a32e5", 3: "591465438f468696"}),
        (varied, VARIANTS_VERSION, {1: "4bcf4b986c91a666", 2: "1c2a5b2081e90a4a"}),
        (cropped, CROPS_VERSION, {1: "d8b56f61e81ecce3"}),
        (parts, INSETS_VERSION, {1: "da47f9360f77d53f"}),
        (embedded, EMBEDDING_VERSION, {1: "f4b46498aeb9c1fa"} | dict.fromkeys((2, 3), "aada75b6e8804af3")),
        (verified, EVIDENCE_VERSION, {1: "6cc84a42c3aa0be8"} | dict.fromkeys((2, 3, 4), "2ec10539049a5eca")),
    ],
)
def test_the_output_of_a_version_stays(compute: Callable[[], object], version: int, golden: dict[int, str]) -> None:
    assert digest(compute()) == golden.get(version)


def test_canaries_of_a_version_stay(small_dataset: Dataset) -> None:
    assert digest(planted(small_dataset)) == {3: "73d40da676f395b9"}.get(CANARIES_VERSION)
