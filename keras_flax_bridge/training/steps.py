"""Train, eval and predict steps: Keras's own step as a pure function of a `TrainState`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import keras
from jax.sharding import Mesh, PartitionSpec

from keras_flax_bridge.errors import StructureMismatchError
from keras_flax_bridge.optimizers.step_interface import require_model, training_model
from keras_flax_bridge.sharding.rules import Rules
from keras_flax_bridge.state.train_state import TrainState
from keras_flax_bridge.training.compiled import Runner
from keras_flax_bridge.training.keras_step import KerasStep, Logs
from keras_flax_bridge.training.kinds import EVALUATE, PREDICT, PREDICT_ON, TRAIN
from keras_flax_bridge.training.on_mesh import Meshed
from keras_flax_bridge.training.remat import Remat, checked
from keras_flax_bridge.tree import words
from keras_flax_bridge.tree.types import Batch, GivenOptimizer, Loss, Metrics, PyTree, Step

F = TypeVar("F", bound=Callable[..., Any])


@words.door
def make_train_step(
    model: keras.Model,
    *,
    loss: Loss | None = None,
    optimizer: GivenOptimizer | None = None,
    metrics: Metrics | None = None,
    jit: bool = True,
    donate: bool = True,
    steps_per_call: int = 1,
    remat: Remat = None,
    mesh: Mesh | None = None,
    rules: Rules = (),
    batch_spec: PartitionSpec | None = None,
) -> Step[TrainState]:
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
        donate: whether the compiled step reuses the buffers of the state it is given.
        steps_per_call: for k > 1, batch leaves carry a leading axis of size k and the k steps run
            as one compiled `lax.scan`; the logs are those after the last.
        remat: what the backward pass computes again, in place of keeping it: True for the whole forward pass;
            a list of regular expressions, each for the layers whose structural key, or its last name, matches
            as a whole; or a dict of them with a policy of `jax.checkpoint_policies` for each, or None.
        mesh: the devices to run on; the state is placed there at the first call and keeps its sharding.
        rules: how the state is sharded, as in `shardings_for`; none to replicate all of it.
        batch_spec: how a batch is split over the mesh; None for its rows over the first axis. Rows need not
            divide over the devices. With several processes each passes its own rows, as numpy arrays, which
            must divide.

    Returns:
        The step. Its logs are scalars, the loss and every metric's running result, as in ``fit``; those of
        nested dicts too, by their own names.

    A batch may be whatever ``fit`` trains on: of any size after the first, with arrays of different first
    axes, tensors of TensorFlow and torch. Keras alone decides whether it fits the model. Each further batch
    shape that the step is compiled for is logged by the logger ``keras_flax_bridge``, the third as a warning.

    Ctrl-C loses nothing: the state that was passed to the interrupted step stays usable, as it was
    either before or after the step.

    Raises:
        NotBuiltError: if the model is uncompiled and there is no optimizer.
        StructureMismatchError: at a call, if the state is not one of this model, Keras refuses the batch,
            the model was compiled again, `remat` names no layer, or the model's code reads a variable that no
            tree of the state holds.
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
    trained = training_model(model, loss=loss, optimizer=optimizer, metrics=metrics)
    _require_count(steps_per_call)
    step = KerasStep(TRAIN, trained, steps_per_call, checked(remat))
    runner = _runner(step, jit, mesh, rules, batch_spec, donate=donate)

    def train_step(
        state: TrainState = _LACKING, batch: Batch = _LACKING, *others: Any, **unknown: Any
    ) -> tuple[TrainState, Logs]:
        if others or unknown or batch is _LACKING or state is _LACKING:
            raise _misfit(train_step, {"state": state, "batch": batch}, others, unknown)
        return runner.step(state, batch)

    vars(train_step)["steps_per_call"] = steps_per_call  # for loops that count steps, and prepare batches
    return _signed(train_step)


@words.door
def make_eval_step(
    model: keras.Model,
    *,
    loss: Loss | None = None,
    metrics: Metrics | None = None,
    jit: bool = True,
    mesh: Mesh | None = None,
    rules: Rules = (),
    batch_spec: PartitionSpec | None = None,
) -> Step[TrainState]:
    """Makes ``eval_step(state, batch) -> (state, logs)``.

    The step is the model's own ``test_step``. Its metrics accumulate in `state.eval_metrics`, so
    those of training are never touched; `state.reset_metrics` starts both again.

    Args:
        model: a compiled model, or an uncompiled one together with `loss`.
        loss: as in ``compile``; None for the model's own.
        metrics: as in ``compile``; None for the model's own.
        jit: False gives the pure function.
        mesh: the devices to run on, as in `make_train_step`.
        rules: how the state is sharded over the mesh, as in `make_train_step`.
        batch_spec: how a batch is split over the mesh, as in `make_train_step`.

    Returns:
        The step. It donates nothing; parameters and slots pass through.

    Raises:
        StructureMismatchError: at the first call, if the state is not one of this model, or the
            batch doesn't match the model.

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
    trained = training_model(model, loss=loss, optimizer=placeholder, metrics=metrics)
    runner = _runner(KerasStep(EVALUATE, trained), jit, mesh, rules, batch_spec)

    def eval_step(
        state: TrainState = _LACKING, batch: Batch = _LACKING, *others: Any, **unknown: Any
    ) -> tuple[TrainState, Logs]:
        if others or unknown or batch is _LACKING or state is _LACKING:
            raise _misfit(eval_step, {"state": state, "batch": batch}, others, unknown)
        return runner.step(state, batch)

    return _signed(eval_step)


