"""Structural keys: by place, never by Keras's auto-generated names."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import keras
import numpy as np
import pytest
from keras import layers

import keras_flax_bridge as kfb
from keras_flax_bridge import keras_internals
from keras_flax_bridge.startup import compat
from keras_flax_bridge.tree.paths import flatten_tree, join_path
from tests.support.cases import Case
from tests.support.models import graphs
from tests.tables import contracts


def keys(model):
    params, non_trainable = keras_internals.collect_layer(model)
    return [join_path(entry.path) for entry in params + non_trainable]


class Attention(layers.Layer):
    def __init__(self):
        super().__init__()
        self.attention = layers.MultiHeadAttention(1, 2)
        self._hidden = (layers.Dense(2), {"a.b": layers.Dense(2), "c/d": layers.Dense(2)})
        self.hidden = layers.Dense(2)
        self.generators = [keras.random.SeedGenerator(1), keras.random.SeedGenerator(2)]

    def build(self, shape):
        self.attention.build(shape, shape)
        for layer in (self._hidden[0], *self._hidden[1].values(), self.hidden):
            layer.build(shape)
        self.table = [self.add_weight(shape=(2,)), self.add_weight(shape=(2,))]
        self.same = self.add_weight(shape=(1,), name="scale")
        self.other = self.add_weight(shape=(1,), name="scale", trainable=False)


def attention():
    layer = Attention()
    layer.build((1, 3, 2))
    return layer


def graph():
    first = layers.Dense(2, name="first")
    stack = [layers.Dense(2), first, layers.Dense(2), layers.Conv1D(2, 1, name="dense")]
    return keras.Sequential([keras.Input((3, 2)), *stack, layers.Bidirectional(layers.GRU(1))])


def nested():
    inner = keras.Sequential([keras.Input((2,)), layers.Dense(2)])
    x = keras.Input((2,))
    shared = layers.Dense(2, name="twice")
    return keras.Model(x, shared(inner(shared(x))))


TABLE = {
    attention: [
        "table/0",
        "table/1",
        "scale",
        *(
            f"attention/{part}_dense/{leaf}"
            for part in ("query", "key", "value", "output")
            for leaf in ("kernel", "bias")
        ),
        "hidden/kernel",
        "hidden/bias",
        "hidden_1/0/kernel",
        "hidden_1/0/bias",
        "hidden_1/1/a.b/kernel",
        "hidden_1/1/a.b/bias",
        "hidden_1/1/c~1d/kernel",
        "hidden_1/1/c~1d/bias",
        "scale_1",
        "seed_generator_state",
        "seed_generator_state_1",
    ],
    graph: [
        "dense_1/kernel",
        "dense_1/bias",
        "first/kernel",
        "first/bias",
        "dense_2/kernel",
        "dense_2/bias",
        "dense/kernel",
        "dense/bias",
        *(
            f"bidirectional/{direction}_layer/cell/{leaf}"
            for direction in ("forward", "backward")
            for leaf in ("kernel", "recurrent_kernel", "bias")
        ),
        "bidirectional/forward_layer/cell/seed_generator_state",
        "bidirectional/backward_layer/cell/seed_generator_state",
    ],
    nested: ["twice/kernel", "twice/bias", "sequential/dense/kernel", "sequential/dense/bias"],
}


@pytest.mark.parametrize("build", TABLE, ids=lambda build: build.__name__)
def test_keys_are_the_places(build):
    for _ in range(2):  # a second build in one process gives the same
        assert sorted(keys(build())) == sorted(TABLE[build])


def test_a_clone_has_the_same_keys():
    model = graphs.functional()
    assert keys(keras.models.clone_model(model)) == keys(model)


@pytest.mark.slow  # a process each
@pytest.mark.parametrize("fast", [True, False], ids=["fast", "all"])
def test_another_process_gives_the_same_keys(fast):
    code = (
        "import keras_flax_bridge, json, keras; keras.layers.Dense(1); keras.layers.Dropout(.5)\n"
        f"import {__name__} as t; print(json.dumps(t.everything({fast})))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=root, env={**os.environ}
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == everything(fast)


def everything(fast):
    """All keys of many rows, by row."""
    cases = [Case(row) for row in contracts.ROWS if row.fast or not (fast or row.heavy)]
    return {case.row.name: leaves(case.state(case.model)) for case in cases}


def leaves(state):
    return [join_path(path) for path in flatten_tree(state)]


def test_kinds():
    model = keras.Sequential(
        [keras.Input((2,)), layers.Dense(1), layers.BatchNormalization(), layers.Dropout(0.1)]
    )
    model.layers[0].trainable = False
    counter = layers.Layer(name="counter")
    counter.count = counter.add_weight(shape=(), trainable=False, name="count")
    model.add(counter)
    kinds = {"/".join(e.path): e.kind for part in keras_internals.collect_layer(model) for e in part}
    assert kinds == {
        "dense/kernel": "frozen",
        "dense/bias": "frozen",
        "batch_normalization/gamma": "param",
        "batch_normalization/beta": "param",
        "batch_normalization/moving_mean": "batch_stat",
        "batch_normalization/moving_variance": "batch_stat",
        "dropout/seed_generator_state": "seed",
        "counter/count": "other",
    }


OPTIMIZERS = [
    keras.optimizers.SGD(momentum=0.9),
    keras.optimizers.RMSprop(centered=True, momentum=0.5),
    keras.optimizers.Adam(amsgrad=True, use_ema=True, gradient_accumulation_steps=2),
    keras.optimizers.Adadelta(),
    keras.optimizers.Adafactor(),
    keras.optimizers.Nadam(),
    keras.optimizers.Ftrl(),
    keras.optimizers.Muon(),
    keras.optimizers.LossScaleOptimizer(keras.optimizers.Lion()),
    *(
        multi(lambda v, rules={}: rules.setdefault(v.name, keras.optimizers.Adam()))
        for multi in compat.kinds("MultiOptimizer")
    ),
]


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda o: type(o).__name__)
def test_slots_are_shaped_like_params(optimizer):
    model = keras.Sequential([keras.Input((2,)), layers.Dense(3), layers.Dense(1)])
    model.optimizer = optimizer
    optimizer.build(model.trainable_variables)
    slots, owned = (
        keras_internals.collect(model).opt_state,
        {e.path for e in keras_internals.collect(model).params},
    )
    assert len({entry.path for entry in slots}) == len(optimizer.variables)
    below = [path for path, *_ in slots if path[-2:] in owned]
    assert all(path[-2:] in owned or len(path) <= 3 for path, *_ in slots)
    assert len(below) >= len(owned)
    invented = [
        path
        for path, *_ in slots
        if any(n.startswith(("variable", "dense_")) and n != "dense_1" for n in path)
    ]
    assert invented == []


def test_equal_metrics_of_two_outputs_do_not_collide():
    model = graphs.functional()
    state = kfb.TrainState.from_keras(model, batch=next(contracts.ROWS[1].batches()))
    assert sorted(state.metrics) == ["difference_loss", "difference_mae", "loss", "sum_loss", "sum_mae"]


@pytest.mark.slow
def test_ten_thousand_variables_take_well_under_a_second():
    import time

    class Big(keras.Model):
        def __init__(self):
            super().__init__()
            self.parts = [layers.EinsumDense("ab,bc->ac", 1) for _ in range(10_000)]

        def build(self, shape):
            for part in self.parts:
                part.build(shape)

    model = Big()
    model.build((None, 1))
    begin = time.perf_counter()
    params, _ = keras_internals.collect_layer(model)
    assert len(params) == 10_000
    assert time.perf_counter() - begin < 5  # it takes 0.1 s; quadratic growth would take minutes


def test_dots_in_names_survive_a_checkpoint(tmp_path):
    tree = {"a.b": np.float32(1), "a": {"b": np.float32(2), "%2E": np.float32(3)}, "c/d": np.ones(2)}
    kfb.save(tmp_path / "one", tree)
    restored = kfb.restore(tmp_path / "one", jax.tree.map(np.zeros_like, tree))
    assert jax.tree.map(float, {k: restored[k] for k in ("a.b", "a")}) == {
        "a.b": 1.0,
        "a": {"b": 2.0, "%2E": 3.0},
    }
