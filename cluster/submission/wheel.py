"""The code that runs here as a wheel, so that a job runs the same: made of the files that Python imports."""

import base64
import csv
import hashlib
import importlib.metadata
import io
import sysconfig
import zipfile
from collections.abc import Iterator
from pathlib import Path

import cluster
import pipeline
import trainer
from pipeline.base.records import Record

_DISTRIBUTION = "bit-pretrain"
_PACKAGES = (pipeline, trainer, cluster)
_METADATA = ("METADATA", "entry_points.txt")
_EPOCH = (1980, 1, 1, 0, 0, 0)  # of every file: equal code gives equal bytes


class Wheel(Record):
    """A wheel in memory.

    Attributes:
        name: Of its file.
        body: Its bytes.
    """

    name: str
    body: bytes

    @property
    def sha256(self) -> str:
        """Digest of its bytes."""
        return hashlib.sha256(self.body).hexdigest()


def code_wheel() -> Wheel:
    """Return a wheel of the packages as they are on this machine, edited or installed, C parts included.

    `pip install` takes it; unpacked, it is a folder to import from. Equal code gives equal bytes.
    """
    distribution = importlib.metadata.distribution(_DISTRIBUTION)
    stem = f"{_DISTRIBUTION.replace('-', '_')}-{distribution.version}"
    tag = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"  # C parts are no Python modules
    files = dict(_package_files())
    for name in _METADATA:
        files[f"{stem}.dist-info/{name}"] = (distribution.read_text(name) or "").encode()
    about = f"Wheel-Version: 1.0\nGenerator: {_DISTRIBUTION}\nRoot-Is-Purelib: false\nTag: {tag}\n"
    files[f"{stem}.dist-info/WHEEL"] = about.encode()
    record = f"{stem}.dist-info/RECORD"
    files[record] = _record(files, record)
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(files):
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), files[name], zipfile.ZIP_DEFLATED)
    return Wheel(name=f"{stem}-{tag}.whl", body=sink.getvalue())


def _package_files() -> Iterator[tuple[str, bytes]]:
    for package in _PACKAGES:
        (folder,) = package.__path__
        for path in Path(folder).rglob("*"):
            if path.is_file() and path.parent.name != "__pycache__":
                yield str(path.relative_to(Path(folder).parent)), path.read_bytes()


def _record(files: dict[str, bytes], own_name: str) -> bytes:
    """Return the list of the files with their digests, as wheels have it."""
    sink = io.StringIO()
    rows = csv.writer(sink, lineterminator="\n")
    for name in sorted(files):
        digest = base64.urlsafe_b64encode(hashlib.sha256(files[name]).digest()).rstrip(b"=").decode()
        rows.writerow([name, f"sha256={digest}", len(files[name])])
    rows.writerow([own_name, "", ""])
    return sink.getvalue().encode()
