"""`to_optax`: a Keras optimizer as native optax."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from operator import attrgetter
from typing import Any, Literal, NamedTuple, overload

import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
from keras import optimizers as K

from keras_flax_bridge import keras_internals
from keras_flax_bridge.errors import OwnershipError, StructureMismatchError, UnsupportedOptimizerError
from keras_flax_bridge.optimizers import muon
from keras_flax_bridge.optimizers import wrappers as W
from keras_flax_bridge.optimizers.rules import RULES, Rule
from keras_flax_bridge.optimizers.update_rules import Schedule, Transformation
from keras_flax_bridge.optimizers.variable_lookup import Leaves
from keras_flax_bridge.startup import compat
from keras_flax_bridge.tree import words
from keras_flax_bridge.tree.diff import require_paths
from keras_flax_bridge.tree.leaves import SharedOnCopy
from keras_flax_bridge.tree.paths import flatten_tree, join_path


@words.doors()
class Label(NamedTuple):
    """The exactness of a conversion, and the closest optimizer of optax.

    Attributes:
        exact: whether both give the same trajectory, up to float rounding.
        stock: the closest of optax's own optimizers, or None.
        off: the largest deviation of that one from Keras within 50 steps, relative to the parameters; 0
            for float rounding only.
        why: what differs between Keras's and that one, and with which options.
    """

    exact: bool
    stock: str | None = None
    off: float | None = None
    why: str = ""


class Native(SharedOnCopy, optax.GradientTransformationExtraArgs):
    """The result of `to_optax`: a chain of optax transformations, with the optimizer that it came from.

    Attributes:
        optimizer: the Keras optimizer.
        model: the model whose variables it trains, if it was given.
        label: how exact it is.
    """

    optimizer: Any
    model: Any
    label: Label
    fresh: Callable[[Any], Any]  # init without its warnings
    _key: tuple[Any, ...]

    @classmethod
    def of(cls, optimizer: Any, model: Any, unscaled: bool = False) -> Native:
        """Converts; with `unscaled`, gradients are those of the unscaled loss."""
        leaves = Leaves(optimizer, model)
        _require_convertible(optimizer, leaves)
        inner = _whole(optimizer, leaves, unscaled)

        def init(params: Any) -> Any:
            _require_rates(optimizer)
            warn_of_rounding(optimizer, params)
            return inner.init(params)

        def update(grads: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
            if params is None:
                constrained = any(v.constraint is not None for v in leaves.variables)
                require_unread("constraints" if constrained else reads_parameters(optimizer))
                params = jax.tree.map(jnp.zeros_like, grads)  # of which only shapes and dtypes are read
            require_paths(grads, params, "grads")
            updated: tuple[Any, Any] = inner.update(grads, state, params)
            return updated

        self: Native = cls(init, update)
        self.optimizer, self.model, self.label = optimizer, model, label_of(optimizer)
        self.fresh = inner.init
        self._key = (id(optimizer), id(model), unscaled)
        return self

    def __eq__(self, other: object) -> bool:  # for jit: equal conversions share one compilation
        return isinstance(other, Native) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)


@overload
def to_optax(
    optimizer: keras.optimizers.Optimizer, *, model: keras.Model | None = None, label: Literal[False] = False
) -> optax.GradientTransformationExtraArgs: ...


@overload
def to_optax(
    optimizer: keras.optimizers.Optimizer, *, model: keras.Model | None = None, label: Literal[True]
) -> tuple[optax.GradientTransformationExtraArgs, Label]: ...


@words.door
def to_optax(
    optimizer: keras.optimizers.Optimizer, *, model: keras.Model | None = None, label: bool = False
) -> optax.GradientTransformationExtraArgs | tuple[optax.GradientTransformationExtraArgs, Label]:
    r"""A Keras optimizer as native optax: the same rule, options and hyperparameters, the same trajectory.

    Built from optax's own transformations where they follow the same rule, otherwise from small ones of
    this package, each documented with its equations. Options are applied in Keras's order: gradients
    divided by the loss scale, accumulated and clipped; parameters decayed; the rule; averages;
    constraints. A learning rate that is a number is part of the state, as with
    `optax.inject_hyperparams` (``opt_state.hyperparams["learning_rate"]``); a schedule is called with
    the number of batches seen. With `LossScaleOptimizer`, or a ``loss_scale_factor``, the gradients are
    those of the scaled loss, as Keras's own `apply` takes them.

    Args:
        optimizer: a `keras.optimizers.Optimizer` of Keras itself, built or not.
        model: the model whose parameters it trains. Needed only where the optimizer treats variables
            of one name and shape differently, or isn't built and looks at variables: constraints,
            MultiOptimizer, exclusions by variable.
        label: True returns a pair of the transformation and its `Label`.

    Returns:
        An `optax.GradientTransformationExtraArgs`; ``.label`` names the closest stock optimizer of optax
        and how it differs. With ``label=True`` also that label. Parameters are any pytree;
        those of ``TrainState.from_keras(model)`` where the optimizer looks at variables.

    Raises:
        UnsupportedOptimizerError: naming the class or the option that can't be converted. `as_optax`
            takes any optimizer.
        NotBuiltError: if how a variable is treated is known only after the optimizer is built.

    Example:
        >>> import jax.numpy as jnp, keras, optax
        >>> tx, label = to_optax(keras.optimizers.Adam(0.1, clipnorm=1.0), label=True)
        >>> label.exact, label.stock
        (True, 'adam')
        >>> params = {"kernel": jnp.ones((2, 3))}
        >>> opt_state = tx.init(params)
        >>> updates, opt_state = tx.update({"kernel": jnp.ones((2, 3))}, opt_state, params)
        >>> params = optax.apply_updates(params, updates)
        >>> print(f"{float(params['kernel'][0, 0]):.3f}")
        0.900

    Source: https://keras.io/api/optimizers/, https://optax.readthedocs.io
    """
    tx = Native.of(optimizer, model)
    return (tx, tx.label) if label else tx


def inner_optimizers(optimizer: Any) -> list[Any]:
    """An optimizer and those inside it."""
    if isinstance(optimizer, K.LossScaleOptimizer):
        return [optimizer, *inner_optimizers(optimizer.inner_optimizer)]
    if keras_internals.is_multi(optimizer):
        return [optimizer, *optimizer.optimizers]
    return [optimizer]


def rule_of(optimizer: Any) -> Rule:
    """The rule of an optimizer.

    Raises:
        UnsupportedOptimizerError: if it has none; a subclass of a Keras optimizer may change the rule.
    """
    if type(optimizer) not in RULES:
        kind = type(optimizer)
        raise UnsupportedOptimizerError(
            f"optimizer {getattr(optimizer, 'name', kind.__name__)!r}",
            got=f"a {kind.__name__} of {kind.__module__}",
            expected=f"one of Keras's own: {', '.join(known.__name__ for known in RULES)}",
            fix="Use kfb.as_optax(optimizer), which runs any Keras optimizer behind optax's interface.",
        )
    return RULES[type(optimizer)]


def label_of(optimizer: Any) -> Label:
    """The label of a rule; for several optimizers, the label of the least exact one."""
    parts = [o for o in inner_optimizers(optimizer) if not is_outer(o)]
    labels = [_label(part) for part in parts]
    return max(labels, key=lambda label: float("inf") if label.off is None else label.off)


def _label(optimizer: Any) -> Label:
    stock = rule_of(optimizer).stock
    if stock is None:
        return Label(True, why="optax has no such rule")
    if stock.differs(optimizer):
        return Label(True, stock.name, stock.off, stock.why)
    return Label(True, stock.name, 0.0)


def reads_parameters(optimizer: Any) -> str | None:
    """What of Keras's optimizer reads the parameters, and not only their gradients; None if nothing does."""
    for inner in inner_optimizers(optimizer):
        if type(inner) in (K.Adafactor, K.Ftrl, K.Lamb, *compat.kinds("ScheduleFreeAdamW")):
            return f"the rule of {type(inner).__name__}"
        if not is_outer(inner) and _decay_of(inner) is not None:
            return "weight decay"
        if inner.use_ema:
            return "the average of the weights"
    return None


