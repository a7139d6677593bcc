"""Build the API reference with pdoc: `python scripts/reference/build.py FOLDER`. A warning of pdoc fails the build."""

import importlib
import sys
import warnings
from pathlib import Path
from pkgutil import iter_modules

import pdoc

PACKAGES = ("pipeline", "trainer", "cluster")


def specs(package_name: str) -> list[str]:
    """Return what pdoc is to document of a package: its public names first, then all of its wings.

    pdoc reads public names out of a module's dictionary, where lazy ones are only after their first use. It leaves out
    the submodules of a package that has `__all__`, so they are named.
    """
    package = importlib.import_module(package_name)
    public = getattr(package, "__all__", None)
    if public is None:
        return [package_name]
    for name in public:
        setattr(package, name, getattr(package, name))
    return [package_name, *(module.name for module in iter_modules(package.__path__, f"{package_name}."))]


def build(folder: Path) -> list[str]:
    """Write the reference to a folder and return pdoc's warnings."""
    pdoc.render.configure(docformat="google", template_directory=Path(__file__).parent)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        libraries = r"!.*\._"  # C that ctypes loads, and private modules
        pdoc.pdoc(*(spec for name in PACKAGES for spec in specs(name)), libraries, output_directory=folder)
    return [str(warning.message) for warning in caught if Path(pdoc.__file__).parent in Path(warning.filename).parents]


if __name__ == "__main__":
    sys.exit("\n".join(build(Path(sys.argv[1]))) or None)
