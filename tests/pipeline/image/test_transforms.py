"""Where the views of an image lie: within it, drawn evenly, and the same for the same seed."""

from dataclasses import replace
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from pipeline.base.seeds import rng, sample_uniform
from pipeline.image.transforms import EvaluationView, FinetuneView, Placement, PretrainView, inception_box

SEEDS = st.integers(0, 2**128 - 1)
SIDES = st.integers(1, 2000)


@settings(max_examples=300)
@given(SIDES, SIDES, SEEDS)
def test_an_inception_crop_keeps_area_and_aspect_or_is_the_whole_image(height: int, width: int, seed: int) -> None:
    left, top, right, bottom = box = inception_box(height, width, Random(seed))
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    if box == (0, 0, width, height):
        return
    crop_width, crop_height, half = right - left, bottom - top, 0.5  # sides are rounded
    assert (crop_width + half) * (crop_height + half) >= 0.05 * height * width
    assert (crop_width + half) / max(0.5, crop_height - half) >= 0.75
    assert max(0.5, crop_width - half) / (crop_height + half) <= 1.33


def test_inception_crops_reach_all_corners_all_areas_and_both_aspects() -> None:
    random = Random(0)
    boxes = np.array([inception_box(300, 300, random) for _ in range(4000)])
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) / 300**2
    aspects = (boxes[:, 2] - boxes[:, 0]) / (boxes[:, 3] - boxes[:, 1])
    assert areas.min() < 0.06
    assert areas.max() > 0.95
    assert aspects.min() < 0.77
    assert aspects.max() > 1.31
    assert boxes[:, :2].min() == 0
    assert boxes[:, 2:].max() == 300
    # Where there is no need to try again, areas are drawn evenly.
    share = np.mean(areas < 0.3) / np.mean(areas < 0.55)
    assert 0.45 < share < 0.55


def test_the_views_of_a_key_are_those_of_all_releases() -> None:
    drawn = [
        view(300, 400, sample_uniform(7, "augment", 0, 2, 3, 5)) for view in (PretrainView(224), FinetuneView(160, 128))
    ]
    assert drawn == [
        Placement((48, 59, 234, 284), 224),
        Placement((0, 0, 400, 300), 160, crop=(10, 4, 138, 132), flip=True),
    ]


def test_an_image_no_box_fits_is_used_whole() -> None:
    assert inception_box(1, 500, rng(0, "narrow")) == (0, 0, 500, 1)


@settings(max_examples=100)
@given(SIDES, SIDES, SEEDS, st.integers(1, 200), st.integers(0, 100))
def test_a_finetune_crop_lies_inside_the_resized_square(
    height: int, width: int, seed: int, crop_px: int, more: int
) -> None:
    placement = FinetuneView(crop_px + more, crop_px)(height, width, Random(seed))
    assert placement.box == (0, 0, width, height)
    assert placement.side_px == crop_px + more
    assert placement.crop
    left, top, right, bottom = placement.crop
    assert 0 <= left <= more
    assert 0 <= top <= more
    assert (right - left, bottom - top) == (crop_px, crop_px)


def test_finetune_crops_reach_every_offset() -> None:
    crops = [FinetuneView(12, 8)(9, 9, Random(seed)).crop for seed in range(400)]
    assert {crop[:2] for crop in crops if crop} == {(left, top) for left in range(5) for top in range(5)}


@pytest.mark.parametrize("view", [PretrainView(8), FinetuneView(10, 8), FinetuneView(10, 8, crop=False)])
def test_half_of_the_views_are_flipped_and_none_where_it_is_switched_off(view: PretrainView | FinetuneView) -> None:
    flips = [view(60, 80, Random(seed)).flip for seed in range(1000)]
    assert 430 < sum(flips) < 570
    off = [replace(view, flip=False)(60, 80, Random(seed)) for seed in range(200)]
    assert not any(placement.flip for placement in off)
    # The switch changes nothing else.
    assert off == [view(60, 80, Random(seed))._replace(flip=False) for seed in range(200)]


def test_without_the_crop_an_image_is_resized_straight_to_the_crops_size() -> None:
    placement = FinetuneView(160, 128, flip=False, crop=False)(60, 80, Random(0))
    assert placement == Placement((0, 0, 80, 60), 128)


def test_evaluation_shows_the_whole_image_and_draws_nothing() -> None:
    random = Random(5)
    before = random.getstate()
    assert EvaluationView(32)(60, 80, random) == Placement((0, 0, 80, 60), 32)
    assert EvaluationView(480, 512)(512, 700, random) == Placement((110, 16, 590, 496), 480)
    assert EvaluationView(480, 512)(256, 128, random) == Placement((4, 68, 124, 188), 480)
    assert random.getstate() == before


@given(SIDES, SIDES, SEEDS)
def test_the_same_seed_leads_to_the_same_placement(height: int, width: int, seed: int) -> None:
    for view in (PretrainView(224), FinetuneView(160, 128)):
        assert view(height, width, Random(seed)) == view(height, width, Random(seed))


def test_placements_stay_what_they_were_in_earlier_releases() -> None:
    assert PretrainView(224)(375, 500, Random(2**100 + 7)) == Placement((123, 56, 403, 354), 224, None, True)
    assert FinetuneView(160, 128)(375, 500, Random(2**100 + 7)) == Placement(
        (0, 0, 500, 375), 160, (13, 10, 141, 138), False
    )
