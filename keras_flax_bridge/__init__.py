"""The bridge between Keras 3 on JAX and Flax, optax and Orbax."""

from keras_flax_bridge import _backend

_backend.ensure_jax()

from keras_flax_bridge.state import TrainState as TrainState  # noqa: E402 (Keras imports after the choice)
from keras_flax_bridge.steps import make_eval_step as make_eval_step  # noqa: E402
from keras_flax_bridge.steps import make_predict_step as make_predict_step  # noqa: E402
from keras_flax_bridge.steps import make_train_step as make_train_step  # noqa: E402
from keras_flax_bridge.checkpoint import CheckpointManager as CheckpointManager  # noqa: E402
from keras_flax_bridge.checkpoint import load_model as load_model  # noqa: E402
from keras_flax_bridge.checkpoint import restore as restore  # noqa: E402
from keras_flax_bridge.checkpoint import save as save  # noqa: E402
from keras_flax_bridge.linen import ToLinen as ToLinen  # noqa: E402
from keras_flax_bridge.nnx import Frozen as Frozen  # noqa: E402
from keras_flax_bridge.nnx import KerasSeed as KerasSeed  # noqa: E402
from keras_flax_bridge.nnx import ToNNX as ToNNX  # noqa: E402
