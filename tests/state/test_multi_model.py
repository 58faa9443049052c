"""Several models in one state: a GAN, a teacher and its student, a target network."""

import copy
import pickle

import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest
from keras import layers

import keras_flax_bridge as kfb
from keras_flax_bridge.tree.paths import flatten_tree, join_path, split_path

RNG = np.random.default_rng(0)
REAL = RNG.normal(2.0, 0.5, (16, 2)).astype("float32")
NOISE = RNG.normal(size=(16, 3)).astype("float32")


def generator():
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [keras.Input((3,)), layers.Dense(8, "relu"), layers.BatchNormalization(), layers.Dense(2)]
    )
    model.compile(keras.optimizers.Adam(0.02), "mse")
    return model


def discriminator():
    keras.utils.set_random_seed(2)
    model = keras.Sequential(
        [keras.Input((2,)), layers.Dense(8, "relu"), layers.Dropout(0.1), layers.Dense(1)]
    )
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), "mse")
    return model


def gan():
    return {"generator": generator(), "discriminator": discriminator()}


def differing(a, b):
    a, b = flatten_tree(a), flatten_tree(b)
    assert a.keys() == b.keys()
    return [join_path(path) for path in a if not np.array_equal(a[path], b[path])]


def cross_entropy(logits, target):
    return optax.sigmoid_binary_cross_entropy(logits, jnp.full_like(logits, target)).mean()


def losses(part, params, x, target):
    """A discriminator's loss on its own parameters."""
    variables = {"params": params, "non_trainable": part.non_trainable}
    logits, updates = part.apply_fn(variables, x, training=True, mutable=["non_trainable"])
    return cross_entropy(logits, target), updates["non_trainable"]


@jax.jit
def gan_step(state, real, noise):
    """Two models, two optimizers, one step; each part as a state of its own."""
    g, d = state.part("generator"), state.part("discriminator")
    g_variables = {"params": g.params, "non_trainable": g.non_trainable}
    fake, updates = g.apply_fn(g_variables, noise, training=True, mutable=["non_trainable"])

    def d_loss(params):
        return losses(d, params, jnp.concatenate([real, fake]), 1.0)

    (loss, seeds), grads = jax.value_and_grad(d_loss, has_aux=True)(d.params)
    d = d.apply_gradients(grads=grads, non_trainable=seeds)

    def g_loss(params):
        fake = g.apply_fn({"params": params, "non_trainable": g.non_trainable}, noise, training=True)
        return losses(d, d.params, fake, 1.0)[0]

    g = g.apply_gradients(grads=jax.grad(g_loss)(g.params), non_trainable=updates["non_trainable"])
    return state.with_parts(generator=g, discriminator=d), loss


@pytest.mark.slow
def test_a_gan_trains_is_saved_and_comes_back(tmp_path):
    models = gan()
    state = kfb.TrainState.from_keras(models)
    assert state.parts == ("generator", "discriminator")
    assert set(state.opt_state["discriminator"]) == {"iteration", "learning_rate", "momentums"}
    before = state
    for _ in range(3):
        state, loss = gan_step(state, REAL, NOISE)
    assert int(state.step) == int(state.opt_state["generator"]["iteration"]) == 3
    assert np.isfinite(loss)
    moved = differing(before, state)
    kept = [path for path in flatten_tree(state) if path not in set(map(split_path, moved))]
    assert all("rate" in path[-1] or "metrics" in path[0] for path in kept)

    kfb.save(tmp_path / "gan", state)
    assert differing(kfb.restore(tmp_path / "gan", kfb.TrainState.abstract(gan)), state) == []
    filled, loaded = kfb.restore(tmp_path / "gan", gan()), kfb.load_model(tmp_path / "gan")
    for found in (filled, loaded):
        again = kfb.TrainState.from_keras(found)
        assert differing((again.params, again.opt_state), (state.params, state.opt_state)) == []
    state.assign_to(models)
    assert differing(kfb.TrainState.from_keras(models).params, state.params) == []


@pytest.mark.slow
def test_a_part_is_the_state_of_its_model_alone():
    models = gan()
    state, alone = kfb.TrainState.from_keras(models), kfb.TrainState.from_keras(models["generator"])
    part = state.part("generator")
    assert jax.tree.structure(part) == jax.tree.structure(alone)
    step = kfb.make_train_step(models["generator"])
    (part, logs), (alone, wanted) = (step(s, (NOISE, REAL)) for s in (part, alone))
    assert differing((part, logs), (alone, wanted)) == []
    state = state.with_parts(generator=part)  # the step took over the part's buffers, not its neighbour's
    assert int(state.step) == 1
    assert differing(state.part("generator"), alone) == []
    kfb.make_predict_step(models["discriminator"])(state.part("discriminator"), REAL)


