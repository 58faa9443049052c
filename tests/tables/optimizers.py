"""The contract table of optimizers: every row is an optimizer with options, and goes through every check."""

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import layers
from keras import optimizers as K

from keras_flax_bridge.startup import compat
from tests.support.capabilities import where

STEPS, CHUNK = 50, 10
TOLERANCE = 3e-6  # in float32, of the largest difference relative to the largest parameter; all rows keep it


class Small(keras.Model):
    """A kernel of a convolution, a matrix, vectors and a scalar."""

    def __init__(self, constrained: bool = False):
        super().__init__()
        self.conv = layers.Conv2D(4, 3, activation="relu")
        limit = keras.constraints.MaxNorm(0.8) if constrained else None
        self.dense = layers.Dense(3, kernel_constraint=limit)
        self.gain = self.add_weight(shape=(), initializer="ones", name="gain")

    def build(self, shape: Any) -> None:
        self.conv.build(shape)
        self.dense.build((None, 4))
        self.built = True

    def call(self, x: Any) -> Any:
        return self.gain * self.dense(keras.ops.mean(self.conv(x), (1, 2)))


@keras.saving.register_keras_serializable("tests")
class Sawtooth(K.schedules.LearningRateSchedule):
    """A schedule of the user's own."""

    def __call__(self, step: Any) -> Any:
        return 0.01 + 0.002 * keras.ops.cast(keras.ops.mod(step, 5), keras.config.floatx())

    def get_config(self) -> dict:
        return {}


SCHEDULES: dict[str, Any] = {
    "exponential": K.schedules.ExponentialDecay(0.03, 7, 0.8, staircase=True),
    "piecewise": K.schedules.PiecewiseConstantDecay([9, 31], [0.03, 0.01, 0.002]),
    "polynomial": K.schedules.PolynomialDecay(0.03, 15, 0.001, power=0.7, cycle=True),
    "inverse_time": K.schedules.InverseTimeDecay(0.03, 10, 0.5),
    "cosine": K.schedules.CosineDecay(0.001, 30, 0.1, warmup_target=0.03, warmup_steps=8),
    "cosine_restarts": K.schedules.CosineDecayRestarts(0.03, 9),
    "own": Sawtooth(),
    "function": lambda: 0.02,  # Keras calls it once, where it traces
}

# what each is called with, and its learning rate
OPTIMIZERS: dict[str, tuple[Callable[..., Any], float, dict]] = {
    "sgd": (K.SGD, 0.05, {}),
    "sgd_momentum": (K.SGD, 0.02, {"momentum": 0.9}),
    "sgd_nesterov": (K.SGD, 0.02, {"momentum": 0.9, "nesterov": True}),
    "rmsprop": (K.RMSprop, 0.01, {}),
    "rmsprop_centered": (K.RMSprop, 0.01, {"centered": True, "momentum": 0.5}),
    "adam": (K.Adam, 0.01, {}),
    "adam_epsilon": (K.Adam, 0.01, {"epsilon": 1e-2}),
    "amsgrad": (K.Adam, 0.01, {"amsgrad": True}),
    "adamw": (K.AdamW, 0.01, {"weight_decay": 0.1}),
    "adadelta": (K.Adadelta, 0.5, {}),
    "adagrad": (K.Adagrad, 0.05, {}),
    "adamax": (K.Adamax, 0.01, {}),
    "adamax_epsilon": (K.Adamax, 0.01, {"epsilon": 1e-2}),
    "adafactor": (K.Adafactor, 0.05, {}),
    "nadam": (K.Nadam, 0.01, {}),
    "ftrl": (
        K.Ftrl,
        0.05,
        {
            "l1_regularization_strength": 0.01,
            "l2_regularization_strength": 0.01,
            "l2_shrinkage_regularization_strength": 0.01,
            "beta": 0.1,
        },
    ),
    "lion": (K.Lion, 0.005, {}),
    "lamb": (K.Lamb, 0.01, {}),
    "muon": (K.Muon, 0.01, {"adam_lr_ratio": 0.5}),
}
for kind in compat.kinds("ScheduleFreeAdamW"):
    OPTIMIZERS |= {
        "schedule_free": (kind, 0.01, {}),
        "schedule_free_warmup": (kind, 0.01, {"warmup_steps": 9}),
    }

