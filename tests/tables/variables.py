"""Whose variable a step reads or assigns, and what happens: it is carried in a tree, or it is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
from keras import layers, ops

from keras_flax_bridge.tree.paths import Path

GLOBAL = keras.Variable(2.0, name="global")


def build(
    kind: Any = keras.Model, loss: Any = "mse", metrics: Any = None, layer: Any = None, optimizer: Any = "sgd"
) -> keras.Model:
    """A compiled model of two layers, and of the one that is given between them."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,))
    hidden = layers.Dense(3)(inputs)
    hidden = hidden if layer is None else layer(hidden)
    model = kind(inputs, layers.Dense(1)(hidden))
    model.compile(optimizer, loss, metrics=metrics)
    return model


def lists(model: keras.Model) -> tuple[list, ...]:
    """The variables of a model in the order of Keras's own step."""
    return (
        model.trainable_variables,
        model.non_trainable_variables,
        model.optimizer.variables,
        model.metrics_variables,
    )


class Plain:
    """An object that Keras does not look into."""

    def __init__(self, **attributes: Any):
        vars(self).update(attributes)


class Using(layers.Layer):
    """Draws from seeds, or adds up in variables, of a plain object."""

    def __init__(self, held: Any, use: Callable[[Any], Any]):
        super().__init__()
        self.held, self.use = held, use

    def call(self, x: Any) -> Any:
        return x + self.use(self.held)


class UsingLoss(keras.losses.Loss):
    """As `Using`, in a loss."""

    def __init__(self, held: Any, use: Callable[[Any], Any]):
        super().__init__()
        self.held, self.use = held, use

    def call(self, y: Any, p: Any) -> Any:
        return ops.mean((y - p) ** 2) + self.use(self.held)


class UsingMetric(keras.metrics.Mean):
    """As `Using`, in a metric."""

    def __init__(self, held: Any, use: Callable[[Any], Any]):
        super().__init__(name="used")
        self.held, self.use = held, use

    def update_state(self, y: Any, p: Any, sample_weight: Any = None) -> Any:
        return super().update_state(ops.mean(y - p) + self.use(self.held))


def drawn(held: Any) -> Any:
    return keras.random.uniform((), seed=held.seeds[0])


def counted(held: Any) -> Any:
    held.count.assign_add(1.0)
    return held.count * 0.1


def weighed(held: Any) -> Any:
    return held.count * 0.1


def read(held: Any) -> Any:
    return ops.mean(held.value)


def assigned(held: Any) -> Any:
    held.assign(held.value + 1.0)
    return 0.0


def set_to_one(held: Any) -> Any:
    held.assign(1.0)
    return 0.0


def seeds() -> Plain:
    return Plain(seeds=[keras.random.SeedGenerator(1)])


def count() -> Plain:
    return Plain(count=keras.Variable(1.0, name="count"))


def reading_global() -> Using:
    return Using(None, lambda _: read(GLOBAL))


def closure(variable: Any) -> Callable[[Any, Any], Any]:
    return lambda y, p: ops.mean((y - p) ** 2) * variable


def network() -> keras.Model:
    return keras.Sequential([keras.Input((1,)), layers.Dense(2, name="features")])


class Perceptual(keras.losses.Loss):
    """Compares what a network of its own gives."""

    def __init__(self) -> None:
        super().__init__()
        self.network = network()

    def call(self, y: Any, p: Any) -> Any:
        return ops.mean((self.network(y) - self.network(p)) ** 2)


class Held(NamedTuple):
    """A variable that the model reaches.

    Attributes:
        name: what holds it, and who uses it.
        build: makes the model.
        tree: the tree that has it.
        path: its path there.
        assigned: whether steps assign it.
    """

    name: str
    build: Callable[[], keras.Model]
    tree: str
    path: Path
    assigned: bool = True


_SEED = "seed_generator_state"
HELD = (
    Held(
        "a seed of a plain object in a layer",
        lambda: build(layer=Using(seeds(), drawn)),
        "non_trainable",
        ("using", "held", "seeds", "0", _SEED),
    ),
    Held(
        "a counter of a plain object in a layer",
        lambda: build(layer=Using(count(), counted)),
        "non_trainable",
        ("using", "held", "count"),
    ),
    Held(
        "a constant of a plain object in a layer",
        lambda: build(layer=Using(count(), weighed)),
        "non_trainable",
        ("using", "held", "count"),
        assigned=False,
    ),
    Held(
        "a network of a plain object in a layer",
        lambda: build(layer=Using(Plain(net=network()), lambda held: ops.mean(held.net(ops.ones((1, 1)))))),
        "non_trainable",
        ("using", "held", "net", "features", "kernel"),
        assigned=False,
    ),
    Held(
        "a seed of a loss",
        lambda: build(loss=UsingLoss(seeds(), drawn)),
        "compiled",
        ("loss", "held", "seeds", "0", _SEED),
    ),
    Held(
        "a counter of a loss",
        lambda: build(loss=UsingLoss(count(), counted)),
        "compiled",
        ("loss", "held", "count"),
    ),
    Held(
        "a variable in the closure of a loss",
        lambda: build(loss=closure(keras.Variable(2.0, name="weight"))),
        "compiled",
        ("loss", "variable"),
        assigned=False,
    ),
    Held(
        "a network of a loss",
        lambda: build(loss=Perceptual()),
        "compiled",
        ("loss", "network", "features", "kernel"),
        assigned=False,
    ),
)

