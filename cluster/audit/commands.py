"""`cluster audit`, `audit-within`, `audit-review` and `fingerprint`."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.base.console import EventLog, echo, examples, progress
from pipeline.base.errors import ConfigError
from pipeline.base.quantities import plural
from pipeline.commands.options import pool_of, pool_options, running_command

if TYPE_CHECKING:
    from cluster.audit.base.stored_tasks import AuditJob
    from cluster.audit.base.tables import AuditConfig
    from pipeline.store.base import Store

Command = Callable[..., Any]
_REPORT_MARKS = ("audit.json", "work/")  # of which a report has one from its first moment on
_FINGERPRINT_MARKS = ("fingerprints/", "MANIFEST.json")


def _search_options(command: Command) -> Command:
    for option in (
        click.option("--log-jsonl", help="Append events as JSON lines to this file."),
        click.option(
            "--work",
            help="Folder of stored results, OUT/work by default; audits that share it share joins and verifications.",
        ),
        click.option(
            "--most-matches",
            default=20,
            show_default=True,
            type=click.IntRange(1),
            help="Most matches of one picture that are verified, the closest ones.",
        ),
        click.option(
            "--embedding",
            help="Find crops and overlays, too: `efficientnet-lite0`, or your own ONNX or TorchScript file.",
        ),
        click.option(
            "--radius",
            default=62,
            show_default=True,
            type=click.IntRange(0, 100),
            help="Largest distance of candidates in bits.",
        ),
    ):
        command = option(command)
    return pool_options(command)


@contextmanager
def _job(out: str, work: str, workers: int | None, on_ray: bool, log_jsonl: str | None) -> Iterator["AuditJob"]:
    """Open the work folder and the pool of an audit; without --workers and --ray that is this process."""
    from cluster.audit.base.stored_tasks import AuditJob  # noqa: PLC0415
    from pipeline.base.console import Reporting  # noqa: PLC0415
    from pipeline.image.decode import check_pillow  # noqa: PLC0415
    from pipeline.store.url import open_store  # noqa: PLC0415
    from pipeline.work.job_metrics import with_metrics  # noqa: PLC0415
    from pipeline.work.pools import InProcess  # noqa: PLC0415

    check_pillow()
    reporting = Reporting(progress, EventLog(log_jsonl).write, lambda line: echo(line, err=True))
    if workers is None and not on_ray:
        yield AuditJob(open_store(work), InProcess(), reporting)
        return
    with pool_of(workers, on_ray) as pool:
        yield AuditJob(open_store(work), pool, with_metrics(reporting, running_command(), open_store(out).url))


@click.command(
    epilog=examples(
        "cluster audit s3://bucket/i21k s3://bucket/pets/test s3://bucket/audits/pets --ray",
        "cluster audit data/up data/test audit --predictions m=runs/ft/predictions/0000-shots-0.parquet",
        "cluster audit 's3://laion/{00000..41407}.tar' data/test audit --workers 8   # any WebDataset tars",
        "cluster audit s3://bucket/i21k tests.toml audits --against-many",
    )
)
@click.argument("upstream")
@click.argument("downstream")
@click.argument("out")
@click.option(
    "--predictions",
    multiple=True,
    metavar="NAME=URL",
    help="A model's predictions on DOWNSTREAM, as `trainer` writes them; adds its accuracy without duplicates.",
)
@click.option(
    "--against-many",
    is_flag=True,
    help="DOWNSTREAM is a TOML file: a table [NAME] with `url` and `predictions` for each test set.",
)
@click.option(
    "--canaries",
    default=5,
    show_default=True,
    type=click.IntRange(0),
    help="Planted pictures per alteration.",
)
@click.option(
    "--review",
    "review_each",
    default=30,
    show_default=True,
    type=click.IntRange(0),
    help="Most pairs per score band on the review sheet.",
)
@click.option("--seed", default=0, show_default=True, help="Key of the canaries and of the pairs for review.")
@click.option(
    "--crops/--no-crops",
    default=None,
    help="Find crops and shifted frames by hash, in a join that takes 13 times as long; on without --embedding.",
)
@click.option(
    "--insets/--no-insets",
    default=True,
    show_default=True,
    help="Find parts of collages and screenshots by hash, for which all upstream pictures are read once.",
)
@_search_options
def audit(upstream: str, downstream: str, out: str, against_many: bool, **options: Any) -> None:
    """Find near-duplicates of DOWNSTREAM in UPSTREAM; write a report with pictures, lists and accuracies to OUT.

    Both may be datasets that `pipeline shard` packed, output of `cluster fingerprint`, or any WebDataset tars by
    folder, URL or pattern. Interrupted, the same command continues; on changed data, it audits what changed.
    """
    from cluster.audit.many import publish_overview, read_test_sets  # noqa: PLC0415
    from pipeline.packing.foreign_tars.open_any import absolute_pattern  # noqa: PLC0415
    from pipeline.store.url import absolute_url, open_store  # noqa: PLC0415

    upstream, out = absolute_pattern(upstream), absolute_url(out)
    predictions = dict(_named_url(item) for item in options.pop("predictions"))
    work = absolute_url(options.pop("work") or f"{out}/work")
    pool = {name: options.pop(name) for name in ("workers", "on_ray", "log_jsonl")}
    if not against_many:
        _require_free(out, "report", _REPORT_MARKS)
        with _job(out, work, **pool) as job:
            summary = _audit_one(job, open_store(out), upstream, absolute_pattern(downstream), predictions, options)
        echo(f"{_summary_line(summary)}; report {open_store(out).url}/index.html")
        return
    if predictions:
        raise ConfigError("with --against-many, predictions are named in the TOML file, not by --predictions")
    sets, summaries = read_test_sets(absolute_url(downstream)), {}
    _require_free(out, "report", [*_REPORT_MARKS, "overview.csv", *(f"{name}/audit.json" for name in sets)])
    with _job(out, work, **pool) as job:
        for name, test in sets.items():
            echo(f"{name}: {test.url}", err=True)
            report, url = open_store(f"{out}/{name}"), absolute_pattern(test.url)
            summaries[name] = _audit_one(job, report, upstream, url, test.predictions, options)
            echo(f"{name}: {_summary_line(summaries[name])}")
    publish_overview(open_store(out), upstream, summaries)
    echo(f"overview {open_store(out).url}/index.html")


def _require_free(out: str, what: str, marks: Sequence[str]) -> None:
    from pipeline.store.destination import require_free  # noqa: PLC0415
    from pipeline.store.url import open_store  # noqa: PLC0415

    require_free(open_store(out), what, marks)


def _named_url(item: str) -> tuple[str, str]:
    name, equals, url = item.partition("=")
    if not (name and equals and url):
        raise ConfigError(f"--predictions {item!r}: write NAME=URL")
    return name, url


def _audit_one(
    job: "AuditJob",
    out: "Store",
    upstream: str,
    downstream: str,
    predictions: Mapping[str, str],
    options: Mapping[str, Any],
) -> dict[str, Any]:
    from cluster.audit.coordinator import pin_sides, run_audit  # noqa: PLC0415
    from cluster.audit.report.publish import publish_audit  # noqa: PLC0415
    from cluster.audit.result.scores import read_predictions  # noqa: PLC0415

    read = {name: read_predictions(url) for name, url in predictions.items()}
    config = _config(upstream, downstream, options)
    sides = pin_sides(config)
    return publish_audit(out, config, sides, run_audit(config, sides, job), read, job, options["review_each"])


def _config(upstream: str, downstream: str, options: Mapping[str, Any]) -> "AuditConfig":
    from cluster.audit.base.tables import AuditConfig  # noqa: PLC0415
    from pipeline.store.url import absolute_url  # noqa: PLC0415

    model = options["embedding"]
    crops, insets = (options.get(name, False) for name in ("crops", "insets"))  # within one set there are neither
    return AuditConfig(
        embedding=absolute_url(model) if model and Path(model).exists() else model,
        crops=model is None if crops is None else crops,
        insets=insets,
        upstream=upstream,
        downstream=downstream,
        radius=options["radius"],
        most_matches=options["most_matches"],
        canaries_each=options.get("canaries", 0),
        seed=options.get("seed", 0),
    )


def _summary_line(summary: Mapping[str, Any]) -> str:
    states, missed = summary["states"], summary["missed_kinds"]
    line = (
        f"{states['duplicate']} of {summary['downstream']['num_samples']} downstream pictures have a duplicate "
        f"upstream, {states['very similar']} are very similar, {states['unchecked']} unchecked; "
        + (
            f"of {len(summary['canaries'])} kinds of planted copies "
            + (f"less than half were found of {', '.join(missed)}" if missed else "at least half were found of each")
            if summary["canaries"]
            else "no copies were planted to see what it finds"
        )
    )
    shards = summary["quarantined"]
    return line + (f"; {len(shards)} upstream shards QUARANTINED, first {shards[0]['path']}" if shards else "")


@click.command(
    "audit-within",
    epilog=examples("cluster audit-within s3://bucket/pets/test within-pets", "cluster audit-within data/up within"),
)
@click.argument("url")
@click.argument("out")
@_search_options
def audit_within(url: str, out: str, **options: Any) -> None:
    """Find near-duplicates within the set at URL; write groups of copies and a list of what to exclude to OUT."""
    from cluster.audit.coordinator import pin_sides  # noqa: PLC0415
    from cluster.audit.within import run_audit_within  # noqa: PLC0415
    from pipeline.packing.foreign_tars.open_any import absolute_pattern  # noqa: PLC0415
    from pipeline.store.url import absolute_url, open_store  # noqa: PLC0415

    url, out = absolute_pattern(url), absolute_url(out)
    work = absolute_url(options.pop("work") or f"{out}/work")
    pool = {name: options.pop(name) for name in ("workers", "on_ray", "log_jsonl")}
    config = _config(url, url, options)
    _require_free(out, "report", _REPORT_MARKS)
    with _job(out, work, **pool) as job:
        summary = run_audit_within(open_store(out), config, pin_sides(config), job)
    echo(
        f"{summary['num_stars']} of {summary['num_samples']} pictures have copies, {summary['num_left_out']} of them; "
        f"report {open_store(out).url}/index.html, list {open_store(out).url}/exclude.parquet"
    )


@click.command("audit-review", epilog=examples("cluster audit-review audit verdicts.json"))
@click.argument("out")
@click.argument("verdicts")
@click.option("--by", help="Who gave the verdicts; by default the name of the user.")
@pool_options
def audit_review(out: str, verdicts: str, by: str | None, workers: int | None, on_ray: bool) -> None:
    """Let VERDICTS, saved by a page of the audit at OUT, decide their pairs in its report, and print the precision.

    A verdict outweighs the rules: states, lists to exclude, accuracies and pages follow it, in later audits into OUT
    as well. Any pair that was compared can be judged; the report records who judged it and when.
    """
    import getpass  # noqa: PLC0415
    from datetime import UTC, datetime  # noqa: PLC0415

    from cluster.audit.many import renew_overview  # noqa: PLC0415
    from cluster.audit.report.apply_verdicts import import_verdicts  # noqa: PLC0415
    from cluster.audit.result.human_review import Verdict, parse_verdicts  # noqa: PLC0415
    from pipeline.store.any_url import read_file  # noqa: PLC0415
    from pipeline.store.url import absolute_url, open_store  # noqa: PLC0415

    store = open_store(absolute_url(out))
    by, at = by or getpass.getuser(), datetime.now(UTC).isoformat(timespec="seconds")
    said = parse_verdicts(read_file(absolute_url(verdicts)), verdicts)
    given = {pair: Verdict(verdict=verdict, by=by, at=at) for pair, verdict in said.items()}
    with _job(store.url, f"{store.url}/work", workers, on_ray, None) as job:
        summary = import_verdicts(store, given, job)
    is_one_of_many = renew_overview(store)
    for row in summary["review"]:
        share = f"{row['share']:.1%} [{row['low']:.1%}, {row['high']:.1%}]" if row["num_reviewed"] else "not reviewed"
        echo(f"{row['band']}: {row['num_copies']} of {row['num_reviewed']} reviewed are copies, {share}")
    echo(f"{len(given)} {plural(len(given), 'verdict')} recorded; {_summary_line(summary)}")
    echo(f"report {store.url}/index.html{'; the overview above it is written anew' if is_one_of_many else ''}")


@click.command(
    epilog=examples(
        "cluster fingerprint 's3://laion/{00000..41407}.tar' s3://bucket/fingerprints/laion --ray",
        "cluster fingerprint data/cc12m fingerprints/cc12m --workers 8",
    )
)
@click.argument("url")
@click.argument("out")
@click.option("--log-jsonl", help="Append events as JSON lines to this file.")
@pool_options
def fingerprint(url: str, out: str, log_jsonl: str | None, workers: int | None, on_ray: bool) -> None:
    """Fingerprint the WebDataset tars at URL, a folder, tar or pattern; the result at OUT can be audited.

    The tars are only read. A tar that was fingerprinted before is not read again; a new pattern publishes a new version
    of OUT. Datasets that `pipeline shard` packed have their fingerprints already.
    """
    from cluster.audit.search.fingerprints import fingerprint_set  # noqa: PLC0415
    from pipeline.dataset.dataset import open_dataset  # noqa: PLC0415
    from pipeline.image.fingerprint import DESCRIPTOR_VERSION  # noqa: PLC0415
    from pipeline.packing.foreign_tars.open_any import absolute_pattern, is_published  # noqa: PLC0415
    from pipeline.store.url import absolute_url, open_store  # noqa: PLC0415

    url, out = absolute_pattern(url), absolute_url(out)
    if is_published(url) and open_dataset(url).version.descriptor == DESCRIPTOR_VERSION:
        echo(f"{url} was packed with fingerprints {DESCRIPTOR_VERSION}; audit it as it is")
        return
    _require_free(out, "set of fingerprints", _FINGERPRINT_MARKS)
    with _job(out, out, workers, on_ray, log_jsonl) as job:
        version = fingerprint_set(url, open_store(out), job)
    echo(
        f"published {open_store(out).url} version {version.version}: {version.num_samples:,} pictures of "
        f"{version.num_shards:,} tars with fingerprints {version.descriptor}, {version.num_rejects:,} unusable "
        f"{version.reject_reasons or ''}"
    )
