"""ConViT: the original .pth files, whose names timm keeps."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from ..conversion.convert import (
    Layout,
    Source,
    common_size,
    count_indices,
    fields_from_kwargs,
    has_head,
    ignored,
    make_config,
    one_or_two,
)
from ..conversion.rules import Rule
from ..errors import ConversionError
from ..modeling.configuration_convit import VitfConvitConfig
from .timm_names import TIMM_KWARGS, timm_rules, timm_shapes

SOURCE = Source("facebookresearch/convit", "0a9340aaf50dd101c2d3766e575f24085afc92ed", "convit.py", "apache-2.0")


def rules(config: VitfConvitConfig) -> list[Rule]:
    """The table of the published `.pth` files."""
    gated, target = "blocks.{i}.attn.", "layers.{i}.attention."
    return [
        *timm_rules(*(() if config.position_embedding_type == "learned" else ("pos_embed",))),
        Rule(gated + "qk.*", target + "query_key.*"),
        Rule(gated + "v.*", target + "value.*"),
        Rule(gated + "pos_proj.*", target + "position.*"),
        Rule(gated + "gating_param", target + "gate"),
    ]


def _layer_norm_eps(norm_layer: str) -> dict[str, float]:
    found = re.fullmatch(r"LayerNorm\(eps=([\d.e-]+)\)", norm_layer)
    if found is None:
        raise ConversionError(f"norm_layer={norm_layer!r}: expected 'LayerNorm(eps=...)'", "norm_layer")
    return {"layer_norm_eps": float(found[1])}


_KWARGS = {
    **TIMM_KWARGS,
    "embed_dim": ignored,  # the weights tell it; timm counts it for each head
    "norm_layer": _layer_norm_eps,
    "use_pos_embed": lambda used: {"position_embedding_type": "learned" if used else "none"},
    "local_up_to_layer": "local_up_to_layer",
    "locality_strength": "locality_strength",
}
_FIXED = {
    "qk_scale": (None,),
    "hybrid_backbone": (None,),
    "global_pool": (None, "token"),
}


def config_from_original(
    kwargs: Mapping[str, Any], state_dict: Mapping[str, Tensor], **overrides: Any
) -> VitfConvitConfig:
    """
    The configuration of a ConViT checkpoint. Shapes tell all but the image of a grid that is not square, or that has no
    table of positions.

    Args:
        kwargs: Keyword arguments of `VisionTransformer` in convit.py, or of timm's `ConVit`; may be empty.
        state_dict: The checkpoint.
        overrides: Fields that replace what arguments and shapes say.
    """
    learned = "pos_embed" in state_dict
    gated = {f"blocks.0.attn.{key}": 0 for key in ("gating_param", "pos_proj.weight", "pos_proj.bias")}
    known = {
        **timm_shapes(state_dict, (0,) if learned else ()),
        "position_embedding_type": "learned" if learned else "none",
        "num_attention_heads": common_size(gated, state_dict),
        "local_up_to_layer": count_indices("blocks.{i}.attn.gating_param", state_dict),
        "qkv_bias": "blocks.0.attn.v.bias" in state_dict,
    }
    given = fields_from_kwargs(kwargs, _KWARGS, _FIXED)
    return make_config(
        VitfConvitConfig,
        known,
        given,
        ask_for={"image_size": "pos_embed" if learned else "patch_embed.proj.weight"},
        **overrides,
    )


def _timm_native(model: PreTrainedModel) -> dict[str, Any]:
    config = model.config
    if config.hidden_act != "gelu" or config.layer_norm_eps != 1e-6:
        raise ConversionError(
            f"timm's ConViT is hidden_act='gelu' with layer_norm_eps=1e-06, not {config.hidden_act!r} with "
            f"{config.layer_norm_eps}"
        )
    return {
        "architecture": "convit_base",
        "model_args": {
            "img_size": one_or_two(config.image_size),
            "patch_size": one_or_two(config.patch_size),
            "in_chans": config.num_channels,
            "num_classes": config.num_labels if has_head(model) else 0,
            "embed_dim": config.hidden_size // config.num_attention_heads,
            "depth": config.num_hidden_layers,
            "num_heads": config.num_attention_heads,
            "mlp_ratio": config.mlp_ratio,
            "qkv_bias": config.qkv_bias,
            "local_up_to_layer": config.local_up_to_layer,
            "locality_strength": config.locality_strength,
            "use_pos_embed": config.position_embedding_type == "learned",
        },
    }


_LAYOUT = {
    "rules": rules,
    "config": config_from_original,
    # More than a plain DeiT must have: from the first layer without a gate on, the keys are those of one.
    "requires": (
        "patch_embed.proj.weight",
        *(f"blocks.{{i}}.attn.{key}" for key in ("gating_param", "qk.weight", "v.weight", "pos_proj.weight")),
    ),
}
LAYOUTS = {
    "original": Layout(**_LAYOUT, suffix=".pth"),
    "timm": Layout(**_LAYOUT, native_config=_timm_native),
}
