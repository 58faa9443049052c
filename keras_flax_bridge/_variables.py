"""How Keras holds variables: structural keys, kinds, slots, building, moving, pure initialisation.

The only file that touches private Keras attributes. Each is named here with the reason why no
public one serves, and `tests/test_keys.py` fails if Keras renames one.
"""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import keras
import numpy as np
from keras.src.backend.common import global_state
from keras.src.backend.common.stateless_scope import get_stateless_scope
from keras.src.backend.common.symbolic_scope import in_symbolic_scope
from keras.src.utils.naming import to_snake_case

from keras_flax_bridge import _paths, _random
from keras_flax_bridge._paths import Path
from keras_flax_bridge.errors import (
    NotBuiltError,
    OwnershipError,
    UnsupportedLayerError,
)

PARAM, FROZEN, BATCH_STAT, SEED, OTHER = "param", "frozen", "batch_stat", "seed", "other"


class Entry(NamedTuple):
    """One Keras variable, its structural path and its kind."""

    path: Path
    variable: Any
    kind: str


class Collection(tuple[Entry, ...]):
    """Entries in the order in which Keras's stateless functions want their values."""

    def __add__(self, other: Any) -> Collection:
        return Collection((*self, *other))

    def tree(self, values: Iterable[Any] | None = None) -> dict[str, Any]:
        """The nested dict of `values` (by default the variables' own), given in Keras's order."""
        values = [entry.variable.value for entry in self] if values is None else values
        return _paths.nest({e.path: v for e, v in zip(self, values, strict=True)})

    def leaves(self, tree: Any, where: str) -> list[Any]:
        """The leaves of `tree` in Keras's order, after checking every path, shape and dtype.

        Raises:
            StructureMismatchError: naming all leaves that are missing, unexpected or of another kind.
        """
        flat = _paths.flatten(tree)
        difference = _paths.diff(flat, self.specs())
        if difference:
            raise difference.error(where, _OTHER_ARCHITECTURE)
        return [flat[entry.path] for entry in self]

    def specs(self) -> dict[Path, jax.ShapeDtypeStruct]:
        """Shape and dtype of every entry, without touching its value."""
        return {entry.path: variable_spec(entry.variable) for entry in self}


_OTHER_ARCHITECTURE = (
    "The state belongs to another model, or layers were added, frozen or unfrozen since: "
    "make it with TrainState.from_keras(model), or move its leaves with state.repartition(model)."
)


class ModelVariables(NamedTuple):
    """All variables of a model that takes part in training."""

    params: Collection
    non_trainable: Collection
    opt_state: Collection
    metrics: Collection


def variable_spec(variable: Any) -> jax.ShapeDtypeStruct:
    # `_dtype`: the public dtype is the autocast one inside a mixed-precision layer call
    return jax.ShapeDtypeStruct(tuple(variable.shape), variable._dtype)


def collect(model: Any) -> ModelVariables:
    """Every variable of a model, by structural path: weights, seeds, slots and metrics.

    `model` may be a layer; then there are no slots and no metrics.
    """
    params, non_trainable = collect_layer(model)
    keys = {id(entry.variable): entry.path for entry in params + non_trainable}
    optimizer = getattr(model, "optimizer", None)
    is_keras = isinstance(optimizer, keras.optimizers.Optimizer)
    slots = Collection(_optimizer_entries(optimizer, keys) if is_keras else ())
    return ModelVariables(params, non_trainable, slots, Collection(_metric_entries(model)))


def collect_layer(layer: Any) -> tuple[Collection, Collection]:
    """The trainable and the non-trainable variables of a layer, in Keras's order."""
    found = {id(entry.variable): entry for entry in _walk(layer, (), set())}
    trainable = [_known(found, v)._replace(kind=PARAM) for v in layer.trainable_variables]
    return Collection(trainable), Collection(_known(found, v) for v in layer.non_trainable_variables)


