"""Stored JSON, read back: whatever stands in a file, the error names the file."""

import json
from typing import Any, TypeVar

from pydantic import ValidationError

from pipeline.base.errors import CorruptShard
from pipeline.base.records import Record

R = TypeVar("R", bound=Record)
V = TypeVar("V", dict[str, Any], list[Any])
_SHOWN_CHARACTERS = 200  # of what is wrong


def parse_record(kind: type[R], body: bytes, url: str) -> R:
    """Return the record that a file holds.

    Args:
        kind: Of the record.
        body: The file's bytes.
        url: What it is called in messages.

    Raises:
        CorruptShard: It holds no such record.
    """
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise _corrupt(url, f"{where}: {first['msg']}" if where else str(first["msg"])) from error


def parse_json(body: bytes, url: str, kind: type[V]) -> V:
    """Return the plain value that a file holds.

    Args:
        body: The file's bytes.
        url: What it is called in messages.
        kind: `dict` or `list`.

    Raises:
        CorruptShard: It is no JSON, of another kind, or nested too deeply to be read.
    """
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise _corrupt(url, f"{type(error).__name__}: {error}") from error
    if not isinstance(found, kind):
        raise _corrupt(url, f"a {type(found).__name__} instead of a {kind.__name__}")
    return found


def _corrupt(url: str, problem: str) -> CorruptShard:
    return CorruptShard(f"{url} is damaged, or of something else ({problem[:_SHOWN_CHARACTERS]}); restore it")
