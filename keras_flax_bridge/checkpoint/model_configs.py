"""Model configs, which are stored beside the weights in a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import keras

from keras_flax_bridge import keras_internals
from keras_flax_bridge.checkpoint import assets, model_extras, optimizer_extras
from keras_flax_bridge.checkpoint.assets import NO_ASSETS, Assets
from keras_flax_bridge.checkpoint.keras_versions import writer
from keras_flax_bridge.errors import CheckpointError, said
from keras_flax_bridge.keras_internals import SLACK
from keras_flax_bridge.state.multi_model import models_of
from keras_flax_bridge.tree.paths import Path, flatten_tree


def of_state(state: Any, model: Any) -> tuple[dict[str, Any], Assets]:
    """The config of the model of a state under ``model``, or under ``no_model`` why not; and its assets.

    Args:
        state: any pytree.
        model: a model, or a dict of them, in place of what the state was taken from; or None.
    """
    owners = models_of(getattr(state, "apply_fn", None)) if model is None else {"": model}
    owners = dict(model) if isinstance(model, Mapping) else owners
    try:
        configs = {name: _config(m, state.part(name) if name else state) for name, m in owners.items()}
        files = assets.of_models(owners)
    except Exception as error:  # of the user's get_config and save_assets, which may raise anything
        # a model without a config is still saved: load_model gives the reason why it can't load it
        return {"no_model": f"{type(error).__name__}: {said(error, 300)}"}, NO_ASSETS
    return ({"model": configs.get("", configs)} if configs else {}), files


def of_model(model: Any) -> dict[str, Any]:
    """The config of a model that Keras loaded from a file, with its compile config."""
    return _serialized(model)


def _config(model: Any, state: Any) -> dict[str, Any]:
    """The JSON from which `build` rebuilds the model."""
    slots = _slot_values(model, state)
    if slots is None:
        config = {**keras.saving.serialize_keras_object(model), "compile_config": None}
        return {**config, **model_extras.of_model(model)}
    with keras.StatelessScope(list(zip(model.optimizer.variables, slots, strict=True))):
        return _serialized(model)  # it reads the learning rate


def _serialized(model: Any) -> dict[str, Any]:
    config = keras.saving.serialize_keras_object(model)
    if config.get("compile_config"):  # compile may have wrapped the optimizer that it was given
        with keras_internals.sharing_objects():  # a MultiOptimizer may hold one twice
            config["compile_config"]["optimizer"] = keras.saving.serialize_keras_object(model.optimizer)
    return {**config, **optimizer_extras.of_model(model), **model_extras.of_model(model)}


def _slot_values(model: Any, state: Any) -> Sequence[Any] | None:
    """The optimizer's values in Keras's order, since its own may have moved; None for optax."""
    flat = flatten_tree(getattr(state, "opt_state", {}))
    slots = keras_internals.collect(model).opt_state if flat else ()
    if not slots or any(entry.path not in flat for entry in slots):
        return None
    return [flat[entry.path] for entry in slots]


def build(config: Any, where: Any, stored: Mapping[Path, Any] | None = None) -> Any:
    """The model of a config, or a dict of models; nothing in it is run as code.

    Args:
        config: the config.
        where: its file or folder, for messages.
        stored: the leaves that are stored with it: a much larger model is not built.

    Raises:
        CheckpointError: if Keras can't build it, or it asks for code, as a Lambda layer does.
    """
    limit = nullcontext() if stored is None else keras_internals.bounded(_most(stored), str(where))
    with limit:
        if isinstance(config, Mapping) and "class_name" not in config:
            own = {name: model_extras.leaves_of(stored, name) for name in config}
            return {name: _built(part, where, own[name]) for name, part in config.items()}
        return _built(config, where, model_extras.leaves_of(stored, ""))


def _most(stored: Mapping[Path, Any]) -> int:
    """The largest size of a model for some leaves; slots and averages may be missing from them."""
    return SLACK + 4 * sum(math.prod(getattr(leaf, "shape", ())) for leaf in stored.values())


def _built(config: Any, where: Any, stored: Mapping[Path, Any] | None) -> Any:
    if not isinstance(config, Mapping) or not isinstance(config.get("class_name"), str):
        raise CheckpointError(
            str(where),
            got="a config without class_name",
            expected="the config of a keras.Model",
            fix="Build the model yourself and call restore(path, model).",
        )
    try:
        with keras_internals.sharing_objects():
            # it is compiled at the end, for the variables that it then has
            model = keras_internals.deserialized({**config, "compile_config": None}, where)
    except CheckpointError:
        raise
    except Exception as error:  # Keras and classes of the user's own raise many kinds
        by = writer(where)
        raise CheckpointError(
            str(where),
            got=f"a config{by.of} that Keras can't build a {config['class_name']} from ({said(error)})",
            expected="the config of a model whose classes are registered, without code",
            fix=by.fix(
                "Register your classes with keras.saving.register_keras_serializable, or build the model "
                "yourself and call restore(path, model)."
            ),
        ) from error
    if isinstance(model, keras.Model):
        return model_extras.put_back(model, config, stored, where)
    raise CheckpointError(
        str(where),
        got=f"the config of a {type(model).__name__}",
        expected="that of a keras.Model",
        fix="Build the model yourself and call restore(path, model).",
    )
