"""optax transformations as Keras optimizers."""

import json
import zipfile
from operator import attrgetter

import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest
from keras import layers

import keras_flax_bridge as kfb
from keras_flax_bridge.tree.paths import flatten_tree
from tests.support.optimizers import relative
from tests.tables.optimizers import TOLERANCE

X = np.random.default_rng(0).normal(size=(32, 4)).astype("float32")
Y = X.sum(1, keepdims=True)


def model_of(optimizer, policy=None):
    """More than ten layers of a kind, whose names sort otherwise than they come."""
    keras.utils.set_random_seed(4)
    model = keras.Sequential([keras.Input((4,))])
    for _ in range(3):
        model.add(layers.Dense(4, "tanh", dtype=policy))
    model.add(layers.Dense(1, dtype=policy))
    model.compile(optimizer, "mse")
    return model


def fit(model, epochs=2, **more):
    return model.fit(X, Y, batch_size=8, shuffle=False, epochs=epochs, verbose=0, **more)


@keras.saving.register_keras_serializable("tests")
def own(learning_rate, decay=0.9):
    """A transformation of the user's own, with noise from a typed key."""
    noise = optax.add_noise(0.01, 0.55, jax.random.key(3))
    return optax.chain(noise, optax.trace(decay), optax.scale_by_learning_rate(learning_rate))


@keras.saving.register_keras_serializable("tests")
def falling(step):
    return 0.1 / (1 + step)


MATRICES = lambda params: jax.tree.map(lambda p: p.ndim > 1, params)  # noqa: E731

# name: the arguments of OptaxOptimizer
CASES = {
    "sgd": ("sgd", {"learning_rate": 0.1}),
    "momentum": ("sgd", {"learning_rate": 0.1, "momentum": 0.9, "nesterov": True}),
    "adam": ("adam", {"learning_rate": 0.01}),
    "adamw": ("adamw", {"learning_rate": 0.01, "weight_decay": 0.1}),
    "amsgrad": ("amsgrad", {"learning_rate": 0.01}),
    "adabelief": ("adabelief", {"learning_rate": 0.01}),
    "adafactor": ("adafactor", {"learning_rate": 0.01, "min_dim_size_to_factor": 2}),
    "adan": ("adan", {"learning_rate": 0.01}),
    "lion": ("lion", {"learning_rate": 0.01}),
    "lamb": ("lamb", {"learning_rate": 0.01}),
    "novograd": ("novograd", {"learning_rate": 0.01}),
    "radam": ("radam", {"learning_rate": 0.01}),
    "rmsprop": ("rmsprop", {"learning_rate": 0.01, "centered": True, "momentum": 0.5}),
    "sm3": ("sm3", {"learning_rate": 0.1}),
    "muon": ("contrib.muon", {"learning_rate": 0.01}),
    "schedule_free": ("contrib.schedule_free_adamw", {"learning_rate": 0.01}),
    "own": (own, {"learning_rate": 0.01, "decay": 0.5}),
    "keras_schedule": (
        "adam",
        {"learning_rate": keras.optimizers.schedules.ExponentialDecay(0.1, 3, 0.5)},
    ),
    "optax_schedule": ("adam", {"learning_rate": falling}),
    "ready": (optax.masked(optax.adam(0.01), MATRICES), {}),
    "options": (
        "adam",
        {"learning_rate": 0.01, "clipnorm": 0.1, "loss_scale_factor": 4.0, "gradient_accumulation_steps": 2},
    ),
}
FAST = ("adamw", "own")
cases = pytest.mark.parametrize(
    "name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in CASES]
)


def optimizer(name):
    transformation, arguments = CASES[name]
    return kfb.OptaxOptimizer(transformation, **arguments)


def by_hand(name, epochs=2):
    """Optax's own loop on the same batches."""
    transformation, arguments = CASES[name]
    if isinstance(transformation, str):
        transformation = attrgetter(transformation)(optax)
    tx = transformation if hasattr(transformation, "init") else transformation(**arguments)
    model = model_of("sgd")
    state = kfb.TrainState.from_keras(model, optimizer=tx)

    @jax.jit
    def step(state, x, y):
        def loss(params):
            return jnp.mean((state.apply_fn({"params": params}, x, training=True) - y) ** 2)

        return state.apply_gradients(grads=jax.grad(loss)(state.params))

    for i in [0, 8, 16, 24] * epochs:
        state = step(state, X[i : i + 8], Y[i : i + 8])
    return state


@pytest.mark.every(slow=2)
@cases
def test_fit_is_the_loop_of_optax(name):
    if name in ("own", "options"):
        pytest.skip("noise is drawn in the order of the tree; Keras's options are compared below")
    model = model_of(optimizer(name))
    fit(model)
    assert relative(kfb.TrainState.from_keras(model).params, by_hand(name).params) <= 1e-5


