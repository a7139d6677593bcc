"""`trainer predict` and `embed`."""

from typing import Any

import click

from pipeline.base.console import examples
from trainer.commands.options import (
    Workers,
    cluster_options,
    json_option,
    model_of,
    probabilities_of,
    require_free_folder,
)
from trainer.commands.settings import build, parsed

_MARKS = ("request.json", "inputs.json", "inputs/", "attempts/", "failures/")
_SOURCES = """SOURCE is a dataset that `pipeline shard` packed, or pictures, folders of pictures, tables of paths, URLs
    or image bytes, or tars, one or several; labels are not needed. The results are Parquet files in a folder, one row
    for each picture; the same command goes on where it was ended."""


def _inference_options(command: Any) -> Any:
    for option in (
        click.argument("out"),
        click.argument("sources", nargs=-1, required=True, metavar="SOURCE..."),
        click.argument("run_url", metavar="RUN[@STEP|@best]"),
    ):
        command = option(command)
    for option in (
        click.option("--resolution", default=0, help="Side of the input in pixels; by default that of the run."),
        click.option("--image-column", default="image", show_default=True, help="Of a table: paths, URLs or bytes."),
    ):
        command = option(command)
    return cluster_options(json_option(command))


@click.command(
    help=f"""Classify pictures with a checkpoint of RUN: files, class names and probabilities at OUT/predictions/.

    {_SOURCES}
    """,
    epilog=examples(
        "trainer predict runs/pets photos/ out/photos                        # any folders of pictures",
        "trainer predict runs/pets cat.jpg dog.jpg out/two --workers 0       # pictures one by one, without Ray",
        "trainer predict s3://bucket/run@best s3://bucket/set s3://bucket/out --workers 8 --gpu",
        "trainer predict runs/pets table.parquet out/table --image-column url --top 1",
    ),
)
@click.option("--top", default=5, show_default=True, help="Most probable classes that are listed.")
@_inference_options
def predict(top: int, **options: Any) -> None:
    """Write predictions."""
    _launch("predictions", {"top": top}, **options)


@click.command(
    help=f"""Write the features of pictures before the head (pre-logits) of a checkpoint of RUN to OUT/embeddings/.

    {_SOURCES}
    """,
    epilog=examples(
        "trainer embed runs/m-r50x1 photos/ out/photos",
        "trainer embed s3://bucket/run@20000 s3://bucket/set s3://bucket/out --workers 8 --gpu",
    ),
)
@_inference_options
def embed(**options: Any) -> None:
    """Write embeddings."""
    _launch("embeddings", {}, **options)


def _launch(
    output: str,
    fields: dict[str, Any],
    *,
    run_url: str,
    sources: tuple[str, ...],
    out: str,
    resolution: int,
    image_column: str,
    workers: Workers,
    use_gpu: bool,
    max_failures: int,
    wait: bool,
    settings: tuple[str, ...],
    as_json: bool,
) -> None:
    from pipeline.packing.foreign_tars.open_any import open_any  # noqa: PLC0415
    from pipeline.store.url import absolute_url, open_store  # noqa: PLC0415
    from trainer.jobs.config import InferenceConfig  # noqa: PLC0415
    from trainer.jobs.pictures import absolute_sources, begun_request, is_dataset  # noqa: PLC0415
    from trainer.run.evaluations import run_and_step  # noqa: PLC0415

    values = parsed(InferenceConfig, "--set", settings)
    is_best = run_url.endswith("@best")
    (run_url, step), out, given = run_and_step(run_url), absolute_url(out), absolute_sources(sources)
    begun = begun_request(open_store(out))
    if is_best and begun.get("run") == run_url:  # the best at the first start
        step = begun["step"]
    model_of(run_url, step)
    if begun.get("sources") == list(given):
        data_version = begun["data_version"]
    else:
        data_version = open_any(given[0]).version.version if is_dataset(given) else None
    fields |= {
        "run": run_url,
        "step": step,
        "sources": given,
        "data_version": data_version,
        "image_column": image_column,
        "out": out,
        "output": output,
        "probabilities": probabilities_of(run_url),
        "resolution_px": resolution,
    }
    config = build(InferenceConfig, fields, values)
    require_free_folder(out, "result", _MARKS)
    from trainer.jobs.table import EMBED, PREDICT  # noqa: PLC0415 - torch
    from trainer.run.launch import run  # noqa: PLC0415

    job = PREDICT if output == "predictions" else EMBED
    run(job, config, num_workers=workers, use_gpu=use_gpu, max_failures=max_failures, wait=wait, as_json=as_json)
