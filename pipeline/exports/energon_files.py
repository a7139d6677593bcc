"""The contents of Energon's small files. YAML is written by hand: strings as JSON, which is YAML too."""

import json
import struct

from pipeline.exports.base import MARK
from pipeline.exports.labels import CLS
from pipeline.exports.layout import Layout

# Energon's own names for the parts that its loaders ask for by default.
_PARTS = {"validation": "val", "valid": "val", "eval": "val"}


def tar_index(layout: Layout) -> bytes:
    """Return the first byte of each sample, and the end of the last, as 64-bit numbers."""
    offsets = [*(sample.start for sample in layout.samples), layout.end]
    return struct.pack(f"={len(offsets)}Q", *offsets)


def split_yaml(shards_by_split: dict[str, list[str]], excluded: list[str]) -> bytes:
    """Return the shards of each part; parts that there are none of are listed too, or Energon's tools stop."""
    parts: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for split, paths in shards_by_split.items():
        parts.setdefault(_PARTS.get(split, split), []).extend(paths)
    lines = [f"# {MARK}", "split_parts:"]
    for part, paths in parts.items():
        lines += [f"  {json.dumps(part)}:", *_listed(paths, "    ")] if paths else [f"  {json.dumps(part)}: []"]
    lines += ["exclude:", *_listed(excluded, "  ")] if excluded else ["exclude: []"]
    return "".join(f"{line}\n" for line in lines).encode()


def _listed(texts: list[str], indent: str) -> list[str]:
    return [f"{indent}- {json.dumps(text, ensure_ascii=False)}" for text in texts]


def dataset_yaml(image_extensions: set[str], place: str) -> bytes:
    """Return what a sample is: an image, from the first of the extensions that it has, and its label.

    Args:
        image_extensions: Those that occur.
        place: See labels.label_place.
    """
    fields = {"image": ",".join(sorted(image_extensions))}
    if place:
        fields["label"] = {CLS: "cls", "labels": "json[labels][0]"}.get(place, f"json[{place}]")
    lines = [
        f"# {MARK}",
        "sample_type:",
        "  __module__: megatron.energon",
        "  __class__: ImageClassificationSample",
        "field_map:",
        *(f"  {name}: {json.dumps(path)}" for name, path in fields.items()),
    ]
    return "".join(f"{line}\n" for line in lines).encode()
