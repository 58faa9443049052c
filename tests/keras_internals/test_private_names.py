"""Every private name of Keras that `keras_internals` uses: what has it, and what breaks without it.

A name that a new Keras lacks fails the one test that names it. A name that is used and is not in the table
fails the last one.
"""

import ast
import functools
import importlib
import inspect
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import keras
import numpy as np
import pytest
from keras import layers
from keras import optimizers as K

import keras_flax_bridge
from keras_flax_bridge import keras_internals
from keras_flax_bridge.startup import compat
from tests.support.capabilities import where

ROOM = Path(keras_flax_bridge.__file__).parent / "keras_internals"


@functools.cache
def sequential():
    model = keras.Sequential([keras.Input((2,)), layers.Dense(2), layers.Dropout(0.1)])
    model.compile(excluding(), "mse", metrics=["mae"])
    model.train_on_batch(np.ones((3, 2)), np.ones((3, 2)))
    return model


def unknown():
    return keras_internals.Valueless().run(lambda: keras.Variable("ones", shape=(2,)).value)


def excluding():
    optimizer = K.AdamW(0.1)
    optimizer.exclude_from_weight_decay(var_list=[keras.Variable([1.0])], var_names=["bias"])
    return optimizer


def muon():
    return K.Muon(0.1)


def multi():
    optimizer = compat.find("MultiOptimizer")(K.OptimizerMap(K.SGD(0.1)))
    optimizer.build([keras.Variable([1.0])])
    return optimizer


def variable():
    return keras.Variable(jnp.ones(2))


def first_dense():
    return sequential().layers[0]


def fitted():
    model = sequential()
    model.fit(np.ones((3, 2)), np.ones((3, 2)), verbose=0)
    return model


def epochs():
    from keras.src.trainers.epoch_iterator import EpochIterator

    return EpochIterator(np.ones((3, 2)))


def compiled_metrics():
    return sequential()._compile_metrics


def compiled_loss():
    return sequential()._compile_loss


def functional():
    inputs = keras.Input((2,))
    return keras.Model(inputs, layers.Dense(1)(inputs))


def tensor():
    return layers.Dense(1)(keras.Input((2,)))


def layer_in_graph():
    return functional().layers[1]


class Private(NamedTuple):
    """Something of Keras that has a private name.

    Attributes:
        of: makes what has it.
        used: what the package does with it.
    """

    of: Any
    used: str


