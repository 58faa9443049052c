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

import jax
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("keras-flax-bridge", "jax", "jaxlib", "keras", "flax", "optax", "orbax-checkpoint", "numpy")

console = Console(width=None if sys.stdout.isatty() else 140)


class Clock:
    """Takes the time of phases: ``with clock("save"): ...``; phases may lie inside each other.

    With ``per=n`` it is the time of each of n things.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, phase: str, *, per: float = 1) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.seconds[phase] = (time.perf_counter() - begin) / per


Competitor = Callable[[Clock], Any]  # takes the time of its own phases, and returns what came out


class Target(NamedTuple):
    """A ratio to report, and how large it may be; None where it is reported only.

    Against ``""`` it is no ratio but the competitor's own number.
    """

    phase: str
    competitor: str
    against: str
    at_most: float | None = None


def repeated(step: Callable[[Any], Any], state: Any, times: int, *, per: int = 1) -> Competitor:
    """A competitor that calls a step on its own result; each round goes on where the last one ended.

    Args:
        step: takes a state and gives the next; it may donate.
        state: the first one.
        times: calls in a round.
        per: steps that one call does.
    """
    held = [state]

    def compete(clock: Clock) -> Any:
        with clock("step", per=times * per):
            for _ in range(times):
                held[0] = step(held[0])
            jax.block_until_ready(held[0])
        return held[0]

    return compete


def finite(tree: Any) -> None:
    """A check: the first floats of what came out are numbers."""
    leaf = next(x for x in jax.tree.leaves(tree) if jax.numpy.issubdtype(x.dtype, jax.numpy.inexact))
    assert bool(jax.numpy.all(jax.numpy.isfinite(leaf)))


class Work(NamedTuple):
    """One row of a benchmark: what is done, who does it, what is compared."""

    name: str
    competitors: Mapping[str, Competitor]
    targets: Sequence[Target]
    check: Callable[[Any], None]  # raises AssertionError if what came out is wrong; its time isn't taken
    times: int = 1  # so many times the rounds: what is short is noisy


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
    own = seconds[target.phase][target.competitor]
    other = seconds[target.phase][target.against] if target.against else [1.0] * len(own)
    ratio = median(own) / median(other)
    rounds = spread([a / b for a, b in zip(own, other, strict=True)])
    reached = None if target.at_most is None else ratio <= target.at_most
    return {**target._asdict(), "ratio": ratio, "quartiles": rounds, "reached": reached}


def machine(packages: Iterable[str]) -> dict[str, Any]:
    """What the numbers were taken on."""
    known = {dist.metadata["Name"] for dist in metadata.distributions()}
    return {
        "cores": os.cpu_count(),
        "device": jax.devices()[0].device_kind,
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in (*PACKAGES, *packages) if name in known},
    }


def show(work: str, seconds: Seconds, ratios: Sequence[Mapping[str, Any]]) -> None:
    """Prints the times and the ratios of a row."""
    times = Table("phase", "competitor", "median s", "quartiles", title=work)
    for phase, name, values in ((p, n, v) for p, by_name in seconds.items() for n, v in by_name.items()):
        times.add_row(phase, name, f"{median(values):.4g}", "{:.4g} - {:.4g}".format(*spread(values)))
    rows = Table("phase", "ratio of", "to", "medians", "quartiles of rounds", "target", title=work)
    for row in ratios:
        target = "" if row["at_most"] is None else f"<= {row['at_most']}: {'yes' if row['reached'] else 'NO'}"
        numbers = f"{row['ratio']:.3g}", "{:.3g} - {:.3g}".format(*row["quartiles"])
        rows.add_row(row["phase"], row["competitor"], row["against"], *numbers, target)
    console.print(times, rows)


def keep(name: str, work: str, row: Mapping[str, Any]) -> None:
    """Puts a row into the file of results, in place of one of that name."""
    file = RESULTS / f"{name}.json"
    file.parent.mkdir(exist_ok=True)
    rows = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**rows, work: row}, indent=1) + "\n")


def main(name: str, works: Callable[[bool], Iterable[Work]], *, packages: Iterable[str] = ()) -> None:
    """Runs a benchmark from the command line; `works` gives its rows, tiny ones if called with True."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--smoke", action="store_true", help="tiny sizes; checks what comes out, no times")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default="", help="rows whose name has this in it; others stay as they are")
    args = parser.parse_args()
    for work in (work for work in works(args.smoke) if args.only in work.name):
        rounds = 1 if args.smoke else args.rounds * work.times
        seconds = run(work, rounds, warm=not args.smoke)
        ratios = [compared(seconds, target) for target in work.targets]
        show(work.name, seconds, ratios)
        if not args.smoke:  # its times mean nothing
            row = {"machine": machine(packages), "rounds": rounds, "ratios": ratios, "seconds": seconds}
            keep(name, work.name, row)
