"""SIGKILL at random moments of `kfb.fit`: after the restarts everything is as in a run without a break."""

import json
import random
import signal
import time

import pytest

from tests.support import fits, killed_fits
from tests.support.subprocesses import spawn
from tests.support.thinning import LATER


@pytest.mark.parametrize(
    ("name", "kills", "epochs"),
    [
        pytest.param("one", 2, 10, marks=LATER),
        pytest.param("two", 2, 10, marks=pytest.mark.slow),
        pytest.param("one", 30, 100, marks=pytest.mark.full),
        pytest.param("two", 30, 100, marks=pytest.mark.full),
    ],
)
def test_killed_at_random_moments_it_ends_as_without_a_break(tmp_path, name, kills, epochs):
    (tmp_path / "keras").mkdir()
    wanted = killed_fits.by_keras(name, tmp_path / "keras", epochs)
    moments, killed = random.Random(5), 0
    while not (tmp_path / "outcome.json").exists():
        longest = 2 * epochs * killed_fits.BATCHES // kills if killed < kills else None
        killed += run(name, tmp_path, epochs, longest and moments.randint(1, longest), moments)
    assert killed >= min(kills, 2), "it was over before it was killed"
    assert json.loads((tmp_path / "outcome.json").read_text()) == wanted
    assert fits.files(tmp_path / "files") == fits.files(tmp_path / "keras")


def run(name, folder, epochs, batches, moments):
    """One process, killed some time after so many batches; whether it was killed."""
    with spawn(killed_fits.program, name, str(folder), epochs) as process:
        for _ in range(batches or 0):
            process.stdout.readline()
        if batches is not None:
            time.sleep(moments.uniform(0, 0.05))
            process.send_signal(signal.SIGKILL)
        process.stdout.read()
        code = process.wait(300)
    assert code in (0, -signal.SIGKILL), code
    return code != 0
