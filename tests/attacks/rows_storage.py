"""Trees of Orbax's that want other files, or much memory, through the storage in which the arrays lie."""

import json
import shutil

import numpy as np

import keras_flax_bridge as kfb
from tests.attacks import storage
from tests.attacks.rows import row

CHECKPOINTS = ("tree", "packed", "flax", "callback")
DATABASES = ("tree", "flax", "callback")  # with an array for each leaf
BESIDE = ("tree", "callback")  # of jax's arrays, about which Orbax writes more
HUGE = 1 << 31  # numbers: 8 GB of float32
READING = ("restore a tree", "verify", "diff --values", "convert to safetensors")
UNASKED = ("verify", "diff --values", "convert to safetensors", "convert to checkpoint")

# --- where the data lie

BASES = {
    "folders above": "../../../../hom/",
    "an absolute path": "/etc/",
    "a web address": "http://a.bc/d/",
    "a bucket": "gs://bucket/a/",
    "a file address": "file:///etc/",
    "a path through itself": "d/../../../hom/",
}
for _number, (_what, _base) in enumerate(BASES.items()):

    def _spoil(path, kit, base=_base):
        shutil.rmtree(path)
        kfb.save(path, {"params": {"first": np.ones(70_000, "float32")}}, layout=path.parent.name)
        folder = storage.item(path)
        for file in (folder / "ocdbt.process_0" / "d").iterdir():  # what is looked for is there
            planted = kit.secret.parent / "d" / file.name
            planted.parent.mkdir(exist_ok=True)
            planted.write_bytes(file.read_bytes())
        storage.set_base(path, base)

    row(f"data in {_what}", "tree", "packed", refused=("verify",), slow=_number > 1)(_spoil)


def _secret_array(kit, kernel):
    """An array outside, of the secret's first bytes."""
    shutil.copytree(kernel, kit.secret.parent / "array", dirs_exist_ok=True)
    (kit.secret.parent / "array" / "0.0").write_bytes(kit.secret.read_bytes()[:24])


NAMES = {
    "an absolute path": lambda kit: f"{kit.secret.parent}/array",
    "a path upwards": lambda kit: "../../../hom/array",
    "a path through a folder": lambda kit: f"{storage.KERNEL}/../../../../hom/array",
    "a file address": lambda kit: f"file://{kit.secret.parent}/array",
    "a web address": lambda kit: "http://127.0.0.1:9/array",
}
for _number, (_what, _name) in enumerate(NAMES.items()):

    @row(f"a leaf called by {_what}", "flax", refused=("verify", "diff"), slow=_number > 1)
    def _named(path, kit, name=_name):
        _secret_array(kit, storage.as_files(path, compressed=False))
        storage.set_leaves(path, storage.renamed(name(kit)))


@row("a database beside leaves called by paths", "flax", refused=("verify", "diff"))
def _both(path, kit):
    manifest = (storage.item(path) / storage.MANIFEST).read_bytes()
    _secret_array(kit, storage.as_files(path, compressed=False))
    (path / storage.MANIFEST).write_bytes(manifest)
    storage.set_leaves(path, storage.renamed(f"{kit.secret.parent}/array"))


LINKS = {
    "the folder of an array": lambda kernel, outside: _linked(kernel, outside),
    "a chunk": lambda kernel, outside: _linked(kernel / "0.0", outside / "0.0"),
    "the metadata of an array": lambda kernel, outside: _linked(kernel / ".zarray", outside / ".zarray"),
    "a chunk, by way of the checkpoint": lambda kernel, outside: (
        (kernel.parent / "d").symlink_to(outside),
        _linked(kernel / "0.0", kernel.parent / "d" / "0.0"),
    ),
    "a chunk, by a relative path": lambda kernel, outside: _linked(
        kernel / "0.0", "../../../../hom/array/0.0"
    ),
}
for _number, (_what, _link) in enumerate(LINKS.items()):

    @row(f"a link for {_what}", "flax", refused=READING[:2], slow=_number > 1)
    def _to_outside(path, kit, link=_link):
        kernel = storage.as_files(path, compressed=False)
        _secret_array(kit, kernel)
        link(kernel, kit.secret.parent / "array")


def _linked(entry, target):
    shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    entry.symlink_to(target)


@row("a link for the data of the database", *CHECKPOINTS, refused=READING[:2])
def _linked_data(path, kit):
    folder = storage.item(path)
    process = folder / "ocdbt.process_0"
    shutil.copytree(process, kit.secret.parent / "process")
    _linked(process, kit.secret.parent / "process")


# --- how large they say they are


@row("chunks of 8 GB in a database", *DATABASES, refused=READING[:2])
def _chunks(path, kit):
    storage.set_arrays(path, storage.larger_chunks(HUGE))


@row("arrays of 8 GB in a database", *DATABASES, refused=UNASKED[:1])
def _arrays(path, kit):
    storage.set_arrays(path, storage.larger(HUGE))
    storage.set_leaves(path, lambda found: {**found, "store_array_data_equal_to_fill_value": False})


