"""The 19 tasks of VTAB-1k, and how their scores are summed [task_adaptation; paper 3.2].

Each trains on 1,000 pictures: the first 800 of its training part and the first 200 of its validation part.
"""

from collections.abc import Mapping
from statistics import fmean

from trainer.tasks.derive import CLEVR_DISTANCES, KITTI_DISTANCES
from trainer.tasks.task import Portion, Task

_NUM_TRAIN, _NUM_VAL = 800, 200


def _splits(train: Portion, val: Portion, test: Portion) -> dict[str, tuple[Portion, ...]]:
    """Return the splits of VTAB-1k by the parts of a data set."""
    first, second = train._replace(most=_NUM_TRAIN), val._replace(most=_NUM_VAL)
    return {"train": (first, second), "train800": (first,), "val200": (second,), "test": (test,)}


def _cut_train(percent: int, test: str = "test") -> dict[str, tuple[Portion, ...]]:
    return _splits(Portion("train", 0, percent), Portion("train", percent, 100), Portion(test))


_THREE = _splits(Portion("train"), Portion("validation"), Portion("test"))
_SIXTY_TWENTY = _splits(Portion("train", 0, 60), Portion("train", 60, 80), Portion("train", 80, 100))
_EIGHTY_TEN = _splits(Portion("train", 0, 80), Portion("train", 80, 90), Portion("train", 90, 100))
_HALF_OF_TEST = _splits(Portion("train"), Portion("test", 0, 50), Portion("test", 50, 100))
_CLEVR = {"train": 70_000, "validation": 15_000}
_DSPRITES = {"train": 737_280}
_NORB = {"train": 24_300, "test": 24_300}
_numbers = tuple(map(str, range(40)))

