"""Optimizers that exclude weights from weight decay, and a check of what they do."""

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from keras import layers
from keras import optimizers as K

from keras_flax_bridge.tree.paths import flatten_tree, join_path
from tests.support.capabilities import where


def build():
    keras.utils.set_random_seed(0)
    ones = {"bias_initializer": "ones", "kernel_initializer": "ones"}
    return keras.Sequential(
        [keras.Input((3,)), layers.Dense(4, **ones), layers.Dense(2, name="head", **ones)]
    )


def biases(model):
    return [layer.bias for layer in model.layers]


def excluding(optimizer, names=None, variables=None):
    optimizer.exclude_from_weight_decay(var_list=variables, var_names=names)
    return optimizer


def decaying(kind=K.AdamW, **options):
    return kind(0.1, weight_decay=0.5, **options)


def grouped(model):
    first, head = decaying(name="first"), decaying(K.SGD, name="second")
    excluding(first, ["bias"])
    excluding(head, variables=[model.layers[1].bias])
    return K.MultiOptimizer(K.OptimizerMap(first, {".*head.*": head}))


OF_ADAM = where("Muon with lr_adjust", {"adam_weight_decay": 0.5})  # before, one decay is that of all
# name: an optimizer that decays the kernels of a model, and not its biases
OPTIMIZERS = {
    "names": lambda model: excluding(decaying(), ["bias"]),
    "several_names": lambda model: excluding(decaying(), ["bias", "gamma", "beta"]),
    "pattern": lambda model: excluding(decaying(), ["^b[ia]+s$"]),
    "variables": lambda model: excluding(decaying(), variables=biases(model)),
    "both": lambda model: excluding(decaying(), ["nothing", "bias$"], [model.layers[1].bias]),
    "scaled": lambda model: K.LossScaleOptimizer(excluding(decaying(), ["bias"])),
    "scaled_variables": lambda model: K.LossScaleOptimizer(excluding(decaying(), variables=biases(model))),
    **where("MultiOptimizer", {"grouped": grouped}),
    "lamb": lambda model: excluding(decaying(K.Lamb), ["bias"]),
    "muon": lambda model: excluding(decaying(K.Muon, **OF_ADAM), variables=biases(model)),
}
by_optimizer = pytest.mark.parametrize("kind", OPTIMIZERS)


def compiled(kind, model=None):
    model = build() if model is None else model
    model.compile(OPTIMIZERS[kind](model), "mse")
    return model


def check(state, gradients=None):
    """One step of a state with gradients of zero."""
    zero = jax.tree.map(jnp.zeros_like, state.params)
    check_params(state.params, state.apply_gradients(grads=zero).params)


def check_params(before, after):
    before, after = flatten_tree(before), flatten_tree(after)
    assert len(before) == 4
    for path, leaf in before.items():
        if path[-1] == "bias":
            np.testing.assert_array_equal(after[path], leaf, err_msg=join_path(path))
        else:
            np.testing.assert_allclose(after[path], leaf * np.float32(0.95), rtol=1e-6)
