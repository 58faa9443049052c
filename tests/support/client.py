"""A program of someone who installed the package: `make package` runs it and checks its types."""

import tempfile
from pathlib import Path

import keras_flax_bridge as kfb

import keras
import numpy as np


def build() -> keras.Model:
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, "relu"), keras.layers.Dense(1)])
    model.compile("adam", "mse")
    return model


def train(model: keras.Model, steps: int) -> kfb.TrainState:
    state = kfb.TrainState.from_keras(model)
    step = kfb.make_train_step(model)
    x = np.ones((8, 4), "float32")
    for _ in range(steps):
        state, logs = step(state, (x, x[:, :1]))
        assert float(logs["loss"]) >= 0
    return state


def main() -> None:
    assert "site-packages" in kfb.__file__, kfb.__file__
    model = build()
    state = train(model, 3)
    with tempfile.TemporaryDirectory() as folder:
        path: Path = Path(folder) / "one"
        kfb.save(path, state, model=model)
        report = kfb.verify(path)
        assert report.ok
        again: kfb.TrainState = kfb.restore(path, kfb.TrainState.abstract(build))
        loaded = kfb.load_model(path)
    assert int(again.step) == int(state.step) == 3
    state.assign_to(model)
    x = np.ones((2, 4), "float32")
    wanted = model(x)
    module = kfb.migrate.to_nnx(model)
    for outputs in (loaded(x), module(x), kfb.ToNNX(model)(x)):
        np.testing.assert_allclose(outputs, wanted, rtol=1e-6)
    print(f"keras_flax_bridge {kfb.__version__}: installed and working")


if __name__ == "__main__":
    main()