def _known(found: Mapping[int, Entry], variable: Any) -> Entry:
    if id(variable) in found:
        return found[id(variable)]
    raise UnsupportedLayerError(
        variable.path,
        got="a variable that no attribute of a layer and no tracked list of Keras holds",
        expected="a variable held by a layer",
        fix="Assign it, or the layer that owns it, to an attribute of the layer that uses it.",
    )


# --- structural keys of layers -----------------------------------------------------------------


class _Names:
    """Hands out names under one parent, each once; a second one of a name gets ``_1``."""

    def __init__(self) -> None:
        self._taken: set[str] = set()
        self._next: dict[str, int] = {}
        self._of_attribute: dict[str, str] = {}

    def take(self, name: str) -> str:
        free = name
        while free in self._taken:
            self._next[name] = self._next.get(name, 0) + 1
            free = f"{name}_{self._next[name]}"
        self._taken.add(free)
        return free

    def place(self, path: Path) -> Path:
        """The path of what an attribute holds: the attribute's name without leading underscores."""
        attribute = path[0]
        if attribute not in self._of_attribute:
            self._of_attribute[attribute] = self.take(attribute.lstrip("_") or attribute)
        return (self._of_attribute[attribute], *path[1:])


def _walk(layer: Any, path: Path, seen: set[int]) -> Iterator[Entry]:
    """Entries of a layer and of all its sublayers, each variable once, at its first place."""
    _require_arrays(layer)
    seen.add(id(layer))
    attributes, names = _attributes(layer, _layer_bookkeeping()), _Names()
    children = list(_children(layer, attributes, names))  # they keep their names; leaves give way
    for variable, kind in _own_variables(layer):
        if id(variable) not in seen:
            seen.add(id(variable))
            yield Entry((*path, *_variable_name(variable, attributes, names)), variable, kind)
    for name, child in children:
        if id(child) not in seen:
            yield from _walk(child, (*path, *name), seen)


def _require_arrays(layer: Any) -> None:
    if hasattr(layer, "save_assets"):  # where Keras's layers keep what is no array
        raise UnsupportedLayerError(
            f"layer {layer.name!r}",
            got=f"a {type(layer).__name__}, which keeps state that is no array (it has save_assets)",
            expected="state in variables",
            fix="Keep the layer out of the model, in the pipeline that makes the batches.",
        )


def _own_variables(layer: Any) -> Iterator[tuple[Any, str]]:
    # `_trainable_variables`, `_non_trainable_variables`, `_seed_generators`: what a layer itself
    # holds; the public lists mix in the sublayers and lose who created a frozen weight trainable
    for variable in layer._trainable_variables:
        yield variable, FROZEN
    for variable in layer._non_trainable_variables:
        yield variable, BATCH_STAT if variable.name.startswith("moving_") else OTHER
    for generator in layer._seed_generators:
        yield generator.state, SEED


def _children(layer: Any, attributes: Mapping[int, Path], names: _Names) -> Iterator[tuple[Path, Any]]:
    """Sublayers with their names: those of the graph first, then those that attributes hold."""
    graph: Sequence[Any] = layer.layers if isinstance(layer, _graph_classes()) else ()
    yield from _graph_children(graph, names)
    # `_layers`: the sublayers that Keras tracks; the public `layers` exists on models only
    rest = {id(child): child for child in layer._layers}
    for child in graph:
        rest.pop(id(child), None)
    for key, path in attributes.items():
        if key in rest:
            yield names.place(path), rest.pop(key)
    for child in rest.values():
        yield (names.take(to_snake_case(type(child).__name__)),), child


@cache
def _graph_classes() -> Any:
    from keras.src.models.functional import Functional  # keras exports no name for it

    return Functional, keras.Sequential


def _graph_children(layers: Sequence[Any], names: _Names) -> Iterator[tuple[Path, Any]]:
    """The user's name of each layer, else its class and its order among such layers."""
    given = {id(layer): names.take(layer.name) for layer in layers if not _has_auto_name(layer)}
    for layer in layers:
        yield (given.get(id(layer)) or names.take(to_snake_case(type(layer).__name__)),), layer


