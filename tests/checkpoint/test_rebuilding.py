"""`load_model` gives back what a config does not say: LoRA, quantization, frozen layers, an own `compile`."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_flax_bridge as kfb
from keras_flax_bridge.checkpoint import model_extras
from tests.support.cases import differing

X = np.random.default_rng(0).normal(size=(4, 3, 8)).astype("float32")


def attention():
    inputs = keras.Input((3, 8))
    attended = layers.MultiHeadAttention(2, 4, name="attn")(inputs, inputs)
    return keras.Model(inputs, layers.Dense(2, name="out")(layers.BatchNormalization(name="norm")(attended)))


@keras.saving.register_keras_serializable("rebuilding")
class Nested(keras.Model):
    """A subclassed model, whose config says nothing of its layers."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.blocks = [layers.Dense(8, name="one"), layers.BatchNormalization(center=False, scale=False)]
        self.head = layers.EinsumDense("abc,cd->abd", (None, 2), bias_axes="d")

    def call(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def nested():
    model = Nested()
    model(X)
    return model


def query(model):
    return model.get_layer("attn")._query_dense


def int8_and_lora(model):
    model.quantize("int8")
    query(model).enable_lora(2, lora_alpha=3)


def partly_frozen(model):
    model.get_layer("attn").trainable = False
    query(model).trainable = True
    model.get_layer("out").kernel.trainable = False


def frozen_statistics(model):
    model.blocks[1].trainable = False
    model.head.enable_lora(1)


def frozen_in_a_list(model):
    model.blocks[0].trainable = False


ROWS = {
    "lora in attention": (attention, lambda model: query(model).enable_lora(2)),
    "int8 and lora": (attention, int8_and_lora),
    "int4": (attention, lambda model: model.quantize("int4")),
    "float8": (attention, lambda model: model.quantize("float8")),
    "partly frozen": (attention, partly_frozen),
    "frozen statistics": (nested, frozen_statistics),
    "frozen in a list": (nested, frozen_in_a_list),
}


@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method")
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow if row[0] is attention else ()) for n, row in ROWS.items()],
)
def test_layers_are_those_that_were_saved(name, tmp_path):
    build, change = ROWS[name]
    model = build()
    change(model)
    model.compile(keras.optimizers.AdamW(0.01), "mse")
    state = kfb.TrainState.from_keras(model)
    kfb.save(tmp_path / "one", state, model=model)
    loaded = kfb.load_model(tmp_path / "one")
    assert differing(kfb.TrainState.from_keras(loaded), state) == []
    flags = [[layer.trainable for layer in m._flatten_layers()] for m in (loaded, model)]
    assert flags[0] == flags[1]
    for training in (False, True):
        np.testing.assert_array_equal(loaded(X, training=training), model(X, training=training))


@pytest.mark.slow
def test_the_leaves_alone_say_it_where_a_checkpoint_has_no_more(tmp_path, monkeypatch):
    model = attention()
    model.get_layer("norm").trainable = False
    query(model).enable_lora(2)
    model.compile("adam", "mse")
    monkeypatch.setattr(model_extras, "of_model", lambda model: {})
    state = kfb.TrainState.from_keras(model)
    kfb.save(tmp_path / "one", state)
    loaded = kfb.load_model(tmp_path / "one")
    assert differing(kfb.TrainState.from_keras(loaded), state) == []
    assert not loaded.get_layer("norm").trainable


@keras.saving.register_keras_serializable("rebuilding")
class Own(keras.Model):
    """A class with a default of its own for `compile`, as KerasHub's tasks have."""

    def __init__(self, **kwargs):
        inputs = keras.Input((3, 8))
        super().__init__(inputs, layers.Dense(2, name="out")(inputs), **kwargs)

    def get_config(self):
        return {"name": self.name}

    @classmethod
    def from_config(cls, config):
        model = cls(**config)
        model.compile()
        return model

    def compile(self, optimizer="auto", loss="auto", *, sampler="greedy", hidden=None, **kwargs):
        self.sampler = sampler
        if hidden is None:
            self.hidden = None
        optimizer = keras.optimizers.Adam(2e-5) if optimizer == "auto" else optimizer
        super().compile(optimizer, "mse" if loss == "auto" else loss, **kwargs)


@pytest.mark.parametrize("optimizer", [keras.optimizers.AdamW, keras.optimizers.SGD])
def test_a_class_with_its_own_compile_is_compiled_as_it_was(optimizer, tmp_path):
    model = Own()
    model.compile(optimizer(0.01, weight_decay=0.5, clipnorm=0.1), "mae", sampler=["top", 2])
    state = kfb.TrainState.from_keras(model)
    kfb.save(tmp_path / "one", state)
    loaded = kfb.load_model(tmp_path / "one")
    assert type(loaded.optimizer) is optimizer
    assert loaded.optimizer.get_config() == model.optimizer.get_config()
    assert (loaded.loss, loaded.sampler) == ("mae", ["top", 2])
    assert differing(kfb.TrainState.from_keras(loaded), state) == []


def test_an_argument_of_compile_that_is_not_kept_is_an_error(tmp_path):
    model = Own()
    model.compile("adam", hidden=1)
    kfb.save(tmp_path / "one", kfb.TrainState.from_keras(model))
    with pytest.raises(kfb.CheckpointError, match="without the arguments hidden"):
        kfb.load_model(tmp_path / "one")
