"""Random arrays as inputs of models."""

import numpy as np


class Arrays:
    """Draws arrays, the same for each module that has one of these."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)

    def floats(self, *shape: int) -> np.ndarray:
        return self.rng.standard_normal(shape).astype("float32")

    def ids(self, *shape: int) -> np.ndarray:
        """Ids of tokens, of which the last two are padding."""
        array = self.rng.integers(1, 20, shape).astype("int32")
        array[:, -2:] = 0
        return array
