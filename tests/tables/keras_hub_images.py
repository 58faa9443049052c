"""Backbones of KerasHub that see images, at a tiny size."""

from typing import Any

from tests.tables.keras_hub_row import SIDE, HubModel

SHAPE = (SIDE, SIDE, 3)
TRANSFORMER = {"num_layers": 2, "num_heads": 2, "hidden_dim": 8}
DINO = {**TRANSFORMER, "patch_size": 8, "intermediate_dim": 16, "image_shape": SHAPE}
PATCHES = {**TRANSFORMER, "patch_size": 8, "image_shape": SHAPE}
MIT = {
    "num_layers": 2,
    "hidden_dims": [8, 16],
    "layerwise_depths": [1, 2],
    "layerwise_num_heads": [1, 2],
    "layerwise_sr_ratios": [2, 1],
    "layerwise_patch_sizes": [7, 3],
    "layerwise_strides": [4, 2],
    "max_drop_path_rate": 0.1,
    "image_shape": SHAPE,
}
RESNET = {
    "input_conv_filters": [8],
    "input_conv_kernel_sizes": [7],
    "stackwise_num_filters": [64, 8, 8, 8],
    "stackwise_num_blocks": [1, 1, 1, 1],
    "stackwise_num_strides": [1, 2, 2, 2],
    "block_type": "bottleneck_block",
}
RESNET_18 = {  # what BASNet takes
    **RESNET,
    "input_conv_filters": [64],
    "stackwise_num_filters": [64, 64, 64, 64],
    "block_type": "basic_block",
}
HGNET = {
    "depths": [1, 1],
    "embedding_size": 4,
    "hidden_sizes": [8, 16],
    "stem_channels": [3, 4, 4],
    "hidden_act": "relu",
    "use_learnable_affine_block": True,
    "stackwise_stage_filters": [[4, 4, 8, 1, 2, 3], [8, 4, 16, 1, 2, 3]],
    "apply_downsample": [False, True],
    "use_lightweight_conv_block": [False, True],
    "image_shape": SHAPE,
    "out_features": ["stage1", "stage2"],
}
VIT_DET = {
    "hidden_size": 8,
    "num_layers": 2,
    "intermediate_dim": 16,
    "num_heads": 2,
    "global_attention_layer_indices": [1],
    "patch_size": 8,
    "num_output_channels": 4,
    "window_size": 2,
    "image_shape": SHAPE,
}


def with_resnet(**config: Any) -> Any:
    """Arguments with an encoder of images among them."""
    return lambda hub: {"image_encoder": hub.models.ResNetBackbone(**RESNET), "image_shape": SHAPE, **config}


def d_fine(hub: Any) -> dict:
    return {
        "backbone": hub.models.HGNetV2Backbone(**HGNET),
        "decoder_in_channels": [8, 8],
        "encoder_hidden_dim": 8,
        "num_labels": 3,
        "num_denoising": 0,
        "learn_initial_query": False,
        "num_queries": 6,
        "anchor_image_size": (SIDE, SIDE),
        "feat_strides": [4, 8],
        "num_feature_levels": 2,
        "hidden_dim": 8,
        "encoder_in_channels": [8, 16],
        "encode_proj_layers": [1],
        "num_attention_heads": 2,
        "encoder_ffn_dim": 16,
        "num_encoder_layers": 1,
        "hidden_expansion": 0.5,
        "depth_multiplier": 0.5,
        "eval_idx": -1,
        "num_decoder_layers": 2,
        "decoder_attention_heads": 2,
        "decoder_ffn_dim": 16,
        "decoder_n_points": [2, 2],
        "lqe_hidden_dim": 4,
        "num_lqe_layers": 2,
        "out_features": ["stage1", "stage2"],
        "image_shape": SHAPE,
        "seed": 0,
    }


def depth_anything(hub: Any) -> dict:
    return {
        "image_encoder": hub.models.DINOV2Backbone(
            **{**DINO, "num_layers": 4, "image_shape": (56, 56, 3), "position_embedding_shape": (56, 56, 3)}
        ),
        "reassemble_factors": [4, 2, 1, 0.5],
        "neck_hidden_dims": [4, 4, 8, 8],
        "fusion_hidden_dim": 8,
        "head_hidden_dim": 4,
        "head_in_index": -1,
        "feature_keys": ["stage1", "stage2", "stage3", "stage4"],
    }


def parseq(hub: Any) -> dict:
    return {
        "image_encoder": hub.models.ViTBackbone(**PATCHES, mlp_dim=16, use_class_token=False),
        "vocabulary_size": 31,
        "max_label_length": 6,
        "decoder_hidden_dim": 8,
        "num_decoder_layers": 1,
        "num_decoder_heads": 2,
        "decoder_mlp_dim": 16,
    }


def blocks(**config: Any) -> dict:
    """MobileNetV5's settings of each block, of two stages with one block each."""
    off = {
        **dict.fromkeys(("se_ratios",), 0.0),
        **dict.fromkeys(("dw_start_kernel_sizes", "dw_end_kernel_sizes"), 0),
        **dict.fromkeys(("num_heads", "key_dims", "value_dims", "kv_strides"), 0),
        "use_cpe": False,
    }
    both = {name: [[value], [value]] for name, value in off.items()}
    return {f"stackwise_{name}": value for name, value in {**both, **config}.items()}


