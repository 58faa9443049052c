"""Models of the kinds that guides and code examples of Keras have, at toy size, with data of their own."""

from typing import Any

import jax
import keras
import numpy as np
from keras import layers, ops

ROWS = 16


def normal(*shape: int) -> np.ndarray:
    return np.random.normal(size=(ROWS, *shape)).astype("float32")


def whole(most: int, *shape: int) -> np.ndarray:
    return np.random.randint(0, most, (ROWS, *shape)).astype("int32")


# --- the guide on customising what happens in fit() with JAX: four programs


class WithCompiled(keras.Model):
    """A step that uses the loss and the metrics of `compile`."""

    def losses_and_updates(self, params, others, metrics, x, y, weight, training=False):
        outputs, others = self.stateless_call(params, others, x, training=training)
        more = {"x": x, "y": y, "y_pred": outputs, "sample_weight": weight, "training": training}
        loss, (_, others, metrics) = self.stateless_compute_loss(params, others, metrics, **more)
        return loss, (outputs, others, metrics)

    def totals(self, values: list, loss: Any, y: Any, outputs: Any, weight: Any) -> tuple:
        """New values of all metrics, and the logs, as nested as the metrics are."""
        logs, done = {}, []
        for metric in self.metrics:
            own = values[len(done) : len(done) + len(metric.variables)]
            given = (loss,) if metric.name == "loss" else (y, outputs)
            more = {} if metric.name == "loss" else {"sample_weight": weight}
            own = metric.stateless_update_state(own, *given, **more)
            logs[metric.name] = metric.stateless_result(own)
            done += own
        return logs, done

    def train_step(self, state: tuple, data: Any) -> tuple:
        params, others, slots, metrics = state
        x, y, weight = keras.utils.unpack_x_y_sample_weight(data)
        run = jax.value_and_grad(self.losses_and_updates, has_aux=True)
        given = (params, others, metrics, x, y, weight)
        (loss, (outputs, others, metrics)), grads = run(*given, training=True)
        params, slots = self.optimizer.stateless_apply(slots, grads, params)
        logs, metrics = self.totals(metrics, loss, y, outputs, weight)
        return logs, (params, others, slots, metrics)


class WithTest(WithCompiled):
    """An evaluation step as well."""

    def test_step(self, state: tuple, data: Any) -> tuple:
        params, others, metrics = state
        x, y, weight = keras.utils.unpack_x_y_sample_weight(data)
        given = (params, others, metrics, x, y, weight)
        loss, (outputs, others, metrics) = self.losses_and_updates(*given)
        logs, metrics = self.totals(metrics, loss, y, outputs, weight)
        return logs, (params, others, metrics)


