"""`trainer pretrain`."""

from typing import TYPE_CHECKING, Any

import click

from pipeline.base.console import echo, examples
from pipeline.base.errors import ConfigError
from trainer.commands.forecast import forecast_lines
from trainer.commands.options import (
    RUN_MARKS,
    Workers,
    cluster_options,
    model_of,
    newest_step,
    require_free_folder,
)
from trainer.commands.settings import build, parsed

if TYPE_CHECKING:
    from trainer.jobs.config import PretrainConfig


@click.command(
    epilog=examples(
        "trainer pretrain s3://bucket/i21k s3://bucket/runs/m --recipe bit-m --model R50x1 --workers 16 --gpu",
        "trainer pretrain data/train runs/tiny --model R14x0.5 --recipe bit-s --workers 0 \\",
        "    --set recipe.epochs=3 --set recipe.batch_size=64 --set recipe.warmup_steps=20 \\",
        "    --set recipe.resolution_px=64",
        "trainer pretrain data/train runs/tiny --held-out 2% --evaluate-every 500  # keeps the best checkpoint, too",
        "trainer pretrain s3://b/i21k s3://b/m --dry-run --cluster 64x8xH100 --price 2.5   # time, cost, failures",
        "trainer pretrain data/train runs/tiny --change recipe.epochs=6        # the same run, longer",
        "trainer pretrain data/train runs/b --branch runs/a@2000 --skip-steps 10   # past where it diverged",
        "trainer pretrain data/train runs/c --init runs/a                      # weights only, a new schedule",
    )
)
@click.argument("data")
@click.argument("out")
@click.option("--model", help="DEPTHxWIDTH: R50x1 (the default), R101x3, R152x4, R14x0.5, ...")
@click.option("--recipe", help="bit-s, bit-m (the default), bit-l, or bv-i21k (big_vision's).")
@click.option("--mix", "mixed", multiple=True, metavar="URL=WEIGHT", help="Another dataset; DATA has weight 1.")
@click.option("--exclude", help="Parquet with shard and row of samples of DATA to leave out, such as an audit's.")
@click.option(
    "--held-out",
    metavar="COUNT|N%|URL",
    help="Measure on this while training: pictures of DATA that are left out of training, or another dataset.",
)
@click.option("--probe", "probes", multiple=True, metavar="NAME=TRAIN,TEST", help="Sets for the linear few-shot probe.")
@click.option(
    "--evaluate-every", type=click.IntRange(1), metavar="STEPS", help="Between measurements.  [default: 1000]"
)
@click.option(
    "--init", metavar="RUN[@STEP|@best]|FILE", help="Weights to start from: of a run, or a file of another code base."
)
@click.option(
    "--branch", metavar="RUN[@STEP|@best]", help="Go on from a checkpoint of another run, with all of its state."
)
@click.option("--skip-steps", default=0, type=click.IntRange(0), help="Batches to leave out after it, with --branch.")
@click.option(
    "--change", "changes", multiple=True, metavar="NAME=VALUE", help="Change a setting of the run from here on."
)
@click.option(
    "--dry-run", is_flag=True, help="Check everything, print what the run will take, and start and write nothing."
)
@click.option("--cluster", metavar="NODESxGPUSxKIND", help="With --dry-run: time, cost and failures on it.")
@click.option("--price", type=click.FloatRange(0, min_open=True), help="With --cluster: of a GPU for an hour.")
@cluster_options
def pretrain(
    data: str,
    out: str,
    dry_run: bool,
    cluster: str | None,
    price: float | None,
    workers: Workers,
    use_gpu: bool,
    max_failures: int,
    wait: bool,
    **options: Any,
) -> None:
    """Pretrain MODEL on the dataset DATA, with checkpoints and metrics at OUT. Run again, it goes on."""
    from trainer.jobs.checks import check_out, check_pretrain, header, pretrain_warnings  # noqa: PLC0415

    if (cluster or price) and not dry_run:
        raise ConfigError("--cluster and --price are for --dry-run; a run takes the cluster that RAY_ADDRESS names")
    config = _config(data, out, workers.most, records=not dry_run, **options)
    check_pretrain(config, workers.most)
    for warning in pretrain_warnings(config):
        echo(f"warning: {warning}", err=True)
    echo(header(config), err=True)
    if dry_run:
        for line in forecast_lines(config, workers.most, cluster, price):
            echo(line)
        return
    check_out(config)
    from trainer.jobs.table import PRETRAIN  # noqa: PLC0415 - torch: seconds after the header
    from trainer.run.launch import run  # noqa: PLC0415

    run(PRETRAIN, config, num_workers=workers, use_gpu=use_gpu, max_failures=max_failures, wait=wait)


