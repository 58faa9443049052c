"""ToNNX and ToLinen: the layer's numbers, Flax's own tools."""

import inspect

import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from flax.errors import ModifyScopeVariableError
from keras import layers

import keras_flax_bridge as kfb
from keras_flax_bridge import keras_internals
from keras_flax_bridge.tree.paths import flatten_tree, nest_paths
from tests.support.cases import light
from tests.tables import contracts

SEQUENTIAL = contracts.SEQUENTIAL
X, Y = next(SEQUENTIAL.batches())


def close(outputs, wanted):
    keras.tree.map_structure(
        lambda a, b: np.testing.assert_allclose(
            np.asarray(a, "float32"), np.asarray(b, "float32"), rtol=1e-6, atol=1e-7
        ),
        outputs,
        wanted,
    )


@pytest.mark.every(slow=2)
@light
@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
def test_every_row_gives_the_layer_s_numbers(case, training):
    model, x = case.row.build(), case.batch[0]
    case.state(model)
    params, non_trainable = (
        [v.value for v in vs] for vs in (model.trainable_variables, model.non_trainable_variables)
    )
    takes = "training" in inspect.signature(model.call).parameters
    options = {"training": training} if takes else {}
    wanted, after = model.stateless_call(params, non_trainable, x, **options)
    module, linen = kfb.ToNNX(model), kfb.ToLinen(model)
    close(module(x, training=training), wanted)
    variables = values_of(model)
    mutable = ["batch_stats", "seeds", "frozen"]
    outputs, updates = linen.apply(variables, x, training=training, mutable=mutable)
    close(outputs, wanted)
    held = module.variables_by_path()
    moved = {path: leaf for name in updates for path, leaf in flatten_tree(updates[name]).items()}
    close([v.value for v in model.trainable_variables], params)
    tracked = zip(keras_internals.collect_tracked(model)[1], after, strict=True)
    expected = {entry.path: value for entry, value in tracked}
    model(x, **options)  # stateless_call returns nothing of what Keras doesn't track: states of RNNs
    for entry in keras_internals.collect_layer(model)[1]:
        value = expected.get(entry.path, entry.variable.value)
        close(held[entry.path].get_value(), value)
        close(moved[entry.path], value)


def values_of(model):
    """The layer's present values as Linen's collections."""
    names = {
        "param": "params",
        "batch_stat": "batch_stats",
        "other": "batch_stats",
        "untracked": "batch_stats",
        "seed": "seeds",
        "frozen": "frozen",
    }
    entries = [entry for part in keras_internals.collect_layer(model) for entry in part]
    return nest_paths({(names[e.kind], *e.path): e.variable.value for e in entries})


# --- ToNNX


def test_attributes_mirror_the_keys_and_say_their_kind(model):
    model.layers[0].trainable = False
    module = kfb.ToNNX(model)
    assert isinstance(module.head.kernel, nnx.Param)
    assert isinstance(module.batch_normalization.moving_mean, nnx.BatchStat)
    assert isinstance(module.dropout.seed_generator_state, kfb.KerasSeed)
    assert isinstance(module.dense.kernel, kfb.Frozen)
    assert len(nnx.to_flat_state(nnx.state(module, nnx.Param))) == 4


@pytest.mark.slow
def test_stock_nnx_code_trains_it(model):
    class Host(nnx.Module):
        """A Flax module that holds a Keras model beside its own layers."""

        def __init__(self, rngs):
            self.keras = kfb.ToNNX(model)
            self.linear = nnx.Linear(3, 3, rngs=rngs)

        def __call__(self, x):
            return self.linear(self.keras(x))

    host = Host(nnx.Rngs(0))
    optimizer = nnx.Optimizer(host, optax.adam(1e-2), wrt=nnx.Param)

    @nnx.jit
    def step(host, optimizer, x, y):
        def loss_fn(host):
            return optax.softmax_cross_entropy_with_integer_labels(host(x), y).mean()

        loss, grads = nnx.value_and_grad(loss_fn)(host)
        optimizer.update(host, grads)
        return loss

    before = jax.tree.map(jnp.copy, nnx.to_pure_dict(nnx.state(host)))
    host.train()
    losses = [float(step(host, optimizer, X, Y)) for _ in range(30)]
    assert losses[-1] < losses[0]
    after = nnx.to_pure_dict(nnx.state(host))
    changed = [
        not np.array_equal(a, b) for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    ]
    assert all(changed)
    assert int(host.keras.dropout.seed_generator_state.get_value()[1]) == 30
    host.eval()
    assert np.array_equal(host(X), host(X))


