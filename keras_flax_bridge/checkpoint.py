"""Checkpoints: strict, asynchronous, one format that Keras, NNX, Linen and plain Orbax read."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any

import keras

from keras_flax_bridge import _configs, _orbax, _restore, _saving
from keras_flax_bridge._leaves import from_disk
from keras_flax_bridge._orbax import FilePath
from keras_flax_bridge._restore import Include, Rename
from keras_flax_bridge.errors import CheckpointError


class CheckpointManager:
    """A folder of checkpoints, numbered by the state's own step.

    Saves run in the background; an error of one is raised by the next call that waits for it:
    `save`, `wait`, or the end of the ``with`` block.

    Args:
        directory: the root folder; made if it doesn't exist. Relative paths are fine.
        max_to_keep: how many of the newest steps stay; None for all.
        keep_best: a name in the logs, or ``(name, "min")`` or ``(name, "max")``: the best step by
            that value stays as well. Without a mode, losses and errors count as better when they
            are smaller, accuracies and other scores when they are larger.
        save_every: `save` writes only when a multiple of this many steps was reached.
        layout: how leaves lie on disk: ``"tree"``, one Orbax array each.

    Raises:
        CheckpointError: if the folder can't be used, or an argument is not one of the above.

    Example:
        >>> import keras, tempfile
        >>> from keras_flax_bridge import TrainState
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> model.compile("adam", "mse")
        >>> state = TrainState.from_keras(model)
        >>> with CheckpointManager(tempfile.mkdtemp(), max_to_keep=2) as manager:
        ...     manager.save(state)
        ...     manager.wait()
        ...     manager.latest_step
        True
        0
    """

    def __init__(
        self,
        directory: Any,
        *,
        max_to_keep: int | None = 3,
        keep_best: str | tuple[str, str] | None = None,
        save_every: int = 1,
        layout: str = "tree",
    ):
        _saving.require(layout == "tree", "layout", repr(layout), "'tree'")
        _saving.require(
            _saving.is_count(save_every), "save_every", repr(save_every), "a whole number of steps, 1 or more"
        )
        kept = max_to_keep is None or _saving.is_count(max_to_keep)
        _saving.require(kept, "max_to_keep", repr(max_to_keep), "None, or a whole number of steps, 1 or more")
        self.directory = _orbax.absolute(directory)
        self._best = None if keep_best is None else _saving.best_rule(keep_best)
        self._every = save_every
        self._root = _orbax.Root(self.directory, max_to_keep, self._best)
        self._last_seen: int | None = None
        self._known: set[int] = set()  # steps that this manager wrote or restored

    def save(
        self, state: Any, *, data: Any = None, logs: Mapping[str, Any] | None = None, model: Any = None
    ) -> bool:
        """Saves a state in the background, if a save is due.

        Args:
            state: a `TrainState`, this package's or Flax's; its `step` numbers the checkpoint.
            data: a Grain iterator; its position at this moment is stored.
            logs: scalars to store, others are left out; `keep_best` ranks by one of them.
            model: the Keras model whose config lies beside the weights, for `load_model`; None for
                the one that the state was taken from.

        Returns:
            True if a save was started; False if none is due, or this step is already there because
            this manager wrote or restored it.

        Raises:
            CheckpointError: if the folder holds this step or newer ones of another run, or if the
                save before failed.
            OwnershipError: if a leaf was donated.
        """
        step = _saving.step_of(state)
        if not self._is_due(step):
            return False
        self.wait()
        newest = self.latest_step
        if newest is not None and step <= newest:
            if step in self._known:
                return False
            raise _saving.stale(self.directory, step, newest)
        flat = _saving.checked(state)
        values = _saving.numbers(logs)
        self._root.save(step, flat, data, values, _saving.metadata(state, model))
        self._known.add(step)
        return True

    def _is_due(self, step: int) -> bool:
        """Whether a multiple of `save_every` lies between the step seen last and this one."""
        before = self._last_seen if self._last_seen is not None else self.latest_step
        before = step - 1 if before is None or before >= step else before
        self._last_seen = step
        return step // self._every > before // self._every or step == 0

    def restore(
        self,
        like: Any,
        *,
        step: int | None = None,
        data: Any = None,
        include: Include = None,
        rename: Rename = None,
        partial: bool = False,
    ) -> Any:
        """Restores a step into what `like` is; see `restore` for the arguments.

        Args:
            like: what comes back; see `restore`.
            step: which step; None for the newest.
            data: a Grain iterator that is set to the stored position.
            include: which leaves; see `restore`.
            rename: how stored paths are called in `like`; see `restore`.
            partial: whether what matches is enough.

        Returns:
            A tree of the structure of `like`, or `like` itself, filled, if it is a model or module.

        Raises:
            CheckpointError: if there is no such step.
            StructureMismatchError: if not every leaf has its counterpart.
        """
        self.wait()
        restored = restore(
            self.directory, like, step=step, data=data, include=include, rename=rename, partial=partial
        )
        here = self.all_steps()[-1] if step is None else step
        self._known = {known for known in self._known if known < here} | {
            here
        }  # later ones: another run's now
        return restored

    @property
    def latest_step(self) -> int | None:
        """The newest step, or None."""
        return max(self._root.steps(), default=None)

    @property
    def best_step(self) -> int | None:
        """The step with the best value of `keep_best`, or None if there is none."""
        if self._best is None:
            return None
        name, mode = self._best
        logged = self._root.logged(name)
        sign = 1 if mode == "max" else -1
        return max(logged, key=lambda step: (sign * logged[step], step), default=None)

    def all_steps(self) -> list[int]:
        """All steps in the folder, ascending."""
        return sorted(self._root.steps())

    def wait(self) -> None:
        """Returns when the last save is on disk.

        Raises:
            CheckpointError: if that save failed.
        """
        self._root.wait()

    def close(self) -> None:
        """Waits, and lets go of the folder.

        Raises:
            CheckpointError: if the last save failed.
        """
        self._root.close()

    def __enter__(self) -> CheckpointManager:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def save(path: Any, state: Any, *, model: Any = None) -> None:
    """Saves one checkpoint, without a manager; returns when it is on disk.

    Args:
        path: the folder to write; it must not exist.
        state: a `TrainState`, an `nnx.Module`, or any pytree of arrays.
        model: the Keras model whose config lies beside the weights; None for the one that the
            state was taken from.

    Raises:
        CheckpointError: if the folder exists or can't be written.
        OwnershipError: if a leaf was donated.

    Example:
        >>> import tempfile, jax.numpy as jnp
        >>> path = tempfile.mkdtemp() + "/weights"
        >>> save(path, {"a": jnp.arange(3)})
        >>> restore(path, {"a": jnp.zeros(3, int)})
        {'a': Array([0, 1, 2], dtype=int32)}
    """
    folder = _orbax.absolute(path)
    _saving.require(not folder.exists(), str(folder), "a folder that exists", "a new one")
    _orbax.save(folder, _saving.checked(state), None, _saving.metadata(state, model))


def restore(
    path: Any,
    like: Any,
    *,
    step: int | None = None,
    data: Any = None,
    include: Include = None,
    rename: Rename = None,
    partial: bool = False,
) -> Any:
    """Restores a checkpoint into what `like` is; every leaf on both sides is accounted for.

    Args:
        path: a checkpoint, or a root folder of steps.
        like: what comes back. A `TrainState`, concrete or abstract, with shardings: a state. A
            `keras.Model`, or a dict of models: filled in place and returned, optimizer and metrics
            too where it is compiled, but for metrics that saw no data yet. An `nnx.Module`: updated
            in place and returned. Linen variables, a Flax `TrainState` or any other pytree: the
            same structure.
        step: which step of a root folder; None for the newest.
        data: a Grain iterator that is set to the stored position.
        include: leaves to restore: a regular expression, or a list of path prefixes; the others
            stay as they are in `like`.
        rename: how stored paths are called in `like`: a dict, pairs of regular expression and
            replacement, or a function.
        partial: True restores what matches and logs what doesn't.

    Returns:
        A tree of the structure of `like`, or `like` itself.

    Raises:
        CheckpointError: if there is no checkpoint, or it can't be read.
        StructureMismatchError: if not every leaf has its counterpart, or none has; lists all of
            them, and nothing was assigned.

    Example:
        >>> import keras, tempfile
        >>> from keras_flax_bridge import TrainState
        >>> def build():
        ...     model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        ...     model.compile("adam", "mse")
        ...     return model
        >>> path, model = tempfile.mkdtemp() + "/one", build()
        >>> save(path, TrainState.from_keras(model))
        >>> other = restore(path, build())
        >>> bool((other.get_weights()[0] == model.get_weights()[0]).all())
        True
    """
    stored = _orbax.Stored(find(path, step))
    where = f"checkpoint {stored.path}"
    target = _restore.target_of(like, ours=bool(stored.metadata))
    pairs = _restore.plan(stored.specs, target, where, include=include, rename=rename, partial=partial)
    targets = {
        place: _restore.placement(stored.specs[place], target.wanted[path]) for path, place in pairs.items()
    }
    values = stored.load(targets)
    if data is not None:
        stored.load_data(data)
    return target.put({p: from_disk(values[place], target.wanted[p]) for p, place in pairs.items()})


def load_model(path: Any, *, step: int | None = None) -> keras.Model:
    """Rebuilds a Keras model from its stored config, with weights and optimizer in place.

    The config is read in Keras's safe mode: nothing in a checkpoint is run as code. Metrics start
    at zero. A state that optax trained gives an uncompiled model.

    Args:
        path: a checkpoint, or a root folder of steps.
        step: which step of a root folder; None for the newest.

    Returns:
        The model, compiled as it was; for a state of several models a dict of them.

    Raises:
        CheckpointError: if there is no checkpoint, or it holds no config that Keras can build.
        StructureMismatchError: if the rebuilt model has other variables than the checkpoint.

    Example:
        >>> import keras, tempfile
        >>> from keras_flax_bridge import TrainState
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> model.compile("adam", "mse")
        >>> path = tempfile.mkdtemp() + "/one"
        >>> save(path, TrainState.from_keras(model))
        >>> type(load_model(path).optimizer).__name__
        'Adam'
    """
    folder = find(path, step)
    found = _orbax.Stored(folder).metadata
    if not found.get("model"):
        raise CheckpointError(
            str(folder),
            got=f"no model config ({found.get('no_model', 'the state was not taken from a Keras model')})",
            expected="the config of a Keras model",
            fix="Build the model yourself and call restore(path, model), or save with model=.",
        )
    model = _configs.build(found["model"], folder)
    return restore(folder, model, include=["params", "non_trainable", "opt_state"])


def find(path: Any, step: int | None) -> FilePath:
    """The folder of one checkpoint, from that folder or from a root.

    Raises:
        CheckpointError: if there is none, or not that step.
    """
    folder = _orbax.absolute(path)
    if _orbax.is_checkpoint(folder):
        named = step is None or folder.name == str(step)
        _saving.require(named, str(folder), f"step={step} with the folder of one checkpoint", "a root folder")
        return folder
    steps = _orbax.steps_in(folder)
    _saving.require(bool(steps), str(folder), "no checkpoint", "a checkpoint or a root folder of steps")
    _saving.require(step is None or step in steps, str(folder), f"step={step}", f"one of the steps {steps}")
    return folder / str(steps[-1] if step is None else step)
