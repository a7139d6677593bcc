"""Pictures with files that describe what is in them: CLEVR and KITTI."""

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.base.errors import ConfigError
from trainer.tasks.derive import clevr_count, clevr_distance, kitti_distance
from trainer.tasks.originals.base import Example, Original, found, lines_of, listed, require_known
from trainer.tasks.task import Task

# As TFDS divides KITTI [object_detection/kitti.py]: a tenth of the videos for each.
_HELD_OUT_PERCENT = 10
_TFDS_SEED = 123


def read_clevr(root: Path, task: Task) -> Original:
    """Return CLEVR: `images/{train,val}/NAME.png` and `scenes/CLEVR_{train,val}_scenes.json`."""
    splits = {}
    for split, name in (("train", "train"), ("validation", "val")):
        path = found(root, f"scenes/CLEVR_{name}_scenes.json", f"CLEVR_v1.0/scenes/CLEVR_{name}_scenes.json")
        scenes = json.loads(path.read_text())["scenes"]
        folder = path.parent.parent / "images" / name
        examples = []
        for scene in scenes:
            depths = [thing["pixel_coords"][2] for thing in scene["objects"]]
            label = clevr_count(len(depths)) if task.label == "count" else clevr_distance(depths)
            file = scene["image_filename"]
            examples.append(Example(file, str(folder / file), require_known(label, task.classes, f"{path}, {file}")))
        splits[split] = listed(examples)
    return Original(task.classes, splits)


def read_kitti(root: Path, task: Task) -> Original:
    """Return KITTI's object detection set: `training/image_2`, `training/label_2`, and the development kit's mapping.

    The mapping (`mapping/train_rand.txt` and `train_mapping.txt`) says which video a picture is of; the splits are
    those of TFDS, which keep a video in one split.
    """
    lines = lines_of(found(root, "mapping/train_mapping.txt", "devkit*/mapping/train_mapping.txt"))
    order = found(root, "mapping/train_rand.txt", "devkit*/mapping/train_rand.txt").read_text().split(",")
    videos = [lines[int(number) - 1][1] for number in order]
    splits = {}
    for split, numbers in videos_split(videos).items():
        examples = []
        for number in numbers:
            path = root / "training" / "label_2" / f"{number:06d}.txt"
            things = [words for words in lines_of(found(path.parent, path.name)) if words[0] != "DontCare"]
            label = kitti_distance([words[0] for words in things], [float(words[13]) for words in things])
            image = root / "training" / "image_2" / f"{number:06d}.png"
            examples.append(Example(image.name, str(image), task.classes[label]))
        splits[split] = listed(examples)
    return Original(task.classes, splits)


def videos_split(videos: Sequence[str]) -> dict[str, list[int]]:
    """Return the pictures of each split, by the video of every picture.

    Raises:
        ConfigError: There are too few videos to divide.
    """
    of_video: dict[str, list[int]] = defaultdict(list)
    for number, video in enumerate(videos):
        of_video[video].append(number)
    if len(of_video) < 3:
        raise ConfigError(f"KITTI's mapping names {len(of_video)} videos; three splits need three or more")
    generator = np.random.RandomState(_TFDS_SEED)  # that of TFDS: with another generator the splits are others
    count = max(1, _HELD_OUT_PERCENT * len(of_video) // 100)
    test = set(generator.choice(sorted(of_video), count, replace=False).tolist())
    validation = set(generator.choice(sorted(set(of_video) - test), count, replace=False).tolist())
    chosen: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    for video, numbers in of_video.items():
        chosen["test" if video in test else "validation" if video in validation else "train"] += numbers
    return chosen
