"""Names and shapes of the models, without torch."""

import re

from pipeline.errors import ConfigError
from pipeline.records import Record

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
_NAME = re.compile(r"^R(\d+)x(\d+(?:\.5)?)$")


class Architecture(Record):
    """A ResNet-v2 without its head.

    Attributes:
        name: Such as R50x1.
        units: Bottleneck units of each stage.
        width: Multiplier of the channels; a multiple of 0.5, so that 32 groups divide them.
    """

    name: str
    units: tuple[int, int, int, int]
    width: float

    @property
    def stem_channels(self) -> int:
        """Channels after the stem."""
        return int(64 * self.width)

    @property
    def num_features(self) -> int:
        """Channels before the head."""
        return int(2048 * self.width)


def parse_architecture(name: str) -> Architecture:
    """Gives the architecture of a name like R50x1 or R14x0.5.

    Raises:
        ConfigError: There is no such depth, or the width is not a multiple of 0.5.
    """
    match = _NAME.match(name)
    if not match or int(match[1]) not in UNITS or float(match[2]) == 0:
        depths = ", ".join(f"R{depth}" for depth in UNITS)
        raise ConfigError(f"model {name!r} is unknown; write DEPTHxWIDTH with depth {depths} and width 0.5, 1, 2, ...")
    return Architecture(name=name, units=UNITS[int(match[1])], width=float(match[2]))
