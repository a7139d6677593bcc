"""What was seen in a source and is no image: counted by what it is, with the first names of each kind."""

from bisect import insort
from collections import Counter, defaultdict
from collections.abc import Sequence

from pipeline.base.quantities import quantity
from pipeline.base.records import Record

_MOST_NAMES = 10  # of a kind; the lowest ones, so that they do not depend on the order of reading
# Folders and files that systems and tools leave between those of users; compared in lower case.
_SYSTEM_NAMES = frozenset(
    ["__macosx", "thumbs.db", "desktop.ini", "$recycle.bin", "system volume information", "lost+found", "@eadir"]
)
HIDDEN = "hidden or system"


class IgnoredFiles(Record):
    """Files or members of one kind.

    Attributes:
        what: An extension, or in words what they are.
        count: How many.
        names: The first of them in sorted order, at most 10.
    """

    what: str
    count: int
    names: tuple[str, ...]

    def __str__(self) -> str:
        shown = ", ".join(self.names[:2])
        return f"{self.count:,} {self.what} ({shown}{', ...' if self.count > len(self.names[:2]) else ''})"


class IgnoredList(Record):
    """What was ignored in one place, as it is stored."""

    kinds: tuple[IgnoredFiles, ...]


def ignored_line(kinds: Sequence[IgnoredFiles]) -> str:
    """Return in words what was ignored."""
    return f"ignored {quantity(sum(kind.count for kind in kinds), 'file')}: {'; '.join(map(str, kinds))}"


class Ignored:
    """Counts ignored files. For one thread."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._names: dict[str, list[str]] = defaultdict(list)

    def add(self, what: str, name: str) -> None:
        """Count one file."""
        self._counts[what] += 1
        self._keep(what, name)

    def add_all(self, others: tuple[IgnoredFiles, ...], prefix: str = "") -> None:
        """Count what another found; its names get a prefix."""
        for other in others:
            self._counts[other.what] += other.count
            for name in other.names:
                self._keep(other.what, f"{prefix}{name}")

    def clear(self) -> None:
        """Forget all."""
        self._counts.clear()
        self._names.clear()

    @property
    def kinds(self) -> tuple[IgnoredFiles, ...]:
        """What was counted, by kind."""
        return tuple(
            IgnoredFiles(what=what, count=count, names=tuple(self._names[what]))
            for what, count in sorted(self._counts.items())
        )

    def _keep(self, what: str, name: str) -> None:
        names = self._names[what]
        printable = name.encode("utf-8", "replace").decode()  # it may be no UTF-8, and is going to be stored
        if len(names) < _MOST_NAMES or printable < names[-1]:
            insort(names, printable)
            del names[_MOST_NAMES:]


def is_hidden(name: str) -> bool:
    """Return whether a file's relative path, or a folder in it, is hidden or a system's own."""
    return any(
        (part.startswith(".") and part not in (".", "..")) or part.lower() in _SYSTEM_NAMES for part in name.split("/")
    )


def kind_of(name: str) -> str:
    """Return what a file is by its name: its extension in lower case."""
    extension = name.rpartition("/")[2].rpartition(".")[2].lower()
    return f".{extension}" if "." in name.rpartition("/")[2] else "without an extension"
