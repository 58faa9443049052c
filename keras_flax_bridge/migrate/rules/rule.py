"""Rules: the native Flax counterpart of each Keras layer, as data. One entry adds a layer everywhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import keras

from keras_flax_bridge.errors import StructureMismatchError
from keras_flax_bridge.migrate.ir import Call
from keras_flax_bridge.migrate.python_text import dtype_name
from keras_flax_bridge.migrate.rules.site import Refusal, Site
from keras_flax_bridge.migrate.transforms import Transform
from keras_flax_bridge.tree import words

Shape = tuple[int, ...]
Transforms = Callable[[Site, Shape], tuple[Transform, ...]]


class To(NamedTuple):
    """The target of a variable that is transformed: one or several paths, and the transforms."""

    paths: str | tuple[str, ...]
    transforms: Transforms
    note: str = ""


class Rule(NamedTuple):
    """The native Flax counterpart of one Keras class.

    Attributes:
        layer: the class itself; a subclass needs a rule of its own.
        module: the constructor as the source writes it, such as ``nnx.Linear``; a function of the
            `Site` where it depends; None where an expression does.
        config: parameter of that constructor: the layer's attribute, or a function of the `Site`;
            anything else stands for itself.
        weights: key of the variable in its layer: its path in the module, or `To`; a function of the
            `Site` where that depends.
        code: the call, with ``{module}`` and ``{x}`` in it, or a function of the `Site`.
        activation: which attribute of the layer is the activation applied to the result.
        refuse: why a layer can't be converted, or None, as a function of the `Site`.
        cast_output: whether the layer computes in float32 and returns its compute dtype.
        note: what the table of rules says.
    """

    layer: type
    module: Any = None
    config: Mapping[str, Any] = MappingProxyType({})
    weights: Any = MappingProxyType({})
    code: Any = "{module}({x})"
    activation: str | None = None
    refuse: Callable[[Site], str | None] | None = None
    cast_output: bool = False
    note: str = ""

    def applied(self, site: Site) -> tuple[Call | None, Any]:
        """The constructor call, and the expressions of the outputs.

        Raises:
            Refusal: if native Flax has no counterpart of the layer's settings.
        """
        reason = self.refuse and self.refuse(site)
        if reason:
            raise Refusal(reason)
        module = self.module(site) if callable(self.module) else self.module
        call = module if isinstance(module, Call) or module is None else self._call(module, site)
        site.has_module = call is not None
        if callable(self.code):
            code = self.code(site)
        else:
            code = self.code.format(module="«m»", x=site.x if call else site.cast())
        if self.activation:
            code = site.activated(getattr(site.layer, self.activation), code)
        half = self.cast_output and site.compute_dtype in ("bfloat16", "float16")
        return call, f"({code}).astype({dtype_name(site.compute_dtype)})" if half else code

    def _call(self, module: str, site: Site) -> Call:
        found = {name: _resolved(value, site) for name, value in self.config.items()}
        return Call(module, {name: value for name, value in found.items() if value is not ABSENT})

    def targets(self, site: Site) -> Mapping[str, str | To]:
        """Where every variable goes."""
        found: Mapping[str, str | To] = self.weights(site) if callable(self.weights) else self.weights
        return found


def target(to: str | To, site: Site, shape: Shape) -> tuple[tuple[str, ...], tuple[Transform, ...]]:
    """The paths of a variable of that shape, and its transforms."""
    if isinstance(to, str):
        return (to,), ()
    return (to.paths,) if isinstance(to.paths, str) else to.paths, to.transforms(site, shape)


class _Absent:
    """A parameter that is not passed."""


ABSENT = _Absent()


def _resolved(value: Any, site: Site) -> Any:
    if isinstance(value, str):
        return getattr(site.layer, value)
    return value(site) if callable(value) else value


RULES: dict[type, Rule] = {}


def add(*rules: Rule) -> None:
    """Adds this package's rules to the table."""
    for rule in rules:
        RULES[rule.layer] = rule


def rule_for(layer: Any) -> Rule | None:
    """The rule of exactly this class: a subclass may compute something else."""
    return RULES.get(type(layer))


@words.door
def register_rule(
    layer: type,
    module: str | type | None = None,
    *,
    config: Mapping[str, Any] | None = None,
    weights: Mapping[str, Any] | None = None,
    call: str | Callable[[Site], str] = "{module}({x})",
    activation: str | None = None,
) -> None:
    """Registers the native Flax counterpart of a Keras layer class.

    The converter, the source writer and the weight maps read the same rule. It applies to exactly
    this class; a subclass needs a rule of its own.

    Args:
        layer: the Keras class.
        module: the constructor as source code, such as ``"nnx.Linear"``, or an `nnx.Module` class,
            whose definition is written into the source; None if `call` needs no module.
        config: parameter of the constructor: name of the layer's attribute, or a function of the
            site, which knows the ``layer`` and the input's ``shape()``; a value stands for itself.
        weights: structural key of a variable in the layer, such as ``kernel``: its path in the
            module, or ``(path, transforms)`` with invertible transforms.
        call: the expression, with ``{module}`` and ``{x}`` in it; or a function of the
            site.
        activation: the attribute with the activation that is applied to the result.

    Raises:
        StructureMismatchError: if `layer` is not a Keras layer class.

    Example:
        >>> import keras
        >>> class Doubled(keras.layers.Layer):
        ...     def call(self, x):
        ...         return 2 * x
        >>> register_rule(Doubled, call="2 * {x}")
        >>> rule_for(Doubled()).code
        '2 * {x}'
    """
    if not (isinstance(layer, type) and issubclass(layer, keras.layers.Layer)):
        raise StructureMismatchError(
            "layer",
            got=repr(layer),
            expected="a Keras layer class",
            fix="Pass the class itself: register_rule(MyLayer, ...).",
        )
    targets = {key: _target(to) for key, to in (weights or {}).items()}
    own: Any = module
    if isinstance(module, type):
        own = module.__name__
        OWN_MODULES[own] = module
    RULES[layer] = Rule(layer, own, config or {}, targets, call, activation)


OWN_MODULES: dict[str, type] = {}  # classes that users' rules name, by name


def _target(to: Any) -> str | To:
    if isinstance(to, (str, To)):
        return to
    path, transforms = to
    return To(path, transforms if callable(transforms) else lambda site, shape: tuple(transforms))


def table() -> str:
    """All rules as a Markdown table, in the order in which they were added."""
    rows = ["| Keras | native | weights | note |", "| --- | --- | --- | --- |"]
    for rule in RULES.values():
        found = {} if callable(rule.weights) else rule.weights
        moved = ", ".join(_moved(key, to) for key, to in found.items())
        weights = "as its parts" if callable(rule.weights) else moved
        module = rule.module if isinstance(rule.module, str) else _native(rule)
        rows.append(f"| `{rule.layer.__name__}` | {module} | {weights} | {rule.note} |")
    return "\n".join(rows)


def _native(rule: Rule) -> str:
    return "an expression" if rule.module is None else getattr(rule.module, "names", "depends")


def _moved(key: str, to: str | To) -> str:
    if isinstance(to, str):
        return f"`{key}`" if key == to else f"`{key}` -> `{to}`"
    paths = (to.paths,) if isinstance(to.paths, str) else to.paths
    return f"`{key}` -> {', '.join(f'`{path}`' for path in paths)} ({to.note})"
