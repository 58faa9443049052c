"""A GAN: two models, two optimizers, one state, one compiled step, one checkpoint.

Run it with ``python examples/gan.py``; it needs the ``examples`` extra. The generator learns to draw the
8x8 digits that scikit-learn ships, well enough to make the discriminator unsure.
"""

from pathlib import Path
from tempfile import mkdtemp

import keras_flax_bridge as kfb  # before keras: it chooses the JAX backend

import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
from keras import layers as L
from sklearn.datasets import load_digits

BATCH, STEPS, NOISE = 64, 600, 16


def build():
    """Generator and discriminator, each compiled with an optimizer of its own."""
    keras.utils.set_random_seed(3)
    drawing = [L.Dense(64, "relu"), L.BatchNormalization(), L.Dense(64, "sigmoid")]
    generator = keras.Sequential([keras.Input((NOISE,)), *drawing], name="generator")
    judging = [L.Dense(64, "leaky_relu"), L.Dropout(0.3), L.Dense(1)]
    discriminator = keras.Sequential([keras.Input((64,)), *judging], name="discriminator")
    generator.compile(keras.optimizers.Adam(2e-3, beta_1=0.5))
    discriminator.compile(keras.optimizers.Adam(1e-3, beta_1=0.5))
    return {"generator": generator, "discriminator": discriminator}


def call(state, params, x):
    """Outputs in training, and the other variables afterwards."""
    variables = {"params": params, "non_trainable": state.non_trainable}
    return state.apply_fn(variables, x, training=True, mutable=["non_trainable"])


def judged(logits, real):
    """The loss of calling every one of these real, or not."""
    return optax.sigmoid_binary_cross_entropy(logits, jnp.full_like(logits, real)).mean()


@jax.jit
def step(state, real, key):
    """Both models learn from one batch."""
    generator, discriminator = state.part("generator"), state.part("discriminator")
    noise = jax.random.normal(key, (len(real), NOISE))

    def critic(params):
        fake, _ = call(generator, generator.params, noise)
        logits, updates = call(discriminator, params, jnp.concatenate([real, fake]))
        return judged(logits[: len(real)], 0.9) + judged(logits[len(real) :], 0.0), updates

    (_, after), grads = jax.value_and_grad(critic, has_aux=True)(discriminator.params)
    discriminator = discriminator.apply_gradients(grads=grads, non_trainable=after["non_trainable"])

    def artist(params):
        fake, updates = call(generator, params, noise)
        logits, seen = call(discriminator, discriminator.params, fake)
        return judged(logits, 1.0), (updates, seen, jax.nn.sigmoid(logits).mean())

    (_, (after, seen, belief)), grads = jax.value_and_grad(artist, has_aux=True)(generator.params)
    generator = generator.apply_gradients(grads=grads, non_trainable=after["non_trainable"])
    discriminator = discriminator.replace(non_trainable=seen["non_trainable"])
    return state.with_parts(generator=generator, discriminator=discriminator), belief


def main():
    """Trains, saves both models in one checkpoint, and draws from what was read."""
    x = load_digits(return_X_y=True)[0].astype("float32") / 16
    rng, models = np.random.default_rng(0), build()
    state = kfb.TrainState.from_keras(models)
    for i, key in enumerate(jax.random.split(jax.random.key(0), STEPS), 1):
        state, belief = step(state, x[rng.integers(0, len(x), BATCH)], key)
        if i % 200 == 0:
            print(f"step {i}: the discriminator takes drawings for real with {float(belief):.2f}")
    path = Path(mkdtemp()) / "gan"
    kfb.save(path, state)
    kfb.restore(path, kfb.TrainState.from_keras(build())).assign_to(models)
    drawn = models["generator"](np.random.default_rng(1).standard_normal((3, NOISE)))
    for row in np.asarray(drawn).reshape(3, 8, 8).transpose(1, 0, 2):
        print("   ".join("".join(" .:-=+*#%@"[int(value * 9.99)] * 2 for value in line) for line in row))
    assert 0.1 < float(belief) < 0.9


if __name__ == "__main__":
    main()
