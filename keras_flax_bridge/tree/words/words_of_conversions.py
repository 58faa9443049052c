"""Arguments of what turns one library's thing into another's: layers, optimizers, shardings, models."""

from __future__ import annotations

from keras_flax_bridge.tree.words.word import Word

_RULES = "kfb.shard kfb.shardings_for kfb.sharding_report"

LAYERS = (
    Word(
        "layer",
        "It takes a Keras layer or model.",
        "model keras_layer keras_model module",
        "kfb.ToNNX kfb.ToLinen",
    ),
    Word(
        "shape",
        "It is the shape of the input with its batch axis, such as (None, 28, 28).",
        "input_shape sample x inputs dummy_input batch batch_shape",
        "kfb.ToNNX",
    ),
    Word("rngs", "Pass rngs=nnx.Rngs(0).", "rng key seed params_rng", "kfb.ToNNX"),
    Word(
        "kfb.ToNNX.train",
        "module.train() and module.eval() set it.",
        "training train deterministic",
        "kfb.ToNNX",
    ),
    Word(
        "training",
        "It is the default of calls.",
        "train deterministic is_training use_running_average",
        "kfb.ToLinen",
    ),
    Word(
        "kfb.ToLinen.init", "Values come from module.init(key, x).", "rng rngs key seed shape", "kfb.ToLinen"
    ),
    Word(
        "module",
        "It takes a Flax module, its class, or a function that makes one.",
        "layer model flax_module fn apply_fn",
        "kfb.NNXLayer kfb.LinenLayer",
    ),
    Word(
        "kwargs",
        "Arguments of the module's class go there: kwargs={'features': 4}.",
        "rngs features in_features out_features units params variables * **",
        "kfb.NNXLayer kfb.LinenLayer",
    ),
    Word("seed", "It takes an int.", "rng key rng_seed", "kfb.NNXLayer kfb.LinenLayer"),
    Word(
        "method",
        "It is the name of what is called.",
        "call_method method_name",
        "kfb.NNXLayer kfb.LinenLayer",
    ),
)

OPTIMIZERS = (
    Word(
        "optimizer",
        "It takes a Keras optimizer.",
        "opt keras_optimizer tx optim",
        "kfb.to_optax kfb.as_optax kfb.opt_state_to_optax kfb.opt_state_from_optax",
    ),
    Word(
        "model",
        "It takes the model, for options that name variables.",
        "params variables",
        "kfb.to_optax kfb.as_optax",
    ),
    Word(
        "opt_state",
        "It takes the optimizer's state.",
        "state slots optimizer_state",
        "kfb.opt_state_to_optax kfb.opt_state_from_optax",
    ),
    Word(
        "params",
        "It takes state.params.",
        "variables weights trainable_variables",
        "kfb.opt_state_to_optax kfb.opt_state_from_optax",
    ),
    Word("step", "It takes state.step.", "count iteration iterations", "kfb.opt_state_from_optax"),
    Word(
        "transformation",
        "It takes an optax transformation, or the name of one of optax's functions.",
        "tx optimizer opt optim optax_optimizer gradient_transform",
        "kfb.OptaxOptimizer",
    ),
    Word(
        "learning_rate",
        "It takes a number, or a schedule of Keras or optax.",
        "lr step_size alpha schedule learning_rate_schedule",
        "kfb.OptaxOptimizer",
    ),
    Word(
        "weight_decay",
        "It is an argument of adamw and others.",
        "decay wd weight_decay_rate",
        "kfb.OptaxOptimizer",
    ),
    Word(
        "clipnorm",
        "It is Keras's option.",
        "max_grad_norm grad_clip clip_norm clip max_norm",
        "kfb.OptaxOptimizer",
    ),
    Word("b1", "It is optax's name.", "beta_1 beta1 betas", "kfb.OptaxOptimizer"),
    Word("b2", "It is optax's name.", "beta_2 beta2", "kfb.OptaxOptimizer"),
    Word("eps", "It is optax's name.", "epsilon", "kfb.OptaxOptimizer"),
)

