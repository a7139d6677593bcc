"""All tasks by name: those that come with the trainer, and a user's own in TOML files."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.base.errors import ConfigError
from pipeline.base.toml import read_toml
from trainer.tasks.natural import TABLE_1
from trainer.tasks.task import Portion, Task
from trainer.tasks.vtab import VTAB

TASKS = {task.name: task for task in (*TABLE_1, *VTAB)}
OWN = "own"  # the original of a user's task: class folders, or a folder for each split
_OWN_FIELDS = {"name", "title", "classes", "height_px", "width_px", "published", "splits", "flip", "crop"}


def task_named(name: str) -> Task:
    """Return a task by its name, or that of a TOML file.

    Raises:
        ConfigError: There is no such task; names the nearest ones. Or the file says what no task has.
        NotFound: There is no such file.
    """
    if name.endswith(".toml"):
        return own_task(Path(name))
    if name not in TASKS:
        near = difflib.get_close_matches(name, TASKS, 3) or list(TASKS)[:3]
        raise ConfigError(f"there is no task {name!r}; {', '.join(near)} are near; `trainer task list` shows all")
    return TASKS[name]


def own_task(path: Path) -> Task:
    """Return the task that a TOML file describes.

    Raises:
        ConfigError: It is no TOML, lacks something, or has something that no task has; says what.
        NotFound: There is no such file.
    """
    given = read_toml(path)
    unknown = sorted(set(given) - _OWN_FIELDS)
    missing = sorted({"name", "classes", "published", "splits"} - set(given))
    if unknown or missing:
        found = f"unknown: {', '.join(unknown)}" if unknown else f"missing: {', '.join(missing)}"
        raise ConfigError(f"{path}: {found}; a task has {', '.join(sorted(_OWN_FIELDS))}")
    if lacking := sorted({"train", "test"} - set(given["splits"])):
        raise ConfigError(f"{path}: [splits] lacks {' and '.join(lacking)}; both are needed")
    try:
        published = {str(name): int(count) for name, count in given["published"].items()}
        splits = {name: tuple(_portion(item, published) for item in items) for name, items in given["splits"].items()}
        classes = tuple(map(str, given["classes"]))
        return Task(
            name=str(given["name"]),
            title=str(given.get("title", given["name"])),
            original=OWN,
            num_classes=len(classes),
            classes=classes,
            height_px=int(given.get("height_px", 224)),
            width_px=int(given.get("width_px", 224)),
            published=published,
            splits=splits,
            flip=_truth(given, "flip"),
            crop=_truth(given, "crop"),
        )
    except (TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"{path}: {error}") from error


def _truth(given: Mapping[str, Any], name: str) -> bool:
    value = given.get(name, True)
    if not isinstance(value, bool):
        raise TypeError(f"{name} = {value!r}; write true or false, without quotes")
    return value


def _portion(item: Any, published: Mapping[str, int]) -> Portion:
    """Return a portion of `split`, `split[:80%]`, `split[80%:]` or `split[80%:90%]`, with `/800` for the first 800."""
    text, _, most = str(item).partition("/")
    split, bracket, rest = text.partition("[")
    if split not in published:
        raise ValueError(f"the split {split!r} is not in [published], which has {', '.join(published)}")
    start, _, stop = rest.rstrip("]").partition(":") if bracket else ("", ":", "")
    limits = (int(start.rstrip("%") or 0), int(stop.rstrip("%") or 100))
    if not 0 <= limits[0] < limits[1] <= 100:
        raise ValueError(f"{item!r} is no part of a split: write {split}[10%:90%]")
    return Portion(split, *limits, int(most) if most else None)
