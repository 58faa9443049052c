"""The Keras layer around a Flax module: ownership, names, seeds, masks, shapes and losses."""

import sys

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import keras_flax_bridge as kfb
from tests.support.flax_layers import same, weights
from tests.tables import flax_in_keras_rows as flax_rows

# --- the module stays the caller's


def test_the_caller_s_module_is_neither_changed_nor_donated():
    module = flax_rows.Block(nnx.Rngs(0))
    before = jax.tree.map(jnp.copy, nnx.state(module, nnx.Not(nnx.RngState)))
    graph = nnx.graphdef(module)
    model = keras.Sequential([keras.Input((6,)), kfb.NNXLayer(module)])
    model.compile("adam", "mse")
    model.fit(flax_rows.V, np.zeros((8, 3)), epochs=2, verbose=0)
    assert nnx.graphdef(module) == graph
    same(nnx.state(module, nnx.Not(nnx.RngState)), before)
    module(flax_rows.V)  # its buffers are there
    assert np.any(model.trainable_weights[1].value != before["blocks"][0]["kernel"].get_value())


def test_weights_and_paths_are_the_module_s():
    layer = kfb.NNXLayer(flax_rows.nnx_block, name="block")
    assert [v.path for v in layer.trainable_weights] == [
        f"block/{path}"
        for path in (
            "blocks/0/bias",
            "blocks/0/kernel",
            "blocks/1/bias",
            "blocks/1/scale",
            "last/bias",
            "last/kernel",
        )
    ]
    assert [v.name for v in layer.non_trainable_weights] == ["mean", "var", "count", "key"]
    state = kfb.TrainState.from_keras(keras.Sequential([keras.Input((6,)), layer]), optimizer="sgd")
    assert state.params["block"]["blocks"]["0"]["kernel"].shape == (6, 4)


def test_a_dtype_of_the_module_s_own_stays():
    layer = kfb.NNXLayer(nnx.Linear, args=(6, 3), kwargs={"param_dtype": jnp.float16}, dtype="bfloat16")
    assert {v.dtype for v in layer.weights} == {"float16"}
    assert {v.dtype for v in kfb.NNXLayer(nnx.Linear, args=(6, 3), dtype="bfloat16").weights} == {"bfloat16"}


def test_one_seed_one_start():
    build = lambda seed: kfb.NNXLayer(nnx.Linear, args=(6, 3), seed=seed)  # noqa: E731
    same(weights(build(1)), weights(build(1)))
    assert np.any(weights(build(1))[1] != weights(build(2))[1])
    firsts = []
    for _ in range(2):
        keras.utils.set_random_seed(4)
        firsts.append(weights(build(None)))
    same(*firsts)


@pytest.mark.slow
def test_a_layer_that_is_built_under_a_trace_keeps_nothing_of_it(leaks):
    model = keras.Sequential([kfb.LinenLayer(flax_rows.linen_block), kfb.NNXLayer(nnx.Linear, args=(3, 2))])
    variables = jax.jit(lambda key: kfb.ToLinen(model).init(key, flax_rows.V))(jax.random.key(0))
    assert set(variables) == {"params", "batch_stats", "seeds"}
    assert model(flax_rows.V).shape == (8, 2)


# --- masks


class Pool(nn.Module):
    """The mean of what is not masked."""

    @nn.compact
    def __call__(self, x, mask=None):
        kept = jnp.ones(x.shape[:2]) if mask is None else mask.astype(x.dtype)
        return jnp.sum(x * kept[..., None], 1) / jnp.sum(kept, 1, keepdims=True)


@pytest.mark.slow
def test_masks_reach_the_module_and_go_on():
    tokens = np.array([[1, 2, 0], [3, 0, 0]])
    embed, dense, pool = (
        keras.layers.Embedding(5, 4, mask_zero=True),
        kfb.LinenLayer(nn.Dense(4)),
        kfb.LinenLayer(Pool()),
    )
    x = keras.Input((3,), dtype="int32")
    model = keras.Model(x, pool(dense(embed(x))))
    values = np.asarray(dense(embed(tokens)))
    wanted = [values[0, :2].mean(0), values[1, 0]]
    np.testing.assert_allclose(model(tokens), wanted, rtol=1e-6)
    np.testing.assert_allclose(model.predict(tokens, verbose=0), wanted, rtol=1e-6)
    np.testing.assert_allclose(keras.Sequential([embed, dense, pool])(tokens), wanted, rtol=1e-6)
    # attention's mask is of another shape: Keras's goes by, and on
    attention = kfb.LinenLayer(nn.MultiHeadDotProductAttention(2))
    assert pool(attention(embed(tokens))).shape == (2, 4)


