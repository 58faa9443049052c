"""Tasks of KerasHub with tokenizers, through every door, and in a process of their own."""

import json
import warnings

import jax
import keras
import numpy as np
import pytest

import keras_flax_bridge as kfb
from tests.contracts.test_keras_hub import hub as hub  # the fixture
from tests.support.subprocesses import spawn
from tests.tables.keras_hub_tasks import LOOKUPS, TASKS, TEXTS, Scored, answers, bert

pytestmark = [pytest.mark.full, pytest.mark.filterwarnings("ignore")]  # of KerasHub, about its own layers


@pytest.fixture(params=TASKS, scope="module")
def saved(request, hub, tmp_path_factory):
    """A task, and its files of every kind."""
    if request.param == "gemma":
        pytest.importorskip("sentencepiece")
    keras.utils.set_random_seed(0)
    task, folder = TASKS[request.param](hub), tmp_path_factory.mktemp(request.param)
    kfb.save(folder / "one", kfb.TrainState.from_keras(task), model=task)
    task.save(folder / "model.keras")
    task.save_to_preset(str(folder / "preset"))
    yield request.param, task, folder
    jax.clear_caches()


def answer(folder):
    """What a process that knows nothing of the task makes of it."""
    import keras_hub  # noqa: F401 - it registers its classes

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        task = kfb.load_model(folder)
        if hasattr(task, "generate"):
            task.compile(sampler="greedy")  # a preset does not say the sampler
        print("answers", json.dumps(answers(task)))


@pytest.mark.parametrize("name", ["one", "preset"])
def test_a_new_process_takes_text(saved, name):
    _, task, folder = saved
    with spawn(answer, str(folder / name)) as process:
        printed = process.communicate(timeout=300)[0]
    found = [line for line in printed.splitlines() if line.startswith("answers ")]
    assert [json.loads(line.removeprefix("answers ")) for line in found] == [answers(task)]


@pytest.mark.parametrize("name", ["one", "model.keras", "preset"])
def test_a_model_is_loaded_and_filled(saved, hub, name):
    kind, task, folder = saved
    other = TASKS[kind](hub)
    if hasattr(other.preprocessor.tokenizer, "set_vocabulary"):
        other.preprocessor.tokenizer.set_vocabulary(None)
    for found in (kfb.load_model(folder / name), kfb.restore(folder / name, other)):
        assert all(map(np.array_equal, found.get_weights(), task.get_weights()))
        own, want = (one.preprocessor.tokenizer for one in (found, task))
        assert own.get_vocabulary() == want.get_vocabulary()


def test_a_backbone_is_loaded_and_filled(saved, hub):
    kind, task, folder = saved
    task.backbone.save_to_preset(str(folder / "backbone"))
    want = task.backbone.get_weights()
    loaded = kfb.load_model(folder / "backbone")
    assert type(loaded) is type(task.backbone)
    for found in (loaded, kfb.restore(folder / "preset", TASKS[kind](hub).backbone)):
        assert all(map(np.array_equal, found.get_weights(), want))
    other = TASKS[kind](hub)
    if other.has_task_weights():
        with pytest.raises(kfb.StructureMismatchError, match="backbone alone"):
            kfb.restore(folder / "backbone", other)
    kfb.restore(folder / "backbone", other, partial=True)
    assert all(map(np.array_equal, other.backbone.get_weights(), want))


def test_states_and_modules_pass_over_tokenizers(saved, hub, tmp_path):
    kind, task, folder = saved
    state = kfb.TrainState.from_keras(task)
    abstract = kfb.TrainState.abstract(lambda: TASKS[kind](hub))
    assert jax.tree.structure(abstract.params) == jax.tree.structure(state.params)
    inputs = {name: np.ones((1, 8), "int32") for name in task.input}
    assert np.array_equal(kfb.ToNNX(task)(inputs, training=False), task(inputs, training=False))
    module = kfb.ToLinen(TASKS[kind](hub))
    module.apply(module.init(jax.random.key(0), inputs), inputs)
    restored = kfb.restore(folder / "preset", state, include=["params"])
    assert jax.tree.all(jax.tree.map(np.array_equal, restored.params, state.params))


def test_fit_saves_tokenizers(hub, tmp_path):
    task = bert(hub)
    task.fit(TEXTS, np.array([0, 1]), verbose=0, callbacks=[kfb.callbacks.TrainStateCheckpoint(tmp_path)])
    assert answers(kfb.load_model(tmp_path)) == answers(task)


def test_a_preprocessor_that_was_taken_away_or_replaced(hub, tmp_path):
    task, other = bert(hub), bert(hub, ["fox", "the", "quick", "brown", "!"])
    for name, preprocessor in (("none", None), ("other", other.preprocessor)):
        task.preprocessor = preprocessor
        kfb.save(tmp_path / name, kfb.TrainState.from_keras(task))
        loaded = kfb.load_model(tmp_path / name)
        words = loaded.preprocessor and loaded.preprocessor.tokenizer.vocabulary
        assert words == (preprocessor and other.preprocessor.tokenizer.vocabulary)


@pytest.mark.parametrize("make", LOOKUPS.values(), ids=LOOKUPS)
def test_lookups_of_keras_come_back(make, tmp_path):
    pytest.importorskip("tensorflow")
    layer, words = make()
    model = Scored(layer)
    model(np.array([[1, 2]]))
    model.compile("sgd", "mse")
    want = np.asarray(layer(words))
    kfb.save(tmp_path / "one", kfb.TrainState.from_keras(model), model=model)
    model.save(tmp_path / "model.keras")
    for name in ("one", "model.keras"):
        assert np.array_equal(kfb.load_model(tmp_path / name).lookup(words), want)


def test_weights_of_words_are_refused_where_they_are_saved(tmp_path):
    pytest.importorskip("tensorflow")
    layer = keras.layers.StringLookup(output_mode="tf_idf")
    layer.adapt(np.array(["a b", "b"]))
    model = Scored(layer)
    model(np.array([[1, 2]]))
    kfb.save(tmp_path / "one", kfb.TrainState.from_keras(model, optimizer="sgd"), model=model)
    with pytest.raises(kfb.CheckpointError, match="idf_weights"):
        kfb.load_model(tmp_path / "one")
