"""The list of places in docs/security.md is that of the code, and nothing is unpickled."""

import ast
import re
import types
from pathlib import Path

import pytest

import keras_flax_bridge as kfb
from keras_flax_bridge.tree import untrusted
from keras_flax_bridge.tree.untrusted import tables

PACKAGE = Path(kfb.__file__).parent


CALLS = {"getattr", "setattr", "delattr", "eval", "exec", "compile", "__import__"}
CALLS |= {"import_module", "attrgetter", "methodcaller", "exec_module", "spec_from_file_location"}
CALLS |= {"get_registered_object", "deserialize_keras_object", "load_model", "from_config", "deserialize"}
CALLS |= {"load_weights", "model_from_json", "format_map", "from_string", "Template"}
TREES = {path: ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}
DOCS = Path(__file__).parents[2] / "docs" / "security.md"


def places():
    """Every call in the package that turns text that isn't written there into something, by file."""
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            function = node.func
            name = getattr(function, "id", getattr(function, "attr", ""))
            is_other = name == "compile" and isinstance(function, ast.Attribute)  # of a pattern, of a model
            position = 1 if name in ("getattr", "setattr", "delattr") else 0
            given = node.args[position] if len(node.args) > position else None
            if name in CALLS and not is_other and not isinstance(given, ast.Constant) and node.args:
                yield f"{path.relative_to(PACKAGE)}: {name}"


def test_the_list_of_places_is_whole():
    """Each file and call stands in the table of docs/security.md, with a reason; and nothing else does."""
    rows = re.findall(r"^\| `([\w/.]+)` \| `(\w+)` \| (.+) \|$", DOCS.read_text(), re.MULTILINE)
    assert all(len(reason) > 10 for *_, reason in rows)
    assert {f"{file}: {call}" for file, call, _ in rows} == set(places())


UNPICKLING = {"Unpickler", "allow_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "torch"}


@pytest.mark.slow
def test_nothing_is_unpickled():
    for path, tree in TREES.items():
        names = {getattr(node, "id", None) or getattr(node, "attr", None) for node in ast.walk(tree)}
        names |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.keyword)}
        assert not names & UNPICKLING, path
        loads = {
            ast.unparse(node)
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and node.attr in ("load", "loads")
        }
        assert not {
            name for name in loads if name.split(".")[0] in ("pickle", "np", "jnp", "numpy", "yaml")
        }, path


def test_pickle_is_named_in_one_file_for_its_error_alone():
    uses = {
        ast.unparse(node)
        for tree in TREES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "pickle"
    }
    assert uses == {"pickle.PicklingError"}


def test_names_of_modules_are_looked_up_in_tables():
    assert isinstance(untrusted.flax_thing("flax.nnx.Linear"), type)
    assert isinstance(tables.OPTAX, dict)
    assert not isinstance(untrusted.optax_factory("adam"), types.ModuleType)
