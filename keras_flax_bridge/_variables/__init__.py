"""How Keras holds variables: structural keys, kinds, slots, building, moving, pure initialisation.

The only place that touches private Keras attributes. Each is named there with the reason why no
public one serves, and `tests/test_keys.py` fails if Keras renames one.
"""

from keras_flax_bridge._variables.entries import BATCH_STAT as BATCH_STAT
from keras_flax_bridge._variables.entries import FROZEN as FROZEN
from keras_flax_bridge._variables.entries import OTHER as OTHER
from keras_flax_bridge._variables.entries import PARAM as PARAM
from keras_flax_bridge._variables.entries import SEED as SEED
from keras_flax_bridge._variables.entries import Collection as Collection
from keras_flax_bridge._variables.entries import Entry as Entry
from keras_flax_bridge._variables.entries import ModelVariables as ModelVariables
from keras_flax_bridge._variables.entries import variable_spec as variable_spec
from keras_flax_bridge._variables.graph import Node as Node
from keras_flax_bridge._variables.graph import application_layers as application_layers
from keras_flax_bridge._variables.graph import build_shapes as build_shapes
from keras_flax_bridge._variables.graph import child_names as child_names
from keras_flax_bridge._variables.graph import deletes_masks as deletes_masks
from keras_flax_bridge._variables.graph import drawing as drawing
from keras_flax_bridge._variables.graph import functional as functional
from keras_flax_bridge._variables.graph import layer_names as layer_names
from keras_flax_bridge._variables.graph import mask_of as mask_of
from keras_flax_bridge._variables.graph import own_name as own_name
from keras_flax_bridge._variables.graph import parts as parts
from keras_flax_bridge._variables.graph import producer as producer
from keras_flax_bridge._variables.graph import rerun as rerun
from keras_flax_bridge._variables.graph import run_nodes as run_nodes
from keras_flax_bridge._variables.graph import set_mask as set_mask
from keras_flax_bridge._variables.graph import structure as structure
from keras_flax_bridge._variables.initial import forget_traced as forget_traced
from keras_flax_bridge._variables.initial import initial_values as initial_values
from keras_flax_bridge._variables.keys import collect_layer as collect_layer
from keras_flax_bridge._variables.metrics import reset_metrics as reset_metrics
from keras_flax_bridge._variables.models import build as build
from keras_flax_bridge._variables.models import build_optimizer as build_optimizer
from keras_flax_bridge._variables.models import collect as collect
from keras_flax_bridge._variables.models import is_built as is_built
from keras_flax_bridge._variables.models import specs as specs
from keras_flax_bridge._variables.slots import AVERAGES as AVERAGES
from keras_flax_bridge._variables.slots import fresh_optimizer as fresh_optimizer
from keras_flax_bridge._variables.slots import iterations as iterations
from keras_flax_bridge._variables.slots import takes_up as takes_up
from keras_flax_bridge._variables.trainers import compilation as compilation
from keras_flax_bridge._variables.trainers import compiled_parts as compiled_parts
from keras_flax_bridge._variables.trainers import has_loss as has_loss
from keras_flax_bridge._variables.trainers import is_overridden as is_overridden
from keras_flax_bridge._variables.trainers import metrics_built as metrics_built
from keras_flax_bridge._variables.trainers import takes_training as takes_training
from keras_flax_bridge._variables.trainers import trainer as trainer
from keras_flax_bridge._variables.values import finalized as finalized
from keras_flax_bridge._variables.values import holds_value as holds_value
from keras_flax_bridge._variables.values import move as move
from keras_flax_bridge._variables.values import refresh as refresh
