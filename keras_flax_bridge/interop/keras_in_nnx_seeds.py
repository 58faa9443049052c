"""Keras seeds as random streams of Flax; the keys that a module is initialized from."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from keras_flax_bridge.errors import StructureMismatchError


class KerasSeed(nnx.RngState):
    """The state of a Keras `SeedGenerator`, ``uint32[2]``: a seed and a counter.

    `nnx.reseed`, `nnx.split_rngs`, `nnx.fork_rngs`, `nnx.with_rngs` and `nnx.restore_rngs` take it for an
    `nnx.RngStream` of the name ``dropout``, whose key is ``jax.random.key(seed)`` and whose count is the
    counter. A key that they write becomes a seed of 32 bits.
    """

    tag = "dropout"

    def __call__(self, *args: Any, **kwargs: Any) -> jax.Array:
        """A new key, as an `nnx.RngStream` draws it; the counter is raised by one.

        Raises:
            TraceContextError: inside a transformation, on a seed from outside of it.
            ValueError: if the seed is split.
        """
        self._check_can_update()  # type: ignore[no-untyped-call]
        key, count = self.key.get_value(), self.count.get_value()
        self.set_value(_state(key, count + 1))
        return jax.random.fold_in(key, count)

    def fork(self, *, split: int | tuple[int, ...] | None = None) -> KerasSeed:
        """A seed from a new key.

        Args:
            split: how many seeds, or their shape; None for one.

        Returns:
            A variable of shape ``(*split, 2)``.

        Raises:
            TraceContextError: inside a transformation, on a seed from outside of it.
            ValueError: if the seed is split.
        """
        key = self()
        return self._with(key if split is None else jax.random.split(key, split))

    def split(self, k: int | tuple[int, ...]) -> KerasSeed:
        """Several seeds from a new key.

        Args:
            k: how many, or their shape.

        Returns:
            A variable of shape ``(*k, 2)``.

        Raises:
            TraceContextError: inside a transformation, on a seed from outside of it.
            ValueError: if the seed is split.
        """
        return self._with(jax.random.split(self(), k))

    def broadcast(self, k: int | tuple[int, ...]) -> KerasSeed:
        """A seed from a new key, several times.

        Args:
            k: how many times, or the shape.

        Returns:
            A variable of shape ``(*k, 2)``.

        Raises:
            TraceContextError: inside a transformation, on a seed from outside of it.
            ValueError: if the seed is split.
        """
        return self._with(jnp.broadcast_to(self(), k))

    def _with(self, key: jax.Array) -> KerasSeed:
        return self.copy(_state(key, jnp.zeros(key.shape, jnp.uint32)))  # type: ignore[return-value]

    def _read(self, part: Callable[[jax.Array], jax.Array]) -> Any:
        value = self.get_value()
        return jax.eval_shape(part, value) if isinstance(value, jax.ShapeDtypeStruct) else part(value)

    @property
    def key(self) -> _Key:
        """The seed as a key; what is written into its value is written into the seed.

        Raises:
            StructureMismatchError: if it is replaced, as `nnx.split_rngs` does in a copy of a module.
        """
        key = _Key(self._read(_key_of), tag=self.tag)
        object.__setattr__(key, "_seed", self)
        return key

    @key.setter
    def key(self, key: Any) -> None:
        raise StructureMismatchError(
            "split_rngs",
            got="graph=False or graph_updates=False, and a module with Keras seeds",
            expected="graph=True and graph_updates=True",
            fix="For a copy with split seeds, use nnx.with_rngs(module, split=...), or in older versions of "
            "Flax nnx.fork_rngs(module, split=...); both draw the same keys.",
        )

    @property
    def count(self) -> _Count:
        """The counter; what is written into its value is written into the seed.

        Raises:
            AttributeError: if it is replaced.
        """
        count = _Count(self._read(lambda state: state[..., 1]), tag=self.tag)
        object.__setattr__(count, "_seed", self)
        return count

    # Flax takes streams for a kind of `nnx.Pytree`, and uses these attributes of one

    _pytree__is_pytree = True

    @property
    def _pytree__state(self) -> Any:
        return SimpleNamespace()

    def _check_valid_context(self, message: Any) -> None:
        """Flax checks after this whether the variable can be updated."""


nnx.RngStream.register(KerasSeed)


class SeedHolder(nnx.Module):
    """A module whose seeds a function such as `nnx.with_rngs` replaces in a copy of it."""

    def _graph_node_set_key(self, key: Any, value: Any) -> None:
        if isinstance(value, KerasSeed):  # Flax would write it into the variable, which the copies share
            setattr(self, key, value)
        else:
            super()._graph_node_set_key(key, value)


class _Key(nnx.RngKey):
    """The key of a seed."""

    __slots__ = ("_seed",)
    _seed: KerasSeed

    def set_value(self, value: Any, **index: Any) -> None:
        """Writes the seed, and keeps the counter unless the shape is another."""
        super().set_value(value, **index)
        count = self._seed.get_value()[..., 1]
        key = self.get_value()
        kept = count if count.shape == key.shape else jnp.zeros(key.shape, jnp.uint32)
        self._seed.set_value(_state(key, kept))


class _Count(nnx.RngCount):
    """The counter of a seed."""

    __slots__ = ("_seed",)
    _seed: KerasSeed

    @property
    def shape(self) -> tuple[int, ...]:
        """That before a split: Flax reads it when it has written the keys of a split."""
        return ()

    def set_value(self, value: Any, **index: Any) -> None:
        """Writes the counter."""
        super().set_value(value, **index)
        self._seed.set_value(self._seed.get_value().at[..., 1].set(self.get_value()))


def _key_of(state: jax.Array) -> jax.Array:
    words = state[..., 0]
    data = jnp.stack([jnp.zeros_like(words), words], axis=-1)
    key: jax.Array = jax.random.wrap_key_data(data, impl="threefry2x32")
    return key


def _state(key: jax.Array, count: jax.Array) -> jax.Array:
    data = jax.random.key_data(key)
    return jnp.stack([data[..., 0] ^ data[..., 1], count], axis=-1)  # the key of a seed gives this seed


# --- initial values


class Keys(NamedTuple):
    """The keys that initial values are drawn from; None for the layer's own values."""

    params: jax.Array | None = None
    seeds: jax.Array | None = None  # None for `params`

    @classmethod
    def drawn(cls, rngs: nnx.Rngs | None) -> Keys:
        """Keys from the streams of a module's constructor."""
        if rngs is None:
            return cls()
        return cls(rngs.params(), rngs.dropout() if "dropout" in rngs else None)

    def keep(self, module: Any) -> None:
        """Keeps the keys in a module, until its first call builds the layer."""
        if self.params is not None:
            module.initial_key = nnx.RngKey(self.params, tag="params")
        if self.seeds is not None:
            module.initial_seeds = nnx.RngKey(self.seeds, tag="dropout")

    @classmethod
    def kept(cls, module: Any) -> Keys:
        """The keys that a module has kept, which it loses."""
        params = seeds = None
        if "initial_key" in vars(module):
            params = module.initial_key.get_value()
            del module.initial_key
        if "initial_seeds" in vars(module):
            seeds = module.initial_seeds.get_value()
            del module.initial_seeds
        return cls(params, seeds)