def _has_auto_name(named: Any) -> bool:
    """Whether a name is of the form that Keras gives, such as ``dense_3`` to a Dense layer.

    A model read from its config carries such names as if the user had given them, so the form
    decides and not who wrote it: a model and its clone get the same keys.
    """
    return _has_auto_form(named.name, to_snake_case(type(named).__name__))


def _has_auto_form(name: str, stem: str) -> bool:
    return re.fullmatch(re.escape(stem) + r"(_\d+)?", name) is not None


def _variable_name(variable: Any, attributes: Mapping[int, Path], names: _Names) -> Path:
    """A variable's own name; one that nobody named is called as the attribute that holds it."""
    if not _has_auto_form(variable.name, "variable"):
        return (names.take(variable.name),)
    if id(variable) in attributes:
        return names.place(attributes[id(variable)])
    return (names.take("variable"),)


@cache
def _layer_bookkeeping() -> frozenset[str]:
    """What every layer has: Keras's own attributes, where no user puts a sublayer."""
    return frozenset(vars(keras.layers.Layer()))


def _attributes(holder: Any, skip: frozenset[str]) -> dict[int, Path]:
    """Where an object holds layers and variables, in lists and dicts too: the first place of each."""
    found: dict[int, Path] = {}
    for name in _public_first(vars(holder).keys() - skip):
        for path, value in _contents((name,), vars(holder)[name]):
            found.setdefault(id(value), path)
    return found


def _public_first(names: Iterable[str]) -> list[str]:
    return sorted(names, key=lambda name: (name.startswith("_"), name))


def _contents(path: Path, value: Any) -> Iterator[tuple[Path, Any]]:
    """The layers, variables and optimizers in a value, with their paths."""
    if isinstance(value, (keras.layers.Layer, keras.Variable, keras.optimizers.Optimizer)):
        yield path, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _contents((*path, str(key)), item)
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _contents((*path, str(index)), item)


# --- metrics and optimizers --------------------------------------------------------------------


def _metric_entries(model: Any) -> Iterator[Entry]:
    """Variables of all metrics in Keras's order; one that Keras lists twice comes twice."""
    names, places = _Names(), {}
    for name, metric in _metrics(model, with_built_metrics(model)):
        if id(metric) not in places:
            places[id(metric)] = names.take(name)
        leaf_names, attributes = _Names(), _attributes(metric, frozenset())
        for variable in metric.variables:
            leaf = _variable_name(variable, attributes, leaf_names)
            yield Entry((places[id(metric)], *leaf), variable, OTHER)


def _metrics(model: Any, built: Any) -> Iterator[tuple[str, Any]]:
    """Every metric of a model with the name under which `fit` reports it, outputs by their keys."""
    outputs = _output_keys(model)
    losses = getattr(getattr(built, "_compile_loss", None), "metrics", ())
    for metric in getattr(built, "metrics", ()):
        if hasattr(metric, "_user_metrics"):  # the container that compile() makes
            yield from _compiled_metrics(metric, outputs)
        elif any(metric is loss for loss in losses):
            output = metric.name.removesuffix("_loss")
            yield f"{outputs.get(output, output)}_loss", metric
        else:
            yield _metric_name(metric), metric


def _output_keys(model: Any) -> dict[str, str]:
    """The structural key of every layer of a graph by its name, which Keras takes for an output's."""
    if not isinstance(model, _graph_classes()):
        return {}
    return {layer.name: key for (key,), layer in _graph_children(model.layers, _Names())}


def _metric_name(metric: Any) -> str:
    return to_snake_case(type(metric).__name__) if _has_auto_name(metric) else metric.name


