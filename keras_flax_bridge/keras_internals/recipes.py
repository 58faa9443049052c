"""What makes a layer once more, in this process or out of a pickle: its config, or a function."""

from __future__ import annotations

import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import keras
import numpy as np

from keras_flax_bridge.errors import UnsupportedLayerError, said
from keras_flax_bridge.keras_internals.entries import Entry
from keras_flax_bridge.keras_internals.filling import filled
from keras_flax_bridge.keras_internals.keys import collect_layer, layers_by_path
from keras_flax_bridge.keras_internals.leftovers import forget_values
from keras_flax_bridge.keras_internals.models import all_layers, build_layer, is_complete, shapes_to_specs
from keras_flax_bridge.keras_internals.restructuring import Structure, restructure, structure_of
from keras_flax_bridge.keras_internals.safe_mode import code_in_configs
from keras_flax_bridge.keras_internals.valueless import Valueless
from keras_flax_bridge.keras_internals.values import holds_value, refresh
from keras_flax_bridge.tree.paths import Path

Make = Callable[[], Any]
Specs = Mapping[Path, jax.ShapeDtypeStruct]


class Recipe(NamedTuple):
    """All that a layer is but for the values of its variables.

    Attributes:
        name: the layer's name, for messages.
        kind: its class.
        config: its config; None with `make`.
        make: the function that makes it.
        classes: the classes in it that are not Keras's, by the names in the config.
        built: what `get_build_config` says; None where Keras's own `build` is to run.
        shapes: the shapes that it was built for, by argument.
        trained: the trainable variables.
        others: the other variables.
        structure: what the config does not say.
    """

    name: str
    kind: type
    config: dict[str, Any] | None
    make: Make | None
    classes: dict[str, type]
    built: dict[str, Any] | None
    shapes: dict[str, Any]
    trained: Specs
    others: Specs
    structure: Structure


def recipe_of(layer: Any, make: Make | None = None) -> Recipe:
    """What makes such a layer again.

    Raises:
        UnsupportedLayerError: if the layer has no config, and no function makes it.
    """
    try:
        config = layer.get_config() if make is None else None
    except (NotImplementedError, TypeError, ValueError) as error:
        raise cannot_rebuild(layer.name, type(layer), said(error)) from error
    # `_is_default`: Keras's mark of a `build` that nobody wrote; it builds no sublayer
    by_hand = not getattr(type(layer).build, "_is_default", False)
    # `_build_shapes_dict`: the shapes that the layer was built for; its config loses their names
    shapes = {k: shape for k, shape in (layer._build_shapes_dict or {}).items() if shape is not None}
    trained, others = (part.specs() for part in collect_layer(layer))
    return Recipe(
        name=layer.name,
        kind=type(layer),
        config=_plain(config),
        make=make,
        classes=_classes(layer),
        built=_plain(layer.get_build_config()) if by_hand else None,
        shapes=_plain(shapes),
        trained=trained,
        others=others,
        structure=structure_of(layer),
    )


def _classes(layer: Any) -> dict[str, type]:
    """The classes that a config names; of two of one name none, for Keras to import them."""
    # registered or not; Keras's own would hide its operations of the same names, such as Add
    own = {type(part) for part in all_layers(layer) if not type(part).__module__.startswith("keras.")}
    named = {(name, cls) for cls in own for name in (cls.__name__, keras.saving.get_registered_name(cls))}
    taken = Counter(name for name, _ in named)
    return {name: cls for name, cls in named if taken[name] == 1}


def _plain(config: Any) -> Any:
    """A copy of a config, which `from_config` may change, without the containers in which Keras tracks."""
    if isinstance(config, dict):
        return {key: _plain(value) for key, value in config.items()}
    if isinstance(config, list) or type(config) is tuple:
        return (tuple if isinstance(config, tuple) else list)(map(_plain, config))
    return config


def made_by(recipe: Recipe) -> Any:
    """The layer that a recipe makes, as built as the first one was.

    Raises:
        UnsupportedLayerError: if the config does not make such a layer.
    """
    if recipe.make is not None:
        layer = recipe.make()
        _build(layer, recipe)
        return layer
    try:
        with keras.saving.custom_object_scope(recipe.classes), warnings.catch_warnings():
            # of layers that build their sublayers when they are called, as is done below
            warnings.filterwarnings("ignore", "`build.*` was called on layer", UserWarning)
            layer = recipe.kind.from_config(_plain(recipe.config))  # type: ignore[attr-defined]
        _build(layer, recipe)
        restructure(layer, recipe.trained, recipe.others, recipe.structure)
    except (NotImplementedError, TypeError, ValueError) as error:
        raise cannot_rebuild(recipe.name, recipe.kind, said(error)) from error
    return layer


