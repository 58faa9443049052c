"""Converts weights between a Keras model and its conversion by `to_nnx`, in both directions."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import keras
from flax import nnx

from keras_flax_bridge.errors import StructureMismatchError
from keras_flax_bridge.keras_internals import BATCH_STAT, PARAM
from keras_flax_bridge.migrate.convert import Conversion
from keras_flax_bridge.migrate.rules.modules import Frozen
from keras_flax_bridge.migrate.weight_map import WeightMap
from keras_flax_bridge.state.apply_fn import KerasApply
from keras_flax_bridge.state.train_state import TrainState
from keras_flax_bridge.tree import words
from keras_flax_bridge.tree.diff import require_paths
from keras_flax_bridge.tree.paths import Path, flatten_tree
from keras_flax_bridge.tree.types import Target

_TYPES = {PARAM: nnx.Param, BATCH_STAT: nnx.BatchStat}


@words.door
def weight_map(module: nnx.Module) -> WeightMap:
    """Returns the weight map of a module from `to_nnx`.

    Args:
        module: the module, or a module that was merged or cloned from it.

    Returns:
        The map.

    Raises:
        StructureMismatchError: if the module is not from `to_nnx`.
    """
    found = getattr(type(module), "weight_map", None)
    if not isinstance(found, WeightMap):
        raise StructureMismatchError(
            "module",
            got=f"a {type(module).__name__} that has no weight map to a Keras model",
            expected="a module that kfb.migrate.to_nnx made",
            fix="For another module, make a map with kfb.migrate.match(model, module).",
        )
    return found


@words.door
def to_nnx_state(model_or_state: keras.Model | TrainState) -> nnx.State[Any, Any]:
    """Converts the weights of a Keras model to the state of the module from `to_nnx` or `to_source`.

    Args:
        model_or_state: a built Keras model, or a `TrainState` of one.

    Returns:
        An `nnx.State` for ``nnx.update(module, state)``: weights and batch statistics, without random keys.

    Raises:
        NotBuiltError: if the model has no variables yet.
        StructureMismatchError: if `model_or_state` is neither a model nor a state.
        UnsupportedLayerError: naming all layers and operations without a rule at once.

    Example:
        >>> import keras
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> to_nnx_state(model)["dense"]["kernel"].shape
        (4, 2)
    """
    conversion = Conversion(_model_of(model_or_state), "Model", "error")
    values = {path: jnp.asarray(a) for path, a in conversion.context.constants.items()}
    found = conversion.weight_map().to_flax(model_or_state)
    kinds = {path: w.kind for w in conversion.source.weights for path in w.paths}
    flat = flatten_tree(found)
    flat |= {p: values[w.key] for w in conversion.source.weights if w.kind == "constant" for p in w.paths}
    copies = {path: jnp.array(value) for path, value in flat.items()}
    leaves = [(_keys(path), _TYPES.get(kinds[path], Frozen)(value)) for path, value in copies.items()]
    return nnx.from_flat_state(leaves)


def _keys(path: Path) -> tuple[Any, ...]:
    """An NNX path: the indices of lists are integers."""
    return tuple(int(name) if name.isascii() and name.isdigit() else name for name in path)


def _model_of(model_or_state: Any) -> Any:
    apply = getattr(model_or_state, "apply_fn", None)
    return apply.model if isinstance(apply, KerasApply) else model_or_state


@words.door
def to_keras(module: nnx.Module, like: Target) -> Target:
    """Writes the weights of a module from `to_nnx` back to Keras, bit for bit.

    Args:
        module: the module, trained or not.
        like: the Keras model, which is updated in place, or a `TrainState`, of which a new one is
            returned. Optimizer slots, metrics and seeds are unchanged.

    Returns:
        `like`, or the new state.

    Raises:
        StructureMismatchError: listing the variables that are missing or have a different shape;
            nothing is assigned. Also if the module is not from `to_nnx`.

    Example:
        >>> import keras
        >>> from keras_flax_bridge.migrate import to_nnx
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> module = to_nnx(model)
        >>> module.dense.bias[...] = jnp.ones(2)
        >>> model = to_keras(module, model)
        >>> model.layers[0].bias.numpy().tolist()
        [1.0, 1.0]
    """
    filled: Target = weight_map(module).to_keras(module, like=like)
    return filled


@words.door
def slots_to_nnx(module: nnx.Module, state: TrainState) -> dict[str, nnx.State[Any, Any]]:
    """Converts the optimizer slots of a `TrainState` to states with the structure of a module's parameters.

    Args:
        module: the module from `to_nnx` of the model of the state.
        state: a `TrainState` with a Keras optimizer.

    Returns:
        States by slot name, such as ``momentums`` and ``velocities``, each with the structure of
        ``nnx.state(module, nnx.Param)``, like ``mu`` and ``nu`` in optax.

    Raises:
        StructureMismatchError: if the module is not from `to_nnx`.

    Example:
        >>> import keras
        >>> from keras_flax_bridge import TrainState
        >>> from keras_flax_bridge.migrate import to_nnx
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> model.compile("adam", "mse")
        >>> slots = slots_to_nnx(to_nnx(model), TrainState.from_keras(model))
        >>> sorted(slots), slots["momentums"]["dense"]["kernel"].shape
        (['momentums', 'velocities'], (4, 2))
    """
    wmap = weight_map(module)
    return {
        name: nnx.from_flat_state(
            [(_keys(p), nnx.Param(v)) for p, v in flatten_tree(wmap.to_flax(slot)).items()]
        )
        for name, slot in state.opt_state.items()
        if isinstance(slot, dict) and flatten_tree(slot).keys() >= flatten_tree(state.params).keys()
    }


@words.door
def slots_to_keras(module: nnx.Module, slots: dict[str, Any], state: TrainState) -> TrainState:
    """Writes optimizer slots of a module back to a `TrainState`.

    Args:
        module: the module from `to_nnx` of the model of the state.
        slots: trees by slot name, as `slots_to_nnx` returns them.
        state: the state that provides the other leaves.

    Returns:
        A new state.

    Raises:
        StructureMismatchError: if the leaves of a slot differ from the parameters.
    """
    wmap = weight_map(module)
    new = {name: dict(wmap.to_keras(slot)) for name, slot in slots.items()}
    for name, tree in new.items():
        require_paths(tree, state.opt_state[name], f"slot {name!r}")
    same = jax.tree.map(lambda a: a, state.opt_state)
    return state.replace(opt_state={**same, **new})
