"""Wrong commands and options are answered with those that exist."""

import pytest

from keras_flax_bridge import cli
from keras_flax_bridge.tree.words.table import WORDS
from keras_flax_bridge.tree.words.word import OPTIONS

PLACES = {"inspect": "a", "verify": "a", "diff": "a b", "convert": "a b", "eject": "a b", "plan": "a"}
ROWS = [
    (d, g, word.right) for word in WORDS[OPTIONS] for d in word.doors.split() for g in word.guesses.split()
]


def refused(capsys, *typed):
    with pytest.raises(SystemExit) as ended:
        cli.main(typed)
    assert ended.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(("command", "guess", "right"), ROWS)
def test_wrong_words_are_answered_with_what_exists(capsys, command, guess, right):
    is_option = guess.startswith("-")
    typed = [command, *PLACES[command].split(), guess] if is_option else [guess]
    assert f"Type {right}." in refused(capsys, *typed)
    with pytest.raises(SystemExit):
        cli.main([command if is_option else right, "--help"])
    assert right in capsys.readouterr().out


def test_the_first_unknown_option_is_answered_with_the_most_similar(capsys):
    assert "Type --step." in refused(capsys, "verify", "a", "--steps", "3", "--nine")


def test_what_nothing_resembles_gets_the_help(capsys):
    assert "keras-flax-bridge verify --help" in refused(capsys, "verify", "a", "--nine")
    assert "keras-flax-bridge --help" in refused(capsys, "fly")
