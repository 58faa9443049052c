"""The steps of every Keras optimizer before and after its rule, as optax transformations.

In Keras's order: gradients divided by the loss scale, accumulated, clipped; parameters decayed; the
rule; the moving average, and parameters overwritten with it; constraints.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from keras_flax_bridge.optimizers.update_rules import Schedule, Transformation, flatten

OfLeaves = Callable[[Any], Any]  # a tree like params, with an answer in place of every leaf


class DecayState(NamedTuple):
    """Steps of the rule so far, and the rule's own state."""

    count: Any
    inner: Any


class AverageState(NamedTuple):
    """Batches so far, the average of every parameter, and the state of what updates them."""

    count: Any
    average: Any
    inner: Any


class AccumulateState(NamedTuple):
    """Batches in this cycle, cycles so far, the sum of gradients, and the state of what uses it."""

    mini_step: Any
    gradient_step: Any
    total: Any
    inner: Any


class LossScaleState(NamedTuple):
    """Steps since the last change of the scale, the scale, and the inner state."""

    step_counter: Any
    dynamic_scale: Any
    inner: Any


def divide(divisor: float) -> Transformation:
    """Divides gradients by a number; `optax.scale` of its inverse rounds twice."""
    return optax.stateless(lambda grads, _: jax.tree.map(lambda g: g / divisor, grads))


def clip_by_leaf_norm(limit: float) -> Transformation:
    """Clips the norm of each gradient separately; `optax.clip_by_global_norm` clips their global norm."""

    def clipped(g: Any) -> Any:
        square = jnp.sum(jnp.square(g))
        norm = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), square)
        return g * limit / jnp.maximum(norm, limit)

    return optax.stateless(lambda grads, _: jax.tree.map(clipped, grads))


def clip_by_whole_norm(limit: float) -> Transformation:
    """Scales all gradients together down to a norm, by one factor, as Keras does.

    `optax.clip_by_global_norm` divides and selects in every gradient: two more passes over memory,
    which cost more than the optimizer itself. If a norm is NaN, all gradients become NaN.
    """

    def clipped(grads: Any, _: Any) -> Any:
        squares = [jnp.sum(jnp.square(g)) for g in jax.tree.leaves(grads)]
        norm = jnp.sqrt(jnp.sum(jnp.stack(squares)))
        scale = limit * jnp.minimum(1 / norm, 1 / limit) + (norm - norm)
        return jax.tree.map(lambda g: g * scale.astype(g.dtype), grads)

    return optax.stateless(clipped)


def decay_parameters(inner: Transformation, lr: Schedule, rates: OfLeaves) -> Transformation:
    """Decoupled weight decay: the rule sees p - lr rate p, as in Keras, and not p.

    `optax.add_decayed_weights` adds the decay after the rule, which is the same only where the rule
    reads no parameters, and in float32 whatever the dtype of the parameter.

    Args:
        inner: the rule, learning rate included.
        lr: the learning rate by step.
        rates: the rate of every leaf, or None for one that isn't decayed.
    """

    def update(grads: Any, state: DecayState, params: Any = None) -> tuple[Any, DecayState]:
        now = lr(state.count)

        def decayed(p: Any, rate: Any) -> Any:
            return p if rate is None else p - p * jnp.asarray(rate, p.dtype) * jnp.asarray(now, p.dtype)

        leaves, treedef = flatten(params)
        smaller = treedef.unflatten(map(decayed, leaves, treedef.flatten_up_to(rates(params))))
        updates, inner_state = inner.update(grads, state.inner, smaller)
        updates = jax.tree.map(lambda u, s, p: u + (s - p), updates, smaller, params)
        return updates, DecayState(optax.safe_increment(state.count), inner_state)

    return optax.GradientTransformation(
        lambda params: DecayState(jnp.zeros([], jnp.int32), inner.init(params)), update
    )


