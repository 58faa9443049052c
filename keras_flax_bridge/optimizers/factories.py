"""What an `OptaxOptimizer` is made of: a factory of optax by name, a function, or a transformation."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from operator import attrgetter
from typing import Any

import keras
import optax

from keras_flax_bridge._transforms import is_optax
from keras_flax_bridge.errors import UnsupportedOptimizerError

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
    """A transformation that was made already, in a config: it goes through one process, not to disk."""

    def __init__(self, transformation: Any):
        self.transformation = transformation

    def get_config(self) -> dict[str, Any]:
        """Refuses.

        Raises:
            UnsupportedOptimizerError: because functions can't be written to a file.
        """
        raise UnsupportedOptimizerError(
            "transformation",
            got="a transformation that was made already, to be saved in a config",
            expected="the name of a function of optax, or a registered function, with its arguments",
            fix="Pass OptaxOptimizer('adamw', learning_rate=...), or the function that makes it, registered "
            "with keras.saving.register_keras_serializable. Weights alone can be saved as it is.",
        )


@keras.saving.register_keras_serializable("keras_flax_bridge")
class OptaxSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """An optax schedule as one of Keras's."""

    def __init__(self, schedule: Any):
        self.schedule = schedule

    def __call__(self, step: Any) -> Any:
        """The learning rate at a step."""
        return self.schedule(keras.ops.convert_to_tensor(step))

    def get_config(self) -> dict[str, Any]:
        """The function, which Keras can write if it is registered."""
        return {"schedule": self.schedule}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> OptaxSchedule:
        """The schedule again."""
        return cls(plain(config["schedule"]))


def plain(value: Any) -> Any:
    """A value out of a config, as Keras wrote it or as it was."""
    is_written = isinstance(value, Mapping) and "class_name" in value
    return keras.saving.deserialize_keras_object(value) if is_written else value


def factory_of(transformation: Any) -> Any:
    """The function that makes the transformation; None for one that is made already.

    Raises:
        UnsupportedOptimizerError: if optax has nothing of that name, or it is nothing of the kind.
    """
    if isinstance(transformation, str):
        return _named(transformation)
    if is_optax(transformation):
        return None
    if not callable(transformation):
        raise UnsupportedOptimizerError(
            "transformation",
            got=f"a {type(transformation).__name__}",
            expected="a name such as 'adamw', a function that makes a transformation, or a transformation",
            fix="Pass one of these.",
        )
    return transformation


def _named(name: str) -> Any:
    try:
        return attrgetter(name)(optax)
    except AttributeError:
        close = difflib.get_close_matches(name, dir(optax), n=1)
        raise UnsupportedOptimizerError(
            "transformation",
            got=f"the name {name!r}",
            expected="that of a function in optax, such as 'adamw' or 'contrib.muon'",
            fix=f"Did you mean {close[0]!r}?" if close else "See optax's list of optimizers.",
        ) from None


def split(factory: Any, given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arguments of the factory, and Keras's options; a name that both have is the factory's.

    Raises:
        UnsupportedOptimizerError: listing those that are of neither.
    """
    own = () if factory is None else inspect.signature(factory).parameters
    arguments = {name: plain(value) for name, value in given.items() if name in own}
    options = {name: value for name, value in given.items() if name not in own}
    unknown = options.keys() - set(OPTIONS)
    if unknown:
        raise UnsupportedOptimizerError(
            f"argument {', '.join(sorted(unknown))}",
            got="a name that neither the transformation nor Keras's optimizers have",
            expected=f"one of {', '.join([*own, *OPTIONS])}",
            fix="Correct the name; a transformation that was made already takes no arguments of its own.",
        )
    return arguments, options


def takes_rate(factory: Any) -> bool:
    """Whether the factory has a learning rate."""
    return factory is not None and "learning_rate" in inspect.signature(factory).parameters


def rate_of(given: Any) -> Any:
    """A learning rate as Keras takes it: a float, its own schedule, or a function without arguments."""
    if isinstance(given, int):
        return float(given)
    is_schedule = isinstance(given, keras.optimizers.schedules.LearningRateSchedule)
    if callable(given) and not is_schedule and inspect.signature(given).parameters:
        return OptaxSchedule(given)
    return given
