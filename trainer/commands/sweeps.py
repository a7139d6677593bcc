"""`trainer sweep`."""

import json
from pathlib import Path
from typing import Any

import click

from pipeline.base.console import echo, examples
from pipeline.base.errors import ServiceError
from trainer.commands.options import pool_of_runs, require_free_folder, require_ray_for_gpu, side_by_side_options


@click.command(
    epilog=examples(
        "trainer sweep plan.toml s3://bucket/sweep --ray                      # one run on each CPU of the cluster",
        "trainer sweep plan.toml s3://bucket/sweep --ray --gpu                # or on each GPU",
        "trainer sweep plan.toml results/sweep --workers 2                    # on this machine",
    )
)
@click.argument("plan")
@click.argument("out")
@side_by_side_options
@click.option("--json", "as_json", is_flag=True, help="Print a JSON line for each result.")
def sweep(plan: str, out: str, workers: int | None, on_ray: bool, use_gpu: bool, as_json: bool) -> None:
    """Fine-tune all that the TOML file PLAN lists, side by side; results, a summary and its page at OUT.

    PLAN has [inits] (names of runs, or `scratch`), [tasks] (names of folders with `train` and `test`), and shots,
    subsets, seeds, model and [settings] as `trainer finetune` takes them. The same command goes on where it was ended,
    and tries failed runs again.
    """
    from pipeline.store.url import absolute_url, open_store  # noqa: PLC0415
    from trainer.jobs.sweep import (  # noqa: PLC0415
        GROUPED_BY,
        SWEEP_KEY,
        read_plan,
        run_sweep,
        settled_runs,
        summary_lines,
    )
    from trainer.scores.summaries import summarise  # noqa: PLC0415

    require_ray_for_gpu(use_gpu, on_ray)
    found = read_plan(Path(plan))
    require_free_folder(out, "sweep", (SWEEP_KEY,))
    store = open_store(absolute_url(out))
    runs = settled_runs(store, found)
    count = 0

    def show(row: dict[str, Any]) -> None:
        nonlocal count
        count += 1
        if as_json:
            echo(json.dumps(row))
            return
        what = f"accuracy {row['accuracy']:.1%}" if "error" not in row else row["error"]
        shots = f", {row['shots']} shots, subset {row['subset']}" if row.get("shots") else ""
        echo(f"{count} of {len(runs)}: {row['init']} on {row['task']}{shots}: {what}", err=True)

    pool = pool_of_runs(workers, on_ray, use_gpu)
    try:
        results, failures = run_sweep(store, runs, pool, show, use_gpu=use_gpu)
    finally:
        pool.close()
    if not as_json:
        for line in summary_lines(summarise(results, GROUPED_BY)):
            echo(line)
        echo(f"{absolute_url(out).rstrip('/')}/index.html")
    if failures:
        raise ServiceError(
            f"{len(failures)} of {len(runs)} runs failed; run the same command again to try them once more"
        )
