"""Writes the rooms and the journeys of docs/architecture.md: ``python -m docs.generate.architecture``.

A journey is a run of a small model whose calls into the package are recorded: of each file the first function
that is public and documented, in the order in which the run comes to them. So the page follows the code. The
rooms `errors` and `tree`, checks of arguments and the pause of the collector are left out: nearly every file
uses them.
"""

import ast
import gc
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import numpy as np

import keras_flax_bridge as kfb
from tests.test_floors import MODULES, PACKAGE, ROOMS

PAGE = Path(__file__).parents[1] / "architecture.md"
EVERYWHERE = {"errors.py", "tree", "checkpoint/checks.py", "state/gc_pause.py"}
BATCH = np.ones((2, 4), "float32"), np.ones((2, 1), "float32")

Run = Callable[[], Any]
Station = tuple[str, str, str]  # file, function, what its docstring says first


def build() -> Any:
    """The model of all journeys."""
    import keras  # after the bridge, which chooses the backend

    hidden = keras.layers.Dense(3, activation="relu", kernel_initializer="ones")
    model = keras.Sequential([keras.Input((4,)), hidden, keras.layers.Dense(1, kernel_initializer="ones")])
    model.compile("adam", "mse", metrics=["mae"])
    return model


# --- journeys: each prepares a run


def first_step() -> Run:
    model = build()
    state = kfb.TrainState.from_keras(model)
    return lambda: kfb.make_train_step(model)(state, BATCH)


def later_step() -> Run:
    model = build()
    train_step = kfb.make_train_step(model)
    state, _ = train_step(kfb.TrainState.from_keras(model), BATCH)
    return lambda: train_step(state, BATCH)


def restore() -> Run:
    folder = tempfile.TemporaryDirectory()
    path = folder.name + "/checkpoint"
    kfb.save(path, kfb.TrainState.from_keras(build()))
    like = kfb.TrainState.abstract(build)

    def run() -> Any:
        with folder:
            return kfb.restore(path, like)

    return run


def conversion() -> Run:
    model = build()
    return lambda: kfb.migrate.to_nnx(model)


JOURNEYS = {
    "the first call of a train step": first_step,
    "a later call": later_step,
    "a restore": restore,
    "a conversion": conversion,
}


# --- recording


def calls(run: Run) -> list[CodeType]:
    """The functions of the package that a run calls in this thread, in order."""
    found, package = [], f"{PACKAGE}/"

    def note(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(package):
            found.append(frame.f_code)

    before = sys.getprofile()
    gc.collect()  # what others left ends now, not within the run, where its finalizers would be recorded
    gc.disable()
    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(before)
        gc.enable()
    return found


def is_public(name: str) -> bool:
    """Whether no part of a qualified name is private, local or a hook of Python other than ``__call__``."""
    return not re.search(r"<|\b_", name.removesuffix(".__init__").removesuffix(".__call__"))


@cache
def docstrings(file: str) -> dict[int, str]:
    """The summary of every function of a file, by its first line; that of `__init__` is its class's."""
    found = {}
    for node in ast.walk(ast.parse(Path(file).read_text())):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
                owner = node if child.name == "__init__" and isinstance(node, ast.ClassDef) else child
                line = min([child.lineno, *(decorator.lineno for decorator in child.decorator_list)])
                found[line] = summary(ast.get_docstring(owner))
    return found


def summary(docstring: str | None) -> str:
    """The first paragraph of a docstring, as a cell of a Markdown table."""
    line = " ".join((docstring or "").split("\n\n")[0].split())
    return line.replace("``", "`").replace("|", "\\|")


def stations(run: Run) -> Iterator[Station]:
    """The first public, documented function of each file that a run comes to."""
    seen = set()
    for code in calls(run):
        file = Path(code.co_filename).relative_to(PACKAGE)
        says = docstrings(code.co_filename).get(code.co_firstlineno)
        if (
            file in seen
            or EVERYWHERE & {file.parts[0], file.as_posix()}
            or not says
            or not is_public(code.co_qualname)
        ):
            continue
        seen.add(file)
        yield file.as_posix(), code.co_qualname.removesuffix(".__init__"), says


def journey(prepare: Callable[[], Run]) -> str:
    """A table of the stations of a journey.

    It is made twice, and the second time recorded: what is computed once in a process is then there, whatever
    ran in it before.
    """
    prepare()()
    rows = [f"| `{file}` | `{name}` | {says} |" for file, name, says in stations(prepare())]
    return "\n".join(["| file | function | what it does |", "|---|---|---|", *rows])


def rooms() -> str:
    """A table of the rooms, from the top down, with what their docstrings say."""
    rows = []
    for room in reversed(ROOMS):
        says = summary(ast.get_docstring(ast.parse(MODULES[room].read_text())))
        below = ", ".join(f"`{other}`" for other in ROOMS[room]) or "nothing of the package"
        path = MODULES[room].relative_to(PACKAGE.parent).as_posix().removesuffix("__init__.py")
        rows.append(f"| `{path}` | {says} | {below} |")
    return "\n".join(["| room | what is in it | imports from |", "|---|---|---|", *rows])


# --- the page


def written(page: str) -> str:
    """The page with the tables that the code gives now."""
    parts = {"rooms": rooms(), **{name: journey(prepare) for name, prepare in JOURNEYS.items()}}
    for name, part in parts.items():
        begin, end = f"<!-- {name} -->\n", "<!-- end -->"
        before, rest = page.split(begin)
        page = f"{before}{begin}{part}\n{rest[rest.index(end) :]}"
    return page


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
