"""The table of the trees of a state: what names them reads it, so that one entry adds a tree."""

import dataclasses

import jax
import keras
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, PartitionSpec

import keras_flax_bridge as kfb
from keras_flax_bridge import keras_internals
from keras_flax_bridge.checkpoint.orbax_io import Stored
from keras_flax_bridge.errors import StructureMismatchError
from keras_flax_bridge.state import trees
from keras_flax_bridge.state.trees import REPLICATED, WITH_WEIGHTS, Follower, Tree
from keras_flax_bridge.tree.paths import flatten_tree
from tests.support.cases import differing

DECAY = 0.75
RNG = np.random.default_rng(0)
BATCHES = [
    (RNG.normal(size=(8, 4)).astype("float32"), RNG.normal(size=(8, 8)).astype("float32")) for _ in range(3)
]


def average(own, params, step):
    """A moving average of the weights."""
    return jax.tree.map(lambda a, p: DECAY * a + (1 - DECAY) * p, own, params)


def copied(tree):
    return jax.tree.map(jax.numpy.copy, tree)


AVERAGE = Tree("ema", "average", WITH_WEIGHTS, trained=True, follows=Follower("params", copied, average))


def state_class(monkeypatch, tree):
    """A class of states made while the table has one more entry, as `TrainState` is made of the table."""
    monkeypatch.setitem(trees.TREES, tree.name, tree)

    class State(kfb.TrainState):
        """It declares nothing itself."""

    return State


@pytest.fixture
def averaging(monkeypatch):
    """A class of states with an average of the weights."""
    return state_class(monkeypatch, AVERAGE)


def build():
    keras.utils.set_random_seed(1)
    layers = [keras.layers.Dense(8, name="hidden"), keras.layers.BatchNormalization(), keras.layers.Dense(8)]
    model = keras.Sequential([keras.Input((4,)), *layers])
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse", metrics=["mae"])
    return model


def started(kind, model, **options):
    """A state with an average that starts at the weights."""
    state = kind.from_keras(model, **options)
    return state.replace(ema=copied(state.params))


def by_hand(model, **options):
    """The state after the steps, and the average, by a loop that does without the table."""
    state = kfb.TrainState.from_keras(model, **options)
    step, own = kfb.make_train_step(model, donate=False, **options), state.params
    for batch in BATCHES:
        state, _ = step(state, batch)
        own = average(own, state.params, state.step)
    return state, own


def close(got, wanted):
    assert differing(*(jax.tree.map(np.shape, tree) for tree in (got, wanted))) == []
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, wanted)


# --- the table


def test_table_has_every_tree_of_a_state():
    fields = dataclasses.fields(kfb.TrainState)
    own = [field.name for field in fields if field.metadata.get("pytree_node", True)]
    assert sorted(own) == sorted(trees.TREES)


def test_table_has_every_collection_of_a_model():
    own = [tree.variables for tree in trees.TREES.values() if tree.variables]
    assert list(dict.fromkeys(own)) == list(keras_internals.ModelVariables._fields)
    assert set(keras_internals.VARIABLE_TREES.values()) == set(own) - {"compiled"}  # in no list of Keras


@pytest.mark.parametrize("tree", [*trees.TREES.values(), AVERAGE], ids=lambda tree: tree.name)
def test_steps_take_variables_of_keras_and_trees_that_follow_weights(tree):
    taken = tree.called or tree.trained or tree.evaluated
    assert taken == (bool(tree.variables) != bool(tree.follows))
    assert tree.follows is None or tree.follows.of in trees.WEIGHTS


# --- steps with an added tree


@pytest.mark.parametrize("optimizer", [None, optax.adam(0.1)], ids=["keras", "optax"])
def test_train_step_updates_added_tree(averaging, optimizer):
    model = build()
    options = {} if optimizer is None else {"optimizer": optimizer}
    state, step = started(averaging, model, **options), kfb.make_train_step(model, **options)
    for batch in BATCHES:
        state, _ = step(state, batch)
    wanted, own = by_hand(model, **options)
    close(state.ema, own)
    close(state.params, wanted.params)
    assert type(state) is averaging
    assert int(state.step) == 3


def test_several_steps_in_one_call_update_added_tree(averaging):
    model = build()
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *BATCHES)
    state, _ = kfb.make_train_step(model, steps_per_call=3)(started(averaging, model), stacked)
    close(state.ema, by_hand(model)[1])


def test_eval_step_leaves_added_tree(averaging):
    model = build()
    state = started(averaging, model)
    after, _ = kfb.make_eval_step(model)(state, BATCHES[0])
    assert differing(after.ema, state.ema) == []
    assert float(after.eval_metrics["loss"]["count"]) == 8


