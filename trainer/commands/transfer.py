"""`trainer finetune` and `evaluate`."""

import click

from pipeline.base.console import echo, examples
from pipeline.base.errors import ConfigError
from trainer.commands.options import (
    RESULT_MARKS,
    RUN_MARKS,
    Workers,
    cluster_options,
    json_option,
    model_of,
    newest_step,
    probabilities_of,
    require_free_folder,
)
from trainer.commands.settings import build, parsed


@click.command(
    epilog=examples(
        "trainer finetune s3://bucket/runs/m-r50x1 s3://bucket/pets/train s3://bucket/pets/test s3://bucket/ft/pets",
        "trainer finetune runs/m@20000 data/train data/test runs/ft           # from an earlier checkpoint",
        "trainer finetune scratch data/train data/test runs/scratch --model R50x1 --shots 1,5,10 --subsets 5",
    )
)
@click.argument("init", metavar="RUN[@STEP|@best]|scratch")
@click.argument("train")
@click.argument("test")
@click.argument("out")
@click.option("--model", help="Needed with `scratch`; otherwise that of the run.")
@click.option("--shots", default="0", show_default=True, help="Pictures a class, several with commas; 0 is all.")
@click.option("--subsets", default=5, show_default=True, help="Few-shot subsets for each number of shots.")
@click.option("--exclude-test", help="Parquet with shard and row of samples of TEST to leave out, such as an audit's.")
@click.option("--rule", type=click.Choice(["paper", "code"]), default="paper", show_default=True, help="HyperRule.")
@click.option("--batch-size", type=click.IntRange(1), help="Other than 512: learning rate and steps change to match.")
@click.option("--steps", type=click.IntRange(1), help="Other than the rule's: its schedule at that length.")
@click.option(
    "--loss",
    type=click.Choice(["auto", "softmax", "sigmoid"]),
    default="auto",
    show_default=True,
    help="auto: sigmoid where pictures of TRAIN have several labels.",
)
@click.option("--ignore-unknown-classes", is_flag=True, help="Leave out test pictures of classes that TRAIN lacks.")
@cluster_options
@json_option
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
    batch_size: int | None,
    steps: int | None,
    loss: str,
    ignore_unknown_classes: bool,
    workers: Workers,
    use_gpu: bool,
    max_failures: int,
    wait: bool,
    settings: tuple[str, ...],
    as_json: bool,
) -> None:
    """Fine-tune a run (or `scratch`) on TRAIN by the HyperRule, and test on TEST; results at OUT.

    Classes of TEST are matched to those of TRAIN by name.
    """
    from pipeline.packing.foreign_tars.open_any import absolute_pattern, open_any  # noqa: PLC0415
    from pipeline.store.url import absolute_url, open_store  # noqa: PLC0415
    from trainer.jobs.checks import check_finetune, finetune_warnings, is_multi_label  # noqa: PLC0415
    from trainer.jobs.config import SCRATCH, FinetuneConfig  # noqa: PLC0415
    from trainer.run.evaluations import run_and_step  # noqa: PLC0415
    from trainer.run.history import learned_config  # noqa: PLC0415
    from trainer.tasks.prepare import augmentation_of  # noqa: PLC0415

    values = parsed(FinetuneConfig, "--set", settings)
    train, test, out = absolute_pattern(train), absolute_pattern(test), absolute_url(out)
    present = learned_config(open_store(out), FinetuneConfig)
    init_step = None
    if init != SCRATCH:
        init, init_step = run_and_step(init)
        if init_step is None:
            init_step = present.init_step if present and present.init == init else newest_step(init)
        pretrained = model_of(init, init_step)
        if model not in (None, pretrained):
            raise ConfigError(f"{init} holds {pretrained}, not {model}; leave --model out")
        model = pretrained
    if not model:
        raise ConfigError("fine-tuning from scratch needs --model, such as --model R50x1")

    def pinned(url: str, before: str, version: int) -> int:
        """Return the version that the sweep began with, or else the newest one."""
        return version if url == before else open_any(url).version.version

    if loss == "auto" and present:
        loss = present.loss
    elif loss == "auto":
        loss = "sigmoid" if is_multi_label(open_any(train)) else "softmax"
    fields = {
        **augmentation_of(train),
        "init": init,
        "init_step": init_step,
        "model": model,
        "out": out,
        "shots": _numbers(shots),
        "num_subsets": subsets,
        "rule": rule,
        "batch_size": batch_size,
        "steps": steps,
        "loss": loss,
        "train": train,
        "train_version": pinned(train, present.train if present else "", present.train_version if present else 0),
        "test": test,
        "test_version": pinned(test, present.test if present else "", present.test_version if present else 0),
        "exclude_test": absolute_url(exclude_test) if exclude_test else None,
        "ignore_unknown_classes": ignore_unknown_classes,
    }
    config = build(FinetuneConfig, fields, values)
    require_free_folder(out, "run", RUN_MARKS)
    check_finetune(config, workers.most)
    for warning in finetune_warnings(config):
        echo(f"warning: {warning}", err=True)
    step = "its newest checkpoint" if init_step is None else f"step {init_step:,}"  # None: a sweep of an older release
    start = "from scratch" if init == SCRATCH else f"from {init}, {step}"
    echo(f"fine-tuning {model} {start}; results at {out}", err=True)
    from trainer.jobs.table import FINETUNE  # noqa: PLC0415 - torch: seconds after the header
    from trainer.run.launch import run  # noqa: PLC0415

    run(FINETUNE, config, num_workers=workers, use_gpu=use_gpu, max_failures=max_failures, wait=wait, as_json=as_json)


