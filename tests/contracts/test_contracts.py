"""Every row of the contract table through every check, bit for bit against Keras."""

import gc
import re

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from keras import layers

import keras_flax_bridge as kfb
from keras_flax_bridge import keras_internals
from keras_flax_bridge.tree.diff import diff_trees
from keras_flax_bridge.tree.paths import flatten_tree, join_path, nest_paths
from tests.support.cases import TREES, differing, light, values
from tests.tables import contracts

pytestmark = pytest.mark.every(slow=4)


def floats(logs):
    """Logs as numbers; what Keras names by a counter (``dense``, ``dense_1``) is counted from the first."""
    found = sorted({(stem, int(count or 0)) for name in logs for stem, count in COUNTED.findall(name)})
    first = {stem: min(count for other, count in found if other == stem) for stem, _ in found}
    name_of = lambda name: COUNTED.sub(lambda m: f"{m[1]}#{int(m[2] or 0) - first[m[1]]}", name)  # noqa: E731
    return {name_of(name): np.asarray(value).tolist() for name, value in logs.items()}


COUNTED = re.compile(r"(dense|auc|precision|largest)(?:_(\d+))?")


# --- keys


def keys(model):
    return [
        (tree, e.path, e.kind)
        for tree, found in keras_internals.collect(model)._asdict().items()
        for e in found
    ]


def test_keys_are_unique_and_those_of_a_second_build(case):
    layers.Dropout(0.1)  # moves Keras's counters of names
    second = case.row.build()
    case.state(second)
    assert case.start is not None
    assert keys(case.model) == keys(second)
    assert len({(tree, path) for tree, path, _ in keys(second)}) == len(keys(second))


def test_abstract_has_the_same_leaves(case):
    abstract = kfb.TrainState.abstract(case.row.build, batch=case.batch)
    difference = diff_trees(flatten_tree(abstract), flatten_tree(case.start))
    assert not difference, difference.table()
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(abstract))


# --- parity


class Finished(keras.callbacks.Callback):
    """Keeps what the variables are before `fit` overwrites them with their average."""

    def on_epoch_end(self, epoch, logs=None):
        self.values, self.logs = values(self.model), logs


def same(got, wanted, exact):
    """Bit for bit, or where XLA fuses two programs otherwise, but for float rounding."""
    if exact:
        assert differing(got, wanted) == []
    for (path, leaf), other in zip(flatten_tree(got).items(), flatten_tree(wanted).values(), strict=True):
        close(leaf, other, 1e-5, join_path(path))


@pytest.mark.every
def test_steps_equal_fit(case):
    fitted, finished = case.row.kept_by_keras(), Finished()
    fitted.fit(**case.row.data, shuffle=False, callbacks=[finished])
    state = case.start
    for batch in case.row.batches():
        state, logs = case.step(state, batch)
    got = {tree: getattr(state, tree) for tree in TREES}
    same(got, nest_paths(finished.values), case.row.exact)
    if case.row.name != "own_step":  # fit forgets what an own step reports beyond the metrics
        same(floats(logs), floats(finished.logs), case.row.exact)
    assert int(state.step) == case.row.steps


@light
def test_eval_equals_evaluate(case):
    model, (before, _) = case.row.kept_by_keras(), case.after
    state, eval_step = before, kfb.make_eval_step(case.model)
    case.state(model)
    before.assign_to(model)
    for batch in case.row.batches():
        state, logs = eval_step(state, batch)
    wanted = model.evaluate(**case.row.data, return_dict=True)
    same(floats(logs), floats(wanted), case.row.exact)
    evaluated = case.state(model)  # layers may draw and count in evaluation too
    assert differing(state.non_trainable, evaluated.non_trainable) == []
    untouched = [(s.step, s.params, s.opt_state, s.metrics) for s in (before, state)]
    assert differing(*untouched) == []


def predict(model, state, x):
    """The outputs, and the state: layers may draw and count in inference too."""
    return kfb.make_predict_step(model, return_state=True)(state, x)


@light
def test_predict_equals_predict(case):
    x = case.batch[0]
    outputs, after = predict(case.model, case.start, x)
    model = case.row.kept_by_keras()
    case.state(model)
    wanted = model.predict(x, batch_size=contracts.SIZE, verbose=0)
    assert differing(after.non_trainable, case.state(model).non_trainable) == []
    keras.tree.map_structure(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), outputs, wanted
    )


# --- write-back and storage


def test_round_trip_is_the_identity(case):
    model, (state, _) = case.row.build(), case.after
    case.state(model)
    state.assign_to(model)
    again = case.state(model)
    assert differing([getattr(state, tree) for tree in TREES], [getattr(again, tree) for tree in TREES]) == []


def test_checkpoint_round_trips_into_a_second_build(case, tmp_path):
    state, _ = case.after
    kfb.save(tmp_path / "row", state)
    like = kfb.TrainState.abstract(case.row.build, batch=case.batch)
    assert differing(kfb.restore(tmp_path / "row", like), state) == []
    layers.Dropout(0.5)  # moves Keras's counters of names
    other = case.row.build()
    case.state(other)
    assert kfb.restore(tmp_path / "row", other) is other
    again = case.state(other)
    assert differing([getattr(again, tree) for tree in TREES], [getattr(state, tree) for tree in TREES]) == []
    if not case.row.heavy:  # nothing that the model computes was left behind in it
        outputs, _ = predict(other, state, case.batch[0])
        called, _ = predict(case.model, again, case.batch[0])
        assert differing(outputs, called) == []