@pytest.mark.parametrize("optimizer", [None, optax.adam(0.1)], ids=["keras", "optax"])
def test_apply_gradients_updates_added_tree(averaging, optimizer):
    state = started(averaging, build(), optimizer=optimizer)
    grads = jax.tree.map(jax.numpy.ones_like, state.params)
    after = state.apply_gradients(grads=grads)
    close(after.ema, average(state.params, after.params, 1))
    given = state.apply_gradients(grads=grads, ema=state.ema)  # what is given is not updated
    assert differing(given.ema, state.ema) == []


def test_update_is_told_the_step(monkeypatch):
    def counted(own, of, step):
        return jax.tree.map(lambda leaf: 0 * leaf + step, own)

    kind = state_class(monkeypatch, AVERAGE._replace(follows=Follower("params", copied, counted)))
    model = build()
    state, step = started(kind, model), kfb.make_train_step(model, donate=False)
    seen = [step(state, BATCHES[0])[0], state.apply_gradients(grads=state.params)]
    assert [set(np.concatenate([*map(np.ravel, jax.tree.leaves(s.ema))])) for s in seen] == [{1.0}, {1.0}]


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda params: {"hidden": params["hidden"]}, "missing     dense/kernel  float32[8,8]"),
        (
            lambda params: jax.tree.map(lambda leaf: leaf.astype("float16"), params),
            "mismatched  dense/bias  got float32[8], expected float16[8]",
        ),
    ],
    ids=["paths", "dtypes"],
)
def test_added_tree_that_does_not_fit_is_named(averaging, spoil, named):
    model = build()
    state = averaging.from_keras(model)
    state = state.replace(ema=spoil(state.params))
    for step in (kfb.make_train_step(model), lambda state, batch: state.apply_gradients(grads=state.params)):
        with pytest.raises(StructureMismatchError, match=r"state\.ema") as caught:
            step(state, BATCHES[0])
        assert named in str(caught.value)


# --- an entry without a value


def test_tree_without_value_is_an_empty_field(averaging):
    state, wanted = averaging.from_keras(build()), kfb.TrainState.from_keras(build())
    assert state.ema == {}
    assert flatten_tree(state).keys() == flatten_tree(wanted).keys()
    assert kfb.report(state).rows == kfb.report(wanted).rows


def test_tree_without_value_compiles_to_the_same_program(averaging):
    model, batch = build(), BATCHES[0]
    step = jax.jit(kfb.make_train_step(model, jit=False))
    texts = [step.lower(kind.from_keras(model), batch).as_text() for kind in (kfb.TrainState, averaging)]
    assert texts[0] == texts[1]


def test_state_whose_class_is_older_than_the_entry_trains(monkeypatch):
    model = build()
    state = kfb.TrainState.from_keras(model)
    state_class(monkeypatch, AVERAGE)
    after, _ = kfb.make_train_step(model)(state, BATCHES[0])
    assert type(after) is kfb.TrainState
    assert not hasattr(after, "ema")


@pytest.mark.parametrize("layout", ["tree", "packed"])
def test_tree_without_value_changes_nothing_in_a_checkpoint(averaging, layout, tmp_path):
    model = build()
    plain, added = kfb.TrainState.from_keras(model), averaging.from_keras(model)
    kfb.save(tmp_path / "plain", plain, layout=layout)
    kfb.save(tmp_path / "added", added, layout=layout)
    first, second = ((tmp_path / name / "state" / "_METADATA").read_bytes() for name in ("plain", "added"))
    assert first == second
    assert Stored(tmp_path / "added").metadata == Stored(tmp_path / "plain").metadata
    for like in (averaging.from_keras(build()), kfb.TrainState.from_keras(build())):
        for name in ("plain", "added"):
            assert flatten_tree(kfb.restore(tmp_path / name, like)).keys() == flatten_tree(plain).keys()


# --- what else reads the table


def test_added_tree_is_saved_and_restored(averaging, tmp_path):
    model = build()
    state, _ = kfb.make_train_step(model)(started(averaging, model), BATCHES[0])
    kfb.save(tmp_path / "one", state)
    back = kfb.restore(tmp_path / "one", jax.eval_shape(lambda: started(averaging, build())))
    assert differing(back, state) == []
    chosen = kfb.restore(tmp_path / "one", started(averaging, build()), include=["ema"])
    assert differing(chosen.ema, state.ema) == []
    filled = kfb.restore(tmp_path / "one", build())  # a Keras model has no place for it
    assert differing(kfb.TrainState.from_keras(filled).params, state.params) == []
    assert differing(kfb.TrainState.from_keras(kfb.load_model(tmp_path / "one")).params, state.params) == []


