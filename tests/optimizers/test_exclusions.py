"""Exclusions from weight decay survive wherever an optimizer is made once more: its config lacks them.

With gradients of zero an excluded weight stays as it is, bit for bit, and any other shrinks.
"""

import json
import zipfile

import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest
from keras import layers
from keras import optimizers as K

import keras_flax_bridge as kfb
from keras_flax_bridge import keras_internals
from keras_flax_bridge.checkpoint import model_configs
from keras_flax_bridge.checkpoint.locating import candidates
from keras_flax_bridge.checkpoint.readers import opened
from keras_flax_bridge.cli.files import converting
from keras_flax_bridge.keras_internals import exclusions
from keras_flax_bridge.tree.paths import flatten_tree, join_path
from tests.support import resumable_runs as resuming
from tests.support.capabilities import needs, where
from tests.support.cases import differing

X = np.ones((8, 3), "float32")


def build():
    keras.utils.set_random_seed(0)
    ones = {"bias_initializer": "ones", "kernel_initializer": "ones"}
    return keras.Sequential(
        [keras.Input((3,)), layers.Dense(4, **ones), layers.Dense(2, name="head", **ones)]
    )


def biases(model):
    return [layer.bias for layer in model.layers]


def excluding(optimizer, names=None, variables=None):
    optimizer.exclude_from_weight_decay(var_list=variables, var_names=names)
    return optimizer


def decaying(kind=K.AdamW, **options):
    return kind(0.1, weight_decay=0.5, **options)


def grouped(model):
    first, head = decaying(name="first"), decaying(K.SGD, name="second")
    excluding(first, ["bias"])
    excluding(head, variables=[model.layers[1].bias])
    return K.MultiOptimizer(K.OptimizerMap(first, {".*head.*": head}))


OF_ADAM = where("Muon with lr_adjust", {"adam_weight_decay": 0.5})  # before, one decay is that of all
# name: an optimizer that decays the kernels of a model, and not its biases
OPTIMIZERS = {
    "names": lambda model: excluding(decaying(), ["bias"]),
    "several_names": lambda model: excluding(decaying(), ["bias", "gamma", "beta"]),
    "pattern": lambda model: excluding(decaying(), ["^b[ia]+s$"]),
    "variables": lambda model: excluding(decaying(), variables=biases(model)),
    "both": lambda model: excluding(decaying(), ["nothing", "bias$"], [model.layers[1].bias]),
    "scaled": lambda model: K.LossScaleOptimizer(excluding(decaying(), ["bias"])),
    "scaled_variables": lambda model: K.LossScaleOptimizer(excluding(decaying(), variables=biases(model))),
    **where("MultiOptimizer", {"grouped": grouped}),
    "lamb": lambda model: excluding(decaying(K.Lamb), ["bias"]),
    "muon": lambda model: excluding(decaying(K.Muon, **OF_ADAM), variables=biases(model)),
}
by_optimizer = pytest.mark.parametrize("kind", OPTIMIZERS)


def compiled(kind, model=None):
    model = build() if model is None else model
    model.compile(OPTIMIZERS[kind](model), "mse")
    return model


def check(state, gradients=None):
    """One step of a state with gradients of zero."""
    zero = jax.tree.map(jnp.zeros_like, state.params)
    check_params(state.params, state.apply_gradients(grads=zero).params)


def check_params(before, after):
    before, after = flatten_tree(before), flatten_tree(after)
    assert len(before) == 4
    for path, leaf in before.items():
        if path[-1] == "bias":
            np.testing.assert_array_equal(after[path], leaf, err_msg=join_path(path))
        else:
            np.testing.assert_allclose(after[path], leaf * np.float32(0.95), rtol=1e-6)


# --- in one process


@by_optimizer
def test_states_and_transformations_keep_them(kind):
    model = compiled(kind)
    state = kfb.TrainState.from_keras(model)
    check(state)
    assert differing(state.tx.init(state.params), state.opt_state) == []
    check(state.to_optax(model))
    tx = kfb.as_optax(model.optimizer, model=model)
    zero = jax.tree.map(jnp.zeros_like, state.params)
    updates, _ = tx.update(zero, tx.init(state.params), state.params)
    check_params(state.params, optax.apply_updates(state.params, updates))


