"""What a seed does to an artifact: bytes, fields of JSON, members of a zip, entries of a folder."""

import copy
import json
import os
import shutil

from keras_flax_bridge.checkpoint.orbax_io.api import LEAVES, MARK
from tests.attacks import goods as good

# what a value becomes: other types, extremes, names that mean something somewhere, shapes too large
NUMBERS = (0, -1, 1, 2**31, 2**63, -(2**63) - 1, 10**400, 1.5, float("nan"), float("inf"), -0.0)
NAMES = ("float32", "object", "O", ">f4", "datetime64[ns]", "__class__", "{0.__class__}", "~0~1", "a~2")
TEXTS = (
    "",
    "../../etc/passwd",
    "/etc/passwd",
    "\x1b[31mred",
    "<script>",
    "a" * 300,
    "\x00",
    "\u00b2",
    "\ud800",
)
LISTS = ([], [[]], [0] * 70, [10**12], [-1], [1.5], ["float32", [10**12]], ["float32", [-1]], [2**62, 2**62])
OBJECTS = (
    {},
    {"": None},
    {"class_name": "Dense"},
    {"class_name": None},
    {"class_name": "Dense", "config": 3},
)
VALUES = (None, True, False, *NUMBERS, *NAMES, *TEXTS, *LISTS, *OBJECTS)
KEYS = ("a", "a/b", "..", "../../x", "~", "%packed", "%", "%2E", "class_name", *TEXTS)
DEPTHS = (10, 500, 100_000)


def pick(rng, choices):
    return choices[int(rng.integers(len(choices)))]


# --- bytes


