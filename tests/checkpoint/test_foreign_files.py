"""What other people's folders hold, written by the libraries themselves, into every target."""

import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest
from flax import nnx, serialization
from keras import layers

import keras_flax_bridge as kfb
from keras_flax_bridge import keras_internals
from keras_flax_bridge.checkpoint import readers
from keras_flax_bridge.tree.paths import flatten_tree, join_path
from tests.tables.foreign_files import FORMATS, NAMES, PAIRS, RENAMES, composite, npz, shards, tensors

pytestmark = pytest.mark.filterwarnings("ignore")  # of Orbax, about options that Flax leaves out


def build(*, compiled=False, dropout=0.0):
    inputs = keras.Input((4,))
    x = layers.BatchNormalization(name="norm")(layers.Dense(3, name="first")(inputs))
    model = keras.Model(inputs, layers.Dense(2)(layers.Dropout(dropout)(x) if dropout else x))
    if compiled:
        model.compile("adam", "mse", metrics=["mae"])
    return model


SPECS = {row.key: row.shape for row in kfb.keys(build()) if row.key in NAMES}
RNG = np.random.default_rng(0)
VALUES = {key: RNG.standard_normal(shape).astype("float32") for key, shape in SPECS.items()}
THEIRS = {NAMES[key]: value for key, value in VALUES.items()}


def values_of(tree):
    """Values by structural key, of what is in `VALUES`; a wrapper has all below ``params``."""
    flat = {join_path(path): np.asarray(leaf) for path, leaf in flatten_tree(tree).items()}
    places = {key: key if key in flat else f"params/{key.partition('/')[2]}" for key in VALUES}
    places = {key: place if place in flat else place.partition("/")[2] for key, place in places.items()}
    return {key: flat[place] for key, place in places.items()}


def of_model(model):
    weights = keras_internals.collect_layer(model)
    return values_of(dict(zip(WEIGHTS, (part.tree() for part in weights), strict=True)))


def same(found):
    return found.keys() == VALUES.keys() and all(np.array_equal(found[key], VALUES[key]) for key in VALUES)


def of_state(state):
    return values_of({"params": state.params, "non_trainable": state.non_trainable})


WEIGHTS = ["params", "non_trainable"]


def into_flat_dict(path, **options):
    like = {key: jax.ShapeDtypeStruct(value.shape, value.dtype) for key, value in VALUES.items()}
    return kfb.restore(path, like, **options)


def into_abstract_state(path, **options):
    state = kfb.restore(path, kfb.TrainState.abstract(build, optimizer="sgd"), include=WEIGHTS, **options)
    return of_state(state)


def into_linen(path, **options):
    module = kfb.ToLinen(build())
    variables = jax.tree.map(jnp.zeros_like, module.init(jax.random.key(0), np.ones((1, 4), "float32")))
    found = kfb.restore(path, variables, **options)
    return values_of({"params": found["params"], "non_trainable": found["batch_stats"]})


TARGETS = {
    "a model": lambda path, **options: of_model(kfb.restore(path, build(), **options)),
    "a compiled model": lambda path, **options: of_model(
        kfb.restore(path, build(compiled=True), include=WEIGHTS, **options)
    ),
    "a state": lambda path, **options: of_state(
        kfb.restore(path, kfb.TrainState.from_keras(build(compiled=True)), include=WEIGHTS, **options)
    ),
    "an abstract state": into_abstract_state,
    "ToNNX": lambda path, **options: values_of(
        nnx.to_pure_dict(nnx.state(kfb.restore(path, kfb.ToNNX(build()), **options)))
    ),
    "native NNX": lambda path, **options: of_model(
        kfb.migrate.to_keras(kfb.restore(path, kfb.migrate.to_nnx(build()), **options), build())
    ),
    "ToLinen": into_linen,
    "a flat dict": into_flat_dict,
    "dict": lambda path, **options: values_of(kfb.restore(path, dict, **options)),
}


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "a flat dict in Orbax"])
def test_a_format_is_read_by_structural_keys_and_looked_at(tmp_path, name):
    given = FORMATS[name].write(tmp_path, dict(VALUES))
    assert same(TARGETS["a model"](given))
    if not isinstance(given, (dict, np.lib.npyio.NpzFile)):
        assert readers.opened(given).kind == FORMATS[name].kind
        report = kfb.verify(given)
        assert report.damaged == {}
        assert report.leaves == len(VALUES)
        with pytest.raises(kfb.BridgeError, match="step=3"):
            kfb.restore(given, dict, step=3)


