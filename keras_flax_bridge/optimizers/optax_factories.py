"""The arguments of an `OptaxOptimizer`: the name of an optax factory, a function, or a transformation."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import keras

from keras_flax_bridge import keras_internals
from keras_flax_bridge.errors import UnsupportedOptimizerError
from keras_flax_bridge.optimizers.step_interface import is_optax
from keras_flax_bridge.tree import untrusted, words
from keras_flax_bridge.tree.paths import Path

OPTIONS = (
    "weight_decay",
    "clipnorm",
    "clipvalue",
    "global_clipnorm",
    "use_ema",
    "ema_momentum",
    "ema_overwrite_frequency",
    "loss_scale_factor",
    "gradient_accumulation_steps",
)


class Ready:
    """A transformation object in a config: valid within one process, not on disk."""

    def __init__(self, transformation: Any):
        self.transformation = transformation

    def get_config(self) -> dict[str, Any]:
        """Refuses.

        Raises:
            UnsupportedOptimizerError: because functions can't be written to a file.
        """
        raise UnsupportedOptimizerError(
            "transformation",
            got="a transformation object, which a config can't hold",
            expected="the name of a function of optax, or a registered function, with its arguments",
            fix="Pass OptaxOptimizer('adamw', learning_rate=...), or the function that makes it, registered "
            "with keras.saving.register_keras_serializable. Weights can be saved without it.",
        )


@keras.saving.register_keras_serializable("keras_flax_bridge")
class OptaxSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """An optax schedule as a Keras schedule."""

    def __init__(self, schedule: Any):
        self.schedule = schedule

    def __call__(self, step: Any) -> Any:
        """The learning rate at a step."""
        return self.schedule(keras.ops.convert_to_tensor(step))

    def get_config(self) -> dict[str, Any]:
        """The config, with the function, which Keras can serialize if it is registered."""
        return {"schedule": self.schedule}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> OptaxSchedule:
        """Rebuilds the schedule.

        Raises:
            UnsupportedOptimizerError: if the config names anything but a registered function or schedule.
        """
        return cls(made(config.get("schedule"), "schedule"))


def plain(value: Any) -> Any:
    """Deserializes a value of a config: JSON types unchanged, other values as Keras wrote them.

    Raises:
        CheckpointError: if it names something that is not allowed, or contains code.
    """
    if type(value) in (list, tuple):
        return type(value)(plain(item) for item in value)
    if type(value) is not dict:
        return value
    if "class_name" in value:
        return keras_internals.deserialized(value, "optimizer")
    return {name: plain(item) for name, item in value.items()}


def made(value: Any, where: str) -> Any:
    """A factory of a transformation or schedule, or the object itself; from a file it must be registered.

    Raises:
        CheckpointError: as `plain`.
        UnsupportedOptimizerError: if the config names anything else.
    """
    found = plain(value)
    if not isinstance(value, Mapping):  # a name for `factory_of`; or of this process, and no file's
        if callable(found) or is_optax(found) or isinstance(found, Ready) or where == "transformation":
            return found
    elif (
        is_optax(found)
        or isinstance(found, keras.optimizers.schedules.LearningRateSchedule)
        or _is_registered(found, value)
    ):
        return found
    raise UnsupportedOptimizerError(
        where,
        got=f"a config of a {type(found).__name__} that was not registered to make one",
        expected=f"a {where}, or a function that was registered to make one",
        fix="Register the function with keras.saving.register_keras_serializable before the file is read.",
    )


def _is_registered(found: Any, written: Mapping[str, Any]) -> bool:
    """Whether a function, or the class of an object, was registered by another than this package."""
    names = (written.get("config"), written.get("registered_name"))
    known = [untrusted.registered(name) for name in names if not str(name).startswith("keras_flax_bridge>")]
    return callable(found) and any(thing is found or thing is type(found) for thing in known)


def factory_of(transformation: Any) -> Any:
    """The function that returns the transformation; None for a transformation object.

    Raises:
        UnsupportedOptimizerError: if optax has no such name, or it is not such a function.
    """
    if isinstance(transformation, str):
        return untrusted.optax_factory(transformation)
    if is_optax(transformation):
        return None
    if not callable(transformation):
        raise UnsupportedOptimizerError(
            "transformation",
            got=f"a {type(transformation).__name__}",
            expected="a name such as 'adamw', a function that returns a transformation, or a transformation",
            fix="Pass one of them.",
        )
    return transformation


def split(factory: Any, given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Splits arguments into arguments of the factory and options of Keras; the factory takes precedence.

    Raises:
        UnsupportedOptimizerError: listing arguments that neither accepts.
    """
    own = () if factory is None else inspect.signature(factory).parameters
    arguments = {name: value for name, value in given.items() if name in own}
    options = {name: value for name, value in given.items() if name not in own}
    unknown = sorted(options.keys() - set(OPTIONS))
    if unknown:
        names = [*own, *OPTIONS]
        expected, fix = words.answer_arguments("kfb.OptaxOptimizer", unknown, names, _about)
        raise UnsupportedOptimizerError(
            f"argument {', '.join(unknown)}",
            got="a name that neither the transformation nor Keras's optimizers accept",
            expected=expected,
            fix=f"{fix} A transformation object takes no arguments.",
        )
    return arguments, options


