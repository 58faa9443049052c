"""The table of wrong names: names that users of Keras, Flax, optax and Orbax type, and the right ones."""

from __future__ import annotations

from keras_flax_bridge.tree.words.word import ARGUMENTS, ATTRIBUTES, OPTIONS
from keras_flax_bridge.tree.words.words_of_calls import CALLS
from keras_flax_bridge.tree.words.words_of_checkpoints import CHECKPOINTS
from keras_flax_bridge.tree.words.words_of_commands import COMMANDS
from keras_flax_bridge.tree.words.words_of_conversions import CONVERSIONS
from keras_flax_bridge.tree.words.words_of_names import NAMES

WORDS = {ARGUMENTS: (*CALLS, *CHECKPOINTS, *CONVERSIONS), ATTRIBUTES: NAMES, OPTIONS: COMMANDS}
