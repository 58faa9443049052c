"""The package without optional libraries, and its output where there is no terminal."""

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow  # a process each

WITHOUT = """
import sys

class Without:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in {absent} else self.finder.find_spec(name, path, target)

sys.meta_path[:] = map(Without, sys.meta_path)
"""
USE = """
import keras_flax_bridge as kfb
import keras, numpy as np, tempfile

def build():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("adam", "mse")
    return model

x = np.ones((8, 4), "float32")
model = build()
state, logs = kfb.make_train_step(model)(kfb.TrainState.from_keras(model), (x, x[:, :1]))
folder = tempfile.mkdtemp()
kfb.save(folder + "/one", state)
again = kfb.restore(folder + "/one", kfb.TrainState.abstract(build))
state.assign_to(model)
module = kfb.migrate.to_nnx(model)
"""
OPTIONAL = ("tensorflow", "torch", "grain", "matplotlib", "sklearn", "safetensors", "pandas", "IPython")
DISPLAYS = ("rich.live", "rich.progress", "rich.status")  # what draws while something runs


def output(code, **options):
    """What a process of its own prints, on standard output and on standard error."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


@pytest.mark.parametrize(
    "absent", [("tensorflow",), ("grain",), OPTIONAL], ids=["tensorflow", "grain", "all"]
)
def test_it_imports_without(absent):
    printed, _ = output(
        WITHOUT.format(absent=absent) + "import keras_flax_bridge as kfb; print(kfb.__version__)"
    )
    assert printed.strip()


@pytest.mark.slow
@pytest.mark.parametrize("absent", [("tensorflow",), OPTIONAL], ids=["tensorflow", "all"])
def test_it_trains_saves_and_converts_without(absent):
    printed, _ = output(WITHOUT.format(absent=absent) + USE + "print(int(again.step), module(x).shape)")
    assert printed.strip() == "1 (8, 1)"


def test_importing_loads_no_display_and_no_other_backend():
    names = (*DISPLAYS, "tensorflow", "torch")
    printed, _ = output(
        f"import json, sys, keras_flax_bridge; print(json.dumps([n for n in {names} if n in sys.modules]))"
    )
    assert json.loads(printed) == []


@pytest.mark.slow
def test_nothing_is_drawn_in_a_pipe():
    """Reports are plain text there, and progress is silent."""
    printed, told = output(
        USE + "from keras_flax_bridge.checkpoint.progress import working\n"
        "with working('restoring'): again = kfb.restore(folder + '/one', again)\n"
        "print(kfb.report(state)); print(kfb.verify(folder + '/one'))"
    )
    assert "dense" in printed
    assert "restoring" not in told
    assert "\x1b" not in printed + told
