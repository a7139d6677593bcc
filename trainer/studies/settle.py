"""The folder of studies: its scale, dataset versions and lists, fixed at its first start; bad ones are refused then."""

import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.base.errors import ConfigError, Conflict, NotFound
from pipeline.base.quantities import human_bytes
from pipeline.base.records import Record, json_bytes
from pipeline.base.seeds import rng
from pipeline.dataset.dataset import Dataset
from pipeline.dataset.schema import table_of, to_parquet
from pipeline.packing.foreign_tars.open_any import open_any
from pipeline.store.base import Store, commit, exists, put
from pipeline.streaming.choose import Rows, listed_rows
from trainer.jobs.checks import check_finetune, check_pretrain, is_multi_label, recipe_for
from trainer.jobs.config import OF_EACH_RUN, EvaluateConfig, FinetuneConfig, PretrainConfig
from trainer.model.architecture import parse_architecture
from trainer.model.cost import layers, step_memory
from trainer.recipes.classes import match_classes
from trainer.recipes.data import selection_without
from trainer.recipes.held_out import held_out_rows
from trainer.run.settings import RunSettings
from trainer.studies.grid import (
    SPLITS_OF_SEARCH,
    DatasetFacts,
    Grid,
    Run,
    SearchPart,
    list_url,
    search_list_url,
    test_list_url,
)
from trainer.studies.scale import Scale, Search, UpstreamData, as_begun
from trainer.studies.study import Study
from trainer.tasks.prepare import augmentation_of

STUDIES_KEY = "studies.json"
SEARCH, DUPLICATES = "random-search", "duplicates"  # the studies that take lists of their own
MARKS = (STUDIES_KEY, "lists/")  # one of them is written first


class Settled(Record):
    """What a folder of studies was begun with.

    Attributes:
        scale: With absolute places.
        datasets: Facts by place.
        shares_equal: As of Grid.
    """

    scale: Scale
    datasets: dict[str, DatasetFacts]
    shares_equal: bool = False


def stored_grid(store: Store) -> Grid:
    """Return the grid of a folder of studies.

    Raises:
        NotFound: It is none.
    """
    try:
        settled = Settled.model_validate_json(store.read(STUDIES_KEY))
    except NotFound as error:
        raise NotFound(f"{store.url} holds no studies; give the OUT of `trainer study run`") from error
    return Grid(settled.scale, settled.datasets, store.url.rstrip("/"), settled.shares_equal)


def stored_search(store: Store) -> Search | None:
    """Return what a folder's search was begun with; None where none was."""
    return stored_grid(store).scale.search if exists(store, STUDIES_KEY) else None


def settled_grid(
    store: Store,
    scale: Scale,
    studies: Sequence[Study],
    memory_per_run: int | None = None,
    *,
    num_workers: int = 0,
    begins: bool = True,
) -> Grid:
    """Return the grid of a folder, as it was begun; a new one is checked and begun.

    Args:
        store: Of the folder.
        scale: As `read_scale` returns it.
        studies: That are to run.
        memory_per_run: Bytes that a run may take; None where that is not known.
        num_workers: Ray Train workers of each run; 0 for a run in one process.
        begins: Whether the scale is fixed at the folder from now on.

    Raises:
        ConfigError: A study cannot run at this scale: it needs what the scale lacks, a model does not fit, a class has
            fewer pictures than shots, or a setting is wrong.
        NotFound: Datasets are missing; names all of them.
        Conflict: The folder was begun with another scale.
    """
    for study in studies:
        problem = study.missing(scale)
        if problem:
            raise ConfigError(f"{study.name}: {problem}; add it to the scale, or run other studies")
    out = store.url.rstrip("/")
    if exists(store, STUDIES_KEY):
        grid = stored_grid(store)
        if grid.scale != as_begun(scale, grid.scale):
            raise Conflict(f"{store.url} holds studies of another scale; choose another OUT")
    else:
        grid = _new_grid(store, scale, out)
    if scale.search and SEARCH in [study.name for study in studies]:
        for task in scale.tasks_for(SEARCH):
            _write_search_lists(store, grid, scale.search, task)
    if DUPLICATES in [study.name for study in studies]:
        _write_test_lists(store, grid)
    runs = {run.name: run for study in studies for run in study.runs(grid, {})}
    _check(runs.values(), num_workers, memory_per_run)
    if begins and not exists(store, STUDIES_KEY):
        settled = Settled(scale=scale, datasets=dict(grid.datasets), shares_equal=grid.shares_equal)
        commit(store, STUDIES_KEY, json_bytes(settled.model_dump(mode="json")))
    return grid


