"""Callbacks in kfb.train: every hook, history and final state equal those of `fit`, bit for bit."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_flax_bridge as kfb
from tests.support.cases import differing

pytestmark = pytest.mark.slow

X = np.random.default_rng(0).normal(size=(48, 6)).astype("float32")
Y = X.sum(1, keepdims=True)
SIZE = 8
BATCHES = [(X[i : i + SIZE], Y[i : i + SIZE]) for i in range(0, len(X), SIZE)]
HELD_OUT = BATCHES[:3]
EPOCHS = 4


class Annealed(keras.Model):
    """A model with a variable that no gradient reaches, dropout and statistics."""

    def __init__(self):
        super().__init__()
        self.hidden, self.norm = layers.Dense(5), layers.BatchNormalization()
        self.drop, self.out = layers.Dropout(0.2), layers.Dense(1)
        self.beta = self.add_weight(shape=(), initializer="ones", trainable=False, name="beta")

    def build(self, shape):
        self.hidden.build(shape)
        self.norm.build((None, 5))
        self.out.build((None, 5))
        self.built = True

    def call(self, x, training=False):
        hidden = self.norm(self.hidden(x), training=training)
        self.add_loss(self.beta * ops.mean(ops.square(hidden)))
        return self.out(self.drop(hidden, training=training))


def build(**options):
    keras.utils.set_random_seed(0)
    model = Annealed()
    model.build((None, 6))
    model.compile(keras.optimizers.Adam(0.05, **options), "mse", metrics=["mae"])
    return model


class Callback(keras.callbacks.Callback):
    """A callback with one hook of its own."""

    def __init__(self, hook, act):
        super().__init__()
        self.count = 0

        def own(*args, logs=None):
            self.count += 1
            act(self, self.model)

        setattr(self, hook, own)


def every(hook, act):
    return lambda folder: [Callback(hook, act)]


def halve(callback, model):
    model.set_weights([weight * np.asarray(0.5, weight.dtype) for weight in model.get_weights()])


def anneal(callback, model):
    model.beta.assign(0.1 * callback.count)


def warm_up(callback, model):
    model.optimizer.learning_rate = 0.01 * callback.count


def clip(callback, model):
    for variable in model.trainable_variables:
        variable.assign(ops.clip(variable, -0.3, 0.3))


def rewind(callback, model):
    model.optimizer.iterations.assign(0)


def forget(callback, model):
    model.reset_metrics()


def stop(callback, model):
    model.stop_training = callback.count == 8


def stop_evaluating(callback, model):
    model.stop_evaluating = callback.count % 2 == 0


HOOKS = [f"on_{part}" for part in ("train_begin", "epoch_begin", "train_batch_begin", "train_batch_end")] + [
    f"on_{part}" for part in ("test_begin", "test_batch_begin", "test_batch_end", "test_end", "epoch_end")
]
ROWS = {
    "none": lambda folder: [],
    "schedule": lambda folder: [keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate * 0.5)],
    "plateau": lambda folder: [
        keras.callbacks.ReduceLROnPlateau("val_loss", factor=0.1, min_delta=10.0, patience=1)
    ],
    "early stopping": lambda folder: [
        keras.callbacks.EarlyStopping("val_loss", min_delta=10.0, patience=1, restore_best_weights=True)
    ],
    "not a number": lambda folder: [keras.callbacks.TerminateOnNaN()],
    "swapped averages": lambda folder: [keras.callbacks.SwapEMAWeights(swap_on_epoch=True)],
    "averages for tests": lambda folder: [keras.callbacks.SwapEMAWeights(swap_on_epoch=False)],
    "best model": lambda folder: [
        keras.callbacks.ModelCheckpoint(
            f"{folder}/best.weights.h5", save_weights_only=True, save_best_only=True
        )
    ],
    "by batch": lambda folder: [
        keras.callbacks.ModelCheckpoint(
            folder + "/e{epoch}b{batch}.weights.h5", save_weights_only=True, save_freq=4
        )
    ],
    "rows": lambda folder: [keras.callbacks.CSVLogger(f"{folder}/log.csv")],
    "lambda": lambda folder: [
        keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: None, on_train_end=print)
    ],
    "warm-up": every("on_train_batch_begin", warm_up),
    "stopped in an epoch": every("on_train_batch_end", stop),
    "evaluation stopped": every("on_test_batch_end", stop_evaluating),
    "averages": lambda folder: [],
    **{f"weights at {hook}": every(hook, halve) for hook in [*HOOKS, "on_train_end"]},
    **{f"annealing at {hook}": every(hook, anneal) for hook in HOOKS},
    **{f"iterations at {hook}": every(hook, rewind) for hook in HOOKS},
    **{f"clipped at {hook}": every(hook, clip) for hook in HOOKS},
    **{f"metrics at {hook}": every(hook, forget) for hook in HOOKS[1:4]},
}
OPTIONS = {
    name: {"use_ema": True, "ema_momentum": 0.5}
    for name in ("swapped averages", "averages for tests", "averages")
}


def files(folder):
    """Weights in the files of a folder, and texts."""
    found = {}
    for path in sorted(folder.iterdir()):
        if path.suffix == ".h5":
            model = build()
            model.optimizer.build(model.trainable_variables)
            model.load_weights(path)
            found[path.name] = [weight.tolist() for weight in model.get_weights()]
        else:
            found[path.name] = path.read_text()
    return found


def fitted(row, folder):
    folder.mkdir()
    model, callbacks = build(**OPTIONS.get(row, {})), ROWS[row](str(folder))
    data = kfb_like(BATCHES)
    history = model.fit(
        data, epochs=EPOCHS, shuffle=False, verbose=0, validation_data=kfb_like(HELD_OUT), callbacks=callbacks
    )
    return model, history, files(folder)


def kfb_like(batches):
    """Batches as `fit` takes them."""

    class Rows(keras.utils.PyDataset):
        def __len__(self):
            return len(batches)

        def __getitem__(self, index):
            return batches[index]

    return Rows()


def trained(row, folder):
    folder.mkdir()
    model, callbacks = build(**OPTIONS.get(row, {})), ROWS[row](str(folder))
    state, history = kfb.train(
        kfb.TrainState.from_keras(model),
        kfb.make_train_step(model),
        BATCHES,
        epochs=EPOCHS,
        eval_step=kfb.make_eval_step(model),
        eval_data=HELD_OUT,
        callbacks=callbacks,
        verbose=0,
    )
    return model, state, history, files(folder)


TREES = ("params", "non_trainable", "opt_state")


SLOW = ("annealing", "iterations", "clipped", "metrics")


@pytest.mark.every(slow=3)
@pytest.mark.parametrize(
    "row", [pytest.param(r, marks=[pytest.mark.slow] if r.startswith(SLOW) else []) for r in ROWS]
)
def test_callbacks_do_what_they_do_in_fit(tmp_path, row):
    reference, wanted, written = fitted(row, tmp_path / "fit")
    model, state, history, own = trained(row, tmp_path / "train")
    assert history.history == wanted.history
    assert history.epoch == wanted.epoch
    assert own == written
    expected = kfb.TrainState.from_keras(reference)
    assert differing([getattr(state, t) for t in TREES], [getattr(expected, t) for t in TREES]) == []
    if ROWS[row](str(tmp_path)):  # the model of callbacks holds the last state
        held = kfb.TrainState.from_keras(model)
        assert differing([getattr(held, t) for t in TREES], [getattr(expected, t) for t in TREES]) == []
