"""The table of optimizers: for each Keras optimizer its rule in optax, and the fields of its slots.

One entry adds an optimizer, with its tests and its line in docs/optimizers.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import keras
import optax
from keras import optimizers as K

from keras_flax_bridge import keras_internals
from keras_flax_bridge.optimizers import muon, update_rules
from keras_flax_bridge.optimizers.update_rules import Schedule, Transformation
from keras_flax_bridge.optimizers.variable_lookup import Leaves
from keras_flax_bridge.startup import compat
from keras_flax_bridge.tree.paths import Flat

Convert = Callable[[Any, Any], Any]


def _as_is(value: Any, param: Any) -> Any:
    return value


class Slot(NamedTuple):
    """One of Keras's slots in an optax state: its name, and the conversion of each leaf.

    Both functions get the leaf and the parameter, or its shape and dtype.
    """

    name: str
    to_optax: Convert = _as_is
    to_keras: Convert = _as_is


class Stock(NamedTuple):
    """The closest optimizer of optax.

    Attributes:
        name: its name in optax.
        make: makes it, of the Keras optimizer and its learning rate or schedule.
        off: its largest deviation from Keras within 50 steps, in the rows of the contract table, relative
            to the largest parameter; float rounding if nothing differs.
        why: what differs, and with which options.
        differs: whether it differs from a Keras optimizer, with the options that this one has.
    """

    name: str
    make: Callable[[Any, Any], Transformation]
    off: float = 0.0
    why: str = ""
    differs: Callable[[Any], bool] = lambda optimizer: False


class Rule(NamedTuple):
    """A Keras optimizer in optax.

    Attributes:
        parts: the transformations to chain, learning rate included.
        slots: by class of optax state and field, the slot of Keras that it contains.
        stock: the nearest of optax's own optimizers, or None.
        betas: hyperparameters that must not round to 1 in the dtype of the parameters.
        rounded: what happens if they do.
        derived: computes slots that optax doesn't keep from those that it does and the parameters.
    """

    parts: Callable[[Any, Schedule, Leaves], tuple[Transformation, ...]]
    slots: Mapping[type, Mapping[str, Slot]]
    stock: Stock | None
    betas: tuple[str, ...] = ()
    rounded: str = ""
    derived: Callable[[Flat, Flat], Flat] | None = None


def _slots(**fields: str) -> dict[str, Slot]:
    return {field: Slot(name) for field, name in fields.items()}


_L = optax.scale_by_learning_rate  # of a schedule: it casts to the dtype of each leaf


def _float(count: Any) -> Any:
    return jnp.asarray(count, keras.config.floatx())


def _sgd(o: Any, lr: Schedule, leaves: Leaves) -> tuple[Transformation, ...]:
    return (_L(lr), update_rules.momentum(o.momentum, o.nesterov)) if o.momentum else (_L(lr),)


def _rmsprop(o: Any, lr: Schedule, leaves: Leaves) -> tuple[Transformation, ...]:
    scale = (optax.scale_by_stddev if o.centered else optax.scale_by_rms)(o.rho, o.epsilon)
    return (scale, _L(lr), optax.trace(o.momentum)) if o.momentum > 0 else (scale, _L(lr))


def _adafactor(o: Any, lr: Schedule, leaves: Leaves) -> tuple[Transformation, ...]:
    def step_size(count: Any) -> Any:
        return -jnp.minimum(lr(count), 1 / jnp.sqrt(_float(count + 1)))

    return (
        update_rules.scale_by_keras_factored_rms(o.beta_2_decay, o.epsilon_1),
        optax.clip_by_block_rms(o.clip_threshold),
        update_rules.scale_by_param_rms(o.epsilon_2),
        optax.scale_by_schedule(step_size),
    )


def _schedule_free(o: Any, lr: Schedule, leaves: Leaves) -> tuple[Transformation, ...]:
    def warmed_up(count: Any) -> Any:
        return lr(count) * jnp.minimum(_float(count + 1) / o.warmup_steps, 1) if o.warmup_steps else lr(count)

    scale = optax.scale_by_rms(o.beta_2, o.epsilon, eps_in_sqrt=False, bias_correction=True)
    # a power of 0 weighs every step alike, as Keras does, whatever the learning rate
    base = optax.chain(scale, _L(warmed_up))
    return (optax.contrib.schedule_free(base, 1.0, b1=o.beta_1, weight_lr_power=0.0),)


# optax exports no name; nothing is computed, which at import would start jax's backend
RmsWithCountState: Any = type(jax.eval_shape(optax.scale_by_rms(bias_correction=True).init, {}))


def _always(optimizer: Any) -> bool:
    return True


def _is_constant(optimizer: Any) -> bool:
    return isinstance(keras_internals.learning_rate(optimizer), keras.Variable)


def _negative(value: Any, param: Any) -> Any:
    return jax.tree.map(jnp.negative, value)


def _matrix_only(value: Any, param: Any) -> Any:
    """Optax's form of a factor: zeros of one entry if nothing is factored."""
    return value if len(param.shape) > 1 else jnp.zeros((1,), param.dtype)


