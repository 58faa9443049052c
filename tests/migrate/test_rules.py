"""Every row of the migration table through every check: outputs, training, gradients, weights, source."""

from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import keras_flax_bridge as kfb
from docs.generate import migrate as rule_table
from keras_flax_bridge import keras_internals
from keras_flax_bridge.keras_internals import SEED
from keras_flax_bridge.tree.paths import flatten_tree
from tests.support.cases import QUICK, double
from tests.tables import migration
from tests.tables.migration import Row

pytestmark = pytest.mark.usefixtures("numpy_weights")


class Sides:
    """A model, its conversion, and what both compute on one batch."""

    def __init__(self, row: Row, dtype: str = "float32"):
        self.row = row
        self.model = row.model()
        batch = row.batch(dtype=dtype)
        self.x = batch[0] if len(batch) == 1 else batch
        self.module = kfb.migrate.to_nnx(self.model, check_outputs=False)

    @cached_property
    def variables(self):
        params, rest = keras_internals.collect_layer(self.model)
        return [e.variable.value for e in params], [e.variable.value for e in rest]

    def keras(self, training):
        """Outputs, gradients of the weights, and the statistics after the call, by key."""
        params, rest = keras_internals.collect_layer(self.model)
        trainable, others = self.variables

        def loss(trainable, x):
            y, after = self.model.stateless_call(trainable, others, x, training=training)
            return _total(y), (y, after)

        (_, (y, after)), grads = gradients(loss, trainable, self.x)
        state = {e.path: v for e, v in zip(rest, after, strict=True) if e.kind != SEED}
        return y, dict(zip((e.path for e in params), grads, strict=True)), state

    def native(self, training):
        graph, params, rest = nnx.split(self.module, nnx.Param, ...)

        def loss(params, x):
            module = nnx.merge(graph, params, rest, copy=True)
            module.train() if training else module.eval()
            y = module(x)
            return _total(y), (y, nnx.state(module))

        (_, (y, after)), grads = gradients(loss, params, self.x)
        wmap = self.module.weight_map
        flat = flatten_tree(wmap.to_keras(grads))
        state = {p: v for p, v in flatten_tree(wmap.to_keras(after)).items() if p not in flat}
        return y, flat, state


def gradients(loss, params, x):
    """By one program: it compiles sooner than one for each operation."""
    return jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=QUICK)(params, x)


def outputs(module, x):
    graph, state = nnx.split(module)
    return jax.jit(lambda state, x: nnx.merge(graph, state)(x), compiler_options=QUICK)(state, x)


def _total(outputs):
    leaves = [leaf for leaf in jax.tree.leaves(outputs) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return sum(jnp.sum(leaf * jnp.cos(jnp.arange(leaf.size).reshape(leaf.shape))) for leaf in leaves)


def assert_close(got, wanted, tolerance):
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        scale = max(float(jnp.max(jnp.abs(b), initial=0.0)), 1e-2)
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, atol=tolerance * scale, rtol=0)


def check_both(sides, tolerance):
    for training in (False, True) if not sides.row.random else (False,):
        wanted, got = sides.keras(training), sides.native(training)
        assert_close(got[0], jax.tree.map(jnp.asarray, wanted[0]), tolerance)
        for a, b in zip(got[1:], wanted[1:], strict=True):
            assert a.keys() == b.keys()
            assert_close(a, b, 10 * tolerance)  # sums over a batch round more often


def check_round_trip(sides):
    """Out of Keras, into another module, and back into another model: the same bits."""
    wanted = {
        e.path: np.asarray(e.variable.value) for c in keras_internals.collect_layer(sides.model) for e in c
    }
    other = sides.row.model()
    for variable in other.weights:
        if "seed" not in variable.name:
            variable.assign(jnp.zeros_like(variable.value))
    module = kfb.migrate.to_nnx(other, check_outputs=False)
    nnx.update(module, kfb.migrate.to_nnx_state(sides.model))
    kfb.migrate.to_keras(module, other)
    for collection in keras_internals.collect_layer(other):
        for path, variable, kind, _ in collection:
            if kind != SEED:
                np.testing.assert_array_equal(np.asarray(variable.value), wanted[path])


IMPORTS, ALLOWED = ("import ", "from "), {"jax", "flax", "math"}


def check_source(sides):
    """The written source, run on its own, holds the weights of `to_nnx` and computes the same."""
    source = kfb.migrate.to_source(sides.model)
    assert source == kfb.migrate.to_source(sides.model)
    assert {
        line.split()[1].split(".")[0] for line in source.splitlines() if line.startswith(IMPORTS)
    } <= ALLOWED
    scope = {"__name__": "ejected"}
    exec(compile(source, "ejected", "exec"), scope)
    module = scope["Model"](rngs=nnx.Rngs(1))
    nnx.update(module, nnx.state(sides.module))
    module.eval()
    got, wanted = (jax.tree.leaves(outputs(m, sides.x)) for m in (module, sides.module))
    for a, b in zip(got, wanted, strict=True):
        np.testing.assert_array_equal(a, b)


def check_random(sides):
    """What training draws differs from call to call, and keeps the mean."""
    sides.module.train()
    first, second = sides.module(sides.x), sides.module(sides.x)
    assert not np.array_equal(first, second) or sides.row.name.endswith("zero")
    sides.module.eval()


ROWS = [pytest.param(r, id=r.name, marks=[] if r.fast else [pytest.mark.slow]) for r in migration.EVERY]


@pytest.mark.every(fast=2, slow=4)
@pytest.mark.parametrize("row", ROWS)
def test_a_layer_in_float32(row):
    sides = Sides(row)
    check_both(sides, row.tolerance)
    check_round_trip(sides)
    check_source(sides)
    if row.random:
        check_random(sides)


@pytest.mark.every(slow=5)
@pytest.mark.slow
@pytest.mark.parametrize("row", migration.EVERY, ids=lambda row: row.name)
def test_a_layer_in_float64(row):
    with double():
        check_both(Sides(row, "float64"), row.double)


def test_the_table_of_rules_is_that_of_the_code():
    page = rule_table.PAGE.read_text()
    assert rule_table.written(page) == page, "python -m docs.generate.migrate"
