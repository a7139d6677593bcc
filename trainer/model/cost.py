"""What a network costs, by arithmetic alone: parameters, multiply-accumulates, and the memory of a training step.

The memory is that of `trainer.step.step` with `trainer.step.optimizer`; tests hold it against measured peaks.
"""

import itertools
import math
from collections.abc import Iterator

from pipeline.base.records import Record
from trainer.model.architecture import Architecture

_FLOAT_BYTES = 4
_POOL_INDEX_BYTES = 8  # max_pool2d keeps int64 indices for its backward pass
_VALUES_PER_PARAMETER = 2  # raw value and gradient; moments come to it


class Layer(Record):
    """One convolution, norm or the classifier, for one picture.

    Attributes:
        name: As in the state dictionary, without weight or bias.
        unit: Name of the unit it belongs to; stem or head outside of them.
        channels: Of its output.
        height: Of its output, in pixels.
        width: Of its output, in pixels.
        num_parameters: Of it.
        num_macs: Multiply-accumulates; those of norms are not counted.
        standardized: Whether it computes with a standardised kernel beside its raw one.
        kept: Numbers kept for its backward pass: its input, and the output of the ReLU after a norm.
    """

    name: str
    unit: str
    channels: int
    height: int
    width: int
    num_parameters: int
    num_macs: int
    standardized: bool
    kept: int


class StepMemory(Record):
    """Bytes of a training step on one rank.

    Attributes:
        weights: Raw parameters, gradients and moments.
        kernels: What convolutions compute with: standardised kernels, or casts in bfloat16; and gathered units where
            the model is sharded.
        activations: Kept for the backward pass of one micro-batch.
        working: Of the largest layer while it is computed: gradients on their way.
    """

    weights: int
    kernels: int
    activations: int
    working: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.kernels + self.activations + self.working


def layers(architecture: Architecture, num_classes: int, resolution_px: int) -> list[Layer]:
    """Return the layers in the order of the forward pass, for one square picture."""
    return list(_layers(architecture, num_classes, resolution_px))


