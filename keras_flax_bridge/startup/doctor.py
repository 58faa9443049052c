"""Reports what is installed and configured, what conflicts, and how to fix it.

It needs only the standard library: it must work where Keras, jax or this package itself can't be imported.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import platform
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from keras_flax_bridge.errors import BackendError, printed
from keras_flax_bridge.startup.backend import WRITTEN_BY_KERAS, config_path, ensure_jax
from keras_flax_bridge.startup.compat import Capability, installed, lacking, release
from keras_flax_bridge.tree.reports import Table, table_of

_OWN = "keras-flax-bridge"
_NEEDED = ("keras", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "rich", "zstandard")
_OTHERS = ("tensorstore", "ml_dtypes", "h5py", "grain", "safetensors", "matplotlib")


class Clash(NamedTuple):
    """A conflict, and how to fix it."""

    what: str
    fix: str


class Found(NamedTuple):
    """A package that is installed, or a setting that is chosen."""

    name: str
    value: str


class Health(NamedTuple):
    """What was found.

    Attributes:
        found: what is installed and chosen, by name.
        clashes: what doesn't work together.
        lacking: the entries of the table of capabilities that are newer than what is installed.

    Example:
        >>> print(Health({"python": "3.11.2"}, [Clash("jax is not installed", "pip install jax")]))
        python  3.11.2
        clash: jax is not installed. pip install jax
        clashes: 1
    """

    found: dict[str, str]
    clashes: list[Clash]
    lacking: Sequence[Capability] = ()

    @property
    def rows(self) -> tuple[Found, ...]:
        """One row for each package and setting."""
        return tuple(Found(*item) for item in self.found.items())

    @property
    def ok(self) -> bool:
        """Whether nothing clashes."""
        return not self.clashes

    def to_json(self) -> dict[str, Any]:
        """What was found as JSON types."""
        clashes = [clash._asdict() for clash in self.clashes]
        found = {"ok": self.ok, "found": dict(self.found), "clashes": clashes}
        return found | {"lacking": [dataclasses.asdict(entry) for entry in self.lacking]}

    def __str__(self) -> str:
        width = max(map(len, self.found))
        lines = [f"{name:<{width}}  {value}" for name, value in self.found.items()]
        return printed([*lines, *self._notes()])

    def _notes(self) -> list[str]:
        lacking = [f"lacks {entry}" for entry in self.lacking]
        clashes = [f"clash: {clash.what}. {clash.fix}" for clash in self.clashes]
        return [*lacking, *clashes, f"clashes: {len(self.clashes) or 'none'}"]

    def _table(self) -> Table:
        return table_of("environment", Found._fields, self.rows, self._notes())

    def __rich__(self) -> Table:
        return self._table()

    def _repr_html_(self) -> str:
        return self._table().to_html()


def examined() -> Health:
    """Examines this environment; imports jax, to list the devices."""
    versions = {name: installed(name) for name in (*_NEEDED, *_OTHERS)}
    found = {"python": platform.python_version(), _OWN: installed(_OWN) or "not installed"}
    found |= {name: version or "not installed" for name, version in versions.items()}
    devices, broken = _devices()
    found |= {**_chosen(), **devices}
    return Health(found, [*_missing(versions), *_outside(versions), *_choices(), *broken], lacking())


def _missing(versions: dict[str, str | None]) -> list[Clash]:
    """Required packages that are missing."""
    lost = [name for name in _NEEDED if versions[name] is None]
    return [Clash(f"{name} is not installed", f"pip install {name}") for name in lost]


def _outside(versions: dict[str, str | None]) -> Iterator[Clash]:
    """Versions older than this package supports, and mismatched jax and jaxlib."""
    for name, least in _least():
        version = versions.get(name)
        if version is not None and release(version) < release(least):
            yield Clash(f"{name} {version} is older than {least}", f"pip install -U '{name}>={least}'")
    jax, jaxlib = versions["jax"], versions["jaxlib"]
    if jax and jaxlib and release(jax)[:2] != release(jaxlib)[:2]:
        yield Clash(
            f"jax {jax} and jaxlib {jaxlib} are of different releases", f"pip install -U 'jaxlib=={jax}'"
        )


def _least() -> list[tuple[str, str]]:
    """The oldest supported version of each package, from the installed metadata."""
    try:
        lines = metadata.requires(_OWN) or []
    except metadata.PackageNotFoundError:
        return []
    matches = (re.match(r"([\w.-]+)\s*>=\s*([\d.]+)", line) for line in lines)
    return [(match[1], match[2]) for match in matches if match]


def _keras_json() -> dict[str, Any]:
    try:
        found = json.loads(config_path().read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _nnx() -> str:
    """The setting that switches Keras's NNX mode on; empty if it is off."""
    variable = os.environ.get("KERAS_NNX_ENABLED")
    if variable is not None:
        return f"KERAS_NNX_ENABLED={variable}" if variable.lower() in ("true", "1") else ""
    return str(config_path()) if _keras_json().get("nnx_enabled") else ""