SHARDING = (
    Word(
        "state", "It takes a TrainState, or a tree of arrays.", "params pytree tree train_state model", _RULES
    ),
    Word("mesh", "It takes a jax.sharding.Mesh.", "devices device_mesh strategy", _RULES),
    Word(
        "rules",
        "It takes pairs of a regular expression and a PartitionSpec, or a Keras LayoutMap.",
        "partition_rules layout_map spec specs sharding shardings pspecs partition_specs logical_axis_rules",
        _RULES,
    ),
)

MIGRATION = (
    Word(
        "model",
        "It takes a built Keras model.",
        "keras_model layer module net",
        "kfb.migrate.to_nnx kfb.migrate.to_source",
    ),
    Word("rngs", "Pass rngs=nnx.Rngs(0).", "rng key seed", "kfb.migrate.to_nnx"),
    Word("check_outputs", "True compares the outputs.", "check verify validate test", "kfb.migrate.to_nnx"),
    Word(
        "fallback",
        "fallback='bridge' keeps what has no native counterpart in Keras.",
        "strict on_error unsupported allow_unsupported skip_unsupported",
        "kfb.migrate.to_nnx",
    ),
    Word(
        "class_name", "It names the class.", "name cls model_name", "kfb.migrate.to_nnx kfb.migrate.to_source"
    ),
    Word(
        "model",
        "It takes the Keras model.",
        "keras_model source keras",
        "kfb.migrate.match kfb.migrate.compare",
    ),
    Word(
        "target",
        "It takes an nnx.Module, or Linen variables.",
        "module flax_model flax params variables nnx_model",
        "kfb.migrate.match kfb.migrate.compare",
    ),
    Word("sample", "It takes a batch of inputs.", "x inputs batch example sample_input", "kfb.migrate.match"),
    Word(
        "apply", "It takes a function of variables and inputs.", "apply_fn forward call", "kfb.migrate.match"
    ),
    Word("x", "It takes a batch of inputs.", "inputs batch sample data", "kfb.migrate.compare"),
    Word("tolerance", "It is relative.", "rtol atol tol threshold eps", "kfb.migrate.compare"),
    Word(
        "layers",
        "It says whether layers are compared.",
        "per_layer intermediates verbose",
        "kfb.migrate.compare",
    ),
    Word(
        "like",
        "It takes the Keras model that is filled.",
        "model keras_model template target",
        "kfb.migrate.to_keras",
    ),
    Word(
        "module",
        "It takes what kfb.migrate.to_nnx gave.",
        "nnx_module flax_model source",
        "kfb.migrate.to_keras",
    ),
    Word("model_or_state", "Pass either.", "model state keras_model train_state", "kfb.migrate.to_nnx_state"),
    Word(
        "layer",
        "It takes the Keras class.",
        "keras_layer cls layer_class layer_type",
        "kfb.migrate.register_rule",
    ),
    Word(
        "module",
        "It takes an nnx class, or its source.",
        "target nnx nnx_module flax",
        "kfb.migrate.register_rule",
    ),
    Word(
        "weights",
        "It maps variables to paths.",
        "params variables mapping weight_map",
        "kfb.migrate.register_rule",
    ),
    Word("config", "It maps parameters to attributes.", "kwargs args arguments", "kfb.migrate.register_rule"),
    Word(
        "call",
        "It is an expression with {module} and {x}.",
        "code forward apply fn",
        "kfb.migrate.register_rule",
    ),
    Word(
        "path",
        "It is a JSON file.",
        "filepath filename file",
        "kfb.migrate.WeightMap.save kfb.migrate.WeightMap.load",
    ),
    Word(
        "source",
        "It takes a model or a state.",
        "model params variables state",
        "kfb.migrate.WeightMap.to_flax",
    ),
    Word(
        "target", "It takes the Flax side.", "module params variables model", "kfb.migrate.WeightMap.to_keras"
    ),
)

CONVERSIONS = (*LAYERS, *OPTIMIZERS, *SHARDING, *MIGRATION)
