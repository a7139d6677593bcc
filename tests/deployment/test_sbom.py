"""The bill of materials names every package that we need, and the licence that each states."""

import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]


def needed() -> dict[str, str]:
    """Return name and version of all that bit-pretrain needs, and what that needs."""
    found: dict[str, str] = {}
    wanted = ["bit-pretrain"]
    while wanted:
        name = canonicalize_name(wanted.pop())
        if name in found:
            continue
        about = metadata.distribution(name)
        found[name] = about.version
        for text in about.requires or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                wanted.append(requirement.name)
    return {name: version for name, version in found.items() if name != "bit-pretrain"}


def test_every_package_is_listed_with_its_version_and_licence(tmp_path: Path) -> None:
    subprocess.run([sys.executable, ROOT / "scripts" / "sbom.py", tmp_path], check=True, capture_output=True)
    bill = json.loads((tmp_path / "sbom.cdx.json").read_text())
    assert (bill["bomFormat"], bill["metadata"]["component"]["name"]) == ("CycloneDX", "bit-pretrain")
    listed = {canonicalize_name(each["name"]): each["version"] for each in bill["components"]}
    wanted = needed()
    assert len(wanted) > 50
    assert {name: listed.get(name) for name in wanted} == wanted
    rows = re.findall(r"^\| (\S+) \| (\S+) \| (.*) \|$", (tmp_path / "licences.md").read_text(), re.M)
    licences = {canonicalize_name(name): licence for name, _, licence in rows}
    assert [name for name in wanted if not licences[name].strip()] == []
    assert "Apache" in licences["ray"]
