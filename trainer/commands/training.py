"""Pretrain, fine-tune and evaluate."""

import json
from typing import Any

import click

from pipeline.base.console import examples
from pipeline.base.errors import ConfigError


def _cluster_options(command: Any) -> Any:
    for option in (
        click.option(
            "--workers",
            default=1,
            show_default=True,
            type=click.IntRange(0),
            help="Ray Train workers; 0 runs in this process, without Ray.",
        ),
        click.option("--gpu/--cpu", "use_gpu", default=False, help="One GPU a worker, or one CPU.", show_default=True),
        click.option(
            "--max-failures", default=-1, show_default=True, help="Restarts after a worker died; -1 no limit."
        ),
        click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="Any field of the configuration."),
    ):
        command = option(command)
    return command


@click.command(
    epilog=examples(
        "trainer pretrain s3://bucket/i21k s3://bucket/runs/m --recipe bit-m --model R50x1 --workers 16 --gpu",
        "trainer pretrain data/train runs/tiny --model R14x0.5 --recipe bit-s --workers 0 \\",
        "    --set recipe.epochs=3 --set recipe.batch_size=64 --set recipe.warmup_steps=20 \\",
        "    --set recipe.resolution_px=64",
    )
)
@click.argument("data")
@click.argument("out")
@click.option("--model", default="R50x1", show_default=True, help="DEPTHxWIDTH: R50x1, R101x3, R152x4, R14x0.5, ...")
@click.option("--recipe", default="bit-m", show_default=True, help="bit-s, bit-m or bit-l.")
@click.option("--mix", "mixed", multiple=True, metavar="URL=WEIGHT", help="Another dataset; DATA has weight 1.")
@click.option("--exclude", help="Parquet with shard and row of samples of DATA to leave out, such as an audit's.")
@_cluster_options
def pretrain(
    data: str,
    out: str,
    model: str,
    recipe: str,
    mixed: tuple[str, ...],
    exclude: str | None,
    workers: int,
    use_gpu: bool,
    max_failures: int,
    settings: tuple[str, ...],
) -> None:
    """Pretrain MODEL on the dataset DATA, with checkpoints and metrics at OUT. Run again, it goes on."""
    from pipeline.packing.foreign_tars.open_any import absolute_pattern, open_any  # noqa: PLC0415
    from pipeline.store.url import absolute_url  # noqa: PLC0415
    from trainer.jobs.pretrain import PretrainConfig, check_pretrain  # noqa: PLC0415
    from trainer.jobs.table import PRETRAIN  # noqa: PLC0415
    from trainer.recipes.pretrain import named_recipe  # noqa: PLC0415
    from trainer.run.launch import run  # noqa: PLC0415

    data, out = absolute_pattern(data), absolute_url(out)
    fields = {
        "data": data,
        "data_version": open_any(data).version.version,
        "mix": [_mixed(text) for text in mixed],
        "exclude": absolute_url(exclude) if exclude else None,
        "out": out,
        "model": model,
        "recipe": named_recipe(recipe).model_dump(),
    }
    config = _config(PretrainConfig, fields, settings)
    check_pretrain(config, workers)
    run(PRETRAIN, config, num_workers=workers, use_gpu=use_gpu, max_failures=max_failures)


