"""The `TrainState`: from a Keras model and back, of one model or several."""

from keras_flax_bridge.state.report import LeafRow as LeafRow
from keras_flax_bridge.state.report import StateReport as StateReport
from keras_flax_bridge.state.report import report as report
from keras_flax_bridge.state.train_state import TrainState as TrainState
