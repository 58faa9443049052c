"""What the config of a model lacks of its layers and of its own `compile`, stored beside it.

``{"frozen": [layer, ...], "lora_alpha": {layer: number}, "quantized": {layer: policy}, "compile": {"given":
{parameter: value}, "lost": [parameter, ...]}}``: layers are structural keys, ``""`` for the model itself.
Checkpoints without it say as much by their leaves: which weights are trained, and which LoRA and quantized
layers have.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from typing import Any

from keras_flax_bridge import keras_internals
from keras_flax_bridge.checkpoint import optimizer_extras
from keras_flax_bridge.checkpoint.keras_versions import writer
from keras_flax_bridge.errors import CheckpointError, said
from keras_flax_bridge.keras_internals import Structure
from keras_flax_bridge.state.trees import WEIGHTS
from keras_flax_bridge.tree.paths import Path, join_path, split_path

EXTRAS = "model_extras"  # its name in the config of a model
_FROZEN, _ALPHA, _QUANTIZED, _COMPILE, _GIVEN, _LOST = (
    *("frozen", "lora_alpha", "quantized", "compile"),
    *("given", "lost"),
)
_POLICY = re.compile(r"[\w./-]{1,100}")
_log = logging.getLogger("keras_flax_bridge")


def of_model(model: Any) -> dict[str, Any]:
    """What the config of a model lacks, as JSON types under `EXTRAS`; empty if nothing."""
    found = keras_internals.structure_of(model)
    extras: dict[str, Any] = {}
    if any(found):
        extras[_FROZEN] = [join_path(path) for path in found.frozen or ()]
    for name, values in ((_ALPHA, found.lora_alpha), (_QUANTIZED, found.quantized)):
        if values:
            extras[name] = {join_path(path): value for path, value in values.items()}
    if getattr(model, "compiled", False) and keras_internals.has_own_compile(model):
        given, lost = keras_internals.own_arguments(model)
        if given or lost:
            extras[_COMPILE] = {_GIVEN: given, _LOST: lost}
    return {EXTRAS: extras} if extras else {}


def put_back(model: Any, config: Mapping[str, Any], stored: Mapping[Path, Any] | None, where: Any) -> Any:
    """Returns the model, made what was saved: its layers by the stored leaves, then compiled.

    Args:
        model: built from `config` without its ``compile_config``.
        config: the dict in a checkpoint or a file, which is data: nothing in it is trusted.
        stored: specs of the stored leaves of the model, ``params`` and ``non_trainable`` among them; None
            where there are no such trees.
        where: the checkpoint, for errors.

    Raises:
        CheckpointError: listing what is malformed, or can't be made.
    """
    extras = config.get(EXTRAS) or {}
    keras_internals.uncompile(model)
    layers = _structure(extras, where)
    if stored is not None and model.built:
        _restructured(model, stored, layers, where)
    if config.get("compile_config"):
        _compiled(model, config["compile_config"], extras.get(_COMPILE), where)
    return optimizer_extras.put_back(model, config, where)


def _structure(extras: Any, where: Any) -> Structure:
    expected = "structural keys of layers, with what they are"
    optimizer_extras.require_right(_wrong(extras), f"{where}: {EXTRAS}", expected)
    frozen = extras.get(_FROZEN)
    return Structure(
        frozen=None if frozen is None else [_path(name) for name in frozen],
        lora_alpha={_path(name): alpha for name, alpha in extras.get(_ALPHA, {}).items()},
        quantized={_path(name): policy for name, policy in extras.get(_QUANTIZED, {}).items()},
    )


def _path(name: str) -> Path:
    return split_path(name) if name else ()


def _wrong(extras: Any) -> Iterator[str]:
    """The errors in what is stored, by name."""
    if not isinstance(extras, dict):
        yield f"a {type(extras).__name__}"
        return
    frozen = extras.get(_FROZEN)
    if not (frozen is None or (isinstance(frozen, list) and all(isinstance(n, str) for n in frozen))):
        yield f"{_FROZEN}: no list of texts"
    checks = {
        _ALPHA: lambda v: isinstance(v, int | float) and not isinstance(v, bool),
        _QUANTIZED: lambda v: isinstance(v, str) and _POLICY.fullmatch(v),
    }
    for name, is_right in checks.items():
        found = extras.get(name, {})
        if not isinstance(found, dict) or not all(map(is_right, found.values())):
            yield f"{name}: a value of another kind"
    compiled = extras.get(_COMPILE, {})
    if not isinstance(compiled, dict) or not isinstance(compiled.get(_GIVEN, {}), dict):
        yield f"{_COMPILE}: a value of another kind"
    elif not isinstance(lost := compiled.get(_LOST, []), list) or not all(isinstance(n, str) for n in lost):
        yield f"{_COMPILE}/{_LOST}: no list of texts"


def _restructured(model: Any, stored: Mapping[Path, Any], layers: Structure, where: Any) -> None:
    trained, others = ({p[1:]: s for p, s in stored.items() if p[0] == tree} for tree in WEIGHTS)
    try:
        keras_internals.restructure(model, trained, others, layers)
    except CheckpointError:
        raise
    except Exception as error:  # of Keras's `quantize` and `enable_lora`, which raise many kinds
        raise CheckpointError(
            str(where),
            got="layers with LoRA or quantization that Keras can't make "
            f"({type(error).__name__}: {said(error)})",
            expected="layers as they were saved",
            fix="Build the model yourself, as it was, and call restore(path, model).",
        ) from error


def _compiled(model: Any, config: Any, own: Any, where: Any) -> None:
    """Compiles the model as it was."""
    given = _own_arguments(model, own, where) if keras_internals.has_own_compile(model) else {}
    try:
        with keras_internals.sharing_objects():
            keras_internals.compile_as(model, config, given, where)
    except CheckpointError:
        raise
    except Exception as error:  # Keras and classes of the user's own raise many kinds
        by = writer(where)
        raise CheckpointError(
            str(where),
            got=f"a config{by.of} that {type(model).__name__}.compile does not take "
            f"({type(error).__name__}: {said(error)})",
            expected="the optimizer, the loss and the metrics of the model",
            fix=by.fix(
                "Register your classes with keras.saving.register_keras_serializable, or build and compile "
                "the model yourself and call restore(path, model)."
            ),
        ) from error


def _own_arguments(model: Any, own: Any, where: Any) -> dict[str, Any]:
    """The arguments for the own parameters of a class's `compile`."""
    parameters = keras_internals.own_parameters(model)
    found = own or {}
    lost = [n for n in parameters if n in found.get(_LOST, ()) or (own is None and not parameters[n])]
    if lost:
        raise CheckpointError(
            str(where),
            got=f"a model whose class has its own compile, without the arguments {', '.join(lost)}",
            expected="all that the model was compiled with",
            fix="Override get_compile_config and compile_from_config in the class, keep each argument in an "
            "attribute of its name, or build and compile the model yourself and call restore(path, model).",
        )
    if own is None and parameters:
        _log.warning(
            "%s: %s.compile gets the defaults of %s, which are not stored",
            *(where, type(model).__name__, ", ".join(parameters)),
        )
    return {name: value for name, value in found.get(_GIVEN, {}).items() if name in parameters}


def leaves_of(stored: Mapping[Path, Any] | None, name: str) -> dict[Path, Any] | None:
    """The stored weights of one model: of a single one, ``""``, or of one of several."""
    if stored is None or not any(path[0] in WEIGHTS for path in stored):
        return None
    chosen = {path: spec for path, spec in stored.items() if path[0] in WEIGHTS}
    if not name:
        return chosen
    return {(path[0], *path[2:]): spec for path, spec in chosen.items() if path[1:2] == (name,)}
