"""Everything the bridge asks of Orbax: the only place that imports it, and not before it is used.

A tree goes to disk as nested dicts of plain names, so that plain Orbax code reads it without this
package.
"""

from keras_flax_bridge.checkpoint.orbax_io.api import FilePath as FilePath
from keras_flax_bridge.checkpoint.orbax_io.api import absolute as absolute
from keras_flax_bridge.checkpoint.orbax_io.api import is_checkpoint as is_checkpoint
from keras_flax_bridge.checkpoint.orbax_io.files import assets as assets
from keras_flax_bridge.checkpoint.orbax_io.files import damaged_assets as damaged_assets
from keras_flax_bridge.checkpoint.orbax_io.memory import damaged_memory as damaged_memory
from keras_flax_bridge.checkpoint.orbax_io.memory import memory as memory
from keras_flax_bridge.checkpoint.orbax_io.metadata import Metadata as Metadata
from keras_flax_bridge.checkpoint.orbax_io.metadata import read_note as read_note
from keras_flax_bridge.checkpoint.orbax_io.placing import on_host as on_host
from keras_flax_bridge.checkpoint.orbax_io.reading import Stored as Stored
from keras_flax_bridge.checkpoint.orbax_io.reading import trees_in as trees_in
from keras_flax_bridge.checkpoint.orbax_io.root import Root as Root
from keras_flax_bridge.checkpoint.orbax_io.steps import step_of as step_of
from keras_flax_bridge.checkpoint.orbax_io.steps import steps_by_form as steps_by_form
from keras_flax_bridge.checkpoint.orbax_io.steps import steps_in as steps_in
from keras_flax_bridge.checkpoint.orbax_io.writing import is_empty as is_empty
from keras_flax_bridge.checkpoint.orbax_io.writing import save as save
from keras_flax_bridge.checkpoint.orbax_io.writing import save_plain as save_plain
