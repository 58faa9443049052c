"""Precision and every option of an optimizer."""

from collections.abc import Callable
from typing import Any

import keras
from keras import layers, optimizers

from tests.support.capabilities import where


def small(
    optimizer: Any, *, seed: int = 40, policy: Any = None, loss: Any = "mse", **compiled: Any
) -> keras.Model:
    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(4, "relu", dtype=policy),
            layers.GaussianNoise(0.1, dtype=policy),
            layers.BatchNormalization(dtype=policy),
            layers.Dense(1, dtype=policy, name="head"),
        ]
    )
    model.compile(optimizer, loss, **compiled)
    return model


def mixed_bfloat16() -> keras.Model:
    """The policy mixed_bfloat16 for every layer."""
    return small("adam", policy="mixed_bfloat16")


@keras.saving.register_keras_serializable("tests")
def steep(y: Any, y_pred: Any) -> Any:
    """A loss whose scaled gradients leave the range of float16."""
    return 3e4 * (y - y_pred) ** 2


def mixed_float16() -> keras.Model:
    """`compile` wraps the optimizer: the loss is scaled, steps with infinite gradients are skipped."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        return small(optimizers.Adam(0.01), loss=steep)
    finally:
        keras.config.set_dtype_policy(before)


def scaled() -> keras.Model:
    """Loss scaling by hand around a schedule, an average of the weights, accumulation, clipping."""
    schedule = optimizers.schedules.CosineDecay(1e-2, 50)
    inner = optimizers.AdamW(
        schedule, use_ema=True, ema_overwrite_frequency=7, gradient_accumulation_steps=3, clipnorm=1.0
    )
    return small(optimizers.LossScaleOptimizer(inner, dynamic_growth_steps=9), policy="mixed_bfloat16")


def with_exclusions() -> keras.Model:
    """Weight decay with exclusions."""
    optimizer = optimizers.AdamW(1e-2, weight_decay=0.1)
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return small(optimizer)


def with_excluded_variables() -> keras.Model:
    """Weight decay with variables excluded as objects, inside of loss scaling."""
    model = small("sgd")
    inner = optimizers.AdamW(1e-2, weight_decay=0.1)
    inner.exclude_from_weight_decay(var_list=[model.layers[0].bias, model.layers[-1].kernel])
    model.compile(optimizers.LossScaleOptimizer(inner), "mse")
    return model


def multi_optimizer() -> keras.Model:
    """MultiOptimizer: groups of weights with optimizers of their own."""
    rules = {".*head.*": optimizers.SGD(0.1, momentum=0.9)}
    return small(optimizers.MultiOptimizer(optimizers.OptimizerMap(optimizers.Adam(1e-2), rules)))


@keras.saving.register_keras_serializable("tests")
class ByPath(optimizers.Optimizer):
    """An optimizer of the user's own, which keeps its slots in a dict."""

    def __init__(self, learning_rate: float = 0.1, **kwargs: Any):
        super().__init__(learning_rate=learning_rate, **kwargs)

    def build(self, variables: list) -> None:
        if not self.built:
            super().build(variables)
            self.sums = {v.path: self.add_variable_from_reference(v, name="sum") for v in variables}

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        total = self.sums[variable.path]
        self.assign(total, 0.9 * total + gradient)
        self.assign_sub(variable, learning_rate * total)


@keras.saving.register_keras_serializable("tests")
class Nested(ByPath):
    """The same with slots in lists in a list, of both kinds: made like a weight, and not."""

    def build(self, variables: list) -> None:
        if not self.built:
            optimizers.Optimizer.build(self, variables)
            self.pairs = [
                [self.add_variable_from_reference(v, name="sum"), self.add_variable((), name="count")]
                for v in variables
            ]
            self.sums = {v.path: pair[0] for v, pair in zip(variables, self.pairs, strict=True)}


# name: what compile gets
OPTIMIZERS: dict[str, Callable[[], Any]] = {
    "accumulating": lambda: optimizers.SGD(0.1, momentum=0.9, gradient_accumulation_steps=4),
    "averaged": lambda: optimizers.Adam(1e-2, use_ema=True, ema_momentum=0.9, ema_overwrite_frequency=3),
    "clipped_by_value": lambda: optimizers.RMSprop(1e-2, clipvalue=0.01, centered=True, momentum=0.5),
    "clipped_globally": lambda: optimizers.Lamb(1e-2, global_clipnorm=0.1, weight_decay=0.01),
    "scheduled": lambda: optimizers.Nadam(optimizers.schedules.ExponentialDecay(0.1, 5, 0.9, staircase=True)),
    "amsgrad": lambda: optimizers.Adam(1e-2, amsgrad=True),
    "adafactor": lambda: optimizers.Adafactor(0.1),
    "muon": lambda: optimizers.Muon(1e-2),
    **where("ScheduleFreeAdamW", {"schedule_free": lambda: optimizers.ScheduleFreeAdamW(1e-2)}),
    "own_optimizer": lambda: ByPath(0.01),
    "nested_slots": lambda: Nested(0.01),
    "fixed_scale": lambda: optimizers.Ftrl(0.1, loss_scale_factor=16.0),
}