@pytest.mark.slow
def test_gradients_of_a_subtree_move_that_model_alone():
    state = kfb.TrainState.from_keras(gan())

    def loss_fn(own):
        variables = {
            "params": {**state.params, "discriminator": own},
            "non_trainable": state.non_trainable,
        }
        logits, updates = state.apply_fn(
            variables, REAL, training=True, mutable=["non_trainable"], method="discriminator"
        )
        return cross_entropy(logits, 1.0), updates["non_trainable"]

    grads, non_trainable = jax.grad(loss_fn, has_aux=True)(state.params["discriminator"])
    moved = state.apply_gradients(grads={"discriminator": grads}, non_trainable=non_trainable)
    changed = {name.split("/")[1] for name in differing(state, moved) if name != "step"}
    assert changed == {"discriminator"}
    assert int(moved.step) == 1
    updates, _ = state.tx.update({"discriminator": grads}, state.opt_state, state.params)
    wanted = jax.tree.map(jnp.subtract, moved.params["discriminator"], state.params["discriminator"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), updates["discriminator"], wanted)


def test_a_frozen_teacher_and_a_target_that_follows():
    models = {"student": discriminator(), "teacher": discriminator()}
    models["teacher"].set_weights([w + 0.1 for w in models["student"].get_weights()])
    tx = optax.adam(0.1)
    state = kfb.TrainState.from_keras(models, optimizer={"student": tx, "teacher": None})
    assert jax.tree.leaves(state.opt_state["teacher"]) == []

    @jax.jit
    def step(state, x):
        student, teacher = state.part("student"), state.part("teacher")
        soft = teacher.apply_fn({"params": teacher.params}, x)

        def loss_fn(params):
            return jnp.mean((student.apply_fn({"params": params}, x) - soft) ** 2)

        loss, grads = jax.value_and_grad(loss_fn)(student.params)
        student = student.apply_gradients(grads=grads)
        follow = optax.incremental_update(student.params, teacher.params, 0.25)
        return state.with_parts(student=student, teacher=teacher.replace(params=follow)), loss

    before = state.params["teacher"]
    state, first = step(state, REAL)
    wanted = jax.tree.map(lambda new, old: 0.25 * new + 0.75 * old, state.params["student"], before)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), state.params["teacher"], wanted)
    for _ in range(20):
        state, loss = step(state, REAL)
    assert loss < first


def test_arguments_are_dicts_by_model():
    batch = {
        "a": (jax.ShapeDtypeStruct((4, 2), "float32"), jax.ShapeDtypeStruct((4, 1), "float32")),
        "b": jax.ShapeDtypeStruct((4, 3), "float32"),
    }
    lazy = lambda: keras.Sequential([layers.Dense(1)])  # noqa: E731
    models, optimizer = {"a": lazy(), "b": lazy()}, {"a": keras.optimizers.Adam(), "b": optax.sgd(0.1)}
    state = kfb.TrainState.from_keras(models, batch=batch, optimizer=optimizer, metrics={"a": ["mae"]})
    shapes = jax.tree.map(np.shape, state.params)
    assert shapes["a"]["dense"]["kernel"] == (2, 1)
    assert shapes["b"]["dense"]["kernel"] == (3, 1)
    assert "mae" in state.metrics["a"]
    assert "momentums" in state.opt_state["a"]
    abstract = kfb.TrainState.abstract(lambda: {"a": lazy(), "b": lazy()}, batch=batch, optimizer=optimizer)
    assert jax.tree.map(np.shape, abstract.params) == shapes


def test_metrics_and_partition_of_each():
    models = gan()
    state = kfb.TrainState.from_keras(models)
    part, _ = kfb.make_train_step(models["generator"])(state.part("generator"), (NOISE, REAL))
    state = state.with_parts(generator=part)
    assert float(state.metrics["generator"]["loss"]["count"]) > 0
    assert float(state.reset_metrics().metrics["generator"]["loss"]["count"]) == 0
    models["generator"].layers[0].trainable = False
    models["generator"].compile("adam", "mse")
    frozen = state.repartition(models)
    assert sorted(frozen.params["generator"]) == ["batch_normalization", "dense_1"]
    assert sorted(frozen.non_trainable["generator"]) == ["batch_normalization", "dense"]


