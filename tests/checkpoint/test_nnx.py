"""Things of NNX, alone and in containers, through every door of a checkpoint."""

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx

import keras_flax_bridge as kfb
from keras_flax_bridge.tree.nodes import filled, leaves_of
from tests.tables.nnx_things import ROWS, Net, Plain, both, optimizer

CASES = [pytest.param(row, id=row.name, marks=[pytest.mark.slow] * (not row.fast)) for row in ROWS]
MESH = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("x",))


def arrays(thing):
    """The leaves as jax has them, whatever this package calls them."""
    opened = vars(thing) if isinstance(thing, Plain) else thing
    state = opened if jax.tree.leaves(opened) and not _has_graph(opened) else nnx.state(opened)
    return [data(leaf) for leaf in jax.tree.leaves(state)]


def _has_graph(tree):
    nodes = jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, nnx.Pytree))
    return any(isinstance(node, nnx.Pytree) for node in nodes)


def data(leaf):
    key = jnp.issubdtype(getattr(leaf, "dtype", np.int32), jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if key else leaf)


def same(a, b):
    a, b = arrays(a), arrays(b)
    return len(a) == len(b) > 0 and all(
        np.array_equal(x, y) and x.dtype == y.dtype for x, y in zip(a, b, strict=True)
    )


def with_leaves(thing, change):
    """The thing with other leaves."""
    return filled(thing, {leaf.path: change(leaf.value) for leaf in leaves_of(thing)})


def abstract(leaf):
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if hasattr(leaf, "shape") else leaf


def sharding(leaf):
    axes = ("x",) if np.ndim(leaf) and np.shape(leaf)[0] % 2 == 0 else ()
    return jax.sharding.NamedSharding(MESH, jax.sharding.PartitionSpec(*axes))


def sharded(leaf):
    return jax.device_put(leaf, sharding(leaf)) if isinstance(leaf, jax.Array) else leaf


def check(row, got, like, saved):
    """What came back has the saved values, and is what the table says."""
    assert same(got, saved)
    if row.is_value:
        assert not same(like, saved)
        assert got is not like
        assert type(got) is type(like)
    else:
        mine, theirs = row.in_place(got), row.in_place(like)
        assert all(a is b for a, b in zip(mine, theirs, strict=True))
        assert isinstance(like, nnx.Pytree) <= (got is like)


@pytest.mark.parametrize("row", CASES)
def test_what_was_saved_comes_back(row, tmp_path):
    thing = row.make(1)
    kfb.save(tmp_path / "own", thing)
    check(row, kfb.restore(tmp_path / "own", like := row.make(2)), like, thing)
    got = kfb.restore(tmp_path / "own", like := with_leaves(row.make(2), sharded))
    check(row, got, like, thing)
    for leaf in leaves_of(got):  # as jax has placed them
        if isinstance(leaf.value, jax.Array):
            assert leaf.value.sharding == sharding(leaf.value), leaf.path
    if row.abstract:
        got = kfb.restore(tmp_path / "own", with_leaves(row.make(2), abstract))
        assert same(got, thing)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("row", CASES)
def test_plain_orbax_on_the_other_side(row, tmp_path):
    thing = row.make(1)
    for i, form in enumerate(row.orbax):
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(tmp_path / f"{i}", form(thing))
        check(row, kfb.restore(tmp_path / f"{i}", like := row.make(2)), like, thing)
    kfb.save(tmp_path / "own", thing)
    with ocp.StandardCheckpointer() as checkpointer:
        read = checkpointer.restore(tmp_path / "own" / "state")
    wanted = {leaf.path: data(leaf.value) for leaf in leaves_of(thing)}
    read = read.get("params", read) if "params" not in {path[0] for path in wanted} else read
    for path, value in wanted.items():
        node = read
        for name in path:
            node = node[name]
        assert np.array_equal(node, value), path


@pytest.mark.parametrize("row", CASES)
def test_through_a_manager(row, tmp_path):
    thing, like = row.make(1), row.make(2)
    with kfb.CheckpointManager(tmp_path) as manager:
        if row.step is None:
            with pytest.raises(kfb.ArgumentError, match="without a step"):
                manager.save(thing)
        assert manager.save(thing, step=7 if row.step is None else None)
        check(row, manager.restore(like), like, thing)
        assert manager.all_steps() == [7 if row.step is None else row.step]


def test_a_given_step_does_not_contradict_the_state(tmp_path):
    with kfb.CheckpointManager(tmp_path) as manager:
        for wrong in (5, -1, "4"):
            with pytest.raises(kfb.ArgumentError, match="step: got"):
                manager.save(optimizer(1), step=wrong)
        assert manager.save(optimizer(1), step=4)


def test_what_flax_makes_abstract(tmp_path):
    kfb.save(tmp_path / "own", both(1))
    like = nnx.eval_shape(lambda: both(2))
    assert kfb.restore(tmp_path / "own", like) is like
    for got, wanted in zip(arrays(like), arrays(both(1)), strict=True):
        assert np.array_equal(got, wanted)
    x = jnp.ones((1, 8))
    assert np.array_equal(like[0].dense(x), Net(1).dense(x))


def test_a_state_does_not_share_with_its_module(tmp_path):
    kfb.save(tmp_path / "own", Net(1))
    state = nnx.state(module := Net(2))
    got = kfb.restore(tmp_path / "own", state)
    assert same(module, Net(2))
    assert same(state, Net(2))
    nnx.update(module, got)
    assert same(module, Net(1))


def test_nothing_is_assigned_where_something_differs(tmp_path):
    kfb.save(tmp_path / "own", (Net(1), {"w": jnp.ones(3)}))
    module = Net(2)
    with pytest.raises(kfb.StructureMismatchError, match=r"mismatched  1/w  got float32\[3\], "):
        kfb.restore(tmp_path / "own", (module, {"w": jnp.ones(4)}))
    with pytest.raises(kfb.StructureMismatchError, match="unexpected  1/w"):
        kfb.restore(tmp_path / "own", [module])
    assert same(module, Net(2))


@pytest.mark.skipif(not hasattr(nnx, "var_defaults"), reason="needs nnx.var_defaults")
def test_variables_of_references_and_pytrees(tmp_path):
    def make(seed):
        with nnx.var_defaults(ref=True):
            weight = nnx.Param(jnp.full(2, seed))
        return nnx.Dict(ref=weight, empty=nnx.Variable(None))

    kfb.save(tmp_path / "own", make(1))
    module = kfb.restore(tmp_path / "own", make(2))
    assert np.array_equal(module.ref[...], [1, 1])
    assert isinstance(module.ref.get_raw_value(), jax.Ref)
    with pytest.raises(kfb.StructureMismatchError, match="put a single array into a dict"):
        kfb.restore(tmp_path / "own", module.ref)
