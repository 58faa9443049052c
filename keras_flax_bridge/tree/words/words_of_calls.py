"""Arguments of states, of steps and of the loop."""

from __future__ import annotations

from keras_flax_bridge.tree.words.word import Word

_TAKING = "kfb.TrainState.from_keras kfb.TrainState.abstract"
_STEPS = "kfb.make_train_step kfb.make_eval_step kfb.make_predict_step"
_TRAINED = "kfb.make_train_step kfb.make_eval_step"
_CALLED = "train_step eval_step"
_FIELDS = "kfb.TrainState kfb.TrainState.create"

STATE = (
    Word(
        "optimizer",
        "It takes a Keras optimizer or an optax transformation; None takes the model's own.",
        "tx opt optim optimiser learning_rate lr gradient_transform",
        f"{_TAKING} kfb.make_train_step",
    ),
    Word(
        "batch",
        "It takes (x,), (x, y) or x itself, as arrays or as jax.ShapeDtypeStruct, and builds the model.",
        "inputs x y data sample sample_input example_batch example_input dummy_input input_shape "
        "input_spec shape",
        _TAKING,
    ),
    Word(
        "loss", "It takes what compile takes.", "loss_fn criterion objective losses", f"{_TAKING} {_TRAINED}"
    ),
    Word("metrics", "It takes what compile takes.", "metric compute_metrics", f"{_TAKING} {_TRAINED}"),
    Word(
        "metrics",
        "It takes a list as compile does, with weighted metrics among them where the model is compiled.",
        "weighted_metrics compiled_metrics",
        _TAKING,
    ),
    Word("copy", "copy=False moves the model's buffers.", "donate clone move", "kfb.TrainState.from_keras"),
    Word(
        "model",
        "The state's params and its apply_fn are those of the model.",
        "keras_model module net apply_fn params variables state",
        "kfb.TrainState.from_keras",
    ),
    Word(
        "model_fn",
        "It takes a function that builds the model; it runs once, traced.",
        "model keras_model build_fn build init_fn fn model_builder",
        "kfb.TrainState.abstract",
    ),
    Word(
        "keras.utils.set_random_seed",
        "Seeds are variables of the model: set them before it is built; they lie in state.non_trainable.",
        "rng rngs key seed",
        _TAKING,
    ),
    Word(
        "kfb.shard",
        "It puts a state on the devices of a mesh: state = kfb.shard(state, mesh, rules).",
        "mesh sharding shardings rules partition_rules",
        _TAKING,
    ),
    Word(
        "tx",
        "It takes an optax transformation; kfb.as_optax(optimizer) makes one of a Keras optimizer.",
        "optimizer opt optim",
        _FIELDS,
    ),
    Word("params", "Pass variables['params'].", "variables weights trainable", _FIELDS),
    Word(
        "non_trainable",
        "It holds moving statistics, seeds and frozen weights in one nested dict.",
        "batch_stats model_state mutable_state extra_variables rng rngs key dropout_rng",
        "kfb.TrainState",
    ),
    Word("opt_state", "It is tx.init(params).", "optimizer_state slots", "kfb.TrainState"),
    Word("step", "It is an int32 scalar.", "iteration iterations global_step steps epoch", "kfb.TrainState"),
    Word(
        "kfb.TrainState.from_keras",
        "It takes the whole state of a Keras model: state = kfb.TrainState.from_keras(model).",
        "model keras_model module *",
        _FIELDS,
    ),
    Word("grads", "Pass grads=.", "gradients gradient grad updates *", "kfb.TrainState.apply_gradients"),
    Word("model", "Pass the Keras model.", "keras_model module layer", "kfb.TrainState.assign_to"),
    Word(
        "optimizer",
        "It takes the Keras optimizer that receives the slots.",
        "opt tx opt_state",
        "kfb.TrainState.assign_to",
    ),
    Word(
        "copy",
        "copy=False hands the model the state's own buffers.",
        "donate move",
        "kfb.TrainState.assign_to",
    ),
    Word(
        "model",
        "Pass the model compiled with the optimizer; its slots are those of the new state.",
        "optimizer opt tx keras_model",
        "kfb.TrainState.to_optax kfb.TrainState.to_keras",
    ),
    Word(
        "model", "Pass the model as it is now.", "keras_model trainable frozen", "kfb.TrainState.repartition"
    ),
    Word("state", "Pass a TrainState.", "model params pytree train_state", "kfb.report"),
)

