"""A Keras model as a file of native Flax source, and a checkpoint of its weights that needs no Keras."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from flax import nnx

from keras_flax_bridge.checkpoint import keras_files, orbax_io
from keras_flax_bridge.checkpoint.memory import give_back
from keras_flax_bridge.checkpoint.readers import Held, opened
from keras_flax_bridge.checkpoint.saving import versions
from keras_flax_bridge.cli.files.comparing import unlike
from keras_flax_bridge.cli.files.replacing import beside, require_free
from keras_flax_bridge.errors import BridgeError, CheckpointError, said
from keras_flax_bridge.migrate.convert import Conversion, abstract, converted
from keras_flax_bridge.migrate.map_schema import Pair
from keras_flax_bridge.migrate.python_text import executed
from keras_flax_bridge.migrate.source.writer import Source
from keras_flax_bridge.migrate.weight_map import WeightMap
from keras_flax_bridge.tree.diff import diff_trees
from keras_flax_bridge.tree.leaves import on_disk
from keras_flax_bridge.tree.paths import Flat, join_path

_WEIGHTS = nnx.Not(nnx.RngState)  # dropout keys come from the caller that creates the module


class Ejected(NamedTuple):
    """The result of `eject`: the class in the source, the number of weights, and the conversion report."""

    class_name: str
    leaves: int
    report: Any


def eject(file: Path, source: Path, weights: Path, class_name: str, *, force: bool) -> Ejected:
    """Writes the source and the weights of a Keras model, and reads both back.

    Args:
        file: the model, a ``.keras`` file.
        source: the ``.py`` file to write.
        weights: the folder of the checkpoint to write; its leaves have the names of the module's.
        class_name: of the module.
        force: whether existing targets may be replaced.

    Raises:
        CheckpointError: if the file can't be read, or either can't be written.
        UnsupportedLayerError: naming the layers that can't be converted.
    """
    for path, other in ((source, file), (weights, file), (source, weights)):
        require_free(path, source=other, force=force)
    made, flat, report = _converted(file, class_name)
    gc.collect()  # models hold themselves
    give_back()
    with beside(source) as file_draft, beside(weights) as folder_draft:
        file_draft.write_text(made.text, encoding="utf-8")
        orbax_io.save(folder_draft, flat, None, _metadata(flat), packed=False)
        _require_equal(made, file_draft, folder_draft, flat)
    return Ejected(made.class_name, len(flat), report)


def _converted(file: Path, class_name: str) -> tuple[Source, Flat, Any]:
    """The source of a model, what its module holds, and the report; of the model nothing is kept."""
    model = keras_files.load_model(file)
    with _converting(file):
        conversion = Conversion(model, class_name, "error")
        module: Any = converted(conversion, copies=False)
    state = nnx.to_flat_state(nnx.state(module, _WEIGHTS))
    flat = {("params", *map(str, path)): on_disk(leaf.get_value()) for path, leaf in state}
    return conversion.source, flat, type(module).conversion_report


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


def _metadata(flat: Flat) -> orbax_io.Metadata:
    """The metadata with which `kfb.restore` fills a module: leaves have the paths of the module."""
    same = WeightMap([Pair((path[1:],), (path[1:],)) for path in flat])
    return orbax_io.Metadata(versions=versions(), weight_map=same.to_json())


def _require_equal(source: Source, file: Path, weights: Path, flat: Flat) -> None:
    """Checks that a module of the text in the file takes every leaf, and that each came back bit for bit."""
    text = file.read_text(encoding="utf-8")
    if text != source.text:
        raise CheckpointError(
            str(file),
            got="text that differs from the written text",
            expected="the same text",
            fix="Check the disk.",
        )
    made = executed(text, str(file), {"__name__": "keras_flax_bridge_ejected"})  # nothing else is run
    state = nnx.to_flat_state(nnx.state(abstract(made[source.class_name]), _WEIGHTS))
    wanted = {("params", *map(str, path)): on_disk(leaf.get_value()) for path, leaf in state}
    back = opened(weights)
    difference = diff_trees(back.specs, wanted)
    differing = list(unlike(back, {path: path for path in back.specs}, Held(file, flat)))
    if difference or differing:
        names = ", ".join(map(join_path, differing))
        raise CheckpointError(
            str(file),
            got=difference.table() if difference else f"weights that came back otherwise: {names}",
            expected="those of the model, bit for bit",
            fix="Nothing was written. This is a bug in keras_flax_bridge: please report it.",
        )
