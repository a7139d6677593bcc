"""Hugging Face: `README.md`, a dataset card whose front matter names the tars of each split for `datasets`."""

import json
from collections import defaultdict

from pipeline.dataset.dataset import Dataset
from pipeline.exports.base import MARK, Export, Written, folder_of
from pipeline.exports.shard_tar import ShardTar
from pipeline.store.base import put

_KEY = "README.md"
# The Hub's own bounds: n<1K, 1K<n<10K, ..., 100B<n<1T, n>1T.
_BOUNDS = ("1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T")


def size_category(num_samples: int) -> str:
    """Return the Hub's word for the number of samples."""
    digits = len(str(num_samples))  # 1K has four: below that is the first class
    place = max(0, digits - 3)
    if place == 0:
        return f"n<{_BOUNDS[0]}"
    return f"{_BOUNDS[place - 1]}<n<{_BOUNDS[place]}" if place < len(_BOUNDS) else f"n>{_BOUNDS[-1]}"


def patterns(paths: list[str], present: dict[str, list[str]]) -> list[str]:
    """Return patterns that match exactly these tars: `FOLDER/*.tar` where it does, the names themselves where not.

    Patterns keep the card of 131 k shards short; the Hub refuses front matter of megabytes.

    Args:
        paths: Keys of the tars of a split.
        present: All tars that the store holds, by folder; some may be of no version, or of another split.
    """
    by_folder = defaultdict(list)
    for path in paths:
        by_folder[folder_of(path)].append(path)
    named: list[str] = []
    for folder, wanted in by_folder.items():
        named += [f"{folder}*.tar"] if sorted(wanted) == sorted(present[folder]) else wanted
    return named


def card(dataset: Dataset, patterns_by_split: dict[str, list[str]]) -> bytes:
    """Return the card. Strings of the front matter are quoted as JSON, which is YAML too."""
    version, name = dataset.version, dataset.store.url.rpartition("/")[2]
    front = [
        f"# {MARK}",
        "task_categories:",
        "- image-classification",
        "size_categories:",
        f"- {json.dumps(size_category(version.num_samples))}",
        "configs:",
        "- config_name: default",
        "  data_files:",
    ]
    for split, named in patterns_by_split.items():
        front += [f"  - split: {json.dumps(split)}", "    path:", *(f"    - {json.dumps(path)}" for path in named)]
    classes = f"Class names by label: `{version.classes}`." if version.classes else "The labels have no names."
    body = f"""
# {name}

{version.num_samples:,} images in {version.num_shards:,} WebDataset shards, {version.num_classes:,} classes; version \
{version.version}, {MARK}. {classes}

```python
from datasets import load_dataset

dataset = load_dataset("{name}")  # this folder's path, or its name on the Hub
```
"""
    return "\n".join(["---", *front, "---", body]).encode()


class HuggingFace(Export):
    """See Export."""

    hand_written = (_KEY,)

    def __init__(self, dataset: Dataset) -> None:
        super().__init__(dataset)
        self._splits: defaultdict[str, list[str]] = defaultdict(list)

    def add(self, shard: ShardTar) -> None:
        """See Export.add."""
        # `datasets` takes letters, digits and _ as the name of a split.
        self._splits[shard.split.replace("-", "_")].append(shard.path)

    def finish(self) -> Written:
        """See Export.finish."""
        store = self._dataset.store
        present: dict[str, list[str]] = defaultdict(list)
        for entry in store.walk():
            if entry.key.endswith(".tar"):
                present[folder_of(entry.key)].append(entry.key)
        put(
            store, _KEY, card(self._dataset, {split: patterns(paths, present) for split, paths in self._splits.items()})
        )
        how = f'datasets.load_dataset("{self._url}")'
        return Written(
            "huggingface", _KEY, how if "://" not in self._url else "copied to the Hub, load_dataset reads it"
        )
