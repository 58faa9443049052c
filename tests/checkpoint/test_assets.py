"""Layers whose state lies in files, such as vocabularies: passed over, stored, brought back."""

import pathlib
import shutil
import zlib

import jax
import keras
import numpy as np
import pytest
from keras import layers

import keras_flax_bridge as kfb
from keras_flax_bridge import cli
from keras_flax_bridge.checkpoint import assets, orbax_io
from keras_flax_bridge.startup import compat
from keras_flax_bridge.tree.untrusted.schema import Malformed
from tests.attacks import goods
from tests.support.cases import differing

IDS, Y = np.array([[1, 2], [0, 1]], "int32"), np.ones((2, 2, 2), "float32")
WORDS = ["a", "é", "c"]


@keras.saving.register_keras_serializable("assets")
class Words(layers.Layer):
    """Words in two files, one of them in a folder; its config has none of them, as in KerasHub."""

    def __init__(self, words=None, **options):
        super().__init__(**options)
        self.words = words
        self.built = True

    def call(self, x):
        return x

    def ids(self, text):
        return np.array([[self.words.index(word) for word in text.split()]])

    def save_assets(self, folder):
        pathlib.Path(folder, "words.txt").write_text("\n".join(self.words), encoding="utf-8")
        pathlib.Path(folder, "more").mkdir()
        pathlib.Path(folder, "more", "bytes").write_bytes(bytes(range(len(self.words))))

    def load_assets(self, folder):
        found = pathlib.Path(folder, "words.txt").read_text(encoding="utf-8").split("\n")
        if len(pathlib.Path(folder, "more", "bytes").read_bytes()) != len(found):
            raise ValueError("another number of bytes")
        self.words = found


@keras.saving.register_keras_serializable("assets")
class Preprocessor(layers.Layer):
    def __init__(self, tokenizer, **options):
        super().__init__(**options)
        self.tokenizer = tokenizer
        self.built = True

    def call(self, x):
        return x

    def get_config(self):
        return {**super().get_config(), "tokenizer": keras.saving.serialize_keras_object(self.tokenizer)}

    @classmethod
    def from_config(cls, config):
        tokenizer = keras.saving.deserialize_keras_object(config.pop("tokenizer"))
        return cls(tokenizer, **config)


@keras.saving.register_keras_serializable("assets")
class Task(keras.Model):
    """A model that holds what it doesn't call, as tasks of KerasHub do."""

    def __init__(self, words=WORDS, **options):
        super().__init__(**options)
        self.embedding = layers.Embedding(3, 2)
        self.dropout = layers.Dropout(0.5)
        self.preprocessor = Preprocessor(Words(words))
        self.others = [Words(["x"]), {"one": Words(["y", "z"])}]

    def call(self, ids):
        return self.dropout(self.embedding(ids))

    def get_config(self):
        return {"words": None, "name": self.name}

    def of_text(self, text):
        return np.asarray(self(self.preprocessor.tokenizer.ids(text)))

    @property
    def vocabulary(self):
        return self.preprocessor.tokenizer.words


@keras.saving.register_keras_serializable("assets")
class Table(layers.Layer):
    """A layer with files and with variables."""

    def __init__(self, names=(), **options):
        super().__init__(**options)
        self.names = list(names)
        self.scale = self.add_weight(shape=(2,), name="scale")

    def call(self, x):
        return x * self.scale

    def save_assets(self, folder):
        pathlib.Path(folder, "names").write_text(" ".join(self.names))

    def load_assets(self, folder):
        self.names = pathlib.Path(folder, "names").read_text().split()


def task(words=WORDS):
    model = Task(words)
    model(IDS)
    model.compile("adam", "mse")
    return model


def in_the_graph():
    body = [Words(WORDS, name="words"), layers.Embedding(3, 2), Table(["p", "q"])]
    model = keras.Sequential([keras.Input((2,), dtype="int32"), *body])
    model.compile("adam", "mse")
    return model


def files_of(model):
    return assets.of_models({"": model}).files[""]