def require_unread(need: str | None) -> None:
    """Checks that nothing needs the parameters that `update` was not given.

    Raises:
        StructureMismatchError: saying what does.
    """
    if need is not None:
        raise StructureMismatchError(
            "params",
            got="None",
            expected=f"the parameters, for {need}",
            fix="Call update(grads, state, params).",
        )


def is_outer(optimizer: Any) -> bool:
    """Whether an optimizer wraps others and has no rule itself."""
    return isinstance(optimizer, K.LossScaleOptimizer) or keras_internals.is_multi(optimizer)


def _require_convertible(optimizer: Any, leaves: Leaves) -> None:
    for inner in inner_optimizers(optimizer):
        if not is_outer(inner):
            rule_of(inner)
            muon.require_paths(inner, leaves)
            if keras_internals.excludes_variables(inner):
                leaves.require_known("variables that are excluded from weight decay")
    if isinstance(optimizer, K.LossScaleOptimizer):
        _require_kept(optimizer.inner_optimizer)
    overwritten = [variable.path for variable in leaves.variables if keras_internals.is_overwritten(variable)]
    if overwritten:
        raise UnsupportedOptimizerError(
            overwritten[0],
            got="a variable that its gradient overwrites (overwrite_with_gradient), as in float8 training",
            expected="variables that the rule updates",
            fix="Use kfb.as_optax(optimizer).",
        )