@pytest.mark.parametrize("target", [*TARGETS][1:])
def test_shards_and_msgpack_go_into_every_target(tmp_path, target):
    for name in ("shards of Hugging Face", "msgpack", "npz"):
        folder = tmp_path / name
        folder.mkdir()
        if FORMATS[name].nested and target == "a flat dict":
            continue
        assert same(TARGETS[target](FORMATS[name].write(folder, dict(VALUES)))), name


@pytest.mark.parametrize("target", [name for name in TARGETS if name != "a flat dict"])
def test_names_of_others_are_mapped_into_every_target(tmp_path, target):
    given = shards(tmp_path, THEIRS)
    for how, rename in RENAMES.items():
        assert same(TARGETS[target](given, rename=rename)), how


def test_names_without_the_tree_and_names_in_one_level(tmp_path):
    given = tensors(tmp_path, {key.partition("/")[2]: value for key, value in VALUES.items()})
    assert same(TARGETS["a model"](given))
    flat = kfb.restore(tensors(tmp_path, THEIRS), {name: np.zeros_like(a) for name, a in THEIRS.items()})
    assert all(np.array_equal(flat[name], THEIRS[name]) for name in THEIRS)
    linear = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    own = {"m.kernel": VALUES["params/first/kernel"], "m.bias": VALUES["params/first/bias"]}
    kfb.restore(own, linear, rename=[(r"^m\.", "")])
    assert np.array_equal(linear.kernel[...], own["m.kernel"])


def test_every_leaf_of_a_file_of_others_is_accounted_for(tmp_path):
    model = build()
    before = model.get_weights()
    fewer = {name: value for name, value in THEIRS.items() if name != "model.first.bias"}
    with pytest.raises(kfb.StructureMismatchError) as caught:
        kfb.restore(shards(tmp_path, {**fewer, "model.more": np.ones(2, "float32")}), model, rename=PAIRS)
    assert caught.value.missing == ("params/first/bias",)
    assert caught.value.unexpected == ("model.more",)
    with pytest.raises(kfb.StructureMismatchError, match="rename="):
        kfb.restore(tmp_path, model)
    with pytest.raises(kfb.StructureMismatchError, match="opt_state/momentums/first/kernel"):
        kfb.restore(tensors(tmp_path, THEIRS), build(compiled=True), rename=PAIRS)
    wrong = {**THEIRS, "model.first.weight": THEIRS["model.first.weight"].T}
    with pytest.raises(kfb.StructureMismatchError, match=r"float32\[3,4\].*float32\[4,3\]"):
        kfb.restore(tensors(tmp_path, wrong), model, rename=PAIRS)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))


# --- Keras's paths

PATHS = ["npz", "a flat dict in Orbax", "a dict", "safetensors", "npz, loaded"]


