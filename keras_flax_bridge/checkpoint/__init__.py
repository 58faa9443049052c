"""Save, restore, verify, and the manager of many steps."""

from keras_flax_bridge.checkpoint.manager import CheckpointManager as CheckpointManager
from keras_flax_bridge.checkpoint.restoring import load_model as load_model
from keras_flax_bridge.checkpoint.restoring import restore as restore
from keras_flax_bridge.checkpoint.saving import save as save
from keras_flax_bridge.checkpoint.verifying import VerifyReport as VerifyReport
from keras_flax_bridge.checkpoint.verifying import verify as verify
