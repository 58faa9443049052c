"""The state of an optimizer from Keras to optax and back, matched by path."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import keras
from keras import optimizers as K

from keras_flax_bridge import keras_internals
from keras_flax_bridge.errors import NotBuiltError, OwnershipError, UnsupportedOptimizerError
from keras_flax_bridge.optimizers.state_fields import BATCHES, Groups, Scope, State, fields_of, scope_of
from keras_flax_bridge.optimizers.stock_states import READINGS
from keras_flax_bridge.optimizers.to_optax import Native, is_outer, rule_of, warn_of_rounding
from keras_flax_bridge.tree.diff import diff_trees
from keras_flax_bridge.tree.paths import Flat, Path, flatten_tree, nest_paths


def packed(tx: Native, opt_state: Any, params: Any) -> Any:
    """Converts the state of a Keras optimizer to that of `tx`.

    Raises:
        StructureMismatchError: if the leaves are not those of the optimizer; lists all of them.
    """
    like, specs, expected = described(tx, params)
    flat = flatten_tree(opt_state)
    difference = diff_trees(flat, expected)
    if difference:
        raise difference.error(
            "opt_state",
            f"It must be the state of the {type(tx.optimizer).__name__}, as TrainState.from_keras has it, "
            "for these parameters.",
        )
    made = partial(_packed, like, scope_of(tx.optimizer, specs))
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in flat.values()):
        return jax.eval_shape(made, flat)
    return _distinct(made(flat))


def unpacked(tx: Native, state: Any, params: Any, step: Any = None) -> dict[str, Any]:
    """Converts an optax state of the same rule to that of the Keras optimizer; leaves are not checked yet.

    Raises:
        NotBuiltError: if the state has no step count and `step` is None.
        UnsupportedOptimizerError: naming a state that the optimizer's rule doesn't have.
    """
    made = partial(_complete, tx.optimizer, specs_of(params), step=step)
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(state)):
        return nest_paths(jax.eval_shape(made, state))
    return _distinct(nest_paths(made(state)))


def described(tx: Native, params: Any) -> tuple[Any, Flat, Flat]:
    """The shapes of the state of `tx`, of the parameters by path, and of Keras's state by path."""
    warn_of_rounding(tx.optimizer, params)
    like, specs = jax.eval_shape(tx.fresh, params), specs_of(params)
    return like, specs, jax.eval_shape(partial(_complete, tx.optimizer, specs), like)


def specs_of(params: Any) -> Flat:
    """Shape and dtype of every parameter, by path."""
    return {path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for path, leaf in flatten_tree(params).items()}


def _distinct(tree: dict[str, Any]) -> dict[str, Any]:
    """A tree with a separate buffer for every leaf, so that all can be donated."""
    seen: set[int] = set()

    def once(leaf: Any) -> Any:
        if id(leaf) in seen:
            return jnp.copy(leaf)
        seen.add(id(leaf))
        return leaf

    distinct: dict[str, Any] = jax.tree.map(once, tree)
    return distinct


def _packed(like: Any, scope: Scope, leaves: Flat) -> Any:
    if not hasattr(like, "_fields"):  # of a chain
        return tuple(_packed(item, scope, leaves) for item in like)
    values = {}
    for name, field in (fields_of(like, scope) or {}).items():
        value = getattr(like, name)
        if isinstance(field, State):
            values[name] = _packed(value, field.scope(scope), leaves)
        elif isinstance(field, Groups):
            values[name] = {
                key: _packed(item, field.scope(scope, key), leaves) for key, item in value.items()
            }
        else:
            values[name] = field.pack(scope, value, leaves)
    return like._replace(**values)


def _complete(optimizer: Any, specs: Flat, state: Any, step: Any = None) -> Flat:
    """All leaves of the Keras state: the leaves in the optax state, and the leaves that optax lacks."""
    found = collected(state, scope_of(optimizer, specs))
    if not is_outer(optimizer) and ("iteration",) not in found:
        found["iteration",] = _counted(step)
    for scope in _scopes(optimizer, specs):
        found = _adapted(scope, {**_untouched(scope, found), **found})
    return found


def _counted(step: Any) -> Any:
    if step is None:
        raise NotBuiltError(
            "opt_state",
            got="the state of an optimizer without a step count, and no step=",
            expected="the number of batches it has seen",
            fix="Pass step=, such as state.step of a TrainState.",
        )
    return jnp.asarray(step, jnp.int32)


