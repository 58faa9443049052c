"""What Keras asks of each layer: constructors, configs, shapes, dtypes, its own checks."""

import functools
import json

import jax.numpy as jnp
import keras
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from keras.src.testing import TestCase

import keras_flax_bridge as kfb
from tests.support.flax_layers import same
from tests.tables import flax_in_keras_rows as flax_rows
from tests.tables.flax_in_keras_rows import ROWS

# --- constructors


class NoArguments(nnx.Module):
    def __call__(self, x):
        return x


class Scale(nnx.Module):
    def __init__(self, size):
        self.scale = nnx.Param(jnp.ones(size))

    def __call__(self, x):
        return x * self.scale


class Positional(nnx.Module):
    def __init__(self, size, rngs):
        self.linear = nnx.Linear(6, size, rngs=rngs)

    def __call__(self, x):
        return self.linear(x)


class Inherited(Positional): ...


class AnyNames(Positional):
    def __init__(self, size, **options):
        super().__init__(size, **options)


CONSTRUCTORS = {
    "no constructor": (lambda: kfb.NNXLayer(NoArguments), 0),
    "no rngs": (lambda: kfb.NNXLayer(Scale, args=(6,)), 1),
    "PReLU": (lambda: kfb.NNXLayer(nnx.PReLU), 1),
    "Sequential": (lambda: kfb.NNXLayer(nnx.Sequential), 0),
    "Sequential of modules": (
        lambda: kfb.NNXLayer(nnx.Sequential, args=(nnx.Linear(6, 2, rngs=nnx.Rngs(0)), nnx.relu)),
        2,
    ),
    "rngs by position": (lambda: kfb.NNXLayer(Positional, args=(2, nnx.Rngs(0))), 2),
    "rngs by place": (lambda: kfb.NNXLayer(Positional, args=(2,)), 2),
    "inherited": (lambda: kfb.NNXLayer(Inherited, args=(2,)), 2),
    "any names": (lambda: kfb.NNXLayer(AnyNames, args=(2,)), 2),
    "a part of a class": (lambda: kfb.NNXLayer(functools.partial(nnx.Linear, 6), args=(2,)), 2),
    "a part without rngs": (lambda: kfb.NNXLayer(functools.partial(Scale, size=6)), 1),
    "a function without rngs": (lambda: kfb.NNXLayer(lambda: Scale(6)), 1),
}


@pytest.mark.parametrize(("build", "count"), CONSTRUCTORS.values(), ids=CONSTRUCTORS)
def test_rngs_goes_to_constructors_that_take_it(build, count):
    layer = build()
    assert len(layer.weights) == count
    assert layer(flax_rows.V).shape[0] == 8


def test_a_constructor_that_can_t_be_inspected_is_explained():
    class Callable:
        __signature__ = 3

        def __call__(self):
            return Scale(6)

    with pytest.raises(kfb.StructureMismatchError, match="can't be inspected"):
        kfb.NNXLayer(Callable())
    with pytest.raises(TypeError, match="size"):  # what is missing is named by the class itself
        kfb.NNXLayer(Scale)


# --- configs

LAYERS = {
    "nnx.PReLU": lambda **o: kfb.NNXLayer(nnx.PReLU, **o),
    "nnx.Linear": lambda **o: kfb.NNXLayer(nnx.Linear, args=(6, 3), seed=np.int64(1), **o),
    "nnx.BatchNorm": lambda **o: kfb.NNXLayer(nnx.BatchNorm, args=(6,), **o),
    "its own dtype": lambda **o: kfb.NNXLayer(
        nnx.Linear, args=(6, 3), kwargs={"param_dtype": jnp.bfloat16}, **o
    ),
    "nnx, registered": lambda **o: kfb.NNXLayer(flax_rows.nnx_block, **o),
    "nn.Dense": lambda **o: kfb.LinenLayer(nn.Dense(3), **o),
    "nn.Dense, dtype": lambda **o: kfb.LinenLayer(nn.Dense(3, dtype=jnp.float32), **o),
    "nn.BatchNorm": lambda **o: kfb.LinenLayer(nn.BatchNorm, **o),
    "nn.WeightNorm": lambda **o: kfb.LinenLayer(nn.WeightNorm(nn.Dense(3)), **o),
    "linen, registered": lambda **o: kfb.LinenLayer(flax_rows.linen_block, **o),
}
POLICIES = ["float32", "mixed_float16", "mixed_bfloat16", "float16"]


