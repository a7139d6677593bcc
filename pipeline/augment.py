"""Views of a picture for training and evaluation: functions of (pixels, generator), uint8 in, uint8 out."""

from collections.abc import Callable

import numpy as np

from pipeline.image import Pixels

# (height, width, 3) and a generator -> (out, out, 3)
Transform = Callable[[Pixels, np.random.Generator], Pixels]

# Inception crop as the released pipeline configures it (spec: big_vision ops_image).
MIN_AREA_FRACTION = 0.05
MIN_ASPECT, MAX_ASPECT = 0.75, 1.33
_MAX_ATTEMPTS = 100

Box = tuple[int, int, int, int]  # left, top, right, bottom


def inception_box(height: int, width: int, generator: np.random.Generator) -> Box:
    """Draws a crop of 5-100 % of the area and aspect 0.75-1.33; the whole picture after 100 misses."""
    for _ in range(_MAX_ATTEMPTS):
        area = height * width * generator.uniform(MIN_AREA_FRACTION, 1.0)
        aspect = generator.uniform(MIN_ASPECT, MAX_ASPECT)
        crop_width, crop_height = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
        if 0 < crop_width <= width and 0 < crop_height <= height:
            left = int(generator.integers(0, width - crop_width + 1))
            top = int(generator.integers(0, height - crop_height + 1))
            return left, top, left + crop_width, top + crop_height
    return 0, 0, width, height


def resize(pixels: Pixels, out_px: int, box: Box | None = None) -> Pixels:
    """Resizes the picture (or a box of it) to a square, bilinear with support scaled to the shrinkage."""
    from PIL import Image  # noqa: PLC0415 - 40 ms that the command line's help need not pay

    image = Image.fromarray(pixels)
    return np.asarray(image.resize((out_px, out_px), Image.Resampling.BILINEAR, box=box))


def _flipped(pixels: Pixels, generator: np.random.Generator) -> Pixels:
    return pixels[:, ::-1] if generator.random() < 0.5 else pixels


def pretrain_view(out_px: int, *, flip: bool = True) -> Transform:
    """Inception crop, then a horizontal flip with probability 0.5 [paper 3.3]."""

    def transform(pixels: Pixels, generator: np.random.Generator) -> Pixels:
        box = inception_box(pixels.shape[0], pixels.shape[1], generator)
        view = resize(pixels, out_px, box)
        return _flipped(view, generator) if flip else view

    return transform


def finetune_view(resize_px: int, crop_px: int, *, flip: bool = True, crop: bool = True) -> Transform:
    """Square resize, random crop, flip with probability 0.5 [paper 3.3].

    Args:
        resize_px: Side of the square.
        crop_px: Side of the crop.
        flip: False for tasks whose label depends on direction [paper appendix F].
        crop: False for tasks whose label depends on position: then resized straight to `crop_px`.
    """

    def transform(pixels: Pixels, generator: np.random.Generator) -> Pixels:
        if crop:
            left, top = (int(value) for value in generator.integers(0, resize_px - crop_px + 1, 2))
            view = resize(pixels, resize_px)[top : top + crop_px, left : left + crop_px]
        else:
            view = resize(pixels, crop_px)
        return _flipped(view, generator) if flip else view

    return transform


def evaluation_view(out_px: int) -> Transform:
    """Square resize to the crop size, no crop [paper 3.3; size from the released code]."""

    def transform(pixels: Pixels, generator: np.random.Generator) -> Pixels:
        return resize(pixels, out_px)

    return transform