for _zarr3 in (False, True):

    @row(f"a chunk of 1 GB of zeros, zarr {2 + _zarr3}", "flax", refused=READING, slow=_zarr3)
    def _chunk(path, kit, zarr3=_zarr3):
        kernel = storage.as_files(path, zarr3=zarr3)
        storage.set_array(kernel, storage.larger_chunks(1 << 28))
        next(kernel.rglob("0.0" if not zarr3 else "c/0/0")).write_bytes(storage.zeros(1 << 30))

    @row(f"an array of 8 GB that is not there, zarr {2 + _zarr3}", "flax", refused=UNASKED, slow=_zarr3)
    def _hole(path, kit, zarr3=_zarr3):
        storage.set_array(storage.as_files(path, zarr3=zarr3), storage.larger(HUGE))
        storage.set_leaves(path, lambda found: {**found, "store_array_data_equal_to_fill_value": False})

    @row(f"a small chunk that unpacks to 1 GB, zarr {2 + _zarr3}", "flax", refused=READING, slow=_zarr3)
    def _unpacked(path, kit, zarr3=_zarr3):
        kernel = storage.as_files(path, zarr3=zarr3)
        next(kernel.rglob("0.0" if not zarr3 else "c/0/0")).write_bytes(storage.zeros(1 << 30))


@row("a chunk of gzip that unpacks to 1 GB", "flax", refused=READING)
def _inflated(path, kit):
    kernel = storage.as_files(path)
    storage.set_array(kernel, lambda found: {**found, "compressor": {"id": "gzip", "level": 5}})
    (kernel / "0.0").write_bytes(storage.deflated(1 << 30))


@row("one chunk of 1 GB in gzip", "flax", refused=UNASKED)
def _one_chunk(path, kit):
    kernel, shape = storage.as_files(path), [1 << 28, 1]
    packed = {"compressor": {"id": "gzip", "level": 5}, "shape": shape, "chunks": shape}
    storage.set_array(kernel, lambda found: {**found, **packed})
    (kernel / "0.0").write_bytes(storage.deflated(1 << 30) + bytes(1 << 24))  # to be as long as honest ones


@row("a chunk that Blosc unpacks to 2 GB", "flax", refused=READING)
def _blosc(path, kit):
    kernel = storage.as_files(path)
    packed = {"id": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 0, "blocksize": 0}
    storage.set_array(kernel, lambda found: {**found, "compressor": packed})
    sizes = b"".join(size.to_bytes(4, "little") for size in (0x7FFFFFC0, 1 << 20, 8 * 2048 + 16))
    (kernel / "0.0").write_bytes(b"\2\1\x21\1" + sizes + bytes(8 * 2048))


@row("codecs inside codecs", *DATABASES, refused=READING[:2])
def _codecs(path, kit):
    codecs = [{"name": "bytes"}]
    for _ in range(50):
        inner = {"chunk_shape": [3, 2], "codecs": codecs, "index_codecs": [{"name": "bytes"}]}
        codecs = [{"name": "sharding_indexed", "configuration": inner}]
    storage.set_arrays(path, lambda found: {**found, "codecs": codecs, "compressor": {"id": codecs}})


# --- the database

HELD = {
    "a manifest of 1 GB": (storage.MANIFEST, lambda held: storage.packed(held) + storage.zeros(1 << 30)),
    "a manifest of zeros": (storage.MANIFEST, lambda held: storage.zeros(1 << 30)),
    "an index of 1 GB": ("d/*", lambda held: storage.packed(held[:2] + b"\xff\xff\xff\x7f" + bytes(1 << 20))),
    "an index of zeros": ("d/*", lambda held: storage.zeros(1 << 30)),
    "an index without end": ("d/*", lambda held: storage.packed(b"\xfe" + held[1:])),
}
for _number, (_what, (_file, _make)) in enumerate(HELD.items()):

    @row(f"{_what} of a database", "tree", "flax", refused=READING[:2], slow=_number > 2)
    def _held(path, kit, file=_file, make=_make):
        for found in storage.item(path).glob(file):
            content = found.read_bytes()
            found.write_bytes(storage.closed(content, make(storage.opened(content))))


# --- what lies beside the arrays

