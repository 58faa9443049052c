"""`TrainState`: the variables of a Keras model as the pytree that Flax code trains."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import keras
from flax import struct
from flax.training import train_state

from keras_flax_bridge import keras_internals
from keras_flax_bridge.keras_internals import Collection, Entry
from keras_flax_bridge.optimizers.step_interface import (
    KerasTransformation,
    is_exact,
    taking_no_extra_arguments,
    training_model,
    transformation,
)
from keras_flax_bridge.state import assignments, followers, gc_pause, trees
from keras_flax_bridge.state.apply_fn import KerasApply
from keras_flax_bridge.state.building import abstracted, built
from keras_flax_bridge.state.lazy_trees import LazyTrees
from keras_flax_bridge.state.model_parts import ModelParts, require_single
from keras_flax_bridge.state.multi_model import (
    arguments,
    joined,
    require_distinct,
    require_names,
    require_same,
)
from keras_flax_bridge.state.optimizer_switch import OptimizerSwitch
from keras_flax_bridge.state.repartition import fields
from keras_flax_bridge.state.transfer import take, unaliased, zeroed
from keras_flax_bridge.state.trees import DeclaredTrees
from keras_flax_bridge.tree import words
from keras_flax_bridge.tree.diff import require_paths
from keras_flax_bridge.tree.leaves import explained, owned
from keras_flax_bridge.tree.types import Batch, GivenOptimizer, Loss, Metrics, Params, PyTree


@words.doors(also=("create", "replace"))
class TrainState(
    LazyTrees,
    OptimizerSwitch,
    ModelParts,
    DeclaredTrees,
    train_state.TrainState,
    metaclass=words.AnsweringType,
):
    """The complete training state of a Keras model, a subclass of Flax's `TrainState`.

    Leaves are keyed by their place in the model (``params["dense_1"]["kernel"]``), never by
    Keras's auto-generated names, so two builds of one architecture give the same tree.

    Attributes:
        step: batches seen, an int32 scalar.
        params: trainable weights, a nested dict.
        opt_state: for a Keras optimizer its scalars and one subtree per slot, shaped like `params`;
            for optax, optax's own state.
        apply_fn: ``apply_fn({"params": ..., "non_trainable": ...}, x, training=..., mutable=[...])``.
        tx: the optimizer behind optax's interface.
        non_trainable: moving statistics, seeds, frozen weights and other state, a nested dict.
        metrics: ``{metric key: {variable: value}}`` of training.
        eval_metrics: the metrics of evaluation, separate from those of training.
        compiled: seeds and variables that a loss, a metric or a schedule holds, and that Keras does not list.

    Example:
        >>> import keras, numpy as np
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> model.compile("sgd", "mse")
        >>> state = TrainState.from_keras(model)
        >>> jax.tree.map(np.shape, state.params)
        {'dense': {'bias': (2,), 'kernel': (4, 2)}}
        >>> state.apply_fn({"params": state.params}, np.ones((3, 4))).shape
        (3, 2)
    """

    params: Params
    non_trainable: PyTree = struct.field(default_factory=dict)
    metrics: PyTree = struct.field(default_factory=dict)
    eval_metrics: PyTree = struct.field(default_factory=dict)
    compiled: PyTree = struct.field(default_factory=dict)

    @classmethod
    @gc_pause.gc_paused()
    def from_keras(
        cls,
        model: keras.Model,
        *,
        batch: Batch | None = None,
        optimizer: GivenOptimizer | None = None,
        loss: Loss | None = None,
        metrics: Metrics | None = None,
        copy: bool = True,
    ) -> TrainState:
        """Takes the state of a Keras model.

        Args:
            model: a compiled model, or an uncompiled one together with `optimizer`; or a dict of
                models, for several in one state. Then the other arguments are dicts by model, every
                tree gets the model's name as its first level, and a model that `optimizer` names
                with None isn't trained.
            batch: ``(x,)``, ``(x, y)``, ``(x, y, sample_weight)`` or bare x, arrays or
                `jax.ShapeDtypeStruct`; builds what isn't built, as ``fit`` would.
            optimizer: a Keras optimizer or an optax transformation; None for the model's own.
            loss: as in ``compile``; only the metrics of several outputs depend on it.
            metrics: as in ``compile``; None for the model's own.
            copy: True copies the buffers. False moves the model's: nothing is
                copied, and the model raises `OwnershipError` if used before `assign_to`.

        Returns:
            The state; `step` is the number of batches that a Keras optimizer has seen.

        Raises:
            NotBuiltError: if the model is unbuilt and there is no batch, if metrics need one, or if
                the model is uncompiled and there is no optimizer.
            OwnershipError: if the values of a variable moved into another state.
            StructureMismatchError: if the optimizer was built for other variables, or two models of
                a dict share one.

        Example:
            >>> import keras, optax
            >>> model = keras.Sequential([keras.layers.Dense(2)])
            >>> batch = (jax.ShapeDtypeStruct((8, 4), "float32"), jax.ShapeDtypeStruct((8, 2), "float32"))
            >>> state = TrainState.from_keras(model, batch=batch, optimizer=optax.sgd(0.1))
            >>> int(state.step), state.params["dense"]["kernel"].shape
            (0, (4, 2))
        """
        parts = {"batch": batch, "optimizer": optimizer, "loss": loss, "metrics": metrics}
        state, entries = cls._taken(_prepared(model, parts), copy)
        if not copy:  # when nothing can fail any more
            keras_internals.move(entries)
        return state

    @classmethod
    def _taken(cls, trained: Any, copy: bool) -> tuple[TrainState, list[Entry]]:
        """The state of one prepared model, or of a dict of them, and their variables."""
        if isinstance(trained, Mapping):
            taken = {name: cls._taken(model, copy) for name, model in trained.items()}
            whole = cls(**joined({name: one for name, (one, _) in taken.items()}))
            return whole, [entry for _, own in taken.values() for entry in own]
        variables = keras_internals.collect(trained)
        values = take(variables, copy)
        params, non_trainable, slots, metric_values, compiled = map(Collection.tree, variables, values)
        tx = transformation(trained, variables)
        is_keras = isinstance(tx, KerasTransformation)
        step = keras_internals.iterations(trained.optimizer) if is_keras else 0
        state = cls(
            step=owned(jnp.asarray(step, jnp.int32)),
            apply_fn=KerasApply(trained),
            params=params,
            tx=tx,
            opt_state=slots if is_keras else unaliased(tx.init(params), params),
            non_trainable=non_trainable,
            metrics=metric_values,
            eval_metrics=zeroed(trained, variables.metrics, metric_values),
            compiled=compiled,
        )
        return state, [entry for collection in variables for entry in collection]

    @classmethod
    def abstract(
        cls,
        model_fn: Callable[[], keras.Model],
        *,
        batch: Batch | None = None,
        optimizer: GivenOptimizer | None = None,
        loss: Loss | None = None,
        metrics: Metrics | None = None,
    ) -> TrainState:
        """The state that ``from_keras(model_fn())`` would give, as shapes and dtypes.

        The model is built, but for its weights, which have shapes and no values: no initializer runs, and
        no memory is taken for them. All else that layers make while they are built, arrays among it, they
        make as usual, and keep; no layer needs a config.

        Args:
            model_fn: builds the model, or a dict of models; it runs once.
            batch: as in `from_keras`.
            optimizer: as in `from_keras`; a Keras one is copied, exclusions from weight decay included.
            loss: as in `from_keras`.
            metrics: as in `from_keras`.

        Returns:
            A state of `jax.ShapeDtypeStruct`; `apply_fn` and `tx` work as usual.

        Raises:
            NotBuiltError: as `from_keras`.
            StructureMismatchError: if `model_fn` gives a model that existed before, or one of another
                architecture than `optimizer` was built for, and that excludes variables as objects.
            UnsupportedLayerError: if building the model needs values, as quantizing it does.
            UnsupportedOptimizerError: if `optimizer` excludes variables from weight decay as objects and
                is not built, so that nothing says which they are.

        Example:
            >>> import keras
            >>> def model_fn():
            ...     model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
            ...     model.compile("sgd", "mse")
            ...     return model
            >>> TrainState.abstract(model_fn).params["dense"]["kernel"]
            ShapeDtypeStruct(shape=(4, 2), dtype=float32)
        """

        def prepare(model: Any, own: Any) -> Any:
            return _prepared(model, {"batch": batch, "optimizer": own, "loss": loss, "metrics": metrics})

        state: TrainState = abstracted(
            lambda trained: cls._taken(trained, copy=True)[0], model_fn, prepare, optimizer
        )
        return state

    @gc_pause.gc_paused()
    def assign_to(
        self,
        model: keras.Model,
        *,
        optimizer: GivenOptimizer | None = None,
        metrics: Metrics | None = None,
        copy: bool = True,
    ) -> None:
        """Writes the state into a Keras model: weights, seeds, slots and metrics, all or nothing.

        Slots go to the compiled or the given Keras optimizer; an uncompiled model can't receive
        slots and metrics, and a Keras optimizer can't receive optax's state. Metrics that have seen no
        data yet have no variables: they start at zero.

        Args:
            model: a built model of the architecture that the state was taken from; for a state of
                several models a dict of all of them.
            optimizer: a Keras optimizer that receives the slots; None for the model's own.
            metrics: metrics that receive the values; None for the model's own.
            copy: True copies the buffers. False shares the state's buffers: donating
                the state afterwards would delete them.

        Raises:
            NotBuiltError: if the model is unbuilt, or the state is abstract.
            OwnershipError: if a leaf was donated.
            StructureMismatchError: if the leaves are not those of the model; lists all of them.

        Example:
            >>> import keras
            >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
            >>> model.compile("sgd", "mse")
            >>> state = TrainState.from_keras(model, copy=False)
            >>> state.assign_to(model)
            >>> model.count_params()
            10
        """
        plan = assignments.of(self, model, optimizer=optimizer, metrics=metrics)
        new = [owned(leaf) if copy else leaf for _, leaf in plan]
        for (variable, _), leaf in zip(plan, new, strict=True):
            variable.assign(leaf)
        for filled in model.values() if isinstance(model, Mapping) else [model]:
            keras_internals.refresh(filled)

    def apply_gradients(self, *, grads: PyTree, **kwargs: Any) -> TrainState:
        """The state after one optimizer step, as in Flax; exact for Keras optimizers.

        Args:
            grads: gradients of the loss, of the structure of `params`; of several models, those
                of the models to update. They are never scaled: where a Keras optimizer scales the loss,
                this is accounted for.
            **kwargs: fields to replace, such as ``non_trainable=updates["non_trainable"]``.

        Returns:
            A new state whose `step` is one more.

        Raises:
            StructureMismatchError: if the gradients are not of the structure of `params`.
            OwnershipError: if the state was donated.
            UnsupportedOptimizerError: if the optax transformation takes more than gradients.

        Example:
            >>> import keras
            >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
            >>> model.compile("adam", "mse")
            >>> state = TrainState.from_keras(model)
            >>> state = state.apply_gradients(grads=jax.tree.map(jnp.ones_like, state.params))
            >>> int(state.step), int(state.opt_state["iteration"])
            (1, 1)
        """
        if self.parts:
            require_names(grads, self.tx.parts, "grads")
            moved = {name: self.part(name).apply_gradients(grads=grads[name]) for name in grads}
            whole: TrainState = self.with_parts(**moved)
            return whole.replace(**kwargs)
        after = self._after(grads, kwargs)
        followed = followers.followed(after, kwargs)
        return after.replace(**followed) if followed else after

    def _after(self, grads: PyTree, kwargs: dict[str, Any]) -> TrainState:
        """The state after the optimizer's step; trees that follow others are as before."""
        given = {"grads": grads, "state": {"opt_state": self.opt_state, "params": self.params}}
        if not is_exact(self.tx):
            require_paths(grads, self.params, "grads")
            with explained(given), taking_no_extra_arguments(self.tx):
                # Flax has no types for it
                stepped: TrainState = super().apply_gradients(grads=grads, **kwargs)  # type: ignore[no-untyped-call]
                return stepped
        with explained(given), taking_no_extra_arguments(self.tx):
            params, opt_state = self.tx.apply(grads, self.opt_state, self.params)
        return self.replace(step=self.step + 1, params=params, opt_state=opt_state, **kwargs)

    def reset_metrics(self) -> TrainState:
        """The state with all metrics reset; everything else is unchanged.

        Returns:
            A new state.

        Raises:
            StructureMismatchError: if `metrics` are not those of the model that `apply_fn` calls.

        Example:
            >>> import keras
            >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
            >>> model.compile("adam", "mse")
            >>> state = TrainState.from_keras(model).reset_metrics()
            >>> float(state.metrics["loss"]["count"])
            0.0
        """
        if self.parts:
            whole: TrainState = self.with_parts(**{n: self.part(n).reset_metrics() for n in self.parts})
            return whole
        totals = trees.of_state(self, trees.of_metrics())
        if not isinstance(self.apply_fn, KerasApply):
            return self.replace(**jax.tree.map(jnp.zeros_like, totals))
        model = self.apply_fn.model
        metrics = keras_internals.collect(model).metrics
        return self.replace(**{name: zeroed(model, metrics, tree) for name, tree in totals.items()})

    def repartition(self, model: keras.Model, *, batch: Batch | None = None) -> TrainState:
        """Moves leaves between `params` and `non_trainable` after layers were frozen or unfrozen.

        Slots of weights that stay trainable are kept, those of newly trainable ones are initialized by
        the optimizer, those of frozen ones are dropped. A model that was compiled again brings its
        learning rate and its new metrics; with another kind of optimizer all slots are initialized.
        The step is kept. A model that isn't compiled continues with an optimizer of the same config:
        make its steps with ``optimizer=state.tx.optimizer``.

        Args:
            model: the model as it is now; compiled again if it was, as Keras asks for. For a state
                of several models a dict of all of them.
            batch: as in `from_keras`, for new metrics whose variables depend on data.

        Returns:
            A new state for `model`.

        Raises:
            NotBuiltError: if new metrics need a batch.
            StructureMismatchError: if the model has other variables than the state.

        Example:
            >>> import keras
            >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.Dense(2)])
            >>> model.compile("adam", "mse")
            >>> state = TrainState.from_keras(model)
            >>> model.layers[0].trainable = False
            >>> model.compile("adam", "mse")
            >>> state = state.repartition(model)
            >>> sorted(state.params), sorted(state.non_trainable), sorted(state.opt_state["momentums"])
            (['dense_1'], ['dense'], ['dense_1'])
        """
        if isinstance(model, Mapping):
            require_same(model, self.parts)
            batches = {name: arguments({"batch": batch}, name, model) for name in model}
            moved = {name: self.part(name).repartition(model[name], **batches[name]) for name in model}
            whole: TrainState = self.with_parts(**moved)
            return whole
        require_single(self.parts, "repartition")
        return self.replace(**fields(self, model, batch))


def _prepared(model: Any, parts: dict[str, Any]) -> Any:
    """A model, or a dict of models, compiled with the given parts and built."""
    if isinstance(model, Mapping):
        require_distinct(model)
        return {name: _prepared(one, arguments(parts, name, model)) for name, one in model.items()}
    given = dict(parts)
    batch = given.pop("batch", None)
    return built(training_model(model, **given), batch)
