"""The contents of each field of an optax state: a Keras slot, a step count, a number, another state.

Every field converts in both directions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from keras_flax_bridge import keras_internals
from keras_flax_bridge.optimizers import wrappers as W
from keras_flax_bridge.optimizers.rules import RmsWithCountState, Slot
from keras_flax_bridge.optimizers.stock_states import READINGS
from keras_flax_bridge.optimizers.to_optax import is_outer, rule_of
from keras_flax_bridge.tree.paths import Flat, Path, fill_tree, flatten_tree


class Scope(NamedTuple):
    """The optimizer whose state is converted, and its path in Keras's state.

    Attributes:
        optimizer: a Keras optimizer, of which others may be parts.
        prefix: the path of its leaves in Keras's state.
        params: shape and dtype of every parameter, by path.
        slots: by class of optax state and field, the slots of its rule.
    """

    optimizer: Any
    prefix: Path
    params: Flat
    slots: Mapping[type, Mapping[str, Slot]]

    def within(self, optimizer: Any, *names: str) -> Scope:
        """The scope of an optimizer inside this one."""
        return scope_of(optimizer, self.params, (*self.prefix, *names))

    @property
    def steps(self) -> int:
        """Batches per update."""
        return self.optimizer.gradient_accumulation_steps or 1

    def at(self, *names: str) -> Path:
        """The path of a leaf of this optimizer."""
        return (*self.prefix, *names)


def scope_of(optimizer: Any, params: Flat, prefix: Path = ()) -> Scope:
    """The scope of an optimizer, with the slots of its rule and of optax's own optimizer."""
    if is_outer(optimizer):
        return Scope(optimizer, prefix, params, {})
    own = rule_of(optimizer).slots
    stock = READINGS[type(optimizer)].slots if type(optimizer) in READINGS else {}
    return Scope(optimizer, prefix, params, {**stock, **own})


class Field(NamedTuple):
    """One field of a state.

    Attributes:
        pack: computes its value from the scope, the field's shapes, and the leaves of Keras's state.
        unpack: returns its leaves of Keras's state by path, from the scope, its value and the full state.
    """

    pack: Callable[[Scope, Any, Flat], Any]
    unpack: Callable[[Scope, Any, Any], Flat]


class State(NamedTuple):
    """Another state, of the same optimizer or of one inside it."""

    scope: Callable[[Scope], Scope] = lambda scope: scope


class Groups(NamedTuple):
    """States by name, each with a separate scope."""

    scope: Callable[[Scope, str], Scope]


def leaf(name: str) -> Field:
    """A number that Keras stores under its own name."""
    return Field(
        lambda scope, like, leaves: leaves[scope.at(name)],
        lambda scope, value, node: {scope.at(name): value},
    )


def rates(name: str) -> Field:
    """The hyperparameters of `optax.inject_hyperparams`, of which Keras stores one."""
    return Field(
        lambda scope, like, leaves: {name: leaves[scope.at(name)]},
        lambda scope, value, node: {scope.at(name): value[name]} if name in value else {},
    )


def count(of: Callable[[Any, int], Any], back: Callable[[Any, int], Any] | None = None) -> Field:
    """A count that follows from the batches seen; `back` inverts it, or returns None if it can't."""

    def pack(scope: Scope, like: Any, leaves: Flat) -> Any:
        return jnp.asarray(of(leaves[scope.at("iteration")], scope.steps), like.dtype)

    def unpack(scope: Scope, value: Any, node: Any) -> Flat:
        batches = None if back is None else back(value, scope.steps)
        return {} if batches is None else {scope.at("iteration"): jnp.asarray(batches, jnp.int32)}

    return Field(pack, unpack)


def slot(slot: Slot) -> Field:
    """A slot of Keras: a tree shaped like the parameters or some of them, or a number."""

    def pack(scope: Scope, like: Any, leaves: Flat) -> Any:
        # all were checked to be there, but for placeholders that Keras may not keep
        made = {
            path: slot.to_optax(leaves.get(scope.at(slot.name, *path)), scope.params.get(path))
            for path in flatten_tree(like)
        }
        return fill_tree(like, made)

    def unpack(scope: Scope, value: Any, node: Any) -> Flat:
        return {
            scope.at(slot.name, *path): slot.to_keras(leaf, scope.params.get(path))
            for path, leaf in flatten_tree(value).items()
        }

    return Field(pack, unpack)