@click.command(
    epilog=examples(
        "trainer finetune s3://bucket/runs/m-r50x1 s3://bucket/pets/train s3://bucket/pets/test s3://bucket/ft/pets",
        "trainer finetune scratch data/train data/test runs/scratch --model R50x1 --shots 1,5,10 --subsets 5",
    )
)
@click.argument("init")
@click.argument("train")
@click.argument("test")
@click.argument("out")
@click.option("--model", help="Needed with INIT `scratch`; otherwise that of the run.")
@click.option("--shots", default="0", show_default=True, help="Pictures a class, several with commas; 0 is all.")
@click.option("--subsets", default=5, show_default=True, help="Few-shot subsets for each number of shots.")
@click.option("--exclude-test", help="Parquet with shard and row of samples of TEST to leave out, such as an audit's.")
@click.option("--rule", type=click.Choice(["paper", "code"]), default="paper", show_default=True, help="HyperRule.")
@_cluster_options
def finetune(
    init: str,
    train: str,
    test: str,
    out: str,
    model: str | None,
    shots: str,
    subsets: int,
    exclude_test: str | None,
    rule: str,
    workers: int,
    use_gpu: bool,
    max_failures: int,
    settings: tuple[str, ...],
) -> None:
    """Fine-tune the run INIT (or `scratch`) on TRAIN by the HyperRule, and test on TEST; results at OUT."""
    from pipeline.packing.foreign_tars.open_any import absolute_pattern, open_any  # noqa: PLC0415
    from pipeline.store.url import absolute_url, open_store  # noqa: PLC0415
    from trainer.checkpoint.record import require_latest  # noqa: PLC0415
    from trainer.jobs.finetune import SCRATCH, FinetuneConfig, check_finetune  # noqa: PLC0415
    from trainer.jobs.table import FINETUNE  # noqa: PLC0415
    from trainer.run.launch import run  # noqa: PLC0415

    train, test, out = absolute_pattern(train), absolute_pattern(test), absolute_url(out)
    if init != SCRATCH:
        init = absolute_url(init)
        pretrained = require_latest(open_store(init)).about["model"]
        if model not in (None, pretrained):
            raise ConfigError(f"{init} holds {pretrained}, not {model}; leave --model out")
        model = pretrained
    if not model:
        raise ConfigError("fine-tuning from scratch needs --model, such as --model R50x1")
    fields = {
        "init": init,
        "model": model,
        "out": out,
        "shots": _numbers(shots),
        "num_subsets": subsets,
        "rule": rule,
        "train": train,
        "train_version": open_any(train).version.version,
        "test": test,
        "test_version": open_any(test).version.version,
        "exclude_test": absolute_url(exclude_test) if exclude_test else None,
    }
    config = _config(FinetuneConfig, fields, settings)
    check_finetune(config, workers)
    run(FINETUNE, config, num_workers=workers, use_gpu=use_gpu, max_failures=max_failures)


@click.command(
    epilog=examples("trainer evaluate runs/tiny data/val runs/tiny-val", "trainer evaluate s3://b/run s3://b/val out")
)
@click.argument("run_url", metavar="RUN")
@click.argument("data")
@click.argument("out")
@click.option("--exclude", help="Parquet with shard and row of samples of DATA to leave out, such as an audit's.")
@_cluster_options
def evaluate(
    run_url: str,
    data: str,
    out: str,
    exclude: str | None,
    workers: int,
    use_gpu: bool,
    max_failures: int,
    settings: tuple[str, ...],
) -> None:
    """Classify the dataset DATA with the newest checkpoint of RUN; accuracy and predictions at OUT."""
    from pipeline.packing.foreign_tars.open_any import absolute_pattern, open_any  # noqa: PLC0415
    from pipeline.store.url import absolute_url  # noqa: PLC0415
    from trainer.jobs.evaluate import EvaluateConfig  # noqa: PLC0415
    from trainer.jobs.table import EVALUATE  # noqa: PLC0415
    from trainer.run.launch import run  # noqa: PLC0415

    run_url, data, out = absolute_url(run_url), absolute_pattern(data), absolute_url(out)
    fields = {
        "run": run_url,
        "data": data,
        "data_version": open_any(data).version.version,
        "exclude": absolute_url(exclude) if exclude else None,
        "out": out,
    }
    config = _config(EvaluateConfig, fields, settings)
    run(EVALUATE, config, num_workers=workers, use_gpu=use_gpu, max_failures=max_failures)


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


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"--shots {text!r}: write numbers with commas, such as 1,5,10") from error


def _config(config_type: Any, fields: dict[str, Any], settings: tuple[str, ...]) -> Any:
    """Build a configuration from fields and `--set a.b=value` settings.

    Raises:
        ConfigError: A field does not exist or its value has the wrong type.
    """
    from pydantic import ValidationError  # noqa: PLC0415

    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            raise ConfigError(f"--set {setting!r}: write NAME=VALUE")
        *path, last = name.split(".")
        place = fields
        for part in path:
            place = place.setdefault(part, {})
            if not isinstance(place, dict):
                raise ConfigError(f"--set {setting!r}: {part} has no fields")
        place[last] = _value(value)
    try:
        return config_type.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        known = ", ".join(config_type.model_fields)
        raise ConfigError(f"{where}: {first['msg']} (got {first['input']!r}); fields are {known}") from error


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
