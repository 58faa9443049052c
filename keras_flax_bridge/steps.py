"""Train, eval and predict steps: Keras's own step as a pure function of a `TrainState`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import is_not
from typing import Any

import jax
import jax.numpy as jnp
import keras
from jax.sharding import Mesh, PartitionSpec

from keras_flax_bridge import _batches, _flat, _intake
from keras_flax_bridge import _variables as V
from keras_flax_bridge._compiled import Compiled, Fields, Logs, explain, fields_of
from keras_flax_bridge._layouts import Rules
from keras_flax_bridge._leaves import explained, strong
from keras_flax_bridge._meshed import Meshed
from keras_flax_bridge._transforms import require_model, trainee, training_variables
from keras_flax_bridge._types import GivenOptimizer, Loss, Metrics
from keras_flax_bridge.errors import StructureMismatchError
from keras_flax_bridge.state import TrainState

Step = Callable[[TrainState, Any], tuple[TrainState, Logs]]

# the trees that each of Keras's steps takes, in its order
_TRAINED = ("params", "non_trainable", "opt_state", "metrics")
_EVALUATED = ("params", "non_trainable", "eval_metrics")
_PREDICTED = ("params", "non_trainable")


def make_train_step(
    model: keras.Model,
    *,
    loss: Loss | None = None,
    optimizer: GivenOptimizer | None = None,
    metrics: Metrics | None = None,
    jit: bool = True,
    donate: bool = True,
    steps_per_call: int = 1,
    mesh: Mesh | None = None,
    rules: Rules = (),
    batch_spec: PartitionSpec | None = None,
) -> Step:
    """Makes ``train_step(state, batch) -> (state, logs)``.

    The step is the model's own ``train_step``, Keras's or an overridden one, run on the state: the
    forward pass with ``training=True`` where the model takes it, losses of ``add_loss`` and of
    regularizers, loss scaling, the optimizer, metrics. It neither reads nor writes the model.

    Args:
        model: a compiled model, or an uncompiled one together with `optimizer` and `loss`.
        loss: as in ``compile``; None for the model's own.
        optimizer: a Keras optimizer or an optax transformation; None for the model's own.
        metrics: as in ``compile``; None for the model's own.
        jit: False gives the pure function, to be used under `vmap`, `scan` or `shard_map`.
        donate: whether the compiled step takes over the buffers of the state it is given.
        steps_per_call: for k > 1, batch leaves carry a leading axis of size k and the k steps run
            as one compiled `lax.scan`; the logs are those after the last.
        mesh: the devices to run on; the state is put there at the first call, and stays as it lies.
        rules: how the state lies on the mesh, as `shardings_for` takes them; none to replicate all of it.
        batch_spec: how a batch is split over the mesh; None for its rows over the first axis. With several
            processes each passes its own rows, as numpy arrays.

    Returns:
        The step. Its logs are scalars, the loss and every metric's running result, as in ``fit``.

    A Ctrl-C loses nothing: the state that was given to the interrupted step can be used, be it the
    one before the step or the one after it.

    Raises:
        NotBuiltError: if the model is uncompiled and there is no optimizer.
        StructureMismatchError: at the first call, if the state is not one of this model, or the
            batch is not what the model takes; at a later one, if the model was compiled again.
        OwnershipError: at a call, if the state was donated before.

    Example:
        >>> import keras, numpy as np
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1, kernel_initializer="ones")])
        >>> model.compile(keras.optimizers.SGD(0.1), "mse", metrics=["mae"])
        >>> state = TrainState.from_keras(model)
        >>> train_step = make_train_step(model)
        >>> batch = np.ones((2, 4), "float32"), np.zeros((2, 1), "float32")
        >>> state, logs = train_step(state, batch)
        >>> {name: float(value) for name, value in sorted(logs.items())}
        {'loss': 16.0, 'mae': 4.0}
    """
    trained = trainee(model, loss=loss, optimizer=optimizer, metrics=metrics)
    _require_count(steps_per_call)
    run = _train_function(trained)
    run = run if steps_per_call == 1 else _scanned(run, steps_per_call)
    build = _Builder(trained, steps_per_call)
    if mesh is not None:
        _require_jit(jit)
        meshed = Meshed(("step", *_TRAINED), mesh, rules, batch_spec, steps_per_call=steps_per_call)
        split = Compiled(run, _TRAINED, donate=donate, out_shardings=meshed.out_shardings)

        def meshed_step(state: TrainState, batch: Any) -> tuple[TrainState, Logs]:
            build(batch)
            state = meshed.state(state, known=split.gave(state))
            return split.step(state, meshed.batch(batch))

        return meshed_step
    compiled = Compiled(run, _TRAINED, donate=donate) if jit else None

    def train_step(state: TrainState, batch: Any) -> tuple[TrainState, Logs]:
        build(batch)
        return compiled.step(state, batch) if compiled else _stepped(run, state, ("step", *_TRAINED), batch)

    return train_step


def make_eval_step(
    model: keras.Model, *, loss: Loss | None = None, metrics: Metrics | None = None, jit: bool = True
) -> Step:
    """Makes ``eval_step(state, batch) -> (state, logs)``.

    The step is the model's own ``test_step``. Its metrics accumulate in `state.eval_metrics`, so
    those of training are never touched; `state.reset_metrics` starts both again.

    Args:
        model: a compiled model, or an uncompiled one together with `loss`.
        loss: as in ``compile``; None for the model's own.
        metrics: as in ``compile``; None for the model's own.
        jit: False gives the pure function.

    Returns:
        The step. It donates nothing; parameters and slots pass through.

    Raises:
        StructureMismatchError: at the first call, if the state is not one of this model, or the
            batch is not what the model takes.

    Example:
        >>> import keras, numpy as np
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1, kernel_initializer="ones")])
        >>> model.compile("sgd", "mse")
        >>> state = TrainState.from_keras(model)
        >>> batch = np.ones((2, 4), "float32"), np.zeros((2, 1), "float32")
        >>> state, logs = make_eval_step(model)(state, batch)
        >>> float(logs["loss"]), float(state.metrics["loss"]["count"])
        (16.0, 0.0)
    """
    # an optimizer plays no part in evaluation, but an uncompiled model can't be compiled without one
    placeholder = None if model.compiled else "sgd"
    trained = trainee(model, loss=loss, optimizer=placeholder, metrics=metrics)
    run = _eval_function(trained)
    run = jax.jit(run) if jit else run
    build = _Builder(trained)

    def eval_step(state: TrainState, batch: Any) -> tuple[TrainState, Logs]:
        build(batch)
        return _stepped(run, state, _EVALUATED, batch)

    return eval_step


def make_predict_step(model: keras.Model, *, jit: bool = True) -> Callable[[TrainState, Any], Any]:
    """Makes ``predict_step(state, x) -> outputs``.

    Args:
        model: a built model; it need not be compiled.
        jit: False gives the pure function.

    Returns:
        The step. It gives what the model's own ``predict_step`` gives, Keras's or an overridden one; by
        default its outputs in inference mode. `x` is what the model is called on.

    Raises:
        StructureMismatchError: if `model` is no Keras model; at the first call, if the state is not
            one of this model.

    Example:
        >>> import keras, numpy as np
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1, kernel_initializer="ones")])
        >>> model.compile("sgd", "mse")
        >>> make_predict_step(model)(TrainState.from_keras(model), np.ones((1, 4))).tolist()
        [[4.0]]
    """

    require_model(model)

    def run(fields: Fields, x: Any) -> Any:
        _batches.check_inputs(model, x)
        params, non_trainable = V.collect_layer(model)
        values = _values({"params": params, "non_trainable": non_trainable}, fields)
        with V.finalized(model, non_trainable, values[1]):
            return model.predict_step(values, (x,))[0]

    run = jax.jit(run) if jit else run

    def predict_step(state: TrainState, x: Any) -> Any:
        fields = fields_of(state, _PREDICTED)
        with explained({"state": fields, "x": x}):
            return run(fields, x)

    return predict_step


def _require_count(steps_per_call: Any) -> None:
    if not isinstance(steps_per_call, int) or steps_per_call < 1:
        raise StructureMismatchError(
            "steps_per_call",
            got=repr(steps_per_call),
            expected="a whole number, 1 or more",
            fix="Pass a whole number of steps, 1 or more.",
        )


def _require_jit(jit: bool) -> None:
    if not jit:
        raise StructureMismatchError(
            "mesh",
            got="a mesh, and jit=False",
            expected="one of them",
            fix="Compile the pure step with jax.jit and the shardings that kfb.shardings_for gives.",
        )


def _stepped(run: Callable, state: TrainState, names: tuple[str, ...], batch: Any) -> tuple[TrainState, Logs]:
    """The state after a step on some of its fields, and its logs."""
    fields = fields_of(state, names)
    try:
        new, logs = run(fields, batch)
    except Exception as error:
        explain(error, fields, batch)
        raise
    return _flat.like(state, {**vars(state), **new}), logs


def _values(collections: Mapping[str, Any], fields: Fields) -> tuple[list[Any], ...]:
    """The leaves of every tree in the order that Keras wants, each tree checked."""
    return tuple(c.leaves(fields[name], f"state.{name}") for name, c in collections.items())


def _train_function(trained: Any) -> Callable:
    """One step on the fields of a state; all but the arithmetic happens while tracing."""

    def run(fields: Fields, batch: Any) -> tuple[Fields, Logs]:
        if not V.is_overridden(trained, "train_step"):
            _batches.check(trained, batch)
        collections = dict(zip(_TRAINED, training_variables(trained), strict=True))
        given = _values(collections, fields)
        with V.finalized(trained, collections["non_trainable"], given[1]):
            logs, values = trained.train_step(given, batch)
        new = {name: c.tree(v) for (name, c), v in zip(collections.items(), values, strict=True)}
        return strong({"step": fields["step"] + 1, **new}), _scalars(logs)

    return run


def _eval_function(trained: Any) -> Callable:
    """One evaluation on the fields of a state."""

    def run(fields: Fields, batch: Any) -> tuple[Fields, Logs]:
        if not V.is_overridden(trained, "test_step"):
            _batches.check(trained, batch)
        params, non_trainable, _, metrics = V.collect(trained)
        collections = dict(zip(_EVALUATED, (params, non_trainable, metrics), strict=True))
        given = _values(collections, fields)
        with V.finalized(trained, non_trainable, given[1]):
            logs, (_, after, totals) = trained.test_step(given, batch)
        new = {"non_trainable": non_trainable.tree(after), "eval_metrics": metrics.tree(totals)}
        return strong(new), _scalars(logs)

    return run


def _scalars(logs: Logs) -> Logs:
    return jax.tree.map(jnp.asarray, dict(logs))


def _scanned(run: Callable, length: int) -> Callable:
    """`length` steps over the leading axis of the batches; the logs are those of the last."""

    def scanned(fields: Fields, batches: Any) -> tuple[Fields, Logs]:
        _batches.check_leading_axis(batches, length)
        fields, logs = jax.lax.scan(run, fields, batches)
        return fields, jax.tree.map(lambda values: values[-1], logs)

    return scanned


class _Builder:
    """Builds what a model still lacks from its first batch, as `fit` does; later calls cost nothing."""

    def __init__(self, trained: Any, steps_per_call: int = 1):
        self._trained = trained
        self._steps = steps_per_call
        self._done = False
        self._compilation = V.compilation(trained)

    def __call__(self, batch: Any) -> None:
        if any(map(is_not, V.compilation(self._trained), self._compilation)):
            raise StructureMismatchError(
                f"model {self._trained.name!r}",
                got="a loss, optimizer or metrics that were compiled after the step was made",
                expected="those that the step was made for",
                fix="Make the step again, and move the state with state.repartition(model).",
            )
        if not self._done:
            if not V.is_built(self._trained):
                self._build(batch)
            self._done = True

    def _build(self, batch: Any) -> None:
        with jax.ensure_compile_time_eval():  # new variables must not hold values of an outer trace
            _intake.build(self._trained, _batches.one_of(batch, self._steps))
