"""Files whose names want to be more than names: on a terminal, in a notebook, as a path."""

import json

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

import keras_flax_bridge as kfb
from keras_flax_bridge.tree.paths import nest_paths
from tests.attacks import goods
from tests.attacks.rows import row

NAMES = {
    "an escape sequence": "\x1b[2J\x1b]0;title\x07red",
    "a script": "<script>alert(1)</script>",
    "an image": "<img src=x onerror=alert(1)>",
    "rich markup": "[red]a[/red][link=file:///etc/passwd]b[/link]",
    "a reversal": "\u202etxt.exe",
    "a line": "a\nparams: 1 leaf\r\x08\x08",
    "a format": "{0.__class__} %s %(x)s ${HOME} $(id) `id`",
    "a path out": "../../../escaped",
    "a null": "a\0b",
    "300 characters": "n" * 300,
    "a superscript": "\u00b2",
    "the name of the packed array": "%packed",
}


def _save(path, name, layout):
    flat = {("params", name, "kernel"): np.ones(2, "float32"), ("params", name): None}
    tree = nest_paths({p: jnp.asarray(leaf) for p, leaf in flat.items() if leaf is not None})
    path.rename(path.with_name("before"))
    kfb.save(path, tree, layout=layout)


for _number, (_what, _name) in enumerate(NAMES.items()):

    def _in_checkpoint(path, kit, name=_name):
        _save(path, name, path.parent.name)

    def _in_tensors(path, kit, name=_name):
        save_file({f"params/{name.replace('/', '~1')}": np.ones(2, "float32")}, path)

    def _in_map(path, kit, name=_name):
        found = json.loads(path.read_text())
        found["pairs"][0]["flax"] = [name.replace("/", "~1")]
        found["notes"] = [name]
        path.write_text(json.dumps(found))

    def _in_metadata(path, kit, name=_name):
        found = goods.ours(path)
        goods.set_ours(path, {**found, "model": None, "no_model": name, "versions": {name: name}})

    def _in_field(path, kit, name=_name):
        found = goods.ours(path)
        found["checksums"][name] = name
        goods.set_ours(path, found)

    _slow = _number > 1
    row(f"names with {_what}", ("tree", "packed")[_number % 2], slow=_slow)(_in_checkpoint)
    row(f"names with {_what}", "safetensors", slow=_slow)(_in_tensors)
    row(f"names with {_what}", "map")(_in_map)
    row(f"{_what} in the metadata", "tree", checked=True, slow=_slow)(_in_metadata)
    row(f"{_what} in a field", "tree", refused=("verify", "restore a tree"), slow=_slow)(_in_field)
