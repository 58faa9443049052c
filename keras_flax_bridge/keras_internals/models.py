"""Models: all of their variables, and building unbuilt ones."""

from __future__ import annotations

from typing import Any

import jax
import keras
import numpy as np

from keras_flax_bridge.keras_internals.compiled_objects import compiled_entries
from keras_flax_bridge.keras_internals.entries import Collection, ModelVariables, variable_spec
from keras_flax_bridge.keras_internals.keys import collect_layer
from keras_flax_bridge.keras_internals.metrics import metric_entries
from keras_flax_bridge.keras_internals.slots import optimizer_entries
from keras_flax_bridge.keras_internals.trainers import metrics_built
from keras_flax_bridge.tree.diff import diff_trees


def collect(model: Any, *, metrics: bool = True) -> ModelVariables:
    """Every variable of a model, by structural path: weights, seeds, slots, metrics, what a loss holds.

    `model` may be a layer; then there are no slots and no metrics.

    Raises:
        NotBuiltError: if the variables of a metric depend on data that it has not seen yet.
    """
    params, non_trainable = collect_layer(model)
    keys = {id(entry.variable): entry.path for entry in params + non_trainable}
    optimizer = getattr(model, "optimizer", None)
    is_keras = isinstance(optimizer, keras.optimizers.Optimizer)
    slots = Collection(optimizer_entries(optimizer, keys) if is_keras else ())
    totals = Collection(metric_entries(model) if metrics else ())
    known = {*keys, *(id(entry.variable) for entry in slots + totals)}
    return ModelVariables(params, non_trainable, slots, totals, Collection(compiled_entries(model, known)))


def is_built(model: Any) -> bool:
    """Whether this model, its loss, metrics and optimizer are all built."""
    return model.built and metrics_built(model) and model.optimizer.built


def build(model: Any, batch: Any) -> None:
    """Creates the variables that a batch of these shapes and dtypes asks for, as `fit` would."""
    symbolic = jax.tree.map(lambda a: keras.KerasTensor(a.shape, str(a.dtype)), specs(batch))
    # `_symbolic_build`: what fit itself calls; shape inference only, nothing is computed
    model._symbolic_build(data_batch=symbolic)


def all_layers(layer: Any) -> list[Any]:
    """A layer and all of its sublayers, each once."""
    # `_flatten_layers`: the public `layers` exists on models only
    return list({id(part): part for part in [layer, *layer._flatten_layers()]}.values())


def lora_variables(layer: Any) -> frozenset[int]:
    """The ids of the variables that `enable_lora` added, at any depth."""
    adapted = [vars(part) for part in all_layers(layer) if getattr(part, "lora_enabled", False)]
    found = [
        value for attributes in adapted for name, value in attributes.items() if name.startswith("lora_")
    ]
    return frozenset(id(value) for value in found if isinstance(value, keras.Variable))


def is_complete(layer: Any) -> bool:
    """Whether a layer and all of its sublayers are built."""
    return all(part.built for part in all_layers(layer))


def makes_variables(layer: Any) -> bool:
    """Whether building a layer may make variables: whether a part that is not built has its own `build`."""
    parts = [part for part in all_layers(layer) if not part.built]
    return any(_has_own_build(part) for part in parts)


def _has_own_build(part: Any) -> bool:
    build = type(part).build
    if isinstance(part, keras.Model) and build.__module__.startswith("keras."):
        return False  # it builds its layers
    # `_is_default`: Keras's mark of a `build` that nobody wrote
    return not getattr(build, "_is_default", False)


def build_layer(layer: Any, *args: Any, **kwargs: Any) -> None:
    """Builds a layer and its sublayers as a call on such arrays or specs would; nothing is computed.

    Under a trace too, its variables get values that are not traced.
    """
    symbolic_args, symbolic_kwargs = keras.tree.map_structure(_symbolic, (args, kwargs))
    # `_inbound_nodes`: a symbolic call leaves a node of a graph that isn't there
    before = len(layer._inbound_nodes)
    with jax.ensure_compile_time_eval():
        layer(*symbolic_args, **symbolic_kwargs)
    del layer._inbound_nodes[before:]


def _symbolic(leaf: Any) -> Any:
    if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
        return leaf
    return keras.KerasTensor(leaf.shape, keras.backend.standardize_dtype(leaf.dtype))


def shapes_to_specs(layer: Any, shapes: Any, dtype: str | None = None) -> Any:
    """Inputs of these shapes, of the dtype that the layer computes in, or of another."""
    dtype = layer.input_dtype if dtype is None else dtype
    return keras.tree.map_shape_structure(lambda s: keras.KerasTensor(s, dtype), shapes)


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
    optimizer = model.optimizer
    # `_trainable_variables`: the variables that the optimizer was built for
    if optimizer.built and set(map(id, optimizer._trainable_variables)) == set(
        map(id, model.trainable_variables)
    ):
        return  # without a walk for the paths
    params, non_trainable = collect_layer(model)
    if not optimizer.built:
        optimizer.build([entry.variable for entry in params])
    built_for = {id(variable): variable for variable in optimizer._trainable_variables}
    paths = {id(e.variable): e.path for e in params + non_trainable}
    expected = {entry.path: variable_spec(entry.variable) for entry in params}
    got = {paths.get(key, (v.path,)): variable_spec(v) for key, v in built_for.items()}
    difference = diff_trees(got, expected)
    if difference:
        raise difference.error(
            f"optimizer {optimizer.name!r}",
            "It was built for other variables. Compile the model again after layers were frozen or "
            "unfrozen, and give each model a separate optimizer.",
        )


def context_arguments(model: Any) -> set[str]:
    """The arguments that layers of a model take from the call of the model, besides those of every call."""
    # `_call_context_args`: what a graph hands on to the layers that declare it; nothing public has it
    return {name for layer in all_layers(model) for name in getattr(layer, "_call_context_args", ()) if name}
