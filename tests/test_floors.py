"""The house: a file imports only from lower floors, and two files on one floor don't know each other."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "keras_flax_bridge"

FLOORS = [
    {"_printable"},
    {"errors"},
    {"_slices", "_memory", "_untrusted"},
    {"_texts", "_paths", "_types", "_backend", "_preemption", "_makers", "_progress", "_flat", "_garbage"},
    {"_doctor", "_schema", "_guards"},
    {"_start"},
    {"_random", "_leaves", "_integrity", "_iterators", "_packing", "_layouts"},
    {"_groups"},
    {"_variables", "_feed", "_kinds"},
    {"_transforms", "_apply", "_batches", "_sources"},
    {"_intake", "_parts", "_flax_layer"},
    {"_repartition", "_assignments", "_model_parts", "_optimizer_extras", "optimizers"},
    {"state"},
    {"sharding", "_plan", "_report", "_history"},
    {"_keras_step"},
    {"_meshed"},
    {"_compiled"},
    {"steps", "nnx", "linen", "layers", "_restore", "_configs", "_orbax", "_across"},
    {"_saving", "_keras_files", "_foreign", "migrate", "_verification"},
    {"checkpoint"},
    {"manager", "_contents", "_replacing"},
    {"resume", "loop", "callbacks", "_difference", "_conversion_targets", "_ejection"},
    {"_conversion"},
    {"cli"},
    {"__init__", "__main__"},
]
HEIGHT = {name: height for height, floor in enumerate(FLOORS) for name in floor}
# the order inside a package: a file imports only from those before it
INSIDE = {
    "_variables": [
        "safe",
        "bounds",
        "added",
        "entries",
        "keys",
        "trainers",
        "metrics",
        "slots",
        "models",
        "values",
        "graph",
        "initial",
        "naming",
        "decisions",
        "exclusions",
        "twins",
        "stored",
        "whole",
        "__init__",
    ],
    "_untrusted": ["tables", "names", "configs", "__init__"],
    "_guards": ["limits", "archive", "hdf5", "chunks", "texts", "tensors", "files", "__init__"],
    "_contents": ["base", "orbax", "h5", "keras", "tensors", "opening", "__init__"],
    "cli": [
        "output",
        "arguments",
        "inspect",
        "verify",
        "diff",
        "convert",
        "eject",
        "plan",
        "doctor",
        "main",
        "__init__",
    ],
    "_orbax": [
        "api",
        "names",
        "metadata",
        "background",
        "unfinished",
        "retention",
        "writing",
        "unpacking",
        "pieces",
        "reading",
        "root",
        "__init__",
    ],
    "optimizers": [
        "leaves",
        "scalings",
        "wrappers",
        "rules",
        "stock",
        "native",
        "adapter",
        "fields",
        "states",
        "conversion",
        "moves",
        "factories",
        "optax_optimizer",
        "__init__",
    ],
    "migrate": [
        "code",
        "transforms",
        "ir",
        "report",
        "activations",
        "modules",
        "modules_recurrent",
        "site",
        "rules",
        "rules_core",
        "rules_conv",
        "rules_shape",
        "rules_attention",
        "rules_recurrent",
        "operations",
        "draw",
        "graph",
        "classes",
        "blocks",
        "naming",
        "gate",
        "forward",
        "source",
        "maps",
        "selfcheck",
        "convert",
        "weights",
        "ejected",
        "compare",
        "alignment",
        "match",
        "__init__",
    ],
}
FILES = sorted(PACKAGE.rglob("*.py"))


def module(path):
    """The name of a file's module below the package, such as ``state`` or ``_variables.keys``."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def imports(path):
    """The names of the modules that a file imports, in any place of it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_file_has_a_floor():
    inside = {f"{package}.{name}" for package, names in INSIDE.items() for name in names}
    assert {module(path) for path in FILES} == (HEIGHT.keys() - INSIDE.keys()) | inside


@pytest.mark.parametrize("path", FILES, ids=module)
def test_imports_come_from_below(path):
    own, *rest = module(path).split(".")
    used = [name.split(".")[1:] for name in imports(path) if name.startswith("keras_flax_bridge.")]
    below = {name for name in HEIGHT if HEIGHT[name] < HEIGHT[own]}
    inside = INSIDE[own][: INSIDE[own].index(rest[0])] if rest else []
    assert [parts for parts in used if parts[0] in HEIGHT and parts[0] not in {*below, own}] == []
    own_parts = [parts for parts in used if parts[0] == own and len(parts) > 1]
    assert [parts for parts in own_parts if parts[1] not in inside] == []


@pytest.mark.parametrize("path", FILES, ids=module)
def test_only_one_file_imports_orbax(path):
    assert module(path) == "_orbax.api" or not any(name.startswith("orbax") for name in imports(path))


@pytest.mark.parametrize("path", FILES, ids=module)
def test_only_one_file_knows_keras_inside(path):
    if module(path).startswith("_variables."):
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


def test_files_stay_small():
    sizes = {module(path): len(path.read_text().splitlines()) for path in FILES}
    assert {name: size for name, size in sizes.items() if size > 400} == {}
