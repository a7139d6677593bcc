"""`trainer gallery` and `review`."""

import json

import click

from pipeline.base.console import echo, examples


@click.command(
    epilog=examples(
        "trainer gallery results/val data/val gallery                        # of `trainer evaluate`",
        "trainer gallery runs/ft/predictions/0000-shots-0.parquet data/test s3://bucket/gallery",
    )
)
@click.argument("predictions")
@click.argument("data")
@click.argument("out")
@click.option("--title", help="Of the pages; by default that of the dataset.")
@click.option(
    "--review", "num_for_review", type=click.IntRange(0), default=200, show_default=True,
    help="Random mistakes on the review sheet.",
)  # fmt: skip
def gallery(predictions: str, data: str, out: str, title: str | None, num_for_review: int) -> None:
    """Show every mistake among PREDICTIONS on DATA, with picture, label and guesses, in pages at OUT that open offline.

    PREDICTIONS is a folder that `trainer evaluate` wrote, or a Parquet file of `trainer finetune`. OUT/index.html
    filters by class and confidence; OUT/review.html asks about random mistakes, and `trainer review` reads the answers.
    """
    from pipeline.base.console import Reporting  # noqa: PLC0415
    from pipeline.packing.foreign_tars.open_any import absolute_pattern, open_any  # noqa: PLC0415
    from pipeline.store.url import absolute_url, open_store  # noqa: PLC0415
    from trainer.commands.options import require_free_folder  # noqa: PLC0415
    from trainer.gallery.publish import FACTS_KEY, publish_gallery, read_predictions  # noqa: PLC0415

    folder, _, name = absolute_url(predictions).rpartition("/")
    if not name.endswith(".parquet"):
        folder, name = absolute_url(predictions), "predictions.parquet"
    found = read_predictions(open_store(folder), name)
    dataset = open_any(absolute_pattern(data))
    require_free_folder(out, "gallery", (FACTS_KEY, "pictures/"))
    shown = title or f"Mistakes on {data.rstrip('/').rpartition('/')[2]}"
    with Reporting().progress("pictures", None, "pictures") as advance:
        facts = publish_gallery(
            open_store(absolute_url(out)),
            found,
            dataset,
            title=shown,
            num_for_review=num_for_review,
            on_picture=lambda count: advance(count, 0),
        )
    num_wrong = facts["num_test"] - facts["num_correct"]
    echo(f"{num_wrong:,} mistakes of {facts['num_test']:,} pictures: {absolute_url(out).rstrip('/')}/index.html")


@click.command(epilog=examples("trainer review gallery verdicts.json", "trainer review gallery verdicts.json --json"))
@click.argument("out", metavar="GALLERY")
@click.argument("verdicts")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def review(out: str, verdicts: str, as_json: bool) -> None:
    """Print the accuracy that VERDICTS, saved by the review sheet of GALLERY, imply, and keep them there."""
    from pipeline.store.any_url import read_file  # noqa: PLC0415
    from pipeline.store.url import absolute_url, open_store  # noqa: PLC0415
    from trainer.gallery.publish import add_verdicts  # noqa: PLC0415

    result = add_verdicts(open_store(absolute_url(out)), read_file(absolute_url(verdicts)), verdicts)
    if as_json:
        echo(json.dumps(result))
        return
    counts = ", ".join(f"{verdict} {count}" for verdict, count in result["verdicts"].items())
    echo(f"{result['num_judged']:,} of {result['num_wrong']:,} mistakes judged: {counts}")
    echo(f"accuracy as labelled     {result['labelled_accuracy']:.2%}")
    for name, words in (("accuracy", "corrected"), ("lenient_accuracy", "and ambiguous correct")):
        low, high = result[f"{name}_low"], result[f"{name}_high"]
        echo(f"  {words:23}{result[name]:.2%} [{low:.2%}, {high:.2%}]")
