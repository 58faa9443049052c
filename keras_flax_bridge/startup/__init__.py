"""Chooses JAX before Keras is imported, and looks at an installation: nothing here needs Keras."""
