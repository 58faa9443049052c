"""Runs Keras's own step on the values of a state: what it takes, what it reads, what it leaves behind."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import keras

from keras_flax_bridge import keras_internals
from keras_flax_bridge.errors import StructureMismatchError
from keras_flax_bridge.keras_internals import Collection, Entry
from keras_flax_bridge.training.kinds import Kind
from keras_flax_bridge.training.remat import Remat, chosen
from keras_flax_bridge.tree.logs import flat_logs
from keras_flax_bridge.tree.paths import join_path

Lists = dict[str, list[Any]]  # values by tree
_UNLISTED = ("non_trainable", "compiled")  # the trees whose values Keras's steps take as one list


def run(
    model: Any,
    kind: Kind,
    found: Mapping[str, Any],
    lists: Mapping[str, Sequence[Any]],
    batch: Any,
    remat: Remat = None,
) -> tuple[Lists, Any]:
    """The values after a step, by tree, and its logs or outputs.

    Args:
        model: the model.
        kind: the step.
        found: the variables of each tree.
        lists: their values.
        batch: the batch.
        remat: the layers whose calls are checkpointed.

    Raises:
        StructureMismatchError: if the model's code reads or assigns a variable that no tree holds, or assigns
            one that the step does not hand on.
        Wanted: if the step has to take or to give another tree.
    """
    before = {name: [jnp.asarray(value) for value in values] for name, values in lists.items()}
    scope = keras_internals.Traced(_held(found, before), _wanted(model, found), kind.method)
    finalized = keras_internals.finalized(model, found["non_trainable"], before["non_trainable"])
    remade: AbstractContextManager[None] = nullcontext()
    if remat:
        remade = keras_internals.rematerialized(chosen(model, remat))
    with keras_internals.tracking(model, _entries(found, _UNLISTED)), remade, scope.watching(), finalized:
        order = _order(model, found)
        outputs, after = _of_keras(model, kind, order, before, batch)
    left = _settled(scope, found, before, after)
    _require_handed_on(kind, found, before, left)
    return left, outputs


def _held(found: Mapping[str, Any], values: Lists) -> Iterator[tuple[Entry, Any]]:
    """Each variable of Keras and its value; the slots of optax are none."""
    for name, collection in found.items():
        if isinstance(collection, Collection):
            yield from zip(collection, values[name], strict=True)


def _wanted(model: Any, found: Mapping[str, Any]) -> Iterator[tuple[Any, str]]:
    """The variables that the step could take as well: those of the optimizer."""
    optimizer = getattr(model, "optimizer", None)
    if "opt_state" not in found and isinstance(optimizer, keras.optimizers.Optimizer):
        yield from ((variable, "opt_state") for variable in optimizer.variables)


def _entries(found: Mapping[str, Any], names: Sequence[str]) -> list[Entry]:
    return [entry for name in names for entry in found.get(name, ())]


def _order(model: Any, found: Mapping[str, Any]) -> list[tuple[str, int]]:
    """The tree, and the place in its list, of each variable that Keras lists as not trainable."""
    places = {
        id(entry.variable): (name, i) for name in _UNLISTED for i, entry in enumerate(found.get(name, ()))
    }
    return [places[id(variable)] for variable in model.non_trainable_variables]


def _of_keras(
    model: Any, kind: Kind, order: list[tuple[str, int]], before: Lists, batch: Any
) -> tuple[Any, Lists]:
    """Keras's own step: its logs or outputs, and the values that it returns."""
    names = [name for name in kind.of_keras if name != "compiled"]
    lists = {**before, "non_trainable": [before[name][i] for name, i in order]}
    given = tuple(lists[name] for name in names)
    step = getattr(model, kind.method)
    if kind.is_compiled:
        logs, after = step(given, batch)
        outputs = jax.tree.map(jnp.asarray, flat_logs(logs))
    else:
        outputs, changed = step(given, (batch,))
        after = (given[0], changed)
    returned = {**before, **{n: list(values) for n, values in zip(names, after, strict=True)}}
    listed = dict(zip(order, returned["non_trainable"], strict=True))
    joined = {n: [listed[n, i] for i in range(len(before[n]))] for n in _UNLISTED if n in before}
    return outputs, {**returned, **joined}


def _settled(scope: keras_internals.Traced, found: Mapping[str, Any], before: Lists, after: Lists) -> Lists:
    """The values that Keras's step returned, or that its code assigned besides."""
    left = {name: list(values) for name, values in after.items()}
    for name, i, entry in _numbered(found):
        if id(entry.variable) in scope.written:
            if left[name][i] is not before[name][i]:
                raise _assigned_twice((name, *entry.path))
            left[name][i] = scope.state_mapping[id(entry.variable)]
    return left


def _numbered(found: Mapping[str, Any]) -> Iterator[tuple[str, int, Entry]]:
    for name, collection in found.items():
        if isinstance(collection, Collection):
            yield from ((name, i, entry) for i, entry in enumerate(collection))


def _assigned_twice(path: tuple[str, ...]) -> Exception:
    return StructureMismatchError(
        join_path(path),
        got="a variable that the step assigns, and whose other value it returns",
        expected="one new value",
        fix="Assign the variables of the model in its stateless functions only, or return what was assigned.",
    )


def _require_handed_on(kind: Kind, found: Mapping[str, Any], before: Lists, after: Lists) -> None:
    """Checks that the step gives back all that has changed.

    Raises:
        StructureMismatchError: naming the variable, for a step that gives no state.
        Wanted: naming the tree that the step has to give as well.
    """
    for name, i, entry in _numbered(found):
        if name in kind.gives or after[name][i] is before[name][i]:
            continue
        if kind.gives:
            raise keras_internals.Wanted(name, changed=True)
        raise StructureMismatchError(
            join_path((name, *entry.path)),
            got="a variable that the model assigns in inference, such as a seed that is drawn from",
            expected="a step that hands on the state",
            fix="Pass return_state=True to make_predict_step: its step returns (outputs, state).",
        )
