"""Every kind of file as every other, read by the code that it is for."""

import json
import shutil

import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from flax.training import train_state
from keras import layers

import keras_flax_bridge as kfb
from keras_flax_bridge import cli
from keras_flax_bridge.tree.leaves import on_disk
from tests.checkpoint.test_checksums import TREE
from tests.support import files
from tests.support.capabilities import where
from tests.support.cases import differing

TREES = ("params", "non_trainable", "opt_state")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    return folder, files.write(folder)


def as_state(path):
    back = kfb.restore(path, kfb.TrainState.abstract(files.build))
    return {tree: getattr(back, tree) for tree in TREES}


def as_flax(path):
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(path)


def as_model(path):
    return of_model(keras.saving.load_model(path))


def as_weights(path):
    model = files.build()
    model.optimizer.build(model.trainable_variables)
    model.load_weights(path)
    return of_model(model)


def of_model(model):
    state = kfb.TrainState.from_keras(model)
    return {tree: getattr(state, tree) for tree in TREES}


def as_tensors(path):
    from safetensors.numpy import load_file

    tree = {}
    for name, leaf in load_file(path).items():
        *above, last = name.split("/")
        node = tree
        for part in above:
            node = node.setdefault(part, {})
        node[last] = leaf
    return tree


SOURCES = ["tree", "packed", "model.keras", "model.weights.h5", "flax", "model.safetensors"]
SOURCES += where("OrbaxCheckpoint", ["orbax"])
TARGETS = {
    "checkpoint": ("out", as_state),
    "flax": ("out", as_flax),
    "keras": ("out.keras", as_model),
    "weights.h5": ("out.weights.h5", as_weights),
    "safetensors": ("out.safetensors", as_tensors),
}


def pairs():
    for source in SOURCES:
        for target in TARGETS:
            lacking = "safetensors" in source + target and not files.HAS_SAFETENSORS
            skip = pytest.mark.skipif(lacking, reason="safetensors isn't installed")
            marks = [skip] if source in ("tree", "model.keras") else [skip, pytest.mark.slow]
            yield pytest.param(source, target, marks=marks, id=f"{source} to {target}")


def without_seeds(tree):
    """Seeds are drawn where the source holds none."""
    dropout = {**tree["non_trainable"]}
    dropout.pop("dropout", None)
    return {name: tree[name] for name in ("params", "opt_state")} | {"non_trainable": dropout}


@pytest.mark.every(fast=2, slow=2)
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Sharding info not provided")
@pytest.mark.parametrize(("source", "target"), list(pairs()))
def test_every_kind_becomes_every_other_bit_for_bit(made, tmp_path, capsys, source, target):
    folder, state = made
    name, read = TARGETS[target]
    arguments = ["convert", str(folder / source), str(tmp_path / name), "--to", target]
    if source in ("model.weights.h5", "flax", "model.safetensors"):
        arguments += ["--model", str(folder / "model.keras")]
    assert cli.main(arguments) == 0
    assert "read back the same" in capsys.readouterr().out
    wanted = {tree: getattr(state, tree) for tree in TREES}
    assert differing(without_seeds(read(tmp_path / name)), without_seeds(wanted)) == []
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.slow
def test_a_seed_stays_where_both_kinds_hold_it(made, tmp_path):
    folder, state = made
    for source in ("packed", *where("OrbaxCheckpoint", ["orbax"])):
        assert cli.main(["convert", str(folder / source), str(tmp_path / source)]) == 0
        assert differing(as_state(tmp_path / source)["non_trainable"], state.non_trainable) == []


