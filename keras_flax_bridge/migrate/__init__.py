"""Migration to native Flax: the same model, the same weights, no Keras at call time."""

import typing

import keras_flax_bridge.migrate.rules.attention as _attention  # noqa: F401 - registers its rules
import keras_flax_bridge.migrate.rules.conv as _conv  # noqa: F401
import keras_flax_bridge.migrate.rules.core as _core  # noqa: F401
import keras_flax_bridge.migrate.rules.recurrent as _recurrent  # noqa: F401
import keras_flax_bridge.migrate.rules.shape as _shape  # noqa: F401
from keras_flax_bridge.migrate.compare import ComparisonReport as ComparisonReport
from keras_flax_bridge.migrate.compare import compare as compare
from keras_flax_bridge.migrate.convert import to_nnx as to_nnx
from keras_flax_bridge.migrate.convert import to_source as to_source
from keras_flax_bridge.migrate.matching.match import match as match
from keras_flax_bridge.migrate.report import ConversionReport as ConversionReport
from keras_flax_bridge.migrate.rules.rule import register_rule as register_rule
from keras_flax_bridge.migrate.weight_map import WeightMap as WeightMap
from keras_flax_bridge.migrate.weights import slots_to_keras as slots_to_keras
from keras_flax_bridge.migrate.weights import slots_to_nnx as slots_to_nnx
from keras_flax_bridge.migrate.weights import to_keras as to_keras
from keras_flax_bridge.migrate.weights import to_nnx_state as to_nnx_state
from keras_flax_bridge.migrate.weights import weight_map as weight_map
from keras_flax_bridge.tree import words as _words

if not typing.TYPE_CHECKING:  # type checkers accept any name of a module with `__getattr__`

    def __getattr__(name):
        return _words.missing_in_module("kfb.migrate", name, globals())
