"""Shardings of the leaves of a state."""

from keras_flax_bridge.sharding.placement import shard as shard
from keras_flax_bridge.sharding.placement import shardings_for as shardings_for
from keras_flax_bridge.sharding.report import RuleReport as RuleReport
from keras_flax_bridge.sharding.report import ShardingReport as ShardingReport
from keras_flax_bridge.sharding.report import sharding_report as sharding_report
