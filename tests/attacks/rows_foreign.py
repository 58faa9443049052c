"""Files of other libraries that lie: an index, the arrays of an archive, msgpack."""

import io
import json
import struct
import zipfile

import msgpack
import numpy as np

from tests.attacks import goods
from tests.attacks.rows import row

# --- an index of `.safetensors` files


def _index(name, change, **options):
    @row(name, "index", refused="all", **options)
    def _spoil(path, kit):
        found = json.loads(path.read_text())
        result = change(found, kit)
        path.write_text(result if isinstance(result, str) else json.dumps(found))


def _lead(to):
    def change(found, kit):
        first = next(iter(found["weight_map"]))
        found["weight_map"][first] = to(kit)

    return change


FILES = {
    "an absolute path": lambda kit: str(kit.secret),
    "a path above the folder": lambda kit: f"../{kit.secret.parent.name}/x.safetensors",
    "a path of Windows": lambda kit: "..\\x.safetensors",
    "an address": lambda kit: "https://localhost/x.safetensors",
    "another kind of file": lambda kit: "model.bin",
    "a file that is not there": lambda kit: "more.safetensors",
    "a number": lambda kit: 3,
    "a null character": lambda kit: "a\0.safetensors",
    "an escape sequence": lambda kit: "\x1b[31m.safetensors",
    "the index itself": lambda kit: "model.safetensors.index.json",
}
for _number, (_what, _to) in enumerate(FILES.items()):
    _index(f"an index with {_what} for a file", _lead(_to), slow=_number > 2)

_index("an index whose map is a list", lambda found, kit: found.update(weight_map=[]))
_index("an index that is a list", lambda found, kit: "[]", slow=True)
_index("an index nested deeply", lambda found, kit: "[" * 100_000, slow=True)
_index("an index with a name twice", lambda found, kit: '{"weight_map": {}, "weight_map": {}}', slow=True)
_index("an index of other arrays", lambda found, kit: found["weight_map"].update(more="part-1.safetensors"))
_index("an index that leaves an array out", lambda found, kit: found["weight_map"].popitem() and None)


@row("a shard that is a link out of the folder", "index", refused="all")
def _linked_shard(path, kit):
    shard = path.with_name("part-1.safetensors")
    other = kit.secret.with_suffix(".safetensors")
    other.write_bytes(shard.read_bytes())
    shard.unlink()
    shard.symlink_to(other)


@row("a shard that ends early", "index", refused="all", slow=True)
def _short_shard(path, kit):
    shard = path.with_name("part-1.safetensors")
    shard.write_bytes(shard.read_bytes()[:-4])


# --- npz


def _member(name, make, **options):
    """An array of the archive in other bytes."""

    @row(name, "npz", **options)
    def _spoil(path, kit):
        found = goods.members(path)
        first = next(iter(found))
        goods.set_members(path, {**found, first: make(found[first], kit)})


class _Runs:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        import os

        return os.system, (self.command,)


def _pickled(content, kit):
    file = io.BytesIO()
    np.save(file, np.array([_Runs(kit.command)], dtype=object), allow_pickle=True)
    return file.getvalue()


def _header(text):
    def make(content, kit):
        header = text.encode()
        return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header

    return make


_member("an array of pickled objects", _pickled, refused="all")
_member("an array without its magic", lambda content, kit: content[1:], refused="all", slow=True)
HEADERS = {
    "of petabytes": "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,)}\n",
    "of a call": "{'descr': __import__('os').system('x'), 'fortran_order': False, 'shape': ()}\n",
    "of negative size": "{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}\n",
    "of records": "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,)}\n",
    "nested deeply": "(" * 5000 + "\n",
    "that is long": "{" + " " * 60000 + "}\n",
}
for _number, (_what, _text) in enumerate(HEADERS.items()):
    _member(f"an array with a header {_what}", _header(_text), refused="all", slow=_number > 1)


