"""What a conversion did, in words."""

from __future__ import annotations

from typing import NamedTuple

from keras_flax_bridge.errors import printed
from keras_flax_bridge.tree import words


@words.doors()
class ConversionReport(NamedTuple):
    """What `to_nnx` did.

    Attributes:
        model: the name of the Keras model.
        layers: each layer's path in the module, and the rule that converted it.
        dropped: what a native model does not do: regularizers, constraints, losses of layers.
        checked: the largest difference of the outputs on a random input, relative to the largest
            output; None where it was not measured.
        tolerance: what that difference may be.

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

    def __str__(self) -> str:
        said = (
            "outputs were not compared"
            if self.checked is None
            else f"outputs differ by {self.checked:.1e} (at most {self.tolerance:.1e})"
        )
        width = max((len(path) for path, _ in self.layers), default=0)
        lines = [f"  {path:<{width}}  {rule}" for path, rule in self.layers]
        lines += [f"  dropped: {what}" for what in self.dropped]
        return printed([f"{self.model}: {len(self.layers)} modules, {said}", *lines])
