"""What a config does not say of a layer: LoRA, quantization and frozen weights, at any depth."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import keras

from keras_flax_bridge.keras_internals.filling import passing_over
from keras_flax_bridge.keras_internals.keys import collect_layer, layers_by_path
from keras_flax_bridge.tree.paths import Path

MODES = ("int8", "int4", "float8")  # how layers are quantized without data


class Structure(NamedTuple):
    """What layers are, by structural key.

    Attributes:
        frozen: the layers that are not trainable; None where it is not known.
        lora_alpha: the scale of LoRA, where it is not the rank.
        quantized: the dtype policies of quantized layers.
    """

    frozen: Collection[Path] | None = None
    lora_alpha: Mapping[Path, float] = {}
    quantized: Mapping[Path, str] = {}


def structure_of(layer: Any) -> Structure:
    """What the layers below a layer are, itself at ``()``."""
    layers = layers_by_path(layer)
    alphas = {p: part.lora_alpha for p, part in layers.items() if getattr(part, "lora_enabled", False)}
    return Structure(
        frozen=[path for path, part in layers.items() if not part.trainable],
        lora_alpha={p: alpha for p, alpha in alphas.items() if alpha != layers[p].lora_rank},
        quantized={p: part.dtype_policy.name for p, part in layers.items() if _mode(part) in MODES},
    )


def _mode(layer: Any) -> str | None:
    mode: str | None = getattr(layer.dtype_policy, "quantization_mode", None)
    return mode


def restructure(
    layer: Any, trained: Mapping[Path, Any], others: Mapping[Path, Any], known: Structure
) -> None:
    """Makes a built layer have the variables that are stored: adapts, quantizes, freezes and unfreezes.

    Args:
        layer: the layer or model; its variables get their values afterwards.
        trained: specs of the stored trainable weights, by path.
        others: specs of the other stored variables.
        known: what is stored of its layers.

    Raises:
        Exception: any error of Keras's `quantize` and `enable_lora`.
    """
    stored: dict[Path, dict[str, Any]] = {}
    for path, spec in {**others, **trained}.items():
        stored.setdefault(path[:-1], {})[path[-1]] = spec
    with passing_over():  # what is computed from values here is replaced by what is stored
        for path, part in layers_by_path(layer).items():
            if path in stored and part.built:
                _quantize(part, stored[path], known.quantized.get(path))
                _adapt(part, stored[path], known.lora_alpha.get(path))
    if known.frozen is None:
        _freeze_by_leaves(layer, trained, others)
    else:
        _freeze(layer, known.frozen)
    for entry in (entry for part in collect_layer(layer) for entry in part):
        if entry.path in trained or entry.path in others:
            is_trained = entry.path in trained
            if entry.variable.trainable != is_trained:
                entry.variable.trainable = is_trained


# --- quantization and LoRA


def _quantize(layer: Any, stored: Mapping[str, Any], policy: str | None) -> None:
    if _mode(layer) is not None or not hasattr(layer, "quantize"):
        return
    name = policy.partition("_from_")[0] if policy else _mode_by_leaves(layer, stored)
    mode, _, block = (name or "").partition("/")
    if mode in MODES:
        layer.quantize(mode, **_blocks(layer, int(block or 0)))


def _blocks(layer: Any, block: int) -> dict[str, Any]:
    """The argument for int4 in blocks; Keras calls it -1 where there are none."""
    kinds = getattr(keras.quantizers, "Int4QuantizationConfig", None)
    if not block or kinds is None or "config" not in inspect.signature(layer.quantize).parameters:
        return {}
    return {"config": kinds(block_size=block)}


def _mode_by_leaves(layer: Any, stored: Mapping[str, Any]) -> str | None:
    """How a layer is quantized, from its stored variables."""
    if "inputs_amax_history" in stored:
        return "float8"
    for name in ("kernel", "embeddings"):
        if f"{name}_scale" in stored and str(stored[name].dtype) == "int8":
            whole = tuple(stored[name].shape) == tuple(getattr(layer, name).shape)
            blocks = f"{name}_zero" in stored
            return "int8" if whole and not blocks else "int4/128" if blocks else "int4/-1"
    return None


def _adapt(layer: Any, stored: Mapping[str, Any], alpha: float | None) -> None:
    ranks = [s.shape[-1] for n, s in stored.items() if n.startswith("lora_") and n.endswith("_a")]
    if not ranks or not hasattr(layer, "enable_lora"):
        return
    if layer.lora_enabled:
        if alpha is not None:
            layer.lora_alpha = alpha  # a layer that its config adapts takes the rank for it
        return
    takes_alpha = "lora_alpha" in inspect.signature(layer.enable_lora).parameters
    layer.enable_lora(ranks[0], **({"lora_alpha": alpha} if alpha is not None and takes_alpha else {}))


# --- frozen layers


def _freeze(layer: Any, frozen: Collection[Path]) -> None:
    names = set(frozen)
    for path, part in layers_by_path(layer).items():  # those around others first: they set all inside
        if part.trainable != (path not in names):
            part.trainable = path not in names


def _freeze_by_leaves(layer: Any, trained: Mapping[Path, Any], others: Mapping[Path, Any]) -> None:
    if trained and not layer.trainable:
        layer.trainable = True
    for path, part in layers_by_path(layer).items():
        # `_trainable_variables`: those of the layer itself, frozen or not
        own = [(*path, v.name) for v in part._trainable_variables]
        if any(name in trained for name in own):
            if not part.trainable:
                part.trainable = True
        elif own and all(name in others for name in own) and part.trainable:
            part.trainable = False
