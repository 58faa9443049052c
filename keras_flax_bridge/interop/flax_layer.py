"""The base of Keras layers of Flax modules: signatures, variables, masks, files."""

from __future__ import annotations

import functools
import inspect
import random
from collections.abc import Callable, Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
import keras

from keras_flax_bridge import keras_internals
from keras_flax_bridge.errors import UnsupportedLayerError
from keras_flax_bridge.interop.module_config import Maker, maker_of
from keras_flax_bridge.interop.module_leaves import Leaf, Source, Tree
from keras_flax_bridge.keras_internals import SEED
from keras_flax_bridge.keras_internals.call import require_known
from keras_flax_bridge.tree import untrusted, words
from keras_flax_bridge.tree.diff import diff_trees
from keras_flax_bridge.tree.paths import Path
from keras_flax_bridge.tree.types import PyTree, Shape

# Flax's names for Keras's `training`, and the value of each in training
FLAGS = {"training": True, "train": True, "deterministic": False, "use_running_average": False}


class ModuleHandle:
    """The Flax module of a layer and what belongs to it, in one object, so that Keras tracks none of it."""

    def __init__(self, maker: Maker, method: str, seed: int | None):
        self.maker, self.method = maker, method
        self.given_seed = None if seed is None else int(seed)
        self.seed = random.randint(1, 10**9) if seed is None else int(seed)  # as Keras draws them
        self.module: Any = None  # a linen.Module, or the graph of an nnx.Module
        self.signature = inspect.Signature()  # of the module's call
        self.source: Source | None = None  # until there are variables
        self.tree: Tree | None = None
        self.leaves: tuple[Leaf, ...] = ()
        self.inputs: tuple[Any, Any] | None = None  # what the call that builds the layer is given
        self.draws: set[bool] = set()  # the values of `training` with which calls draw random numbers

    @property
    def order(self) -> list[int]:
        """The leaves in the order in which Keras lists variables: trainable ones first."""
        return sorted(range(len(self.leaves)), key=lambda i: not self.leaves[i].trainable)

    def flags(self, training: bool) -> dict[str, bool]:
        """The arguments of the module's call that select training or inference."""
        known = self.signature.parameters
        return {name: training == word for name, word in FLAGS.items() if name in known}


_OPTIONS = (
    *list(inspect.signature(keras.layers.Layer.__init__).parameters)[1:-1],
    "input_shape",
    "input_dim",
)


class _Call:
    """`call` of a layer, with the signature of its module's call."""

    def __init__(self, layer: FlaxLayer, signature: inspect.Signature):
        self._layer = layer
        self.__signature__ = signature
        self.__name__ = "call"

    def __call__(self, *args: Any, training: bool | None = None, **kwargs: Any) -> Any:
        """Calls the layer, and refuses arguments that the module doesn't have."""
        return self._layer._run(args, kwargs, bool(training) and self._layer.trainable)


