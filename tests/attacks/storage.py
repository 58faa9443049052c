"""The files below a tree of Orbax's as an attacker writes them: databases, arrays, what lies beside."""

import json
import re
import struct
import zlib

import numpy as np
import orbax.checkpoint as ocp
import tensorstore
import zstandard

MANIFEST, LEAVES = "manifest.ocdbt", "_METADATA"
KERNEL = "params.first.kernel"  # the array that is forged, 3 x 2


def item(path):
    """The folder of the tree in a checkpoint."""
    return next(folder for folder in (path / "state", path / "pytree", path) if (folder / LEAVES).is_file())


# --- arrays in a database


def database(path):
    return tensorstore.KvStore.open({"driver": "ocdbt", "base": f"file://{item(path)}/"}).result()


def set_arrays(path, change):
    """Changes the metadata of every array of 3 x 2 in a database; `change` gives JSON types or text."""
    store = database(path)
    for key in store.list().result():
        if key.endswith((b".zarray", b"zarr.json")):
            before = json.loads(store.read(key).result().value)
            if before["shape"] == [3, 2]:
                store.write(key, as_text(change(before))).result()


def as_text(found):
    return found if isinstance(found, (bytes, str)) else json.dumps(found)


# --- arrays in files


def as_files(path, *, zarr3=False, compressed=True):
    """Writes a tree anew, each array in a folder of its own."""
    with ocp.StandardCheckpointer() as checkpointer:
        tree = checkpointer.restore(path)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=False, use_zarr3=zarr3)) as checkpointer:
        checkpointer.save(path, tree, force=True)
    (kernel,) = (folder for folder in path.iterdir() if folder.name == KERNEL)
    if not compressed:
        file = kernel / ".zarray"
        file.write_text(json.dumps({**json.loads(file.read_text()), "compressor": None}))
        (kernel / "0.0").write_bytes(np.ones((3, 2), "float32").tobytes())
    return kernel


def set_array(kernel, change):
    """Changes the metadata of an array in a folder."""
    file = next(file for file in (kernel / ".zarray", kernel / "zarr.json") if file.exists())
    file.write_text(as_text(change(json.loads(file.read_text()))))


def larger_chunks(size):
    """A change: chunks of so many numbers, in either version of the format."""

    def change(found):
        if "chunks" in found:
            return {**found, "chunks": [size // 2, 2]}
        codecs = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "zstd"}]
        grid = {"name": "regular", "configuration": {"chunk_shape": [size // 2, 2]}}
        return {**found, "chunk_grid": grid, "codecs": codecs}

    return change


def larger(size):
    """A change: an array of so many numbers, in chunks of moderate size."""

    def change(found):
        return {**larger_chunks(1 << 20)(found), "shape": [size // 2, 2]}

    return change


def zeros(size):
    """So many bytes, compressed."""
    stream = zstandard.ZstdCompressor().compressobj()
    return b"".join([*(stream.compress(bytes(1 << 20)) for _ in range(size >> 20)), stream.flush()])


def deflated(size):
    """So many bytes of zero, packed by gzip."""
    stream = zlib.compressobj(wbits=31)
    return b"".join([*(stream.compress(bytes(1 << 20)) for _ in range(size >> 20)), stream.flush()])


def set_leaves(path, change):
    """Changes Orbax's list of the leaves."""
    file = item(path) / LEAVES
    file.write_text(as_text(change(json.loads(file.read_text()))))


def renamed(name):
    """A change to the list of leaves: the kernel has another name."""

    def change(found):
        tree = found["tree_metadata"]
        key = next(key for key, leaf in tree.items() if names(leaf) == KERNEL)
        leaf = {**tree.pop(key), "key_metadata": [{"key": name, "key_type": 2}]}
        return {**found, "tree_metadata": {**tree, str((name,)): leaf}}

    return change


def names(leaf):
    return ".".join(key["key"] for key in leaf["key_metadata"])


# --- the database itself: a header of magic and length, a format, packed content, a checksum


def opened(content):
    """What a manifest or a node of a database holds."""
    return zstandard.ZstdDecompressor().decompressobj().decompress(content[14:-4])


def closed(content, held):
    """A manifest or a node in the place of another; what it holds is compressed already."""
    head = content[:4] + struct.pack("<Q", len(held) + 18) + b"\0\1"
    return head + held + struct.pack("<I", _crc32c(head + held))


def packed(held):
    return zstandard.ZstdCompressor().compress(held)


def set_base(path, base):
    """Lets a database look for its data elsewhere than in `ocdbt.process_0/`, at a path as long."""
    folder = item(path)
    ((node, content),) = ((f, f.read_bytes()) for f in (folder / "d").iterdir())
    held = opened(content)
    before = re.search(rb"ocdbt\.process_\d/", held).group()
    after = closed(content, packed(held.replace(before, base.ljust(len(before), "/").encode())))
    node.write_bytes(after)
    manifest = (folder / MANIFEST).read_bytes()
    lengths = [_varint(len(whole)) for whole in (content, after)]
    (folder / MANIFEST).write_bytes(closed(manifest, packed(opened(manifest).replace(*lengths))))


def _varint(number):
    """A number of two bytes: seven bits each, the lowest first."""
    return bytes([number & 127 | 128, number >> 7])


def _crc32c(content):
    found = 0xFFFFFFFF
    for byte in content:
        found ^= byte
        for _ in range(8):
            found = found >> 1 ^ (0x82F63B78 if found & 1 else 0)
    return found ^ 0xFFFFFFFF