def shared():
    layer = layers.Dense(2)
    make = lambda: keras.Sequential([keras.Input((2,)), layer])  # noqa: E731
    return kfb.TrainState.from_keras({"a": make(), "b": make()}, optimizer={"a": "sgd", "b": "sgd"})


def taken():
    return kfb.TrainState.from_keras(gan())


MISUSE = {
    "a shared layer": (shared, "a/dense/kernel = b/dense/kernel"),
    "an optimizer for all": (lambda: kfb.TrainState.from_keras(gan(), optimizer="adam"), "{name: ...}"),
    "an unknown name": (lambda: kfb.TrainState.from_keras(gan(), metrics={"critic": []}), "critic|generator"),
    "an unknown part": (lambda: taken().part("critic"), "'generator', 'discriminator'"),
    "no name": (lambda: taken().apply_fn({"params": taken().params}, REAL), "method"),
    "unknown gradients": (lambda: taken().apply_gradients(grads={"critic": {}}), "grads"),
    "one model for two": (lambda: taken().assign_to({"generator": generator()}), "1 missing"),
    "a part of one": (lambda: kfb.TrainState.from_keras(generator()).part("x"), "the state is of one model"),
    "no models": (lambda: kfb.TrainState.from_keras({}), "one or more"),
    "numbers as names": (lambda: kfb.TrainState.from_keras({0: generator()}), "each a string"),
    "a part that is none": (lambda: taken().with_parts(generator={}), "got a dict"),
    "a part of another model": (
        lambda: taken().with_parts(generator=taken().part("discriminator")),
        "a different model",
    ),
    "several into one": (lambda: taken().assign_to(generator()), r"state\.part\(name\)"),
    "several like one": (lambda: taken().repartition(generator()), r"state\.part\(name\)"),
    "a step on several": (
        lambda: kfb.make_train_step(generator())(taken(), (NOISE, REAL)),
        r"state\.part\(name\)",
    ),
    "one into several": (
        lambda: kfb.TrainState.from_keras(generator()).assign_to(gan()),
        "the state is of one model",
    ),
    "a step of several": (lambda: kfb.make_train_step(gan()), r"part\("),
}


@pytest.mark.parametrize(("act", "words"), MISUSE.values(), ids=MISUSE)
def test_misuse_is_explained(act, words):
    with pytest.raises(kfb.StructureMismatchError, match=words):
        act()


def test_moving_is_all_or_nothing_over_all_models():
    models = {"a": generator(), "b": keras.Sequential([keras.Input((2,)), layers.Dense(1)])}
    with pytest.raises(kfb.NotBuiltError, match="optimizer"):
        kfb.TrainState.from_keras(models, copy=False)
    models["a"].get_weights()
    state = kfb.TrainState.from_keras(models, optimizer={"b": "sgd"}, copy=False)
    with pytest.raises(kfb.OwnershipError):
        models["a"].get_weights()
    state.assign_to({**models})


def test_a_deep_copy_of_several():
    state = taken()
    assert jax.tree.structure(copy.deepcopy(state)) == jax.tree.structure(state)
    with pytest.raises(kfb.UnsupportedOptimizerError):
        pickle.dumps(state)


def test_a_checkpoint_of_several_is_used_up(tmp_path):
    models, state = gan(), taken()
    kfb.save(tmp_path / "gan", state, model=models)
    assert set(kfb.load_model(tmp_path / "gan")) == set(models)
    with pytest.raises(kfb.StructureMismatchError, match="params/discriminator/dense/kernel"):
        kfb.restore(tmp_path / "gan", {"generator": generator()})


def test_assigning_is_all_or_nothing_over_all_models():
    models = gan()
    state = taken()
    before = kfb.TrainState.from_keras(models).params
    bad = {**state.params, "discriminator": {"dense": {"kernel": jnp.ones((2, 2))}}}
    moved = jax.tree.map(lambda leaf: leaf + 1, bad)
    with pytest.raises(kfb.StructureMismatchError, match="Nothing was assigned"):
        state.replace(params=moved).assign_to(models)
    assert differing(kfb.TrainState.from_keras(models).params, before) == []
