"""Whole models as native Flax modules: outputs, own layers and rules, and what is refused."""

from itertools import chain

import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest
from flax import nnx
from keras import layers as L

import keras_flax_bridge as kfb
from keras_flax_bridge.migrate.rules import rule
from tests.support.arrays import Arrays
from tests.support.cases import QUICK
from tests.support.models import applications, native
from tests.support.models.counterparts import Theirs, convnet

arrays = Arrays()
floats, ids = arrays.floats, arrays.ids
migrate = kfb.migrate
pytestmark = pytest.mark.usefixtures("numpy_weights")


MODELS = {
    "transformer": (native.transformer, ids(3, 6)),
    "tagger": (native.tagger, ids(3, 7)),
    "unet": (native.unet, floats(2, 16, 16, 3)),
    "inputs_and_outputs": (native.inputs_and_outputs, {"left": floats(3, 4), "class": floats(3, 4)}),
    "operations": (native.operations, floats(3, 4, 6)),
}
FAST = ("tagger", "inputs_and_outputs", "operations")


@pytest.mark.parametrize(
    "name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in MODELS]
)
def test_whole_models(name):
    build, x = MODELS[name]
    keras.utils.set_random_seed(0)
    model = build()
    module = migrate.to_nnx(model, check_outputs=False)
    report = migrate.compare(model, module, x, tolerance=1e-5)
    assert report.ok, report
    assert jax.tree.structure(module(x)) == jax.tree.structure(model(x))
    traced = nnx.jit(lambda m, x: m(x))(module, x)
    np.testing.assert_allclose(jax.tree.leaves(traced)[0], jax.tree.leaves(module(x))[0], atol=1e-5)


def subclassed():
    keras.utils.set_random_seed(0)
    model = native.Subclassed()
    model(floats(2, 4))
    return model


@pytest.mark.slow
def test_a_subclassed_model_is_drawn():
    model = subclassed()
    module = migrate.to_nnx(model)
    assert module.conversion_report.checked < 1e-6
    assert "for block in self.blocks" in migrate.to_source(model)
    assert migrate.to_keras(module, model) is model


