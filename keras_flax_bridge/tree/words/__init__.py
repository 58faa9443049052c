"""Wrong words of a call, or after a dot, are answered with the right one; the table has what people type."""

from keras_flax_bridge.tree.words.arguments import DOORS as DOORS
from keras_flax_bridge.tree.words.arguments import door as door
from keras_flax_bridge.tree.words.arguments import misfit as misfit
from keras_flax_bridge.tree.words.arguments import require_known as require_known
from keras_flax_bridge.tree.words.classes import OWNERS as OWNERS
from keras_flax_bridge.tree.words.classes import AnsweringType as AnsweringType
from keras_flax_bridge.tree.words.classes import doors as doors
from keras_flax_bridge.tree.words.classes import missing_attribute as missing_attribute
from keras_flax_bridge.tree.words.deprecations import present_options as present_options
from keras_flax_bridge.tree.words.misfits import answer_arguments as answer_arguments
from keras_flax_bridge.tree.words.names import answer_option as answer_option
from keras_flax_bridge.tree.words.names import missing_in_module as missing_in_module
from keras_flax_bridge.tree.words.names import unknown_name as unknown_name