def test_copies_share_nothing(model):
    one = kfb.ToNNX(model)
    two, three = kfb.ToNNX(model), nnx.clone(one)
    graph, state = nnx.split(one)
    four = nnx.merge(graph, jax.tree.map(lambda leaf: leaf + 1, state))
    one.head.bias.set_value(one.head.bias.get_value() + 7)
    assert not np.any(two.head.bias.get_value())
    assert not np.any(three.head.bias.get_value())
    assert np.array_equal(four.head.bias.get_value(), np.ones(3))
    assert not np.any(model.get_layer("head").bias)


@pytest.mark.slow
def test_rngs_initialise_purely(model):
    build = lambda key: kfb.ToNNX(model, rngs=nnx.Rngs(key))  # noqa: E731
    keys = jax.random.split(jax.random.key(0), 3)
    one, again, other = (build(keys[i]).dense.kernel.get_value() for i in (0, 0, 1))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)
    ensemble = nnx.vmap(build)(keys)
    kernels = ensemble.dense.kernel.get_value()
    assert kernels.shape == (3, 6, 5)
    assert not np.array_equal(kernels[0], kernels[1])
    abstract = nnx.eval_shape(lambda: build(keys[0]))
    assert abstract.dense.kernel.get_value().shape == (6, 5)


def test_names_that_nnx_needs_itself_get_out_of_the_way():
    names = ("train", "train_", "deterministic")
    model = keras.Sequential([keras.Input((2,)), *(layers.Dense(1, name=name) for name in names)])
    module = kfb.ToNNX(model)
    assert len(nnx.to_flat_state(nnx.state(module))) == 6
    module.train()
    assert module.train_.kernel.shape == (2, 1)
    assert ("train", "kernel") in module.variables_by_path()
    close(module(np.ones((1, 2), "float32"), training=False), model(np.ones((1, 2), "float32")))


def test_two_modules_of_one_architecture_share_a_jitted_function(model):
    call = nnx.jit(lambda module, x: module(x))
    first = call(kfb.ToNNX(model), X)
    close(call(kfb.ToNNX(SEQUENTIAL.build()), X), first)
    graph, state = nnx.split(kfb.ToNNX(model))
    assert hash(graph) == hash(nnx.split(kfb.ToNNX(model))[0])
    pure = jax.jit(lambda graph, state, x: nnx.merge(graph, state)(x), static_argnums=0)
    close(pure(graph, state, X), first)


def test_donating_a_module_leaves_the_layer_alone(model):
    nnx.jit(lambda module: None, donate_argnums=0)(kfb.ToNNX(model))
    model(X)


def test_what_is_no_layer_is_explained(model):
    for act in (
        lambda: kfb.ToNNX(3),
        lambda: kfb.ToNNX(model, rngs=0),
        lambda: kfb.ToLinen(3).init(jax.random.key(0), X),
    ):
        with pytest.raises(kfb.StructureMismatchError, match="got a int"):
            act()


# --- ToLinen


@pytest.mark.slow
def test_init_is_pure_and_depends_on_the_key(model):
    module = kfb.ToLinen(model)
    one, again, other = (module.init(jax.random.key(k), X) for k in (0, 0, 1))
    assert set(one) == {"params", "batch_stats", "seeds"}
    assert jax.tree.all(jax.tree.map(np.array_equal, one, again))
    assert not np.array_equal(one["params"]["dense"]["kernel"], other["params"]["dense"]["kernel"])
    assert not np.array_equal(*(v["seeds"]["dropout"]["seed_generator_state"] for v in (one, other)))
    shapes = jax.eval_shape(module.init, jax.random.key(0), X)
    assert jax.tree.map(np.shape, one) == jax.tree.map(lambda s: s.shape, shapes)
    kernels = jax.vmap(lambda key: module.init(key, X)["params"]["dense"]["kernel"])(
        jax.random.split(jax.random.key(0), 3)
    )
    assert not np.array_equal(kernels[0], kernels[1])


def test_init_draws_as_the_layer_s_initializers_do():
    initializer = keras.initializers.RandomNormal(mean=5.0, stddev=0.5, seed=1)
    layer = layers.Dense(400, kernel_initializer=initializer, bias_initializer="ones")
    layer.build((None, 500))
    drawn = kfb.ToLinen(layer).init(jax.random.key(0), np.ones((1, 500), "float32"))["params"]
    assert float(drawn["kernel"].mean()) == pytest.approx(5.0, abs=0.01)
    assert float(drawn["kernel"].std()) == pytest.approx(0.5, abs=0.01)
    assert np.array_equal(drawn["bias"], np.ones(400))