@by_optimizer
def test_abstract_states_keep_them(kind, tmp_path):
    model = build()
    optimizer = OPTIMIZERS[kind](model)
    state = kfb.TrainState.from_keras(model, optimizer=optimizer)
    kfb.save(tmp_path / "one", state)
    given = kfb.TrainState.abstract(build, optimizer=optimizer)
    assert given.tx.optimizer is not optimizer
    check(kfb.restore(tmp_path / "one", given))
    check(kfb.restore(tmp_path / "one", kfb.TrainState.abstract(lambda: compiled(kind))))


def test_abstract_states_of_several_models_keep_them(tmp_path):
    models = {"a": build(), "b": build()}
    optimizers = {name: OPTIMIZERS["variables"](model) for name, model in models.items()}
    kfb.save(tmp_path / "one", kfb.TrainState.from_keras(models, optimizer=optimizers))
    like = kfb.TrainState.abstract(lambda: {"a": build(), "b": build()}, optimizer=optimizers)
    restored = kfb.restore(tmp_path / "one", like)
    check(restored.part("a"))
    check(restored.part("b"))


@by_optimizer
def test_repartition_of_an_uncompiled_model_keeps_them(kind):
    model = build()
    state = kfb.TrainState.from_keras(model, optimizer=OPTIMIZERS[kind](model))
    check(state.repartition(model))
    model.layers[0].trainable = False
    frozen = state.repartition(model)
    assert list(frozen.params) == ["head"]
    model.layers[0].trainable = True
    check(frozen.repartition(model))


@by_optimizer
def test_repartition_into_another_model_keeps_them(kind):
    model = build()
    state = kfb.TrainState.from_keras(model, optimizer=OPTIMIZERS[kind](model), copy=False)
    check(state.repartition(build()))


@by_optimizer
def test_repartition_of_a_compiled_model_has_those_of_its_optimizer(kind):
    model = compiled(kind)
    state = kfb.TrainState.from_keras(model)
    model.layers[0].trainable = False
    compiled(kind, model)
    frozen = state.repartition(model)
    model.layers[0].trainable = True
    compiled(kind, model)
    check(frozen.repartition(model))


def test_variables_of_an_unbuilt_optimizer_are_refused():
    optimizer = OPTIMIZERS["variables"](build())
    with pytest.raises(kfb.UnsupportedOptimizerError, match=r"var_names=\[\.\.\.\]"):
        kfb.TrainState.abstract(build, optimizer=optimizer)
    optimizer.build(build().trainable_variables)
    other = lambda: keras.Sequential([keras.Input((3,)), layers.Dense(4)])  # noqa: E731
    with pytest.raises(kfb.StructureMismatchError, match="same architecture"):
        kfb.TrainState.abstract(other, optimizer=optimizer)


# --- what a config lacks besides


class Rate:
    """A learning rate that Keras can't serialize."""

    def __call__(self):
        return 0.1


def test_learning_rates_that_are_objects_are_kept():
    model = build()
    inner = excluding(K.AdamW(Rate(), weight_decay=0.5), ["bias"])
    for optimizer in (inner, K.LossScaleOptimizer(inner)):
        state = kfb.TrainState.from_keras(model, optimizer=optimizer)
        check(state.repartition(model))
        assert kfb.TrainState.abstract(build, optimizer=optimizer).tx.optimizer is not optimizer


def held_twice():
    shared = decaying(K.SGD)
    return K.MultiOptimizer(K.OptimizerMap(decaying(), {".*head.*": shared, ".*dense.*": shared}))


@needs("MultiOptimizer")
def test_an_optimizer_that_is_held_twice_stays_one(tmp_path):
    model = build()
    model.compile(held_twice(), "mse")
    state = kfb.TrainState.from_keras(model)
    assert differing(state.tx.init(state.params), state.opt_state) == []
    kfb.save(tmp_path / "one", state)
    assert len(kfb.load_model(tmp_path / "one").optimizer.optimizers) == 2


@needs("MultiOptimizer")
@pytest.mark.parametrize("named", [True, False])
def test_optimizers_that_a_function_chooses_are_copied(named):
    first, head = excluding(decaying(), ["bias"]), excluding(decaying(K.SGD), ["bias"])

    def choose(variable):
        return head if "head" in variable.path else first

    optimizer = K.MultiOptimizer(choose if named else lambda variable: choose(variable))
    model = build()
    tx = kfb.as_optax(optimizer, model=model)
    params = kfb.TrainState.from_keras(build(), optimizer="sgd").params
    zero = jax.tree.map(jnp.zeros_like, params)
    check_params(params, optax.apply_updates(params, tx.update(zero, tx.init(params), params)[0]))
    assert not any(optimizer.built for optimizer in (first, head))
    state = kfb.TrainState.from_keras(model, optimizer=optimizer)
    check(state.repartition(model))


