"""Every door by which a file comes in, and what may come out: right values, or an error that is told."""

import contextlib
import faulthandler
import io
import signal
import time
import traceback
import warnings

import jax
import keras
import numpy as np

import keras_flax_bridge as kfb
from keras_flax_bridge import cli, migrate
from keras_flax_bridge.checkpoint import readers
from keras_flax_bridge.tree.paths import flatten_tree, join_path, nest_paths

RAW = "Run it again with --debug"  # how the command line says that an error was not foreseen


class Hang(BaseException):
    """A door that doesn't open and doesn't close."""


def _abstract(goods):
    return jax.tree.map(np.zeros_like, nest_paths(goods.flat))


def _restore(like):
    return lambda path, goods, scratch: _flat(kfb.restore(path, like(goods)))


def _manager(path, goods, scratch):
    with kfb.CheckpointManager(path.parent, keep_best="loss") as manager:
        note(scratch, str(manager.best_step))
        return _flat(manager.restore(goods.state))


def _flat(found):
    return {path: np.asarray(leaf) for path, leaf in flatten_tree(found).items()}


def _into_model(path, goods, scratch):
    kfb.restore(path, goods.model)
    return _flat(kfb.TrainState.from_keras(goods.model).params)


def _load(path, goods, scratch):
    return _flat(kfb.TrainState.from_keras(kfb.load_model(path)).params)


def _keras(path, goods, scratch):
    try:
        return _flat(kfb.TrainState.from_keras(keras.saving.load_model(path)).params)
    except Exception as error:  # what Keras raises is its own affair; that nothing runs is not
        raise kfb.CheckpointError(str(path), got=type(error).__name__, expected="-", fix="-") from error


def _map(path, goods, scratch):
    found = migrate.WeightMap.load(path)
    note(scratch, repr(found))
    kfb.restore(goods.path("tree"), goods.module, rename=found)
    found.to_keras(found.to_flax(goods.state), like=goods.state)
    return {}


def _verify(path, goods, scratch):
    report = kfb.verify(path)
    note(scratch, str(report))
    if not report.ok:
        raise kfb.CorruptCheckpointError(str(path), got=str(report), expected="-", fix="-")
    return {}


def _html(path, goods, scratch):
    report = readers.opened(path).report()
    note(scratch, str(report))
    (scratch / "report.html").write_text(report._repr_html_())
    return {}


def _module(path, goods, scratch):
    kfb.restore(path, goods.module)
    return {}


def _typed(*words):
    """A command; `PATH`, `OTHER` (a whole artifact of the same names), `OUT` and `MODEL` are filled in."""

    def door(path, goods, scratch):
        filled = {"PATH": path, "OTHER": goods.path("tree"), "OUT": scratch / "out"}
        filled["MODEL"] = goods.path("keras")
        told, complained = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(told), contextlib.redirect_stderr(complained):
            try:
                code = cli.main([_filled(word, filled) for word in words])
            except SystemExit as ended:
                code = ended.code
        said = complained.getvalue()
        note(scratch, told.getvalue() + said)
        if code not in (0, 1, 2) or RAW in said:
            raise AssertionError(f"exit code {code}: {said[-1500:]}")
        if code:
            raise kfb.CheckpointError(str(path), got=f"exit code {code}", expected="0", fix=said[:500])
        return {}

    return door


def note(scratch, text):
    """Keeps what a door printed or said."""
    with (scratch / PRINTED).open("a", errors="surrogateescape") as file:
        file.write(text)


PRINTED = "printed.txt"
VALUES = "values"  # the bytes of the leaves that came out


def _filled(word, filled):
    for name, value in filled.items():
        word = word.replace(name, str(value))
    return word


