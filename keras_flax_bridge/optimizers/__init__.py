"""Optimizers across the bridge: Keras's as native optax with their state, optax's in Keras."""

from keras_flax_bridge.optimizers.adapter import as_optax as as_optax
from keras_flax_bridge.optimizers.conversion import opt_state_from_optax as opt_state_from_optax
from keras_flax_bridge.optimizers.conversion import opt_state_to_optax as opt_state_to_optax
from keras_flax_bridge.optimizers.moves import Moves as Moves
from keras_flax_bridge.optimizers.native import Label as Label
from keras_flax_bridge.optimizers.native import to_optax as to_optax
from keras_flax_bridge.optimizers.optax_optimizer import OptaxOptimizer as OptaxOptimizer
