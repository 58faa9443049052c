"""The arrays of a Flax module as leaves: their paths, kinds and initial values."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from keras_flax_bridge import keras_internals
from keras_flax_bridge.errors import StructureMismatchError
from keras_flax_bridge.interop.overwrites import Overwritten
from keras_flax_bridge.keras_internals import LINEN_COLLECTIONS, OVERWRITTEN
from keras_flax_bridge.tree.leaves import is_key, key_kind, owned
from keras_flax_bridge.tree.paths import Path, join_path, named_leaves


class Leaf(NamedTuple):
    """One array of a module.

    Attributes:
        path: where it is.
        spec: shape and dtype of the array that holds it; of a typed key, its data.
        trainable: whether it is a weight that trains.
        impl: of a typed key, the kind of it; None for any other array.
        is_key: whether it is a PRNG key.
        overwritten: whether its gradient overwrites it, as a scale of float8 training.
    """

    path: Path
    spec: jax.ShapeDtypeStruct
    trainable: bool
    impl: str | None
    is_key: bool
    overwritten: bool = False

    def stored(self, value: Any) -> Any:
        """A value as the variable holds it."""
        return jax.random.key_data(value) if self.impl is not None else jnp.asarray(value)

    def read(self, value: Any) -> Any:
        """The inverse of `stored`."""
        return value if self.impl is None else jax.random.wrap_key_data(value, impl=self.impl)


class Tree(NamedTuple):
    """The state of a module: its leaves in jax's order, and their treedef."""

    leaves: tuple[Leaf, ...]
    treedef: Any

    def overwriting(self, chosen: Sequence[bool]) -> Tree:
        """The tree in which gradients overwrite the chosen leaves."""
        leaves = zip(self.leaves, chosen, strict=True)
        return self._replace(leaves=tuple(leaf._replace(overwritten=one) for leaf, one in leaves))

    def unflatten(self, values: Sequence[Any]) -> Any:
        """The tree of these leaves."""
        return self.treedef.unflatten([leaf.read(v) for leaf, v in zip(self.leaves, values, strict=True)])

    def flatten(self, state: Any, where: str) -> list[Any]:
        """The values of a state of this structure.

        Raises:
            StructureMismatchError: if it has another.
        """
        values, treedef = jax.tree.flatten(state)
        if treedef != self.treedef:
            found = dict.fromkeys(unique(_places(state)))
            known = {leaf.path for leaf in self.leaves}
            raise StructureMismatchError(
                where,
                missing=[join_path(path) for path in known - found.keys()],
                unexpected=[join_path(path) for path in found.keys() - known],
                fix="A call must not add or remove variables: create them in the constructor.",
            )
        return [leaf.stored(v) for leaf, v in zip(self.leaves, values, strict=True)]


def tree_of(state: Any, is_trainable: Sequence[bool], is_rng: Sequence[bool], places: Sequence[Path]) -> Tree:
    """The `Tree` of a state, whose leaves may be abstract."""
    values, treedef = jax.tree.flatten(state)
    rows = zip(unique(places), values, is_trainable, is_rng, strict=True)
    return Tree(tuple(_leaf(*row) for row in rows), treedef)


def _leaf(path: Path, value: Any, trainable: bool, is_rng: bool) -> Leaf:
    typed = is_key(value)
    spec = jax.eval_shape(jax.random.key_data, value) if typed else keras_internals.specs(value)
    impl = key_kind(value) if typed else None
    return Leaf(path, spec, trainable and not typed, impl, is_rng)


def nnx_tree(state: nnx.State[Any, Any]) -> Tree:
    """The state of an NNX module: `nnx.Param` trains, and what gradients overwrite; all else does not."""
    kinds = [
        kind
        for _, variable in nnx.to_flat_state(state)
        for kind in [type(variable)] * len(jax.tree.leaves(variable))
    ]
    trainable = [issubclass(kind, (nnx.Param, Overwritten)) for kind in kinds]
    tree = tree_of(state, trainable, [issubclass(kind, nnx.RngKey) for kind in kinds], _places(state))
    return tree.overwriting([issubclass(kind, Overwritten) for kind in kinds])


def linen_tree(variables: Any) -> Tree:
    """The variables of a Linen module: ``params`` train, and what gradients overwrite; all else does not."""
    places = _places(variables)
    trainable = [place[0] in ("params", OVERWRITES) for place in places]
    tree = tree_of(variables, trainable, [False] * len(places), [place[1:] or place for place in places])
    return tree.overwriting([place[0] == OVERWRITES for place in places])


OVERWRITES = LINEN_COLLECTIONS[OVERWRITTEN]


def _places(tree: Any) -> list[Path]:
    """The path of every leaf, without Flax's metadata boxes."""
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    boxed = [isinstance(keys[-1], jax.tree_util.GetAttrKey) for keys, _ in flat]
    return [path[:-1] if box else path for (path, _), box in zip(named_leaves(flat), boxed, strict=True)]


def unique(places: Sequence[Path]) -> list[Path]:
    """The paths, with ``_1`` for the second of a name: Linen's collections may share names."""
    seen: dict[Path, int] = {}
    found = []
    for path in places:
        number = seen.get(path, 0)
        seen[path] = number + 1
        found.append((*path[:-1], f"{path[-1]}_{number}") if number else path)
    return found


SEED = Leaf(
    ("seed_generator_state",), jax.ShapeDtypeStruct((2,), jnp.uint32), False, None, True
)  # as Keras's


class Source:
    """The initial values of a layer's variables, all from one initialization of the module."""

    def __init__(self, tree: Tree, draw: Callable[[jax.Array | None], Any], seed: int | None = None):
        self.tree, self._draw, self._seed = tree, draw, seed

    @property
    def leaves(self) -> tuple[Leaf, ...]:
        """The leaves of the module, and a seed for the keys of calls, if there is one."""
        return self.tree.leaves if self._seed is None else (*self.tree.leaves, SEED)

    def initializer(self, index: int) -> Initializer:
        """The initializer of leaf `index`."""
        return Initializer(self, index)

    @cached_property
    def first(self) -> list[Any]:
        """The values with which the module was created."""
        # values that are read in a trace and kept must not be tracers
        scope = jax.ensure_compile_time_eval() if keras_internals.in_scope() else contextlib.nullcontext()
        with scope:
            values = self.tree.flatten(self._draw(None), "module")
            return values if self._seed is None else [*values, jnp.array([self._seed, 0], jnp.uint32)]

    def drawn(self, key: jax.Array, index: int) -> Any:
        """One leaf of a module initialized with this key."""
        # compiled, so that unused leaves are not computed
        return jax.jit(lambda key: self.tree.flatten(self._draw(key), "module")[index])(key)


class Initializer:
    """Gives one leaf its initial value; with a key as `seed`, a new one."""

    def __init__(self, source: Source, index: int):
        self.source, self.index = source, index
        self.seed: jax.Array | None = None

    def __call__(self, shape: Any, dtype: Any = None) -> Any:
        """The initial value, with the signature of a Keras initializer."""
        if self.seed is not None:
            return self.source.drawn(self.seed, self.index).astype(dtype)
        return owned(self.source.first[self.index]).astype(dtype)
