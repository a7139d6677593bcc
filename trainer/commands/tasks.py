"""`trainer task list|show|prepare`."""

import json

import click

from pipeline.base.console import echo, examples
from pipeline.base.text import printable


@click.group()
def task() -> None:
    """Downstream tasks: which there are, and how published files become their datasets."""


@task.command(name="list", epilog=examples("trainer task list", "trainer task list --group structured --json"))
@click.option("--group", type=click.Choice(["natural", "specialized", "structured"]), help="Of VTAB.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON line for each task.")
def list_tasks(group: str | None, as_json: bool) -> None:
    """List the tasks that come with the trainer."""
    from trainer.tasks.catalogue import TASKS  # noqa: PLC0415

    shown = [task for task in TASKS.values() if group in (None, task.group)]
    if as_json:
        for item in shown:
            counts = {split: item.num_pictures(split) for split in item.splits}
            row = {"name": item.name, "group": item.group, "num_classes": item.num_classes, "num_pictures": counts}
            echo(json.dumps(row))
        return
    echo(f"{'task':28}{'group':13}{'classes':>7}{'train':>11}{'test':>9}  without")
    for item in shown:
        without = ", ".join(name for name, used in (("flip", item.flip), ("crop", item.crop)) if not used)
        echo(
            f"{item.name:28}{item.group or '':13}{item.num_classes:7,}{item.num_pictures('train'):11,}"
            f"{item.num_pictures('test'):9,}  {without}"
        )


@task.command(epilog=examples("trainer task show vtab/clevr-count", "trainer task show my-task.toml"))
@click.argument("name")
def show(name: str) -> None:
    """Describe a task: its splits, classes, augmentation, and what it can be prepared from."""
    from trainer.recipes.hyperrule import hyperrule  # noqa: PLC0415
    from trainer.tasks.catalogue import task_named  # noqa: PLC0415
    from trainer.tasks.originals.open import forms_of  # noqa: PLC0415

    found = task_named(name)
    echo(f"{found.name}: {found.title}{f', {found.group} group of VTAB' if found.group else ''}")
    echo(f"  {found.num_classes:,} classes{': ' + printable(', '.join(found.classes)) if found.classes else ''}")
    for split, count in found.published.items():
        echo(f"  published {split}: {count:,} pictures")
    for split, portions in found.splits.items():
        parts = " and ".join(
            f"{f'the first {part.most:,} of ' if part.most else ''}{part.split}"
            f"{f' {part.start_percent} % to {part.stop_percent} %' if part[1:3] != (0, 100) else ''}"
            for part in portions
        )
        echo(f"  {split}: {found.num_pictures(split):,} pictures, {parts}")
    recipe = hyperrule(num_train=found.num_pictures("train"), height_px=found.height_px, width_px=found.width_px)
    echo(
        f"  HyperRule: {recipe.steps:,} steps, at {recipe.crop_px} px where the medians of height and width are "
        f"{found.height_px} and {found.width_px} px, flip {'on' if found.flip else 'off'}, "
        f"crop {'on' if found.crop else 'off'}"
    )
    for form in forms_of(found):
        echo(f"  from {form}")
    if found.group:
        echo(
            '  "The first" pictures are those of VTAB when they come from a folder of TFDS; from other files as many\n'
            "  are taken in a random order that is always the same."
        )


@task.command(
    epilog=examples(
        "trainer task prepare cifar10 --from downloads/cifar data/cifar10",
        "trainer task prepare vtab/clevr-count --from tensorflow_datasets/clevr s3://bucket/clevr-count --workers 8",
        "trainer task prepare cifar100 --from hf://datasets/uoft-cs/cifar100 data/cifar100",
        "trainer task prepare my-task.toml --from photos data/my-task",
    )
)
@click.argument("name")
@click.argument("out")
@click.option("--from", "root", required=True, metavar="PATH", help="Folder of the published files, or their URL.")
@click.option("--any-size", is_flag=True, help="Take files that have other numbers of pictures than the task.")
@click.option("--workers", default=1, show_default=True, type=click.IntRange(1), help="Processes that pack.")
def prepare(name: str, out: str, root: str, any_size: bool, workers: int) -> None:
    """Pack the published files of task NAME into datasets at OUT/SPLIT, for `trainer finetune OUT/train OUT/test`.

    The files may be a folder of TFDS, Parquet files of the Hugging Face Hub, or the unpacked archives of the authors.
    """
    from contextlib import closing  # noqa: PLC0415

    from pipeline.store.url import absolute_url  # noqa: PLC0415
    from pipeline.work.pools import InProcess, Processes  # noqa: PLC0415
    from trainer.tasks.catalogue import task_named  # noqa: PLC0415
    from trainer.tasks.originals.open import open_original  # noqa: PLC0415
    from trainer.tasks.prepare import prepare as run_prepare  # noqa: PLC0415

    found = task_named(name)
    original = open_original(absolute_url(root), found)
    with closing(InProcess() if workers == 1 else Processes(workers)) as pool:
        versions = run_prepare(found, original, absolute_url(out), pool, any_size=any_size)
    for split, version in versions.items():
        echo(f"{absolute_url(out)}/{split}: {version.num_samples:,} pictures, {version.num_classes:,} classes")
    without = [name for name, used in (("flip", found.flip), ("crop", found.crop)) if not used]
    if without:
        echo(f"fine-tuning on it goes without random {' and '.join(without)}")