@pytest.mark.every(slow=2)
@pytest.mark.slow
@cases
def test_a_saved_model_goes_on_bit_for_bit(name, tmp_path):
    model = model_of(optimizer(name))
    fit(model)
    if name == "ready":
        with pytest.raises(kfb.UnsupportedOptimizerError, match="register"):
            model.save(tmp_path / "model.keras")
        return
    model.save(tmp_path / "model.keras")
    for _ in range(9):
        layers.Dense(1)  # so that the names of the loaded layers sort in another order
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    fit(model)
    fit(loaded)
    for a, b in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(model.optimizer.variables, loaded.optimizer.variables, strict=True):
        np.testing.assert_array_equal(a.value, b.value)


@pytest.mark.slow
def test_weights_files_and_checkpoints_resume(tmp_path):
    model, other, third = (model_of(optimizer("adamw")) for _ in range(3))
    fit(model)
    model.save_weights(tmp_path / "a.weights.h5")
    kfb.save(tmp_path / "checkpoint", kfb.TrainState.from_keras(model))
    fit(other, 1)
    other.load_weights(tmp_path / "a.weights.h5")
    kfb.restore(tmp_path / "checkpoint", third)
    loaded = kfb.load_model(tmp_path / "checkpoint")
    ends = []
    for each in (model, other, third, loaded):
        fit(each)
        ends.append({str(i): w for i, w in enumerate(each.get_weights())})
    assert [relative(end, ends[0]) for end in ends] == [0, 0, 0, 0]


def test_its_state_has_names():
    model = model_of(optimizer("adamw"))
    state = kfb.TrainState.from_keras(model)
    assert sorted(state.opt_state) == ["count", "iteration", "learning_rate", "slots"]
    assert state.opt_state["slots"]["mu"]["dense_1"]["kernel"].shape == (4, 4)
    names = [variable.name for variable in model.optimizer.variables]
    assert any(name.endswith("kernel_mu") for name in names)


def test_the_step_of_the_bridge_is_that_of_fit():
    model, other = (model_of(optimizer("adamw")) for _ in range(2))
    fit(model, 1)
    state, step = kfb.TrainState.from_keras(other), kfb.make_train_step(other)
    for i in range(0, 32, 8):
        state, _ = step(state, (X[i : i + 8], Y[i : i + 8]))
    assert relative(state.params, kfb.TrainState.from_keras(model).params) == 0


def test_callbacks_set_the_learning_rate():
    model = model_of(optimizer("adamw"))
    rates = []
    schedule = keras.callbacks.LearningRateScheduler(lambda epoch: 0.01 / (epoch + 1))
    note = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: rates.append(float(model.optimizer.learning_rate))
    )
    fit(model, 3, callbacks=[schedule, note])
    np.testing.assert_allclose(rates, [0.01, 0.005, 0.01 / 3], rtol=1e-6)
    still = kfb.TrainState.from_keras(model).params
    model.optimizer.learning_rate = 0.0
    fit(model)
    assert relative(kfb.TrainState.from_keras(model).params, still) == 0


def test_plateaus_lower_it():
    model = model_of(optimizer("momentum"))
    fit(model, 4, callbacks=[keras.callbacks.ReduceLROnPlateau("loss", patience=1, min_delta=100.0)])
    assert float(model.optimizer.learning_rate) < 0.1


