"""A border or letterbox is found by a variant code, on either side."""

import numpy as np
from PIL import Image, ImageOps

from cluster.audit.search.variants import variant_codes
from pipeline.image.fingerprint import fingerprint
from tests.cluster.audit.audits import scene


def test_a_variant_matches_a_border() -> None:
    pixels = scene(8)
    for framed in (
        ImageOps.expand(Image.fromarray(pixels), (24, 18), "black"),
        ImageOps.pad(Image.fromarray(pixels), (240, 240)),
    ):
        codes = [np.frombuffer(code, np.uint8) for code in variant_codes(pixels)]
        wanted = np.frombuffer(fingerprint(np.asarray(framed))[0], np.uint8)
        assert min(int(np.bitwise_count(code ^ wanted).sum()) for code in codes) <= 31
        back = [np.frombuffer(code, np.uint8) for code in variant_codes(np.asarray(framed))]
        own = np.frombuffer(fingerprint(pixels)[0], np.uint8)
        assert min(int(np.bitwise_count(code ^ own).sum()) for code in back) <= 31
