"""Selects JAX before Keras is imported, and examines an installation; nothing here needs Keras."""
