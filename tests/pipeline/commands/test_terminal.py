"""On a terminal of 100 columns no line of ours wraps: sentences are folded, progress keeps to one line."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from pipeline.base.console import folded
from tests.conftest import class_folders, jpeg, picture, run_cli
from tests.tars import write_tar

_COLUMNS = 100
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def on_a_terminal(folder: Path, *command: str) -> list[str]:
    """Run a command on a terminal of 100 columns; return what it writes to the lines, colours left out."""
    terminal, its_end = pty.openpty()
    fcntl.ioctl(its_end, termios.TIOCSWINSZ, struct.pack("HHHH", 40, _COLUMNS, 0, 0))
    program = str(Path(sys.executable).parent / command[0])
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    with subprocess.Popen(
        [program, *command[1:]], cwd=folder, env={**environment, "TERM": "xterm"}, stdin=its_end, stdout=its_end,
        stderr=its_end,
    ):  # fmt: skip
        os.close(its_end)
        written = b""
        while True:
            try:
                chunk = os.read(terminal, 65_536)
            except OSError:  # the last process has closed the other end
                break
            written += chunk
            if not chunk:
                break
    os.close(terminal)
    return [_ESCAPES.sub("", line).rstrip() for line in re.split(r"[\r\n]+", written.decode())]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders with much to tell about, and a tar with members that are ignored."""
    folder = tmp_path_factory.mktemp("terminal")
    photos = class_folders(folder / "photos", each=20)
    for name in ("notes.txt", "drawing-with-a-long-name.svg", "raw.cr2", ".DS_Store", "Thumbs.db", "clip.mp4"):
        (photos / "class1" / name).write_text("no image")
    (photos / "class1" / "the-same-picture-again.jpg").write_bytes((photos / "class0" / "001.jpg").read_bytes())
    (photos / "class2" / "broken.jpg").write_bytes(b"broken")
    (folder / "tars").mkdir()
    write_tar(folder / "tars" / "a.tar", [("1.jpg", jpeg(picture(1))), ("1.txt", b"caption"), ("README", b"text")])
    return folder


def test_no_line_of_normal_output_wraps(folder: Path) -> None:
    commands = [
        "shard photos data --dry-run",
        "shard photos data --max-reject-fraction 0.5 --shard-mb 0.05",
        "shard photos data --max-reject-fraction 0.5 --shard-mb 0.06",
        "inspect data",
        "stats data --html stats.html",
        "verify data",
        "export data",
        "retry-rejects data",
        "bench data --seconds 0.2",
        "peek data --out peek.html --batch 4",
        "index tars",
        "gc data",
    ]
    for command in commands:
        lines = on_a_terminal(folder, "pipeline", *command.split())
        assert len(lines) > 1, command
        wide = [line for line in lines if len(line) > _COLUMNS and " " in line.strip()]
        assert wide == [], command


def test_what_goes_into_a_pipe_is_not_shown_above_the_progress_bar(folder: Path) -> None:
    assert run_cli("pipeline", "shard", "photos/class0", "piped", "--no-labels", cwd=folder).returncode == 0
    terminal, its_end = pty.openpty()
    command = [str(Path(sys.executable).parent / "pipeline"), "export", "piped", "--format", "timm"]
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=its_end, check=True, text=True)
    os.close(its_end)
    os.close(terminal)
    assert done.stdout.startswith("timm: _info.json")


_LINES = st.lists(st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=30), min_size=1, max_size=20)


@given(_LINES, st.integers(40, 120), st.integers(0, 4))
def test_folding_loses_no_word_and_keeps_the_indent(words: list[str], num_columns: int, indent: int) -> None:
    line = " " * indent + " ".join(words)
    found = folded(line, num_columns).split("\n")
    assert " ".join(found).split() == words
    assert all(len(part) <= num_columns for part in found)
    assert all(part.startswith(" " * (indent + 4)) for part in found[1:])
    assert found[0].startswith(" " * indent)
