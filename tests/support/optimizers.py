"""Parameters, gradients and built optimizers, and how two trees differ."""

import jax
import jax.numpy as jnp
import numpy as np

from keras_flax_bridge.tree.paths import flatten_tree
from tests.tables.optimizers import Small

PARAMS = {"dense": {"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2)}, "gain": jnp.ones(())}
GRADS = jax.tree.map(lambda p: 0.1 * jnp.arange(1.0, p.size + 1).reshape(p.shape), PARAMS)


def built(optimizer, **options):
    model = Small(**options)
    model.build((None, 5, 5, 2))
    optimizer.build(model.trainable_variables)
    return model, optimizer


def relative(a, b):
    """The largest difference of two trees, relative to the largest value of the second."""
    a, b = (np.concatenate([np.ravel(x).astype("float64") for x in flatten_tree(t).values()]) for t in (a, b))
    return np.max(np.abs(a - b)) / np.max(np.abs(b))
