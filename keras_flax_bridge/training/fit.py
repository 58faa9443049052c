"""`fit`, `evaluate` and `predict` with Keras's arguments and numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack

import keras
from jax.sharding import Mesh

from keras_flax_bridge.checkpoint.manager import CheckpointManager
from keras_flax_bridge.sharding.rules import Rules
from keras_flax_bridge.training import resuming
from keras_flax_bridge.training.fit_hooks import FitHooks, fitted, functions
from keras_flax_bridge.training.fit_on_mesh import placement
from keras_flax_bridge.training.kinds import EVALUATE, PREDICT
from keras_flax_bridge.training.recorded_fit import RecordedFit, recorded
from keras_flax_bridge.tree import words
from keras_flax_bridge.tree.types import Callbacks, Data, PathLike, PyTree


@words.door
def fit(
    model: keras.Model,
    x: Data = None,
    y: Data = None,
    batch_size: int | None = None,
    epochs: int = 1,
    verbose: int | str = "auto",
    callbacks: Callbacks | None = None,
    validation_split: float = 0.0,
    validation_data: Data = None,
    shuffle: bool | str = True,
    class_weight: Mapping[int, float] | None = None,
    sample_weight: Data = None,
    initial_epoch: int = 0,
    steps_per_epoch: int | None = None,
    validation_steps: int | None = None,
    validation_batch_size: int | None = None,
    validation_freq: int | Sequence[int] = 1,
    *,
    checkpoint: CheckpointManager | PathLike | None = None,
    resume: str | None = None,
    mesh: Mesh | None = None,
    rules: Rules | None = None,
) -> keras.callbacks.History:
    """Trains a model in place as ``model.fit`` does, with its arguments, its numbers and less time.

    Replace ``model.fit(...)`` by ``kfb.fit(model, ...)``: all data, callbacks and options of Keras's
    `fit` keep their meaning, and history, weights and the files of callbacks are equal bit for bit.
    Keras's own loop runs; batch hooks are called at once and only where a callback has one, in place of a
    thread pool for each batch.

    With `checkpoint` no run is lost. A folder gets a checkpoint at the end of each epoch, on SIGTERM (the
    process then exits with code 0), on SIGUSR1 and when an exception ends the run; a manager saves by its
    ``save_every`` and at the end. Run the script again, and `fit` goes on where it stopped: weights,
    slots, seeds, metrics in the middle of an epoch, the order of shuffled data, what callbacks remember
    and the history. Each `fit` on one folder in a script is a phase: those that came to their end are not
    trained again, and leave their result in the model. Data that can't be set to a position is reported
    when the run begins.

    If an exception ends it, the model holds the last whole step. Two are different: a step that failed
    when it had taken over the buffers of the state, such as for lack of memory, and a save that failed.
    Then the newest whole checkpoint counts, and a note of the exception names its step.

    Args:
        model: a compiled model.
        x: the data: arrays, a dict or list of them, a ``tf.data.Dataset``, a ``PyDataset``, a torch
            ``DataLoader``, a Grain dataset, a generator.
        y: the targets, where `x` doesn't hold them.
        batch_size: rows of a batch of arrays; None for 32.
        epochs: train until this epoch, counted over all runs of a phase.
        verbose: ``"auto"``, 0, 1 or 2, as in Keras.
        callbacks: Keras callbacks, or a ``keras.callbacks.CallbackList``.
        validation_split: the share of arrays that is held out.
        validation_data: data to evaluate on after an epoch.
        shuffle: whether arrays and PyDatasets are shuffled in each epoch.
        class_weight: the weight of each class.
        sample_weight: the weight of each row.
        initial_epoch: the epoch to start at, where nothing is resumed.
        steps_per_epoch: batches of an epoch; None for all.
        validation_steps: batches to evaluate on; None for all.
        validation_batch_size: rows of such a batch; None for `batch_size`.
        validation_freq: evaluate after every so many epochs, or after those of a list.
        checkpoint: a folder, or a `CheckpointManager`.
        resume: None goes on with a run that was interrupted. ``"continue"`` also trains on where
            EarlyStopping or TerminateOnNaN had ended a run. ``"restart_epoch"`` begins the epoch again
            that was interrupted, with whatever data is given.
        mesh: the devices to train on; the rows of a batch are split over its first axis. The variables of
            the model stay there afterwards.
        rules: how variables are sharded over the mesh, as in `shardings_for`; None replicates all.

    Returns:
        Keras's History, of all runs of this phase.

    Raises:
        ValueError: what Keras raises for wrong arguments.
        ArgumentError: if a run is resumed with another loader, batch size or number of batches; or if
            `resume` is none of the above, or `rules` come without a mesh; or, at the first save, if the
            manager's `keep_best` is no name in the logs, and none that validation could bring.
        CheckpointError: if a checkpoint can't be read or written.
        StructureMismatchError: if the checkpoint is of another model or optimizer.

    Example:
        >>> import keras, numpy as np, tempfile
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
        >>> model.compile("adam", "mse")
        >>> x, y, folder = np.ones((12, 4)), np.ones((12, 1)), tempfile.mkdtemp()
        >>> history = fit(model, x, y, batch_size=4, epochs=2, verbose=0, checkpoint=folder)
        >>> history.epoch, CheckpointManager(folder).all_steps()
        ([0, 1], [3, 6])
    """
    given = {name: value for name, value in locals().items() if name in _ARGUMENTS}
    resuming.require(resume, checkpoint, "checkpoint")
    hooks, where = FitHooks(model, given), placement(mesh, rules)
    if checkpoint is None:
        return fitted(model, given, hooks, where)
    with ExitStack() as stack:
        if isinstance(checkpoint, CheckpointManager):
            return recorded(given, RecordedFit(model, hooks, checkpoint, resume, each_epoch=False), where)
        manager = stack.enter_context(CheckpointManager(checkpoint))
        return recorded(given, RecordedFit(model, hooks, manager, resume, each_epoch=True), where)


_ARGUMENTS = frozenset(
    [
        "x",
        "y",
        "batch_size",
        "epochs",
        "verbose",
        "callbacks",
        "validation_split",
        "validation_data",
        "shuffle",
        "class_weight",
        "sample_weight",
        "initial_epoch",
        "steps_per_epoch",
        "validation_steps",
        "validation_batch_size",
        "validation_freq",
    ]
)


@words.door
def evaluate(
    model: keras.Model,
    x: Data = None,
    y: Data = None,
    batch_size: int | None = None,
    verbose: int | str = "auto",
    sample_weight: Data = None,
    steps: int | None = None,
    callbacks: Callbacks | None = None,
    return_dict: bool = False,
    *,
    mesh: Mesh | None = None,
    rules: Rules | None = None,
) -> float | list[float] | dict[str, float]:
    """Evaluates a model as ``model.evaluate`` does, with its arguments and its numbers.

    Args:
        model: a compiled model.
        x: the data, as in `fit`.
        y: the targets, where `x` doesn't hold them.
        batch_size: rows of a batch of arrays; None for 32.
        verbose: ``"auto"``, 0, 1 or 2, as in Keras.
        sample_weight: the weight of each row.
        steps: batches to evaluate on; None for all.
        callbacks: Keras callbacks.
        return_dict: whether the result is a dict by name.
        mesh: the devices to evaluate on, as in `fit`.
        rules: how variables are sharded over the mesh, as in `fit`.

    Returns:
        The loss and the metrics: a number, a list, or a dict.

    Raises:
        ValueError: what Keras raises for wrong arguments.

    Example:
        >>> import keras, numpy as np
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1, kernel_initializer="ones")])
        >>> model.compile("sgd", "mse")
        >>> evaluate(model, np.ones((8, 4)), np.zeros((8, 1)), verbose=0)
        16.0
    """
    given = {name: value for name, value in locals().items() if name in _OF_EVALUATE}
    with functions(model, placement(mesh, rules), EVALUATE):
        result: float | list[float] | dict[str, float] = model.evaluate(**given)
    return result


_OF_EVALUATE = frozenset(
    ["x", "y", "batch_size", "verbose", "sample_weight", "steps", "callbacks", "return_dict"]
)


@words.door
def predict(
    model: keras.Model,
    x: Data,
    batch_size: int | None = None,
    verbose: int | str = "auto",
    steps: int | None = None,
    callbacks: Callbacks | None = None,
    *,
    mesh: Mesh | None = None,
    rules: Rules | None = None,
) -> PyTree:
    """Predicts as ``model.predict`` does, with its arguments and its numbers.

    Args:
        model: a model; it need not be compiled.
        x: the data, as in `fit`.
        batch_size: rows of a batch of arrays; None for 32.
        verbose: ``"auto"``, 0, 1 or 2, as in Keras.
        steps: batches to predict; None for all.
        callbacks: Keras callbacks.
        mesh: the devices to predict on, as in `fit`.
        rules: how variables are sharded over the mesh, as in `fit`.

    Returns:
        The outputs: numpy arrays in the structure of the model's outputs.

    Raises:
        ValueError: what Keras raises for wrong arguments.

    Example:
        >>> import keras, numpy as np
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1, kernel_initializer="ones")])
        >>> predict(model, np.ones((2, 4)), verbose=0).tolist()
        [[4.0], [4.0]]
    """
    given = {name: value for name, value in locals().items() if name in _OF_PREDICT}
    where = placement(mesh, rules)
    if where is None:
        return model.predict(**given)
    with where.functions(model, PREDICT):
        return model.predict(**given)


_OF_PREDICT = frozenset(["x", "batch_size", "verbose", "steps", "callbacks"])
