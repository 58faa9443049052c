"""`train`: the loop around a train step, with Keras's progress bar and callbacks, saving and resuming."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import keras

from keras_flax_bridge.checkpoint.manager import CheckpointManager
from keras_flax_bridge.errors import StructureMismatchError
from keras_flax_bridge.state.train_state import TrainState
from keras_flax_bridge.training import class_weights, resuming
from keras_flax_bridge.training.data import Feed
from keras_flax_bridge.training.evaluating import Evaluation
from keras_flax_bridge.training.history import History
from keras_flax_bridge.training.keeping import Keeper
from keras_flax_bridge.training.running import Goal, Run
from keras_flax_bridge.training.watching import Watch
from keras_flax_bridge.tree import words
from keras_flax_bridge.tree.types import Batch, BatchIterator, Step


@words.door
def train(
    state: TrainState,
    train_step: Step[TrainState],
    data: Iterable[Batch] | BatchIterator,
    *,
    steps: int | None = None,
    epochs: int | None = None,
    eval_step: Step[TrainState] | None = None,
    eval_data: Iterable[Batch] | None = None,
    manager: CheckpointManager | None = None,
    resume: str | None = None,
    callbacks: Iterable[keras.callbacks.Callback] = (),
    class_weight: Mapping[int, float] | None = None,
    verbose: int = 1,
) -> tuple[TrainState, History]:
    """Trains until `steps` or `epochs` are reached; resumes from the manager's newest checkpoint.

    Metrics are reset at each epoch. What evaluation writes to `non_trainable`, such as seeds, is handed on to
    training, as in ``fit``. At the end an optimizer that averages the weights (``use_ema``) puts the
    averages in their place, as in ``fit``.

    Keras callbacks get every hook that ``fit`` calls, in its order, with its logs. Their ``self.model`` is
    the state's: what they read on it is current, and what they assign (a learning rate, weights, any other
    variable, ``stop_training``) takes effect at once, in the hooks of batches too. While a step runs, the
    model holds no values; when `train` returns or raises, it holds a copy of the last state. Without
    callbacks the model is left alone. Of several processes, the first one prints and runs the callbacks
    that write files.

    With a manager, its newest checkpoint is restored first, with the position in the data and what
    callbacks remember; checkpoints are written every ``save_every`` steps, and at the end. A step that the
    manager wrote or restored is not written again, but for the last one: the result takes the place of what
    was stored before the end of its epoch. SIGUSR1 asks for one more, where there is one process. On SIGTERM
    the current step finishes, a checkpoint is written, and the process exits with code 0; under
    `jax.distributed` all processes stop after the same step.

    Whatever exception ends training, in the data, a callback, the evaluation, the step, or Ctrl-C: the state
    that was passed in becomes the last whole one, and with a manager a checkpoint of it is written. There are
    two exceptions: a step that failed when it had taken over the state's buffers (out of memory), and a save
    that failed. Then the newest whole checkpoint counts, and a note of the exception names it. Of several
    processes, one alone can't save.

    Args:
        state: the initial state, if the manager has no checkpoint.
        train_step: ``train_step(state, batch) -> (state, logs)``, of `make_train_step` or your own. Nested
            logs are flattened, as in ``fit``.
        data: batches: an iterable that can be read again in each epoch, such as a list or a Grain dataset,
            or an iterator, which needs `steps`. To resume, an iterator needs `get_state` and `set_state`.
        steps: train until `state.step` is this number.
        epochs: how many passes over `data`, counted over all resumed runs.
        eval_step: ``eval_step(state, batch) -> (state, logs)``; runs over `eval_data` after each epoch.
        eval_data: batches to evaluate on; its logs come as ``val_...``.
        manager: where checkpoints are.
        resume: None to resume, unless a callback such as EarlyStopping ended the run: then its result is
            returned; ``"continue"`` to go on with such a run as well; ``"restart_epoch"`` to begin the
            epoch again, which other data than before needs.
        callbacks: Keras callbacks, except those that need ``fit``.
        class_weight: as in ``fit``: weights by class, for batches ``(x, y)``.
        verbose: 0 for no output, 1 for Keras's progress bar, 2 for a line an epoch.

    Returns:
        The state, and Keras's History of all epochs, such as ``history.history["loss"]``;
        ``history.plot()`` draws its curves.

    Raises:
        ArgumentError: if one of `eval_step` and `eval_data` is missing, or `resume`, `class_weight` or a
            callback can't be used; or, at the first save, if the manager's `keep_best` is no name in the
            logs, and none that an evaluation could bring.
        StructureMismatchError: if the wrong one or neither of `steps` and `epochs` is given, if the data
            can't be iterated over or resumed, or is not that of the run that is resumed.
        CheckpointError: if a checkpoint can't be read or written.

    Example:
        >>> import keras, numpy as np
        >>> from keras_flax_bridge import make_train_step
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
        >>> model.compile("sgd", "mse")
        >>> batches = [(np.ones((8, 4), "float32"), np.ones((8, 1), "float32"))] * 5
        >>> state = TrainState.from_keras(model)
        >>> state, history = train(state, make_train_step(model), batches, epochs=3, verbose=0)
        >>> int(state.step), len(history.history["loss"])
        (15, 3)
    """
    resuming.require(resume, manager, "manager")
    evaluation = Evaluation(eval_step, eval_data)
    feed = Feed(data, positioned=manager is not None, prepare=_weighting(class_weight, train_step))
    _require_end(feed, steps, epochs, manager)
    watch = Watch(state, callbacks, verbose=verbose, epochs=epochs, steps=feed.length)
    given, (state, memory) = state, resuming.resumed(state, feed, manager, resume)
    goal = Goal(feed, steps, epochs, int(state.step))
    if manager is not None and memory is not None:
        resuming.tell(
            resuming.was_over(manager, goal.count, feed.ended_by)
            if goal.is_over
            else resuming.went_on(manager, goal.count, feed.epoch, feed.batch),
            verbose,
        )
    keeper = Keeper(manager, feed, watch, evaluates=evaluation.comes)
    run = Run(state, train_step, goal, watch, evaluation, keeper)
    with keeper.rescuing(given, run):
        if memory is not None and goal.is_over:
            run.recall(memory)
        else:
            run.train(memory, afresh=resume == resuming.CONTINUE)
    if run.is_preempted:
        sys.exit(0)
    return run.state, watch.history


def _weighting(class_weight: Any, train_step: Any) -> Any:
    if class_weight is None:
        return iter
    class_weights.require(class_weight)
    per_call = getattr(train_step, "steps_per_call", 1)
    return partial(class_weights.weighted, class_weight=class_weight, per_call=per_call)


def _require_end(feed: Feed, steps: int | None, epochs: int | None, manager: Any) -> None:
    if steps is None and (epochs is None or feed.endless):
        raise StructureMismatchError(
            "train",
            got="neither steps nor epochs" if epochs is None else "epochs of an iterator",
            expected="steps=" if feed.endless else "steps= or epochs=",
            fix="An iterator has no epochs: pass steps=, or an iterable that can be read again.",
        )
    if manager is not None and not feed.restorable:
        raise StructureMismatchError(
            "data",
            got="an iterator without a position",
            expected="one with get_state and set_state, for the manager to resume",
            fix="Pass a list, a Grain dataset or iterator, or train without manager=.",
        )