MOBILE_NET_V5 = {
    **blocks(
        block_types=[["er"], ["uir"]],
        num_blocks=[1, 1],
        num_filters=[[8], [8]],
        strides=[[2], [2]],
        act_layers=[["relu"], ["relu"]],
        exp_ratios=[[2.0], [2.0]],
        dw_kernel_sizes=[[0], [3]],
        exp_kernel_sizes=[[3], [0]],
        pw_kernel_sizes=[[1], [0]],
    ),
    "stem_size": 4,
    "num_features": 8,
    "use_msfa": False,
    "image_shape": SHAPE,
}

MOBILE_NET = {
    "stackwise_expansion": [[8], [16, 16]],
    "stackwise_num_blocks": [1, 2],
    "stackwise_num_filters": [[8], [8, 8]],
    "stackwise_kernel_size": [[3], [5, 5]],
    "stackwise_num_strides": [[2], [2, 1]],
    "stackwise_se_ratio": [[None], [0.25, 0.25]],
    "stackwise_activation": [["relu"], ["hard_swish", "hard_swish"]],
    "stackwise_padding": [[1], [2, 2]],
    "output_num_filters": 16,
    "input_num_filters": 8,
    "depthwise_filters": 8,
    "depthwise_stride": 2,
    "depthwise_residual": False,
    "last_layer_filter": 16,
    "squeeze_and_excite": 0.5,
    "image_shape": SHAPE,
}

EFFICIENT_NET = {
    "stackwise_kernel_sizes": [3, 3],
    "stackwise_num_repeats": [1, 2],
    "stackwise_input_filters": [8, 8],
    "stackwise_output_filters": [8, 16],
    "stackwise_expansion_ratios": [1, 2],
    "stackwise_squeeze_and_excite_ratios": [0.0, 0.25],
    "stackwise_strides": [1, 2],
    "stackwise_block_types": ["fused", "unfused"],
    "width_coefficient": 1.0,
    "depth_coefficient": 1.0,
    "num_features": 16,
    "input_shape": SHAPE,
}

ROWS = [
    HubModel(
        "BASNetBackbone",
        lambda hub: {
            "image_encoder": hub.models.ResNetBackbone(**RESNET_18),
            "num_classes": 1,
            "image_shape": (64, 64, 3),
        },
    ),
    HubModel(
        "CSPNetBackbone",
        {
            "stem_filters": 4,
            "stem_kernel_size": 3,
            "stem_strides": 1,
            "stackwise_depth": [1, 2],
            "stackwise_strides": [1, 2],
            "stackwise_num_filters": [8, 16],
            "block_type": "dark_block",
            "stage_type": "dark",
            "image_shape": SHAPE,
        },
    ),
    HubModel("DFineBackbone", d_fine),
    HubModel(
        "DINOV2Backbone",
        {**DINO, "num_register_tokens": 1, "position_embedding_shape": SHAPE},
    ),
    HubModel(
        "DINOV3Backbone",
        {**DINO, "num_register_tokens": 1},
    ),
    HubModel(
        "DeepLabV3Backbone",
        with_resnet(
            spatial_pyramid_pooling_key="P5",
            low_level_feature_key="P2",
            upsampling_size=8,
            dilation_rates=[1, 2, 3],
            projection_filters=4,
        ),
    ),
    HubModel("DeiTBackbone", {**PATCHES, "intermediate_dim": 16, "dropout_rate": 0.1}),
    HubModel("DenseNetBackbone", {"stackwise_num_repeats": [1, 2], "growth_rate": 4, "image_shape": SHAPE}),
    HubModel("DepthAnythingBackbone", depth_anything),
    HubModel("EfficientNetBackbone", EFFICIENT_NET),
    HubModel("HGNetV2Backbone", HGNET),
    HubModel("MiTBackbone", MIT),
    HubModel("MobileNetBackbone", MOBILE_NET),
    HubModel("MobileNetV5Backbone", MOBILE_NET_V5),
    HubModel("PARSeqBackbone", parseq),
    HubModel("ResNetBackbone", {**RESNET, "image_shape": SHAPE}),
    HubModel("RetinaNetBackbone", with_resnet(min_level=3, max_level=5, use_p5=False)),
    HubModel(
        "SegFormerBackbone",
        lambda hub: {"image_encoder": hub.models.MiTBackbone(**MIT), "projection_filters": 8},
    ),
    HubModel(
        "SwinTransformerBackbone",
        {"image_shape": SHAPE, "embed_dim": 4, "depths": (2, 2), "num_heads": (1, 2), "window_size": 2},
    ),
    HubModel(
        "VGGBackbone",
        {"stackwise_num_repeats": [1, 2], "stackwise_num_filters": [4, 8], "image_shape": SHAPE},
    ),
    HubModel("ViTBackbone", {**PATCHES, "mlp_dim": 16, "dropout_rate": 0.1}),
    HubModel("ViTDetBackbone", VIT_DET),
    HubModel(
        "XceptionBackbone",
        {
            "stackwise_conv_filters": [[4, 8], [16, 16], [16, 16]],
            "stackwise_pooling": [False, True, False],
            "image_shape": SHAPE,
        },
    ),
]