def _new_grid(store: Store, scale: Scale, out: str) -> Grid:
    decided = sorted(set(OF_EACH_RUN) & set(scale.finetune))
    if decided:
        raise ConfigError(f"studies set {decided[0]} for each fine-tuning themselves; leave it out of the settings")
    grid = Grid(scale, _facts(scale), out)
    for name, data in scale.upstream.items():
        _write_lists(store, grid, name, data)
    return grid


def memory_per_run(num_runs: int) -> int:
    """Return the bytes of this machine's memory that each of some runs side by side may take."""
    return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")) // num_runs


def _facts(scale: Scale) -> dict[str, DatasetFacts]:
    needed = [url for data in scale.upstream.values() for url in (data.train, data.test) if url]
    needed += [f"{task.data}/{split}" for task in scale.tasks.values() for split in ("train", "test")]
    optional = [f"{task.data}/{split}" for task in scale.tasks.values() for split in SPLITS_OF_SEARCH]
    trained = {f"{task.data}/train" for task in scale.tasks.values()}
    facts, missing = {}, []
    for url in dict.fromkeys([*needed, *optional]):
        try:
            dataset = open_any(url)
        except NotFound:
            if url in needed:
                missing.append(url)
            continue
        facts[url] = DatasetFacts(
            version=dataset.version.version,
            num_samples=dataset.version.num_samples,
            is_multi_label=is_multi_label(dataset),
            augmentation=augmentation_of(url),
            nominal_px=_nominal_px(dataset) if scale.search and url in trained else (224, 224),
        )
    if missing:
        raise NotFound(f"no dataset at {', '.join(missing)}; pack them with `pipeline shard`, or give another --data")
    return facts


def _nominal_px(dataset: Dataset) -> tuple[int, int]:
    sizes = dataset.all_samples(["width", "height"])
    height, width = (int(np.median(sizes[name].to_numpy())) for name in ("height", "width"))
    return height, width


def _write_search_lists(store: Store, grid: Grid, search: Search, task: str) -> None:
    """Write which training pictures of a task are not in the search's parts, which are drawn by the first seed.

    Raises:
        ConfigError: It has fewer pictures than the parts.
    """
    if grid.has_splits_of_search(task):
        return
    train = grid.task_fields(task)["train"]
    addresses = open_any(train, grid.datasets[train].version).all_samples([])
    needed = search.num_train + search.num_validation
    if addresses.num_rows < needed:
        raise ConfigError(
            f"{train} has {addresses.num_rows:,} pictures, and the search takes {search.num_train:,} to train on and "
            f"{search.num_validation:,} to choose by; lower search.num_train and search.num_validation"
        )
    order = rng(grid.scale.seeds[0], "search parts", task).permutation(addresses.num_rows)
    parts: dict[SearchPart, Any] = {
        "train": order[: search.num_train],
        "validation": order[search.num_train : needed],
        "both": order[:needed],
    }
    for part, kept in parts.items():
        rest = np.setdiff1d(np.arange(addresses.num_rows), kept)
        put(store, search_list_url("", task, part).lstrip("/"), to_parquet(addresses.take(rest)))


