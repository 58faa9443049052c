"""Models with what a file's format may lose: each is small, compiled and built."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
from flax import nnx
from keras import layers, ops, optimizers

import keras_flax_bridge as kfb
from tests.support.models.optimizers import multi_optimizer as multi_optimizer

register = keras.saving.register_keras_serializable("round_trips")


def plain(change: Callable[[Any], Any] = lambda model: None, optimizer: Any = None) -> keras.Model:
    """Weights, statistics and a seed; `change` is made before it is compiled."""
    model = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(4, "relu", name="first"),
            layers.BatchNormalization(name="norm"),
            layers.Dropout(0.2, name="drop"),
            layers.Dense(1, name="last"),
        ]
    )
    change(model)
    model.compile(optimizer or optimizers.Adam(0.01), "mse")
    return model


def lora() -> keras.Model:
    return plain(lambda model: model.get_layer("first").enable_lora(2, lora_alpha=3))


def int8_lora() -> keras.Model:
    """Both in one layer: its weights in Keras's file are computed from several variables."""

    def change(model: Any) -> None:
        model.get_layer("first").quantize("int8")
        model.get_layer("first").enable_lora(2)

    return plain(change)


def int8() -> keras.Model:
    return plain(lambda model: [model.get_layer(name).quantize("int8") for name in ("first", "last")])


def float8() -> keras.Model:
    return plain(lambda model: model.get_layer("first").quantize("float8"))


def frozen() -> keras.Model:
    def freeze(model: Any) -> None:
        model.get_layer("norm").trainable = False
        model.get_layer("last").kernel.trainable = False

    return plain(freeze)


def averaged() -> keras.Model:
    return plain(optimizer=optimizers.AdamW(0.01, use_ema=True, ema_momentum=0.5))


@register
class OwnCompile(keras.Model):
    """A class with a default of its own for `compile`, as KerasHub's tasks have."""

    def __init__(self, **kwargs: Any):
        inputs = keras.Input((6,))
        super().__init__(inputs, layers.Dense(1, name="out")(inputs), **kwargs)

    def get_config(self) -> dict:
        return {"name": self.name}

    @classmethod
    def from_config(cls, config: dict, custom_objects: Any = None) -> OwnCompile:
        model = cls(**config)
        model.compile()
        return model

    def compile(self, optimizer: Any = "auto", loss: Any = "auto", **kwargs: Any) -> None:
        optimizer = optimizers.Adam(2e-5) if optimizer == "auto" else optimizer
        super().compile(optimizer, "mse" if loss == "auto" else loss, **kwargs)


def own_compile() -> keras.Model:
    model = OwnCompile()
    model.compile(optimizers.AdamW(0.01, weight_decay=0.5), "mae")
    return model


def stateful_rnn() -> keras.Model:
    model = keras.Sequential(
        [keras.Input(batch_shape=(4, 3, 2)), layers.GRU(4, stateful=True), layers.Dense(1)]
    )
    model.compile(optimizers.RMSprop(0.01, momentum=0.9), "mse")
    return model


@register
class Rotation(layers.Layer):
    """A layer that computes arrays of its own, in `build` and from shapes alone."""

    def build(self, shape: Any) -> None:
        width = shape[-1]
        self.same = bool(ops.all(ops.equal(width, shape[-1])))
        self.tables = {"angles": [ops.cos(ops.arange(width, dtype="float32")), ops.eye(width)]}
        self.scale = self.add_weight(shape=(width,), initializer="ones", name="scale")

    def call(self, x: Any) -> Any:
        angles, eye = self.tables["angles"]
        return ops.matmul(x, eye) * angles * self.scale if self.same else x


def constants() -> keras.Model:
    model = keras.Sequential([keras.Input((6,)), Rotation(name="rotation"), layers.Dense(1, name="out")])
    model.compile(optimizers.Adam(0.01), "mse")
    return model


@register
class Tokenizer(layers.Layer):
    """A layer without variables whose vocabulary is an asset, as KerasHub's tokenizers are."""

    def __init__(self, vocabulary: Any = (), **kwargs: Any):
        super().__init__(**kwargs)
        self.vocabulary = list(vocabulary)

    def call(self, text: str) -> list[int]:
        return [self.vocabulary.index(word) for word in text.split()]

    def save_assets(self, folder: str) -> None:
        Path(folder, "vocabulary.json").write_text(json.dumps(self.vocabulary))

    def load_assets(self, folder: str) -> None:
        self.vocabulary = json.loads(Path(folder, "vocabulary.json").read_text())


@register
class Task(keras.Model):
    """A model with a tokenizer beside it, which its config does not carry."""

    def __init__(self, vocabulary: Any = (), **kwargs: Any):
        inputs = keras.Input((3,), dtype="int32")
        hidden = layers.Flatten()(layers.Embedding(5, 2, name="embed")(inputs))
        super().__init__(inputs, layers.Dense(1, name="out")(hidden), **kwargs)
        self.tokenizer = Tokenizer(vocabulary, name="tokenizer")

    def get_config(self) -> dict:
        return {"name": self.name}

    @classmethod
    def from_config(cls, config: dict, custom_objects: Any = None) -> Task:
        return cls(**config)


def tokenizer() -> keras.Model:
    model = Task(["a", "model", "reads", "these", "words"])
    model.compile(optimizers.Adam(0.01), "mse")
    return model


def nnx_inside() -> keras.Model:
    inner = kfb.NNXLayer(nnx.BatchNorm, args=(4,), name="norm")
    model = keras.Sequential(
        [keras.Input((6,)), layers.Dense(4, name="first"), inner, layers.Dense(1, name="last")]
    )
    model.compile(optimizers.Adam(0.01), "mse")
    return model


NAMES = ("generator", "critic")


def two_models() -> dict[str, keras.Model]:
    return {name: plain(optimizer=rule) for name, rule in zip(NAMES, ("adam", "sgd"), strict=True)}
