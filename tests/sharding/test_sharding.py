"""States on a mesh of eight devices: the numbers of one device, and every leaf where it was told to lie."""

import json

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from keras import layers

import keras_flax_bridge as kfb
from keras_flax_bridge.tree.paths import flatten_tree
from tests.support.cases import TREES, differing

RNG = np.random.default_rng(0)
BATCHES = [
    (RNG.standard_normal((16, 8)).astype("float32"), RNG.standard_normal((16, 4)).astype("float32"))
    for _ in range(5)
]
# Sums over a batch are taken in another order when its rows lie on several devices: float32's last bits.
TOLERANCE = {"rtol": 2e-5, "atol": 2e-6}


def build():
    keras.utils.set_random_seed(0)
    # no bias before the normalization, which would make its gradient nothing but rounding
    body = [layers.Dense(16, name="hidden", use_bias=False), layers.BatchNormalization(), layers.Dropout(0.3)]
    model = keras.Sequential([keras.Input((8,)), *body, layers.Dense(8, name="head"), layers.Dense(4)])
    optimizer = keras.optimizers.Adam(1e-2, use_ema=True, gradient_accumulation_steps=2)
    model.compile(optimizer, "mse", metrics=["mae"])
    return model


def mesh(**axes):
    count = int(np.prod(list(axes.values())))
    return Mesh(np.array(jax.devices()[:count]).reshape(*axes.values()), tuple(axes))


def fewer(devices, count):
    """A mesh of the same axes on the first devices alone."""
    last = min(count, devices.devices.shape[-1])
    sizes = (count,) if devices.devices.ndim == 1 else (count // last, last)
    return mesh(**dict(zip(devices.axis_names, sizes, strict=True)))


TENSOR = [("hidden/kernel", P(None, "model")), ("head/kernel", P("model", None))]
FSDP = [("(hidden|head)/kernel", P("data")), (r"(gamma|beta|moving_\w+|bias)$", P())]
LAYOUTS = {
    "data": (mesh(data=8), [], P("data")),
    "fsdp": (mesh(data=8), FSDP, P("data")),
    "tensor": (mesh(model=8), TENSOR, P()),
    "data and tensor": (mesh(data=2, model=4), TENSOR, P("data")),
    "fsdp and tensor": (mesh(data=2, model=4), [("(hidden|head)/kernel", P("data", "model"))], P("data")),
}


@pytest.fixture(scope="module")
def alone():
    """The states after every step on one device."""
    model = build()
    state, step = kfb.TrainState.from_keras(model, batch=BATCHES[0]), kfb.make_train_step(model, donate=False)
    states = [state]
    for batch in BATCHES:
        states.append(step(states[-1], batch)[0])
    return states


def close(state, wanted):
    for tree in TREES:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, **TOLERANCE),
            getattr(state, tree),
            getattr(wanted, tree),
        )


def where(state):
    return {path: leaf.sharding for path, leaf in flatten_tree(state).items()}


@pytest.mark.parametrize(
    "layout", [n if n == "fsdp and tensor" else pytest.param(n, marks=pytest.mark.slow) for n in LAYOUTS]
)
def test_training_on_a_mesh_is_training_on_one_device(layout, alone, tmp_path):
    devices, rules, batch_spec = LAYOUTS[layout]
    model = build()
    state = kfb.TrainState.from_keras(model, batch=BATCHES[0])
    wanted = where(kfb.shard(state, devices, rules))
    step = kfb.make_train_step(model, mesh=devices, rules=rules, batch_spec=batch_spec)
    for i, batch in enumerate(BATCHES[:3]):
        before = state
        state, logs = step(state, batch)
        assert {path: s for path, s in where(state).items() if s != wanted[path]} == {}
        assert logs["loss"].sharding.is_fully_replicated
        close(state, alone[i + 1])
    assert before.params["hidden"]["kernel"].is_deleted()  # donated
    # eight there, fewer here: in the middle of the accumulation, each leaf the same bits
    kfb.save(tmp_path / "three", state)
    assert kfb.verify(tmp_path / "three").ok
    for count in (4, 1):
        some = fewer(devices, count)
        abstract = kfb.shard(kfb.TrainState.abstract(build, batch=BATCHES[0]), some, rules)
        assert isinstance(abstract.params["hidden"]["kernel"], jax.ShapeDtypeStruct)
        back = kfb.restore(tmp_path / "three", abstract)
        assert differing({t: getattr(back, t) for t in TREES}, {t: getattr(state, t) for t in TREES}) == []
        assert where(back) == where(abstract)
        again = kfb.make_train_step(build(), mesh=some, rules=rules, batch_spec=batch_spec, donate=False)
        for batch in BATCHES[3:]:
            back = again(back.replace(apply_fn=alone[0].apply_fn, tx=alone[0].tx), batch)[0]
        close(back, alone[5])