def _build(layer: Any, recipe: Recipe) -> None:
    if is_complete(layer):
        return
    if recipe.built is not None:
        layer.build_from_config(_plain(recipe.built))
    specs = {name.removesuffix("_shape"): shapes_to_specs(layer, s) for name, s in recipe.shapes.items()}
    if specs and not is_complete(layer):
        first = next(iter(specs))
        build_layer(layer, specs.pop(first), **specs)


def cannot_rebuild(name: str, kind: type, reason: str) -> UnsupportedLayerError:
    """The error for a layer that its config does not make."""
    return UnsupportedLayerError(
        f"layer {name!r}",
        got=f"a {kind.__name__} that can't be rebuilt ({reason})",
        expected="get_config() and get_build_config() that rebuild it",
        fix="Pass a function that makes the layer in place of the layer itself, define them as described in "
        "Keras's guide on serialization, or use the layer's current values.",
    )


# --- pickling


class Pickled:
    """A layer as it goes into a pickle, out of which comes the layer itself.

    Keras's own pickles need the class registered on the other side, and lose variables that layers build
    only when they are called; this is a recipe and the values.
    """

    def __init__(self, layer: Any, make: Make | None):
        self._layer = weakref.ref(layer)  # whoever has this holds the layer too
        self._make = make
        self._is_checked = False

    def __reduce__(self) -> tuple[Any, ...]:
        layer = self._layer()
        recipe = recipe_of(layer, self._make)
        if not self._is_checked:  # what could not be read back is refused when it is written
            twin = Valueless().run(lambda: _made_with_code(recipe))
            _require_same(twin, recipe)
            _require_known_arguments(layer, twin)
            self._is_checked = True
        return _unpickled, (recipe, {e.path: _content(e) for e in _entries(layer) if _has_content(e)})


def pickled(layer: Any, make: Make | None) -> Pickled:
    """A layer as it goes into a pickle: one object for each layer, so that a pickle has it once."""
    if layer not in _PICKLED:
        _PICKLED[layer] = Pickled(layer, make)
    return _PICKLED[layer]


_PICKLED: weakref.WeakKeyDictionary[Any, Pickled] = weakref.WeakKeyDictionary()


def _unpickled(recipe: Recipe, values: Mapping[Path, np.ndarray[Any, Any]]) -> Any:
    def build() -> Any:
        return _made_with_code(recipe)

    def fill(layer: Any) -> None:
        _require_same(layer, recipe)
        for entry in _entries(layer):
            if entry.path in values:
                entry.variable.assign(values[entry.path])

    if recipe.make is None and len(values) == len({**recipe.trained, **recipe.others}):
        layer = filled(build, fill)
        refresh(layer)
        return layer
    layer = Valueless().run(build)
    forget_values(layer)
    fill(layer)
    return layer


def _made_with_code(recipe: Recipe) -> Any:
    with code_in_configs():
        return made_by(recipe)


def _require_same(layer: Any, recipe: Recipe) -> None:
    found = {path: spec for part in collect_layer(layer) for path, spec in part.specs().items()}
    if found != {**recipe.trained, **recipe.others}:
        differing = sorted(
            "/".join(p) for p, _ in found.items() ^ {**recipe.trained, **recipe.others}.items()
        )
        raise cannot_rebuild(recipe.name, recipe.kind, f"other variables: {', '.join(differing[:5])}")


def _require_known_arguments(layer: Any, twin: Any) -> None:
    """Checks that models without a `get_config` of their own got their arguments: Keras forgets those."""
    twins = layers_by_path(twin)
    for path, part in layers_by_path(layer).items():
        keras_s_own = type(part).get_config.__module__.startswith("keras.")
        if keras_s_own and isinstance(part, keras.Model) and not type(part).__module__.startswith("keras."):
            wanted, found = _numbers(part), _numbers(twins[path])
            differing = [n for n, value in wanted.items() if n in found and found[n] != value]
            if differing:
                reason = f"it has no get_config, and its copy has another {', '.join(differing)}"
                raise cannot_rebuild(part.name, type(part), reason)


def _numbers(model: Any) -> dict[str, Any]:
    """The plain values in the attributes that a class adds to a model."""
    plain, own = (bool, int, float, str, type(None)), vars(keras.Model())
    return {n: value for n, value in vars(model).items() if n not in own and isinstance(value, plain)}


def _entries(layer: Any) -> list[Entry]:
    return [entry for part in collect_layer(layer) for entry in part]


def _has_content(entry: Entry) -> bool:
    return holds_value(entry.variable)


def _content(entry: Entry) -> np.ndarray[Any, Any]:
    return np.asarray(entry.variable.value)
