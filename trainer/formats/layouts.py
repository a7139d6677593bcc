"""What other code bases call each parameter, and the axes they store it with; plain data, without torch.

Names here are of module paths as in `trainer.model.network`, which are timm's. Keys and axes are those of the published
files and code [spec: official npz, timm, big_transfer for PyTorch, big_vision, transformers].
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Kind = Literal["stem", "conv", "projection", "norm", "last norm", "head"]
_NAMES: dict[Kind, re.Pattern[str]] = {
    "stem": re.compile(r"^stem\.conv\.(weight)$"),
    "conv": re.compile(r"^stages\.(?P<stage>\d)\.blocks\.(?P<unit>\d+)\.conv(?P<number>\d)\.(weight)$"),
    "projection": re.compile(r"^stages\.(?P<stage>\d)\.blocks\.(?P<unit>\d+)\.downsample\.conv\.(weight)$"),
    "norm": re.compile(r"^stages\.(?P<stage>\d)\.blocks\.(?P<unit>\d+)\.norm(?P<number>\d)\.(weight|bias)$"),
    "last norm": re.compile(r"^norm\.(weight|bias)$"),
    "head": re.compile(r"^head\.fc\.(weight|bias)$"),
}


@dataclass(frozen=True)
class Place:
    """Where a parameter is in the network.

    Attributes:
        kind: What it belongs to.
        field: weight or bias.
        stage: From 0; 0 outside of the stages.
        unit: From 0 in its stage.
        number: Of the norm or convolution in its unit, from 1.
    """

    kind: Kind
    field: str
    stage: int = 0
    unit: int = 0
    number: int = 0


def place_of(name: str) -> Place:
    """Return the place of a parameter of a GroupNorm network by its name, such as stages.0.blocks.2.conv1.weight.

    Raises:
        ValueError: It is no name of one.
    """
    for kind, pattern in _NAMES.items():
        if found := pattern.match(name):
            numbers = {key: int(value) for key, value in found.groupdict().items()}
            return Place(kind, found[found.lastindex or 1], **numbers)
    raise ValueError(f"{name} is no parameter of a BiT network")


@dataclass(frozen=True)
class Layout:
    """How one code base stores weights.

    Attributes:
        name: As the command line takes it.
        key: Gives the key of a place.
        kernel_axes: Of convolutions.
        head_axes: Of the head's kernel.
        norm_axes: How many axes scale and bias of norms have; all but the last are 1.
        marker: A key that only this layout has.
        ignored: Matches what a key may have besides, to be left out.
    """

    name: str
    key: Callable[[Place], str]
    kernel_axes: Literal["OIHW", "HWIO"]
    head_axes: Literal["OIHW", "HWIO", "OI", "IO"]
    norm_axes: int
    marker: str
    ignored: re.Pattern[str]


def _official(place: Place) -> str:
    end = {"weight": "gamma", "bias": "beta"}[place.field]
    unit = f"resnet/block{place.stage + 1}/unit{place.unit + 1:02d}"
    letter = " abc"[place.number]
    return {
        "stem": "resnet/root_block/standardized_conv2d/kernel",
        "conv": f"{unit}/{letter}/standardized_conv2d/kernel",
        "projection": f"{unit}/a/proj/standardized_conv2d/kernel",
        "norm": f"{unit}/{letter}/group_norm/{end}",
        "last norm": f"resnet/group_norm/{end}",
        "head": f"resnet/head/conv2d/{'kernel' if place.field == 'weight' else 'bias'}",
    }[place.kind]


def _big_transfer(place: Place) -> str:
    unit = f"body.block{place.stage + 1}.unit{place.unit + 1:02d}"
    return {
        "stem": "root.conv.weight",
        "conv": f"{unit}.conv{place.number}.weight",
        "projection": f"{unit}.downsample.weight",
        "norm": f"{unit}.gn{place.number}.{place.field}",
        "last norm": f"head.gn.{place.field}",
        "head": f"head.conv.{place.field}",
    }[place.kind]


def _big_vision(place: Place) -> str:
    unit = f"block{place.stage + 1}/unit{place.unit + 1:02d}"
    end = {"weight": "scale", "bias": "bias"}[place.field]
    return {
        "stem": "root_block/conv_root/kernel",
        "conv": f"{unit}/conv{place.number}/kernel",
        "projection": f"{unit}/conv_proj/kernel",
        "norm": f"{unit}/gn{place.number}/{end}",
        "last norm": f"norm-pre-head/{end}",
        "head": f"head/{'kernel' if place.field == 'weight' else 'bias'}",
    }[place.kind]


def _timm(place: Place) -> str:
    unit = f"stages.{place.stage}.blocks.{place.unit}"
    return {
        "stem": "stem.conv.weight",
        "conv": f"{unit}.conv{place.number}.weight",
        "projection": f"{unit}.downsample.conv.weight",
        "norm": f"{unit}.norm{place.number}.{place.field}",
        "last norm": f"norm.{place.field}",
        "head": f"head.fc.{place.field}",
    }[place.kind]


def _transformers(place: Place) -> str:
    unit = f"bit.encoder.stages.{place.stage}.layers.{place.unit}"
    return {
        "stem": "bit.embedder.convolution.weight",
        "conv": f"{unit}.conv{place.number}.weight",
        "projection": f"{unit}.downsample.conv.weight",
        "norm": f"{unit}.norm{place.number}.{place.field}",
        "last norm": f"bit.norm.{place.field}",
        "head": f"classifier.1.{place.field}",
    }[place.kind]


_NOTHING = re.compile(r"(?!)")
LAYOUTS = {
    layout.name: layout
    for layout in (
        # Some official files number their layers: standardized_conv2d_17.
        Layout("official", _official, "HWIO", "HWIO", 1, "resnet/root_block/standardized_conv2d/kernel",
               re.compile(r"(?<=standardized_conv2d)_\d+")),
        Layout("big_vision", _big_vision, "HWIO", "IO", 4, "root_block/conv_root/kernel", re.compile(r"^params/")),
        # DataParallel puts `module.` before every name.
        Layout("big_transfer", _big_transfer, "OIHW", "OIHW", 1, "root.conv.weight", re.compile(r"^module\.")),
        Layout("timm", _timm, "OIHW", "OIHW", 1, "stem.conv.weight", re.compile(r"^module\.")),
        Layout("transformers", _transformers, "OIHW", "OI", 1, "bit.embedder.convolution.weight", _NOTHING),
    )
}  # fmt: skip


def layout_of(keys: frozenset[str]) -> Layout | None:
    """Return the layout that a file's keys are of, or None."""
    for layout in LAYOUTS.values():
        if any(layout.ignored.sub("", key) == layout.marker for key in keys):
            return layout
    return None
