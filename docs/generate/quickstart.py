"""Writes examples/quickstart.ipynb from docs/quickstart.md: ``python -m docs.generate.quickstart``."""

import re
from pathlib import Path

import nbformat
from nbformat import v4

ROOT = Path(__file__).parents[2]
PAGE, NOTEBOOK = ROOT / "docs" / "quickstart.md", ROOT / "examples" / "quickstart.ipynb"
BLOCK = re.compile(r"```python\n(.*?)```\n", re.DOTALL)
PROMPT = re.compile(r"^(?:>>>|\.\.\.) ?")
LINK = re.compile(r"\]\((?=[\w]+\.md)")


def code(block: str) -> str:
    """What is typed in a doctest: neither prompts nor outputs."""
    return "\n".join(PROMPT.sub("", line) for line in block.splitlines() if PROMPT.match(line))


def cells(page: str) -> list:
    """Prose and code in turn; the last part of the page, which points to other pages, stays there."""
    page = page[: page.index("![")]
    page = page.replace(page[page.index("Train a model, save it") : page.index("## A model")], "")
    parts = BLOCK.split(page)
    prose = [v4.new_markdown_cell(LINK.sub("](../docs/", part.strip())) for part in parts[::2]]
    typed = [v4.new_code_cell(code(part)) for part in parts[1::2]]
    mixed = [cell for pair in zip(prose, [*typed, None], strict=True) for cell in pair]
    return [cell for cell in mixed if cell is not None and cell.source]


def notebook() -> nbformat.NotebookNode:
    """The page as a notebook without outputs."""
    made = v4.new_notebook(cells=cells(PAGE.read_text()))
    made.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    for i, cell in enumerate(made.cells):
        cell.id = f"cell-{i}"  # the same in each run
    return made


if __name__ == "__main__":
    nbformat.write(notebook(), NOTEBOOK)
