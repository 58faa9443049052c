"""Which backend Keras gets, in processes of their own: the choice is made once, at import."""

import json
import os
import subprocess
import sys

import pytest

from keras_flax_bridge import errors
from keras_flax_bridge.startup import backend

WRITTEN_BY_KERAS = json.dumps(backend.WRITTEN_BY_KERAS)

CASES = {
    # name: (KERAS_BACKEND, keras.json, code, what it prints or the error's words)
    "nothing chosen": (None, None, "", "jax"),
    "second run": (None, WRITTEN_BY_KERAS, "", "jax"),
    "user's config": (None, '{"backend": "jax"}', "", "jax"),
    "broken config": (None, "{", "", "jax"),
    "other in config": (None, '{"backend": "tensorflow"}', "", "keras.json: got backend 'tensorflow'"),
    "other in environment": ("numpy", None, "", "KERAS_BACKEND: got backend 'numpy'"),
    "other already imported": ("numpy", None, "import keras", "the imported keras: got backend 'numpy'"),
}


FAST = ("nothing chosen", "other in environment")


@pytest.mark.parametrize(
    ("variable", "config", "before", "words"),
    [pytest.param(*c, id=n, marks=[] if n in FAST else [pytest.mark.slow]) for n, c in CASES.items()],
)
def test_backend(tmp_path, variable, config, before, words):
    if config is not None:
        (tmp_path / "keras.json").write_text(config)
    environment = {k: v for k, v in os.environ.items() if k != "KERAS_BACKEND"}
    environment |= {"KERAS_HOME": str(tmp_path)} | ({"KERAS_BACKEND": variable} if variable else {})
    code = f"{before}\nimport keras_flax_bridge, keras\nprint(keras.backend.backend())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert words in done.stdout + done.stderr
    assert ("BackendError" in done.stderr) == ("got" in words)
    if "got" in words:
        assert "KERAS_BACKEND=jax" in done.stderr


@pytest.mark.slow
def test_orbax_and_grain_wait_until_they_are_used():
    code = (
        "import keras_flax_bridge, sys\n"
        "print([name for name in ('orbax.checkpoint', 'grain') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_importing_starts_no_device():
    """`jax.distributed.initialize` must come before the first use of one, and may come after the import."""
    code = "import keras_flax_bridge, jax\njax.config.update('jax_platforms', 'nowhere')\njax.devices()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "nowhere" in done.stderr.splitlines()[-1]


def test_errors_survive_pickling_and_keras_s_traceback_filter():
    import pickle

    error = errors.NotBuiltError("model", got="a", expected="b", fix="Do c.")
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.where, again.fix) == (str(error), "model", "Do c.")
    assert str(type(error)("with context")) == "with context"
