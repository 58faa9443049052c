"""Every public name is documented, typed, says what it raises, and shows an example."""

import inspect
import re
from pathlib import Path

import pytest

import keras_flax_bridge as kfb
from docs.generate import coverage
from docs.generate import errors as error_table
from docs.generate import optimizers as optimizer_table
from keras_flax_bridge import errors
from tests.support.capabilities import newest

NAMES = [name for name in vars(kfb) if not name.startswith("_") and not inspect.ismodule(getattr(kfb, name))]
OBJECTS = {name: getattr(kfb, name) for name in NAMES}
CALLABLES = {
    name: thing
    for name, thing in OBJECTS.items()
    if not (inspect.isclass(thing) and issubclass(thing, Exception))
}


def methods(name, thing):
    """The public functions of a name: itself, or what its class defines."""
    if not inspect.isclass(thing):
        return {name: thing}
    own = {
        f"{name}.{key}": getattr(value, "__func__", getattr(value, "fget", value))
        for key, value in vars(thing).items()
        if not key.startswith("_")
        and (inspect.isroutine(value) or isinstance(value, (classmethod, property)))
    }
    return {key: value for key, value in own.items() if getattr(value, "__module__", "") == thing.__module__}


FUNCTIONS = {
    key: value
    for name, thing in CALLABLES.items()
    for key, value in methods(name, thing).items()
    if key not in ("TrainState.replace",) and not key.startswith("ToLinen.")
}


# read-outs that can't fail
PLAIN = {
    "CheckpointManager.saved",
    "CheckpointManager.latest_step",
    "CheckpointManager.best_step",
    "CheckpointManager.best_steps",
    "CheckpointManager.is_saving",
    "CheckpointManager.all_steps",
    "LinenLayer.get_build_config",
    "NNXLayer.build",
    "NNXLayer.build_from_config",
    "OptaxOptimizer.transformation",
    "ToNNX.variables_by_path",
    "TrainState.parts",
    "ShardingReport.per_device",
    "LeafRow.collection",
    "StateReport.totals",
    *(f"{name}.{key}" for name in OBJECTS if name.endswith("Report") for key in ("rows", "ok", "to_json")),
}


def test_the_contract_is_there():
    assert {
        "TrainState",
        "make_train_step",
        "CheckpointManager",
        "restore",
        "ToNNX",
        "ToLinen",
        "NNXLayer",
        "LinenLayer",
    } <= set(NAMES)
    kinds = {name for name, kind in vars(errors).items() if inspect.isclass(kind) and name.endswith("Error")}
    assert kinds <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_is_documented(name):
    assert inspect.getdoc(OBJECTS[name])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_is_documented_and_typed(name):
    function = FUNCTIONS[name]
    assert inspect.getdoc(function)
    signature = inspect.signature(function)
    assert signature.return_annotation is not inspect.Signature.empty
    untyped = [
        p.name
        for p in signature.parameters.values()
        if p.annotation is inspect.Parameter.empty and p.name not in ("self", "cls")
    ]
    assert untyped == []


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name not in PLAIN])
def test_says_what_it_raises(name):
    assert "Raises:" in inspect.getdoc(FUNCTIONS[name])


@pytest.mark.parametrize(
    "name", [n for n, t in CALLABLES.items() if n not in ("KerasSeed", "Frozen", "Overwritten")]
)
def test_shows_an_example(name):
    assert ">>>" in inspect.getdoc(CALLABLES[name])


@pytest.mark.parametrize(
    "kind", [k for k in OBJECTS.values() if inspect.isclass(k) and issubclass(k, Exception)]
)
def test_errors_share_one_base(kind):
    assert issubclass(kind, kfb.BridgeError)
    misuse = not issubclass(kind, kfb.CheckpointError) and kind is not kfb.BridgeError
    assert issubclass(kind, ValueError) == misuse


@newest
def test_the_page_on_coverage_is_that_of_the_contract_table():
    assert coverage.written(coverage.PAGE.read_text()) == coverage.PAGE.read_text(), (
        "python -m docs.generate.coverage"
    )


@newest
def test_the_page_on_optimizers_is_that_of_the_table_of_rules():
    page = optimizer_table.PAGE.read_text()
    assert optimizer_table.written(page) == page, "python -m docs.generate.optimizers"


def test_the_table_of_errors_is_that_of_their_classes():
    page = error_table.PAGE.read_text()
    assert error_table.written(page) == page, "python -m docs.generate.errors"


API = Path(__file__).parents[1] / "docs" / "api.md"
SHOWN = re.compile(r"^\.\. (?:currentmodule|auto\w+):: ([\w.]+)", re.MULTILINE)


def shown():
    """Full names on the page of the API, each read below its ``currentmodule``."""
    module = ""
    for name in SHOWN.findall(API.read_text()):
        if f"currentmodule:: {name}" in API.read_text():
            module = name
        else:
            yield name if name.startswith("keras_flax_bridge.") else f"{module}.{name}"


def public(module):
    """What a module exports and this package defines."""
    return {
        f"{module.__name__}.{name}"
        for name, thing in vars(module).items()
        if not name.startswith("_")
        and not inspect.ismodule(thing)
        and getattr(thing, "__module__", "").startswith("keras_flax_bridge")
    }


def test_every_public_name_is_on_the_page_of_the_api():
    callbacks = {"keras_flax_bridge.callbacks.TrainStateCheckpoint"}
    labels = {"keras_flax_bridge.optimizers.Label"}  # what conversions return
    assert sorted(shown()) == sorted(public(kfb) | public(kfb.migrate) | callbacks | labels)


def test_every_error_is_on_the_page_of_errors():
    headings = re.findall(r"^## (\w+)$", (API.parent / "errors.md").read_text(), re.MULTILINE)
    kinds = {name for name in vars(errors) if name.endswith("Error")}
    assert set(headings) == kinds - {"BridgeError"}
