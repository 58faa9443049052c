"""Keras seeds as random streams of Flax."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from keras_flax_bridge.errors import StructureMismatchError


class KerasSeed(nnx.RngState):
    """The state of a Keras `SeedGenerator`, ``uint32[2]``: a seed and a counter.

    `nnx.reseed`, `nnx.split_rngs`, `nnx.fork_rngs` and `nnx.restore_rngs` take it for an `nnx.RngStream`
    of the name ``dropout``, whose key is ``jax.random.key(seed)`` and whose count is the counter. A key
    that they write becomes a seed of 32 bits.
    """

    tag = "dropout"

    def __call__(self, *args: Any, **kwargs: Any) -> jax.Array:
        """A new key, as an `nnx.RngStream` draws it; the counter is raised by one."""
        self._check_can_update()  # type: ignore[no-untyped-call]
        key, count = self.key.get_value(), self.count.get_value()
        self.set_value(_state(key, count + 1))
        return jax.random.fold_in(key, count)

    def fork(self, *, split: int | tuple[int, ...] | None = None) -> KerasSeed:
        """A seed from a new key, or several of them."""
        key = self()
        keys = key if split is None else jax.random.split(key, split)
        return self.copy(_state(keys, jnp.zeros(keys.shape, jnp.uint32)))  # type: ignore[return-value]

    def split(self, k: int | tuple[int, ...]) -> KerasSeed:
        """Several seeds from a new key."""
        return self.fork(split=k)

    @property
    def key(self) -> _Key:
        """The seed as a key; what is written into its value is written into the seed."""
        words = self.get_value()[..., 0]
        data = jnp.stack([jnp.zeros_like(words), words], axis=-1)
        key = _Key(jax.random.wrap_key_data(data, impl="threefry2x32"), tag=self.tag)
        object.__setattr__(key, "_seed", self)
        return key

    @key.setter
    def key(self, key: Any) -> None:
        raise StructureMismatchError(
            "split_rngs",
            got="graph_updates=False or graph=False, and a module with Keras seeds",
            expected="seeds that are split in place",
            fix="Pass graph=True, graph_updates=True, and undo it afterwards with nnx.restore_rngs.",
        )

    @property
    def count(self) -> _Count:
        """The counter; what is written into its value is written into the seed."""
        count = _Count(self.get_value()[..., 1], tag=self.tag)
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


def _state(key: jax.Array, count: jax.Array) -> jax.Array:
    data = jax.random.key_data(key)
    return jnp.stack([data[..., 0] ^ data[..., 1], count], axis=-1)  # the key of a seed gives this seed
