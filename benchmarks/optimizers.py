"""A step of a Keras optimizer as native optax against Keras's own `stateless_apply`.

Run it with ``python benchmarks/optimizers.py [--smoke]``. Both sides update the parameters of ResNet50 (161
arrays, 25.6 million numbers), in turn, so that whatever else the machine does meets both; each round
gives one ratio. Asserts nothing.
"""

import argparse
import json
import statistics
import time

import keras_flax_bridge as kfb  # before keras: it chooses the JAX backend

import jax
import keras
import optax

MAKERS = {
    "SGD momentum": lambda: keras.optimizers.SGD(0.01, momentum=0.9),
    "Adam": lambda: keras.optimizers.Adam(1e-3),
    "AdamW, clipped": lambda: keras.optimizers.AdamW(1e-3, weight_decay=0.01, global_clipnorm=1.0),
    "Lion": lambda: keras.optimizers.Lion(1e-4),
    "Adafactor": lambda: keras.optimizers.Adafactor(1e-3),
}


def variables(smoke):
    """The trainable variables of ResNet50, or of a small model."""
    keras.utils.set_random_seed(0)
    if smoke:
        layers = [
            keras.Input((8, 8, 3)),
            keras.layers.Conv2D(4, 3),
            keras.layers.Flatten(),
            keras.layers.Dense(2),
        ]
        return keras.Sequential(layers)
    return keras.applications.ResNet50(weights=None)


def sides(make, model):
    """For each side a step, its first parameters and slots, and gradients."""
    optimizer = make()
    optimizer.build(model.trainable_variables)
    state = kfb.TrainState.from_keras(model, optimizer=optimizer)
    moved = state.to_optax()
    grads = jax.tree.map(lambda p: 0.01 * p + 1e-3, state.params)
    values = [variable.value for variable in model.trainable_variables]
    flat = [0.01 * value + 1e-3 for value in values]

    def by_keras(params, slots, grads):
        return optimizer.stateless_apply(slots, grads, params)

    def by_optax(params, opt_state, grads):
        updates, opt_state = moved.tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    copy = lambda tree: jax.tree.map(jax.numpy.copy, tree)  # noqa: E731
    return {
        "keras": (by_keras, copy((values, [variable.value for variable in optimizer.variables])), flat),
        "optax": (by_optax, copy((moved.params, moved.opt_state)), grads),
    }


def measure(make, model, rounds, steps):
    """Seconds a step on either side, and the ratios of the rounds."""
    compiled = {
        name: (jax.jit(step, donate_argnums=(0, 1)), arguments, grads)
        for name, (step, arguments, grads) in sides(make, model).items()
    }
    seconds = {name: [] for name in compiled}
    for round_ in range(rounds + 1):  # the first compiles
        for name in sorted(compiled, reverse=bool(round_ % 2)):
            step, arguments, grads = compiled[name]
            begin = time.perf_counter()
            for _ in range(steps):
                arguments = step(*arguments, grads)
            jax.block_until_ready(arguments)
            if round_:
                seconds[name].append((time.perf_counter() - begin) / steps)
            compiled[name] = step, arguments, grads
    ratios = [optax_ / keras_ for optax_, keras_ in zip(seconds["optax"], seconds["keras"], strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        **{f"{name} ms": round(1e3 * value, 3) for name, value in medians.items()},
        "ratio of medians": round(medians["optax"] / medians["keras"], 3),
        "quartiles of ratios": [round(low, 3), round(high, 3)],
    }


def main():
    """Measures every optimizer and prints one line of JSON each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="a small model and few rounds: whether it runs")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=10, help="steps in a round on each side")
    options = parser.parse_args()
    model = variables(options.smoke)
    rounds, steps = (3, 2) if options.smoke else (options.rounds, options.steps)
    print(json.dumps({"device": str(jax.devices()[0]), "parameters": model.count_params()}))
    for name, make in MAKERS.items():
        print(json.dumps({"optimizer": name, **measure(make, model, rounds, steps)}), flush=True)


if __name__ == "__main__":
    main()
