"""Draws the rooms of the house from tests/test_floors.py: ``python -m docs.generate.rooms``."""

from pathlib import Path

from tests.test_floors import MODULES, ROOMS

FIGURE = Path(__file__).parents[1] / "_static" / "rooms.svg"
WIDTH, HIGH, GAP = 640, 34, 6  # of the figure; of a room; between two
STYLE = """
    .room { fill: #e9eefb; stroke: #4a63a8; }
    .name { fill: #17213d; font: bold 13px ui-monospace, Menlo, Consolas, monospace; }
    .below, .files { fill: #6b7690; font: 12px system-ui, sans-serif; }
    .files { text-anchor: end; }"""


def room(name: str, y: int) -> str:
    """One line: the room, what it imports from, and how many files it has."""
    files = sum(module.split(".")[0] == name for module in MODULES)
    below = ", ".join(ROOMS[name]) or "imports nothing of the package"
    return (
        f'  <rect class="room" x="4" y="{y}" width="{WIDTH - 8}" height="{HIGH}" rx="5"/>\n'
        f'  <text class="name" x="14" y="{y + 22}">{name}</text>\n'
        f'  <text class="below" x="150" y="{y + 22}">{below}</text>\n'
        f'  <text class="files" x="{WIDTH - 14}" y="{y + 22}">{files}</text>'
    )


def figure() -> str:
    """The figure; a room imports only from rooms below it."""
    step = HIGH + GAP
    rooms = [room(name, GAP + step * i) for i, name in enumerate(reversed(ROOMS))]
    size = f"{WIDTH} {step * len(ROOMS) + GAP}"
    title = "The rooms: each with those it imports from, and its number of files"
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size}" role="img">'
        f"\n  <title>{title}</title>\n  <style>{STYLE}\n  </style>"
    )
    return "\n".join([head, *rooms, "</svg>", ""])


if __name__ == "__main__":
    FIGURE.write_text(figure())
