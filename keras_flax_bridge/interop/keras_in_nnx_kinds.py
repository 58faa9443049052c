"""The kinds of `nnx.Variable` for the variables of Keras."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flax import nnx

from keras_flax_bridge import keras_internals
from keras_flax_bridge.interop.keras_in_nnx_seeds import KerasSeed
from keras_flax_bridge.interop.overwrites import Overwritten
from keras_flax_bridge.keras_internals import BATCH_STAT, FROZEN, OTHER, PARAM, SEED, UNTRACKED, Entry


class Frozen(nnx.Variable[Any]):
    """A weight that Keras keeps from training."""


_KINDS: dict[str, type[nnx.Variable[Any]]] = {
    PARAM: nnx.Param,
    keras_internals.OVERWRITTEN: Overwritten,
    FROZEN: Frozen,
    BATCH_STAT: nnx.BatchStat,
    OTHER: nnx.BatchStat,  # state that calls may change, such as counters
    UNTRACKED: nnx.BatchStat,  # and states of RNNs
    SEED: KerasSeed,
}


def wrappers(layer: Any) -> Callable[[Entry, Any], nnx.Variable[Any]]:
    """What makes the `nnx.Variable` of a value, for the variables of a layer."""
    adapters = keras_internals.lora_variables(layer)

    def wrapped(entry: Entry, value: Any) -> nnx.Variable[Any]:
        is_adapter = entry.kind == PARAM and id(entry.variable) in adapters
        kind = nnx.LoRAParam if is_adapter else _KINDS[entry.kind]
        return kind(value, **_metadata(entry))

    return wrapped


def _metadata(entry: Entry) -> dict[str, Any]:
    """The nnx metadata of a variable: its sharding, and whether checkpoints may lack it."""
    sharding = keras_internals.partition(entry.variable)
    placed = {} if sharding is None else {"out_sharding": tuple(sharding.spec), "mesh": sharding.mesh}
    return placed if entry.tracked else {**placed, "optional": True}
