"""Tables of the names that a file may contain.

`tests/tree/test_untrusted.py` compares them with the installed packages.
"""

from __future__ import annotations

TRANSFORMATION, SCHEDULE = "transformation", "schedule"


def _words(text: str, prefix: str = "") -> list[str]:
    return [prefix + word for word in text.split()]


# functions of optax that may be named, by what they make; a name in contrib is written `contrib.muon`
_OPTAX_TRANSFORMATIONS = """
    MultiSteps adabelief adadelta adafactor adagrad adam adamax adamaxw adamw adan adaptive_grad_clip
    add_decayed_weights add_noise amsgrad apply_every apply_if_finite centralize chain clip clip_by_block_rms
    clip_by_global_norm conditionally_mask conditionally_transform ema flatten freeze fromage identity
    keep_params_nonnegative lamb lars lbfgs lion lookahead masked measure_with_ema monitor multi_transform
    nadam nadamw named_chain noisy_sgd normalize_by_update_norm novograd optimistic_adam optimistic_adam_v2
    optimistic_gradient_descent partition polyak_sgd radam rmsprop rprop scale scale_by_adadelta scale_by_adam
    scale_by_adamax scale_by_adan scale_by_amsgrad scale_by_backtracking_linesearch scale_by_belief
    scale_by_distance_over_gradients scale_by_factored_rms scale_by_lbfgs scale_by_learning_rate scale_by_lion
    scale_by_novograd scale_by_optimistic_gradient scale_by_param_block_norm scale_by_param_block_rms
    scale_by_polyak scale_by_radam scale_by_rms scale_by_rprop scale_by_rss scale_by_schedule scale_by_sign
    scale_by_sm3 scale_by_stddev scale_by_trust_ratio scale_by_yogi scale_by_zoom_linesearch
    selective_transform set_to_zero sgd sign_sgd signum sm3 snapshot stateless stateless_with_tree_map trace
    with_extra_args_support yogi zero_nans
"""
_CONTRIB_TRANSFORMATIONS = """
    acprop ademamix adopt cocob dadapt_adamw differentially_private_aggregate dog dowg dpsgd galore madgrad
    hutchinson_estimator_diag_hessian mechanize momo momo_adam muon normalize prodigy reduce_on_plateau sam
    scale_by_acprop scale_by_ademamix scale_by_adopt scale_by_cocob scale_by_galore scale_by_madgrad
    scale_by_muon scale_by_simplified_ademamix schedule_free schedule_free_adamw schedule_free_sgd
    simplified_ademamix sophia split_real_and_imaginary
"""
_SCHEDULES = """
    constant_schedule cosine_decay_schedule cosine_onecycle_schedule exponential_decay join_schedules
    linear_onecycle_schedule linear_schedule piecewise_constant_schedule piecewise_interpolate_schedule
    polynomial_schedule sgdr_schedule warmup_constant_schedule warmup_cosine_decay_schedule
    warmup_exponential_decay_schedule
"""
OPTAX: dict[str, str] = {
    **dict.fromkeys(_words(_OPTAX_TRANSFORMATIONS), TRANSFORMATION),
    **dict.fromkeys(_words(_CONTRIB_TRANSFORMATIONS, "contrib."), TRANSFORMATION),
    **dict.fromkeys(_words(_SCHEDULES), SCHEDULE),
    **dict.fromkeys(_words(_SCHEDULES, "schedules."), SCHEDULE),
}
# public functions of optax that may not be named: they make neither a transformation nor a schedule
OPTAX_REFUSED = frozenset(
    _words(
        """
        MaskOrFn OptState Params ScalarOrSchedule Schedule Updates apply_updates bias_correction
        convex_kl_divergence cosine_distance cosine_similarity ctc_loss ctc_loss_with_forward_probs
        generalized_kl_divergence global_norm hinge_loss huber_loss incremental_update init_empty_state
        inject_hyperparams inject_stateful_hyperparams kl_divergence l2_loss log_cosh matrix_inverse_pth_root
        microbatch multi_normal nnls ntxent per_example_global_norm_clip per_example_layer_norm_clip
        periodic_update power_iteration safe_increment safe_int32_increment safe_norm safe_root_mean_squares
        safe_softmax_cross_entropy scale_gradient sigmoid_binary_cross_entropy sigmoid_focal_loss
        skip_large_updates skip_not_finite smooth_labels softmax_cross_entropy
        softmax_cross_entropy_with_integer_labels squared_error tree_map_params update_infinity_moment
        update_moment update_moment_per_elem_norm value_and_grad_from_state
        """
    )
    + _words("schedule_free_eval_params", "contrib.")
    + _words("Schedule inject_hyperparams inject_stateful_hyperparams", "schedules.")
)

# functions of jax.nn that a config may give to a Flax module
JAX_NN = frozenset(
    _words(
        """
        celu dot_product_attention elu gelu glu hard_sigmoid hard_silu hard_swish hard_tanh identity
        leaky_relu log1mexp log_sigmoid log_softmax logmeanexp logsumexp mish one_hot relu relu6 selu sigmoid
        silu soft_sign softmax softplus scaled_dot_general scaled_matmul sparse_plus sparse_sigmoid squareplus
        standardize swish tanh
        """
    )
)

# dtypes that a config or a checkpoint may name
DTYPES = frozenset(
    _words(
        """
        bool int2 int4 int8 int16 int32 int64 uint2 uint4 uint8 uint16 uint32 uint64 float16 bfloat16 float32
        float64 complex64 complex128 float8_e4m3 float8_e4m3b11fnuz float8_e4m3fn float8_e4m3fnuz float8_e5m2
        float8_e5m2fnuz float8_e3m4 float8_e8m0fnu float4_e2m1fn int1 uint1
        """
    )
)

# parts of Keras out of which a config may name classes, and out of which functions
KERAS_CLASSES = frozenset({"keras"}).union(
    _words(
        """
        activations constraints distillation dtype_policies initializers layers losses metrics mixed_precision
        models ops optimizers optimizers.schedules quantizers random regularizers
        """,
        "keras.",
    )
)
KERAS_FUNCTIONS = frozenset({"builtins"}).union(  # Keras's word for its own by their names alone
    _words(
        """
        activations constraints initializers losses metrics ops ops.image ops.linalg ops.nn ops.numpy random
        regularizers
        """,
        "keras.",
    )
)
# of these parts, what takes a config or a name rather than tensors, and layers that load other files
KERAS_REFUSED = frozenset(_words("TFSMLayer TorchModuleWrapper deserialize get serialize"))
# arguments of lookups and tokenizers that are a file where they are text: Keras writes a list, or none
KERAS_FILES = ("vocabulary", "merges")
# packages whose classes Keras looks for by itself; it would import them
KERAS_PACKAGES = frozenset(_words("keras keras_cv keras_hub keras_nlp"))
# what Keras writes in the place of values that JSON has not
KERAS_VALUES = frozenset(_words("__keras_tensor__ __tensor__ __numpy__ __bytes__ __ellipsis__ __slice__"))
