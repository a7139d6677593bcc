"""A run on the axis of time, as an SVG drawing: when it trained, saved and was measured, and what happened."""

from collections.abc import Callable, Sequence

from markupsafe import Markup, escape

from pipeline.base.charts import COLOURS, ticks
from trainer.watching.facts import RunFacts
from trainer.watching.happenings import Happening, happening_line, happenings

_WIDTH, _LEFT, _RIGHT, _LANE, _TOP = 960, 84, 14, 30, 8
_MOST_MARKS = 400  # of a lane: more are one picture
KIND_COLOURS = {
    "started": COLOURS[2],
    "resumed": COLOURS[2],
    "failed": COLOURS[4],
    "stalled": COLOURS[4],
    "damaged": COLOURS[4],
    "skipped": COLOURS[1],
    "resized": COLOURS[3],
    "changed": COLOURS[0],
    "stopping": COLOURS[7],
}


def timeline(facts: RunFacts) -> Markup:
    """Draw a run from its first start to its last sign; nothing for runs of old releases, which kept no times."""
    if facts.began is None or facts.last_sign is None:
        return Markup("")
    began, seconds = facts.began, max(1.0, facts.last_sign - facts.began)
    length, unit = next(
        (each for each in ((86_400.0, "days"), (3600.0, "hours"), (60.0, "minutes")) if seconds >= 2 * each[0]),
        (1.0, "seconds"),
    )

    def x(time: float) -> float:
        return _LEFT + (time - began) / seconds * (_WIDTH - _LEFT - _RIGHT)

    saves = [row["time"] for row in facts.all_rows if "checkpoint_bytes" in row]
    measured = [each["time"] for each in facts.evaluations if "time" in each]
    found = happenings(facts)
    kinds = list(dict.fromkeys(each.kind for each in found))
    parts = [_stretches(facts, x)]
    for number, (name, times) in enumerate((("saved", saves), ("measured", measured)), 1):
        parts.append(_name(name, number))
        parts += [_tick(x(time), number) for time in _thinned(times)]
    for number, kind in enumerate(kinds, 3):
        parts.append(_name(kind, number))
        parts += [_dot(x(each.time), number, each) for each in found if each.kind == kind][-_MOST_MARKS:]
    bottom = _TOP + _LANE * (3 + len(kinds))
    for tick in ticks(0.0, seconds / length, 8):
        at = x(began + tick * length)
        parts.append(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP}" y2="{bottom}" class="grid"/>')
        parts.append(f'<text x="{at:.1f}" y="{bottom + 16}" text-anchor="middle">{tick:g}</text>')
    parts.append(f'<text x="{_LEFT - 8}" y="{bottom + 16}" text-anchor="end">{unit}</text>')
    return Markup(  # noqa: S704 - numbers and escaped text only
        f'<svg class="timeline" viewBox="0 0 {_WIDTH} {bottom + 22}" role="img" aria-label="Time axis">'
        f"{''.join(parts)}</svg>"
    )


def _stretches(facts: RunFacts, x: Callable[[float], float]) -> str:
    parts = [_name("training", 0)]
    ends = {row["attempt"]: row["time"] for row in facts.all_rows if "attempt" in row}
    for attempt in facts.attempts:
        if "time" not in attempt or attempt["attempt"] not in ends:
            continue
        left, right = x(attempt["time"]), x(ends[attempt["attempt"]])
        parts.append(
            f'<rect x="{left:.1f}" y="{_TOP + 8}" width="{max(1.0, right - left):.1f}" height="{_LANE - 16}" rx="2" '
            f'fill="{COLOURS[0]}"><title>from step {attempt["first_step"]:,}</title></rect>'
        )
    return "".join(parts)


def _name(text: str, lane: int) -> str:
    return f'<text x="{_LEFT - 8}" y="{_TOP + _LANE * lane + _LANE / 2 + 4}" text-anchor="end">{escape(text)}</text>'


def _tick(x: float, lane: int) -> str:
    top = _TOP + _LANE * lane + 8
    return f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{top + _LANE - 16}" stroke="{COLOURS[7]}"/>'


def _dot(x: float, lane: int, happening: Happening) -> str:
    return (
        f'<circle cx="{x:.1f}" cy="{_TOP + _LANE * lane + _LANE / 2}" r="5" '
        f'fill="{KIND_COLOURS.get(happening.kind, COLOURS[7])}"><title>{escape(happening_line(happening))}</title>'
        f"</circle>"
    )


def _thinned(times: Sequence[float]) -> Sequence[float]:
    return times[:: -(-len(times) // _MOST_MARKS)] if times else times
