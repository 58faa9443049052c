"""Wrong words are answered with right ones that exist; a call that fits is left alone."""

import copy
import inspect
import pickle
import tempfile
from functools import cache

import jax
import keras
import numpy as np
import optax
import pytest
from flax import linen, nnx

import keras_flax_bridge as kfb
from keras_flax_bridge.optimizers.optax_factories import OPTIONS as KERAS_OPTIONS
from keras_flax_bridge.tree import words
from keras_flax_bridge.tree.words.table import WORDS
from keras_flax_bridge.tree.words.word import ANY, ARGUMENTS, ATTRIBUTES, PLACES
from tests.tables.wrong_words import GUESSES

ROOTS = {"kfb": kfb, "keras": keras, "nnx": nnx}
STEPS = {
    "train_step": kfb.make_train_step,
    "eval_step": kfb.make_eval_step,
    "predict_step": kfb.make_predict_step,
}
# these look at their `**kwargs` in the body, which needs a first argument
FIRST = {"kfb.OptaxOptimizer": ("adamw",), "kfb.NNXLayer": (nnx.Linear,), "kfb.LinenLayer": (linen.Dense,)}
# attributes that `__init__` sets
SET = {"kfb.CheckpointManager": {"directory"}, "kfb.History": {"history"}, "kfb.OptaxOptimizer": {"slots"}}


@cache
def model():
    made = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    made.compile("adam", "mse")
    return made


@cache
def names():
    """What the expressions of the table are about."""
    state, path = kfb.TrainState.from_keras(model()), tempfile.mkdtemp()
    x, y = np.ones((2, 4), "float32"), np.ones((2, 2), "float32")
    steps = {name: make(model()) for name, make in STEPS.items()}
    given = {"x": x, "y": y, "path": path, "tx": optax.adam(1e-3), "key": jax.random.key(0)}
    own = {"model": model(), "state": state, "params": state.params, "manager": kfb.CheckpointManager(path)}
    return {**ROOTS, "jax": jax, "nn": linen, **given, **own, **steps}


def rows(kind):
    """Each door, guess and right word of the package's table."""
    return [
        (d, g, word.right) for word in WORDS[kind] for d in word.doors.split() for g in word.guesses.split()
    ]


def public(name):
    """What a name such as ``kfb.migrate.to_nnx`` stands for."""
    root, *path = name.split(".")
    thing = ROOTS[root]
    for part in path:
        thing = getattr(thing, part)
    return thing


def function(door):
    return names()[door] if door in STEPS else public(door)


@cache
def arguments(door):
    """The names of the arguments that a door takes."""
    called = function(door)
    made = called.__init__ if inspect.isclass(called) else called
    parameters = inspect.signature(made).parameters.values()
    taken = {p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)} - {"self", "cls"}
    if door == "kfb.OptaxOptimizer":
        taken |= {*inspect.signature(optax.adamw).parameters, *KERAS_OPTIONS}
    return taken


def attributes(owner):
    thing = public(owner)
    fields = getattr(thing, "__dataclass_fields__", {})
    return {*dir(thing), *fields, *SET.get(owner, ())}


def call_wrongly(door, guess):
    called, first = function(door), FIRST.get(door, ())
    if guess == PLACES:
        return called(*range(12))
    is_method = next(iter(inspect.signature(called).parameters), None) == "self"
    return called(*([None] if is_method else []), *first, **{"other" if guess == ANY else guess: None})


@pytest.mark.parametrize("kind", WORDS)
def test_no_guess_is_answered_twice(kind):
    pairs = [(door, guess) for door, guess, _ in rows(kind)]
    assert sorted(pairs) == sorted(set(pairs))


@pytest.mark.parametrize("door", sorted({door for door, *_ in rows(ARGUMENTS)}))
def test_wrong_arguments_are_answered_with_what_exists(door):
    for guess, right in [(guess, right) for own, guess, right in rows(ARGUMENTS) if own == door]:
        assert guess not in arguments(door), guess
        assert public(right) if "." in right else right in arguments(door), right
        with pytest.raises((kfb.SignatureError, kfb.UnsupportedOptimizerError)) as caught:
            call_wrongly(door, guess)
        assert (right if "." in right else f"{right}=") in caught.value.expected, guess


@pytest.mark.parametrize("owner", sorted({owner for owner, *_ in rows(ATTRIBUTES)}))
def test_wrong_attributes_are_answered_with_what_exists(owner):
    own = attributes(owner)
    for guess, right in [(guess, right) for name, guess, right in rows(ATTRIBUTES) if name == owner]:
        assert guess not in own, guess
        assert public(right) if "." in right else right in own, right
        error = words.unknown_name(owner, guess, own)
        assert isinstance(error, kfb.UnknownNameError)
        assert error.expected == right


