"""Files that want another file: external data, links, names that lead out of a folder, what never ends."""

import os
import shutil
import stat
import zipfile

import h5py
import numpy as np

from tests.attacks import goods
from tests.attacks.rows import row

H5 = ("weights", "keras")
SIZE = 24  # bytes that are taken of the secret, as a kernel of 3 x 2


def _replace(file, make):
    """Puts something in the place of the first array."""
    names = []
    file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
    name = next(name for name in names if file[name].shape == (3, 2))
    del file[name]
    make(name)


@row("an external dataset", *H5, refused="all")
def _external(path, kit):
    def change(file):
        def make(name):
            file.create_dataset(name, (3, 2), "float32", external=[(str(kit.secret), 0, SIZE)])

        _replace(file, make)

    goods.rewritten(path, change)


def _other(kit):
    """An HDF5 file beside the secret, which holds it."""
    other = kit.secret.with_suffix(".h5")
    content = np.frombuffer(kit.secret.read_bytes()[:SIZE], "float32").reshape(3, 2)
    with h5py.File(other, "w") as file:
        file["x"] = content
    return other


@row("an external link", *H5, refused="all")
def _external_link(path, kit):
    other = _other(kit)
    goods.rewritten(
        path,
        lambda file: _replace(file, lambda name: file.__setitem__(name, h5py.ExternalLink(str(other), "/x"))),
    )


@row("a virtual dataset", *H5, refused="all")
def _virtual(path, kit):
    layout = h5py.VirtualLayout((3, 2), "float32")
    layout[:] = h5py.VirtualSource(str(_other(kit)), "x", (3, 2))
    goods.rewritten(path, lambda file: _replace(file, lambda name: file.create_virtual_dataset(name, layout)))


@row("groups in a circle", *H5)
def _circle(path, kit):
    goods.rewritten(path, lambda file: file.__setitem__("layers/again", file["layers"]))


@row("a soft link to nothing", *H5)
def _dangling(path, kit):
    goods.rewritten(path, lambda file: file.__setitem__("layers/gone", h5py.SoftLink("/nowhere")))


KINDS_OF_ARRAYS = {
    "texts": lambda: np.array(["a", "b"], dtype=h5py.string_dtype()),
    "records": lambda: np.zeros(3, [("a", "f4"), ("b", "i4")]),
    "nothing": lambda: h5py.Empty("f4"),
    "bytes": lambda: np.array([b"abc"]),
    "numbers of 16 bytes": lambda: np.zeros((3, 2), "longdouble"),
}
for _number, (_what, _make) in enumerate(KINDS_OF_ARRAYS.items()):

    def _spoil(path, kit, make=_make):
        goods.rewritten(
            path, lambda file: _replace(file, lambda name: file.create_dataset(name, data=make()))
        )

    row(f"an array of {_what}", H5[_number % 2])(_spoil)

for _name in ("", "nonsense", "O", "U9999999", "V8", "float32, (10,)", "\x1b[31m"):

    def _spoil(path, kit, name=_name):
        def change(file):
            file.visititems(lambda _, item: item.attrs.__setitem__("dtype", name))

        goods.rewritten(path, change)

    row(f"arrays of the dtype {_name!a}", H5[len(_name) % 2], slow=len(_name) > 1)(_spoil)


# --- zip


@row("members that lead out of the folder", "keras")
def _members(path, kit):
    found = goods.members(path)
    inside = {f"assets/../../../{kit.marker.name}": b"x", f"/{kit.marker}": b"x", "assets/a": b"x"}
    goods.set_members(path, {**found, **inside})


@row("a member that is a link", "keras")
def _linked_member(path, kit):
    found = goods.members(path)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in found.items():
            info = zipfile.ZipInfo(name)
            if name == "config.json":
                info.external_attr = (stat.S_IFLNK | 0o777) << 16
                content = str(kit.secret).encode()
            archive.writestr(info, content)


for _by in (1, 1 << 20, (1 << 32) - 1):

    @row(f"a directory {_by:,} bytes further back than it says", "keras", refused="all", slow=_by > 1)
    def _directory(path, kit, by=_by):
        whole = bytearray(path.read_bytes())
        at = whole.rindex(b"PK\5\6") + 16  # where the end of an archive says that its directory begins
        offset = int.from_bytes(whole[at : at + 4], "little")
        whole[at : at + 4] = min(offset + by, (1 << 32) - 2).to_bytes(4, "little")
        path.write_bytes(whole)


# --- folders

CHECKPOINTS = ("tree", "packed", "flax")


def _entry(path, kind):
    return {"mark": path / "_CHECKPOINT_METADATA"}.get(kind) or next(path.rglob(kind))


def _put(name, make, what, **options):
    def spoil(path, kit):
        entry = _entry(path, name)
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        make(entry, kit)

    row(f"{what} in place of {name}", *CHECKPOINTS, **options)(spoil)


ENTRIES = {
    "the secret": lambda entry, kit: entry.symlink_to(kit.secret),
    "a device": lambda entry, kit: entry.symlink_to("/dev/zero"),
    "a FIFO": lambda entry, kit: os.mkfifo(entry),
    "a circle": lambda entry, kit: entry.symlink_to(entry.name),
    "a folder": lambda entry, kit: entry.mkdir(),
    "a file without end of the kernel": lambda entry, kit: entry.symlink_to("/proc/self/mem"),
}
for _what, _make in ENTRIES.items():
    for _name in ("mark", "_METADATA", "manifest.ocdbt", "d"):
        _put(_name, _make, _what, checked=True, slow=_name in ("mark", "d") or _what == "a circle")


@row("a FIFO beside the leaves", *CHECKPOINTS, refused=("verify", "restore a tree"))
def _fifo(path, kit):
    os.mkfifo(path / "more")


for _kind in ("keras", "weights", "safetensors", "map"):

    @row("a FIFO", _kind, refused="all", slow=_kind != "map")
    def _whole_fifo(path, kit):
        path.unlink()
        os.mkfifo(path)

    @row("a device", _kind, refused="all", slow=_kind != "map")
    def _whole_device(path, kit):
        path.unlink()
        path.symlink_to("/dev/zero")

    @row("an empty file", _kind, refused="all", slow=_kind != "map")
    def _whole_empty(path, kit):
        path.write_bytes(b"")

    @row("a folder", _kind, refused="all", slow=_kind != "map")
    def _whole_folder(path, kit):
        path.unlink()
        path.mkdir()
