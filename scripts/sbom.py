"""Writes what this environment is made of: sbom.cdx.json (CycloneDX 1.6) and licences.md, a line for each package.

scripts/sbom.py FOLDER
"""

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
_CLASSIFIER = "License :: "


def main(folder: Path) -> None:
    """Write both files into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    bill = folder / "sbom.cdx.json"
    tool = str(Path(sys.executable).parent / "cyclonedx-py")
    # Validation against the schema takes 15 s; what its own library writes is valid.
    command = [tool, "environment", "--no-validate", "--pyproject", str(ROOT / "pyproject.toml"), "--of", "JSON"]
    subprocess.run([*command, "--output-file", str(bill), sys.executable], check=True)
    components = json.loads(bill.read_text())["components"]
    rows = sorted((each["name"].lower(), each["version"], licence_of(each)) for each in components)
    lines = ["| package | version | licence |", "| --- | --- | --- |", *(f"| {' | '.join(row)} |" for row in rows), ""]
    (folder / "licences.md").write_text("\n".join(lines))
    unknown = [name for name, _, licence in rows if not licence]
    print(f"{bill}: {len(rows)} packages; without a stated licence: {', '.join(unknown) or 'none'}")  # noqa: T201


def licence_of(component: dict[str, Any]) -> str:
    """Return what a package says of its licence, identifiers before words; empty where it says nothing."""
    stated = [
        each.get("expression") or each["license"].get("id") or each["license"].get("name", "")
        for each in component.get("licenses", ())
    ]
    named = [
        text.rpartition(" :: ")[2] if text.startswith(_CLASSIFIER) else text.splitlines()[0] for text in stated if text
    ]
    if not named:
        about = metadata.metadata(component["name"])
        free = (about.get("License") or "").splitlines()
        named = free[:1] or [
            text.rpartition(" :: ")[2] for text in about.get_all("Classifier", []) if text.startswith(_CLASSIFIER)
        ]
    return " or ".join(sorted(set(named))).replace("|", "/")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
