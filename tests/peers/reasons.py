"""The tests of the peers that fail with our wrappers, and why: the list may only get shorter."""

from __future__ import annotations

from fnmatch import fnmatchcase

_NAMES = "asks for attribute names of Flax's layer in a state, such as mean, var and rngs"
_MESSAGE = "Flax's own message for modules that lack an attribute of the other raises an AttributeError"
_KEYS = "counts the keys that Flax's layer draws, one for each weight: a wrapper draws one for all weights"
_SEEDS = "a wrapper draws the seeds of all its layers from one key of the constructor's stream"
_COPIES = (
    "graph_updates=False: Flax writes split keys into streams whose variables a copy shares; "
    "the error names nnx.with_rngs(module, split=...), which draws the same keys"
)
_INSIDE = (
    "lists the calls of modules; the stand-in holds the wrapper as a module, whose calls are listed as well"
)

REASONS = {
    "tests/linen/linen_module_test.py::ModuleTest::test_intercept_methods_compact": _INSIDE,
    "tests/linen/linen_module_test.py::ModuleTest::test_intercept_methods_setup": _INSIDE,
    "tests/linen/linen_module_test.py::ModuleTest::test_module_trace": _INSIDE,
    "tests/nnx/rngs_test.py::TestRngs::test_reseed?": _SEEDS,
    "tests/nnx/transforms_test.py::TestVmap::test_replicate_functional?": _COPIES,
    "tests/nnx/transforms_test.py::TestBoundMethodTransforms::test_tree_mode_pmap_replicate": _COPIES,
    "tests/nnx/transforms_test.py::TestBoundMethodTransforms::test_tree_mode_pmap_split_merge": _NAMES,
    "tests/nnx/rngs_test.py::TestRngs::test_jit_updates": _KEYS,
    "tests/nnx/rngs_test.py::TestRngs::test_lifting_rng_state": _KEYS,
    "tests/nnx/transforms_test.py::TestVmap::test_state_axes_from_state*": _NAMES,
    "tests/nnx/transforms_test.py::TestWhileLoop::test_structure_changed2": _MESSAGE,
}


def reason_of(test: str) -> str | None:
    """Why a test fails; None for one that passes."""
    return next((reason for pattern, reason in REASONS.items() if fnmatchcase(test, pattern)), None)