TABLE = {
    "_layers": Private(sequential, "keys: the layers that Keras found in lists"),
    "_trainable_variables": Private(first_dense, "keys and slots: what a layer or an optimizer has itself"),
    "_non_trainable_variables": Private(first_dense, "keys: moving statistics"),
    "_seed_generators": Private(first_dense, "keys: seeds"),
    "_loss_ids": Private(first_dense, "remat: the layer that added a loss"),
    "_build_shapes_dict": Private(first_dense, "recipes: what a layer was built for"),
    "_initializer": Private(variable, "initializers: how a variable starts"),
    "_flatten_layers": Private(sequential, "models: all sublayers"),
    "_functional": Private(sequential, "graph: the functional model inside of a Sequential one"),
    "_inbound_nodes": Private(layer_in_graph, "graph: the calls of a layer"),
    "_outbound_nodes": Private(layer_in_graph, "graph: the calls that take its outputs"),
    "_nodes_by_depth": Private(functional, "graph: the order of calls"),
    "_inputs_struct": Private(functional, "graph: the inputs, nested"),
    "_outputs_struct": Private(functional, "graph: the outputs, nested"),
    "_keras_history": Private(tensor, "graph: the call that made a tensor"),
    "_track_variable": Private(first_dense, "add_weight: a variable that a layer did not make"),
    "_is_default": Private(lambda: layers.Layer.build, "recipes: whether a layer wrote its own build"),
    "_call_context_args": Private(sequential, "models: what layers take from the call of a graph"),
    "_call_has_training_arg": Private(sequential, "trainers: whether call takes training"),
    "_symbolic_build": Private(sequential, "models: builds metrics and the loss as fit does"),
    "_compile_metrics": Private(sequential, "metrics: what compile was given"),
    "_compile_loss": Private(sequential, "metrics and trainers: the loss, and its trackers"),
    "_jax_state": Private(fitted, "fitting and live_state: what fit writes into the variables"),
    "_jax_state_synced": Private(sequential, "fitting and live_state: whether it did"),
    "_initial_epoch": Private(sequential, "trainers: at which epoch fit begins"),
    "_make_function": Private(sequential, "fitting: gets the step that Keras compiled"),
    "_steps_seen": Private(epochs, "loaders: how far the data of a known length is"),
    "_user_metrics": Private(compiled_metrics, "metrics: what compile was given, in its structure"),
    "_user_weighted_metrics": Private(compiled_metrics, "trainers: compiles a copy"),
    "_flat_metrics": Private(compiled_metrics, "metrics: in order"),
    "_flat_weighted_metrics": Private(compiled_metrics, "metrics: in order"),
    "_user_loss_weights": Private(compiled_loss, "trainers: compiles a copy"),
    "_built": Private(keras.metrics.F1Score, "metrics: those that build themselves late"),
    "_fn": Private(lambda: keras.metrics.MeanMetricWrapper(len), "metrics: their names"),
    "_trace": Private(unknown, "valueless: jax's own, in which known numbers stay numbers"),
    "_value": Private(variable, "values: reads and moves arrays without a copy"),
    "_dtype": Private(variable, "values: casts as Keras does"),
    "_shape": Private(variable, "initializers: of a variable that has no value yet"),
    "_layout": Private(variable, "entries: where a variable lies"),
    "_path": Private(variable, "optimizer_copies: stands in for another variable"),
    "_direct_assign": Private(variable, "values: writes an array without a copy"),
    "_deferred_initialize": Private(variable, "filling: values that are read before they are drawn"),
    "_maybe_autocast": Private(variable, "values: casts as Keras does"),
    "_iterations": Private(K.SGD, "slots: batches, not updates"),
    "_learning_rate": Private(K.SGD, "optimizer_settings: the schedule, not its value now"),
    "_trainable_variables_indices": Private(excluding, "slots: no slot"),
    "_variables": Private(excluding, "slots: no slot"),
    "_tracker": Private(excluding, "slots: no slot"),
    "_get_variable_index": Private(excluding, "whole_tree_optimizer: the place of a slot"),
    "_use_weight_decay": Private(excluding, "optimizer_settings: whether a variable is decayed"),
    "_exclude_from_weight_decay": Private(excluding, "exclusions: by variable"),
    "_exclude_from_weight_decay_pattern": Private(excluding, "exclusions: by name"),
    "_exclude_from_weight_decay_cache": Private(lambda: asked(), "optimizer_settings: answers that are kept"),
    "_should_use_adamw": Private(muon, "optimizer_settings: what Muon leaves to Adam"),
    **where(
        "MultiOptimizer",
        {
            "_optimizer_map": Private(multi, "optimizer_copies: what the constructor was given"),
            "_var_to_optimizer_idx": Private(multi, "optimizer_settings: who has a variable"),
        },
    ),
}

