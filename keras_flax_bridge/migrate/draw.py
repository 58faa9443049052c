"""What a layer without a rule computes: its `call`, drawn on symbolic tensors."""

from __future__ import annotations

from typing import Any

import keras

from keras_flax_bridge import _variables as V
from keras_flax_bridge.migrate.site import Refusal, is_float


def drawn(builder: Any, node: V.Node) -> list[Any]:
    """The tensors that the layer's own `call` gives for those of a call, in a graph of its own.

    Raises:
        Refusal: if it can't be drawn.
    """
    raise Refusal("no rule for this class")
