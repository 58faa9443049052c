"""Things of NNX that a checkpoint holds: one entry adds one to `tests/checkpoint/test_nnx.py`."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen, nnx, struct


class Bag(nnx.Module):
    """An array that is no variable."""

    def __init__(self):
        self.plain = nnx.data(jnp.zeros(4))


# `nnx.state` of older Flax leaves out abstract arrays that are no variables
LISTS_ABSTRACT_ARRAYS = bool(nnx.to_flat_state(nnx.state(nnx.eval_shape(Bag))))


class Net(nnx.Module):
    """A weight at two places, a key that counts, a list, and leaves that are no variables."""

    def __init__(self, seed):
        rngs = nnx.Rngs(seed)
        self.dense = nnx.Linear(
            8, 2, kernel_init=lambda key, shape, dtype: jnp.full(shape, seed + 0.5, dtype), rngs=rngs
        )
        self.drop, self.norm = nnx.Dropout(0.5, rngs=rngs), nnx.BatchStat(jnp.full(8, seed + 1.0))
        self.first = nnx.Param(jnp.arange(8.0) + seed)
        self.tied = self.first
        self.layers = nnx.List([nnx.Param(jnp.full(2, seed - 1.0)), nnx.Cache({"k": jnp.full(3, seed)})])
        self.number = nnx.data(seed)
        if LISTS_ABSTRACT_ARRAYS:
            self.plain = nnx.data(jnp.full(4, seed, jnp.int32))


class Holder(nnx.Pytree):
    """Leaves inside containers, one of which can't be changed."""

    def __init__(self, seed):
        self.net = Net(seed)
        self.held = nnx.data({"moments": Point(jnp.int32(seed), jnp.full(2, seed)), "weight": self.net.first})


class Point(NamedTuple):
    """A named tuple."""

    a: Any
    b: Any


class Bare(nnx.Pytree):
    """No module; it knows its parent, as a graph may."""

    def __init__(self, seed):
        self.child = Child(self, seed)


class Child(nnx.Pytree, pytree=False):
    """No tree of jax either."""

    def __init__(self, parent, seed):
        self.parent, self.weight = parent, nnx.Variable(jnp.full(8, seed + 2.0))


@struct.dataclass
class Registered:
    """A dataclass that jax opens."""

    step: Any
    model: Any


class Tied(nnx.Module):
    """One weight at two places."""

    def __init__(self, seed):
        self.first = self.second = nnx.Param(jnp.full(8, seed))


@dataclasses.dataclass(frozen=True)
class Plain:
    """A dataclass that jax doesn't know."""

    model: Any
    step: Any
    twice: Any = dataclasses.field(init=False, default=None)


def optimizer(seed, net=None):
    made = nnx.Optimizer(net or Net(seed), optax.adam(0.1), wrt=nnx.Param)
    for variable in jax.tree.leaves(made.opt_state, is_leaf=lambda node: isinstance(node, nnx.Variable)):
        variable.set_value(variable.get_value() + jnp.asarray(seed, variable.get_value().dtype))
    made.step.set_value(jnp.uint32(seed + 3))
    return made


def both(seed):
    net = Net(seed)
    return net, optimizer(seed, net)


def metrics(seed):
    made = nnx.MultiMetric(loss=nnx.metrics.Average("loss"), acc=nnx.metrics.Welford())
    made.update(loss=jnp.float32(seed), values=jnp.full(2, seed + 1.0))
    return made


class Row(NamedTuple):
    """A thing, made differently for every seed.

    Attributes:
        name: what it is.
        make: makes it.
        in_place: what in it is filled in place, which is the thing itself unless another part is named.
        is_value: whether nothing in it is.
        orbax: the forms in which plain Orbax writes it, each a function of the thing.
        step: the number that the manager finds in what was made with seed 1; None if there is none.
        abstract: whether `nnx.state` of its abstract form has all of its leaves.
        fast: whether it is in the fast tests too.
    """

    name: str
    make: Callable[[int], Any]
    in_place: Callable[[Any], Any] = lambda thing: [thing]
    is_value: bool = False
    orbax: tuple[Callable[[Any], Any], ...] = (nnx.state, lambda thing: nnx.to_pure_dict(nnx.state(thing)))
    step: int | None = None
    abstract: bool = True
    fast: bool = False


