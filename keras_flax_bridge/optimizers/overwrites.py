"""Variables that their gradient overwrites, such as the scales of float8 training, beside an optimizer.

As in Flax's `TrainState`, the optimizer doesn't see them: it has no slots of them, and they take no part in
the norm of all gradients.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp
import optax

from keras_flax_bridge import keras_internals
from keras_flax_bridge.tree.diff import require_paths
from keras_flax_bridge.tree.leaves import SharedOnCopy
from keras_flax_bridge.tree.paths import Path, fill_tree, flatten_tree, nest_paths


class Overwriting(SharedOnCopy, optax.GradientTransformationExtraArgs):
    """A transformation of all parameters but some, which take the value of their gradient.

    Attributes:
        inner: the transformation of the others.
    """

    inner: Any
    _paths: frozenset[Path]

    @classmethod
    def of(cls, inner: Any, paths: frozenset[Path]) -> Overwriting:
        """The transformation for nested dicts in which these paths are overwritten."""

        def rest(tree: Any) -> Any:
            return nest_paths({path: leaf for path, leaf in flatten_tree(tree).items() if path not in paths})

        def init(params: Any) -> Any:
            return inner.init(rest(params))

        def parted(grads: Any, state: Any, params: Any, extra: Any) -> tuple[Any, Any]:
            require_paths(grads, params, "grads")
            tx = optax.with_extra_args_support(inner)
            updated: tuple[Any, Any] = tx.update(rest(grads), state, rest(params), **extra)
            return updated

        def update(grads: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
            updates, state = parted(grads, state, params, extra)
            given, now = flatten_tree(grads), flatten_tree(params)
            written = {path: difference(given[path], now[path]) for path in now if path in paths}
            return fill_tree(params, {**flatten_tree(updates), **written}), state

        def apply(grads: Any, state: Any, params: Any) -> tuple[Any, Any]:
            updates, state = parted(grads, state, params, {})
            given, now = flatten_tree(grads), flatten_tree(params)
            written = {path: jnp.asarray(given[path], now[path].dtype) for path in now if path in paths}
            moved = flatten_tree(optax.apply_updates(rest(params), updates))
            return fill_tree(params, {**moved, **written}), state

        self: Overwriting = cls(init, update)
        self.inner, self._paths, self._apply = inner, paths, apply
        return self

    def apply(self, grads: Any, state: Any, params: Any) -> tuple[Any, Any]:
        """The new parameters themselves, since adding a difference would round, and the new state."""
        applied: tuple[Any, Any] = self._apply(grads, state, params)
        return applied

    def __eq__(self, other: object) -> bool:  # for jit: equal states share one compilation
        return isinstance(other, Overwriting) and (self.inner, self._paths) == (other.inner, other._paths)

    def __hash__(self) -> int:
        return hash((Overwriting, self.inner, self._paths))


def difference(new: Any, old: Any) -> Any:
    """What added to `old` gives `new`: where a float can, exactly."""
    update = new - old
    return (update + (new - (old + update))).astype(old.dtype)


def overwriting(tx: Any, entries: Iterable[Any]) -> Any:
    """The transformation that writes the gradients of those of the variables that take them as they are."""
    inner = without_overwriting(tx)
    paths = frozenset(e.path for e in entries if keras_internals.is_overwritten(e.variable))
    if not paths or getattr(inner, "knows_overwrites", False):
        return inner
    return Overwriting.of(inner, paths)


def without_overwriting(tx: Any) -> Any:
    """The transformation inside of `Overwriting`; another one itself."""
    return tx.inner if isinstance(tx, Overwriting) else tx


def is_exact(tx: Any) -> bool:
    """Whether a transformation has an `apply`, which gives new parameters without rounding a difference."""
    return isinstance(tx, SharedOnCopy) and hasattr(tx, "apply")


def applied(tx: Any, grads: Any, state: Any, params: Any) -> tuple[Any, Any]:
    """The new parameters and the new state, exact where `tx` can be."""
    if is_exact(tx):
        whole: tuple[Any, Any] = tx.apply(grads, state, params)
        return whole
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state