class LowLevel(keras.Model):
    """A step that uses nothing but an optimizer."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.total, self.error = keras.metrics.Mean("loss"), keras.metrics.MeanAbsoluteError(name="mae")

    @property
    def metrics(self) -> list:
        return [self.total, self.error]

    def train_step(self, state: tuple, data: Any) -> tuple:
        params, others, slots, metrics = state
        x, y = data

        def loss_of(params: list, others: list) -> tuple:
            outputs, others = self.stateless_call(params, others, x, training=True)
            return ops.mean(keras.losses.mean_squared_error(y, outputs)), (outputs, others)

        (loss, (outputs, others)), grads = jax.value_and_grad(loss_of, has_aux=True)(params, others)
        params, slots = self.optimizer.stateless_apply(slots, grads, params)
        first = self.total.stateless_update_state(metrics[:2], loss)
        second = self.error.stateless_update_state(metrics[2:], y, outputs)
        logs = {"loss": self.total.stateless_result(first), "mae": self.error.stateless_result(second)}
        return logs, (params, others, slots, [*first, *second])


def regression(kind: type, **options: Any) -> keras.Model:
    inputs = keras.Input((6,))
    hidden = layers.Dropout(0.2)(layers.Dense(4, "relu")(inputs))
    model = kind(inputs, layers.Dense(1)(hidden))
    model.compile(optimizer="adam", **options)
    return model


SCORED = {"loss": "mse", "metrics": ["mae"]}


def table() -> dict:
    return {"x": normal(6), "y": normal(1)}


def compiled() -> tuple:
    return regression(WithCompiled, **SCORED), table()


def low_level() -> tuple:
    return regression(LowLevel), table()


def with_weights() -> tuple:
    weights = abs(normal())
    return regression(WithCompiled, loss="mse", weighted_metrics=["mae"]), {
        **table(),
        "sample_weight": weights,
    }


def with_evaluation() -> tuple:
    return regression(WithTest, **SCORED), {**table(), "validation_split": 0.25}


# --- code examples


def digits() -> tuple:
    """A small convolutional network on images."""
    body = [layers.Conv2D(3, 3, activation="relu"), layers.MaxPooling2D(), layers.Flatten()]
    model = keras.Sequential([keras.Input((8, 8, 1)), *body, layers.Dropout(0.5), layers.Dense(4, "softmax")])
    model.compile("adam", "categorical_crossentropy", metrics=["accuracy"])
    labels = keras.utils.to_categorical(whole(4), 4)
    return model, {"x": abs(normal(8, 8, 1)), "y": labels, "validation_split": 0.25}


def denoising() -> tuple:
    """A convolutional autoencoder."""
    x = inputs = keras.Input((8, 8, 1))
    x = layers.MaxPooling2D(padding="same")(layers.Conv2D(3, 3, activation="relu", padding="same")(x))
    x = layers.Conv2DTranspose(3, 3, strides=2, activation="relu", padding="same")(x)
    model = keras.Model(inputs, layers.Conv2D(1, 3, activation="sigmoid", padding="same")(x))
    model.compile("adam", "binary_crossentropy")
    clean = np.random.random((ROWS, 8, 8, 1)).astype("float32")
    return model, {"x": clean + 0.1 * normal(8, 8, 1), "y": clean, "validation_data": (clean, clean)}


class Sampling(layers.Layer):
    """A latent that is drawn."""

    def __init__(self):
        super().__init__()
        self.seeds = keras.random.SeedGenerator(1337)

    def call(self, inputs: Any) -> Any:
        mean, log_variance = inputs
        noise = keras.random.normal(ops.shape(mean), seed=self.seeds)
        self.add_loss(-0.5 * ops.mean(1 + log_variance - ops.square(mean) - ops.exp(log_variance)))
        return mean + ops.exp(0.5 * log_variance) * noise


def variational() -> tuple:
    """A variational autoencoder whose layer adds the divergence."""
    inputs = keras.Input((6,))
    hidden = layers.Dense(4, "relu")(inputs)
    latent = Sampling()([layers.Dense(2)(hidden), layers.Dense(2)(hidden)])
    model = keras.Model(inputs, layers.Dense(6)(layers.Dense(4, "relu")(latent)))
    model.compile("adam", "mse")
    x = normal(6)
    return model, {"x": x, "y": x}


def reviews() -> tuple:
    """Two bidirectional LSTMs on words."""
    inputs = keras.Input((None,), dtype="int32")
    x = layers.Bidirectional(layers.LSTM(3, return_sequences=True))(layers.Embedding(20, 4)(inputs))
    x = layers.Bidirectional(layers.LSTM(3))(x)
    model = keras.Model(inputs, layers.Dense(1, "sigmoid")(x))
    model.compile("adam", "binary_crossentropy", metrics=["accuracy"])
    return model, {"x": whole(20, 7), "y": whole(2, 1).astype("float32"), "validation_split": 0.25}


class Encoder(layers.Layer):
    """Attention, and two dense layers, with residuals."""

    def __init__(self):
        super().__init__()
        self.attention = layers.MultiHeadAttention(2, 2)
        self.dense = keras.Sequential([layers.Dense(4, "relu"), layers.Dense(4)])
        self.norms = [layers.LayerNormalization(epsilon=1e-6) for _ in range(2)]
        self.dropouts = [layers.Dropout(0.1) for _ in range(2)]

    def call(self, x: Any, training: bool | None = None) -> Any:
        x = self.norms[0](x + self.dropouts[0](self.attention(x, x), training=training))
        return self.norms[1](x + self.dropouts[1](self.dense(x), training=training))


class Positions(layers.Layer):
    """Embeddings of words and of their positions."""

    def __init__(self):
        super().__init__()
        self.words, self.places = layers.Embedding(20, 4), layers.Embedding(7, 4)

    def call(self, x: Any) -> Any:
        return self.words(x) + self.places(ops.arange(ops.shape(x)[-1]))


def transformer() -> tuple:
    """A transformer that classifies texts."""
    inputs = keras.Input((7,), dtype="int32")
    x = layers.GlobalAveragePooling1D()(Encoder()(Positions()(inputs)))
    model = keras.Model(inputs, layers.Dense(2, "softmax")(layers.Dropout(0.1)(x)))
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model, {"x": whole(20, 7), "y": whole(2), "class_weight": {0: 1.0, 1: 0.4}}


class Taste(keras.Model):
    """People and films, and the product of what is known of both."""

    def __init__(self):
        super().__init__()
        options = {
            "embeddings_initializer": "he_normal",
            "embeddings_regularizer": keras.regularizers.l2(1e-6),
        }
        self.people, self.films = layers.Embedding(9, 3, **options), layers.Embedding(12, 3, **options)
        self.biases = layers.Embedding(9, 1), layers.Embedding(12, 1)

    def call(self, inputs: Any) -> Any:
        person, film = inputs[:, 0], inputs[:, 1]
        product = ops.sum(self.people(person) * self.films(film), -1, keepdims=True)
        return ops.sigmoid(product + self.biases[0](person) + self.biases[1](film))


def collaborative() -> tuple:
    """Recommendations by collaborative filtering, in a subclassed model that its first batch builds."""
    model = Taste()
    model.compile(keras.optimizers.Adam(1e-3), keras.losses.BinaryCrossentropy())
    return model, {
        "x": whole(9, 2),
        "y": np.random.random((ROWS, 1)).astype("float32"),
        "validation_split": 0.25,
    }


def structured() -> tuple:
    """Numbers and categories of a table, each with its own preprocessing."""
    inputs = {"age": keras.Input((1,), name="age"), "kind": keras.Input((1,), name="kind", dtype="int32")}
    age = layers.Normalization(mean=[1.0], variance=[4.0])(inputs["age"])
    kind = layers.CategoryEncoding(5, output_mode="one_hot")(inputs["kind"])
    x = layers.Dropout(0.5)(layers.Dense(4, "relu")(layers.concatenate([age, kind])))
    model = keras.Model(inputs, layers.Dense(1, "sigmoid")(x))
    model.compile("rmsprop", "binary_crossentropy", metrics=["accuracy"])
    return model, {"x": {"age": normal(1), "kind": whole(5, 1)}, "y": whole(2, 1).astype("float32")}


class Distiller(keras.Model):
    """A student that learns from the outputs of a teacher too."""

    def __init__(self, student: keras.Model, teacher: keras.Model):
        super().__init__()
        self.student, self.teacher = student, teacher
        teacher.trainable = False

    def call(self, x: Any) -> Any:
        return self.student(x)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True) -> Any:
        soft = [ops.softmax(z / 3.0) for z in (self.teacher(x, training=False), y_pred)]
        own = super().compute_loss(x, y, y_pred, sample_weight)
        return 0.1 * own + 0.9 * ops.mean(keras.losses.kl_divergence(*soft))


def distilled() -> tuple:
    """Distillation of knowledge."""
    networks = [
        keras.Sequential([keras.Input((6,)), layers.Dense(n, "relu"), layers.Dense(3)]) for n in (3, 6)
    ]
    model = Distiller(*networks)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=["sparse_categorical_accuracy"])
    return model, {"x": normal(6), "y": whole(3)}


def siamese() -> tuple:
    """Two inputs through one network, compared by their distance."""
    network = keras.Sequential([keras.Input((6,)), layers.BatchNormalization(), layers.Dense(3, "tanh")])
    pair = [keras.Input((6,)), keras.Input((6,))]
    a, b = (network(one) for one in pair)
    distance = ops.sqrt(ops.maximum(ops.sum((a - b) ** 2, 1, keepdims=True), 1e-7))
    model = keras.Model(pair, layers.Dense(1, "sigmoid")(layers.BatchNormalization()(distance)))

    def contrastive(y: Any, y_pred: Any) -> Any:
        return ops.mean((1 - y) * y_pred**2 + y * ops.maximum(1.0 - y_pred, 0.0) ** 2)

    model.compile("rmsprop", contrastive, metrics=["accuracy"])
    return model, {"x": [normal(6), normal(6)], "y": whole(2, 1).astype("float32")}


def forecast() -> tuple:
    """A time series, in windows that Keras cuts; early stopping and the best weights."""
    series = np.cumsum(normal(2), axis=0)
    model = keras.Sequential([keras.Input((4, 2)), layers.LSTM(4), layers.Dense(1)])
    model.compile(keras.optimizers.Adam(keras.optimizers.schedules.ExponentialDecay(0.05, 5, 0.5)), "mse")
    windows = np.stack([series[i : i + 4] for i in range(12)])
    stops = [keras.callbacks.EarlyStopping("val_loss", min_delta=0, patience=1, restore_best_weights=True)]
    return model, {"x": windows, "y": series[4:, :1], "validation_split": 0.25, "callbacks": stops}


class Patches(layers.Layer):
    """An image as a sequence of patches, with their places."""

    def build(self, shape: tuple) -> None:
        self.project, self.places = layers.Dense(4), layers.Embedding(4, 4)

    def call(self, images: Any) -> Any:
        patches = ops.reshape(ops.image.extract_patches(images, 4), (-1, 4, 16))
        return self.project(patches) + self.places(ops.arange(4))


def vision() -> tuple:
    """A vision transformer with augmentation."""
    inputs = keras.Input((8, 8, 1))
    x = layers.RandomFlip("horizontal", seed=1)(inputs)
    x = layers.Flatten()(Encoder()(Patches()(x)))
    model = keras.Model(inputs, layers.Dense(3)(layers.Dropout(0.2)(x)))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    metrics = [keras.metrics.SparseTopKCategoricalAccuracy(2, name="top-2")]
    model.compile(keras.optimizers.AdamW(1e-3, weight_decay=1e-4), loss, metrics=metrics)
    return model, {"x": normal(8, 8, 1), "y": whole(3), "validation_split": 0.25}


GUIDES = [compiled, low_level, with_weights, with_evaluation]
EXAMPLES = [
    digits,
    denoising,
    variational,
    reviews,
    transformer,
    collaborative,
    structured,
    distilled,
    siamese,
    forecast,
    vision,
]
