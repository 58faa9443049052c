"""Files of Keras's kinds that no honest tool writes, and some that are odd and honest."""

import io
import json
import stat
import struct
import zipfile
import zlib

import h5py
import keras
import numpy as np

MEBI = 1 << 20


def build():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="first"), keras.layers.Dense(2)])
    model.compile("adam", "mse")
    model.optimizer.build(model.trainable_variables)
    return model


def write_all(folder):
    """Writes every hostile file into a folder, with what they point to."""
    (folder / "secret.bin").write_bytes(np.full(16, 3.25, "float32").tobytes())
    with h5py.File(folder / "other.h5", "w") as file:
        file["x"] = np.arange(4.0)
    model = build()
    model.save(folder / "whole.keras")
    model.save_weights(folder / "whole.weights.h5")
    for name, write in H5.items():
        with h5py.File(folder / f"{_stem(name)}.weights.h5", "w") as file:
            write(file, folder)
    for name, change in WEIGHTS.items():
        path = folder / f"{_stem(name)}.weights.h5"
        path.write_bytes(change((folder / "whole.weights.h5").read_bytes()))
    for name, members in ARCHIVES.items():
        with zipfile.ZipFile(folder / "whole.keras") as archive:
            whole = {item: archive.read(item) for item in archive.namelist()}
        _pack(folder / f"{_stem(name)}.keras", members(whole))
    for name, change in BYTES.items():
        (folder / f"{_stem(name)}.keras").write_bytes(change((folder / "whole.keras").read_bytes()))
    for name, content in TENSORS.items():
        (folder / f"{_stem(name)}.safetensors").write_bytes(content)


def _stem(name):
    return name.replace(" ", "_")


# --- HDF5


def external(file, folder):
    external = [(str(folder / "secret.bin"), 0, 64)]
    file.create_dataset("layers/first/vars/0", shape=(4, 4), dtype="f4", external=external)


def virtual(file, folder):
    layout = h5py.VirtualLayout(shape=(4,), dtype="f8")
    layout[:] = h5py.VirtualSource(str(folder / "other.h5"), "x", shape=(4,))
    file.create_virtual_dataset("v", layout)


def cycle(file, folder):
    group = file.create_group("g")
    group["again"] = group


def two_names(file, folder):
    file["a"] = np.ones(3)
    file["b"] = file["a"]


def named_type(file, folder):
    file["t"] = np.dtype("f4")


def marked(mark, dtype="f4"):
    def write(file, folder):
        file.create_dataset("a", data=np.zeros(3, dtype)).attrs["dtype"] = mark

    return write


def fill_bomb(file, folder):
    file.create_dataset("x", shape=(10**10,), dtype="f4", chunks=(1 << 20,), compression="gzip")


def late(file, folder):
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_alloc_time(h5py.h5d.ALLOC_TIME_LATE)
    space = h5py.h5s.create_simple((10**9,))
    h5py.h5d.create(file.id, b"x", h5py.h5t.IEEE_F32LE, space, plist)


def gzip_bomb(file, folder):
    file.create_dataset("x", data=np.zeros(8 * MEBI, "f4"), chunks=(1 << 22,), compression="gzip")


def chunk_bomb(file, folder):
    """A chunk of 64 KiB whose stream unpacks to 32 MiB."""
    data = file.create_dataset("x", shape=(1 << 14,), dtype="f4", chunks=(1 << 14,), compression="gzip")
    data.id.write_direct_chunk((0,), zlib.compress(bytes(32 * MEBI)))


def large_chunk(file, folder):
    shape = {"shape": (3,), "maxshape": (None,), "chunks": (1 << 24,)}
    file.create_dataset("x", dtype="f4", compression="gzip", **shape)[:] = 1


def other_filter(file, folder):
    file.create_dataset("x", data=np.zeros(4096, "i4"), scaleoffset=4)


def twice_packed(file, folder):
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_chunk((64,))
    plist.set_deflate(1)
    plist.set_deflate(1)
    space = h5py.h5s.create_simple((64,))
    h5py.Dataset(h5py.h5d.create(file.id, b"x", h5py.h5t.IEEE_F32LE, space, plist))[:] = 1


def deep(file, folder):
    group = file
    for _ in range(300):
        group = group.create_group("g")


def wide(file, folder):
    """More members than any model has, in links that cost a few bytes each."""
    file["a"] = np.ones(3)
    for i in range(100_001):
        file.id.links.create_soft(str(i).encode(), b"/a")


def holding(name, **options):
    def write(file, folder):
        file.create_dataset(name, **options)

    return write