def test_slots_averages_and_accumulators_follow_their_weight(alone):
    devices, rules, _ = LAYOUTS["tensor"]
    shardings = kfb.shardings_for(alone[0], devices, rules)
    slots = {name: tree for name, tree in shardings.opt_state.items() if isinstance(tree, dict)}
    assert set(slots) == {
        "momentums",
        "velocities",
        "model_variables_moving_average",
        "accumulated_gradients",
    }
    for tree in slots.values():
        assert tree["hidden"]["kernel"].spec == P(None, "model")
        assert tree["head"]["kernel"].spec == P("model", None)
    assert shardings.opt_state["iteration"].is_fully_replicated
    assert all(s.is_fully_replicated for s in jax.tree.leaves((shardings.metrics, shardings.step)))
    seeds = kfb.shardings_for(alone[0], devices, [(".*", P())]).non_trainable["dropout"]
    assert seeds["seed_generator_state"].is_fully_replicated


@pytest.mark.slow
def test_the_report_counts_bytes_on_a_device(alone):
    report = kfb.sharding_report(alone[0], mesh(model=8), TENSOR)
    kernel = next(row for row in report.rules if row.rule == "hidden/kernel")
    assert (kernel.leaves, kernel.shards) == (5, 8)  # the weight, two moments, the average, the accumulator
    assert kernel.size == 5 * 8 * 16 * 4
    assert kernel.per_device == kernel.size // 8
    on_first = sum(
        shard.data.nbytes
        for leaf in jax.tree.leaves(kfb.shard(alone[0], mesh(model=8), TENSOR))
        for shard in leaf.addressable_shards
        if shard.device == jax.devices()[0]
    )
    assert report.per_device == on_first
    assert "hidden/kernel" in str(report)


@pytest.mark.slow
def test_several_steps_in_one_call(alone):
    devices, rules, batch_spec = LAYOUTS["fsdp"]
    model = build()
    step = kfb.make_train_step(model, mesh=devices, rules=rules, batch_spec=batch_spec, steps_per_call=2)
    both = tuple(np.stack(parts) for parts in zip(*BATCHES[:2], strict=True))
    close(step(kfb.TrainState.from_keras(model), both)[0], alone[2])


