"""Native modules for Keras layers without an exact counterpart in Flax.

The source writer copies their definitions into the generated source, so they only use jax and flax.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx


class Frozen(nnx.Variable):
    """A weight or a constant that is not trained."""


def freeze(module, *paths):
    """Marks the parameters at the given paths, or all parameters of a module, as non-trainable."""
    for name, value in list(vars(module).items()):
        below = [path[1:] for path in paths if path[0] == name]
        if paths and not below:
            continue
        rest = [path for path in below if path]
        if isinstance(value, nnx.Param):
            setattr(module, name, Frozen(value.get_value()))
        elif isinstance(value, nnx.Module):
            freeze(value, *rest)
    return module


class PReLU(nnx.Module):
    """Leaky ReLU with a learned slope for each unit; nnx.PReLU has a single slope."""

    def __init__(self, shape, *, param_dtype=jnp.float32):
        self.negative_slope = nnx.Param(jnp.zeros(shape, param_dtype))

    def __call__(self, x):
        slope = self.negative_slope[...].astype(x.dtype)
        return nnx.relu(x) - slope * nnx.relu(-x)


class Scale(nnx.Module):
    """Multiplies each channel by a learned factor."""

    def __init__(self, features, init=1.0, *, param_dtype=jnp.float32):
        self.scale = nnx.Param(jnp.full((features,), init, param_dtype))

    def __call__(self, x):
        return x * self.scale[...].astype(x.dtype)


class BatchNorm(nnx.BatchNorm):
    """Batch normalization with moving statistics in param_dtype; nnx.BatchNorm keeps them in float32."""

    def __init__(self, num_features, *, param_dtype, rngs, **options):
        super().__init__(num_features, param_dtype=param_dtype, rngs=rngs, **options)
        self.mean.set_value(jnp.zeros((num_features,), param_dtype))
        self.var.set_value(jnp.ones((num_features,), param_dtype))


class Normalization(nnx.Module):
    """Normalizes with fixed statistics."""

    def __init__(
        self,
        shape,
        *,
        invert=False,
        epsilon=1e-7,
        dtype=jnp.float32,
        param_dtype=jnp.float32,
    ):
        self.mean = Frozen(jnp.zeros(shape, param_dtype))
        self.variance = Frozen(jnp.ones(shape, param_dtype))
        self.count = Frozen(jnp.zeros((), jnp.int32))
        self.invert = invert
        self.epsilon = epsilon
        self.dtype = dtype

    def __call__(self, x):
        x = jnp.asarray(x, self.dtype)
        mean = self.mean[...].astype(self.dtype)
        variance = self.variance[...].astype(self.dtype)
        scale = jnp.maximum(jnp.sqrt(variance), self.epsilon)
        return mean + x * scale if self.invert else (x - mean) / scale


class EinsumBias(nnx.Module):
    """An einsum with a bias over a subset of the output axes, which nnx.Einsum does not support."""

    def __init__(
        self,
        equation,
        kernel_shape,
        bias_shape,
        *,
        dtype=None,
        param_dtype=jnp.float32,
        rngs,
    ):
        init = nnx.initializers.lecun_normal()
        flat = (math.prod(kernel_shape[:-1]), kernel_shape[-1])
        kernel = init(rngs.params(), flat, param_dtype)
        self.kernel = nnx.Param(kernel.reshape(kernel_shape))
        self.bias = nnx.Param(jnp.zeros(bias_shape, param_dtype))
        self.equation = equation
        self.dtype = dtype

    def __call__(self, x):
        dtype = self.dtype or jnp.result_type(x, self.kernel[...])
        kernel, bias = self.kernel[...].astype(dtype), self.bias[...].astype(dtype)
        return jnp.einsum(self.equation, x.astype(dtype), kernel) + bias


class Noise(nnx.Module):
    """Base class of layers that add noise in training."""

    def __init__(self, rate, *, rngs):
        self.rate = rate
        self.deterministic = False
        self.rngs = rngs.dropout.fork()

    def __call__(self, x):
        return x if self.deterministic or not self.rate else self.noisy(x, self.rngs())

    def noisy(self, x, key):
        """Returns the noisy values."""
        raise NotImplementedError


class GaussianNoise(Noise):
    """Adds normal noise of a given standard deviation."""

    def noisy(self, x, key):
        """Returns the noisy values."""
        return x + self.rate * jax.random.normal(key, x.shape, x.dtype)


class GaussianDropout(Noise):
    """Multiplies by normal noise with mean 1 and the variance of dropout at this rate."""

    def noisy(self, x, key):
        """Returns the noisy values."""
        scale = math.sqrt(self.rate / (1.0 - self.rate))
        return x * (1.0 + scale * jax.random.normal(key, x.shape, x.dtype))


class AlphaDropout(Noise):
    """Dropout that preserves the mean and variance of SELU activations."""

    def noisy(self, x, key):
        """Returns the noisy values."""
        low = -1.0507009873554805 * 1.6732632423543772
        scale = ((1.0 - self.rate) * (1.0 + self.rate * low**2)) ** -0.5
        kept = jax.random.uniform(key, x.shape, jnp.float32) >= self.rate
        return scale * jnp.where(kept, x, low) - scale * low * self.rate


class ShapedDropout(nnx.Module):
    """Dropout with a mask of a given shape, which is broadcast to the input."""

    def __init__(self, rate, shape, *, rngs):
        self.rate = rate
        self.shape = shape
        self.deterministic = False
        self.rngs = rngs.dropout.fork()

    def __call__(self, x):
        if self.deterministic or not self.rate:
            return x
        shape = [d or size for d, size in zip(self.shape, x.shape, strict=True)]
        kept = jax.random.bernoulli(self.rngs(), 1.0 - self.rate, shape)
        return jnp.where(kept, x / (1.0 - self.rate), 0.0)


class Attention(nnx.Module):
    """Multi-head attention with different key and value sizes, an output gate, or returned scores.

    A query whose keys are all masked gives 0 if Keras computes the scores explicitly.
    """

    def __init__(
        self,
        in_features,
        key_features,
        value_features,
        num_heads,
        key_dim,
        value_dim,
        out_features,
        *,
        num_kv_heads=None,
        use_bias=True,
        use_gate=False,
        dropout_rate=0.0,
        dtype=None,
        param_dtype=jnp.float32,
        rngs,
    ):
        kv_heads = num_kv_heads or num_heads
        self.repeats = num_heads // kv_heads

        def linear(features, out, axis=-1):
            return nnx.LinearGeneral(
                features,
                out,
                axis=axis,
                use_bias=use_bias,
                dtype=dtype,
                param_dtype=param_dtype,
                rngs=rngs,
            )

        self.query = linear(in_features, (num_heads, key_dim))
        self.key = linear(key_features, (kv_heads, key_dim))
        self.value = linear(value_features, (kv_heads, value_dim))
        if use_gate:
            self.gate = linear(in_features, (num_heads, value_dim))
        self.out = linear((num_heads, value_dim), out_features, (-2, -1))
        self.use_gate = use_gate
        self.scale = key_dim**-0.5
        self.dropout_rate = dropout_rate
        if dropout_rate:
            self.dropout = nnx.Dropout(dropout_rate, rngs=rngs)

    def __call__(self, query, key, value, mask=None, return_scores=False):
        gate = nnx.sigmoid(self.gate(query)) if self.use_gate else None
        q, k, v = self.query(query), self.key(key), self.value(value)
        k, v = jnp.repeat(k, self.repeats, axis=2), jnp.repeat(v, self.repeats, axis=2)
        scores = jnp.einsum("bqhd,bkhd->bhqk", q * jnp.asarray(self.scale, q.dtype), k)
        if mask is not None:
            low = -3e4 if scores.dtype == jnp.float16 else -1e9
            scores = jnp.where(mask, scores, low)
        scores = nnx.softmax(scores)
        if mask is not None and (self.dropout_rate or return_scores):
            scores = jnp.where(mask, scores, 0.0)
        kept = self.dropout(scores) if self.dropout_rate else scores
        y = jnp.einsum("bhqk,bkhd->bqhd", kept, v)
        y = self.out(y if gate is None else y * gate)
        return (y, scores) if return_scores else y


def attention_or_zero(query, key, value, mask, **options):
    """Attention that returns 0 for queries whose keys are all masked, as Keras does with dropout."""
    y = nnx.dot_product_attention(query, key, value, mask=mask, **options)
    return jnp.where(jnp.moveaxis(jnp.any(mask, axis=-1), 1, 2)[..., None], y, 0)


class ScoreAttention(nnx.Module):
    """Dot-product or additive attention without projections."""

    def __init__(self, *, mode="dot", scale_shape=None, dropout_rate=0.0, rngs):
        self.mode = mode
        self.scale = nnx.data(None)
        if scale_shape is not None:
            self.scale = nnx.Param(jnp.ones(scale_shape))
        if mode == "concat":
            self.weight = nnx.Param(jnp.ones(()))
        self.dropout = nnx.Dropout(dropout_rate, rngs=rngs)

    def scores(self, query, key):
        """Returns the attention logits of each query and key."""
        scale = 1.0 if self.scale is None else self.scale[...]
        if self.mode == "dot":
            return query @ jnp.swapaxes(key, -2, -1) * scale
        both = query[..., :, None, :] + key[..., None, :, :]
        if self.mode == "additive":
            return jnp.sum(scale * jnp.tanh(both), axis=-1)
        return self.weight[...] * jnp.sum(jnp.tanh(scale * both), axis=-1)

    def __call__(self, q, v, k=None, mask=None, query_mask=None, return_scores=False):
        scores = self.scores(q, v if k is None else k)
        if mask is not None:
            low = 65504.0 if scores.dtype == jnp.float16 else 1e9
            scores = jnp.where(mask, scores, scores - low)
        weights = self.dropout(nnx.softmax(scores))
        y = weights @ v
        if query_mask is not None:
            y = jnp.where(query_mask[..., None], y, 0)
        return (y, weights) if return_scores else y


def causal(query, key):
    """A mask that lets each position attend to itself and earlier positions."""
    return jnp.tril(jnp.ones((query.shape[1], key.shape[1]), bool))


def near(query, key, size):
    """A mask that lets each position attend to positions at a distance less than `size`."""
    rows, columns = jnp.arange(query.shape[1]), jnp.arange(key.shape[1])
    return jnp.abs(rows[:, None] - columns) < size


def unit_norm(x, axis=-1, epsilon=1e-12):
    """Scales to L2 norm 1 along the given axes."""
    squares = jnp.sum(jnp.square(x), axis=axis, keepdims=True)
    return x * jnp.minimum(jax.lax.rsqrt(squares), 1 / epsilon)


def sparsemax(x):
    """Sparsemax, as in Keras."""
    ordered = jnp.flip(jnp.sort(x, axis=-1), axis=-1)
    total = jnp.cumsum(ordered, axis=-1)
    rank = jnp.arange(1, x.shape[-1] + 1)
    inside = ordered - (total - 1) / rank > 0
    count = jnp.sum(inside, axis=-1, keepdims=True)
    total = jnp.sum(jnp.where(inside, total, 0.0), axis=-1, keepdims=True)
    return jnp.maximum(x - (total - 1) / count, 0.0)
