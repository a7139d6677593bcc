"""`trainer study` and `trainer search`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.base.console import echo, examples, say
from pipeline.base.errors import ConfigError, ServiceError
from pipeline.base.toml import read_toml
from trainer.commands.options import pool_of_runs, require_free_folder, require_ray_for_gpu, side_by_side_options

if TYPE_CHECKING:
    from trainer.studies.engine import Counted
    from trainer.studies.grid import Grid, Run
    from trainer.studies.scale import Scale


@click.group()
def study() -> None:
    """Measure the paper's tables and figures again, at any scale."""


@study.command("list", epilog=examples("trainer study list"))
def list_studies() -> None:
    """List the studies."""
    from trainer.studies.paper.catalogue import STUDIES  # noqa: PLC0415

    for each in STUDIES.values():
        echo(f"{each.name:16}{each.source:16}{each.title}")


@study.command(
    epilog=examples(
        "trainer study run few-shot results/mini --scale mini --data data --workers 2",
        "trainer study run few-shot norms results/mini --scale mini --data data --dry-run",
        "trainer study run all s3://bucket/studies --scale my.toml --data s3://bucket/data --ray",
        "trainer study run all s3://bucket/full --scale full --data s3://bucket/data --group 64 --gpu",
    )
)
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.argument("out")
@click.option(
    "--scale", required=True, metavar="tiny|mini|mini-duplicates|full|FILE", help="Models, datasets, lengths and seeds."
)
@click.option("--data", default=".", show_default=True, help="Folder from which the scale's datasets are seen.")
@side_by_side_options
@click.option("--group", type=click.IntRange(1), help="Run on Ray one after another, each on so many workers.")
@click.option("--dry-run", is_flag=True, help="Check everything, list what would run, and start nothing.")
def run(
    names: tuple[str, ...],
    out: str,
    scale: str,
    data: str,
    workers: int | None,
    on_ray: bool,
    group: int | None,
    use_gpu: bool,
    dry_run: bool,
) -> None:
    """Run what the studies NAME (or `all`) lack, and write their pages to OUT.

    Studies of one OUT share runs. The same command goes on where it was ended, and tries failed runs again.
    """
    from trainer.studies.scale import read_scale  # noqa: PLC0415

    if group and (on_ray or workers):
        raise ConfigError("--group runs one after another on Ray; leave --ray and --workers out")
    _run_and_show(
        names,
        out,
        read_scale(scale, data),
        workers=workers,
        on_ray=on_ray,
        group=group,
        use_gpu=use_gpu,
        dry_run=dry_run,
    )


def _run_and_show(
    names: tuple[str, ...],
    out: str,
    scale: "Scale",
    *,
    workers: int | None,
    on_ray: bool,
    group: int | None = None,
    use_gpu: bool = False,
    dry_run: bool = False,
) -> None:
    from functools import partial  # noqa: PLC0415

    from pipeline.store.url import absolute_url, open_store  # noqa: PLC0415
    from pipeline.work.pools import InProcess  # noqa: PLC0415
    from trainer.studies.engine import execute, execute_in_group, planned, read_results, run_studies  # noqa: PLC0415
    from trainer.studies.paper.catalogue import STUDIES, named_studies  # noqa: PLC0415
    from trainer.studies.settle import MARKS, memory_per_run, settled_grid  # noqa: PLC0415

    require_ray_for_gpu(use_gpu, on_ray or group is not None)
    studies = named_studies(names)
    unknown = sorted(set(scale.tasks_of) - set(STUDIES))
    if unknown:
        raise ConfigError(f"tasks_of of the scale: {unknown[0]!r} is no study; it is one of {', '.join(STUDIES)}")
    if names == ("all",):
        for each in [each for each in studies if each.missing(scale)]:
            say(f"left out: {each.name}: {each.missing(scale)}", err=True)
            studies.remove(each)
    require_free_folder(out, "study", MARKS)
    store = open_store(absolute_url(out))
    memory = None if on_ray or group else memory_per_run(workers or 1)
    grid = settled_grid(store, scale, studies, memory, num_workers=group or 0, begins=not dry_run)
    results = read_results(store)
    wanted = planned(studies, grid, results)
    if dry_run:
        for name in wanted:
            echo(f"{'done' if name in results else 'to do':7}{name}")
        return
    pool = InProcess() if group else pool_of_runs(workers, on_ray, use_gpu)
    work = partial(execute_in_group, group, use_gpu) if group else partial(execute, use_gpu=use_gpu)
    try:
        _, failures = run_studies(store, studies, grid, pool, _Progress(pool.num_slots), work)
    finally:
        pool.close()
    _write(out, [each.name for each in studies], grid, failures)
    if failures:
        raise ServiceError(
            f"{len(failures)} of {len(wanted)} runs failed; run the same command again to try them once more"
        )


@study.command(epilog=examples("trainer study report few-shot results/mini"))
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.argument("out")
def report(names: tuple[str, ...], out: str) -> None:
    """Write the pages of studies anew from the results at OUT, and print their tables."""
    from pipeline.store.url import absolute_url, open_store  # noqa: PLC0415
    from trainer.studies.paper.catalogue import named_studies  # noqa: PLC0415
    from trainer.studies.settle import stored_grid  # noqa: PLC0415

    grid = stored_grid(open_store(absolute_url(out)))
    _write(out, [each.name for each in named_studies(names) if not each.missing(grid.scale)], grid, {})