class Branches(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = L.Dense(4)

    def call(self, x, training=False):
        return self.dense(x) * 2 if training else self.dense(x)


class Assigns(Branches):
    def build(self, shape):
        self.count = self.add_weight(shape=(), name="count", trainable=False)

    def call(self, x):
        self.count.assign_add(1.0)
        return self.dense(x)


class Freezes(Branches):
    def build(self, shape):
        self.w = self.add_weight(shape=(4,), name="w")

    def call(self, x):
        return self.dense(x) + keras.ops.exp(self.w)


class RawJax(Branches):
    def call(self, x):
        return jnp.sin(self.dense(x))


@pytest.mark.parametrize(
    ("cls", "said"),
    [(Branches, "training"), (Assigns, "assigns to count"), (Freezes, "does not use: w"), (RawJax, "traced")],
)
def test_what_drawing_would_lose_is_an_error(cls, said):
    model = cls()
    model(floats(2, 4))
    before = [np.asarray(v.value) for v in model.weights]
    with pytest.raises(kfb.UnsupportedLayerError, match=said) as error:
        migrate.to_nnx(model)
    assert "ToNNX" in str(error.value)
    for variable, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(variable.value, value)


class Own(L.Layer):
    """Without a rule, and not to be drawn."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = L.Dense(4)

    def call(self, x):
        return jnp.sin(self.dense(x))


class OwnDense(L.Dense):
    """A subclass that computes something else."""

    def call(self, x):
        return 2 * jnp.sin(super().call(x))


def with_own_layers():
    x = keras.Input((4,))
    return keras.Model(x, L.Dense(2)(OwnDense(3, name="mine")(Own(name="other")(x))))


def test_all_layers_without_a_rule_are_named_at_once():
    with pytest.raises(kfb.UnsupportedLayerError) as error:
        migrate.to_nnx(with_own_layers())
    assert all(
        name in str(error.value) for name in ("'mine'", "'other'", "register_rule", "fallback='bridge'")
    )


def test_islands():
    model = with_own_layers()
    module = migrate.to_nnx(model, fallback="bridge")
    assert module.conversion_report.checked < 1e-6
    assert isinstance(module.mine, kfb.ToNNX)
    assert isinstance(module.dense, nnx.Linear)
    module.dense.bias[...] += 1
    migrate.to_keras(module, model)
    assert migrate.compare(model, module, floats(3, 4)).ok


def test_a_rule_of_the_user():
    class Scaled(L.Layer):
        def build(self, shape):
            self.factor = self.add_weight(shape=(shape[-1],), name="factor", initializer="normal")

        def call(self, x):
            return jnp.asarray(x) * jnp.asarray(self.factor.value)

    migrate.register_rule(
        Scaled,
        "Scale",
        config={"features": lambda site: site.shape()[-1]},
        weights={"factor": "scale"},
    )
    try:
        model = keras.Sequential([keras.Input((4,)), Scaled(name="scaled")])
        module = migrate.to_nnx(model)
        assert module.conversion_report.checked < 1e-6
        np.testing.assert_array_equal(module.scaled.scale[...], model.layers[0].factor.value)
    finally:
        del rule.RULES[Scaled]


def test_what_is_dropped_is_reported():
    model = keras.Sequential(
        [keras.Input((4,)), L.Dense(2, kernel_regularizer="l2", bias_constraint="non_neg", name="d")]
    )
    report = migrate.to_nnx(model).conversion_report
    assert report.dropped == ("kernel_regularizer of 'd'", "bias_constraint of 'd'")
    assert "kernel_regularizer" in str(report)


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_policies(policy):
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(policy)
    try:
        x = keras.Input((8, 8, 3))
        y = L.BatchNormalization()(L.Conv2D(4, 3, activation="relu")(x))
        y = L.LayerNormalization()(L.Dropout(0.1)(L.GlobalAveragePooling2D()(y)))
        model = keras.Model(x, L.Dense(2)(y))
    finally:
        keras.config.set_dtype_policy("float32")
    module = migrate.to_nnx(model)
    wanted = model(floats(2, 8, 8, 3))
    assert module(floats(2, 8, 8, 3)).dtype == wanted.dtype
    assert module.conv2d.kernel.dtype == jnp.float32


def test_frozen_layers_do_not_train():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), L.Dense(4), L.BatchNormalization(), L.Dense(2)])
    model.layers[0].trainable = False
    model.layers[1].trainable = False
    module = migrate.to_nnx(model)
    module.train()
    optimizer = nnx.Optimizer(module, optax.sgd(0.1), wrt=nnx.Param)
    before = np.asarray(module.dense.kernel[...]), np.asarray(module.batch_normalization.mean[...])
    grads = nnx.grad(lambda m: jnp.sum(m(floats(8, 4)) ** 2))(module)
    optimizer.update(module, grads)
    np.testing.assert_array_equal(module.dense.kernel[...], before[0])
    np.testing.assert_array_equal(module.batch_normalization.mean[...], before[1])
    assert isinstance(module.dense_1.kernel, nnx.Param)


APPLICATIONS = [
    *(pytest.param(name, marks=pytest.mark.slow) for name in applications.FAMILIES),
    *(pytest.param(name, marks=pytest.mark.full) for name in applications.OTHERS),
]


@pytest.mark.every(slow=3)
@pytest.mark.filterwarnings("ignore:The structure of `inputs` doesn't match")  # they want a list of one
@pytest.mark.parametrize("name", APPLICATIONS)
def test_an_application(name):
    model = applications.body(name)
    module = migrate.to_nnx(model, check_outputs=False)
    graph, state = nnx.split(module)
    held = model.trainable_variables, model.non_trainable_variables
    weights = [[v.value for v in part] for part in held]

    def outputs(weights, state, x):
        return model.stateless_call(*weights, x)[0], nnx.merge(graph, state)(x)

    side = applications.side_of(name)
    wanted, got = jax.jit(outputs, compiler_options=QUICK)(weights, state, floats(1, side, side, 3))
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
    model.set_weights([np.zeros(weight.shape, weight.dtype) for weight in model.weights])
    migrate.to_keras(module, model)
    for variable, value in zip(chain(*held), chain(*weights), strict=True):
        np.testing.assert_array_equal(variable.value, value, err_msg=variable.path)


def test_a_deep_graph_needs_no_deep_stack():
    x = y = keras.Input((3,))
    for step in range(700):  # Keras itself stops below 1000
        y = y + float(step % 3)
    assert migrate.to_nnx(keras.Model(x, y)).conversion_report.checked == 0


@pytest.mark.slow
def test_misuse_is_explained():
    with pytest.raises(kfb.NotBuiltError):
        migrate.to_nnx(keras.Sequential([L.Dense(2)]))
    with pytest.raises(kfb.StructureMismatchError, match="a Keras layer or model"):
        migrate.to_nnx(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
    with pytest.raises(kfb.StructureMismatchError, match="bridge"):
        migrate.to_nnx(convnet(), fallback="none")
    with pytest.raises(kfb.StructureMismatchError, match="match"):
        migrate.to_keras(Theirs(nnx.Rngs(0)), convnet())
