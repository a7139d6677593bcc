"""HTML pages that open offline: one file, pictures inlined, no script, no request."""

import base64
import io

import numpy as np
from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from pipeline.image.decode import Pixels

_THUMBNAIL_PX = 160
_THUMBNAIL_QUALITY = 85


def render(package: str, template: str, **values: object) -> bytes:
    """Gives the page of a template of the package; a missing value is an error, text is escaped."""
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader("pipeline")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = _percent
    return environment.get_template(template).render(**values).encode()


def _percent(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{100 * value:.{digits}f}"


def thumbnail(pixels: Pixels, alt: str) -> Markup:
    """Gives an <img> with the picture inlined, at most 160 px a side; small pictures are enlarged without smoothing."""
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
