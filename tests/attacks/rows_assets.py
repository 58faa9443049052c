"""Files of layers that want to lie elsewhere, to be other files, or to take much memory."""

import shutil
import zlib

from tests.attacks import goods
from tests.attacks.rows import row

NAMES = {
    "a path upwards": "../../../escaped",
    "a path upwards inside": "layers/../../../../escaped",
    "an absolute path": "/tmp/escaped",
    "a backslash": "..\\..\\escaped",
    "300 characters": "n" * 300,
}


def _set(path, index):
    goods.set_ours(path, {**goods.ours(path), "assets": index})


for _number, (_what, _name) in enumerate(NAMES.items()):

    @row(f"an asset called by {_what}", ("tree", "packed")[_number % 2], refused="all", slow=_number > 1)
    def _named(path, kit, name=_name):
        _set(path, {"": {name: [3, zlib.crc32(b"abc")]}})


@row("assets of a huge size", "tree", refused=("load_model", "verify"))
def _huge(path, kit):
    _set(path, {"": {"a": [1 << 29, 0], "b": [1 << 29, 0]}})


@row("assets of more files than there are", "tree", refused="all", slow=True)
def _many(path, kit):
    _set(path, {"": {str(number): [0, 0] for number in range(20_000)}})


@row("assets that are a link", "tree", refused="all")
def _linked(path, kit):
    (path / "assets").symlink_to(kit.secret.parent)
    size = kit.secret.stat().st_size
    _set(path, {"": {"secret.txt": [size, zlib.crc32(kit.secret.read_bytes())]}})


@row("assets of other arrays than bytes", "callback", refused=("load_model",))
def _numbers(path, kit):
    shutil.copytree(path / "pytree", path / "assets")


@row("assets of no layer", "keras", refused=("load_model",))
def _left(path, kit):
    goods.set_members(path, {**goods.members(path), "assets/layers/other/words.txt": b"a"})
