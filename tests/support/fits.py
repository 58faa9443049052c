"""A `fit` of Keras and the same one of the bridge: what is compared of the two."""

import hashlib
import random
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np

import keras_flax_bridge as kfb
from tests.support.cases import values

HOOKS = [
    *(f"on_{kind}_{end}" for kind in ("train", "test", "epoch") for end in ("begin", "end")),
    *(f"on_{kind}_batch_{end}" for kind in ("train", "test") for end in ("begin", "end")),
]


class Spy(keras.callbacks.Callback):
    """Keeps each call of a hook and its logs; with `reads` also what it finds in the model then."""

    def __init__(self, *, reads: bool = False):
        super().__init__()
        self.calls, self.reads = [], reads

    def _heard(self, hook: str, *args: Any, logs: Any = None) -> None:
        found = [float(np.sum(w)) for w in self.model.get_weights()] if self.reads else []
        found += [float(v) for v in _scalars(self.model.optimizer)] if self.reads else []
        self.calls.append(repr((hook, args, logs, sorted(self.params.items()), found)))


def _scalars(optimizer: Any) -> Iterable[Any]:
    return (v.numpy() for v in optimizer.variables if not v.shape)


def _hook(name: str) -> Callable[..., None]:
    def hook(self: Spy, *args: Any, **kwargs: Any) -> None:
        logs = kwargs["logs"] if "logs" in kwargs else args[-1] if len(args) > _ALONE[name] else None
        self._heard(name, *args[: _ALONE[name]], logs=None if logs is None else dict(logs))

    return hook


_ALONE = {name: int("batch" in name or "epoch" in name) for name in HOOKS}
for _name in HOOKS:
    setattr(Spy, _name, _hook(_name))


def by_keras(model: keras.Model, folder: Path, *args: Any, **options: Any) -> keras.callbacks.History:
    """Keras's own."""
    return model.fit(*args, **options)


def by_bridge(model: keras.Model, folder: Path, *args: Any, **options: Any) -> keras.callbacks.History:
    """The bridge's, without a checkpoint."""
    return kfb.fit(model, *args, **options)


def recorded(model: keras.Model, folder: Path, *args: Any, **options: Any) -> keras.callbacks.History:
    """The bridge's, with a folder of checkpoints."""
    return kfb.fit(model, *args, **options, checkpoint=folder.parent / f"{folder.name} run")


Fit = Callable[..., keras.callbacks.History]


@dataclass
class Result:
    """What a `fit` leaves behind."""

    history: list = field(default_factory=list)  # of each `fit`: its epochs and its logs
    calls: list = field(default_factory=list)
    weights: dict = field(default_factory=dict)
    files: dict = field(default_factory=dict)

    def took(self, history: keras.callbacks.History) -> None:
        """Takes note of one `fit`; NaN is equal to itself as text."""
        self.history.append((history.epoch, repr(history.history)))


def differences(got: Result, wanted: Result) -> dict[str, Any]:
    """What is not the same bits in two results."""
    found: dict[str, Any] = {}
    for name in ("history", "calls", "files"):
        a, b = getattr(got, name), getattr(wanted, name)
        if a != b:
            found[name] = _first(a, b)
    if got.weights.keys() != wanted.weights.keys():
        return found | {"weights": got.weights.keys() ^ wanted.weights.keys()}
    other = [k for k, v in got.weights.items() if v.tobytes() != wanted.weights[k].tobytes()]
    return found | ({"weights": other} if other else {})


def _first(a: Any, b: Any) -> Any:
    if isinstance(a, dict):
        return {k: (a.get(k), b.get(k)) for k in a.keys() | b.keys() if a.get(k) != b.get(k)}
    pairs = [*zip(a, b, strict=False), *((x, None) for x in a[len(b) :]), *((None, x) for x in b[len(a) :])]
    return next(pair for pair in pairs if pair[0] != pair[1])


def seed() -> None:
    """The same global generators for each `fit`."""
    np.random.seed(7)
    random.seed(7)


def files(folder: Path) -> dict[str, Any]:
    """What is in the files of a folder, without the time at which they were written."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): _content(path) for path in found}


def _content(path: Path) -> Any:
    if path.suffix != ".keras":
        return hashlib.sha256(path.read_bytes()).hexdigest() if path.suffix == ".h5" else path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name != "metadata.json"]  # it has the date
        return {name: hashlib.sha256(archive.read(name)).hexdigest() for name in names}


def weights(model: keras.Model) -> dict:
    """All variables of a model after `fit`, those of its metrics too."""
    return values(model)
