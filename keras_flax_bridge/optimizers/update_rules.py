"""Keras's update rules as optax transformations, where none of optax's is the same rule.

Written m, v, g, p, t for the moments, the gradient, the parameter and the step, which starts at 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax

Schedule = Callable[[Any], Any]
Transformation: TypeAlias = Any  # optax.GradientTransformation, which has no types


class ScaleByKerasAdamState(optax.ScaleByAdamState):
    """State of Keras's Adam: the fields of optax's, another type because the rule differs."""


class ScaleByKerasAmsgradState(optax.ScaleByAmsgradState):
    """State of Keras's AMSGrad: as optax's, but `nu_max` is the maximum of v, not of the corrected v."""


class ScaleByKerasAdamaxState(optax.ScaleByAdamState):
    """State of Keras's Adamax: as optax's, but `nu` is the infinity norm without epsilon."""


class ScaleByKerasNadamState(NamedTuple):
    """Moments, and the product of all momentum factors so far."""

    count: Any
    mu: Any
    nu: Any
    u_product: Any


class ScaleByKerasFactoredRmsState(optax.FactoredState):
    """State like that of `optax.scale_by_factored_rms`; the last two dimensions are always factored."""


class FtrlState(NamedTuple):
    """The sum of squares and the linear term."""

    count: Any
    accumulator: Any
    linear: Any


class MomentumState(optax.TraceState):
    """State like that of `optax.trace`, for a trace after the learning rate."""


class ScaleByKerasMuonState(NamedTuple):
    """The momentum, without bias correction."""

    mu: Any


def flatten(tree: Any) -> tuple[list[Any], Any]:
    """Leaves and structure; in words that mypy knows."""
    return jax.tree.flatten(tree)


def map_columns(count: int, function: Callable[..., tuple[Any, ...]], tree: Any, *rest: Any) -> list[Any]:
    """Maps a function that returns `count` values over trees; one tree for each of the values."""
    leaves, treedef = flatten(tree)
    rows = [function(*args) for args in zip(leaves, *map(treedef.flatten_up_to, rest), strict=True)]
    return [treedef.unflatten([row[i] for row in rows]) for i in range(count)]


def _moment(decay: Any, order: int) -> Callable[[Any, Any], Any]:
    """The moving average as Keras writes it, in the dtype of the moment."""
    return lambda g, m: m + (g.astype(m.dtype) ** order - m) * (1 - decay)


def _power(base: Any, count: Any, dtype: Any) -> Any:
    return jnp.asarray(base, dtype) ** count.astype(dtype)


def momentum(decay: float, nesterov: bool = False) -> Transformation:
    """m = decay m - lr g: `optax.trace` of updates that hold the learning rate.

    `optax.sgd` has the learning rate after it, which is the same only while the rate is constant.
    """
    trace = optax.trace(decay, nesterov)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, state = trace.update(updates, state, params)
        return updates, MomentumState(*state)

    return optax.GradientTransformation(lambda params: MomentumState(*trace.init(params)), update)


def scale_by_keras_adam(b1: float, b2: float, eps: float, amsgrad: bool = False) -> Transformation:
    """m sqrt(1 - b2^t) / (1 - b1^t) / (sqrt(v) + eps): "epsilon hat" of the Adam paper, section 2.

    `optax.adam` divides by sqrt(v / (1 - b2^t)) + eps, so its epsilon weighs 1/sqrt(1 - b2^t) times
    less; with ``amsgrad=True`` it takes the maximum of the corrected v. https://arxiv.org/abs/1412.6980
    """

    def init(params: Any) -> Any:
        count, zeros = jnp.zeros([], jnp.int32), optax.tree.zeros_like
        if amsgrad:
            return ScaleByKerasAmsgradState(count, zeros(params), zeros(params), zeros(params))
        return ScaleByKerasAdamState(count, zeros(params), zeros(params))

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        count = optax.safe_increment(state.count)
        mu = jax.tree.map(_moment(b1, 1), grads, state.mu)
        nu = jax.tree.map(_moment(b2, 2), grads, state.nu)
        below = jax.tree.map(jnp.maximum, state.nu_max, nu) if amsgrad else nu

        def scaled(m: Any, v: Any) -> Any:
            alpha = jnp.sqrt(1 - _power(b2, count, m.dtype)) / (1 - _power(b1, count, m.dtype))
            return m * alpha / (jnp.sqrt(v) + eps)

        updates = jax.tree.map(scaled, mu, below)
        if amsgrad:
            return updates, ScaleByKerasAmsgradState(count, mu, nu, below)
        return updates, ScaleByKerasAdamState(count, mu, nu)

    return optax.GradientTransformation(init, update)


def scale_by_keras_adamax(b1: float, b2: float, eps: float) -> Transformation:
    """m / ((1 - b1^t) (u + eps)) with u = max(b2 u, |g|); `optax.adamax` takes max(b2 u, |g| + eps)."""

    def init(params: Any) -> Any:
        zeros = optax.tree.zeros_like
        return ScaleByKerasAdamaxState(jnp.zeros([], jnp.int32), zeros(params), zeros(params))

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        count = optax.safe_increment(state.count)
        mu = jax.tree.map(_moment(b1, 1), grads, state.mu)
        nu = jax.tree.map(lambda g, u: jnp.maximum(b2 * u, jnp.abs(g.astype(u.dtype))), grads, state.nu)
        updates = jax.tree.map(lambda m, u: m / ((1 - _power(b1, count, m.dtype)) * (u + eps)), mu, nu)
        return updates, ScaleByKerasAdamaxState(count, mu, nu)

    return optax.GradientTransformation(init, update)


def scale_by_keras_nadam(b1: float, b2: float, eps: float) -> Transformation:
    """Adam with Nesterov momentum and the momentum schedule u_t = b1 (1 - 0.96^t / 2).

    (u_{t+1} m / (1 - u_1...u_{t+1}) + (1 - u_t) g / (1 - u_1...u_t)) / (sqrt(v / (1 - b2^t)) + eps);
    `optax.nadam` has u_t = b1. Dozat, 2016, https://openreview.net/pdf?id=OM0jvwB8jIp57ZJjtNEZ
    """

    def init(params: Any) -> Any:
        leaves = jax.tree.leaves(params)
        one = jnp.ones([], leaves[0].dtype if leaves else jnp.float32)
        zeros = optax.tree.zeros_like
        return ScaleByKerasNadamState(jnp.zeros([], jnp.int32), zeros(params), zeros(params), one)

    def momentum(count: Any, dtype: Any) -> Any:
        return jnp.asarray(b1, dtype) * (1 - 0.5 * _power(0.96, count, dtype))

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        count = optax.safe_increment(state.count)
        product = state.u_product * momentum(count, state.u_product.dtype)

        def moments(g: Any, m: Any, v: Any) -> tuple[Any, ...]:
            # rounded to the dtype before 1 - b, as Keras does: 1 - float32(.999) is not .001
            decays = jnp.asarray(b1, m.dtype), jnp.asarray(b2, m.dtype)
            return _moment(decays[0], 1)(g, m), _moment(decays[1], 2)(g, v)

        def scaled(g: Any, m: Any, v: Any) -> Any:
            now, following = momentum(count, m.dtype), momentum(count + 1, m.dtype)
            total = product.astype(m.dtype)
            ahead = following * m / (1 - total * following) + (1 - now) * g.astype(m.dtype) / (1 - total)
            return ahead / (jnp.sqrt(v / (1 - _power(b2, count, m.dtype))) + eps)

        mu, nu = map_columns(2, moments, grads, state.mu, state.nu)
        return jax.tree.map(scaled, grads, mu, nu), ScaleByKerasNadamState(count, mu, nu, product)

    return optax.GradientTransformation(init, update)


def scale_by_keras_factored_rms(beta_2_decay: float, eps: float) -> Transformation:
    """g / sqrt(v), v being the outer product of the means of g^2 + eps over each of the last two dimensions.

    Averaged with 1 - t^beta_2_decay. `optax.scale_by_factored_rms` factors the two largest dimensions, and
    those only if they have at least 128 entries. Shazeer & Stern, 2018, https://arxiv.org/abs/1804.04235
    """

    def init(params: Any) -> Any:
        def zeros(x: Any) -> tuple[Any, ...]:
            factored = x.shape[:-1], x.shape[:-2] + x.shape[-1:], (1,)  # (1,): what optax holds for nothing
            shapes = factored if x.ndim > 1 else ((1,), (1,), x.shape)
            return tuple(jnp.zeros(shape, x.dtype) for shape in shapes)

        trees = map_columns(3, zeros, params)
        return ScaleByKerasFactoredRmsState(jnp.zeros([], jnp.int32), *trees)

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        count = optax.safe_increment(state.count)

        def scaled(g: Any, row: Any, column: Any, whole: Any) -> tuple[Any, ...]:
            g = g.astype(row.dtype)
            decay = 1 - count.astype(g.dtype) ** beta_2_decay
            square = jnp.square(g) + eps
            if g.ndim < 2:
                whole = decay * whole + (1 - decay) * square
                return g / jnp.sqrt(whole), row, column, whole
            row = decay * row + (1 - decay) * jnp.mean(square, -1)
            column = decay * column + (1 - decay) * jnp.mean(square, -2)
            return g / jnp.sqrt(second_moment(row, column)), row, column, whole

        updates, *trees = map_columns(4, scaled, grads, state.v_row, state.v_col, state.v)
        return updates, ScaleByKerasFactoredRmsState(count, *trees)

    return optax.GradientTransformation(init, update)


def second_moment(row: Any, column: Any) -> Any:
    """The second moment that the two means approximate, in the shape of the parameter."""
    return (row / jnp.mean(row, -1, keepdims=True))[..., None] * column[..., None, :]


def scale_by_param_rms(least: float) -> Transformation:
    """Updates times the root mean square of their parameter, or `least`.

    `optax.scale_by_param_block_rms` computes the same, safe to differentiate, by one more pass over the
    parameters.
    """

    def scaled(u: Any, p: Any) -> Any:
        return u * jnp.maximum(jnp.sqrt(jnp.mean(jnp.square(p))), least)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return jax.tree.map(scaled, updates, params), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def scale_by_keras_muon(
    momentum: float,
    nesterov: bool,
    ns_steps: int,
    coefficients: tuple[float, float, float],
    sized: Callable[[Any], Any],
) -> Transformation:
    """The matrix that is nearest to the momentum and orthogonal, by Newton-Schulz iteration.

    m = momentum m + g, sized(orthogonal(g + momentum m)), where `sized` multiplies by sqrt(longer side)
    rms_rate, or before Keras 3.13 by sqrt(max(1, rows / columns)); `optax.contrib.muon` averages, corrects
    the bias and scales otherwise. https://kellerjordan.github.io/posts/muon/
    """

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        mu = jax.tree.map(lambda g, m: m + (g.astype(m.dtype) + m * (momentum - 1)), grads, state.mu)

        def scaled(g: Any, m: Any) -> Any:
            x = g.astype(m.dtype) + momentum * m if nesterov else m
            return sized(_orthogonal(x, ns_steps, coefficients))

        return jax.tree.map(scaled, grads, mu), ScaleByKerasMuonState(mu)

    return optax.GradientTransformation(
        lambda params: ScaleByKerasMuonState(optax.tree.zeros_like(params)), update
    )


def _orthogonal(x: Any, steps: int, coefficients: tuple[float, float, float]) -> Any:
    a, b, c = coefficients
    is_tall = x.shape[-2] > x.shape[-1]
    x = x.mT if is_tall else x
    x = x / (jnp.linalg.norm(x, axis=(-2, -1), keepdims=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if is_tall else x


def ftrl(
    lr: Schedule, power: float, initial: float, l1: float, l2: float, l2_shrinkage: float, beta: float
) -> Transformation:
    """Follow the regularised leader: a complete rule, which computes the parameter itself.

    n' = n + g^2, z' = z + g + 2 shrinkage p - (n'^-power - n^-power) p / lr,
    p' = (clip(z', -l1, l1) - z') / (n'^-power / lr + 2 l2 + beta / lr); optax has no such rule.
    McMahan et al., 2013, https://research.google/pubs/pub41159/
    """

    def init(params: Any) -> FtrlState:
        full = optax.tree.full_like(params, initial)
        return FtrlState(jnp.zeros([], jnp.int32), full, optax.tree.zeros_like(params))

    def update(grads: Any, state: FtrlState, params: Any = None) -> tuple[Any, FtrlState]:
        now = lr(state.count)

        def solved(g: Any, n: Any, z: Any, p: Any) -> tuple[Any, ...]:
            g, rate = g.astype(p.dtype), jnp.asarray(now, p.dtype)
            new = n + jnp.square(g)
            z = z + (g + 2 * l2_shrinkage * p - (new**-power - n**-power) / rate * p)
            quadratic = new**-power / rate + 2 * (l2 + beta / (2.0 * rate))
            return (jnp.clip(z, -l1, l1) - z) / quadratic - p, new, z

        updates, n, z = map_columns(3, solved, grads, state.accumulator, state.linear, params)
        return updates, FtrlState(optax.safe_increment(state.count), n, z)

    return optax.GradientTransformation(init, update)
