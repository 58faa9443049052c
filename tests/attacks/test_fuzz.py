"""Random damage and forgery: right values or an error that is told, whatever a file holds."""

from typing import NamedTuple

import pytest

from tests.attacks import fuzz

SIZE = 20  # artifacts of one test, so that workers share them and a failure names few


class Batch(NamedTuple):
    """Some seeds of a pass; each batch may run in a worker of its own."""

    name: str
    group: str
    first: int


BATCHES = [
    Batch(f"{group}-{first}", group, first)
    for group, count in fuzz.COUNTS.items()
    for first in range(fuzz.FIRST[group], fuzz.FIRST[group] + count, SIZE)
]
MARKS = {"fast": [], "slow": [pytest.mark.slow], "full": [pytest.mark.full]}


@pytest.mark.filterwarnings("ignore")  # of Keras and Orbax, about what was done to their files
@pytest.mark.parametrize("batch", [pytest.param(b, id=b.name, marks=MARKS[b.group]) for b in BATCHES])
def test_whatever_a_file_holds_is_right_or_told(whole, tmp_path, batch):
    wrong = []
    for seed in range(batch.first, batch.first + SIZE):
        (tmp_path / str(seed)).mkdir()
        wrong += fuzz.attempt(whole, seed, tmp_path / str(seed), every=batch.group == "full")
    assert not wrong, "\n\n".join(wrong)[:20_000]
