"""Options that several commands share, and the objects they stand for."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.base.console import EventLog, progress, say
from pipeline.base.errors import ConfigError, EmptySource

if TYPE_CHECKING:
    from pipeline.packing.jobs import Job
    from pipeline.packing.sources.table import Columns
    from pipeline.work.pools import Pool

Command = Callable[..., Any]


def source_options(command: Command) -> Command:
    """Add the options of how tables are read."""
    for option in (
        click.option(
            "--classes", "classes_file", help="File with one class name a line; the line number is the label."
        ),
        click.option(
            "--classes-from",
            metavar="DATASET",
            help="Number labels by name as this dataset does, such as that to test.",
        ),
        click.option("--folder-labels", is_flag=True, help="In tars, the folder of an image is its class."),
        click.option(
            "--image-member",
            "image_members",
            multiple=True,
            metavar="ENDING",
            help="In tars whose names hold dots: what an image's name ends with, such as left.jpg. May be repeated.",
        ),
        click.option("--bytes-column", help="Column of file sizes, where a table knows them."),
        click.option("--no-labels", is_flag=True, help="Pack without labels; images may lie in any folders."),
        click.option("--label-column", default="label", show_default=True, help="Column of labels in a table."),
        click.option(
            "--image-column",
            default="image",
            show_default=True,
            help="Column of image paths, URLs or bytes in a table.",
        ),
    ):
        command = option(command)
    return command


def pool_options(command: Command) -> Command:
    """Add the options of where work runs."""
    for option in (
        click.option("--ray", "on_ray", is_flag=True, help="Use the Ray cluster of RAY_ADDRESS, or of this job."),
        click.option(
            "--workers",
            type=click.IntRange(1),
            help="Processes on this machine (default 1), or most tasks at a time on Ray (default: all its CPUs).",
        ),
    ):
        command = option(command)
    return command


def job_options(command: Command) -> Command:
    """Add the options of how a packing job runs."""
    for option in (
        click.option("--log-jsonl", help="Append events as JSON lines to this file."),
        click.option("--scratch", help="Folder for the plan's sort; the system's temporary folder by default."),
        click.option(
            "--max-reject-fraction",
            default=0.0,
            show_default=True,
            type=click.FloatRange(0, 1),
            help="Share of unusable pictures that may be left out (they are always listed).",
        ),
    ):
        command = option(command)
    return pool_options(command)


def columns_of(
    image_column: str,
    label_column: str,
    no_labels: bool,
    bytes_column: str | None,
    classes_file: str | None,
    classes_from: str | None,
    image_members: tuple[str, ...],
    folder_labels: bool,
) -> "Columns":
    """Return what `source_options` ask for.

    Raises:
        ConfigError: Two of them contradict each other, or there are no class names where they should be.
    """
    from pipeline.packing.sources.table import Columns  # noqa: PLC0415

    if classes_file and classes_from:
        raise ConfigError("--classes and --classes-from both number the labels; give one of them")
    if folder_labels and no_labels:
        raise ConfigError("--folder-labels and --no-labels contradict each other; give one of them")
    classes = classes_of(classes_from) if classes_from else class_list(classes_file)
    return Columns(
        image=image_column,
        label=None if no_labels else label_column,
        num_bytes=bytes_column,
        classes=tuple(classes),
        image_members=image_members,
        folder_labels=folder_labels,
    )


def classes_of(url: str) -> tuple[str, ...]:
    """Return the class names of a dataset. Raises ConfigError if it has none."""
    from pipeline.packing.foreign_tars.open_any import open_any  # noqa: PLC0415

    dataset = open_any(url)
    if not dataset.version.classes:
        raise ConfigError(f"--classes-from {url}: its labels are numbers without names, so nothing is to be matched")
    return dataset.classes


def running_command() -> str:
    """Return the name of the command that runs."""
    return str(click.get_current_context().info_name)


@contextmanager
def pool_of(workers: int | None, on_ray: bool) -> Iterator["Pool"]:
    """Yield the pool that `pool_options` ask for; it is closed in the end."""
    from pipeline.work.on_ray import OnRay  # noqa: PLC0415
    from pipeline.work.pools import Processes  # noqa: PLC0415

    pool = OnRay(workers) if on_ray else Processes(workers or 1)
    try:
        yield pool
    finally:
        pool.close()


@contextmanager
def job_of(
    dest: str, workers: int | None, on_ray: bool, max_reject_fraction: float, scratch: str | None, log_jsonl: str | None
) -> Iterator["Job"]:
    """Yield the job that `job_options` ask for."""
    from pipeline.base.console import Reporting  # noqa: PLC0415
    from pipeline.image.decode import check_pillow  # noqa: PLC0415
    from pipeline.packing.jobs import Job  # noqa: PLC0415
    from pipeline.store.url import absolute_url, open_store  # noqa: PLC0415
    from pipeline.work.job_metrics import with_metrics  # noqa: PLC0415

    check_pillow()
    if "://" not in dest and Path(dest).is_file():
        raise ConfigError(f"{dest} is a file; a dataset is a folder")
    if scratch is not None and not Path(scratch).is_dir():
        raise ConfigError(f"--scratch {scratch} is not a folder; create it or correct the path")
    log = EventLog(log_jsonl)
    with tempfile.TemporaryDirectory(prefix="bit-plan-", dir=scratch) as folder, pool_of(workers, on_ray) as pool:
        store = open_store(absolute_url(dest))
        reporting = with_metrics(Reporting(progress, log.write, say), running_command(), store.url)
        yield Job(store, pool, Path(folder), max_reject_fraction, reporting)


def class_list(path: str | None) -> list[str]:
    """Return the names of a class file.

    Raises:
        ConfigError: It does not exist, or a line is blank or repeated.
        EmptySource: It has no line.
    """
    if path is None:
        return []
    if not Path(path).is_file():
        raise ConfigError(f"class file {path} does not exist; check --classes")
    try:
        names = [line.strip() for line in Path(path).read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise ConfigError(f"class file {path} is not UTF-8 ({error}); convert it") from error
    if not names:
        raise EmptySource(f"class file {path} has no name in it")
    seen: set[str] = set()
    for number, name in enumerate(names, start=1):
        if not name or name in seen:
            problem = f"repeats {name!r}" if name else "is blank"
            raise ConfigError(f"class file {path}, line {number} {problem}; the line number is the label")
        seen.add(name)
    return names


def checked_split(split: str) -> str:
    """Return the split's name. Raises ConfigError if it cannot be part of a file name."""
    if not split or not all(c.isascii() and (c.isalnum() or c in "-_") for c in split):
        raise ConfigError(f"--split {split!r}: use letters, digits, '-' and '_'")
    return split
