"""Keras layers inside Flax against plain Flax, and against loops that an expert writes by hand.

The rows: how many programs ``nnx.jit`` compiles for a training step; steps of an MLP by ``nnx.jit`` and
``nnx.Optimizer``; by ``nnx.split`` once and ``jax.jit``; calls of ``nnx.jit`` on nothing,
which cost what a module has in variables; tracing. Pure Flax is the same model without Keras. Keras's own
NNX mode, which is chosen before Keras is imported, runs in a process of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys

import keras_flax_bridge as kfb  # before keras: it chooses the JAX backend

import jax
import jax.numpy as jnp
import keras
import measure
import numpy as np
import optax
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from typing import Any

from flax import nnx

BATCH, WIDTH, STEPS = 32, 256, 200
WRAPPED, PURE, HAND, MODE = "ToNNX", "pure Flax", "by hand", "Keras's NNX mode"
SPLIT, LINEN, STATELESS = "ToNNX, split once", "ToLinen", "stateless_call"


def mlp() -> keras.Model:
    keras.utils.set_random_seed(0)
    hidden = [keras.layers.Dense(WIDTH, "relu") for _ in range(2)]
    return keras.Sequential([keras.Input((64,)), *hidden, keras.layers.Dense(10)])


class PureMLP(nnx.Module):
    """What a person writes for `mlp` in Flax."""

    def __init__(self, rngs: nnx.Rngs):
        sizes = (64, WIDTH, WIDTH, 10)
        self.layers = nnx.List([nnx.Linear(*pair, rngs=rngs) for pair in pairwise(sizes)])

    def __call__(self, x: Any) -> Any:
        for layer in self.layers[:-1]:
            x = nnx.relu(layer(x))
        return self.layers[-1](x)


def batch() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((BATCH, 64)).astype("float32"), rng.integers(0, 10, BATCH)


def loss_of(logits: Any, y: Any) -> Any:
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


# --- a training step: each competitor gives a function that takes so many steps, and the last loss


def by_nnx(module: nnx.Module, wrt: Any = nnx.Param) -> Callable[[int], Any]:
    """`nnx.jit`, `nnx.value_and_grad`, `nnx.Optimizer`, as in Flax's guides."""
    optimizer, (x, y) = nnx.Optimizer(module, optax.adam(1e-3), wrt=wrt), batch()
    compiled = []

    @nnx.jit
    def step(module: Any, optimizer: Any, x: Any, y: Any) -> Any:
        compiled.append(1)  # once a trace
        state = nnx.DiffState(0, wrt)
        loss, grads = nnx.value_and_grad(lambda module: loss_of(module(x), y), argnums=state)(module)
        optimizer.update(module, grads)
        return loss

    def run(steps: int) -> Any:
        for _ in range(steps):
            loss = step(module, optimizer, x, y)
        return loss, compiled

    return run


def counted(build: Callable[[], nnx.Module], clock: measure.Clock) -> Any:
    """How many programs three steps compile."""
    loss, compiled = by_nnx(build())(3)
    clock.seconds["programs"] = len(compiled)
    return loss


def by_split(module: nnx.Module) -> Callable[[int], Any]:
    """`nnx.split` once, and a step on flat arrays that merges under `jax.jit`."""
    graph, params, rest = nnx.split(module, nnx.Param, ...)
    tx, (x, y) = optax.adam(1e-3), batch()

    @partial(jax.jit, donate_argnums=0)
    def step(held: Any, x: Any, y: Any) -> Any:
        params, rest, slots = held

        def loss(params: Any) -> Any:
            module = nnx.merge(graph, params, rest, copy=True)
            value = loss_of(module(x, training=True), y)
            return value, nnx.split(module, nnx.Param, ...)[2]

        (value, rest), grads = jax.value_and_grad(loss, has_aux=True)(params)
        updates, slots = tx.update(grads, slots, params)
        return (optax.apply_updates(params, updates), rest, slots), value

    return looped(step, (params, rest, tx.init(params)), x, y)


def by_hand(model: keras.Model) -> Callable[[int], Any]:
    """Keras's stateless_call on lists of arrays."""
    tx, (x, y) = optax.adam(1e-3), batch()
    trained, others = (
        [jnp.copy(v.value) for v in vs] for vs in (model.trainable_variables, model.non_trainable_variables)
    )

    @partial(jax.jit, donate_argnums=0)
    def step(held: Any, x: Any, y: Any) -> Any:
        trained, others, slots = held

        def loss(trained: Any) -> Any:
            logits, after = model.stateless_call(trained, others, x, training=True)
            return loss_of(logits, y), after

        (value, others), grads = jax.value_and_grad(loss, has_aux=True)(trained)
        updates, slots = tx.update(grads, slots, trained)
        return (optax.apply_updates(trained, updates), others, slots), value

    return looped(step, (trained, others, tx.init(trained)), x, y)


def looped(step: Callable, held: Any, x: Any, y: Any) -> Callable[[int], Any]:
    box = [held]

    def run(steps: int) -> Any:
        for _ in range(steps):
            box[0], loss = step(box[0], x, y)
        return loss, box[0]

    return run


def timed(run: Callable[[int], Any], steps: int, phase: str, clock: measure.Clock) -> Any:
    with clock(phase):
        result = jax.block_until_ready(run(steps)[0])
    return result


