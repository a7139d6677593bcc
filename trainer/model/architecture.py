"""Names and shapes of the models, without torch."""

import re
from typing import Literal

from pipeline.base.errors import ConfigError
from pipeline.base.records import Record

# Bottleneck units of the four stages [paper 3.3; R26 from big_vision; R14 ours, for work on a CPU].
UNITS: dict[int, tuple[int, int, int, int]] = {
    14: (1, 1, 1, 1),
    26: (2, 2, 2, 2),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
PAPER_MODELS = ("R50x1", "R50x3", "R101x1", "R101x3", "R152x2", "R152x4")
NUM_GROUPS = 32  # of every GroupNorm [paper 3.3]
Norm = Literal["group", "batch", "sync-batch"]
_NORM_OF_SUFFIX: dict[str, Norm] = {"GN": "group", "BN": "batch", "SyncBN": "sync-batch"}
_NAME = re.compile(rf"^R(\d+)x(\d+(?:\.5)?)(?:-({'|'.join(_NORM_OF_SUFFIX)})(-WS)?)?$")


class Architecture(Record):
    """A ResNet-v2 without its head.

    Attributes:
        name: Such as R50x1.
        units: Bottleneck units of each stage.
        width: Multiplier of the channels; a multiple of 0.5, so that 32 groups divide them.
        norm: GroupNorm, BatchNorm of each device's micro-batch, or BatchNorm over all devices [paper Tables 4, 5].
        standardized: Whether the kernels of convolutions are standardised.
    """

    name: str
    units: tuple[int, int, int, int]
    width: float
    norm: Norm = "group"
    standardized: bool = True

    @property
    def stem_channels(self) -> int:
        """Channels after the stem."""
        return int(64 * self.width)

    @property
    def num_features(self) -> int:
        """Channels before the head."""
        return int(2048 * self.width)


def parse_architecture(name: str) -> Architecture:
    """Return the architecture of a name like R50x1, R14x0.5 or R50x1-BN.

    Without a suffix it is BiT: GroupNorm and weight standardisation. -GN, -BN and -SyncBN name the normalisation
    with plain kernels, and with -WS after them standardised ones.

    Raises:
        ConfigError: There is no such depth, norm or suffix, or the width is not a multiple of 0.5.
    """
    match = _NAME.match(name)
    if not match or int(match[1]) not in UNITS or float(match[2]) == 0:
        depths = ", ".join(f"R{depth}" for depth in UNITS)
        raise ConfigError(
            f"model {name!r} is unknown; write DEPTHxWIDTH with depth {depths} and width 0.5, 1, 2, ..., and for other "
            f"networks than BiT's one of -GN, -BN, -SyncBN, -BN-WS, -SyncBN-WS after it"
        )
    return Architecture(
        name=name,
        units=UNITS[int(match[1])],
        width=float(match[2]),
        norm=_NORM_OF_SUFFIX[match[3]] if match[3] else "group",
        standardized=match[3] is None or match[4] is not None,
    )
