"""`as_optax`: any Keras optimizer behind optax's interface."""

from __future__ import annotations

from collections.abc import Mapping
from operator import is_
from typing import Any

import jax
import jax.numpy as jnp
import keras
import optax
from keras import optimizers as K

from keras_flax_bridge import keras_internals
from keras_flax_bridge.errors import UnsupportedOptimizerError
from keras_flax_bridge.keras_internals import Collection
from keras_flax_bridge.optimizers.adapted import (
    Owners,
    Twins,
    abstracted,
    filled,
    need_of,
    owner_of,
    start_values,
)
from keras_flax_bridge.optimizers.optax_factories import rate_of
from keras_flax_bridge.optimizers.overwrites import difference
from keras_flax_bridge.optimizers.to_optax import inner_optimizers, require_unread, warn_of_rounding
from keras_flax_bridge.optimizers.variable_lookup import Leaves
from keras_flax_bridge.tree import words
from keras_flax_bridge.tree.diff import require_paths
from keras_flax_bridge.tree.leaves import SharedOnCopy, is_abstract
from keras_flax_bridge.tree.paths import Path, flatten_tree, nest_paths
from keras_flax_bridge.tree.types import LearningRate


class Adapter(SharedOnCopy, optax.GradientTransformationExtraArgs):
    """The transformation of `as_optax`: Keras's own `stateless_apply`, on any tree of parameters.

    Attributes:
        optimizer: the Keras optimizer, which is only read.
        knows_overwrites: whether it knows the variables, and so which of them gradients overwrite.
    """

    optimizer: Any
    knows_overwrites: bool
    _of: tuple[Any, Any, Any]

    @classmethod
    def of(cls, optimizer: Any, model: Any, rate: Any = None) -> Adapter:
        """Checks that the optimizer can treat every leaf of a tree of arrays without its variable."""
        _require_adaptable(optimizer, model)
        owners = Owners(optimizer, model)
        twins = Twins(optimizer, owners, None if rate is None else _rate(rate))
        need = need_of(optimizer, owners)

        def init(params: Any) -> Any:
            flat = flatten_tree(params)
            if not flat and not isinstance(params, (Mapping, tuple, list)):  # optax.tree.map_params asks
                return nest_paths({p: params if v is None else v for p, v in twins.fields().items()})
            warn_of_rounding(optimizer, params)
            made = twins.started(filled(flat))
            values = start_values(made, flat)
            if any(map(is_abstract, flat.values())):
                values = [abstracted(value) for value in values]
            return _shaped(made.slots, values, params)

        def apply(grads: Any, state: Any, params: Any) -> tuple[Any, Any]:
            require_paths(grads, params, "grads")
            flat, given = flatten_tree(params), flatten_tree(grads)
            made = twins.of(flat)
            new, slots = made.optimizer.stateless_apply(
                made.slots.leaves(state, "opt_state"), [given[path] for path in flat], list(flat.values())
            )
            return jax.tree.unflatten(jax.tree.structure(params), new), _shaped(made.slots, slots, params)

        def update(grads: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
            if params is None:
                require_unread(need)
                params = jax.tree.map(jnp.zeros_like, grads)
            new, state = apply(grads, state, params)
            return jax.tree.map(difference, new, params), state

        self: Adapter = cls(init, update)
        self.optimizer, self._apply = optimizer, apply
        self.knows_overwrites = model is not None or optimizer.built
        self._of = (optimizer, model, rate)
        return self

    def apply(self, grads: Any, opt_state: Any, params: Any) -> tuple[Any, Any]:
        """The new parameters themselves, since adding a difference would round, and the new state."""
        applied: tuple[Any, Any] = self._apply(grads, opt_state, params)
        return applied

    def __eq__(self, other: object) -> bool:  # for jit: equal adapters share one compilation
        return isinstance(other, Adapter) and all(map(is_, self._of, other._of))

    def __hash__(self) -> int:
        return hash((Adapter, *map(id, self._of)))


def _rate(given: Any) -> Any:
    """A learning rate that Keras accepts, of a number or an array, which may be traced, or a schedule."""
    if isinstance(given, keras.optimizers.schedules.LearningRateSchedule):
        return given
    return rate_of(given) if callable(given) else lambda: given


@words.door
def as_optax(
    optimizer: keras.optimizers.Optimizer,
    *,
    model: keras.Model | None = None,
    learning_rate: LearningRate | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Any Keras optimizer, custom ones included, as an optax transformation.

    It runs Keras's own `stateless_apply`, on an optimizer rebuilt from the config of this one for the
    structure of the parameters, so it works wherever optax's do: under `jax.jit`, `jax.vmap`,
    `jax.lax.scan` and `jax.eval_shape`, in `optax.chain` and `optax.multi_transform`, in Linen's
    `TrainState` and `nnx.Optimizer`. An update is the difference of new and old parameters, so that
    adding it rounds once more, also where a gradient overwrites its variable (float8 training); a
    `TrainState` steps without that rounding. `to_optax` gives native optax, without Keras, for Keras's
    own optimizers.

    Args:
        optimizer: a `keras.optimizers.Optimizer` whose config rebuilds it; it is only read.
        model: the model whose parameters it trains, of a `TrainState` or of `ToNNX`. Needed only where
            variables are treated differently and the optimizer isn't built for them: MultiOptimizer, Muon
            with ``exclude_layers``, constraints, variables that gradients overwrite, variables excluded from
            weight decay as objects. Those of a built optimizer are found by path, or by name and shape.
        learning_rate: in place of the optimizer's: a number or an array, which may be traced, or a
            schedule of the count of batches. `optax.inject_hyperparams` takes it from here:
            ``optax.inject_hyperparams(kfb.as_optax)(optimizer, learning_rate=0.1)``.

    Returns:
        The transformation. Its `update` needs the parameters where the rule or an option reads them. Its
        slots are placed as the parameters are. Its state is a nested dict of Keras's variables, one
        subtree per slot, as ``TrainState.from_keras(model).opt_state`` has it. Where the optimizer
        scales the loss, gradients are those of the scaled loss, as Keras's own `apply` takes them.

    Raises:
        NotBuiltError: if it needs the model, or variables that it is built for.
        UnsupportedOptimizerError: if its config doesn't rebuild it, or variables are excluded from
            weight decay as objects and there is no model and the optimizer isn't built.

    Example:
        >>> import jax.numpy as jnp, keras, optax
        >>> tx = optax.chain(optax.clip(1.0), as_optax(keras.optimizers.Adam(0.1)))
        >>> params = {"kernel": jnp.ones((2, 3))}
        >>> opt_state = tx.init(params)
        >>> updates, opt_state = tx.update({"kernel": jnp.ones((2, 3))}, opt_state, params)
        >>> print(f"{float(optax.apply_updates(params, updates)['kernel'][0, 0]):.3f}")
        0.900
    """
    return Adapter.of(optimizer, model, learning_rate)


def _require_adaptable(optimizer: Any, model: Any) -> None:
    if not isinstance(optimizer, K.Optimizer):
        raise UnsupportedOptimizerError(
            "optimizer",
            got=f"a {type(optimizer).__name__}",
            expected="a keras.optimizers.Optimizer",
            fix="An optax transformation needs no adapter.",
        )
    if model is not None or optimizer.built:
        return
    for inner in inner_optimizers(optimizer):
        if keras_internals.excludes_variables(inner):
            raise UnsupportedOptimizerError(
                f"optimizer {inner.name!r}",
                got="variables excluded from weight decay as objects, and no model",
                expected="their model, or exclusions by name",
                fix="Pass model=, build the optimizer, or call exclude_from_weight_decay(var_names=[...]).",
            )
        if keras_internals.is_multi(inner) or getattr(inner, "exclude_layers", None):
            Leaves(None).require_known(f"a {type(inner).__name__} that looks at the paths of variables")


def _shaped(slots: Collection, values: list[Any], params: Any) -> Any:
    """The values by name, each slot as a tree like the parameters; None if it has no leaf."""
    if isinstance(params, dict):
        return slots.tree(values)
    owners, treedef = flatten_tree(params), jax.tree.structure(params)
    named: dict[Path, Any] = {}
    for entry, value in zip(slots, values, strict=True):
        longest = owner_of(entry.path, owners)
        if longest is None:
            named[entry.path] = value
        else:
            named.setdefault(entry.path[: len(entry.path) - len(longest)], {})[longest] = value
    shaped = {
        name: jax.tree.unflatten(treedef, [held.get(path) for path in owners])
        if isinstance(held, dict)
        else held
        for name, held in named.items()
    }
    return nest_paths(shaped)
