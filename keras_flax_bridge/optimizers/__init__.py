"""Optimizers: Keras's as native optax with their state, optax's in Keras."""

from keras_flax_bridge.optimizers.as_optax import as_optax as as_optax
from keras_flax_bridge.optimizers.opt_state import opt_state_from_optax as opt_state_from_optax
from keras_flax_bridge.optimizers.opt_state import opt_state_to_optax as opt_state_to_optax
from keras_flax_bridge.optimizers.optax_optimizer import OptaxOptimizer as OptaxOptimizer
from keras_flax_bridge.optimizers.to_optax import Label as Label
from keras_flax_bridge.optimizers.to_optax import to_optax as to_optax
