"""What the tests of Flax modules as Keras layers share."""

import jax
import numpy as np


def same(got, wanted):
    """The same bits, shapes and dtypes."""
    got, wanted = jax.tree.leaves(got), jax.tree.leaves(wanted)
    assert [(x.shape, x.dtype) for x in got] == [(x.shape, x.dtype) for x in wanted]
    for a, b in zip(got, wanted, strict=True):
        np.testing.assert_array_equal(np.asarray(a, "float32"), np.asarray(b, "float32"))


def weights(layer):
    return [np.asarray(variable.value) for variable in layer.weights]
