"""What Flax does with a module, as checks of a wrapped Keras layer: one entry adds one to every row.

Each compares with Keras's `stateless_call`, or where `call` takes no `training`, with the layer called
in a `StatelessScope`, where Keras hands `training` down.
"""

import copy
import tempfile
from collections.abc import Callable
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from flax.errors import ModifyScopeVariableError
from flax.training import train_state

import keras_flax_bridge as kfb
from keras_flax_bridge import keras_internals
from keras_flax_bridge.keras_internals import PARAM, SEED
from keras_flax_bridge.startup import compat
from keras_flax_bridge.tree.diff import diff_trees
from keras_flax_bridge.tree.paths import flatten_tree
from tests.support.capabilities import orbax, where
from tests.support.cases import QUICK
from tests.tables.keras_in_flax_rows import Row

STATE = ("batch_stats", "seeds", "frozen")
COLLECTIONS = ("params", *STATE, "losses")
RATE = 0.1


class Case:
    """A row's layer, what Keras makes of it, and the programs that its checks share."""

    def __init__(self, row: Row):
        self.row = row
        keras.utils.set_random_seed(7)
        self.layer = drawn(row.build) if row.heavy else row.build()
        if not self.layer.built:
            self.layer(*row.args, **row.kwargs)
        self.entries = [entry for part in keras_internals.collect_layer(self.layer) for entry in part]
        self.start = {entry.path: np.asarray(entry.variable.value) for entry in self.entries}
        self.params = [entry.path for entry in self.entries if entry.kind == PARAM]
        self.seeds = [entry.path for entry in self.entries if entry.kind == SEED]

    # --- Keras's side

    def reference(self, values: dict, training: bool) -> tuple[Any, dict, list]:
        """Outputs, values afterwards and losses, as Keras computes them."""
        layer, args, kwargs = self.layer, self.row.args, self.row.kwargs
        mapping = [(entry.variable, values[entry.path]) for entry in self.entries]
        with keras.StatelessScope(mapping, collect_losses=True) as scope:
            # stateless_call is `call` in such a scope; this hands `training` and masks down too
            outputs = layer(*args, training=training, **kwargs)
            losses = layer.losses
        after = {entry.path: scope.get_current_value(entry.variable) for entry in self.entries}
        return outputs, after, losses

    @cached_property
    def wanted(self) -> tuple[Any, dict, list]:
        return self.jit(lambda values: self.reference(values, False))(self.start)

    @cached_property
    def trained(self) -> list[tuple[Any, dict, list]]:
        """Two calls in training, one after the other."""
        run = jax.jit(lambda values: self.reference(values, True), compiler_options=self.options)
        first = run(self.start)
        return [first, run(first[1])]

    @cached_property
    def gradients(self) -> list:
        """Of `objective` in training, in the order of `params`."""

        def loss(params: list) -> Any:
            given = dict(zip(self.params, params, strict=True))
            outputs, _, losses = self.reference({**self.start, **given}, True)
            return objective(outputs, losses)

        return self.jit(jax.grad(loss))([jnp.asarray(self.start[path]) for path in self.params])

    @cached_property
    def stepped(self) -> list:
        """The weights after one step of gradient descent."""
        return self.descended(self.start)

    def descended(self, values: dict) -> list:
        if self.row.heavy:
            return self.gradients
        pairs = zip(self.params, self.gradients, strict=True)
        return [values[path] - RATE * gradient for path, gradient in pairs]

    @property
    def options(self) -> dict | None:
        """How programs that really run are compiled; deep networks amplify what is rounded otherwise."""
        return None if self.row.heavy else QUICK

    def jit(self, function: Callable) -> Callable:
        """The function compiled; for a heavy row only traced, so that shapes and dtypes come out."""
        if self.row.heavy:
            return lambda *args: jax.eval_shape(function, *args)
        return jax.jit(function, compiler_options=QUICK)

    # --- the wrapped layer's

    def module(self, **options: Any) -> kfb.ToNNX:
        return kfb.ToNNX(self.layer, **options)

    def ensemble(self) -> Any:
        """Two members, each drawn from a key of its own."""
        return self._ensemble(KEYS)

    @cached_property
    def _ensemble(self) -> Any:
        @self.jit
        def draw(keys: Any) -> Any:
            stack = nnx.vmap(lambda key: self.module(rngs=nnx.Rngs(key)))(keys)
            return nnx.state(stack)

        return lambda keys: nnx.merge(nnx.graphdef(self.module()), draw(keys))

    @cached_property
    def linen_init(self) -> Any:
        return self.jit(lambda key: self.linen.init(key, *self.row.args, **self.row.kwargs))

    @cached_property
    def linen_members(self) -> list:
        return [self.linen_init(key) for key in KEYS]

    @cached_property
    def applied(self) -> Any:
        return jax.jit(lambda variables: applied(self, variables), compiler_options=self.options)

    @cached_property
    def variables(self) -> dict:
        with jax.ensure_compile_time_eval():  # the first to ask may be a check that is being traced
            return self.linen.from_keras_values()

    @cached_property
    def linen(self) -> kfb.ToLinen:
        return kfb.ToLinen(self.layer)

    @cached_property
    def train(self) -> Any:
        return nnx.jit(lambda module: module(*self.row.args, training=True, **self.row.kwargs))

    def loss(self, module: Any) -> Any:
        outputs, losses = module(*self.row.args, training=True, return_losses=True, **self.row.kwargs)
        return objective(outputs, losses)


