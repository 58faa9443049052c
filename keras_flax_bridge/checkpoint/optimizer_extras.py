"""Optimizer settings that a config lacks, which are stored beside the config of the model.

``{"exclude_from_weight_decay": {part: {"names": [...], "variables": [...]}}}``: `part` is the place of an
optimizer inside of others, as its slots are keyed, and ``""`` for the outermost; `variables` are structural
keys. Both lists exclude; either may be missing. A ``.keras`` file that this package writes has the same in
the comment of its zip archive, which Keras does not read.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

import keras

from keras_flax_bridge import keras_internals
from keras_flax_bridge.errors import CheckpointError
from keras_flax_bridge.keras_internals import Exclusions, exclusions
from keras_flax_bridge.tree.paths import join_path
from keras_flax_bridge.tree.untrusted import records, schema, texts
from keras_flax_bridge.tree.untrusted.records import Record, field

EXTRAS = "optimizer_extras"  # its name in the config of a model
_DECAY, _NAMES, _VARIABLES = "exclude_from_weight_decay", "names", "variables"
# Keras searches names as regular expressions. One that a file gives is searched only where it is plain words,
# which can't take long; of others the variables that they match are stored.
_WORD = re.compile(r"[\w./-]+")


def of_model(model: Any) -> dict[str, Any]:
    """The settings of a compiled model that its config lacks, as JSON types under `EXTRAS`; empty if none."""
    given = {name: exclusions(part) for name, part in _parts(model).items()}
    found = {name: _stored(model, own) for name, own in given.items() if own.pattern is not None or own.ids}
    return {EXTRAS: {_DECAY: found}} if found else {}


def _parts(model: Any) -> dict[str, Any]:
    """The Keras optimizer of a model and its inner optimizers by path; empty for an uncompiled model."""
    optimizer = getattr(model, "optimizer", None)
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        return {}
    return {join_path(path): part for path, part in keras_internals.optimizer_parts(optimizer).items()}


def _stored(model: Any, own: Exclusions) -> dict[str, list[str]]:
    words = sorted((own.pattern or "").split("|"))
    if all(map(_WORD.fullmatch, words)):
        return {_NAMES: words, _VARIABLES: [key for key, v in _weights(model) if id(v) in own.ids]}
    pattern = None if own.pattern is None else re.compile(own.pattern)
    matches = [key for key, v in _weights(model) if pattern is not None and pattern.search(v.name)]
    return {_VARIABLES: [key for key, v in _weights(model) if id(v) in own.ids or key in matches]}


def _weights(model: Any) -> Iterator[tuple[str, Any]]:
    """All weights by structural key, including frozen ones, which may be trained later."""
    return (
        (join_path(entry.path), entry.variable)
        for part in keras_internals.collect_layer(model)
        for entry in part
    )


def put_back(model: Any, config: Any, where: Any) -> Any:
    """Returns the model, after its optimizer got the settings that are stored beside the config.

    Args:
        model: the model built from `config`; an uncompiled model does not use the settings.
        config: the dict in a checkpoint or a file, which is data: nothing in it is trusted.
        where: the checkpoint, for errors.

    Raises:
        CheckpointError: listing what is malformed, or is not in the model.
    """
    found = config.get(EXTRAS) if isinstance(config, Mapping) else config
    parts = _parts(model)
    if found is None or not parts:
        return model
    weights = dict(_weights(model))
    require_right(
        _wrong(found, parts, weights),
        f"{where}: {EXTRAS}",
        "lists of names and of structural keys, by the path of an optimizer in the model",
    )
    for name, own in found.get(_DECAY, {}).items():
        pattern = "|".join(own.get(_NAMES, [])) or None
        keras_internals.exclude(parts[name], pattern, [weights[key] for key in own.get(_VARIABLES, [])])
    return model


def require_right(wrong: Iterable[str], where: str, expected: str) -> None:
    """Checks that nothing is wrong in what is stored beside a config.

    Raises:
        CheckpointError: listing what is.
    """
    if found := ", ".join(wrong):
        fix = "Build and compile the model yourself and call restore(path, model)."
        raise CheckpointError(where, got=found, expected=expected, fix=fix)


def _wrong(found: Any, parts: Mapping[str, Any], weights: Mapping[str, Any]) -> Iterator[str]:
    """The errors in stored settings, by path."""
    given = found.get(_DECAY, {}) if isinstance(found, dict) else found
    if not isinstance(given, dict):
        yield f"{_DECAY}: a {type(given).__name__}"
        return
    for part, own in given.items():
        place = f"{_DECAY}/{part[:100]!r}"
        if part not in parts:
            yield f"{place}, which is not an optimizer of the model"
        elif not isinstance(own, dict):
            yield f"{place}: a {type(own).__name__}"
        else:
            yield from _strange(f"{place}/{_NAMES}", own.get(_NAMES, []), _WORD.fullmatch)
            yield from _strange(f"{place}/{_VARIABLES}", own.get(_VARIABLES, []), weights.__contains__)


def _strange(place: str, listed: Any, is_known: Callable[[str], Any]) -> Iterator[str]:
    if not isinstance(listed, list):
        yield f"{place}: a {type(listed).__name__}"
        return
    for item in listed:
        if not isinstance(item, str):
            yield f"{place}: a {type(item).__name__}"
        elif not is_known(item):
            yield f"{place}: {item[:100]!r}"


def write(path: FilePath, model: Any) -> str | None:
    """Adds the settings that Keras doesn't store to a `.keras` file; returns notes for the user."""
    extras = of_model(model)
    if not extras:
        return None
    comment = json.dumps({_OURS: records.to_json(Comment(**extras))}).encode()
    if len(comment) > zipfile.ZIP_MAX_COMMENT:
        return "exclusions from weight decay, which are too many for a .keras file, are left out"
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = comment
    return "exclusions from weight decay, which Keras does not read: load it with kfb.load_model"


def read(path: FilePath) -> dict[str, Any]:
    """Reads the settings that `write` added to a `.keras` file, for `put_back`.

    Raises:
        CheckpointError: if it is not JSON, or a newer version wrote it in a way of its own.
    """
    with zipfile.ZipFile(path) as archive:
        comment = archive.comment
    if not comment.startswith(_START):
        return {}
    where = f"{path}: the comment of the zip archive"
    found = texts.parsed(comment.decode(errors="replace"), where, CheckpointError)
    extras = records.from_json(Comment, found[_OURS], where, fix=_FIX).optimizer_extras
    return {} if extras is None else {EXTRAS: extras}


_OURS = "keras_flax_bridge"
_START = f'{{"{_OURS}":'.encode()
_FIX = "Load the file with keras.saving.load_model, and exclude from weight decay yourself."


@dataclass(frozen=True, kw_only=True)
class Comment(Record):
    """The record that this package adds to a `.keras` file."""

    optimizer_extras: Mapping[str, Any] | None = field(schema.table_of(schema.anything), default=None)
