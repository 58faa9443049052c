"""Writes docs/benchmarks.md and its plot from benchmarks/results: ``python benchmarks/page.py``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE, PLOT = ROOT / "docs" / "benchmarks.md", ROOT / "docs" / "_static" / "benchmarks.svg"
BEGIN, END = "<!-- written by `python benchmarks/page.py` -->", "<!-- end -->"
TICKS = (0.25, 0.5, 1, 2)
TITLES = {
    "steps": "Training steps",
    "costs": "Around the steps",
    "native": "Native modules",
    "interop": "Keras layers in Flax",
    "optimizers": "Optimizers",
    "sharding": "Meshes",
    "checkpoint": "Checkpoints",
}


def rows(name: str) -> dict[str, Any]:
    file = RESULTS / f"{name}.json"
    return json.loads(file.read_text()) if file.exists() else {}


def number(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def compared(ratio: dict[str, Any]) -> str:
    return " / ".join(filter(None, (ratio["competitor"], ratio["against"])))


def cells(ratio: dict[str, Any]) -> list[str]:
    limit = ratio["at_most"]
    ok = "yes" if ratio["reached"] else "**no**"
    spread = " - ".join(number(value) for value in ratio["quartiles"])
    target = "" if limit is None else f"<= {limit}: {ok}"
    return [ratio["phase"], compared(ratio), number(ratio["ratio"]), spread, target]


def table(name: str) -> Iterator[str]:
    yield f"## {TITLES[name]}\n"
    yield "| work | phase | ratio of medians | measured | quartiles of rounds | target |"
    yield "|---|---|---|---|---|---|"
    for work, row in rows(name).items():
        for ratio in row["ratios"]:
            yield f"| {work} | " + " | ".join(cells(ratio)) + " |"
    yield ""


def machines() -> Iterator[str]:
    """Each machine and set of versions that something was measured with."""
    found: dict[str, list[str]] = {}
    for name in TITLES:
        for row in rows(name).values():
            machine = row["machine"]
            versions = ", ".join(f"{package} {version}" for package, version in machine["versions"].items())
            text = f"{machine['cores']} cores, {machine['device']}, Python {machine['python']}; {versions}"
            if TITLES[name] not in found.setdefault(text, []):
                found[text].append(TITLES[name])
    for text, names in found.items():
        yield f"- {', '.join(names)}: {text}."


def draw() -> None:
    """Every ratio that has a target, as a share of it."""
    held = [
        (f"{work}: {ratio['phase']}, {compared(ratio)}", ratio)
        for name in TITLES
        for work, row in rows(name).items()
        for ratio in row["ratios"]
        if ratio["at_most"]
    ][::-1]
    figure, axes = plt.subplots(figsize=(10, 0.24 * len(held) + 1), layout="constrained")
    for place, (_, ratio) in enumerate(held):
        low, high = (value / ratio["at_most"] for value in ratio["quartiles"])
        colour = "tab:green" if ratio["reached"] else "tab:red"
        axes.plot([low, high], [place, place], color=colour, linewidth=2, alpha=0.5)
        axes.plot(ratio["ratio"] / ratio["at_most"], place, "o", color=colour, markersize=5)
    axes.axvline(1.0, color="grey", linestyle="--", linewidth=1)
    axes.set_yticks(range(len(held)), [label for label, _ in held], fontsize=7)
    axes.set_xscale("log")
    axes.set_xticks(TICKS, [f"{tick:g}" for tick in TICKS])
    axes.minorticks_off()
    axes.set(xlabel="measured / target: left of the line it is reached; bars are quartiles")
    axes.margins(y=0.01)
    PLOT.parent.mkdir(exist_ok=True)
    with plt.rc_context({"svg.hashsalt": "benchmarks"}):  # the same file for the same results
        figure.savefig(PLOT, metadata={"Date": None})


def written(text: str) -> str:
    """The page with its tables as the results are now."""
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    tables = "\n".join(line for name in TITLES if rows(name) for line in table(name))
    return f"{before}{BEGIN}\n\n{tables}\n## Machines\n\n" + "\n".join(machines()) + f"\n\n{END}{after}"


def main() -> None:
    PAGE.write_text(written(PAGE.read_text()))
    draw()


if __name__ == "__main__":
    main()