_CONVERT = {
    f"convert to {kind}": _typed("convert", "PATH", f"OUT{suffix}", "--to", kind, "--model", "MODEL")
    for kind, suffix in {
        "checkpoint": "",
        "flax": "",
        "keras": ".keras",
        "weights.h5": ".weights.h5",
        "safetensors": ".safetensors",
    }.items()
}
_LOOK = {
    "inspect": _typed("inspect", "PATH"),
    "inspect --json": _typed("inspect", "PATH", "--json"),
    "html": _html,
    "diff": _typed("diff", "PATH", "OTHER", "--model", "MODEL"),
}
_COMPARE = {"diff --values": _typed("diff", "PATH", "OTHER", "--values", "--model", "MODEL")}
_OWN = {"convert by its own config": _typed("convert", "PATH", "OUT.keras")}
_VERIFY = {"verify": _verify, "cli verify": _typed("verify", "PATH")}
_CHECKPOINT = {
    "restore a state": _restore(lambda goods: goods.state),
    "restore a tree": _restore(_abstract),
    **_VERIFY,
    **_LOOK,
    "restore a model": _into_model,
    "restore a module": _module,
    "manager": _manager,
    "load_model": _load,
    **_COMPARE,
    **_CONVERT,
    **_OWN,
}
_KERAS = {
    "load_model": _load,
    "inspect": _LOOK["inspect"],
    "restore a model": _into_model,
    "restore a tree": _restore(lambda goods: {"params": goods.state.params}),
    "restore a module": _module,
    **_VERIFY,
    **_LOOK,
    **_COMPARE,
    **_CONVERT,
    **_OWN,
    "eject": _typed("eject", "PATH", "OUT.py"),
    "keras": _keras,
}
_ARRAYS = {
    "restore a tree": _restore(_abstract),
    "inspect": _LOOK["inspect"],
    **_VERIFY,
    **_LOOK,
    "restore a state": _restore(lambda goods: goods.state),
    "restore a model": _into_model,
    **_COMPARE,
    **_CONVERT,
    **_OWN,
}
# the doors of a kind of artifact; the first ones are the quickest
DOORS = {
    "tree": _CHECKPOINT,
    "packed": _CHECKPOINT,
    "keras": _KERAS,
    "weights": {"restore a model": _into_model, **_LOOK, **_VERIFY, **_COMPARE, **_CONVERT},
    "safetensors": {
        **_LOOK,
        "restore a tree": _restore(_abstract),
        **_VERIFY,
        **_COMPARE,
        **_CONVERT,
        **_OWN,
    },
    "index": _ARRAYS,
    "npz": _ARRAYS,
    "msgpack": _ARRAYS,
    "map": {"load": _map},
    "flax": {name: door for name, door in _CHECKPOINT.items() if name not in ("manager", "load_model")},
    "callback": {"load_model": _load, **_CHECKPOINT},
}
CHECKED = ("tree", "packed")  # kinds that carry checksums: what comes out is right


@contextlib.contextmanager
def timed(seconds):
    """Raises `Hang` in Python code, and ends the process where other code doesn't return.

    Args:
        seconds: of this process's own time; of the clock four times as many, as other processes run too.
    """
    begin, rounds = time.process_time(), iter(range(3))

    def stop(*_):
        if time.process_time() - begin >= seconds or next(rounds, None) is None:
            raise Hang
        signal.setitimer(signal.ITIMER_REAL, seconds)

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    faulthandler.dump_traceback_later(8 * seconds, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def outcome(door, path, goods, scratch, *, checked, seconds=30):
    """What a door makes of an artifact: ``right`` or ``told``, and what is wrong where neither holds."""
    scratch.mkdir(exist_ok=True)
    try:
        with timed(seconds), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = door(path, goods, scratch)
    except kfb.BridgeError as error:
        note(scratch, str(error))
        return "told", "" if str(error) else "an error without a word"
    except (Exception, Hang):
        return "raw", traceback.format_exc()[-3000:]
    (scratch / VALUES).write_bytes(b"".join(leaf.tobytes() for leaf in found.values()))
    wrong = differing(found, goods) if checked else []
    return ("wrong", f"other values than were saved: {wrong}") if wrong else ("right", "")


def differing(found, goods):
    """The leaves that came back otherwise."""
    saved = {path[1:]: leaf for path, leaf in goods.flat.items() if path[0] == "params"} | goods.flat
    both = [path for path in found if path in saved]
    return [join_path(path) for path in both if found[path].tobytes() != saved[path].tobytes()]
