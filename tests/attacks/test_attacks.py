"""No file runs code, reads another file, takes the memory, or writes to the terminal but plain text."""

import shlex
import unicodedata
from typing import NamedTuple

import pytest

from tests.attacks import (
    goods,
    rows_assets,
    rows_bombs,
    rows_code,
    rows_files,
    rows_foreign,
    rows_storage,
    rows_text,
    watch,
)
from tests.attacks.doors import DOORS, PRINTED, outcome
from tests.attacks.rows import PLANTED, ROWS, SECRET, Kit, Row

QUICK = 2  # doors of a row in the first pass, beside those that must refuse it; as many more in the second
MOST = 200  # MB that a door may take
MODULES = (
    rows_assets,
    rows_bombs,
    rows_code,
    rows_files,
    rows_foreign,
    rows_storage,
    rows_text,
)  # each adds its rows


@pytest.fixture
def kit(tmp_path, monkeypatch):
    """Somebody's secret, and a module that shows whether it was imported."""
    secret = tmp_path / "hom" / "secret.txt"
    secret.parent.mkdir()
    secret.write_text(SECRET * 10)
    marker = tmp_path / "marker"
    (tmp_path / "path").mkdir()
    module = tmp_path / "path" / f"{PLANTED}.py"
    module.write_text(f"open({str(marker)!r}, 'w')\nThing = thing = print\n")
    monkeypatch.syspath_prepend(str(module.parent))
    return Kit(marker, secret, f"touch {shlex.quote(str(marker))}")


class Attack(NamedTuple):
    """A row, and the doors that it is taken through."""

    row: Row
    doors: tuple[str, ...]

    @property
    def name(self) -> str:
        """That of the row: rows are shared among the workers."""
        return self.row.name


def parameters():
    """Some rows in the first pass and the others, by more doors, in the second; then all through all."""
    for number, one in enumerate(ROWS):
        marks = [pytest.mark.slow] if one.slow else []
        yield pytest.param(Attack(one, some_doors(one, number)), id=one.name, marks=marks)
        yield pytest.param(
            Attack(one, tuple(DOORS[one.kind])), id=f"{one.name}, all doors", marks=pytest.mark.full
        )


def some_doors(row, number):
    """The first doors, those that must refuse it, and in the second pass others in turn."""
    first, others = list(DOORS[row.kind])[:QUICK], list(DOORS[row.kind])[QUICK:]
    refusing = [] if row.refused == "all" else [name for name in others if name in row.refused]
    turn = [others[(QUICK * number + i) % len(others)] for i in range(QUICK if row.slow and others else 0)]
    return tuple(dict.fromkeys([*first, *refusing, *turn]))


@pytest.mark.every(fast=2, slow=5)
@pytest.mark.filterwarnings("ignore")  # of Keras and Orbax, about what was done to their files
@pytest.mark.parametrize("attack", list(parameters()))
def test_no_door_is_fooled(whole, kit, tmp_path, attack):
    row = attack.row
    path = goods.copied(whole, row.kind, tmp_path / "artifact")
    row.spoil(path, kit)
    before = _listing(tmp_path)
    wrong = []
    for number, name in enumerate(attack.doors):
        if name == "keras" and not path.is_file():
            continue  # Keras itself waits for a FIFO, and reads a device without end
        scratch = tmp_path / f"scratch{number}"
        watch.forget_peak()
        base = watch.peak()
        with watch.watching(kit.secret.parent, PLANTED) as watched:
            result, why = outcome(DOORS[row.kind][name], path, whole, scratch, checked=row.checked)
        grown = watch.peak() - base
        must = row.refused == "all" or name in row.refused
        found = {
            "not foreseen": why,
            "happened": watched.seen,
            "ran": kit.marker.exists(),
            "not refused": must and result == "right" and name != "keras",
            "MB": grown if grown > MOST and name != "keras" else 0,
            "leaked": _holding(scratch, SECRET[:16].encode()),
            "printed": _strange(scratch),
        }
        wrong += [f"{name}: {what}: {said}" for what, said in found.items() if said]
    assert not wrong, "\n".join(wrong)[:8000]
    assert _listing(tmp_path) == before


def _listing(folder):
    """What lies in the folder of a test, but for what doors write and Python caches."""
    own = (path for path in folder.rglob("*") if not path.is_relative_to(folder / "artifact"))
    names = (str(path.relative_to(folder)) for path in own)
    return sorted(name for name in names if not name.startswith(("scratch", "path")))


def _holding(folder, content):
    """Files that hold some bytes."""
    return [f.name for f in folder.rglob("*") if f.is_file() and content in f.read_bytes()]


def _strange(folder):
    """What a terminal or a browser would take for more than text."""
    printed = folder / PRINTED
    text = printed.read_text(errors="replace") if printed.exists() else ""
    strange = {c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs") and c not in "\n\t"}
    page = folder / "report.html"
    markup = page.exists() and any(tag in page.read_text() for tag in ("<script", "<img", "\x1b"))
    return [ascii(c) for c in strange] + ["markup"] * markup


def test_every_row_has_a_name_of_its_own():
    names = [row.name for row in ROWS]
    assert sorted(set(names)) == sorted(names)
    assert {row.kind for row in ROWS} == set(goods.KINDS)
