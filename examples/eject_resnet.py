"""Ejects a Keras ResNet50 into native Flax: its source, its weights, and one training step on both sides.

    python examples/eject_resnet.py [OUT.py] [--side 32]

Writes the source, runs it, loads the weights, and compares outputs, a training step, and the way
back into Keras.
"""

import argparse
import importlib.util
from pathlib import Path

import keras_flax_bridge as kfb

import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
from flax import nnx

CLASSES, RATE = 10, 0.01


def ejected(source: str, path: Path) -> nnx.Module:
    """The module of a source file, as any program would import it."""
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.ResNet50(rngs=nnx.Rngs(0))


def relative(got, wanted) -> float:
    """The largest difference, relative to the largest value."""
    return float(jnp.max(jnp.abs(got - wanted)) / jnp.max(jnp.abs(wanted)))


def main() -> None:
    """Ejects the model, runs both sides, and trains one step on each."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", nargs="?", default="resnet50.py", type=Path)
    parser.add_argument("--side", type=int, default=32, help="height and width of the images")
    options = parser.parse_args()

    keras.utils.set_random_seed(0)
    shape = (options.side, options.side, 3)
    model = keras.applications.ResNet50(weights=None, input_shape=shape, classes=CLASSES)
    model.compile(keras.optimizers.SGD(RATE), "sparse_categorical_crossentropy")

    source = kfb.migrate.to_source(model, class_name="ResNet50")
    net = ejected(source, options.out)
    nnx.update(net, kfb.migrate.to_nnx_state(model))
    print(f"{options.out}: {len(source.splitlines())} lines, {model.count_params():,} weights")

    rng = np.random.default_rng(0)
    x = rng.standard_normal((8, *shape)).astype("float32")
    y = rng.integers(0, CLASSES, 8)
    net.eval()
    predict = nnx.jit(lambda net, x: net(x))
    print(f"outputs differ by {relative(predict(net, x), model.predict(x, verbose=0)):.1e}, relative")

    net.train()
    optimizer = nnx.Optimizer(net, optax.sgd(RATE), wrt=nnx.Param)

    @nnx.jit
    def step(net, optimizer, x, y):
        def loss_fn(net):
            chosen = jnp.take_along_axis(net(x), y[:, None], axis=1)
            return -jnp.mean(jnp.log(jnp.clip(chosen, 1e-7, 1 - 1e-7)))

        loss, grads = nnx.value_and_grad(loss_fn)(net)
        optimizer.update(net, grads)
        return loss

    flax_loss, keras_loss = step(net, optimizer, x, y), model.train_on_batch(x, y)
    print(f"one step of SGD: loss {float(flax_loss):.6f} in Flax, {float(keras_loss):.6f} in Keras")
    net.eval()
    print(f"outputs then differ by {relative(predict(net, x), model.predict(x, verbose=0)):.1e}, relative")

    wmap = kfb.migrate.weight_map(kfb.migrate.to_nnx(model, check_outputs=False))
    wmap.to_keras(net, like=model)
    print(f"back in Keras: {relative(predict(net, x), model.predict(x, verbose=0)):.1e}")


if __name__ == "__main__":
    jax.config.update("jax_default_matmul_precision", "highest")
    main()
