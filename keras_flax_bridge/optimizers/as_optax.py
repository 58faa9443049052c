"""`as_optax`: any Keras optimizer behind optax's interface."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import keras
import optax
from keras import optimizers as K

from keras_flax_bridge import keras_internals
from keras_flax_bridge.errors import BridgeError, StructureMismatchError, UnsupportedOptimizerError, said
from keras_flax_bridge.keras_internals import Collection, Twin
from keras_flax_bridge.optimizers.to_optax import inner_optimizers, warn_of_rounding
from keras_flax_bridge.optimizers.variable_lookup import Leaves
from keras_flax_bridge.tree import words
from keras_flax_bridge.tree.diff import require_paths
from keras_flax_bridge.tree.leaves import SharedOnCopy, strong
from keras_flax_bridge.tree.paths import Flat, Path, flatten_tree, join_path, nest_paths


class Adapter(SharedOnCopy, optax.GradientTransformationExtraArgs):
    """The transformation of `as_optax`: Keras's own `stateless_apply`, on any tree of parameters.

    Attributes:
        optimizer: the Keras optimizer, which is only read.
    """

    optimizer: Any
    _model: Any

    @classmethod
    def of(cls, optimizer: Any, model: Any) -> Adapter:
        """Checks that the optimizer can treat every leaf of a tree of arrays without its variable."""
        _require_adaptable(optimizer, model)
        owners = (
            {} if model is None else {e.path: e.variable for e in keras_internals.collect_layer(model)[0]}
        )
        twins: dict[Any, Twin] = {}

        def owner(path: Path) -> Any:
            if model is not None and path not in owners:
                raise StructureMismatchError(
                    f"params/{join_path(path)}",
                    got="a leaf that is not a trainable variable of the model",
                    expected="the parameters of TrainState.from_keras(model)",
                    fix="Pass the model that the parameters belong to, or no model.",
                )
            return owners.get(path)

        def twin(values: Flat) -> Twin:
            return _twin(optimizer, values, owner)

        def for_updates(params: Any) -> Twin:
            """An optimizer built once for a structure of parameters, whose variables hold no values."""
            flat = flatten_tree(params)
            key = tuple((path, leaf.shape, str(leaf.dtype)) for path, leaf in flat.items())
            if key not in twins:
                with jax.ensure_compile_time_eval():
                    made = twin({path: jnp.zeros(leaf.shape, leaf.dtype) for path, leaf in flat.items()})
                keras_internals.move([*made.params, *made.slots])
                twins[key] = made
            return twins[key]

        def init(params: Any) -> Any:
            warn_of_rounding(optimizer, params)
            made = twin({path: jnp.asarray(leaf) for path, leaf in flatten_tree(params).items()})
            # some slots start with the parameters: not with their buffers, which may be donated
            values = [jnp.copy(strong(entry.variable.value)) for entry in made.slots]
            return _shaped(made.slots, values, params)

        def update(grads: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
            if params is None:
                raise StructureMismatchError(
                    "params", got="None", expected="the parameters", fix="Call update(grads, state, params)."
                )
            require_paths(grads, params, "grads")
            made, flat, given = for_updates(params), flatten_tree(params), flatten_tree(grads)
            new, slots = made.optimizer.stateless_apply(
                made.slots.leaves(state, "opt_state"), [given[path] for path in flat], list(flat.values())
            )
            updates = [(n - p).astype(p.dtype) for n, p in zip(new, flat.values(), strict=True)]
            return jax.tree.unflatten(jax.tree.structure(params), updates), _shaped(made.slots, slots, params)

        self: Adapter = cls(init, update)
        self.optimizer, self._model = optimizer, model
        return self

    def __eq__(self, other: object) -> bool:  # for jit: equal adapters share one compilation
        return (
            isinstance(other, Adapter) and self.optimizer is other.optimizer and self._model is other._model
        )

    def __hash__(self) -> int:
        return hash((Adapter, id(self.optimizer), id(self._model)))


@words.door
def as_optax(
    optimizer: keras.optimizers.Optimizer, *, model: keras.Model | None = None
) -> optax.GradientTransformationExtraArgs:
    """Any Keras optimizer, custom ones included, as an optax transformation.

    It runs Keras's own `stateless_apply`, on an optimizer rebuilt from the config of this one for the
    structure of the parameters, so it works wherever optax's do: under `jax.jit`, `jax.vmap`,
    `jax.lax.scan` and `jax.eval_shape`, in `optax.chain` and `optax.multi_transform`, in Linen's
    `TrainState` and `nnx.Optimizer`. An update is the difference of new and old parameters, so that
    adding it rounds once more. `to_optax` gives native optax, without Keras, for Keras's own optimizers.

    Args:
        optimizer: a `keras.optimizers.Optimizer` whose config rebuilds it; it is only read.
        model: the model whose parameters it trains. Needed only where it looks at paths or
            constraints of variables: MultiOptimizer, Muon with ``exclude_layers``, constraints, variables
            excluded from weight decay as objects.

    Returns:
        The transformation. Its state is a nested dict of Keras's variables, one subtree per slot, as
        ``TrainState.from_keras(model).opt_state`` has it. Where the optimizer scales the loss,
        gradients are those of the scaled loss, as Keras's own `apply` takes them.

    Raises:
        NotBuiltError: if it needs the model.
        UnsupportedOptimizerError: if its config doesn't rebuild it, or variables are excluded from
            weight decay as objects and there is no model.

    Example:
        >>> import jax.numpy as jnp, keras, optax
        >>> tx = optax.chain(optax.clip(1.0), as_optax(keras.optimizers.Adam(0.1)))
        >>> params = {"kernel": jnp.ones((2, 3))}
        >>> opt_state = tx.init(params)
        >>> updates, opt_state = tx.update({"kernel": jnp.ones((2, 3))}, opt_state, params)
        >>> print(f"{float(optax.apply_updates(params, updates)['kernel'][0, 0]):.3f}")
        0.900
    """
    return Adapter.of(optimizer, model)


def _require_adaptable(optimizer: Any, model: Any) -> None:
    if not isinstance(optimizer, K.Optimizer):
        raise UnsupportedOptimizerError(
            "optimizer",
            got=f"a {type(optimizer).__name__}",
            expected="a keras.optimizers.Optimizer",
            fix="An optax transformation needs no adapter.",
        )
    for inner in inner_optimizers(optimizer):
        if model is None and keras_internals.excludes_variables(inner):
            raise UnsupportedOptimizerError(
                f"optimizer {inner.name!r}",
                got="variables excluded from weight decay as objects, and no model",
                expected="their model, or exclusions by name",
                fix="Pass model=, or call exclude_from_weight_decay(var_names=[...]).",
            )
        looks_at_paths = keras_internals.is_multi(inner) or getattr(inner, "exclude_layers", None)
        if model is None and looks_at_paths:
            Leaves(None).require_known(f"a {type(inner).__name__} that looks at the paths of variables")
    if model is None and any(v.constraint is not None for v in keras_internals.built_for(optimizer)):
        Leaves(None).require_known("variables that have constraints")


def _shaped(slots: Collection, values: list[Any], params: Any) -> Any:
    """The values by name, each slot as a tree like the parameters; None if it has no leaf."""
    if isinstance(params, dict):
        return slots.tree(values)
    paths, treedef = list(flatten_tree(params)), jax.tree.structure(params)
    named: dict[Path, Any] = {}
    for entry, value in zip(slots, values, strict=True):
        owned = [path for path in paths if path == entry.path[-len(path) or len(entry.path) :]]
        longest = max(owned, key=len, default=None)
        if longest is None or longest == entry.path:
            named[entry.path] = value
        else:
            named.setdefault(entry.path[: len(entry.path) - len(longest)], {})[longest] = value
    shaped = {
        name: jax.tree.unflatten(treedef, [held.get(path) for path in paths])
        if isinstance(held, dict)
        else held
        for name, held in named.items()
    }
    return nest_paths(shaped)


def _twin(optimizer: Any, values: Flat, owner: Any) -> Twin:
    try:
        return keras_internals.twin_of(optimizer, values, owner)
    except BridgeError:
        raise
    except Exception as error:  # of the user's config and build, which may raise anything
        raise UnsupportedOptimizerError(
            f"optimizer {optimizer.name!r}",
            got=f"a {type(optimizer).__name__} that can't be rebuilt ({type(error).__name__}: {said(error)})",
            expected="a get_config() that returns all arguments of its constructor",
            fix="Define it as described in Keras's guide on serialization, and register the class.",
        ) from error
