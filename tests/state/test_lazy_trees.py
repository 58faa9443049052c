"""A state that a compiled step gave holds a list of leaves until somebody looks: nobody can tell."""

import contextlib
import copy
import dataclasses
import signal
import sys
from collections import OrderedDict
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import FrozenDict
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import keras_flax_bridge as kfb
from keras_flax_bridge.state import lazy_trees
from tests.support.cases import TREES, equal
from tests.tables import contracts

BATCHES = list(contracts.SEQUENTIAL.batches(3))


def as_kind(kind, state):
    """A state of another class, with the same fields."""
    return kind(**{field.name: getattr(state, field.name) for field in dataclasses.fields(state)})


def mesh_of(devices):
    """None for no devices: a step without a mesh."""
    return Mesh(np.array(jax.devices()[:devices]), ("data",)) if devices else None


@pytest.fixture(scope="module")
def model():
    return contracts.SEQUENTIAL.build()


@pytest.fixture(scope="module")
def step(model):
    return kfb.make_train_step(model, donate=False)


@pytest.fixture(scope="module")
def first(model, step):
    return lambda: step(kfb.TrainState.from_keras(model), BATCHES[0])[0]


@pytest.fixture
def state(first):
    """One that holds leaves."""
    given = first()
    assert lazy_trees.lazy_leaves(given) is not None
    return given


@pytest.mark.parametrize("name", [*TREES, "step", "eval_metrics"])
def test_each_field_is_what_a_pure_step_gives(state, model, name):
    pure = jax.jit(kfb.make_train_step(model, jit=False))
    wanted, _ = pure(kfb.TrainState.from_keras(model), BATCHES[0])
    assert equal(getattr(state, name), getattr(wanted, name))


def test_trees_are_made_once(state):
    assert state.params is state.params
    assert lazy_trees.lazy_leaves(state) is None


LOOKS = {
    "flattened": lambda state: jax.tree.map(lambda leaf: leaf, state),
    "replaced": lambda state: state.replace(step=state.step),
    "by dataclasses": lambda state: as_kind(type(state), state),
    "copied": copy.copy,
    "printed": lambda state: repr(state) and state,
    "through jit": jax.jit(lambda state: state),
    "as it is": lambda state: state,
}


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
def test_goes_on_the_same_after_a_look(state, first, step, look):
    wanted, _ = step(first(), BATCHES[1])
    got, _ = step(look(state), BATCHES[1])
    assert all(equal(getattr(got, name), getattr(wanted, name)) for name in TREES)


def test_a_change_in_place_is_seen(state, first, step):
    state.params["dense"]["kernel"] = zeros = jnp.zeros_like(state.params["dense"]["kernel"])
    before = first()
    params = {**before.params, "dense": {**before.params["dense"], "kernel": zeros}}
    wanted, _ = step(before.replace(params=params), BATCHES[1])
    got, _ = step(state, BATCHES[1])
    assert equal(got.params, wanted.params)


def test_other_names_are_unknown(state):
    with pytest.raises(AttributeError, match=r"TrainState\.parameters: .* expected params"):
        state.parameters  # noqa: B018
    assert not hasattr(state, "ema")


def test_steps_take_each_others_states(state, model, step):
    other, evaluate = kfb.make_train_step(model, donate=False), kfb.make_eval_step(model)
    wanted, _ = step(state, BATCHES[1])
    wanted, _ = evaluate(wanted, BATCHES[1])
    wanted, _ = step(wanted, BATCHES[2])
    got, _ = other(state, BATCHES[1])
    got, _ = step(got, BATCHES[2])
    assert equal(got.params, wanted.params)
    assert not equal(got.eval_metrics, wanted.eval_metrics)


def test_evaluation_holds_leaves_and_leaves_the_rest(state, model):
    evaluate = kfb.make_eval_step(model)
    before = vars(state.replace())
    first, _ = evaluate(state, BATCHES[1])
    assert lazy_trees.lazy_leaves(first) is not None
    assert vars(first)["opt_state"] is before["opt_state"]
    again, _ = evaluate(first, BATCHES[2])
    assert lazy_trees.lazy_leaves(first) is not None  # nothing was built for it
    assert all(a is b for a, b in zip(*map(jax.tree.leaves, (again.params, before["params"])), strict=True))
    assert again.step is state.step
    assert float(again.eval_metrics["loss"]["count"]) == 2 * float(first.eval_metrics["loss"]["count"])


def test_trees_of_another_kind(state, step):
    """The numbers are the same, whatever mappings the step takes and gives back."""
    frozen = state.replace(params=FrozenDict(state.params))
    wanted, _ = step(step(state, BATCHES[1])[0], BATCHES[2])
    got, _ = step(step(frozen, BATCHES[1])[0], BATCHES[2])
    assert equal(got.params, wanted.params)


def test_a_mesh_takes_a_state_from_elsewhere(state, model, step):
    mesh = mesh_of(2)
    on_mesh = kfb.make_train_step(model, mesh=mesh, donate=False)
    everywhere = NamedSharding(mesh, P())
    for _ in range(2):  # the second time it has a program for such trees
        given, _ = on_mesh(step(state, BATCHES[1])[0], BATCHES[2])
        assert all(leaf.sharding == everywhere for leaf in jax.tree.leaves(given.params))


