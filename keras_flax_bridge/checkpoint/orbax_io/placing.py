"""What Orbax is asked for, and where what it gives is put."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from keras_flax_bridge.checkpoint.leaf_kinds import words
from keras_flax_bridge.checkpoint.slices import GROUP
from keras_flax_bridge.tree.leaves import size_of
from keras_flax_bridge.tree.paths import Flat, Path


def on_host(spec: Any) -> Any:
    """What Orbax is asked for to give a leaf as numpy."""
    return np.broadcast_to(np.zeros((), spec.dtype), spec.shape) if hasattr(spec, "shape") else spec


def is_on_cpu(target: Any) -> bool:
    """Whether a leaf goes to one CPU: jax takes it over from numpy, and Orbax would keep a second copy."""
    sharding = getattr(target, "sharding", None)
    if not isinstance(sharding, jax.sharding.SingleDeviceSharding):
        return False
    devices: set[Any] = sharding.device_set
    return all(device.platform == "cpu" for device in devices)


def host_bytes(target: Any) -> Any:
    """What Orbax is asked for to give the elements of a leaf on the host, as whole numbers."""
    return np.broadcast_to(np.zeros((), words(target.dtype)), target.shape)


def placed(values: Flat, targets: Mapping[Path, Any]) -> Flat:
    """Values on the host, put where their targets say: small ones in one transfer, each large one alone.

    A large one that jax copies is let go before the next is copied: `values` is empty of them at the end.
    """
    shardings = {path: getattr(targets[path], "sharding", None) for path in values}
    placed = {path: values.pop(path) for path, sharding in shardings.items() if sharding is None}
    for path in [path for path, leaf in values.items() if size_of(leaf) >= GROUP]:
        placed[path] = jax.block_until_ready(jax.device_put(values.pop(path), shardings[path]))
    put = jax.device_put(list(values.values()), [shardings[path] for path in values])
    return {**placed, **dict(zip(values, put, strict=True))}
