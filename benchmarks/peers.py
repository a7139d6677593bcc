"""Environments of peers that need pillow or old pins: one virtual environment each, made on first use."""

import subprocess
import sys
import venv
from pathlib import Path

_FOLDER = Path(__file__).parent / ".peers"


def peer_python(name: str, *requirements: str) -> Path:
    """Return the Python of a peer's environment, with the requirements installed."""
    python = _FOLDER / name / "bin" / "python"
    done = _FOLDER / name / "installed.txt"
    wanted = "\n".join(requirements)
    if not done.exists() or done.read_text() != wanted:
        print(f"installing {', '.join(requirements)} for the comparison", file=sys.stderr)
        venv.create(_FOLDER / name, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *requirements], check=True)
        done.write_text(wanted)
    return python