def _require_kept(inner: Any) -> None:
    """Nadam's product, which Keras loses inside a LossScaleOptimizer: it builds that without tracking."""
    if isinstance(inner, K.Nadam) and not keras_internals.keeps(inner, "_u_product"):
        raise UnsupportedOptimizerError(
            f"optimizer {inner.name!r}",
            got="a Nadam inside a LossScaleOptimizer, where Keras loses the product of momentum factors",
            expected="an optimizer whose state Keras keeps",
            fix="Use Adam, or build the Nadam before it is wrapped: inner.build(model.trainable_variables).",
        )


def _require_rates(optimizer: Any) -> None:
    rates = [keras_internals.learning_rate(inner) for inner in inner_optimizers(optimizer)]
    if any(isinstance(rate, keras.Variable) and keras_internals.number(rate) is None for rate in rates):
        raise OwnershipError(
            f"optimizer {optimizer.name!r}",
            got="a learning rate whose value moved into a TrainState",
            expected="its value",
            fix="Convert the state with state.to_optax(model), or assign_to(model) first.",
        )


def warn_of_rounding(optimizer: Any, params: Any) -> None:
    """Warns if a moving average can't change because its factor rounds to 1 in a parameter's dtype."""
    for inner in inner_optimizers(optimizer):
        rule = RULES.get(type(inner))
        for path, leaf in flatten_tree(params).items() if rule else ():
            for name in rule.betas if rule else ():
                value = getattr(inner, name)
                if value < 1 and np.asarray(value).astype(leaf.dtype) == 1:
                    warnings.warn(
                        f"params/{join_path(path)}: {name}={value} of {type(inner).__name__} is 1 in "
                        f"{leaf.dtype}: {rule.rounded if rule else ''}. Keep parameters in float32, as the "
                        "policy mixed_bfloat16 does.",
                        stacklevel=4,
                    )
                    return