class FlaxLayer(keras.layers.Layer):
    """The common base of the layers for NNX and Linen modules."""

    _kind: type
    _other: type

    def __init__(
        self,
        module: Any,
        *,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
        method: str = "__call__",
        seed: int | None = None,
        **options: Any,
    ):
        try:
            maker = maker_of(module, self._kind, self._other, args, kwargs)
            held = ModuleHandle(maker, method, seed)
            held.signature = _signature(self._prepare(held), method)
            self._held = held
            super().__init__(**options)
        except (TypeError, ValueError):
            # of a class that lacks arguments, or of Keras, which knows no such option
            words.require_known(f"kfb.{type(self).__name__}", options, _OPTIONS, type(self).__init__)
            raise
        self.supports_masking = True  # `__call__` propagates masks

    def _prepare(self, held: ModuleHandle) -> type:
        """Creates the module and returns its class."""
        raise NotImplementedError

    def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any], training: bool) -> Any:
        raise NotImplementedError

    @property
    def call(self) -> Callable[..., PyTree]:
        """Calls the module, with the module's signature."""
        return _Call(self, _keras_signature(self._held.signature))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the layer, and refuses arguments that the module doesn't have."""
        require_known(kwargs, self, type(self).__name__)
        if not self.built:
            self._held.inputs = args, {k: v for k, v in kwargs.items() if k != "training"}
        outputs = super().__call__(*args, **kwargs)
        _hand_on_mask(args, outputs)
        return outputs

    def compute_output_spec(self, *args: Any, **kwargs: Any) -> PyTree:
        """Shapes and dtypes of outputs, by tracing the module without numbers.

        Args:
            *args: what a call is given: arrays, or specs, with None for sizes not known.
            **kwargs: named arguments of the call.

        Returns:
            A `keras.KerasTensor` for each output, of the shape and the dtype that a call returns.

        Raises:
            ValueError: whatever the module raises for such inputs.
        """
        args, kwargs = keras.tree.map_structure(self._as_input, (args, kwargs))
        with keras_internals.autocast(self):
            return self._traced(args, kwargs)

    def _traced(self, args: Any, kwargs: Any) -> Any:
        # not Keras's Layer, which asks `compute_output_shape`
        infer = functools.partial(keras.Operation.compute_output_spec, self)
        try:
            return infer(*args, **kwargs)
        except Exception:  # `len(x)` and the like fail on Keras's symbol for a size that isn't known
            if not any(None in x.shape for x in keras.tree.flatten((args, kwargs)) if _is_symbolic(x)):
                raise
        one, two = (infer(*_sized(args, size), **_sized(kwargs, size)) for size in _SIZES)
        return keras.tree.map_structure(_common, one, two)

    def compute_output_shape(self, input_shape: Shape | None = None, **shapes: Shape) -> PyTree:
        """Shapes of outputs.

        Args:
            input_shape: that of the first argument of a call, or a structure of shapes for a structure.
            **shapes: those of other arguments: ``x_shape`` of the argument ``x``.

        Returns:
            A shape for each output.

        Raises:
            ValueError: whatever the module raises for inputs of floats, if it raises for integers too.
        """
        return self._first_dtype(
            lambda args, kwargs: keras.tree.map_structure(
                lambda spec: spec.shape, self.compute_output_spec(*args, **kwargs)
            ),
            input_shape,
            shapes,
        )

    def _first_dtype(self, use: Callable[[Any, Any], Any], input_shape: Any, shapes: Any) -> Any:
        """Uses inputs of these shapes: floats, or integers if the module takes no floats."""
        try:
            return use(*self._specs(input_shape, shapes, self.input_dtype))
        except Exception as error:
            try:
                return use(*self._specs(input_shape, shapes, "int32"))
            except Exception:
                raise error from None

    def _specs(self, input_shape: Any, shapes: Any, dtype: str) -> tuple[list[Any], dict[str, Any]]:
        spec = functools.partial(keras_internals.shapes_to_specs, self, dtype=dtype)
        args = [] if input_shape is None else [spec(input_shape)]
        return args, {name.removesuffix("_shape"): spec(shape) for name, shape in shapes.items()}

    def _as_input(self, leaf: Any) -> Any:
        """What the module gets of an argument of a call: Keras casts floats to the compute dtype."""
        if _is_symbolic(leaf):
            return self._as_spec(leaf)
        return self.dtype_policy.convert_input(leaf, self.autocast, self.input_dtype)

    def _as_spec(self, leaf: Any) -> Any:
        """The spec of what the module gets of an array or a spec."""
        if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
            return leaf
        dtype = jax.dtypes.canonicalize_dtype(keras.backend.standardize_dtype(leaf.dtype))
        is_float = jnp.issubdtype(dtype, jnp.floating) and self.autocast
        return keras.KerasTensor(leaf.shape, self.input_dtype if is_float else str(dtype))

    def compute_mask(self, inputs: PyTree, previous_mask: PyTree) -> None:
        """None: a call hands the mask on, to outputs that have a vector for every entry of it."""

    # --- variables

    def _make_variables(self) -> None:
        held = self._held
        source, held.source = held.source, None  # it holds values
        assert source is not None
        held.tree, held.leaves = source.tree, source.leaves
        for index in held.order:
            leaf = held.leaves[index]
            keras_internals.add_weight(
                self,
                leaf.path,
                shape=leaf.spec.shape,
                initializer=source.initializer(index),
                dtype=self._dtype_of(leaf),
                autocast=_is_cast(leaf),
                trainable=leaf.trainable,
                overwritten=leaf.overwritten,
            )

    def _dtype_of(self, leaf: Leaf) -> str:
        """The dtype of the variable of a leaf: a dtype that the module chose itself is kept."""
        return str(leaf.spec.dtype) if leaf.spec.dtype != jnp.float32 else self.variable_dtype

    def _held_as(self, leaf: Leaf, value: Any) -> Any:
        """A value as a call reads it from the variable of a leaf."""
        held = value.astype(self._dtype_of(leaf))
        return keras_internals.autocasted(held) if _is_cast(leaf) else held

    def _read(self) -> list[Any]:
        """The values of the leaves, in the tree's order."""
        values = dict(zip(self._held.order, (variable.value for variable in self.weights), strict=True))
        return [values[index] for index in range(len(values))]

    def _write(self, before: list[Any], after: list[Any]) -> None:
        for index, variable in zip(self._held.order, self.weights, strict=True):
            if after[index] is not before[index]:
                variable.assign(after[index])

    def placed_variables(self) -> dict[int, tuple[Path, str | None]]:
        """The structural path of every weight by its id, and its kind where Keras can't know that."""
        leaves = (self._held.leaves[index] for index in self._held.order)
        pairs = zip(self.weights, leaves, strict=True)
        return {id(variable): (leaf.path, _kind(leaf)) for variable, leaf in pairs}

    # --- files

    def _stored(self) -> dict[str, Any]:
        """The variables by their names in files."""
        paths = (self._held.leaves[index].path for index in self._held.order)
        # a dot, since a slash makes groups within HDF5
        return {".".join(path): variable for path, variable in zip(paths, self.weights, strict=True)}

    def save_own_variables(self, store: Any) -> None:
        """Writes the variables under their paths."""
        for name, variable in self._stored().items():
            store[name] = variable

    def load_own_variables(self, store: Any) -> None:
        """Reads what `save_own_variables` wrote, all or nothing."""
        wanted = self._stored()
        difference = diff_trees(
            {(name,): store[name] for name in store.keys()},  # noqa: SIM118, not a mapping
            {(name,): keras_internals.variable_spec(variable) for name, variable in wanted.items()},
        )
        if difference:
            raise difference.error(f"layer {self.name!r}", "The file was written by a different module.")
        for name, variable in wanted.items():
            variable.assign(store[name])

    def get_config(self) -> dict[str, Any]:
        """Keras's config, of JSON types.

        A module that no file can hold, such as an NNX instance or an unregistered function, is in it as an
        object: the layer can be cloned in this process, and to write it raises UnsupportedLayerError.
        """
        held = self._held
        own = {"module": held.maker.described(), "method": held.method, "seed": held.given_seed}
        return {**super().get_config(), **own}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """The layer that a config describes."""
        maker = config["module"]
        if not isinstance(maker, Maker):  # the config may come from a file: nothing else is allowed in it
            maker = Maker.from_config(_of_maker(maker))
        return cls(**{**config, "module": maker})


