"""Readers: the leaves of a checkpoint or a file of any kind, with the same names for all kinds."""

from keras_flax_bridge.checkpoint.readers.checkpoints import Checkpoint as Checkpoint
from keras_flax_bridge.checkpoint.readers.contents import NOT_IN_KERAS_FILES as NOT_IN_KERAS_FILES
from keras_flax_bridge.checkpoint.readers.contents import Contents as Contents
from keras_flax_bridge.checkpoint.readers.contents import Held as Held
from keras_flax_bridge.checkpoint.readers.dicts import Dict as Dict
from keras_flax_bridge.checkpoint.readers.opening import existing as existing
from keras_flax_bridge.checkpoint.readers.opening import model_for as model_for
from keras_flax_bridge.checkpoint.readers.opening import opened as opened
from keras_flax_bridge.checkpoint.readers.opening import restorable as restorable
from keras_flax_bridge.checkpoint.readers.opening import same_model as same_model
from keras_flax_bridge.checkpoint.readers.renamed import Renamed as Renamed
from keras_flax_bridge.checkpoint.readers.safetensors import Header as Header
from keras_flax_bridge.checkpoint.readers.safetensors import save_tensors as save_tensors
