"""Writes the table of docs/errors.md from the classes of errors: ``python -m docs.generate.errors``."""

import inspect
import re
from pathlib import Path

from docs.generate.pages import replaced
from keras_flax_bridge import errors

PAGE = Path(__file__).parents[2] / "docs" / "errors.md"
ADVICE = re.compile(r"^What to do: (.+?)(?:\n\n|\Z)", re.MULTILINE | re.DOTALL)
LINK = "[`{0}`](#{1})"


def kinds() -> list[type[errors.BridgeError]]:
    """The base, then the others in the order of the module."""
    return [kind for name, kind in vars(errors).items() if name.endswith("Error") and inspect.isclass(kind)]


def also(kind: type[errors.BridgeError]) -> str:
    """What else catches it: the classes above it, but for the base and Python's own bases."""
    plain = {kind, errors.BridgeError, Exception, BaseException, object}
    return ", ".join(f"`{above.__name__}`" for above in kind.__mro__ if above not in plain)


def line(kind: type[errors.BridgeError]) -> str:
    said = inspect.getdoc(kind) or ""
    name = kind.__name__
    shown = f"`{name}`" if kind is errors.BridgeError else LINK.format(name, name.lower())
    when, advice = said.splitlines()[0], " ".join(ADVICE.search(said)[1].split())
    advice = advice[0].upper() + advice[1:]
    return f"| {shown} | {also(kind)} | {when} | {advice} |".replace("``", "`")


def table() -> str:
    head = ["| error | also a | when | what to do |", "|---|---|---|---|"]
    return "\n".join([*head, *map(line, kinds()), ""])


def written(page: str) -> str:
    return replaced(page, "errors", table())


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
