"""Requirements on a batch: arrays of equal batch size, in the structure that the model takes."""

from __future__ import annotations

from typing import Any

import jax
import keras
import numpy as np

from keras_flax_bridge import keras_internals
from keras_flax_bridge.errors import StructureMismatchError
from keras_flax_bridge.tree.diff import spec_text
from keras_flax_bridge.tree.paths import Flat, flatten_tree, join_path

_FORMS = "A batch is (x,), (x, y), (x, y, sample_weight) or bare x; x and y are pytrees of arrays."


def check(model: Any, batch: Any) -> None:
    """Checks a batch against what Keras's own step will do with it.

    Args:
        model: a compiled model.
        batch: arrays, tracers or shapes.

    Raises:
        StructureMismatchError: if a part is missing, or of another structure or shape.
    """
    parts = tuple(batch) if isinstance(batch, (tuple, list)) else (batch,)
    if not 1 <= len(parts) <= 3:
        raise _mismatch("batch", f"{len(parts)} parts", "1 to 3 parts")
    x, y, _ = keras.utils.unpack_x_y_sample_weight(batch)
    named = _named_parts(batch)
    _check_numbers(named)
    check_inputs(model, x)
    if not any(
        keras_internals.is_overridden(model, method)
        for method in ("compute_loss", "compute_loss_and_updates")
    ):
        _check_targets(model, y, named)
    _check_sizes(named)


def described(batch: Any) -> str:
    """One line for each array of a batch: its path, dtype and shape."""
    return "\n".join(f"  {join_path(('batch', *p))}  {spec_text(a)}" for p, a in flatten_tree(batch).items())


def check_leaves(batch: Any) -> None:
    """Checks that every leaf of a batch is an array of numbers.

    Raises:
        StructureMismatchError: naming the leaf.
    """
    _check_numbers(_named_parts(batch))


def _named_parts(batch: Any) -> dict[str, Any]:
    parts = tuple(batch) if isinstance(batch, (tuple, list)) else (batch,)
    return dict(zip(("x", "y", "sample_weight"), parts, strict=False))


def _check_numbers(parts: dict[str, Any]) -> None:
    for path, leaf in flatten_tree(parts).items():
        kind = np.dtype(leaf.dtype).kind if isinstance(leaf, np.ndarray) else type(leaf).__name__
        if kind in ("O", "S", "U", "str", "bytes", "float", "int"):
            got = f"an array of {leaf.dtype}" if hasattr(leaf, "dtype") else f"a Python {kind}"
            raise _mismatch(join_path(("batch", *path)), got, "an array of numbers")


def _check_targets(model: Any, y: Any, parts: dict[str, Any]) -> None:
    """A compiled loss takes targets; a model that has one output takes one array of them and of weights."""
    if y is None and keras_internals.has_loss(model):
        raise _mismatch("batch/y", "no targets y", "targets for the compiled loss")
    if len(getattr(model, "outputs", None) or ()) != 1:
        return
    for part in ("y", "sample_weight"):
        count = len(jax.tree.leaves(parts.get(part)))
        if count > 1:
            raise _mismatch(f"batch/{part}", f"{count} arrays in a structure", "one array, for one output")


def check_inputs(model: Any, x: Any) -> None:
    """Checks x against the inputs of a Functional or Sequential model.

    Raises:
        StructureMismatchError: naming the input that is missing, unexpected or of another shape.
    """
    wanted = _input_shapes(model)
    if wanted is None or any(leaf is None for leaf in keras.tree.flatten(x)):
        return  # an undeclared structure, or omitted optional inputs: Keras checks these
    if isinstance(x, dict) and all(name in x for name, _ in wanted):
        given: Flat = {(name,): x[name] for name, _ in wanted}
    else:
        given = flatten_tree(x)
    got = [(path, np.shape(leaf)) for path, leaf in given.items()]
    if len(got) != len(wanted):
        raise _mismatch("batch/x", f"{len(got)} arrays", f"{len(wanted)} inputs: {_named(wanted)}")
    for (name, shape), (path, found) in zip(wanted, got, strict=True):
        if not _fits(found, shape):
            where = join_path(("batch", "x", *path))
            raise _mismatch(where, f"shape {found}", f"shape {shape} of input {name!r}")


def _input_shapes(model: Any) -> list[tuple[str, tuple[Any, ...]]] | None:
    """Names and shapes of the inputs; None if the model doesn't declare them."""
    inputs = getattr(model, "inputs", None)
    return [(tensor.name, tuple(tensor.shape)) for tensor in inputs] if inputs else None


def _named(inputs: list[tuple[str, tuple[Any, ...]]]) -> str:
    return ", ".join(f"{name} {shape}" for name, shape in inputs)


def _fits(found: tuple[Any, ...], wanted: tuple[Any, ...]) -> bool:
    """Whether a shape is one that Keras accepts: it adds or drops a last axis of size 1."""
    candidates = [found, (*found, 1)] + ([found[:-1]] if found[-1:] == (1,) else [])
    return any(
        len(shape) == len(wanted) and all(w is None or f == w for f, w in zip(shape, wanted, strict=True))
        for shape in candidates
    )


def _check_sizes(parts: dict[str, Any]) -> None:
    sizes = {path: np.shape(leaf)[0] for path, leaf in flatten_tree(parts).items() if np.ndim(leaf)}
    if 0 in sizes.values():
        raise _mismatch("batch", "an empty batch", "at least one row")
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{join_path(path)}: {size}" for path, size in sizes.items())
        raise _mismatch("batch", f"arrays of different batch sizes ({listed})", "one batch size")


def check_leading_axis(batches: Any, length: int) -> None:
    """Checks that every leaf carries the axis that `steps_per_call` asks for.

    Raises:
        StructureMismatchError: naming the leaf.
    """
    for path, leaf in flatten_tree(batches).items():
        if np.shape(leaf)[:1] != (length,):
            raise _mismatch(
                join_path(("batch", *path)),
                f"shape {np.shape(leaf)}",
                f"a leading axis of size {length}, for steps_per_call={length}",
            )


def one_of(batches: Any, steps: int) -> Any:
    """The shapes of one batch, from the shapes of a call."""
    check_leaves(batches)
    shapes = keras_internals.specs(batches)
    if steps == 1:
        return shapes
    check_leading_axis(shapes, steps)
    return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape[1:], s.dtype), shapes)


def _mismatch(where: str, got: str, expected: str) -> StructureMismatchError:
    return StructureMismatchError(where, got=got, expected=expected, fix=_FORMS)
