"""Canaries: downstream pictures, altered in known ways and hidden upstream, to measure what an audit finds."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cluster.audit.base.tables import MIN_QUALITY
from pipeline.base.seeds import rng
from pipeline.dataset.dataset import Address, Dataset
from pipeline.image.decode import Pixels, decode

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage

CANARIES_VERSION = 3  # raised with every change of what plant returns
_JPEG_QUALITY = 90  # of a canary, after its transform


@dataclass(frozen=True)
class Canary:
    """One altered picture.

    Attributes:
        transform: Name of the alteration, a key of TRANSFORMS.
        origin: Address of the downstream picture that was altered.
        image: Its JPEG bytes.
    """

    transform: str
    origin: Address
    image: bytes


def _jpeg(image: "PilImage", quality: int) -> bytes:
    sink = io.BytesIO()
    image.save(sink, "JPEG", quality=quality)
    return sink.getvalue()


def _recompressed(image: "PilImage") -> "PilImage":
    from PIL import Image  # noqa: PLC0415 - takes 40 ms that `--help` need not pay

    return Image.open(io.BytesIO(_jpeg(image, 30))).convert("RGB")


def _noisy(image: "PilImage") -> "PilImage":
    from PIL import Image  # noqa: PLC0415

    pixels = np.asarray(image, np.float32)
    noise = rng(0, "canary noise").normal(0.0, 10.0, pixels.shape)
    return Image.fromarray(np.clip(pixels + noise, 0, 255).astype(np.uint8))


def _blurred(image: "PilImage") -> "PilImage":
    from PIL import ImageFilter  # noqa: PLC0415

    return image.filter(ImageFilter.GaussianBlur(max(image.size) / 200 + 0.5))


def _toned(brightness: float, contrast: float) -> Callable[["PilImage"], "PilImage"]:
    def tone(image: "PilImage") -> "PilImage":
        from PIL import ImageEnhance  # noqa: PLC0415

        return ImageEnhance.Contrast(ImageEnhance.Brightness(image).enhance(brightness)).enhance(contrast)

    return tone


def _scaled(factor: float) -> Callable[["PilImage"], "PilImage"]:
    return lambda image: image.resize(tuple(max(8, round(side * factor)) for side in image.size))


def _turned(method: int) -> Callable[["PilImage"], "PilImage"]:
    return lambda image: image.transpose(method)


def _cropped(kept: float) -> Callable[["PilImage"], "PilImage"]:
    def crop(image: "PilImage") -> "PilImage":
        left, top = (round(side * (1 - kept) / 2) for side in image.size)
        return image.crop((left, top, image.size[0] - left, image.size[1] - top))

    return crop


def _bordered(image: "PilImage") -> "PilImage":
    from PIL import ImageOps  # noqa: PLC0415

    return ImageOps.expand(image, tuple(round(0.1 * side) for side in image.size), "white")


def _corner(image: "PilImage") -> "PilImage":
    """Cut a part off two sides, as another crop of the same scene has it."""
    width, height = image.size
    return image.crop((round(0.25 * width), round(0.2 * height), width, height))


def _retoned(image: "PilImage") -> "PilImage":
    from PIL import Image  # noqa: PLC0415

    pixels = np.asarray(image, np.float32) / 255
    gamma = np.array([0.75, 1.0, 1.35], np.float32)  # of red, green, blue: a warm filter
    return Image.fromarray(np.round(255 * pixels**gamma).astype(np.uint8))


def _captioned(image: "PilImage") -> "PilImage":
    from PIL import ImageDraw  # noqa: PLC0415

    out = image.copy()
    width, height = out.size
    draw = ImageDraw.Draw(out)
    draw.rectangle((0, round(0.8 * height), width, height), fill="black")
    draw.text((round(0.05 * width), round(0.83 * height)), "breaking news", fill="white")
    return out


def _covered(image: "PilImage") -> "PilImage":
    from PIL import ImageDraw  # noqa: PLC0415

    out = image.copy()
    width, height = out.size
    ImageDraw.Draw(out).ellipse((0.55 * width, 0.1 * height, 0.9 * width, 0.45 * height), fill="yellow")
    return out


def _photographed(image: "PilImage") -> "PilImage":
    """Look at a picture from the side, as a photo of a print or of a screen does."""
    from PIL import Image  # noqa: PLC0415

    width, height = image.size
    corners = (0.06 * width, 0.03 * height, 0.0, height, 0.94 * width, 0.97 * height, width, 0.0)
    out = image.transform(image.size, Image.Transform.QUAD, corners, Image.Resampling.BICUBIC)
    return _toned(0.9, 0.85)(out)


def _framed(image: "PilImage") -> "PilImage":
    """Put a picture small into a larger one, as a screenshot does."""
    from PIL import Image  # noqa: PLC0415

    width, height = image.size
    out = Image.new("RGB", (round(1.6 * width), round(1.6 * height)), (232, 234, 238))
    out.paste(image, (round(0.15 * width), round(0.4 * height)))
    return out


def _shifted(image: "PilImage") -> "PilImage":
    """Move a picture by a tenth, as the next frame of a video has it; what comes in repeats the edge."""
    pixels = np.asarray(image)
    rows, columns = (round(0.1 * side) for side in pixels.shape[:2])
    moved = np.pad(pixels, ((rows, 0), (columns, 0), (0, 0)), mode="edge")[: pixels.shape[0], : pixels.shape[1]]
    return _fromarray(moved)


def _in_blurred_frame(image: "PilImage") -> "PilImage":
    """Put a picture before a blurred and enlarged copy of itself, as videos of upright pictures do."""
    from PIL import ImageFilter  # noqa: PLC0415

    width, height = image.size
    out = image.resize((round(1.6 * width), height)).filter(ImageFilter.GaussianBlur(max(image.size) / 20))
    out.paste(image, (round(0.3 * width), 0))
    return out


def _in_collage(image: "PilImage") -> "PilImage":
    """Put a picture beside a plain one of its size."""
    from PIL import Image  # noqa: PLC0415

    out = Image.new("RGB", (2 * image.size[0], image.size[1]), (96, 120, 84))
    out.paste(image, (0, 0))
    return out


def _negative(image: "PilImage") -> "PilImage":
    return _fromarray(255 - np.asarray(image))


def _fromarray(pixels: Pixels) -> "PilImage":
    from PIL import Image  # noqa: PLC0415

    return Image.fromarray(pixels)


# Pillow's Transpose numbers: 0 mirrors left-right, 2 and 3 turn by 90 and 180 degrees.
TRANSFORMS: dict[str, Callable[["PilImage"], "PilImage"]] = {
    "JPEG quality 30": _recompressed,
    "half size": _scaled(0.5),
    "double size": _scaled(2.0),
    "mirrored": _turned(0),
    "turned 90": _turned(2),
    "turned 180": _turned(3),
    "grey": lambda image: image.convert("L").convert("RGB"),
    "brighter": _toned(1.3, 1.0),
    "more contrast": _toned(1.0, 1.4),
    "noise 10": _noisy,
    "blurred": _blurred,
    "cropped to 95 %": _cropped(0.95),
    "cropped to 85 %": _cropped(0.85),
    "cropped to 70 %": _cropped(0.70),
    "white border of 10 %": _bordered,
    # What copies in the wild have gone through; each counts by itself, since nobody knows their shares in your data.
    "another crop of the scene": _corner,
    "retoned": _retoned,
    "text over it": _captioned,
    "sticker over it": _covered,
    "photographed from the side": _photographed,
    "inside a screenshot": _framed,
    "shifted": _shifted,
    "in a blurred frame": _in_blurred_frame,
    "half of a collage": _in_collage,
    "negative": _negative,
}


def plant(downstream: Dataset, samples_each: int, seed: int) -> list[Canary]:
    """Create `samples_each` canaries of every transform, from pictures that are not flat.

    Args:
        downstream: The originals.
        samples_each: Pictures per transform; fewer if the set is smaller.
        seed: Key of the choice.
    """
    from PIL import Image  # noqa: PLC0415 - see _recompressed

    samples = downstream.all_samples(["quality"])
    usable = np.flatnonzero(samples["quality"].to_numpy() >= MIN_QUALITY)
    canaries = []
    for name, transform in TRANSFORMS.items():
        picked = rng(seed, "canaries", name).choice(usable, min(samples_each, len(usable)), replace=False)
        for index in np.sort(picked).tolist():
            origin = Address(samples["shard"][index].as_py(), samples["row"][index].as_py())
            original = Image.fromarray(decode(downstream.read_image(origin)))
            canaries.append(Canary(name, origin, _jpeg(transform(original), _JPEG_QUALITY)))
    return canaries
