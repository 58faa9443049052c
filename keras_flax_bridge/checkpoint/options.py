"""The arguments that `restore` and `CheckpointManager.restore` share."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from keras_flax_bridge.checkpoint.checks import require

Include = str | re.Pattern[str] | Sequence[str] | None
Rename = Mapping[str, str] | Sequence[tuple[str, str]] | Callable[[str], str] | None


@dataclass(frozen=True)
class RestoreOptions:
    """The optional arguments of `restore`, which documents them."""

    include: Include = None
    rename: Rename = None  # or a `WeightMap`
    partial: bool = False
    verify: bool = True
    cast: bool = False
    data: Any = None
    keys: str | None = None

    def __post_init__(self) -> None:
        fix = "Leave keys= out for structural keys; rename= maps any other names."
        require(self.keys in (None, "path"), "keys", repr(self.keys), "'path', or None", fix)

    @property
    def weight_map(self) -> Any:
        """The `WeightMap` that is given in the place of names; None if there is none."""
        return self.rename if hasattr(self.rename, "flax_values") else None

    @property
    def takes_all(self) -> bool:
        """Whether every leaf is restored, by the name that it has."""
        return self.include is None and self.rename is None and self.keys is None
