"""The pure call of a Keras layer, with its variables as arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import keras

from keras_flax_bridge import keras_internals
from keras_flax_bridge.errors import NotBuiltError, StructureMismatchError, UnsupportedLayerError
from keras_flax_bridge.keras_internals import SEED, Collection, Entry, seeds
from keras_flax_bridge.keras_internals.shards import scope_of
from keras_flax_bridge.tree.leaves import explained
from keras_flax_bridge.tree.paths import Flat, Path, flatten_tree, join_path, nest_paths


def call(
    layer: Any,
    entries: Sequence[Entry],
    values: Sequence[Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    function: Callable[..., Any] | None = None,
) -> tuple[Any, list[Any], list[Any]]:
    """Calls a layer, or a function of it, with given values; returns outputs, updated values and losses."""
    writable, finalized = keras_internals.writable(layer), keras_internals.finalized(layer, entries, values)
    with writable, finalized, scope_of(layer, entries, values) as scope:
        try:
            outputs = layer(*args, **kwargs) if function is None else function(layer, *args, **kwargs)
        except IndexError as error:
            _explain_untraceable(layer, error)
            raise
        losses = layer.losses
    return outputs, [scope.get_current_value(entry.variable) for entry in entries], losses


def _explain_untraceable(layer: Any, error: IndexError) -> None:
    if any(isinstance(part, keras.layers.RandomCrop) for part in keras_internals.all_layers(layer)):
        raise UnsupportedLayerError(
            f"layer {layer.name!r}",
            got="RandomCrop under a trace, which uses random numbers as Python indices",
            expected="a layer that jax can trace",
            fix="Crop in the data pipeline, or call it outside of jit.",
        ) from error


def require_layer(layer: Any) -> None:
    """Checks that an object is a Keras layer.

    Raises:
        StructureMismatchError: if it is not.
    """
    if not isinstance(layer, keras.layers.Layer):
        raise StructureMismatchError(
            "layer", got=f"a {type(layer).__name__}", expected="a Keras layer or model", fix="Pass one."
        )


def require_built(layer: Any) -> None:
    """Checks that an object is a built Keras layer.

    Raises:
        StructureMismatchError: if it is not a Keras layer.
        NotBuiltError: if it has no variables yet.
    """
    require_layer(layer)
    if not layer.built:
        kind = "model" if isinstance(layer, keras.Model) else "layer"
        raise NotBuiltError(
            f"{kind} {layer.name!r}",
            got=f"a {kind} without variables",
            expected=f"a built {kind}",
            fix="Call it once on data, or call its build(input_shape); a model can start with keras.Input.",
        )


def stateless(
    layer: Any,
    state: tuple[Collection, Collection],
    variables: Mapping[str, Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    rngs: Any,
    function: Callable[..., Any] | None = None,
) -> tuple[Any, tuple[dict[str, Any], dict[str, Any]], list[Any]]:
    """Calls a layer on ``{"params": ..., "non_trainable": ...}``: outputs, both trees afterwards, losses.

    Args:
        layer: a built Keras layer.
        state: its variables: the trainable and the non-trainable ones.
        variables: their values.
        args: arguments of the layer's call.
        kwargs: passed to the layer.
        rngs: a key, or a dict of keys, from which all seeds derive; None for those of `variables`.
        function: what is called on the layer and the arguments, from `method_of`; None for the layer.

    Raises:
        StructureMismatchError: if `variables` don't match the layer.
        OwnershipError: if a leaf was donated to a step.
    """
    params, non_trainable = state
    flat = flatten_tree(variables.get("non_trainable", {}))
    given = {**flat, **_derived(rngs, non_trainable)}
    absent = {e.path: jnp.zeros((2,), jnp.uint32) for e in non_trainable if _lacks_seed(e, given)}
    before = non_trainable.leaves(nest_paths({**given, **absent}), "variables['non_trainable']")
    weights = params.leaves(variables.get("params", {}), "variables['params']")
    with explained({"variables": variables, "inputs": args}):
        outputs, values, losses = call(
            layer, params + non_trainable, weights + before, args, kwargs, function
        )
    after = values[len(params) :]
    drawn = [e for e, old, new in zip(non_trainable, before, after, strict=True) if new is not old]
    _refuse_placeholders(drawn, absent)
    return outputs, (params.tree(values[: len(params)]), non_trainable.tree(after)), losses


def _derived(rngs: Any, collection: Collection) -> Flat:
    if rngs is None or (isinstance(rngs, Mapping) and not rngs):
        return {}
    key = rngs.get("dropout", next(iter(rngs.values()))) if isinstance(rngs, Mapping) else rngs
    if not isinstance(key, jax.Array):
        raise StructureMismatchError(
            "rngs",
            got=f"a {type(key).__name__}",
            expected="a key of jax.random, or a dict of them",
            fix="Pass rngs={'dropout': jax.random.key(0)}.",
        )
    return {e.path: seeds.seed(seeds.fold(key, e.path)) for e in collection if e.kind == SEED}


def require_variables(variables: Any) -> None:
    """Checks that the first argument of an `apply_fn` is a mapping of collections."""
    if not isinstance(variables, Mapping):
        raise StructureMismatchError(
            "variables",
            got=f"a {type(variables).__name__}",
            expected="a dict",
            fix="Pass {'params': state.params, 'non_trainable': state.non_trainable}.",
        )


_FLAX_FLAGS = {"train", "deterministic", "use_running_average"}


def require_known(kwargs: Mapping[str, Any], model: Any, where: str) -> None:
    """Checks that a model takes the arguments: that none is one of Flax's names, which it would ignore.

    A Functional or a Sequential model drops every name that it doesn't know, and gives the answer of a call
    without it; those that a layer in it declares as arguments of its context are known.

    Raises:
        StructureMismatchError: naming the arguments.
    """
    known = inspect.signature(model.call).parameters
    unknown = kwargs.keys() - known.keys()
    if not _drops_words(model):  # Python, or what has **kwargs, refuses the others
        unknown &= _FLAX_FLAGS
    elif unknown:
        unknown -= keras_internals.context_arguments(model)
    if unknown:
        raise StructureMismatchError(
            where,
            got=f"the argument {', '.join(sorted(unknown))}",
            expected="training=" if unknown <= _FLAX_FLAGS else "arguments of the model's call",
            fix="A Keras model takes training=True or training=False, and ignores other arguments.",
        )


def _drops_words(model: Any) -> bool:
    """Whether the call of a model is Keras's own, of a graph of layers."""
    kinds = keras_internals.graph_classes()
    return isinstance(model, kinds) and type(model).call in [kind.call for kind in kinds]