def drawn(build: Callable) -> Any:
    """A model whose weights are drawn in one compiled program: one by one they take a minute."""

    def draw(model: Any) -> None:
        values = jax.jit(lambda key: keras_internals.initial_values(model, key))(jax.random.key(0))
        for entry in (entry for part in keras_internals.collect_layer(model) for entry in part):
            entry.variable.assign(values[entry.path])

    return keras_internals.filled(build, draw)


def objective(outputs: Any, losses: Any) -> Any:
    """A loss with a gradient for every output and every raised loss."""
    total = sum((jnp.asarray(loss, "float32") for loss in jax.tree.leaves(losses)), jnp.zeros(()))
    floats = [x for x in jax.tree.leaves(outputs) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return total + sum(jnp.mean(jnp.sin(x.astype("float32"))) for x in floats)


def close(got: Any, wanted: Any, tolerance: float = 2e-5) -> None:
    """Equal to float rounding: one program is grouped and so rounded otherwise than another."""
    got, wanted = jax.tree.leaves(got), jax.tree.leaves(wanted)
    assert len(got) == len(wanted)
    for a, b in zip(got, wanted, strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        if isinstance(a, jax.ShapeDtypeStruct) or isinstance(b, jax.ShapeDtypeStruct):
            continue  # a heavy row's program, which is only traced
        a, b = np.asarray(a), np.asarray(b)
        if a.dtype == jnp.bfloat16:
            a, b, tolerance = a.astype("float32"), b.astype("float32"), 2e-2
        scale = max(1.0, float(np.max(np.abs(b), initial=0.0))) if a.dtype.kind == "f" else 1.0
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * scale)


def values(module: kfb.ToNNX) -> dict:
    return {path: variable.get_value() for path, variable in module.variables_by_path().items()}


def same_state(module: kfb.ToNNX, wanted: dict) -> None:
    got = values(module)
    assert got.keys() == wanted.keys()
    close([got[path] for path in wanted], list(wanted.values()))


def collected(updates: Any) -> dict:
    """Leaves of Linen's collections by structural path."""
    return {path: leaf for name in STATE for path, leaf in flatten_tree(updates.get(name, {})).items()}


# --- ToNNX


def run(case: Case, modules: Any, function: Callable) -> Any:
    """A function of modules inside jax.jit; they are updated."""
    graph, state = nnx.split(modules)

    @case.jit
    def pure(state: Any) -> Any:
        copies = nnx.merge(graph, state)
        return function(copies), nnx.state(copies)

    outputs, state = pure(state)
    nnx.update(modules, state)
    return outputs


def nnx_call(case: Case) -> None:
    module = case.module()
    call = lambda module: module(*case.row.args, **case.row.kwargs)  # noqa: E731
    close(run(case, module, call) if case.row.heavy else call(module), case.wanted[0])
    same_state(module, case.wanted[1])


def nnx_jit(case: Case) -> None:
    module = case.module()
    for outputs, after, _ in case.trained:
        close(case.train(module), outputs)
        same_state(module, after)


def nnx_tree_mode(case: Case) -> None:
    module = case.module()
    function = lambda module: module(*case.row.args, training=True, **case.row.kwargs)  # noqa: E731
    if case.row.heavy:  # a module is a pytree in this mode
        return close(jax.eval_shape(function, module), case.trained[0][0])
    call = nnx.jit(function, graph=False)
    for outputs, after, _ in case.trained:
        close(call(module), outputs)
        same_state(module, after)


def nnx_cached_partial(case: Case) -> None:
    module = case.module()
    call = nnx.cached_partial(case.train, module)
    for outputs, after, _ in case.trained:
        close(call(), outputs)
        same_state(module, after)


def nnx_split_merge(case: Case) -> None:
    module = case.module()
    graph, params, seeds, rest = nnx.split(module, nnx.Param, nnx.RngState, ...)
    assert len(nnx.to_flat_state(params)) == len(case.params)
    assert len(nnx.to_flat_state(seeds)) == len(case.seeds)

    @case.jit
    def call(params: Any, seeds: Any, rest: Any) -> Any:
        copy = nnx.merge(graph, params, seeds, rest)
        outputs = copy(*case.row.args, training=True, **case.row.kwargs)
        return outputs, nnx.state(copy)

    outputs, state = call(params, seeds, rest)
    close(outputs, case.trained[0][0])
    same_state(module, case.start)
    nnx.update(module, state)
    same_state(module, case.trained[0][1])


def nnx_clone(case: Case) -> None:
    module = case.module()
    for other in (nnx.clone(module), copy.deepcopy(module)):
        case.train(other)
        same_state(other, case.trained[0][1])
        for variable in other.variables_by_path().values():
            variable.set_value(variable.get_value() + 1)
    same_state(module, case.start)


def nnx_gradients(case: Case) -> None:
    module = case.module()
    gradients = run(case, module, nnx.grad(case.loss))
    assert len(nnx.to_flat_state(gradients)) == len(case.params)
    same_state(module, case.trained[0][1])
    nnx.update(module, gradients)
    got = values(module)
    close([got[path] for path in case.params], case.gradients)


def nnx_optimizer(case: Case) -> None:
    module = case.module()
    optimizer = nnx.Optimizer(module, optax.sgd(RATE), wrt=nnx.Param)

    run(case, [module, optimizer], lambda both: both[1].update(both[0], nnx.grad(case.loss)(both[0])))
    after = case.trained[0][1]  # SpectralNormalization assigns its weight
    same_state(module, {**after, **dict(zip(case.params, case.descended(after), strict=True))})


def nnx_remat(case: Case) -> None:
    module = case.module()
    loss = lambda module: nnx.remat(case.loss)(module)  # noqa: E731
    gradients = run(case, module, nnx.grad(loss))
    same_state(module, case.trained[0][1])
    nnx.update(module, gradients)
    got = values(module)
    close([got[path] for path in case.params], case.gradients)


KEYS = jax.random.split(jax.random.key(3), 2)


def take(tree: Any, i: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[i], tree)


def member(case: Case, stack: dict, i: int) -> kfb.ToNNX:
    """A module with the values of one member of an ensemble."""
    module = case.module()
    for path, variable in module.variables_by_path().items():
        variable.set_value(stack[path][i])
    return module


def differ(case: Case, stack: dict) -> None:
    """Members of an ensemble differ in what is drawn: the seeds, and weights that are no constants."""
    if case.row.heavy:
        return
    for path in case.seeds:
        assert not np.array_equal(*stack[path])
    drawn = [path for path in case.params if path[-1] in ("kernel", "embeddings", "recurrent_kernel", "w")]
    for path in drawn:
        assert not np.array_equal(*stack[path]), path


def nnx_ensemble(case: Case) -> None:
    stack = case.ensemble()
    differ(case, values(stack))
    members = [member(case, values(stack), i) for i in range(2)] if not case.row.heavy else []
    call = lambda module: module(*case.row.args, training=True, **case.row.kwargs)  # noqa: E731
    outputs = run(case, stack, nnx.vmap(call, axis_size=2))
    for i, one in enumerate(members):
        close(take(outputs, i), case.train(one))
        close(take(values(stack), i), values(one))


def nnx_scan(case: Case) -> None:
    stack = case.ensemble()
    members = [member(case, values(stack), i) for i in range(2)] if not case.row.heavy else []

    @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=(nnx.Carry, 0), length=2)
    def call(total: Any, module: Any) -> Any:
        outputs = module(*case.row.args, training=True, **case.row.kwargs)
        return total + 1, outputs

    _, outputs = run(case, stack, lambda stack: call(jnp.zeros(()), stack))
    for i, one in enumerate(members):
        close(take(outputs, i), case.train(one))
        close(take(values(stack), i), values(one))