def _compiled_metrics(container: Any, outputs: Mapping[str, str]) -> Iterator[tuple[str, Any]]:
    # `_flat_metrics`: the public `metrics` loses which output a metric belongs to
    if container.built:
        for group in container._flat_metrics + container._flat_weighted_metrics:
            output = (
                f"{outputs.get(group.output_name, group.output_name)}_" if group and group.output_name else ""
            )
            for metric in group.metrics if group else ():
                yield f"{output}{_metric_name(metric)}", metric


def _optimizer_entries(optimizer: Any, keys: Mapping[int, Path]) -> list[Entry]:
    """Variables of an optimizer in Keras's order: scalars by name, slots as trees like params."""
    found: dict[int, Path] = {}
    _place_slots(optimizer, (), keys, found)
    names = _Names()
    for variable in optimizer.variables:  # what a custom optimizer keeps in no attribute
        if id(variable) not in found:
            found[id(variable)] = ("variables", names.take("variable"))
    return [Entry(found[id(v)], v, OTHER) for v in optimizer.variables]


# what an optimizer keeps about the model and about itself besides its slots
_NO_SLOTS = frozenset({"_variables", "_trainable_variables", "_trainable_variables_indices", "_tracker"})


def _place_slots(optimizer: Any, prefix: Path, keys: Mapping[int, Path], found: dict[int, Path]) -> None:
    """Finds the path of every variable in an optimizer's attributes and inner optimizers."""
    names = _Names()
    for name in _public_first(vars(optimizer).keys() - _NO_SLOTS):
        value = vars(optimizer)[name]
        if _is_slot(value, optimizer):
            slot = (*prefix, *names.place((name,)))
            for variable, owner in zip(value, optimizer._trainable_variables, strict=True):
                if variable is not None:
                    found.setdefault(id(variable), (*slot, *keys.get(id(owner), (owner.path,))))
            continue
        for path, item in _contents((name,), value):
            if isinstance(item, keras.optimizers.Optimizer):
                _place_slots(item, (*prefix, *names.place(path)), keys, found)
            elif isinstance(item, keras.Variable) and id(item) not in found:
                found[id(item)] = (*prefix, *_variable_name(item, {id(item): path}, names))


def _is_slot(value: Any, optimizer: Any) -> bool:
    """Whether a list holds one variable, or none, for each variable that the optimizer trains."""
    # `_trainable_variables`: the variables an optimizer was built for, in order; nothing public has them
    return (
        isinstance(value, (list, tuple))
        and len(value) == len(optimizer._trainable_variables)
        and any(isinstance(item, keras.Variable) for item in value)
        and all(item is None or isinstance(item, keras.Variable) for item in value)
    )


# --- models that train: compiling, building, moving values -------------------------------------


def trainer(model: Any, *, loss: Any = None, optimizer: Any = None, metrics: Any = None) -> Any:
    """A compiled model: `model` itself, or a twin of it that is compiled with the given parts.

    The twin shares the layers and the variables and keeps its own loss, optimizer and metrics, so
    that the caller's model stays as it was. Parts not given are those of the compiled model. An
    object with optax's `init` and `update` in place of the optimizer is handled by the caller.

    Raises:
        NotBuiltError: if the model was never compiled and no optimizer is given.
    """
    compiled = getattr(model, "compiled", False)
    if compiled and loss is None and optimizer is None and metrics is None:
        return model
    if not compiled and optimizer is None:
        raise NotBuiltError(
            f"model {model.name!r}",
            got="a model that was never compiled, and no optimizer",
            expected="an optimizer",
            fix="Call model.compile(...), or pass optimizer= (optax.identity() where nothing is trained).",
        )
    twin = object.__new__(type(model))  # copy.copy would save and load the model: Keras defines it so
    vars(twin).update(vars(model))
    given = {"optimizer": optimizer, "loss": loss, "metrics": metrics}
    parts = {name: part for name, part in given.items() if part is not None}
    twin.compile(**{**_compiled_parts(model), **parts}, auto_scale_loss=False)
    return twin