def _scopes(optimizer: Any, specs: Flat) -> list[Scope]:
    """The scopes of an optimizer and of those inside it, the innermost first."""
    outer = scope_of(optimizer, specs)
    if isinstance(optimizer, K.LossScaleOptimizer):
        inner = _scopes(optimizer.inner_optimizer, specs)
        return [scope._replace(prefix=("inner_optimizer", *scope.prefix)) for scope in inner] + [outer]
    if keras_internals.is_multi(optimizer):
        parts = enumerate(optimizer.optimizers)
        return [outer.within(part, "inner_optimizers", str(i)) for i, part in parts] + [outer]
    return [outer]


def _untouched(scope: Scope, found: Flat) -> Flat:
    """The other leaves of Keras's state: counts and rates that no update changes."""
    rate, made = (
        keras_internals.learning_rate(scope.optimizer),
        {scope.at("iteration"): jnp.zeros((), jnp.int32)},
    )
    if isinstance(rate, keras.Variable) and scope.at("learning_rate") not in found:
        number = 0.0 if is_outer(scope.optimizer) else keras_internals.number(rate)
        if number is None:
            raise OwnershipError(
                f"optimizer {scope.optimizer.name!r}",
                got="a learning rate whose value moved into a state",
                expected="its value",
                fix="Call assign_to(model) first.",
            )
        made[scope.at("learning_rate")] = jnp.asarray(number, keras.config.floatx())
    if keras_internals.is_multi(scope.optimizer):
        counts = [leaf for path, leaf in found.items() if path[-1] == "iteration" and len(path) > 1]
        made[scope.at("iteration")] = jnp.max(jnp.stack(counts))
    return made


def _adapted(scope: Scope, found: Flat) -> Flat:
    """Adds the slots that optax keeps in another form, or that follow from others."""
    if is_outer(scope.optimizer):
        return found
    size, kind = len(scope.prefix), type(scope.optimizer)
    own = {path[size:]: leaf for path, leaf in found.items() if path[:size] == scope.prefix}
    others = {path: leaf for path, leaf in found.items() if path[:size] != scope.prefix}
    if kind in READINGS:
        own = READINGS[kind].adapt(scope.optimizer, own, scope.params)
    derived = rule_of(scope.optimizer).derived
    if derived is not None:
        own |= derived(own, scope.params)
    kept = {path: leaf for path, leaf in own.items() if not _is_lost(scope, path, leaf)}
    return others | {scope.at(*path): leaf for path, leaf in kept.items()}


def _is_lost(scope: Scope, path: Path, leaf: Any) -> bool:
    """Adafactor's placeholders, which Keras doesn't keep inside a LossScaleOptimizer."""
    if not isinstance(scope.optimizer, K.Adafactor) or "inner_optimizer" not in scope.prefix:
        return False
    return (
        path[0] in ("r", "c")
        and jnp.issubdtype(leaf.dtype, jnp.integer)
        and not keras_internals.keeps(scope.optimizer, "_r")
    )


def collected(node: Any, scope: Scope) -> Flat:
    """The leaves of Keras's state in an optax state; of counts the outermost, which counts all batches.

    Raises:
        UnsupportedOptimizerError: naming a state that the optimizer's rule doesn't have.
    """
    if hasattr(node, "_fields"):
        return _of_fields(node, scope)
    if not isinstance(node, (tuple, list)):
        raise _unknown(node, scope)
    found: Flat = {}
    for item in node:
        found = {**collected(item, scope), **found}
    return found


def _unknown(node: Any, scope: Scope) -> UnsupportedOptimizerError:
    return UnsupportedOptimizerError(
        "opt_state",
        got=f"a {type(node).__name__}",
        expected=f"the states that the rule of {type(scope.optimizer).__name__} has in optax",
        fix="Convert it for the Keras optimizer of the same rule.",
    )


def _of_fields(node: Any, scope: Scope) -> Flat:
    fields = fields_of(node, scope)
    if fields is None:
        raise _unknown(node, scope)
    batches = BATCHES.get(type(node))
    found: Flat = {} if batches is None else {scope.at("iteration"): batches(node, scope.steps)}
    for name, field in fields.items():
        value = getattr(node, name)
        if isinstance(field, State):
            more = collected(value, field.scope(scope))
        elif isinstance(field, Groups):
            more = {}
            for key, item in value.items():
                more = {**collected(item, field.scope(scope, str(key))), **more}
        else:
            more = field.unpack(scope, value, node)
        found = {**more, **found}
    return found
