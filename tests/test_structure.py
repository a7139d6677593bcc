"""The shape of the repository: light command lines, small files, errors in one tree, only our packages in the wheel."""

import ast
import configparser
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from functools import partial
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import pipeline.base.errors
from pipeline.dataset.dataset import open_dataset
from tests.conftest import class_folders

ROOT = Path(__file__).parents[1]
PACKAGES = ("pipeline", "trainer", "cluster")
WINGS = sorted(path.parent for package in PACKAGES for path in (ROOT / package).rglob("__init__.py"))
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
HEAVY = {"torch", "ray", "boto3", "botocore", "pyarrow", "numpy", "PIL", "faiss", "rich"}


@pytest.mark.parametrize("tool", PACKAGES)
def test_help_imports_nothing_heavy(tool: str) -> None:
    program = (
        f"import sys, json; sys.argv = ['{tool}', '--help']\n"
        f"from {tool}.cli import main\n"
        "try: main()\n"
        "except SystemExit as stop: assert not stop.code, stop.code\n"
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert HEAVY & set(json.loads(done.stdout.splitlines()[-1])) == set()


@pytest.mark.parametrize("package", PACKAGES)
def test_public_names_are_there_and_cost_nothing_until_they_are_used(package: str) -> None:
    program = (
        f"import sys, json, {package}\n"
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))\n"
        f"print(json.dumps([name for name in {package}.__all__ if getattr({package}, name) is None]))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    at_import, missing = map(json.loads, done.stdout.splitlines())
    assert HEAVY & set(at_import) == set()
    assert missing == []


def test_no_process_of_ray_waits_for_a_grammar_of_addresses() -> None:
    program = "import ray, sys; sys.exit('rfc3987_syntax' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)  # see scripts/setup.sh


@pytest.mark.parametrize("package", PACKAGES)
def test_the_top_level_of_a_package_holds_wings_and_its_command_line_only(package: str) -> None:
    assert {path.name for path in (ROOT / package).glob("*.py")} == {"__init__.py", "cli.py"}


@pytest.mark.parametrize("wing", WINGS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_wing_says_what_it_is_for_and_its_floors_are_kept(wing: Path) -> None:
    docstring = ast.get_docstring(ast.parse((wing / "__init__.py").read_text())) or ""
    assert len(docstring) > 40
    contracts = configparser.ConfigParser()
    contracts.read(ROOT / ".importlinter")
    kept = {
        contracts[section]["containers"]
        for section in contracts.sections()
        if contracts[section].get("exhaustive") == "true"
    }
    floors = [path for path in wing.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()]
    if len(floors) > 2:  # __init__.py and more than one module
        assert ".".join(wing.relative_to(ROOT).parts) in kept


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_stay_readable_in_one_sitting(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 350


def test_every_error_class_is_drawn_in_the_tree() -> None:
    drawn = pipeline.base.errors.__doc__ or ""
    classes = [
        node.name
        for node in ast.parse(Path(pipeline.base.errors.__file__).read_text()).body
        if isinstance(node, ast.ClassDef)
    ]
    assert len(classes) > 10
    assert [name for name in classes if name not in drawn.split()] == []


def imported(path: Path) -> set[str]:
    """Return the packages of others that a module imports when it runs, wherever in it."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and not node.level}
    return {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {*PACKAGES, ""}


def test_all_that_is_imported_is_declared_or_comes_with_what_is() -> None:
    def needs(distribution: str) -> set[str]:
        found = map(Requirement, requires(distribution) or ())
        return {canonicalize_name(each.name) for each in found if "dev" not in str(each.marker)}

    declared = needs("bit-pretrain")
    declared |= {name for each in ("boto3", "jinja2") for name in needs(each)}  # parts of their own interfaces
    providers = packages_distributions()
    undeclared = {
        f"{path.relative_to(ROOT)} imports {name}"
        for path in SOURCES
        for name in imported(path)
        if declared.isdisjoint(map(canonicalize_name, providers.get(name, ())))
    }
    assert undeclared == {"pipeline/store/s3_errors.py imports urllib3"}  # of botocore


def test_what_the_image_copies_is_enough_for_a_wheel_of_our_three_packages(tmp_path: Path) -> None:
    copied, built = tmp_path / "copied", tmp_path / "built"
    lines = [line.split() for line in (ROOT / "docker/Dockerfile").read_text().splitlines()]
    for _, *sources, target in (words for words in lines if words[:1] == ["COPY"] and "--from=" not in words[1]):
        for source in sources:
            place = copied / target / ("" if (ROOT / source).is_dir() else source)
            place.parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, place, ignore=shutil.ignore_patterns("_*.so", "__pycache__"))
            else:
                shutil.copy(ROOT / source, place)
    options = ["--quiet", "--no-deps", "--no-build-isolation", "-w", built, copied]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options], check=True, capture_output=True)
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        names = wheel.namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == set(PACKAGES)
    assert {"cluster/demo/templates/demo.html.j2", "pipeline/image/jpeg_region/_region.so"} <= set(names)
    assert {f"{package}/{name}" for package in PACKAGES for name in ("py.typed", "__init__.pyi")} <= set(names)


def test_the_source_archive_builds_a_wheel_whose_commands_run_in_an_environment_of_its_own(tmp_path: Path) -> None:
    """Of the developer's environment it sees the dependencies alone."""
    run = partial(subprocess.run, check=True, capture_output=True, text=True)
    run([sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", tmp_path / "dist"], cwd=ROOT)
    with tarfile.open(next((tmp_path / "dist").glob("*.tar.gz"))) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.glob("bit_pretrain-*")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path / "dist", source])
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=False)
    python = environment / "bin" / "python"
    run([*pip, "--python", python, "install", "--no-deps", "--no-index", next((tmp_path / "dist").glob("*.whl"))])
    (site,) = environment.glob("lib/*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    class_folders(tmp_path / "photos")
    bare = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    run([environment / "bin" / "pipeline", "shard", "photos", "data"], cwd=tmp_path, env=bare)
    program = "import pipeline, trainer, cluster; print(pipeline.__file__, trainer.__file__, cluster.__file__)"
    places = run([python, "-P", "-c", program], cwd=tmp_path, env=bare).stdout.split()
    assert all(place.startswith(str(site)) for place in places)
    assert open_dataset(str(tmp_path / "data")).version.num_samples > 0