def _compiled_parts(model: Any) -> dict[str, Any]:
    if not model.compiled:
        return {}
    # `_compile_metrics`, `_compile_loss`: compile() keeps its arguments nowhere else as objects
    parts = {"optimizer": model.optimizer, "loss": model.loss or None}
    if model._compile_metrics is not None:
        parts["metrics"] = model._compile_metrics._user_metrics
        parts["weighted_metrics"] = model._compile_metrics._user_weighted_metrics
    if model._compile_loss is not None:
        parts["loss_weights"] = model._compile_loss._user_loss_weights
    return parts


def is_built(model: Any) -> bool:
    """Whether `build` has nothing left to do for this model, its loss, metrics and optimizer."""
    return model.built and metrics_built(model) and model.optimizer.built


def metrics_built(model: Any) -> bool:
    # `_compile_metrics`, `_compile_loss`: they make their metrics only once they saw data
    metrics, loss = model._compile_metrics, model._compile_loss
    if metrics is not None:
        return metrics.built  # then so is the loss, unless an own compute_loss leaves it aside
    return loss is None or loss.built or is_overridden(model, "compute_loss")


def with_built_metrics(model: Any) -> Any:
    """The model, or where its compiled metrics saw no data yet, a twin that stands in for it.

    Which metric a word such as ``accuracy`` means depends on the shape of the targets; which
    variables it has doesn't. So the twin tells the structure, and the model's own stay unbuilt.

    Raises:
        NotBuiltError: if the variables of a metric depend on data.
    """
    if not getattr(model, "compiled", False) or metrics_built(model):
        return model
    twin = trainer(model, optimizer=keras.optimizers.SGD(), loss=model.loss or None)
    outputs = getattr(model, "output", None)
    outputs = keras.KerasTensor((None, 1)) if outputs is None else outputs
    try:
        for part in filter(None, (twin._compile_metrics, twin._compile_loss)):
            part.build(outputs, outputs)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise _metrics_need_data(f"model {model.name!r}") from error
    for name, metric in _metrics(twin, twin):
        # `_built`: set by the metrics that make their variables at the first update
        if not metric.variables and not getattr(metric, "_built", True):
            raise _metrics_need_data(f"metrics/{name}")
    return twin


def _metrics_need_data(where: str) -> NotBuiltError:
    return NotBuiltError(
        where,
        got="metrics that saw no data yet, and whose variables depend on it",
        expected="built metrics",
        fix="Pass batch=(x, y), real or of jax.ShapeDtypeStruct.",
    )


def reset_metrics(model: Any, values: Sequence[Any]) -> list[Any]:
    """The values that the metrics have after a reset, as `fit` does it at each start of an epoch."""
    built = with_built_metrics(model)
    entries = list(_metric_entries(built))
    with keras.StatelessScope([(e.variable, v) for e, v in zip(entries, values, strict=True)]) as scope:
        built.reset_metrics()
    return [scope.get_current_value(entry.variable) for entry in entries]


def build(model: Any, batch: Any) -> None:
    """Creates the variables that a batch of these shapes and dtypes asks for, as `fit` would."""
    symbolic = jax.tree.map(lambda a: keras.KerasTensor(a.shape, str(a.dtype)), specs(batch))
    # `_symbolic_build`: what fit itself calls; shape inference only, nothing is computed
    model._symbolic_build(data_batch=symbolic)


def specs(batch: Any) -> Any:
    """Shapes and dtypes of a batch, as jax would see it."""
    return jax.tree.map(_leaf_spec, batch)


def _leaf_spec(leaf: Any) -> jax.ShapeDtypeStruct:
    dtype = leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype
    return jax.ShapeDtypeStruct(np.shape(leaf), jax.dtypes.canonicalize_dtype(dtype))


