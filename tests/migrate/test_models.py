"""Whole models: conversion, source, errors, checkpoints, maps onto models of other people's making."""

import ast
import subprocess
import sys
from itertools import chain

import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest
from flax import linen, nnx
from keras import layers as L

import keras_flax_bridge as kfb
from docs.generate import migrate as rule_table
from keras_flax_bridge.migrate.rules import rule
from keras_flax_bridge.tree.paths import flatten_tree
from tests.support.cases import QUICK
from tests.support.models import applications, native

RNG = np.random.default_rng(0)
migrate = kfb.migrate
pytestmark = pytest.mark.usefixtures("numpy_weights")


def floats(*shape):
    return RNG.standard_normal(shape).astype("float32")


def ids(*shape):
    array = RNG.integers(1, 20, shape).astype("int32")
    array[:, -2:] = 0
    return array


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


NAMES = [
    'x"); import os #',
    "class",
    "__init__",
    "train",
    "self",
    "jnp",
    "rngs",
    "1 layer",
    "ünï cödé",
    "»m«",
    "a\\nb = 1",
    "{x}",
    "None",
    "blocks",
    "print('hi')",
]


def test_names_are_never_code():
    keras.utils.set_random_seed(0)
    x = keras.Input((3,), name='in"put')
    y = x
    for name in NAMES:
        y = L.Dense(3, name=name)(y)
    model = keras.Model({'in"put': x}, {"a\"]; print('x') #": y}, name='"""\nimport os')
    source = migrate.to_source(model, class_name="1 class;")
    names = {node.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)}
    assert not names & {"os", "print"}
    module = migrate.to_nnx(model)
    assert module.conversion_report.checked < 1e-6
    assert len(nnx.to_flat_state(nnx.state(module))) == 2 * len(NAMES)


def test_the_source_does_not_depend_on_what_else_was_built():
    first = migrate.to_source(native.unet())
    L.Conv2D(3, 3)
    assert migrate.to_source(native.unet()) == first


LIMITS = {"ResNet50": 150, "MobileNetV2": 120}


@pytest.mark.slow
@pytest.mark.parametrize("family", LIMITS)
def test_sources_are_short(family):
    source = migrate.to_source(getattr(keras.applications, family)(weights=None))
    assert len(source.splitlines()) <= LIMITS[family]
    assert "for block in self.blocks" in source


def test_the_source_of_a_transformer_is_short():
    assert len(migrate.to_source(native.transformer(12, 32, 4)).splitlines()) <= 120