@pytest.mark.slow
def test_mixed_float16_scales_the_loss():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = model_of(optimizer("adamw"))
    finally:
        keras.config.set_dtype_policy(before)
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    losses = fit(model, 6).history["loss"]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    "options",
    [
        {"clipnorm": 0.1},
        pytest.param({"use_ema": True, "ema_overwrite_frequency": 3}, marks=pytest.mark.slow),
        pytest.param({"gradient_accumulation_steps": 2}, marks=pytest.mark.slow),
        pytest.param({"loss_scale_factor": 8.0}, marks=pytest.mark.slow),
        pytest.param({"weight_decay": 0.1}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_options_of_keras_work_around_it(options):
    model = model_of(kfb.OptaxOptimizer("lion", 0.01, b1=0.9, b2=0.99, **options))
    if "weight_decay" in options:  # lion's own argument then: after the rule, times the learning rate
        assert model.optimizer.weight_decay is None
    else:
        model.optimizer.arguments["weight_decay"] = 0.0
    other = model_of(keras.optimizers.Lion(0.01, beta_1=0.9, beta_2=0.99, **options))
    fit(model)
    fit(other)
    weights = [{str(i): w for i, w in enumerate(m.get_weights())} for m in (model, other)]
    assert relative(*weights) <= TOLERANCE


def test_parameters_without_a_gradient_stay_with_their_state():
    weights = [keras.Variable(np.ones(2, "float32"), name=name) for name in "ab"]
    made = optimizer("adamw")
    made.build(weights)
    with pytest.warns(UserWarning, match="Gradients do not exist"):
        made.apply([jnp.ones(2), None], weights)
    assert float(weights[0].value[0]) != 1.0
    assert float(weights[1].value[0]) == 1.0
    assert float(made.slots["mu"][1].value[0]) == 0.0
    assert int(made.numbers["count"].value) == 1


def test_weights_of_one_name_are_told_apart():
    weights = [keras.Variable(np.full(2, i, "float32"), name="w") for i in (1.0, 2.0)]
    made = optimizer("adamw")
    made.build(weights)
    made.apply([jnp.ones(2), jnp.zeros(2)], weights)
    assert float(weights[0].value[0]) < 1.0
    assert float(weights[1].value[0]) == pytest.approx(2 * (1 - 0.01 * 0.1))


def test_a_ready_transformation_goes_through_one_process(tmp_path):
    model = model_of(optimizer("ready"))
    fit(model)
    again = kfb.OptaxOptimizer.from_config(model.optimizer.get_config())
    assert again.transformation is model.optimizer.transformation
    model.save_weights(tmp_path / "a.weights.h5")
    assert float(model.optimizer.learning_rate) == 1.0
    with pytest.raises(kfb.UnsupportedOptimizerError, match="changed from outside"):
        model.optimizer.learning_rate = 0.1
    kfb.save(tmp_path / "checkpoint", kfb.TrainState.from_keras(model))
    other = model_of(optimizer("ready"))
    kfb.restore(tmp_path / "checkpoint", other)
    np.testing.assert_array_equal(other.get_weights()[0], model.get_weights()[0])


def test_its_config_is_plain():
    config = json.loads(json.dumps(optimizer("adamw").get_config()))
    assert (config["transformation"], config["weight_decay"]) == ("adamw", 0.1)
    again = kfb.OptaxOptimizer.from_config(config)
    assert again.arguments == {"weight_decay": 0.1}
    options = kfb.OptaxOptimizer.from_config(optimizer("options").get_config())
    assert (options.clipnorm, options.loss_scale_factor, options.gradient_accumulation_steps) == (0.1, 4, 2)


def test_no_code_lies_in_a_saved_model(tmp_path):
    model = model_of(optimizer("own"))
    model.save(tmp_path / "model.keras")
    config = json.loads(zipfile.ZipFile(tmp_path / "model.keras").read("config.json"))
    assert "own" in json.dumps(config["compile_config"]["optimizer"]["config"]["transformation"])


REFUSED = {
    "name": (lambda: kfb.OptaxOptimizer("adamv", 0.1), "Did you mean"),
    "no name": (lambda: kfb.OptaxOptimizer("zzzz", 0.1), "list of optimizers"),
    "kind": (lambda: kfb.OptaxOptimizer(3, 0.1), "a int"),
    "argument": (lambda: kfb.OptaxOptimizer("adam", 0.1, beta_1=0.9), "beta_1.*b1"),
    "missing": (lambda: kfb.OptaxOptimizer("sgd"), "learning_rate"),
    "rate": (lambda: kfb.OptaxOptimizer(optax.adam(0.1), 0.1), "learning_rate"),
    "decay": (lambda: kfb.OptaxOptimizer(optax.sgd(0.1), weight_decay=0.1), "weight_decay"),
    "lbfgs": (
        lambda: model_of(kfb.OptaxOptimizer("lbfgs")).optimizer.build([keras.Variable([1.0])]),
        "value",
    ),
    "polyak": (lambda: kfb.OptaxOptimizer("polyak_sgd").build([keras.Variable([1.0])]), "value"),
    "plateau": (
        lambda: kfb.OptaxOptimizer(optax.contrib.reduce_on_plateau()).build([keras.Variable([1.0])]),
        "value",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_can_not_be_made_is_refused(case):
    make, message = REFUSED[case]
    with pytest.raises(kfb.UnsupportedOptimizerError, match=message):
        make()


@pytest.mark.slow
def test_the_names_of_layers_are_of_no_consequence():
    ends = []
    for count in (0, 9):  # the second time they are dense_9, dense_10, ..., which sort otherwise
        keras.backend.clear_session()
        for _ in range(count):
            layers.Dense(1)
        model = model_of(optimizer("own"))
        fit(model)
        ends.append({str(i): w for i, w in enumerate(model.get_weights())})
    assert relative(*ends) == 0


def test_slots_cover_what_optax_holds():
    for name in CASES:
        made = optimizer(name)
        made.build(
            [keras.Variable(np.ones((3, 4), "float32"), name="kernel"), keras.Variable([1.0], name="bias")]
        )
        held = sum(v is not None for slot in made.slots.values() for v in slot) + len(made.numbers)
        options = {"iteration": 1, "learning_rate": not callable(CASES[name][1].get("learning_rate", 0))}
        options["accumulator"] = 2 * bool(made.gradient_accumulation_steps)
        assert len(made.variables) == held + sum(options.values()), name
        assert flatten_tree(made.slots) or name == "sgd"