def _factor(value: Any, param: Any) -> Any:
    """Keras's form of a factor: an integer if nothing is factored."""
    return value if len(param.shape) > 1 else jnp.zeros((), int)


def _vector_only(value: Any, param: Any) -> Any:
    return jnp.zeros((1,), param.dtype) if len(param.shape) > 1 else value


def _second_moments(slots: Flat, params: Flat) -> Flat:
    """What r and c stand for, which Keras keeps as well and never reads: of the parameters that r has."""
    factored = {path for path, param in params.items() if len(param.shape) > 1 and ("r", *path) in slots}
    return {
        ("v", *path): jnp.nan_to_num(
            update_rules.second_moment(slots["r", *path], slots["c", *path])
        )  # 0 / 0 at first
        for path in factored
    }


_ADAM = {"mu": Slot("momentums"), "nu": Slot("velocities")}
_STILL = "no step changes anything, in Keras too"


def _adam(stock: str) -> Rule:
    def make(o: Any, lr: Any) -> Transformation:
        if o.amsgrad:
            return optax.amsgrad(lr, o.beta_1, o.beta_2, o.epsilon)
        return optax.adamw(lr, o.beta_1, o.beta_2, o.epsilon, weight_decay=o.weight_decay or 0.0)

    return Rule(
        lambda o, lr, _: (update_rules.scale_by_keras_adam(o.beta_1, o.beta_2, o.epsilon, o.amsgrad), _L(lr)),
        {
            optax.ScaleByAdamState: _ADAM,
            optax.ScaleByAmsgradState: {**_ADAM, "nu_max": Slot("velocity_hats")},
        },
        Stock(
            stock,
            make,
            off=0.1,
            why="epsilon is added before the bias of v is corrected; so is amsgrad's maximum taken",
            differs=_always,
        ),
        ("beta_2",),
        _STILL,
    )


_SCHEDULE_FREE = Rule(
    _schedule_free,
    {
        optax.contrib.ScheduleFreeState: _slots(z="momentums"),
        RmsWithCountState: _slots(nu="velocities"),
    },
    Stock(
        "contrib.schedule_free_adamw",
        lambda o, lr: optax.contrib.schedule_free_adamw(
            lr, o.warmup_steps or None, o.beta_1, o.beta_2, o.epsilon
        ),
        off=0.02,
        why="with warm-up, a schedule or weight decay: in Keras every step weighs the same",
        differs=lambda o: bool(o.warmup_steps or o.weight_decay) or not _is_constant(o),
    ),
    ("beta_2",),
    "parameters become NaN, in Keras too",
)