def _write_test_lists(store: Store, grid: Grid) -> None:
    """Keep the lists of test pictures that audits have made, as they are at the first start.

    Raises:
        ConfigError: A list names other pictures than there are, or all of them.
    """
    is_begun = exists(store, STUDIES_KEY)
    for task, given in grid.scale.tasks.items():
        for upstream, url in given.duplicates.items():
            key = test_list_url("", task, upstream).lstrip("/")
            if not (is_begun and exists(store, key)):
                test = grid.task_fields(task)["test"]
                dataset = open_any(test, grid.datasets[test].version)
                selection_without(test, dataset.version.version, url)
                put(store, key, _list(listed_rows(url, dataset)))


def _write_lists(store: Store, grid: Grid, name: str, data: UpstreamData) -> None:
    """Write the lists of pictures that pretraining on a set leaves out."""
    seed, facts = grid.scale.seeds[0], grid.datasets[data.train]
    out: Rows = {}
    if data.fraction < 1:
        sizes = open_any(data.train, facts.version).shards.table["num_samples"].to_pylist()
        out = held_out_rows(sizes, facts.num_samples - grid.num_upstream(name), seed)
        put(store, list_url("", name, deduplicated=False).lstrip("/"), _list(out))
    if data.duplicates:
        dataset = open_any(data.train, facts.version)
        for url in data.duplicates:
            out = _union(out, listed_rows(url, dataset))
        put(store, list_url("", name, deduplicated=True).lstrip("/"), _list(out))


def _union(one: Rows, other: Rows) -> Rows:
    nothing = np.empty(0, np.int64)
    return {shard: np.union1d(one.get(shard, nothing), other.get(shard, nothing)) for shard in {*one, *other}}


def _list(rows: Rows) -> bytes:
    listed = [{"shard": shard, "row": int(row)} for shard in sorted(rows) for row in rows[shard]]
    return to_parquet(table_of(listed, pa.schema([("shard", pa.int32()), ("row", pa.int32())])))


def _check(runs: Iterable[Run], num_workers: int, memory: int | None) -> None:
    """Refuse runs that could not run; of those that differ in nothing that matters here one is looked at."""
    seen: set[str] = set()
    trained_on: dict[str, str] = {}
    matched: set[tuple[str, str]] = set()
    for run in runs:
        if run.job == "pretrain":
            config = PretrainConfig.model_validate_json(run.config)
            trained_on[run.name] = config.data
            check_pretrain(config, num_workers)
            num_classes = open_any(config.data, config.data_version).version.num_classes
            batch, px = config.recipe.batch_size, config.recipe.resolution_px
            _check_memory(config, config.model, batch, px, num_classes, config.num_moments, memory)
        elif run.job == "finetune":
            tuning = FinetuneConfig.model_validate_json(run.config)
            alike = tuning.model_copy(update={"init": "", "out": "", "only_subset": None, "seed": 0}).model_dump_json()
            if alike not in seen:
                check_finetune(tuning, num_workers)
                train = open_any(tuning.train, tuning.train_version)
                recipe = recipe_for(tuning, train.version.num_samples, _nominal_px(train))
                batch, num_classes = recipe.batch_size, train.version.num_classes
                _check_memory(tuning, tuning.model, batch, recipe.crop_px, num_classes, 1, memory)
            seen.add(alike)
        elif run.needs in trained_on:
            url, test = trained_on[run.needs], EvaluateConfig.model_validate_json(run.config).data
            if (url, test) not in matched:
                match_classes(open_any(url).classes, open_any(test).classes, url, test)
            matched.add((url, test))


def _check_memory(
    settings: RunSettings, model: str, batch_size: int, px: int, num_classes: int, num_moments: int, memory: int | None
) -> None:
    pictures = min(batch_size, settings.microbatch_size)
    needed = step_memory(
        layers(parse_architecture(model), num_classes, px),
        pictures,
        half=settings.precision == "bfloat16",
        recomputes=settings.recomputes,
        num_moments=num_moments,
    ).total  # of the step alone: a lower bound
    if memory is not None and needed > memory:
        raise ConfigError(
            f"{model} does not fit: a step of {pictures} pictures of {px} px takes {human_bytes(needed)}, and a run "
            f"may have {human_bytes(memory)}; choose a smaller model or microbatch_size in the scale, fewer "
            f"--workers, or larger machines"
        )
