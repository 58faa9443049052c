"""Checks Keras files before anything in them is read or passed to Keras.

Files are untrusted. Anything that Keras itself never writes is refused, and every number in a file is
compared with the bytes that are there before it is used. All limits are in `limits`, with their reasons.
"""

from keras_flax_bridge.checkpoint.guards.archive import archive as archive
from keras_flax_bridge.checkpoint.guards.arrays import declared_bytes as declared_bytes
from keras_flax_bridge.checkpoint.guards.arrays import require_stored as require_stored
from keras_flax_bridge.checkpoint.guards.files import H5 as H5
from keras_flax_bridge.checkpoint.guards.files import INDEX as INDEX
from keras_flax_bridge.checkpoint.guards.files import KERAS as KERAS
from keras_flax_bridge.checkpoint.guards.files import MSGPACK as MSGPACK
from keras_flax_bridge.checkpoint.guards.files import NPZ as NPZ
from keras_flax_bridge.checkpoint.guards.files import SUFFIXES as SUFFIXES
from keras_flax_bridge.checkpoint.guards.files import TENSORS as TENSORS
from keras_flax_bridge.checkpoint.guards.files import WEIGHTS as WEIGHTS
from keras_flax_bridge.checkpoint.guards.files import Weights as Weights
from keras_flax_bridge.checkpoint.guards.files import asset_sizes as asset_sizes
from keras_flax_bridge.checkpoint.guards.files import assets as assets
from keras_flax_bridge.checkpoint.guards.files import config as config
from keras_flax_bridge.checkpoint.guards.files import keras_version as keras_version
from keras_flax_bridge.checkpoint.guards.files import kind as kind
from keras_flax_bridge.checkpoint.guards.files import require_loadable as require_loadable
from keras_flax_bridge.checkpoint.guards.files import weights as weights
from keras_flax_bridge.checkpoint.guards.files import weights_alone as weights_alone
from keras_flax_bridge.checkpoint.guards.hdf5 import Array as Array
from keras_flax_bridge.checkpoint.guards.msgpack import Packed as Packed
from keras_flax_bridge.checkpoint.guards.msgpack import begins_as_msgpack as begins_as_msgpack
from keras_flax_bridge.checkpoint.guards.msgpack import packed as packed
from keras_flax_bridge.checkpoint.guards.npz import Npz as Npz
from keras_flax_bridge.checkpoint.guards.npz import npz as npz
from keras_flax_bridge.checkpoint.guards.shards import Part as Part
from keras_flax_bridge.checkpoint.guards.shards import shards as shards
from keras_flax_bridge.checkpoint.guards.tensors import DTYPES as DTYPES
from keras_flax_bridge.checkpoint.guards.tensors import Tensor as Tensor
from keras_flax_bridge.checkpoint.guards.tensors import Tensors as Tensors
from keras_flax_bridge.checkpoint.guards.tensors import tensors as tensors
