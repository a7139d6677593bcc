"""Draw docs/architecture.svg from the import graph: `python scripts/architecture.py FILE`.

A wing stands one floor above the highest wing of its package that it imports. Beside the floors is the way of the data.
"""

import sys
from functools import cache
from pathlib import Path

import grimp

PACKAGES = ("cluster", "trainer", "pipeline")  # from the roof down
STATES = ("images, labels", "dataset", "batches", "models", "report")  # of the data, from the ground up
WAY = ("packing", "streaming", "jobs", "audit")  # the wing that leads from each state to the next

# All lengths are in px of a drawing 800 wide, which must stay legible at half of that: type is 26 high.
WIDTH, MARGIN, GAP = 800, 16, 10
WING_HEIGHT, TITLE_HEIGHT, STATE_WIDTH = 50, 46, 220
HOUSE_LEFT = MARGIN + STATE_WIDTH + 3 * GAP
STYLE = """
  svg { --page: #ffffff; --floor: #edf0f4; --wing: #ffffff; --line: #8a94a3; --ink: #15202b; --way: #cfe3ff; }
  @media (prefers-color-scheme: dark) {
    svg { --page: #0d1117; --floor: #1b222c; --wing: #0d1117; --line: #7d8896; --ink: #f0f3f6; --way: #1d4a86; }
  }
  text { font: 26px system-ui, sans-serif; fill: var(--ink); text-anchor: middle; }
  .title { font-weight: bold; text-anchor: start; }
  .page { fill: var(--page); }
  .floor { fill: var(--floor); }
  .wing { fill: var(--wing); stroke: var(--line); stroke-width: 2; }
  .way { fill: var(--way); stroke: var(--line); stroke-width: 2; }
  .arrow { stroke: var(--ink); stroke-width: 4; marker-end: url(#head); }
  .head { fill: var(--ink); }
"""


def floors_of(graph: grimp.ImportGraph, package: str) -> list[list[str]]:
    """Return the wings of a package, floor by floor from the top."""
    wings = {child for child in graph.find_children(package) if graph.find_children(child)}

    def uses(wing: str, other: str) -> bool:
        return other != wing and graph.direct_import_exists(importer=wing, imported=other, as_packages=True)

    @cache
    def level(wing: str) -> int:
        return 1 + max((level(other) for other in wings if uses(wing, other)), default=-1)

    floors = [sorted(wing for wing in wings if level(wing) == number) for number in range(len(wings))]
    return [[wing.rpartition(".")[2] for wing in floor] for floor in reversed(floors) if floor]


def box(kind: str, left: float, top: float, width: float, height: float, label: str = "") -> str:
    """Return a rectangle with its label in the middle."""
    text = f'<text x="{left + width / 2:g}" y="{top + height / 2 + 9:g}">{label}</text>' if label else ""
    return f'<rect class="{kind}" x="{left:g}" y="{top:g}" width="{width:g}" height="{height:g}" rx="8"/>{text}'


def house(graph: grimp.ImportGraph) -> tuple[list[str], float]:
    """Return the packages with their wings, and where the drawing ends."""
    parts, top = [], float(MARGIN)
    inner_left, inner_width = HOUSE_LEFT + GAP, WIDTH - MARGIN - HOUSE_LEFT - 2 * GAP
    for package in PACKAGES:
        floors = floors_of(graph, package)
        height = TITLE_HEIGHT + len(floors) * (WING_HEIGHT + GAP)
        parts.append(box("floor", HOUSE_LEFT, top, WIDTH - MARGIN - HOUSE_LEFT, height))
        parts.append(f'<text class="title" x="{inner_left + 4}" y="{top + 33:g}">{package}</text>')
        for number, wings in enumerate(floors):
            width = (inner_width - GAP * (len(wings) - 1)) / len(wings)
            y = top + TITLE_HEIGHT + number * (WING_HEIGHT + GAP)
            for place, wing in enumerate(wings):
                kind = "way" if wing in WAY else "wing"
                parts.append(box(kind, inner_left + place * (width + GAP), y, width, WING_HEIGHT, wing))
        top += height + 2 * GAP
    return parts, top - 2 * GAP + MARGIN


def way(height: float) -> list[str]:
    """Return the states of the data from the ground up, with the wing that leads from each to the next."""
    parts: list[str] = []
    pitch = (height - 2 * MARGIN - WING_HEIGHT) / len(WAY)
    middle = MARGIN + STATE_WIDTH / 2
    for number, state in enumerate(STATES):
        top = height - MARGIN - WING_HEIGHT - number * pitch
        parts.append(box("wing", MARGIN, top, STATE_WIDTH, WING_HEIGHT, state))
        if number < len(WAY):
            centre = top - (pitch - WING_HEIGHT) / 2
            parts.append(f'<path class="arrow" d="M{middle:g} {top - 4:g} V{top - pitch + WING_HEIGHT + 18:g}"/>')
            parts.append(box("way", middle - 75, centre - WING_HEIGHT / 2, 150, WING_HEIGHT, WAY[number]))
    return parts


def draw() -> str:
    """Return the drawing."""
    parts, height = house(grimp.build_graph(*PACKAGES, cache_dir=None))
    triangle = '<path class="head" d="M0 0 L5 2.5 L0 5 z"/>'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" role="img">',
        "<title>The wings of the three packages, and the way of the data through them</title>",
        f"<style>{STYLE}</style>",
        f'<marker id="head" markerWidth="5" markerHeight="5" refX="1" refY="2.5" orient="auto">{triangle}</marker>',
        f'<rect class="page" width="{WIDTH}" height="{height:g}"/>',
        *parts,
        *way(height),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(draw())
