"""Runs a step on the flat leaves of states; an interrupt loses neither input nor output."""

from __future__ import annotations

from collections import deque
from typing import Any

import jax

from keras_flax_bridge.keras_internals.batch_arrays import as_arrays
from keras_flax_bridge.state import gc_pause, lazy_trees
from keras_flax_bridge.state.lazy_trees import Form, Leaves
from keras_flax_bridge.state.train_state import TrainState
from keras_flax_bridge.training.batch_shapes import BatchShapes
from keras_flax_bridge.training.keras_step import KerasStep, fields_of
from keras_flax_bridge.training.on_mesh import Meshed
from keras_flax_bridge.tree.paths import Path, flatten_tree


class Program:
    """A step on the leaves of states of one tree.

    Attributes:
        form: of these states.
        call: maps a count, leaves and a batch to a count, the updated leaves, and logs.
    """

    def __init__(
        self,
        step: KerasStep,
        tree: Any,
        shapes: BatchShapes,
        *,
        jit: bool,
        mesh: Meshed | None,
        options: dict[str, Any],
    ):
        self.form = Form(step.kind.takes, tree)
        places: dict[str, dict[Path, int]] = {}
        for path, place in flatten_tree(tree.unflatten(range(tree.num_leaves))).items():
            places.setdefault(path[0], {})[path[1:]] = place
        given = [place for name in sorted(step.kind.gives) for place in places.get(name, {}).values()]
        self._places = None if step.kind.trains else given

        def run(count: Any, leaves: list[Any], batch: Any) -> tuple[Any, list[Any], Any]:
            with gc_pause.gc_paused():  # a tenth of a trace
                count, after, logs = step(
                    places, count, leaves, batch if mesh is None else mesh.spread(batch)
                )
            if jit:  # this is a trace
                shapes.compiled(batch)
            return count, [after[place] for place in given], logs

        self.call = jax.jit(run, **options) if jit else run

    def after(self, state: TrainState, count: Any, leaves: list[Any], new: list[Any]) -> TrainState:
        """The state after a step that returned the count and the new leaves of some trees."""
        if self._places is None:
            return lazy_trees.next_state(state, count, Leaves(new, self.form))
        if not new:
            return state
        leaves = list(leaves)
        for place, leaf in zip(self._places, new, strict=True):
            leaves[place] = leaf
        return lazy_trees.next_state(state, state.step, Leaves(leaves, self.form))


class Runner:
    """Runs a step, compiled once for each tree structure of states.

    Args:
        step: the step.
        jit: whether it is compiled.
        donate: whether it reuses the state's buffers.
        mesh: places states and batches before the step; None to leave them in place.
    """

    def __init__(self, step: KerasStep, *, jit: bool, donate: bool = False, mesh: Meshed | None = None):
        self._step, self._jit, self._donate, self._mesh = step, jit, donate and jit, mesh
        self._shapes = BatchShapes(step.kind.method)
        self._converts = False  # whether a batch had leaves that jax doesn't take
        self._programs: dict[Any, Program] = {}
        self._last: Program | None = None

    def step(self, state: TrainState, batch: Any) -> tuple[TrainState, Any]:
        """The state after a step, and its logs or outputs.

        If the step is interrupted when its buffers were taken over already, `state` becomes the state
        after it: the caller holds no other. So this is no `__call__`, from which Python returns through C,
        where it looks for a Ctrl-C once more.
        """
        if self._converts:
            batch = as_arrays(batch)
        self._step.prepare(batch)
        if self._mesh is not None:
            state, batch = self._mesh.state(state, known=self._is_output(state)), self._mesh.batch(batch)
        leaves, tree = self._flattened(state)
        program = self._program(state, tree)
        count = state.step if self._step.kind.trains else None
        done: deque[Any] = deque()
        try:
            # one call into C: a Ctrl-C comes before the buffers are taken over, or when the result is kept
            done.extend(map(program.call, (count,), (leaves,), (batch,)))
            count, new, logs = done[0]
            return program.after(state, count, leaves, new), logs
        except BaseException as error:
            if done and self._donate:
                lazy_trees.set_leaves(state, done[0][0], Leaves(done[0][1], program.form))
            elif not done and self._step.takes_up(error):
                return self._retaken(state, batch)
            elif not done and self._is_foreign(error, batch):
                return self.step(state, batch)
            elif not done:
                self._step.explain(error, fields_of(state, ("step", *self._step.names)), batch)
            raise

    def _retaken(self, state: TrainState, batch: Any) -> tuple[TrainState, Any]:
        """The step again, which now takes more trees; the first trace found that it reads them."""
        self._programs.clear()
        self._last = None
        if self._mesh is not None:
            self._mesh.take(self._step.kind)
        return self.step(state, batch)

    def _is_foreign(self, error: BaseException, batch: Any) -> bool:
        """Whether jax refused tensors of other libraries; from now on batches are converted."""
        known = self._converts or not isinstance(error, (TypeError, ValueError))
        self._converts |= not known and as_arrays(batch) is not batch
        return self._converts and not known

    def _is_output(self, state: TrainState) -> bool:
        """Whether the state came out of this step, and its trees were not accessed since."""
        lazy = lazy_trees.lazy_leaves(state)
        return lazy is not None and self._last is not None and lazy.form is self._last.form

    def _flattened(self, state: TrainState) -> tuple[list[Any], Any]:
        lazy = lazy_trees.lazy_leaves(state)
        names = self._step.names
        if lazy is not None and lazy.form.names == names:
            return lazy.leaves, lazy.form.tree
        return jax.tree.flatten(fields_of(state, names))

    def _program(self, state: TrainState, tree: Any) -> Program:
        program = self._last
        if program is None or (program.form.tree is not tree and program.form.tree != tree):
            program = self._last = self._programs.get(tree) or self._made(state, tree)
        return program

    def _made(self, state: TrainState, tree: Any) -> Program:
        options: dict[str, Any] = {"donate_argnums": (0, 1)} if self._donate else {}
        if self._mesh is not None:
            options["out_shardings"] = self._mesh.out_shardings(state)
        program = Program(self._step, tree, self._shapes, jit=self._jit, mesh=self._mesh, options=options)
        return self._programs.setdefault(tree, program)
