"""Names after a dot: of the package, of `kfb.migrate` and `kfb.callbacks`, of classes and their objects."""

from __future__ import annotations

from keras_flax_bridge.tree.words.word import Word

_STATE = "kfb.TrainState"
_MANAGER = "kfb.CheckpointManager"
_REPORTS = "kfb.VerifyReport kfb.ResumeReport kfb.migrate.ComparisonReport"

PACKAGE = (
    Word(
        "kfb.restore",
        "kfb.restore(path, like) fills what you give it; kfb.load_model(path) builds the model as well.",
        "load load_checkpoint restore_checkpoint restore_latest load_state load_weights load_params "
        "from_pretrained load_train_state read",
        "kfb",
    ),
    Word(
        "kfb.save",
        "kfb.save(path, state) writes one checkpoint.",
        "save_checkpoint save_state save_weights save_model save_pretrained store write dump",
        "kfb",
    ),
    Word("kfb.load_model", "kfb.load_model(path) builds the model.", "load_keras_model restore_model", "kfb"),
    Word(
        "kfb.TrainState.from_keras",
        "state = kfb.TrainState.from_keras(model).",
        "from_keras state_from_keras create_train_state init_train_state create_state init_state "
        "to_train_state keras_to_state from_model",
        "kfb",
    ),
    Word(
        "kfb.TrainState", "It is a subclass of Flax's.", "State Trainstate train_state KerasTrainState", "kfb"
    ),
    Word(
        "kfb.make_train_step",
        "train_step = kfb.make_train_step(model).",
        "train_step make_step step_fn build_train_step create_train_step get_train_step make_update_step",
        "kfb",
    ),
    Word(
        "kfb.make_eval_step",
        "eval_step = kfb.make_eval_step(model).",
        "eval_step test_step make_test_step",
        "kfb",
    ),
    Word(
        "kfb.make_predict_step",
        "predict_step = kfb.make_predict_step(model).",
        "predict_step make_predict",
        "kfb",
    ),
    Word(
        "kfb.train",
        "kfb.train(state, train_step, data, epochs=3).",
        "Trainer train_loop loop training_loop",
        "kfb",
    ),
    Word(
        "kfb.CheckpointManager",
        "manager = kfb.CheckpointManager(directory, max_to_keep=3).",
        "Manager Checkpointer StandardCheckpointer PyTreeCheckpointer AsyncCheckpointer "
        "CheckpointManagerOptions checkpoint_manager Checkpoint",
        "kfb",
    ),
    Word(
        "kfb.callbacks.TrainStateCheckpoint",
        "It saves the whole state of model.fit, and resumes it.",
        "ModelCheckpoint OrbaxCheckpoint BackupAndRestore CheckpointCallback",
        "kfb kfb.callbacks",
    ),
    Word(
        "kfb.ToNNX", "module = kfb.ToNNX(layer).", "toNNX to_nnx_module NNXWrapper KerasNNX wrap_nnx", "kfb"
    ),
    Word(
        "kfb.ToLinen", "module = kfb.ToLinen(layer).", "to_linen keras_to_linen KerasLinen wrap_linen", "kfb"
    ),
    Word("kfb.NNXLayer", "layer = kfb.NNXLayer(module).", "FlaxLayer JaxLayer FromNNX NnxLayer", "kfb"),
    Word("kfb.LinenLayer", "layer = kfb.LinenLayer(module).", "FromLinen LinenWrapper linen_layer", "kfb"),
    Word(
        "kfb.migrate.to_nnx",
        "It writes a native module: module = kfb.migrate.to_nnx(model).",
        "to_flax convert_model keras_to_nnx keras_to_flax",
        "kfb kfb.migrate",
    ),
    Word(
        "kfb.migrate.to_source",
        "It returns the Python source of a native module.",
        "to_code codegen eject export generate_source",
        "kfb kfb.migrate",
    ),
    Word(
        "kfb.migrate.to_keras",
        "model = kfb.migrate.to_keras(module, model).",
        "nnx_to_keras flax_to_keras from_flax from_nnx to_keras_model",
        "kfb kfb.migrate",
    ),
    Word(
        "kfb.migrate.compare",
        "It compares outputs on one batch.",
        "diff check_outputs allclose",
        "kfb kfb.migrate",
    ),
    Word(
        "kfb.migrate.match",
        "It finds which weights correspond.",
        "align match_weights map_weights",
        "kfb kfb.migrate",
    ),
    Word("kfb.migrate.WeightMap", "It is what match returns.", "weightmap Map Mapping", "kfb kfb.migrate"),
    Word("kfb.migrate.register_rule", "It adds a layer.", "register add_rule add_layer", "kfb kfb.migrate"),
    Word(
        "kfb.callbacks.TrainStateCheckpoint",
        "It is a Keras callback.",
        "TrainStateCheckpoint Callback",
        "kfb",
    ),
    Word("kfb.migrate.to_nnx", "module = kfb.migrate.to_nnx(model).", "to_nnx", "kfb"),
    Word("kfb.migrate.to_source", "It returns Python source.", "to_source", "kfb"),
    Word("kfb.migrate.to_keras", "model = kfb.migrate.to_keras(module, model).", "to_keras", "kfb"),
    Word("kfb.migrate.compare", "It compares outputs on one batch.", "compare", "kfb"),
    Word("kfb.migrate.match", "It finds which weights correspond.", "match", "kfb"),
    Word("kfb.migrate.WeightMap", "It is what kfb.migrate.match returns.", "WeightMap", "kfb"),
    Word("kfb.migrate.register_rule", "It adds a layer.", "register_rule", "kfb"),
    Word(
        "kfb.OptaxOptimizer",
        "It is a Keras optimizer.",
        "from_optax optax_to_keras Optax KerasOptimizer",
        "kfb",
    ),
    Word("kfb.to_optax", "tx = kfb.to_optax(optimizer).", "keras_to_optax optimizer_to_optax", "kfb"),
    Word(
        "kfb.shard",
        "state = kfb.shard(state, mesh, rules).",
        "shard_state distribute with_sharding place",
        "kfb",
    ),
    Word(
        "kfb.shardings_for",
        "It gives a sharding for each leaf.",
        "get_shardings infer_sharding sharding_for",
        "kfb",
    ),
    Word(
        "kfb.report",
        "print(kfb.report(state)) lists its leaves.",
        "summary tabulate describe param_count",
        "kfb",
    ),
    Word(
        "kfb.verify",
        "kfb.verify(path) compares checksums.",
        "validate check verify_checkpoint is_valid",
        "kfb",
    ),
    Word(
        "kfb.BridgeError",
        "Every error of the package is one.",
        "Error KerasFlaxBridgeError BridgeException",
        "kfb",
    ),
)

