"""Keras layers in Flax, and Flax modules in Keras."""