RULES: dict[type, Rule] = {
    K.SGD: Rule(
        _sgd,
        {update_rules.MomentumState: _slots(trace="momentums")},
        Stock(
            "sgd",
            lambda o, lr: optax.sgd(lr, o.momentum or None, o.nesterov),
            off=0.4,
            why="with momentum and a schedule: Keras's momentum holds the learning rate",
            differs=lambda o: bool(o.momentum) and not _is_constant(o),
        ),
    ),
    K.RMSprop: Rule(
        _rmsprop,
        {
            optax.ScaleByRmsState: _slots(nu="velocities"),
            optax.ScaleByRStdDevState: _slots(nu="velocities", mu="average_gradients"),
            optax.TraceState: {"trace": Slot("momentums", _negative, _negative)},
        },
        Stock(
            "rmsprop",
            lambda o, lr: optax.rmsprop(
                lr, o.rho, o.epsilon, centered=o.centered, momentum=o.momentum or None
            ),
        ),
    ),
    K.Adam: _adam("adam"),
    K.AdamW: _adam("adamw"),
    K.Adadelta: Rule(
        lambda o, lr, _: (optax.scale_by_adadelta(o.rho, o.epsilon), _L(lr)),
        {optax.ScaleByAdaDeltaState: _slots(e_g="accumulated_grads", e_x="accumulated_delta_vars")},
        Stock("adadelta", lambda o, lr: optax.adadelta(lr, o.rho, o.epsilon)),
    ),
    K.Adagrad: Rule(
        lambda o, lr, _: (optax.scale_by_rss(o.initial_accumulator_value, o.epsilon), _L(lr)),
        {optax.ScaleByRssState: _slots(sum_of_squares="accumulators")},
        Stock("adagrad", lambda o, lr: optax.adagrad(lr, o.initial_accumulator_value, o.epsilon)),
    ),
    K.Adamax: Rule(
        lambda o, lr, _: (update_rules.scale_by_keras_adamax(o.beta_1, o.beta_2, o.epsilon), _L(lr)),
        {optax.ScaleByAdamState: _slots(mu="m", nu="u")},
        Stock(
            "adamax",
            lambda o, lr: optax.adamax(lr, o.beta_1, o.beta_2, o.epsilon),
            off=3e-4,
            why="epsilon is added after the maximum, not before",
            differs=_always,
        ),
    ),
    K.Adafactor: Rule(
        _adafactor,
        {
            update_rules.ScaleByKerasFactoredRmsState: {
                "v_row": Slot("r", _matrix_only, _factor),
                "v_col": Slot("c", _matrix_only, _factor),
                "v": Slot("v", _vector_only),
            }
        },
        Stock(
            "adafactor",
            lambda o, lr: optax.adafactor(
                lr, decay_rate=-o.beta_2_decay, clipping_threshold=o.clip_threshold, eps=o.epsilon_1
            ),
            off=0.06,
            why="the last two dimensions are factored, of any size; the rate is at most 1/sqrt(t)",
            differs=_always,
        ),
        derived=_second_moments,
    ),
    K.Nadam: Rule(
        lambda o, lr, _: (update_rules.scale_by_keras_nadam(o.beta_1, o.beta_2, o.epsilon), _L(lr)),
        {update_rules.ScaleByKerasNadamState: {**_ADAM, "u_product": Slot("u_product")}},
        Stock(
            "nadam",
            lambda o, lr: optax.nadam(lr, o.beta_1, o.beta_2, o.epsilon),
            off=0.05,
            why="the momentum follows a schedule",
            differs=_always,
        ),
        ("beta_2",),
        "parameters become NaN, in Keras too",
    ),
    K.Ftrl: Rule(
        lambda o, lr, _: (
            update_rules.ftrl(
                lr,
                o.learning_rate_power,
                o.initial_accumulator_value,
                o.l1_regularization_strength,
                o.l2_regularization_strength,
                o.l2_shrinkage_regularization_strength,
                o.beta,
            ),
        ),
        {update_rules.FtrlState: _slots(accumulator="accumulators", linear="linears")},
        None,
    ),
    K.Lion: Rule(
        lambda o, lr, _: (optax.scale_by_lion(o.beta_1, o.beta_2), _L(lr)),
        {optax.ScaleByLionState: _slots(mu="momentums")},
        Stock("lion", lambda o, lr: optax.lion(lr, o.beta_1, o.beta_2, weight_decay=o.weight_decay or 0.0)),
    ),
    K.Lamb: Rule(
        lambda o, lr, _: (
            optax.scale_by_adam(o.beta_1, o.beta_2, o.epsilon),
            optax.scale_by_trust_ratio(),
            _L(lr),
        ),
        {optax.ScaleByAdamState: _ADAM},
        Stock(
            "lamb",
            lambda o, lr: optax.lamb(lr, o.beta_1, o.beta_2, o.epsilon, weight_decay=o.weight_decay or 0.0),
            off=0.03,
            why="with weight decay: Keras decays before the rule, optax inside of it",
            differs=lambda o: bool(o.weight_decay),
        ),
        ("beta_2",),
        "no step of Keras changes anything; those of optax do",
    ),
    K.Muon: Rule(
        muon.parts,
        {
            update_rules.ScaleByKerasMuonState: _slots(mu=muon.MOMENTUM),
            optax.ScaleByAdamState: {"mu": Slot(muon.MOMENTUM), "nu": Slot("adam_velocities")},
        },
        Stock(
            "contrib.muon",
            lambda o, lr: optax.contrib.muon(
                lr,
                (o.muon_a, o.muon_b, o.muon_c),
                o.ns_steps,
                o.momentum,
                nesterov=o.nesterov,
                adam_b1=o.adam_beta_1,
                adam_b2=o.adam_beta_2,
            ),
            off=0.2,
            why="the momentum is a sum, its bias isn't corrected, and matrices are scaled otherwise",
            differs=_always,
        ),
        ("adam_beta_2",),
        _STILL,
    ),
    **dict.fromkeys(compat.kinds("ScheduleFreeAdamW"), _SCHEDULE_FREE),
}
