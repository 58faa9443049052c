"""Which weight of a Keras model is which of a Flax module written by hand."""
