"""What is wrong with a batch that Keras's own step refused."""

from __future__ import annotations

from typing import Any

import jax
import keras
import numpy as np

from keras_flax_bridge import keras_internals
from keras_flax_bridge.errors import StructureMismatchError, said
from keras_flax_bridge.tree.diff import spec_text
from keras_flax_bridge.tree.paths import Flat, flatten_tree, join_path

# what Keras and jax raise for a batch that they can't take
REFUSALS = (TypeError, ValueError, RuntimeError, AttributeError, LookupError)
_FORMS = "A batch is (x,), (x, y), (x, y, sample_weight) or bare x; x and y are pytrees of arrays."


def explain_batch(model: Any, method: str, batch: Any, error: BaseException) -> None:
    """Explains an error of Keras's own step by the batch, if that is the cause.

    It is called after Keras refused the batch: what Keras takes is never refused.

    Args:
        model: a model; compiled, but for ``predict_step``.
        method: ``train_step``, ``test_step`` or ``predict_step``; nothing is known of an overridden one.
        batch: arrays, tracers or shapes.
        error: what Keras raised.

    Raises:
        StructureMismatchError: if a part is missing, or of another structure or shape.
    """
    if method == "predict_step":
        _explain_inputs(model, batch, error)
    elif not keras_internals.is_overridden(model, method):
        _explain_parts(model, batch, error)


def _explain_parts(model: Any, batch: Any, error: BaseException) -> None:
    parts = tuple(batch) if isinstance(batch, (tuple, list)) else (batch,)
    if not 1 <= len(parts) <= 3:
        raise _mismatch("batch", f"{len(parts)} parts", "1 to 3 parts") from error
    named = _named_parts(batch)
    _explain_inputs(model, named["x"], error)
    if not any(
        keras_internals.is_overridden(model, method)
        for method in ("compute_loss", "compute_loss_and_updates")
    ):
        _explain_targets(model, named, error)
    _explain_sizes(named, error)


def described(batch: Any) -> str:
    """One line for each array of a batch: its path, dtype and shape."""
    return "\n".join(f"  {join_path(('batch', *p))}  {spec_text(a)}" for p, a in flatten_tree(batch).items())


def check_leaves(batch: Any) -> None:
    """Checks that every leaf of a batch is an array of numbers.

    Raises:
        StructureMismatchError: naming the leaf.
    """
    for path, leaf in flatten_tree(_named_parts(batch)).items():
        kind = np.dtype(leaf.dtype).kind if isinstance(leaf, np.ndarray) else type(leaf).__name__
        if kind in ("O", "S", "U", "str", "bytes", "float", "int"):
            got = f"an array of {leaf.dtype}" if hasattr(leaf, "dtype") else f"a Python {kind}"
            raise _mismatch(join_path(("batch", *path)), got, "an array of numbers")


def _named_parts(batch: Any) -> dict[str, Any]:
    parts = tuple(batch) if isinstance(batch, (tuple, list)) else (batch,)
    return dict(zip(("x", "y", "sample_weight"), parts, strict=False))


def _explain_targets(model: Any, parts: dict[str, Any], error: BaseException) -> None:
    """A compiled loss takes targets; a model that has one output takes one array of them and of weights."""
    if parts.get("y") is None and keras_internals.has_loss(model):
        raise _mismatch("batch/y", "no targets y", "targets for the compiled loss") from error
    if len(getattr(model, "outputs", None) or ()) != 1:
        return
    for part in ("y", "sample_weight"):
        count = len(jax.tree.leaves(parts.get(part)))
        if count > 1:
            got = f"{count} arrays in a structure"
            raise _mismatch(f"batch/{part}", got, "one array, for one output") from error


def _explain_inputs(model: Any, x: Any, error: BaseException) -> None:
    """An input of a Functional or Sequential model that is missing, unexpected or of another shape."""
    wanted = _input_shapes(model)
    if wanted is None or any(leaf is None for leaf in keras.tree.flatten(x)):
        return  # an undeclared structure, or omitted optional inputs
    if isinstance(x, dict) and all(name in x for name, _ in wanted):
        given: Flat = {(name,): x[name] for name, _ in wanted}
    else:
        given = flatten_tree(x)
    got = [(path, np.shape(leaf)) for path, leaf in given.items()]
    if len(got) != len(wanted):
        expected = f"{len(wanted)} inputs: {_named(wanted)}"
        raise _mismatch("batch/x", f"{len(got)} arrays", expected) from error
    for (name, shape), (path, found) in zip(wanted, got, strict=True):
        if not _fits(found, shape):
            where = join_path(("batch", "x", *path))
            raise _mismatch(where, f"shape {found}", f"shape {shape} of input {name!r}") from error


def _input_shapes(model: Any) -> list[tuple[str, tuple[Any, ...]]] | None:
    """Names and shapes of the inputs, of any batch size; None if the model doesn't declare them."""
    inputs = getattr(model, "inputs", None)
    return [(tensor.name, (None, *tensor.shape[1:])) for tensor in inputs] if inputs else None


def _named(inputs: list[tuple[str, tuple[Any, ...]]]) -> str:
    return ", ".join(f"{name} {shape}" for name, shape in inputs)


def _fits(found: tuple[Any, ...], wanted: tuple[Any, ...]) -> bool:
    """Whether a shape is one that Keras accepts: it adds or drops a last axis of size 1."""
    candidates = [found, (*found, 1)] + ([found[:-1]] if found[-1:] == (1,) else [])
    return any(
        len(shape) == len(wanted) and all(w is None or f == w for f, w in zip(shape, wanted, strict=True))
        for shape in candidates
    )


def _explain_sizes(parts: dict[str, Any], error: BaseException) -> None:
    """Arrays without rows, or with numbers of rows that this model doesn't take together."""
    sizes = {path: np.shape(leaf)[0] for path, leaf in flatten_tree(parts).items() if np.ndim(leaf)}
    if {*sizes.values()} == {0}:
        raise _mismatch("batch", "an empty batch", "at least one row") from error
    if len({*sizes.values()}) > 1 and _is_about_shapes(error):
        listed = ", ".join(f"{join_path(path)}: {size}" for path, size in sizes.items())
        raise StructureMismatchError(
            "batch",
            got=f"arrays of different batch sizes ({listed})",
            expected="sizes that the model, its loss and its metrics take together",
            fix=f"Keras says: {said(error)}",
        ) from error


def _is_about_shapes(error: BaseException) -> bool:
    words = str(error).lower()
    return not isinstance(error, jax.errors.JAXTypeError) and ("shape" in words or "dimension" in words)


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
