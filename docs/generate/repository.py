"""Where the repository is, in every file that has to say so: ``python -m docs.generate.repository URL``.

``project.urls.Repository`` in pyproject.toml is the address; the other files repeat it. Until there is one it
is a placeholder, under a domain that can't exist. Links in the README are relative; the build makes them
absolute for the package index.
"""

import sys
from pathlib import Path

from docs.generate.pages import project

ROOT = Path(__file__).parents[2]
PLACEHOLDER = "https://repository.invalid/keras-flax-bridge"
FILES = ("pyproject.toml", "CITATION.cff", ".github/ISSUE_TEMPLATE/config.yml")


def address(root: Path = ROOT) -> str:
    """The address of the repository, without a slash at its end."""
    return str(project(root)["urls"]["Repository"])


def set_address(new: str, root: Path = ROOT) -> None:
    """Writes another address into every file that has the present one.

    Raises:
        ValueError: if it is not an address of a page.
    """
    if not new.startswith("https://") or new.endswith("/"):
        raise ValueError(f"got {new!r}, expected https://<host>/<owner>/<name>")
    old = address(root)
    for name in FILES:
        path = root / name
        path.write_text(path.read_text().replace(old, new))


if __name__ == "__main__":
    set_address(sys.argv[1])
