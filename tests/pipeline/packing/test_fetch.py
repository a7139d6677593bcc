"""Fetching images: each within its time and its size, and storage that fails is no reason to reject one."""

from pathlib import Path

import pytest

from pipeline.base.errors import BadImage, Unreachable
from pipeline.dataset.schema import PLAN_SCHEMA, table_of
from pipeline.packing.fetch import fetch
from pipeline.store.any_url import read_file
from tests.conftest import run_here
from tests.serving import serving, stalling


def test_a_server_that_never_answers_costs_one_time_out_a_picture(tmp_path: Path) -> None:
    row = {"source": "", "base": 0, "path": None, "container": "file", "offset": 0, "num_bytes": -1, "labels": [],
           "extra": "{}", "run": None}  # fmt: skip
    with stalling() as url:
        rows = table_of([row | {"source": f"{url}/{number}.jpg"} for number in range(3)], PLAN_SCHEMA)
        found = [data for _, data in fetch(rows, [str(tmp_path)], [None], 10**6, source_seconds=0.5)]
    assert [data.reason for data in found if isinstance(data, BadImage)] == ["timeout"] * 3


def test_a_store_that_stalls_is_an_error_and_rejects_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"source": "a.jpg", "base": 0, "path": None, "container": "file", "offset": 0, "num_bytes": -1, "labels": [],
           "extra": "{}", "run": None}  # fmt: skip
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    with stalling() as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        with pytest.raises(Unreachable):
            list(fetch(table_of([row], PLAN_SCHEMA), ["s3://stalled/x"], [None], 10**6, source_seconds=0.5))


def test_a_file_of_unknown_size_above_the_limit_is_not_read_whole(tmp_path: Path) -> None:
    large = tmp_path / "large.jpg"
    large.write_bytes(bytes(50_000_000))
    with serving(tmp_path) as url:
        for place in (str(large), f"file://{large}"):
            assert len(read_file(place, 1000)) == 1001
        (tmp_path / "t.csv").write_text(f"image,label\n{large},1\n{url}/large.jpg,1\n")
        printed = run_here("shard", "t.csv", "set", "--max-image-mb", "1", cwd=tmp_path)
    assert "'too-large': 2" in printed.stderr
