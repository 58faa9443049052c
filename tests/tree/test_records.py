"""Records: what is written is read back, what is malformed is named, what is newer is said."""

import dataclasses
import json

import pytest
from safetensors.numpy import save_file

import keras_flax_bridge as kfb
from keras_flax_bridge import migrate
from keras_flax_bridge.checkpoint.optimizer_extras import Comment
from keras_flax_bridge.checkpoint.orbax_io import Metadata
from keras_flax_bridge.checkpoint.readers import Header, opened
from keras_flax_bridge.migrate.map_schema import Pair, StoredMap
from keras_flax_bridge.migrate.transforms import Transpose
from keras_flax_bridge.tree.untrusted import records, schema

PATH = ("a", "b/c")
FULL = [
    Metadata(
        versions={"keras": "3"},
        leaves=1,
        specs={"a": ["float32", [2]]},
        checksums={"a": 3},
        model={"class_name": "Sequential"},
        no_model="why",
        weight_map={},
        data={"json": [1]},
        grain=4,
    ),
    Header(model={"class_name": "Sequential"}),
    Comment(optimizer_extras={"exclude_from_weight_decay": {}}),
    StoredMap(
        pairs=(Pair((PATH,), (("d",),), (Transpose((1, 0)),)),),
        seeds=(PATH,),
        only_keras=(),
        only_flax=(("e",),),
        notes=("differs",),
        linen=True,
    ),
]


def read(kind, found):
    return records.from_json(kind, found, "somewhere", fix="Write it again.")


@pytest.mark.parametrize("record", FULL, ids=lambda record: type(record).__name__)
def test_a_record_is_read_as_it_was_written(record):
    text = json.dumps(records.to_json(record))
    found = read(type(record), {**json.loads(text), "of_tomorrow": [{}]})
    assert found == record
    assert json.dumps(records.to_json(found)) == text


@pytest.mark.parametrize("record", FULL, ids=lambda record: type(record).__name__)
def test_a_newer_format_names_the_version_that_wrote_it(record):
    found = {"format": type(record).FORMAT + 1, "written_by": "keras-flax-bridge 9.0.1\x1b"}
    with pytest.raises(kfb.CheckpointError, match=r"somewhere: got format 2, written by .*9\.0\.1") as error:
        read(type(record), found)
    assert "\x1b" not in str(error.value)


@pytest.mark.parametrize("record", FULL, ids=lambda record: type(record).__name__)
@pytest.mark.parametrize("value", [3.5, "x", [[]], -1])
def test_a_malformed_field_is_named(record, value):
    whole = records.to_json(record)
    refused = {name: _refusal(type(record), {**whole, name: value}) for name in whole}
    assert refused["format"]
    assert [name for name, got in refused.items() if got and name not in got] == []
    with pytest.raises(kfb.CheckpointError, match="no fields"):
        read(type(record), value)


def _refusal(kind, found):
    """What is said of JSON that is no such record; None where it is one."""
    try:
        read(kind, found)
    except kfb.CheckpointError as error:
        return error.got
    return None


def test_fields_without_a_default_are_required():
    found = records.to_json(FULL[-1])
    for name in [one.name for one in dataclasses.fields(StoredMap)]:
        lacking = {other: value for other, value in found.items() if other != name}
        with pytest.raises(kfb.CheckpointError, match=name):
            read(StoredMap, lacking)
    assert read(StoredMap, {n: v for n, v in found.items() if n not in ("format", "written_by")}) == FULL[-1]


def test_fields_can_contradict_each_other():
    with pytest.raises(schema.Malformed, match="checksums/b"):
        records.require(Metadata, {"specs": {}, "checksums": {"b": 1}})


def test_a_newer_file_of_each_kind_is_told_apart_from_a_damaged_one(tmp_path):
    newer = {"format": 2, "written_by": "keras-flax-bridge 3.0"}
    save_file({}, tmp_path / "x.safetensors", metadata={"keras_flax_bridge": json.dumps(newer)})
    (tmp_path / "map.json").write_text(json.dumps(newer))
    for read_file, name in ((opened, "x.safetensors"), (migrate.WeightMap.load, "map.json")):
        with pytest.raises(kfb.CheckpointError, match=r"3\.0.*update the package"):
            read_file(tmp_path / name)
