"""Creates the Flax module of a Keras layer, and stores its constructor in the Keras config."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import keras
import numpy as np
from flax import linen as nn
from flax import nnx

from keras_flax_bridge.errors import StructureMismatchError, UnsupportedLayerError
from keras_flax_bridge.keras_internals.config_scope import IN_PROCESS
from keras_flax_bridge.tree import untrusted


@keras.saving.register_keras_serializable("keras_flax_bridge")
class Maker:
    """A module, or a class or function that returns one, with its arguments."""

    def __init__(self, target: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None):
        self.target, self.args, self.kwargs = target, tuple(args), dict(kwargs or {})
        self._linen: nn.Module | None = None

    def is_instance(self, kind: type) -> bool:
        """Whether the target is a module, not a class or function that returns one."""
        return isinstance(self.target, kind)

    def make(self, kind: type, rngs: Callable[[], Any] | None = None) -> Any:
        """The module; a new one if the target is a class or function.

        Raises:
            StructureMismatchError: if the result is not a module of that kind, or the arguments of a
                constructor can't be inspected.
        """
        if self.is_instance(kind):
            return self.target
        if self._linen is not None:
            return self._linen  # made within another Linen module, it would become a part of that
        given = {}
        if rngs is not None and _lacks_rngs(self.target, self.args, self.kwargs):
            given["rngs"] = rngs()
        module = self.target(*self.args, **self.kwargs, **given)
        if not isinstance(module, kind):
            raise StructureMismatchError(
                f"module {_title(self.target)}",
                got=f"a function that made a {type(module).__name__}",
                expected=f"one that makes a {kind.__module__.split('.')[1]}.{kind.__name__}",
                fix="Return the module.",
            )
        self._linen = module if isinstance(module, nn.Module) else None  # it holds no arrays
        return module

    def described(self) -> Any:
        """What a layer's config holds of this: names and plain values; the maker if there are none."""
        if IN_PROCESS.get() is not None:
            return self
        try:
            return keras.saving.serialize_keras_object(self)
        except UnsupportedLayerError:
            return self  # such a layer can be cloned; a file says why it can't hold it

    def get_config(self) -> dict[str, Any]:
        """The config for Keras's files: names and plain values.

        Raises:
            UnsupportedLayerError: if the module can't be represented by them.
        """
        makers = IN_PROCESS.get()
        if makers is not None:
            makers.append(self)
            return {"living": len(makers) - 1}
        target, kwargs = self.target, self.kwargs
        if isinstance(target, nn.Module):
            return {"target": _encoded(target)}
        if isinstance(target, nnx.Module):
            if not hasattr(target, "get_config"):
                raise _unwritable(
                    _title(type(target)), "an instance, which does not record its constructor", _FUNCTION
                )
            target, kwargs = type(target), target.get_config()
        return {
            "target": {"name": _name(target)},
            "args": [_encoded(value) for value in self.args],
            "kwargs": {key: _encoded(value) for key, value in kwargs.items()},
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Maker:
        """Creates a maker from the result of `get_config`.

        Raises:
            UnsupportedLayerError: if the config names something that is not allowed, or has another form.
        """
        makers = IN_PROCESS.get()
        if makers is not None:
            maker: Maker = makers[config["living"]]
            return maker
        args, kwargs = config.get("args", []), config.get("kwargs", {})
        return cls(
            _target(config["target"]),
            tuple(_decoded(value) for value in args),
            {key: _decoded(value) for key, value in kwargs.items()},
        )


def maker_of(
    module: Any, kind: type, other: type, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None
) -> Maker:
    """The maker for what a layer was given.

    Raises:
        StructureMismatchError: if it is neither a module of that kind nor a class or function.
    """
    if isinstance(module, Maker):
        return module
    is_class, base = isinstance(module, type), f"{kind.__module__.split('.')[1]}.Module"
    is_other = issubclass(module, other) if is_class else isinstance(module, other)
    fits = isinstance(module, kind) or (issubclass(module, kind) if is_class else callable(module))
    if is_other or not fits or isinstance(module, keras.layers.Layer):
        name = "LinenLayer" if kind is nnx.Module else "NNXLayer"
        raise StructureMismatchError(
            "module",
            got=f"{'the class' if is_class else 'a'} {_title(module if is_class else type(module))}",
            expected=f"a flax {base}, or a class or function that makes one",
            fix=f"That is what {name} is for." if is_other else "Pass one.",
        )
    if isinstance(module, kind) and (args or kwargs):
        raise StructureMismatchError(
            "module",
            got=f"an instance of {type(module).__name__}, and args= or kwargs=",
            expected="a class or a function to call with them",
            fix=f"Pass {type(module).__name__} itself, or leave args= and kwargs= out.",
        )
    return Maker(module, args, kwargs)


def _lacks_rngs(target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether a class or function takes ``rngs``, and isn't given any; ``**kwargs`` of a class takes them."""
    while isinstance(target, functools.partial):
        args, kwargs, target = (*target.args, *args), {**target.keywords, **kwargs}, target.func
    signature = _signature(target)
    known = signature.parameters
    if "rngs" not in known:
        takes_all = any(p.kind is p.VAR_KEYWORD for p in known.values())
        return takes_all and isinstance(target, type) and "rngs" not in kwargs
    try:
        return "rngs" not in signature.bind_partial(*args, **kwargs).arguments
    except TypeError:
        return "rngs" not in kwargs  # the call says which argument is wrong


def _signature(target: Any) -> inspect.Signature:
    """The arguments that a class or function is called with.

    Raises:
        StructureMismatchError: if they can't be inspected.
    """
    try:
        if not isinstance(target, type):
            return inspect.signature(target)
        # the metaclass of Flax's modules takes all arguments, whatever the class takes
        _, *parameters = inspect.signature(_constructor(target)).parameters.values()
        return inspect.Signature(parameters)
    except (TypeError, ValueError) as error:
        raise StructureMismatchError(
            f"module {_title(target)}",
            got="a constructor whose arguments can't be inspected",
            expected="a class or function with a signature",
            fix="Pass a function that makes the module: NNXLayer(lambda rngs: Module(..., rngs=rngs)).",
        ) from error


def _constructor(kind: type) -> Any:
    own = kind.__init__  # type: ignore[misc]
    return _no_arguments if own is object.__init__ else own


def _no_arguments(self: Any) -> None: ...


def _title(target: Any) -> str:
    return getattr(target, "__qualname__", type(target).__qualname__)


# --- plain values: what JSON can't represent becomes a dict of one key

_FUNCTION = (
    "Decorate a function that makes the module with @keras.saving.register_keras_serializable('my_package'), "
    "and wrap the function in place of the module; or the class, if it has a get_config() that returns the "
    "arguments to make it with."
)


def _encoded(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return (
            {type(value).__name__: [_encoded(item) for item in value]}
            if type(value) in (list, tuple)
            else _refuse(value)
        )
    if isinstance(value, Mapping):
        return {"dict": [[_encoded(key), _encoded(item)] for key, item in value.items()]}
    if isinstance(value, nn.Module):
        return {"linen": _name(type(value)), "fields": _fields(value)}
    if _is_dtype(value):
        return {"dtype": jnp.dtype(value).name}
    return {"name": _name(value)} if callable(value) else _refuse(value)


def _refuse(value: Any) -> Any:
    raise _unwritable(
        type(value).__name__,
        "an argument of a kind that Keras's files can't hold",
        _FUNCTION,
    )


def _fields(module: nn.Module) -> dict[str, Any]:
    """The fields of a Linen module that are not at their defaults."""
    found = {}
    for field in dataclasses.fields(module):
        default = field.default_factory() if callable(field.default_factory) else field.default
        value = getattr(module, field.name, None)
        if field.name != "parent" and field.init and value is not default and not _same(value, default):
            found[field.name] = _encoded(value)
    return found


def _same(value: Any, default: Any) -> bool:
    plain = (bool, int, float, str, tuple, set, frozenset)
    return type(value) is type(default) and isinstance(value, plain) and value == default


def _decoded(value: Any) -> Any:
    """A value that `_encoded` wrote.

    Raises:
        UnsupportedLayerError: if it is anything else, or names something that is not allowed.
    """
    if isinstance(value, (bool, int, float, str)) or value is None:
        return value
    if not isinstance(value, Mapping) or set(value) not in _WRITTEN:
        raise UnsupportedLayerError(
            "module",
            got=f"a config that holds a {type(value).__name__} of unknown form",
            expected="what this package writes",
            fix="The file is damaged, or of a newer version of this package.",
        )
    kind = next(name for name in _READERS if name in value)
    return _READERS[kind](value[kind], value)


def _linen(name: Any, value: Mapping[str, Any]) -> Any:
    fields = {key: _decoded(item) for key, item in value["fields"].items()}
    return untrusted.flax_class(name, nn.Module)(**fields)


_READERS: dict[str, Callable[[Any, Mapping[str, Any]], Any]] = {
    "list": lambda items, _: [_decoded(item) for item in items],
    "tuple": lambda items, _: tuple(_decoded(item) for item in items),
    "dict": lambda items, _: {_decoded(key): _decoded(item) for key, item in items},
    "linen": _linen,
    "dtype": lambda name, _: untrusted.dtype(name),
    "name": lambda name, _: untrusted.flax_thing(name),
}
_WRITTEN = [{"linen", "fields"} if kind == "linen" else {kind} for kind in _READERS]


def _target(value: Any) -> Any:
    """The target of a config: a Linen module, a class, or a registered function."""
    named = isinstance(value, Mapping) and set(value) == {"name"}
    return untrusted.flax_maker(value["name"]) if named else _decoded(value)


def _is_dtype(value: Any) -> bool:
    is_scalar_type = isinstance(value, type) and issubclass(value, np.generic)
    return isinstance(value, (np.dtype, type(jnp.float32))) or is_scalar_type


def _name(thing: Any) -> str:
    """The name by which a class or function can be looked up."""
    known = untrusted.flax_name(thing)
    if known is not None:
        return known
    name = keras.saving.get_registered_name(thing)
    if name is not None and untrusted.registered(name) is thing:
        return f"{untrusted.REGISTERED}{name}"
    raise _unwritable(
        _title(thing),
        "a class or function that isn't registered with Keras",
        _FUNCTION,
    )


def _unwritable(name: str, got: str, fix: str) -> UnsupportedLayerError:
    return UnsupportedLayerError(
        f"module {name}", got=got, expected="a module that Keras can rebuild from a config", fix=fix
    )
