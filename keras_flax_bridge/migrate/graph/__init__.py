"""Builds the graph of a Keras model for the conversion."""