def _whole(optimizer: Any, leaves: Leaves, unscaled: bool) -> Transformation:
    if isinstance(optimizer, K.LossScaleOptimizer):
        inner = _whole(optimizer.inner_optimizer, leaves, unscaled)
        scale, steps = optimizer.initial_scale, optimizer.dynamic_growth_steps
        return W.dynamic_loss_scale(inner, scale, steps, unscaled=unscaled)
    if keras_internals.is_multi(optimizer):
        group = group_question(optimizer)
        leaves.require_known("groups of variables")
        used = {group(variable) for variable in leaves.variables}
        parts = {name: _whole(optimizer.optimizers[int(name)], leaves, unscaled) for name in sorted(used)}
        return optax.partition(parts, lambda tree: leaves.ask(tree, group, "their optimizer"))
    return _with_rate(optimizer, lambda lr: _around(optimizer, lr, leaves, unscaled))


def group_question(multi: Any) -> Callable[[Any], str]:
    """The name of a variable's optimizer in a MultiOptimizer: its index."""
    return lambda variable: str(keras_internals.group_of(multi, variable))


def _with_rate(optimizer: Any, build: Callable[[Schedule], Transformation]) -> Transformation:
    """Keeps a constant rate in the state, where it can be set; calls a schedule with the batches seen."""
    rate = keras_internals.learning_rate(optimizer)
    if isinstance(rate, keras.Variable):
        number = keras_internals.number(rate)
        inject = optax.inject_hyperparams(
            lambda learning_rate: build(lambda _: learning_rate), hyperparam_dtype=keras.config.floatx()
        )
        return inject(learning_rate=float("nan") if number is None else number)
    if not isinstance(rate, K.schedules.LearningRateSchedule):
        return build(lambda _: rate())
    steps = optimizer.gradient_accumulation_steps or 1
    return build(lambda count: rate(count * steps + steps - 1))  # that of the batch that completes a cycle


def _around(optimizer: Any, lr: Schedule, leaves: Leaves, unscaled: bool) -> Transformation:
    """The rule with all options around it, in Keras's order from the inside."""
    tx: Any = optax.chain(*rule_of(optimizer).parts(optimizer, lr, leaves))
    steps = optimizer.gradient_accumulation_steps
    rates = _decay_of(optimizer)
    if rates is not None:
        tx = W.decay_parameters(tx, lr, lambda tree: leaves.ask(tree, rates, "their weight decay"))
    clip = _clip(optimizer)
    tx = tx if clip is None else optax.chain(clip, tx)
    tx = W.accumulate_gradients(tx, steps) if steps else tx
    if optimizer.loss_scale_factor is not None:
        tx = optax.chain(optax.identity() if unscaled else W.divide(optimizer.loss_scale_factor), tx)
    if optimizer.use_ema:
        overwrite = optimizer.ema_overwrite_frequency
        tx = W.average_parameters(tx, optimizer.ema_momentum, overwrite, steps or 1)
    if any(variable.constraint is not None for variable in leaves.variables):
        question = attrgetter("constraint")
        tx = W.constrain_parameters(tx, lambda tree: leaves.ask(tree, question, "their constraint"))
    return tx


def _decay_of(optimizer: Any) -> Callable[[Any], float | None] | None:
    """The decay of each variable; None where there is none at all."""
    rates = muon.decays(optimizer)
    if rates is not None:

        def by_kind(variable: Any) -> float | None:
            return (
                rates[keras_internals.takes_adam(optimizer, variable)]
                if keras_internals.is_decayed(optimizer, variable)
                else None
            )

        return by_kind if any(rate is not None for rate in rates) else None
    if optimizer.weight_decay is None:
        return None
    return lambda variable: (
        optimizer.weight_decay if keras_internals.is_decayed(optimizer, variable) else None
    )


def _clip(optimizer: Any) -> Transformation | None:
    if optimizer.clipnorm:
        return W.clip_by_leaf_norm(optimizer.clipnorm)
    if optimizer.global_clipnorm:
        return W.clip_by_whole_norm(optimizer.global_clipnorm)
    return optax.clip(optimizer.clipvalue) if optimizer.clipvalue else None
