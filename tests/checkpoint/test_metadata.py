"""What lies beside the leaves of a checkpoint, forged under a right checksum: each fault names its field."""

import json
import os
import time

import jax
import numpy as np
import pytest

import keras_flax_bridge as kfb
from keras_flax_bridge.checkpoint import orbax_io
from keras_flax_bridge.checkpoint.orbax_io import metadata
from keras_flax_bridge.tree.untrusted import records, schema, texts
from tests.attacks import goods, mutations

TREE = {
    "a": np.arange(6, dtype="float32").reshape(2, 3),
    "b": np.arange(3),
    "none": np.zeros((0, 2)),
    "step": 7,
}


@pytest.fixture(params=["tree", "packed"])
def path(tmp_path, request):
    kfb.save(tmp_path / "one", TREE, layout=request.param)
    return tmp_path / "one"


FIELDS = records.checks(metadata.Metadata)

# of each field, a value that it may not have
WRONG = {
    "format": (0, "1", None, True, 1.0),
    "written_by": ([], 3, None),
    "versions": ([], {"keras": 3}, "3"),
    "leaves": (-1, 1.5, "4", None, 2**70),
    "specs": (
        [],
        {"a": 3.5j.__class__.__name__},
        {"a": ["float32"]},
        {"a": ["O", [2]]},
        {"a": ["float32", [-1]]},
    ),
    "empty": ([], {"x": ["float32", [2]]}, {"x": ["float32", "0"]}, {"x": ["float32", [0, 2**60]]}),
    "packed": ([], {"x": 3}, {"x": [-1, "float32", [1]]}, {"x": [0, "U9", [1]]}, {"x": [0, "int8", [True]]}),
    "bytes": ([], {"a": "nonsense"}, {"a": 1}, {"nowhere": "int4"}),
    "keys": ([], {"a": 1}, {"nowhere": "rbg"}),
    "checksums": ([], {"a": -1}, {"a": "1"}, {"a": 2**32}, {"a": None}, {"a": True}),
    "model": ([], "Sequential", 3),
    "no_model": (None, 3, []),
    "weight_map": ([], "map", 3),
    "data": ([], {}, {"bytes": "no base64!"}, {"bytes": 3}, "x"),
    "grain": ("1", -1, [], 1.5),
    "note": ([], "text", 3),
    "callbacks": (
        [],
        {},
        {"content": {}},
        {"content": [], "arrays": []},
        {"content": {}, "arrays": [["U9", []]]},
    ),
    "callback_arrays": ("1", -1, [], 1.5),
    "assets": ([], {"": []}, {"": {"a": 3}}, {"": {"../a": [3, 0]}}, {"": {"a": [-1, 0]}}),
}


def test_every_field_that_is_written_is_checked(path):
    assert goods.ours(path).keys() <= FIELDS.keys() == WRONG.keys()


@pytest.mark.every(fast=2)
@pytest.mark.parametrize(("field", "value"), [(f, v) for f, values in WRONG.items() for v in values])
def test_a_field_that_is_wrong_is_named(path, field, value):
    goods.set_ours(path, {**goods.ours(path), field: value})
    with pytest.raises(kfb.CorruptCheckpointError) as error:
        kfb.restore(path, TREE)
    assert "_CHECKPOINT_METADATA" in str(error.value)
    assert field in error.value.got or field in error.value.where
    assert not kfb.verify(path).ok


@pytest.mark.every(fast=3)
@pytest.mark.parametrize("field", [None, *FIELDS])
def test_no_swapped_type_ends_in_a_traceback(path, field):
    found = goods.ours(path)
    for value in mutations.VALUES:
        text = json.dumps(value if field is None else {**found, field: value})
        goods.set_ours(path, text)
        try:
            back = kfb.restore(path, TREE)
        except kfb.BridgeError:
            continue
        assert np.array_equal(back["a"], TREE["a"])


INSIDE = {
    "a name that is no path": ("checksums", {"a~": 1}),
    "a leaf below a leaf": ("specs", {"a/x": ["float32", [2]]}),
    "a leaf in two tables": ("empty", {"a": ["float32", [0]]}),
    "a checksum of nothing": ("checksums", {"x": 1}),
}


@pytest.mark.parametrize("row", INSIDE)
def test_tables_that_contradict_each_other_are_refused(path, row):
    field, more = INSIDE[row]
    found = goods.ours(path)
    goods.set_ours(path, {**found, field: {**found[field], **more}})
    with pytest.raises(kfb.CorruptCheckpointError, match=r"_CHECKPOINT_METADATA|metadata of"):
        kfb.restore(path, TREE)


