"""Whether something may be written to a place: an empty one, or one that holds the same kind of thing."""

from collections.abc import Sequence
from itertools import islice

from pipeline.base.errors import ConfigError
from pipeline.store.base import Store

_LOOKED_AT = 1000  # files, one request to S3
_SHOWN = 3


def require_free(store: Store, what: str, marks: Sequence[str]) -> None:
    """Refuse a destination that holds other things: swapped arguments would mix results into somebody's files.

    Hidden files and folders, such as `.DS_Store` or `.git`, do not count.

    Args:
        store: The destination.
        what: What is to be written, for the message, such as "dataset".
        marks: Keys, or beginnings of keys, of which each thing of this kind has at least one, from its first moment on.

    Raises:
        ConfigError: With some of what is there.
    """
    if any(next(iter(store.list(mark)), None) for mark in marks):
        return
    found = {
        entry.key.partition("/")[0] + ("/" if "/" in entry.key else "")
        for entry in islice(store.walk(), _LOOKED_AT)
        if not entry.key.startswith(".")
    }
    if found:
        shown = ", ".join(sorted(found)[:_SHOWN]) + (", ..." if len(found) > _SHOWN else "")
        raise ConfigError(
            f"{store.url} holds other things and no {what} ({shown}), and a {what} is not written among them; name "
            f"another destination, such as {store.url}/{what.replace(' ', '-')}"
        )
