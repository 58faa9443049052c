"""The source of whole models: names, length and format."""

import ast
import subprocess
import sys

import keras
import pytest
from flax import nnx
from keras import layers as L

import keras_flax_bridge as kfb
from tests.support.models import applications, native

migrate = kfb.migrate
pytestmark = pytest.mark.usefixtures("numpy_weights")


NAMES = [
    'x"); import os #',
    "class",
    "__init__",
    "train",
    "self",
    "jnp",
    "rngs",
    "1 layer",
    "ünï cödé",
    "»m«",
    "a\\nb = 1",
    "{x}",
    "None",
    "blocks",
    "print('hi')",
]


def test_names_are_never_code():
    keras.utils.set_random_seed(0)
    x = keras.Input((3,), name='in"put')
    y = x
    for name in NAMES:
        y = L.Dense(3, name=name)(y)
    model = keras.Model({'in"put': x}, {"a\"]; print('x') #": y}, name='"""\nimport os')
    source = migrate.to_source(model, class_name="1 class;")
    names = {node.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)}
    assert not names & {"os", "print"}
    module = migrate.to_nnx(model)
    assert module.conversion_report.checked < 1e-6
    assert len(nnx.to_flat_state(nnx.state(module))) == 2 * len(NAMES)


def test_the_source_does_not_depend_on_what_else_was_built():
    first = migrate.to_source(native.unet())
    L.Conv2D(3, 3)
    assert migrate.to_source(native.unet()) == first


LIMITS = {"ResNet50": 150, "MobileNetV2": 120}


@pytest.mark.slow
@pytest.mark.parametrize("family", LIMITS)
def test_sources_are_short(family):
    source = migrate.to_source(getattr(keras.applications, family)(weights=None))
    assert len(source.splitlines()) <= LIMITS[family]
    assert "for block in self.blocks" in source


@pytest.mark.slow
def test_the_source_of_a_transformer_is_short():
    assert len(migrate.to_source(native.transformer(12, 32, 4)).splitlines()) <= 120


@pytest.mark.every(slow=3)
@pytest.mark.slow
@pytest.mark.parametrize("name", applications.FAMILIES)
def test_sources_are_formatted(name, tmp_path):
    model = applications.body(name)
    file = tmp_path / "model.py"
    file.write_text(migrate.to_source(model))
    command = [sys.executable, "-m", "ruff", "format", "--isolated", "--diff", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