METRIC = Held(
    "a seed of a metric",
    lambda: build(metrics=[UsingMetric(seeds(), drawn)]),
    "compiled",
    ("metrics", "0", "held", "seeds", "0", _SEED),
)


class Refused(NamedTuple):
    """A variable that nothing of the model holds.

    Attributes:
        name: who uses it.
        build: makes the model.
        variable: its name.
        owner: whose it is, as the error says.
        verb: what is done with it.
    """

    name: str
    build: Callable[[], keras.Model]
    variable: str
    owner: str
    verb: str = "reads"


def loss_of_global(y: Any, p: Any) -> Any:
    return ops.mean((y - p) ** 2) * GLOBAL


class ReadsGlobalInStep(keras.Model):
    """Its step reads a variable that nothing holds."""

    def train_step(self, state: Any, data: Any) -> Any:
        logs, state = super().train_step(state, data)
        return {**logs, "global": GLOBAL.value}, state


class Callback(keras.callbacks.Callback):
    """Holds a weight that a layer reads."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = keras.Variable(1.0, name="annealed")


CALLBACK = Callback()


def metric_of_global() -> UsingMetric:
    return UsingMetric(None, lambda _: read(GLOBAL))


def reading_callback() -> Using:
    return Using(None, lambda _: CALLBACK.weight * 1.0)


def reading_other_optimizer() -> Using:
    return Using(None, lambda _: ops.cast(OTHER["model"].optimizer.iterations, "float32"))


def assigning_global() -> Using:
    return Using(None, lambda _: set_to_one(GLOBAL))


REFUSED = (
    Refused("a loss", lambda: build(loss=loss_of_global), "'global'", "loss_of_global()"),
    Refused("a layer", lambda: build(layer=reading_global()), "'global'", "read()"),
    Refused("a layer that assigns", lambda: build(layer=assigning_global()), "'global'", "()", "assigns"),
    Refused("a metric", lambda: build(metrics=[metric_of_global()]), "'global'", "read()"),
    Refused("an own train_step", lambda: build(ReadsGlobalInStep), "'global'", "ReadsGlobalInStep"),
    Refused("a callback's, in a layer", lambda: build(layer=reading_callback()), "'annealed'", "()"),
)

OTHER: dict[str, Any] = {}  # a global that no object of a model leads to


class WeightedByIterations(keras.Model):
    """Its loss reads a variable of the optimizer."""

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return ops.cast(self.optimizer.iterations, "float32") * ops.mean((y - y_pred) ** 2)


class ReportsRate(keras.Model):
    """Its logs have variables of the optimizer."""

    def train_step(self, state: Any, data: Any) -> Any:
        logs, state = super().train_step(state, data)
        return {**logs, "rate": self.optimizer.learning_rate, "count": self.optimizer.iterations}, state


class CountsEvaluations(keras.Model):
    """Its test_step counts, and changes a weight."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.seen = self.add_weight(shape=(), initializer="zeros", trainable=False, name="seen")

    def test_step(self, state: Any, data: Any) -> Any:
        logs, (trainable, others, metrics) = super().test_step(state, data)
        others = [
            value + 1 if variable is self.seen else value
            for variable, value in zip(self.non_trainable_variables, others, strict=True)
        ]
        return logs, ([value * 0.5 for value in trainable], others, metrics)


class Sampling(layers.Layer):
    """Draws in inference, too."""

    def __init__(self) -> None:
        super().__init__()
        self.seed_generator = keras.random.SeedGenerator(3)

    def call(self, x: Any) -> Any:
        return x + keras.random.normal(ops.shape(x), seed=self.seed_generator)


class MeanInStep(keras.Model):
    """Makes a metric in its step."""

    def train_step(self, state: Any, data: Any) -> Any:
        logs, state = super().train_step(state, data)
        mean = keras.metrics.Mean()
        mean.update_state(logs["loss"])
        return {**logs, "mean": mean.result()}, state


class Swallowing(layers.Layer):
    """Catches whatever a variable raises."""

    def call(self, x: Any) -> Any:
        try:
            return x + GLOBAL.value
        except Exception:
            return x


class AssignsInGradient(keras.Model):
    """Assigns a metric in the forward pass, whose values Keras does not take out of it."""

    def call(self, *args: Any, **kwargs: Any) -> Any:
        if self.compiled and self.metrics_variables:
            self.metrics_variables[0].assign(1.0)
        return super().call(*args, **kwargs)
