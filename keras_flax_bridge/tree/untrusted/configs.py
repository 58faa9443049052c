"""Keras configs from a file: the names in them are checked before Keras reads them.

Keras's safe mode refuses lambdas. What else a config can reach depends on the version: any public function of
Keras that is not on a list of Keras's, layers that load other files, and packages that Keras imports.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any

import keras

from keras_flax_bridge.errors import CheckpointError
from keras_flax_bridge.tree.untrusted.names import registered
from keras_flax_bridge.tree.untrusted.tables import (
    KERAS_CLASSES,
    KERAS_FILES,
    KERAS_FUNCTIONS,
    KERAS_PACKAGES,
    KERAS_REFUSED,
    KERAS_VALUES,
)

DEPTH = 200  # levels; each takes several calls of Keras


def require_safe(config: Any, where: Any) -> None:
    """Checks every class and function that a config names, at any depth.

    Registered ones may be named, what Keras has to make models of, and nothing that would be imported.

    Args:
        config: JSON types.
        where: the owner of the config, for messages.

    Raises:
        CheckpointError: if it names anything else, holds code, or is too deep.
    """
    for named in _named(config, where):
        why = _refused(named)
        if why is not None:
            raise CheckpointError(
                str(where),
                got=f"a config that Keras can't build a {_title(config)} from (it names {why})",
                expected="the config of a model whose classes are registered, without code",
                fix="Register your classes with keras.saving.register_keras_serializable, or build the model "
                "yourself and call restore(path, model).",
            )


def _title(config: Any) -> str:
    return str(config.get("class_name", "model"))[:100] if isinstance(config, Mapping) else "model"


def _named(config: Any, where: Any) -> Iterator[Mapping[str, Any]]:
    """Every dict that Keras would make an object of; without recursion, since a file may be deep."""
    stack = [(config, 0)]
    while stack:
        node, depth = stack.pop()
        if depth > DEPTH:
            raise CheckpointError(
                str(where),
                got=f"a config of more than {DEPTH} levels",
                expected="that of a model",
                fix="The file is damaged or malicious: use another one.",
            )
        if isinstance(node, Mapping):
            if "class_name" in node:
                yield node
            stack += [(item, depth + 1) for item in node.values()]
        elif isinstance(node, (list, tuple)):
            stack += [(item, depth + 1) for item in node]


def _refused(named: Mapping[str, Any]) -> str | None:
    """The reason why a config may not name a class or function; None if it may."""
    kind, module = named["class_name"], named.get("module")
    if not isinstance(kind, str) or not isinstance(module, str | None):
        return "a class by something else than text"
    if kind in KERAS_VALUES:
        return None
    if kind.startswith("__"):
        return f"{kind!r}: code, such as a Lambda layer holds, or a value of another library"
    is_function = kind == "function"
    name = named.get("config") if is_function else kind
    # as Keras looks it up
    found = registered(name if is_function else named.get("registered_name", kind))
    package = (module or "keras") if found is None else getattr(found, "__module__", "")
    file = _file_of(named.get("config")) if package.partition(".")[0] in KERAS_PACKAGES else None
    if file is not None:
        return f"a file that {kind!r} would read as {file!r}"
    if found is not None:
        return None
    if not isinstance(name, str):
        return "a function by something else than text"
    if module is None or module == "builtins":
        # Keras looks among its own layers, or functions, by name
        return None if name not in KERAS_REFUSED else f"{name!r}"
    if _is_known(module, name, is_function):
        return None
    return f"{'the function' if is_function else 'the class'} {name!r} of {module!r}, which isn't registered"


def _file_of(config: Any) -> str | None:
    """The argument by which a layer of Keras or KerasHub would read a file when it is made; None for none."""
    arguments = config if isinstance(config, Mapping) else {}
    return next((name for name in KERAS_FILES if isinstance(arguments.get(name), str)), None)


def _is_known(module: str, name: str, is_function: bool) -> bool:
    """Whether a name is a class or function of Keras that models may use; imports nothing."""
    package = module.partition(".")[0]
    if package not in KERAS_PACKAGES or name.startswith("_") or name in KERAS_REFUSED:
        return False
    if is_function:
        return module in KERAS_FUNCTIONS and callable(_found(module, name))
    found = _found(module, name)
    if not isinstance(found, type):
        return False
    inside = module in KERAS_CLASSES or module.startswith("keras.src.") or package != "keras"
    return inside or issubclass(found, keras.layers.Layer)  # such as keras.utils.FeatureSpace


def _found(module: str, name: str) -> Any:
    return vars(sys.modules[module]).get(name) if module in sys.modules else None
