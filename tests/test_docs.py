"""Every command in the guides runs: each file's `sh` and `python` blocks, in order, in one scratch folder."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import class_folders

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)
GUIDES = [
    path for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))) if BLOCK.search(path.read_text())
]


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    """The pictures and the table that the guides speak of."""
    class_folders(tmp_path / "photos" / "train", each=12)
    class_folders(tmp_path / "photos" / "test", each=6, seed=40_000)
    rows = [f"{path},{path.parent.name}" for path in sorted((tmp_path / "photos" / "train").rglob("*.jpg"))]
    (tmp_path / "labels.csv").write_text("path,kind\n" + "\n".join(rows) + "\n")
    return tmp_path


@pytest.mark.timeout(400)
@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_commands_of_a_guide_run(guide: Path, scratch: Path) -> None:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for name in [name for name in environment if name.startswith(("AWS_", "RAY_"))]:
        del environment[name]
    script = "set -euo pipefail\n"
    for kind, body in BLOCK.findall(guide.read_text()):
        script += body if kind == "sh" else f"python - <<'END'\n{body}END\n"
    try:
        done = subprocess.run(
            ["bash", "-c", script], cwd=scratch, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    finally:
        subprocess.run(["cluster", "down", "stack"], cwd=scratch, env=environment, capture_output=True, check=False)


def test_links_between_guides_lead_somewhere() -> None:
    for guide in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")):
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", guide.read_text()):
            assert (guide.parent / target).exists(), f"{guide}: {target}"


def test_the_readme_fits_one_sitting() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) < 200