def test_masks_come_from_the_dropout_rng_or_from_the_seeds(model):
    module = kfb.ToLinen(model)
    variables = module.init(jax.random.key(0), X)
    mutable = ["seeds", "batch_stats"]
    call = lambda **options: module.apply(variables, X, training=True, mutable=mutable, **options)  # noqa: E731
    (one, _), (two, _) = call(), call()
    assert np.array_equal(one, two)
    (three, updates), (four, _) = (call(rngs={"dropout": jax.random.key(k)}) for k in (0, 1))
    assert not np.array_equal(three, four)
    assert np.array_equal(
        updates["seeds"]["dropout"]["seed_generator_state"],
        variables["seeds"]["dropout"]["seed_generator_state"],
    )
    with pytest.raises(kfb.StructureMismatchError, match="dropout/seed_generator_state"):
        module.apply({k: v for k, v in variables.items() if k != "seeds"}, X, training=True)


def test_a_missing_collection_is_named(model):
    module = kfb.ToLinen(model)
    variables = module.init(jax.random.key(0), X)
    with pytest.raises(kfb.StructureMismatchError, match="batch_normalization/moving_mean"):
        module.apply({"params": variables["params"]}, X)


@pytest.mark.parametrize("style", ["setup", "compact"])
def test_as_a_submodule(model, style):
    class Setup(nn.Module):
        def setup(self):
            self.keras = kfb.ToLinen(model)
            self.dense = nn.Dense(2)

        def __call__(self, x, training=False):
            return self.dense(self.keras(x, training=training))

    class Compact(nn.Module):
        @nn.compact
        def __call__(self, x, training=False):
            return nn.Dense(2)(kfb.ToLinen(model, name="keras")(x, training=training))

    host = Setup() if style == "setup" else Compact()
    variables = host.init(jax.random.key(0), X)
    assert variables["params"]["keras"]["dense"]["kernel"].shape == (6, 5)

    def loss_fn(params):
        mutable = ["batch_stats", "seeds"]
        return jnp.sum(host.apply({**variables, "params": params}, X, training=True, mutable=mutable)[0] ** 2)

    grads = jax.jit(jax.grad(loss_fn))(variables["params"])
    assert all(np.any(leaf) for leaf in jax.tree.leaves(grads["keras"]["head"]))


def test_an_unbuilt_layer_is_built_at_its_first_call():
    module = kfb.ToNNX(layers.Dense(2))
    assert module(X).shape == (*X.shape[:-1], 2)
    assert module.kernel.shape == (X.shape[-1], 2)
    linen = kfb.ToLinen(layers.Dense(2))
    variables = linen.init(jax.random.key(0), X)
    assert variables["params"]["kernel"].shape == (X.shape[-1], 2)
    assert linen.apply(variables, X).shape == (*X.shape[:-1], 2)


def test_a_layer_that_has_no_config_is_explained():
    class Odd(layers.Layer):
        def __init__(self, size):
            super().__init__()
            self.dense = layers.Dense(size)

        def build(self, shape):
            self.dense.build(shape)

        def call(self, x):
            return self.dense(x)

    layer = Odd(2)
    layer(X)
    with pytest.raises(kfb.UnsupportedLayerError, match="get_config"):
        kfb.ToNNX(layer, rngs=nnx.Rngs(0))


def test_a_call_that_writes_needs_mutable_as_in_linen(model):
    module = kfb.ToLinen(model)
    variables = module.init(jax.random.key(0), X)
    key = {"dropout": jax.random.key(1)}
    plain = jax.tree.map(np.asarray, variables)  # as read from a file
    assert np.array_equal(module.apply(plain, X), module.apply(variables, X))
    both = ["batch_stats", "seeds"]
    wrong = {
        "nothing": ({}, r"batch_stats/batch_normalization/moving_mean.*seeds/dropout[^.]*\.\n.*mutable=\["),
        "a key alone": ({"rngs": key}, r"mutable=\['batch_stats'\]\."),
        "seeds alone": ({"mutable": ["seeds"]}, '"batch_normalization/moving_mean" in "/"'),
        "statistics alone": ({"mutable": ["batch_stats"]}, r"mutable=\['seeds'\], or a key"),
    }
    for options, message in wrong.values():
        with pytest.raises(ModifyScopeVariableError, match=message):
            module.apply(plain, X, training=True, **options)
    for options in ({"mutable": both}, {"mutable": ["batch_stats"], "rngs": key}, {"mutable": True}):
        _, updates = module.apply(plain, X, training=True, **options)
        mean = updates["batch_stats"]["batch_normalization"]["moving_mean"]
        assert np.any(mean != plain["batch_stats"]["batch_normalization"]["moving_mean"])


def test_weights_that_a_layer_assigns_are_dropped_as_by_keras_s_trainer():
    module = kfb.ToLinen(layers.SpectralNormalization(layers.Dense(2)))
    variables = module.init(jax.random.key(0), X)
    _, updates = module.apply(variables, X, training=True, mutable=["batch_stats"])
    assert set(updates) == {"batch_stats"}
