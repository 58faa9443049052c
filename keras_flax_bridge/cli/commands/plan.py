"""plan: estimates bytes on each device of a mesh for several layouts, and of a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras

from keras_flax_bridge.checkpoint import guards, model_configs
from keras_flax_bridge.cli import arguments, output
from keras_flax_bridge.errors import StructureMismatchError
from keras_flax_bridge.sharding.memory_plan import abstract_state, memory_plan

_AXES = ("data", "model", "expert", "stage")  # names of a mesh's axes, in the order of its sizes
_OPTIMIZERS = ("sgd", "momentum", "adam", "adamw", "lion", "muon")


def add_arguments(parser: Any) -> None:
    """Adds the arguments of the command."""
    parser.add_argument(
        "model", metavar="MODEL", help="a .keras file, or module:function that builds a model"
    )
    parser.add_argument(
        "--mesh", default="8", help="its sizes, such as 8x4; the axes are named data, model, ..."
    )
    parser.add_argument("--optimizer", default="adamw", choices=_OPTIMIZERS)
    parser.add_argument("--ema", action="store_true", help="with a moving average of the weights")
    parser.add_argument("--bandwidth", type=float, default=1.0, help="of the storage, in GB per second")
    arguments.add_json(parser)


def run(options: Any) -> int:
    """Runs the command."""
    axes = _axes(options.mesh)
    state = abstract_state(_builder(options.model), _optimizer(options.optimizer, options.ema))
    plan = memory_plan(state, axes, options.bandwidth)
    if options.json:
        output.show_json(plan.to_json())
    else:
        output.show(plan)
    return 0


def _axes(mesh: str) -> dict[str, int]:
    sizes = mesh.lower().split("x")
    if not all(size.isdecimal() and int(size) for size in sizes) or len(sizes) > len(_AXES):
        raise StructureMismatchError(
            "--mesh", got=repr(mesh), expected="sizes of one to four axes", fix="Pass sizes such as 8 or 8x4."
        )
    return dict(zip(_AXES, map(int, sizes), strict=False))


def _optimizer(name: str, ema: bool) -> Any:
    if name == "momentum":
        return keras.optimizers.SGD(momentum=0.9, use_ema=ema)
    return keras.optimizers.get({"class_name": name, "config": {"use_ema": ema}})


def _builder(model: str) -> Callable[[], Any]:
    """A function that builds the model when it is called."""
    if model.endswith(".keras"):
        config = {**guards.config(Path(model)), "compile_config": None}  # its weights are not needed
        return lambda: model_configs.build(config, model)
    module, _, function = model.partition(":")
    built: Callable[[], Any] | None = getattr(arguments.import_from_here(module, "MODEL"), function, None)
    if built is None:
        raise StructureMismatchError(
            "MODEL",
            got=repr(model),
            expected="a .keras file, or module:function",
            fix="Pass a function without arguments that builds a model, such as my_models:build.",
        )
    return built
