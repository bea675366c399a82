"""Tiny models of every architecture: the one table that all suites read. A new architecture adds a line to `TINY`."""

import copy
from typing import Any

import torch
from transformers import PreTrainedModel

from hf_vit_family import ARCHITECTURES
from hf_vit_family.modeling.configuration_vitf import VitfConfig, pair
from hf_vit_family.registry import Architecture

_PLAIN = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "mlp_ratio": 2,
    "num_labels": 5,
}
_CLIP = {**_PLAIN, "num_frames": 4, "drop_path_rate": 0.0}
_VIVIT = {**_CLIP, "tubelet_size": 2}
_XVIT = {**_CLIP, "classifier_dropout_prob": 0.0, "classifier_hidden_size": 24}
_CCT = {
    "image_size": 16,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_labels": 5,
    "attention_probs_dropout_prob": 0.0,
    "drop_path_rate": 0.0,
}
_PIT = {
    "image_size": 24,
    "patch_size": 4,
    "stride": 2,
    "base_dims": [8, 8, 8],
    "depths": [1, 2, 1],
    "num_heads": [2, 2, 4],
    "mlp_ratio": 2,
    "num_labels": 5,
}
_LEVIT = {
    "image_size": 128,
    "hidden_sizes": [8, 16, 16],
    "depths": [1, 2, 1],
    "num_heads": [2, 1, 3],
    "key_dim": 4,
    "num_labels": 5,
}
_CROSSVIT = {
    "image_size": 48,
    "large_branch_scale": [2, 3],
    "hidden_sizes": [24, 32],
    "depths": [[1, 2], [1, 1]],
    "num_heads": [2, 4],
    "mlp_ratios": [2, 2],
    "num_labels": 5,
}
_T2T = {
    "image_size": 64,
    "token_dim": 8,
    "token_dropout_prob": 0.0,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "mlp_ratio": 2,
    "num_labels": 5,
}
_PVT = {
    "image_size": 32,
    "hidden_sizes": [16, 32],
    "depths": [1, 2],
    "num_heads": [1, 2],
    "mlp_ratios": [2, 2],
    "sr_ratios": [2, 1],
    "num_labels": 5,
}
_NEST = {
    "image_size": 32,
    "patch_size": 2,
    "block_size": 4,
    "hidden_sizes": [16, 24, 32],
    "depths": [1, 2, 1],
    "num_heads": [2, 2, 4],
    "mlp_ratio": 2,
    "num_labels": 5,
}

_SWIN = {
    "image_size": 32,
    "patch_size": 2,
    "hidden_sizes": [8, 16, 32],
    "depths": [2, 2, 2],
    "num_heads": [2, 2, 4],
    "window_size": 4,
    "mlp_ratio": 2,
    "num_labels": 5,
}
_REGIONVIT = {
    "image_size": 48,
    "hidden_sizes": [16, 32, 32],
    "depths": [1, 2, 1],
    "num_heads": [2, 2, 4],
    "window_sizes": [3, 3, 3],
    "mlp_ratio": 2,
    "num_labels": 5,
}
_COATNET = {
    "image_size": 64,
    "stem_channels": [8, 16],
    "hidden_sizes": [16, 24, 32],
    "depths": [2, 2, 2],
    "conv_depths": [2, 1, 0],
    "num_heads": [2, 3, 4],
    "mlp_ratio": 2,
    "position_bias_dropout_prob": 0.0,
    "num_labels": 5,
}
_MVIT = {
    "image_size": 32,
    "hidden_sizes": [16, 32],
    "depths": [1, 2],
    "num_heads": [1, 2],
    "kv_strides": [2, 1],
    "kv_kernel_sizes": [3, 3],
    "mlp_ratio": 2,
    "drop_path_rate": 0.0,
    "num_labels": 5,
}
_MVIT_V1 = {
    "use_cls_token": True,
    "position_embedding_type": "absolute",
    "query_pooling": "stage_start",
    "residual_pooling": False,
    "dim_mul_in_att": False,
    "kv_kernel_sizes": [3, 1],
}
_MVIT_CLIP = {"num_frames": 4, "classifier_dropout_prob": 0.0}

