"""Writes docs/benchmarks.md and its plots from benchmarks/results: ``python benchmarks/page.py``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE, PLOTS = ROOT / "docs" / "benchmarks.md", ROOT / "docs" / "_static"
BEGIN, END = "<!-- written by `python benchmarks/page.py` -->", "<!-- end -->"
TICKS = (0.25, 0.35, 0.5, 0.7, 1, 1.4, 2)
WIDTH, HIGH, EDGE = 5.0, 0.36, 0.55  # inches of a plot, of a row of it, and below the rows
TITLES = {
    "steps": "Training steps",
    "loop": "Whole epochs",
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


def subject(work: str, ratio: dict[str, Any]) -> str:
    return f"{work}: {ratio['phase']}"


def cells(work: str, ratio: dict[str, Any]) -> list[str]:
    limit = ratio["at_most"]
    ok = "yes" if ratio["reached"] else "**no**"
    spread = " - ".join(number(value) for value in ratio["quartiles"])
    target = "" if limit is None else f"<= {limit}: {ok}"
    return [subject(work, ratio), compared(ratio), number(ratio["ratio"]), spread, target]


def with_targets(name: str) -> list[tuple[str, dict[str, Any]]]:
    """What a plot shows: every ratio that has a target, and what it is of."""
    ratios = [(work, ratio) for work, row in rows(name).items() for ratio in row["ratios"]]
    return [(f"{subject(work, r)}, {compared(r)}", r) for work, r in ratios if r["at_most"]]


def section(name: str) -> Iterator[str]:
    yield f"## {TITLES[name]}\n"
    yield f"![{TITLES[name]}: measured ratios as shares of their targets](_static/{plot(name).name})\n"
    yield "| work | ratio of medians | measured | quartiles of rounds | target |"
    yield "|---|---|---|---|---|"
    for work, row in rows(name).items():
        for ratio in row["ratios"]:
            yield f"| {' | '.join(cells(work, ratio))} |"
    yield ""


def plot(name: str) -> Path:
    return PLOTS / f"benchmark-{name}.svg"


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


def draw(name: str) -> None:
    """Every ratio that has a target, as a share of it, under what it is of."""
    held = with_targets(name)[::-1]
    shares = [[r / ratio["at_most"] for r in (ratio["ratio"], *ratio["quartiles"])] for _, ratio in held]
    ends = min(0.7, *map(min, shares)) / 1.1, max(1.4, *map(max, shares)) * 1.1
    figure, axes = plt.subplots(figsize=(WIDTH, HIGH * len(held) + EDGE), layout="constrained")
    for place, ((label, ratio), (share, *spread)) in enumerate(zip(held, shares, strict=True)):
        colour = "tab:green" if ratio["reached"] else "tab:red"
        axes.plot(spread, [place, place], color=colour, linewidth=3, alpha=0.4)
        axes.plot(share, place, "o", color=colour, markersize=6)
        axes.text(0.01, place + 0.3, label, fontsize=8, transform=axes.get_yaxis_transform())
    axes.axvline(1.0, color="grey", linestyle="--", linewidth=1)
    axes.set(xscale="log", xlim=ends, ylim=(-0.6, len(held) - 0.1), yticks=[])
    ticks = [tick for tick in TICKS if ends[0] <= tick <= ends[1]]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], fontsize=8)
    axes.minorticks_off()
    axes.set_xlabel("measured / target: left of the line it is reached; bars are quartiles", fontsize=8)
    with plt.rc_context({"svg.hashsalt": "benchmarks"}):  # the same file for the same results
        figure.savefig(plot(name), metadata={"Date": None})
    plt.close(figure)


def written(text: str) -> str:
    """The page with its tables as the results are now."""
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    tables = "\n".join(line for name in TITLES if rows(name) for line in section(name))
    return f"{before}{BEGIN}\n\n{tables}\n## Machines\n\n" + "\n".join(machines()) + f"\n\n{END}{after}"


def main() -> None:
    PAGE.write_text(written(PAGE.read_text()))
    for name in filter(rows, TITLES):
        draw(name)


if __name__ == "__main__":
    main()
