"""What is deprecated: old names that work until a version, and what to use in their place.

A row stands here from the version in which its warning begins to the one in which the old name goes; then its
`old` becomes a guess in the table of wrong words, where it is answered with an error. `docs/stability.md` has
the rules, `tests/tree/test_deprecations.py` checks them.
"""

from __future__ import annotations

from keras_flax_bridge.tree.words.word import ARGUMENTS, ATTRIBUTES, MODULES, OPTIONS, Deprecated

DEPRECATED: dict[str, tuple[Deprecated, ...]] = {ARGUMENTS: (), ATTRIBUTES: (), MODULES: (), OPTIONS: ()}
