"""The command line, as it is typed."""

import json
import sys

import jax
import keras
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import keras_flax_bridge as kfb
from keras_flax_bridge import cli
from tests.checkpoint.test_checksums import flip
from tests.support import files
from tests.support.capabilities import needs, where
from tests.support.subprocesses import process


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with all kinds; one damaged, one with other values, a root of steps, a state of a module."""
    folder = tmp_path_factory.mktemp("made")
    state = files.write(folder)
    kfb.save(folder / "damaged", state)
    flip(max((folder / "damaged" / "state" / "d").iterdir(), key=lambda file: file.stat().st_size), 3000)
    kernel = state.params["first"]["kernel"]
    params = {**state.params, "first": {**state.params["first"], "kernel": kernel.at[0, 0].add(0.5)}}
    kfb.save(folder / "moved", state.replace(params=params))
    cut = {
        **state.params,
        "first": {"kernel": kernel[1:], "extra": kernel, "bias": kernel[0].astype("bfloat16")},
    }
    kfb.save(folder / "cut", state.replace(params=cut))
    with kfb.CheckpointManager(folder / "steps") as manager:
        for step in (3, 7):
            manager.save(state.replace(step=state.step * 0 + step))
    kfb.save(folder / "module", nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
    (folder / "notes.txt").write_text("no model")
    keras.Sequential([keras.Input((2,)), keras.layers.Lambda(lambda x: x)]).save(folder / "code.keras")
    return folder


ROWS = {
    # name: (what is typed, exit code, words on stdout, words on stderr)
    "inspect a checkpoint": ("inspect tree", 0, "params/first/kernel param float32 6x4 96", ""),
    "kinds": ("inspect tree", 0, "non_trainable/dropout/seed_generator_state seed uint32 2 8", ""),
    "statistics": ("inspect packed", 0, "batch_normalization/moving_mean batch_stat float32 4 16", ""),
    "totals": ("inspect tree", 0, "params: 6 leaves 204", ""),
    "all": ("inspect tree", 0, "all: 32 leaves 696", ""),
    "the newest step": ("inspect steps", 0, "/steps/7: checkpoint", ""),
    "a step": ("inspect steps --step 3", 0, "/steps/3: checkpoint", ""),
    "no such step": ("inspect steps --step 4", 2, "", "expected one of the steps [3, 7]"),
    "a Keras file": ("inspect model.keras", 0, "opt_state/momentums/first/kernel slot", ""),
    "weights": ("inspect model.weights.h5", 0, "layers/dense/vars/0 float32 6x4 96", ""),
    "weights of a model": (
        "inspect model.weights.h5 --model model.keras",
        0,
        "params/first/kernel param float32 6x4 96",
        "",
    ),
    **where(
        "OrbaxCheckpoint",
        {"Keras's callback": ("inspect orbax", 0, "params/first/kernel param float32 6x4 96", "")},
    ),
    "Flax": ("inspect flax", 0, "checkpoint of other Orbax code", ""),
    "a module": ("inspect module", 0, "params/kernel param float32 2x3 24", ""),
    "nothing there": ("inspect nowhere", 2, "", "nowhere: got nothing, expected a file or a folder"),
    "no checkpoint": ("inspect .", 2, "", "no checkpoint"),
    "another file": ("inspect notes.txt", 2, "", "a file of another kind"),
    "a step of a file": ("inspect model.keras --step 1", 2, "", "Leave the step out"),
    "no module to import": ("inspect tree --import nowhere", 2, "", "--import: got 'nowhere'"),
    "whole": ("verify tree", 0, "32 leaves, 0 unchecked, whole", ""),
    "damaged": ("verify damaged", 1, "0 checked, 0 unchecked, 32 damaged", ""),
    "damage is named": ("verify damaged --json", 1, '"ok": false', ""),
    "an archive": ("verify model.keras", 0, "0 unchecked, whole, by the CRC-32 of the zip archive", ""),
    "no checksums": ("verify model.weights.h5", 1, "22 of 22 leaves have no checksum: not verified", ""),
    "no checksums for programs": ("verify flax --json", 1, '"ok": false, "leaves": 32, "checked": 0', ""),
    "others' checkpoint": ("verify flax", 1, "0 checked, 32 unchecked, 0 damaged", ""),
    "a step of a file to verify": ("verify model.keras --step 1", 2, "", "a root folder"),
    "nothing to verify": ("verify nowhere", 2, "", "Look at the path once more"),
    "the same": ("diff tree packed --values", 0, "32 leaves compared: no difference", ""),
    "the same in Keras's file": (
        "diff tree model.keras --values",
        0,
        "22 leaves compared: no difference",
        "",
    ),
    "what isn't compared": ("diff model.keras tree", 0, "Keras's files hold no metrics", ""),
    "weights by the other's model": ("diff model.weights.h5 tree --values", 0, "22 leaves compared", ""),
    "two files of weights": ("diff model.weights.h5 model.weights.h5 --values", 0, "no difference", ""),
    **where(
        "OrbaxCheckpoint",
        {
            "the same in Keras's callback": (
                "diff orbax tree --values",
                0,
                "24 leaves compared: no difference",
                "",
            )
        },
    ),
    "the same in Flax": ("diff flax tree --values", 0, "32 leaves compared: no difference", ""),
    "weights of nobody": ("diff model.weights.h5 flax", 2, "", "Give it with --model FILE.keras"),
    "weights of somebody": ("diff model.weights.h5 flax --model model.keras", 0, "no difference", ""),
    "values": ("diff tree moved --values", 1, "value params/first/kernel 0.5", ""),
    "no values": ("diff tree moved", 0, "no difference", ""),
    "missing": ("diff cut tree", 1, "missing params/first/extra float32[6,4]", ""),
    "unexpected": ("diff tree cut", 1, "unexpected params/first/extra float32[6,4]", ""),
    "shape": ("diff tree cut", 1, "shape params/first/kernel float32[6,4] and float32[5,4]", ""),
    "dtype": ("diff tree cut", 1, "dtype params/first/bias float32[4] and bfloat16[4]", ""),
    "damage while comparing": ("diff tree damaged --values", 1, "", "damaged leaves"),
    "no model for a Keras file": ("convert flax out.keras", 2, "", "Pass it with --model FILE.keras"),
    "no model for weights": (
        "convert model.weights.h5 out",
        2,
        "",
        "Pass its model with --model",
    ),
    "another model": ("convert module out.keras --model model.keras", 2, "", "missing params/first/kernel"),
    "code": ("convert code.keras out", 2, "", "that Keras can't build a Sequential from"),
    "a name of another kind": ("convert tree out.keras --to flax", 2, "", "without a file suffix"),
    "a name without suffix": ("convert tree out --to keras", 2, "", "one that ends in .keras"),
    "damage while converting": ("convert damaged out", 1, "", "damaged leaves"),
    "no such folder": ("convert tree nowhere/out", 2, "", "a parent folder that does not exist"),
    "onto itself": ("convert tree tree --force", 2, "", "another path"),
    "eject elsewhere": ("eject model.keras out.txt", 2, "", "one that ends in .py"),
    "eject no model": ("eject model.weights.h5 out.py", 2, "", "weights alone"),
    "eject where something is": ("eject model.keras notes.py --weights tree", 2, "", "--force replaces it"),
    "no such command": ("fly", 2, "", "invalid choice: 'fly'"),
    "no command": ("", 2, "", "COMMAND"),
    "no such option": ("inspect tree --nine", 2, "", "unrecognized arguments: --nine"),
    "version": ("--version", 0, "keras-flax-bridge 0", ""),
    "help": ("diff --help", 0, "Exit codes: 0 fine, 1 a difference or damage was found", ""),
}


def typed(text):
    """Types a command, and gives its exit code."""
    try:
        return cli.main(text.split())
    except SystemExit as ended:  # argparse
        return ended.code


@pytest.mark.every(fast=2)
@pytest.mark.parametrize("row", ROWS)
def test_commands(made, monkeypatch, capsys, row):
    text, code, out, error = ROWS[row]
    monkeypatch.chdir(made)
    before = sorted(path.name for path in made.iterdir())
    assert typed(text) == code
    told, complained = capsys.readouterr()
    assert out in " ".join(told.split())
    assert error in " ".join(complained.split())
    assert "Traceback" not in complained
    assert bool(complained) == bool(error)
    assert sorted(path.name for path in made.iterdir()) == before


def test_inspect_tells_programs_the_same(made, capsys):
    assert cli.main(["inspect", str(made / "tree"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {key: told[key] for key in ("kind", "total", "notes")} == {
        "kind": "checkpoint",
        "total": {"leaves": 32, "bytes": 696},
        "notes": [],
    }
    assert told["collections"]["params"] == {"leaves": 6, "bytes": 204}
    kernel = next(leaf for leaf in told["leaves"] if leaf["path"] == "params/first/kernel")
    assert (kernel["kind"], kernel["dtype"], kernel["shape"], kernel["bytes"]) == (
        "param",
        "float32",
        [6, 4],
        96,
    )


def test_inspect_reads_no_arrays(made, tmp_path, capsys):
    for layout in ("tree", "packed"):
        kfb.save(tmp_path / layout, {"a": np.ones((64, 64)), "b": np.ones(3)}, layout=layout)
        for file in (tmp_path / layout / "state").rglob("d/*"):
            file.write_bytes(b"")
        assert cli.main(["inspect", str(tmp_path / layout)]) == 0
        assert "64x64" in capsys.readouterr().out


def test_inspect_shows_how_leaves_lay(tmp_path, capsys):
    mesh = jax.sharding.Mesh(jax.devices()[:4], ("data",))
    kernel = jax.device_put(np.ones((8, 2), "float32"), NamedSharding(mesh, P("data", None)))
    kfb.save(tmp_path / "sharded", {"params": {"kernel": kernel}})
    assert cli.main(["inspect", str(tmp_path / "sharded")]) == 0
    assert "('data', None) of data=4" in capsys.readouterr().out


def test_diff_tells_programs_the_same(made, capsys):
    assert cli.main(["diff", str(made / "tree"), str(made / "cut"), "--values", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert [row["path"] for row in told["unexpected"]] == ["params/first/extra"]
    assert [row["path"] for row in told["shape"]] == ["params/first/kernel"]
    assert [row["path"] for row in told["dtype"]] == ["params/first/bias"]
    assert (told["same"], told["missing"], told["value"], told["not_compared"]) == (False, [], [], {})


X = np.random.default_rng(0).normal(size=(5, 6)).astype("float32")


@pytest.mark.slow
def test_ejected_source_and_weights_are_the_model(made, tmp_path, monkeypatch, capsys):
    out = tmp_path / "net.py"
    assert cli.main(["eject", str(made / "model.keras"), str(out), "--class-name", "Net"]) == 0
    told = capsys.readouterr().out
    assert "class Net" in told
    monkeypatch.syspath_prepend(tmp_path)
    scope = {}
    exec("import keras_flax_bridge, orbax.checkpoint\nfrom flax import nnx", scope)
    wanted = keras.saving.load_model(made / "model.keras")(X)
    for way in told.split("with ")[1:]:  # this package, Orbax alone: what is printed is what works
        lines = [line.strip() for line in way.splitlines()[1:] if line.startswith("  ")]
        exec("\n".join(lines), scope)
        scope["module"].eval()
        np.testing.assert_allclose(scope["module"](X), wanted, atol=1e-6)
    assert "keras" not in out.read_text().replace("The Keras model", "")
    assert kfb.verify(tmp_path / "net_weights").ok


@pytest.mark.slow
def test_ejected_lists_of_blocks_are_filled(tmp_path, capsys):
    x = inputs = keras.Input((6,))
    for i in range(2):
        hidden = keras.layers.Dense(8, "relu", name=f"block{i}_expand")(x)
        x = keras.layers.LayerNormalization(name=f"block{i}_norm")(
            x + keras.layers.Dense(6, name=f"block{i}_project")(hidden)
        )
    model = keras.Model(inputs, x)
    model.save(tmp_path / "blocks.keras")
    arguments = ["eject", str(tmp_path / "blocks.keras"), str(tmp_path / "blocks.py"), "--weights"]
    assert cli.main([*arguments, str(tmp_path / "w")]) == 0
    scope = {}
    exec((tmp_path / "blocks.py").read_text(), scope)
    module = kfb.restore(tmp_path / "w", scope["Model"](rngs=nnx.Rngs(0)))
    np.testing.assert_allclose(module(X), model(X), atol=1e-6)


# --- what is printed where


@pytest.mark.slow
def test_a_reader_that_has_had_enough_is_no_error(made):
    done = process(f"inspect {made / 'tree'} | head -1")
    assert done.stderr == ""
    assert done.stdout.splitlines() == [f"{made / 'tree'}: checkpoint"]
    assert done.returncode in (0, 141)


@pytest.mark.full
@pytest.mark.tables
def test_damage_is_told_without_the_noise_of_threads(made):
    for _ in range(3):
        done = process(f"verify {made / 'damaged'}")
        assert done.returncode == 1
        assert "damaged" in done.stdout
        assert done.stderr == ""


@pytest.mark.parametrize(("variable", "coloured"), [("NO_COLOR", False), ("FORCE_COLOR", True)])
def test_colours_are_a_choice(made, monkeypatch, capsys, variable, coloured):
    monkeypatch.setenv(variable, "1")
    assert cli.main(["inspect", str(made / "nowhere")]) == 2
    assert ("\033[31m" in capsys.readouterr().err) == coloured
    assert cli.main(["inspect", str(made / "tree")]) == 0
    assert ("\033[1m" in capsys.readouterr().out) == coloured


@pytest.mark.parametrize("place", [["--debug", "inspect"], ["inspect", "--debug"]])
def test_debug_shows_the_traceback(place):
    with pytest.raises(kfb.CheckpointError):
        cli.main([*place, "nowhere"])


def test_what_nobody_foresaw_is_one_line_too(made, monkeypatch, capsys):
    monkeypatch.setattr(kfb.StateReport, "totals", lambda report: 1 / 0)
    assert cli.main(["inspect", str(made / "tree")]) == 2
    error = capsys.readouterr().err
    assert error == "ZeroDivisionError: division by zero. Run it again with --debug to see where.\n"


def test_long_work_is_shown_on_a_terminal(made, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert cli.main(["convert", str(made / "tree"), str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().err
    assert all(words in shown for words in ("reading ", "writing ", "reading it back"))


# --- models that are not known here

MODULE = """
import keras

