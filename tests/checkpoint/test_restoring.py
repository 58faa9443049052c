"""A checkpoint comes back as a state, a model or a module, and a killed run goes on."""

import json
import os
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


# --- one checkpoint, four readers


@pytest.mark.slow
def test_a_restored_model_trains_on(saved):
    path, model, state = saved
    other = kfb.restore(path, contracts.SEQUENTIAL.build(), include=["params", "non_trainable", "opt_state"])
    continued, _ = kfb.make_train_step(other)(kfb.TrainState.from_keras(other), BATCH)
    assert equal(continued.params, kfb.make_train_step(model)(state, BATCH)[0].params)


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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
