"""The trees of a state: a table of their names and properties."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

from flax import struct

from keras_flax_bridge.keras_internals import BATCH_STAT, LINEN_COLLECTIONS, OTHER, PARAM, SEED
from keras_flax_bridge.tree.paths import Path
from keras_flax_bridge.tree.types import PyTree

SLOT, METRIC, STEP = "slot", "metric", "step"
BY_RULES, WITH_WEIGHTS, REPLICATED = "by rules", "with weights", "replicated"


class Follower(NamedTuple):
    """The update of a tree, such as an average, that follows another tree leaf by leaf without Keras.

    Attributes:
        of: the tree that it follows, `params` or `non_trainable`; its paths are the same.
        start: a function of that tree that returns the initial value.
        update: ``update(own, of, step)`` returns the value after a train step, from the previous value,
            the other tree and the step count after the step. Shapes and dtypes must not change.
    """

    of: str
    start: Callable[[PyTree], PyTree]
    update: Callable[[PyTree, PyTree, Any], PyTree]


class Tree(NamedTuple):
    """One tree of a `TrainState`.

    Attributes:
        name: the field of the state, and the first name in the paths of its leaves.
        kind: what its leaves are, in the word of `report`.
        sharding: `BY_RULES` (rules match its paths), `WITH_WEIGHTS` (a leaf is sharded as the weight that it
            belongs to) or `REPLICATED`.
        variables: the collection of a model's variables that it holds values of; None if of none.
        called: whether the model is called on it, so that every step reads it.
        trained: whether a train step takes it and gives it back.
        evaluated: whether an eval step takes it and gives it back.
        saved: whether checkpoints hold it.
        kinds: the kinds of some leaves where they differ from `kind`, by how the leaf's own name begins.
        follows: for a tree without `variables` that is trained, what a train step does with it.
    """

    name: str
    kind: str
    sharding: str = BY_RULES
    variables: str | None = None
    called: bool = False
    trained: bool = False
    evaluated: bool = False
    saved: bool = True
    kinds: tuple[tuple[str, str], ...] = ()
    follows: Follower | None = None


_KINDS = (("seed_generator_state", SEED), ("moving_", BATCH_STAT))
_TABLE = (
    Tree("step", STEP, REPLICATED),  # a count: a train step takes it beside the trees
    Tree("params", PARAM, variables="params", called=True, trained=True),
    Tree(
        "non_trainable",
        OTHER,
        variables="non_trainable",
        called=True,
        trained=True,
        evaluated=True,
        kinds=_KINDS,
    ),
    Tree("opt_state", SLOT, WITH_WEIGHTS, variables="opt_state", trained=True),
    Tree("metrics", METRIC, REPLICATED, variables="metrics", trained=True),
    Tree("eval_metrics", METRIC, REPLICATED, variables="metrics", evaluated=True),
    Tree(  # seeds and variables of the objects that `compile` was given
        "compiled",
        OTHER,
        REPLICATED,
        variables="compiled",
        trained=True,
        evaluated=True,
        kinds=_KINDS,
    ),
)
TREES = {tree.name: tree for tree in _TABLE}


def names(chosen: Callable[[Tree], object] = bool) -> tuple[str, ...]:
    """The names of all trees, or of the `chosen` ones, in table order.

    >>> names(lambda tree: tree.evaluated)
    ('non_trainable', 'eval_metrics', 'compiled')
    """
    return tuple(tree.name for tree in TREES.values() if chosen(tree))


WEIGHTS = names(lambda tree: tree.called)
# collections of Linen and `ToLinen` for the leaves of `non_trainable`, each with its kind
LINEN = {name: kind for kind, name in reversed(LINEN_COLLECTIONS.items()) if name not in TREES}
COLLECTIONS = frozenset({*WEIGHTS, *LINEN})


def kind_of(path: Path) -> str:
    """The kind of a leaf according to its path; ``""`` if it is unknown.

    >>> kind_of(("non_trainable", "dropout", "seed_generator_state"))
    'seed'
    """
    tree = TREES.get(path[0])
    if tree is None:
        return LINEN.get(path[0], "")
    return next((kind for start, kind in tree.kinds if path[-1].startswith(start)), tree.kind)


def place_of(collection: str) -> int:
    """The position of a tree in reports, in table order; Linen collections are next to the state's own trees.

    >>> sorted(["opt_state", "batch_stats", "other", "params"], key=place_of)
    ['params', 'batch_stats', 'opt_state', 'other']
    """
    order = list(TREES)
    name = "non_trainable" if collection in LINEN else collection
    return order.index(name) if name in order else len(order)


def sharding_of(path: Path) -> str:
    """The sharding of the tree of a leaf; leaves outside of the trees of a state are treated as weights.

    >>> sharding_of(("opt_state", "momentums", "dense", "kernel")), sharding_of(("batch_stats", "norm"))
    ('with weights', 'by rules')
    """
    return TREES[path[0]].sharding if path[0] in TREES else BY_RULES


def followed_by(path: Path) -> str:
    """The tree of the weights that a leaf belongs to: `params`, if its own tree follows no other.

    >>> followed_by(("opt_state", "momentums", "dense", "kernel"))
    'params'
    """
    tree = TREES.get(path[0])
    return tree.follows.of if tree and tree.follows else "params"


class DeclaredTrees:
    """Gives a class of states a field for each tree of the table; without a value it is an empty dict."""

    def __init_subclass__(cls, **kwargs: Any):
        bases = (name for base in cls.__mro__[1:] for name in field_names(base))
        declared = {*cls.__annotations__, *bases}
        for name in TREES:
            if name not in declared:
                cls.__annotations__[name] = PyTree
                setattr(cls, name, struct.field(default_factory=dict))
        super().__init_subclass__(**kwargs)


def field_names(kind: Any) -> tuple[str, ...]:
    """The fields of a class of states, or of a state."""
    return tuple(field.name for field in dataclasses.fields(kind)) if dataclasses.is_dataclass(kind) else ()


def of_models() -> tuple[str, ...]:
    """The trees that have one subtree for each model in a state of several: all but the count of steps."""
    return names(lambda tree: tree.kind != STEP)


def of_metrics() -> tuple[str, ...]:
    """The trees of values of metrics."""
    return names(lambda tree: tree.variables == "metrics")


def of_state(state: Any, wanted: tuple[str, ...]) -> dict[str, PyTree]:
    """Some fields of a state by name, as far as its class has them."""
    own = field_names(state)
    return {name: getattr(state, name) for name in wanted if name in own}


def without_unsaved(state: Any) -> Any:
    """A state without the trees that checkpoints omit; other values unchanged."""
    left_out = names(lambda tree: not tree.saved) if isinstance(state, DeclaredTrees) else ()
    return state.replace(**{name: {} for name in of_state(state, left_out)}) if left_out else state
