"""The test suites of Flax and Keras, run with this package's wrappers in the place of their layers.

``python -m tests.peers`` runs them. Their sources are never part of this repository: Flax's tests come from
its source distribution, Keras's from the installed package.
"""