TOKENIZER = "layers/preprocessor/tokenizer"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A trained task, and the folder that it was saved in."""
    folder = tmp_path_factory.mktemp("assets")
    model = task()
    model.fit(IDS, Y, verbose=0, callbacks=[kfb.callbacks.TrainStateCheckpoint(folder / "fit")])
    kfb.save(folder / "one", kfb.TrainState.from_keras(model), model=model)
    kfb.save(folder / "packed", kfb.TrainState.from_keras(model), layout="packed")
    model.save(folder / "model.keras")
    return model, folder


# --- the doors


def test_layers_without_variables_are_passed_over():
    for build in (task, in_the_graph):
        state = kfb.TrainState.from_keras(build())
        abstract = kfb.TrainState.abstract(build)
        assert jax.tree.structure(state.params) == jax.tree.structure(abstract.params)
    assert list(kfb.TrainState.from_keras(task()).params) == ["embedding"]
    assert "scale" in kfb.TrainState.from_keras(in_the_graph()).params["table"]


@pytest.mark.parametrize("build", [task, in_the_graph])
def test_flax_modules_compute_as_before(build):
    model = build()
    want = np.asarray(model(IDS))
    wrapped = kfb.ToNNX(model)
    wrapped.eval()
    assert np.array_equal(wrapped(IDS), want)
    module = kfb.ToLinen(build())
    assert module.apply(module.init(jax.random.key(0), IDS), IDS).shape == want.shape


@pytest.mark.parametrize("name", ["one", "packed", "fit", "model.keras"])
def test_load_model_brings_the_files_back(saved, name):
    model, folder = saved
    loaded = kfb.load_model(folder / name)
    assert files_of(loaded) == files_of(model)
    assert np.array_equal(loaded.of_text("a c é"), model.of_text("a c é"))
    assert kfb.verify(folder / name).ok


@pytest.mark.parametrize("words", [None, ["c", "a"], WORDS])
@pytest.mark.parametrize("name", ["one", "model.keras"])
def test_restore_fills_the_layers_of_a_model(saved, name, words):
    model, folder = saved
    other = kfb.restore(folder / name, task(words))
    assert (other.vocabulary, other.others[1]["one"].words) == (WORDS, ["y", "z"])
    assert np.array_equal(other.of_text("é c"), model.of_text("é c"))


def test_a_part_leaves_the_files_as_they_are(saved):
    assert kfb.restore(saved[1] / "one", task(["u"]), include=["params"]).vocabulary == ["u"]


def test_layers_with_variables_have_both(tmp_path):
    model = in_the_graph()
    kfb.save(tmp_path / "one", kfb.TrainState.from_keras(model))
    loaded = kfb.load_model(tmp_path / "one")
    assert (loaded.layers[0].words, loaded.layers[2].names) == (WORDS, ["p", "q"])
    assert not differing(kfb.TrainState.from_keras(loaded).params, kfb.TrainState.from_keras(model).params)


def test_several_models_have_their_own(tmp_path):
    models = {"first": task(), "second": task(["q", "r", "s"])}
    kfb.save(tmp_path / "one", kfb.TrainState.from_keras(models))
    loaded = kfb.load_model(tmp_path / "one")
    assert [loaded[name].vocabulary for name in models] == [WORDS, ["q", "r", "s"]]
    filled = kfb.restore(tmp_path / "one", {"first": task(["q"]), "second": task(["t"])})
    assert [filled[name].vocabulary for name in models] == [WORDS, ["q", "r", "s"]]


@pytest.mark.skipif(not compat.kinds("OrbaxCheckpoint"), reason="this Keras has no such callback")
def test_files_of_keras_s_callback_are_read(saved, tmp_path):
    model, _ = saved
    saver = keras.callbacks.OrbaxCheckpoint(str(tmp_path / "orbax"))
    saver.set_model(model)
    saver.on_train_begin()
    saver.on_epoch_end(0)
    saver.on_train_end()
    assert files_of(kfb.load_model(tmp_path / "orbax")) == files_of(model)


# --- what is told


def test_inspect_names_the_files(saved, capsys):
    model, folder = saved
    sizes = [f"assets/{name} ({len(content):,} bytes)" for name, content in files_of(model).items()]
    assert f"assets/{TOKENIZER}/words.txt (6 bytes)" in sizes
    for path in (folder / "one", folder / "model.keras"):
        assert cli.main(["inspect", str(path)]) == 0
        said = " ".join(capsys.readouterr().out.split())
        assert all(name in said for name in sizes), said


def test_a_vocabulary_that_is_not_there_is_the_reason_why_no_model_comes_back(tmp_path):
    kfb.save(tmp_path / "one", kfb.TrainState.from_keras(task(words=None)))
    with pytest.raises(kfb.CheckpointError, match=r"no model config.*TypeError"):
        kfb.load_model(tmp_path / "one")


def spoilt(folder, tmp_path, change):
    """A copy of a checkpoint, in whose metadata the index of the files is another."""
    shutil.copytree(folder, tmp_path / "spoilt")
    found = goods.ours(tmp_path / "spoilt")
    index = found["assets"][""]
    change(index)
    goods.set_ours(tmp_path / "spoilt", found)
    return tmp_path / "spoilt"


# what an index may be changed to


def damage(index):
    index[f"{TOKENIZER}/words.txt"][1] ^= 1


def test_damaged_files_are_named(saved, tmp_path):
    path = spoilt(saved[1] / "one", tmp_path, damage)
    report = kfb.verify(path)
    assert list(report.damaged) == [f"assets/{TOKENIZER}/words.txt"]
    before = task(["u"])
    with pytest.raises(kfb.CorruptCheckpointError, match=r"preprocessor/tokenizer/words\.txt"):
        kfb.load_model(path)
    with pytest.raises(kfb.CorruptCheckpointError, match=r"preprocessor/tokenizer/words\.txt"):
        kfb.restore(path, before)
    assert before.vocabulary == ["u"]


def renamed(index):
    items = list(index.items())
    index.clear()
    index.update({name.replace("preprocessor", "postprocessor"): row for name, row in items})


def unlike(index):
    """One byte of the second file of a layer at the end of the first; both checksums are right."""
    whole = "\n".join(WORDS).encode() + bytes(range(len(WORDS)))
    index[f"{TOKENIZER}/words.txt"] = [7, zlib.crc32(whole[:7])]
    index[f"{TOKENIZER}/more/bytes"] = [2, zlib.crc32(whole[7:])]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (renamed, "assets of .*postprocessor|the layer can't read"),
        (unlike, "tokenizer.*another number of bytes"),
    ],
)
def test_files_that_no_layer_reads_leave_a_model_as_it_was(saved, tmp_path, change, match):
    path = spoilt(saved[1] / "one", tmp_path, change)
    with pytest.raises(kfb.CheckpointError, match=match):
        kfb.load_model(path)
    before = task(["u", "v"])
    weights = before.get_weights()
    with pytest.raises(kfb.CheckpointError, match=match):
        kfb.restore(path, before)
    assert before.vocabulary == ["u", "v"]
    assert before.others[1]["one"].words == ["y", "z"]
    assert all(map(np.array_equal, before.get_weights(), weights))


@keras.saving.register_keras_serializable("assets")
class Weighted(Words):
    """Arrays that are no variables, as a lookup with tf-idf has them."""

    def save_own_variables(self, store):
        store["idf"] = np.ones(3)


def test_arrays_outside_of_variables_are_refused_by_name():
    model = keras.Sequential([keras.Input((2,)), Weighted(WORDS, name="lookup"), layers.Dense(1)])
    with pytest.raises(kfb.UnsupportedLayerError, match=r"'lookup'.*arrays that are in no variable.*idf"):
        assets.of_models({"": model})


class Linked(Words):
    def save_assets(self, folder):
        pathlib.Path(folder, "words.txt").symlink_to("/etc/hostname")


def test_a_link_is_no_file():
    model = keras.Sequential([keras.Input((2,)), Linked(name="lookup"), layers.Dense(1)])
    with pytest.raises(kfb.UnsupportedLayerError, match=r"assets layers/linked/words\.txt.*a link"):
        assets.of_models({"": model})


# --- indices that were not written by this package

ROW = [3, 0]
ODD = {
    "a path upwards": {"": {"../../x": ROW}},
    "a path upwards inside": {"": {"a/../../x": ROW}},
    "an absolute path": {"": {"/etc/x": ROW}},
    "a drive": {"": {"C:/x": ROW}},
    "a backslash": {"": {"a\\..\\x": ROW}},
    "no name": {"": {"a//x": ROW}},
    "a null": {"": {"a\0": ROW}},
    "300 characters": {"": {"n" * 300: ROW}},
    "a file as a folder": {"": {"a": ROW, "a/b": ROW}},
    "a negative size": {"": {"a": [-1, 0]}},
    "a huge size": {"": {"a": [1 << 40, 0]}},
    "many sizes": {"": {str(i): [1 << 29, 0] for i in range(3)}},
    "many files": {"": {str(i): [0, 0] for i in range(10_001)}},
    "no row": {"": {"a": 3}},
    "a list": {"": ["a"]},
}


@pytest.mark.parametrize("index", ODD.values(), ids=ODD)
def test_odd_indices_are_refused(index):
    with pytest.raises(Malformed):
        assets.check(index, "assets")


def test_too_much_is_refused_when_it_is_saved(monkeypatch):
    monkeypatch.setattr(assets.limits, "ASSETS", 3)
    with pytest.raises(kfb.CheckpointError, match="at most 3"):
        assets.of_models({"": task()})


def test_a_size_that_the_array_has_not_is_refused(saved, tmp_path):
    path = spoilt(saved[1] / "one", tmp_path, lambda index: index.update({"z": [1 << 28, 0]}))
    assert list(kfb.verify(path).damaged) == ["assets"]
    with pytest.raises(kfb.CorruptCheckpointError, match=r"assets.*bytes"):
        orbax_io.assets(orbax_io.Stored(path))