def linking(link):
    def write(file, folder):
        file["a"] = np.ones(3)
        file["layers/first"] = link(folder)

    return write


H5 = {
    # name: what writes it
    "external dataset": external,
    "virtual dataset": virtual,
    "external link": linking(lambda folder: h5py.ExternalLink(str(folder / "other.h5"), "/x")),
    "soft link": linking(lambda folder: h5py.SoftLink("/a")),
    "dangling link": linking(lambda folder: h5py.SoftLink("/nowhere")),
    "soft loop": linking(lambda folder: h5py.SoftLink("/layers/first")),
    "cycle": cycle,
    "two names": two_names,
    "named type": named_type,
    "strings": holding("s", data=["a", "b"], dtype=h5py.string_dtype()),
    "fixed strings": holding("s", data=np.array([b"a", b"b"])),
    "compound": holding("c", data=np.zeros(3, [("a", "f4"), ("b", "i4")])),
    "references": holding("r", shape=(2,), dtype=h5py.ref_dtype),
    "ragged": holding("r", shape=(2,), dtype=h5py.vlen_dtype(np.float32)),
    "array type": holding("r", shape=(2,), dtype=np.dtype(("f4", (3,)))),
    "opaque": holding("o", data=np.zeros(3, "V7")),
    "long double": holding("o", data=np.zeros(3, np.longdouble)),
    "no shape": holding("e", data=h5py.Empty("f4")),
    "odd mark": marked("nonsense"),
    "object mark": marked("O"),
    "mark of another size": marked("bfloat16", "f4"),
    "mark that is a number": marked(7, "V2"),
    "mark that is a list": marked(["bfloat16"] * 3, "V2"),
    "mark with an escape": marked("\x1b[31m", "V2"),
    "name with an escape": holding("a\x1b]0;owned\x07", data=np.ones(2)),
    "long name": holding("n" * 2000, data=np.ones(2)),
    "fill bomb": fill_bomb,
    "never written": late,
    "some chunks": lambda file, folder: file.create_dataset("x", shape=(100,), dtype="f4", chunks=(10,)),
    "gzip bomb": gzip_bomb,
    "large chunk": large_chunk,
    "other filter": other_filter,
    "twice packed": twice_packed,
    "lzf": holding("x", data=np.zeros(100, "f4"), compression="lzf"),
    "deep": deep,
    "wide": wide,
    "chunk bomb": chunk_bomb,
}

