"""Files that want their text to run: names of functions, configs, layers, sources."""

import json
import types

import keras
import optax
from flax import linen as nn
from flax import nnx
from keras import layers

import keras_flax_bridge as kfb
from tests.attacks import goods
from tests.attacks.rows import PLANTED, row

BUILDS = ("load_model", "convert by its own config")  # doors that build the model of the stored config
CONFIGS = ("keras", "tree", "safetensors")


def set_config(path, change):
    """Changes the config of the model, wherever it lies; of a safetensors file it is put in."""
    if path.suffix != ".safetensors":
        goods.set_config(path, change)
        return
    found, rest = goods.header(path)
    config = change(keras.saving.serialize_keras_object(goods.build()))
    found["__metadata__"] = {"keras_flax_bridge": json.dumps({"model": config})}
    goods.set_header(path, found, rest)


def _walks():
    """Dotted names that lead from optax to functions which run commands or code."""
    seen, pending = set(), [("", optax)]
    wanted = {"os": "system", "subprocess": "getoutput", "builtins": "exec", "importlib": "import_module"}
    while pending:
        path, module = pending.pop(0)
        for name, value in list(vars(module).items()):
            dotted = f"{path}.{name}" if path else name
            if not isinstance(value, types.ModuleType) or value in seen or dotted.count(".") > 5:
                continue
            seen.add(value)
            pending.append((dotted, value))
            if value.__name__ in wanted:
                yield f"{dotted}.{wanted[value.__name__]}"


WALKS = (
    *sorted(_walks()),
    "__builtins__.exec",
    "os.system",
    "__init__.__globals__.os.system",
    "Any.__class__",
)


def optimizer(name, argument):
    """The config of an `OptaxOptimizer` of another function."""

    def change(config):
        found = keras.saving.serialize_keras_object(kfb.OptaxOptimizer("adamw", learning_rate=1e-3))
        found["config"] = {"name": "x", "transformation": name, "learning_rate": None, "command": argument}
        config["compile_config"]["optimizer"] = found
        return config

    return change


for _walk in WALKS:

    def _spoil(path, kit, walk=_walk):
        set_config(path, optimizer(walk, kit.command))

    _kinds = CONFIGS if _walk.endswith("system") else CONFIGS[:1]
    row(f"an optimizer called {_walk}", *_kinds, refused=("load_model",))(_spoil)


# --- what Keras might take for a class or a function

CALLS = {
    "os.system": {"module": "os", "class_name": "system", "config": {"command": "COMMAND"}},
    "os.system as a function": {"module": "os", "class_name": "function", "config": "system"},
    "a function of subprocess": {
        "module": "subprocess",
        "class_name": "function",
        "config": "getoutput",
        "registered_name": "getoutput",
    },
    "builtins.exec": {"module": "builtins", "class_name": "exec", "config": "COMMAND"},
    "builtins.eval as a function": {"module": "builtins", "class_name": "function", "config": "eval"},
    "importlib": {"module": "importlib", "class_name": "import_module", "config": {"name": PLANTED}},
    "a planted module": {"module": PLANTED, "class_name": "Thing", "config": {}, "registered_name": "Thing"},
    "a planted function": {"module": PLANTED, "class_name": "function", "config": "thing"},
    "a lambda": {"class_name": "__lambda__", "config": {"value": ["4wAAAAA=", None, None]}},
    "a registered name": {"module": None, "class_name": "x", "config": {}, "registered_name": "os>system"},
    "a typespec": {"class_name": "__typespec__", "spec_name": "system", "module": "os", "spec_config": []},
    "a private class of Keras": {
        "module": "keras.src.utils.python_utils",
        "class_name": "func_load",
        "config": {"code": "4wAAAAA="},
    },
}
PLACES = {
    "a layer": lambda config, call: config["config"]["layers"].insert(1, call),
    "an activation": lambda config, call: config["config"]["layers"][1]["config"].update(activation=call),
    "an initializer": lambda config, call: config["config"]["layers"][1]["config"].update(
        kernel_initializer=call
    ),
    "a regularizer": lambda config, call: config["config"]["layers"][1]["config"].update(
        kernel_regularizer=call
    ),
    "a dtype": lambda config, call: config["config"]["layers"][1]["config"].update(dtype=call),
    "a loss": lambda config, call: config["compile_config"].update(loss=call),
    "a metric": lambda config, call: config["compile_config"].update(metrics=[call]),
    "an optimizer": lambda config, call: config["compile_config"].update(optimizer=call),
    "the model": lambda config, call: (config.clear(), config.update(call)),
}