@pytest.mark.parametrize("name", PATHS)
def test_a_dictionary_by_path_of_another_process_is_read(tmp_path, name):
    source = build(compiled=True, dropout=0.5)
    source.fit(np.ones((4, 4)), np.ones((4, 2)), verbose=0)
    build()  # so that automatic names are others
    weights = {v.path: np.asarray(v.value) for v in source.weights}
    whole = weights | {
        v.path: np.asarray(v.value)
        for v in [*source.variables, *source.optimizer.variables, *source.metrics_variables]
    }
    for folder, arrays in {"weights": weights, "whole": whole}.items():
        (tmp_path / folder).mkdir()
        given, model = FORMATS[name].write(tmp_path / folder, arrays), build(compiled=True, dropout=0.5)
        assert kfb.restore(given, model, keys="path") is model
        assert all(map(np.array_equal, model.get_weights(), source.get_weights()))
        trained = zip(model.optimizer.variables, source.optimizer.variables, strict=True)
        equal = [np.array_equal(a, b) for a, b in trained]
        assert all(equal) == (folder == "whole")
        module = kfb.restore(
            given, kfb.ToNNX(build(dropout=0.5)), keys="path", include=["params"], partial=True
        )
        assert np.array_equal(module.first.kernel[...], weights["first/kernel"])
    state = kfb.restore(given, kfb.TrainState.from_keras(build(compiled=True, dropout=0.5)), keys="path")
    assert int(state.step) == 1
    slot = source.optimizer.variables[2]
    assert slot.path.endswith("first_kernel_momentum")
    assert np.array_equal(state.opt_state["momentums"]["first"]["kernel"], slot)


def test_rename_comes_before_paths_and_what_is_unknown_is_told(tmp_path):
    source = build()
    arrays = {f"model/{v.path}": np.asarray(v.value) for v in source.weights}
    given, model = npz(tmp_path, arrays), build()
    kfb.restore(given, model, keys="path", rename=[("^model/", "")])
    assert all(map(np.array_equal, model.get_weights(), source.get_weights()))
    with pytest.raises(kfb.StructureMismatchError, match=r"unexpected  more/kernel"):
        kfb.restore({**{v.path: v for v in source.weights}, "more/kernel": np.ones(1)}, model, keys="path")
    some = {v.path: v for v in source.weights if v.path != "first/bias"}
    with pytest.raises(kfb.StructureMismatchError, match="missing     params/first/bias"):
        kfb.restore(some, model, keys="path")
    two = keras.Sequential([keras.Input((4,)), layers.Dense(3)])
    with pytest.raises(kfb.StructureMismatchError, match="params/dense/kernel"):
        kfb.restore({v.path: v for v in source.weights}, two, keys="path")
    for wrong in ({"like": {"a": np.ones(1)}, "keys": "path"}, {"like": model, "keys": "name"}):
        with pytest.raises(kfb.ArgumentError, match="keys"):
            kfb.restore(given, **wrong)


class Twins(keras.Model):
    """Two layers of one name, whose variables have one path."""

    def __init__(self):
        super().__init__(name="twins")
        self.a, self.b = layers.Dense(4, name="same"), layers.Dense(4, name="same")

    def call(self, x):
        return self.b(self.a(x))


def test_variables_of_one_path_are_an_error():
    model = Twins()
    model(np.ones((1, 4)))
    with pytest.raises(kfb.StructureMismatchError, match="params/a/kernel  twins/same/kernel"):
        kfb.restore({v.path: v for v in model.weights}, model, keys="path")


def test_the_table_of_keys():
    model = build(compiled=True, dropout=0.5)
    table = kfb.keys(model)
    assert len(table) == len(table.rows) == len({row.key for row in table})
    assert {row.kind for row in table} == {"param", "batch_stat", "seed", "slot"}
    row = table["params/first/kernel"]
    assert (row.path, row.shape, row.dtype, row.kind) == ("first/kernel", (4, 3), "float32", "param")
    slot = table["opt_state/momentums/first/kernel"]
    assert table[slot.path] == slot
    state = {join_path(path) for path in flatten_tree(kfb.TrainState.from_keras(model))}
    assert {row.key for row in table} <= state
    with pytest.raises(kfb.ArgumentError, match="Keras model"):
        kfb.keys({"a": 1})
    with pytest.raises(kfb.NotBuiltError):
        kfb.keys(keras.Sequential([layers.Dense(2)]))
    with pytest.raises(kfb.StructureMismatchError, match="0 variables"):
        table["nothing"]


# --- Flax and Orbax


def flax_state(fill):
    from flax.training.train_state import TrainState

    params = {"a": {"kernel": jnp.full((2, 3), fill)}, "b": jnp.full(2, fill, jnp.bfloat16)}
    return TrainState.create(apply_fn=None, params=params, tx=optax.adamw(1e-3))


