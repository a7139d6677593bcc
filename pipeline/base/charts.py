"""Small SVG charts for reports that open offline.

Drawn here because plotting libraries pull pillow or megabytes of script.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

_WIDTH, _HEIGHT = 640, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 14, 40
COLOURS = ("#2563eb", "#dc6803", "#0f8a5f", "#9333ea", "#be123c", "#0e7490", "#a16207", "#4b5563")
_IN_A_ROW = 4  # names of the legend


@dataclass(frozen=True)
class Series:
    """A named line.

    Attributes:
        name: In the legend.
        points: (x, y) in drawing order.
        has_dots: Whether each point is marked, since there are few.
    """

    name: str
    points: Sequence[tuple[float, float]]
    has_dots: bool = False


@dataclass(frozen=True)
class _Frame:
    x_low: float
    x_high: float
    y_low: float
    y_high: float

    def x(self, value: float) -> float:
        return _LEFT + (value - self.x_low) / ((self.x_high - self.x_low) or 1.0) * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        return (
            _HEIGHT - _BOTTOM - (value - self.y_low) / ((self.y_high - self.y_low) or 1.0) * (_HEIGHT - _TOP - _BOTTOM)
        )


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return round numbers within [low, high], about `count` of them."""
    span = (high - low) or 1.0
    step = 10 ** math.floor(math.log10(span / count))
    for factor in (1, 2, 5, 10):
        if span / (step * factor) <= count + 0.5:  # with no half to spare, a step 2.5 times as wide may have no mark
            step *= factor
            break
    first = math.ceil(low / step - 1e-9) * step
    return [round(first + index * step, 10) for index in range(int((high - first) / step + 1e-9) + 1)]


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.3g}"


def _axes(frame: _Frame, x_label: str, y_label: str) -> list[str]:
    parts = []
    for value in ticks(frame.y_low, frame.y_high):
        y = frame.y(value)
        parts.append(f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_number(value)}</text>')
    for value in ticks(frame.x_low, frame.x_high, 8):
        parts.append(
            f'<text x="{frame.x(value):.1f}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">{_number(value)}</text>'
        )
    parts.append(
        f'<text x="{(_LEFT + _WIDTH) / 2:.0f}" y="{_HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>'
    )
    middle = (_HEIGHT - _BOTTOM) / 2
    parts.append(
        f'<text transform="translate(13,{middle:.0f}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>'
    )
    return parts


def _svg(parts: Sequence[str], title: str) -> Markup:
    body = "".join(parts)
    return Markup(  # noqa: S704 - numbers and escaped text only
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{body}</svg>"
    )


