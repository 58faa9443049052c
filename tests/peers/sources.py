"""Where the tests of the peers are."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

CACHE = Path(__file__).parents[2] / ".cache" / "peers"
_NNX = ("module", "transforms", "rngs", "optimizer", "filters")
_BRIDGE = ("module", "wrappers")
_LINEN = ("transforms", "module", "combinators")
# by the layers that are replaced: whose tests, and which files
SUITES = {
    "nnx": (
        "flax",
        [f"tests/nnx/{name}_test.py" for name in _NNX]
        + [f"tests/nnx/bridge/{name}_test.py" for name in _BRIDGE],
    ),
    "linen": ("flax", [f"tests/linen/linen_{name}_test.py" for name in _LINEN]),
}


def folder_of(package: str) -> Path:
    """The source distribution of the installed version of a package, unpacked; downloaded once."""
    name = f"{package}-{version(package)}"
    if not (CACHE / name).exists():
        pip = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "-q",
            "--no-deps",
            "--no-binary",
            package,
            "-d",
            str(CACHE),
        ]
        subprocess.run([*pip, f"{package}=={version(package)}"], check=True)
        with tarfile.open(CACHE / f"{name}.tar.gz") as archive:
            archive.extractall(CACHE, filter="data")
    return CACHE / name
