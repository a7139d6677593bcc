"""What every training run can be told, whatever it learns; nothing here changes the recipe."""

import math
from typing import Annotated, Literal

from pydantic import AfterValidator, NonNegativeInt, PositiveFloat, PositiveInt

from pipeline.base.records import Record
from pipeline.store.url import absolute_url
from pipeline.streaming.order import OrderConfig, lanes_of_rank
from pipeline.streaming.stream import LoaderConfig
from trainer.step.precision import Precision


class RunSettings(Record):
    """How a run is computed and kept.

    Attributes:
        seed: Key of initial weights, order, subsets and augmentation.
        num_lanes: See pipeline.streaming.order; at least the number of workers.
        window_blocks: See pipeline.streaming.order.
        microbatch_size: Most samples of a rank in one forward pass.
        precision: Of convolutions and activations.
        recomputes: Whether only the input of each unit is kept for the backward pass.
        compiled: Whether torch.compile makes the network's kernels; needs a C compiler, on CPUs a C++ compiler. None:
            on GPUs, where it is more than twice as fast (benchmarks/gpu.py), but for sharded models. `step`: those of
            the standardisation, too, which has not been timed on a GPU.
        checkpoint_every_steps: Steps between checkpoints; None for the interval that loses least, by what saves cost
            and how often the run was started again (trainer.checkpoint.interval).
        log_every_steps: Steps between metric rows.
        max_skipped_steps: Most steps of the run whose loss or gradient is not finite that are left out, batch and all,
            instead of stopping the run.
        clip_norm: Norm to which a longer gradient is shortened; None for none, as in the paper.
        keep_checkpoints: How many of the newest to keep; the best one by held-out accuracy is kept, too.
        keep_every_steps: At multiples of this a checkpoint is written in any case, and kept for good; None for none.
        loader: How batches are made; may differ from start to start.
        loader_log: URL of a file of JSON lines with each rank's loader figures of every second; `-rank0` and so on is
            added to its name, and on S3 the time of each minute's part. None for none; may differ from start to start.
    """

    seed: int = 0
    num_lanes: PositiveInt = 16
    window_blocks: PositiveInt = 4
    microbatch_size: PositiveInt = 64
    precision: Precision = "float32"
    recomputes: bool = False
    compiled: bool | Literal["step"] | None = None
    checkpoint_every_steps: PositiveInt | None = None
    log_every_steps: PositiveInt = 20
    max_skipped_steps: NonNegativeInt = 0
    clip_norm: PositiveFloat | None = None
    keep_checkpoints: PositiveInt = 3
    keep_every_steps: PositiveInt | None = None
    loader: LoaderConfig = LoaderConfig()
    loader_log: Annotated[str, AfterValidator(absolute_url)] | None = None

    def order(self, batch_size: int) -> OrderConfig:
        """Return the order of the run's samples for a global batch."""
        return OrderConfig(
            seed=self.seed, batch_size=batch_size, num_lanes=self.num_lanes, window_blocks=self.window_blocks
        )

    def samples_by_rank(self, batch_size: int, num_ranks: int) -> list[int]:
        """Return how many samples of a global batch each rank has."""
        each = self.order(batch_size).samples_per_lane()
        return [len(lanes_of_rank(self.num_lanes, rank, num_ranks)) * each for rank in range(num_ranks)]

    def num_microbatches(self, batch_size: int, num_ranks: int) -> int:
        """Return in how many forward passes every rank does its part of a step: those that the largest part needs.

        Where the smallest part has fewer samples, it is that many: micro-batches of one then become some of two.
        """
        samples = self.samples_by_rank(batch_size, num_ranks)
        return min(math.ceil(max(samples) / self.microbatch_size), *samples)