def _filled(call, kit):
    return json.loads(json.dumps(call).replace("COMMAND", kit.command))


for _number, (_what, _call) in enumerate(CALLS.items()):
    for _at, _place in enumerate(PLACES):

        def _spoil(path, kit, call=_call, place=_place):
            def change(config):
                PLACES[place](config, _filled(call, kit))
                return config

            set_config(path, change)

        _kind = ("keras", "tree")[(_number + _at) % 2]  # each call in each place, each kind with each call
        row(f"{_what} as {_place}", _kind, slow=(_number + _at) % 4 > 0)(_spoil)


@row("a Lambda layer", "keras", "tree", refused=("load_model",))
def _lambda(path, kit):
    marker = str(kit.marker)

    touch = lambda x, marker=marker: open(marker, "w") and x  # noqa: E731, SIM115 - Keras stores its code

    model = keras.Sequential([keras.Input((3,)), layers.Lambda(touch)])
    config = keras.saving.serialize_keras_object(model)
    kit.marker.unlink()  # Keras called it when the model was built
    set_config(path, lambda _: config)


# --- modules of Flax that Keras layers hold

_LINEN = kfb.LinenLayer(nn.Dense(2), name="first")
_NNX = kfb.NNXLayer(nnx.Linear, args=(3, 2), name="first")
TARGETS = (
    "jax.nn.os.system",
    "flax.nnx.os.system",
    "flax.linen.os.system",
    "os.system",
    "flax.nnx.Linear.__init__",
)
TARGETS += ("jax.nn.__builtins__", "registered:os.system", f"{PLANTED}.thing", "flax.nnx.jit", "jax.nn.jax")


def _holding(layer, target, kit):
    found = keras.saving.serialize_keras_object(layer)
    text = json.dumps(found).replace("flax.linen.Dense", target).replace("flax.nnx.Linear", target)
    return json.loads(text.replace('"args": [3, 2]', json.dumps({"args": [kit.command]})[1:-1]))


for _number, _target in enumerate(TARGETS):
    for _layer in (_LINEN, _NNX):

        def _spoil(path, kit, target=_target, layer=_layer):
            def change(config):
                config["config"]["layers"][1] = _holding(layer, target, kit)
                return config

            set_config(path, change)

        row(
            f"a {type(_layer).__name__} of {_target}",
            ("keras", "tree")[_number % 2],
            refused=("load_model",),
            slow=_number > 2,
        )(_spoil)

METHODS = ("__init__", "__class__", "__reduce__", "setup", "_private", "__call__.__globals__", "bind", "init")
for _number, _method in enumerate(METHODS):

    def _spoil(path, kit, method=_method):
        def change(config):
            found = keras.saving.serialize_keras_object(_LINEN)
            found["config"]["method"] = method
            config["config"]["layers"][1] = found
            return config

        set_config(path, change)

    row(f"a LinenLayer with method {_method}", "keras", slow=_number > 1)(_spoil)


# --- names that become source

SOURCES = {
    "a quote": 'x"; __import__("os").system("COMMAND"); "',
    "a line": "x\n__import__('os').system('COMMAND')\n",
    "an f-string": "{__import__('os').system('COMMAND')}",
    "a comment": "x # COMMAND",
    "three quotes": '"""\n__import__("os").system("COMMAND")\n"""',
    "a dunder": "__class__",
    "a keyword": "import",
    "a backslash": "\\",
    "a separator": "x\u2028__import__('os').system('COMMAND')",
}
for _what, _text in SOURCES.items():

    def _spoil(path, kit, text=_text):
        name = text.replace("COMMAND", kit.command)
        set_config(path, lambda config: json.loads(json.dumps(config).replace('"first"', json.dumps(name))))

    def _model(path, kit, text=_text):
        name = text.replace("COMMAND", kit.command)

        def change(config):
            config["config"]["name"] = name
            return config

        set_config(path, change)

    row(f"a layer called {_what}", "keras", slow=_what != "a line")(_spoil)
    row(f"a model called {_what}", "keras", slow=True)(_model)