@pytest.mark.slow
def test_evaluation_and_prediction_on_a_mesh(alone):
    devices, rules, batch_spec = LAYOUTS["fsdp"]
    model, on_mesh = build(), {"mesh": devices, "rules": rules, "batch_spec": batch_spec}
    state, wanted = jax.tree.map(jnp.copy, alone[1]), alone[1]  # what is put on the mesh shares its buffers
    eval_step = kfb.make_eval_step(model, **on_mesh)
    for batch in BATCHES[:3]:  # the second and the third time the state is the step's own
        state, logs = eval_step(state, batch)
        wanted, wanted_logs = kfb.make_eval_step(model)(wanted, batch)
        np.testing.assert_allclose(logs["loss"], wanted_logs["loss"], **TOLERANCE)
    assert where(state) == where(kfb.shard(alone[1], devices, rules))
    for got, expected in zip(jax.tree.leaves(state), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(got, expected, **TOLERANCE)
    outputs = kfb.make_predict_step(model, **on_mesh)(state, BATCHES[0][0])
    assert len(outputs.sharding.device_set) == 8
    np.testing.assert_allclose(
        outputs, kfb.make_predict_step(model)(alone[1], BATCHES[0][0]), rtol=1e-5, atol=1e-5
    )
    kfb.make_train_step(model, **on_mesh)(state, BATCHES[0])
    with pytest.raises(kfb.OwnershipError, match="state/step: got a buffer that was donated"):
        eval_step(state, BATCHES[0])
    with pytest.raises(kfb.OwnershipError, match=r"state/\w+/.*donated"):
        eval_step(state.replace(step=jnp.int32(1)), BATCHES[0])  # XLA would end the process


@pytest.mark.slow
def test_the_pure_step_under_jit_with_shardings(alone):
    devices, rules, batch_spec = LAYOUTS["fsdp and tensor"]
    state = kfb.shard(alone[0], devices, rules)  # a copy, which may be donated
    shardings = kfb.shardings_for(alone[0], devices, rules)
    pure = kfb.make_train_step(state.apply_fn.model, jit=False)
    logs = NamedSharding(devices, P())
    step = jax.jit(pure, out_shardings=(shardings, logs), donate_argnums=0)
    after, _ = step(state, jax.device_put(BATCHES[0], NamedSharding(devices, batch_spec)))
    assert where(after) == flatten_tree(shardings)
    close(after, alone[1])


def test_a_state_of_several_models():
    models = {"left": build(), "right": build()}
    state = kfb.TrainState.from_keras(models)
    shardings = kfb.shardings_for(state, mesh(model=8), [("left/hidden/kernel", P(None, "model"))])
    assert shardings.params["left"]["hidden"]["kernel"].spec == P(None, "model")
    assert shardings.opt_state["left"]["momentums"]["hidden"]["kernel"].spec == P(None, "model")
    assert shardings.opt_state["right"]["momentums"]["hidden"]["kernel"].spec == P()


# --- rules of other kinds


def keras_mesh():
    devices = [f"cpu:{i}" for i in range(8)]
    return keras.distribution.DeviceMesh((2, 4), ["data", "model"], devices)


def test_a_layout_map_goes_by_keras_s_names(alone):
    names = keras.distribution.LayoutMap(keras_mesh())
    names[".*hidden/kernel"] = (None, "model")
    shardings = kfb.shardings_for(alone[0], mesh(data=2, model=4), names)
    assert shardings.params["hidden"]["kernel"].spec == P(None, "model")
    assert shardings.opt_state["velocities"]["hidden"]["kernel"].spec == P(None, "model")
    assert shardings.params["head"]["kernel"].spec == P()
    names["nowhere"] = ("model",)
    with pytest.raises(kfb.StructureMismatchError, match="rule 'nowhere'"):
        kfb.shardings_for(alone[0], mesh(data=2, model=4), names)


@pytest.mark.slow
def test_under_keras_s_own_distribution(alone):
    names = keras.distribution.LayoutMap(keras_mesh())
    names[".*hidden/kernel"] = (None, "model")
    distribution = keras.distribution.ModelParallel(layout_map=names, batch_dim_name="data")
    with distribution.scope():
        model = build()
        state = kfb.TrainState.from_keras(model, batch=BATCHES[0])
        assert state.params["hidden"]["kernel"].sharding.spec == P(None, "model")
        step = kfb.make_train_step(model, mesh=mesh(data=2, model=4), rules=names)
        state, _ = step(state, BATCHES[0])
    assert state.params["hidden"]["kernel"].sharding.spec == P(None, "model")
    close(state, alone[1])


@pytest.mark.slow
def test_what_flax_modules_say_of_their_weights():
    init = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
    variables = nn.Dense(8, kernel_init=init).init(jax.random.key(0), jnp.ones((1, 4)))
    shardings = kfb.shardings_for(variables, mesh(model=8), None)
    assert nn.meta.unbox(shardings)["params"]["kernel"].spec == P(None, "model")
    put = kfb.shard(variables, mesh(model=8), None)
    assert nn.meta.unbox(put)["params"]["kernel"].sharding.spec == P(None, "model")
    init = nnx.with_partitioning(nnx.initializers.lecun_normal(), (None, "model"))
    with jax.set_mesh(mesh(model=8)):
        linear = nnx.Linear(4, 8, kernel_init=init, rngs=nnx.Rngs(0))
    state = kfb.shard(nnx.state(linear), mesh(model=8), None)
    assert jax.tree.leaves(state["kernel"])[0].sharding.spec == P(None, "model")
    with pytest.raises(kfb.StructureMismatchError, match="without sharding metadata"):
        kfb.shardings_for({"w": jnp.ones(8)}, mesh(model=8), None)


# --- wrong use


WRONG = {
    "matches nothing": ([("kernels", P())], r"rule 'kernels'.*a rule that matches no leaf.*dense/kernel"),
    "does not divide": (
        [("dense/kernel", P(None, "model"))],
        r"params/dense/kernel  float32\[8,4\].*4 is not divided by 8",
    ),
    "too many axes": ([("kernel", P(None, None, "model"))], "3 axes for 2"),
    "unknown axis": ([("kernel", P("rows"))], "the mesh has no axis 'rows'"),
    "no expression": ([("(", P())], "not a valid regular expression"),
    "no spec": ([("kernel", ("model",))], "pairs of regular expression"),
    "no rules": ("kernel", "pairs of regular expression"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_rules_that_do_not_fit_are_named(alone, wrong):
    rules, words = WRONG[wrong]
    with pytest.raises(kfb.StructureMismatchError, match=r"(?s)" + words):
        kfb.shardings_for(alone[0], mesh(model=8), rules)


def test_a_batch_that_can_not_be_split_is_named(alone, monkeypatch):
    step = kfb.make_train_step(build(), mesh=mesh(data=8))
    short = tuple(part[:15] for part in BATCHES[0])
    monkeypatch.setattr(jax, "process_count", lambda: 2)  # each passes its own rows, to its own devices
    with pytest.raises(
        kfb.StructureMismatchError, match=r"(?s)multiples of \(4,\).*batch size.*0  float32\[15,8\]"
    ):
        step(alone[0], short)
    monkeypatch.undo()
    for make in (kfb.make_train_step, kfb.make_eval_step, kfb.make_predict_step):
        with pytest.raises(kfb.StructureMismatchError, match="jit=False"):
            make(build(), mesh=mesh(data=8), jit=False)


ELSEWHERE = {  # as Orbax notes where an array lay
    "one GPU": {"sharding_type": "SingleDeviceSharding", "device_str": "cuda:0"},
    "a mesh of GPUs": {
        "sharding_type": "NamedSharding",
        "shape": [64],
        "axis_names": ["data"],
        "axis_types": ["Auto"],
        "partition_spec": [],
        "device_mesh": {"mesh": [{"id": i, "platform": "gpu"} for i in range(64)]},
    },
}


@pytest.mark.parametrize("written_on", ELSEWHERE)
def test_what_other_devices_saved_restores_here(written_on, alone, tmp_path):
    model, state = build(), alone[-1]
    kfb.save(tmp_path / "step", state, model=model)
    file = tmp_path / "step" / "state" / "_sharding"
    noted = {name: json.dumps(ELSEWHERE[written_on]) for name in json.loads(file.read_text())}
    assert len(noted) > 10
    file.write_text(json.dumps(noted))
    assert kfb.verify(tmp_path / "step").ok
    restored = kfb.restore(tmp_path / "step", kfb.TrainState.abstract(build))
    assert not [path for tree in TREES for path in differing(getattr(restored, tree), getattr(state, tree))]
    loaded = kfb.TrainState.from_keras(kfb.load_model(tmp_path / "step"))
    assert not differing(loaded.params, state.params)
    module = kfb.restore(tmp_path / "step", kfb.ToNNX(build()))
    np.testing.assert_array_equal(module.head.kernel, state.params["head"]["kernel"])


def test_explicit_axes_are_taken_as_automatic_ones(alone):
    explicit = Mesh(np.array(jax.devices()), ("data",), axis_types=(AxisType.Explicit,))
    state = kfb.shard(alone[0], explicit, [("hidden/kernel", P(None, "data"))])
    assert {sharding.mesh.axis_types for sharding in where(state).values()} == {(AxisType.Auto,)}
    close(state, alone[0])