AS_IT_IS = (lambda thing: thing,)
STATES = (lambda thing: {name: nnx.state(part) for name, part in thing.items()}, *Row("", Net).orbax)
ROWS = [
    Row("module", Net, fast=True),
    Row("optimizer", optimizer, step=4, fast=True),
    Row("model and optimizer", lambda seed: nnx.ModelAndOptimizer(Net(seed), optax.sgd(0.1, 0.9)), step=0),
    Row("metric", metrics, orbax=(*Row("", Net).orbax, *AS_IT_IS)),
    Row("containers", Holder, abstract=False),
    Row("rngs", lambda seed: nnx.Rngs(seed, params=seed + 1)),
    Row("pytree with a cycle", Bare, fast=True),
    Row("list", lambda seed: nnx.List([Net(seed)])),
    Row("dict", lambda seed: nnx.Dict(a=Net(seed))),
    Row("state", lambda seed: nnx.state(Net(seed)), is_value=True, orbax=AS_IT_IS, fast=True),
    Row("filtered state", lambda seed: nnx.state(Net(seed), nnx.Param), is_value=True, orbax=AS_IT_IS),
    Row("state of both", lambda seed: nnx.state(both(seed)), is_value=True, orbax=AS_IT_IS, step=4),
    Row(
        "state of an optimizer",
        lambda seed: nnx.state(optimizer(seed)),
        is_value=True,
        orbax=AS_IT_IS,
        step=4,
    ),
    Row(
        "flat state",
        lambda seed: nnx.to_flat_state(nnx.state(Net(seed))),
        is_value=True,
        orbax=(nnx.from_flat_state,),
    ),
    Row("split", lambda seed: nnx.split(Net(seed), nnx.Param, ...), is_value=True, orbax=AS_IT_IS),
    Row(
        "pure dict",
        lambda seed: nnx.to_pure_dict(nnx.state(Net(seed))),
        is_value=True,
        orbax=(*AS_IT_IS, lambda thing: jax.tree.map(lambda leaf: {"value": leaf}, thing)),
    ),
    Row(
        "(module, optimizer)",
        both,
        lambda pair: [*pair],
        orbax=(*Row("", Net).orbax, lambda p: tuple(map(nnx.state, p))),
        step=4,
        fast=True,
    ),
    Row(
        "{model, optimizer, step}",
        lambda seed: dict(zip(("model", "optimizer"), both(seed), strict=True)) | {"step": jnp.int32(seed)},
        lambda found: [found["model"], found["optimizer"]],
        step=1,
    ),
    Row(
        "{model}", lambda seed: {"model": Net(seed)}, lambda found: [found["model"]], orbax=STATES, fast=True
    ),
    Row("[module]", lambda seed: [Net(seed)], lambda found: [*found]),
    Row("{variable}", lambda seed: {"w": nnx.Param(jnp.full(8, seed))}, lambda found: [found["w"]]),
    Row(
        "named tuple",
        lambda seed: Point(Tied(seed), jnp.full(8, seed)),
        lambda found: [found.a],
        orbax=AS_IT_IS,
    ),
    Row(
        "one module twice",
        lambda seed: (lambda net: {"a": net, "b": [net, metrics(seed)]})(Net(seed)),
        lambda found: [found["a"], *found["b"]],
    ),
    Row(
        "registered dataclass",
        lambda seed: Registered(jnp.int32(seed), nnx.state(Net(seed))),
        is_value=True,
        orbax=AS_IT_IS,
        step=1,
    ),
    Row(
        "dataclass",
        lambda seed: Plain(Net(seed), jnp.int32(seed)),
        lambda found: [found.model],
        orbax=(lambda thing: {"model": nnx.state(thing.model), "step": thing.step},),
        step=1,
        fast=True,
    ),
    Row(
        "boxes of Linen",
        lambda seed: {"params": {"w": linen.Partitioned(jnp.full(8, seed), (None,)), "b": jnp.full(2, seed)}},
        is_value=True,
        orbax=AS_IT_IS,
    ),
]
