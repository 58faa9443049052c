"""Backbones of KerasHub that read text, at a tiny size."""

from tests.tables.keras_hub_row import VOCABULARY, HubModel

ENCODER = {
    "vocabulary_size": VOCABULARY,
    "num_layers": 2,
    "num_heads": 2,
    "hidden_dim": 8,
    "intermediate_dim": 16,
}
SHORT = {**ENCODER, "max_sequence_length": 12}
WITHOUT_HEADS = {name: value for name, value in ENCODER.items() if name != "num_heads"}
WITHOUT_VOCABULARY = {name: value for name, value in ENCODER.items() if name != "vocabulary_size"}
DECODER = {**WITHOUT_HEADS, "num_query_heads": 4, "num_key_value_heads": 2}
WITH_HEAD = {**DECODER, "head_dim": 4}
EXPERTS = {"num_experts": 4, "top_k": 2}
LINEAR_ATTENTION = {
    "partial_rotary_factor": 0.5,
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 4,
    "linear_value_head_dim": 4,
}
SMOLLM = {
    **WITHOUT_HEADS,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "attention_bias": False,
    "attention_dropout": 0.1,
    "rope_layer_enabled_list": [True, False],
    "layer_types": ["attention", "attention"],
    "mlp_bias": False,
    "layer_norm_epsilon": 1e-5,
    "max_position_embeddings": 12,
    "rope_theta": 10000.0,
    "partial_rotary_factor": 1.0,
}


def both_sides(**config: object) -> dict:
    """Arguments that an encoder and a decoder have alike."""
    return {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in config.items()}


T5GEMMA = {
    "vocabulary_size": VOCABULARY,
    **both_sides(
        hidden_dim=8,
        intermediate_dim=16,
        num_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
        layer_types=["full_attention", "sliding_attention"],
    ),
    "sliding_window": 3,
    "dropout_rate": 0.1,
}

ROWS = [
    HubModel(
        "AlbertBackbone",
        {**SHORT, "embedding_dim": 4, "num_groups": 1, "num_inner_repetitions": 2, "dropout": 0.1},
    ),
    HubModel("BartBackbone", SHORT),
    HubModel("BertBackbone", SHORT),
    HubModel("BloomBackbone", {**ENCODER, "dropout": 0.1}),
    HubModel("DebertaV3Backbone", {**SHORT, "bucket_size": 4}),
    HubModel("DistilBertBackbone", SHORT),
    HubModel("ESM2Backbone", SHORT),
    HubModel("ESMBackbone", {**SHORT, "use_pre_layer_norm": True}),
    HubModel(
        "EdRecBackbone",
        {
            "vocab_size": VOCABULARY,
            "num_layers_enc": 2,
            "num_layers_dec": 1,
            "hidden_dim": 8,
            "intermediate_dim": 16,
            "num_heads": 2,
            "dropout": 0.1,
        },
    ),
    HubModel(
        "ElectraBackbone",
        {**WITHOUT_VOCABULARY, "vocab_size": VOCABULARY, "embedding_dim": 4, "max_sequence_length": 12},
    ),
    HubModel("FNetBackbone", {**WITHOUT_HEADS, "max_sequence_length": 12}),
    HubModel(
        "FalconBackbone",
        {**WITHOUT_HEADS, "num_attention_heads": 2, "attention_dropout_rate": 0.1},
    ),
    HubModel("GPT2Backbone", SHORT),
    HubModel("GPTNeoXBackbone", {**SHORT, "hidden_dim": 16, "dropout": 0.1}),
    HubModel("GemmaBackbone", {**WITH_HEAD, "use_sliding_window_attention": True, "sliding_window_size": 3}),
    HubModel("GptOssBackbone", {**DECODER, **EXPERTS, "sliding_window": 3}),
    HubModel("Llama3Backbone", {**DECODER, "tie_word_embeddings": True}),
    HubModel("LlamaBackbone", {**DECODER, "dropout": 0.1}),
    HubModel("MistralBackbone", {**DECODER, "sliding_window": 3}),
    HubModel("MixtralBackbone", {**DECODER, **EXPERTS, "sliding_window": 3}),
    HubModel("OPTBackbone", SHORT),
    HubModel("Phi3Backbone", {**DECODER, "max_sequence_length": 12, "pretraining_sequence_length": 12}),
    HubModel("Qwen2Backbone", DECODER),
    HubModel("Qwen3Backbone", {**WITH_HEAD, "sliding_window_size": 3}),
    HubModel("Qwen3MoeBackbone", {**WITH_HEAD, **EXPERTS, "moe_intermediate_dim": 8}),
    HubModel("Qwen3_5Backbone", {**WITH_HEAD, **LINEAR_ATTENTION}),
    HubModel(
        "Qwen3_5MoeBackbone",
        {
            **{name: value for name, value in WITH_HEAD.items() if name != "intermediate_dim"},
            **EXPERTS,
            **LINEAR_ATTENTION,
            "moe_intermediate_dim": 8,
            "shared_expert_intermediate_size": 8,
        },
    ),
    HubModel("QwenBackbone", {**DECODER, "tie_word_embeddings": False}),
    HubModel(
        "QwenMoeBackbone",
        {**DECODER, **EXPERTS, "moe_intermediate_dim": 8, "shared_expert_intermediate_dim": 8},
    ),
    HubModel(
        "RWKV7Backbone",
        {
            "vocabulary_size": VOCABULARY,
            "num_layers": 2,
            "hidden_size": 8,
            "head_size": 4,
            "intermediate_dim": 16,
            "gate_lora": 4,
            "mv_lora": 4,
            "aaa_lora": 4,
            "decay_lora": 4,
        },
    ),
    HubModel("RobertaBackbone", SHORT),
    HubModel("RoformerV2Backbone", {**ENCODER, "head_size": 4}),
    HubModel("SmolLM3Backbone", SMOLLM),
    HubModel("SmolLMBackbone", SMOLLM),
    HubModel("T5Backbone", ENCODER),
    HubModel("T5GemmaBackbone", T5GEMMA),
    HubModel("T5Gemma2Backbone", T5GEMMA),
    HubModel("XLMRobertaBackbone", SHORT),
    HubModel("XLNetBackbone", {**ENCODER, "dropout": 0.1}),
]
