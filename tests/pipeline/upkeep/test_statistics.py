"""Statistics count every sample, and their page shows each class as it is."""

import json
import re
from collections import Counter
from pathlib import Path

from pipeline.dataset.dataset import Dataset
from pipeline.upkeep.statistics import Statistics, page
from tests.conftest import class_folders, cli, pack


def test_statistics_count_every_sample(small_dataset: Dataset, tmp_path: Path) -> None:
    counts = json.loads(cli("stats", small_dataset.store.url, "--json").splitlines()[0])
    assert counts["classes"] == {"0": 30, "1": 30, "2": 30}
    assert counts["shorter_side"] == {"48": 90}
    assert counts["labels_per_sample"] == {"1": 90}
    output = cli("stats", small_dataset.store.url, "--html", tmp_path / "stats.html")
    assert "3 of 3 classes have samples" in output
    text = (tmp_path / "stats.html").read_text()
    assert "90 images in 3 classes: each has 30 samples." in text
    assert text.count("<svg") == 1  # what has one value only is no chart
    assert "http" not in text.replace("http://www.w3.org", "")


def test_each_class_is_a_bar_with_its_name_and_its_own_length(small_dataset: Dataset) -> None:
    counts = {label: 278 - 5 * label for label in range(43)}
    text = page(small_dataset, Statistics(classes=Counter(counts))).decode()
    bars = re.findall(r'<td>([^<]+)</td><td class="n">(\d+)</td><td><i style="width: ([\d.]+)%">', text)
    assert [int(samples) for _, samples, _ in bars] == list(counts.values())
    assert [name for name, *_ in bars][:4] == ["class0", "class1", "class2", "3"]
    assert all(abs(float(width) - int(samples) / 2.78) < 0.01 for _, samples, width in bars)
    assert "the largest, class0, has 278 samples, the smallest, 42, 68." in text


def test_thousands_of_classes_are_a_line_from_the_largest_to_the_smallest(small_dataset: Dataset) -> None:
    text = page(small_dataset, Statistics(classes=Counter({label: 10_000 - label for label in range(5000)}))).decode()
    points = re.search(r'<polyline points="([^"]+)"', text)
    assert points
    assert len(points[1].split()) == 400
    assert "and 4,800 smaller classes" in text


def test_bins_hold_whole_values_so_that_even_counts_are_even_bars(small_dataset: Dataset) -> None:
    text = page(small_dataset, Statistics(shorter_side=Counter(dict.fromkeys(range(100, 200), 7)))).decode()
    heights = {height for _, height in re.findall(r'width="([\d.]+)" height="([\d.]+)" fill', text)[:-1]}
    assert len(heights) == 1


def test_one_of_a_thing_is_singular(tmp_path: Path) -> None:
    dataset = pack(class_folders(tmp_path / "in", classes=1, each=1), str(tmp_path / "set"))
    text = page(dataset, Statistics(classes=Counter({0: 1}))).decode()
    assert "1 image in 1 class: each has 1 sample." in text
    assert re.search(r"<b>1</b>sample<.*in 1 shard<.*<b>1</b>class<", text, re.DOTALL)
    printed = cli("inspect", tmp_path / "set")
    assert "1 sample, 1 shard, " in printed
    assert "1 class, 0 rejected, 0 duplicates" in printed
    assert "1 shard sound" in cli("verify", tmp_path / "set", "--level", "exists")
