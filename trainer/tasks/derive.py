"""Labels that VTAB derives from what a data set knows of a picture [task_adaptation data/*.py].

An edge belongs to the bin below it.
"""

from collections.abc import Sequence

import numpy as np

_CLEVR_EDGES = (8.0, 8.5, 9.0, 9.5, 10.0)  # depth of the nearest object, as CLEVR's scenes have it
_KITTI_EDGES = (8.0, 20.0, 999.0)  # metres
_NO_VEHICLE = 1000.0
VEHICLES = ("Car", "Van", "Truck")
CLEVR_DISTANCES = ("to 8.0", "8.0 to 8.5", "8.5 to 9.0", "9.0 to 9.5", "9.5 to 10.0", "over 10.0")
KITTI_DISTANCES = ("to 8 m", "8 to 20 m", "over 20 m", "no vehicle")
_FEWEST_CLEVR_OBJECTS = 3


def clevr_count(num_objects: int) -> int:
    """Return the class of a number of objects, 3 to 10."""
    return num_objects - _FEWEST_CLEVR_OBJECTS


def clevr_distance(depths: Sequence[float]) -> int:
    """Return the class of the nearest object, by the depths of all."""
    return int(np.searchsorted(_CLEVR_EDGES, min(depths), side="left"))


def kitti_distance(kinds: Sequence[str], depths_m: Sequence[float]) -> int:
    """Return the class of the nearest car, van or truck, by kind and depth of all objects."""
    vehicles = [depth for kind, depth in zip(kinds, depths_m, strict=True) if kind in VEHICLES]
    return int(np.searchsorted(_KITTI_EDGES, min([*vehicles, _NO_VEHICLE]), side="left"))


def binned(index: int, num_values: int, num_bins: int) -> int:
    """Return the bin of one of `num_values` values of a factor, such as dSprites' 40 orientations in 16 bins."""
    return int(index // (num_values / num_bins))
