"""Small audits that the tests share."""

from pathlib import Path

from PIL import Image

from cluster.audit.base.stored_tasks import AuditJob
from cluster.audit.result.canaries import TRANSFORMS
from pipeline.packing.jobs import Reporting
from pipeline.store.url import open_store
from pipeline.work.pools import InProcess
from tests.conftest import class_folders, pack

LEAKS = {
    "JPEG quality 30": 3, "mirrored": 7, "turned 90": 11, "half size": 19, "grey": 23,
}  # fmt: skip


def leaky_sets(root: Path, scale: int = 1) -> tuple[Path, Path]:
    """An upstream set of several shards with altered copies of six downstream pictures, one of them byte for byte.

    Args:
        root: Receives the class folders `up-in` and `down-in`, and the sets `up` and `down`.
        scale: Times as many pictures.
    """
    down = class_folders(root / "down-in", classes=3, each=12 * scale, seed=50_000)
    up = class_folders(root / "up-in", classes=3, each=20 * scale)
    pictures = sorted(down.rglob("*.jpg"))
    for transform, number in LEAKS.items():
        with Image.open(pictures[number]) as image:
            TRANSFORMS[transform](image.convert("RGB")).save(up / "class0" / f"leak-{number}.png")
    (up / "class1" / "same.jpg").write_bytes(pictures[30].read_bytes())
    pack(up, str(root / "up"), shard_bytes=100_000)
    pack(down, str(root / "down"))
    return root / "up", root / "down"


def here(work: Path) -> AuditJob:
    """A job in this process."""
    return AuditJob(open_store(str(work)), InProcess(), Reporting())


def contents(report: Path) -> dict[str, bytes]:
    """Every file of a report but stored results."""
    files = [path for path in report.rglob("*") if path.is_file() and "work" not in path.relative_to(report).parts]
    return {str(path.relative_to(report)): path.read_bytes() for path in files}
