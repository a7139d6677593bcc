"""The demonstration's one page: training curve, transfer table, audit, what ran where."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

from markupsafe import Markup

from cluster.audit.report.publish import read_section
from cluster.demo.stages import Stage
from pipeline.base.charts import Series, line_chart, point_chart
from pipeline.base.html import render_page
from pipeline.base.quantities import human_bytes
from pipeline.dataset.dataset import open_dataset
from pipeline.store.local import LocalStore
from pipeline.store.url import open_store
from trainer.run.events import attempts
from trainer.run.history import read_config
from trainer.run.metrics import read_metrics

_INITS = ("pretrained", "scratch")


@dataclass(frozen=True)
class DemoFacts:
    """Everything that the page shows, read from the object store while that runs."""

    about: tuple[str, ...]
    datasets: list[dict[str, Any]]
    config: dict[str, Any]
    metrics: list[dict[str, Any]]
    starts: list[dict[str, Any]]
    results: dict[str, list[dict[str, Any]]]
    audit: dict[str, Any]
    stages: list[Stage]
    seconds: float = 0.0
    peak_bytes: int = 0

    @staticmethod
    def collect(root: str, report: Path, about: tuple[str, ...], stages: list[Stage]) -> "DemoFacts":
        """Read the results of all stages."""
        run = open_store(f"{root}/runs/pretrain")
        transfer = json.loads(open_store(f"{root}/transfer").read("summary.json"))["results"]
        return DemoFacts(
            about=about,
            datasets=[
                {"name": part} | open_dataset(f"{root}/{part}").version.model_dump()
                for part in ("upstream", "train", "test")
            ],
            config=read_config(run),
            metrics=read_metrics(run),
            starts=[start | {"run": "pretrain"} for start in attempts(run)],
            results={name: [row for row in transfer if row["init"] == name] for name in _INITS},
            audit=read_section(LocalStore(report / "audit"), "audit/"),
            stages=stages,
        )

    def finished(self, seconds: float, peak_bytes: int) -> "DemoFacts":
        """Add the wall time and the peak memory."""
        return dataclasses.replace(self, seconds=seconds, peak_bytes=peak_bytes)

    def transfer_rows(self) -> list[dict[str, Any]]:
        """Return a row per start and number of shots: median and range over subsets, and the median run's interval."""
        rows = []
        for shots in sorted({result["shots"] for result in self.results["scratch"]}):
            for name in _INITS:
                runs = sorted((r for r in self.results[name] if r["shots"] == shots), key=lambda r: r["accuracy"])
                middle = runs[len(runs) // 2]
                rows.append(
                    {
                        "init": name,
                        "shots": shots,
                        "num_runs": len(runs),
                        "median": median(run["accuracy"] for run in runs),
                        "lowest": runs[0]["accuracy"],
                        "highest": runs[-1]["accuracy"],
                        "low": middle["low"],
                        "high": middle["high"],
                        "num_test": middle["num_test"],
                    }
                )
        return rows

    def summary_lines(self) -> list[str]:
        """Return the results in a few lines of text."""
        last = self.metrics[-1]
        summary = self.audit["summary"]
        planted = sum(row["planted"] for row in summary["canaries"])
        found = sum(row["found"] for row in summary["canaries"])
        first_loss = self.metrics[0]["loss"]
        lines = [
            f"pretrained {self.config['model']}: {last['step']} steps, loss {first_loss:.2f} -> {last['loss']:.2f}"
        ]
        lines += [
            f"{row['shots']}-shot from {row['init']:<10} {row['median']:.1%} "
            f"(runs {row['lowest']:.1%} to {row['highest']:.1%})"
            for row in self.transfer_rows()
        ]
        lines.append(
            f"audit: {summary['states']['duplicate']} of {summary['downstream']['num_samples']} test pictures have a "
            f"duplicate upstream; {found} of {planted} planted copies found, of {len(summary['canaries'])} kinds"
        )
        lines.append(f"{self.seconds:.0f} s, peak memory {human_bytes(self.peak_bytes)}")
        return lines


def write_report(folder: Path, facts: DemoFacts) -> DemoFacts:
    """Write index.html; return the facts."""
    folder.mkdir(parents=True, exist_ok=True)
    page = render_page(
        "cluster.demo",
        "demo.html.j2",
        parts_of=("cluster.audit.report",),
        title="BiT Pretrain: the demonstration",
        facts=facts,
        last=facts.metrics[-1],
        rows=facts.transfer_rows(),
        curves=_curves(facts.metrics),
        transfer=_transfer_chart(facts.results),
        rates=_rates(facts.metrics),
        memory=human_bytes(facts.peak_bytes),
        versions={name: metadata.version(name) for name in ("bit-pretrain", "torch", "ray", "pyarrow", "pillow-simd")},
    )
    (folder / "index.html").write_bytes(page)
    return facts


def _curves(metrics: Sequence[dict[str, Any]]) -> list[Markup]:
    loss = Series("loss", [(row["step"], row["loss"]) for row in metrics])
    accuracy = Series("batch accuracy", [(row["step"], 100 * row["accuracy"]) for row in metrics])
    return [
        line_chart([loss], "Training loss", "optimizer step", "loss"),
        line_chart([accuracy], "Training accuracy", "optimizer step", "accuracy in %"),
    ]


def _transfer_chart(results: dict[str, list[dict[str, Any]]]) -> Markup:
    series = [
        Series(f"from {name}", [(run["shots"], 100 * run["accuracy"]) for run in results[name]]) for name in _INITS
    ]
    return point_chart(series, "Transfer accuracy", "pictures a class", "test accuracy in %")


def _rates(metrics: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return the median rate and data wait, without the first row, which holds the warm-up."""
    steady = metrics[1:] or metrics
    return {name: median(row[name] for row in steady) for name in ("images_per_second", "data_wait_fraction")}
