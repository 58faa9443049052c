"""Weights both ways between a Keras model and the module that `to_nnx` made of it."""

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
    """The weight map of a module that `to_nnx` made.

    Args:
        module: the module, or one merged or cloned from it.

    Returns:
        The map.

    Raises:
        StructureMismatchError: if `to_nnx` did not make it.
    """
    found = getattr(type(module), "weight_map", None)
    if not isinstance(found, WeightMap):
        raise StructureMismatchError(
            "module",
            got=f"a {type(module).__name__} that has no weight map to a Keras model",
            expected="a module that kfb.migrate.to_nnx made",
            fix="For a module of your own make a map with kfb.migrate.match(model, module).",
        )
    return found


@words.door
def to_nnx_state(model_or_state: keras.Model | TrainState) -> nnx.State[Any, Any]:
    """The weights of a Keras model as the state of the module that `to_nnx` or `to_source` makes.

    Args:
        model_or_state: a built Keras model, or a `TrainState` that was taken from one.

    Returns:
        An `nnx.State` for ``nnx.update(module, state)``: weights and statistics, without random keys.

    Raises:
        NotBuiltError: if the model has no variables yet.
        StructureMismatchError: if it is neither a model nor a state.
        UnsupportedLayerError: naming all layers and operations without a rule at once.

    Example:
        >>> import keras
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> to_nnx_state(model)["dense"]["kernel"].shape
        (4, 2)
    """
    conversion = Conversion(_model_of(model_or_state), "Model", "error")
    values = {path: jnp.asarray(a) for path, a in conversion.drawing.constants.items()}
    found = conversion.weight_map().to_flax(model_or_state)
    kinds = {path: w.kind for w in conversion.source.weights for path in w.paths}
    flat = flatten_tree(found)
    flat |= {p: values[w.key] for w in conversion.source.weights if w.kind == "constant" for p in w.paths}
    copies = {path: jnp.array(value) for path, value in flat.items()}
    leaves = [(_keys(path), _TYPES.get(kinds[path], Frozen)(value)) for path, value in copies.items()]
    return nnx.from_flat_state(leaves)


def _keys(path: Path) -> tuple[Any, ...]:
    """NNX counts the items of lists by number."""
    return tuple(int(name) if name.isascii() and name.isdigit() else name for name in path)


def _model_of(model_or_state: Any) -> Any:
    apply = getattr(model_or_state, "apply_fn", None)
    return apply.model if isinstance(apply, KerasApply) else model_or_state


@words.door
def to_keras(module: nnx.Module, like: Target) -> Target:
    """Writes the weights of a module that `to_nnx` made back into Keras, bit for bit.

    Args:
        module: the module, trained or not.
        like: the Keras model, filled in place; or a `TrainState`, of which a new one is made.
            Optimizer slots, metrics and seeds stay as they are.

    Returns:
        `like`, or the new state.

    Raises:
        StructureMismatchError: listing every variable that is missing or of another shape; nothing
            was assigned. Or if `to_nnx` did not make the module.

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
    """The optimizer slots of a `TrainState` as states shaped like the parameters of a module.

    Args:
        module: a module that `to_nnx` made of the state's model.
        state: a `TrainState` with a Keras optimizer.

    Returns:
        Trees by slot, such as ``momentums`` and ``velocities``, each of the structure of
        ``nnx.state(module, nnx.Param)``, as optax keeps ``mu`` and ``nu``.

    Raises:
        StructureMismatchError: if `to_nnx` did not make the module.

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
    """Writes optimizer slots that were trained with a module back into a `TrainState`.

    Args:
        module: a module that `to_nnx` made of the state's model.
        slots: trees by slot name, as `slots_to_nnx` returns them.
        state: the state to take the other leaves from.

    Returns:
        A new state.

    Raises:
        StructureMismatchError: if a slot has other leaves than the parameters.
    """
    wmap = weight_map(module)
    new = {name: dict(wmap.to_keras(slot)) for name, slot in slots.items()}
    for name, tree in new.items():
        require_paths(tree, state.opt_state[name], f"slot {name!r}")
    same = jax.tree.map(lambda a: a, state.opt_state)
    return state.replace(opt_state={**same, **new})
