"""The house: a file imports only from lower floors, and two files on one floor don't know each other."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "keras_flax_bridge"

FLOORS = [
    {"errors"},
    {"_paths", "_backend"},
    {"_random", "_leaves"},
    {"_variables"},
    {"_transforms", "_apply", "_batches"},
    {"_intake", "_parts"},
    {"state"},
    {"steps", "nnx", "linen", "_restore", "_configs", "_orbax"},
    {"checkpoint"},
    {"__init__"},
]
HEIGHT = {name: height for height, floor in enumerate(FLOORS) for name in floor}
FILES = sorted(PACKAGE.rglob("*.py"))


def imports(path):
    """The names of the modules that a file imports, in any place of it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_file_has_a_floor():
    assert {path.stem for path in FILES} == HEIGHT.keys()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_imports_come_from_below(path):
    names = (name.split(".") for name in imports(path))
    used = {parts[1] for parts in names if parts[0] == "keras_flax_bridge" and len(parts) > 1}
    too_high = [name for name in used & HEIGHT.keys() if HEIGHT[name] >= HEIGHT[path.stem]]
    assert too_high == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_only_one_file_imports_orbax(path):
    assert path.stem == "_orbax" or not any(name.startswith("orbax") for name in imports(path))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_only_one_file_knows_keras_inside(path):
    if path.stem == "_variables":
        return
    source = ast.parse(path.read_text())
    assert not any(name.startswith("keras.src") for name in imports(path))
    private = {n.attr for n in ast.walk(source) if isinstance(n, ast.Attribute) and n.attr.startswith("_")}
    assert not private & KERAS_PRIVATE


KERAS_PRIVATE = {
    "_layers",
    "_trainable_variables",
    "_non_trainable_variables",
    "_seed_generators",
    "_compile_metrics",
    "_compile_loss",
    "_iterations",
    "_value",
    "_initializer",
    "_symbolic_build",
    "_call_has_training_arg",
}


def test_files_stay_small():
    sizes = {path.stem: len(path.read_text().splitlines()) for path in FILES}
    assert {name: size for name, size in sizes.items() if size > 400} == {"_variables": sizes["_variables"]}