ALL = {
    "learning_rate": SCHEDULES["cosine"],
    "weight_decay": 0.1,
    "clipnorm": 1.0,
    "use_ema": True,
    "ema_momentum": 0.9,
    "ema_overwrite_frequency": 4,
    "gradient_accumulation_steps": 3,
    "loss_scale_factor": 16.0,
}
OPTIONS: dict[str, dict] = {
    "plain": {},
    "decayed": {"weight_decay": 0.1},
    "clipnorm": {"clipnorm": 0.7},
    "clipvalue": {"clipvalue": 0.4},
    "global_clipnorm": {"global_clipnorm": 2.0},
    "averaged": {"use_ema": True, "ema_momentum": 0.9},
    "overwritten": {"use_ema": True, "ema_momentum": 0.9, "ema_overwrite_frequency": 7},
    "accumulated": {"gradient_accumulation_steps": 4},
    "scaled": {"loss_scale_factor": 8.0},
    **{f"schedule_{name}": {"learning_rate": schedule} for name, schedule in SCHEDULES.items()},
    "all": ALL,
}
EACH = ("sgd_momentum", "adam")  # go through every option by itself
# in a LossScaleOptimizer
WRAPPED = (
    "sgd_momentum",
    "adam",
    "adafactor",
    "lamb",
    "muon",
    *where("ScheduleFreeAdamW", ["schedule_free"]),
)
READS_PARAMETERS = ("decayed", "averaged", "overwritten")


class Row(NamedTuple):
    """An optimizer with its options."""

    name: str
    make: Callable[[], Any]
    constrained: bool = False
    fast: bool = False
    overflow: bool = False  # a gradient that isn't finite, at step 13

    def build(self) -> tuple[Small, Any]:
        """A built model, and its optimizer, not compiled."""
        keras.utils.set_random_seed(3)
        model, optimizer = Small(self.constrained), self.make()
        model.build((None, 5, 5, 2))
        optimizer.build(model.trainable_variables)
        return model, optimizer


def make(name: str, options: dict) -> Callable[[], Any]:
    kind, rate, own = OPTIMIZERS[name]

    def optimizer() -> Any:
        made = kind(**{"learning_rate": rate, **own, **options})
        if "weight_decay" in options:
            made.exclude_from_weight_decay(var_names=["bias"])
        return made

    return optimizer


def dynamic(name: str) -> Callable[[], Any]:
    options = {"global_clipnorm": 2.0, "use_ema": True, "ema_momentum": 0.9}
    return lambda: K.LossScaleOptimizer(make(name, options)(), initial_scale=64.0, dynamic_growth_steps=6)


def several(averaged: dict, **options: Any) -> Callable[[], Any]:
    rules = {".*dense.*": ("adamw", {}), ".*conv.*kernel": ("sgd_momentum", averaged)}
    return lambda: K.MultiOptimizer(
        K.OptimizerMap(make("lion", {})(), {key: make(*rule)() for key, rule in rules.items()}), **options
    )


FAST = {"sgd_momentum/plain", "adam/plain", "adamw/all", "muon/plain", "lamb/dynamic", "multi"}


def _row(name: str, made: Callable[[], Any], **more: Any) -> Row:
    return Row(name, made, fast=name in FAST, **more)


ROWS = [
    *(
        _row(f"{name}/{option}", make(name, options), constrained=option == "all")
        for name in OPTIMIZERS
        for option, options in OPTIONS.items()
        if option in ("plain", "all") or name in EACH or (name == "lamb" and option in READS_PARAMETERS)
    ),
    *(_row(f"{name}/dynamic", dynamic(name), overflow=True) for name in WRAPPED),
    *where(
        "MultiOptimizer",
        [
            _row("multi", several({})),
            _row("multi/scaled", several({"use_ema": True}, loss_scale_factor=8.0)),
        ],
    ),
]


def noise(params: dict, overflow: bool) -> dict:
    """What is added to the gradients of a quadratic, for every step."""
    random = np.random.default_rng(5)
    made = keras.tree.map_structure(lambda p: random.normal(size=(STEPS, *p.shape)).astype(p.dtype), params)
    if overflow:
        made["gain"][13] = np.inf
    return made


# in float64; where Keras itself falls back to float32, in ops.norm and ops.mean, by what that costs
IN_FLOAT32 = {"muon": 1e-8, "adafactor": 1e-7}
DOUBLE = {f"{name}/plain": IN_FLOAT32.get(name, 1e-12) for name in OPTIMIZERS}