STATE = (
    Word(
        "from_keras",
        "state = kfb.TrainState.from_keras(model).",
        "from_model from_module from_keras_model from_compiled init init_from new build",
        _STATE,
    ),
    Word(
        "abstract",
        "It gives shapes and dtypes alone.",
        "eval_shape shapes abstract_state from_shapes specs",
        _STATE,
    ),
    Word(
        "kfb.restore",
        "state = kfb.restore(path, state).",
        "restore load from_checkpoint load_checkpoint",
        _STATE,
    ),
    Word("kfb.save", "kfb.save(path, state) writes it.", "save save_checkpoint to_checkpoint dump", _STATE),
    Word(
        "params",
        "It holds the trainable weights.",
        "variables weights trainable_variables trainable_weights",
        _STATE,
    ),
    Word(
        "non_trainable",
        "It holds moving statistics, seeds and frozen weights.",
        "batch_stats model_state mutable_state extra_variables non_trainable_variables rng rngs key "
        "dropout_rng seeds frozen",
        _STATE,
    ),
    Word(
        "opt_state",
        "It holds Keras's slots, or optax's state.",
        "optimizer_state optimizer_variables slots opt",
        _STATE,
    ),
    Word(
        "tx", "state.tx is the optimizer behind optax's interface.", "optimizer optim learning_rate", _STATE
    ),
    Word(
        "apply_fn",
        "out = state.apply_fn({'params': state.params}, x).",
        "apply call forward model module",
        _STATE,
    ),
    Word("step", "It counts batches.", "global_step iteration iterations steps count", _STATE),
    Word(
        "apply_gradients",
        "state = state.apply_gradients(grads=grads).",
        "apply_grads apply_gradient apply_updates update update_params apply_grad gradient_step",
        _STATE,
    ),
    Word(
        "assign_to",
        "state.assign_to(model) writes it into the model.",
        "to_model to_keras_model load_into write_to copy_to export assign update_model set_weights",
        _STATE,
    ),
    Word(
        "replace",
        "state = state.replace(step=0) gives a changed copy.",
        "_replace copy with_params set evolve",
        _STATE,
    ),
    Word(
        "reset_metrics",
        "state = state.reset_metrics().",
        "reset clear_metrics update_metrics",
        _STATE,
    ),
    Word(
        "metrics",
        "It holds the variables of metrics; a step returns their results.",
        "logs metric loss",
        _STATE,
    ),
    Word(
        "repartition", "state = state.repartition(model).", "freeze unfreeze set_trainable trainable", _STATE
    ),
    Word(
        "kfb.shard", "state = kfb.shard(state, mesh, rules).", "shard sharding shardings device_put", _STATE
    ),
    Word(
        "kfb.report", "print(kfb.report(state)).", "summary tabulate report num_params count_params", _STATE
    ),
    Word("kfb.train", "state, history = kfb.train(state, train_step, data, epochs=3).", "fit train", _STATE),
    Word(
        "kfb.make_train_step",
        "train_step = kfb.make_train_step(model).",
        "train_step make_train_step",
        _STATE,
    ),
    Word("kfb.make_eval_step", "eval_step = kfb.make_eval_step(model).", "evaluate eval_step eval", _STATE),
    Word(
        "kfb.make_predict_step",
        "predict_step = kfb.make_predict_step(model).",
        "predict predict_step",
        _STATE,
    ),
    Word(
        "parts", "state.parts are names, state.part(name) is one model's state.", "models submodels", _STATE
    ),
)

