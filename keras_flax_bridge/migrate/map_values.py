"""Reads and writes the values of the leaves on both sides of a weight map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import keras
from flax import nnx

from keras_flax_bridge import keras_internals
from keras_flax_bridge.errors import StructureMismatchError
from keras_flax_bridge.keras_internals import SEED
from keras_flax_bridge.tree.diff import diff_trees
from keras_flax_bridge.tree.paths import Flat, Path, fill_tree, flatten_tree, join_path


def whole_values(paths: Sequence[Path], flat: Flat) -> list[Any] | None:
    """The leaves on one side of a pair; None if all of them are missing."""
    found = [path for path in paths if path in flat]
    if found and len(found) < len(paths):
        missing = [join_path(path) for path in paths if path not in flat]
        raise StructureMismatchError(
            "the weights",
            missing=missing,
            report=[f"  missing     {path}" for path in missing],
            fix="Their values are converted together with others: pass all of them.",
        )
    return [flat[path] for path in paths] if found else None


def keras_values(source: Any) -> Flat:
    """The values of a model, a state or a tree, by structural key.

    Raises:
        StructureMismatchError: if `source` is not one of these.
    """
    if isinstance(source, keras.layers.Layer):
        return {
            e.path: e.variable.value
            for collection in keras_internals.collect_tracked(source)
            for e in collection
        }
    if hasattr(source, "params") and hasattr(source, "non_trainable"):
        return flatten_tree(source.params) | flatten_tree(source.non_trainable)
    if isinstance(source, Mapping):
        return flatten_tree(source)
    raise StructureMismatchError(
        "source",
        got=f"a {type(source).__name__}",
        expected="a keras.Model, a TrainState, or a tree shaped like params",
        fix="Pass source=model.",
    )


def flax_values(target: Any) -> Flat:
    """The values of a module, a state, Linen variables or a tree, by path."""
    if isinstance(target, nnx.Module):
        target = nnx.state(target)
    if isinstance(target, nnx.State):
        return {tuple(map(str, p)): value_of(leaf) for p, leaf in nnx.to_flat_state(target)}
    return {path: value_of(leaf) for path, leaf in flatten_tree(target).items()}


def value_of(leaf: Any) -> Any:
    """The array of an nnx variable, or the leaf itself."""
    return leaf.get_value() if isinstance(leaf, nnx.Variable) else leaf


def placed_as(value: Any, before: Any) -> Any:
    """Moves a value to the devices of the previous value."""
    sharding = getattr(before, "sharding", None)
    return value if sharding is None else jax.device_put(value, sharding)


def with_values(like: Any, values: Flat, lacking: set[Path]) -> Any:
    """Writes values to a Keras model or a state, after checking all of them."""
    if isinstance(like, keras.layers.Layer):
        entries = {e.path: e for c in keras_internals.collect_tracked(like) for e in c if e.kind != SEED}
        expected = {
            p: keras_internals.variable_spec(e.variable) for p, e in entries.items() if p not in lacking
        }
        require_leaves(values, expected, f"model {like.name!r}")
        for path in expected:
            entries[path].variable.assign(values[path])
        keras_internals.refresh(like)
        return like
    trees = {name: flatten_tree(getattr(like, name)) for name in ("params", "non_trainable")}
    both = trees["params"] | trees["non_trainable"]
    expected = {path: leaf for path, leaf in both.items() if path in values or path in trees["params"]}
    require_leaves(values, {p: leaf for p, leaf in expected.items() if p not in lacking}, "the state")
    new = {
        name: fill_tree(getattr(like, name), {p: v for p, v in values.items() if p in flat})
        for name, flat in trees.items()
    }
    return like.replace(**new)


def require_leaves(values: Flat, expected: Flat, where: str) -> None:
    """Checks that the values have the expected paths, shapes and dtypes."""
    difference = diff_trees(values, expected)
    if difference:
        raise difference.error(where, "Nothing was assigned. The map was made for another model.")
