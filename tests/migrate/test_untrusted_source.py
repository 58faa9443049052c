"""No name and no setting of a model becomes code in the source that is written for it."""

import ast
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_flax_bridge as kfb
from keras_flax_bridge import migrate
from keras_flax_bridge.errors import printable_lines
from keras_flax_bridge.migrate.python_text import Raw, identifier, literal
from keras_flax_bridge.migrate.source.gate import require_plain
from tests.support import hostile

PACKAGE = Path(kfb.__file__).parent


NAMES = [
    'x"""\nimport os',
    "x'''\nimport os",
    "x\nraise SystemExit",
    "x\rraise SystemExit",
    "x\u2028raise SystemExit",
    "x\\",
    '"',
    "'",
    "{x}",
    "%s",
    "«m»",
    "«0»",
    "lambda",
    "None",
    "None_1",
    "True",
    "import",
    "__class__",
    "__init__",
    "__dict__",
    "self",
    "rngs",
    "jnp",
    "nnx",
    "eval",
    "exec",
    "train",
    "unit_norm",
    "\u13dflass",
    "\ufb01",
    "1x",
    "",
    " ",
    "a" * 300,
    hostile.ESCAPE,
    "\ud800",
]


def named(name):
    """A model in which every name that a user can give is this one."""
    given = name or None
    one, two = keras.Input((4,), name=f"{name}_in"), keras.Input((4,), name=f"{name}_too")
    x = keras.layers.Dense(4, name=given)(one) + two
    for i in range(3):
        x = keras.layers.Dense(4, "relu", name=f"{name}_{i}_a")(x)
        x = keras.layers.LayerNormalization(name=f"{name}_{i}_b")(x) + x
    inner = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name=given)], name=f"{name}_inner")
    return keras.Model({f"{name}_in": one, f"{name}_too": two}, {name: inner(x)}, name=given)


@pytest.mark.every(fast=2)
@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_no_name_gets_out_of_its_place_in_the_source(name, numpy_weights):
    model = named(name)
    text = migrate.to_source(model, class_name=name)
    tree = ast.parse(text)
    imports = {ast.unparse(node) for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))}
    assert imports <= {"import jax", "import jax.numpy as jnp", "from flax import nnx", "import math"}
    assert {type(node) for node in tree.body} <= {ast.Import, ast.ImportFrom, ast.ClassDef, ast.FunctionDef}
    assert text.isascii()
    assert printable_lines(text) == text
    assert set(migrate.to_nnx(model)({f"{name}_in": np.ones((1, 4)), f"{name}_too": np.ones((1, 4))})) == {
        name
    }


@pytest.mark.parametrize("text", NAMES, ids=ascii)
def test_a_text_stays_in_its_quotes(text):
    assert ast.literal_eval(literal(text)) == text
    assert ast.literal_eval(literal({text: [text]})) == {text: [text]}
    name = identifier(text, set().__contains__, "x")
    assert name.isidentifier()
    assert ast.parse(f"{name} = 1")


@pytest.mark.parametrize("text", ["os.system('x')", "1) or (2", "float32; import os", "", None, [1]])
def test_a_number_a_dtype_and_a_keyword_are_nothing_else(text):
    from keras_flax_bridge.migrate import python_text

    for write in (python_text.number, python_text.dtype_name, python_text.keyword_name):
        with pytest.raises(python_text.Unwritable):
            write(text)


SOURCES = [
    "import os",
    "from os import system",
    "x = eval('1')",
    "class A(nnx.Module):\n    def __call__(self, x):\n        return open('x')",
    "class A(nnx.Module):\n    def __call__(self, x):\n        return x.__class__",
    "class A(nnx.Module):\n    def __call__(self, x):\n        return self.a.__globals__",
    "class A(nnx.Module):\n    def __call__(self, x):\n        return jnp.load('x')",
    "class A(nnx.Module):\n    def __call__(self, x):\n        return jax._src.os.system('x')",
    "class A(nnx.Module):\n    def __call__(self, x):\n        return jax.numpy.np.save('x', x)",
    "class A(nnx.Module):\n    def __call__(self, x):\n        return jax.pure_callback(x, x)",
    "class A(nnx.Module):\n    def __call__(self, x):\n        return getattr(x, 'a')",
    "class A(nnx.Module):\n    def f(self, eval):\n        pass\n\n    def g(self):\n        return eval()",
    "class A(nnx.Module):\n    def f(self, x):\n        with x:\n            return x",
    "class A(nnx.Module):\n    def f(self, x):\n        return f'{x!r}'",
    "class A(nnx.Module):\n    def f(self, x):\n        global y\n        return x",
    "class A(os.System):\n    pass",
    "@eval\nclass A(nnx.Module):\n    pass",
    "class A(nnx.Module):\n    def f(self, x=exec('x')):\n        return x",
]


@pytest.mark.parametrize("source", SOURCES)
def test_the_second_lock_of_the_source(source):
    with pytest.raises(kfb.UnsupportedLayerError, match="source"):
        require_plain(source, set())


def test_raw_text_in_a_rule_meets_the_second_lock(tmp_path, numpy_weights):
    class Window(keras.layers.Layer):
        window = f"open({str(tmp_path / 'mark')!r}, 'w')"

        def call(self, x):
            return x

    migrate.register_rule(Window, call=lambda site: f"{site.x} + len({site.layer.window})")
    model = keras.Sequential([keras.Input((4,)), Window()])
    for convert in (migrate.to_source, migrate.to_nnx):
        with pytest.raises(kfb.UnsupportedLayerError, match="open"):
            convert(model)
    assert not (tmp_path / "mark").exists()


def test_raw_is_what_rules_write():
    assert literal(Raw("jnp.tanh")) == "jnp.tanh"
