"""What the bridge costs around the steps: states of many variables, memory, the import."""

from __future__ import annotations

import keras_flax_bridge as kfb  # before keras: it chooses the JAX backend

import jax
import keras
import measure
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from keras_flax_bridge import keras_internals

MICRO = 1e-6
ALONE = Path(__file__).parent / "alone.py"


def alone(what: str, *arguments: Any) -> float:
    """The number that a process of its own prints."""
    command = [sys.executable, str(ALONE), what, *map(str, arguments)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(run.stdout.split()[-1])


def measured(phase: str, what: str, *arguments: Any, of: float = 1.0) -> measure.Competitor:
    def compete(clock: measure.Clock) -> float:
        clock.seconds[phase] = alone(what, *arguments) / of
        return clock.seconds[phase]

    return compete


def positive(number: float) -> None:
    assert number > 0


def variables(count: int) -> measure.Work:
    """Time for each variable of a model of so many weights and of its optimizer."""
    keras.utils.set_random_seed(0)
    # in blocks: a Sequential of thousands of layers takes Keras minutes
    blocks = [keras.Sequential([keras.layers.Dense(2) for _ in range(50)]) for _ in range(count // 100)]
    model = keras.Sequential([keras.Input((2,)), *blocks])
    model.compile("adam", "mse")
    model.optimizer.build(model.trainable_variables)
    phases = [f"{what}, us a variable" for what in ("structural keys", "from_keras", "assign_to")]
    held = len(model.trainable_variables) + len(model.optimizer.variables)

    def compete(clock: measure.Clock) -> Any:
        with clock(phases[0], per=held * MICRO):
            keras_internals.collect(model)
        with clock(phases[1], per=held * MICRO):
            state = jax.block_until_ready(kfb.TrainState.from_keras(model))
        with clock(phases[2], per=held * MICRO):
            state.assign_to(model)
        return state

    targets = [measure.Target(phase, "kfb", "", 50) for phase in phases]
    return measure.Work(f"{held} variables", {"kfb": compete}, targets, measure.finite)


def memory(smoke: bool, folder: str) -> Iterator[measure.Work]:
    width = 128 if smoke else 6144
    phase = "peak, MB"
    competitors = {
        "copy=False": measured(phase, "training_with_the_bridge", folder, width),
        "by hand": measured(phase, "training_by_hand", folder, width),
    }
    targets = [measure.Target(phase, "copy=False", "by hand", 1.02)]
    yield measure.Work("memory of training", competitors, targets, positive)
    size = alone("saving", folder, width)
    peak = "peak / size of the state"
    competitors = {
        "restore": measured(peak, "restoring", folder, width, of=size),
        "restore, 8 shards": measured(peak, "restoring_on_a_mesh", folder, width, of=size),
    }
    targets = [measure.Target(peak, name, "", 1.3) for name in competitors]
    yield measure.Work("memory of a restore", competitors, targets, positive)


def works(smoke: bool) -> Iterator[measure.Work]:
    for count in (100,) if smoke else (1000, 3300, 10_000):
        yield variables(count)
    target = measure.Target("import, s", "keras_flax_bridge", "", 0.15)
    competitors = {"keras_flax_bridge": measured("import, s", "importing")}
    yield measure.Work("import beyond keras and flax", competitors, [target], positive)
    with tempfile.TemporaryDirectory() as folder:
        yield from memory(smoke, f"{folder}/state")


if __name__ == "__main__":
    measure.main("costs", works)
