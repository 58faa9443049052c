"""Exclusions from weight decay of an `OptaxOptimizer`: with gradients of zero, only decay moves a weight."""

import functools

import keras
import numpy as np
import optax
import pytest

import keras_flax_bridge as kfb


def decayed(optimizer, exclude=True):
    """Whether a kernel and a bias are decayed in a step."""
    ones = [keras.Variable(np.ones(shape, "float32"), name=name) for name, shape in SHAPES.items()]
    if exclude:
        optimizer.exclude_from_weight_decay(var_names=["bias"])
    optimizer.build(ones)
    optimizer.apply([np.zeros(shape, "float32") for shape in SHAPES.values()], ones)
    return tuple(bool((v.numpy() != 1).any()) for v in ones)


SHAPES = {"kernel": (2, 2), "bias": (2,)}


def own(learning_rate, weight_decay=0.5, mask=None):
    return optax.lion(learning_rate, weight_decay=weight_decay, mask=mask)


def blind(learning_rate):
    return optax.adamw(learning_rate, weight_decay=0.5)


DECAY = {"learning_rate": 0.1, "weight_decay": 0.5}
MASKED = {
    **{name: (name, DECAY) for name in ("adamw", "lion", "nadamw", "adamaxw", "lamb", "adadelta", "lars")},
    "muon": ("contrib.muon", DECAY),
    "adafactor": ("adafactor", {"learning_rate": 0.1, "weight_decay_rate": 0.5}),
    "function": (optax.adamw, DECAY),
    "partial": (functools.partial(optax.adamw, b1=0.8), DECAY),
    "own": (own, {"learning_rate": 0.1}),
    "of Keras": ("adam", DECAY),
    "by default": ("adamw", {"learning_rate": 10.0}),
}


@pytest.mark.parametrize("name", MASKED)
def test_names_and_functions_have_them(name):
    transformation, arguments = MASKED[name]
    assert decayed(kfb.OptaxOptimizer(transformation, **arguments)) == (True, False)


def test_a_mask_of_the_user_stays():
    masks = {"kernel": False, "bias": True}, {"kernel": True, "bias": True}
    for given, expected in zip(masks, [(False, False), (True, False)], strict=True):
        for mask in (given, lambda tree, given=given: given):
            assert decayed(kfb.OptaxOptimizer("adamw", **DECAY, mask=mask)) == expected


@pytest.mark.parametrize("name", ["adam", "sgd", "novograd"])
def test_without_a_decay_there_is_nothing_to_exclude(name):
    assert decayed(kfb.OptaxOptimizer(name, learning_rate=0.1)) == (False, False)


REFUSED = {
    "object": (lambda: kfb.OptaxOptimizer(optax.adamw(0.1)), "a transformation object"),
    "no mask": (lambda: kfb.OptaxOptimizer("novograd", **DECAY), "weight_decay of its own"),
    "half a mask": (
        lambda: kfb.OptaxOptimizer("contrib.muon", **DECAY, adam_weight_decay=0.1),
        "adam_weight_decay of its own",
    ),
    "unseen": (lambda: kfb.OptaxOptimizer(blind, 0.1), "a decay of its own"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_where_they_would_have_no_effect_they_are_refused(case):
    make, message = REFUSED[case]
    with pytest.raises(kfb.UnsupportedOptimizerError, match=message):
        make().exclude_from_weight_decay(var_names=["bias"])


@pytest.mark.slow
def test_a_checkpoint_keeps_them(tmp_path):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, bias_initializer="ones")])
    optimizer = kfb.OptaxOptimizer("adamw", **DECAY)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    model.compile(optimizer, "mse")
    kfb.save(tmp_path / "one", kfb.TrainState.from_keras(model))
    state = kfb.TrainState.from_keras(kfb.load_model(tmp_path / "one"))
    zero = {"dense": {name: np.zeros_like(leaf) for name, leaf in state.params["dense"].items()}}
    after = state.apply_gradients(grads=zero).params["dense"]
    np.testing.assert_array_equal(after["bias"], np.ones(2))
    assert (np.asarray(after["kernel"]) != np.asarray(state.params["dense"]["kernel"])).all()