# Case to the fields of a tiny configuration. A case is the name of an architecture, or that name, "-" and an option.
TINY: dict[str, dict[str, Any]] = {
    "vit": {**_PLAIN, "representation_size": 24},
    "vit-deit3": {
        **_PLAIN,
        "layer_scale_init_value": 0.1,
        "prefix_position_embeddings": False,
        "position_interpolation": "bicubic",
        "initialization": "trunc_normal",
    },
    "vit-registers": {**_PLAIN, "num_register_tokens": 3, "pooling": "mean", "position_embedding_type": "sincos"},
    "vit-rotary": {
        **_PLAIN,
        "position_embedding_type": "rotary",
        "use_cls_token": False,
        "pooling": "mean",
        "qkv_bias": False,
    },
    "vit-hybrid": {**_PLAIN, "image_size": 64, "resnet_depths": [1, 1], "resnet_width": 32},
    "deit": {**_PLAIN},
    "deit-plain": {**_PLAIN, "distilled": False},
    "cct": {**_CCT},
    "cct-patches": {**_CCT, "num_conv_layers": 0, "kernel_size": 4, "stride": 4, "padding": 0, "pooling": "cls"},
    "cct-sine": {**_CCT, "position_embedding_type": "sine"},
    "rvt": {**_PLAIN, "head_dim": 10},
    "rvt-plain": {**_PLAIN, "head_dim": 16, "query_projection": "linear", "mlp_type": "plain"},
    "pit": {**_PIT, "distilled": True},
    "pit-plain": {**_PIT},
    "convit": {**_PLAIN, "num_hidden_layers": 3, "num_attention_heads": 4, "local_up_to_layer": 2},
    "cait": {**_PLAIN, "class_attention_mlp_ratio": 2, "layer_scale_init_value": 0.1},
    "t2t_vit": {**_T2T},
    "t2t_vit-transformer": {**_T2T, "tokens_type": "transformer"},
    "deepvit": {**_PLAIN, "apply_transform": [False, True]},
    "deepvit-conv": {
        **_PLAIN,
        "patch_embedding_type": "convolutional",
        "apply_transform": [True, False],
        "transform_scale": True,
        "scale_adjustment": 0.5,
    },
    "localvit": {**_PLAIN, "se_reduction": 8},
    "localvit-eca": {**_PLAIN, "channel_attention": "eca", "hidden_act": "relu6"},
    "crossvit": {**_CROSSVIT},
    "crossvit-conv": {**_CROSSVIT, "patch_embedding_type": "convolutional"},
    "timesformer": {**_CLIP},
    "timesformer-joint": {**_CLIP, "attention_type": "joint_space_time"},
    "timesformer-space": {**_CLIP, "attention_type": "space_only"},
    "vivit": {**_VIVIT},
    "vivit-encoder": {**_VIVIT, "attention_type": "factorised_encoder", "num_temporal_layers": 2},
    "vivit-encoder-mean": {
        **_VIVIT,
        "attention_type": "factorised_encoder",
        "pooling": "mean",
        "representation_size": 24,
        "num_temporal_layers": 1,
        "num_temporal_heads": 4,
        "temporal_mlp_ratio": 1,
    },
    "vivit-self": {**_VIVIT, "attention_type": "factorised_self_attention", "pooling": "mean"},
    "vivit-dot": {**_VIVIT, "attention_type": "factorised_dot_product", "pooling": "mean"},
    "xvit": {**_XVIT},
    "xvit-segments": {**_XVIT, "segment_size": 3, "time_embedding_period": 3, "mixing_layers": [1], "shift_div": 4},
    "xvit-mean": {**_XVIT, "temporal_pooling": "mean"},
    "levit": {**_LEVIT},
    "levit-plain": {**_LEVIT, "distilled": False},
    "cvt": {
        "image_size": 32,
        "hidden_sizes": [8, 16, 24],
        "depths": [1, 1, 2],
        "num_heads": [1, 2, 3],
        "mlp_ratio": 2,
        "drop_path_rate": 0.0,
        "num_labels": 5,
    },
    "pvt": {**_PVT},
    "localvit_pvt": {**_PVT, "se_reductions": [8, 16]},
    "localvit_tnt": {
        **_PLAIN,
        "pixel_hidden_size": 6,
        "num_pixel_attention_heads": 2,
        "pixel_mlp_ratio": 2,
        "se_reduction": 8,
    },
    "nest": {**_NEST},
    "nest-multiquery": {**_NEST, "attention_type": "multi_query", "pool_padding": "symmetric"},
    "swin": {**_SWIN},
    "swin-absolute": {
        **_SWIN,
        "use_absolute_embeddings": True,
        "patch_norm": False,
        "qkv_bias": False,
        "qk_scale": 0.3,
    },
    "localvit_swin": {**_SWIN, "se_reductions": [4, 8, 16]},
    "swinv2": {**_SWIN, "pretrained_window_sizes": [2, 0, 0]},
    "swinv2-unbiased": {**_SWIN, "pretrained_window_sizes": [0, 0, 0], "qkv_bias": False},
    "pvt_v2": {**_PVT},
    "pvt_v2-linear": {**_PVT, "linear_attention": True},
    "twins": {**_PVT, "depths": [2, 2], "window_sizes": [3, 3]},
    "twins-pcpvt": {**_PVT, "window_sizes": [3, 3], "attention_pattern": ["global"]},
    "regionvit": {**_REGIONVIT},
    "regionvit-peg": {**_REGIONVIT, "patch_conv_type": "1conv", "peg": True},
    "coatnet": {**_COATNET},
    "coatnet-rw": {
        **_COATNET,
        "conv_act": "silu",
        "pre_norm_act": True,
        "expand_output": False,
        "conv_bias": False,
        "stride_mode": "pool",
        "pool_type": "max",
        "se_position": "before_norm",
        "expand_first": False,
        "position_bias_type": "mlp",
        "position_bias_size": 16,
        "norm_type": "batch",
        "layer_scale_init_value": 0.1,
    },
    "coatnet-next": {
        **_COATNET,
        "conv_layer_type": "convnext",
        "hidden_sizes": [16, 32, 64],
        "num_heads": [2, 4, 8],
        "representation_size": 24,
    },
    "mvit": {**_MVIT},
    "mvit-v1": {**_MVIT, **_MVIT_V1},
    "mvit_video": {**_MVIT, **_MVIT_CLIP},
    "mvit_video-v1": {**_MVIT, **_MVIT_CLIP, **_MVIT_V1, "pool_kernel_frames": 1},
}