def nnx_eval_shape(case: Case) -> None:
    abstract = nnx.eval_shape(lambda: case.module(rngs=nnx.Rngs(0)))
    got = values(abstract)
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in got.values())
    assert not diff_trees(got, case.start)


def nnx_orbax(case: Case) -> None:
    module = case.module()
    case.train(module)
    state = nnx.to_pure_dict(nnx.state(module))
    if not state:
        return
    with tempfile.TemporaryDirectory() as folder:
        orbax("save")(f"{folder}/state", state)
        other = case.module()
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
        restored = orbax("load")(f"{folder}/state", like)
    pure = nnx.state(other)
    nnx.replace_by_pure_dict(pure, restored)
    nnx.update(other, pure)
    same_state(other, case.trained[0][1])


def nnx_summaries(case: Case) -> None:
    module = case.module()
    assert "ToNNX" in repr(module)
    treescope = module.__treescope_repr__
    assert callable(treescope)
    before = kfb.ToNNX.__call__
    options = {"console_kwargs": {"force_terminal": False}}
    table = nnx.tabulate(module, *case.row.args, **case.row.kwargs, **options)
    assert "ToNNX" in table
    assert kfb.ToNNX.__call__ is before


def nnx_modes(case: Case) -> None:
    module = case.module()
    default = lambda module: module(*case.row.args, **case.row.kwargs)  # noqa: E731
    close(run(case, module, default), case.wanted[0])
    host = nnx.Dict(inner=case.module())
    host.train()
    close(run(case, host, lambda host: default(host.inner)), case.trained[0][0])
    host.eval()
    assert host.inner.deterministic
    if compat.has("nnx.view"):
        assert not nnx.view(module, deterministic=False).deterministic


