"""Weights from the layout of another code base to ours and back; equal bits both ways."""

import re
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from pipeline.base.errors import ConfigError
from trainer.formats.layouts import LAYOUTS, Layout, layout_of, place_of
from trainer.model.architecture import UNITS, Architecture, parse_architecture
from trainer.model.network import ResNetV2

Head = Literal["keep", "drop"]
_MOST_TOLD = 12
_DEEPEST = parse_architecture("R152x1")  # has every unit that any model has


def infer_architecture(weights: Mapping[str, Tensor]) -> Architecture:
    """Return the architecture of weights in our names, from their number of units and the width of the stem.

    Raises:
        ConfigError: No known one has these.
    """
    units = [0, 0, 0, 0]
    for name in weights:
        if found := re.match(r"stages\.([0-3])\.blocks\.(\d+)\.", name):
            units[int(found[1])] = max(units[int(found[1])], int(found[2]) + 1)
    stem = weights.get("stem.conv.weight")
    width = 0.0 if stem is None else len(stem) / 64
    for depth, known in UNITS.items():
        if tuple(units) == known:
            return parse_architecture(f"R{depth}x{width:g}")
    known_units = ", ".join(f"R{depth} {units}" for depth, units in UNITS.items())
    raise ConfigError(f"the file has {tuple(units)} units in its four stages; known are {known_units}")


def to_ours(values: Mapping[str, Tensor], source: str, head: Head = "keep") -> dict[str, Tensor]:
    """Return a file's weights with our names and axes, float32.

    Args:
        values: Of the file, by its keys; keys that no parameter has are ignored.
        source: Names the file in errors.
        head: Whether the classifier is taken, too.

    Raises:
        ConfigError: The layout is unknown, or weights are missing or have another shape; lists them.
    """
    layout = layout_of(frozenset(values))
    if layout is None:
        known = ", ".join(f"{name} ({each.marker})" for name, each in LAYOUTS.items())
        raise ConfigError(f"{source} has none of the known layouts, each recognised by one key: {known}")
    found = {layout.ignored.sub("", key): value for key, value in values.items()}
    key_of = {name: layout.key(place_of(name)) for name in _shapes(_DEEPEST, 1)}
    weights = {name: _from_layout(found[key], name, layout) for name, key in key_of.items() if key in found}
    architecture = infer_architecture(weights)
    expected = _shapes(architecture, _num_classes(weights, source) if head == "keep" else 0)
    wrong = [
        f"{key_of[name]} has shape {tuple(found[key_of[name]].shape)}"
        if name in weights
        else f"{key_of[name]} is missing"
        for name, shape in expected.items()
        if name not in weights or tuple(weights[name].shape) != shape
    ]
    if wrong:
        more = f" and {len(wrong) - _MOST_TOLD} more" if len(wrong) > _MOST_TOLD else ""
        raise ConfigError(
            f"{source} is no whole {architecture.name} in the layout of {layout.name}: "
            f"{'; '.join(wrong[:_MOST_TOLD])}{more}"
        )
    return {name: weights[name] for name in expected}


def from_ours(weights: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """Return weights with the keys and axes of a layout, contiguous, float32."""
    return {layout.key(place_of(name)): _to_layout(value, name, layout) for name, value in weights.items()}


def _shapes(architecture: Architecture, num_classes: int) -> dict[str, tuple[int, ...]]:
    """Return the shape of every parameter by name; without those of the head for 0 classes."""
    with torch.device("meta"):
        model = ResNetV2(architecture, max(1, num_classes))
    return {
        name: tuple(value.shape)
        for name, value in model.state_dict().items()
        if num_classes or not name.startswith("head.")
    }


def _num_classes(weights: Mapping[str, Tensor], source: str) -> int:
    if "head.fc.bias" not in weights:
        raise ConfigError(f"{source} has no classifier; import it with --head drop")
    return weights["head.fc.bias"].numel()


def _from_layout(value: Tensor, name: str, layout: Layout) -> Tensor:
    """Return a value with our axes; one with a wrong number of axes as it is."""
    value, place = value.float(), place_of(name)
    if place.kind in ("norm", "last norm"):
        return value.flatten() if value.numel() == value.shape[-1] else value
    if place.field == "bias":
        return value
    axes = layout.head_axes if place.kind == "head" else layout.kernel_axes
    if value.ndim != len(axes):
        return value
    if axes in ("OI", "IO"):
        return (value if axes == "OI" else value.T)[:, :, None, None].contiguous()
    return (value if axes == "OIHW" else value.permute(3, 2, 0, 1)).contiguous()


def _to_layout(value: Tensor, name: str, layout: Layout) -> Tensor:
    value, place = value.detach().float().cpu(), place_of(name)
    if place.kind in ("norm", "last norm"):
        return value.reshape(*[1] * (layout.norm_axes - 1), -1).contiguous()
    if place.field == "bias":
        return value.contiguous()
    axes = layout.head_axes if place.kind == "head" else layout.kernel_axes
    if axes in ("OI", "IO"):
        flat = value.flatten(1)
        return (flat if axes == "OI" else flat.T).contiguous()
    return (value if axes == "OIHW" else value.permute(2, 3, 1, 0)).contiguous()