def build_optimizer(model: Any) -> None:
    """Builds the optimizer of a built model, if it isn't, and checks that it is this model's.

    Raises:
        StructureMismatchError: if the optimizer was built for other variables.
    """
    params, non_trainable = collect_layer(model)
    optimizer = model.optimizer
    if not optimizer.built:
        optimizer.build([entry.variable for entry in params])
    # `_trainable_variables`: what the optimizer was built for
    built_for = {id(variable): variable for variable in optimizer._trainable_variables}
    paths = {id(e.variable): e.path for e in params + non_trainable}
    expected = {entry.path: variable_spec(entry.variable) for entry in params}
    got = {paths.get(key, (v.path,)): variable_spec(v) for key, v in built_for.items()}
    difference = _paths.diff(got, expected)
    if difference:
        raise difference.error(
            f"optimizer {optimizer.name!r}",
            "It was built for other variables. Compile the model again after layers were frozen or "
            "unfrozen, and give each model an optimizer of its own.",
        )


def iterations(optimizer: Any) -> Any:
    """How many batches an optimizer has seen, an int32 scalar."""
    inner = getattr(optimizer, "inner_optimizer", optimizer)  # the outer one of a loss scale stands still
    return inner._iterations.value  # `_iterations`: the public one is divided by accumulation steps


def fresh_optimizer(optimizer: Any, variables: Sequence[Any]) -> Any:
    """An optimizer of the same config, built for these variables, its slots at their start."""
    fresh = type(optimizer).from_config(optimizer.get_config())
    fresh.build(variables)
    return fresh


def takes_training(layer: Any) -> bool:
    # `_call_has_training_arg`: what Keras's own step asks before it passes `training`
    return layer._call_has_training_arg


def is_overridden(model: Any, method: str) -> bool:
    """Whether the model's class has its own ``train_step`` or ``test_step``."""
    return getattr(type(model), method) is not getattr(keras.Model, method)


def has_loss(model: Any) -> bool:
    # `_compile_loss`: None for a model that trains on add_loss() alone
    return model._compile_loss is not None


@cache
def _moved_class(base: Any) -> Any:
    """A variable class whose value is gone: it works where a value is handed in, else says so."""

    def value(self: Any) -> Any:
        scope = get_stateless_scope()
        if scope is not None and scope.get_current_value(self) is not None:
            return base.value.fget(self)
        if in_symbolic_scope():  # shape inference asks for no values
            return self._maybe_autocast(jnp.zeros(self._shape, self._dtype))
        raise OwnershipError(
            self._moved_from,
            got="a variable whose value moved into a TrainState",
            expected="a variable that holds its value",
            fix="Write the state back with state.assign_to(model) before the model is used.",
        )

    def _direct_assign(self: Any, new: Any) -> None:
        self.__class__ = base
        base._direct_assign(self, new)

    return type(base.__name__, (base,), {"value": property(value), "_direct_assign": _direct_assign})


def move(entries: Iterable[Entry]) -> None:
    """Takes the values out of variables; using one raises OwnershipError until it is assigned."""
    for path, variable, _ in entries:
        if not is_moved(variable):
            variable.__class__ = _moved_class(variable.__class__)
            variable._moved_from = _paths.join(path)
            variable._value = None  # the buffer itself: assign() would need a new one


def is_moved(variable: Any) -> bool:
    return variable._value is None and hasattr(variable, "_moved_from")


def forget_traced(model: Any) -> None:
    """Rids a model that was built under a trace of what leaked from it.

    Its variables are emptied; arrays that a layer made while it was built are made again.

    Raises:
        UnsupportedLayerError: if a layer holds such an array and can't be built again from its config.
    """
    entries = [entry for collection in collect(model) for entry in collection]
    move([entry for entry in entries if _is_traced(entry.variable._value)])
    for layer in model._flatten_layers():
        leaked = [name for name, value in vars(layer).items() if _is_traced(value)]
        if leaked:
            with keras.StatelessScope(initialize_variables=False), _own_uninitialized():
                twin = _rebuilt(layer)
            vars(layer).update({name: vars(twin)[name] for name in leaked})