def _of_maker(written: Any) -> Mapping[str, Any]:
    """The config of a `Maker`, as Keras wrote it.

    Raises:
        UnsupportedLayerError: if it is of anything else, such as a function that would be called.
    """
    config = written.get("config") if isinstance(written, Mapping) else None
    if not isinstance(config, Mapping) or written.get("class_name") != Maker.__name__:
        raise UnsupportedLayerError(
            "module",
            got="a config of something other than a Flax module",
            expected="what this package writes",
            fix="The file is damaged, or was not written by this package.",
        )
    return config


# --- signatures


def _signature(kind: type, method: str) -> inspect.Signature:
    """The signature of a module's call, without ``self``."""
    _, *parameters = inspect.signature(untrusted.method(kind, method)).parameters.values()
    if kind.__module__.startswith("flax."):
        # the masks of Flax's own modules have other shapes: a default that isn't None keeps Keras's out
        parameters = [p.replace(default=False) if p.name == "mask" else p for p in parameters]
    return inspect.Signature(parameters)


def _keras_signature(signature: inspect.Signature) -> inspect.Signature:
    """The signature with ``training`` instead of Flax's names for it."""
    kept = [p for p in signature.parameters.values() if p.name not in FLAGS]
    training = inspect.Parameter("training", inspect.Parameter.KEYWORD_ONLY, default=None)
    named = [p for p in kept if p.kind is not inspect.Parameter.VAR_KEYWORD]
    return inspect.Signature([*named, training, *kept[len(named) :]])


# --- shapes

_SIZES = 89, 97  # large enough for windows over an axis


def _is_symbolic(value: Any) -> bool:
    return isinstance(value, keras.KerasTensor)


def _sized(values: Any, size: int) -> Any:
    """The specs with a number for every unknown size."""

    def sized(value: Any) -> Any:
        if not _is_symbolic(value):
            return value
        return keras.KerasTensor([n if n is not None else size for n in value.shape], value.dtype)

    return keras.tree.map_structure(sized, values)


def _common(one: Any, two: Any) -> Any:
    """Marks output sizes that depend on an unknown size as unknown."""
    shape = [a if a == b else None for a, b in zip(one.shape, two.shape, strict=True)]
    return keras.KerasTensor(shape, one.dtype)


# --- leaves, masks


def _is_cast(leaf: Leaf) -> bool:
    """Whether calls read a leaf in the compute dtype."""
    # statistics would lose the update of the batch, scales of float8 their precision
    return leaf.trainable and not leaf.overwritten


def _kind(leaf: Leaf) -> str | None:
    """The kind of a leaf; keys that look like Keras seeds count as seeds."""
    return SEED if leaf.is_key and leaf.spec.shape == (2,) else None


def _hand_on_mask(args: tuple[Any, ...], outputs: Any) -> None:
    inputs = keras.tree.flatten(args)
    mask = keras_internals.mask_of(inputs[0]) if inputs else None
    if mask is None:
        return
    rank = len(mask.shape)
    for output in keras.tree.flatten(outputs):
        if len(output.shape) > rank and tuple(output.shape[:rank]) == tuple(mask.shape):
            keras_internals.set_mask(output, mask)
