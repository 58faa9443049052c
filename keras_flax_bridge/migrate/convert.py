"""Creates the converted module by executing the generated source, then sets its weights."""

from __future__ import annotations

import linecache
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import keras
from flax import nnx

from keras_flax_bridge import keras_internals
from keras_flax_bridge.errors import StructureMismatchError, UnsupportedLayerError
from keras_flax_bridge.interop.keras_in_nnx import ToNNX
from keras_flax_bridge.keras_internals import SEED
from keras_flax_bridge.keras_internals.call import require_built
from keras_flax_bridge.migrate.graph.builder import Context, build_root
from keras_flax_bridge.migrate.graph.tracing import as_functional
from keras_flax_bridge.migrate.map_schema import Pair
from keras_flax_bridge.migrate.python_text import executed, identifier
from keras_flax_bridge.migrate.report import ConversionReport
from keras_flax_bridge.migrate.selfcheck import check, tolerance_of
from keras_flax_bridge.migrate.source.writer import RESERVED, Source, write
from keras_flax_bridge.migrate.transforms import forward
from keras_flax_bridge.migrate.weight_map import WeightMap
from keras_flax_bridge.tree import words
from keras_flax_bridge.tree.diff import diff_trees
from keras_flax_bridge.tree.leaves import owned, strong
from keras_flax_bridge.tree.paths import Path, join_path


class Conversion:
    """One conversion: the source, and the weight map of the module class that it defines."""

    def __init__(self, model: Any, class_name: str, fallback: str, *, layer_outputs: bool = False):
        require_built(model)
        self.model = model
        self.context = Context(model, fallback)
        self.layer_outputs: list[tuple[str, Any]] = []  # names and output tensors of the layers
        with keras_internals.tracing(model):
            self.graph_model = keras_internals.functional(model) or as_functional(model)
            names = (
                {} if keras_internals.functional(model) is not None else keras_internals.child_names(model)
            )
            graph, self.layer_outputs = build_root(
                self.context, self.graph_model, model.name, layer_outputs, names
            )
        self.context.problems.raise_any(model)
        self._require_all_mapped()
        class_name = identifier(class_name, RESERVED.__contains__, "Model")
        about = f"The Keras model {_name_without_counter(model)}."
        self.source: Source = write(graph, class_name, about, folded=not layer_outputs)

    def _require_all_mapped(self) -> None:
        entries = self.context.entries.values()
        left = [e for e in entries if e.kind != SEED and e.path not in self.context.mapped]
        if left:
            raise UnsupportedLayerError(
                f"model {self.model.name!r}",
                got="variables that the graph of the model does not use: "
                + ", ".join(join_path(entry.path) for entry in left),
                expected="every variable used between the inputs and the outputs",
                fix="Remove layers that are not used, or wrap the model with kfb.ToNNX(model).",
            )

    def module_class(self) -> Any:
        """The class that the source defines, created by executing it."""
        text = self.source.text
        name = f"<keras_flax_bridge {self.source.class_name} {abs(hash(text)):x}>"
        linecache.cache[name] = (len(text), None, text.splitlines(True), name)  # for tracebacks
        islands = {int(number): layer for number, layer in self.context.islands.items()}
        made = {number: ToNNX(layer) for number, layer in islands.items()}
        scope: dict[str, Any] = {"__name__": "keras_flax_bridge.migrated", "islands": made}
        return executed(text, name, scope)[self.source.class_name]

    def weight_map(self) -> WeightMap:
        """The weight map from the model to the module."""
        weights = [w for w in self.source.weights if w.kind != "constant"]
        pairs = [Pair((w.key,), w.paths, w.transforms, w.kind) for w in weights]
        seeds = [entry.path for entry in self.context.entries.values() if entry.kind == SEED]
        return WeightMap(pairs, seeds=seeds)

    def module(self, values: dict[Path, Any], rngs: nnx.Rngs) -> Any:
        """The module in inference mode: built abstractly, then filled with its values."""
        constants = {path: jnp.asarray(a) for path, a in self.context.constants.items()}
        made = abstract(self.module_class())
        fill(made, dict(self.values(values | constants)), rngs)
        made.eval()
        return made

    def values(self, values: dict[Path, Any]) -> Iterator[tuple[Path, Any]]:
        """Converts Keras values by structural key to values by path in the module."""
        for weight in self.source.weights:
            arrays = forward(weight.transforms, [values[weight.key]])
            yield from zip(weight.paths, arrays, strict=True)


@words.door
def to_nnx(
    model: keras.Model,
    *,
    rngs: nnx.Rngs | None = None,
    fallback: str = "error",
    check_outputs: bool = True,
    class_name: str = "Model",
) -> nnx.Module:
    """Converts a Keras model into native Flax NNX modules, with its weights; no Keras at call time.

    The class of the module is created by executing the source that `to_source` writes. It starts in
    inference mode, as Keras does; ``module.train()`` and ``module.eval()`` switch it.
    ``module.conversion_report`` lists the rule of each layer, what was dropped, and the measured
    difference of the outputs.

    Args:
        model: a built Sequential, Functional or subclassed model.
        rngs: its ``dropout`` stream provides the keys for dropout; ``nnx.Rngs(0)`` by default.
        fallback: ``"error"`` names all layers that have no rule; ``"bridge"`` keeps each as a
            `ToNNX` inside the native module.
        check_outputs: whether the outputs of both models on a random input are compared.
        class_name: the name of the module's class.

    Returns:
        An `nnx.Module`, usable with `nnx.jit`, `nnx.split` and optax. It holds copies of the weights.

    Raises:
        NotBuiltError: if the model has no variables yet.
        UnsupportedLayerError: naming all layers and operations without a rule at once, or if the
            outputs differ.

    Example:
        >>> import keras, numpy as np
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, "relu")])
        >>> module = to_nnx(model)
        >>> x = np.ones((3, 4), "float32")
        >>> bool(np.allclose(module(x), model(x))), module.dense.kernel.shape
        (True, (4, 2))
    """
    _require_choice("fallback", fallback, ("error", "bridge"))
    return converted(Conversion(model, class_name, fallback), rngs, check_outputs)


