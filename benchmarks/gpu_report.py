"""What benchmarks/gpu.py is to find, and the tables of what it found; pure, without torch.

A figure has a name that says what it is of; what was not measured stands in the tables, too, with the reason.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple


class Figure(NamedTuple):
    """A figure that is wanted.

    Attributes:
        part: Of the benchmark.
        name: Of the figure.
        unit: Behind the number.
        goal: What it should be; empty for none.
    """

    part: str
    name: str
    unit: str = ""
    goal: str = ""


@dataclass(frozen=True)
class Sizes:
    """What is measured.

    Attributes:
        model: Whose step is compared.
        px: Side of its pictures.
        cases: Pictures of a forward pass, forward passes a step.
        large: Models whose largest batch is looked for.
        compared: Which of them is compared with timm's.
        rounds: In which contenders take turns.
        steps: Of a contender in each.
        goals: Whether the figures have goals: those of one GPU.
    """

    model: str
    px: int
    cases: tuple[tuple[int, int], ...]
    large: tuple[str, ...]
    compared: str
    rounds: int
    steps: int
    goals: bool


GPU = Sizes("R50x1", 224, ((256, 1), (32, 8)), ("R101x3", "R152x4"), "R152x4", rounds=5, steps=8, goals=True)
CPU = Sizes("R14x0.5", 32, ((4, 1), (2, 2)), ("R14x0.5",), "R14x0.5", rounds=2, steps=1, goals=False)
ROLES = ("timm", "ours", "ours, kernels compiled", "ours, standardised in the graph")
MORE_ROLES = (
    "ours, CUDA graphs",
    "ours, 1x1 as products",
    "ours, cuDNN tries all",
    "ours, kernels compiled and joined",
    "ours, max-autotune",
)
SOURCES = ("local files", "local files, packed with --resize 256", "S3", "S3, packed with --resize 256")
_STEP_GOALS = ("1.05 or more", "1.25 or more")


def case_name(sizes: Sizes, case: tuple[int, int]) -> str:
    """Return the name of a case."""
    return f"{sizes.model}, {sizes.px} px, {case[1]} x {case[0]}"


def catalogue(sizes: Sizes) -> list[Figure]:
    """Return all figures that are wanted, in the order of the tables."""
    found = [Figure("tests", "tests/trainer/test_gpu.py, passed", "", "all")]
    for number, case in enumerate(sizes.cases):
        name = case_name(sizes, case)
        for role in ROLES:
            found.append(Figure("steps", f"{name}: {role}", "images/s"))
        found += [
            Figure("steps", f"{name}: {role} against timm", "", _STEP_GOALS[number] if role == "ours" else "")
            for role in ROLES[1:]
        ]
        found.append(Figure("steps", f"{name}: memory against timm", "", "1.00 or less" if number == 0 else ""))
        found += [Figure("steps", f"{name}: {role}, MFU", "%") for role in ROLES[:2]]
    found += [Figure("profile", f"{role}: {what}") for role in ROLES[:2] for what in ("device busy", "launches a step")]
    found += [
        Figure("run", "trainer pretrain", "images/s"),
        Figure("run", "trainer pretrain against the bare step", "", "0.95 or more"),
        Figure("run", "trainer pretrain: waits for data", "%", "2 or less"),
        Figure("run", "trainer pretrain: device busy"),
    ]
    for model in sizes.large:
        for how in ("", ", recomputing"):
            found += [
                Figure("large", f"{model}{how}: largest batch"),
                Figure("large", f"{model}{how}: largest batch against `trainer describe`"),
                Figure("large", f"{model}{how}, not compiled", "images/s"),
                Figure("large", f"{model}{how}, not compiled, MFU", "%"),
            ]
    if sizes.compared:
        found.append(Figure("large", f"{sizes.compared}, recomputing, against timm, neither compiled"))
    found += [Figure("loader", f"{source}, one core", "photos/s") for source in SOURCES]
    found.append(Figure("loader", "local files, all cores but one", "photos/s", "4,700 or more"))
    for role in ROLES:
        found += [Figure("graphs", f"{role}: {what}") for what in ("graphs", "breaks", "kernels", "compiled later")]
    found += [Figure("more", f"{role} against ours") for role in MORE_ROLES]
    for model in sizes.large:
        found += [
            Figure("large compiled", f"{model}, recomputing", "images/s"),
            Figure("large compiled", f"{model}, recomputing, MFU", "%"),
        ]
    if sizes.compared:
        goal = "1.10 or more"
        found.append(Figure("large compiled", f"{sizes.compared}, recomputing, against timm", "", goal))
    return found if sizes.goals else [figure._replace(goal="") for figure in found]


def fitting(needs: Mapping[str, float], part: str, seconds_left: float) -> bool:
    """Return whether a part is begun: where the time that it needs is left."""
    return needs[part] <= seconds_left


def shown(value: float, unit: str) -> str:
    """Return a figure with its unit."""
    if unit == "%":
        return f"{value:.1%}".replace("%", " %")
    number = (
        f"{value:,.0f}" if value == int(value) or value >= 100 else f"{value:.3g}" if value < 0.1 else f"{value:.2f}"
    )
    return f"{number} {unit}".strip()


def report(wanted: Iterable[Figure], rows: Iterable[Mapping[str, object]], about: Mapping[str, object]) -> str:
    """Return the tables as Markdown.

    Args:
        wanted: Of `catalogue`.
        rows: With `part`, and either `name`, `value`, and perhaps `low`, `high` and `note`; or `table`, a title and a
            list of (kernel, share, count); or `reason`, for which figures of that part are missing.
        about: Of the machine: card, commit, versions.
    """
    rows = list(rows)
    found = {(row["part"], row["name"]): row for row in rows if "value" in row}
    reasons = {row["part"]: row["reason"] for row in rows if "reason" in row}
    parts: dict[str, list[str]] = {}
    for figure in wanted:
        row = found.get((figure.part, figure.name))
        reason = reasons.get(figure.part)
        text = f"not measured: {reason}" if reason else "not measured"
        if row:
            text = shown(float(str(row["value"])), figure.unit)
            if "low" in row:
                low, high = (shown(float(str(row[end])), "" if figure.unit != "%" else "%") for end in ("low", "high"))
                text += f" ({low} to {high})"
            text += f"; {row['note']}" if row.get("note") else ""
        parts.setdefault(figure.part, []).append(f"| {figure.name} | {text} | {figure.goal} |")
    lines = [f"{', '.join(f'{name}: {value}' for name, value in about.items())}", ""] if about else []
    for part, table in parts.items():
        lines += [f"| {part} | figure | wanted |", "| --- | --- | --- |", *table, ""]
    for row in rows:
        if "table" in row:
            lines += [f"| {row['title']} | share | calls |", "| --- | --- | --- |"]
            lines += [f"| `{name}` | {share:.1%} | {count:,} |" for name, share, count in row["table"]]  # type: ignore[attr-defined]
            lines.append("")
    return "\n".join(lines)
