"""Stored leaves against wanted ones: strict, partial, cast, included, renamed."""

import re

import jax.numpy as jnp
import keras
import numpy as np
import pytest
from keras import layers

import keras_flax_bridge as kfb
from keras_flax_bridge.tree.paths import flatten_tree, join_path
from tests.tables import contracts

BATCH = next(contracts.SEQUENTIAL.batches())


# --- strictness


def wider():
    model = keras.Sequential([keras.Input((6,)), layers.Dense(7), layers.Dense(3, name="head")])
    model.compile("adam", "mse")
    return model


def test_a_mismatch_lists_every_leaf_and_assigns_nothing(saved):
    path, _, _ = saved
    model = wider()
    before = [w.copy() for w in model.get_weights()]
    with pytest.raises(kfb.StructureMismatchError) as error:
        kfb.restore(path, model)
    assert set(error.value.mismatched) >= {"params/dense/kernel", "params/dense/bias", "params/head/kernel"}
    assert "params/batch_normalization/gamma" in error.value.unexpected
    assert "got float32[6,5], expected float32[6,7]" in str(error.value)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))


@pytest.mark.slow
def test_partial_restores_what_matches_and_says_the_rest(saved, caplog):
    path, _, state = saved
    model = kfb.restore(path, wider(), partial=True)
    assert np.array_equal(model.get_layer("head").bias, state.params["head"]["bias"])
    assert "params/dense/kernel" in caplog.text


def test_no_match_at_all_is_an_error_even_if_partial(saved):
    path, _, _ = saved
    with pytest.raises(kfb.StructureMismatchError, match="Not one leaf matches"):
        kfb.restore(path, {"nothing": jnp.ones(3)}, partial=True)


def test_dtypes_are_not_cast(tmp_path):
    kfb.save(tmp_path / "f32", {"a": jnp.ones(2)})
    with pytest.raises(kfb.StructureMismatchError, match=r"got float32\[2\], expected int8\[2\]"):
        kfb.restore(tmp_path / "f32", {"a": jnp.ones(2, "int8")})


def test_include_takes_prefixes_and_patterns(saved):
    path, _, state = saved
    model = contracts.SEQUENTIAL.build()
    before = [np.array(v) for v in model.optimizer.variables]
    kfb.restore(path, model, include=["params", "non_trainable"])
    assert np.array_equal(model.get_layer("head").kernel, state.params["head"]["kernel"])
    assert len(before) <= len(model.optimizer.variables)
    assert int(model.optimizer.iterations.value) == 0
    like = kfb.TrainState.from_keras(contracts.SEQUENTIAL.build())
    kernels = kfb.restore(path, like, include=r"^params/.*kernel$")
    assert np.array_equal(kernels.params["dense"]["kernel"], state.params["dense"]["kernel"])
    assert np.array_equal(kernels.params["dense"]["bias"], like.params["dense"]["bias"])


class Following(kfb.TrainState):
    """A state with a field of the user's own."""

    ema: object = None


def test_a_tree_that_was_not_saved_is_missing_and_not_taken_from_another(saved):
    path, model, state = saved
    like = Following.from_keras(model)
    with pytest.raises(kfb.StructureMismatchError) as error:
        kfb.restore(path, like.replace(ema=state.params))
    assert set(error.value.missing) == {join_path(("ema", *p)) for p in flatten_tree(state.params)}


LEFT_OUT = {
    "a leaf": ({"a": jnp.ones(1)}, {"b"}),
    "a tree": ({"a": jnp.ones(1), "params": {"w": jnp.ones(2)}}, {"b"}),
}


@pytest.mark.parametrize(("like", "left"), LEFT_OUT.values(), ids=LEFT_OUT)
def test_a_stored_leaf_that_is_not_wanted_is_unexpected(tmp_path, like, left):
    kfb.save(tmp_path / "x", {**like, "b": jnp.ones(2)})
    with pytest.raises(kfb.StructureMismatchError) as error:
        kfb.restore(tmp_path / "x", like)
    assert set(error.value.unexpected) == left


CASTS = [("float32", "bfloat16"), ("bfloat16", "float32"), ("int32", "int8"), ("float32", "float64")]