@pytest.mark.slow
def test_a_checkpoint_keeps_its_config_and_a_model_gives_one(made, tmp_path, capsys):
    folder, state = made
    given = ["--model", str(folder / "model.keras")]
    acts = {"tree": ["--layout", "packed"], "model.keras": [], **where("OrbaxCheckpoint", {"orbax": []})}
    acts |= {"flax": given, "model.weights.h5": given}
    for source, options in acts.items():
        target = tmp_path / source.replace(".", "_")
        assert cli.main(["convert", str(folder / source), str(target), *options]) == 0
        loaded = of_model(kfb.load_model(target))
        assert differing(without_seeds(loaded), without_seeds({t: getattr(state, t) for t in TREES})) == []
    capsys.readouterr()
    assert cli.main(["inspect", str(tmp_path / "tree"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "checkpoint, packed"


ODD_LEFT = {
    "flax": "left out: empty (Orbax can't store arrays without elements)",
    "safetensors": "numbers that are arrays now: step",
}


@pytest.mark.slow
@pytest.mark.parametrize("target", ["checkpoint", "flax", "safetensors"])
def test_odd_leaves_are_kept_or_named(tmp_path, capsys, target):
    if target == "safetensors" and not files.HAS_SAFETENSORS:
        pytest.skip("safetensors isn't installed")
    kfb.save(tmp_path / "odd", TREE)
    name, _ = TARGETS[target]
    assert cli.main(["convert", str(tmp_path / "odd"), str(tmp_path / name), "--to", target]) == 0
    told = capsys.readouterr().out
    assert ODD_LEFT.get(target, "6 leaves") in told
    if target == "flax":
        back = as_flax(tmp_path / name)
        wanted = {key: leaf for key, leaf in TREE.items() if key != "empty"}
        assert differing(back, wanted | {"key": jax.random.key_data(TREE["key"])}) == []
    assert cli.main(["diff", str(tmp_path / "odd"), str(tmp_path / name), "--values"]) == (
        target != "checkpoint"
    )


def create(fill):
    params = {"w": jnp.full((3, 2), fill)}
    return train_state.TrainState.create(apply_fn=None, params=params, tx=optax.adam(1e-3))


class Module(nnx.Module):
    def __init__(self, seed):
        rngs = nnx.Rngs(seed)
        self.layers = nnx.List([nnx.Linear(4, 3, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)])


def plain(module):
    return jax.tree.map(lambda leaf: np.asarray(on_disk(leaf)), nnx.to_pure_dict(nnx.state(module)))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Sharding info not provided")
def test_states_of_flax_restore_from_what_they_became(tmp_path):
    module, state = Module(0), create(2.0)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.save(tmp_path / "module", nnx.state(module))
    for name in ("state", "module"):
        assert cli.main(["convert", str(tmp_path / name), str(tmp_path / f"{name}-ours")]) == 0
        assert cli.main(["diff", str(tmp_path / name), str(tmp_path / f"{name}-ours"), "--values"]) == 0
    back = kfb.restore(tmp_path / "state-ours", jax.eval_shape(create, 0.0))
    assert differing(back, state) == []
    assert type(back.opt_state[0]) is type(state.opt_state[0])
    assert differing(plain(kfb.restore(tmp_path / "module-ours", Module(1))), plain(module)) == []


def test_an_optimizer_that_has_no_place_is_named(tmp_path, capsys):
    model = keras.Sequential([keras.Input((6,)), layers.Dense(3)])
    kfb.save(tmp_path / "optax", kfb.TrainState.from_keras(model, optimizer=optax.adam(1e-3)))
    assert cli.main(["convert", str(tmp_path / "optax"), str(tmp_path / "a.keras")]) == 0
    told = capsys.readouterr().out
    assert "opt_state/0/mu/dense/kernel" in told
    assert "(the model has no optimizer of Keras's with such slots)" in told


@pytest.mark.slow
def test_weights_alone_start_the_optimizer_of_the_model_they_go_into(made, tmp_path, capsys):
    folder, state = made
    kfb.save(tmp_path / "weights", {"params": state.params, "non_trainable": state.non_trainable})
    arguments = ["convert", str(tmp_path / "weights"), str(tmp_path / "a.keras")]
    assert cli.main([*arguments, "--model", str(folder / "model.keras")]) == 0
    assert "as the model starts them: opt_state/iteration" in capsys.readouterr().out
    loaded = as_model(tmp_path / "a.keras")
    assert differing(loaded["params"], state.params) == []
    assert int(loaded["opt_state"]["iteration"]) == 0
    assert not np.any(loaded["opt_state"]["momentums"]["first"]["kernel"])


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_nothing_is_replaced_unless_it_is_asked_for(made, tmp_path, capsys):
    folder, _ = made
    target, other = tmp_path / "out", tmp_path / "other"
    shutil.copytree(folder / "tree", target)
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    before = contents(target)
    assert cli.main(["convert", str(folder / "packed"), str(target)]) == 2
    assert "--force replaces it" in capsys.readouterr().err
    assert contents(target) == before
    assert cli.main(["convert", str(folder / "packed"), str(other), "--force"]) == 2
    assert cli.main(["convert", str(folder / "packed"), str(folder), "--force"]) == 2
    assert cli.main(["convert", str(folder / "packed"), str(target), "--layout", "packed", "--force"]) == 0
    assert contents(target).keys() != before.keys()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "out"]


def test_what_fails_leaves_nothing(made, tmp_path, monkeypatch, capsys):
    folder, _ = made
    # another value is written than was read
    monkeypatch.setattr(keras.Model, "save", _saving_other_values(keras.Model.save))
    assert cli.main(["convert", str(folder / "tree"), str(tmp_path / "a.keras")]) == 2
    assert "params/first/kernel" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def _saving_other_values(save):
    def saving(model, path):
        model.layers[0].kernel.assign(model.layers[0].kernel + 1)
        save(model, path)

    return saving


def test_a_missing_library_is_one_line(made, tmp_path, monkeypatch, capsys):
    folder, _ = made
    monkeypatch.setitem(__import__("sys").modules, "safetensors", None)
    assert cli.main(["convert", str(folder / "tree"), str(tmp_path / "a.safetensors")]) == 2
    assert "pip install 'keras-flax-bridge[safetensors]'" in capsys.readouterr().err
