"""Processes that a test watches: any of them may be gone, or dead and not reaped, whenever it is looked at."""

from contextlib import suppress

import psutil


def is_running(pid: int) -> bool:
    """Return whether a process runs; one that is dead and not reaped does not."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def running_children(pid: int, marker: str) -> list[int]:
    """Return the running children and their children whose command line holds a marker."""
    found = []
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(pid).children(recursive=True):
            with suppress(psutil.Error):
                if marker in " ".join(child.cmdline()) and child.status() != psutil.STATUS_ZOMBIE:
                    found.append(child.pid)
    return found
