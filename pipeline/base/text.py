"""Text of others, made safe to show: no name in it starts a line, moves a cursor, or turns what follows around."""

import re

# Control characters, and what cannot be seen but changes how the rest is shown: marks and overrides of direction,
# separators of lines, tags. Joiners (U+200C, U+200D) stay: words of several scripts are written with them.
_HIDDEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)
_COLOUR = re.compile(r"(\x1b\[[\d;]*m)")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # with which a cell of a spreadsheet begins to be executed
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def printable(text: str, keep: str = "") -> str:
    r"""Return text with hidden characters written out as Python does, such as `\n` and `\u202e`.

    Args:
        text: Any, lone surrogates included.
        keep: Hidden characters that stay, such as the line ends of a text of several lines.
    """
    return _HIDDEN.sub(lambda found: found[0] if found[0] in keep else _escaped(found[0]), text)


def printable_log(text: str) -> str:
    """Return a program's output: lines and colours stay, whatever else would move the cursor is written out."""
    parts = _COLOUR.split(text)
    return "".join(part if number % 2 else printable(part, keep="\n\t") for number, part in enumerate(parts))


def csv_cell(text: str) -> str:
    """Return text for a cell of a CSV file that no spreadsheet takes for a formula; numbers stay as they are."""
    return f"'{text}" if text.startswith(_FORMULA) and not _NUMBER.fullmatch(text) else text


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()
