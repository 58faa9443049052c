"""Public signatures have types: `Any` stands only where nothing better can be said."""

import importlib
import inspect

import pytest

from tests.test_public import shown

# what really takes anything
ARGUMENTS = {
    "keras_flax_bridge.CheckpointManager.save data",  # any iterator that has a position
    "keras_flax_bridge.CheckpointManager.restore data",
    "keras_flax_bridge.restore data",
    "keras_flax_bridge.NNXLayer.__init__ module",  # a module, a class, or a function that makes one
    "keras_flax_bridge.LinenLayer.__init__ module",
    "keras_flax_bridge.OptaxOptimizer.__init__ transformation",  # a name, a function, or a transformation
    "keras_flax_bridge.OptaxOptimizer.__init__ learning_rate",
}
RETURNS = {
    "keras_flax_bridge.History.plot",  # matplotlib's, which need not be installed
    "keras_flax_bridge.OptaxOptimizer.transformation",
    "keras_flax_bridge.OptaxOptimizer.learning_rate",
}


def named(name):
    """The thing of a full name."""
    module, _, rest = name.rpartition(".")
    while True:
        try:
            found = importlib.import_module(module)
            break
        except ImportError:
            module, _, last = module.rpartition(".")
            rest = f"{last}.{rest}"
    for part in rest.split("."):
        found = getattr(found, part)
    return found


def functions():
    """Public functions and methods on the page of the API, by full name."""
    for name in dict.fromkeys(shown()):
        thing = named(name)
        if not inspect.isclass(thing):
            yield name, thing
        elif not issubclass(thing, Exception):
            for key, value in vars(thing).items():
                function = getattr(value, "__func__", getattr(value, "fget", value))
                if inspect.isfunction(function) and (key == "__init__" or not key.startswith("_")):
                    yield f"{name}.{key}", function


SIGNATURES = {
    name: inspect.signature(function)
    for name, function in functions()
    if function.__module__.startswith("keras_flax_bridge") or name.endswith("TrainState.__init__")
}
NAMED = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def test_arguments_have_types():
    untyped = {
        f"{name} {p.name}"
        for name, signature in SIGNATURES.items()
        for p in signature.parameters.values()
        if p.annotation in ("Any", "Any | None") and p.kind not in NAMED
    }
    assert untyped == ARGUMENTS
    assert len(ARGUMENTS) <= 12


def test_results_have_types():
    untyped = {name for name, signature in SIGNATURES.items() if signature.return_annotation == "Any"}
    assert untyped == RETURNS
    assert len(RETURNS) <= 3


@pytest.mark.parametrize("name", ["keras_flax_bridge.restore", "keras_flax_bridge.TrainState.from_keras"])
def test_public_functions_are_counted(name):
    assert name in SIGNATURES
