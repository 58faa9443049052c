"""A compiled step: a state goes into JAX as one list, comes out as one, and an interrupt loses neither."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import jax

from keras_flax_bridge import _batches, _flat, _garbage, _parts, _paths
from keras_flax_bridge._flat import Flat
from keras_flax_bridge._leaves import explained
from keras_flax_bridge.errors import BridgeError, StructureMismatchError
from keras_flax_bridge.state import TrainState

Logs = dict[str, Any]
Fields = dict[str, Any]  # some fields of a TrainState, by name
Run = Callable[[Fields, Any], tuple[Fields, Logs]]


def fields_of(state: TrainState, names: tuple[str, ...]) -> Fields:
    """Some fields of the state of one model.

    Raises:
        StructureMismatchError: if it is something else.
    """
    if not isinstance(state, TrainState):
        raise StructureMismatchError(
            "state",
            got=f"a {type(state).__name__}",
            expected="a TrainState",
            fix="Take one with TrainState.from_keras(model).",
        )
    _parts.require_single(state.parts, "step")
    return {name: getattr(state, name) for name in names}


def explain(error: BaseException, fields: Fields, batch: Any) -> None:
    """Raises an error of a step that is being handled again, with what it says of the state and the batch."""
    if isinstance(error, (TypeError, ValueError, RuntimeError)) and not isinstance(error, BridgeError):
        error.add_note(f"A step of keras_flax_bridge on this batch:\n{_batches.described(batch)}")
        _batches.check_leaves(batch)
        with explained({"state": fields, "batch": batch}):
            raise error


class Program:
    """A step on the leaves of states of one tree, which it gives back as they came.

    Attributes:
        names: the trees.
        tree: the `PyTreeDef` of a dict of them.
        call: from a step count, leaves and a batch to a step count, leaves and logs.
    """

    def __init__(self, run: Run, tree: Any, names: tuple[str, ...], **options: Any):
        self.names, self.tree = names, tree
        places = _paths.flatten(tree.unflatten(range(tree.num_leaves)))

        def train_step(step: Any, leaves: list[Any], batch: Any) -> tuple[Any, list[Any], Logs]:
            with _garbage.kept():  # a tenth of a trace
                fields, logs = run({"step": step, **tree.unflatten(leaves)}, batch)
            step = fields.pop("step")
            after = _paths.flatten(fields)  # plain dicts, whatever mappings came in
            return step, [after[path] for path in places], logs

        self.call = jax.jit(train_step, **options)


class Compiled:
    """Compiles a step once for each tree that states come with.

    Args:
        run: the pure step, from fields of a state and a batch to the same fields and logs.
        names: the trees that it takes besides ``step``.
        donate: whether it takes over the state's buffers.
        out_shardings: gives where step, leaves and logs shall lie, for a state; None to leave it to JAX.
    """

    def __init__(
        self,
        run: Run,
        names: tuple[str, ...],
        *,
        donate: bool,
        out_shardings: Callable[[TrainState], Any] | None = None,
    ):
        self._run, self._names, self._donate, self._out_shardings = run, names, donate, out_shardings
        self._programs: dict[Any, Program] = {}
        self._last: Program | None = None

    def gave(self, state: TrainState) -> bool:
        """Whether the state came out of this step, and nobody looked at its trees since."""
        flat = _flat.held(state)
        return flat is not None and flat.program is self._last

    def step(self, state: TrainState, batch: Any) -> tuple[TrainState, Logs]:
        """The state after a step, and its logs.

        If the step is interrupted when its buffers were taken over already, `state` becomes the state
        after it: the caller holds no other. So this is no `__call__`, from which Python returns through C,
        where it looks for a Ctrl-C once more.
        """
        leaves, tree = self._flattened(state)
        program = self._program(state, tree)
        done: deque = deque()
        try:
            # one call into C: a Ctrl-C comes before the buffers are taken over, or when the result is kept
            done.extend(map(program.call, (state.step,), (leaves,), (batch,)))
            step, leaves, logs = done[0]
            return _flat.after(state, step, Flat(leaves, program)), logs
        except BaseException as error:
            if done and self._donate:
                _flat.hold(state, done[0][0], Flat(done[0][1], program))
            elif not done:
                explain(error, fields_of(state, ("step", *self._names)), batch)
            raise

    def _flattened(self, state: TrainState) -> tuple[list[Any], Any]:
        flat = _flat.held(state)
        if flat is not None and flat.program.names == self._names:
            return flat.leaves, flat.program.tree
        return jax.tree.flatten(fields_of(state, self._names))

    def _program(self, state: TrainState, tree: Any) -> Program:
        program = self._last
        if program is None or program.tree is not tree:
            program = self._last = self._programs.get(tree) or self._made(state, tree)
        return program

    def _made(self, state: TrainState, tree: Any) -> Program:
        options = {"donate_argnums": (0, 1)} if self._donate else {}
        if self._out_shardings is not None:
            options["out_shardings"] = self._out_shardings(state)
        return self._programs.setdefault(tree, Program(self._run, tree, self._names, **options))
