"""Round trips: models with what a format may lose, who writes them, who reads them, and what can't come back.

One row adds a model, one function a writer or a reader; the table of docs/checkpoints.md is made of it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import keras
import numpy as np
import orbax.checkpoint as ocp

import keras_flax_bridge as kfb
from keras_flax_bridge.tree.paths import flatten_tree
from tests.support.capabilities import where
from tests.support.models import round_trips as models

RNG = np.random.default_rng(0)
VECTORS = RNG.normal(size=(4, 6)).astype("float32")
TARGETS = RNG.normal(size=(4, 1)).astype("float32")
Values = dict[tuple, Any]  # by tree and path


class Row(NamedTuple):
    """A model, or a dict of models, with a batch for it."""

    name: str
    build: Callable[[], Any]
    x: Any = VECTORS

    @property
    def batch(self) -> Any:
        return each(self.build, lambda _: (self.x, TARGETS))

    def fresh(self) -> Any:
        """A model as it stands before it is restored, with values of its own."""
        keras.utils.set_random_seed(2)
        return self.build()

    def state(self, model: Any) -> kfb.TrainState:
        return kfb.TrainState.from_keras(model, batch=self.batch)


def each(models_or_build: Any, take: Callable[[Any], Any]) -> Any:
    """What `take` gives for a model, or for each model of a dict."""
    two = models_or_build is models.two_models or isinstance(models_or_build, dict)
    given = dict.fromkeys(models.NAMES) if models_or_build is models.two_models else models_or_build
    return {name: take(model) for name, model in given.items()} if two else take(models_or_build)


ROWS = [
    Row("LoRA", models.lora),
    Row("int8", models.int8),
    Row("int8 with LoRA", models.int8_lora),
    Row("partly frozen", models.frozen),
    Row("own `compile`", models.own_compile),
    Row("stateful RNN", models.stateful_rnn, RNG.normal(size=(4, 3, 2)).astype("float32")),
    Row("arrays made in `build`", models.constants),
    Row("tokenizer beside it", models.tokenizer, RNG.integers(0, 5, (4, 3))),
    *where("MultiOptimizer", [Row("`MultiOptimizer`", models.multi_optimizer)]),
    Row("moving average of the weights", models.averaged),
    Row("float8", models.float8),
    Row("two models in one state", models.two_models),
    Row("NNX layer inside", models.nnx_inside),
]


def trained(row: Row) -> tuple[Any, kfb.TrainState]:
    """A model and its state with a value of its own in every leaf."""
    keras.utils.set_random_seed(1)
    model, rng = row.build(), np.random.default_rng(1)

    def other(leaf: Any) -> Any:
        if np.issubdtype(leaf.dtype, np.integer):  # counters among them: those of one state are equal
            return np.full(leaf.shape, 3, leaf.dtype)
        if leaf.dtype == bool:
            return leaf
        return rng.uniform(0.1, 1, leaf.shape).astype(leaf.dtype)

    state = row.state(model)
    parts = {name: jax.tree.map(other, getattr(state, name)) for name in TREES}
    state = state.replace(step=np.int32(3), **parts)
    state.assign_to(model)
    return model, state


TREES = ("params", "non_trainable", "opt_state", "metrics")


def of_state(state: Any) -> Values:
    return {
        (tree, *path): np.asarray(leaf)
        for tree in TREES
        for path, leaf in flatten_tree(getattr(state, tree)).items()
    }


# --- writers


def by_kfb(folder: Path, model: Any, state: Any) -> Path:
    kfb.save(folder / "kfb", state, model=model)
    return folder / "kfb"


def by_keras(folder: Path, model: Any, state: Any) -> Path:
    model.save(folder / "model.keras")
    return folder / "model.keras"


def by_orbax(folder: Path, model: Any, state: Any) -> Path:
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "orbax", state)
    return folder / "orbax"


KFB, KERAS, ORBAX = "`kfb.save`", "Keras's `.keras`", "plain Orbax"
WRITERS = {KFB: by_kfb, KERAS: by_keras, ORBAX: by_orbax}


# --- readers: what each gives is compared by tree and path


def as_state(row: Row, path: Path) -> Values:
    return of_state(kfb.restore(path, row.state(row.fresh())))


def abstract(row: Row, path: Path) -> Values:
    return of_state(kfb.restore(path, kfb.TrainState.abstract(row.build, batch=row.batch)))


def into_keras(row: Row, path: Path) -> Values:
    model = row.fresh()
    row.state(model)  # metrics have variables once they saw a batch
    assert kfb.restore(path, model) is model
    return of_state(row.state(model))


def into_nnx(row: Row, path: Path) -> Values:
    model = row.fresh()
    module = each(model, kfb.ToNNX)
    kfb.restore(path, module)
    keras.tree.map_structure(lambda one, into: one.assign_to(into), module, model)
    return weights(of_state(row.state(model)))


def into_linen(row: Row, path: Path) -> Values:
    def init(model: Any) -> Any:
        return kfb.ToLinen(model).init(jax.random.key(3), row.x)

    variables = kfb.restore(path, each(row.fresh(), init))
    several = row.build is models.two_models
    trees = variables.items() if several else [("", variables)]
    return {
        ("", *([model] if several else []), *name[1:]): np.asarray(leaf)  # in collections of its own
        for model, tree in trees
        for name, leaf in flatten_tree(tree).items()
    }


def loaded(row: Row, path: Path) -> Values:
    return of_state(row.state(kfb.load_model(path)))


def weights(values: Values) -> Values:
    return {name: value for name, value in values.items() if name[0] in ("params", "non_trainable")}


def unplaced(values: Values) -> Values:
    """Weights without the tree that they are in."""
    return {("", *name[1:]): value for name, value in weights(values).items()}


def unmeasured(values: Values) -> Values:
    """All but the metrics: those of a new model have no variables before its first batch."""
    return {name: value for name, value in values.items() if name[0] != "metrics"}


class Reader(NamedTuple):
    """How a file is read, and what of its values such a target has room for."""

    read: Callable[[Row, Path], Values]
    takes: Callable[[Values], Values]


LOAD = "`load_model`"
READERS = {
    "`TrainState`": Reader(as_state, dict),
    "abstract state": Reader(abstract, dict),
    "Keras model": Reader(into_keras, dict),
    "NNX module": Reader(into_nnx, weights),
    "Linen variables": Reader(into_linen, unplaced),
    LOAD: Reader(loaded, unmeasured),
}

# --- what can't be

NOT_IN_KERAS = ("seed_generator_state", "rnn_state")  # variables that Keras's file has no place for


class Refusal(NamedTuple):
    """An error in place of a result."""

    match: str
    reason: str


NO_FILE = {("two models in one state", KERAS): "a `.keras` file holds one model"}
REFUSED = {
    ("partly frozen", KERAS, LOAD): Refusal(
        "which single weights are frozen",
        "the config in the file says which layers are frozen and not which single weights, and the slots in "
        "it are those of the weights that were trained",
    ),
    (None, ORBAX, LOAD): Refusal("no model config", "Orbax stores the arrays of a state, and no config"),
}


def refusal(row: Row, writer: str, reader: str) -> Refusal | None:
    return REFUSED.get((row.name, writer, reader)) or REFUSED.get((None, writer, reader))
