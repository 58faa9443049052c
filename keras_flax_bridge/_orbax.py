"""Everything the bridge asks of Orbax: the only file that imports it, and not before it is used.

A tree goes to disk as nested dicts of plain names, so that plain Orbax code reads it without this
package. Orbax mistakes a dot inside a name for a level of its own: dots are written ``%2E``.
"""

from __future__ import annotations

import contextlib
import json
import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from itertools import count
from pathlib import Path as FilePath
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from keras_flax_bridge import _integrity, _packing, _paths
from keras_flax_bridge._iterators import is_grain, set_position
from keras_flax_bridge.errors import CheckpointError, CorruptCheckpointError

STATE, DATA = "state", "data"  # names of the checkpointables; Orbax's default name has changed before
_PACKED = "%packed"  # no path can have this name: a % in a name is written %25
_MARK = "_CHECKPOINT_METADATA"  # the file that Orbax writes last
_OURS, _OURS_SUM = "keras_flax_bridge", "keras_flax_bridge_crc32"  # keys of our own metadata


@cache
def _ocp() -> Any:
    from orbax.checkpoint import v1

    return v1


@contextlib.contextmanager
def _speaking(
    where: FilePath | str, doing: str, kind: type[CheckpointError] = CheckpointError
) -> Iterator[None]:
    """Turns what Orbax raises into an error that says which checkpoint it was."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:  # Orbax and tensorstore raise many kinds, most of them undocumented
        raise kind(
            str(where),
            got=f"{type(error).__name__} while {doing}: {str(error)[:500]}",
            expected=f"{doing} to succeed",
            fix="Older steps are intact. Check the folder, its permissions and the free space.",
        ) from error


# --- names ---------------------------------------------------------------------------------------


def _encode(path: _paths.Path) -> _paths.Path:
    return tuple(name.replace("%", "%25").replace(".", "%2E") for name in path)


def _decode(path: _paths.Path) -> _paths.Path:
    return tuple(name.replace("%2E", ".").replace("%25", "%") for name in path)


def _to_disk(flat: Mapping[_paths.Path, Any]) -> dict[str, Any]:
    return _paths.nest({_encode(p): leaf for p, leaf in flat.items() if not _is_empty(leaf)})


def _is_empty(leaf: Any) -> bool:
    return 0 in np.shape(leaf)  # Orbax can't store those: they lie in our metadata


# --- single checkpoints --------------------------------------------------------------------------


def absolute(path: Any) -> FilePath:
    """A local path as an absolute one.

    Raises:
        CheckpointError: if it is none.
    """
    try:
        if "://" not in str(path):
            return FilePath(path).expanduser().absolute()
    except (TypeError, RuntimeError):
        pass
    raise CheckpointError(
        repr(path),
        got=f"a {type(path).__name__}",
        expected="a local path",
        fix="Pass a str or a pathlib.Path.",
    )


def is_checkpoint(path: FilePath) -> bool:
    return (path / _MARK).is_file()


def _is_json(path: FilePath) -> bool:
    try:
        json.loads(path.read_text())
    except ValueError:
        return False
    return True


def steps_in(root: FilePath) -> list[int]:
    """Finished steps of a root folder, ascending."""
    folders = root.iterdir() if root.is_dir() else ()
    return sorted(int(f.name) for f in folders if f.name.isdigit() and is_checkpoint(f))


def save(
    path: FilePath, flat: Mapping[_paths.Path, Any], data: Any, metadata: dict[str, Any], *, packed: bool
) -> None:
    """Writes one checkpoint at `path` and returns when it is on disk."""
    items, custom = _written(flat, data, metadata, packed=packed)
    with _speaking(path, "saving"), _saving_context():
        _ocp().save_checkpointables(path, items, custom_metadata=custom)


def _saving_context() -> Any:
    context = _ocp().Context()
    context.array.saving.use_compression = False  # it saves 7 % on float weights, and costs most of the time
    return context


def _written(
    flat: Mapping[_paths.Path, Any], data: Any, metadata: dict[str, Any], *, packed: bool
) -> tuple[dict[str, Any], dict[str, str | int]]:
    """What Orbax stores, and our metadata.

    That is text, since Orbax would not keep every JSON type as it is; a checksum of it lies beside.
    """
    empty = {_paths.join(p): (str(leaf.dtype), leaf.shape) for p, leaf in flat.items() if _is_empty(leaf)}
    index: _packing.Index = {}
    if packed:
        buffer, index, rest = _packing.pack({p: leaf for p, leaf in flat.items() if not _is_empty(leaf)})
        tree = {**_to_disk(rest), _PACKED: buffer}
    else:
        tree = _to_disk(flat)
    sums = _integrity.checksums(flat)
    ours = {**metadata, "leaves": len(flat), "empty": empty, "packed": index, "checksums": sums}
    text = json.dumps(ours)
    items = {STATE: tree, **({DATA: data} if is_grain(data) else {})}
    return items, {_OURS: text, _OURS_SUM: zlib.crc32(text.encode())}


def _ours(custom: Mapping[str, Any]) -> dict[str, Any]:
    """Our metadata as it was written; nothing for a checkpoint that others wrote."""
    text = custom.get(_OURS, "{}")
    if zlib.crc32(text.encode()) != custom.get(_OURS_SUM, zlib.crc32(b"{}")):
        raise ValueError("its checksum is another than was written")
    return json.loads(text)


class Stored:
    """What lies in one checkpoint: the specs of its leaves and our metadata, read without the values."""

    def __init__(self, path: FilePath):
        self.path = path
        if not (path / STATE).is_dir():
            raise CheckpointError(
                str(path),
                got=f"a checkpoint that holds {sorted(f.name for f in path.iterdir() if f.is_dir())}",
                expected=f"an item named {STATE!r}",
                fix="Give the folder of a checkpoint that keras_flax_bridge wrote.",
            )
        with _speaking(path, "reading the metadata", CorruptCheckpointError):
            found = _ocp().metadata(path, checkpointable_name=STATE)
            self.metadata = _ours(found.custom_metadata or {})
        self.specs = {_decode(p): leaf for p, leaf in _paths.flatten(found.metadata).items()}
        for name, (dtype, shape) in self.metadata.get("empty", {}).items():
            self.specs[_paths.split(name)] = jax.ShapeDtypeStruct(tuple(shape), dtype)
        self._index = self.metadata.get("packed", {})
        self._buffer: Any = self.specs.pop((_PACKED,), None)
        self.specs.update(_packing.specs(self._index))
        self._require_complete()

    def _require_complete(self) -> None:
        """Orbax reads damaged metadata as if there were none."""
        leaves = self.metadata.get("leaves", len(self.specs) or 1)
        lost = (self._buffer is None) == bool(self._index)  # the packed array, or the index of it
        if lost or len(self.specs) != leaves or not _is_json(self.path / _MARK):
            raise CorruptCheckpointError(
                str(self.path),
                got=f"metadata that can't be read, or only of {len(self.specs)} leaves",
                expected=f"metadata of {leaves} leaves",
                fix="The checkpoint is damaged: take another step.",
            )

    def load(self, targets: Mapping[_paths.Path, Any]) -> _paths.Flat:
        """The values of some leaves, placed as their targets say.

        Raises:
            CorruptCheckpointError: naming the leaves that can't be read.
        """
        values, failed = self.load_each(targets)
        self._refuse(failed)
        return values

    def _load(self, targets: Mapping[_paths.Path, Any]) -> _paths.Flat:
        ocp = _ocp()
        context = ocp.Context()
        context.pytree.loading.partial_load = True
        small = {path: target for path, target in targets.items() if _paths.join(path) in self._index}
        tree = _to_disk({path: target for path, target in targets.items() if path not in small})
        if small:
            tree[_PACKED] = np.broadcast_to(np.zeros((), np.uint8), self._buffer.shape)
        with _speaking(self.path, "restoring"), context:
            loaded = _paths.flatten(ocp.load_checkpointables(self.path, {STATE: tree})[STATE])
        empty = {path: jnp.zeros(leaf.shape, leaf.dtype) for path, leaf in targets.items() if _is_empty(leaf)}
        packed = _packing.unpack(loaded.pop((_PACKED,), None), self._index, small)
        return {
            **empty,
            **_placed(packed, small),
            **{_decode(path): leaf for path, leaf in loaded.items()},
        }

    def load_each(self, targets: Mapping[_paths.Path, Any]) -> tuple[_paths.Flat, dict[str, str]]:
        """The values that can be read, and why the others can't, by path."""
        try:
            return self._load(targets), {}
        except CheckpointError as error:
            if len(targets) == 1:
                return {}, {_paths.join(path): str(error.got) for path in targets}
        parts = [self.load_each({path: target}) for path, target in targets.items()]
        values = {path: leaf for read, _ in parts for path, leaf in read.items()}
        return values, {path: why for _, failed in parts for path, why in failed.items()}

    def damaged(self, values: _paths.Flat) -> dict[str, str]:
        """What is wrong with values that were read, by path."""
        return _integrity.damaged(values, self.metadata.get("checksums", {}))

    def require_whole(self, values: _paths.Flat) -> None:
        """Checks values against the checksums that were written.

        Raises:
            CorruptCheckpointError: naming every leaf that differs.
        """
        self._refuse(self.damaged(values))

    def _refuse(self, damaged: Mapping[str, str]) -> None:
        if damaged:
            raise CorruptCheckpointError(
                str(self.path),
                got="damaged leaves:\n"
                + "\n".join(f"  {path}  {what}" for path, what in damaged.items())
                + "\n",
                expected="the bytes that were written",
                fix="Take another step; kfb.verify(path) says which are whole.",
            )

    def load_data(self, iterator: Any) -> None:
        """Sets a data iterator to the position that was stored.

        Raises:
            CheckpointError: if none was stored, or one of another kind.
        """
        stored = self.metadata.get("data")
        there = (self.path / DATA).is_dir() if is_grain(iterator) else stored is not None
        if not there:
            raise CheckpointError(
                str(self.path),
                got=f"a checkpoint without the position of a {type(iterator).__name__}",
                expected="one that was saved with data=",
                fix="Restore without data=, and position the iterator yourself.",
            )
        with _speaking(self.path, "restoring the data iterator"):
            if stored is not None:
                set_position(iterator, stored)
            else:
                _ocp().load_checkpointables(self.path, {DATA: iterator})