@click.command(
    epilog=examples(
        "trainer search runs/m results/search --task pets=data/pets --task dtd=data/dtd --trials 20 --workers 2",
        "trainer search s3://bucket/runs/m s3://bucket/search --task pets=s3://bucket/pets --ray",
        "trainer search runs/tiny results/search --task photos=data --trials 3 --train 24 --validation 12 \\",
        '    --space space.toml --set \'shortened={"steps": 4, "batch_size": 32, "resize_px": 40, "crop_px": 32}\'',
    )
)
@click.argument("init", metavar="RUN[@STEP|@best]")
@click.argument("out")
@click.option("--task", "tasks", multiple=True, required=True, metavar="NAME=FOLDER", help="With `train` and `test`.")
@click.option("--trials", type=click.IntRange(1), default=40, show_default=True, help="Of each task.")
@click.option("--train", "num_train", type=click.IntRange(1), default=800, show_default=True, help="To train on.")
@click.option("--validation", type=click.IntRange(1), default=200, show_default=True, help="To choose by.")
@click.option("--space", metavar="FILE", help="TOML with ranges other than the paper's.")
@click.option("--seeds", default=1, show_default=True, type=click.IntRange(1), help="Trainings of the chosen trial.")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="Any field of fine-tuning.")
@side_by_side_options
def search(
    init: str,
    out: str,
    tasks: tuple[str, ...],
    trials: int,
    num_train: int,
    validation: int,
    space: str | None,
    seeds: int,
    settings: tuple[str, ...],
    workers: int | None,
    on_ray: bool,
    use_gpu: bool,
) -> None:
    """Search for better hyperparameters than the HyperRule's, on each task; the page at OUT compares them.

    Trials are drawn at random, trained on some pictures of `train` and chosen by others (`train800` and `val200` where
    the task has these splits). The best one and the rule are trained on both and tested. The same command goes on where
    it was ended, and tries failed runs again.
    """
    from pipeline.store.url import absolute_url, open_store  # noqa: PLC0415
    from trainer.commands.options import model_of, newest_step  # noqa: PLC0415
    from trainer.commands.settings import build, parsed  # noqa: PLC0415
    from trainer.jobs.config import FinetuneConfig  # noqa: PLC0415
    from trainer.recipes.search import SearchSpace  # noqa: PLC0415
    from trainer.run.evaluations import run_and_step  # noqa: PLC0415
    from trainer.studies.scale import Scale, Search, Task  # noqa: PLC0415
    from trainer.studies.settle import stored_search  # noqa: PLC0415

    url, step = run_and_step(init)
    before = stored_search(open_store(absolute_url(out)))
    if step is None:
        step = before.init_step if before and before.init == url else newest_step(url)
    scale = Scale(
        description=f"Trials start from {url}, step {step:,}.",
        model=model_of(url, step),
        tasks={name: Task(data=absolute_url(folder)) for name, folder in map(_named, tasks)},
        seeds=tuple(range(seeds)),
        finetune=_nested(parsed(FinetuneConfig, "--set", settings)),
        search=Search(
            trials=trials,
            num_train=num_train,
            num_validation=validation,
            space=build(SearchSpace, read_toml(Path(space)) if space else {}, {}),
            init=url,
            init_step=step,
        ),
    )
    _run_and_show(("random-search",), out, scale, workers=workers, on_ray=on_ray, use_gpu=use_gpu)


def _named(text: str) -> tuple[str, str]:
    name, equals, folder = text.partition("=")
    if not equals or not name or not folder:
        raise ConfigError(f"--task {text!r}: write NAME=FOLDER")
    return name, folder


def _nested(values: dict[str, Any]) -> dict[str, Any]:
    """Return values by dotted name as nested ones."""
    nested: dict[str, Any] = {}
    for name, value in values.items():
        *path, last = name.split(".")
        place = nested
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
    return nested


class _Progress:
    """Says what is done, with rate and time left."""

    def __init__(self, num_slots: int) -> None:
        self._num_slots = num_slots
        self._seconds: list[float] = []

    def __call__(self, run: "Run", row: dict[str, Any], counted: "Counted") -> None:
        from pipeline.base.quantities import human_seconds  # noqa: PLC0415

        if "error" in row:
            say(f"failed: {run.name}: {row['error']}", err=True)
            return
        self._seconds.append(row.get("seconds", 0.0))
        left = (counted.total - counted.done) * sum(self._seconds) / len(self._seconds) / self._num_slots
        accuracy = f": accuracy {row['accuracy']:.1%}" if "accuracy" in row else ""
        say(f"{counted.done} of {counted.total}, about {human_seconds(left)} left: {run.name}{accuracy}", err=True)


def _write(out: str, names: list[str], grid: "Grid", failures: dict[str, dict[str, Any]]) -> None:
    from pipeline.base.records import json_bytes  # noqa: PLC0415
    from pipeline.store.base import put  # noqa: PLC0415
    from pipeline.store.url import absolute_url, open_store  # noqa: PLC0415
    from trainer.studies.engine import read_results  # noqa: PLC0415
    from trainer.studies.page import findings, study_lines, study_page  # noqa: PLC0415
    from trainer.studies.paper.catalogue import STUDIES  # noqa: PLC0415

    store = open_store(absolute_url(out))
    results = read_results(store)
    for name in names:
        each = STUDIES[name]
        runs = {run.name for run in each.runs(grid, results)}
        failed = {name: row for name, row in failures.items() if name in runs}
        put(store, f"pages/{name}.json", json_bytes(findings(each, grid, results)))
        put(store, f"pages/{name}.html", study_page(each, grid, results, failed))
        for line in study_lines(each, grid, results):
            echo(line)
        echo(f"{store.url.rstrip('/')}/pages/{name}.html\n")
