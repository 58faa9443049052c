"""Randomness by path: a JAX key for every variable, a Keras seed from a JAX key; the global random states."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from keras.src.backend.common import global_state

from keras_flax_bridge.tree.paths import Path, join_path

# the generator that unseeded `keras.random` draws from; only newer Keras has a name for this key
_GLOBAL_SEED_GENERATOR = "global_seed_generator"


def fold(key: jax.Array, path: Path) -> jax.Array:
    """A distinct key for a path, the same in every process."""
    return jax.random.fold_in(key, zlib.crc32(join_path(path).encode()))


def seed(key: jax.Array) -> jax.Array:
    """A fresh Keras seed: 32 random bits and a counter at zero, ``uint32[2]``."""
    bits = jax.random.bits(key, (), jnp.uint32)
    return jnp.stack([bits, jnp.zeros_like(bits)])


def seed_at(path: Path) -> jax.Array:
    """A Keras seed for a path, the same in every process."""
    return seed(fold(jax.random.key(0), path))


def random_states() -> Callable[[], None]:
    """Takes what `keras.utils.set_random_seed` sets; the function that is returned puts it back."""
    python, numpy = random.getstate(), np.random.get_state()
    generator = global_state.get_global_attribute(_GLOBAL_SEED_GENERATOR)
    value = None if generator is None else generator.state.value

    def put_back() -> None:
        random.setstate(python)
        np.random.set_state(numpy)
        global_state.set_global_attribute(_GLOBAL_SEED_GENERATOR, generator)
        if generator is not None:
            generator.state.assign(value)

    return put_back
