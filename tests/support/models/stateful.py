"""Hidden state: moving statistics, seeds, RNN states, codebooks, adapted statistics, losses of layers."""

from typing import Any

import keras
import numpy as np
from keras import layers, ops

SIZE = 8


def spectral() -> keras.Model:
    """SpectralNormalization around layers, BatchNormalization."""
    keras.utils.set_random_seed(20)
    model = keras.Sequential(
        [
            keras.Input((5, 5, 2)),
            layers.SpectralNormalization(layers.Conv2D(3, 3)),
            layers.BatchNormalization(),
            layers.LeakyReLU(),
            layers.Flatten(),
            layers.SpectralNormalization(layers.Dense(1), power_iterations=2),
        ]
    )
    model.compile("adam", "mse")
    return model


def adapted(shift: float = 3.0) -> keras.Model:
    """Statistics that `adapt` computed, also when another build of the model saw other data."""
    keras.utils.set_random_seed(21)
    normalization = layers.Normalization()
    normalization.adapt(np.random.default_rng(0).normal(shift, 2.0, (64, 4)).astype("float32"))
    fixed = layers.Normalization(mean=[1.0, 2.0, 3.0], variance=[1.0, 4.0, 9.0])
    model = keras.Sequential([keras.Input((4,)), normalization, layers.Dense(3), fixed, layers.Dense(1)])
    model.compile("sgd", "mse")
    return model


def noisy() -> keras.Model:
    """Random numbers in many places, two generators in one layer."""
    keras.utils.set_random_seed(22)
    model = keras.Sequential(
        [
            keras.Input((6, 4)),
            layers.SpatialDropout1D(0.2),
            layers.GaussianDropout(0.1),
            layers.Dense(4, "selu"),
            layers.AlphaDropout(0.1),
            layers.GRU(3, dropout=0.2, recurrent_dropout=0.1),
            layers.GaussianNoise(0.1),
            layers.Dropout(0.2, noise_shape=(None, 1)),
            layers.Dense(1),
        ]
    )
    model.compile("adam", "mse")
    return model


def stateful_rnn() -> keras.Model:
    """RNNs that carry their state from batch to batch."""
    keras.utils.set_random_seed(23)
    model = keras.Sequential(
        [
            keras.Input((4, 3), batch_size=SIZE),
            layers.LSTM(3, stateful=True, return_sequences=True),
            layers.GRU(2, stateful=True),
            layers.Dense(1),
        ]
    )
    model.compile("adam", "mse")
    return model


def stateful_rnn_in_lists() -> keras.Model:
    """The same with the states in lists of Keras, which loses them otherwise: so `fit` carries them."""
    model = stateful_rnn()
    for layer in model.layers[:2]:
        layer._non_trainable_variables.extend(keras.tree.flatten(layer.states))
    return model


class VectorQuantizer(layers.Layer):
    """A codebook of moving averages, assigned in `call`, with a commitment loss."""

    def __init__(self, codes: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.codes = codes

    def build(self, shape: tuple) -> None:
        normal = keras.initializers.RandomNormal()
        self.codebook = self.add_weight(
            shape=(self.codes, shape[-1]), initializer=normal, trainable=False, name="codebook"
        )
        self.counts = self.add_weight(shape=(self.codes,), initializer="ones", trainable=False, name="counts")

    def call(self, x: Any, training: bool | None = None) -> Any:
        distances = ops.sum((x[:, None, :] - self.codebook[None]) ** 2, -1)
        hot = ops.one_hot(ops.argmin(distances, -1), self.codes)
        quantized = hot @ self.codebook
        if training:
            counts = 0.9 * self.counts + 0.1 * ops.sum(hot, 0)
            sums = 0.9 * self.counts[:, None] * self.codebook + 0.1 * ops.transpose(hot) @ x
            self.counts.assign(counts)
            self.codebook.assign(sums / (counts[:, None] + 1e-6))
        self.add_loss(0.25 * ops.mean((ops.stop_gradient(quantized) - x) ** 2))
        return x + ops.stop_gradient(quantized - x)


def vector_quantizer() -> keras.Model:
    """A codebook assigned in `call`, a commitment loss."""
    keras.utils.set_random_seed(24)
    x = keras.Input((4,))
    model = keras.Model(x, layers.Dense(4)(VectorQuantizer(5)(layers.Dense(3)(x))))
    model.compile("adam", "mse")
    return model


class Sampling(layers.Layer):
    """A draw from a normal distribution, with its divergence from the standard one as a loss."""

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.seed_generator = keras.random.SeedGenerator(7)

    def call(self, inputs: tuple) -> Any:
        mean, log_variance = inputs
        self.add_loss(-5e-3 * ops.mean(1 + log_variance - mean**2 - ops.exp(log_variance)))
        noise = keras.random.normal(ops.shape(mean), seed=self.seed_generator)
        return mean + ops.exp(0.5 * log_variance) * noise


def variational() -> keras.Model:
    """A layer with a seed generator and a divergence loss."""
    keras.utils.set_random_seed(25)
    x = keras.Input((4,))
    h = layers.Dense(3, "relu")(x)
    z = Sampling()([layers.Dense(2, name="mean")(h), layers.Dense(2, name="log_variance")(h)])
    model = keras.Model(x, layers.Dense(4)(z))
    model.compile("adam", "mse")
    return model


def regularized() -> keras.Model:
    """Regularizers of weights and activities, constraints."""
    keras.utils.set_random_seed(26)
    model = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(
                5, kernel_regularizer="L1L2", activity_regularizer="l2", kernel_constraint="non_neg"
            ),
            layers.ActivityRegularization(l1=1e-3),
            layers.Dense(3, bias_regularizer="l2", kernel_constraint=keras.constraints.MaxNorm(0.5, axis=0)),
            layers.BatchNormalization(gamma_regularizer="l2", beta_constraint="non_neg"),
            layers.Dense(2, kernel_constraint="unit_norm", kernel_regularizer="OrthogonalRegularizer"),
        ]
    )
    model.compile(keras.optimizers.SGD(0.1), "mse")
    return model
