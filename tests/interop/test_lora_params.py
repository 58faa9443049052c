"""The weights that `enable_lora` adds are a kind of their own in NNX, which trains alone."""

import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest
from flax import nnx
from keras import layers

import keras_flax_bridge as kfb

X = np.arange(24, dtype="int32").reshape(2, 12) % 7


def nested():
    """Adapters in an embedding, in a projection of an attention, and in a dense layer of an inner model."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((12,), dtype="int32")
    embedding, attention, dense = layers.Embedding(7, 4), layers.MultiHeadAttention(2, 2), layers.Dense(3)
    inner = keras.Sequential([keras.Input((12, 4)), dense])
    x = embedding(inputs)
    model = keras.Model(inputs, inner(attention(x, x)))
    for layer in (embedding, attention._output_dense, dense):
        layer.enable_lora(2)
    return model


@pytest.fixture(scope="module")
def adapted():
    return nested()


def test_adapters_are_lora_params_and_kernels_are_frozen(adapted):
    module = kfb.ToNNX(adapted)
    kinds = {path[-1]: type(v) for path, v in module.variables_by_path().items() if "lora" in path[-1]}
    assert set(kinds) == {"lora_kernel_a", "lora_kernel_b", "lora_embeddings_a", "lora_embeddings_b"}
    assert set(kinds.values()) == {nnx.LoRAParam}
    assert len(jax.tree.leaves(nnx.state(module, nnx.LoRAParam))) == 6
    assert type(module.embedding.embeddings) is kfb.Frozen
    assert type(module.sequential.dense.bias) is nnx.Param
    np.testing.assert_array_equal(module(X), adapted(X))


def test_an_optimizer_of_lora_params_trains_these_alone(adapted):
    module = kfb.ToNNX(adapted)
    before = {path: np.asarray(v.get_value()) for path, v in module.variables_by_path().items()}
    optimizer = nnx.Optimizer(module, optax.adam(0.1), wrt=nnx.LoRAParam)

    def loss(module):
        return jnp.mean(module(X) ** 2)

    for _ in range(2):  # the second factor of each adapter is zero at first
        grads = nnx.grad(loss, argnums=nnx.DiffState(0, nnx.LoRAParam))(module)
        optimizer.update(module, grads)
    after = module.variables_by_path()
    changed = {path for path in before if not np.array_equal(before[path], after[path].get_value())}
    assert changed == {path for path, v in after.items() if isinstance(v, nnx.LoRAParam)}
    twin = nested()
    module.assign_to(twin)
    np.testing.assert_allclose(twin(X), module(X), rtol=1e-5, atol=1e-6)


def test_a_name_that_a_user_chose_makes_no_adapter():
    class Own(layers.Layer):
        def build(self, shape):
            self.lora_kernel_a = self.add_weight(shape=(shape[-1],), name="lora_kernel_a")

        def call(self, x):
            return x * self.lora_kernel_a

    module = kfb.ToNNX(Own(), shape=(None, 4))
    assert type(module.lora_kernel_a) is nnx.Param
