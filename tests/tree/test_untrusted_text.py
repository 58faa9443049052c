"""No name out of a file acts on a terminal, a notebook or a chart that shows it."""

import contextlib
import io
import json
import re
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest

import keras_flax_bridge as kfb
from keras_flax_bridge import cli, migrate
from keras_flax_bridge.errors import printable
from tests.support import hostile

PACKAGE = Path(kfb.__file__).parent


ACTS = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]")


def clean(text):
    return not ACTS.search(text)


@pytest.mark.parametrize(
    "code", [*range(0x20), *range(0x7F, 0xA1), 0x61C, 0x200E, 0x202E, 0x2066, 0xFEFF, 0xD800]
)
def test_no_character_that_acts_is_printed(code):
    assert clean(printable(f"a{chr(code)}b"))
    assert printable(f"a{chr(code)}b").isascii()


def test_names_of_any_language_stay():
    assert printable("dénse/核/λ 1") == "dénse/核/λ 1"


E_ = hostile.ESCAPE


TEXTS = {
    "an error": lambda: kfb.BridgeError(E_, got=E_, expected=E_, fix=E_),
    "an error of leaves": lambda: kfb.StructureMismatchError(E_, missing=[E_], unexpected=[E_], fix=E_),
    "an error with a table": lambda: kfb.StructureMismatchError(E_, report=[E_], fix=E_),
    "a map": lambda: migrate.WeightMap([migrate.map_schema.Pair(((E_,),), ((E_,),))], notes=[E_]).table(),
}


@pytest.mark.parametrize("row", TEXTS)
def test_what_is_printed_acts_on_nothing(row):
    text = str(TEXTS[row]())
    assert "owned" in text
    assert clean(text)
    assert not any(line.startswith("forged") for line in text.split("\n"))


def test_a_chart_reads_no_formula_in_a_name():
    history = kfb.History()
    history.epoch, history.history = [0], {f"$\\bad{{{E_}": [1.0]}
    figure = history.plot()
    title = figure.axes[0].title
    assert not title.get_parse_math()
    assert clean(title.get_text())
    figure.canvas.draw()


@pytest.fixture
def named_checkpoint(tmp_path):
    """A checkpoint whose names and whose config are full of what acts on a terminal."""
    kfb.save(tmp_path / "bad", {E_: {"<b>[red]x[/red]</b>": jnp.ones(2)}})
    kfb.save(tmp_path / "good", {"a": jnp.ones(2)})
    return tmp_path / "bad", tmp_path / "good"


class Terminal(io.StringIO):
    def isatty(self):
        return True


COMMANDS = [
    "inspect {bad}",
    "verify {bad}",
    "diff {bad} {good}",
    "diff {good} {bad}",
    "convert {bad} {bad}.keras",
]
COMMANDS += ["inspect {bad}.missing{escape}", "convert {bad} {bad}{escape}", "inspect {bad} --step {escape}"]


@pytest.mark.every(fast=2)
@pytest.mark.parametrize("is_terminal", [True, False])
@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_prints_what_acts(command, is_terminal, named_checkpoint, monkeypatch):
    bad, good = named_checkpoint
    out, err = (Terminal() if is_terminal else io.StringIO() for _ in range(2))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    monkeypatch.setenv("TERM", "dumb")  # no colours: what is left of escapes is the file's
    typed = [word.format(bad=bad, good=good, escape=E_.replace("/", "")) for word in command.split()]
    with contextlib.suppress(SystemExit):
        cli.main(typed)
    text = (out.getvalue() + err.getvalue()).replace(str(bad), "").replace(str(good), "")
    assert clean(text)
    assert not any(line.strip().startswith("forged") for line in text.split("\n"))


def test_json_has_the_exact_names(named_checkpoint, capsys):
    bad, good = named_checkpoint
    path = f"{E_}/<b>[red]x[~1red]<~1b>"
    assert cli.main(["inspect", str(bad), "--json"]) == 0
    text = capsys.readouterr().out
    assert [leaf["path"] for leaf in json.loads(text)["leaves"]] == [path]
    assert clean(text)
    assert cli.main(["diff", str(bad), str(good), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["missing"][0]["path"] == path


def test_paths_in_an_error_are_exact():
    with pytest.raises(kfb.StructureMismatchError) as raised:
        raise kfb.StructureMismatchError("x", missing=[E_], fix="y")
    assert raised.value.missing == (E_,)