def mean(name: str) -> Field:
    """A slot that is a sum in Keras, and the mean of the batches so far in `optax.MultiSteps`."""
    held = slot(Slot(name))

    def unpack(scope: Scope, value: Any, node: Any) -> Flat:
        total = jax.tree.map(lambda leaf: leaf * node.mini_step.astype(leaf.dtype), value)
        return held.unpack(scope, total, node)

    return Field(held.pack, unpack)


def constant(of: Callable[[Any], Any]) -> Field:
    """A leaf that only depends on the settings of the optimizer."""
    return Field(
        lambda scope, like, leaves: jax.tree.map(
            lambda leaf: jnp.asarray(of(scope.optimizer), leaf.dtype), like
        ),
        lambda scope, value, node: {},
    )


def _group(scope: Scope, name: str) -> Scope:
    """The scope of one optimizer of a MultiOptimizer, or the same scope for the parts of one rule."""
    if keras_internals.is_multi(scope.optimizer):
        return scope.within(scope.optimizer.optimizers[int(name)], "inner_optimizers", name)
    return scope


_BATCHES = count(lambda batches, steps: batches, lambda batches, steps: batches)
_UPDATES = count(
    lambda batches, steps: batches // steps, lambda updates, steps: updates if steps == 1 else None
)

FIELDS: dict[type, dict[str, Any]] = {
    optax.InjectStatefulHyperparamsState: {
        "count": _BATCHES,
        "hyperparams": rates("learning_rate"),
        "hyperparams_states": constant(lambda _: 0),
        "inner_state": State(),
    },
    W.AverageState: {
        "count": _BATCHES,
        "average": slot(Slot("model_variables_moving_average")),
        "inner": State(),
    },
    W.AccumulateState: {
        "mini_step": count(lambda batches, steps: batches % steps),
        "gradient_step": count(lambda batches, steps: batches // steps),
        "total": slot(Slot("accumulated_gradients")),
        "inner": State(),
    },
    W.DecayState: {"count": _UPDATES, "inner": State()},
    W.LossScaleState: {
        "step_counter": leaf("step_counter"),
        "dynamic_scale": leaf("dynamic_scale"),
        "inner": State(lambda scope: scope.within(scope.optimizer.inner_optimizer, "inner_optimizer")),
    },
    # optax's own, which are only read
    optax.MultiStepsState: {
        "mini_step": count(lambda batches, steps: batches % steps),
        "gradient_step": count(lambda batches, steps: batches // steps),
        "acc_grads": mean("accumulated_gradients"),
        "inner_opt_state": State(),
        "skip_state": constant(lambda _: 0),
    },
    optax.InjectHyperparamsState: {
        "count": _BATCHES,
        "hyperparams": rates("learning_rate"),
        "inner_state": State(),
    },
    optax.contrib.MuonState: {"ns_coeffs": constant(lambda _: 0)},
    # of both
    optax.MaskedState: {"inner_state": State()},
    optax.transforms.PartitionState: {"inner_states": Groups(_group)},
    optax.ScaleByScheduleState: {"count": _UPDATES},
    optax.contrib.ScheduleFreeState: {
        "b1": constant(lambda optimizer: optimizer.beta_1),
        "weight_sum": count(lambda batches, steps: batches // steps),
        "step_count": count(
            lambda batches, steps: batches // steps + 1,
            lambda updates, steps: updates - 1 if steps == 1 else None,
        ),
        "max_lr": count(lambda batches, steps: batches // steps > 0),
        "base_optimizer_state": State(),
    },
    RmsWithCountState: {"count": _UPDATES},
}

# batches seen, where it takes several fields to know them
BATCHES: dict[type, Callable[[Any, int], Any]] = {
    W.AccumulateState: lambda node, steps: node.gradient_step * steps + node.mini_step,
    optax.MultiStepsState: lambda node, steps: node.gradient_step * steps + node.mini_step,
}


def fields_of(node: Any, scope: Scope) -> dict[str, Any] | None:
    """The contents of each field of a state; None if the optimizer's rule has no such state."""
    known: dict[str, Any] = {}
    for kind in reversed(type(node).__mro__):
        known |= FIELDS.get(kind, {})
        known |= {field: slot(place) for field, place in scope.slots.get(kind, {}).items()}
    if "count" in node._fields:  # all others count the updates of the rule
        known.setdefault("count", _UPDATES)
    return known if known.keys() == set(node._fields) else None
