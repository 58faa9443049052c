"""Compares the outputs and intermediate layers of a Keras model and a Flax model on one batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import keras
import numpy as np
from flax import nnx

from keras_flax_bridge import keras_internals
from keras_flax_bridge.errors import StructureMismatchError, printed
from keras_flax_bridge.keras_internals.call import require_built
from keras_flax_bridge.migrate.convert import Conversion
from keras_flax_bridge.migrate.map_values import flax_values, keras_values
from keras_flax_bridge.migrate.selfcheck import tolerance_of
from keras_flax_bridge.migrate.weight_map import WeightMap
from keras_flax_bridge.tree import words
from keras_flax_bridge.tree.reports import Table, as_json, table_of
from keras_flax_bridge.tree.types import Batch


class Difference(NamedTuple):
    """The difference of two arrays.

    Attributes:
        name: the path of the output, or the name of the layer.
        absolute: the largest absolute difference.
        relative: that difference divided by the largest absolute value of the Keras array.
        note: why the arrays can't be compared; empty if they can.
    """

    name: str
    absolute: float
    relative: float
    note: str = ""


class ComparisonRow(NamedTuple):
    """The difference between an output of a model or layer and the output of Keras.

    Attributes:
        kind: ``output`` or ``layer``.
        name: the path of the output, or the name of the layer.
        absolute: the largest absolute difference.
        relative: that difference divided by the largest absolute value of the Keras array.
        ok: whether the difference is within the tolerance for rounding.
        note: why the arrays can't be compared; empty if they can.
    """

    kind: str
    name: str
    absolute: float
    relative: float
    ok: bool
    note: str


@words.doors()
class ComparisonReport(NamedTuple):
    """The result of `compare`.

    Attributes:
        outputs: the difference of each output.
        layers: the difference of each layer that has a counterpart, in execution order.
        tolerance: the largest relative difference that counts as rounding.

    Example:
        >>> report = ComparisonReport((Difference("out", 1e-8, 2e-8),), (), 1e-5)
        >>> print(report)
        ok: within 1e-05
          output out  max abs 1.0e-08, relative 2.0e-08
    """

    outputs: tuple[Difference, ...]
    layers: tuple[Difference, ...]
    tolerance: float

    @property
    def ok(self) -> bool:
        """Whether all outputs agree within the tolerance."""
        return all(self.is_close(difference) for difference in self.outputs)

    @property
    def first(self) -> Difference | None:
        """The first layer whose difference exceeds the tolerance, or None."""
        return next((d for d in self.layers if not self.is_close(d)), None)

    def is_close(self, difference: Difference) -> bool:
        """Whether a difference is within the tolerance."""
        return not difference.note and difference.relative <= self.tolerance

    @property
    def rows(self) -> tuple[ComparisonRow, ...]:
        """One row for each output, then one for each layer in execution order."""
        kinds = [*(("output", d) for d in self.outputs), *(("layer", d) for d in self.layers)]
        return tuple(
            ComparisonRow(kind, d.name, d.absolute, d.relative, self.is_close(d), d.note) for kind, d in kinds
        )

    def to_json(self) -> dict[str, Any]:
        """The report as JSON types; a difference that is not finite is ``"inf"`` or ``"nan"``."""
        return {"ok": self.ok, "tolerance": as_json(self.tolerance), "rows": as_json(self.rows)}

    def _head(self) -> str:
        return f"{'ok: within' if self.ok else 'not ok: differs by more than'} {self.tolerance:g}"

    def __str__(self) -> str:
        lines = [self._head()]
        lines += [f"  output {_line(difference)}" for difference in self.outputs]
        lines += [f"  {'layer ' if self.is_close(d) else 'DIFFERS '}{_line(d)}" for d in self.layers]
        return printed(lines)

    def _table(self) -> Table:
        return table_of(self._head(), ComparisonRow._fields, self.rows)

    def __rich__(self) -> Table:
        return self._table()

    def _repr_html_(self) -> str:
        return self._table().to_html()


def _line(difference: Difference) -> str:
    name, absolute, relative, note = difference
    return f"{name}  {note or f'max abs {absolute:.1e}, relative {relative:.1e}'}"


@words.door
def compare(
    model: keras.Model,
    target: nnx.Module | Callable[..., Any],
    x: Batch,
    *,
    layers: bool = False,
    tolerance: float | None = None,
) -> ComparisonReport:
    """Runs a Keras model and a Flax model on one batch in inference and compares their outputs.

    Args:
        model: a built Keras model.
        target: an `nnx.Module`, run in its current mode, so call ``eval()`` first on a module of your own; or
            any function of the batch, such as ``lambda x: linen_model.apply(variables, x)``.
        x: the batch, in the structure that the model takes.
        layers: whether the outputs of intermediate layers are compared too; requires a module from `to_nnx`.
        tolerance: the largest relative difference that counts as rounding; by default, the rounding
            error of the least precise dtype of the model.

    Returns:
        A report with ``report.ok`` and ``report.first``, which prints as a table.

    Raises:
        NotBuiltError: if the model has no variables yet.
        StructureMismatchError: if the numbers of outputs differ, or with `layers` if the module
            is not from `to_nnx`.

    Example:
        >>> from keras_flax_bridge.migrate import to_nnx
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> compare(model, to_nnx(model), np.ones((3, 4), "float32")).ok
        True
    """
    require_built(model)
    limit = tolerance_of(model) if tolerance is None else tolerance
    between = tuple(_layer_differences(model, target, x)) if layers else ()
    return ComparisonReport(tuple(_output_differences(target(x), model(x, training=False))), between, limit)


def _layer_differences(model: Any, target: Any, x: Any) -> Iterator[Difference]:
    """The differences of the outputs of all layers, in execution order.

    The outputs of the Flax layers come from a module that is converted again, returns the output of each
    layer, and has the weights of the target.
    """
    wmap = getattr(type(target), "weight_map", None)
    if not isinstance(wmap, WeightMap):
        raise StructureMismatchError(
            "target",
            got=f"a {type(target).__name__} without a weight map to a Keras model",
            expected="a module that kfb.migrate.to_nnx made",
            fix="Pass layers=False, or compare parts of the models.",
        )
    conversion = Conversion(model, "LayerOutputs", "bridge", layer_outputs=True)
    values = keras_values(model) | dict(wmap.keras_values(flax_values(target)))
    native = conversion.module(values, nnx.Rngs(0))(x)
    inner = conversion.graph_model
    wanted = keras.Model(
        keras_internals.structure(inner)[0], [tensor for _, tensor in conversion.layer_outputs]
    )(x, training=False)
    for (name, _), got, value in zip(
        conversion.layer_outputs, native, keras.tree.flatten(wanted), strict=True
    ):
        yield _difference(name, got, value)


def _output_differences(got: Any, wanted: Any) -> Iterator[Difference]:
    a, b = jax.tree.leaves(got), jax.tree_util.tree_flatten_with_path(wanted)[0]
    if len(a) != len(b):
        raise StructureMismatchError(
            "outputs",
            got=f"{len(a)} arrays",
            expected=f"{len(b)}, as in Keras",
            fix="Compare models with the same outputs.",
        )
    for one, (path, other) in zip(a, b, strict=True):
        yield _difference(jax.tree_util.keystr(path) or "the only one", one, other)


def _difference(name: str, got: Any, wanted: Any) -> Difference:
    a, b = np.asarray(got, "float64"), np.asarray(wanted, "float64")
    if a.shape != b.shape:
        return Difference(name, np.inf, np.inf, f"shapes {a.shape} and {b.shape}")
    absolute = float(np.max(np.abs(a - b), initial=0.0))
    largest = float(np.max(np.abs(b), initial=0.0)) or 1.0
    return Difference(name, absolute, absolute / largest)
