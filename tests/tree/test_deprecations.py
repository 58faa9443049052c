"""Old names work, warn in the user's line, and are gone in the version that their row names."""

import importlib.util
import sys
import warnings

import jax
import keras
import pytest

import keras_flax_bridge as kfb
from docs.generate import deprecations as table_of_deprecations
from keras_flax_bridge.cli.main import _parser, main
from keras_flax_bridge.tree import words
from keras_flax_bridge.tree.words import deprecations
from keras_flax_bridge.tree.words.deprecations import RENAMED
from keras_flax_bridge.tree.words.word import ARGUMENTS, ATTRIBUTES, MODULES, OPTIONS, Deprecated
from keras_flax_bridge.tree.words.words_of_versions import DEPRECATED
from tests.tree.test_words import arguments, attributes, public

VERSIONS = "is deprecated since 0.2 and will be removed in 0.4. "


@pytest.fixture
def deprecate(monkeypatch):
    """Adds a row for one test."""

    def add(kind, old, new, doors=""):
        row = Deprecated(old, new, doors, "0.2", "0.4")
        for door in doors.split() or [""]:
            monkeypatch.setitem(RENAMED[kind], (door, old), row)

    return add


def warned(call):
    """What a call gives, and what it warns of; each warning has to name this file."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = call()
    assert {(w.category, w.filename) for w in caught} <= {(DeprecationWarning, __file__)}
    return found, [str(w.message) for w in caught]


def layer():
    made = keras.layers.Dense(2)
    made.build((None, 4))
    return made


def test_a_renamed_argument_of_a_function_is_passed_on(deprecate, tmp_path):
    deprecate(ARGUMENTS, "target", "like", "kfb.restore kfb.CheckpointManager.restore")
    kfb.save(tmp_path / "a", {"a": 1})
    found, said = warned(lambda: kfb.restore(tmp_path / "a", target={"a": 0}))
    assert found == {"a": 1}
    assert said == [f"kfb.restore: target= {VERSIONS}Pass like=."]


@pytest.mark.parametrize("kind", ["ToNNX", "ToLinen"])  # Flax calls the constructor
def test_a_renamed_argument_of_a_constructor_warns_in_the_line_that_calls_it(deprecate, kind):
    deprecate(ARGUMENTS, "keras_layer", "layer", f"kfb.{kind}")
    own = layer()
    found, said = warned(lambda: getattr(kfb, kind)(keras_layer=own))
    assert isinstance(found, getattr(kfb, kind))
    assert said == [f"kfb.{kind}: keras_layer= {VERSIONS}Pass layer=."]


def test_a_renamed_argument_goes_beside_any_others(deprecate):
    deprecate(ARGUMENTS, "b", "c", "f")
    called = words.door(lambda a, *, c=0, **others: (a, c, others), "f")
    found, said = warned(lambda: called(1, b=2, d=3))
    assert found == (1, 2, {"d": 3})
    assert len(said) == 1
    assert warned(lambda: called(1, c=2)) == ((1, 2, {}), [])


def test_an_argument_by_both_names_is_an_error(deprecate):
    deprecate(ARGUMENTS, "b", "a", "f")
    called = words.door(lambda a: a, "f")
    with pytest.raises(kfb.SignatureError, match=r"f: got b= and a=, two names .* Leave b= out"):
        called(a=1, b=1)
    with (
        pytest.warns(DeprecationWarning, match="b= is"),
        pytest.raises(kfb.SignatureError, match="by place and by name"),
    ):
        called(1, b=1)


def test_a_renamed_function_is_found_by_its_old_name(deprecate):
    deprecate(ATTRIBUTES, "load", "restore", "kfb")
    deprecate(ATTRIBUTES, "to_nnx", "kfb.migrate.to_nnx", "kfb")
    assert warned(lambda: kfb.load) == (kfb.restore, [f"kfb.load {VERSIONS}Use kfb.restore."])
    assert warned(lambda: kfb.to_nnx) == (
        kfb.migrate.to_nnx,
        [f"kfb.to_nnx {VERSIONS}Use kfb.migrate.to_nnx."],
    )
    deprecate(ATTRIBUTES, "transfer", "to_keras", "kfb.migrate")
    assert warned(lambda: kfb.migrate.transfer)[0] is kfb.migrate.to_keras


def test_a_renamed_function_can_be_imported_by_its_old_name(deprecate):
    deprecate(ATTRIBUTES, "Checkpoint", "TrainStateCheckpoint", "kfb.callbacks")

    def load():
        from keras_flax_bridge.callbacks import Checkpoint

        return Checkpoint

    found, said = warned(load)
    assert found is kfb.callbacks.TrainStateCheckpoint
    assert {*said} == {f"kfb.callbacks.Checkpoint {VERSIONS}Use kfb.callbacks.TrainStateCheckpoint."}


def test_renamed_attributes_of_classes_and_objects_are_found(deprecate, tmp_path):
    deprecate(ATTRIBUTES, "from_model", "from_keras", "kfb.TrainState")
    deprecate(ATTRIBUTES, "weights", "params", "kfb.TrainState")
    deprecate(ATTRIBUTES, "steps", "all_steps", "kfb.CheckpointManager")
    model = keras.Sequential([keras.Input((4,)), layer()])
    model.compile("sgd", "mse")
    state, said = warned(lambda: kfb.TrainState.from_model(model))
    assert said == [f"kfb.TrainState.from_model {VERSIONS}Use kfb.TrainState.from_keras."]
    found, said = warned(lambda: state.weights)
    assert jax.tree.structure(found) == jax.tree.structure(state.params)
    assert said == [f"kfb.TrainState.weights {VERSIONS}Use kfb.TrainState.params."]
    with kfb.CheckpointManager(tmp_path) as manager:
        found, said = warned(lambda: manager.steps())
    assert (found, len(said)) == ([], 1)


@pytest.fixture
def moved(deprecate, monkeypatch):
    """Two old paths, which are forgotten again."""
    deprecate(MODULES, "keras_flax_bridge.old", "keras_flax_bridge.checkpoint")
    monkeypatch.setattr(sys, "meta_path", [deprecations.MovedModules(), *sys.meta_path])
    yield
    for name in [name for name in sys.modules if name.startswith("keras_flax_bridge.old")]:
        del sys.modules[name]
    vars(kfb).pop("old", None)


@pytest.mark.usefixtures("moved")
def test_a_moved_module_is_the_present_one():
    before = importlib.import_module("keras_flax_bridge.checkpoint").__spec__
    import keras_flax_bridge.checkpoint.saving as present

    def load():
        import keras_flax_bridge.old.saving as module

        return module

    found, said = warned(load)
    assert found is present
    assert before is sys.modules["keras_flax_bridge.checkpoint"].__spec__
    assert said == [
        f"The module keras_flax_bridge.old {VERSIONS}Import keras_flax_bridge.checkpoint.",
        f"The module keras_flax_bridge.old.saving {VERSIONS}Import keras_flax_bridge.checkpoint.saving.",
    ]
    assert present.__name__ == "keras_flax_bridge.checkpoint.saving"


@pytest.mark.usefixtures("moved")
def test_a_moved_module_is_an_attribute_too():
    found, said = warned(lambda: kfb.old)
    assert found is kfb.checkpoint
    assert len(said) == 1


def test_old_commands_and_options_are_read_as_the_present_ones(deprecate, capsys, tmp_path):
    deprecate(OPTIONS, "check", "verify", "keras-flax-bridge")
    deprecate(OPTIONS, "--at", "--step", "verify")
    kfb.save(tmp_path / "a", {"a": 1})
    assert main(["check", str(tmp_path / "a"), "--at=0", "--json"]) == 2
    said = capsys.readouterr().err
    assert f"Warning: check {VERSIONS}Type verify." in said
    assert f"Warning: verify --at {VERSIONS}Type --step." in said
    assert main(["check", str(tmp_path / "a"), "--json"]) == 0
    assert "--at" not in capsys.readouterr().err


def test_python_shows_the_warning_by_default(deprecate):
    deprecate(ATTRIBUTES, "load", "restore", "kfb")
    program = "import keras_flax_bridge as kfb\n\nkfb.load\n"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter(
            "ignore", DeprecationWarning
        )  # as in Python's list of filters, which shows them
        warnings.filterwarnings("default", category=DeprecationWarning, module="__main__")
        exec(compile(program, "program.py", "exec"), {"__name__": "__main__"})
    assert [(w.filename, w.lineno) for w in caught] == [("program.py", 3)]


# --- the rows of the table

ROWS = [(kind, row) for kind, rows in DEPRECATED.items() for row in rows]


def minor(version):
    """The first two numbers of a version."""
    return tuple(map(int, version.split(".")[:2]))


def due(row, version):
    """Whether the version is reached in which a row goes."""
    return minor(version) >= minor(row.removal)


def early(row):
    """Whether a name goes before it worked, and warned, for two minor versions."""
    (major, since), removal = minor(row.since), minor(row.removal)
    return removal < ((0, since + 2) if major == 0 else (major + 1, 0))


def unlike(kind, row):
    """What is wrong with the names of a row."""
    if kind == MODULES:
        return [] if importlib.util.find_spec(row.new) else [row.new]
    own = {ARGUMENTS: arguments, ATTRIBUTES: attributes, OPTIONS: options}[kind]
    known = public(row.new) if kind == ATTRIBUTES and "." in row.new else None
    return [
        (door, name)
        for door in row.doors.split()
        for name, there in ((row.old, False), (row.new, True))
        if (name in own(door)) != there and not (there and known)
    ]


def options(program):
    """The commands of the program, or the options of a command."""
    parser = _parser()
    commands = parser.commands
    return commands if program == parser.prog else commands[program]._option_string_actions


def test_no_row_is_kept_beyond_its_version():
    assert [row.old for _, row in ROWS if due(row, kfb.__version__)] == [], (
        "The version of removal is reached: take these out of words_of_versions.py, add them to the guesses "
        "of the table of wrong words, and to Removed in the changelog."
    )


def test_the_page_on_stability_has_the_rows():
    page = table_of_deprecations.PAGE.read_text()
    assert table_of_deprecations.written(page) == page, "python -m docs.generate.deprecations"
    row = Deprecated("target", "like", "kfb.restore kfb.CheckpointManager.restore", "0.2", "0.4")
    last = table_of_deprecations.table([row]).splitlines()[-1]
    assert last == "| `kfb.restore`, `kfb.CheckpointManager.restore` | `target` | `like` | 0.2 | 0.4 |"


def test_no_row_goes_before_its_time():
    assert [row.old for _, row in ROWS if early(row)] == []


def test_the_rows_name_what_exists():
    assert [unlike(kind, row) for kind, row in ROWS if unlike(kind, row)] == []


@pytest.mark.parametrize(
    ("since", "removal", "version", "state"),
    [
        ("0.2", "0.4", "0.3.9", (False, False)),
        ("0.2", "0.4", "0.4.0rc1", (True, False)),
        ("0.2", "0.3", "0.2.0", (False, True)),
        ("0.9", "1.0", "0.9.0", (False, False)),
        ("0.9", "0.11", "0.10.0", (False, False)),
        ("1.2", "1.9", "1.3.0", (False, True)),
        ("1.2", "2.0", "2.0.0", (True, False)),
    ],
)
def test_versions_are_compared_as_numbers(since, removal, version, state):
    row = Deprecated("a", "b", "kfb", since, removal)
    assert (due(row, version), early(row)) == state


def test_rows_that_name_nothing_are_found():
    assert unlike(ARGUMENTS, Deprecated("like", "target", "kfb.restore", "0.2", "0.4")) == [
        ("kfb.restore", "like"),
        ("kfb.restore", "target"),
    ]
    assert unlike(ARGUMENTS, Deprecated("target", "like", "kfb.restore", "0.2", "0.4")) == []
    assert unlike(ATTRIBUTES, Deprecated("load", "kfb.restore", "kfb", "0.2", "0.4")) == []
    assert unlike(OPTIONS, Deprecated("--at", "--step", "verify", "0.2", "0.4")) == []
    assert unlike(MODULES, Deprecated("keras_flax_bridge.x", "keras_flax_bridge.y", "", "0.2", "0.4"))
