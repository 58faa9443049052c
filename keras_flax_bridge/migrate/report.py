"""The report of a conversion."""

from __future__ import annotations

from typing import Any, NamedTuple

from keras_flax_bridge.errors import printed
from keras_flax_bridge.tree import words
from keras_flax_bridge.tree.reports import Table, as_json, table_of


class ConversionRow(NamedTuple):
    """A module of the native model.

    Attributes:
        path: the path of the Keras layer.
        rule: the native module that replaces it.
    """

    path: str
    rule: str


@words.doors()
class ConversionReport(NamedTuple):
    """The report of `to_nnx`.

    Attributes:
        model: the name of the Keras model.
        layers: each layer's path in the module, and the rule that converted it.
        dropped: parts of the Keras model without a counterpart: regularizers, constraints, layer losses.
        checked: the largest difference of the outputs on a random input, relative to the largest
            output; None if it was not measured.
        tolerance: the largest difference allowed.

    Example:
        >>> report = ConversionReport("mlp", (("dense", "Dense -> nnx.Linear"),), (), 1e-7, 1e-5)
        >>> print(report)
        mlp: 1 modules, outputs differ by 1.0e-07 (at most 1.0e-05)
          dense  Dense -> nnx.Linear
    """

    model: str
    layers: tuple[tuple[str, str], ...]
    dropped: tuple[str, ...]
    checked: float | None
    tolerance: float | None

    @property
    def ok(self) -> bool:
        """Whether the outputs were compared and agree within the tolerance."""
        return self.checked is not None and self.tolerance is not None and self.checked <= self.tolerance

    @property
    def rows(self) -> tuple[ConversionRow, ...]:
        """One row for each layer: its ``path``, and the ``rule`` that converted it."""
        return tuple(ConversionRow(*layer) for layer in self.layers)

    def to_json(self) -> dict[str, Any]:
        """The report as JSON types."""
        measured = {"checked": as_json(self.checked), "tolerance": as_json(self.tolerance)}
        head = {"ok": self.ok, "model": self.model, **measured}
        return {**head, "rows": as_json(self.rows), "dropped": list(self.dropped)}

    def _head(self) -> str:
        said = (
            "outputs were not compared"
            if self.checked is None
            else f"outputs differ by {self.checked:.1e} (at most {self.tolerance:.1e})"
        )
        return f"{self.model}: {len(self.layers)} modules, {said}"

    def __str__(self) -> str:
        width = max((len(path) for path, _ in self.layers), default=0)
        lines = [f"  {path:<{width}}  {rule}" for path, rule in self.layers]
        lines += [f"  dropped: {what}" for what in self.dropped]
        return printed([self._head(), *lines])

    def _table(self) -> Table:
        notes = (f"dropped: {what}" for what in self.dropped)
        return table_of(self._head(), ConversionRow._fields, self.rows, notes)

    def __rich__(self) -> Table:
        return self._table()

    def _repr_html_(self) -> str:
        return self._table().to_html()
