"""The table of rules in docs/migrate.md, made from the rules: `python -m docs.generate.migrate` writes it."""

from pathlib import Path

import keras_flax_bridge as kfb
from keras_flax_bridge.migrate.rules import rule

PAGE = Path(__file__).parents[2] / "docs" / "migrate.md"
MARK = "<!-- rules -->\n"


def written(page: str) -> str:
    """The page with the present table."""
    return page[: page.index(MARK)] + MARK + "\n" + rule.table() + "\n"


if __name__ == "__main__":
    assert kfb.migrate
    PAGE.write_text(written(PAGE.read_text()))
