"""Checkpoints: strict, complete, readable by everyone."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import grain
import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training import train_state
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from keras import layers

import keras_flax_bridge as kfb
from keras_flax_bridge.tree.paths import flatten_tree, join_path, nest_paths
from tests.support.cases import equal
from tests.support.models import optimizers
from tests.tables import contracts

BATCH = next(contracts.SEQUENTIAL.batches())


@pytest.fixture
def saved(trained, tmp_path):
    """A folder with one checkpoint of the small model after three steps, and what is in it."""
    model, state = trained
    kfb.save(tmp_path / "one", state)
    return tmp_path / "one", model, state


# --- one checkpoint, four readers


def test_a_restored_model_trains_on(saved):
    path, model, state = saved
    other = kfb.restore(path, contracts.SEQUENTIAL.build(), include=["params", "non_trainable", "opt_state"])
    continued, _ = kfb.make_train_step(other)(kfb.TrainState.from_keras(other), BATCH)
    assert equal(continued.params, kfb.make_train_step(model)(state, BATCH)[0].params)


def test_one_checkpoint_reads_as_state_keras_nnx_and_linen(saved):
    path, model, state = saved
    wanted = kfb.make_predict_step(model)(state, BATCH[0])
    build = contracts.SEQUENTIAL.build
    module, linen = kfb.ToNNX(build()), kfb.ToLinen(build())
    variables = kfb.restore(path, linen.init(jax.random.key(0), BATCH[0]))
    outputs = {
        "state": kfb.make_predict_step(build())(kfb.restore(path, kfb.TrainState.abstract(build)), BATCH[0]),
        "keras": kfb.restore(path, build()).predict(BATCH[0], verbose=0),
        "loaded": kfb.load_model(path).predict(BATCH[0], verbose=0),
        "nnx": kfb.restore(path, module)(BATCH[0]),
        "linen": linen.apply(variables, BATCH[0]),
    }
    for name, output in outputs.items():
        np.testing.assert_allclose(output, wanted, rtol=1e-6, atol=1e-7, err_msg=name)
    assert isinstance(module.dense.kernel, nnx.Param)
    assert set(variables) == {"params", "batch_stats", "seeds"}


def test_a_loaded_model_trains_on_as_the_state_does(saved):
    path, model, state = saved
    loaded = kfb.load_model(path)
    again = kfb.TrainState.from_keras(loaded)
    assert equal((again.params, again.opt_state), (state.params, state.opt_state))
    after, _ = kfb.make_train_step(loaded)(again, BATCH)
    wanted, _ = kfb.make_train_step(model)(state, BATCH)
    assert equal((after.params, after.opt_state), (wanted.params, wanted.opt_state))


def test_plain_orbax_reads_it(saved):
    path, _, state = saved
    from orbax.checkpoint import v1 as ocp

    like = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), nested(state))
    read = ocp.load_checkpointables(path, {"state": like})["state"]
    assert equal(read, nested(state))


def nested(state):
    return nest_paths(flatten_tree(state))


def test_plain_orbax_v0_reads_it(saved):
    path, _, state = saved
    import orbax.checkpoint as ocp

    with ocp.PyTreeCheckpointer() as checkpointer:
        arguments = ocp.checkpoint_utils.construct_restore_args(nested(state))
        read = checkpointer.restore(path / "state", item=nested(state), restore_args=arguments)
    assert equal(read, nested(state))


def test_a_flax_train_state_comes_back_as_one(tmp_path):
    params = {"dense": {"kernel": jnp.ones((2, 2))}}
    make = lambda: train_state.TrainState.create(apply_fn=None, params=params, tx=optax.adam(1e-3))  # noqa: E731
    state = make().apply_gradients(grads=params)
    kfb.save(tmp_path / "flax", state)
    restored = kfb.restore(tmp_path / "flax", make())
    assert isinstance(restored.opt_state[0], optax.ScaleByAdamState)
    assert equal(restored, state)


def test_an_optax_state_round_trips(tmp_path):
    model = contracts.SEQUENTIAL.build()
    tx = optax.chain(optax.clip(1.0), optax.adamw(1e-3))
    state, _ = kfb.make_train_step(model, optimizer=tx)(kfb.TrainState.from_keras(model, optimizer=tx), BATCH)
    kfb.save(tmp_path / "optax", state)
    assert equal(kfb.restore(tmp_path / "optax", kfb.TrainState.from_keras(model, optimizer=tx)), state)
    loaded = kfb.load_model(tmp_path / "optax")
    assert not loaded.compiled
    assert equal(kfb.TrainState.from_keras(loaded, optimizer="sgd").params, state.params)


def test_restores_onto_the_shardings_of_like(saved):
    path, _, state = saved
    sharding = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), PartitionSpec())
    abstract = kfb.TrainState.abstract(contracts.SEQUENTIAL.build)
    like = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), abstract)
    restored = kfb.restore(path, like)
    assert {leaf.sharding for leaf in jax.tree.leaves(restored)} == {sharding}
    assert equal(restored, state)


def test_relative_paths_and_step_folders(trained, tmp_path, monkeypatch):
    _, state = trained
    monkeypatch.chdir(tmp_path)
    with kfb.CheckpointManager("runs/1") as manager:
        manager.save(state)
    like = kfb.TrainState.abstract(contracts.SEQUENTIAL.build)
    for path, step in (("runs/1", None), ("runs/1", 3), ("runs/1/3", None), ("runs/1/3", 3)):
        assert equal(kfb.restore(path, like, step=step), state)


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


# --- whatever is in a tree

LEAVES = {
    "a key": jax.random.key(3),
    "keys": jax.random.split(jax.random.key(3, impl="rbg"), 2),
    "nothing": jnp.zeros((0, 3), "bfloat16"),
    "bfloat16": jnp.arange(3, dtype="bfloat16"),
    "a bool": True,
    "a number": 3,
    "a real number": 0.5,
    "a numpy scalar": np.float32(2),
    "64 bits": np.array([2**40 + 1, 3]),
    "a 64-bit scalar": np.int64(10**10),
    "complex": jnp.ones(2, "complex64"),
    "float8": jnp.arange(4, dtype="float8_e4m3fn"),
    "float8 of another kind": jnp.arange(4, dtype="float8_e4m3"),
    "float4": jnp.arange(4, dtype="float4_e2m1fn"),
    "int4": jnp.arange(4, dtype="int4"),
    "uint4": jnp.arange(6, dtype="uint4").reshape(2, 3),
    "large and of 4 bits": jnp.arange(70_000).astype("uint4"),
    "int2": jnp.arange(2, dtype="int2"),
    "uint2": jnp.arange(3, dtype="uint2"),
}


@pytest.mark.parametrize("layout", ["tree", "packed"])
@pytest.mark.parametrize("leaf", LEAVES.values(), ids=LEAVES)
def test_leaf_comes_back_as_it_was(tmp_path, leaf, layout):
    tree = {"x": leaf, "other": jnp.ones(1)}
    kfb.save(tmp_path / "x", tree, layout=layout)
    back = kfb.restore(tmp_path / "x", tree)["x"]
    assert jnp.asarray(back).dtype == jnp.asarray(leaf).dtype
    if isinstance(leaf, np.ndarray | np.generic):
        assert np.asarray(back).dtype == leaf.dtype
    same = jax.random.key_data if "key" in str(getattr(leaf, "dtype", "")) else np.asarray
    assert np.array_equal(same(back), same(leaf))


NAMES = {"a.b": 1.0, "a": {"b": 2.0, "c/d": 3.0, "": 4.0}, "a%2Eb": 5.0, "é ~0": 6.0}
EMPTY = {"none": None, "dict": {}, "list": []}


@pytest.mark.parametrize("layout", ["tree", "packed"])
def test_names_stay_apart_and_what_is_empty_stays(tmp_path, layout):
    tree = jax.tree.map(np.float32, {**NAMES, **EMPTY})
    kfb.save(tmp_path / "x", tree, layout=layout)
    back = kfb.restore(tmp_path / "x", jax.tree.map(np.zeros_like, tree))
    assert jax.tree.map(float, back) == {**NAMES, **EMPTY}
    assert kfb.verify(tmp_path / "x").ok


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


def test_modules_with_keys_round_trip(tmp_path):
    class Host(nnx.Module):
        def __init__(self, seed):
            self.keras = kfb.ToNNX(contracts.SEQUENTIAL.build(), rngs=nnx.Rngs(seed))
            self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(seed))

    host, other = Host(1), Host(2)
    kfb.save(tmp_path / "host", host)
    kfb.restore(tmp_path / "host", other)
    wanted, got = (nnx.to_pure_dict(nnx.state(module)) for module in (host, other))
    data = lambda leaf: jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf  # noqa: E731
    assert equal(jax.tree.map(data, got), jax.tree.map(data, wanted))
    module = kfb.ToNNX(contracts.SEQUENTIAL.build())
    kfb.save(tmp_path / "module", module)
    kfb.restore(tmp_path / "module", contracts.SEQUENTIAL.build(), include=["params", "non_trainable"])


@pytest.mark.parametrize("file", ["state/_METADATA", "_CHECKPOINT_METADATA"])
def test_damaged_metadata_is_no_empty_checkpoint(saved, file):
    path, _, state = saved
    (path / file).write_text("{")
    with pytest.raises(kfb.CheckpointError):
        kfb.restore(path, state)


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


def test_a_model_without_a_config_is_saved_and_load_model_says_why(tmp_path):
    class Plain(keras.Model):
        def __init__(self, size):
            super().__init__()
            self.dense = layers.Dense(size)

        def call(self, x):
            return self.dense(x)

    model = Plain(3)
    model(np.ones((1, 2)))
    model.compile("sgd", "mse")
    kfb.save(tmp_path / "plain", kfb.TrainState.from_keras(model))
    with pytest.raises(kfb.CheckpointError, match="no model config"):
        kfb.load_model(tmp_path / "plain")
    kfb.restore(tmp_path / "plain", model)


def test_load_model_wraps_the_optimizer_as_compile_did(tmp_path):
    model = optimizers.mixed_float16()
    kfb.save(tmp_path / "half", kfb.TrainState.from_keras(model))
    assert isinstance(kfb.load_model(tmp_path / "half").optimizer, keras.optimizers.LossScaleOptimizer)


def test_load_model_runs_no_code(tmp_path):
    model = keras.Sequential([keras.Input((2,)), layers.Lambda(lambda x: x), layers.Dense(1)])
    model.compile("sgd", "mse")
    kfb.save(tmp_path / "code", kfb.TrainState.from_keras(model))
    with pytest.raises(kfb.CheckpointError, match="Lambda"):
        kfb.load_model(tmp_path / "code")


# --- the packed layout


def test_packed_reads_as_all_that_the_tree_does(trained, tmp_path):
    model, state = trained
    big = keras.Sequential([keras.Input((200,)), layers.Dense(200), layers.Dense(1)])
    big.compile("adam", "mse")
    for name, (owner, given) in {
        "small": (model, state),
        "big": (big, kfb.TrainState.from_keras(big)),
    }.items():
        with kfb.CheckpointManager(tmp_path / name, layout="packed") as manager:
            manager.save(given)
        assert equal(kfb.restore(tmp_path / name, given), given)
        assert equal(kfb.TrainState.from_keras(kfb.load_model(tmp_path / name)).params, given.params)
        module = kfb.restore(tmp_path / name, kfb.ToNNX(owner))
        assert equal(nnx.to_pure_dict(nnx.state(module, nnx.Param)), given.params)
    sharding = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), PartitionSpec())
    abstract = kfb.TrainState.abstract(contracts.SEQUENTIAL.build)
    like = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), abstract)
    restored = kfb.restore(tmp_path / "small", like)
    assert {leaf.sharding for leaf in jax.tree.leaves(restored)} == {sharding}


def test_packed_writes_few_files(tmp_path):
    tree = {f"{i}": {"a.b/c": jnp.full(3, i)} for i in range(300)}
    kfb.save(tmp_path / "packed", tree, layout="packed")
    assert equal(kfb.restore(tmp_path / "packed", tree), tree)
    assert len(list((tmp_path / "packed").rglob("*"))) < 40


# --- resuming


def batches():
    """Shuffled batches that never end, as Grain gives them."""
    rows = grain.MapDataset.range(64).seed(3).shuffle().repeat()
    x, y = contracts.SEQUENTIAL.x, contracts.SEQUENTIAL.y
    return iter(rows.map(lambda i: (x[i], y[i])).batch(8).to_iter_dataset())


def run(folder, steps, *, die_at=None):
    """Trains up to `steps` from wherever the folder is; prints the final bits."""
    model, data = contracts.SEQUENTIAL.build(), batches()
    state, train_step = kfb.TrainState.from_keras(model), kfb.make_train_step(model)
    with kfb.CheckpointManager(folder, save_every=3) as manager:
        if manager.latest_step is not None:
            state = manager.restore(state, data=data)
        while int(state.step) < steps:
            state, _ = train_step(state, next(data))
            manager.save(state, data=data)
            if int(state.step) == die_at:
                os.kill(os.getpid(), 9)
    leaves = {join_path(p): np.asarray(v).tobytes().hex() for p, v in flatten_tree(state).items()}
    print(json.dumps(leaves))


def spawn(code):
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", f"import tests.conftest, {__name__} as t\n{code}"]
    return subprocess.run(command, capture_output=True, text=True, cwd=root, env={**os.environ})


@pytest.mark.slow
def test_killed_and_resumed_ends_with_the_same_bits(tmp_path):
    killed = spawn(f"t.run({str(tmp_path / 'a')!r}, 13, die_at=8)")
    assert killed.returncode == -9, killed.stderr
    resumed = spawn(f"t.keras.layers.Dropout(0.5); t.run({str(tmp_path / 'a')!r}, 13)")
    straight = spawn(f"t.run({str(tmp_path / 'b')!r}, 13)")
    assert straight.returncode == 0, straight.stderr
    assert resumed.stdout == straight.stdout != ""


def test_data_that_was_not_saved_is_named(saved):
    path, _, state = saved
    with pytest.raises(kfb.CheckpointError, match="data="):
        kfb.restore(path, state, data=batches())
