"""What happens to pictures between a web page and a training set, drawn at random: two versions of one picture.

Each kind takes a picture, other pictures and a random generator, and returns both versions. Strengths are continuous
and drawn anew for each picture, so no two pairs of a kind are alike.
"""

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageOps

Picture = Image.Image
Kind = Callable[[Picture, Sequence[Picture], np.random.Generator], tuple[Picture, Picture]]  # upstream, downstream


def _window(image: Picture, left: float, top: float, width: float, height: float) -> Picture:
    """Cut a window, in shares of the sides."""
    x, y = image.size
    return image.crop((round(left * x), round(top * y), round((left + width) * x), round((top + height) * y)))


def crop(image: Picture, _: Sequence[Picture], draw: np.random.Generator) -> tuple[Picture, Picture]:
    """Cut a part of the picture: 60 to 90 % of each side."""
    width, height = draw.uniform(0.6, 0.9, 2)
    return _window(image, draw.uniform(0, 1 - width), draw.uniform(0, 1 - height), width, height), image


def two_crops(image: Picture, _: Sequence[Picture], draw: np.random.Generator) -> tuple[Picture, Picture]:
    """Cut two parts of one scene, each of 75 to 95 % of a side."""
    parts = []
    for _number in range(2):
        kept = draw.uniform(0.75, 0.95)
        parts.append(_window(image, draw.uniform(0, 1 - kept), draw.uniform(0, 1 - kept), kept, kept))
    return parts[0], parts[1]


def shifted(image: Picture, _: Sequence[Picture], draw: np.random.Generator) -> tuple[Picture, Picture]:
    """Show two frames of a camera that moves by 5 to 15 % of the picture."""
    x, y = draw.uniform(0.05, 0.15, 2)
    left = draw.random() < 0.5
    first = _window(image, x if left else 0.0, 0.0, 1 - x, 1 - y)
    return first, _window(image, 0.0 if left else x, y, 1 - x, 1 - y)


