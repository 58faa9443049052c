"""Writes the table of docs/optimizers.md from the table of rules: ``python -m docs.generate.optimizers``."""

from pathlib import Path
from typing import Any

import keras_flax_bridge  # noqa: F401, before keras: it chooses the backend
from docs.generate.pages import replaced
from keras_flax_bridge.optimizers.rules import RULES, Rule
from keras_flax_bridge.optimizers.variable_lookup import Leaves
from tests.tables.optimizers import OPTIMIZERS

PAGE = Path(__file__).parents[2] / "docs" / "optimizers.md"
OWN = "keras_flax_bridge"


# what transformations that hold others hold
INSIDE = {
    "partition": " of **`scale_by_keras_muon`** and **`scale_by_keras_adam`**",
    "schedule_free": " of `scale_by_rms`, `scale_by_schedule`",
}


def transformations(optimizer: Any, rule: Rule) -> str:
    """The chain, by the names of the functions that made it; this package's own in bold."""
    parts = rule.parts(optimizer, lambda count: 0.1, Leaves(optimizer))
    names = [(part.update.__qualname__.split(".")[0], part.update.__module__) for part in parts]
    shown = [f"**`{name}`**" if module.startswith(OWN) else f"`{name}`" for name, module in names]
    return ", ".join(one + INSIDE.get(name, "") for one, (name, _) in zip(shown, names, strict=True))


def near(rule: Rule) -> str:
    if rule.stock is None:
        return "none"
    name = f"`optax.{rule.stock.name}`"
    return f"{name}: within {rule.stock.off:.0e}: {rule.stock.why}" if rule.stock.off else f"{name}: exact"


def slots(rule: Rule) -> str:
    pairs = {(slot.name, f"{field}") for fields in rule.slots.values() for field, slot in fields.items()}
    return ", ".join(f"`{slot}`: `{field}`" for slot, field in sorted(pairs))


def line(kind: type, rule: Rule) -> str:
    made = [kind(**{"learning_rate": 0.1, **own}) for other, _, own in OPTIMIZERS.values() if other is kind]
    chains = [transformations(optimizer, rule) for optimizer in made]
    return f"| `{kind.__name__}` | exact | {max(chains, key=len)} | {near(rule)} | {slots(rule)} |"


def table() -> str:
    head = [
        "| Keras | to optax | transformations | nearest of optax's own | slots |",
        "|---|---|---|---|---|",
    ]
    outer = [
        "| `LossScaleOptimizer` | exact | **`dynamic_loss_scale`** around the inner one | none | "
        "`step_counter`, `dynamic_scale` |",
        "| `MultiOptimizer` | exact | `partition` of the inner ones | `optax.partition`: exact | by group |",
        "| a class of your own | not convertible: `as_optax` | | | |",
    ]
    return "\n".join([*head, *(line(kind, rule) for kind, rule in RULES.items()), *outer, ""])


def written(page: str) -> str:
    return replaced(page, "rules", table())


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