def converted(
    conversion: Conversion,
    rngs: nnx.Rngs | None = None,
    check_outputs: bool = True,
    *,
    copies: bool = True,
) -> nnx.Module:
    """The module of a conversion with its weights, weight map and report; see `to_nnx`.

    With ``copies=False`` it shares the arrays of the model, which must not be trained afterwards.
    """
    model, taken = conversion.model, owned if copies else strong
    values = {e.path: taken(e.variable.value) for e in conversion.context.entries.values()}
    module: nnx.Module = conversion.module(values, nnx.Rngs(0) if rngs is None else rngs)
    report = _report(conversion, None)
    if check_outputs:
        report = _report(conversion, check(model, module, conversion.graph_model))
    cls: Any = type(module)
    cls.conversion_report = report  # on the class, so that nnx.split and nnx.clone preserve it
    cls.weight_map = conversion.weight_map()
    return module


@words.door
def to_source(model: keras.Model, *, class_name: str = "Model") -> str:
    """Writes a Keras model as standalone Python that imports only jax and flax.

    Layers keep the user's names, repeated blocks become a class and a loop, and settings that equal
    Flax's defaults are left out. The same model always gives the same text.

    Args:
        model: a built Sequential, Functional or subclassed model.
        class_name: the name of the model's class; converted to a valid identifier.

    Returns:
        The source. ``nnx.update(Model(rngs=nnx.Rngs(0)), kfb.migrate.to_nnx_state(model))`` has
        the model's weights.

    Raises:
        NotBuiltError: if the model has no variables yet.
        UnsupportedLayerError: naming all layers and operations without a rule at once.

    Example:
        >>> import keras
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, "relu")])
        >>> print(to_source(model))
        from flax import nnx
        <BLANKLINE>
        <BLANKLINE>
        class Model(nnx.Module):
            \"\"\"The Keras model sequential.\"\"\"
        <BLANKLINE>
            def __init__(self, *, rngs):
                self.dense = nnx.Linear(4, 2, rngs=rngs)
        <BLANKLINE>
            def __call__(self, x):
                return nnx.relu(self.dense(x))
        <BLANKLINE>
    """
    return Conversion(model, class_name, "error").source.text


def _name_without_counter(model: Any) -> str:
    """The name of a model without the counter that Keras appends."""
    name = keras_internals.own_name(model)
    head, _, count = name.rpartition("_")
    return head if count.isdigit() and head in ("sequential", "functional", "model") else name


def _require_choice(where: str, got: Any, allowed: tuple[str, ...]) -> None:
    if got not in allowed:
        raise StructureMismatchError(
            where,
            got=repr(got),
            expected=" or ".join(map(repr, allowed)),
            fix=f"Pass {where}={allowed[0]!r}.",
        )


def abstract(cls: Any) -> Any:
    """An abstract module: its leaves are shapes and dtypes.

    All parameters share one key, since their values are overwritten later. Drawing a key for each from an
    RNG stream would update the stream's counter each time, which dominates the cost of tracing.
    """

    def make() -> Any:
        rngs = nnx.Rngs(0)
        key = jax.random.key(0)
        vars(rngs)["params"] = lambda: key
        return cls(rngs=rngs)

    return nnx.eval_shape(make)


def fill(module: Any, values: dict[Path, Any], rngs: nnx.Rngs) -> None:
    """Sets the value of every leaf; random keys come from `rngs`.

    Raises:
        StructureMismatchError: if a value has no leaf of the same shape, or a leaf has no value.
    """
    leaves = {_string_path(path): leaf for path, leaf in nnx.to_flat_state(nnx.state(module))}
    keys = [leaf for leaf in leaves.values() if isinstance(leaf, nnx.RngKey)]
    fresh_keys = iter(jax.random.split(rngs.dropout(), max(len(keys), 1)))
    expected = {p: leaf.get_value() for p, leaf in leaves.items() if not isinstance(leaf, nnx.RngState)}
    difference = diff_trees(values, expected)
    if difference:
        raise difference.error("the weights of the module", "This is a bug in a rule: please report it.")
    for path, leaf in leaves.items():
        if isinstance(leaf, nnx.RngKey):
            leaf.set_value(next(fresh_keys))
        elif isinstance(leaf, nnx.RngCount):
            leaf.set_value(jnp.zeros((), jnp.uint32))
        else:
            leaf.set_value(values[path])


def _string_path(path: tuple[Any, ...]) -> Path:
    return tuple(map(str, path))


def _report(conversion: Conversion, checked: float | None) -> ConversionReport:
    model = conversion.model
    layers: dict[str, str] = {}
    for weight in conversion.source.weights:
        layers.setdefault(join_path(weight.key[:-1]), join_path(weight.paths[0][:-1]))
    dropped = tuple(_dropped(model))
    limit = None if checked is None else tolerance_of(model)
    return ConversionReport(model.name, tuple(layers.items()), dropped, checked, limit)


def _dropped(model: Any) -> Iterator[str]:
    for layer in keras_internals.all_layers(model):
        for name, value in vars(layer).items():
            if value is not None and name.endswith(("_regularizer", "_constraint")):
                yield f"{name} of {layer.name!r}"