CHECKPOINTS = (
    Word(
        "latest_step",
        "It is a property: the number of the newest step, or None.",
        "latest latest_checkpoint last_step last newest newest_step current_step",
        _MANAGER,
    ),
    Word(
        "best_step",
        "It is a property; it needs keep_best=.",
        "best best_checkpoint best_model_path",
        _MANAGER,
    ),
    Word(
        "all_steps",
        "manager.all_steps() lists them.",
        "steps list_steps checkpoints all_checkpoints reload",
        _MANAGER,
    ),
    Word(
        "wait",
        "manager.wait() returns when the last save is on disk.",
        "wait_until_finished wait_until_done join flush block check_for_errors",
        _MANAGER,
    ),
    Word(
        "restore",
        "state = manager.restore(state) takes the newest step.",
        "load load_checkpoint restore_latest restore_checkpoint restore_or_initialize load_latest",
        _MANAGER,
    ),
    Word("save", "manager.save(state).", "save_checkpoint save_state write should_save", _MANAGER),
    Word("is_saving", "It is a property.", "is_saving_in_progress saving is_running", _MANAGER),
    Word("best_steps", "It is a property: the best step by each rule of keep_best=.", "best_all", _MANAGER),
    Word("delete", "manager.delete(step).", "remove delete_step remove_step delete_checkpoint", _MANAGER),
    Word("metrics", "manager.metrics(step): the numbers that were logged.", "logs metric", _MANAGER),
    Word(
        "metadata",
        "manager.metadata(step): what save(..., metadata=) was given.",
        "item_metadata custom_metadata checkpoint_metadata meta",
        _MANAGER,
    ),
    Word(
        "directory",
        "It is the root folder.",
        "path root root_dir root_directory dir folder ckpt_dir",
        _MANAGER,
    ),
    Word("close", "manager.close() waits; a with block calls it.", "shutdown stop exit finish", _MANAGER),
    Word("saved", "It holds the steps that this manager wrote.", "saved_steps written", _MANAGER),
)

OTHERS = (
    Word("ok", "It is True where nothing is wrong.", "is_ok success passed valid is_valid equal", _REPORTS),
    Word(
        "damaged",
        "It says what is wrong, by path.",
        "errors corrupted corrupt failed broken",
        "kfb.VerifyReport",
    ),
    Word("differing", "It lists paths.", "different mismatched differences", "kfb.ResumeReport"),
    Word(
        "outputs",
        "It lists a difference for each output.",
        "max_diff diff output",
        "kfb.migrate.ComparisonReport",
    ),
    Word(
        "to_flax",
        "It moves Keras values to Flax.",
        "to_nnx to_linen forward apply convert",
        "kfb.migrate.WeightMap",
    ),
    Word(
        "to_keras",
        "It moves Flax values to Keras.",
        "inverse backward to_model reverse",
        "kfb.migrate.WeightMap",
    ),
    Word("table", "print(weight_map.table()).", "summary report show print", "kfb.migrate.WeightMap"),
    Word("save", "It writes JSON.", "dump to_file write export", "kfb.migrate.WeightMap"),
    Word("load", "It reads what save wrote.", "from_file read restore open", "kfb.migrate.WeightMap"),
    Word(
        "assign_to",
        "module.assign_to(layer) writes back.",
        "to_keras write_to update_layer copy_to",
        "kfb.ToNNX",
    ),
    Word("variables_by_path", "It is a method.", "variables weights variable_dict get_weights", "kfb.ToNNX"),
    Word(
        "nnx.state",
        "Variables: nnx.state(module, nnx.Param).",
        "params parameters state state_dict",
        "kfb.ToNNX",
    ),
    Word(
        "from_keras_values", "variables = module.from_keras_values().", "get_variables values", "kfb.ToLinen"
    ),
    Word("history", "history.history['loss'] is a list.", "logs losses metrics results", "kfb.History"),
    Word(
        "transformation", "It is what the optimizer was made of.", "tx optax optimizer", "kfb.OptaxOptimizer"
    ),
    Word("slots", "It holds optax's state, by name.", "opt_state state", "kfb.OptaxOptimizer"),
)

NAMES = (*PACKAGE, *STATE, *CHECKPOINTS, *OTHERS)
