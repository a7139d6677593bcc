"""Pages of pairs that open offline: both pictures and their difference after alignment, inlined."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from cluster.audit.base.sets import Sides, picture_name
from cluster.audit.base.stored_tasks import AuditJob, Quarantined, results_of
from cluster.audit.base.tables import Evidence, is_duplicate
from cluster.audit.verify.affine import warp_onto
from cluster.audit.verify.evidence import align_pair
from pipeline.base.errors import BadImage, ServiceError
from pipeline.base.html import render_page
from pipeline.dataset.dataset import Address, Dataset
from pipeline.image.decode import Pixels, decode
from pipeline.image.thumbnail import thumbnail
from pipeline.store.base import Store, put
from pipeline.store.url import open_store

PAIRS_PER_PAGE = 60
MOST_SHOWN = 6000  # pairs with inlined pictures, about 20 kB each; the tables hold all pairs
_UNCOVERED = np.uint8(128)
T = TypeVar("T")
_SHOWN_FIELDS = ("pair", "distance", "correlation", "quality", "transform", "evidence")


def shown_pairs(rows: Sequence[T], most: int = MOST_SHOWN) -> list[T]:
    """Return the rows that are shown of a sorted list: of a long one the closest and the most distant."""
    return list(rows) if len(rows) <= most else [*rows[: most // 2], *rows[len(rows) - most // 2 :]]


def page_name(number: int) -> str:
    """Return the file name of a page of pairs."""
    return f"pairs-{number:04d}.html"


def pair_card(sides: Sides, row: Mapping[str, Any]) -> dict[str, Any]:
    """Return what pages show of a pair: three pictures as HTML, names, classes, scores.

    Args:
        sides: Both sets.
        row: As exclusion_lists.pair_list returns it.
    """
    pixels, names = {}, {}
    for side, dataset in (("down", sides.downstream), ("up", sides.upstream)):
        address = Address(row[f"{side}_shard"], row[f"{side}_row"])
        pixels[side] = picture_or_grey(dataset, address)
        names[f"{side}_name"] = picture_name(dataset, address)
        names[f"{side}_classes"] = row[f"{side}_classes"]
    is_same = row["evidence"] in (Evidence.SAME_BYTES, Evidence.SAME_PIXELS)
    apart = np.zeros_like(pixels["up"]) if is_same else difference(pixels["up"], pixels["down"])
    return {
        **{name: row[name] for name in _SHOWN_FIELDS},
        **names,
        "down": str(thumbnail(pixels["down"], "downstream picture")),
        "up": str(thumbnail(pixels["up"], "upstream picture")),
        "difference": str(thumbnail(apart, "difference after alignment")),
        "is_duplicate": is_duplicate(row["evidence"]),
    }


def picture_or_grey(dataset: Dataset, address: Address) -> Pixels:
    """Decode a picture; return a grey square if it does not decode, as broken pictures with equal bytes are pairs."""
    try:
        return decode(dataset.read_image(address))
    except BadImage:
        return np.full((64, 64, 3), 128, np.uint8)


def difference(up: Pixels, down: Pixels) -> Pixels:
    """Return the absolute difference of two aligned pictures, at the size of the first.

    Black is equal; grey is what the second does not cover.
    """
    warped, is_covered = warp_onto(down, align_pair(up, down).affine, up.shape)
    apart = np.abs(up.astype(np.int16) - warped.astype(np.int16)).astype(np.uint8)
    return np.where(is_covered[..., None], apart, _UNCOVERED)


@dataclass(frozen=True)
class PageTask:
    """One page of pairs.

    Attributes:
        out: URL of the report.
        number: Of the page, from 1.
        num_pages: Of all pages.
        pairs: JSON list of rows of exclusion_lists.pair_list.
        key: Of the browser's storage of verdicts; None if the pairs cannot be judged.
    """

    sides: Sides
    out: str
    number: int
    num_pages: int
    pairs: str
    key: str | None

    def __str__(self) -> str:
        return f"page {self.number} of pairs at {self.out}"


def write_pages(out: Store, sides: Sides, rows: Sequence[dict[str, Any]], job: AuditJob, key: str | None = None) -> int:
    """Write pages of pairs in the given order, as tasks; return their number. Pages of a longer list are deleted.

    Args:
        out: The report.
        sides: Both sets.
        rows: Of exclusion_lists.pair_list; see shown_pairs.
        job: Where the tasks run.
        key: See PageTask.
    """
    shown = shown_pairs(rows)
    num_pages = -(-len(shown) // PAIRS_PER_PAGE)
    tasks = []
    for page in range(num_pages):
        part = json.dumps(shown[page * PAIRS_PER_PAGE : (page + 1) * PAIRS_PER_PAGE])
        tasks.append(PageTask(sides, out.url, page + 1, num_pages, part, key))
    with job.reporting.progress("writing pages", len(shown), "pairs") as advance:
        for task, num_written in results_of(job.pool, write_page, tasks, job.reporting.event):
            if isinstance(num_written, Quarantined):
                raise ServiceError(f"{task} cannot be written: {num_written.reason}; run again with --debug")
            advance(num_written, 0)
    wanted = {page_name(number + 1) for number in range(num_pages)}
    for entry in list(out.list("pairs-")):
        if entry.key.endswith(".html") and entry.key not in wanted:
            out.delete(entry.key)
    return num_pages


def write_page(task: PageTask) -> int:
    """Write one page; return the number of its pairs."""
    pairs = [pair_card(task.sides, row) for row in json.loads(task.pairs)]
    page = render_page(
        "cluster.audit.report", "pairs.html.j2", title=f"Pairs, page {task.number} of {task.num_pages}", pairs=pairs,
        number=task.number, num_pages=task.num_pages, page_name=page_name,
        can_judge=task.key is not None, key=task.key,
    )  # fmt: skip
    put(open_store(task.out), page_name(task.number), page)
    return len(pairs)
