"""Pictures, sets and audits that the tests share."""

from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image, ImageDraw, ImageOps

from cluster.audit.base.stored_tasks import AuditJob
from cluster.audit.base.tables import AuditConfig, AuditTables
from cluster.audit.coordinator import pin_sides, run_audit
from cluster.audit.result.canaries import TRANSFORMS
from pipeline.base.console import Reporting
from pipeline.dataset.dataset import Dataset
from pipeline.image.decode import Pixels, decode
from pipeline.store.url import open_store
from pipeline.work.pools import InProcess
from tests.conftest import class_folders, jpeg, pack
from trainer.scores.predictions import PREDICTION_SCHEMA

LEAKS = {
    "JPEG quality 30": 3, "mirrored": 7, "turned 90": 11, "half size": 19, "grey": 23,
}  # fmt: skip


def leaky_sets(root: Path, scale: int = 1) -> tuple[Path, Path]:
    """Pack an upstream set of several shards with altered copies of six downstream pictures, one of them byte for byte.

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


def local_job(work: Path) -> AuditJob:
    """Return a job in this process."""
    return AuditJob(open_store(str(work)), InProcess(), Reporting())


def audited(config: AuditConfig, work: Path) -> AuditTables:
    """Run an audit in this process."""
    return run_audit(config, pin_sides(config), local_job(work))


def audited_sets(up: str, down: str, work: Path) -> AuditTables:
    """Run an audit of two sets, without canaries."""
    return audited(AuditConfig(upstream=up, downstream=down, canaries_each=0), work)


def outcome(tables: AuditTables) -> list[tuple[object, ...]]:
    """Return the result for each picture, without distances: packing encodes PNG as JPEG after the hash."""
    columns = [tables.downstream[name].to_pylist() for name in ("shard", "row", "state", "evidence", "num_pairs")]
    return list(zip(*columns, strict=True))


def contents(report: Path) -> dict[str, bytes]:
    """Return every file of a report but stored results."""
    files = [path for path in report.rglob("*") if path.is_file() and "work" not in path.relative_to(report).parts]
    return {str(path.relative_to(report)): path.read_bytes() for path in files}


def scene(seed: int, width: int = 240, height: int = 180) -> Pixels:
    """Draw a picture with objects of all sizes."""
    generator = np.random.default_rng(seed)
    image = Image.new("RGB", (width, height), tuple(generator.integers(0, 256, 3).tolist()))
    draw = ImageDraw.Draw(image)
    for _ in range(90):
        size = generator.exponential(18) + 4
        x, y = generator.uniform(0, width), generator.uniform(0, height)
        shape = draw.ellipse if generator.random() < 0.5 else draw.rectangle
        shape(
            (x, y, x + size, y + size * generator.uniform(0.4, 2)), fill=tuple(generator.integers(0, 256, 3).tolist())
        )
    return np.asarray(image)


def ellipse(half_width: int, half_height: int) -> Pixels:
    """Draw an ellipse on white; different ones are very similar."""
    image = Image.new("RGB", (240, 180), "white")
    box = (120 - half_width, 90 - half_height, 120 + half_width, 90 + half_height)
    ImageDraw.Draw(image).ellipse(box, fill="navy")
    return np.asarray(image)


ALTERED = {
    "crop": lambda p: p[20:150, 30:220],
    "small": lambda p: np.asarray(Image.fromarray(p).resize((60, 45), Image.Resampling.BOX)),
    "darker": lambda p: (p * 0.6).astype(np.uint8),
    "recompressed": lambda p: decode(jpeg(p, 20)),
    "bordered": lambda p: np.asarray(ImageOps.expand(Image.fromarray(p), 25, "white")),
    "rotated": lambda p: np.asarray(Image.fromarray(p).rotate(6, Image.Resampling.BICUBIC))[15:165, 20:220],
    "mirrored and cropped": lambda p: np.ascontiguousarray(p[10:160, 20:200][:, ::-1]),
}


def predictions(down: Dataset, wrong: set[int]) -> pa.Table:
    """Return predictions on a set of one shard that are right but for the given rows."""
    rows = [
        {"shard": 0, "row": row, "labels": [0], "prediction": 0, "probability": 1.0, "correct": row not in wrong}
        for row in range(down.version.num_samples)
    ]
    return pa.Table.from_pylist(rows, schema=PREDICTION_SCHEMA)
