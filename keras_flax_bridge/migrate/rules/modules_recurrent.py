"""Native recurrent modules, copied into the generated source like those of `modules`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx


class RNN(nnx.Module):
    """Runs a cell over time with an arbitrary mask; nnx.RNN only supports sequence lengths."""

    def __init__(self, cell, *, reverse=False, zero_output_for_mask=False):
        self.cell = cell
        self.reverse = reverse
        self.zero_output_for_mask = zero_output_for_mask

    def __call__(self, x, mask=None, carry=None, return_carry=False):
        xs = jnp.moveaxis(x, 1, 0)
        if carry is None:
            carry = self.cell.initialize_carry(xs.shape[1:], lambda: None)  # zeros don't use the key
        carry = jax.tree.map(lambda a: a.astype(x.dtype), carry)

        def step(carry, inputs):
            x, kept = inputs
            new, y = self.cell(carry, x)
            if kept is None:
                return new, y

            def keep(a, b):
                return jnp.where(kept.reshape(-1, *[1] * (a.ndim - 1)), a, b)

            before = jax.tree.leaves(carry)[-1]
            before = jnp.zeros_like(y) if self.zero_output_for_mask else before
            return jax.tree.map(keep, new, carry), keep(y, before)

        masks = None if mask is None else jnp.moveaxis(mask, 1, 0)
        carry, ys = jax.lax.scan(step, carry, (xs, masks), reverse=self.reverse)
        ys = jnp.flip(ys, 0) if self.reverse else ys
        ys = jnp.moveaxis(ys, 0, 1)
        return (carry, ys) if return_carry else ys


class LSTMCell(nnx.RNNCellBase):
    """An LSTM cell without biases; nnx.OptimizedLSTMCell always has them."""

    def __init__(
        self,
        in_features,
        hidden_features,
        *,
        gate_fn=nnx.sigmoid,
        activation_fn=jnp.tanh,
        dtype=None,
        param_dtype=jnp.float32,
        rngs,
    ):
        types = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        out = 4 * hidden_features
        self.dense_i = nnx.Linear(in_features, out, use_bias=False, **types)
        self.dense_h = nnx.Linear(hidden_features, out, use_bias=False, **types)
        self.hidden_features = hidden_features
        self.gate_fn = gate_fn
        self.activation_fn = activation_fn
        self.dtype = dtype or param_dtype

    def __call__(self, carry, x):
        c, h = carry
        i, f, g, o = jnp.split(self.dense_i(x) + self.dense_h(h), 4, axis=-1)
        c = self.gate_fn(f) * c + self.gate_fn(i) * self.activation_fn(g)
        h = self.gate_fn(o) * self.activation_fn(c)
        return (c, h), h

    def initialize_carry(self, input_shape, rngs=None, carry_init=None):
        """Returns a carry of zeros."""
        zeros = jnp.zeros((*input_shape[:-1], self.hidden_features), self.dtype)
        return zeros, zeros

    @property
    def num_feature_axes(self):
        """The number of feature axes of the input."""
        return 1


class SimpleCell(nnx.RNNCellBase):
    """A simple RNN cell with an optional bias; nnx.SimpleCell always has one."""

    def __init__(
        self,
        in_features,
        hidden_features,
        *,
        use_bias=True,
        activation_fn=jnp.tanh,
        dtype=None,
        param_dtype=jnp.float32,
        rngs,
    ):
        types = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.dense_i = nnx.Linear(
            in_features,
            hidden_features,
            use_bias=use_bias,
            **types,
        )
        self.dense_h = nnx.Linear(
            hidden_features,
            hidden_features,
            use_bias=False,
            **types,
        )
        self.hidden_features = hidden_features
        self.activation_fn = activation_fn
        self.dtype = dtype or param_dtype

    def __call__(self, h, x):
        h = self.activation_fn(self.dense_i(x) + self.dense_h(h))
        return h, h

    def initialize_carry(self, input_shape, rngs=None, carry_init=None):
        """Returns a carry of zeros."""
        return jnp.zeros((*input_shape[:-1], self.hidden_features), self.dtype)

    @property
    def num_feature_axes(self):
        """The number of feature axes of the input."""
        return 1


class GRUCell(nnx.RNNCellBase):
    """The GRU cell of Keras, with its `reset_after` option, which nnx.GRUCell does not have."""

    def __init__(
        self,
        in_features,
        hidden_features,
        *,
        use_bias=True,
        reset_after=True,
        gate_fn=nnx.sigmoid,
        activation_fn=jnp.tanh,
        dtype=None,
        param_dtype=jnp.float32,
        rngs,
    ):
        types = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        out = 3 * hidden_features
        self.dense_i = nnx.Linear(in_features, out, use_bias=use_bias, **types)
        self.dense_h = nnx.Linear(
            hidden_features,
            out,
            use_bias=use_bias and reset_after,
            **types,
        )
        self.hidden_features = hidden_features
        self.reset_after = reset_after
        self.gate_fn = gate_fn
        self.activation_fn = activation_fn
        self.dtype = dtype or param_dtype

    def __call__(self, h, x):
        xz, xr, xh = jnp.split(self.dense_i(x), 3, axis=-1)
        if self.reset_after:
            hz, hr, hh = jnp.split(self.dense_h(h), 3, axis=-1)
            z, r = self.gate_fn(xz + hz), self.gate_fn(xr + hr)
            new = self.activation_fn(xh + r * hh)
        else:
            kernel = self.dense_h.kernel[...].astype(self.dtype)
            kz, kr, kh = jnp.split(kernel, 3, axis=-1)
            z, r = self.gate_fn(xz + h @ kz), self.gate_fn(xr + h @ kr)
            new = self.activation_fn(xh + (r * h) @ kh)
        h = z * h + (1 - z) * new
        return h, h

    def initialize_carry(self, input_shape, rngs=None, carry_init=None):
        """Returns a carry of zeros."""
        return jnp.zeros((*input_shape[:-1], self.hidden_features), self.dtype)

    @property
    def num_feature_axes(self):
        """The number of feature axes of the input."""
        return 1


class ConvLSTMCell(nnx.RNNCellBase):
    """A convolutional LSTM cell."""

    def __init__(
        self,
        in_features,
        out_features,
        kernel_size,
        *,
        strides=1,
        padding="SAME",
        kernel_dilation=1,
        use_bias=True,
        gate_fn=nnx.sigmoid,
        activation_fn=jnp.tanh,
        dtype=None,
        param_dtype=jnp.float32,
        rngs,
    ):
        types = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.conv_i = nnx.Conv(
            in_features,
            4 * out_features,
            kernel_size,
            strides=strides,
            padding=padding,
            kernel_dilation=kernel_dilation,
            use_bias=use_bias,
            **types,
        )
        self.conv_h = nnx.Conv(
            out_features,
            4 * out_features,
            kernel_size,
            use_bias=False,
            **types,
        )
        self.out_features = out_features
        self.axes = len(kernel_size)
        self.gate_fn = gate_fn
        self.activation_fn = activation_fn
        self.dtype = dtype or param_dtype

    def __call__(self, carry, x):
        c, h = carry
        i, f, g, o = jnp.split(self.conv_i(x) + self.conv_h(h), 4, axis=-1)
        c = self.gate_fn(f) * c + self.gate_fn(i) * self.activation_fn(g)
        h = self.gate_fn(o) * self.activation_fn(c)
        return (c, h), h

    def initialize_carry(self, input_shape, rngs=None, carry_init=None):
        """Returns a carry of zeros with the output size of the input convolution."""
        x = jax.ShapeDtypeStruct(input_shape, self.dtype)
        size = jax.eval_shape(self.conv_i, x).shape[:-1]
        zeros = jnp.zeros((*size, self.out_features), self.dtype)
        return zeros, zeros

    @property
    def num_feature_axes(self):
        """The number of feature axes of the input."""
        return self.axes + 1


class Bidirectional(nnx.Module):
    """Runs a forward and a backward RNN, with an arbitrary mask, and merges their outputs."""

    def __init__(self, forward, backward, *, merge="concat"):
        self.forward = forward
        self.backward = backward
        self.merge = merge

    def __call__(self, x, mask=None, last=False):
        a, b = self.forward(x, mask), self.backward(x, mask)
        a, b = (a[:, -1], b[:, -1]) if last else (a, jnp.flip(b, 1))
        if self.merge == "concat":
            return jnp.concatenate([a, b], axis=-1)
        if self.merge == "sum":
            return a + b
        if self.merge == "mul":
            return a * b
        return (a + b) / 2 if self.merge == "ave" else (a, b)
