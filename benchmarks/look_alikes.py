"""Pictures with nothing in them, which look alike without being copies."""

import numpy as np
from PIL import Image, ImageDraw

from pipeline.image.decode import encode_jpeg


def degenerate() -> list[tuple[str, bytes]]:
    """Return (name, bytes) of solid pictures, gradients, products on white, skies and pages of text, 25 each."""
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