NATURAL = (
    Task(
        name="vtab/caltech101", title="Caltech101", group="natural", original="caltech101", num_classes=102,
        height_px=200, width_px=300, published={"train": 3_059, "test": 6_085}, splits=_cut_train(90),
    ),
    Task(
        name="vtab/cifar100", title="CIFAR-100", group="natural", original="cifar100", num_classes=100,
        height_px=32, width_px=32, published={"train": 50_000, "test": 10_000}, splits=_cut_train(90),
    ),
    Task(
        name="vtab/dtd", title="DTD", group="natural", original="dtd", num_classes=47, height_px=480, width_px=500,
        published={"train": 1_880, "validation": 1_880, "test": 1_880}, splits=_THREE,
    ),
    Task(
        name="vtab/flowers102", title="Flowers102", group="natural", original="flowers102", num_classes=102,
        height_px=500, width_px=624, published={"train": 1_020, "validation": 1_020, "test": 6_149}, splits=_THREE,
    ),
    Task(
        name="vtab/pets", title="Pets", group="natural", original="pets", num_classes=37, height_px=375, width_px=500,
        published={"train": 3_680, "test": 3_669}, splits=_cut_train(80),
    ),
    Task(
        name="vtab/sun397", title="Sun397", group="natural", original="sun397", num_classes=397,
        height_px=768, width_px=1024, published={"train": 76_128, "validation": 10_875, "test": 21_750}, splits=_THREE,
    ),
    Task(
        name="vtab/svhn", title="SVHN", group="natural", original="svhn", num_classes=10, classes=_numbers[:10],
        height_px=32, width_px=32, published={"train": 73_257, "test": 26_032}, splits=_cut_train(90),
    ),
)  # fmt: skip
SPECIALIZED = (
    Task(
        name="vtab/patch-camelyon", title="PatchCamelyon", group="specialized", original="patch-camelyon",
        num_classes=2, classes=("no tumour", "tumour"), height_px=96, width_px=96,
        published={"train": 262_144, "validation": 32_768, "test": 32_768}, splits=_THREE,
    ),
    Task(
        name="vtab/eurosat", title="EuroSAT", group="specialized", original="eurosat", num_classes=10,
        height_px=64, width_px=64, published={"train": 27_000}, splits=_SIXTY_TWENTY,
    ),
    Task(
        name="vtab/resisc45", title="Resisc45", group="specialized", original="resisc45", num_classes=45,
        height_px=256, width_px=256, published={"train": 31_500}, splits=_SIXTY_TWENTY,
    ),
    Task(
        name="vtab/retinopathy", title="Diabetic Retinopathy", group="specialized", original="retinopathy",
        num_classes=5, classes=_numbers[:5], height_px=600, width_px=600,
        published={"train": 35_126, "validation": 10_906, "test": 42_670}, splits=_THREE,
    ),
)  # fmt: skip
STRUCTURED = (
    Task(
        name="vtab/clevr-count", title="Clevr-count", group="structured", original="clevr", label="count",
        num_classes=8, classes=_numbers[3:11], height_px=320, width_px=480, published=_CLEVR,
        splits=_cut_train(90, "validation"), crop=False,
    ),
    Task(
        name="vtab/clevr-distance", title="Clevr-distance", group="structured", original="clevr", label="distance",
        num_classes=6, classes=CLEVR_DISTANCES, height_px=320, width_px=480, published=_CLEVR,
        splits=_cut_train(90, "validation"), crop=False,
    ),
    Task(
        name="vtab/dmlab", title="DMLab", group="structured", original="dmlab", num_classes=6, classes=_numbers[:6],
        height_px=360, width_px=480, published={"train": 65_550, "validation": 22_628, "test": 22_735}, splits=_THREE,
        crop=False,
    ),
    Task(
        name="vtab/kitti-distance", title="KITTI-distance", group="structured", original="kitti", label="distance",
        num_classes=4, classes=KITTI_DISTANCES, height_px=375, width_px=1242,
        published={"train": 6_347, "validation": 423, "test": 711}, splits=_THREE, crop=False,
    ),
    Task(
        name="vtab/dsprites-location", title="dSprites-location", group="structured", original="dsprites",
        label="location", num_classes=16, classes=_numbers[:16], height_px=64, width_px=64, published=_DSPRITES,
        splits=_EIGHTY_TEN, flip=False, crop=False,
    ),
    Task(
        name="vtab/dsprites-orientation", title="dSprites-orientation", group="structured", original="dsprites",
        label="orientation", num_classes=16, classes=_numbers[:16], height_px=64, width_px=64, published=_DSPRITES,
        splits=_EIGHTY_TEN, flip=False,
    ),
    Task(
        name="vtab/smallnorb-azimuth", title="SmallNORB-azimuth", group="structured", original="smallnorb",
        label="azimuth", num_classes=18, classes=_numbers[:18], height_px=96, width_px=96, published=_NORB,
        splits=_HALF_OF_TEST, flip=False,
    ),
    Task(
        name="vtab/smallnorb-elevation", title="SmallNORB-elevation", group="structured", original="smallnorb",
        label="elevation", num_classes=9, classes=_numbers[:9], height_px=96, width_px=96, published=_NORB,
        splits=_HALF_OF_TEST,
    ),
)  # fmt: skip
VTAB = (*NATURAL, *SPECIALIZED, *STRUCTURED)


def group_scores(scores: Mapping[str, float]) -> dict[str, float]:
    """Return the mean of all 19 scores as `all`, and that of each group.

    Args:
        scores: Top-1 accuracy by name of the task.

    Raises:
        ValueError: A task of VTAB is missing.
    """
    missing = [task.name for task in VTAB if task.name not in scores]
    if missing:
        raise ValueError(f"VTAB has no score without {', '.join(missing)}")
    means = {"all": fmean(scores[task.name] for task in VTAB)}
    for group, tasks in (("natural", NATURAL), ("specialized", SPECIALIZED), ("structured", STRUCTURED)):
        means[group] = fmean(scores[task.name] for task in tasks)
    return means