def test_shapes_are_found_without_a_call():
    class Refusing(nnx.Module):
        def __call__(self, x):
            assert isinstance(x, jax.core.Tracer), "called on numbers"
            return {"a": x @ jnp.ones((6, 3)), "b": x[..., :1]}

    found = kfb.NNXLayer(Refusing()).compute_output_spec(keras.KerasTensor((None, 6)))
    assert {name: spec.shape for name, spec in found.items()} == {"a": (None, 3), "b": (None, 1)}
    flat = kfb.NNXLayer(lambda: nnx.Sequential(lambda x: x.reshape(len(x), -1)[:, ::2]))
    assert flat.compute_output_spec(keras.KerasTensor((None, 4, 6))).shape == (None, 12)
    layer = kfb.NNXLayer(flax_rows.nnx_lstm)
    assert layer.compute_output_spec(keras.KerasTensor((None, 7, 6))).shape == (None, 7, 4)


def test_losses_that_a_linen_module_sows_are_trained_on():
    class Sowing(nn.Module):
        @nn.compact
        def __call__(self, x):
            y = nn.Dense(3)(x)
            self.sow("losses", "size", jnp.mean(y**2))
            return y

    layer = kfb.LinenLayer(Sowing())
    y = layer(flax_rows.V)
    np.testing.assert_allclose(layer.losses[0], jnp.mean(y**2), rtol=1e-6)
    assert [v.name for v in layer.weights] == ["bias", "kernel", "seed_generator_state"]


def test_a_field_says_that_the_module_trains():
    class Field(nn.Module):
        train: bool = False

        @nn.compact
        def __call__(self, x):
            return nn.BatchNorm(use_running_average=not self.train)(x)

    layer = kfb.LinenLayer(Field())
    one, two = layer(flax_rows.V, training=True), layer(flax_rows.V)
    assert np.any(one != two)
    np.testing.assert_allclose(np.mean(one, 0), np.zeros(6), atol=1e-6)
    fixed = kfb.LinenLayer(nn.BatchNorm(use_running_average=True))
    same(fixed(flax_rows.V, training=True), fixed(flax_rows.V))


# --- what the peers get wrong


def test_predict_drops_nothing_where_the_module_has_no_training_argument():
    """Flax's bridge in `FlaxLayer` predicts with dropout and the statistics of the batch."""
    layer = kfb.NNXLayer(flax_rows.Block(nnx.Rngs(0)))
    model = keras.Sequential([keras.Input((6,)), layer])
    one, two = (model.predict(flax_rows.V, verbose=0) for _ in range(2))
    same(one, two)
    part = model.predict(flax_rows.V[:2], verbose=0)
    np.testing.assert_allclose(part, one[:2], atol=1e-6)


def test_masks_differ_from_step_to_step_and_after_a_retrace():
    """A: in Keras's NNX mode they are the same in every call of nnx.jit, and a retrace fails."""
    module = kfb.ToNNX(keras.Sequential([keras.Input((6,)), keras.layers.Dropout(0.5)]))
    call = nnx.jit(lambda module, x: module(x, training=True))
    one, two, three = (
        call(module, jnp.ones((4, 6))),
        call(module, jnp.ones((4, 6))),
        call(module, jnp.ones((3, 6))),
    )
    assert np.any(one != two)
    assert np.any(three != two[:3])


@pytest.mark.slow
def test_layers_in_lists_train_and_merged_modules_are_on_their_own():
    """B and C: there they have no gradient, and a merged model computes with the original's weights."""

    class Listed(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.blocks = [keras.layers.Dense(3), keras.layers.Dense(2)]

        def call(self, x):
            return self.blocks[1](self.blocks[0](x))

    module = kfb.ToNNX(Listed())
    module(flax_rows.V)
    grads = nnx.grad(lambda module: jnp.mean(module(flax_rows.V) ** 2))(module)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(grads))
    graph, state = nnx.split(module)
    other = nnx.merge(graph, jax.tree.map(jnp.zeros_like, state))
    assert not np.any(other(flax_rows.V))
    assert np.any(module(flax_rows.V))


def test_no_tensorflow_is_asked_for():
    """D: `FlaxLayer`, and `JaxLayer` with init_fn, can't be built without it."""
    kfb.LinenLayer(nn.Dense(2))(flax_rows.V)
    assert "tensorflow" not in sys.modules
