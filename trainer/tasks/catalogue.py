"""All tasks by name: those that come with the trainer, and a user's own in TOML files."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.base.errors import ConfigError
from pipeline.base.toml import read_toml
from trainer.tasks.natural import TABLE_1
from trainer.tasks.task import Portion, Task, chosen_rows
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
        published = {str(name): _positive(f"published.{name}", count) for name, count in given["published"].items()}
        splits = {name: tuple(_portion(item, published) for item in items) for name, items in given["splits"].items()}
        classes = _class_names(given["classes"])
        task = Task(
            name=str(given["name"]),
            title=str(given.get("title", given["name"])),
            original=OWN,
            num_classes=len(classes),
            classes=classes,
            height_px=_positive("height_px", given.get("height_px", 224)),
            width_px=_positive("width_px", given.get("width_px", 224)),
            published=published,
            splits=splits,
            flip=_truth(given, "flip"),
            crop=_truth(given, "crop"),
        )
    except (TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"{path}: {error}") from error
    problem = _problem_of_splits(task)
    if problem:
        raise ConfigError(f"{path}: {problem}")
    return task


def _positive(name: str, value: Any) -> int:
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} = {value!r}; write a whole number from 1 on")
    return value


def _class_names(given: Any) -> tuple[str, ...]:
    if not isinstance(given, list) or not given:
        raise TypeError(f"classes = {given!r}; write a list of names")
    names = tuple(map(str, given))
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"classes has {twice[0]!r} twice")
    return names


def _problem_of_splits(task: Task) -> str | None:
    """Return which split has no picture, one twice, or one to test on that others have, too; None where none has."""
    rows = {}
    for name in task.splits:
        chosen = chosen_rows(task, name, task.published, in_order=False) if task.splits[name] else {}
        rows[name] = {(split, row) for split, found in chosen.items() for row in found.tolist()}
        if not rows[name]:
            return f"splits.{name} has no picture"
        if len(rows[name]) < task.num_pictures(name):
            return f"splits.{name} has pictures twice"
    for name in sorted(set(rows) - {"test"}):
        if shared := len(rows[name] & rows["test"]):
            return f"splits.test and splits.{name} have {shared:,} pictures in common"
    return None


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
    if not 0 <= limits[0] < limits[1] <= 100 or (most and int(most) < 1):
        raise ValueError(f"{item!r} is no part of a split: write {split}[10%:90%] or {split}/800")
    return Portion(split, *limits, int(most) if most else None)
