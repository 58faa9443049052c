"""Public signatures have types: `Any` stands only where nothing better can be said."""

import ast
import importlib
import inspect
import re

import pytest

from keras_flax_bridge.tree import types
from tests.test_public import API, shown

# what really takes anything
ARGUMENTS = {
    "keras_flax_bridge.CheckpointManager.save data",  # any iterator that has a position
    "keras_flax_bridge.CheckpointManager.restore data",
    "keras_flax_bridge.restore data",
    "keras_flax_bridge.NNXLayer.__init__ module",  # a module, a class, or a function that makes one
    "keras_flax_bridge.LinenLayer.__init__ module",
    "keras_flax_bridge.NNXLayer.save_own_variables store",  # Keras's, which is not a mapping
    "keras_flax_bridge.NNXLayer.load_own_variables store",
    "keras_flax_bridge.LinenLayer.save_own_variables store",
    "keras_flax_bridge.LinenLayer.load_own_variables store",
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
            for key in dir(thing):  # with what it inherits
                value = inspect.getattr_static(thing, key)
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


def test_the_page_of_the_api_explains_each_name():
    table = API.read_text().split("## Types in signatures")[1]
    cells = [row.split("|")[1] for row in table.splitlines() if row.startswith("| `")]
    body = ast.parse(inspect.getsource(types)).body
    classes = {node.name for node in body if isinstance(node, ast.ClassDef)}
    aliases = {node.target.id for node in body if isinstance(node, ast.AnnAssign)}
    variables = {node.targets[0].id for node in body if isinstance(node, ast.Assign)}
    assert set(re.findall(r"`(\w+)", " ".join(cells))) == classes | aliases | variables


@pytest.mark.parametrize("name", ["restore", "TrainState.from_keras", "TrainState.to_optax"])
def test_public_functions_are_counted(name):
    assert f"keras_flax_bridge.{name}" in SIGNATURES
