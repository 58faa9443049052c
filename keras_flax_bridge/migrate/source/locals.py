"""Names of local variables in generated source: short, and reused when free."""

from __future__ import annotations

from keras_flax_bridge.migrate.ir import Graph, Step, numbers
from keras_flax_bridge.migrate.python_text import identifier

SHORT = tuple("xyzwuvabcdefgh")


class Locals:
    """Assigns a name to every value; a name is free again after the last line that reads its value."""

    def __init__(self, graph: Graph, steps: list[Step], arguments: dict[int, str], reserved: set[str]):
        self.names = dict(arguments)
        self.reserved = reserved
        self.live = dict(arguments)  # names of values that are still to be read
        last = _last_reads(graph, steps)
        self._release(-1, last)
        for i, step in enumerate(steps):
            keep = {n for n in self.live if last.get(n, -1) > i}
            free_after = {self.live[n] for n in self.live if n not in keep}
            self.live = {n: name for n, name in self.live.items() if n in keep}
            for out in step.outs:
                self.names[out.number] = self._name(out.hint, free_after)
                self.live[out.number] = self.names[out.number]
            self._release(i, last)

    def _release(self, line: int, last: dict[int, int]) -> None:
        self.live = {n: name for n, name in self.live.items() if last.get(n, -1) > line}

    def _name(self, hint: str, freed: set[str]) -> str:
        used = set(self.live.values())
        chain = sorted(freed & set(SHORT), key=SHORT.index)
        for name in [*chain, *SHORT]:
            if name not in used:
                return name
        return identifier(hint, lambda name: name in used or name in self.reserved, "x")


def _last_reads(graph: Graph, steps: list[Step]) -> dict[int, int]:
    last: dict[int, int] = {}
    for i, step in enumerate(steps):
        last |= dict.fromkeys(numbers(step.code), i)
    return last | dict.fromkeys(numbers(graph.result), len(steps))
