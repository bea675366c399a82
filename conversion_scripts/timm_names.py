"""
What timm's ViT, DeiT (timm 0.3.2 inside), DeiT III and their descendants name alike, and what shapes under those names
tell.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from ..conversion.convert import (
    common_size,
    count_indices,
    has_head,
    layer_norm_eps,
    one_or_two,
    shape_of,
    square_image,
)
from ..conversion.rules import Rule
from ..errors import ConversionError


def timm_block_rules(source: str, target: str) -> list[Rule]:
    """The rules of a layer, whose names begin with `source` there and with `target` here."""
    return [
        Rule(source + "norm1.*", target + "layernorm_before.*"),
        Rule(source + "attn.qkv.*", target + "attention.qkv.*"),
        Rule(source + "attn.proj.*", target + "attention.proj.*"),
        Rule(source + "norm2.*", target + "layernorm_after.*"),
        Rule(source + "mlp.fc1.*", target + "mlp.fc1.*"),
        Rule(source + "mlp.fc2.*", target + "mlp.fc2.*"),
    ]


def timm_rules(*left_out: str) -> list[Rule]:
    """
    What timm's ViT, DeiT (timm 0.3.2 inside) and DeiT III name alike: patches, layers, last norm and head.

    Args:
        left_out: Sources that an architecture does not have, or names otherwise.
    """
    table = [
        Rule("cls_token", "embeddings.cls_token"),
        Rule("pos_embed", "embeddings.position_embeddings.weight"),
        Rule("patch_embed.proj.*", "embeddings.patch_embeddings.projection.*"),
        *timm_block_rules("blocks.{i}.", "layers.{i}."),
        Rule("norm.*", "layernorm.*"),
        Rule("head.*", "classifier.*"),
    ]
    return [rule for rule in table if rule.sources[0] not in left_out]


def timm_shapes(state_dict: Mapping[str, Tensor], num_prefix_rows: tuple[int, ...]) -> dict[str, Any]:
    """
    The fields that shapes tell under timm's names.

    Args:
        num_prefix_rows: Numbers of rows of the position table that may precede the patches'; none if there is no table.
    """
    _, channels, *patch_size = shape_of("patch_embed.proj.weight", state_dict, 4)
    width = common_size({"patch_embed.proj.weight": 0, "patch_embed.proj.bias": 0, "norm.weight": 0}, state_dict)
    mlp = {"blocks.0.mlp.fc1.weight": 0, "blocks.0.mlp.fc1.bias": 0, "blocks.0.mlp.fc2.weight": 1}
    known = {
        "patch_size": tuple(patch_size),
        "num_channels": channels,
        "hidden_size": width,
        "num_hidden_layers": count_indices("blocks.{i}.norm1.weight", state_dict),
        "mlp_ratio": common_size(mlp, state_dict) / width,
        "qkv_bias": "blocks.0.attn.qkv.bias" in state_dict,
    }
    if "head.weight" in state_dict:
        known["num_labels"] = common_size({"head.weight": 0, "head.bias": 0}, state_dict)
    positions = shape_of("pos_embed", state_dict, 3)[1] if num_prefix_rows else 0
    images = (square_image(positions - rows, patch_size) for rows in num_prefix_rows)
    if image := next(filter(None, images), None):
        known["image_size"] = image
    return known


# Activation to timm's name of it.
_TIMM_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "silu": "silu",
}


def _timm_activation(name: str | None) -> dict[str, str]:
    names = {theirs: ours for ours, theirs in _TIMM_ACTIVATIONS.items()}
    if name is not None and name not in names:
        raise ConversionError(f"original argument act_layer={name!r} is not supported, only {list(names)}", "act_layer")
    return {} if name is None else {"hidden_act": names[name]}


def timm_activation_name(hidden_act: str) -> str:
    """timm's name of an activation. ConversionError for one that it is not known to have."""
    if hidden_act not in _TIMM_ACTIVATIONS:
        raise ConversionError(
            f"timm's config.json cannot say hidden_act={hidden_act!r}, only {' or '.join(_TIMM_ACTIVATIONS)}; convert "
            f"with --set to change it",
            "hidden_act",
        )
    return _TIMM_ACTIVATIONS[hidden_act]


def image_size_of(size: int | Sequence[int]) -> int | tuple[int, ...]:
    """
    A size as timm's constructors take it; DINO's takes a list of one (facebookresearch/dino@7c446df
    vision_transformer.py).
    """
    if isinstance(size, int):
        return size
    return size[0] if len(size) == 1 else tuple(size)


# Arguments of timm's constructors, 0.3.2 as in DeiT and 1.0, and of models_v2.py. A model without classes has no head.
TIMM_KWARGS = {
    "img_size": lambda size: {"image_size": image_size_of(size)},
    "patch_size": "patch_size",
    "in_chans": "num_channels",
    "num_classes": lambda number: {"num_labels": number} if number else {},
    "embed_dim": "hidden_size",
    "depth": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "mlp_ratio": "mlp_ratio",
    "qkv_bias": "qkv_bias",
    "drop_rate": "hidden_dropout_prob",
    "attn_drop_rate": "attention_probs_dropout_prob",
    "drop_path_rate": "drop_path_rate",
    "norm_layer": layer_norm_eps,
    "act_layer": _timm_activation,
}
# What shapes under timm's names leave open, and where.
TIMM_OPEN = {"image_size": "pos_embed", "num_attention_heads": "blocks.0.attn.qkv.weight"}
TIMM_FIXED = {"qk_scale": (None,), "hybrid_backbone": (None,)}


def timm_native_fields(model: PreTrainedModel) -> dict[str, Any]:
    """The arguments of timm 1.0's VisionTransformer that ViT and DeiT have in common."""
    config = model.config
    if config.hidden_act not in _TIMM_ACTIVATIONS or config.layer_norm_eps != 1e-6:
        raise ConversionError(
            f"timm's config.json cannot say hidden_act={config.hidden_act!r} with "
            f"layer_norm_eps={config.layer_norm_eps}, "
            f"only {' or '.join(_TIMM_ACTIVATIONS)} with 1e-06; convert with --set to change them"
        )
    return {
        "img_size": one_or_two(config.image_size),
        "patch_size": one_or_two(config.patch_size),
        "in_chans": config.num_channels,
        "num_classes": config.num_labels if has_head(model) else 0,
        "embed_dim": config.hidden_size,
        "depth": config.num_hidden_layers,
        "num_heads": config.num_attention_heads,
        "mlp_ratio": config.mlp_ratio,
        "qkv_bias": config.qkv_bias,
        "act_layer": _TIMM_ACTIVATIONS[config.hidden_act],
    }