def spoil_bytes(rng, content):
    """Bytes, changed in one way."""
    data = bytearray(content)
    size = len(data)
    at = int(rng.integers(size)) if size else 0
    length = int(rng.integers(1, max(2, size // 4)))
    way = int(rng.integers(7)) if size else 5
    if way <= 1:
        data[at] ^= 1 << int(rng.integers(8))
    elif way == 2:
        del data[at:]
    elif way == 3:
        data[at : at + length] = bytes(len(data[at : at + length]))
    elif way == 4:
        data[at:at] = data[at : at + length]
    elif way == 5:
        data[at:at] = rng.bytes(length)
    else:
        del data[at : at + length]
    return bytes(data)


# --- JSON


def nodes(found):
    """Every container in JSON with the keys of its items."""
    pending = [found]
    while pending:
        here = pending.pop()
        items = here.items() if isinstance(here, dict) else enumerate(here) if isinstance(here, list) else ()
        for key, value in items:
            yield here, key
            pending.append(value)


def spoil_json(rng, found):
    """JSON with one value swapped, removed, added, renamed, doubled or buried, as text."""
    found = copy.deepcopy(found)
    places = list(nodes(found))
    if not places:
        return json.dumps(pick(rng, VALUES))
    here, key = pick(rng, places)
    way = int(rng.integers(8))
    if way <= 2:
        here[key] = copy.deepcopy(pick(rng, VALUES))
    elif way == 3:
        del here[key]
    elif way == 4:
        _add(rng, here, pick(rng, KEYS), here[key])
    elif way == 5 and isinstance(here, dict):
        here[pick(rng, KEYS)] = here.pop(key)
    elif way == 6:
        return _buried(rng, found, here, key)
    else:
        _swap(rng, places, here, key)
    return json.dumps(found)


def _add(rng, here, key, value):
    if isinstance(here, dict):
        here[key] = copy.deepcopy(value)
    else:
        here.append(copy.deepcopy(value))


def _swap(rng, places, here, key):
    other, name = pick(rng, places)
    here[key], other[name] = copy.deepcopy(other[name]), copy.deepcopy(here[key])


def _buried(rng, found, here, key):
    """A value below many levels: too many to be written by `json`."""
    here[key] = "@"
    depth, (opening, closing) = pick(rng, DEPTHS), pick(rng, [("[", "]"), ('{"a":', "}")])
    return json.dumps(found).replace('"@"', opening * depth + "1" + closing * depth, 1)


# --- folders


def files(path):
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


def spoil_entry(rng, path):
    """Something else where a file or a folder of a checkpoint was; gives what it did."""
    entries = sorted(path.rglob("*"))
    entry, way = pick(rng, entries), pick(rng, list(_ENTRIES))
    if entry.is_dir():
        shutil.rmtree(entry)
    else:
        entry.unlink()
    _ENTRIES[way](entry, pick(rng, entries))
    return f"{way} in place of {entry.relative_to(path)}"


_ENTRIES = {
    "nothing": lambda entry, other: None,
    "an empty file": lambda entry, other: entry.write_bytes(b""),
    "a folder": lambda entry, other: entry.mkdir(),
    "a FIFO": lambda entry, other: os.mkfifo(entry),
    "a circle": lambda entry, other: entry.symlink_to(entry.name),
    "a device": lambda entry, other: entry.symlink_to("/dev/zero"),
    "the folder above": lambda entry, other: entry.symlink_to(".."),
    "another entry": lambda entry, other: entry.symlink_to(other),
    "a link to nothing": lambda entry, other: entry.symlink_to("nowhere"),
}


# --- artifacts


def _bytes(rng, path):
    file = pick(rng, files(path))
    file.write_bytes(spoil_bytes(rng, file.read_bytes()))
    return f"bytes of {file.name}"


def _ours(rng, path):
    good.set_ours(path, spoil_json(rng, good.ours(path)))
    return "our metadata, checksum made anew"


def _ours_bytes(rng, path):
    text = spoil_bytes(rng, json.dumps(good.ours(path)).encode())
    good.set_ours(path, text.decode(errors="replace"))
    return "bytes of our metadata, checksum made anew"


def _orbax_json(rng, path):
    names = (MARK, LEAVES, "_sharding", "process_0")
    file = pick(rng, [file for file in files(path) if file.name in names])
    file.write_text(spoil_json(rng, json.loads(file.read_text())))
    return f"JSON of {file.name}"


def _member(rng, path):
    found = good.members(path)
    name = pick(rng, sorted(found))
    if name.endswith(".json") and rng.integers(4):
        found[name] = spoil_json(rng, json.loads(found[name])).encode(errors="surrogatepass")
    elif rng.integers(3):
        found[name] = spoil_bytes(rng, found[name])
    else:
        content = found.pop(name)
        if rng.integers(2):
            found[pick(rng, ["x", "../x", "/x", "a\\b", "model.weights.h5", "config.json"])] = content
    good.set_members(path, found)
    return f"member {name}"


def _header(rng, path):
    found, rest = good.header(path)
    good.set_header(path, spoil_json(rng, found), rest)
    return "header"


def _json(rng, path):
    path.write_text(spoil_json(rng, json.loads(path.read_text())))
    return "JSON"


def _dataset(rng, path):
    def change(file):
        names = []
        file.visit(names.append)
        name = pick(rng, names)
        if rng.integers(2):
            file[name].attrs["dtype"] = pick(rng, ["float32", "nonsense", "O", "float8_e4m3fn", ""])
        else:
            del file[name]
            if rng.integers(2):
                file[name] = pick(rng, [1, [1.5], "text", [b"a"], [[1], [2]]])

    good.rewritten(path, change)
    return "datasets"


def _npy(rng, path):
    """Other bytes in an array of an archive, which gets a right checksum."""
    found = good.members(path)
    name = pick(rng, list(found))
    content = bytearray(found[name])
    for place in rng.integers(0, min(len(content), 128), 3):
        content[place] = rng.integers(256)
    good.set_members(path, {**found, name: bytes(content)})
    return "an array"


# by kind, each as often as it stands here
WAYS = {
    "tree": (_bytes, _ours, _ours, _ours, _ours_bytes, _orbax_json, spoil_entry),
    "packed": (_bytes, _ours, _ours, _ours, _ours_bytes, _orbax_json, spoil_entry),
    "flax": (_bytes, _orbax_json, _orbax_json, spoil_entry),
    "keras": (_bytes, _member, _member, _member, _dataset),
    "weights": (_bytes, _dataset),
    "safetensors": (_bytes, _header, _header, _header),
    "index": (_json, _json, _json),
    "npz": (_bytes, _npy, _npy),
    "msgpack": (_bytes,),
    "map": (_bytes, _json, _json, _json),
}


def spoil(rng, kind, path):
    """Changes an artifact in one way; gives what was changed."""
    return pick(rng, WAYS[kind])(rng, path)