SIDES = ("_sharding", "array_metadatas/process_0")
DEEP, WIDE = "[" * 200_000 + "]" * 200_000, f"[{'[],' * 5_000_000}[]]"
TEXTS = {
    "deep": DEEP,
    "deep inside": f'{{"array_metadatas": {DEEP}, "a": {DEEP}}}',
    "of many lists": WIDE,
    "of other types": '{"array_metadatas": [3, null, {"array_metadata": []}], "cGFyYW1z": 3, "YQ==": "{}"}',
    "no JSON": "\0\1\2",
    "a number": "1" * 5000,
}
for _number, (_what, _text) in enumerate(TEXTS.items()):
    for _side in SIDES:

        @row(f"{_side}, {_what}", *DATABASES, slow=_number % 2 > 0)
        def _side_file(path, kit, side=_side, text=_text):
            file = storage.item(path) / side
            file.parent.mkdir(exist_ok=True)
            file.write_text(text)

    @row(f"the metadata of arrays, {_what}", *DATABASES, refused=READING[:2], slow=_number % 2 < 1)
    def _array_text(path, kit, text=_text):
        storage.set_arrays(path, lambda found: text)

    @row(f"a file of an array, {_what}", "flax", refused=READING[:2], slow=_number % 2 > 0)
    def _array_file(path, kit, text=_text):
        storage.set_array(storage.as_files(path), lambda found: text)

    @row(f"the list of leaves, {_what}", *CHECKPOINTS, slow=_number % 2 > 0)
    def _leaves(path, kit, text=_text):
        storage.set_leaves(path, lambda found: text)

    @row(f"the config of Keras's callback, {_what}", "callback", slow=_number % 2 > 0)
    def _config(path, kit, text=_text):
        for file in (path / "model_config").iterdir():
            file.write_text(text)

    @row(f"the metrics of a step, {_what}", "tree", slow=_number % 2 > 0)
    def _metrics(path, kit, text=_text):
        (path / "metrics").mkdir()
        (path / "metrics" / "metrics").write_text(text)


VALUES = {
    "a number of 400 digits": "1" * 400,
    "a list": "[1]",
    "a text": '"x"',
    "an object": "{}",
    "null": "null",
}
for _what, _value in VALUES.items():

    @row(f"{_what} as a logged value", "tree")
    def _logged(path, kit, value=_value):
        (path / "metrics").mkdir()
        (path / "metrics" / "metrics").write_text(f'{{"loss": {value}}}')


PLACES = {
    "the metrics": lambda folder, secret: (folder / "metrics").symlink_to(secret),
    "the folder of the metrics": lambda folder, secret: (folder.rmdir(), folder.symlink_to(secret.parent)),
}
for _what, _place in PLACES.items():

    @row(f"a link for {_what}", "tree", refused=("manager", "restore a tree"))
    def _linked_metrics(path, kit, place=_place):
        (path / "metrics").mkdir()
        (kit.secret.parent / "metrics").write_bytes(kit.secret.read_bytes())
        place(path / "metrics", kit.secret.parent / "metrics")


SPECS = {
    "another file": lambda kit: {"driver": "zarr", "kvstore": f"file://{kit.secret.parent}/array/"},
    "a web address": lambda kit: {"driver": "zarr", "kvstore": "http://127.0.0.1:9/"},
    "a bucket": lambda kit: {"driver": "zarr3", "kvstore": {"driver": "gcs", "bucket": "b"}},
    "JSON in a file": lambda kit: {"driver": "json", "kvstore": f"file://{kit.secret}"},
}
for _number, (_what, _spec) in enumerate(SPECS.items()):

    @row(f"a spec of {_what} for an array", *DATABASES, refused=READING[:2], slow=_number > 1)
    def _as_spec(path, kit, spec=_spec):
        storage.set_arrays(path, lambda found: spec(kit))

    @row(f"a spec of {_what} beside an array", *DATABASES, slow=_number > 1)
    def _beside(path, kit, spec=_spec):
        storage.set_arrays(path, lambda found: {**found, **spec(kit)})


MESHES = {
    "a mesh of 2**60 devices": {"shape": [1 << 30, 1 << 30], "axis_names": ["a", "b"]},
    "a mesh of no sizes": {"shape": [-1], "axis_names": ["a"]},
    "axes of other types": {"shape": "3", "axis_names": {"a": 1}},
}
for _what, _mesh in MESHES.items():

    @row(f"{_what} in _sharding", *BESIDE)
    def _sharding(path, kit, mesh=_mesh):
        file = storage.item(path) / "_sharding"
        named = {"sharding_type": "NamedSharding", "partition_spec": [["a"], None], **mesh}
        found = json.loads(file.read_text())
        file.write_text(json.dumps(dict.fromkeys(found, json.dumps(named))))


@row("a leaf's entry in _sharding, deep", *BESIDE)
def _deep_entry(path, kit):
    file = storage.item(path) / "_sharding"
    name = next(iter(json.loads(file.read_text())))
    file.write_text(f'{{"{name}": {DEEP}}}')  # C++ makes Python's objects of it, one level within the other


FORGED = {
    "chunks of 8 GB": {"write_shape": [HUGE, 2], "chunk_shape": [HUGE, 2]},
    "chunks of no size": {"write_shape": [-1], "chunk_shape": []},
    "keys of another kind": {"ext_metadata": {"random_key_impl": "os.system"}},
    "the name of another file": {"param_name": "../../../../hom/array"},
}
for _what, _forged in FORGED.items():

    @row(f"{_what} in array_metadatas", *BESIDE)
    def _array_metadatas(path, kit, forged=_forged):
        file = storage.item(path) / "array_metadatas" / "process_0"
        found = json.loads(file.read_text())
        entries = [{"array_metadata": {**e["array_metadata"], **forged}} for e in found["array_metadatas"]]
        file.write_text(json.dumps({"array_metadatas": entries}))
