"""Which layers a train step checkpoints: the argument `remat`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from keras_flax_bridge import keras_internals
from keras_flax_bridge.errors import StructureMismatchError
from keras_flax_bridge.keras_internals import Policy
from keras_flax_bridge.tree.paths import Path, compiled_pattern, join_path

Remat = bool | Sequence[str] | Mapping[str, Policy] | None


def checked(remat: Any) -> Remat:
    """The argument, if it is one.

    Raises:
        StructureMismatchError: otherwise.
    """
    if remat is None or isinstance(remat, bool):
        return remat
    is_list = isinstance(remat, (list, tuple)) and all(isinstance(name, str) for name in remat)
    is_dict = isinstance(remat, Mapping) and all(
        isinstance(name, str) and (policy is None or callable(policy)) for name, policy in remat.items()
    )
    if not (is_list or is_dict):
        raise StructureMismatchError(
            "remat",
            got=repr(remat)[:100],
            expected="True, a list of layers' names, or a dict of names and policies",
            fix="Policies are those of jax.checkpoint_policies, such as dots_saveable.",
        )
    for name in remat:
        compiled_pattern(name, "remat", "Escape special characters of the layer's name.")
    known: Remat = remat
    return known


def chosen(model: Any, remat: Remat) -> Iterator[tuple[Any, Policy]]:
    """The layers that the argument names, each once, with its policy.

    Raises:
        StructureMismatchError: for a name that is no layer's.
    """
    if remat is None or remat is False:
        return
    if remat is True:
        yield model, None
        return
    layers = {path: layer for path, layer in keras_internals.layers_by_path(model).items() if path}
    policies = dict(remat) if isinstance(remat, Mapping) else dict.fromkeys(remat)
    found: dict[Path, Policy] = {}
    for name, policy in policies.items():
        named = [path for path in layers if _matches(name, path)]
        if not named:
            raise _unknown(name, layers)
        found.update(dict.fromkeys(named, policy))
    yield from ((layers[path], policy) for path, policy in found.items())


def _matches(name: str, path: Path) -> bool:
    return any(re.fullmatch(name, text) for text in (join_path(path), path[-1]))


def _unknown(name: str, layers: Mapping[Path, Any]) -> Exception:
    return StructureMismatchError(
        "remat",
        got=f"{name!r}, which is no layer's name",
        expected=f"one of {', '.join(join_path(path) for path in list(layers)[:20])}",
        fix="Name layers by their structural keys, the last name of one, or a regular expression of them.",
    )
