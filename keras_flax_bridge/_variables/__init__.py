"""How Keras holds variables: structural keys, kinds, slots, building, moving, pure initialisation.

The only place that touches private Keras attributes. Each is named there with the reason why no
public one serves, and `tests/test_keys.py` fails if Keras renames one.
"""

from keras_flax_bridge._variables.decisions import NamedLeaf as NamedLeaf
from keras_flax_bridge._variables.decisions import built_for as built_for
from keras_flax_bridge._variables.decisions import copy_exclusions as copy_exclusions
from keras_flax_bridge._variables.decisions import excludes_variables as excludes_variables
from keras_flax_bridge._variables.decisions import group_of as group_of
from keras_flax_bridge._variables.decisions import is_decayed as is_decayed
from keras_flax_bridge._variables.decisions import is_overwritten as is_overwritten
from keras_flax_bridge._variables.decisions import keeps as keeps
from keras_flax_bridge._variables.decisions import learning_rate as learning_rate
from keras_flax_bridge._variables.decisions import number as number
from keras_flax_bridge._variables.decisions import takes_adam as takes_adam
from keras_flax_bridge._variables.entries import BATCH_STAT as BATCH_STAT
from keras_flax_bridge._variables.entries import FROZEN as FROZEN
from keras_flax_bridge._variables.entries import OTHER as OTHER
from keras_flax_bridge._variables.entries import PARAM as PARAM
from keras_flax_bridge._variables.entries import SEED as SEED
from keras_flax_bridge._variables.entries import UNTRACKED as UNTRACKED
from keras_flax_bridge._variables.entries import Collection as Collection
from keras_flax_bridge._variables.entries import Entry as Entry
from keras_flax_bridge._variables.entries import ModelVariables as ModelVariables
from keras_flax_bridge._variables.entries import partition as partition
from keras_flax_bridge._variables.entries import variable_spec as variable_spec
from keras_flax_bridge._variables.initial import forget_traced as forget_traced
from keras_flax_bridge._variables.initial import initial_values as initial_values
from keras_flax_bridge._variables.keys import collect_layer as collect_layer
from keras_flax_bridge._variables.keys import collect_state as collect_state
from keras_flax_bridge._variables.metrics import reset_metrics as reset_metrics
from keras_flax_bridge._variables.models import build as build
from keras_flax_bridge._variables.models import build_layer as build_layer
from keras_flax_bridge._variables.models import build_optimizer as build_optimizer
from keras_flax_bridge._variables.models import collect as collect
from keras_flax_bridge._variables.models import is_built as is_built
from keras_flax_bridge._variables.models import is_complete as is_complete
from keras_flax_bridge._variables.models import parts as parts
from keras_flax_bridge._variables.models import shapes_to_specs as shapes_to_specs
from keras_flax_bridge._variables.models import specs as specs
from keras_flax_bridge._variables.naming import TREES as TREES
from keras_flax_bridge._variables.naming import found_again as found_again
from keras_flax_bridge._variables.slots import AVERAGES as AVERAGES
from keras_flax_bridge._variables.slots import fresh_optimizer as fresh_optimizer
from keras_flax_bridge._variables.slots import iterations as iterations
from keras_flax_bridge._variables.slots import takes_up as takes_up
from keras_flax_bridge._variables.trainers import begin_fit_at as begin_fit_at
from keras_flax_bridge._variables.trainers import compilation as compilation
from keras_flax_bridge._variables.trainers import compiled_parts as compiled_parts
from keras_flax_bridge._variables.trainers import has_loss as has_loss
from keras_flax_bridge._variables.trainers import is_overridden as is_overridden
from keras_flax_bridge._variables.trainers import metrics_built as metrics_built
from keras_flax_bridge._variables.trainers import takes_training as takes_training
from keras_flax_bridge._variables.trainers import trainer as trainer
from keras_flax_bridge._variables.twins import Twin as Twin
from keras_flax_bridge._variables.twins import twin_of as twin_of
from keras_flax_bridge._variables.values import finalized as finalized
from keras_flax_bridge._variables.values import holds_value as holds_value
from keras_flax_bridge._variables.values import move as move
from keras_flax_bridge._variables.values import refresh as refresh
from keras_flax_bridge._variables.values import writable as writable
from keras_flax_bridge._variables.whole import WholeTreeOptimizer as WholeTreeOptimizer
