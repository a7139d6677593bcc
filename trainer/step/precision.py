"""The precision of a step, without torch."""

from typing import Literal

Precision = Literal["float32", "bfloat16"]
