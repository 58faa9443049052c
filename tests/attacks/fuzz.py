"""The fuzzer: an artifact by its seed, and what the doors make of it.

``python -m tests.attacks.fuzz 17`` makes and tries the artifact of a seed that a test has named;
``python -m tests.attacks.fuzz 0 500`` those of a range.
"""

import gc
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from tests.attacks import goods, mutations
from tests.attacks.doors import CHECKED, DOORS, outcome

COUNTS = {"fast": 100, "slow": 500, "full": 5000}  # artifacts in each pass
FIRST = {"fast": 0, "slow": 100, "full": 600}  # their seeds begin here
_WEIGHTS = {"tree": 6, "packed": 6, "flax": 3, "keras": 3, "weights": 2, "safetensors": 2, "map": 3}
_WEIGHTS |= {"index": 1, "npz": 2, "msgpack": 2}
_KINDS = [kind for kind, often in _WEIGHTS.items() for _ in range(often)]
_QUICK = 2  # doors that every artifact goes through in the first two passes, and as many of the others


def doors(rng, kind, *, every):
    """All doors of a kind, but one of those that convert, which all read in one way; else a share of them."""
    names = list(DOORS[kind])
    targets = [name for name in names if name.startswith("convert to ")]
    if every and targets:
        one = rng.choice(targets)
        return [name for name in names if name == one or name not in targets]
    if every or len(names) <= 2 * _QUICK:
        return names
    return [*names[:_QUICK], *rng.choice(names[_QUICK:], _QUICK, replace=False).tolist()]


def attempt(whole, seed, folder, *, every):
    """Makes the artifact of a seed and takes it through doors; gives what is wrong."""
    rng = np.random.default_rng(seed)
    kind = mutations.pick(rng, _KINDS)
    path = goods.copied(whole, kind, folder / "artifact")
    what = mutations.spoil(rng, kind, path)
    wrong = []
    for number, name in enumerate(doors(rng, kind, every=every)):
        result, why = outcome(
            DOORS[kind][name], path, whole, folder / f"scratch{number}", checked=kind in CHECKED
        )
        if why:
            wrong.append(f"seed {seed}, {kind}, {what}, door {name!r}: {result}\n{why}")
    return wrong


@contextmanager
def whole_ones(folder):
    """The artifacts before they are spoiled; what was imported and built by then is not collected anew."""
    whole = goods.write(folder)
    gc.collect()
    gc.freeze()  # commands collect garbage, which takes long among a million objects
    yield whole
    gc.unfreeze()


def main(first, count="1"):
    """Tries some seeds and prints what is wrong."""
    with tempfile.TemporaryDirectory() as folder, whole_ones(Path(folder)) as whole:
        for seed in range(int(first), int(first) + int(count)):
            with tempfile.TemporaryDirectory() as own:
                print("\n".join(attempt(whole, seed, Path(own), every=True)), end="", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
