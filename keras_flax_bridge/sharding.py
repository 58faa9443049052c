"""States on several devices: which leaf lies how, and putting it there."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, PartitionSpec

from keras_flax_bridge import _layouts, keras_internals
from keras_flax_bridge._layouts import Rules
from keras_flax_bridge.errors import printed
from keras_flax_bridge.state.multi_model import models_of
from keras_flax_bridge.tree.leaves import is_abstract, owned, placed, require_values, size_of
from keras_flax_bridge.tree.paths import Path, flatten_tree, join_path
from keras_flax_bridge.tree.types import PyTree, Target


def shardings_for(state: PyTree, mesh: Mesh, rules: Rules) -> PyTree:
    """The sharding of every leaf of a state, as rules on the paths of its weights say.

    The first rule that is found in a weight's path takes it, and with it all that belongs to the weight
    and has its shape: slots, averages, accumulated gradients. Weights that no rule takes, metrics, seeds
    and scalars are replicated.

    Args:
        state: a `TrainState`, concrete or abstract, or a tree of weights.
        mesh: the devices, a `jax.sharding.Mesh`. For a state of Keras models its axes are taken as automatic
            ones, whatever their type is.
        rules: pairs of a regular expression, searched for in paths such as ``params/dense/kernel``, and a
            `PartitionSpec`; or a `keras.distribution.LayoutMap`, by the names of the variables; or None for
            what Flax modules say of their weights.

    Returns:
        A tree of the structure of `state` with a `NamedSharding` for every leaf.

    Raises:
        StructureMismatchError: naming the rule that matches no weight, or all leaves whose shape isn't
            divided as a spec wants it.

    Example:
        >>> import jax.numpy as jnp
        >>> from jax.sharding import PartitionSpec as P
        >>> mesh = jax.make_mesh((1,), ("model",))
        >>> weights = {"params": {"dense": {"kernel": jnp.zeros((4, 8)), "bias": jnp.zeros(8)}}}
        >>> shardings = shardings_for(weights, mesh, [("kernel", P(None, "model"))])
        >>> {name: tuple(own.spec) for name, own in shardings["params"]["dense"].items()}
        {'bias': (), 'kernel': (None, 'model')}
    """
    names = keras_names(state)
    mesh = _layouts.automatic(mesh) if names else mesh
    return _layouts.shardings(state, mesh, _layouts.layouts(state, mesh, rules, names))


def shard(state: Target, mesh: Mesh, rules: Rules) -> Target:
    """Puts a copy of a state on the devices of a mesh; see `shardings_for` for the rules.

    With several processes, each calls this with the same values.

    Args:
        state: a `TrainState`, or a tree of arrays; abstract leaves get their sharding and stay abstract, for
            `restore` to read a checkpoint straight onto the devices.
        mesh: the devices.
        rules: see `shardings_for`.

    Returns:
        A state whose leaves lie as the rules say.

    Raises:
        StructureMismatchError: as `shardings_for`.
        OwnershipError: if a leaf was donated.

    Example:
        >>> import jax.numpy as jnp
        >>> from jax.sharding import PartitionSpec as P
        >>> mesh = jax.make_mesh((1,), ("model",))
        >>> state = shard({"params": {"kernel": jnp.zeros((4, 8))}}, mesh, [("kernel", P(None, "model"))])
        >>> tuple(state["params"]["kernel"].sharding.spec)
        (None, 'model')
    """
    require_values({path: leaf for path, leaf in flatten_tree(state).items() if not is_abstract(leaf)})
    shardings = shardings_for(state, mesh, rules)
    return jax.tree.map(lambda x, to: placed(x if is_abstract(x) else owned(x), to), state, shardings)


class RuleReport(NamedTuple):
    """What one rule took.

    Attributes:
        rule: the regular expression; ``everywhere`` for what no rule took.
        spec: how the leaves lie.
        leaves: how many.
        example: the path of one.
        shards: into how many parts each is split.
        size: bytes of all of them.
        per_device: bytes that lie on each device.

    Example:
        >>> row = RuleReport("kernel", PartitionSpec("data"), 2, "params/dense/kernel", 8, 1024, 128)
        >>> row.size // row.shards == row.per_device
        True
    """

    rule: str
    spec: PartitionSpec
    leaves: int
    example: str
    shards: int
    size: int
    per_device: int


class ShardingReport(NamedTuple):
    """What each rule took; printed, a table.

    Attributes:
        devices: how many the mesh has.
        rules: one row for each rule and spec.

    Example:
        >>> import jax.numpy as jnp
        >>> from jax.sharding import PartitionSpec as P
        >>> mesh = jax.make_mesh((1,), ("model",))
        >>> weights = {"params": {"kernel": jnp.zeros((4, 8)), "bias": jnp.zeros(8)}}
        >>> print(sharding_report(weights, mesh, [("kernel", P(None, "model"))]))
        rule        spec             leaves  shards        bytes   per device  such as
        everywhere  ()                    1       1           32           32  params/bias
        kernel      (None, 'model')       1       1          128          128  params/kernel
        2 leaves on 1 devices: 160 bytes, 160 on each device
    """

    devices: int
    rules: tuple[RuleReport, ...]

    @property
    def per_device(self) -> int:
        """Bytes that lie on each device."""
        return sum(row.per_device for row in self.rules)

    def __str__(self) -> str:
        specs = [str(tuple(row.spec)) for row in self.rules]
        wide, wider = max([10, *(len(row.rule) for row in self.rules)]), max([4, *map(len, specs)])
        head = f"{'rule':{wide}}  {'spec':{wider}}  leaves  shards        bytes   per device  such as"
        lines = [
            f"{row.rule:{wide}}  {spec:{wider}}  {row.leaves:6}  {row.shards:6}  "
            f"{row.size:11}  {row.per_device:11}  {row.example}"
            for row, spec in zip(self.rules, specs, strict=True)
        ]
        leaves, size = (sum(getattr(row, name) for row in self.rules) for name in ("leaves", "size"))
        total = f"{leaves} leaves on {self.devices} devices: {size} bytes, {self.per_device} on each device"
        return printed([head, *lines, total])


def sharding_report(state: PyTree, mesh: Mesh, rules: Rules) -> ShardingReport:
    """What each rule takes of a state, in leaves, devices and bytes.

    Args:
        state: a `TrainState`, concrete or abstract, or a tree of weights.
        mesh: the devices.
        rules: see `shardings_for`.

    Returns:
        A report; printed, it is a table.

    Raises:
        StructureMismatchError: as `shardings_for`.

    Example:
        >>> import jax.numpy as jnp
        >>> from jax.sharding import PartitionSpec as P
        >>> weights = {"params": {"kernel": jnp.zeros((4, 8))}}
        >>> sharding_report(weights, jax.make_mesh((1,), ("model",)), [("kernel", P())]).per_device
        128
    """
    found = _layouts.layouts(state, mesh, rules, keras_names(state))
    flat = flatten_tree(state)
    groups: dict[_layouts.Layout, list[Path]] = {}
    for path in sorted(found, key=lambda path: str(found[path].rule)):
        groups.setdefault(found[path], []).append(path)
    rows = [_row(layout, {path: flat[path] for path in paths}, mesh) for layout, paths in groups.items()]
    return ShardingReport(mesh.size, tuple(rows))


def _row(layout: _layouts.Layout, leaves: Mapping[Path, Any], mesh: Mesh) -> RuleReport:
    shards = math.prod(_layouts.parts(layout.spec, mesh.shape))
    size = sum(map(size_of, leaves.values()))
    return RuleReport(
        layout.rule, layout.spec, len(leaves), join_path(next(iter(leaves))), shards, size, size // shards
    )


def keras_names(state: Any) -> dict[Path, str]:
    """How Keras itself calls the weights of a state, by path, where it is a state of Keras models."""
    found = {}
    for name, model in models_of(getattr(state, "apply_fn", None)).items():
        for tree, entries in zip(
            ("params", "non_trainable"), keras_internals.collect_layer(model), strict=True
        ):
            prefix = (tree, name) if name else (tree,)
            found.update({(*prefix, *entry.path): entry.variable.path for entry in entries})
    return found
