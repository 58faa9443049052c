"""Variables of metrics, by the name under which `fit` reports them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
from keras.src.utils.naming import to_snake_case

from keras_flax_bridge.errors import NotBuiltError
from keras_flax_bridge.keras_internals.entries import OTHER, Entry
from keras_flax_bridge.keras_internals.keys import (
    Names,
    graph_children,
    graph_classes,
    has_auto_name,
    held_by,
    variable_name,
)
from keras_flax_bridge.keras_internals.trainers import metrics_built, trainer
from keras_flax_bridge.tree.paths import flatten_tree


def metric_entries(model: Any) -> Iterator[Entry]:
    """The variables of all metrics in Keras's order, with the duplicates of Keras's list."""
    names, places = Names(), {}
    for name, metric in _metrics(model, with_built_metrics(model)):
        if id(metric) not in places:
            places[id(metric)] = names.take(name)
        leaf_names, attributes = Names(), held_by(metric, frozenset())
        for variable in metric.variables:
            leaf = variable_name(variable, attributes, leaf_names)
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
    if not isinstance(model, graph_classes()):
        return {}
    return {layer.name: key for (key,), layer in graph_children(model.layers, Names())}


def _metric_name(metric: Any) -> str:
    """The name that the user gave, otherwise the class in snake case."""
    # `_fn`: the loss that a metric wraps; the metric has the name of the loss
    for named in (metric, getattr(metric, "_fn", None)):
        if isinstance(named, (keras.Metric, keras.Loss)) and has_auto_name(named):
            name: str = to_snake_case(type(named).__name__)
            return name
    name = metric.name
    return name


def _compiled_metrics(container: Any, outputs: Mapping[str, str]) -> Iterator[tuple[str, Any]]:
    # `_flat_metrics`: the public `metrics` loses which output a metric belongs to
    if container.built:
        for group in container._flat_metrics + container._flat_weighted_metrics:
            output = (
                f"{outputs.get(group.output_name, group.output_name)}_" if group and group.output_name else ""
            )
            for metric in group.metrics if group else ():
                yield f"{output}{_metric_name(metric)}", metric


def with_built_metrics(model: Any) -> Any:
    """The model, or a twin with built metrics if its compiled metrics have not seen data yet.

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
        if not getattr(metric, "_built", True):
            raise _metrics_need_data(f"metrics/{name}")
    return twin


def _metrics_need_data(where: str) -> NotBuiltError:
    return NotBuiltError(
        where,
        got="metrics that have seen no data yet, and whose variables depend on it",
        expected="built metrics",
        fix="Pass batch=(x, y), real or of jax.ShapeDtypeStruct.",
    )


def reset_metrics(model: Any, values: Sequence[Any]) -> list[Any]:
    """The values of the metrics after a reset, as at the start of each epoch in `fit`."""
    built = with_built_metrics(model)
    entries = list(metric_entries(built))
    with keras.StatelessScope([(e.variable, v) for e, v in zip(entries, values, strict=True)]) as scope:
        built.reset_metrics()
    return [scope.get_current_value(entry.variable) for entry in entries]


def metric_results(model: Any, tree: Any) -> dict[str, Any]:
    """What `fit` logs at the end of an epoch, of metrics with these values."""
    flat = flatten_tree(tree)
    with keras.StatelessScope([(entry.variable, flat[entry.path]) for entry in metric_entries(model)]):
        results: dict[str, Any] = model.get_metrics_result()
    return results