def _placed(values: _paths.Flat, targets: Mapping[_paths.Path, Any]) -> _paths.Flat:
    """Values from the packed array, put where their targets say; one transfer for all."""
    shardings = {path: getattr(targets[path], "sharding", None) for path in values}
    paths = [path for path, sharding in shardings.items() if sharding is not None]
    put = jax.device_put([values[path] for path in paths], [shardings[path] for path in paths])
    return {**values, **dict(zip(paths, put, strict=True))}


# --- a root folder of steps ----------------------------------------------------------------------


class Root:
    """A folder of numbered steps, written asynchronously, old ones removed."""

    def __init__(
        self, path: FilePath, kept: tuple[int | None, int | None, tuple[str, str] | None], *, packed: bool
    ):
        self.path = path
        self._pending: Any = None
        self._packed = packed
        if path.exists() and not path.is_dir():
            raise CheckpointError(
                str(path), got="a file", expected="a folder, or nothing yet", fix="Take another path."
            )
        with _speaking(path, "opening"):
            self._checkpointer = _ocp().training.Checkpointer(
                path, preservation_policy=_preservation(*kept), context=_saving_context()
            )

    def put_aside(self, folders: Sequence[FilePath]) -> None:
        """Takes damaged steps out of the run: their folders get another name, and stay."""
        for folder in folders:
            names = (f"{folder.name}.damaged{i or ''}" for i in count())
            folder.rename(next(path for path in map(self.path.joinpath, names) if not path.exists()))
        if folders:
            self._checkpointer.reload()  # Orbax keeps a list of its own

    def save(
        self, step: int, flat: Mapping[_paths.Path, Any], data: Any, logs: Any, metadata: dict[str, Any]
    ) -> None:
        """Starts to write a step, after the one before is on disk."""
        self.wait()
        if not self.path.is_dir():  # Orbax would wait minutes for a folder that nobody makes
            raise CheckpointError(
                str(self.path),
                got="a folder that is gone",
                expected="the folder in which earlier steps were written",
                fix="Put it back, or open a new manager.",
            )
        items, custom = _written(flat, data, metadata, packed=self._packed)
        with _speaking(self.path / str(step), "saving"):
            self._pending = self._checkpointer.save_checkpointables_async(
                step,
                items,
                force=True,  # whether a save is due was decided; Orbax skips without a word
                metrics=logs or None,
                custom_metadata=custom,
            )

    def wait(self) -> None:
        """Returns when the last save is on disk, and raises what went wrong with it."""
        pending, self._pending = self._pending, None
        if pending is not None:
            with _speaking(self.path, "saving in the background"):
                pending.result()

    def close(self) -> None:
        try:
            self.wait()
        finally:
            with _speaking(self.path, "closing"):
                self._checkpointer.close()

    def steps(self) -> list[int]:
        return steps_in(self.path)  # Orbax's own list doesn't know what other processes write and delete

    def logged(self, name: str) -> dict[int, float]:
        """A logged value by step, for the steps that have one."""
        if self._pending is None:
            self._checkpointer.reload()  # other processes write too
        found = ((c.step, (c.metrics or {}).get(name)) for c in self._checkpointer.checkpoints)
        return {step: value for step, value in found if value is not None and not math.isnan(value)}


def _preservation(max_to_keep: int | None, keep_every: int | None, best: tuple[str, str] | None) -> Any:
    """The newest steps, those of a fixed interval and the best: each of them stays."""
    policies = _ocp().training.preservation_policies
    kept = [policies.PreserveAll() if max_to_keep is None else policies.LatestN(max_to_keep)]
    if keep_every is not None:
        kept.append(policies.EveryNSteps(keep_every))
    if best is not None:
        kept.append(
            policies.BestN(get_metric_fn=_ranking(*best), n=1, keep_checkpoints_without_metrics=False)
        )
    return policies.AnyPreservationPolicy(kept)


def _ranking(name: str, mode: str) -> Callable[[Any], float]:
    """A number that is larger for a better checkpoint; one without the value is the worst."""

    def rank(metrics: Any) -> float:
        value = (metrics or {}).get(name)
        if value is None or math.isnan(value):
            return -math.inf
        return value if mode == "max" else -value

    return rank
