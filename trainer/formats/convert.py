"""Weights from the layout of another code base to ours and back; equal bits both ways."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from pipeline.base.errors import ConfigError
from trainer.formats.layouts import LAYOUTS, Layout, layout_of, place_of
from trainer.model.architecture import UNITS, Architecture, parse_architecture
from trainer.model.network import ResNetV2

Head = Literal["keep", "drop"]
_MOST_SHOWN = 12
_DEEPEST = parse_architecture("R152x1")  # has every unit that any model has
_NORMS = ("norm", "last norm")


def infer_architecture(weights: Mapping[str, Tensor]) -> Architecture:
    """Return the architecture of weights in our names, from their number of units and the width of the stem.

    Raises:
        ConfigError: No known one has these.
    """
    stem = weights.get("stem.conv.weight")
    return _architecture(weights, 0 if stem is None or stem.ndim == 0 else len(stem), "the file")


def to_ours(values: Mapping[str, Tensor], source: str, head: Head = "keep") -> dict[str, Tensor]:
    """Return a file's weights with our names and axes, float32; without a head where the file has none.

    Args:
        values: Of the file, by its keys; keys that no parameter has are ignored.
        source: Names the file in errors.
        head: Whether the classifier is taken, too.

    Raises:
        ConfigError: The layout is unknown, weights are missing or have another shape, or are not finite; lists them.
    """
    layout = layout_of(frozenset(values))
    if layout is None:
        known = ", ".join(f"{name} ({each.marker})" for name, each in LAYOUTS.items())
        raise ConfigError(f"{source} has none of the known layouts, each recognised by one key: {known}")
    found = {layout.ignored.sub("", key): value for key, value in values.items()}
    key_of = {name: layout.key(place_of(name)) for name in _shapes(_DEEPEST, 1)}
    given = {name: found[key] for name, key in key_of.items() if key in found}
    architecture = _architecture(given, _out_channels(given.get("stem.conv.weight"), layout.kernel_axes), source)
    has_head = head == "keep" and any(name.startswith("head.") for name in given)
    num_classes = _out_channels(given.get("head.fc.weight"), layout.head_axes)
    expected = {
        name: _shape_in(layout, name, shape)
        for name, shape in _shapes(architecture, max(1, num_classes) if has_head else 0).items()
    }
    wrong = [
        f"{key_of[name]} {problem}" for name, shape in expected.items() if (problem := _problem(given, name, shape))
    ]
    if wrong:
        raise ConfigError(f"{source} is no whole {architecture.name} in the layout of {layout.name}: {_some(wrong)}")
    weights = {name: _from_layout(given[name], name, layout) for name in expected}
    _check_finite(weights, key_of, source)
    return weights


def from_ours(weights: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """Return weights with the keys and axes of a layout, contiguous, float32."""
    return {layout.key(place_of(name)): _to_layout(value, name, layout) for name, value in weights.items()}


def _architecture(names: Iterable[str], stem_channels: int, source: str) -> Architecture:
    units = [0, 0, 0, 0]
    for name in names:
        if found := re.match(r"stages\.([0-3])\.blocks\.(\d+)\.", name):
            units[int(found[1])] = max(units[int(found[1])], int(found[2]) + 1)
    for depth, known in UNITS.items():
        if tuple(units) == known:
            if stem_channels == 0 or stem_channels % 32:
                raise ConfigError(f"{source} has a stem of {stem_channels} channels; known are multiples of 32")
            return parse_architecture(f"R{depth}x{stem_channels / 64:g}")
    known_units = ", ".join(f"R{depth} {units}" for depth, units in UNITS.items())
    raise ConfigError(f"{source} has {tuple(units)} units in its four stages; known are {known_units}")


def _shapes(architecture: Architecture, num_classes: int) -> dict[str, tuple[int, ...]]:
    """Return the shape of every parameter by name; without those of the head for 0 classes."""
    with torch.device("meta"):
        model = ResNetV2(architecture, max(1, num_classes))
    return {
        name: tuple(value.shape)
        for name, value in model.state_dict().items()
        if num_classes or not name.startswith("head.")
    }


def _out_channels(kernel: Tensor | None, axes: str) -> int:
    """Return the output channels of a kernel in a file; 0 without a kernel."""
    if kernel is None or kernel.ndim == 0:
        return 0
    return kernel.shape[0 if axes.startswith("O") else -1]


def _shape_in(layout: Layout, name: str, shape: Sequence[int]) -> tuple[int, ...]:
    """Return the shape that a file has a parameter in."""
    place = place_of(name)
    if place.kind in _NORMS:
        return (*[1] * (layout.norm_axes - 1), *shape)
    if place.field == "bias":
        return tuple(shape)
    axes = layout.head_axes if place.kind == "head" else layout.kernel_axes
    return tuple(shape["OIHW".index(axis)] for axis in axes)


def _problem(given: Mapping[str, Tensor], name: str, shape: tuple[int, ...]) -> str | None:
    """Return what is wrong with a parameter of a file before it is converted, if anything is."""
    if name not in given:
        return "is missing, or holds no numbers"
    value = given[name]
    is_flat = place_of(name).kind in _NORMS and value.ndim and value.shape[-1] == value.numel() == math.prod(shape)
    if tuple(value.shape) != shape and not is_flat:
        return f"has shape {tuple(value.shape)} instead of {shape}"
    if not value.is_floating_point() or value.layout != torch.strided or value.is_meta:
        return f"holds {value.dtype} ({value.layout}) instead of dense floating-point numbers".replace("torch.", "")
    return None


def _check_finite(weights: Mapping[str, Tensor], key_of: Mapping[str, str], source: str) -> None:
    counts = {name: value.numel() - int(value.isfinite().sum()) for name, value in weights.items()}
    bad = [f"{key_of[name]} ({count:,} of {weights[name].numel():,})" for name, count in counts.items() if count]
    if bad:
        raise ConfigError(
            f"{source} has {sum(counts.values()):,} weights that are NaN or infinite: {_some(bad)}; take a file from "
            f"before its training diverged"
        )


def _some(problems: Sequence[str]) -> str:
    more = f" and {len(problems) - _MOST_SHOWN} more" if len(problems) > _MOST_SHOWN else ""
    return "; ".join(problems[:_MOST_SHOWN]) + more


def _from_layout(value: Tensor, name: str, layout: Layout) -> Tensor:
    """Return a value with our axes."""
    value, place = value.float(), place_of(name)
    if place.kind in _NORMS:
        return value.flatten()
    if place.field == "bias":
        return value
    axes = layout.head_axes if place.kind == "head" else layout.kernel_axes
    if axes in ("OI", "IO"):
        return (value if axes == "OI" else value.T)[:, :, None, None].contiguous()
    return (value if axes == "OIHW" else value.permute(3, 2, 0, 1)).contiguous()


def _to_layout(value: Tensor, name: str, layout: Layout) -> Tensor:
    value, place = value.detach().float().cpu(), place_of(name)
    if place.kind in _NORMS:
        return value.reshape(*[1] * (layout.norm_axes - 1), -1).contiguous()
    if place.field == "bias":
        return value.contiguous()
    axes = layout.head_axes if place.kind == "head" else layout.kernel_axes
    if axes in ("OI", "IO"):
        flat = value.flatten(1)
        return (flat if axes == "OI" else flat.T).contiguous()
    return (value if axes == "OIHW" else value.permute(2, 3, 1, 0)).contiguous()
