"""What a pretraining run will take, by arithmetic: schedule, checkpoints, and on a cluster time, cost and failures.

Nobody has run this at the scale it is asked about. So figures are ranges, from what was measured or published at one
end to what it was at the other, and ASSUMPTIONS says of each where it is from.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

from pipeline.base.errors import ConfigError
from pipeline.base.records import Record
from trainer.checkpoint.interval import seconds_between_saves
from trainer.model.peak import FLOPS_PER_MAC, PASSES, PEAK_FLOPS
from trainer.recipes.pretrain import PretrainRecipe, pretrain_learning_rate, steps_at, total_steps

_VALUE_BYTES = 4  # of a checkpoint, which is in float32
_SECONDS_PER_HOUR = 3600.0


class Range(NamedTuple):
    """From the lower to the higher of two figures."""

    low: float
    high: float

    def times(self, other: "Range | float") -> "Range":
        """Return the products of lower and lower, and of higher and higher figures; all are above 0."""
        low, high = (other.low, other.high) if isinstance(other, Range) else (other, other)
        return Range(self.low * low, self.high * high)

    def under(self, numerator: float) -> "Range":
        """Return numerator / self."""
        return Range(numerator / self.high, numerator / self.low)


def _span(span: Range, unit: float = 1.0) -> str:
    return f"{span.low / unit:,.0f} to {span.high / unit:,.0f}"


def _percent(span: Range) -> str:
    return f"{span.low:.1%} to {span.high:.1%}"


SHARE_OF_PEAK = Range(0.068, 0.107)
SCALING = Range(0.7, 1.0)
STORE_BYTES_PER_SECOND = Range(75e6, 500e6)
COPY_BYTES_PER_SECOND = Range(2e9, 20e9)
GPU_HOURS_PER_FAILURE = Range(8_000.0, 50_000.0)
RESTART_SECONDS = Range(60.0, 600.0)
ASSUMPTIONS = (
    f"""a GPU does {_percent(SHARE_OF_PEAK)} of its peak in bfloat16: R50x1 at 224 px on one H100 did 2,755 images/s in
    a whole run and 4,318 in the step alone (docs/benchmarks/model.md); other models and GPUs are assumed to do the
    same, and float32 takes longer""",
    f"several GPUs do {_percent(SCALING)} of as many times one: assumed; more than one was never measured",
    f"""a rank writes {_span(STORE_BYTES_PER_SECOND, 1e6)} MB/s to the store: 75 was measured against an S3 server on
    the same two cores, the other end is assumed""",
    f"a save holds the steps up for a copy at {_span(COPY_BYTES_PER_SECOND, 1e9)} GB/s: memory and PCIe, assumed",
    f"""a GPU takes the run down once in {_span(GPU_HOURS_PER_FAILURE)} hours: 1,024 A100s ran 7.9 hours between
    failures (arXiv:2410.21680), 16,384 H100s had 419 unexpected interruptions in 54 days (arXiv:2407.21783)""",
    f"""from a failure to the next step {_span(RESTART_SECONDS)} s: a minute was measured on a small cluster of CPUs,
    the rest is for loading and compiling, and assumed""",
    """storage, network and CPUs keep up with the data rate that is named; queues, repairs and idle nodes are not
    counted""",
)


class Milestone(NamedTuple):
    """A point of the schedule.

    Attributes:
        step: Optimizer steps done.
        epoch: Passes over the data by then.
        learning_rate: From then on.
    """

    step: int
    epoch: float
    learning_rate: float


class Machines(Record):
    """A cluster of GPUs.

    Attributes:
        num_nodes: Nodes.
        gpus_per_node: GPUs of each.
        gpu: One of PEAK_FLOPS.
    """

    num_nodes: int
    gpus_per_node: int
    gpu: str

    @property
    def num_gpus(self) -> int:
        """Of all nodes."""
        return self.num_nodes * self.gpus_per_node


class Forecast(NamedTuple):
    """What a run takes on a cluster.

    Attributes:
        images_per_second: Of all GPUs.
        step_seconds: Of one optimizer step.
        save_seconds: From the copy of a checkpoint to its commit.
        interval_seconds: Between two checkpoints.
        num_failures: In the whole run.
        lost_share: Of the time: to saves, failures and what is done again after them.
        hours: From the first step to the last.
        gpu_hours: Of all GPUs.
    """

    images_per_second: Range
    step_seconds: Range
    save_seconds: Range
    interval_seconds: Range
    num_failures: Range
    lost_share: Range
    hours: Range
    gpu_hours: Range


def machines(text: str) -> Machines:
    """Return the cluster that NODESxGPUSxKIND names, such as 64x8xH100.

    Raises:
        ConfigError: It names none.
    """
    match = re.fullmatch(r"(\d+)x(\d+)x([\w-]+)", text)
    kind = match[3].upper() if match else ""
    if not match or kind not in PEAK_FLOPS or not int(match[1]) * int(match[2]):
        raise ConfigError(
            f"--cluster {text!r}: write NODESxGPUSxKIND such as 64x8xH100; kinds are {', '.join(PEAK_FLOPS)}"
        )
    return Machines(num_nodes=int(match[1]), gpus_per_node=int(match[2]), gpu=kind)


def milestones(recipe: PretrainRecipe, num_samples: int) -> Iterator[Milestone]:
    """Yield the points at which the learning rate turns: the end of the warm-up and each decay before the end."""
    last = total_steps(recipe, num_samples)
    turns = {min(recipe.warmup_steps, last - 1)}
    turns |= {steps_at(epoch, num_samples, recipe.batch_size) for epoch in recipe.decay_epochs}
    for step in sorted(turn for turn in turns if turn < last):
        yield Milestone(step, step * recipe.batch_size / num_samples, pretrain_learning_rate(recipe, step, num_samples))


def checkpoint_bytes(num_parameters: int, num_moments: int = 1) -> int:
    """Return the size of a checkpoint: weights and moments in float32."""
    return num_parameters * (1 + num_moments) * _VALUE_BYTES


def forecast(
    num_macs: int,
    num_parameters: int,
    num_steps: int,
    batch_size: int,
    on: Machines,
    *,
    recomputes: bool,
    num_moments: int = 1,
) -> Forecast:
    """Return what a run takes.

    Args:
        num_macs: Multiply-accumulates of one picture's forward pass.
        num_parameters: Of the model.
        num_steps: Of the run.
        batch_size: Pictures in a step.
        on: The cluster.
        recomputes: Whether the forward pass is done again in the backward pass.
        num_moments: That the optimizer keeps for each parameter.
    """
    flops = num_macs * FLOPS_PER_MAC * (PASSES + recomputes)
    scaling = SCALING if on.num_gpus > 1 else Range(1.0, 1.0)
    rate = SHARE_OF_PEAK.times(scaling).times(PEAK_FLOPS[on.gpu] * on.num_gpus / flops)
    step = rate.under(batch_size)
    part = checkpoint_bytes(num_parameters, num_moments) / on.num_gpus  # ranks share the writing
    save, stall = STORE_BYTES_PER_SECOND.under(part), COPY_BYTES_PER_SECOND.under(part)
    failure = GPU_HOURS_PER_FAILURE.times(_SECONDS_PER_HOUR / on.num_gpus)
    often = _Losses.of(stall.high, save.high, failure.low, RESTART_SECONDS.high)
    rarely = _Losses.of(stall.low, save.low, failure.high, RESTART_SECONDS.low)
    useful = step.times(float(num_steps))
    seconds = Range(*(_with_losses(*each) for each in ((useful.low, rarely.share), (useful.high, often.share))))
    return Forecast(
        images_per_second=rate,
        step_seconds=step,
        save_seconds=save,
        interval_seconds=Range(*sorted((often.interval_seconds, rarely.interval_seconds))),
        num_failures=Range(seconds.low / failure.high, seconds.high / failure.low),
        lost_share=Range(rarely.share, often.share),
        hours=seconds.times(1 / _SECONDS_PER_HOUR),
        gpu_hours=seconds.times(on.num_gpus / _SECONDS_PER_HOUR),
    )


def _with_losses(useful_seconds: float, lost_share: float) -> float:
    return useful_seconds / (1 - lost_share) if lost_share < 1 else math.inf


class _Losses(NamedTuple):
    interval_seconds: float
    share: float

    @classmethod
    def of(cls, stall: float, save: float, failure: float, restart: float) -> "_Losses":
        """Return the interval between saves, and the share of the time that is lost [Young 1974; Daly 2006].

        Saves take stall / interval. A failure takes what was done since the copy of the last save that was committed,
        half an interval and a save on average, and the restart.
        """
        interval = seconds_between_saves(stall, save, failure)
        share = stall / interval + (interval / 2 + save + restart) / failure
        return cls(interval, min(share, 1.0))
