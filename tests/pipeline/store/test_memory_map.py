"""Parts of a mapped file, and errors in place of signals where the file has become shorter."""

import os
from pathlib import Path

import pytest

from pipeline.store.memory_map import MappedFile


def test_a_file_that_is_shorter_than_the_part_is_an_error_and_not_a_signal(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 64)
    mapped = MappedFile(str(path))
    assert mapped.part(5000, 300) == (bytes(range(256)) * 64)[5000:5300]
    with pytest.raises(OSError, match="16384"):
        mapped.part(16_000, 400)
    os.truncate(path, 4096)
    with pytest.raises(OSError, match="address"):
        mapped.part(8192, 100)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="empty"):
        MappedFile(str(path))