@click.command(
    epilog=examples(
        "trainer evaluate runs/tiny data/val runs/tiny-val",
        "trainer evaluate s3://bucket/run@20000 s3://bucket/val results/val --json",
        "trainer evaluate runs/tiny data/val results/cut --set resolution_px=480 --set shorter_side_px=512",
    )
)
@click.argument("run_url", metavar="RUN[@STEP|@best]")
@click.argument("data")
@click.argument("out")
@click.option("--exclude", help="Parquet with shard and row of samples of DATA to leave out, such as an audit's.")
@click.option("--ignore-unknown-classes", is_flag=True, help="Leave out pictures of classes that the model lacks.")
@cluster_options
@json_option
def evaluate(
    run_url: str,
    data: str,
    out: str,
    exclude: str | None,
    ignore_unknown_classes: bool,
    workers: Workers,
    use_gpu: bool,
    max_failures: int,
    wait: bool,
    settings: tuple[str, ...],
    as_json: bool,
) -> None:
    """Classify the dataset DATA with a checkpoint of RUN; accuracy and predictions at OUT.

    Classes of DATA are matched to those of the model by name; pictures without a label are predicted and not counted.
    """
    from pipeline.packing.foreign_tars.open_any import absolute_pattern, open_any  # noqa: PLC0415
    from pipeline.store.url import absolute_url  # noqa: PLC0415
    from trainer.jobs.config import EvaluateConfig  # noqa: PLC0415
    from trainer.run.evaluations import run_and_step  # noqa: PLC0415

    values = parsed(EvaluateConfig, "--set", settings)
    (run_url, step), data, out = run_and_step(run_url), absolute_pattern(data), absolute_url(out)
    model_of(run_url, step)
    fields = {
        "run": run_url,
        "step": step,
        "data": data,
        "data_version": open_any(data).version.version,
        "exclude": absolute_url(exclude) if exclude else None,
        "ignore_unknown_classes": ignore_unknown_classes,
        "probabilities": probabilities_of(run_url),
        "out": out,
    }
    config = build(EvaluateConfig, fields, values)
    require_free_folder(out, "result", RESULT_MARKS)
    from trainer.jobs.table import EVALUATE  # noqa: PLC0415 - torch
    from trainer.run.launch import run  # noqa: PLC0415

    run(EVALUATE, config, num_workers=workers, use_gpu=use_gpu, max_failures=max_failures, wait=wait, as_json=as_json)


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"--shots {text!r}: write numbers with commas, such as 1,5,10") from error
