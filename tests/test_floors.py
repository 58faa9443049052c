"""The house: thirteen rooms, each of which imports only from the rooms in its list."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PACKAGE = TESTS.parent / "keras_flax_bridge"
MOST_LINES = 400  # of a file

ROOMS = {
    # room: what it may import from
    "errors": [],
    "tree": ["errors"],
    "startup": ["errors", "tree"],
    "keras_internals": ["errors", "startup", "tree"],
    "interop": ["errors", "tree", "keras_internals"],
    "optimizers": ["errors", "startup", "tree", "keras_internals"],
    "state": ["errors", "tree", "keras_internals", "optimizers"],
    "sharding": ["errors", "tree", "keras_internals", "state"],
    "migrate": ["errors", "startup", "tree", "keras_internals", "interop", "state"],
    "checkpoint": ["errors", "startup", "tree", "keras_internals", "optimizers", "state", "migrate"],
    "training": ["errors", "tree", "keras_internals", "optimizers", "state", "sharding", "checkpoint"],
    "callbacks": ["tree", "keras_internals", "checkpoint", "training"],
    "cli": ["errors", "startup", "tree", "keras_internals", "state", "sharding", "migrate", "checkpoint"],
}
FILES = sorted(PACKAGE.rglob("*.py"))


def module(path):
    """The name of a file's module below the package, such as ``callbacks`` or ``state.report``."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module(path): path for path in FILES}


def imports(path):
    """The names of the modules that a file imports, in any place of it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports(path):
    """The modules of the package that a file imports: of a package its face, or the files that are named."""
    used = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            used |= {own(alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {own(f"{node.module}.{alias.name}") for alias in node.names}
            used |= {name if name in MODULES else own(node.module) for name in names}
    return used & MODULES.keys() - {module(path)}


def own(name):
    """The name of a module below the package; ``""`` for another package's."""
    return name.removeprefix("keras_flax_bridge.") if name.startswith("keras_flax_bridge.") else ""


def test_a_room_is_each_entry_of_the_package():
    python = {"__init__", "__main__"}  # and py.typed: what Python itself asks for
    entries = {path.stem for path in PACKAGE.iterdir() if path.name not in ("__pycache__", "py.typed")}
    assert entries == ROOMS.keys() | python


def test_rooms_lie_above_those_they_use():
    names = list(ROOMS)
    assert [
        (name, other) for i, name in enumerate(names) for other in ROOMS[name] if other not in names[:i]
    ] == []


@pytest.mark.parametrize("path", [p for p in FILES if p.parent != PACKAGE or p.stem in ROOMS], ids=module)
def test_imports_come_from_rooms_below(path):
    room = module(path).split(".")[0]
    used = {name.split(".")[0] for name in own_imports(path)}
    assert used <= {room, *ROOMS[room]}


@pytest.mark.slow
def test_no_files_import_each_other_in_a_circle():
    TopologicalSorter({name: own_imports(path) for name, path in MODULES.items()}).prepare()


@pytest.mark.slow
def test_no_room_is_allowed_what_it_does_not_use():
    used = {}
    for name, path in MODULES.items():
        used.setdefault(name.split(".")[0], set()).update(own.split(".")[0] for own in own_imports(path))
    assert {room: set(below) - used[room] for room, below in ROOMS.items() if set(below) - used[room]} == {}


@pytest.mark.parametrize("path", FILES, ids=module)
def test_only_one_file_imports_orbax(path):
    if module(path) != "checkpoint.orbax_io.api":
        assert not any(name.startswith("orbax") for name in imports(path))


@pytest.mark.parametrize("path", FILES, ids=module)
def test_only_one_room_knows_keras_inside(path):
    if module(path).startswith("keras_internals."):
        return
    source = ast.parse(path.read_text())
    assert not any(name.startswith("keras.src") for name in imports(path))
    private = {n.attr for n in ast.walk(source) if isinstance(n, ast.Attribute) and n.attr.startswith("_")}
    assert not private & KERAS_PRIVATE


KERAS_PRIVATE = {
    "_track_variable",
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
    "_flatten_layers",
    "_initial_epoch",
    "_learning_rate",
    "_use_weight_decay",
    "_should_use_adamw",
    "_optimizer_map",
    "_var_to_optimizer_idx",
    "_functional",
    "_inputs_struct",
    "_outputs_struct",
    "_inbound_nodes",
    "_outbound_nodes",
    "_keras_history",
    "_keras_mask",
    "_nodes_by_depth",
}


@pytest.mark.parametrize("path", FILES, ids=module)
def test_files_stay_small(path):
    assert len(path.read_text().splitlines()) <= MOST_LINES


def test_files_of_tests_stay_small():
    lines = {str(path.relative_to(TESTS)): len(path.read_text().splitlines()) for path in TESTS.rglob("*.py")}
    assert [
        name for name, count in lines.items() if count > MOST_LINES and not name.startswith("tables/")
    ] == []
