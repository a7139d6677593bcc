"""A disk of a soak's own, small enough to be full."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_DISK_BYTES = 4_000_000_000  # of the store: SeaweedFS takes a quarter of an hour to free what was deleted


@contextmanager
def filled(folder: Path) -> Iterator[None]:
    """Take all the room that is left on a folder's disk."""
    filler = folder / "filler"
    try:
        with filler.open("wb") as sink, suppress(OSError):  # while it is filled, others write, too
            os.posix_fallocate(sink.fileno(), 0, shutil.disk_usage(folder).free)
        yield
    finally:
        filler.unlink()


@contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """Mount a small disk in memory at a folder, if this user may; yield whether it is there."""
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={_DISK_BYTES}", "bit-soak"]
    is_mounted = not subprocess.run(["mount", *options, str(folder)], check=False, capture_output=True).returncode
    try:
        yield is_mounted
    finally:
        if is_mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)
