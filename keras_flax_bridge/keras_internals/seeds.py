"""Randomness by path: a JAX key for every variable, a Keras seed from a JAX key."""

from __future__ import annotations

import zlib

import jax
import jax.numpy as jnp

from keras_flax_bridge.tree.paths import Path, join_path


def fold(key: jax.Array, path: Path) -> jax.Array:
    """A distinct key for a path, the same in every process."""
    return jax.random.fold_in(key, zlib.crc32(join_path(path).encode()))


def seed(key: jax.Array) -> jax.Array:
    """A fresh Keras seed: 32 random bits and a counter at zero, ``uint32[2]``."""
    bits = jax.random.bits(key, (), jnp.uint32)
    return jnp.stack([bits, jnp.zeros_like(bits)])
