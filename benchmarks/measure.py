"""The harness of the benchmarks: competitors run in turn in one process, compared within a round.

A machine that others use drifts: what is compared is run side by side, A B C, B C A, C A B, and
ratios are of medians, with the spread that the ratios of single rounds have.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from statistics import median, quantiles
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("keras-flax-bridge", "jax", "jaxlib", "keras", "flax", "optax", "orbax-checkpoint", "numpy")

console = Console(width=None if sys.stdout.isatty() else 140)


class Clock:
    """Takes the time of phases: ``with clock("save"): ...``; phases may lie inside each other."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.seconds[phase] = time.perf_counter() - begin


Competitor = Callable[[Clock], Any]  # takes the time of its own phases, and returns what came out


class Target(NamedTuple):
    """A ratio to report, and how large it may be; None where it is reported only."""

    phase: str
    competitor: str
    against: str
    at_most: float | None = None


class Work(NamedTuple):
    """One row of a benchmark: what is done, who does it, what is compared."""

    name: str
    competitors: Mapping[str, Competitor]
    targets: Sequence[Target]
    check: Callable[[Any], None]  # raises AssertionError if what came out is wrong; its time isn't taken


Seconds = dict[str, dict[str, list[float]]]  # by phase, by competitor, one number a round


def run(work: Work, rounds: int, *, warm: bool) -> Seconds:
    """The seconds of every competitor in every round; with `warm` a round before them isn't counted."""
    seconds: Seconds = {}
    names = list(work.competitors)
    for turn in range(-warm, rounds):
        first = turn % len(names)  # another one begins each round: a place in it may be worth something
        for name in names[first:] + names[:first]:
            gc.collect()
            os.sync()  # nobody pays for what the one before left to write
            clock = Clock()
            work.check(work.competitors[name](clock))
            for phase, value in clock.seconds.items() if turn >= 0 else ():
                seconds.setdefault(phase, {}).setdefault(name, []).append(value)
    return seconds


def spread(values: Sequence[float]) -> tuple[float, float]:
    """The first and the third quartile."""
    first, _, third = quantiles(values if len(values) > 1 else [*values, *values], n=4, method="inclusive")
    return first, third


def compared(seconds: Seconds, target: Target) -> dict[str, Any]:
    """A ratio of medians, the quartiles of the ratios within a round, and whether the target is reached."""
    own, other = (seconds[target.phase][name] for name in (target.competitor, target.against))
    ratio = median(own) / median(other)
    rounds = spread([a / b for a, b in zip(own, other, strict=True)])
    reached = None if target.at_most is None else ratio <= target.at_most
    return {**target._asdict(), "ratio": ratio, "quartiles": rounds, "reached": reached}


def machine(packages: Iterable[str] = ()) -> dict[str, Any]:
    """What the numbers were taken on."""
    import jax

    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else ()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    known = {dist.metadata["Name"] for dist in metadata.distributions()}
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "device": jax.devices()[0].device_kind,
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in (*PACKAGES, *packages) if name in known},
    }


def show(work: str, seconds: Seconds, ratios: Sequence[Mapping[str, Any]]) -> None:
    times = Table("phase", "competitor", "median s", "quartiles", title=work)
    for phase, by_name in seconds.items():
        for name, values in by_name.items():
            times.add_row(phase, name, f"{median(values):.4f}", "{:.4f} - {:.4f}".format(*spread(values)))
    console.print(times)
    rows = Table("phase", "ratio of", "to", "medians", "quartiles of rounds", "target", title=work)
    for row in ratios:
        target = "" if row["at_most"] is None else f"<= {row['at_most']}: {'yes' if row['reached'] else 'NO'}"
        quartiles = "{:.3f} - {:.3f}".format(*row["quartiles"])
        rows.add_row(
            row["phase"], row["competitor"], row["against"], f"{row['ratio']:.3f}", quartiles, target
        )
    console.print(rows)


def main(name: str, works: Callable[[bool], Iterable[Work]], *, packages: Iterable[str] = ()) -> None:
    """Runs a benchmark from the command line.

    Args:
        name: of the file of results, without its ending.
        works: the rows, tiny ones if called with True; made one after the other.
        packages: names of packages whose versions matter beside the usual ones.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--smoke", action="store_true", help="tiny sizes; checks what comes out, no times")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    found = []
    for work in works(args.smoke):
        seconds = run(work, 1 if args.smoke else args.rounds, warm=not args.smoke)
        ratios = [compared(seconds, target) for target in work.targets]
        show(work.name, seconds, ratios)
        found.append({"work": work.name, "ratios": ratios, "seconds": seconds})
    report = {"machine": machine(packages), "rounds": args.rounds, "works": found}
    text = json.dumps(report, indent=1)
    if not args.smoke:  # its times mean nothing
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.json").write_text(text + "\n")
