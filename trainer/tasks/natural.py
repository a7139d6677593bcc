"""The tasks of the paper's tables 1 and 2 outside of VTAB, on their whole published training splits [paper 4.1]."""

from trainer.tasks.task import Portion, Task

_TRAIN_TEST = {"train": (Portion("train"),), "test": (Portion("test"),)}
_CIFAR = {"train": 50_000, "test": 10_000}

TABLE_1 = (
    Task(
        name="ilsvrc2012", title="ILSVRC-2012", original="ilsvrc2012", num_classes=1000, height_px=375, width_px=500,
        published={"train": 1_281_167, "validation": 50_000},
        splits={"train": (Portion("train"),), "test": (Portion("validation"),)},
    ),
    Task(
        name="cifar10", title="CIFAR-10", original="cifar10", num_classes=10, height_px=32, width_px=32,
        published=_CIFAR, splits=_TRAIN_TEST,
    ),
    Task(
        name="cifar100", title="CIFAR-100", original="cifar100", num_classes=100, height_px=32, width_px=32,
        published=_CIFAR, splits=_TRAIN_TEST,
    ),
    Task(
        name="pets", title="Oxford-IIIT Pets", original="pets", num_classes=37, height_px=375, width_px=500,
        published={"train": 3_680, "test": 3_669}, splits=_TRAIN_TEST,
    ),
    Task(
        name="flowers102", title="Oxford Flowers-102", original="flowers102", num_classes=102, height_px=500,
        width_px=624, published={"train": 1_020, "validation": 1_020, "test": 6_149},
        splits=_TRAIN_TEST | {"val": (Portion("validation"),)},
    ),
)  # fmt: skip
