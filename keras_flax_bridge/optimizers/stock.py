"""States of optax's own optimizers, such as `optax.adamw`, read into Keras's slots."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import keras
import optax
from keras import optimizers as K

from keras_flax_bridge import _paths
from keras_flax_bridge import _variables as V
from keras_flax_bridge._paths import Flat, Path
from keras_flax_bridge.errors import NotBuiltError, UnsupportedOptimizerError
from keras_flax_bridge.optimizers.fields import scope_of
from keras_flax_bridge.optimizers.native import rule_of
from keras_flax_bridge.optimizers.rules import Slot
from keras_flax_bridge.optimizers.scalings import second_moment
from keras_flax_bridge.optimizers.states import collected, specs_of


class Reading(NamedTuple):
    """What is different in the state of the stock optimizer.

    Attributes:
        slots: by class of state and field, under which name its leaves are collected.
        adapt: makes Keras's leaves of the collected ones, the optimizer and the parameters.
    """

    slots: Mapping[type, Mapping[str, Slot]] = {}
    adapt: Callable[[Any, Flat, Flat], Flat] = lambda optimizer, found, params: found


def read(optimizer: Any, opt_state: Any, params: Any, step: Any) -> dict[str, Any]:
    """Keras's state, of that of a stock optimizer with the same rule; as far as optax holds it.

    Args:
        optimizer: the Keras optimizer that it is for.
        opt_state: the state, also of one in `optax.chain`, `optax.MultiSteps`, `optax.inject_hyperparams`,
            `optax.masked` or `optax.partition`.
        params: the parameters.
        step: batches seen, where the state holds no count; or None.

    Raises:
        NotBuiltError: if the state holds no count and `step` is None.
        UnsupportedOptimizerError: naming a state that isn't that of the rule.
    """
    reading, specs = READINGS.get(type(optimizer), Reading()), specs_of(params)
    scope = scope_of(optimizer, specs)
    slots = {
        kind: {**scope.slots.get(kind, {}), **reading.slots.get(kind, {})}
        for kind in {*scope.slots, *reading.slots}
    }
    found = collected(opt_state, scope._replace(slots=slots))
    found = {**_counted(found, step), **_rate(optimizer), **found}
    return _paths.nest(reading.adapt(optimizer, found, specs))


def _counted(found: Flat, step: Any) -> Flat:
    if ("iteration",) in found:
        return {}
    if step is None:
        raise NotBuiltError(
            "opt_state",
            got="the state of an optimizer that counts no steps, and no step",
            expected="the number of batches it has seen",
            fix="Pass step=: state.step of a TrainState.",
        )
    return {("iteration",): jnp.asarray(step, jnp.int32)}


def _rate(optimizer: Any) -> Flat:
    rate = V.learning_rate(optimizer)
    if not isinstance(rate, keras.Variable):
        return {}
    return {("learning_rate",): jnp.asarray(V.number(rate), keras.config.floatx())}


def _under(found: Flat, name: str) -> dict[Path, Any]:
    return {path[1:]: leaf for path, leaf in found.items() if path[0] == name}


def _sgd(optimizer: Any, found: Flat, params: Flat) -> Flat:
    """Keras's momentum is optax's times the learning rate, with the sign of an update."""
    rate = found.get(("learning_rate",))
    if rate is None:
        given = V.learning_rate(optimizer)
        is_schedule = isinstance(given, K.schedules.LearningRateSchedule)
        rate = given(found["iteration",]) if is_schedule else given()
    momentums = {
        ("momentums", *p): -jnp.asarray(rate, leaf.dtype) * leaf
        for p, leaf in _under(found, "momentums").items()
    }
    return {**found, **momentums}


def _nadam(optimizer: Any, found: Flat, params: Flat) -> Flat:
    """The product of Keras's momentum factors, which optax doesn't keep because they are all the same."""
    dtype = next(iter(params.values())).dtype

    def factor(t: Any, product: Any) -> Any:
        decay = jnp.asarray(0.96, dtype) ** (t + 1).astype(dtype)
        return product * jnp.asarray(optimizer.beta_1, dtype) * (1 - 0.5 * decay)

    product = jax.lax.fori_loop(0, found["iteration",], factor, jnp.ones((), dtype))
    return {**found, ("u_product",): product}


def _muon(optimizer: Any, found: Flat, params: Flat) -> Flat:
    """Keras's momentum is a sum, optax's an average."""
    sums = {
        ("momentums", *p): leaf / (1 - optimizer.momentum) for p, leaf in _under(found, "averages").items()
    }
    return {**{path: leaf for path, leaf in found.items() if path[0] != "averages"}, **sums}


def _adafactor(optimizer: Any, found: Flat, params: Flat) -> Flat:
    """Keras factors the last two dimensions; optax the two largest, the larger of them last, or none."""
    made = dict(found)
    for path, param in params.items():
        row, column, whole = (found.get((name, *path)) for name in "rcv")
        if len(param.shape) < 2 or whole is None:
            zero = jnp.zeros((), jnp.int32)
            made |= {("r", *path): zero, ("c", *path): zero}
            continue
        if whole.shape == param.shape:
            row, column = jnp.mean(whole, -1), jnp.mean(whole, -2)
        else:
            row, column = _last_two(path, param.shape, row, column)
        made |= {
            ("r", *path): row,
            ("c", *path): column,
            ("v", *path): jnp.nan_to_num(second_moment(row, column)),
        }
    return made


def _last_two(path: Path, shape: tuple[int, ...], row: Any, column: Any) -> tuple[Any, Any]:
    expected = shape[:-1], shape[:-2] + shape[-1:]
    for pair in ((row, column), (column, row)):
        if (pair[0].shape, pair[1].shape) == expected:
            return pair
    raise UnsupportedOptimizerError(
        f"params/{_paths.join(path)}",
        got=f"moments that optax factored in other dimensions than the last two of {shape}",
        expected="moments of the last two dimensions, as Keras has them",
        fix="Start the optimizer anew, or train with kfb.to_optax(keras.optimizers.Adafactor(...)) in optax.",
    )


READINGS: dict[type, Reading] = {
    K.SGD: Reading(adapt=_sgd),
    K.Nadam: Reading(adapt=_nadam),
    K.Muon: Reading({optax.contrib.MuonState: {"mu": Slot("averages")}}, _muon),
    K.Adafactor: Reading(
        {optax.FactoredState: {"v_row": Slot("r"), "v_col": Slot("c"), "v": Slot("v")}}, _adafactor
    ),
}


def is_exact(optimizer: Any) -> bool:
    """Whether the Keras optimizer goes on as the stock one would have, to float rounding."""
    stock = rule_of(optimizer).stock
    return stock is not None and not stock.differs(optimizer)