PACKED = {
    "outside": lambda at: {"b": [10**6, *at["b"][1:]]},
    "across the end": lambda at: {"b": [at["b"][0], "int64", [1000]]},
    "on another": lambda at: {"b": [at["a"][0] + 4, *at["b"][1:]]},
}


@pytest.mark.parametrize("row", PACKED)
def test_packed_leaves_have_bytes_of_their_own(tmp_path, row):
    kfb.save(tmp_path / "one", TREE, layout="packed")
    found = goods.ours(tmp_path / "one")
    found["packed"].update(PACKED[row](found["packed"]))
    goods.set_ours(tmp_path / "one", found)
    with pytest.raises(kfb.CorruptCheckpointError, match=r"packed/\w"):
        kfb.restore(tmp_path / "one", TREE)


def test_a_format_of_the_future_asks_for_an_update(path):
    written = {"format": 2, "written_by": "keras-flax-bridge 7.1.0", "checksums": "of a kind of its own"}
    goods.set_ours(path, {**goods.ours(path), **written})
    with pytest.raises(kfb.CheckpointError, match=r"7\.1\.0.*update the package") as error:
        kfb.restore(path, TREE)
    assert not isinstance(error.value, kfb.CorruptCheckpointError)
    del written["written_by"]
    goods.set_ours(path, {**written, "versions": []})
    with pytest.raises(kfb.CheckpointError, match=r"got format 2, expected format 1"):
        kfb.restore(path, TREE)


def test_what_is_written_says_by_which_version(path):
    assert goods.ours(path)["written_by"] == f"keras-flax-bridge {kfb.__version__}"
    assert goods.ours(path)["format"] == metadata.Metadata.FORMAT == 1


def test_a_field_of_a_newer_version_is_passed_over(path):
    goods.set_ours(path, {**goods.ours(path), "of_tomorrow": [1, {}]})
    assert np.array_equal(kfb.restore(path, TREE)["a"], TREE["a"])


TEXTS = {
    "deep": '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}",
    "twice": '{"a": 1, "a": 2}',
    "half of a pair": '{"a": "\\ud800"}',
    "a long number": '{"a": ' + "9" * 5000 + "}",
    "many values": "[" + "[]," * 3_000_000 + "[]]",
    "cut off": '{"a": ',
    "nothing": "",
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_text_that_is_not_json_within_bounds_is_refused(text):
    with pytest.raises(kfb.CorruptCheckpointError, match="somewhere"):
        texts.parsed(text, "somewhere")


def test_every_dtype_of_the_table_is_one():
    assert all(jax.numpy.dtype(name).name == name for name in schema.DTYPES)


# --- places

STRANGE = {
    "a name of 300 characters": lambda folder: folder / ("n" * 300),
    "a null character": lambda folder: folder / "a\0b",
    "a link to itself": lambda folder: linked(folder / "circle", folder / "circle"),
    "a device": lambda folder: "/dev/zero",
    "a FIFO": lambda folder: fifo(folder / "fifo"),
    "a FIFO called like a file of Keras": lambda folder: fifo(folder / "x.keras"),
    "a folder called like a file of Keras": lambda folder: made(folder / "y.keras"),
    "a root of odd numbers": lambda folder: odd(folder / "root"),
}


def linked(path, target):
    path.symlink_to(target)
    return path


def fifo(path):
    os.mkfifo(path)
    return path


def made(path):
    path.mkdir()
    return path


def odd(root):
    """Names that Python takes for digits, or that are too large for a step, each a whole checkpoint."""
    kfb.save(root / "one", TREE)
    for name in ("\u00b2", "\u0663", "9" * 200, "-1", "1_0", "+1"):
        linked(root / name, "one")
    return root


@pytest.mark.parametrize("row", STRANGE)
def test_a_strange_place_is_an_error_that_is_told(tmp_path, row):
    path = STRANGE[row](tmp_path)
    for door in (kfb.restore, kfb.verify, kfb.load_model):
        with pytest.raises(kfb.CheckpointError):
            door(path, *([TREE] if door is kfb.restore else []))


def test_odd_names_beside_a_step_are_passed_over(tmp_path):
    kfb.save(tmp_path / "root" / "0007", TREE)
    odd(tmp_path / "root")
    assert kfb.verify(tmp_path / "root").path.name == "0007"
    with kfb.CheckpointManager(tmp_path / "root") as manager:
        assert manager.all_steps() == [7]


def test_links_are_followed_inside_a_checkpoint_and_in_the_cache_of_the_hub(path, tmp_path):
    inside = path / "state" / "_METADATA"
    inside.rename(path / "state" / "moved")
    inside.symlink_to("moved")
    assert kfb.verify(linked(tmp_path / "linked", path)).ok
    blobs, snapshot = tmp_path / "models--x" / "blobs", tmp_path / "models--x" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    for number, file in enumerate(file for file in path.rglob("*") if file.is_file()):
        (blobs / str(number)).write_bytes(file.read_bytes())
        link = snapshot / "one" / file.relative_to(path)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blobs / str(number))
    assert kfb.verify(snapshot / "one").ok
    blobs.rename(tmp_path / "elsewhere")
    blobs.symlink_to(tmp_path / "elsewhere")  # as whoever packs both could lead anywhere
    assert "a link that points outside" in str(kfb.verify(snapshot / "one"))


