"""Views of a picture for training and evaluation: where they lie is a pure function of (height, width, random)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from pipeline.image.jpeg_region.region import Box

# Inception crop as the released pipeline configures it (spec: big_vision ops_image).
MIN_AREA_FRACTION = 0.05
MIN_ASPECT, MAX_ASPECT = 0.75, 1.33
_MAX_ATTEMPTS = 100


class Placement(NamedTuple):
    """Where a view lies.

    Attributes:
        box: Part of the upright picture, in pixels.
        side_px: Side of the square that the box is resized to.
        crop: Part of that square that is kept; None for all of it.
        flip: Whether left and right are exchanged at last.
    """

    box: Box
    side_px: int
    crop: Box | None = None
    flip: bool = False


class Randomness(Protocol):
    """What a view is drawn from: pipeline.base.seeds.Uniform, or Python's random.Random."""

    def random(self) -> float:
        """Return the next number in [0, 1)."""


Transform = Callable[[int, int, Randomness], Placement]  # height, width -> where the view lies


def _below(count: int, random: Randomness) -> int:
    return min(int(random.random() * count), count - 1)


def inception_box(height: int, width: int, random: Randomness) -> Box:
    """Draw a crop of 5-100 % of the area and aspect 0.75-1.33; the whole picture after 100 misses."""
    for _ in range(_MAX_ATTEMPTS):
        area = height * width * (MIN_AREA_FRACTION + (1.0 - MIN_AREA_FRACTION) * random.random())
        aspect = MIN_ASPECT + (MAX_ASPECT - MIN_ASPECT) * random.random()
        crop_width, crop_height = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
        if 0 < crop_width <= width and 0 < crop_height <= height:
            left = _below(width - crop_width + 1, random)
            top = _below(height - crop_height + 1, random)
            return left, top, left + crop_width, top + crop_height
    return 0, 0, width, height


@dataclass(frozen=True)
class PretrainView:
    """Inception crop, then a horizontal flip with probability 0.5 [paper 3.3].

    Attributes:
        out_px: Side of the view.
        flip: Whether it may be flipped.
    """

    out_px: int
    flip: bool = True

    def __call__(self, height: int, width: int, random: Randomness) -> Placement:
        """See Transform."""
        box = inception_box(height, width, random)
        return Placement(box, self.out_px, flip=self.flip and random.random() < 0.5)


@dataclass(frozen=True)
class FinetuneView:
    """Square resize, random crop, flip with probability 0.5 [paper 3.3].

    Attributes:
        resize_px: Side of the square.
        crop_px: Side of the crop.
        flip: False for tasks whose label depends on direction [paper appendix F].
        crop: False for tasks whose label depends on position: then resized straight to `crop_px`.
    """

    resize_px: int
    crop_px: int
    flip: bool = True
    crop: bool = True

    def __call__(self, height: int, width: int, random: Randomness) -> Placement:
        """See Transform."""
        whole = (0, 0, width, height)
        kept = None
        if self.crop:
            left, top = (_below(self.resize_px - self.crop_px + 1, random) for _ in range(2))
            kept = (left, top, left + self.crop_px, top + self.crop_px)
        flip = self.flip and random.random() < 0.5
        return Placement(whole, self.resize_px if self.crop else self.crop_px, kept, flip)


@dataclass(frozen=True)
class EvaluationView:
    """Square resize to the crop size, no crop [paper 3.3; size from the released code].

    Attributes:
        out_px: Side of the view.
        shorter_side_px: Where it is given, the picture is resized to this shorter side instead, and the view is cut out
            of its centre, as ObjectNet is evaluated [paper Table 6: 512 and 480].
    """

    out_px: int
    shorter_side_px: int | None = None

    def __call__(self, height: int, width: int, random: Randomness) -> Placement:
        """See Transform."""
        del random
        if self.shorter_side_px is None:
            return Placement((0, 0, width, height), self.out_px)
        shorter = min(height, width)
        side = min(shorter, max(1, round(shorter * self.out_px / self.shorter_side_px)))
        left, top = (width - side) // 2, (height - side) // 2
        return Placement((left, top, left + side, top + side), self.out_px)