def exists(right, where):
    """Whether a right word is a public name, an argument of the door, or an attribute of the owner."""
    if "." in right:
        return public(right) is not None
    if "=" in right:
        return right.split("=")[0] in arguments("kfb.OptaxOptimizer" if "argument" in where else where)
    return right in attributes(where.rpartition(".")[0])


@pytest.mark.parametrize("text", GUESSES)
def test_guesses_of_experienced_users_are_answered(text):
    right = GUESSES[text]
    with pytest.raises(kfb.BridgeError) as caught:
        eval(text, names())
    assert right in f"{caught.value.expected} {caught.value.fix}"
    assert exists(right, caught.value.where)


def test_every_public_function_and_class_is_a_door():
    things = {**vars(kfb), **vars(kfb.migrate), "TrainStateCheckpoint": kfb.callbacks.TrainStateCheckpoint}
    own = [
        t
        for n, t in things.items()
        if not n.startswith("_") and str(getattr(t, "__module__", "")).startswith(kfb.__name__)
    ]
    open_ones = {kfb.Frozen, kfb.KerasSeed, kfb.Overwritten}  # variables of NNX, which makes them
    missing = {
        thing.__name__
        for thing in own
        if (inspect.isfunction(thing) and thing not in words.DOORS.values())
        or (inspect.isclass(thing) and not issubclass(thing, Exception) and thing not in words.OWNERS)
    }
    assert missing == {thing.__name__ for thing in open_ones}


def test_programs_that_catch_what_python_raises_go_on():
    with pytest.raises(TypeError, match="optimizer="):
        kfb.make_train_step(model(), tx=None)
    with pytest.raises(AttributeError, match="latest_step"):
        names()["manager"].latest  # noqa: B018
    assert not hasattr(kfb, "load")
    assert not hasattr(names()["state"], "batch_stats")
    assert getattr(kfb.TrainState, "from_model", None) is None


@pytest.mark.parametrize("text", ["kfb.restore('/a', target=1)", "kfb.load"])
def test_errors_survive_pickling(text):
    with pytest.raises(kfb.BridgeError) as caught:
        eval(text, names())
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), str(again)) == (type(caught.value), str(caught.value))


def test_a_type_error_of_the_body_stays_what_it_is():
    def body(x):
        return x + "text"

    with pytest.raises(TypeError, match="unsupported operand") as caught:
        words.door(body, "body")(1)
    assert not isinstance(caught.value, kfb.BridgeError)


def test_an_error_inside_of_a_property_stays_what_it_is():
    @words.doors()
    class Broken:
        __module__ = kfb.__name__ + ".state"

        @property
        def rows(self):
            return {}.missing

    with pytest.raises(AttributeError, match="'dict' object has no attribute 'missing'"):
        Broken().rows  # noqa: B018


def test_names_with_an_underscore_are_left_to_python():
    for thing in (kfb, kfb.TrainState, names()["state"], names()["manager"]):
        with pytest.raises(AttributeError) as caught:
            thing._repr_png_  # noqa: B018
        assert type(caught.value) is AttributeError


def test_several_wrong_arguments_are_answered_at_once():
    with pytest.raises(kfb.SignatureError) as caught:
        kfb.TrainState.from_keras(model(), tx=None, inputs=None)
    assert caught.value.expected == "optimizer= for tx=, batch= for inputs="


@pytest.mark.parametrize(
    ("text", "fix"),
    {
        "state.replace({'step': 0})": "Pass each by name.",
        "state.reset_metrics(model)": "Leave the others out.",
        "kfb.as_optax(model.optimizer, model)": "Pass by name what comes after: model=, learning_rate=.",
        "kfb.restore(path, state, path=path)": "Pass it by keyword.",
    }.items(),
)
def test_other_misfits_are_answered(text, fix):
    with pytest.raises(kfb.SignatureError) as caught:
        eval(text, names())
    assert caught.value.fix == fix


def test_a_word_that_nothing_resembles_gets_the_list():
    with pytest.raises(kfb.SignatureError, match="one of path=, step="):
        kfb.verify("/a", zzz=1)


def test_states_are_copied_and_pickled_as_before():
    state = names()["state"]
    same = jax.tree.map(np.array_equal, copy.deepcopy(state).params, state.params)
    assert all(jax.tree.leaves(same))
    assert jax.tree.structure(copy.copy(state)) == jax.tree.structure(state)


def test_signatures_and_types_are_those_of_the_functions():
    parameters = inspect.signature(kfb.TrainState.from_keras).parameters
    assert list(parameters) == ["model", "batch", "optimizer", "loss", "metrics", "copy"]
    assert inspect.signature(kfb.CheckpointManager).parameters["directory"].annotation == "PathLike"
    assert inspect.getfullargspec(kfb.LinenLayer.__init__).args[:2] == ["self", "module"]