@pytest.mark.parametrize("build", LAYERS.values(), ids=LAYERS)
def test_configs_are_json(build):
    config = build(name="layer").get_config()
    text = json.dumps(config)
    again = kfb.LinenLayer if build().__class__ is kfb.LinenLayer else kfb.NNXLayer
    layer = again.from_config(json.loads(text))
    assert json.dumps(layer.get_config()) == text
    assert layer(flax_rows.V).shape == build()(flax_rows.V).shape
    assert json.loads(json.dumps(keras.saving.serialize_keras_object(layer)))["config"] == json.loads(text)


# --- shapes and dtypes


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("build", LAYERS.values(), ids=LAYERS)
def test_specs_are_those_of_calls(build, policy):
    fresh, layer = build(dtype=policy), build(dtype=policy)
    wanted = layer(flax_rows.V)
    dtype = keras.backend.standardize_dtype(wanted.dtype)
    for one in (fresh, layer):
        for given in (flax_rows.V, keras.KerasTensor((8, 6)), keras.KerasTensor((8, 6), "float16")):
            spec = one.compute_output_spec(given)
            assert (spec.shape, spec.dtype) == (wanted.shape, dtype)
        if policy != "float16":  # nnx.BatchNorm assigns float32 to statistics, which jax warns of
            assert one.compute_output_spec(keras.KerasTensor((None, 6)), training=True).dtype == dtype
        assert one.compute_output_shape((None, 6)) == (None, *wanted.shape[1:])
    assert not fresh.built or isinstance(fresh, kfb.NNXLayer)  # a question builds nothing


def test_shapes_of_several_inputs_and_of_integers():
    rows = {row.name: row for row in ROWS}
    shape = (8, 6)
    for name in ("NNX several inputs", "Linen several inputs"):
        layer = rows[name].layer()
        assert layer.compute_output_shape(shape, b_shape=shape, scale_shape=(8, 3)) == (8, 3)
        layer.build(shape, b_shape=shape, scale_shape=(8, 3))
        assert layer(*rows[name].args, **rows[name].named).shape == (8, 3)
    for name in ("NNX Embed", "Linen Embed"):
        layer = rows[name].layer()
        assert layer.compute_output_shape((None, 5)) == (None, 5, 4)
        layer.build((None, 5))
        assert layer(flax_rows.TOKENS).shape == (8, 5, 4)
    with pytest.raises(ValueError, match="integer"):
        rows["Linen Embed"].layer()(flax_rows.V)


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
@pytest.mark.parametrize("name", ["nnx.Linear", "nn.Dense"])
def test_wrappers_and_nested_models_know_the_dtype(name, policy):
    build = functools.partial(LAYERS[name], dtype=policy)
    each = keras.layers.TimeDistributed(build(), dtype=policy)
    x = keras.Input((5, 6))
    inner = keras.Model(x, each(x))
    y = keras.Input((5, 6))
    outer = keras.Model(y, inner(y))
    found = outer(flax_rows.S)
    assert (outer.output.shape[1:], outer.output.dtype) == (found.shape[1:], str(found.dtype))
    clone = keras.models.clone_model(outer)
    clone.set_weights(outer.get_weights())
    same(clone(flax_rows.S), found)


# --- Keras's own checks


def run(row):
    """The arguments of `run_layer_test` for a row."""
    kind = kfb.LinenLayer if row.is_linen else kfb.NNXLayer
    names = list(row.layer().call.__signature__.parameters)
    shapes, dtypes = row.args[0].shape, str(row.args[0].dtype)
    if len(row.x) > 1:
        named = dict(zip([*names[: len(row.args)], *row.named], row.x, strict=True))
        shapes = {f"{name}_shape": x.shape for name, x in named.items()}
        dtypes = dict.fromkeys(shapes, "float32")
    # Keras's training step passes one positional input
    options = {"run_training_check": len(row.x) == 1, "supports_masking": True}
    TestCase("run_layer_test").run_layer_test(
        kind, {"module": row.make, "seed": 3}, input_shape=shapes, input_dtype=dtypes, **options
    )


@pytest.mark.filterwarnings("ignore:`shuffle=True` was passed:UserWarning")
@pytest.mark.parametrize(
    "row",
    [pytest.param(row, id=row.name, marks=[] if row.fast else [pytest.mark.slow]) for row in ROWS],
)
def test_keras_s_own_layer_test(row):
    run(row)