def nnx_losses(case: Case) -> None:
    module = case.module()

    def call(module: Any) -> Any:
        module(*case.row.args, training=True, **case.row.kwargs)
        return module.losses

    close(run(case, module, call), case.trained[0][2])


def nnx_assign(case: Case) -> None:
    module = case.module()
    case.train(module)
    other = drawn(case.row.build) if case.row.heavy else case.row.build()
    if not other.built:
        other(*case.row.args, **case.row.kwargs)
    module.assign_to(other)
    entries = [entry for part in keras_internals.collect_layer(other) for entry in part]
    close([entry.variable.value for entry in entries], [case.trained[0][1][e.path] for e in entries])
    close([entry.variable.value for entry in case.entries], list(case.start.values()))


# --- ToLinen


def linen_init(case: Case) -> None:
    init = lambda key: case.linen.init(key, *case.row.args, **case.row.kwargs)  # noqa: E731
    one, other = case.linen_members
    close(one, case.linen_init(KEYS[0]), 0)
    flat = [{path[1:]: leaf for path, leaf in flatten_tree(tree).items()} for tree in (one, other)]
    differ(case, {path: [tree[path] for tree in flat] for path in flat[0]})
    assert not diff_trees(flat[0], case.start)
    assert not diff_trees(flatten_tree(jax.eval_shape(init, KEYS[0])), flatten_tree(one))


def linen_apply(case: Case) -> None:
    outputs, after, _ = case.wanted
    state = set() if case.row.heavy else after.keys() - set(case.params)  # a heavy row has shapes alone
    if any(not np.array_equal(after[path], case.start[path]) for path in state):  # such as a stateful LSTM
        with pytest.raises(ModifyScopeVariableError, match="is immutable"):
            case.linen.apply(case.variables, *case.row.args, **case.row.kwargs)
        return
    call = case.jit(lambda variables: case.linen.apply(variables, *case.row.args, **case.row.kwargs))
    close(call(case.variables), outputs)