@words.door
def make_predict_step(
    model: keras.Model,
    *,
    return_state: bool = False,
    jit: bool = True,
    mesh: Mesh | None = None,
    rules: Rules = (),
    batch_spec: PartitionSpec | None = None,
) -> Callable[[TrainState, Batch], PyTree]:
    """Makes ``predict_step(state, x) -> outputs``.

    Args:
        model: a built model; it need not be compiled.
        return_state: True for ``predict_step(state, x) -> (outputs, state)``: a model that assigns variables
            in inference, such as seeds of a sampling layer or the states of a stateful RNN, needs it.
        jit: False gives the pure function.
        mesh: the devices to run on, as in `make_train_step`.
        rules: how the state is sharded over the mesh, as in `make_train_step`.
        batch_spec: how `x` is split over the mesh, as a batch in `make_train_step`.

    Returns:
        The step. It returns the result of the model's own ``predict_step``, Keras's or an overridden one; by
        default the outputs in inference mode. `x` is the input of the model. On a mesh the outputs
        are sharded as XLA chooses, by rows as a rule.

    Raises:
        StructureMismatchError: if `model` is not a Keras model; at the first call, if the state is not
            one of this model, or if the model assigns variables and `return_state` is False.

    Example:
        >>> import keras, numpy as np
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1, kernel_initializer="ones")])
        >>> model.compile("sgd", "mse")
        >>> make_predict_step(model)(TrainState.from_keras(model), np.ones((1, 4))).tolist()
        [[4.0]]
    """
    require_model(model)
    kind = PREDICT_ON if return_state else PREDICT
    runner = _runner(KerasStep(kind, model), jit, mesh, rules, batch_spec)

    def predict_step(
        state: TrainState = _LACKING, x: PyTree = _LACKING, *others: Any, **unknown: Any
    ) -> PyTree:
        if others or unknown or x is _LACKING or state is _LACKING:
            raise _misfit(predict_step, {"state": state, "x": x}, others, unknown)
        after, outputs = runner.step(state, x)
        return (outputs, after) if return_state else outputs

    return _signed(predict_step)


# A decorator, as other public functions have, would add a frame, in which a Ctrl-C could lose the new state.
_LACKING: Any = object()  # in place of an argument that was not passed


def _misfit(
    step: Callable[..., Any], given: dict[str, Any], others: tuple[Any, ...], unknown: dict[str, Any]
) -> Exception:
    """The error for a call of a step with other arguments than its two."""
    passed = {name: value for name, value in given.items() if value is not _LACKING}
    args, kwargs = ((*given.values(), *others), unknown) if others else ((), {**passed, **unknown})
    wrong = words.misfit(step, step.__name__, args, kwargs)
    assert wrong is not None
    return wrong


def _signed(step: F) -> F:
    """A step whose signature shows its two arguments, both of which are needed."""
    parameters = list(inspect.signature(step).parameters.values())[:2]
    own = [parameter.replace(default=inspect.Parameter.empty) for parameter in parameters]
    step.__signature__ = inspect.Signature(own)  # type: ignore[attr-defined]
    return step


def _runner(
    step: KerasStep,
    jit: bool,
    mesh: Mesh | None,
    rules: Rules,
    batch_spec: PartitionSpec | None,
    *,
    donate: bool = False,
) -> Runner:
    if mesh is None:
        return Runner(step, jit=jit, donate=donate)
    _require_jit(jit)
    placing = Meshed(step.kind, mesh, rules, batch_spec, steps_per_call=step.steps_per_call)
    return Runner(step, jit=jit, donate=donate, mesh=placing)


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
