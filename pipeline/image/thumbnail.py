"""Pictures inlined in pages that open offline."""

import base64
import io

import numpy as np
from markupsafe import Markup

from pipeline.image.decode import Pixels

_THUMBNAIL_PX = 160
_THUMBNAIL_QUALITY = 85


def thumbnail(pixels: Pixels, alt: str) -> Markup:
    """Return an <img> of the picture inlined, at most 160 px a side; small ones are enlarged without smoothing."""
    from PIL import Image  # noqa: PLC0415 - 40 ms that the command line's help need not pay

    image = Image.fromarray(np.ascontiguousarray(pixels))
    factor = _THUMBNAIL_PX / max(image.size)
    how = Image.Resampling.NEAREST if factor > 1 else Image.Resampling.BOX
    image = image.resize((max(1, round(image.size[0] * factor)), max(1, round(image.size[1] * factor))), how)
    sink = io.BytesIO()
    image.save(sink, "JPEG", quality=_THUMBNAIL_QUALITY)
    data = base64.b64encode(sink.getvalue()).decode()
    return Markup('<img src="data:image/jpeg;base64,{}" width="{}" height="{}" alt="{}">').format(
        data, image.size[0], image.size[1], alt
    )