def finite(value: Any) -> None:
    assert np.isfinite(np.asarray(value)).all()


def in_nnx_mode(what: str, smoke: bool, phase: str, clock: measure.Clock) -> Any:
    """The seconds that a process of its own reports: Keras reads its flag when it is imported."""
    environment = {**os.environ, "KERAS_NNX_ENABLED": "true"}
    command = [sys.executable, __file__, "--nnx-mode", what, *(["--smoke"] if smoke else [])]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    clock.seconds[phase] = float(run.stdout.split()[-1])
    return 0.0


# --- calls that compute nothing


def idle(module: nnx.Module) -> Callable[[int], Any]:
    """`nnx.jit` of a function that does nothing: what a module costs at each call."""
    call = nnx.jit(lambda module: None)

    def run(calls: int) -> Any:
        for _ in range(calls):
            call(module)
        return jnp.zeros(()), []

    return run


# --- tracing


def traced(call: Callable, args: tuple, clock: measure.Clock) -> Any:
    """Traces a fresh function, so that nothing is cached."""
    with clock("trace"):
        jax.jit(lambda *args: call(*args)).trace(*args)
    return 0.0


def tracers(model: keras.Model, x: Any) -> dict[str, measure.Competitor]:
    graph, state = nnx.split(kfb.ToNNX(model))
    linen = kfb.ToLinen(model)
    held = [v.value for v in model.trainable_variables], [v.value for v in model.non_trainable_variables]
    mutable = ["batch_stats", "seeds"]

    def wrapped(state: Any, x: Any) -> Any:
        module = nnx.merge(graph, state)
        return module(x, training=True), nnx.state(module)

    calls: dict[str, tuple[Callable, Any]] = {
        WRAPPED: (wrapped, state),
        LINEN: (lambda v, x: linen.apply(v, x, training=True, mutable=mutable), linen.from_keras_values()),
        STATELESS: (lambda held, x: model.stateless_call(*held, x, training=True), held),
    }
    return {name: partial(traced, call, (values, x)) for name, (call, values) in calls.items()}


# --- rows


def application(smoke: bool) -> keras.Model:
    make = keras.applications.MobileNetV3Small if smoke else keras.applications.ResNet50
    return make(weights=None, input_shape=(32, 32, 3), classes=10)


def works(smoke: bool) -> Iterator[measure.Work]:
    steps = 2 if smoke else STEPS
    builds = {WRAPPED: lambda: kfb.ToNNX(mlp()), PURE: lambda: PureMLP(nnx.Rngs(0))}
    rows: dict[str, measure.Competitor] = {n: partial(counted, build) for n, build in builds.items()}
    rows[MODE] = partial(in_nnx_mode, "programs", smoke, "programs")
    targets = [measure.Target("programs", WRAPPED, PURE, 1.0), measure.Target("programs", MODE, PURE)]
    yield measure.Work("programs that nnx.jit compiles, MLP", rows, targets, finite)

    runs = {WRAPPED: by_nnx(kfb.ToNNX(mlp())), PURE: by_nnx(PureMLP(nnx.Rngs(0)))}
    rows = {name: partial(timed, run, steps, "step") for name, run in runs.items()}
    rows[MODE] = partial(in_nnx_mode, "step", smoke, "step")
    targets = [measure.Target("step", WRAPPED, PURE, 1.05), measure.Target("step", MODE, PURE)]
    yield measure.Work("nnx.jit and nnx.Optimizer, MLP", rows, targets, finite)

    runs = {SPLIT: by_split(kfb.ToNNX(mlp())), HAND: by_hand(mlp())}
    rows = {name: partial(timed, run, steps, "step") for name, run in runs.items()}
    yield measure.Work("jax.jit, MLP", rows, [measure.Target("step", SPLIT, HAND, 1.05)], finite, 3)

    model = application(smoke)
    module, calls = kfb.ToNNX(model), 2 if smoke else 20
    native = kfb.migrate.to_nnx(model, check_outputs=False)
    rows = {n: partial(timed, idle(m), calls, "call") for n, m in ((WRAPPED, module), (PURE, native))}
    rows[MODE] = partial(in_nnx_mode, "call", smoke, "call")
    targets = [measure.Target("call", WRAPPED, PURE, 1.0), measure.Target("call", MODE, PURE)]
    yield measure.Work(f"nnx.jit of nothing, {model.name}", rows, targets, finite)

    rows = tracers(model, np.zeros((2, 32, 32, 3), "float32"))
    targets = [measure.Target("trace", name, STATELESS, 1.05) for name in (WRAPPED, LINEN)]
    yield measure.Work(f"tracing, {model.name}", rows, targets, finite)


def nnx_mode(what: str, smoke: bool) -> None:
    """In a process of its own: prints the figure of the same work in Keras's NNX mode."""
    is_trained = nnx.All(keras.Variable, lambda path, v: v.trainable)
    run = idle(application(smoke)) if what == "call" else by_nnx(mlp(), is_trained)
    compiled = run(3)[1]  # the second call compiles once more
    clock = measure.Clock()
    timed(run, 2 if smoke else {"call": 20}.get(what, STEPS), what, clock)
    print(len(compiled) if what == "programs" else clock.seconds[what])


if __name__ == "__main__":
    if "--nnx-mode" in sys.argv:
        nnx_mode(sys.argv[2], "--smoke" in sys.argv)
    else:
        measure.main("interop", works)
