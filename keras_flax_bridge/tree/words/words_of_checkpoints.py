"""Arguments of checkpoints, in the words of Orbax, Keras's files and callbacks, and Hugging Face."""

from __future__ import annotations

from keras_flax_bridge.tree.words.word import Word

_MANAGER = "kfb.CheckpointManager"
_CALLBACK = "kfb.callbacks.TrainStateCheckpoint"
_BOTH = f"{_MANAGER} {_CALLBACK}"
_RESTORE = "kfb.restore kfb.CheckpointManager.restore"
_FILES = "kfb.save kfb.restore kfb.load_model kfb.verify"
_SAVE = "kfb.save kfb.CheckpointManager.save"

CHECKPOINTS = (
    Word(
        "directory",
        "It is the root folder of one run, and is made if it does not exist.",
        "path root dir folder root_dir root_directory checkpoint_dir ckpt_dir save_dir backup_dir log_dir "
        "output_dir filepath create",
        _BOTH,
    ),
    Word(
        "max_to_keep",
        "It is how many of the newest steps stay; None keeps all.",
        "max_keep keep keep_n keep_last keep_last_n max_checkpoints save_total_limit total_limit limit "
        "delete_checkpoint",
        _BOTH,
    ),
    Word(
        "keep_best",
        "It takes a name in the logs, such as 'val_loss', or ('val_accuracy', 'max'); the best step stays "
        "as well.",
        "monitor mode save_best_only best_fn best_mode best_metric metric metric_for_best_model "
        "greater_is_better load_best_model_at_end keep_checkpoints_without_metrics initial_value_threshold",
        _BOTH,
    ),
    Word(
        "keep_every",
        "Steps that are multiples of it stay as well.",
        "keep_period keep_every_n_steps keep_checkpoint_every_n_hours keep_time_interval",
        _BOTH,
    ),
    Word(
        "save_every",
        "It is a number of steps: save writes when a multiple of it was reached.",
        "save_interval_steps save_interval save_freq save_steps every every_n_steps every_n_train_steps "
        "period should_save_fn",
        _MANAGER,
    ),
    Word(
        "max_to_keep",
        "Orbax's options are arguments here: max_to_keep=, keep_every=, save_every=, keep_best=.",
        "options preservation_policy save_decision_policy *",
        _MANAGER,
    ),
    Word(
        "kfb.CheckpointManager.save",
        "It takes a whole state, so that there are no items to name.",
        "item_names item_handlers checkpointers checkpointer handler_registry",
        _MANAGER,
    ),
    Word(
        "layout",
        "It is 'tree', or 'packed' for thousands of small leaves.",
        "format use_ocdbt ocdbt use_zarr3 storage_format",
        f"{_BOTH} kfb.save",
    ),
    Word(
        "kfb.CheckpointManager.wait",
        "Saves run in the background; wait() returns when the last one is on disk.",
        "enable_async_checkpointing async_checkpointing async_save async_options blocking wait "
        "wait_until_finished",
        f"{_MANAGER} kfb.CheckpointManager.save",
    ),
    Word(
        "save_freq",
        "It is 'epoch', or a number of batches.",
        "save_every save_interval_steps save_interval period every every_n_epochs frequency save_steps",
        _CALLBACK,
    ),
    Word(
        "keras.callbacks.ModelCheckpoint",
        "TrainStateCheckpoint saves the whole state; for weights alone there is Keras's own callback.",
        "save_weights_only",
        _CALLBACK,
    ),
    Word(
        "keras.callbacks.EarlyStopping",
        "It restores the best weights at the end of training.",
        "restore_best_weights patience",
        _CALLBACK,
    ),
    Word(
        "path",
        "It is a str or a pathlib.Path, and comes first.",
        "filepath filename file directory dir folder checkpoint checkpoint_dir ckpt_dir ckpt_path "
        "checkpoint_path model_path pretrained_model_name_or_path",
        _FILES,
    ),
    Word(
        "path",
        "What is there already is never replaced: take another path, or delete it first.",
        "force overwrite exist_ok",
        "kfb.save",
    ),
    Word(
        "kfb.CheckpointManager",
        "It numbers steps, and saves in the background.",
        "step max_to_keep keep",
        "kfb.save",
    ),
    Word(
        "state",
        "It takes the whole TrainState, an nnx.Module, or a tree of arrays.",
        "args item items pytree params weights variables train_state save_args model_state tree target obj "
        "tensors state_dict",
        _SAVE,
    ),
    Word(
        "state",
        "Everything in the state is saved; to save a part, pass that part: {'params': state.params}.",
        "save_weights_only include_optimizer save_optimizer only",
        "kfb.save",
    ),
    Word(
        "state",
        "The number of a checkpoint is the state's own step: manager.save(state).",
        "*",
        "kfb.CheckpointManager.save",
    ),
    Word(
        "step",
        "It numbers what has no step of its own; a state's own step is taken without it.",
        "epoch global_step iteration step_number",
        "kfb.CheckpointManager.save",
    ),
    Word(
        "metadata",
        "It is a dict of JSON types, which manager.metadata(step) gives back.",
        "custom_metadata extra extras info notes",
        "kfb.CheckpointManager.save",
    ),
    Word(
        "now",
        "now=True saves whatever save_every says.",
        "force overwrite always",
        "kfb.CheckpointManager.save",
    ),
    Word(
        "logs",
        "It takes scalars by name; keep_best= ranks by one.",
        "metrics metric log",
        "kfb.CheckpointManager.save",
    ),
    Word(
        "data",
        "It takes an iterator whose position is stored.",
        "iterator data_iter dataset dataset_iterator loader data_iterator",
        "kfb.CheckpointManager.save",
    ),
    Word(
        "model",
        "It takes the Keras model whose config is stored beside the weights.",
        "keras_model config",
        _SAVE,
    ),
    Word(
        "kfb.save",
        "It writes one checkpoint to a path, without a manager.",
        "path filepath directory",
        "kfb.CheckpointManager.save",
    ),
    Word(
        "like",
        "It says what comes back: a TrainState, concrete or abstract, a model, an nnx.Module, or a tree.",
        "args item items target template abstract_state abstract_pytree restore_args model state params "
        "pytree train_state module variables tree",
        _RESTORE,
    ),
    Word(
        "like",
        "Give it the shardings: kfb.restore(path, kfb.shard(abstract, mesh, rules)).",
        "mesh sharding shardings fallback_sharding device",
        _RESTORE,
    ),
    Word(
        "like", "The step is a keyword: manager.restore(like, step=3).", "*", "kfb.CheckpointManager.restore"
    ),
    Word("step", "The step is a keyword: kfb.restore(path, like, step=3).", "*", "kfb.restore"),
    Word(
        "step",
        "It is a step of a root folder; None for the newest.",
        "epoch version checkpoint_step global_step iteration",
        f"{_RESTORE} kfb.load_model kfb.verify",
    ),
    Word(
        "data",
        "It takes an iterator, which is set to the stored position.",
        "iterator data_iter dataset dataset_iterator loader",
        _RESTORE,
    ),
    Word(
        "partial",
        "partial=True restores what matches and logs the rest.",
        "strict allow_missing ignore_missing skip_mismatch expect_partial partial_restore partial_load "
        "by_name ignore_errors allow_partial",
        _RESTORE,
    ),
    Word(
        "rename",
        "It takes a dict, pairs of regular expression and replacement, a function, or a WeightMap.",
        "transforms mapping key_map name_map renames key_mapping prefix weight_map",
        _RESTORE,
    ),
    Word(
        "include",
        "It takes a regular expression, or a list of path prefixes such as ['params'].",
        "filter only exclude paths params_only weights_only transforms_default_to_original item_names",
        _RESTORE,
    ),
    Word("verify", "verify=False skips the checksums.", "checksum checksums validate check", _RESTORE),
    Word(
        "cast", "cast=True takes the dtypes of like.", "dtype cast_dtype restore_dtype torch_dtype", _RESTORE
    ),
    Word(
        "keras.saving.custom_object_scope",
        "Register classes with Keras, or load inside of this scope.",
        "custom_objects",
        "kfb.load_model",
    ),
    Word(
        "kfb.restore",
        "load_model needs no target; kfb.restore(path, like) fills what you give it.",
        "like target model state args",
        "kfb.load_model",
    ),
)
