"""Where the views of an image lie."""

from pipeline.base.seeds import rng
from pipeline.image.transforms import inception_box


def test_a_picture_no_box_fits_is_used_whole() -> None:
    assert inception_box(1, 500, rng(0, "narrow")) == (0, 0, 500, 1)