def _config(
    data: str,
    out: str,
    num_workers: int,
    *,
    records: bool,
    model: str | None,
    recipe: str | None,
    mixed: tuple[str, ...],
    exclude: str | None,
    held_out: str | None,
    probes: tuple[str, ...],
    evaluate_every: int | None,
    init: str | None,
    branch: str | None,
    skip_steps: int,
    changes: tuple[str, ...],
    settings: tuple[str, ...],
) -> "PretrainConfig":
    """Return the configuration that the command's options describe, or with which the run that is there goes on.

    With `records`, changes of the run are recorded.
    """
    from pipeline.packing.foreign_tars.open_any import absolute_pattern  # noqa: PLC0415
    from pipeline.store.url import absolute_url, open_store  # noqa: PLC0415
    from trainer.jobs.config import PretrainConfig  # noqa: PLC0415
    from trainer.recipes.pretrain import RUN_SETTINGS  # noqa: PLC0415
    from trainer.run.history import learned_config, settle  # noqa: PLC0415

    values = parsed(PretrainConfig, "--set", settings)
    wanted = parsed(PretrainConfig, "--change", changes)
    data, out = absolute_pattern(data), absolute_url(out)
    present = learned_config(open_store(out), PretrainConfig)
    if present and "data" in wanted:  # DATA may be either
        data = present.data
    fields = _start_fields(data, present, says_version="data_version" not in values | wanted)
    if branch:
        fields |= _branch_fields(branch, skip_steps, present)
    elif not present:
        recipe = recipe or "bit-m"
    if init:
        fields |= _init_fields(init, present)
    before = dict(fields.get("recipe", {}))
    given: dict[str, Any] = {
        "model": model,
        "recipe": _recipe(recipe, values, present) if recipe else None,
        "held_out": _held_out(held_out, data, fields["data_version"], present) if held_out else None,
        "probes": [_probe(text) for text in probes] or None,
        "evaluate_every_steps": evaluate_every,
        "mix": [_mixed(text) for text in mixed] or None,
        "exclude": absolute_url(exclude) if exclude else None,
    }
    fields |= {"data": data, "out": out} | {name: value for name, value in given.items() if value is not None}
    of_recipe = {} if present else RUN_SETTINGS.get(recipe or "", {})
    config = build(PretrainConfig, fields | of_recipe, values)
    if branch and before:
        _say_other_recipe(branch, before, config.recipe.model_dump())
    require_free_folder(out, "run", RUN_MARKS)
    if present:
        config = settle(open_store(out), config)
    return _changed(config, wanted, num_workers, records=records) if wanted else config


def _start_fields(data: str, present: Any, *, says_version: bool) -> dict[str, Any]:
    """Return the fields that a start begins with: those of the run that is there, or what a new one has."""
    from pipeline.packing.foreign_tars.open_any import open_any  # noqa: PLC0415

    newest = open_any(data).version.version
    if not present:
        return {"data_version": newest, "model": "R50x1"}
    fields: dict[str, Any] = present.model_dump()
    if present.data != data:
        fields["data_version"] = newest
    elif present.data_version != newest and says_version:
        echo(
            f"{present.out} stays with version {present.data_version} of {data}; version {newest} is there: "
            f"--change data_version={newest} goes on with it",
            err=True,
        )
    return fields


def _recipe(name: str, values: dict[str, Any], present: Any) -> dict[str, Any]:
    """Return the fields of a recipe by name, its decays where they are in the schedule of as many epochs as are set."""
    from trainer.recipes.pretrain import named_recipe, with_epochs  # noqa: PLC0415

    recipe, epochs = named_recipe(name), values.get("recipe.epochs")
    # Runs that an older release began have decays at the epochs of the paper, however long they are.
    is_old = present and present.recipe.decay_epochs == recipe.decay_epochs
    if isinstance(epochs, int | float) and epochs > 0 and "recipe.decay_epochs" not in values and not is_old:
        recipe = with_epochs(recipe, epochs)
    fields: dict[str, Any] = recipe.model_dump()
    return fields


