"""Rules: the native Flax counterpart of each Keras layer, as data.

The converter, the source writer and the weight map read the same rule: one entry adds a layer to all.
"""

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
    """The target of a variable that is transformed: its path or paths, and the transforms."""

    paths: str | tuple[str, ...]
    transforms: Transforms
    note: str = ""


class Rule(NamedTuple):
    """The native Flax counterpart of one Keras class.

    Attributes:
        layer: the Keras class; subclasses need separate rules.
        module: the constructor in the source, such as ``nnx.Linear``, or a function of the `Site` that
            returns it; None if the layer is an expression without a module.
        config: by parameter of the constructor, an attribute of the layer, a function of the `Site`, or a
            constant.
        weights: by key of the variable in its layer, its path in the module or a `To`; or a function of
            the `Site` that returns this mapping.
        code: the call, with the placeholders ``{module}`` and ``{x}``, or a function of the `Site`.
        activation: the attribute of the layer with the activation that is applied to the result.
        refuse: a function of the `Site` that returns why the layer can't be converted, or None.
        cast_output: whether the layer computes in float32 and casts the result to its compute dtype.
        note: the text in the table of rules.
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
            Refusal: if Flax has no counterpart for the settings of the layer.
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
        """The target of each variable of the layer."""
        found: Mapping[str, str | To] = self.weights(site) if callable(self.weights) else self.weights
        return found


def target(to: str | To, site: Site, shape: Shape) -> tuple[tuple[str, ...], tuple[Transform, ...]]:
    """The paths of a variable of this shape, and its transforms."""
    if isinstance(to, str):
        return (to,), ()
    return (to.paths,) if isinstance(to.paths, str) else to.paths, to.transforms(site, shape)


class _Absent:
    """Marks a parameter that is not passed to the constructor."""


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
    """The rule for the class of a layer; not for its base classes, which may compute something else."""
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

    The converter, the source writer and the weight maps read the same rule. It applies to this
    class only; subclasses need separate rules.

    Args:
        layer: the Keras class.
        module: the constructor as source code, such as ``"nnx.Linear"``, or an `nnx.Module` class,
            whose definition is written into the source; None if `call` needs no module.
        config: by parameter of the constructor, the name of an attribute of the layer, a function of the
            site, which has the ``layer`` and the ``shape()`` of the input, or a constant.
        weights: by structural key of a variable in the layer, such as ``kernel``, its path in the
            module, or ``(path, transforms)`` with invertible transforms.
        call: the expression, with the placeholders ``{module}`` and ``{x}``, or a function of the
            site.
        activation: the attribute of the layer with the activation that is applied to the result.

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


OWN_MODULES: dict[str, type] = {}  # by name, the module classes of user rules


def _target(to: Any) -> str | To:
    if isinstance(to, (str, To)):
        return to
    path, transforms = to
    return To(path, transforms if callable(transforms) else lambda site, shape: tuple(transforms))


def table() -> str:
    """All rules as a Markdown table, in registration order."""
    rows = ["| Keras | native | weights | note |", "| --- | --- | --- | --- |"]
    for rule in RULES.values():
        found = {} if callable(rule.weights) else rule.weights
        moved = ", ".join(_weight_text(key, to) for key, to in found.items())
        weights = "as its parts" if callable(rule.weights) else moved
        module = rule.module if isinstance(rule.module, str) else _native(rule)
        rows.append(f"| `{rule.layer.__name__}` | {module} | {weights} | {rule.note} |")
    return "\n".join(rows)


def _native(rule: Rule) -> str:
    return "an expression" if rule.module is None else getattr(rule.module, "names", "depends")


def _weight_text(key: str, to: str | To) -> str:
    if isinstance(to, str):
        return f"`{key}`" if key == to else f"`{key}` -> `{to}`"
    paths = (to.paths,) if isinstance(to.paths, str) else to.paths
    return f"`{key}` -> {', '.join(f'`{path}`' for path in paths)} ({to.note})"
