"""Compiling a model as it was: also one whose class has its own `compile`."""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Iterator, Mapping
from typing import Any

import keras

from keras_flax_bridge.keras_internals.safe_mode import deserialized, safe_mode
from keras_flax_bridge.keras_internals.trainers import is_overridden

_PLAIN = (type(None), bool, int, float, str)


def has_own_compile(model: Any) -> bool:
    """Whether Keras would leave a model uncompiled: its class has its own `compile`, and no config of it."""
    return is_overridden(model, "compile") and not is_overridden(model, "compile_from_config")


def own_parameters(model: Any) -> dict[str, bool]:
    """The parameters that the own `compile` of a class adds to Keras's, and whether each has a default."""
    known = inspect.signature(keras.Model.compile).parameters
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    own = inspect.signature(type(model).compile).parameters.values()
    return {
        p.name: p.default is not inspect.Parameter.empty
        for p in own
        if p.kind in named and p.name not in known
    }


def own_arguments(model: Any) -> tuple[dict[str, Any], list[str]]:
    """The arguments for a class's own parameters, as JSON types, and the names of those that are not known.

    Such an argument is known where the model keeps it in an attribute of its name.
    """
    given: dict[str, Any] = {}
    lost = []
    for name in own_parameters(model):
        places = [vars(model)[n] for n in (name, f"_{name}") if n in vars(model)]
        try:
            given[name] = _serialized(places[0])
        except (IndexError, TypeError, ValueError, NotImplementedError):
            lost.append(name)
    return given, lost


def _serialized(value: Any) -> Any:
    """A value as JSON types; what has variables of its own, whose values would be lost, is refused."""
    if any(isinstance(part, keras.Layer | keras.optimizers.Optimizer) for part in _parts(value)):
        raise TypeError
    config = keras.saving.serialize_keras_object(value)
    json.dumps(config)
    return config


def _parts(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        for item in value.values():
            yield from _parts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _parts(item)
    else:
        yield value


def compile_as(model: Any, config: Mapping[str, Any], given: Mapping[str, Any], where: Any) -> None:
    """Compiles a model with a config that `get_compile_config` gave.

    Args:
        model: the model.
        config: the config; it is not changed.
        given: what `own_arguments` gave, for a class with its own `compile`.
        where: the checkpoint, for errors.

    Raises:
        CheckpointError: if the config names something that is not allowed.
        Exception: any error of Keras, or of the class.
    """
    if not has_own_compile(model):
        with safe_mode():
            model.compile_from_config(copy.deepcopy(dict(config)))
        return
    parts = {**deserialized(dict(config), where), **deserialized(dict(given), where)}
    own = inspect.signature(type(model).compile).parameters
    takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in own.values())
    type(model).compile(model, **{name: part for name, part in parts.items() if takes_all or name in own})
    if not model.compiled or _text(model.get_compile_config()) != _text(config):
        # the class made something else of what it was given: what is stored is what it gave to Keras
        keras.Model.compile(model, **deserialized(dict(config), where))
    if model.built:
        model.optimizer.build(model.trainable_variables)


def _text(config: Any) -> str:
    return json.dumps(config, sort_keys=True, default=str)


def uncompile(model: Any) -> None:
    """Takes back what a class compiled while it was read from its config."""
    if getattr(model, "compiled", False):
        # `compiled`, `_compile_loss`, `_compile_metrics`: what Keras sets before a model is compiled
        model.compiled, model._compile_loss, model._compile_metrics = False, None, None
        model.optimizer = model.loss = None
