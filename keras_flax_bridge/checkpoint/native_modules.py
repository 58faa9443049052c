"""Restores checkpoints of Keras models into modules of generated source, which have no Keras model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flax import nnx

from keras_flax_bridge.checkpoint import model_configs
from keras_flax_bridge.checkpoint.orbax_io import Metadata
from keras_flax_bridge.errors import BridgeError
from keras_flax_bridge.migrate.convert import Conversion
from keras_flax_bridge.migrate.weight_map import WeightMap
from keras_flax_bridge.tree.paths import Path


def map_for(
    module: nnx.Module, metadata: Metadata, folder: Any, stored: Mapping[Path, Any] | None = None
) -> WeightMap | None:
    """The map from the variables of a checkpoint to a module of the source that `to_source` writes.

    It comes from the checkpoint: the map of the module that was saved, or the conversion of the
    model whose config lies beside the weights. It is used only if it names exactly the leaves of
    the module.

    Args:
        module: an `nnx.Module` of any class.
        metadata: the metadata of the checkpoint.
        folder: its folder, for messages.
        stored: the leaves of the checkpoint.

    Returns:
        The map; None if the checkpoint has none, or the module is a different one.
    """
    found = _map_of(metadata, folder, stored)
    if found is None:
        return None
    leaves = nnx.to_flat_state(nnx.state(module, nnx.Not(nnx.RngState)))
    paths = {tuple(map(str, path)) for path, _ in leaves}
    return found if {path for pair in found.pairs for path in pair.flax} == paths else None


def _map_of(metadata: Metadata, folder: Any, stored: Mapping[Path, Any] | None) -> WeightMap | None:
    if metadata.weight_map is not None:
        return WeightMap.from_json(metadata.weight_map, f"{folder}, weight_map")
    if not metadata.model:
        return None
    try:
        return Conversion(model_configs.build(metadata.model, folder, stored), "Model", "error").weight_map()
    except BridgeError:  # a model that can't be rebuilt or converted made no such source
        return None
