"""Local files as memory, without a copy."""

import mmap

_POPULATE_READ = 22  # MADV_POPULATE_READ of Linux 5.14; the mmap module does not name it


class MappedFile:
    """A local file as read-only memory that is the page cache itself, mapped as long as a part of it is used.

    Only for files that do not change: one that is cut short later, or a disk that fails, kills the process that looks
    at the missing part (SIGBUS).
    """

    def __init__(self, path: str) -> None:
        """Map the file. Raises OSError, and ValueError for an empty one."""
        with open(path, "rb") as file:
            self._pages = mmap.mmap(file.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ)
        self._body = memoryview(self._pages)

    def part(self, offset: int, num_bytes: int) -> memoryview:
        """Return a part of the file. All its pages are brought in at once, so that what is missing is found here.

        Raises:
            OSError: The file is shorter, the disk fails, or the system cannot bring pages in.
        """
        first = offset - offset % mmap.PAGESIZE
        if offset + num_bytes > len(self._body):
            raise OSError(f"it ends at {len(self._body)}")
        self._pages.madvise(_POPULATE_READ, first, offset + num_bytes - first)
        return self._body[offset : offset + num_bytes]