# One case an architecture, for checks that cost seconds.
PLAIN_CASES = [case for case in TINY if "-" not in case]
# Those of architectures that take clips, and of all others.
VIDEO_CASES = [case for case in TINY if "num_frames" in TINY[case]]
IMAGE_CASES = [case for case in TINY if case not in VIDEO_CASES]
HEADS = [(case, head) for case in TINY for head in ARCHITECTURES[case.partition("-")[0]].heads]
PLAIN_HEADS = [(case, head) for case, head in HEADS if case in PLAIN_CASES]
TRAINABLE_HEADS = [(case, head) for case, head in HEADS if head.startswith("For")]
# For checks that cost seconds a head: all heads of the first architecture (their code is shared by the others), and of each
# other one the classifier and the backbone, which between them run all that is its own.
COSTLY_HEADS = [
    (case, head)
    for case, head in PLAIN_HEADS
    if case == PLAIN_CASES[0] or head == "Backbone" or head.endswith("Classification")
]


def architecture_of(case: str) -> Architecture:
    """The row of the registry that a case of `TINY` belongs to."""
    return ARCHITECTURES[case.partition("-")[0]]


def classification_head(case: str) -> str:
    """The suffix of the classifier: `"ForImageClassification"` or its counterpart for video."""
    return next(head for head in architecture_of(case).heads if head.endswith("Classification"))


def tiny_config(case: str, **overrides: Any) -> VitfConfig:
    """The tiny configuration of a case of `TINY`, with some fields replaced."""
    return architecture_of(case).config_class(**{**TINY[case], **overrides})


def randomise(model: PreTrainedModel, seed: int = 0) -> PreTrainedModel:
    """Fills every parameter with noise: with zero heads and unit norms, many mistakes pass unnoticed."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator) * 0.2
            is_norm = name.endswith("weight") and "norm" in name
            parameter.copy_(noise + 1 if is_norm else noise)
    return model


def tiny_model(case: str, head: str | None = None, **overrides: Any) -> PreTrainedModel:
    """A tiny model with every parameter random, in evaluation mode; `head` defaults to the classifier."""
    model_class = architecture_of(case).model_class(head or classification_head(case))
    return randomise(model_class(tiny_config(case, **overrides))).eval()


def fresh(model: PreTrainedModel) -> PreTrainedModel:
    """A new model with the same weights that has computed nothing yet, in evaluation mode."""
    config = copy.deepcopy(model.config)
    config._attn_implementation = model.config._attn_implementation
    new = type(model)(config).to(model.dtype)
    new.load_state_dict(model.state_dict())
    return new.eval()


def size_multiple(config: VitfConfig) -> tuple[int, int]:
    """(height, width) in pixels that a size must be a multiple of to fit every stage."""
    return tuple(max(stride[axis] for stride in config.stage_strides) for axis in (0, 1))


def random_pixels(
    config: VitfConfig,
    batch: int = 2,
    size: tuple[int, int] | None = None,
    seed: int = 0,
    num_frames: int | None = None,
) -> torch.Tensor:
    """
    Random (batch, num_channels, height, width), or (batch, num_frames, num_channels, height, width) for a model of clips;
    `size` and `num_frames` default to the configured ones.
    """
    *frames, num_channels, height, width = config.input_shape
    if num_frames is not None:
        frames = [num_frames]
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, *frames, num_channels, *(size or (height, width)), generator=generator)


def random_mask(config: VitfConfig, batch: int = 2, size: tuple[int, int] | None = None) -> torch.Tensor:
    """A boolean mask (batch, patches) that hides two patches of three, for masked image modelling."""
    (rows, columns), (height, width) = config.stage_strides[0], size or pair(config.image_size)
    patches = (height // rows) * (width // columns)
    return (torch.arange(batch * patches) % 3 != 0).view(batch, patches)


def training_inputs(model: PreTrainedModel, batch: int = 2) -> dict[str, torch.Tensor]:
    """Inputs with which a head returns a loss."""
    inputs = {"pixel_values": random_pixels(model.config, batch).to(model.dtype)}
    if type(model).__name__.endswith("Classification"):
        inputs["labels"] = torch.arange(batch) % model.config.num_labels
    else:
        inputs["bool_masked_pos"] = random_mask(model.config, batch)
    return inputs
