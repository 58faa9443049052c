"""Muon: which variables it updates by which rule, before and since Keras 3.13, where the rule changed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax
from keras import optimizers as K

from keras_flax_bridge import keras_internals
from keras_flax_bridge.errors import UnsupportedOptimizerError
from keras_flax_bridge.optimizers import update_rules
from keras_flax_bridge.optimizers.update_rules import Schedule, Transformation
from keras_flax_bridge.optimizers.variable_lookup import Leaves
from keras_flax_bridge.startup import compat

_ADJUSTS = compat.has("Muon with lr_adjust")
MOMENTUM = "momentums" if _ADJUSTS else "adam_momentums"  # the slot, of both rules


def parts(o: Any, lr: Schedule, leaves: Leaves) -> tuple[Transformation, ...]:
    """The transformations of Muon: a rule for matrices, and Adam for everything else."""
    if o.exclude_layers:
        leaves.require_known("exclude_layers")
    coefficients = (o.muon_a, o.muon_b, o.muon_c)
    groups = {
        "adam": optax.chain(
            update_rules.scale_by_keras_adam(o.adam_beta_1, o.adam_beta_2, o.epsilon),
            optax.scale_by_learning_rate(lambda count: o.adam_lr_ratio * lr(count)),
        ),
        "muon": optax.chain(
            update_rules.scale_by_keras_muon(o.momentum, o.nesterov, o.ns_steps, coefficients, _size(o)),
            optax.scale_by_learning_rate(lr),
        ),
    }

    def label(variable: Any) -> str:
        return "adam" if keras_internals.takes_adam(o, variable) else "muon"

    return (optax.partition(groups, lambda tree: leaves.ask(tree, label, "who updates them")),)


def decays(optimizer: Any) -> tuple[float | None, float | None] | None:
    """The weight decay of matrices, and of what Adam updates; None where one optimizer has one decay."""
    if not isinstance(optimizer, K.Muon) or not _ADJUSTS:
        return None
    return optimizer.weight_decay, optimizer.adam_weight_decay


def _size(o: Any) -> Callable[[Any], Any]:
    """How an orthogonal matrix is scaled: by its longer side, before Keras 3.13 by the ratio of its sides."""
    if not _ADJUSTS:
        return lambda x: x * max(1, x.shape[0] / x.shape[1]) ** 0.5
    if o.rms_rate is None:
        return lambda x: x
    return lambda x: x * jnp.sqrt(jnp.asarray(max(x.shape), x.dtype)) * o.rms_rate


def require_paths(o: Any, leaves: Leaves) -> None:
    """Checks that no two variables of a Muon share a slot: before Keras 3.13 it keeps them by path.

    Raises:
        UnsupportedOptimizerError: naming the path of several variables.
    """
    if _ADJUSTS or not isinstance(o, K.Muon):
        return
    repeated = [path for path, times in Counter(v.path for v in leaves.variables).items() if times > 1]
    if repeated:
        raise UnsupportedOptimizerError(
            f"optimizer {o.name!r}",
            got=f"several variables of one path, {repeated[0]!r}, with the Muon of a Keras before 3.13",
            expected="paths that differ: this Muon keeps one momentum for each path",
            fix="Give the layers different names, or update Keras.",
        )