def _is_traced(value: Any) -> bool:
    return isinstance(value, jax.core.Tracer)


# --- what layers compute from their variables and keep ------------------------------------------


def _keepers(layer: Any) -> list[Any]:
    """Layers such as Normalization, which reads its statistics once, in `finalize_state`."""
    # `_flatten_layers`: the public `layers` exists on models only
    return [part for part in layer._flatten_layers() if hasattr(part, "finalize_state") and part.variables]


@contextlib.contextmanager
def finalized(layer: Any, entries: Iterable[Entry], values: Iterable[Any]) -> Iterator[None]:
    """Inside, layers that keep what they computed from their variables computed it from these values."""
    keepers = _keepers(layer)
    before = [dict(vars(keeper)) for keeper in keepers]
    try:
        if keepers:
            with keras.StatelessScope([(e.variable, v) for e, v in zip(entries, values, strict=True)]):
                for keeper in keepers:
                    keeper.finalize_state()
        yield
    finally:
        for keeper, attributes in zip(keepers, before, strict=True):
            vars(keeper).clear()
            vars(keeper).update(attributes)


def refresh(model: Any) -> None:
    """Computes anew what layers keep, after their variables were assigned."""
    keepers = _keepers(model)
    for keeper in keepers:
        keeper.finalize_state()
    for name in ("train_function", "test_function", "predict_function"):
        if keepers and hasattr(model, name):
            setattr(model, name, None)  # compiled with the old results as constants


# --- pure initialisation -----------------------------------------------------------------------


def initial_values(layer: Any, key: jax.Array) -> dict[Path, Any]:
    """Initial values of all variables of a built layer as a pure function of a JAX key.

    Every initializer draws from a key of its own, made of `key` and the variable's path; also one
    that was given a fixed seed.

    Raises:
        UnsupportedLayerError: if the layer can't be built again from its config.
    """
    return {path: draw(_random.fold(key, path)) for path, draw in _initializers(layer).items()}


def _initializers(layer: Any) -> dict[Path, Callable[[jax.Array], Any]]:
    """For every variable, by path, a function that draws its initial value from a key."""
    with keras.StatelessScope(initialize_variables=False), _own_uninitialized():
        twin = _rebuilt(layer)
        entries = [entry for collection in collect_layer(twin) for entry in collection]
        return {entry.path: _drawer(entry) for entry in entries}


def _rebuilt(layer: Any) -> Any:
    """The layer built once more from its config; in a stateless scope, without values."""
    try:
        twin = type(layer).from_config(layer.get_config())
        if not twin.built:
            twin.build_from_config(layer.get_build_config())
    except (NotImplementedError, TypeError, ValueError) as error:
        raise UnsupportedLayerError(
            f"layer {layer.name!r}",
            got=f"a {type(layer).__name__} that can't be built again ({error})",
            expected="get_config() and get_build_config() that rebuild it",
            fix="Define them as Keras's guide on saving says, or take the layer's present values.",
        ) from error
    return twin


@contextlib.contextmanager
def _own_uninitialized() -> Iterator[None]:
    """Keeps variables that never get a value off Keras's global list of those that wait for one."""
    name = "uninitialized_variables"  # Keras would fill all that are on it at the next occasion
    before = list(global_state.get_global_attribute(name, []))
    try:
        yield
    finally:
        global_state.set_global_attribute(name, before)


def _drawer(entry: Entry) -> Callable[[jax.Array], Any]:
    variable, spec = entry.variable, variable_spec(entry.variable)
    if entry.kind == SEED:
        return _random.seed
    # `_initializer`: kept only until the variable has its value
    initializer = copy.copy(variable._initializer)

    def draw(key: jax.Array) -> Any:
        if hasattr(initializer, "seed"):
            initializer.seed = key
        return jnp.asarray(initializer(spec.shape, dtype=spec.dtype), spec.dtype)

    return draw