def method_of(model: Any, method: Any, kwargs: Mapping[str, Any]) -> Callable[..., Any]:
    """The function that is called on a model in place of the model, of its name or as Linen takes it.

    Args:
        model: the Keras model.
        method: the name of a method of the model; a method, bound or not; or a function of the model.
        kwargs: the keyword arguments of the call.

    Raises:
        StructureMismatchError: if the model has no such method, or the method doesn't take an argument.
    """
    found = getattr(type(model), method, None) if isinstance(method, str) else method
    function = getattr(found, "__func__", found)
    if not callable(function):
        raise StructureMismatchError(
            "apply_fn",
            got=f"method={method!r}"[:200],
            expected=f"the name of a method of {type(model).__name__}, or a function of the model",
            fix="Define the method in the class of the model, or pass method=lambda model, x: ....",
        )
    own = inspect.signature(function).parameters
    takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in own.values())
    unknown = [] if takes_all else sorted(kwargs.keys() - own.keys())
    if unknown:
        raise StructureMismatchError(
            "apply_fn",
            got=f"the argument {', '.join(unknown)} for {getattr(function, '__name__', 'a function')}",
            expected=f"one of {', '.join(list(own)[1:])}",
            fix="A method gets what it declares: give it that argument, and pass it on to the layers.",
        )
    return function  # type: ignore[no-any-return]


def _lacks_seed(entry: Entry, given: Mapping[Path, Any]) -> bool:
    return entry.kind == SEED and entry.path not in given


def _refuse_placeholders(drawn: Sequence[Entry], absent: Mapping[Path, Any]) -> None:
    """Checks that no omitted seed was used."""
    missing = [join_path(("non_trainable", *e.path)) for e in drawn if e.path in absent]
    if missing:
        raise StructureMismatchError(
            "variables",
            report=[f"  missing     {path}" for path in missing],
            missing=missing,
            fix="The call draws random numbers: pass state.non_trainable under 'non_trainable', "
            "or rngs={'dropout': key}.",
        )


def wanted_collections(mutable: bool | str | Sequence[str]) -> Sequence[str]:
    """The collections that `mutable` names."""
    if isinstance(mutable, bool):
        return ("non_trainable", "losses") if mutable else ()
    names = [mutable] if isinstance(mutable, str) else list(mutable)
    unknown = [name for name in names if name not in ("non_trainable", "losses")]
    if unknown:
        raise StructureMismatchError(
            "mutable",
            unexpected=unknown,
            fix=f"A Keras model updates 'non_trainable' and 'losses'; there is no {unknown[0]!r}.",
        )
    return names
