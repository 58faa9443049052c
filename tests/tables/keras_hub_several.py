"""Backbones of KerasHub that read more than text or one image: images with text, sound, video, diffusion."""

from typing import Any

import numpy as np

from tests.tables.keras_hub_images import VIT_DET
from tests.tables.keras_hub_row import SIDE, TOKENS, VOCABULARY, HubModel
from tests.tables.keras_hub_text import ENCODER, WITH_HEAD

SHAPE = (SIDE, SIDE, 3)
VISION = {
    "patch_size": 8,
    "hidden_dim": 8,
    "num_layers": 2,
    "num_heads": 2,
    "intermediate_dim": 16,
    "image_shape": SHAPE,
}
TEXT = {**ENCODER, "embedding_dim": 8, "max_sequence_length": TOKENS}


def pair(name: str, **config: Any) -> Any:
    """Arguments with an encoder of images and one of texts, which are named after the family."""

    def arguments(hub: Any) -> dict:
        vision, text = (getattr(hub.models, f"{name}{side}Encoder") for side in ("Vision", "Text"))
        return {"vision_encoder": vision(**VISION), "text_encoder": text(**TEXT), **config}

    return arguments


def blip2(hub: Any) -> dict:
    small = {"num_layers": 2, "num_heads": 2, "hidden_dim": 8, "intermediate_dim": 16}
    return {
        "vision_encoder": hub.models.BLIP2VisionEncoder(
            **small,
            image_size=SIDE,
            patch_size=8,
            use_patch_bias=True,
            use_class_token=True,
            use_mha_bias=True,
            use_mlp_bias=True,
            dropout_rate=0.1,
            layer_norm_epsilon=1e-6,
            initializer_range=0.02,
        ),
        "qformer": hub.models.BLIP2QFormer(
            **small,
            num_query_tokens=3,
            vision_dim=8,
            cross_attention_frequency=2,
            dropout=0.1,
            layer_norm_epsilon=1e-6,
        ),
        "language_model": hub.models.BLIP2CustomOPT(
            **small,
            vocabulary_size=VOCABULARY,
            num_query_tokens=3,
            dropout=0.1,
            max_sequence_length=12,
            qformer_hidden_dim=8,
        ),
    }


def gemma3(hub: Any) -> dict:
    encoder = hub.models.Gemma3VisionEncoder(
        image_size=SIDE,
        patch_size=8,
        num_heads=2,
        hidden_dim=8,
        num_layers=1,
        intermediate_dim=16,
        output_dim=8,
        pool_size=2,
    )
    return {**WITH_HEAD, "image_size": SIDE, "vision_encoder": encoder, "dropout": 0.1}


GEMMA3N = {
    "text_vocab_size": VOCABULARY,
    "text_hidden_size": 8,
    "num_hidden_layers": 2,
    "pad_token_id": 0,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "intermediate_size": [16, 16],
    "hidden_activation": "gelu_approximate",
    "layer_types": ["sliding_attention", "full_attention"],
    "sliding_window": 3,
    "rope_theta": 10000.0,
    "max_position_embeddings": 12,
    "vocab_size_per_layer_input": VOCABULARY,
    "hidden_size_per_layer_input": 4,
    "altup_num_inputs": 2,
    "laurel_rank": 2,
}


def sam(hub: Any) -> dict:
    side = SIDE // VIT_DET["patch_size"]
    return {
        "image_encoder": hub.models.ViTDetBackbone(**{**VIT_DET, "num_output_channels": 8}),
        "prompt_encoder": hub.layers.SAMPromptEncoder(
            hidden_size=8,
            image_embedding_size=(side, side),
            input_image_size=(SIDE, SIDE),
            mask_in_channels=4,
        ),
        "mask_decoder": hub.layers.SAMMaskDecoder(
            num_layers=1,
            hidden_size=8,
            intermediate_dim=16,
            num_heads=2,
            embedding_dim=8,
            num_multimask_outputs=3,
            iou_head_depth=2,
            iou_head_hidden_dim=8,
        ),
    }