IMPORTED = {
    "keras.src.applications.convnext": "graph: layers of applications",
    "keras.src.applications.inception_resnet_v2": "graph: layers of applications",
    "keras.src.backend.common.variables.AutocastScope": "mixed_precision: the dtype that a call computes in",
    "keras.src.backend.common.variables.get_autocast_scope": "mixed_precision: that of the call around it",
    "keras.src.backend.common.global_state": "seeds and initializers: the global generator",
    "keras.src.backend.common.masking.get_keras_mask": "graph: the mask of a tensor",
    "keras.src.backend.common.masking.set_keras_mask": "graph: the mask of a tensor",
    "keras.src.backend.common.stateless_scope.get_stateless_scope": "values: whether values are given",
    "keras.src.backend.common.symbolic_scope.in_symbolic_scope": "values: whether shapes alone are computed",
    "keras.src.models.functional.Functional": "keys: operations of a functional model",
    "keras.src.quantizers": "quantizing: functions that compute in numpy, as layers take them",
    "keras.src.quantizers.quantizers": "quantizing: the same, as quantizers take them",
    "keras.src.saving.saving_lib": "stored_names: the names in files",
    "keras.src.saving.serialization_lib.ObjectSharingScope": "optimizer_copies: an optimizer held twice",
    "keras.src.saving.serialization_lib.SafeModeScope": "safe_mode: no code out of configs",
    "keras.src.trainers.data_adapters.data_adapter_utils.class_weight_to_sample_weights": (
        "trainers: weights of rows by their class"
    ),
    "keras.src.trainers.data_adapters.data_adapter_utils": "batch_arrays: what fit makes of a tensor",
    "keras.src.utils.naming.to_snake_case": "keys: the automatic names",
    "keras.src.utils.python_utils.pythonify_logs": "callback_hooks: logs as callbacks get them",
}

# of the package itself, of named tuples, of Python's `sys`, and of `saving_lib`, which has a test of its own
OURS = {"_moved_from", "_replace", "_asdict", "_save_state", "_load_state", "_getframe"}


def asked():
    """An optimizer that said whether it decays a variable."""
    optimizer = excluding()
    optimizer.build([variable()])
    optimizer._use_weight_decay(optimizer._trainable_variables[0])
    return optimizer


@pytest.mark.parametrize("name", TABLE)
def test_a_private_name_is_there(name):
    assert hasattr(TABLE[name].of(), name), f"Keras {keras.__version__} lacks it: {TABLE[name].used}"


@pytest.mark.parametrize("name", IMPORTED)
def test_a_private_module_or_object_is_there(name):
    module, _, attribute = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute, None) or importlib.import_module(name)
    except ImportError:
        found = None
    assert found is not None, f"Keras {keras.__version__} lacks it: {IMPORTED[name]}"


def test_the_global_generator_is_under_its_key():
    from keras.src.backend.common import global_state

    from keras_flax_bridge.keras_internals import seeds

    keras.random.uniform(())
    found = global_state.get_global_attribute(seeds._GLOBAL_SEED_GENERATOR)
    assert isinstance(found, keras.random.SeedGenerator)


def test_names_in_files_are_written_by_saving_lib():
    from keras.src.saving import saving_lib

    for name in ("_save_state", "_load_state", "is_memory_sufficient", "H5IOStore", "DiskIOStore"):
        assert hasattr(saving_lib, name), "stored_names, assets: the names in files, the files of layers"


def used():
    """The private attributes and the private imports of the room."""
    attributes, imported = set(), set()
    for path in ROOM.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            own = isinstance(node, ast.Attribute) and getattr(node.value, "id", "") in ("self", "cls")
            if isinstance(node, ast.Attribute) and _is_private(node.attr) and not own:
                attributes.add(node.attr)
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("keras.src"):
                imported |= {f"{node.module}.{alias.name}" for alias in node.names}
    return attributes, imported


def _is_private(name):
    return name.startswith("_") and not name.startswith("__")


def test_every_private_name_that_is_used_is_in_the_table():
    attributes, imported = used()
    lacking = {"_optimizer_map", "_var_to_optimizer_idx"} - TABLE.keys()  # of a MultiOptimizer
    assert attributes - TABLE.keys() - OURS - lacking == set()
    assert imported == IMPORTED.keys()


def test_the_adapters_of_data_have_the_names_that_loaders_knows():
    from keras.src.trainers import data_adapters

    from keras_flax_bridge.keras_internals import loaders

    assert all(hasattr(data_adapters, f"{name}Adapter") for name in loaders._DOUBTS)


def test_fit_has_the_local_names_by_which_it_is_found():
    """`fitting.Call` finds its list of callbacks and its iterator there."""
    code = inspect.unwrap(keras.Model.fit).__code__
    assert {"self", "callbacks", "epoch_iterator"} <= {*code.co_varnames, *code.co_cellvars}