def test_a_key_called_like_the_packed_array_is_a_key(tmp_path):
    tree = {"%packed": {"x": np.ones(2)}, "y": np.ones(2, "uint8")}
    for layout in ("tree", "packed"):
        kfb.save(tmp_path / layout, tree, layout=layout)
        assert np.array_equal(kfb.restore(tmp_path / layout, tree)["%packed"]["x"], np.ones(2))
    orbax_io.save_plain(tmp_path / "plain", {"%packed": np.ones(3), "y": np.ones(2)})
    assert np.array_equal(
        kfb.restore(tmp_path / "plain", {"%packed": np.ones(3), "y": np.ones(2)})["%packed"], [1, 1, 1]
    )


def test_checking_5000_leaves_takes_milliseconds():
    names = [f"params/layer_{i}/kernel" for i in range(5000)]
    found = {
        "specs": {name: ["float32", [3, 4]] for name in names},
        "checksums": dict.fromkeys(names, 1),
        "leaves": 5000,
    }
    taken = []
    for _ in range(5):
        begin = time.process_time()
        records.require(metadata.Metadata, found)
        taken.append(time.process_time() - begin)
    assert min(taken) < 0.1  # it takes some 5 ms on an idle core
    print(f"{1e3 * min(taken):.1f} ms")


def nested(levels):
    tree = np.ones(2, "float32")
    for _ in range(levels):
        tree = {"a": tree}
    return tree


@pytest.mark.parametrize("layout", ["tree", "packed"])
def test_a_path_is_as_long_as_a_restore_can_read(tmp_path, layout):
    deep, wide = nested(schema.DEEPEST), {"a" * schema.LONGEST: np.ones(2)}
    for number, tree in enumerate((deep, wide)):
        kfb.save(tmp_path / str(number), tree, layout=layout)
        back = kfb.restore(tmp_path / str(number), tree)
        assert np.array_equal(jax.tree.leaves(back)[0], np.ones(2))
    for tree in (nested(schema.DEEPEST + 1), {"a" * (schema.LONGEST + 1): np.ones(2)}):
        with pytest.raises(kfb.StructureMismatchError, match="levels and") as error:
            kfb.save(tmp_path / "refused", tree, layout=layout)
        assert len(str(error.value)) < 1000
    assert not (tmp_path / "refused").exists()


BAD_MARKS = {
    "a device": lambda mark: mark.symlink_to("/dev/zero"),
    "a FIFO": os.mkfifo,
    "another's file": lambda mark: mark.symlink_to("/etc/hostname"),
    "many values": lambda mark: mark.write_text("[" + "[]," * 3_000_000 + "[]]"),
}


@pytest.mark.parametrize("row", BAD_MARKS)
def test_a_manager_opens_no_root_in_which_orbax_would_read_for_ever(tmp_path, row):
    with kfb.CheckpointManager(tmp_path / "root") as manager:
        manager.save(kfb.TrainState.from_keras(goods.build()))
    (tmp_path / "root" / "5").mkdir()
    BAD_MARKS[row](tmp_path / "root" / "5" / "_CHECKPOINT_METADATA")
    with pytest.raises(kfb.CheckpointError, match="_CHECKPOINT_METADATA"):
        kfb.CheckpointManager(tmp_path / "root")
