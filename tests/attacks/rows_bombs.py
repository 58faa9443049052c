"""Small files that want much memory, or much time."""

import json
import zipfile

import numpy as np
import orbax.checkpoint as ocp

from tests.attacks import goods
from tests.attacks.rows import row

MEGA = 1 << 20
DECLARED = 1 << 31  # elements: 8 GB of float32


def _dense(config):
    config["config"]["layers"][1]["config"]["units"] = DECLARED
    return config


@row("a layer of 8 GB", "keras", "tree", refused=("load_model",))
def _large_layer(path, kit):
    goods.set_config(path, _dense)


@row("a table of 8 GB", "keras", "tree", refused=("load_model",), slow=True)
def _embedding(path, kit):
    layer = {"module": "keras.layers", "class_name": "Embedding", "registered_name": None}
    layer["config"] = {"input_dim": DECLARED, "output_dim": 1, "name": "first"}
    layer["build_config"] = {"input_shape": [None, 3]}

    def change(config):
        config["config"]["layers"].insert(1, layer)
        return config

    goods.set_config(path, change)


@row("an array of 8 GB without chunks", "weights", "keras")
def _shape(path, kit):
    def change(file):
        options = {"chunks": (MEGA,), "compression": "gzip"}
        file.create_dataset("layers/first/vars/9", (DECLARED,), "float32", **options)

    goods.rewritten(path, change)


@row("an array of zeros, compressed", "weights", "keras", slow=True)
def _compressed(path, kit):
    def change(file):
        options = {"chunks": (MEGA,), "compression": "gzip", "compression_opts": 9}
        found = file.create_dataset("layers/first/vars/9", (400 * MEGA,), "uint8", **options)
        for begin in range(0, 400 * MEGA, 8 * MEGA):
            found[begin : begin + 8 * MEGA] = np.zeros(8 * MEGA, "uint8")

    goods.rewritten(path, change)


def _inflated(path, name, head, tail):
    found = goods.members(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for other, content in found.items():
            if other != name:
                archive.writestr(other, content)
        with archive.open(name, "w", force_zip64=True) as member:
            member.write(head)
            for _ in range(600):
                member.write(b" " * MEGA)
            member.write(tail)


@row("a config of 600 MB, zipped", "keras", refused="all")
def _config(path, kit):
    _inflated(path, "config.json", b'{"a": "', b'"}')


@row("weights of 600 MB, zipped", "keras", slow=True)
def _weights(path, kit):
    _inflated(path, "model.weights.h5", goods.members(path)["model.weights.h5"], b"")


@row("a config of many lists", "keras", "tree", refused=("load_model",), slow=True)
def _lists(path, kit):
    goods.set_config(path, lambda config: {**config, "config": [[] for _ in range(3_000_000)]})


# --- our metadata

FORGED = {
    "an empty leaf of 8 GB": lambda found: found["empty"].update({"params/x": ["float32", [DECLARED]]}),
    "an empty leaf of 0 x 2**60": lambda found: found["empty"].update({"params/x": ["float32", [0, 2**60]]}),
    "a leaf of 8 GB": lambda found: found["specs"].update(
        {"params/first/kernel": ["float32", [DECLARED, 1]]}
    ),
    "a leaf of negative size": lambda found: found["specs"].update(
        {"params/first/kernel": ["float32", [-1]]}
    ),
    "a scalar of 8 GB": lambda found: found["specs"].update({"step": ["int32", [DECLARED]]}),
    "a packed leaf of 8 GB": lambda found: found["packed"].update({"step": [0, "int32", [DECLARED]]}),
    "packed leaves outside": lambda found: found["packed"].update({"step": [10**9, "int32", []]}),
    "a million leaves": lambda found: found["specs"].update({f"x/{i}": ["int8", [1]] for i in range(10**6)}),
}
for _number, (_what, _forge) in enumerate(FORGED.items()):

    def _spoil(path, kit, forge=_forge):
        found = goods.ours(path)
        found["leaves"] += 1
        forge(found)
        goods.set_ours(path, found)

    _kind = "packed" if "packed" in _what else "tree"
    row(_what, _kind, refused=("restore a tree",), checked=True, slow=_number > 5)(_spoil)


@row("metadata of 100,000 levels", "tree", refused="all")
def _deep(path, kit):
    goods.set_ours(path, '{"format": 1, "model": ' + "[" * 100_000 + "]" * 100_000 + "}")


@row("metadata of many lists", "tree", refused="all")
def _wide(path, kit):
    goods.set_ours(path, '{"format": 1, "model": {"a": [' + ",".join(["[]"] * 3_000_000) + "]}}")


@row("metadata without end", "tree", refused="all", slow=True)
def _endless(path, kit):
    with (path / "_CHECKPOINT_METADATA").open("r+b") as file:
        file.truncate(1 << 35)  # a hole


# --- other formats


@row("an array of other Orbax code of 8 GB without chunks", "flax", slow=True)
def _sparse(path, kit):
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=False)) as checkpointer:
        checkpointer.save(path, {"params": {"first": {"kernel": np.ones((3, 2), "float32")}}}, force=True)
    (file,) = path.rglob(".zarray")
    found = json.loads(file.read_text())
    file.write_text(json.dumps({**found, "shape": [DECLARED, 2], "chunks": [1 << 28, 2]}))


HEADERS = {
    "a header of 2**63 bytes": lambda found, rest: (2**63).to_bytes(8, "little"),
    "a header of 99 MB": lambda found, rest: (99 * 10**6).to_bytes(8, "little") + b" " * 99 * 10**6,
    "a header of many lists": lambda found, rest: _headed(
        '{"__metadata__": {"keras_flax_bridge": "%s"}}', "[],", 10**6
    ),
    "a header of 100,000 levels": lambda found, rest: _headed("%s", "[", 100_000),
    "a tensor of 2**60 elements": lambda found, rest: _headed(
        '{"a": {"dtype": "F32", "shape": [1152921504606846976], "data_offsets": [0, %s]}}', "4", 1
    ),
}


def _headed(text, part, times):
    header = (text % (part * times)).encode()
    return len(header).to_bytes(8, "little") + header + b"\0" * 4


for _what, _make in HEADERS.items():

    @row(_what, "safetensors", refused=("inspect",))
    def _header(path, kit, make=_make):
        path.write_bytes(make(*goods.header(path)))


MAPS = {
    "a shape of 2**40": [["reshape", [3, 2], [1 << 20, 1 << 20]]],
    "a shape of 10**400": [["reshape", [10**400], [10**400]]],
    "many axes": [["transpose", list(range(10**6))]],
    "many parts": [["split", 0, [0] * 10**6]],
}
for _what, _transforms in MAPS.items():

    @row(f"a map with {_what}", "map", refused="all")
    def _map(path, kit, transforms=_transforms):
        found = json.loads(path.read_text())
        found["pairs"][0]["transforms"] = transforms
        path.write_text(json.dumps(found))


@row("a map of 100,000 levels", "map", refused="all")
def _deep_map(path, kit):
    path.write_text('{"pairs": ' + "[" * 100_000 + "]" * 100_000 + "}")