def copies(case, state, folder):
    """The state with its optimizer made once more, in each way in which the bridge does so."""
    model = case.row.build()
    model.compiled = False  # then the state's own optimizer goes on
    yield "repartition", state.repartition(model, batch=case.batch)
    like = kfb.TrainState.abstract(case.row.build, batch=case.batch, optimizer=case.model.optimizer)
    yield "abstract", state.replace(tx=like.tx)
    if isinstance(case.model, keras.Sequential):  # others need classes that Keras doesn't know
        kfb.save(folder / "row", state)
        yield "load_model", case.state(kfb.load_model(folder / "row"))


@light
def test_a_copied_optimizer_takes_the_same_step(case, tmp_path):
    state, _ = case.after
    step = jax.jit(lambda state: state.apply_gradients(grads=state.params))  # any gradients would do
    wanted = step(state)
    for way, copy in copies(case, state, tmp_path):
        got = step(copy)
        assert differing((got.params, got.opt_state), (wanted.params, wanted.opt_state)) == [], way


# --- purity


def test_step_neither_reads_nor_writes_the_model(case):
    wanted, _ = case.after
    model = case.row.build()
    state = case.state(model)
    before = values(model)
    if not case.row.heavy:  # traced while the model holds other values
        for variable in model.variables:
            variable.assign(variable.value + 1)
        before = values(model)
        other, _ = kfb.make_train_step(model, donate=False)(state, case.batch)
        assert differing(other, wanted) == []
    case.step(case.start, case.batch)
    assert differing(values(model), before) == []
    assert differing(case.state(case.model), case.start) == []


@light
def test_two_states_run_side_by_side_and_none_leaks(case):
    first, second = case.after[0], case.start
    for batch in case.row.batches(2):
        first, second = case.step(first, batch)[0], case.step(second, batch)[0]
    alone = case.start
    for batch in case.row.batches(2):
        alone, _ = case.step(alone, batch)
    assert differing(second, alone) == []
    pure = kfb.make_train_step(case.model, jit=False)
    with jax.checking_leaks():
        shapes, _ = jax.eval_shape(pure, case.start, case.batch)
    difference = diff_trees(flatten_tree(shapes), flatten_tree(case.start))
    assert not difference, difference.table()


@light
def test_an_ensemble_steps_as_its_members_do(case):
    members = case.start, case.after[0]
    stack = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)
    pure = kfb.make_train_step(case.model, jit=False)
    ensemble, _ = jax.jit(jax.vmap(pure, in_axes=(0, None)))(stack, case.batch)
    for i, member in enumerate(members):
        wanted = flatten_tree(case.step(member, case.batch)[0])
        for path, leaf in flatten_tree(ensemble).items():
            close(leaf[i], wanted[path], case.row.tolerance, join_path(path))


def close(got, wanted, tolerance, name):
    """Equal up to a fraction of the largest value: XLA sums a vectorised program in another order."""
    got, wanted = (np.asarray(leaf, "float64") for leaf in (got, wanted))
    scale = max(1.0, float(np.max(np.abs(wanted), initial=0.0)))
    np.testing.assert_allclose(got, wanted, rtol=0, atol=tolerance * scale, err_msg=name)


def one_by_one(case):
    state = case.start
    for batch in case.row.batches(4):
        state, logs = case.step(state, batch)
    return state, logs


def in_a_loop(case, stacked):
    pure = kfb.make_train_step(case.model, jit=False)
    state, logs = jax.jit(lambda state, batches: jax.lax.scan(pure, state, batches))(case.start, stacked)
    return state, jax.tree.map(lambda values: values[-1], logs)


@light
def test_steps_per_call_equals_single_steps(case):
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *case.row.batches(4))
    single, logs = one_by_one(case) if case.row.looped else in_a_loop(case, stacked)
    together, last = kfb.make_train_step(case.model, donate=False, steps_per_call=4)(case.start, stacked)
    assert differing((together, last), (single, logs)) == []


# --- ownership


def live_bytes():
    gc.collect()
    return sum(array.nbytes for array in jax.live_arrays())


def test_moved_weights_exist_once_and_the_model_says_so(case):
    model = case.row.build()
    kept = case.state(model)
    kept_metrics = sum(leaf.nbytes for leaf in jax.tree.leaves(kept.eval_metrics))
    del kept
    before = live_bytes()
    state = case.state(model, copy=False)
    assert live_bytes() - before <= kept_metrics + 4  # and the step
    for variable in model.variables:
        with pytest.raises(kfb.OwnershipError, match="assign_to"):
            _ = variable.value
    state.assign_to(model, copy=False)
    assert live_bytes() - before <= kept_metrics + 4


def interrupted(batches):
    """What a user's Ctrl-C does to a loop."""
    yield from batches
    raise KeyboardInterrupt


@light
def test_donated_steps_leave_the_model_alone_and_an_interrupted_run_can_be_assigned(case):
    model = case.row.build()
    state, train_step = case.state(model), kfb.make_train_step(model)
    untouched = values(model)
    try:
        for batch in interrupted(case.row.batches(3)):
            state, _ = train_step(state, batch)
    except KeyboardInterrupt:
        assert int(state.step) == int(case.start.step) + 3
    assert differing(values(model), untouched) == []
    model.predict(case.batch[0], batch_size=contracts.SIZE, verbose=0)
    state.assign_to(model)
    wanted = case.start
    for batch in case.row.batches(3):
        wanted, _ = case.step(wanted, batch)
    again = case.state(model)
    assert (
        differing([getattr(again, tree) for tree in TREES], [getattr(wanted, tree) for tree in TREES]) == []
    )