def _solve(source: Sequence[tuple[float, float]], target: Sequence[tuple[float, float]]) -> list[float]:
    """Return Pillow's eight coefficients of the perspective map from source to target points."""
    rows = []
    for (x, y), (u, v) in zip(source, target, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
    return [float(each) for each in np.linalg.solve(np.array(rows), np.array(target).ravel())]


def _noisy(image: Picture, deviation: float, draw: np.random.Generator) -> Picture:
    pixels = np.asarray(image, np.float32)
    return Image.fromarray(np.clip(pixels + draw.normal(0, deviation, pixels.shape), 0, 255).astype(np.uint8))


def photographed(image: Picture, _: Sequence[Picture], draw: np.random.Generator) -> tuple[Picture, Picture]:
    """Photograph a print or a screen: perspective, a darker corner, blur, noise."""
    width, height = image.size
    corners = [(0.0, 0.0), (width, 0.0), (width, height), (0.0, height)]
    moved = [(x + draw.uniform(-0.06, 0.06) * width, y + draw.uniform(-0.06, 0.06) * height) for x, y in corners]
    out = image.transform(image.size, Image.Transform.PERSPECTIVE, _solve(corners, moved), Image.Resampling.BICUBIC,
                          fillcolor=tuple(draw.integers(30, 220, 3).tolist()))  # fmt: skip
    out = out.filter(ImageFilter.GaussianBlur(draw.uniform(0.001, 0.004) * max(image.size)))
    shade = np.linspace(1.0, draw.uniform(0.7, 0.95), width)[None, :, None]
    out = Image.fromarray((np.asarray(out, np.float32) * shade).astype(np.uint8))
    return _noisy(out, draw.uniform(2, 8), draw), image


def retoned(image: Picture, _: Sequence[Picture], draw: np.random.Generator) -> tuple[Picture, Picture]:
    """Apply a filter: gamma of each channel, contrast, brightness and colour."""
    gamma = draw.uniform(0.65, 1.5, 3).astype(np.float32)
    out = Image.fromarray(np.round(255 * (np.asarray(image, np.float32) / 255) ** gamma).astype(np.uint8))
    for enhance in (ImageEnhance.Contrast, ImageEnhance.Brightness, ImageEnhance.Color):
        out = enhance(out).enhance(draw.uniform(0.65, 1.4))
    return out, image


def blurred_frame(image: Picture, _: Sequence[Picture], draw: np.random.Generator) -> tuple[Picture, Picture]:
    """Put the picture before a blurred and enlarged copy of itself, to fill another format."""
    width, height = image.size
    ratio = draw.uniform(1.25, 1.9)
    size = (round(width * ratio), height) if draw.random() < 0.6 else (width, round(height * ratio))
    out = ImageOps.fit(image, size).filter(ImageFilter.GaussianBlur(max(size) / draw.uniform(12, 30)))
    out = ImageEnhance.Brightness(out).enhance(draw.uniform(0.6, 1.0))
    out.paste(image, ((size[0] - width) // 2, (size[1] - height) // 2))
    return out, image


def sticker(image: Picture, others: Sequence[Picture], draw: np.random.Generator) -> tuple[Picture, Picture]:
    """Cover 6 to 20 % of the picture by a shape or a part of another picture."""
    out, (width, height) = image.copy(), image.size
    side = draw.uniform(0.06, 0.2) ** 0.5
    size = (max(2, round(side * width)), max(2, round(side * height)))
    place = (round(draw.uniform(0, width - size[0])), round(draw.uniform(0, height - size[1])))
    mask = Image.new("L", size, 0)
    shape = ImageDraw.Draw(mask).ellipse if draw.random() < 0.5 else ImageDraw.Draw(mask).rectangle
    shape((0, 0, size[0] - 1, size[1] - 1), fill=255)
    other = others[int(draw.integers(len(others)))]
    colour = tuple(draw.integers(0, 256, 3).tolist())
    out.paste(ImageOps.fit(other, size) if draw.random() < 0.5 else Image.new("RGB", size, colour), place, mask)
    return out, image


def lettered(image: Picture, _: Sequence[Picture], draw: np.random.Generator) -> tuple[Picture, Picture]:
    """Write two or three lines over the picture, on a band or without one."""
    out, (width, height) = image.copy(), image.size
    line, top = round(draw.uniform(0.07, 0.13) * height) + 1, draw.uniform(0.0, 0.65)
    count = int(draw.integers(2, 4))
    if draw.random() < 0.4:
        fill = tuple(draw.integers(0, 256, 3).tolist())
        ImageDraw.Draw(out).rectangle((0, top * height, width, top * height + count * line), fill=fill)
    for number in range(count):
        words = "".join(draw.choice(list("ABCDEFGHIKLMNOPRSTUVWE   "), 18).tolist())
        mark = Image.new("L", (6 * len(words) + 4, 11))
        ImageDraw.Draw(mark).text((2, 0), words, fill=255)
        mark = mark.resize((max(4, round(draw.uniform(0.6, 0.95) * width)), line))
        colour = "white" if draw.random() < 0.6 else "black"
        out.paste(colour, (round(0.03 * width), round(top * height) + number * line), mark)
    return out, image


def collage(image: Picture, others: Sequence[Picture], draw: np.random.Generator) -> tuple[Picture, Picture]:
    """Put two pictures side by side or below each other, or four in a square."""
    width, height = image.size
    gap = round(draw.uniform(0, 0.03) * width)
    columns, rows = [(2, 1), (1, 2), (2, 2)][int(draw.integers(3))]
    size = (columns * width + (columns - 1) * gap, rows * height + (rows - 1) * gap)
    out, own = Image.new("RGB", size, "white"), int(draw.integers(columns * rows))
    for cell in range(columns * rows):
        part = image if cell == own else ImageOps.fit(others[int(draw.integers(len(others)))], image.size)
        out.paste(part, ((cell % columns) * (width + gap), (cell // columns) * (height + gap)))
    return out, image


def screenshot(image: Picture, _: Sequence[Picture], draw: np.random.Generator) -> tuple[Picture, Picture]:
    """Show the picture in an app, between bars and lines of text, at 45 to 85 % of the width or height."""
    width, height = image.size
    share = draw.uniform(0.45, 0.85, 2)
    size = (round(width / share[0]), round(height / share[1]))
    is_dark = draw.random() < 0.5
    out = Image.new("RGB", size, (22, 24, 28) if is_dark else (246, 247, 249))
    paint = ImageDraw.Draw(out)
    bar = max(1, round(0.05 * size[1]))
    paint.rectangle((0, 0, size[0], bar), fill=(52, 88, 160))
    place = (round(draw.uniform(0, size[0] - width)), round(draw.uniform(min(bar, size[1] - height), size[1] - height)))
    for y in range(2 * bar, size[1], max(4, bar)):
        end = draw.uniform(0.3, 0.95) * size[0]
        paint.rectangle((0.04 * size[0], y, end, y + max(1, bar // 3)), fill=(120, 124, 130))
    out.paste(image, place)
    return out, image


def inside_another(image: Picture, others: Sequence[Picture], draw: np.random.Generator) -> tuple[Picture, Picture]:
    """Put the picture into a corner of another one, at 40 to 65 % of its sides."""
    share = draw.uniform(0.4, 0.65)
    width, height = image.size
    out = ImageOps.fit(others[int(draw.integers(len(others)))], (round(width / share), round(height / share)))
    x, y = draw.uniform(0.02, 1 - share - 0.02, 2)
    out.paste(image, (round(x * out.size[0]), round(y * out.size[1])))
    return out, image


def barrel(image: Picture, _: Sequence[Picture], draw: np.random.Generator) -> tuple[Picture, Picture]:
    """Look through a wide lens: points move by up to 10 % of the half side, inwards or outwards."""
    pixels, strength = np.asarray(image), draw.uniform(0.03, 0.1) * (1 if draw.random() < 0.5 else -1)
    height, width = pixels.shape[:2]
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    factor = 1 + strength * (x * x + y * y - 1)
    rows = np.clip(np.rint((y * factor + 1) / 2 * (height - 1)), 0, height - 1).astype(int)
    columns = np.clip(np.rint((x * factor + 1) / 2 * (width - 1)), 0, width - 1).astype(int)
    return Image.fromarray(pixels[rows, columns]), image


def halftone(image: Picture, _: Sequence[Picture], draw: np.random.Generator) -> tuple[Picture, Picture]:
    """Print the picture in dots of 3 to 5 px, as newspapers do."""
    grey = np.asarray(image.convert("L"), np.float32) / 255
    period, angle = draw.uniform(3, 5), draw.uniform(0.2, 0.8)
    y, x = np.indices(grey.shape)
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    screen = (2 + np.cos(2 * np.pi * u / period) + np.cos(2 * np.pi * v / period)) / 4
    dots = np.clip((grey - screen) * 4 + 0.5, 0, 1)
    return Image.fromarray((255 * dots).astype(np.uint8)).convert("RGB"), image


def recompressed(image: Picture, _: Sequence[Picture], draw: np.random.Generator) -> tuple[Picture, Picture]:
    """Scale the picture to 40 to 80 % and back, and blur it a little: a copy of a copy."""
    small = image.resize(tuple(max(16, round(side * draw.uniform(0.4, 0.8))) for side in image.size))
    return small.filter(ImageFilter.GaussianBlur(draw.uniform(0, 0.8))), image


KINDS: dict[str, Kind] = {
    "a crop": crop,
    "two crops of one scene": two_crops,
    "shifted": shifted,
    "photographed again": photographed,
    "retoned": retoned,
    "in a blurred frame": blurred_frame,
    "sticker": sticker,
    "lines of text": lettered,
    "collage": collage,
    "screenshot": screenshot,
    "inside another picture": inside_another,
    "wide lens": barrel,
    "halftone": halftone,
    "copy of a copy": recompressed,
}
