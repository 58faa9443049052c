"""The table of capabilities: what the newest dependencies have and the oldest supported ones lack.

Whatever depends on a version asks this table. One entry adds a capability, with its line in docs/versions.md
and in the report of `doctor`.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from typing import Any


@dataclass(frozen=True)
class Capability:
    """Something that a dependency has since one of its versions.

    Attributes:
        name: what it is asked for by.
        package: the distribution that has it.
        since: the first version that has it.
        place: where it is looked for: a module, a colon, and an attribute of it; in parentheses the name of
            an argument that a call takes. The part after the colon is the path of the attributes.
        without: what happens in older versions.
    """

    name: str
    package: str
    since: str
    place: str
    without: str

    def __str__(self) -> str:
        return f"{self.name}, there since {self.package} {self.since}: {self.without}"


_NEWER_CONFIG = (
    "A config of Keras {} or newer, in a checkpoint or a `.keras` file, can't be read: a `CheckpointError` "
    "names the version that wrote it. `restore` into a model that your code builds reads every value."
)

_ENTRIES = (
    Capability(
        "Muon with lr_adjust",
        "keras",
        "3.13.0",
        "keras.optimizers:Muon.lr_adjust",
        "`Muon` follows another rule, and its slots have other names; `to_optax` makes that one. A state of "
        "one rule is not restored into the other: a `StructureMismatchError` names the slots.",
    ),
    Capability(
        "layers with quantization_config",
        "keras",
        "3.13.0",
        "keras.layers:Dense(quantization_config)",
        _NEWER_CONFIG.format("3.13"),
    ),
    Capability(
        "ScheduleFreeAdamW",
        "keras",
        "3.14.0",
        "keras.optimizers:ScheduleFreeAdamW",
        "Keras has no such optimizer; `optax.contrib.schedule_free_adamw` can be used by `OptaxOptimizer`.",
    ),
    Capability(
        "BatchNormalization(renorm)",
        "keras",
        "3.14.0",
        "keras.layers:BatchNormalization(renorm)",
        "Keras has no batch renormalization, so there is none to refuse in a conversion.",
    ),
    Capability(
        "OrbaxCheckpoint",
        "keras",
        "3.14.0",
        "keras.callbacks:OrbaxCheckpoint",
        "Keras does not write such checkpoints. Those of a newer Keras are read as with that one.",
    ),
    Capability(
        "MultiOptimizer",
        "keras",
        "3.15.0",
        "keras.optimizers:MultiOptimizer",
        "Keras has no optimizer for groups of variables; `optax.partition` can be used by `OptaxOptimizer`.",
    ),
    Capability(
        "initializers with input_axes",
        "keras",
        "3.15.0",
        "keras.initializers:GlorotUniform(input_axes)",
        _NEWER_CONFIG.format("3.15"),
    ),
    Capability(
        "int1, uint1",
        "jax",
        "0.9.1",
        "jax.numpy:int1",
        "jax has no arrays of one bit: leaves of these dtypes are saved, and restored as arrays of numpy.",
    ),
    Capability(
        "nnx.view",
        "flax",
        "0.12.4",
        "flax.nnx:view",
        "Flax has no such function; `module.train()` and `module.eval()` set the mode of wrapped layers.",
    ),
    Capability(
        "nnx.jit(graph=False)",
        "flax",
        "0.12.4",
        "flax.nnx:jit(graph)",
        "Flax has no tree mode, in which a module is a pytree.",
    ),
    Capability(
        "nnx.with_rngs",
        "flax",
        "0.12.7",
        "flax.nnx:with_rngs",
        "Flax has no such function; `nnx.split_rngs` and `nnx.fork_rngs` split and fork random streams.",
    ),
    Capability(
        "nnx.with_vars",
        "flax",
        "0.12.8",
        "flax.nnx:with_vars",
        "Flax can't take variables out of the `hijax` mode again, in which modules are therefore not tested.",
    ),
    Capability(
        "galore, madgrad, signum, monitor, measure_with_ema",
        "optax",
        "0.2.7",
        "optax:signum",
        "`OptaxOptimizer` refuses these names: an `UnsupportedOptimizerError` says that optax lacks them.",
    ),
    Capability(
        "load, save, metadata",
        "orbax-checkpoint",
        "0.12.0",
        "orbax.checkpoint:v1.load",
        "They are called by their older names, `load_pytree`, `save_pytree` and `pytree_metadata`. The last "
        "reads what all items of a checkpoint declare, so all of them are checked before.",
    ),
    Capability(
        "options that are set in a context",
        "orbax-checkpoint",
        "0.12.0",
        "orbax.checkpoint:v1.Context.array",
        "Options are passed when a context is made.",
    ),
)

TABLE: Mapping[str, Capability] = {entry.name: entry for entry in _ENTRIES}


@cache
def find(name: str) -> Any:
    """What an entry of the table stands for; None where the installed version lacks it.

    >>> find("load, save, metadata") is None or callable(find("load, save, metadata"))
    True
    """
    module, _, place = TABLE[name].place.partition(":")
    path, _, argument = place.rstrip(")").partition("(")
    found: Any = importlib.import_module(module)
    for attribute in path.split("."):
        found = getattr(found, attribute, None)
    if found is None or (argument and argument not in inspect.signature(found).parameters):
        return None
    return found


def has(name: str) -> bool:
    """Whether the installed version has what an entry of the table stands for."""
    return find(name) is not None


def kinds(*names: str) -> tuple[type, ...]:
    """The classes of some entries, for `isinstance`; those that the installed version lacks are left out."""
    return tuple(find(name) for name in names if has(name))


def lacking() -> list[Capability]:
    """The entries that are newer than what is installed, by version: nothing is imported."""
    there = {entry.package: installed(entry.package) for entry in TABLE.values()}
    versions = {package: version for package, version in there.items() if version is not None}
    return [
        entry
        for entry in TABLE.values()
        if entry.package in versions and release(versions[entry.package]) < release(entry.since)
    ]


def installed(package: str) -> str | None:
    """The version of a distribution; None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def release(version: str) -> tuple[int, ...]:
    """The numbers of a version, without a suffix.

    >>> release("0.12.8rc1") < release("0.12.10")
    True
    """
    numbers = re.split(r"[^\d.]", version, maxsplit=1)[0]
    return tuple(int(part) for part in numbers.split(".") if part)
