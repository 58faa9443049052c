"""A Keras model as a file of native Flax source, and a checkpoint of its weights that needs no Keras."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax import nnx

from keras_flax_bridge.checkpoint import orbax_io
from keras_flax_bridge.checkpoint.restoring import restore
from keras_flax_bridge.checkpoint.saving import state_metadata
from keras_flax_bridge.cli.files.replacing import beside, require_free
from keras_flax_bridge.errors import BridgeError, CheckpointError, said
from keras_flax_bridge.migrate.convert import Conversion, converted
from keras_flax_bridge.migrate.map_schema import Pair
from keras_flax_bridge.migrate.python_text import executed
from keras_flax_bridge.migrate.source.writer import Source
from keras_flax_bridge.migrate.weight_map import WeightMap
from keras_flax_bridge.tree.leaves import on_disk
from keras_flax_bridge.tree.paths import Flat, join_path

_WEIGHTS = nnx.Not(nnx.RngState)  # dropout keys come from the caller that creates the module


class Ejected(NamedTuple):
    """What was written: the class in the source, how many weights, how the conversion went."""

    class_name: str
    leaves: int
    report: Any


def eject(model: Any, file: Path, source: Path, weights: Path, class_name: str, *, force: bool) -> Ejected:
    """Writes the source and the weights, and reads both back.

    Args:
        model: a Keras model.
        file: where it comes from.
        source: the ``.py`` file to write.
        weights: the folder of the checkpoint to write; its leaves have the names of the module's.
        class_name: of the module.
        force: whether existing targets may be replaced.

    Raises:
        CheckpointError: if either can't be written.
        UnsupportedLayerError: naming the layers that can't be converted.
    """
    for path, other in ((source, file), (weights, file), (source, weights)):
        require_free(path, source=other, force=force)
    with _converting(file):
        conversion = Conversion(model, class_name, "error")
        module = converted(conversion)
    flat = _flat(module)
    with beside(source) as file_draft, beside(weights) as folder_draft:
        file_draft.write_text(conversion.source.text, encoding="utf-8")
        orbax_io.save(folder_draft, _saved(flat), None, _metadata(flat), packed=False)
        _require_equal(_read_back(conversion.source, file_draft, folder_draft), flat, source)
    return Ejected(type(module).__name__, len(flat), type(module).conversion_report)


@contextlib.contextmanager
def _converting(file: Path) -> Iterator[None]:
    """Names the file of a model that can't be run: its settings are untrusted."""
    try:
        yield
    except BridgeError:
        raise
    except Exception as error:  # Keras and jax raise many kinds
        raise CheckpointError(
            str(file),
            got=f"a model that can't be converted or run ({type(error).__name__}: {said(error)})",
            expected="layer settings that can be run",
            fix="Run the model in Keras first. The file may be damaged or malicious.",
        ) from error


def _flat(module: Any) -> Flat:
    state = nnx.to_flat_state(nnx.state(module, _WEIGHTS))
    return {tuple(map(str, path)): leaf.get_value() for path, leaf in state}


def _saved(flat: Flat) -> Flat:
    return {("params", *path): on_disk(leaf) for path, leaf in flat.items()}


def _metadata(flat: Flat) -> dict[str, Any]:
    """What lets `kfb.restore` fill a module of the source: every leaf has the name that it has there."""
    same = WeightMap([Pair((path,), (path,)) for path in flat])
    return {**state_metadata(None, None), "weight_map": same.to_json()}


def _read_back(source: Source, file: Path, weights: Path) -> Flat:
    """The weights, as a module of what lies in the file has them; nothing else than the source is run."""
    text = file.read_text(encoding="utf-8")
    if text != source.text:
        raise CheckpointError(
            str(file),
            got="text that differs from what was written",
            expected="the same text",
            fix="Check the disk.",
        )
    made = executed(text, str(file), {"__name__": "keras_flax_bridge_ejected"})
    return _flat(restore(weights, made[source.class_name](rngs=nnx.Rngs(0))))


def _require_equal(back: Flat, flat: Flat, source: Path) -> None:
    differing = [
        join_path(path) for path in flat if not np.array_equal(back[path], flat[path], equal_nan=True)
    ]
    if differing:
        raise CheckpointError(
            str(source),
            got=f"weights that came back otherwise: {', '.join(differing)}",
            expected="those of the model, bit for bit",
            fix="Nothing was written. This is a bug in keras_flax_bridge: please report it.",
        )