def _chosen() -> dict[str, str]:
    variables = ("KERAS_BACKEND", "JAX_PLATFORMS", "CUDA_VISIBLE_DEVICES")
    return {
        **{name: os.environ.get(name, "not set") for name in variables},
        "keras.json": _settings(),
        "NNX mode of Keras": _nnx() or "off",
    }


def _settings() -> str:
    """The user's settings in Keras's config file."""
    found = _keras_json()
    if not found or found == WRITTEN_BY_KERAS:
        return "none" if not found else "Keras's defaults"
    return f"{config_path()}: {json.dumps(found)}"


def _choices() -> Iterator[Clash]:
    """Settings with which this package doesn't run, or Keras behaves differently."""
    try:
        ensure_jax()
    except BackendError as error:
        yield Clash(f"{error.where} chooses {error.got} for Keras", str(error.fix))
    if _nnx():
        why = "Keras models train more slowly in it and some diverge; kfb.ToNNX doesn't need it"
        yield Clash(f"{_nnx()} switches Keras's NNX mode on", f"Switch it off: {why}")


def _devices() -> tuple[dict[str, str], Iterable[Clash]]:
    """The devices of jax."""
    try:
        jax = importlib.import_module("jax")
        devices = jax.devices()
    except Exception as error:  # a broken installation raises anything
        text = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        fix = "Install jax for this machine (https://docs.jax.dev), or set JAX_PLATFORMS=cpu"
        return {"devices": "none"}, [Clash(f"jax finds no device ({text})", fix)]
    kinds = ", ".join(sorted({device.device_kind for device in devices}))
    found = {"backend of jax": jax.default_backend(), "devices": f"{len(devices)} ({kinds})"}
    found["jax_enable_x64"] = str(jax.config.jax_enable_x64)
    return found, list(_idle(jax.default_backend()))


def _idle(backend: str) -> Iterator[Clash]:
    """A GPU that jax doesn't use, though no setting excludes it."""
    told = os.environ.get("JAX_PLATFORMS") or os.environ.get("CUDA_VISIBLE_DEVICES") is not None
    if backend == "cpu" and not told and Path("/proc/driver/nvidia/version").exists():
        yield Clash(
            "this machine has an NVIDIA GPU, and jax computes on the CPU", "pip install -U 'jax[cuda13]'"
        )


def run(*, as_json: bool) -> int:
    """Prints what was found, and gives the exit code: 1 if something clashes."""
    health = examined()
    if as_json:
        print(json.dumps(health.to_json(), indent=1))
        return 0 if health.ok else 1
    for line in str(health).splitlines():
        say(line, sys.stdout, red=line.startswith("clash:"))
    return 0 if health.ok else 1


def say(text: str, stream: Any, *, red: bool) -> None:
    """Prints a line, in red on a terminal."""
    red = red and stream.isatty() and not os.environ.get("NO_COLOR")
    print(f"\033[31m{text}\033[0m" if red else text, file=stream)
