"""Names out of a file that become a function, a class, an attribute or a dtype: by a table, not a walk."""

from __future__ import annotations

import difflib
import importlib
import types
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import keras
from flax import linen as nn
from flax import nnx

from keras_flax_bridge.errors import StructureMismatchError, UnsupportedLayerError, UnsupportedOptimizerError
from keras_flax_bridge.tree.untrusted.tables import DTYPES, JAX_NN, OPTAX, SCHEDULE

MODULES: dict[str, tuple[types.ModuleType, type]] = {
    "flax.nnx": (nnx, nnx.Module),
    "flax.linen": (nn, nn.Module),
}


def optax_factory(name: str) -> Any:
    """The function of optax of a name in the table.

    Raises:
        UnsupportedOptimizerError: if the name may not be used, is that of a schedule, or of a function that
            the installed optax lacks.
    """
    kind = OPTAX.get(name)
    if kind is None or kind == SCHEDULE:
        close = difflib.get_close_matches(name, [n for n in OPTAX if OPTAX[n] != SCHEDULE], n=1)
        hint = f"Did you mean {close[0]!r}?" if close else "See optax's list of optimizers."
        raise UnsupportedOptimizerError(
            "transformation",
            got=f"the name {name!r}{'' if kind is None else ', of a schedule'}",
            expected="that of a transformation in optax, such as 'adamw' or 'contrib.muon'",
            fix=f"{hint} Pass the learning rate as learning_rate=, and any other function as itself.",
        )
    space, _, last = name.rpartition(".")
    module = importlib.import_module(f"optax.{space}" if space else "optax")  # the spaces of the table
    found = vars(module).get(last)
    if found is None:
        raise UnsupportedOptimizerError(
            "transformation",
            got=f"the name {name!r}, which optax {vars(module).get('__version__', '')} lacks".replace(
                "  ", " "
            ),
            expected="a function of the installed optax",
            fix="Install the version of optax that has it.",
        )
    return found


def flax_name(thing: Any) -> str | None:
    """The name by which `flax_thing` finds a class or function of Flax or jax; None if there is none."""
    name = getattr(thing, "__name__", "")
    return next((f"{space}.{name}" for space in (*MODULES, "jax.nn") if _public(space, name) is thing), None)


def flax_thing(name: Any) -> Any:
    """A module class of Flax, an activation of jax, or an object registered with Keras, by name.

    Raises:
        UnsupportedLayerError: if there is none, as where the module that registers it wasn't imported.
    """
    if not isinstance(name, str):
        name = repr(name)[:100]
    space, _, last = name.rpartition(".")
    if name.startswith(REGISTERED):
        found = registered(name.removeprefix(REGISTERED))
    else:
        found = _public(space, last)
    if found is None:
        raise UnsupportedLayerError(
            f"module {name.removeprefix(REGISTERED)}",
            got="a name that isn't registered with Keras in this process",
            expected="the class or function that was registered when the model was saved",
            fix="Import the file that registers it before the model is loaded.",
        )
    return found


REGISTERED = "registered:"


def flax_class(name: Any, kind: type) -> Any:
    """A class of modules by name.

    Raises:
        UnsupportedLayerError: if there is none, or the name belongs to another object.
    """
    found = flax_thing(name)
    return found if _is_class(found, kind) else _refuse(name, found, f"a subclass of {_path(kind)}")


def flax_maker(name: Any) -> Any:
    """A class of modules, or a function that was registered to make one, by name.

    Raises:
        UnsupportedLayerError: if there is none, or the name belongs to another object.
    """
    found = flax_thing(name)
    makes = callable(found) and not isinstance(found, type) and name.startswith(REGISTERED)
    if makes or any(_is_class(found, base) for _, base in MODULES.values()):
        return found
    return _refuse(name, found, "a class of Flax modules, or a registered function that makes one")


def _is_class(thing: Any, kind: type) -> bool:
    return isinstance(thing, type) and issubclass(thing, kind)


def _path(kind: type) -> str:
    return f"{kind.__module__.rpartition('.')[2]}.{kind.__name__}"


def _refuse(name: str, found: Any, expected: str) -> NoReturn:
    raise UnsupportedLayerError(
        f"module {name.removeprefix(REGISTERED)}",
        got=f"the name of a {'class' if isinstance(found, type) else 'function'} that makes no Flax module",
        expected=expected,
        fix="This package doesn't write that: don't load the file unless you trust who wrote it.",
    )


def _public(space: str, name: str) -> Any:
    """A module class of Flax or an activation of jax; None for every other name."""
    if space == "jax.nn":
        return vars(jax.nn).get(name) if name in JAX_NN else None
    if space not in MODULES or name.startswith("_"):
        return None
    module, base = MODULES[space]
    found = vars(module).get(name)
    return found if isinstance(found, type) and issubclass(found, base) else None


def registered(name: Any) -> Any:
    """The object that is registered with Keras under a name, or None."""
    return keras.saving.get_registered_object(name) if isinstance(name, str) else None


def method(kind: type, name: Any) -> Any:
    """The function of a class that a layer calls.

    Raises:
        StructureMismatchError: if it is not a public method that the class, or one of its bases, adds to
            those that every Flax module has.
    """
    found = None
    if isinstance(name, str) and (name == "__call__" or not name.startswith("_")):
        owner = next((base for base in kind.__mro__ if name in vars(base)), None)
        found = None if owner in _BASES or owner is None else vars(owner)[name]
    if not callable(found) or isinstance(found, (type, staticmethod)):
        raise StructureMismatchError(
            "method",
            got=f"{name!r}",
            expected=f"the name of a public method of {kind.__name__}",
            fix="Leave it out for __call__.",
        )
    return found


_BASES = frozenset({*nnx.Module.__mro__, *nn.Module.__mro__})


def dtype(name: Any) -> Any:
    """The dtype of a name.

    Raises:
        UnsupportedLayerError: if it isn't one that arrays have.
    """
    if not isinstance(name, str) or name not in DTYPES:
        raise UnsupportedLayerError(
            "dtype", got=f"{name!r}"[:100], expected="the name of a dtype of jax", fix="Such as 'float32'."
        )
    return jnp.dtype(name)