def sam3(hub: Any) -> dict:
    layers = hub.layers
    small = {"num_layers": 1, "hidden_dim": 8, "intermediate_dim": 16, "num_heads": 2}
    return {
        "vision_encoder": layers.SAM3VisionEncoder(
            **{**small, "num_layers": 2},
            image_shape=SHAPE,
            patch_size=8,
            fpn_hidden_dim=8,
            fpn_scale_factors=[4.0, 2.0, 1.0, 0.5],
            pretrain_image_shape=SHAPE,
            window_size=2,
            global_attn_indexes=[1],
        ),
        "text_encoder": layers.SAM3TextEncoder(**small, vocabulary_size=VOCABULARY, embedding_dim=8),
        "geometry_encoder": layers.SAM3GeometryEncoder(**small, roi_size=3),
        "detr_encoder": layers.SAM3DetrEncoder(**small),
        "detr_decoder": layers.SAM3DetrDecoder(**small, image_shape=SHAPE, patch_size=8, num_queries=5),
        "mask_decoder": layers.SAM3MaskDecoder(num_upsampling_stages=3, hidden_dim=8, num_heads=2),
    }


ROWS = [
    HubModel("BLIP2Backbone", blip2),
    HubModel("CLIPBackbone", pair("CLIP", projection_dim=8)),
    HubModel(
        "FluxBackbone",
        {
            "input_channels": 4,
            "hidden_size": 8,
            "mlp_ratio": 2.0,
            "num_heads": 2,
            "depth": 1,
            "depth_single_blocks": 1,
            "axes_dim": [2, 2],
            "theta": 10_000,
            "use_bias": True,
            "guidance_embed": True,
            "image_shape": (4, 4),
            "text_shape": (3, 8),
            "image_ids_shape": (4, 2),
            "text_ids_shape": (3, 2),
            "y_shape": (8,),
        },
    ),
    HubModel(
        "Gemma3Backbone",
        gemma3,
        shapes={"images": (1, *SHAPE)},
        values={"vision_mask": [0, 1, 1, 1, 1, 0], "vision_indices": [1, 2, 3, 4]},
    ),
    HubModel("Gemma3nBackbone", GEMMA3N),
    HubModel("Gemma4Backbone", {**WITH_HEAD, "image_size": SIDE, "sliding_window_size": 3, "dropout": 0.1}),
    HubModel("MetaCLIP2Backbone", pair("MetaCLIP2", projection_dim=8)),
    HubModel(
        "MoonshineBackbone",
        {
            "vocabulary_size": VOCABULARY,
            "filter_dim": 8,
            "encoder_num_layers": 1,
            "decoder_num_layers": 1,
            "hidden_dim": 8,
            "intermediate_dim": 16,
            "encoder_num_heads": 2,
            "decoder_num_heads": 2,
            "dropout": 0.1,
        },
        shapes={"encoder_input_values": (1600, 1), "encoder_padding_mask": (1600,)},
    ),
    HubModel(
        "PaliGemmaBackbone",
        {
            **WITH_HEAD,
            "image_size": SIDE,
            "vit_patch_size": 8,
            "vit_num_heads": 2,
            "vit_hidden_dim": 8,
            "vit_num_layers": 1,
            "vit_intermediate_dim": 16,
        },
    ),
    HubModel("SAM3PromptableConceptBackbone", sam3, shapes={"boxes": (2, 5), "box_labels": (2,)}),
    HubModel(
        "SAMBackbone",
        sam,
        shapes={"points": (2, 2), "boxes": (1, 2, 2), "masks": (1, 16, 16, 1)},
        values={"labels": np.ones(2)},
    ),
    HubModel("SigLIPBackbone", pair("SigLIP")),
    HubModel(
        "StableDiffusion3Backbone",
        {},
        not_built="no `fit`: its scheduler makes an array of `num_steps` values, which can't be traced",
    ),
    HubModel(
        "VideoPrismBackbone",
        {
            "num_frames": 2,
            "patch_size": 8,
            "hidden_dim": 8,
            "intermediate_dim": 16,
            "num_heads": 2,
            "num_spatial_layers": 1,
            "num_temporal_layers": 1,
            "num_auxiliary_layers": 1,
            "vocabulary_size": VOCABULARY,
            "num_text_layers": 1,
            "dropout_rate": 0.1,
            "image_shape": SHAPE,
        },
    ),
    HubModel(
        "WhisperBackbone",
        {
            **ENCODER,
            "num_mels": 4,
            "dropout": 0.1,
            "max_encoder_sequence_length": 16,
            "max_decoder_sequence_length": 12,
        },
        shapes={"encoder_features": (16, 4)},
    ),
]