def applied(case: Case, variables: Any, **options: Any) -> Any:
    """A call in training that returns what it updates."""
    mutable = [*STATE, "losses"]
    return case.linen.apply(
        variables, *case.row.args, training=True, mutable=mutable, **case.row.kwargs, **options
    )


def linen_mutable(case: Case) -> None:
    variables = case.variables
    for outputs, after, losses in case.trained:
        got, updates = case.applied(variables)
        close(got, outputs)
        state = collected(updates)
        close(list(state.values()), [after[path] for path in state])
        assert state.keys() == case.start.keys() - set(case.params)
        close(updates.get("losses", {}), losses)
        variables = {**variables, **{name: tree for name, tree in updates.items() if name != "losses"}}


def linen_dropout_key(case: Case) -> None:
    call = case.jit(lambda key: applied(case, case.variables, rngs={"dropout": key}))
    results = [call(key) for key in (KEYS[0], KEYS[0], KEYS[1])]
    close(results[0][0], results[1][0], 0)
    for _, updates in results:
        close(updates.get("seeds", {}), case.variables.get("seeds", {}), 0)
    if case.row.heavy:
        return
    moved = [path for path in case.seeds if case.trained[0][1][path][1] != case.start[path][1]]
    if moved:
        leaves = [jax.tree.leaves(outputs) for outputs, _ in results]
        assert any(not np.array_equal(a, b) for a, b in zip(leaves[0], leaves[2], strict=True))


class Setup(nn.Module):
    """Holds the layer as `setup` makes it."""

    case: Any
    lift: Any = None

    def setup(self) -> None:
        self.inner = lifted(self.lift)(self.case.layer, training=True)

    def __call__(self) -> Any:
        return self.inner(*self.case.row.args, **self.case.row.kwargs)


class Compact(nn.Module):
    """Makes the layer where it calls it."""

    case: Any
    lift: Any = None

    @nn.compact
    def __call__(self) -> Any:
        inner = lifted(self.lift)(self.case.layer, training=True, name="inner")
        return inner(*self.case.row.args, **self.case.row.kwargs)


def lifted(lift: Any) -> Any:
    return kfb.ToLinen if lift is None else lift(kfb.ToLinen)


def hosted(case: Case, host: nn.Module) -> None:
    """A module that holds the layer under ``inner``: outputs, updates and gradients are the layer's."""
    variables = {name: {"inner": tree} for name, tree in case.variables.items()}

    def loss(params: Any) -> Any:
        given = {**variables, "params": params} if params else variables
        outputs, updates = host.apply(given, mutable=[*STATE, "losses"])
        return objective(outputs, updates.get("losses", {})), (outputs, updates)

    params = variables.get("params", {})
    gradients, (outputs, updates) = case.jit(jax.grad(loss, has_aux=True))(params)
    close(outputs, case.trained[0][0])
    state = collected({name: updates[name]["inner"] for name in STATE if name in updates})
    close(list(state.values()), [case.trained[0][1][path] for path in state])
    flat = flatten_tree(gradients)
    close([flat["inner", *path] for path in case.params], case.gradients)


def linen_setup(case: Case) -> None:
    hosted(case, Setup(case))


def linen_compact(case: Case) -> None:
    hosted(case, Compact(case))


def linen_jit(case: Case) -> None:
    hosted(case, Setup(case, nn.jit))


def linen_remat(case: Case) -> None:
    hosted(case, Compact(case, nn.remat))


AXES = dict.fromkeys(COLLECTIONS, 0)


class Body(nn.Module):
    """A call of the layer, as one step of a scan and one member of a map."""

    case: Any

    @nn.compact
    def __call__(self, carry: Any, _: Any) -> Any:
        inner = kfb.ToLinen(self.case.layer, training=True, name="inner")
        return carry + 1, inner(*self.case.row.args, **self.case.row.kwargs)


