"""The guides are true: their commands run, links and paths lead somewhere, and the reference and the drawing build.

Each guide's `sh` and `python` blocks run in order, in one scratch folder.
"""

import importlib
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import class_folders

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`([^`]+)`")
FOLDERS = ("pipeline", "trainer", "cluster", "tests", "benchmarks", "scripts", "docs", "docker")
SOURCE = re.compile(rf"[\w./-]+\.(?:py|pyi|c|sh|toml)\b|\b(?:{'|'.join(FOLDERS)})/[\w./-]*")
MODULE = re.compile(r"\b(?:pipeline|trainer|cluster|tests|benchmarks)(?:\.\w+)+")
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)#?([^)\s]*)\)")
PACKAGES = ("pipeline", "trainer", "cluster")

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
GUIDES = [path for path in PAGES if BLOCK.search(path.read_text())]
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))


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


def code_in(page: Path) -> str:
    """What a page marks as code inside its text."""
    return "\n".join(CODE.findall(FENCED.sub("", page.read_text())))


def anchors_of(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", FENCED.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in LINK.findall(page.read_text()):
        linked = page.parent / target if target else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors_of(linked), f"{target}#{anchor}"


@each_page
def test_files_and_modules_that_are_named_exist(page: Path) -> None:
    code = code_in(page)
    files = {f"/{path.relative_to(ROOT)}" for folder in FOLDERS for path in (ROOT / folder).rglob("*")}
    files |= {f"/{path.name}" for path in ROOT.iterdir()}
    named = {name.removeprefix("./").rstrip("/") for name in SOURCE.findall(code)}
    assert [name for name in sorted(named) if not any(file.endswith(f"/{name}") for file in files)] == []
    for name in MODULE.findall(SOURCE.sub("", code)):
        pkgutil.resolve_name(name)


def test_guides_that_the_code_names_exist() -> None:
    sources = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py") if "/." not in str(path)]
    named = {
        (path, name) for path in sources for name in re.findall(r"\bdocs/[\w./-]+\.(?:md|svg)\b", path.read_text())
    }
    assert [f"{path}: {name}" for path, name in sorted(named) if not (ROOT / name).exists()] == []


@each_page
def test_tests_that_are_named_exist(page: Path) -> None:
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    named = re.findall(r"\btest_\w+\b(?!\.py)", code_in(page))
    assert [name for name in named if f"def {name}(" not in tests] == []


def test_the_reference_builds_without_a_warning_and_holds_every_public_name(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "scripts/reference/build.py", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for package in PACKAGES:
        written = (tmp_path / f"{package}.html").read_text()
        for name in importlib.import_module(package).__all__:
            assert f'<section id="{name}">' in written, f"{package}.{name}"
    assert "<strong>ConfigError:</strong>" in (tmp_path / "pipeline/streaming/order.html").read_text()  # of "Raises:"


def test_the_map_shows_every_wing_as_the_imports_are(tmp_path: Path) -> None:
    drawing = ROOT / "docs/architecture.svg"
    subprocess.run([sys.executable, ROOT / "scripts/architecture.py", tmp_path / "drawing.svg"], check=True)
    assert (tmp_path / "drawing.svg").read_bytes() == drawing.read_bytes(), "run `make docs`"
    page = (ROOT / "docs/architecture.md").read_text()
    wings = [path.parent for package in PACKAGES for path in (ROOT / package).glob("*/__init__.py")]
    assert [wing for wing in wings if f"| `{wing.relative_to(ROOT)}/` |" not in page] == []


def test_the_readme_fits_one_sitting() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) < 200
