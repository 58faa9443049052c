"""Estimates the memory of a model on each device of a mesh; nothing is allocated."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import AbstractMesh, PartitionSpec

from keras_flax_bridge.keras_internals import PARAM
from keras_flax_bridge.sharding.rules import axis_parts, layouts
from keras_flax_bridge.state.train_state import TrainState
from keras_flax_bridge.state.trees import SLOT, kind_of
from keras_flax_bridge.tree.leaves import size_of
from keras_flax_bridge.tree.paths import Flat, Path, flatten_tree, join_path

Rules = list[tuple[str, PartitionSpec]]
KINDS = ("params", "slots", "averages", "other")
_AVERAGES = ("model_variables_moving_average", "ema")


class Plan(NamedTuple):
    """Bytes on each device under one layout, by kind, and the bytes of a checkpoint."""

    layout: str
    per_device: dict[str, int]
    checkpoint: int


def plans(state: Any, axes: Mapping[str, int]) -> list[Plan]:
    """The plans of some layouts for an abstract state.

    Args:
        state: an abstract `TrainState`.
        axes: sizes of the mesh's axes by name.
    """
    mesh = AbstractMesh(tuple(axes.values()), tuple(axes))
    flat = flatten_tree(state)
    return [_plan(name, flat, layouts(state, mesh, rules, {}), axes) for name, rules in _rules(flat, axes)]


def _rules(flat: Flat, axes: Mapping[str, int]) -> Iterable[tuple[str, Rules]]:
    weights = {path: leaf.shape for path, leaf in flat.items() if kind_of(path) == PARAM}
    first, *others = axes
    yield "replicated: data parallel", []
    yield f"weights split over {first}: FSDP", _each(weights, [(first,)], axes)
    if others:
        everything = tuple(axes)
        yield f"weights split over {' and '.join(everything)}: FSDP", _each(weights, [everything], axes)
        pairs = [(axis,) for axis in (*others, first)]
        yield f"one axis split over {', '.join(others)}, another over {first}", _each(weights, pairs, axes)


def _each(weights: Mapping[Path, Any], splits: Sequence[tuple[str, ...]], axes: Mapping[str, int]) -> Rules:
    """A rule for each weight: splits its largest divisible axes in turn."""
    found = ((path, _spec(shape, splits, axes)) for path, shape in weights.items())
    return [(f"^{re.escape(join_path(path))}$", spec) for path, spec in found if any(spec)]


def _spec(
    shape: tuple[int, ...], splits: Sequence[tuple[str, ...]], axes: Mapping[str, int]
) -> PartitionSpec:
    entries: list[Any] = [None] * len(shape)
    for split in splits:
        parts = math.prod(axes[name] for name in split)
        free = [i for i, size in enumerate(shape) if entries[i] is None and size % parts == 0]
        if free:
            entries[max(free, key=lambda i: shape[i])] = split if len(split) > 1 else split[0]
    return PartitionSpec(*entries)


def _plan(name: str, flat: Flat, found: Mapping[Path, Any], axes: Mapping[str, int]) -> Plan:
    per_device = dict.fromkeys(KINDS, 0)
    for path, leaf in flat.items():
        per_device[_kind(path)] += size_of(leaf) // math.prod(axis_parts(found[path].spec, axes))
    return Plan(name, per_device, sum(map(size_of, flat.values())))


def _kind(path: Path) -> str:
    kind = kind_of(path)
    if kind == SLOT:
        return "averages" if any(name in _AVERAGES for name in path) else "slots"
    return "params" if kind == PARAM else "other"


def abstract(build: Callable[[], Any], optimizer: Any) -> Any:
    """The abstract state of a model."""
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        return TrainState.abstract(build, optimizer=optimizer)