class Members(nn.Module):
    """Calls of the layer with two sets of variables."""

    case: Any
    lift: Any

    @nn.compact
    def __call__(self) -> Any:
        body = self.lift(Body, variable_axes=AXES, split_rngs={"params": True})
        return body(self.case, name="members")(jnp.zeros(()), None)[1]


def members(case: Case, lift: Any) -> None:
    """A map or a scan over two sets of variables: members are drawn apart, and each is the layer."""
    host = Members(case, lift)
    shapes = jax.eval_shape(host.init, KEYS[0])
    stack = case.jit(lambda one, two: jax.tree.map(lambda *leaves: jnp.stack(leaves), one, two))
    stacks = stack(*case.linen_members)
    variables = {name: {"members": {"inner": tree}} for name, tree in stacks.items()}
    assert not diff_trees(flatten_tree(shapes), flatten_tree(variables))
    mutable = [*STATE, "losses"]
    outputs, updates = case.jit(lambda variables: host.apply(variables, mutable=mutable))(variables)
    for i in range(2 if not case.row.heavy else 0):
        wanted, state = case.applied(take(stacks, i))
        close(take(outputs, i), wanted)
        close({name: take(updates[name]["members"]["inner"], i) for name in state}, state)


AXES = dict.fromkeys(COLLECTIONS, 0)


def linen_vmap(case: Case) -> None:
    members(case, lambda cls, **options: nn.vmap(cls, in_axes=None, axis_size=2, **options))


def linen_scan(case: Case) -> None:
    members(case, lambda cls, **options: nn.scan(cls, length=2, **options))


def linen_tabulate(case: Case) -> None:
    options = {"console_kwargs": {"force_terminal": False}}
    table = case.linen.tabulate(KEYS[0], *case.row.args, **options, **case.row.kwargs)
    assert "ToLinen" in table


def linen_train_state(case: Case) -> None:
    if not case.params:
        return
    variables = case.variables
    state = train_state.TrainState.create(
        apply_fn=case.linen.apply, params=variables["params"], tx=optax.sgd(RATE)
    )

    @case.jit
    def step(state: Any) -> Any:
        def loss(params: Any) -> Any:
            given = {**variables, "params": params}
            options = {"training": True, "mutable": [*STATE, "losses"], **case.row.kwargs}
            outputs, updates = state.apply_fn(given, *case.row.args, **options)
            return objective(outputs, updates.get("losses", {}))

        return state.apply_gradients(grads=jax.grad(loss)(state.params))

    params = flatten_tree(step(state).params)
    close([params[path] for path in case.params], case.stepped)


OPERATIONS: dict[str, Callable[[Case], None]] = {
    "ToNNX: call": nnx_call,
    "nnx.jit, twice in training": nnx_jit,
    **where("nnx.jit(graph=False)", {"nnx.jit(graph=False)": nnx_tree_mode}),
    "nnx.cached_partial": nnx_cached_partial,
    "nnx.split with filters, jax.jit, nnx.merge, nnx.update": nnx_split_merge,
    "nnx.clone, copy.deepcopy": nnx_clone,
    "nnx.grad": nnx_gradients,
    "nnx.Optimizer(wrt=nnx.Param)": nnx_optimizer,
    "nnx.remat": nnx_remat,
    "nnx.vmap over creation and call": nnx_ensemble,
    "nnx.scan over members": nnx_scan,
    "nnx.eval_shape": nnx_eval_shape,
    "nnx.state, Orbax and back": nnx_orbax,
    "repr, nnx.tabulate": nnx_summaries,
    "train(), eval(), nnx.view": nnx_modes,
    "losses": nnx_losses,
    "assign_to": nnx_assign,
    "ToLinen: init": linen_init,
    "apply": linen_apply,
    "apply(mutable=...), twice in training": linen_mutable,
    'rngs={"dropout": key}': linen_dropout_key,
    "in setup, gradients": linen_setup,
    "in nn.compact, gradients": linen_compact,
    "nn.jit": linen_jit,
    "nn.remat": linen_remat,
    "nn.vmap": linen_vmap,
    "nn.scan": linen_scan,
    "tabulate": linen_tabulate,
    "Flax TrainState": linen_train_state,
}
