"""The Keras activations as expressions of ``{x}``."""

from __future__ import annotations

from typing import Any

from keras import activations as a

ACTIVATIONS: dict[Any, str] = {
    a.linear: "{x}",
    a.relu: "nnx.relu({x})",
    a.relu6: "jax.nn.relu6({x})",
    a.leaky_relu: "nnx.leaky_relu({x}, 0.2)",
    a.silu: "nnx.silu({x})",
    a.sigmoid: "nnx.sigmoid({x})",
    a.tanh: "jnp.tanh({x})",
    a.softmax: "nnx.softmax({x})",
    a.log_softmax: "nnx.log_softmax({x})",
    a.gelu: "nnx.gelu({x}, approximate=False)",
    a.elu: "nnx.elu({x})",
    a.selu: "nnx.selu({x})",
    a.celu: "nnx.celu({x})",
    a.glu: "nnx.glu({x})",
    a.mish: "jax.nn.mish({x})",
    a.softplus: "nnx.softplus({x})",
    a.softsign: "nnx.soft_sign({x})",
    a.exponential: "jnp.exp({x})",
    a.hard_sigmoid: "nnx.hard_sigmoid({x})",
    a.hard_silu: "nnx.hard_silu({x})",
    a.hard_tanh: "nnx.hard_tanh({x})",
    a.hard_shrink: "jnp.where(jnp.abs({x}) > 0.5, {x}, 0.0)",
    a.soft_shrink: "jnp.where({x} > 0.5, {x} - 0.5, jnp.where({x} < -0.5, {x} + 0.5, 0.0))",
    a.tanh_shrink: "{x} - jnp.tanh({x})",
    a.log_sigmoid: "nnx.log_sigmoid({x})",
    a.squareplus: "jax.nn.squareplus({x})",
    a.sparse_plus: "jax.nn.sparse_plus({x})",
    a.sparse_sigmoid: "jax.nn.sparse_sigmoid({x})",
    a.sparsemax: "sparsemax({x})",
}
