"""`doctor` says what is wrong with an environment, and what to do."""

import json

import jax
import keras
import pytest

from keras_flax_bridge import cli
from keras_flax_bridge.startup import doctor
from tests.support.subprocesses import ROOT, process

BROKEN = {
    # name: (environment, versions, words)
    "NNX mode": ({"KERAS_NNX_ENABLED": "true"}, {}, "KERAS_NNX_ENABLED=true switches"),
    "old": ({}, {"flax": "0.11.9"}, "flax 0.11.9 is older than 0.12.1"),
    "missing": ({}, {"optax": None}, "optax is not installed. pip install optax"),
    "two releases": ({}, {"jaxlib": "0.99.0"}, "jaxlib 0.99.0 are of different releases"),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_doctor_says_what_to_do(monkeypatch, capsys, broken):
    environment, versions, words = BROKEN[broken]
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    known = doctor.installed
    monkeypatch.setattr(doctor, "installed", lambda name: versions.get(name, known(name)))
    assert cli.main(["doctor"]) == 1
    clashes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("clash: ")]
    assert len(clashes) == 1
    assert words in clashes[0]


def test_doctor_finds_nothing_here(monkeypatch, capsys):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert cli.main(["doctor"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert f"keras {keras.__version__}" in told
    assert "clashes: none" in told


def test_doctor_without_a_device(monkeypatch, capsys):
    monkeypatch.setattr(jax, "devices", lambda: 1 / 0)
    assert cli.main(["doctor", "--json"]) == 1
    assert (
        "jax finds no device (ZeroDivisionError" in json.loads(capsys.readouterr().out)["clashes"][0]["what"]
    )


@pytest.mark.slow
def test_doctor_reports_where_nothing_can_be_imported(tmp_path):
    (tmp_path / "keras.py").write_text("raise ImportError('broken')")
    (tmp_path / "flax.py").write_text("raise ImportError('broken')")
    done = process("doctor", KERAS_BACKEND="tensorflow", PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert done.returncode == 1
    assert "clash: KERAS_BACKEND chooses backend 'tensorflow' for Keras" in done.stdout
    assert done.stderr == ""
    other = process("inspect x", KERAS_BACKEND="tensorflow")
    assert other.returncode == 2
    assert other.stderr.count("\n") == 1
    assert "KERAS_BACKEND: got backend 'tensorflow'" in other.stderr