@row("zeros that unpack to 1 GB", "npz", refused="all")
def _zeros(path, kit):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        header = "{'descr': '|u1', 'fortran_order': False, 'shape': (1073741824,)}\n"
        with archive.open("params/x.npy", "w", force_zip64=True) as file:
            file.write(_header(header)(None, kit))
            for _ in range(1024):
                file.write(bytes(1 << 20))


@row("a member that is no array", "npz", refused="all", slow=True)
def _other_member(path, kit):
    goods.set_members(path, {**goods.members(path), "run.py": b"import os"})


@row("members that lead out of the archive", "npz", refused="all", slow=True)
def _members(path, kit):
    found = goods.members(path)
    goods.set_members(path, {**found, f"../{kit.marker.name}.npy": next(iter(found.values()))})


# --- msgpack


def _whole(name, make, **options):
    """A file of these bytes."""

    @row(name, "msgpack", refused="all", **options)
    def _spoil(path, kit):
        path.write_bytes(make(path.read_bytes(), kit))


def _array(shape, dtype, data, code=1):
    inner = msgpack.packb((shape, dtype, data), use_bin_type=True)
    return msgpack.packb({"params": {"x": msgpack.ExtType(code, inner)}})


BYTES = {
    "a list of 4 billion": lambda whole, kit: b"\x81\xa1a\xdd\xff\xff\xff\xff",
    "a map of 4 billion": lambda whole, kit: b"\xdf\xff\xff\xff\xff",
    "an array of petabytes": lambda whole, kit: _array((1 << 50,), "float32", b"0000"),
    "an array of objects": lambda whole, kit: _array((1,), "object", b"00000000"),
    "lists that promise much": lambda whole, kit: (
        b"\x81\xa1a" + b"\xdd\x00\x01\x00\x00" * 90 + bytes(1 << 16)
    ),
    "a state nested deeply": lambda whole, kit: b"\x81\xa1a" * 100_000,
    "lists nested deeply": lambda whole, kit: b"\x81\xa1a" + b"\x91" * 100_000,
    "a pickle": lambda whole, kit: __import__("pickle").dumps(_Runs(kit.command)),
    "a pickle as an extension": lambda whole, kit: msgpack.packb(
        {"x": msgpack.ExtType(42, __import__("pickle").dumps(_Runs(kit.command)))}
    ),
    "a time as an extension": lambda whole, kit: b"\x81\xa1a\xd6\xff\0\0\0\0",
    "a name twice": lambda whole, kit: b"\x82\xa1a\x01\xa1a\x02",
    "an escape sequence in a dtype": lambda whole, kit: _array((1,), "\x1b[31m", b"0"),
    "an escape sequence in a name": lambda whole, kit: msgpack.packb({"\x1b[31m": 1}),
    "a negative size": lambda whole, kit: _array((-1, -4), "uint8", b"0000"),
    "many small values": lambda whole, kit: b"\x81\xa1a\xdd\x00\x1e\x84\x80" + b"\xc0" * 2_000_000,
    "the first half": lambda whole, kit: whole[: len(whole) // 2],
    "more behind it": lambda whole, kit: whole + b"\xc0",
    "an array in parts that lack one": lambda whole, kit: msgpack.packb(
        {"x": {"__msgpack_chunked_array__": True, "shape": {"0": 1 << 60}, "chunks": {}}}
    ),
    "text in the place of an array": lambda whole, kit: msgpack.packb({"params": {"x": "//MPAPlaceholder:"}}),
}
for _number, (_what, _make) in enumerate(BYTES.items()):
    _whole(f"msgpack of {_what}", _make, slow=_number > 5)


for _kind in ("index", "npz", "msgpack"):

    @row("a FIFO", _kind, refused="all", slow=_kind != "npz")
    def _fifo(path, kit):
        import os

        path.unlink()
        os.mkfifo(path)

    @row("a device", _kind, refused="all", slow=_kind != "msgpack")
    def _device(path, kit):
        path.unlink()
        path.symlink_to("/dev/zero")

    @row("an empty file", _kind, refused="all", slow=True)
    def _empty(path, kit):
        path.write_bytes(b"")