def _layers(architecture: Architecture, num_classes: int, resolution_px: int) -> Iterator[Layer]:
    standardized = architecture.standardized

    def conv(name: str, unit: str, channels: tuple[int, int], kernel_px: int, px: int, *, kept: int) -> Layer:
        num_parameters = channels[0] * channels[1] * kernel_px**2
        return Layer(
            name=name, unit=unit, channels=channels[1], height=px, width=px, num_parameters=num_parameters,
            num_macs=num_parameters * px**2, standardized=standardized, kept=kept,
        )  # fmt: skip

    def norm(name: str, unit: str, channels: int, px: int) -> Layer:
        return Layer(
            name=name, unit=unit, channels=channels, height=px, width=px, num_parameters=2 * channels, num_macs=0,
            standardized=False, kept=2 * channels * px**2,
        )  # fmt: skip

    channels = architecture.stem_channels
    px = math.ceil(resolution_px / 2)
    pooled_px = math.ceil(px / 2)
    kept = 3 * resolution_px**2 + channels * ((px + 2) ** 2 + pooled_px**2 * _POOL_INDEX_BYTES // _FLOAT_BYTES)
    yield conv("stem.conv", "stem", (3, channels), 7, px, kept=kept)
    px = pooled_px
    for stage, num_units in enumerate(architecture.units):
        mid = architecture.stem_channels * 2**stage
        for number in range(num_units):
            unit, out_px = f"stages.{stage}.blocks.{number}", math.ceil(px / 2) if stage and not number else px
            yield norm(f"{unit}.norm1", unit, channels, px)
            if number == 0:
                yield conv(f"{unit}.downsample.conv", unit, (channels, 4 * mid), 1, out_px, kept=0)
            yield conv(f"{unit}.conv1", unit, (channels, mid), 1, px, kept=0)
            yield norm(f"{unit}.norm2", unit, mid, px)
            yield conv(f"{unit}.conv2", unit, (mid, mid), 3, out_px, kept=0)
            yield norm(f"{unit}.norm3", unit, mid, out_px)
            yield conv(f"{unit}.conv3", unit, (mid, 4 * mid), 1, out_px, kept=0)
            channels, px = 4 * mid, out_px
    yield norm("norm", "head", channels, px)
    yield Layer(
        name="head.fc", unit="head", channels=num_classes, height=1, width=1,
        num_parameters=(channels + 1) * num_classes, num_macs=channels * num_classes, standardized=False, kept=channels,
    )  # fmt: skip


def step_memory(
    found: list[Layer],
    batch_size: int,
    *,
    half: bool = False,
    recomputes: bool = False,
    num_shards: int = 1,
    num_moments: int = 1,
) -> StepMemory:
    """Return the memory of a training step.

    Args:
        found: Of `layers`.
        batch_size: Pictures in one forward pass of a rank.
        half: Whether convolutions and activations are bfloat16.
        recomputes: Whether only the inputs of stem and units are kept.
        num_shards: Ranks that share parameters, gradients and moments.
        num_moments: That the optimizer keeps for each parameter: 1 of SGD, 2 of Adam.
    """
    by_unit: dict[str, list[Layer]] = {}
    for layer in found:
        by_unit.setdefault(layer.unit, []).append(layer)
    units = [name for name in by_unit if name not in ("stem", "head")]
    number_bytes = _FLOAT_BYTES // 2 if half else _FLOAT_BYTES
    kept = {name: sum(layer.kept for layer in by_unit[name]) for name in by_unit}
    inputs = {name: by_unit[name][0].channels * by_unit[name][0].height * by_unit[name][0].width for name in units}
    if recomputes:
        # While a unit is computed again, the inputs of those behind it are gone.
        before = itertools.accumulate(inputs[name] for name in units)
        activations = max(
            kept["stem"], *(held + kept[name] - inputs[name] for name, held in zip(units, before, strict=True))
        )
    else:
        activations = sum(kept.values())
    largest = max(layer.channels * layer.height * layer.width for layer in found)
    return StepMemory(
        weights=(_VALUES_PER_PARAMETER + num_moments)
        * _FLOAT_BYTES
        * sum(layer.num_parameters for layer in found)
        // num_shards,
        kernels=_kernel_bytes(by_unit, half=half, recomputes=recomputes, num_shards=num_shards),
        activations=activations * batch_size * number_bytes,
        working=2 * largest * batch_size * number_bytes,
    )


def _kernel_bytes(by_unit: dict[str, list[Layer]], *, half: bool, recomputes: bool, num_shards: int) -> int:
    of_unit = [sum(layer.num_parameters for layer in members) for members in by_unit.values()]
    standardized = [
        sum(layer.num_parameters for layer in members if layer.standardized) for members in by_unit.values()
    ]
    if num_shards > 1:
        # One unit whole with its gradients, and the next one on its way; in half precision its casts, too.
        gathered = (3 * _FLOAT_BYTES + half * _FLOAT_BYTES // 2) * max(of_unit)
        parts = sum(standardized) // num_shards
        return gathered + _FLOAT_BYTES * (min(max(standardized), parts) if recomputes else parts)
    if half:
        return _FLOAT_BYTES // 2 * sum(of_unit)
    return _FLOAT_BYTES * (max(standardized) if recomputes else sum(standardized))


def largest_batch(found: list[Layer], memory_bytes: int, **options: bool | int) -> int:
    """Return the most pictures in one forward pass whose step fits into the memory; 0 if none does.

    Args:
        found: Of `layers`.
        memory_bytes: What may be used.
        options: As `step_memory`.
    """
    one, two = (step_memory(found, count, **options).total for count in (1, 2))  # type: ignore[arg-type]
    return max(0, (memory_bytes - one) // (two - one) + 1) if memory_bytes >= one else 0