STEPS = (
    Word("model", "A step is made of the Keras model.", "keras_model module net apply_fn state", _STEPS),
    Word(
        "jit",
        "jit=False gives the pure function.",
        "compile jit_compile use_jit compiled run_eagerly",
        _STEPS,
    ),
    Word(
        "donate",
        "donate=False leaves the state that is given untouched.",
        "donate_argnums donate_argnames donate_state donate_buffers copy",
        "kfb.make_train_step",
    ),
    Word(
        "steps_per_call",
        "Batches carry that many steps along a leading axis.",
        "steps_per_execution scan scan_steps unroll num_steps n_steps steps",
        "kfb.make_train_step",
    ),
    Word(
        "optimizer",
        "A Keras optimizer takes gradient_accumulation_steps=, and of optax there is MultiSteps.",
        "gradient_accumulation_steps grad_accum_steps accumulate_steps accum_steps",
        "kfb.make_train_step",
    ),
    Word(
        "mesh", "It takes a jax.sharding.Mesh.", "devices strategy axis_name distribution device_mesh", _STEPS
    ),
    Word(
        "rules",
        "It takes pairs of a regular expression and a PartitionSpec.",
        "sharding shardings partition_rules layout_map state_sharding sharding_rules",
        _STEPS,
    ),
    Word(
        "batch_spec",
        "It takes the PartitionSpec of a batch; None splits its rows over the first axis.",
        "in_shardings data_sharding batch_sharding data_spec input_spec",
        _STEPS,
    ),
    Word(
        "batch",
        "Pass x and y as one batch: step(state, (x, y)).",
        "x y data inputs targets labels *",
        _CALLED,
    ),
    Word(
        "state", "Seeds are part of the state; call step(state, batch).", "rng rngs key dropout_rng", _CALLED
    ),
    Word(
        "state", "Params and slots are part of the state.", "params opt_state train_state variables", _CALLED
    ),
    Word("x", "It takes what the model is called on.", "batch data inputs images *", "predict_step"),
    Word("state", "Params are part of the state.", "params variables train_state", "predict_step"),
)

LOOP = (
    Word(
        "data",
        "It takes batches (x, y), as a list, a Grain dataset or any other iterable.",
        "x y inputs dataset ds train_data train_ds train_dataset dataloader loader train_loader batches "
        "generator batch_size shuffle sample_weight",
        "kfb.train",
    ),
    Word(
        "eval_data",
        "It takes batches to evaluate on after each epoch, together with eval_step=.",
        "validation_data val_data valid_data eval_dataset eval_ds val_loader validation_split "
        "validation_batch_size validation_steps test_data",
        "kfb.train",
    ),
    Word(
        "train_step",
        "It takes kfb.make_train_step(model).",
        "step_fn train_fn update_fn step model",
        "kfb.train",
    ),
    Word(
        "eval_step", "It takes kfb.make_eval_step(model).", "eval_fn validation_step test_step", "kfb.train"
    ),
    Word(
        "steps",
        "It is the number that state.step reaches in the end.",
        "num_steps max_steps total_steps n_steps train_steps num_train_steps steps_per_epoch iterations",
        "kfb.train",
    ),
    Word(
        "epochs",
        "It is how often data is gone through.",
        "num_epochs n_epochs max_epochs nb_epoch",
        "kfb.train",
    ),
    Word(
        "manager",
        "With a kfb.CheckpointManager the run continues from its newest checkpoint.",
        "initial_epoch initial_step checkpoint_manager ckpt_manager mngr checkpointer ckpt_dir "
        "checkpoint_dir workdir backup_dir directory save_dir output_dir resume_from_checkpoint",
        "kfb.train",
    ),
    Word("callbacks", "It takes a list of Keras callbacks.", "callback hooks", "kfb.train"),
    Word("verbose", "It takes 0, 1 or 2.", "verbosity progress progress_bar log_every quiet", "kfb.train"),
    Word("state", "It takes a TrainState.", "train_state initial_state params init_state", "kfb.train"),
    Word(
        "model_fn", "It takes a function that builds the model.", "model build_fn build", "kfb.verify_resume"
    ),
    Word("data_fn", "It takes a function that makes the data.", "data dataset batches", "kfb.verify_resume"),
    Word("steps", "It takes the steps before and after.", "num_steps n_steps epochs", "kfb.verify_resume"),
)

CALLS = (*STATE, *STEPS, *LOOP)
