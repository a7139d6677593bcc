"""Many test sets against one upstream set: their list, and one table of all results, as the paper's Table 7."""

import csv
import io
import re
import tomllib
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from pydantic import Field, ValidationError

from cluster.audit.report.publish import read_summary
from pipeline.base.errors import ConfigError, NotFound
from pipeline.base.html import render_page
from pipeline.base.records import Record
from pipeline.base.text import csv_cell
from pipeline.store.any_url import read_file
from pipeline.store.base import Store, put
from pipeline.store.url import open_store

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # is also the name of a folder
_OVERVIEW = "overview.csv"
_FIGURES = ("accuracy", "low", "high", "num_samples")


class TestSet(Record):
    """One of many test sets.

    Attributes:
        url: Of a dataset or of WebDataset tars.
        predictions: URL of each model's predictions on it, by name of the model.
    """

    __test__ = False  # not a test class of pytest

    url: str
    predictions: dict[str, str] = Field(default_factory=dict)


def read_test_sets(url: str) -> dict[str, TestSet]:
    """Read a TOML file with a table for each test set: its `url`, and `predictions` by model.

    Raises:
        NotFound: There is no such file.
        ConfigError: The file is no such list, or a name cannot be that of a folder.
    """
    try:
        tables = tomllib.loads(read_file(url).decode())
        sets = {name: TestSet.model_validate(table) for name, table in tables.items()}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, ValidationError) as error:
        detail = str(error).replace("\n", " ")
        raise ConfigError(
            f'{url} is no list of test sets ({detail}); write a table like [pets] with url = "..." for each'
        ) from error
    for name in sets:
        if not _NAME.fullmatch(name):
            raise ConfigError(f"{url}: {name!r} becomes a folder; use letters, digits, '.', '-' and '_'")
    if not sets:
        raise ConfigError(f'{url} lists no test set; write a table like [pets] with url = "..." for each')
    return sets


def publish_overview(out: Store, upstream: str, summaries: Mapping[str, dict[str, Any]]) -> None:
    """Write index.html and overview.csv over the reports of all test sets, each in a folder of its name."""
    rows = [row for name, summary in summaries.items() for row in overview_rows(name, summary)]
    sink = io.StringIO()
    writer = csv.DictWriter(sink, list(rows[0]))
    writer.writeheader()
    writer.writerows({name: csv_cell(v) if isinstance(v, str) else v for name, v in row.items()} for row in rows)
    put(out, _OVERVIEW, sink.getvalue().encode())
    page = render_page(
        "cluster.audit.report", "many.html.j2", title="Near-duplicate audit of many test sets", upstream=upstream,
        summaries=summaries, upstream_name=PurePosixPath(upstream).name,
        models=sorted({model for summary in summaries.values() for model in summary["accuracy"]}),
    )  # fmt: skip
    put(out, "index.html", page)


def renew_overview(report: Store) -> bool:
    """Write the overview above a report anew, whose figures have changed; return whether it is in one."""
    folder, _, name = report.url.rstrip("/").rpartition("/")
    out = open_store(folder)
    try:
        rows = list(csv.DictReader(io.StringIO(out.read(_OVERVIEW).decode())))
    except NotFound:
        return False
    names = list(dict.fromkeys(row.get("downstream", "") for row in rows))
    if name not in names:
        return False
    publish_overview(out, rows[0]["upstream"], {each: read_summary(open_store(f"{folder}/{each}")) for each in names})
    return True


def overview_rows(name: str, summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a row for each model and cut of one test set, or for each cut if there is no model."""
    base = {
        "upstream": summary["upstream"]["url"],
        "downstream": name,
        "url": summary["downstream"]["url"],
        "num_samples": summary["downstream"]["num_samples"],
        "very_similar": summary["states"]["very similar"],
        "unchecked": summary["states"]["unchecked"],
        "canary_kinds": len(summary["canaries"]),
        "canary_kinds_missed": " | ".join(summary["missed_kinds"]),
    }
    empty = dict.fromkeys((*_FIGURES, "num_correct"))
    no_accuracy = {"full": empty, "dedup": empty, "duplicates": empty}
    no_difference = dict.fromkeys(("difference", "difference_low", "difference_high"))
    models = summary["accuracy"] or {"": [row | no_accuracy | no_difference for row in summary["cuts"]]}
    rows = []
    for model, cuts in models.items():
        for cut, counted in zip(cuts, summary["cuts"], strict=True):
            row = base | {"model": model, "cut": cut["cut"], "num_duplicates": counted["num"]}
            for part in ("full", "dedup", "duplicates"):
                row |= {f"{part}_{figure}": cut[part][figure] for figure in _FIGURES}
            rows.append(row | {name: cut[name] for name in no_difference})
    return rows
