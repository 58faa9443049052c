"""What the writers of pages share: the table of pyproject.toml, and blocks of a page between two marks."""

import re
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def project(root: Path = ROOT) -> dict[str, Any]:
    """The table ``[project]`` of pyproject.toml."""
    found: dict[str, Any] = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    return found


def replaced(page: str, name: str, text: str) -> str:
    """A page with other text between ``<!-- name -->`` and ``<!-- end of name -->``.

    >>> replaced("<!-- rows -->\\nold\\n<!-- end of rows -->", "rows", "new\\n")
    '<!-- rows -->\\nnew\\n<!-- end of rows -->'
    """
    block = re.compile(rf"(?<=<!-- {name} -->\n).*(?=<!-- end of {name} -->)", re.DOTALL)
    return block.sub(lambda _: text, page)
