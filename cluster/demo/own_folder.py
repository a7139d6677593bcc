"""The user's own class folders, split for the demonstration by a rule that is printed."""

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from cluster.demo.digits import Folders
from pipeline.base.errors import EmptySource, NotFound
from pipeline.base.seeds import key128
from pipeline.packing.sources.folder import is_image_name
from pipeline.packing.sources.rows import SPLIT_NAMES

_MAX_PICTURES = 6000  # of all classes together: keeps the demonstration within minutes
_MIN_PER_CLASS = 5
_TEST_SPLITS = ("test", "val", "valid", "validation")

Pictures = Mapping[str, Sequence[Path]]


def own_folders(data: Path, folder: Path) -> Folders:
    """Split class folders into upstream, downstream training and downstream test, as links below `folder`.

    Raises:
        NotFound: The folder does not exist.
        EmptySource: Fewer than two classes have enough pictures.
    """
    if not data.is_dir():
        raise NotFound(f"{data} is not a folder; give one with CLASS/NAME.jpg or SPLIT/CLASS/NAME.jpg")
    folders = [path for path in sorted(data.iterdir()) if path.is_dir() and not path.name.startswith((".", "__"))]
    splits = {path.name.casefold(): path for path in folders}
    if "train" in splits:
        if not set(splits) <= SPLIT_NAMES or len(splits) == 1:
            raise EmptySource(
                f"{data} holds {', '.join(path.name for path in folders)}; expected are train/ with test/ or val/, "
                f"or class folders only"
            )
        test_name = next(name for name in _TEST_SPLITS if name in splits)
        test, train = _classes(splits[test_name]), _classes(splits["train"])
        classes = _usable(data, {name: train[name] for name in train if name in test})
        parts = {name: _cut(_limit(classes, name), (0.75, 1.0)) for name in classes}
        upstream, train_part = ({name: part[index] for name, part in parts.items()} for index in (0, 1))
        test_part = {name: _limit(test, name) for name in classes}
        rule = f"upstream: 75 % of train/; downstream training: 25 % of train/; downstream test: {test_name}/"
    else:
        classes = _usable(data, _classes(data))
        parts = {name: _cut(_limit(classes, name), (0.6, 0.8, 1.0)) for name in classes}
        upstream, train_part, test_part = ({name: part[index] for name, part in parts.items()} for index in range(3))
        rule = "of each class: upstream 60 %, downstream training 20 %, downstream test 20 %, by a hash of the names"
    shutil.rmtree(folder / "pictures", ignore_errors=True)
    counts = f"{_count(upstream)} upstream, {_count(train_part)} training, {_count(test_part)} test"
    return Folders(
        upstream=_link(folder / "pictures/upstream", upstream),
        train=_link(folder / "pictures/downstream-train", train_part),
        test=_link(folder / "pictures/downstream-test", test_part),
        about=(f"your pictures in {data}", rule, f"{len(classes)} classes; pictures: {counts}"),
    )


def _classes(folder: Path) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("*/**/*")):
        if path.is_file() and is_image_name(path.name):
            found.setdefault(path.relative_to(folder).parts[0], []).append(path)
    return found


def _usable(data: Path, classes: dict[str, list[Path]]) -> dict[str, list[Path]]:
    usable = {name: paths for name, paths in classes.items() if len(paths) >= _MIN_PER_CLASS}
    if len(usable) < 2:
        raise EmptySource(
            f"{data} has {len(usable)} class folders with {_MIN_PER_CLASS} pictures or more, two are needed; expected "
            f"{data}/CLASS/NAME.jpg or {data}/train/CLASS/NAME.jpg"
        )
    return usable


def _limit(classes: Pictures, name: str) -> list[Path]:
    """Return a class's pictures in the order of a hash, at most its share of the limit."""
    most = max(_MIN_PER_CLASS, _MAX_PICTURES // len(classes))
    return sorted(classes[name], key=lambda path: key128(0, "demo split", path.name))[:most]


def _cut(paths: list[Path], shares: Sequence[float]) -> list[list[Path]]:
    """Cut a list at cumulative shares, so that every part has at least one picture."""
    ends = [max(number + 1, round(share * len(paths))) for number, share in enumerate(shares)]
    ends = [min(end, len(paths) - (len(shares) - 1 - number)) for number, end in enumerate(ends)]
    starts = [0, *ends[:-1]]
    return [paths[start:end] for start, end in zip(starts, ends, strict=True)]


def _count(pictures: Pictures) -> int:
    return sum(len(paths) for paths in pictures.values())


def _link(folder: Path, pictures: Pictures) -> Path:
    for name, paths in pictures.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number, path in enumerate(paths):
            os.symlink(path.absolute(), folder / name / f"{number:05d}-{path.name}")
    return folder
