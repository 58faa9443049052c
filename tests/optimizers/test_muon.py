"""Muon's rule of the installed Keras: `to_optax` makes the same one, whichever it is."""

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from keras import optimizers as K

import keras_flax_bridge as kfb
from keras_flax_bridge.startup import compat
from tests.tables.optimizers import TOLERANCE

SHAPES = {"tall": (12, 3), "wide": (3, 6), "deep": (5, 4, 3), "flat": (2, 3, 7), "vector": (4,), "scalar": ()}
STEPS = 20


def both(**options):
    """The parameters after the same steps of Keras's optimizer and of the one in optax."""
    random = np.random.default_rng(0)
    start = {name: random.normal(size=shape).astype("float32") for name, shape in SHAPES.items()}
    optimizer = K.Muon(0.02, **options)
    variables = [keras.Variable(value, name=name) for name, value in start.items()]
    optimizer.build(variables)
    tx, params = kfb.to_optax(K.Muon(0.02, **options)), jax.tree.map(jnp.asarray, start)
    state = tx.init(params)
    for _ in range(STEPS):
        grads = {n: p + random.normal(size=p.shape).astype("float32") for n, p in params.items()}
        optimizer.apply([jnp.asarray(grads[v.name]) for v in variables])
        updates, state = tx.update(grads, state, params)
        params = jax.tree.map(jnp.add, params, updates)
    return {v.name: np.asarray(v.value) for v in variables}, params


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{}, {"nesterov": False}, {"ns_steps": 3, "adam_lr_ratio": 0.5}, {"weight_decay": None}],
    ids=["plain", "no nesterov", "fewer steps", "no decay"],
)
def test_shapes_of_every_kind_are_updated_alike(options):
    kept, made = both(**options)
    largest = max(float(np.abs(value).max()) for value in kept.values())
    for name, value in kept.items():
        assert np.abs(value - made[name]).max() <= TOLERANCE * largest, name


@pytest.mark.skipif(compat.has("Muon with lr_adjust"), reason="slots have no paths there")
def test_variables_of_one_path_are_refused():
    optimizer = K.Muon(0.1)
    optimizer.build([keras.Variable(np.ones((2, 2)), name="same") for _ in range(2)])
    with pytest.raises(kfb.UnsupportedOptimizerError, match="several variables of one path"):
        kfb.to_optax(optimizer)