def test_added_tree_on_one_side_alone_is_named(averaging, tmp_path):
    kfb.save(tmp_path / "with", started(averaging, build()))
    kfb.save(tmp_path / "without", averaging.from_keras(build()))
    with pytest.raises(StructureMismatchError, match="unexpected  ema/dense/bias"):
        kfb.restore(tmp_path / "with", averaging.from_keras(build()))
    with pytest.raises(StructureMismatchError, match="missing     ema/dense/bias"):
        kfb.restore(tmp_path / "without", started(averaging, build()))


def test_tree_that_is_not_saved_stays_as_it_is(monkeypatch, tmp_path):
    kind = state_class(monkeypatch, AVERAGE._replace(saved=False))
    state, like = started(kind, build()), started(kind, build())
    kfb.save(tmp_path / "one", state.replace(step=state.step + 7))
    assert {path[0] for path in Stored(tmp_path / "one").specs} == trees.TREES.keys() - {"ema", "compiled"}
    like = like.replace(ema=jax.tree.map(jax.numpy.zeros_like, like.ema))
    back = kfb.restore(tmp_path / "one", like)
    assert int(back.step) == 7
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(back.ema))


def test_report_has_the_kind_of_the_entry(averaging):
    report = kfb.report(started(averaging, build()))
    assert {row.kind for row in report.rows if row.collection == "ema"} == {"average"}
    assert list(report.totals()) == [*trees.names(lambda tree: tree.name != "compiled")]  # which is empty
    assert report.totals()["ema"] == report.totals()["params"]


MESH = Mesh(np.array(jax.devices()), ("data",))


def test_added_tree_is_sharded_with_the_weights(averaging):
    rules = [("^params/.*kernel$", PartitionSpec(None, "data"))]
    model = build()
    state = kfb.shard(started(averaging, model), MESH, rules)
    wanted = {path: leaf.sharding for path, leaf in flatten_tree(state.params).items()}
    assert not all(sharding.is_fully_replicated for sharding in wanted.values())
    step = kfb.make_train_step(model, mesh=MESH, rules=rules)
    for batch in BATCHES:
        state, _ = step(state, batch)
        assert {path: leaf.sharding for path, leaf in flatten_tree(state.ema).items()} == wanted
    close(state.ema, by_hand(model)[1])


def test_added_tree_may_follow_the_statistics(monkeypatch):
    follower = Follower("non_trainable", copied, average)
    kind = state_class(monkeypatch, AVERAGE._replace(follows=follower))
    model, rules = build(), [("moving_mean", PartitionSpec("data")), ("kernel", PartitionSpec(None, "data"))]
    state = kind.from_keras(model)
    state = kfb.shard(state.replace(ema=copied(state.non_trainable)), MESH, rules)
    after, _ = kfb.make_train_step(model, mesh=MESH, rules=rules, donate=False)(state, BATCHES[0])
    for one in (state, after):
        shardings = [leaf.sharding for leaf in jax.tree.leaves((one.ema, one.non_trainable))]
        assert shardings[:2] == shardings[2:]
        assert not shardings[0].is_fully_replicated
    close(after.ema, average(state.non_trainable, after.non_trainable, 1))


def test_added_tree_is_replicated_where_the_entry_asks_for_it(monkeypatch):
    kind = state_class(monkeypatch, AVERAGE._replace(sharding=REPLICATED))
    state = kfb.shard(started(kind, build()), MESH, [("kernel$", PartitionSpec(None, "data"))])
    assert not state.params["hidden"]["kernel"].sharding.is_fully_replicated
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state.ema))


def test_added_tree_moves_with_the_weights(averaging):
    model = build()
    state = started(averaging, model)
    state = state.replace(ema=jax.tree.map(jax.numpy.zeros_like, state.ema))
    model.layers[0].trainable = False
    model.compile("sgd", "mse")
    frozen = state.repartition(model)
    assert frozen.ema.keys() == frozen.params.keys() == state.ema.keys() - {"hidden"}
    model.layers[0].trainable = True
    model.compile("sgd", "mse")
    thawed = frozen.repartition(model)
    assert differing(thawed.ema, {**frozen.ema, "hidden": thawed.params["hidden"]}) == []
    kfb.make_train_step(model)(thawed, BATCHES[0])  # its buffers are its own: they can be donated
    assert averaging.from_keras(model).repartition(model).ema == {}


def test_added_tree_has_a_part_for_each_model_that_it_follows(averaging):
    models = {"online": build(), "target": build()}
    state = averaging.from_keras(models)
    assert jax.tree.leaves(state.ema) == []
    assert state.part("target").ema == {}
    online = state.part("online")
    online, _ = kfb.make_train_step(models["online"])(online.replace(ema=copied(online.params)), BATCHES[0])
    state = state.with_parts(online=online)
    assert differing(state.ema, {"online": online.ema}) == []
    assert state.replace(ema={"online": online.ema}).part("target").ema == {}
