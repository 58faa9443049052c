"""Reads the states of optax's own optimizers, such as `optax.sgd`, as Keras's slots."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from keras import optimizers as K

from keras_flax_bridge import keras_internals
from keras_flax_bridge.errors import UnsupportedOptimizerError
from keras_flax_bridge.optimizers.muon import MOMENTUM
from keras_flax_bridge.optimizers.rules import Slot
from keras_flax_bridge.optimizers.update_rules import second_moment
from keras_flax_bridge.tree.paths import Flat, Path, join_path


class Reading(NamedTuple):
    """The differences of a stock optimizer's state.

    Attributes:
        slots: by class of state and field, under which name its leaves are collected; a name that is
            no slot of Keras goes through `adapt`.
        adapt: makes Keras's leaves of the collected ones, of the optimizer, those, and the parameters.
    """

    slots: Mapping[type, Mapping[str, Slot]]
    adapt: Callable[[Any, Flat, Flat], Flat]


def _take(found: Flat, name: str) -> tuple[Flat, Flat]:
    """Leaves of one name by the path of their parameter, and all others."""
    taken = {path[1:]: leaf for path, leaf in found.items() if path[0] == name}
    return taken, {path: leaf for path, leaf in found.items() if path[0] != name}


def _sgd(optimizer: Any, found: Flat, params: Flat) -> Flat:
    """Keras's momentum is optax's times the learning rate, with the sign of an update."""
    traces, rest = _take(found, "traces")
    if not traces:
        return found
    rate = found.get(("learning_rate",))
    if rate is None:
        given = keras_internals.learning_rate(optimizer)
        is_schedule = isinstance(given, K.schedules.LearningRateSchedule)
        rate = given(found["iteration",]) if is_schedule else given()
    return rest | {
        ("momentums", *path): -jnp.asarray(rate, leaf.dtype) * leaf for path, leaf in traces.items()
    }


def _nadam(optimizer: Any, found: Flat, params: Flat) -> Flat:
    """The product of Keras's momentum factors, which are all the same in optax."""
    moments, rest = _take(found, "means")
    if not moments:
        return found
    dtype = next(iter(moments.values())).dtype

    def multiplied(t: Any, product: Any) -> Any:
        decay = jnp.asarray(0.96, dtype) ** (t + 1).astype(dtype)
        return product * jnp.asarray(optimizer.beta_1, dtype) * (1 - 0.5 * decay)

    product = jax.lax.fori_loop(0, found["iteration",], multiplied, jnp.ones((), dtype))
    return rest | {("u_product",): product, **{("momentums", *p): leaf for p, leaf in moments.items()}}


def _muon(optimizer: Any, found: Flat, params: Flat) -> Flat:
    """Keras's momentum is a sum, optax's an average."""
    means, rest = _take(found, "means")
    return rest | {(MOMENTUM, *path): leaf / (1 - optimizer.momentum) for path, leaf in means.items()}


def _adafactor(optimizer: Any, found: Flat, params: Flat) -> Flat:
    """Keras factors the last two dimensions; optax the two largest of 128 or more, or none."""
    rows, rest = _take(found, "rows")
    columns, rest = _take(rest, "columns")
    whole, rest = _take(rest, "whole")
    for path, second in whole.items():
        shape = params[path].shape
        if len(shape) < 2:
            row = column = jnp.zeros((), int)
        elif second.shape == shape:
            row, column = jnp.mean(second, -1), jnp.mean(second, -2)
        else:
            row, column = _last_two(path, shape, rows[path], columns[path])
            second = jnp.nan_to_num(second_moment(row, column))
        rest |= {("r", *path): row, ("c", *path): column, ("v", *path): second}
    return rest


def _last_two(path: Path, shape: tuple[int, ...], row: Any, column: Any) -> tuple[Any, Any]:
    # the same shapes may be other dimensions only where both are as long: then the larger is the last
    expected = shape[:-1], shape[:-2] + shape[-1:]
    for pair in ((row, column), (column, row)):
        if (pair[0].shape, pair[1].shape) == expected:
            return pair
    raise UnsupportedOptimizerError(
        f"params/{join_path(path)}",
        got=f"moments that optax factored in other dimensions than the last two of {shape}",
        expected="moments of the last two dimensions, as Keras has them",
        fix="Start a new optimizer, or train with kfb.to_optax(keras.optimizers.Adafactor(...)) in optax.",
    )


READINGS: dict[type, Reading] = {
    K.SGD: Reading({optax.TraceState: {"trace": Slot("traces")}}, _sgd),
    K.Nadam: Reading({optax.ScaleByAdamState: {"mu": Slot("means"), "nu": Slot("velocities")}}, _nadam),
    K.Muon: Reading({optax.contrib.MuonState: {"mu": Slot("means")}}, _muon),
    K.Adafactor: Reading(
        {optax.FactoredState: {"v_row": Slot("rows"), "v_col": Slot("columns"), "v": Slot("whole")}},
        _adafactor,
    ),
}