@keras.saving.register_keras_serializable("tests_own")
class Doubling(keras.layers.Layer):
    def call(self, x):
        return 2 * x
"""


def test_classes_of_one_s_own_are_imported(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_layers.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    doubling = __import__("own_layers").Doubling
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3), doubling()])
    model.save("own.keras")
    known = keras.saving.get_custom_objects()
    monkeypatch.delitem(sys.modules, "own_layers")
    monkeypatch.delitem(known, "tests_own>Doubling")
    assert typed("inspect own.keras") == 0
    assert "the names are those in the file: its model can't be built here" in capsys.readouterr().out
    assert typed("convert own.keras out") == 2
    assert "--import" in capsys.readouterr().err
    assert typed("convert own.keras out --import own_layers") == 0
    assert typed("diff own.keras out --values") == 0
    del known["tests_own>Doubling"]


def test_several_models_are_no_keras_file(tmp_path, capsys):
    models = {name: keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]) for name in ("a", "b")}
    state = kfb.TrainState.from_keras(models, optimizer={"a": "sgd", "b": None})
    kfb.save(tmp_path / "two", state)
    assert cli.main(["inspect", str(tmp_path / "two")]) == 0
    assert "params/a/dense/kernel" in capsys.readouterr().out
    assert cli.main(["convert", str(tmp_path / "two"), str(tmp_path / "two.keras")]) == 2
    assert "several models (a, b)" in capsys.readouterr().err


@pytest.mark.slow
@needs("OrbaxCheckpoint")
@pytest.mark.filterwarnings("ignore")
def test_weights_of_keras_s_callback_need_the_model(made, tmp_path, capsys):
    saver = keras.callbacks.OrbaxCheckpoint(str(tmp_path / "weights"), save_weights_only=True)
    model = files.build()
    model.fit(files.X, files.Y, verbose=0, callbacks=[saver])
    model.save(tmp_path / "model.keras")
    assert cli.main(["inspect", str(tmp_path / "weights")]) == 0
    assert "the model that they are of isn't stored" in capsys.readouterr().out
    given = ["--model", str(tmp_path / "model.keras")]
    assert cli.main(["diff", str(tmp_path / "weights"), str(tmp_path / "model.keras"), "--values"]) == 1
    assert "missing" not in capsys.readouterr().out  # the slots are all that is not there
    assert cli.main(["convert", str(tmp_path / "weights"), str(tmp_path / "out")]) == 2
    assert cli.main(["convert", str(tmp_path / "weights"), str(tmp_path / "out.keras"), *given]) == 0
    capsys.readouterr()
    loaded = keras.saving.load_model(tmp_path / "out.keras")
    assert all(np.array_equal(a, b) for a, b in zip(loaded.get_weights(), model.get_weights(), strict=True))


def test_slots_that_a_model_has_no_place_for_are_told(made, tmp_path, capsys):
    model = files.build()
    plain = keras.Sequential.from_config(model.get_config())
    plain.save(tmp_path / "plain.keras")
    arguments = ["inspect", str(made / "model.weights.h5"), "--model", str(tmp_path / "plain.keras")]
    assert cli.main(arguments) == 0
    assert "it holds slots of an optimizer, and the model isn't compiled" in capsys.readouterr().out


# --- plan


@pytest.mark.slow
def test_plan_counts_without_allocating(capsys, tmp_path):
    assert cli.main(["plan", "examples.large_models:seventy_billion", "--mesh", "8x4", "--ema"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert all(number in told for number in ("275.907", "551.813", "1103.626", "34.488", "8.622", "17.244"))
    assert "1103.6 GB, 1104 s at 1.0 GB/s" in told
    keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)]).save(tmp_path / "small.keras")
    assert cli.main(["plan", str(tmp_path / "small.keras"), "--optimizer", "momentum", "--mesh", "2"]) == 0


WRONG = {
    "no such function": (["examples.large_models:nine"], "MODEL: got 'examples.large_models:nine'"),
    "no such module": (["nowhere:model"], "MODEL: got 'nowhere'"),
    "no mesh": (["examples.large_models:seven_billion", "--mesh", "8x"], "--mesh: got '8x'"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_use_of_plan_is_one_line_and_code_2(capsys, wrong):
    arguments, words = WRONG[wrong]
    assert cli.main(["plan", *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error
