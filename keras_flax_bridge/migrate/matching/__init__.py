"""Matches the weights of a Keras model with those of an existing Flax module."""
