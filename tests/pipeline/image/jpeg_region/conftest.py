from pathlib import Path

import pytest

from tests.pipeline.image.jpeg_region.fuzz import NoPrivateHeader, build


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both decoders side by side, built so that a read or write out of place ends the program."""
    try:
        return build(tmp_path_factory.mktemp("huffman"))
    except NoPrivateHeader:
        pytest.skip("this system's libjpeg comes without jpegint.h: our decoder is not built in")