def _about(name: str) -> str:
    return f"{name}= is {'an option of Keras' if name in OPTIONS else 'an argument of the transformation'}."


def takes_rate(factory: Any) -> bool:
    """Whether the factory has a learning rate."""
    return factory is not None and "learning_rate" in inspect.signature(factory).parameters


def mask_argument(transformation: Any, given: Mapping[str, Any], of_keras: bool) -> str | None:
    """The argument of a factory that selects what it decays; None if the decay is Keras's, or there is none.

    Args:
        transformation: the name, function or transformation of an optimizer.
        given: the arguments that the function is called with.
        of_keras: whether Keras decays the weights.

    Raises:
        UnsupportedOptimizerError: if the transformation may decay weights, and takes no mask.
    """
    factory = factory_of(transformation)
    own = {} if factory is None else dict(inspect.signature(factory).parameters)
    masks = [name for name in ("weight_decay_mask", "mask") if name in own]
    decays = [name for name in own if name in ("weight_decay", "weight_decay_rate")]
    others = [name for name in own if name.endswith("_weight_decay")]  # of a part, which no mask reaches
    set_others = [name for name in others if given.get(name, own[name].default)]
    if masks and decays and not set_others:
        return masks[0]
    is_known = factory is not None and (
        bool(decays) or str(getattr(factory, "__module__", "")).startswith("optax.")
    )
    active = [name for name in (*decays, *others) if given.get(name, own[name].default)]
    if of_keras or (is_known and not active):
        return None
    what = (
        "a transformation object" if factory is None else f"{(*set_others, *active, 'a decay')[0]} of its own"
    )
    raise UnsupportedOptimizerError(
        "exclude_from_weight_decay",
        got=f"{what}, which takes no mask",
        expected="a transformation whose function has weight_decay= and mask=, such as 'adamw'",
        fix="Give it a mask when you make it, as in optax.add_decayed_weights(rate, mask=...), or leave the "
        "decay to Keras: OptaxOptimizer('adam', learning_rate=..., weight_decay=...).",
    )


def is_selected(mask: Any, path: Path) -> bool:
    """Whether a mask as optax takes it, a nested dict or a part of one, selects a parameter."""
    for name in path:
        if not isinstance(mask, Mapping):
            break
        mask = mask[name]
    return bool(mask)


def rate_of(given: Any) -> Any:
    """A learning rate that Keras accepts: a float, a Keras schedule, or a function without arguments."""
    if isinstance(given, int):
        return float(given)
    is_schedule = isinstance(given, keras.optimizers.schedules.LearningRateSchedule)
    if callable(given) and not is_schedule and inspect.signature(given).parameters:
        return OptaxSchedule(given)
    return given
