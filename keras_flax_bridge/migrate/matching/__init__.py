"""Matches the weights of a Keras model with the weights of an existing Flax model."""
