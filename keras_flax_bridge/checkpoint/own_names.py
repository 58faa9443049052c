"""Files whose names are their writers' own: they become structural keys before anything is matched."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import keras

from keras_flax_bridge import keras_internals
from keras_flax_bridge.checkpoint.matching import renamed
from keras_flax_bridge.checkpoint.options import RestoreOptions
from keras_flax_bridge.checkpoint.readers import Contents, Renamed
from keras_flax_bridge.checkpoint.targets import Target
from keras_flax_bridge.errors import ArgumentError, printable
from keras_flax_bridge.keras_internals import SEED
from keras_flax_bridge.optimizers.step_interface import training_model
from keras_flax_bridge.state.building import built
from keras_flax_bridge.state.multi_model import models_of
from keras_flax_bridge.state.trees import METRIC, SLOT, STEP, kind_of
from keras_flax_bridge.tree.leaves import is_abstract
from keras_flax_bridge.tree.paths import Path, join_path

log = logging.getLogger("keras_flax_bridge")
_TOTALS = ("total", "count")  # what metrics add up; before they see data, they have no variables to name it
_COUNTERS = (("opt_state", "iteration"), ("opt_state", "inner_optimizer", "iteration"))


def named(source: Contents, like: Any, options: RestoreOptions) -> tuple[Contents, RestoreOptions]:
    """What is stored by the names that matching knows, and the options that are left.

    `rename` of a file of others takes the names as they are in the file; so it does before ``keys="path"``.
    """
    by_path = options.keys == "path"
    if source.own_names and not by_path and isinstance(like, Mapping):  # it may be flat, with / in its names
        flat: dict[Path, Path] = {(name,): path for path in source.specs if (name := join_path(path)) in like}
        kept = {path: path for path in source.specs if path not in flat.values()}
        source = Renamed(source, {**kept, **flat}) if flat else source
    if options.rename is not None and options.weight_map is None and (by_path or source.own_names):
        raw = {_split(path) if by_path else path: path for path in source.specs}
        names = renamed(raw, options.rename, f"checkpoint {source.path}")
        source = Renamed(source, {name: raw[place] for name, place in names.items()})
        options = replace(options, rename=None)
    if by_path:
        source = _by_path(source, like)
    return source, options


def _split(path: Path) -> Path:
    """A path whose names may be several: Orbax and flat dictionaries keep ``dense/kernel`` in one name."""
    return tuple(name for part in path for name in part.split("/"))


def _by_path(source: Contents, like: Any) -> Contents:
    raw = {_split(path): path for path in source.specs}
    model = _model_of(like)
    found = keras_internals.found_by_path(model, raw)
    counter = next((found[path] for path in _COUNTERS if path in found), None)
    places = {name: raw[place] for name, place in found.items()}
    if counter is not None and not isinstance(like, keras.layers.Layer):
        places[("step",)] = raw[counter]
    taken = set(found.values())
    unseen = getattr(model, "compiled", False) and not keras_internals.metrics_built(model)
    left = {path: place for path, place in raw.items() if path not in taken and path not in places}
    totals = {path for path in left if unseen and path[-1] in _TOTALS and len(path) == 2}
    return Renamed(source, places | {("metrics", *p) if p in totals else p: left[p] for p in left})


def _model_of(like: Any) -> Any:
    """The Keras model whose paths the names are, with its optimizer built, if there is one."""
    model: Any = like if isinstance(like, keras.layers.Layer) else None
    model = model or getattr(getattr(like, "_held", None), "layer", None)  # of a `ToNNX`
    model = model or models_of(getattr(like, "apply_fn", None)).get("")
    if model is None or not model.built:
        raise ArgumentError(
            "keys",
            got=f"keys='path' with a {type(like).__name__}",
            expected="a built Keras model, or a TrainState or ToNNX of one, whose variables have paths",
            fix="Restore into the model first, or map the names with rename=; kfb.keys(model) lists both.",
        )
    return built(training_model(model), None) if getattr(model, "compiled", False) else model


def completed(
    source: Contents, target: Target, like: Any, options: RestoreOptions
) -> tuple[Contents, Target]:
    """The kinds of which files of others hold nothing stay as they are; abstract ones start anew.

    They are seeds and metrics, as in Keras's own files; by path, which `model.weights` mostly has, slots too.
    """
    there = {*map(_sort, source.specs)}
    lacking = {path: leaf for path, leaf in target.wanted.items() if _sort(path) not in there}
    in_place = isinstance(like, keras.layers.Layer)
    starts = {p: _start(p, leaf) for p, leaf in lacking.items() if not in_place and is_abstract(leaf)}
    starts = {path: value for path, value in starts.items() if value is not None}
    kinds = (SEED, METRIC, SLOT, STEP) if options.keys else (SEED, METRIC)
    keep = {p for p, leaf in lacking.items() if _sort(p)[0] in kinds and (in_place or not is_abstract(leaf))}
    slots = [join_path(path) for path in keep if kind_of(path) == SLOT]
    if slots:
        log.warning(
            "%s: it holds nothing of the optimizer, which stays as it is (%d leaves, such as %s)",
            printable(str(source.path)),
            len(slots),
            min(slots),
        )
    found = Renamed(source, {name: name for name in source.specs}, starts) if starts else source
    return found, target._replace(optional={*target.optional, *keep})


def _start(path: Path, leaf: Any) -> Any:
    """The value with which a seed or a metric begins; None for other leaves."""
    kind = _sort(path)[0]
    if kind == SEED:
        return keras_internals.seed_at(path[1:])
    return jnp.zeros(leaf.shape, leaf.dtype) if kind == METRIC else None


def _sort(path: Path) -> tuple[str, str]:
    """The kind of a leaf, and the tree that it is of; wrappers have seeds among their weights."""
    if path[-1].startswith("seed_generator_state"):
        return SEED, ""
    return kind_of(path), path[0]
