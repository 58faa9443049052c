"""`OptaxOptimizer`: an optax transformation as a Keras optimizer."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import keras
import optax

from keras_flax_bridge import keras_internals
from keras_flax_bridge.errors import UnsupportedOptimizerError, said
from keras_flax_bridge.keras_internals import WholeTreeOptimizer, holds_value
from keras_flax_bridge.optimizers.optax_factories import (
    OPTIONS,
    Ready,
    factory_of,
    is_selected,
    made,
    mask_argument,
    plain,
    rate_of,
    split,
    takes_rate,
)
from keras_flax_bridge.optimizers.optax_slots import Place, places_of
from keras_flax_bridge.optimizers.step_interface import taking_no_extra_arguments
from keras_flax_bridge.tree import words
from keras_flax_bridge.tree.leaves import from_disk, on_disk
from keras_flax_bridge.tree.paths import Path, fill_tree, flatten_tree


@words.doors(methods=False)
@keras.saving.register_keras_serializable("keras_flax_bridge")
class OptaxOptimizer(WholeTreeOptimizer):
    """An optax transformation as a `keras.optimizers.Optimizer`.

    For ``compile`` and ``fit``, callbacks that set the learning rate, mixed precision with loss scaling,
    and saving: ``.keras`` files and checkpoints resume bit for bit. The transformation sees all
    parameters as a nested dict by ``variable.path``, in Keras's order; those without a gradient keep
    their value and their state. Keras's own options (clipping, averages, accumulation, loss scale) work
    around it.

    Args:
        transformation: the name of a function in optax (``"adamw"``, ``"contrib.muon"``), a function that
            returns a transformation, or a transformation.
        learning_rate: a number, a Keras or optax schedule, or None if `transformation` is a
            transformation, or takes none. It is read at every step, so callbacks may set it.
        name: the optimizer's name.
        **arguments: those of the function, such as ``weight_decay=1e-4``; others are Keras's options, such
            as ``clipnorm=1.0`` or ``use_ema=True``.

    Attributes:
        transformation: the name, function or transformation it was created from.
        slots: optax's state by name, one variable for each parameter that has one.
        numbers: the rest of it by name, such as counts.

    Raises:
        UnsupportedOptimizerError: if optax has no such name, an argument is unknown, or, when it is
            built, the transformation needs more than gradients, state and parameters
            (`optax.lbfgs`, `optax.contrib.reduce_on_plateau`).

    Example:
        >>> import keras, numpy as np
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
        >>> model.compile(OptaxOptimizer("adamw", learning_rate=1e-3, weight_decay=1e-4), "mse")
        >>> history = model.fit(np.ones((8, 4)), np.ones((8, 1)), epochs=2, verbose=0)
        >>> sorted(model.optimizer.slots), int(model.optimizer.numbers["count"].value)
        (['mu', 'nu'], 2)

    Source: https://optax.readthedocs.io/en/latest/api/optimizers.html
    """

    def __init__(
        self, transformation: Any, learning_rate: Any = None, *, name: str | None = None, **arguments: Any
    ):
        ready = transformation.transformation if isinstance(transformation, Ready) else transformation
        factory = factory_of(ready)
        own, options = split(factory, arguments)
        if not takes_rate(factory) and learning_rate is not None:
            raise UnsupportedOptimizerError(
                "learning_rate",
                got="a learning rate for a transformation object, which has its own",
                expected="None, or a function that takes one",
                fix="Pass the function itself: OptaxOptimizer(optax.adam, learning_rate=...).",
            )
        if learning_rate is None and options.get("weight_decay") is not None:
            raise UnsupportedOptimizerError(
                "weight_decay",
                got="Keras's weight decay, which multiplies by the learning rate, and no learning rate",
                expected="a learning rate, or decay inside the transformation",
                fix="Add optax.add_decayed_weights to the transformation.",
            )
        super().__init__(1.0 if learning_rate is None else rate_of(learning_rate), name=name, **options)
        self._given = Ready(ready)  # wrapped, because Keras copies tuples that are set on an optimizer
        self.arguments = own
        self._has_rate = learning_rate is not None
        self._mask: str | None = None  # the argument of the function that exclusions from decay are given to
        self._made(0.1 if self._has_rate else None)  # raises for invalid arguments

    @property
    def transformation(self) -> Any:
        """The argument that it was created with: a name, a function or a transformation."""
        return self._given.transformation

    @property
    def learning_rate(self) -> Any:
        """The current learning rate; 1 for a transformation that has its own.

        Raises:
            UnsupportedOptimizerError: if it is set and the transformation has its own.
        """
        return super().learning_rate

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        if not self._has_rate:
            raise UnsupportedOptimizerError(
                "learning_rate",
                got="a transformation object, whose learning rate can't be changed from outside",
                expected="a function that takes a learning rate",
                fix="Pass the function itself: OptaxOptimizer(optax.adam, learning_rate=...).",
            )
        keras.optimizers.Optimizer.learning_rate.fset(self, value)

    def _made(self, rate: Any) -> Any:
        """The transformation for a learning rate; its state does not depend on the rate."""
        factory = factory_of(self.transformation)
        if factory is None:
            return optax.with_extra_args_support(self.transformation)
        rates = {} if rate is None else {"learning_rate": rate}
        try:
            return optax.with_extra_args_support(factory(**rates, **{**self.arguments, **self._masks()}))
        except TypeError as error:
            raise UnsupportedOptimizerError(
                "transformation",
                got=f"arguments that it doesn't take ({said(error)})",
                expected="those of its signature",
                fix="Pass the missing ones by name.",
            ) from error

    def exclude_from_weight_decay(
        self, var_list: list[Any] | None = None, var_names: list[str] | None = None
    ) -> None:
        """Excludes variables from weight decay, that of the transformation (optax's ``mask``) or Keras's.

        Args:
            var_list: variables to exclude.
            var_names: words; a variable is excluded if its name has one of them.

        Raises:
            UnsupportedOptimizerError: if the transformation may decay weights and takes no mask, such as
                an object.
        """
        self._mask = mask_argument(self.transformation, self.arguments, self.weight_decay is not None)
        super().exclude_from_weight_decay(var_list, var_names)
        if self.built:  # as where a checkpoint has them: a mask adds no leaf to the state
            self._treedef = jax.tree.structure(jax.eval_shape(self._anyhow().init, self._start()))

    def _masks(self) -> dict[str, Any]:
        """The argument of the factory that has the exclusions from weight decay, if there are any."""
        if self._mask is None:
            return {}
        given = self.arguments.get(self._mask)

        def mask(params: Any) -> Any:
            decayed = map(partial(keras_internals.is_decayed, self), self._own_variables)
            own = given(params) if callable(given) else True if given is None else given
            kept = {
                path: keep and is_selected(own, path)
                for path, keep in zip(self._paths(), decayed, strict=True)
            }
            return fill_tree(params, kept)

        return {self._mask: mask}

    def build(self, variables: list[Any]) -> None:
        """Creates a variable for every leaf of the transformation's state.

        Args:
            variables: the variables to train.

        Raises:
            UnsupportedOptimizerError: if the transformation needs more than gradients, state and params.
        """
        if self.built:
            return
        super().build(variables)
        # those that gradients overwrite have no slots, as in Keras's own optimizers
        self._trained = [i for i, v in enumerate(variables) if not keras_internals.is_overwritten(v)]
        params, tx = self._start(), self._anyhow()
        state = tx.init(params)
        with taking_no_extra_arguments(tx):
            jax.eval_shape(tx.update, params, state, params)
        self.slots: dict[str, list[Any]] = {}
        self.numbers: dict[str, Any] = {}
        self._keep(state, params)

    def _anyhow(self) -> Any:
        """The transformation at any learning rate, which its state does not depend on."""
        return self._made(jnp.asarray(0.1) if self._has_rate else None)

    def _start(self) -> Any:
        """The parameters; zeros where values moved into a state, or are traced: slots get theirs later."""
        own = self._own_variables
        return self._tree([v.value if holds_value(v) else jnp.zeros(v.shape, v.dtype) for v in own])

    def _keep(self, state: Any, params: Any) -> None:
        """Creates variables for the leaves of a state, ordered by field, then by weight, not by name."""
        leaves, self._treedef = jax.tree.flatten(state)
        places = places_of(state, self._paths())
        self._places = [(name, None if i is None else self._trained[i]) for name, i in places]
        self._likes = [jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.asarray(leaf).dtype) for leaf in leaves]
        slots: dict[str, list[Any]] = {}
        numbers: dict[str, Any] = {}
        count = len(self.optimized_variables)
        order = list(dict.fromkeys(name for name, _ in self._places))
        for leaf, (name, owner) in sorted(
            zip(leaves, self._places, strict=True),
            key=lambda item: (order.index(item[1][0]), item[1][1] or 0),
        ):
            variable = self._variable(jnp.asarray(on_disk(leaf)), name, owner)
            if owner is None:
                numbers[name] = variable
            else:
                slots.setdefault(name, [None] * count)[owner] = variable
        self.slots, self.numbers = slots, numbers

    def _variable(self, value: Any, name: str, owner: int | None) -> Any:
        label = name.replace("/", "_")
        if owner is not None:
            label = f"{self.optimized_variables[owner].path.replace('/', '_')}_{label}"
        return self.add_variable(
            value.shape, lambda shape, dtype=None: jnp.copy(value), dtype=str(value.dtype), name=label
        )

    def _paths(self) -> list[Path]:
        """The path of each weight in the tree of the transformation: its own path if that is unique."""
        paths = [tuple(variable.path.split("/")) for variable in self._own_variables]
        inner = {path[:i] for path in paths for i in range(1, len(path))}
        if len(set(paths)) < len(paths) or inner & set(paths):
            return [(f"{i}_{'_'.join(path)}",) for i, path in enumerate(paths)]
        return paths

    @property
    def _own_variables(self) -> list[Any]:
        """The variables that the transformation sees."""
        return [self.optimized_variables[i] for i in self._trained]

    def _tree(self, values: list[Any]) -> Any:
        """A nested dict in Keras's order: the order of names would depend on what else the process built."""
        tree: OrderedDict[str, Any] = OrderedDict()
        for path, value in zip(self._paths(), values, strict=True):
            node = tree
            for name in path[:-1]:
                node = node.setdefault(name, OrderedDict())
            node[path[-1]] = value
        return tree

    def held_variables(self) -> dict[Place, Any]:
        """The variable of every leaf of the transformation's state, by its field and the index of its weight.

        Returns:
            A dict in the order of the leaves; the index of a number is None.

        Raises:
            AttributeError: if the optimizer is not built.
        """
        slots, numbers = self.slots, self.numbers
        return {(name, i): numbers[name] if i is None else slots[name][i] for name, i in self._places}

    def _state(self) -> Any:
        held = self.held_variables().values()
        leaves = [from_disk(v.value, like) for v, like in zip(held, self._likes, strict=True)]
        return jax.tree.unflatten(self._treedef, leaves)

    def _update_all(self, gradients: Mapping[int, Any], learning_rate: Any) -> None:
        values = [variable.value for variable in self._own_variables]
        params = self._tree(values)
        grads = [
            jnp.asarray(gradients[i], v.dtype) if i in gradients else jnp.zeros_like(v)
            for i, v in zip(self._trained, values, strict=True)
        ]
        rate = learning_rate.astype(optax.tree.dtype(params, "highest")) if self._has_rate else None
        updates, state = self._made(rate).update(self._tree(grads), self._state(), params)
        new = flatten_tree(optax.apply_updates(params, updates))
        for i, path, variable in zip(self._trained, self._paths(), self._own_variables, strict=True):
            if i in gradients:
                self.assign(variable, new[path])
        for leaf, (name, owner) in zip(jax.tree.leaves(state), self._places, strict=True):
            if owner is None:
                self.assign(self.numbers[name], on_disk(leaf))
            elif owner in gradients:  # Keras does not change slots of variables without a gradient
                self.assign(self.slots[name][owner], on_disk(leaf))

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: Mapping[str, Any] | None = None
    ) -> OptaxOptimizer:
        """Rebuilds the optimizer from a config, which may come from a file: nothing in it is run as code.

        Args:
            config: the result of `get_config`. Names must be in the table of optax functions, or registered.
            custom_objects: classes and functions by the names that the config has for them.

        Returns:
            The optimizer.

        Raises:
            CheckpointError: if the config names something that is not allowed, or contains code.
            UnsupportedOptimizerError: as the constructor.
        """
        with keras.saving.custom_object_scope(custom_objects or {}):
            values = {name: plain(value) for name, value in config.items() if name != "transformation"}
            return cls(made(config.get("transformation"), "transformation"), **values)

    def get_config(self) -> dict[str, Any]:
        """The config, with the name of the transformation and its arguments.

        Returns:
            A dict for `from_config`.

        Raises:
            UnsupportedOptimizerError: when an optimizer of a transformation object is written to a file.
        """
        config = super().get_config()
        taken = split(factory_of(self.transformation), dict.fromkeys(OPTIONS))[0]
        config = {name: value for name, value in config.items() if name not in taken}
        is_ready = factory_of(self.transformation) is None
        config["transformation"] = self._given if is_ready else self.transformation
        if not self._has_rate:
            config["learning_rate"] = None
        return config | self.arguments