def line_chart(series: Sequence[Series], title: str, x_label: str, y_label: str) -> Markup:
    """Draw lines over a common frame, with a legend."""
    points = [point for each in series for point in each.points]
    if not points:
        return Markup("")
    ys = [y for _, y in points]
    frame = _Frame(0.0, max(x for x, _ in points), min(0.0, *ys), max(ys) * 1.05)
    parts = _axes(frame, x_label, y_label)
    for number, each in enumerate(series):
        colour = COLOURS[number % len(COLOURS)]
        path = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in each.points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        if each.has_dots:
            parts += [
                f'<circle cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="3.5" fill="{colour}"/>' for x, y in each.points
            ]
        left, top = _LEFT + 12 + 150 * (number % _IN_A_ROW), _TOP + 15 * (number // _IN_A_ROW)
        parts.append(f'<rect x="{left}" y="{top}" width="12" height="4" fill="{colour}"/>')
        parts.append(f'<text x="{left + 17}" y="{top + 6}">{escape(each.name)}</text>')
    return _svg(parts, title)


def point_chart(series: Sequence[Series], title: str, x_label: str, y_label: str) -> Markup:
    """Draw every run as a point over categories, and a line through the medians. Accuracies in percent, 0 to 100."""
    names = sorted({x for each in series for x, _ in each.points})
    if not names:
        return Markup("")
    frame = _Frame(-0.5, len(names) - 0.5, 0.0, 100.0)
    parts = [part for part in _axes(frame, x_label, y_label) if f'y="{_HEIGHT - _BOTTOM + 16}"' not in part]
    for place, name in enumerate(names):
        parts.append(
            f'<text x="{frame.x(place):.1f}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">{_number(name)}</text>'
        )
    for number, each in enumerate(series):
        colour = COLOURS[number % len(COLOURS)]
        shift = 10 * (number - (len(series) - 1) / 2)
        medians = []
        for place, name in enumerate(names):
            values = sorted(y for x, y in each.points if x == name)
            parts += [
                f'<circle cx="{frame.x(place) + shift:.1f}" cy="{frame.y(y):.1f}" r="4" fill="{colour}" opacity="0.6"/>'
                for y in values
            ]
            if values:
                medians.append(f"{frame.x(place) + shift:.1f},{frame.y(values[len(values) // 2]):.1f}")
        parts.append(f'<polyline points="{" ".join(medians)}" fill="none" stroke="{colour}" stroke-width="2"/>')
        x = _LEFT + 12 + 220 * number
        parts.append(f'<circle cx="{x + 5}" cy="{_TOP + 3}" r="4" fill="{colour}"/>')
        parts.append(f'<text x="{x + 17}" y="{_TOP + 7}">{escape(each.name)}</text>')
    return _svg(parts, title)


@dataclass(frozen=True)
class Layer:
    """One kind of bar of a stacked histogram.

    Attributes:
        name: In the legend.
        counts: By left edge of the bar.
    """

    name: str
    counts: Mapping[float, int]


def layered_histogram(
    layers: Sequence[Layer], bar_width: float, title: str, x_label: str, marks: Sequence[float] = ()
) -> Markup:
    """Draw bars stacked in the order of the layers, with a legend, and dashed lines at `marks` (thresholds)."""
    edges = sorted({edge for layer in layers for edge in layer.counts})
    if not edges:
        return Markup("")
    totals = [sum(layer.counts.get(edge, 0) for layer in layers) for edge in edges]
    low = min(0.0, edges[0])
    frame = _Frame(low, max([edges[-1] + bar_width, *marks]), 0.0, max(totals) * 1.15)
    parts = _axes(frame, x_label, "pairs")
    for edge in edges:
        below = 0
        for number, layer in enumerate(layers):
            count = layer.counts.get(edge, 0)
            left, top = frame.x(edge), frame.y(below + count)
            width = max(1.0, frame.x(edge + bar_width) - left - 1)
            parts.append(
                f'<rect x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{frame.y(below) - top:.1f}" '
                f'fill="{COLOURS[number % len(COLOURS)]}"><title>{escape(layer.name)}: {count}</title></rect>'
            )
            below += count
    for mark in marks:
        x = frame.x(mark)
        parts.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP + 12}" y2="{_HEIGHT - _BOTTOM}" stroke="#5b6579" '
            f'stroke-dasharray="4 3"/>'
        )
        parts.append(f'<text x="{x - 3:.1f}" y="{_TOP + 22}" text-anchor="end">{_number(mark)}</text>')
    for number, layer in enumerate(layers):
        x = _LEFT + 12 + 130 * number
        parts.append(f'<rect x="{x}" y="{_TOP - 4}" width="12" height="8" fill="{COLOURS[number % len(COLOURS)]}"/>')
        parts.append(f'<text x="{x + 17}" y="{_TOP + 4}">{escape(layer.name)}</text>')
    return _svg(parts, title)


def histogram(
    counts: Sequence[tuple[float, int]], title: str, x_label: str, bar_width: float, y_label: str = "pairs"
) -> Markup:
    """Draw bars of (left edge, count)."""
    if not counts:
        return Markup("")
    frame = _Frame(0.0, max(x for x, _ in counts) + bar_width, 0.0, max(count for _, count in counts) * 1.05)
    parts = _axes(frame, x_label, y_label)
    for x, count in counts:
        left, top = frame.x(x), frame.y(count)
        width = max(1.0, frame.x(x + bar_width) - left - 1)
        parts.append(
            f'<rect x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{frame.y(0) - top:.1f}" '
            f'fill="{COLOURS[0]}"/>'
        )
    return _svg(parts, title)
