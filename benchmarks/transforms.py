"""Alterations of pictures that an audit should see through: Pillow picture in, Pillow picture or JPEG quality out."""

import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageOps

Transform = Callable[[Image.Image], Image.Image]
JPEG_QUALITY = 88  # of every copy, after its transform


def _jpeg(quality: int, *, subsampling: int = 2) -> Transform:
    def apply(image: Image.Image) -> Image.Image:
        sink = io.BytesIO()
        image.save(sink, "JPEG", quality=quality, subsampling=subsampling)
        return Image.open(sink).convert("RGB")

    return apply


def _scaled(factor: float) -> Transform:
    return lambda image: image.resize(
        tuple(max(8, round(side * factor)) for side in image.size), Image.Resampling.BICUBIC
    )


def _to_side(side: int) -> Transform:
    def apply(image: Image.Image) -> Image.Image:
        factor = side / max(image.size)
        return image.resize(tuple(max(4, round(own * factor)) for own in image.size), Image.Resampling.BOX)

    return apply


def _crop(kept: float, x: float = 0.5, y: float = 0.5) -> Transform:
    def apply(image: Image.Image) -> Image.Image:
        width, height = (round(side * kept) for side in image.size)
        left, top = round((image.size[0] - width) * x), round((image.size[1] - height) * y)
        return image.crop((left, top, left + width, top + height))

    return apply


def _square_crop(image: Image.Image) -> Image.Image:
    return ImageOps.fit(image, (min(image.size),) * 2)


def _aspect(factor: float) -> Transform:
    return lambda image: image.resize((max(8, round(image.size[0] * factor)), image.size[1]))


def _turned(method: int) -> Transform:
    return lambda image: image.transpose(method)


def _rotated(degrees: float, *, inside: bool) -> Transform:
    def apply(image: Image.Image) -> Image.Image:
        turned = image.rotate(degrees, Image.Resampling.BICUBIC)
        return _crop(0.84)(turned) if inside else turned

    return apply


def _toned(brightness: float, contrast: float, colour: float) -> Transform:
    def apply(image: Image.Image) -> Image.Image:
        image = ImageEnhance.Brightness(image).enhance(brightness)
        return ImageEnhance.Color(ImageEnhance.Contrast(image).enhance(contrast)).enhance(colour)

    return apply


def _gamma(power: float) -> Transform:
    return lambda image: image.point([round(255 * (value / 255) ** power) for value in range(256)] * 3)


def _blurred(radius_per_500: float) -> Transform:
    return lambda image: image.filter(ImageFilter.GaussianBlur(radius_per_500 * max(image.size) / 500))


def _noisy(deviation: float) -> Transform:
    def apply(image: Image.Image) -> Image.Image:
        pixels = np.asarray(image, np.float32)
        noise = np.random.default_rng(image.size[0]).normal(0, deviation, pixels.shape)
        return Image.fromarray(np.clip(pixels + noise, 0, 255).astype(np.uint8))

    return apply


def _bordered(share: float, fill: str) -> Transform:
    return lambda image: ImageOps.expand(image, tuple(round(side * share) for side in image.size), fill)


def _letterboxed(image: Image.Image) -> Image.Image:
    return ImageOps.pad(image, (max(image.size),) * 2, color="black")


def _lettered(height_share: float) -> Transform:
    def apply(image: Image.Image) -> Image.Image:
        image = image.copy()
        size = max(6, round(image.size[1] * height_share))
        mark = Image.new("L", (6 * 11 + 4, 12))
        ImageDraw.Draw(mark).text((2, 0), "SAMPLE 2026", fill=255)
        mark = mark.resize((min(image.size[0], size * 6), size))
        for colour, shift in (("black", 1), ("white", 0)):
            place = ((image.size[0] - mark.size[0]) // 2 + shift, round(image.size[1] * 0.7) + shift)
            image.paste(colour, place, mark)
        return image

    return apply


def _watermarked(image: Image.Image) -> Image.Image:
    mark = Image.new("L", (80, 80))
    for step in range(0, 80, 20):
        ImageDraw.Draw(mark).text((2, step), "(c) stock", fill=110)
    mark = mark.rotate(30).resize(image.size)
    return Image.composite(Image.new("RGB", image.size, "white"), image, mark)


def _overlaid(share: float) -> Transform:
    def apply(image: Image.Image) -> Image.Image:
        image = image.copy()
        side = share**0.5
        width, height = (round(own * side) for own in image.size)
        tile = Image.linear_gradient("L").resize((width, height)).convert("RGB")
        image.paste(
            ImageOps.colorize(tile.convert("L"), "navy", "orange"), (image.size[0] - width, image.size[1] - height)
        )
        return image

    return apply


def _then(*steps: Transform) -> Transform:
    def apply(image: Image.Image) -> Image.Image:
        for step in steps:
            image = step(image)
        return image

    return apply


_mirror = _turned(0)
TRANSFORMS: dict[str, Transform] = {
    "JPEG quality 85": _jpeg(85),
    "JPEG quality 30": _jpeg(30),
    "JPEG quality 10": _jpeg(10),
    "half size": _scaled(0.5),
    "double size": _scaled(2.0),
    "to 64 px": _to_side(64),
    "to 32 px": _to_side(32),
    "aspect x 1.33": _aspect(1.33),
    "square crop": _square_crop,
    "crop 95 %": _crop(0.95),
    "crop 90 %": _crop(0.9),
    "crop 80 %": _crop(0.8),
    "crop 70 %, corner": _crop(0.7, 0.0, 1.0),
    "crop 60 %, side": _crop(0.6, 1.0, 0.4),
    "mirrored": _mirror,
    "turned 90": _turned(2),
    "turned 180": _turned(3),
    "rotated 5, filled": _rotated(5, inside=False),
    "rotated 5, cut": _rotated(5, inside=True),
    "brightness, contrast, colour 0.8": _toned(0.8, 0.8, 0.8),
    "brightness, contrast, colour 1.4": _toned(1.4, 1.4, 1.4),
    "gamma 0.6": _gamma(0.6),
    "gamma 1.7": _gamma(1.7),
    "grey": lambda image: image.convert("L").convert("RGB"),
    "equalized": ImageOps.equalize,
    "blur 2 of 500": _blurred(2),
    "blur 6 of 500": _blurred(6),
    "noise 10": _noisy(10),
    "noise 30": _noisy(30),
    "text 8 %": _lettered(0.08),
    "text 16 %": _lettered(0.16),
    "watermark": _watermarked,
    "border 5 % white": _bordered(0.05, "white"),
    "border 15 % black": _bordered(0.15, "black"),
    "letterboxed": _letterboxed,
    "overlay 20 %": _overlaid(0.2),
    "crop 90 %, darker, JPEG 50": _then(_crop(0.9), _toned(0.8, 1.1, 1.0), _jpeg(50)),
    "mirrored, crop 80 %, text": _then(_mirror, _crop(0.8), _lettered(0.1)),
}


def copy_of(image: Image.Image, name: str) -> bytes:
    """Return the altered copy as JPEG bytes."""
    sink = io.BytesIO()
    TRANSFORMS[name](image).save(sink, "JPEG", quality=JPEG_QUALITY)
    return sink.getvalue()