def _say_other_recipe(branch: str, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Print what differs from the recipe of the run that is left."""
    changes = [f"{name} was {before.get(name)}, is {value}" for name, value in now.items() if before.get(name) != value]
    if changes:
        echo(f"the recipe is not that of {branch}: {'; '.join(changes)}", err=True)


def _init_fields(init: str, present: Any) -> dict[str, Any]:
    """Return the fields of a run that starts from weights; the model is that of the weights."""
    from trainer.formats.places import holds_weights  # noqa: PLC0415
    from trainer.run.evaluations import run_and_step  # noqa: PLC0415

    place, step = run_and_step(init)
    if present and present.init == place and step in (None, present.init_step):
        return {}  # it has begun: the weights may be gone
    if holds_weights(place):
        return {"init": place, "init_step": None}
    step = newest_step(place) if step is None else step
    return {"init": place, "init_step": step, "model": model_of(place, step)}


def _branch_fields(branch: str, skip_steps: int, present: Any) -> dict[str, Any]:
    """Return the fields of a run that leaves another one: all that it does not set is the other one's."""
    from pipeline.store.url import open_store  # noqa: PLC0415
    from trainer.jobs.checks import epochs_done  # noqa: PLC0415
    from trainer.jobs.config import PretrainConfig  # noqa: PLC0415
    from trainer.run.evaluations import run_and_step  # noqa: PLC0415
    from trainer.run.history import current_config  # noqa: PLC0415

    place, step = run_and_step(branch)
    known = present.branch if present else None
    if known and known.run == place and known.skip_steps == skip_steps and step in (None, known.step):
        return {}  # it has begun: the other run may have gone on, or be gone
    step = newest_step(place) if step is None else step
    model_of(place, step)
    other = current_config(open_store(place), PretrainConfig, until=step)
    if other is None:
        raise ConfigError(f"--branch {place} is no run of `trainer pretrain`; give its OUT")
    passes = epochs_done(other.model_copy(update={"out": place}), step, until=step)
    return {
        "model": other.model,
        "recipe": other.recipe.model_dump(),
        "data_version": other.data_version,
        "mix": [mixed.model_dump() for mixed in other.mix],
        "exclude": other.exclude,
        "held_out": other.held_out.model_dump() if other.held_out else None,
        "weight": other.weight,
        "seed": other.seed,
        "num_lanes": other.num_lanes,
        "window_blocks": other.window_blocks,
        "precision": other.precision,
        "clip_norm": other.clip_norm,
        "average_decay": other.average_decay,
        "branch": {"run": place, "step": step, "epochs_done": passes, "skip_steps": skip_steps},
    }


def _changed(config: Any, wanted: dict[str, Any], num_workers: int, *, records: bool) -> Any:
    """Record what is to be changed from here on, if asked, and return the configuration with it."""
    from pipeline.packing.foreign_tars.open_any import absolute_pattern  # noqa: PLC0415
    from pipeline.store.url import open_store  # noqa: PLC0415
    from trainer.checkpoint.record import steps  # noqa: PLC0415
    from trainer.jobs.checks import check_pretrain, epochs_done  # noqa: PLC0415
    from trainer.run.history import changed, has_learned, with_changes  # noqa: PLC0415

    store = open_store(config.out)
    if not has_learned(store):
        raise ConfigError(f"--change: {config.out} has no checkpoint yet; give the settings themselves, with --set")
    for name in {"data", "exclude"} & wanted.keys():
        wanted[name] = absolute_pattern(wanted[name]) if wanted[name] else None
    if not records:
        return with_changes(config, wanted)
    return changed(
        store, config, wanted, epochs_done(config, steps(store)[-1]), lambda new: check_pretrain(new, num_workers)
    )


def _mixed(text: str) -> dict[str, Any]:
    from pipeline.packing.foreign_tars.open_any import absolute_pattern, open_any  # noqa: PLC0415

    url, _, weight = text.rpartition("=")
    try:
        share = float(weight)
    except ValueError:
        share = 0.0
    if not url or not share > 0:
        raise ConfigError(f"--mix {text!r}: write URL=WEIGHT with a weight above 0, such as s3://bucket/extra=0.25")
    data = absolute_pattern(url)
    return {"data": data, "data_version": open_any(data).version.version, "weight": share}


def _held_out(text: str, data: str, version: int, present: Any) -> dict[str, Any]:
    """Return the field of what is held out: pictures of DATA, by number or share, or another dataset."""
    from pipeline.packing.foreign_tars.open_any import absolute_pattern, open_any  # noqa: PLC0415

    share = text.removesuffix("%")
    if text.isdigit() or (share != text and share.replace(".", "", 1).isdigit()):
        known = present.held_out if present else None
        version = known.data_version if known and known.num_samples else version
        total = sum(open_any(data, version).shards.table["num_samples"].to_pylist())
        count = int(text) if text.isdigit() else round(float(share) / 100 * total)
        if not 0 < count < total:
            raise ConfigError(
                f"--held-out {text}: that is {count:,} of {total:,} pictures of {data}; hold out at least one, and "
                f"leave some to train on"
            )
        return {"num_samples": count, "data_version": version}
    url = absolute_pattern(text)
    return {"data": url, "data_version": open_any(url).version.version}


def _probe(text: str) -> dict[str, Any]:
    from pipeline.packing.foreign_tars.open_any import absolute_pattern, open_any  # noqa: PLC0415

    name, equals, sets = text.partition("=")
    train, comma, test = sets.rpartition(",")
    if not (name and equals and comma and train and test):
        raise ConfigError(f"--probe {text!r}: write NAME=TRAIN,TEST, such as pets=data/pets/train,data/pets/test")
    train, test = absolute_pattern(train), absolute_pattern(test)
    return {
        "name": name,
        "train": train,
        "train_version": open_any(train).version.version,
        "test": test,
        "test_version": open_any(test).version.version,
    }