WEIGHTS = {
    # name: what becomes of the bytes of an honest file
    "no hdf5": lambda data: b"hello" * 100,
    "empty file": lambda data: b"",
    "cut off weights": lambda data: data[: len(data) // 2],
}

# --- zip


def _pack(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for info, data in members:
            archive.writestr(info if isinstance(info, zipfile.ZipInfo) else zipfile.ZipInfo(info), data)


def deflated(name):
    info = zipfile.ZipInfo(name)
    info.compress_type = zipfile.ZIP_DEFLATED
    return info


def of_kind(name, mode):
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info


def bzipped(name):
    info = zipfile.ZipInfo(name)
    info.compress_type = zipfile.ZIP_BZIP2
    return info


def but(whole, **others):
    """The members of an honest archive, with another content of some."""
    return [(name, others.get(name.split(".")[0], data)) for name, data in whole.items()]


def hostile_weights(write):
    def members(whole):
        buffer = io.BytesIO()
        with h5py.File(buffer, "w") as file:
            write(file, None)
        rest = [(name, data) for name, data in whole.items() if name != "model.weights.h5"]
        return [*rest, ("model.weights.h5", buffer.getvalue())]

    return members


def config_bomb(whole):
    rest = [(name, data) for name, data in whole.items() if name != "config.json"]
    return [*rest, (deflated("config.json"), b'{"a":"' + b" " * (32 * MEBI) + b'"}')]


def weights_bomb(whole):
    rest = [(name, data) for name, data in whole.items() if name != "model.weights.h5"]
    return [*rest, (deflated("model.weights.h5"), whole["model.weights.h5"] + bytes(32 * MEBI))]


ARCHIVES = {
    # name: the members of the file, from those of an honest one
    "config bomb": config_bomb,
    "weights bomb": weights_bomb,
    "asset bomb": lambda whole: [*whole.items(), (deflated("assets/a"), bytes(32 * MEBI))],
    "long config": lambda whole: but(whole, config=b'{"a":"' + b" " * (17 * MEBI) + b'"}'),
    "config of many values": lambda whole: but(whole, config=b"[" + b"{}," * 300_000 + b"{}]"),
    "config too deep": lambda whole: but(whole, config=b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    "config that is a list": lambda whole: but(whole, config=b"[1, 2]"),
    "config that is no text": lambda whole: but(whole, config=b"\xff\xfe{}"),
    "config of a long number": lambda whole: but(whole, config=b'{"a":' + b"9" * 10_000 + b"}"),
    "no config": lambda whole: [(name, data) for name, data in whole.items() if name != "config.json"],
    "no weights": lambda whole: [(n, d) for n, d in whole.items() if n != "model.weights.h5"],
    "absolute name": lambda whole: [*whole.items(), ("/tmp/x", b"")],
    "name that leaves": lambda whole: [*whole.items(), ("assets/../../x", b"")],
    "backslash": lambda whole: [*whole.items(), ("assets\\..\\x", b"")],
    "drive": lambda whole: [*whole.items(), ("C:/x", b"")],
    "member with an escape": lambda whole: [*whole.items(), ("assets/\x1b[31m", b"")],
    "symlink": lambda whole: [*whole.items(), (of_kind("assets/l", stat.S_IFLNK | 0o777), b"/etc/passwd")],
    "device": lambda whole: [*whole.items(), (of_kind("assets/d", stat.S_IFCHR | 0o666), b"")],
    "many members": lambda whole: [*whole.items(), *((f"assets/{i}", b"") for i in range(10_001))],
    "bzip2": lambda whole: [*whole.items(), (bzipped("assets/b"), bytes(1000))],
    "external in an archive": hostile_weights(
        lambda file, _: file.create_dataset("v", shape=(4,), dtype="f4", external=[("/etc/hostname", 0, 16)])
    ),
    "fill bomb in an archive": hostile_weights(fill_bomb),
}


def directory(data, change):
    """The archive with a changed entry of its directory: that of the weights."""
    at = data.rindex(b"model.weights.h5") - 46
    entry = bytearray(data[at : at + 46])
    change(entry)
    return data[:at] + bytes(entry) + data[at + 46 :]


def put(offset, form, value):
    return lambda entry: struct.pack_into(form, entry, offset, value)


BYTES = {
    # name: what becomes of the bytes of an honest archive
    "no archive": lambda data: b"hello" * 100,
    "empty archive": lambda data: b"",
    "cut off": lambda data: data[: len(data) // 2],
    "encrypted": lambda data: directory(data, put(8, "<H", 1)),
    "larger than stored": lambda data: directory(data, put(24, "<L", 1 << 30)),
    "both sizes larger": lambda data: directory(
        data, lambda e: struct.pack_into("<LL", e, 20, 1 << 30, 1 << 30)
    ),
    "one place for two": lambda data: directory(data, put(42, "<L", 0)),
    "of another method": lambda data: directory(data, put(10, "<H", 8)),
    "of no method": lambda data: directory(data, put(10, "<H", 77)),
    "a flipped byte": lambda data: _flip(data, data.index(b"\x89HDF") + 900),
}


def _flip(data, at):
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


# --- safetensors


def tensors(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def one(**changes):
    return {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}}


TENSORS = {
    # name: the file
    "no header": b"1234",
    "header without end": tensors(one(), bytes(8), length=1 << 62),
    "header that is a list": tensors(b"[]"),
    "header too deep": tensors(b'{"a":' * 50_000 + b"1" + b"}" * 50_000),
    "negative": tensors(one(shape=[-2]), bytes(8)),
    "a fraction": tensors(one(shape=[2.0]), bytes(8)),
    "true": tensors(one(shape=[True, 2]), bytes(8)),
    "of other bytes": tensors(one(shape=[3]), bytes(8)),
    "more than there is": tensors(one(shape=[1 << 40], data_offsets=[0, 1 << 42]), bytes(8)),
    "more bytes": tensors(one(), bytes(9)),
    "shared bytes": tensors({**one(), "b": one()["a"]}, bytes(8)),
    "unknown dtype": tensors(one(dtype="F8_E4M3", data_offsets=[0, 2]), bytes(2)),
    "dtype that is a list": tensors(one(dtype=["F32"]), bytes(8)),
    "no offsets": tensors({"a": {"dtype": "F32", "shape": [2]}}, bytes(8)),
    "entry that is text": tensors({"a": "F32"}),
    "metadata that is a list": tensors({"__metadata__": [], **one()}, bytes(8)),
    "config that is no JSON": tensors({"__metadata__": {"keras_flax_bridge": "{"}, **one()}, bytes(8)),
    "name with an escape code": tensors({"a\x1b[31m": one()["a"]}, bytes(8)),
}
