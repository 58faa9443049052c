"""A run that was stopped ends with the bits of one that was not."""

import numpy as np
import pytest

import keras_flax_bridge as kfb
from tests.support import resumable_runs as resuming
from tests.tables import contracts

DATA = [resuming.shuffled, resuming.Own]


@pytest.mark.every(slow=2)
@pytest.mark.slow
@pytest.mark.parametrize("data_fn", DATA, ids=["grain", "own"])
def test_everything_resumes_to_the_bit(data_fn):
    report = kfb.verify_resume(resuming.everything, data_fn, steps=(4, 3))  # stops within an epoch of 5
    assert report.ok, str(report)
    assert report.leaves > 40


@pytest.mark.slow
def test_what_is_lost_is_named():
    report = kfb.verify_resume(resuming.everything, resuming.forgetting, steps=(2, 1))
    assert not report.ok
    assert "metrics/loss/total" in report.differing
    assert str(report).endswith(f"first {report.differing[0]}")


@pytest.mark.parametrize(("data_fn", "steps"), [(lambda: None, (1, 1)), (resuming.shuffled, (3, 0))])
def test_what_can_not_be_verified_is_explained(data_fn, steps):
    with pytest.raises(kfb.BridgeError, match=r"top level|1 or more"):
        kfb.verify_resume(resuming.everything, data_fn, steps=steps)


@pytest.mark.slow
def test_a_process_that_fails_is_said():
    with pytest.raises(kfb.BridgeError, match="the run straight: got exit code 1"):
        kfb.verify_resume(resuming.everything, resuming.missing)


@pytest.mark.slow
@pytest.mark.parametrize("data_fn", [resuming.shuffled, resuming.Own], ids=["grain", "own"])
def test_position_is_that_of_the_consumed_batch(tmp_path, data_fn):
    first, second = data_fn(), data_fn()
    state = kfb.TrainState.from_keras(contracts.SEQUENTIAL.build())
    for _ in range(3):
        next(first)
    with kfb.CheckpointManager(tmp_path) as manager:
        manager.save(state, data=first)
        wanted = next(first)  # after the save has begun
        manager.restore(state, data=second)
    got = next(second)
    assert all(np.array_equal(a, b) for a, b in zip(got, wanted, strict=True))


class Array(resuming.Own):
    def get_state(self):
        return np.ones(3)


class Tuple(resuming.Own):
    def get_state(self):
        return {0: (1, 2)}


WRONG = {
    "a tuple": (Tuple(), "JSON"),
    "no state": (iter([]), "without get_state"),
    "an array": (Array(), "JSON"),
}


@pytest.mark.parametrize(("iterator", "words"), WRONG.values(), ids=WRONG)
def test_an_iterator_that_can_not_say_where_it_is_is_explained(tmp_path, iterator, words):
    state = kfb.TrainState.from_keras(contracts.SEQUENTIAL.build())
    with kfb.CheckpointManager(tmp_path) as manager, pytest.raises(kfb.CheckpointError, match=words):
        manager.save(state, data=iterator)
