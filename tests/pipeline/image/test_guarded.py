"""An image that takes too long or ends its decoder costs one rejected image, and nothing else."""

import io
import os
from contextlib import closing

import numpy as np
import pytest
from PIL import Image

from pipeline.base.errors import BadImage
from pipeline.image.guarded import Isolated
from pipeline.image.policy import ImagePolicy, prepare
from tests.conftest import jpeg, picture

KEEP = ImagePolicy()


class KillsWhoeverReadsIt:
    """Ends the process that receives it, as an image does that crashes the decoder."""

    def __reduce__(self) -> tuple[object, tuple[int]]:
        return os._exit, (1,)


@pytest.fixture
def large() -> bytes:
    """A PNG of 10 megapixels."""
    sink = io.BytesIO()
    Image.fromarray(np.tile(picture(1, 400, 400), (8, 8, 1))).save(sink, "PNG", compress_level=1)
    return sink.getvalue()


def reason(isolated: Isolated, data: object) -> str:
    with pytest.raises(BadImage) as caught:
        isolated(data, KEEP)
    return caught.value.reason


def test_an_image_that_takes_too_long_is_rejected(large: bytes) -> None:
    with closing(Isolated(picture_seconds=0.001)) as isolated:
        assert reason(isolated, large) == "timeout"


def test_an_image_that_kills_its_process_is_rejected_and_the_next_one_has_a_new_process(large: bytes) -> None:
    with closing(Isolated()) as isolated:
        assert isolated(jpeg(picture(1)), KEEP) == prepare(jpeg(picture(1)), KEEP)
        assert isolated._child is not None
        isolated._child[0].kill()
        assert isolated(large, KEEP).width == 3200  # whose child was killed by others is tried again
        assert reason(isolated, KillsWhoeverReadsIt()) == "crashed"
        assert reason(isolated, b"text") == "not-an-image"
