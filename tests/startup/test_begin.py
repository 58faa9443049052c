"""Which processes begin as the command line."""

import sys

import pytest

from keras_flax_bridge.startup import begin

STARTS = {
    "by name": (["/bin/keras-flax-bridge", "inspect"], [], True),
    "by module": (["-m", "inspect"], ["python", "-m", "keras_flax_bridge", "inspect"], True),
    "a module of others": (["-m"], ["python", "-m", "train"], False),
    "a program": (["train.py", "doctor"], ["python", "train.py", "doctor"], False),
    "embedded": ([], [], False),
}


@pytest.mark.parametrize("start", STARTS)
def test_only_the_command_line_begins_as_such(monkeypatch, start):
    argv, typed, expected = STARTS[start]
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(sys, "orig_argv", typed)
    assert begin.is_command() == expected