QUICK_TO_COMPILE = ("MobileNetV2", "ResNet50")
APPLICATIONS = [
    pytest.param(name, marks=[] if name in QUICK_TO_COMPILE else pytest.mark.slow)
    for name in (*applications.FAMILIES, *applications.OTHERS)
]


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
@pytest.mark.parametrize("name", applications.FAMILIES)
def test_sources_are_formatted(name, tmp_path):
    model = applications.body(name)
    file = tmp_path / "model.py"
    file.write_text(migrate.to_source(model))
    command = [sys.executable, "-m", "ruff", "format", "--isolated", "--diff", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


# weights and checkpoints
def compiled():
    keras.utils.set_random_seed(1)
    x = keras.Input((5, 4))
    y = L.Bidirectional(L.GRU(3, return_sequences=True))(x)
    y = L.BatchNormalization()(L.Dropout(0.2)(y))
    model = keras.Model(x, L.Dense(2)(L.GlobalAveragePooling1D()(y)))
    model.compile("adam", "mse")
    return model


@pytest.fixture(scope="module")
def trained():
    model = compiled()
    model.fit(floats(6, 5, 4), np.zeros((6, 2)), verbose=0)
    return model


X = floats(3, 5, 4)


def ejected(model):
    scope = {"__name__": "ejected"}
    exec(migrate.to_source(model), scope)
    module = scope["Model"](rngs=nnx.Rngs(3))
    module.eval()
    return module


def test_one_checkpoint_reads_as_a_native_module(trained, tmp_path):
    kfb.save(tmp_path / "keras", kfb.TrainState.from_keras(trained))
    for module in (migrate.to_nnx(compiled()), ejected(trained)):
        assert kfb.restore(tmp_path / "keras", module) is module
        np.testing.assert_allclose(module(X), trained(X), atol=1e-6)


def test_a_saved_native_module_reads_as_keras(trained, tmp_path):
    kfb.save(tmp_path / "native", migrate.to_nnx(trained))
    model, weights = compiled(), "^(params|non_trainable)/(?!.*seed)"
    kfb.restore(tmp_path / "native", model, include=weights)
    for a, b in zip(model.get_weights(), trained.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    module = ejected(trained)
    kfb.restore(tmp_path / "native", module)
    np.testing.assert_allclose(module(X), trained(X), atol=1e-6)


def test_another_module_is_refused(trained, tmp_path):
    kfb.save(tmp_path / "keras", kfb.TrainState.from_keras(trained))
    with pytest.raises(kfb.StructureMismatchError, match="missing"):
        kfb.restore(tmp_path / "keras", nnx.Linear(2, 3, rngs=nnx.Rngs(0)))


def test_slots_move_with_the_weights(trained):
    state = kfb.TrainState.from_keras(trained)
    module = migrate.to_nnx(trained)
    slots = migrate.slots_to_nnx(module, state)
    assert jax.tree.structure(slots["momentums"]) == jax.tree.structure(nnx.state(module, nnx.Param))
    back = migrate.slots_to_keras(module, slots, state)
    for a, b in zip(jax.tree.leaves(back.opt_state), jax.tree.leaves(state.opt_state), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_state_goes_back_to_keras(trained):
    module = migrate.to_nnx(trained)
    module.dense.bias[...] += 1
    state = kfb.TrainState.from_keras(trained)
    new = migrate.to_keras(module, state)
    np.testing.assert_array_equal(new.params["dense"]["bias"], state.params["dense"]["bias"] + 1)
    same = flatten_tree(state.non_trainable)
    for path, leaf in flatten_tree(new.non_trainable).items():
        np.testing.assert_array_equal(leaf, same[path])


def test_five_steps_of_adam_on_both_sides():
    keras.utils.set_random_seed(2)
    model = keras.Sequential([keras.Input((4,)), L.Dense(8, "relu"), L.BatchNormalization(), L.Dense(1)])
    model.compile(keras.optimizers.Adam(0.01), "mse")
    module = migrate.to_nnx(model)
    module.train()
    optimizer = nnx.Optimizer(module, kfb.to_optax(model.optimizer), wrt=nnx.Param)
    x, y = floats(40, 4), floats(40, 1)

    @nnx.jit
    def step(module, optimizer, x, y):
        grads = nnx.grad(lambda m: jnp.mean((m(x) - y) ** 2))(module)
        optimizer.update(module, grads)

    for i in range(5):
        batch = slice(8 * i, 8 * i + 8)
        step(module, optimizer, x[batch], y[batch])
        model.train_on_batch(x[batch], y[batch])
    other = migrate.to_keras(module, keras.models.clone_model(model))
    for a, b in zip(other.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


# models that somebody else wrote
def convnet():
    keras.utils.set_random_seed(3)
    x = keras.Input((8, 8, 3))
    y = L.BatchNormalization()(L.Conv2D(4, 3, padding="same", activation="relu")(x))
    y = L.BatchNormalization()(L.Conv2D(4, 3, padding="same", use_bias=False)(y))
    model = keras.Model(x, L.Dense(2)(L.Dense(16)(L.Dense(16, "gelu")(L.Flatten()(y)))))
    for variable in model.weights:
        variable.assign(variable.value + RNG.uniform(0.1, 0.3, variable.shape))
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


IMAGES = floats(2, 8, 8, 3)


def test_match_by_numbers(tmp_path):
    model, target = convnet(), Theirs(nnx.Rngs(0))
    wmap = migrate.match(model, target, sample=IMAGES)
    assert wmap.only_flax == (("c2", "bias"),)
    assert wmap.notes == ()
    table = dict(line.split(" -> ") for line in wmap.table().splitlines() if " -> " in line)
    assert {k.strip(): v.strip() for k, v in table.items()}["batch_normalization/gamma"] == "a/scale"
    wmap.save(tmp_path / "map.json")
    again = migrate.WeightMap.load(tmp_path / "map.json")
    kfb.save(tmp_path / "weights", kfb.ToNNX(model))
    kfb.restore(tmp_path / "weights", target, rename=again)
    target.eval()
    assert migrate.compare(model, target, IMAGES, tolerance=1e-5).ok
    other = again.to_keras(target, like=keras.models.clone_model(model))
    for a, b in zip(other.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_is_open_without_a_sample_is_said():
    assert any("sample=" in note for note in migrate.match(convnet(), Theirs(nnx.Rngs(0))).notes)


def test_settings_that_differ_are_named():
    notes = migrate.match(convnet(), Theirs(nnx.Rngs(0), epsilon=1e-5), sample=IMAGES).notes
    assert any("epsilon of a is 1e-05" in note for note in notes)


def test_layers_without_a_counterpart_are_listed():
    target = nnx.Sequential(nnx.Linear(7, 3, rngs=nnx.Rngs(0)))
    with pytest.raises(kfb.StructureMismatchError) as error:
        migrate.match(convnet(), target)
    assert "only in Keras  conv2d" in str(error.value)
    assert "only in Flax   layers/0" in str(error.value)


class LinenNet(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.BatchNorm(True, epsilon=1e-3)(linen.relu(linen.Conv(4, (3, 3))(x)))
        x = linen.BatchNorm(True, epsilon=1e-3)(linen.Conv(4, (3, 3), use_bias=False)(x))
        x = linen.gelu(linen.Dense(16)(x.reshape(x.shape[0], -1)), approximate=False)
        x = linen.Dense(16)(x)
        return linen.Dense(2)(x)


def test_match_linen(tmp_path):
    model, module = convnet(), LinenNet()
    variables = module.init(jax.random.key(0), IMAGES)
    wmap = migrate.match(model, variables, sample=IMAGES, apply=module.apply)
    filled = wmap.to_flax()
    report = migrate.compare(model, lambda x: module.apply(filled, x), IMAGES, tolerance=1e-5)
    assert report.ok, report
    kfb.save(tmp_path / "weights", kfb.ToNNX(model))
    again = kfb.restore(tmp_path / "weights", variables, rename=wmap)
    assert migrate.compare(model, lambda x: module.apply(again, x), IMAGES, tolerance=1e-5).ok


class Fused(nnx.Module):
    """Query, key and value in one layer."""

    def __init__(self, rngs):
        self.qkv = nnx.Linear(8, 24, rngs=rngs)
        self.proj = nnx.Linear(8, 8, rngs=rngs)

    def __call__(self, x):
        heads = [part.reshape(*part.shape[:2], 2, 4) for part in jnp.split(self.qkv(x), 3, -1)]
        return self.proj(jax.nn.dot_product_attention(*heads).reshape(x.shape))


def test_match_fused_attention():
    x = keras.Input((5, 8))
    model, target, sample = (
        keras.Model(x, L.MultiHeadAttention(2, 4)(x, x)),
        Fused(nnx.Rngs(0)),
        floats(2, 5, 8),
    )
    wmap = migrate.match(model, target, sample=sample)
    assert wmap.notes == ()
    wmap.put(target, flatten_tree(wmap.to_flax()))
    assert migrate.compare(model, target, sample, tolerance=1e-5).ok


def test_the_first_layer_that_differs():
    model = convnet()
    module = migrate.to_nnx(model)
    assert migrate.compare(model, module, IMAGES, layers=True).first is None
    module.conv2d_1.kernel[...] += 0.1
    assert migrate.compare(model, module, IMAGES, layers=True).first.name == "conv2d_1"


def test_misuse_is_explained():
    with pytest.raises(kfb.NotBuiltError):
        migrate.to_nnx(keras.Sequential([L.Dense(2)]))
    with pytest.raises(kfb.StructureMismatchError, match="a Keras layer or model"):
        migrate.to_nnx(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
    with pytest.raises(kfb.StructureMismatchError, match="bridge"):
        migrate.to_nnx(convnet(), fallback="none")
    with pytest.raises(kfb.StructureMismatchError, match="match"):
        migrate.to_keras(Theirs(nnx.Rngs(0)), convnet())


def test_the_table_of_rules_is_that_of_the_code():
    page = rule_table.PAGE.read_text()
    assert rule_table.written(page) == page, "python -m docs.generate.migrate"
