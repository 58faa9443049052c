"""A Keras model, and the same architecture in Flax as somebody else would write it."""

import keras
import numpy as np
from flax import nnx
from keras import layers as L


def convnet():
    keras.utils.set_random_seed(3)
    x = keras.Input((8, 8, 3))
    y = L.BatchNormalization()(L.Conv2D(4, 3, padding="same", activation="relu")(x))
    y = L.BatchNormalization()(L.Conv2D(4, 3, padding="same", use_bias=False)(y))
    model = keras.Model(x, L.Dense(2)(L.Dense(16)(L.Dense(16, "gelu")(L.Flatten()(y)))))
    rng = np.random.default_rng(0)
    for variable in model.weights:
        variable.assign(variable.value + rng.uniform(0.1, 0.3, variable.shape))
    return model


class Theirs(nnx.Module):
    """Other names, another order of attributes, a bias that Keras lacks."""

    def __init__(self, rngs, epsilon=1e-3):
        self.z = nnx.BatchNorm(4, epsilon=epsilon, rngs=rngs)
        self.c1 = nnx.Conv(3, 4, (3, 3), rngs=rngs)
        self.c2 = nnx.Conv(4, 4, (3, 3), rngs=rngs)
        self.a = nnx.BatchNorm(4, epsilon=epsilon, rngs=rngs)
        self.head = nnx.Linear(16, 2, rngs=rngs)
        self.m2 = nnx.Linear(16, 16, rngs=rngs)
        self.m1 = nnx.Linear(256, 16, rngs=rngs)

    def __call__(self, x):
        x = self.z(self.c2(self.a(nnx.relu(self.c1(x)))))
        x = nnx.gelu(self.m1(x.reshape(x.shape[0], -1)), approximate=False)
        return self.head(self.m2(x))