class Alarm:
    """Interrupts once, after some seconds.

    `is_set` ends a loop where the interrupt was lost: one that comes in JAX's callback of the garbage
    collector is printed and swallowed by Python.
    """

    is_set = False

    def set(self, seconds):
        self.is_set = True
        signal.setitimer(signal.ITIMER_REAL, seconds)

    def ring(self, *_):
        self.is_set = False
        raise KeyboardInterrupt


@pytest.fixture
def alarm(monkeypatch):
    others = sys.unraisablehook
    own = lambda lost: issubclass(lost.exc_type, KeyboardInterrupt) or others(lost)  # noqa: E731
    monkeypatch.setattr(sys, "unraisablehook", own)
    made = Alarm()
    before = signal.signal(signal.SIGALRM, made.ring)
    yield made
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.slow
@pytest.mark.parametrize("devices", [0, 2])
@pytest.mark.parametrize("look", [False, True])
def test_an_interrupt_at_any_moment_leaves_a_whole_state(model, alarm, devices, look):
    mesh = mesh_of(devices)
    train_step = kfb.make_train_step(model, mesh=mesh)
    state, _ = train_step(kfb.TrainState.from_keras(model), BATCHES[0])
    batch = BATCHES[1] if mesh is None else jax.device_put(BATCHES[1], NamedSharding(mesh, P("data")))

    def train_until_the_alarm():  # on Python 3.13 the end of a loop is outside of the `with` around it
        nonlocal state
        while alarm.is_set:
            state, _ = train_step(state, batch)
            assert not look or state.params

    for wait in np.random.default_rng(0).uniform(1e-4, 1.5e-3, 500 if devices else 1500):
        with contextlib.suppress(KeyboardInterrupt):
            alarm.set(wait)
            train_until_the_alarm()
        held, own = vars(state).get("_flat"), vars(state)
        assert held is None or own.keys().isdisjoint(TREES)
        leaves = held.leaves if held else jax.tree.leaves([own[name] for name in TREES])
        assert not any(leaf.is_deleted() for leaf in leaves)
    assert int(state.step) == int(state.opt_state["iteration"])


class Defaulted(kfb.TrainState):
    """Has a tree as an attribute of the class."""

    metrics: Any = None


class Looking(kfb.TrainState):
    """Looks names up by itself."""

    def __getattr__(self, name):
        raise AttributeError(name)


@pytest.mark.parametrize("kind", [Defaulted, Looking])
def test_states_that_can_t_hold_leaves_have_trees(kind, first, step):
    given = first()
    got, _ = step(as_kind(kind, given), BATCHES[1])
    wanted, _ = step(given, BATCHES[1])
    assert all(equal(getattr(got, name), getattr(wanted, name)) for name in TREES)


def test_what_is_set_by_force_stays(state, first, step):
    zeros = jax.tree.map(jnp.zeros_like, first().params)
    object.__setattr__(state, "params", zeros)
    got, _ = step(state, BATCHES[1])
    wanted, _ = step(first().replace(params=zeros), BATCHES[1])
    assert equal(got.params, wanted.params)


@pytest.mark.slow
def test_mappings_and_their_order_stay_as_they_came(state, step, model):
    params = OrderedDict(reversed(state.params.items()))
    for run in (step, kfb.make_train_step(model, jit=False)):
        got, _ = run(state.replace(params=params), BATCHES[1])
        assert type(got.params) is OrderedDict
        assert list(got.params) == list(params)


def test_it_says_what_it_has(state):
    assert {*TREES, "step"} <= set(dir(state))
    assert "_flat" not in dir(state)


def test_an_error_inside_a_property_is_seen(first, step):
    class Own(kfb.TrainState):
        @property
        def rate(self):
            return self.opt_state.rate

    own, _ = step(as_kind(Own, first()), BATCHES[1])
    with pytest.raises(AttributeError, match="'dict' object has no attribute 'rate'"):
        own.rate  # noqa: B018


def test_something_else_is_refused(model):
    on_mesh = kfb.make_train_step(model, mesh=mesh_of(2))
    for train_step in (kfb.make_train_step(model), on_mesh):
        with pytest.raises(kfb.StructureMismatchError, match="got a tuple, expected a TrainState"):
            train_step((), BATCHES[0])


def test_a_leaf_that_is_no_array_is_named(state, step):
    params = {**state.params, "dense": {**state.params["dense"], "kernel": "weights"}}
    with pytest.raises(kfb.StructureMismatchError, match="state/params/dense/kernel: got a str, expected"):
        step(state.replace(params=params), BATCHES[1])


@pytest.mark.parametrize("devices", [0, 2])
def test_a_donated_state_says_so(state, model, devices):
    mesh = mesh_of(devices)
    donating = kfb.make_train_step(model, mesh=mesh)
    held, _ = donating(jax.tree.map(jnp.copy, state), BATCHES[1])
    donating(held, BATCHES[2])
    for _ in range(2):  # unseen, then with the trees that the error looked at
        with pytest.raises(kfb.OwnershipError, match="donated to a step"):
            donating(held, BATCHES[2])
        assert held.params