@pytest.mark.parametrize(("stored", "wanted"), CASTS)
@pytest.mark.parametrize("layout", ["tree", "packed"])
def test_a_cast_is_done_when_asked_for_and_within_a_kind(tmp_path, stored, wanted, layout):
    kfb.save(tmp_path / "x", {"a": jnp.arange(3, dtype=stored)}, layout=layout)
    like = {"a": np.zeros(3, wanted)}
    with pytest.raises(kfb.StructureMismatchError, match=f"got {stored}.*expected {wanted}"):
        kfb.restore(tmp_path / "x", like)
    back = kfb.restore(tmp_path / "x", like, cast=True)["a"]
    assert back.dtype == wanted
    assert np.array_equal(np.asarray(back, "float32"), np.arange(3))
    other = {"a": np.zeros(3, "int32" if "float" in stored else "float32")}
    with pytest.raises(kfb.StructureMismatchError, match="1 mismatched"):
        kfb.restore(tmp_path / "x", other, cast=True)


@pytest.mark.parametrize("like", [jnp.zeros((), "int32"), 3], ids=["array", "number"])
def test_a_number_fits_a_scalar_of_its_kind_alone(tmp_path, like):
    kfb.save(tmp_path / "x", {"a": 1.5})
    with pytest.raises(kfb.StructureMismatchError, match="mismatched"):
        kfb.restore(tmp_path / "x", {"a": like})


# --- arguments of restore

SAID = {
    "a typo": ({"include": ["params", "non_trainble"]}, "'non_trainble', which names nothing"),
    "half a name": ({"include": ["params/den"]}, "'params/den'"),
    "no pattern": ({"include": "("}, "not a valid regular expression"),
    "a number": ({"include": 3}, "got a int"),
    "a name that is not stored": ({"rename": {"params/dense": "params/foo"}}, "not stored  params/dense"),
    "no names": ({"rename": lambda name: None}, "got a NoneType"),
    "a word": ({"rename": "foo"}, "got a str"),
    "a broken pattern": ({"rename": [("(", "x")]}, "not a valid regular expression"),
}


@pytest.mark.parametrize(("arguments", "words"), SAID.values(), ids=SAID)
def test_a_wrong_argument_is_explained(saved, arguments, words):
    path, _, state = saved
    with pytest.raises(kfb.StructureMismatchError, match=re.escape(words)):
        kfb.restore(path, state, **arguments)


@pytest.mark.parametrize(
    "like", [jnp.zeros(3), "foo", contracts.SEQUENTIAL.build], ids=["array", "str", "function"]
)
def test_what_can_not_be_restored_into_is_explained(saved, like):
    with pytest.raises(kfb.StructureMismatchError, match="expected a TrainState"):
        kfb.restore(saved[0], like)


RENAMES = {
    "dict": {"a/w": "b/w", "a/v": "b/v"},
    "pairs": [(r"^a/", "b/")],
    "function": lambda name: name.replace("a/", "b/"),
}


@pytest.mark.parametrize("rename", RENAMES.values(), ids=RENAMES)
def test_rename(tmp_path, rename):
    kfb.save(tmp_path / "a", {"a": {"w": jnp.arange(2), "v": jnp.arange(3)}})
    like = {"b": {"w": jnp.zeros(2, int), "v": jnp.zeros(3, int)}}
    assert kfb.restore(tmp_path / "a", like, rename=rename)["b"]["v"].tolist() == [0, 1, 2]


def test_two_leaves_of_one_name_are_refused(tmp_path):
    kfb.save(tmp_path / "a", {"a": jnp.ones(1), "b": jnp.ones(1)})
    with pytest.raises(kfb.StructureMismatchError, match="rename="):
        kfb.restore(tmp_path / "a", {"c": jnp.ones(1)}, rename=lambda name: "c")


def test_a_weight_frozen_since_is_found(saved):
    path, _, state = saved
    model = contracts.SEQUENTIAL.build()
    model.layers[0].trainable = False
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    kfb.restore(path, model, include=["params", "non_trainable"])
    assert np.array_equal(model.layers[0].kernel, state.params["dense"]["kernel"])
