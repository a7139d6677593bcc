"""Crops and moved frames are found by codes of crops, which propose pairs and prove nothing."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

from cluster.audit.base.tables import CLOSE_BITS
from cluster.audit.search.crops import crop_codes
from cluster.audit.search.join import candidates, closest, index_crops
from pipeline.image.fingerprint import fingerprint
from tests.cluster.audit.audits import scene
from tests.cluster.audit.search.codes import code_table, flipped, random_codes

_CELLS, _SIDE_PX = 15, 300  # of the lattice along a side, and of a picture that it divides


def bits_apart(upstream: np.ndarray, downstream: np.ndarray) -> int:
    """Return the distance of an upstream picture's code to the nearest crop of a downstream picture."""
    code = np.frombuffer(fingerprint(upstream)[0], np.uint8)
    return int(np.bitwise_count(crop_codes(downstream) ^ code).sum(axis=1).min())


@settings(max_examples=25)
@given(st.integers(0, 99), st.tuples(*(st.integers(0, 6) for _ in range(4))))
def test_every_crop_on_the_lattice_is_near(seed: int, cut: tuple[int, int, int, int]) -> None:
    cells = [(first, max(first + 9, _CELLS - last)) for first, last in (cut[:2], cut[2:])]
    (top, bottom), (left, right) = ((first, min(last, _CELLS)) for first, last in cells)
    whole, cell = scene(seed, _SIDE_PX, _SIDE_PX), _SIDE_PX // _CELLS
    crop = np.ascontiguousarray(whole[top * cell : bottom * cell, left * cell : right * cell])
    assert bits_apart(crop, whole) <= CLOSE_BITS


@pytest.mark.parametrize(("rows", "columns"), [(0, 2), (-1, 1), (2, -2), (1, 0)])
def test_a_frame_that_is_moved_by_up_to_two_cells_is_near(rows: int, columns: int) -> None:
    whole, cell = scene(5, _SIDE_PX, _SIDE_PX), _SIDE_PX // _CELLS
    around = np.pad(whole, ((2 * cell, 2 * cell), (2 * cell, 2 * cell), (0, 0)), mode="edge")
    top, left = (2 + rows) * cell, (2 + columns) * cell
    assert bits_apart(np.ascontiguousarray(around[top : top + _SIDE_PX, left : left + _SIDE_PX]), whole) <= CLOSE_BITS


def test_most_crops_anywhere_are_near() -> None:
    draw, found = np.random.default_rng(0), 0
    for seed in range(40):
        whole = Image.fromarray(scene(seed, 320, 240))
        width, height = draw.uniform(0.6, 0.9, 2) * whole.size
        left, top = draw.uniform(0, whole.width - width), draw.uniform(0, whole.height - height)
        crop = whole.crop((round(left), round(top), round(left + width), round(top + height)))
        found += bits_apart(np.asarray(crop), np.asarray(whole)) <= 62
    assert found >= 30


@pytest.mark.parametrize(("bits", "counted"), [(0, 45), (44, 45), (50, 50), (62, 62), (66, 62), (67, None)])
def test_the_distance_of_a_crop_is_no_evidence(bits: int, counted: int | None) -> None:
    crops, up = random_codes(9, 1), random_codes(6, 2)
    up[4] = flipped(crops[7], bits, 3)
    bodies = pa.array([crops[:5].tobytes(), b"", crops[5:].tobytes()], pa.binary())  # the second one is broken
    side = code_table(random_codes(3, 4)).append_column("crop_codes", bodies)
    found = candidates(code_table(up), index_crops(side, 62), 62).to_pylist()
    assert [(row["up_row"], row["down_row"], row["distance"]) for row in found] == (
        [] if counted is None else [(4, 2, counted)]
    )


def test_of_several_searches_the_smallest_distance_of_a_pair_counts() -> None:
    down, up = random_codes(4, 5), random_codes(4, 6)
    up[1], up[3] = flipped(down[2], 10, 0), flipped(down[0], 60, 1)
    near = candidates(code_table(up), code_table(down), 62)
    crops = code_table(down).append_column("crop_codes", pa.array([code.tobytes() for code in down], pa.binary()))
    far = candidates(code_table(up), index_crops(crops, 62), 62)
    for tables in ([near, far], [far, near]):
        rows = closest(tables).to_pylist()
        assert [(row["up_row"], row["down_row"], row["distance"]) for row in rows] == [(1, 2, 10), (3, 0, 60)]
    assert closest([]).num_rows == 0