def accumulate_gradients(inner: Transformation, steps: int) -> Transformation:
    """Updates once in `steps` batches, with the mean of their gradients.

    Unlike `optax.MultiSteps` it sums in the dtype of each parameter, computes the rule only where it
    is due, and forgets a gradient that isn't finite when its cycle ends.
    """

    def init(params: Any) -> AccumulateState:
        zero = jnp.zeros([], jnp.int32)
        return AccumulateState(zero, zero, optax.tree.zeros_like(params), inner.init(params))

    def update(grads: Any, state: AccumulateState, params: Any = None) -> tuple[Any, AccumulateState]:
        total = jax.tree.map(lambda a, g: a + g.astype(a.dtype), state.total, grads)
        zeros = optax.tree.zeros_like(total)

        def due(_: Any) -> tuple[Any, ...]:
            mean = jax.tree.map(lambda a: a / steps, total)
            updates, inner_state = inner.update(mean, state.inner, params)
            return jax.tree.map(lambda u, z: u.astype(z.dtype), updates, zeros), zeros, inner_state

        is_due = state.mini_step == steps - 1
        updates, left, inner_state = jax.lax.cond(is_due, due, lambda _: (zeros, total, state.inner), None)
        mini_step = jnp.where(is_due, 0, state.mini_step + 1)
        gradient_step = state.gradient_step + is_due.astype(jnp.int32)
        return updates, AccumulateState(mini_step, gradient_step, left, inner_state)

    return optax.GradientTransformation(init, update)


def average_parameters(inner: Transformation, momentum: float, overwrite: int | None, steps: int) -> Any:
    """Keeps the moving average of the updated parameters; every `overwrite` updates they become it.

    The first average is the parameters themselves. It moves with every batch, also where gradients
    are accumulated over `steps`. `optax.ema` averages updates, not parameters.
    """

    def update(grads: Any, state: AverageState, params: Any = None) -> tuple[Any, AverageState]:
        updates, inner_state = inner.update(grads, state.inner, params)
        updated = state.count // steps

        def averaged(a: Any, p: Any) -> Any:
            keep = (updated != 0).astype(p.dtype) * momentum
            return keep * a + (1 - keep) * p

        average = jax.tree.map(averaged, state.average, optax.apply_updates(params, updates))
        if overwrite is not None:
            is_due = (updated + 1) % overwrite == 0
            updates = jax.tree.map(lambda u, a, p: jnp.where(is_due, a - p, u), updates, average, params)
        return updates, AverageState(optax.safe_increment(state.count), average, inner_state)

    def init(params: Any) -> AverageState:
        return AverageState(jnp.zeros([], jnp.int32), optax.tree.zeros_like(params), inner.init(params))

    return optax.GradientTransformation(init, update)


def constrain_parameters(inner: Transformation, constraints: OfLeaves) -> Transformation:
    """Applies the constraint of each parameter after the update; None means no constraint."""

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, state = inner.update(grads, state, params)
        leaves, treedef = flatten(params)
        rest = (treedef.flatten_up_to(tree) for tree in (updates, constraints(params)))
        constrained = [u if c is None else c(p + u) - p for p, u, c in zip(leaves, *rest, strict=True)]
        return treedef.unflatten(constrained), state

    return optax.GradientTransformation(inner.init, update)


def dynamic_loss_scale(
    inner: Transformation, initial: float, growth_steps: int, *, unscaled: bool = False
) -> Transformation:
    """Divides gradients by a scale that halves where one isn't finite, and doubles after `growth_steps`.

    A step with such gradients changes nothing but the scale.

    Args:
        inner: what gets the divided gradients.
        initial: the first scale.
        growth_steps: steps with finite gradients until the scale doubles.
        unscaled: whether gradients come of the loss itself, so that they are multiplied first.
    """

    def init(params: Any) -> LossScaleState:
        return LossScaleState(jnp.zeros([], jnp.int32), jnp.asarray(initial, jnp.float32), inner.init(params))

    def update(grads: Any, state: LossScaleState, params: Any = None) -> tuple[Any, LossScaleState]:
        counter, scale, _ = state
        if unscaled:
            grads = jax.tree.map(lambda g: (g * scale).astype(g.dtype), grads)
        finite = [jnp.all(jnp.isfinite(g)) for g in jax.tree.leaves(grads)]

        def apply(_: Any) -> tuple[Any, ...]:
            updates, inner_state = inner.update(jax.tree.map(lambda g: g / scale, grads), state.inner, params)
            grows = counter == growth_steps - 1
            new = jnp.where(grows, 0, counter + 1), jnp.where(grows, scale * 2, scale)
            updates = jax.tree.map(lambda u, p: u.astype(p.dtype), updates, params)
            return updates, LossScaleState(*new, inner_state)

        def skip(_: Any) -> tuple[Any, ...]:
            zeros = jax.tree.map(lambda g, p: jnp.zeros(g.shape, p.dtype), grads, params)
            return zeros, LossScaleState(jnp.zeros_like(counter), scale * 0.5, state.inner)

        updated: tuple[Any, LossScaleState] = jax.lax.cond(jnp.all(jnp.stack(finite)), apply, skip, None)
        return updated

    return optax.GradientTransformation(init, update)
