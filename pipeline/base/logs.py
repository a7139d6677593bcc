"""Messages of the log on stderr: lines for people, or JSON lines for machines that say where in a run they arose."""

import json
import logging
import os
import socket
import sys
from collections.abc import Callable, Mapping
from typing import Any

from pipeline.base.errors import ConfigError
from pipeline.base.text import printable

FORMAT_VARIABLE = "BIT_LOG"
_FORMATS = ("text", "json")


class Lines(logging.Formatter):
    """Messages as lines; what names of others hold begins no line and moves no cursor."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """Return a message as one line."""
        return printable(super().formatMessage(record), keep="\t")

    def format(self, record: logging.LogRecord) -> str:
        """Return a message as its line; a traceback has further ones."""
        return printable(super().format(record), keep="\n\t")


class JsonLines(logging.Formatter):
    """Messages as one JSON object a line: time, level, logger, message, node, process, and what is given.

    Attributes:
        context: Further keys of each line. A value may be a function, which is called for each line.
    """

    def __init__(self, context: Mapping[str, Any | Callable[[], Any]]) -> None:
        super().__init__()
        self.context = dict(context)

    def format(self, record: logging.LogRecord) -> str:
        """Return a message as a line of ASCII."""
        line = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "node": socket.gethostname(),
            "process": record.process,
        }
        line |= {name: value() if callable(value) else value for name, value in self.context.items()}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def wants_json() -> bool:
    """Return whether the log is to be JSON lines, by BIT_LOG.

    Raises:
        ConfigError: BIT_LOG is neither `text` nor `json`.
    """
    given = os.environ.get(FORMAT_VARIABLE, "text")
    if given not in _FORMATS:
        raise ConfigError(f"{FORMAT_VARIABLE}={given} is none of {', '.join(_FORMATS)}")
    return given == "json"


def formatter(line: str = "%(message)s", **context: Any | Callable[[], Any]) -> logging.Formatter:
    """Return how messages are shown, by BIT_LOG: as lines of a format, or as JSON with further keys."""
    return JsonLines(context) if wants_json() else Lines(line)


def show_messages(level: int) -> None:
    """Show the messages of all loggers from a level on, on stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level, handlers=[handler])
