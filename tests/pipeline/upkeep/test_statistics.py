"""Statistics count every sample."""

import json
from pathlib import Path

from pipeline.dataset.dataset import Dataset
from tests.conftest import cli


def test_statistics_count_every_sample(small_dataset: Dataset, tmp_path: Path) -> None:
    counts = json.loads(cli("stats", small_dataset.store.url, "--json").splitlines()[0])
    assert counts["classes"] == {"0": 30, "1": 30, "2": 30}
    assert counts["shorter_side"] == {"48": 90}
    assert counts["labels_per_sample"] == {"1": 90}
    said = cli("stats", small_dataset.store.url, "--html", tmp_path / "stats.html")
    assert "3 of 3 classes have samples" in said
    page = (tmp_path / "stats.html").read_text()
    assert page.count("<svg") == 6
    assert "http" not in page.replace("http://www.w3.org", "")
