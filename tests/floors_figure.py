"""Draws the floors of the house from tests/test_floors.py: ``python -m tests.floors_figure``."""

from pathlib import Path

from tests.test_floors import FLOORS, INSIDE

FIGURE = Path(__file__).parents[1] / "docs" / "_static" / "floors.svg"
WIDTH, HIGH, GAP, LETTER = 640, 34, 6, 7.3  # of a floor; of a letter at this font size
STYLE = """
    .floor { fill: #e9eefb; stroke: #4a63a8; }
    .name { fill: #17213d; font: 12px ui-monospace, Menlo, Consolas, monospace; }
    .package { font-weight: bold; }
    .number { fill: #6b7690; font: 12px system-ui, sans-serif; text-anchor: end; }"""


def box(name: str, x: float, y: float, width: float) -> str:
    kind = "name package" if name in INSIDE else "name"
    return (
        f'  <rect class="floor" x="{x:.0f}" y="{y}" width="{width:.0f}" height="{HIGH}" rx="5"/>\n'
        f'  <text class="{kind}" x="{x + 10:.0f}" y="{y + 22}">{name}</text>'
    )


def floor(height: int, names: set[str], y: int) -> str:
    lines, x = [f'  <text class="number" x="24" y="{y + 22}">{height}</text>'], 34.0
    for name in sorted(names):
        width = 20 + LETTER * len(name)
        lines.append(box(name, x, y, width))
        x += width + GAP
    return "\n".join(lines)


def figure() -> str:
    """The figure; the lowest floor is at the bottom, and packages are bold."""
    step = HIGH + GAP
    top = len(FLOORS) - 1
    floors = [floor(i, FLOORS[i], GAP + step * (top - i)) for i in range(top, -1, -1)]
    size = f"{WIDTH} {step * len(FLOORS) + GAP}"
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size}" role="img">'
        f"\n  <title>The floors: a file imports only from lower ones</title>\n  <style>{STYLE}\n  </style>"
    )
    return "\n".join([head, *floors, "</svg>", ""])


if __name__ == "__main__":
    FIGURE.write_text(figure())
