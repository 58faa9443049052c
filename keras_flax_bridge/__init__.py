"""The bridge between Keras 3 on JAX and Flax, optax and Orbax."""

import importlib
import typing

from keras_flax_bridge.startup import begin

begin.begin()  # before anything below imports Keras

from keras_flax_bridge import callbacks as callbacks
from keras_flax_bridge.checkpoint.key_table import KeyReport as KeyReport
from keras_flax_bridge.checkpoint.key_table import KeyRow as KeyRow
from keras_flax_bridge.checkpoint.key_table import keys as keys
from keras_flax_bridge.checkpoint.manager import CheckpointManager as CheckpointManager
from keras_flax_bridge.checkpoint.restoring import load_model as load_model
from keras_flax_bridge.checkpoint.restoring import restore as restore
from keras_flax_bridge.checkpoint.saving import save as save
from keras_flax_bridge.checkpoint.verifying import VerifyReport as VerifyReport
from keras_flax_bridge.checkpoint.verifying import verify as verify
from keras_flax_bridge.errors import ArgumentError as ArgumentError
from keras_flax_bridge.errors import BackendError as BackendError
from keras_flax_bridge.errors import BridgeError as BridgeError
from keras_flax_bridge.errors import CheckpointError as CheckpointError
from keras_flax_bridge.errors import CheckpointNotFoundError as CheckpointNotFoundError
from keras_flax_bridge.errors import CorruptCheckpointError as CorruptCheckpointError
from keras_flax_bridge.errors import NotBuiltError as NotBuiltError
from keras_flax_bridge.errors import OwnershipError as OwnershipError
from keras_flax_bridge.errors import SignatureError as SignatureError
from keras_flax_bridge.errors import StepAlreadyExistsError as StepAlreadyExistsError
from keras_flax_bridge.errors import StructureMismatchError as StructureMismatchError
from keras_flax_bridge.errors import UnknownNameError as UnknownNameError
from keras_flax_bridge.errors import UnsupportedLayerError as UnsupportedLayerError
from keras_flax_bridge.errors import UnsupportedOptimizerError as UnsupportedOptimizerError
from keras_flax_bridge.interop.keras_in_linen import ToLinen as ToLinen
from keras_flax_bridge.interop.keras_in_nnx import ToNNX as ToNNX
from keras_flax_bridge.interop.keras_in_nnx_kinds import Frozen as Frozen
from keras_flax_bridge.interop.keras_in_nnx_seeds import KerasSeed as KerasSeed
from keras_flax_bridge.interop.linen_in_keras import LinenLayer as LinenLayer
from keras_flax_bridge.interop.nnx_in_keras import NNXLayer as NNXLayer
from keras_flax_bridge.interop.overwrites import Overwritten as Overwritten
from keras_flax_bridge.interop.overwrites import apply_overwrites as apply_overwrites
from keras_flax_bridge.optimizers import OptaxOptimizer as OptaxOptimizer
from keras_flax_bridge.optimizers import as_optax as as_optax
from keras_flax_bridge.optimizers import opt_state_from_optax as opt_state_from_optax
from keras_flax_bridge.optimizers import opt_state_to_optax as opt_state_to_optax
from keras_flax_bridge.optimizers import to_optax as to_optax
from keras_flax_bridge.sharding.placement import shard as shard
from keras_flax_bridge.sharding.placement import shardings_for as shardings_for
from keras_flax_bridge.sharding.report import RuleReport as RuleReport
from keras_flax_bridge.sharding.report import ShardingReport as ShardingReport
from keras_flax_bridge.sharding.report import sharding_report as sharding_report
from keras_flax_bridge.state.report import LeafRow as LeafRow
from keras_flax_bridge.state.report import StateReport as StateReport
from keras_flax_bridge.state.report import report as report
from keras_flax_bridge.state.train_state import TrainState as TrainState
from keras_flax_bridge.training.fit import evaluate as evaluate
from keras_flax_bridge.training.fit import fit as fit
from keras_flax_bridge.training.fit import predict as predict
from keras_flax_bridge.training.history import History as History
from keras_flax_bridge.training.loop import train as train
from keras_flax_bridge.training.steps import make_eval_step as make_eval_step
from keras_flax_bridge.training.steps import make_predict_step as make_predict_step
from keras_flax_bridge.training.steps import make_train_step as make_train_step
from keras_flax_bridge.training.verify_resume import ResumeReport as ResumeReport
from keras_flax_bridge.training.verify_resume import verify_resume as verify_resume
from keras_flax_bridge.tree import words as _words

if typing.TYPE_CHECKING:  # a module with a `__getattr__` would have any name
    from keras_flax_bridge import migrate as migrate
else:

    def __getattr__(name):
        if name == "migrate":  # on first use: its tables take a while to load
            return importlib.import_module("keras_flax_bridge.migrate")
        return _words.missing_in_module("kfb", name, globals(), "migrate")


__version__ = "0.1.0"