def test_variables_that_gradients_overwrite_start_without_slots():
    model = build()
    model.layers[0].bias.overwrite_with_gradient = True
    state = kfb.TrainState.from_keras(model, optimizer=decaying())
    assert differing(state.tx.init(state.params), state.opt_state) == []


# --- on disk


@by_optimizer
def test_load_model_puts_them_back(kind, tmp_path):
    kfb.save(tmp_path / "one", kfb.TrainState.from_keras(compiled(kind)))
    layers.Dense(1)  # moves Keras's counters of names
    loaded = kfb.TrainState.from_keras(kfb.load_model(tmp_path / "one"))
    check(loaded)
    kfb.save(tmp_path / "two", loaded)
    check(kfb.TrainState.from_keras(kfb.load_model(tmp_path / "two")))


def test_load_model_puts_back_those_of_weights_that_are_frozen(tmp_path):
    model = build()
    model.layers[0].trainable = False
    compiled("pattern", model)
    kfb.save(tmp_path / "one", kfb.TrainState.from_keras(model))
    loaded = kfb.load_model(tmp_path / "one")
    loaded.layers[0].trainable = True
    loaded.compile(keras_internals.rebuilt(loaded.optimizer, {id(v): v for v in loaded.weights}), "mse")
    check(kfb.TrainState.from_keras(loaded))


@by_optimizer
def test_restore_and_resume_into_a_compiled_model(kind, tmp_path):
    kfb.save(tmp_path / "one", kfb.TrainState.from_keras(compiled(kind)))
    check(kfb.TrainState.from_keras(kfb.restore(tmp_path / "one", compiled(kind))))


def test_names_stay_names(tmp_path):
    kfb.save(tmp_path / "one", kfb.TrainState.from_keras(compiled("several_names")))
    optimizer = kfb.load_model(tmp_path / "one").optimizer
    assert not keras_internals.excludes_variables(optimizer)
    assert set(exclusions(optimizer).pattern.split("|")) == {"bias", "gamma", "beta"}


def test_older_readers_find_the_config_that_they_know(tmp_path):
    kfb.save(tmp_path / "one", kfb.TrainState.from_keras(compiled("names")))
    config = opened(tmp_path / "one").metadata.model
    own = keras.saving.serialize_keras_object(build()).keys() | {"compile_config"}
    assert config.keys() - own == {"optimizer_extras"}
    assert type(keras.saving.deserialize_keras_object(config).optimizer) is K.AdamW


def test_checkpoints_without_the_field_load(tmp_path):
    config = model_configs.of_model(compiled("names"))
    del config["optimizer_extras"]
    loaded = model_configs.build(config, tmp_path)
    assert exclusions(loaded.optimizer) == (None, frozenset())


