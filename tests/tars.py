"""Tars as other tools write them."""

import io
import tarfile
from pathlib import Path

Members = list[tuple[str, bytes]]


def write_tar(path: Path, members: Members, kind: int = tarfile.PAX_FORMAT) -> None:
    """Write a tar; in PAX format every member has an extended header before its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=kind) as archive:
        for name, content in members:
            about = tarfile.TarInfo(name)
            about.size, about.mtime = len(content), 1.5  # a fraction makes a PAX header
            archive.addfile(about, io.BytesIO(content))
