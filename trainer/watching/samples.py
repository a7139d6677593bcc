"""Pictures of a pretraining run as its network sees them."""

import base64

import simplejpeg

from pipeline.base.errors import NotFound
from pipeline.image.transforms import PretrainView
from pipeline.store.base import Store
from pipeline.streaming.order import OrderConfig
from pipeline.streaming.stream import LoaderConfig, Stream
from trainer.jobs.config import PretrainConfig
from trainer.recipes.data import training_sources
from trainer.run.history import current_config

_QUALITY = 85


def sample_pictures(store: Store, num_pictures: int) -> list[str]:
    """Return some training pictures of a run, cropped and flipped as for its network, as URLs of JPEG data.

    Raises:
        ConfigError: It is no run of pretraining.
        BitError: The dataset cannot be read.
    """
    settings = current_config(store, PretrainConfig)
    if settings is None:
        raise NotFound(f"{store.url} holds no run")
    order = OrderConfig(seed=settings.seed, batch_size=num_pictures, num_lanes=1, window_blocks=settings.window_blocks)
    stream = Stream(
        training_sources(settings),
        order,
        PretrainView(settings.recipe.resolution_px, flip=settings.recipe.flip),
        loader=LoaderConfig(num_workers=0),
    )
    try:
        images = next(stream).images
    finally:
        stream.close()
    bodies = (simplejpeg.encode_jpeg(image, quality=_QUALITY, colorspace="RGB") for image in images)
    return [f"data:image/jpeg;base64,{base64.b64encode(body).decode()}" for body in bodies]