BAD = {
    "no_dict": ([], "a list"),
    "no_dict_inside": ({"exclude_from_weight_decay": ["bias"]}, "a list"),
    "another_optimizer": ({"exclude_from_weight_decay": {"inner": {}}}, "'inner', which is not an optimizer"),
    "no_dict_of_lists": ({"exclude_from_weight_decay": {"": "bias"}}, "a str"),
    "no_list": ({"exclude_from_weight_decay": {"": {"names": "bias"}}}, "names: a str"),
    "no_word": ({"exclude_from_weight_decay": {"": {"names": [3]}}}, "names: a int"),
    "slow_pattern": ({"exclude_from_weight_decay": {"": {"names": ["(b+)+$"]}}}, r"\(b\+\)"),
    "no_pattern": ({"exclude_from_weight_decay": {"": {"names": ["("]}}}, "names"),
    "unknown_key": ({"exclude_from_weight_decay": {"": {"variables": ["dense/gain"]}}}, "dense/gain"),
    "no_key": ({"exclude_from_weight_decay": {"": {"variables": [["dense"]]}}}, "variables: a list"),
    "id": ({"exclude_from_weight_decay": {"": {"variables": [140234]}}}, "variables: a int"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_a_file_holds_is_checked(case, tmp_path):
    extras, message = BAD[case]
    model = compiled("names")
    config = json.loads(json.dumps({**model_configs.of_model(model), "optimizer_extras": extras}))
    with pytest.raises(kfb.CheckpointError, match=message):
        model_configs.build(config, tmp_path)


def test_unknown_fields_are_ignored(tmp_path):
    config = model_configs.of_model(compiled("names"))
    config["optimizer_extras"]["later"] = config["optimizer_extras"]["exclude_from_weight_decay"][""]["x"] = 1
    check(kfb.TrainState.from_keras(model_configs.build(config, tmp_path)))


# --- other kinds of files


def convert(source, target, kind, **options):
    return converting.convert(opened(source), target, kind, **options).notes


@pytest.mark.parametrize(
    "kind", ["names", "pattern", "variables", "scaled_variables", *where("MultiOptimizer", ["grouped"])]
)
def test_conversion_keeps_them(kind, tmp_path):
    kfb.save(tmp_path / "one", kfb.TrainState.from_keras(compiled(kind)))
    notes = convert(tmp_path / "one", tmp_path / "two.keras", "keras")
    assert any("exclusions from weight decay" in note for note in notes)
    keras.saving.load_model(tmp_path / "two.keras")  # to Keras it is a file as any other
    check(kfb.TrainState.from_keras(kfb.load_model(tmp_path / "two.keras")))
    convert(tmp_path / "two.keras", tmp_path / "three.safetensors", "safetensors")
    convert(tmp_path / "three.safetensors", tmp_path / "four", "checkpoint")
    check(kfb.TrainState.from_keras(kfb.load_model(tmp_path / "four")))


def test_conversion_without_slots_keeps_them(tmp_path):
    state = kfb.TrainState.from_keras(compiled("variables"))
    kfb.save(tmp_path / "one", state)
    convert(tmp_path / "one", tmp_path / "model.keras", "keras")
    kfb.save(tmp_path / "weights", {"params": state.params})
    notes = convert(
        tmp_path / "weights", tmp_path / "two.keras", "keras", model_file=tmp_path / "model.keras"
    )
    assert any("as the model starts them" in note for note in notes)
    check(kfb.TrainState.from_keras(kfb.load_model(tmp_path / "two.keras")))


def test_keras_files_without_exclusions_are_keras_s_own(tmp_path):
    model = build()
    model.compile(decaying(), "mse")
    kfb.save(tmp_path / "one", kfb.TrainState.from_keras(model))
    assert not any("weight decay" in n for n in convert(tmp_path / "one", tmp_path / "two.keras", "keras"))
    with zipfile.ZipFile(tmp_path / "two.keras") as archive:
        assert archive.comment == b""


def written_by_keras(path, comment):
    model = compiled("names")
    model.optimizer.build(model.trainable_variables)
    model.save(path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = comment
    return path


@pytest.mark.parametrize("comment", [b'{"keras_flax_bridge":', b'{"keras_flax_bridge":' + b"[" * 60_000])
def test_a_damaged_comment_of_a_keras_file_is_named(comment, tmp_path):
    path = written_by_keras(tmp_path / "one.keras", comment)
    with pytest.raises(kfb.CheckpointError, match=r"comment of the zip archive: got text .* not valid JSON"):
        kfb.load_model(path)


def test_comments_of_others_are_left_alone(tmp_path):
    path = written_by_keras(tmp_path / "one.keras", b"made by me")
    assert kfb.load_model(path).optimizer.weight_decay == 0.5


# --- training that breaks off


def without_loss(y, y_pred):
    """Gradients of zero."""
    return 0.0 * y_pred


class Break(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        if batch == 2:
            raise KeyboardInterrupt


@pytest.mark.parametrize("kind", ["names", "variables", "scaled"])
def test_fit_goes_on_with_them(kind, tmp_path):
    def fit(*callbacks):
        model = build()
        model.compile(OPTIMIZERS[kind](model), without_loss)
        saver = kfb.callbacks.TrainStateCheckpoint(tmp_path / "run", save_freq=1)
        model.fit(X, X[:, :2], batch_size=2, verbose=0, shuffle=False, callbacks=[*callbacks, saver])
        return model

    with pytest.raises(KeyboardInterrupt):
        fit(Break())
    assert candidates(tmp_path / "run", None)
    model = fit()
    assert int(keras_internals.iterations(model.optimizer)) == 4
    for bias in biases(model):
        np.testing.assert_array_equal(bias, np.ones_like(bias))
    np.testing.assert_allclose(model.layers[1].kernel, np.full((4, 2), 0.95**4), rtol=1e-6)


@pytest.mark.slow
def test_a_resumed_run_is_exact():
    assert kfb.verify_resume(resuming.excluded, resuming.shuffled, steps=(2, 2)).ok
