"""The tests of the peers that fail with our wrappers, and why: the list may only get shorter."""

from __future__ import annotations

from fnmatch import fnmatchcase

_NAMES = "asks for attribute names of Flax's layer, such as mean and var, in a state"
_MESSAGE = "Flax's own message for modules that lack an attribute of the other raises an AttributeError"
_KEYS = "counts the keys that Flax's layer draws, one for each weight: a wrapper draws one for all weights"

REASONS = {
    "tests/nnx/rngs_test.py::TestRngs::test_jit_updates": _KEYS,
    "tests/nnx/rngs_test.py::TestRngs::test_lifting_rng_state": _KEYS,
    "tests/nnx/transforms_test.py::TestVmap::test_state_axes_from_state*": _NAMES,
    "tests/nnx/transforms_test.py::TestWhileLoop::test_structure_changed2": _MESSAGE,
}


def reason_of(test: str) -> str | None:
    """Why a test fails; None for one that passes."""
    return next((reason for pattern, reason in REASONS.items() if fnmatchcase(test, pattern)), None)