def test_a_state_in_msgpack_has_optax_s_types_and_dtypes(tmp_path, monkeypatch):
    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 8)  # arrays in parts, as above 1 GB
    for number, state in enumerate((flax_state(2.0), flax_state(3.0).replace(step=jnp.int32(7)))):
        path = tmp_path / f"{number}.msgpack"
        path.write_bytes(serialization.to_bytes(state))
        back = kfb.restore(path, flax_state(0.0).replace(step=state.step * 0))
        assert type(back.opt_state[0]) is type(state.opt_state[0])
        assert int(back.step) == 7 * number
        for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(state), strict=True):
            assert np.asarray(a).dtype == np.asarray(b).dtype
            assert np.array_equal(a, b)
    whole = serialization.msgpack_serialize({"l": [1, 2.5, True, None, 1 + 2j, np.float32(3)], "n": {0: X}})
    path.write_bytes(whole)
    found = kfb.restore(path, dict)
    assert found["l"] == {"0": 1, "1": 2.5, "2": True, "4": 1 + 2j, "5": 3}
    assert np.array_equal(found["n"]["0"], X)


X = np.arange(6.0).reshape(2, 3)


def test_several_trees_are_read_together_or_one_by_one(tmp_path):
    given = composite(tmp_path, dict(VALUES))
    assert same(TARGETS["a model"](given))
    assert same(TARGETS["ToLinen"](given))
    assert same(TARGETS["dict"](given))
    part = kfb.restore(given, dict, include=["params"])
    assert list(part) == ["params"]
    alone = kfb.restore(given / "3" / "params", part["params"])
    assert np.array_equal(alone["first"]["kernel"], VALUES["params/first/kernel"])
    assert readers.opened(given).kind == "checkpoint of several trees"
    report = kfb.verify(given)
    assert report.leaves == len(VALUES)
    assert set(report.unchecked) == set(VALUES)
    with pytest.raises(kfb.StructureMismatchError, match="unexpected  params/first/bias"):
        kfb.restore(given, {"non_trainable": part})


def test_one_tree_of_several_may_be_the_usual_one(tmp_path):
    renamed = {
        key.replace("params/", "state/").replace("non_trainable/", "ema/"): v for key, v in VALUES.items()
    }
    given = composite(tmp_path, renamed)
    state = kfb.restore(given, dict)["state"]
    like = jax.tree.map(np.zeros_like, state)
    assert np.array_equal(kfb.restore(given, like)["first"]["bias"], VALUES["params/first/bias"])
    both = kfb.restore(given, {"state": like, "ema": kfb.restore(given, dict)["ema"]})
    assert np.array_equal(both["ema"]["norm"]["moving_mean"], VALUES["non_trainable/norm/moving_mean"])


def test_which_names_are_steps(tmp_path):
    like = {"a": np.zeros(2)}
    with kfb.CheckpointManager(tmp_path / "own", save_every=1) as manager:
        manager.save({"a": np.ones(2)}, step=5)
        manager.wait()
        kfb.save(tmp_path / "own" / "best_7", {"a": np.full(2, 7.0)})
        manager.save({"a": np.ones(2)}, step=6)  # what is called otherwise is none of its steps
        manager.wait()
        assert manager.all_steps() == [5, 6]
    assert kfb.restore(tmp_path / "own", like)["a"][0] == 1
    for name in ("a_1", "b_2"):
        kfb.save(tmp_path / "two" / name, {"a": np.ones(2)})
    with pytest.raises(kfb.CheckpointError, match=r"a_\*, b_\*"):
        kfb.restore(tmp_path / "two", like)
    kfb.save(tmp_path / "two" / "checkpoint_3", {"a": np.full(2, 3.0)})  # what Flax looks for
    with kfb.CheckpointManager(tmp_path / "two") as manager:
        assert manager.latest_step == 3
        assert manager.restore(like)["a"][0] == 3
        assert kfb.restore(tmp_path / "two" / "a_1", like, step=1)["a"][0] == 1
