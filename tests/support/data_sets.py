"""The data sets in tests/data: what versions of the package wrote, which every later one reads.

`tests/data/manifest.json` has the version of each, and the checksum of every file, so that none is changed or
dropped. A release adds one:

    KERAS_BACKEND=jax python -m tests.support.older_versions tests/data/0.2.0
    KERAS_BACKEND=jax python -m tests.support.data_sets
"""

import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import Any

import keras_flax_bridge as kfb

FOLDER = Path(__file__).parents[1] / "data"
MANIFEST = FOLDER / "manifest.json"


class DataSet:
    """What one version wrote.

    Attributes:
        folder: where it is.
        name: of the folder: a version, or a commit.
    """

    def __init__(self, folder: Path):
        self.folder, self.name = folder, folder.name

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    @cached_property
    def kinds(self) -> set[str]:
        """The artifacts that it has, one of each kind."""
        return {path.name for path in self.folder.iterdir()} - {"expected.json"}

    @cached_property
    def expected(self) -> dict[str, Any]:
        """The leaves that are in them."""
        found = json.loads((self.folder / "expected.json").read_text())
        return {**found, "packed": found["model"]}

    def checksums(self) -> dict[str, str]:
        """The SHA-256 of every file."""
        files = sorted(path for path in self.folder.rglob("*") if path.is_file())
        return {
            path.relative_to(self.folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in files
        }


DEPENDENCIES = "dependencies"  # what `tests/support/cross_versions.py` wrote with other versions of these
SETS = {path.name: DataSet(path) for path in sorted(FOLDER.iterdir()) if path.is_dir()}
del SETS[DEPENDENCIES]
ALL = SETS | {
    f"{DEPENDENCIES}/{path.name}": DataSet(path) for path in sorted((FOLDER / DEPENDENCIES).iterdir())
}


def manifest() -> dict[str, Any]:
    """The version and the files of each data set, by its name."""
    found: dict[str, Any] = json.loads(MANIFEST.read_text())
    return found


def differences(listed: dict[str, str], present: dict[str, str]) -> dict[str, str]:
    """The files that are not as the manifest has them."""
    said = {path: "is gone" for path in listed if path not in present}
    said |= {path: "is not in the manifest" for path in present if path not in listed}
    return said | {path: "was changed" for path in listed.keys() & present if listed[path] != present[path]}


def add() -> None:
    """Lists the data sets that the manifest lacks; those that it has stay as they are."""
    listed = manifest() if MANIFEST.exists() else {}
    for name, found in ALL.items():
        listed.setdefault(name, {"version": kfb.__version__, "files": found.checksums()})
    MANIFEST.write_text(json.dumps(listed, indent=1) + "\n")


if __name__ == "__main__":
    add()
