"""T2T-ViT: the original .pth.tar files, with performer and with transformer token modules."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..conversion.convert import (
    Layout,
    Source,
    count_indices,
    fields_from_kwargs,
    make_config,
    shape_of,
    square_image,
)
from ..conversion.rules import Rule
from ..modeling.configuration_t2t_vit import VitfT2tVitConfig
from .timm_names import timm_rules

SOURCE = Source(
    "yitu-opensource/T2T-ViT",
    "0f63dc9558f4d192de926504dbddfa1b3f5db6ca",
    "models/t2t_vit.py, models/token_performer.py, models/token_transformer.py",
    "bsd-3-clause-clear",
)

# Inside a token module: name in the file to ours, by the type of the module.
_TOKEN_LAYER = {
    "performer": {
        "kqv.*": "attention.kqv.*",
        "proj.*": "attention.proj.*",
        "w": "attention.random_features",
        "mlp.0.*": "mlp.fc1.*",
        "mlp.2.*": "mlp.fc2.*",
    },
    "transformer": {
        "attn.qkv.weight": "attention.qkv.weight",
        "attn.proj.*": "attention.proj.*",
        "mlp.fc1.*": "mlp.fc1.*",
        "mlp.fc2.*": "mlp.fc2.*",
    },
}
_TOKEN_NORMS = {"norm1.*": "layernorm_before.*", "norm2.*": "layernorm_after.*"}


def rules(config: VitfT2tVitConfig) -> list[Rule]:
    """The table of the published `.pth.tar` files."""
    module, token_layer = "tokens_to_token.attention{n+1}.", "embeddings.patch_embeddings.layers.{n}."
    names = {**_TOKEN_NORMS, **_TOKEN_LAYER[config.tokens_type]}
    return [
        *(Rule(module + theirs, token_layer + ours) for theirs, ours in names.items()),
        Rule("tokens_to_token.project.*", "embeddings.patch_embeddings.projection.*"),
        *timm_rules("patch_embed.proj.*"),
    ]


_KWARGS = {
    "img_size": "image_size",
    "tokens_type": "tokens_type",
    "in_chans": "num_channels",
    "num_classes": "num_labels",
    "embed_dim": "hidden_size",
    "depth": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "mlp_ratio": "mlp_ratio",
    "qkv_bias": "qkv_bias",
    "drop_rate": "hidden_dropout_prob",
    "attn_drop_rate": "attention_probs_dropout_prob",
    "drop_path_rate": "drop_path_rate",
    "token_dim": "token_dim",
}


def config_from_original(
    kwargs: Mapping[str, Any], state_dict: Mapping[str, Tensor], **overrides: Any
) -> VitfT2tVitConfig:
    """
    The configuration of a T2T-ViT checkpoint. The number of heads comes from `kwargs`, or from the published variant
    with the same shapes.

    Args:
        kwargs: Keyword arguments of `T2T_ViT`; may be empty.
        state_dict: The checkpoint.
        overrides: Fields that replace what arguments and shapes say.
    """
    first = "tokens_to_token.attention1."
    performer = first + "kqv.weight" in state_dict
    width = shape_of("norm.weight", state_dict, 1)[0]
    known = {
        "tokens_type": "performer" if performer else "transformer",
        "token_dropout_prob": 0.1 if performer else 0.0,
        "token_dim": shape_of(first + "norm2.weight", state_dict, 1)[0],
        "num_channels": shape_of(first + "norm1.weight", state_dict, 1)[0] // 49,
        "hidden_size": width,
        "num_hidden_layers": count_indices("blocks.{i}.norm1.weight", state_dict),
        "mlp_ratio": shape_of("blocks.0.mlp.fc1.weight", state_dict, 2)[0] / width,
        "qkv_bias": "blocks.0.attn.qkv.bias" in state_dict,
    }
    if "head.weight" in state_dict:
        known["num_labels"] = shape_of("head.weight", state_dict, 2)[0]
    if image := square_image(shape_of("pos_embed", state_dict, 3)[1] - 1, 16):
        known["image_size"] = image
    given = fields_from_kwargs(kwargs, _KWARGS, {"qk_scale": (None,), "norm_layer": ("torch.nn.LayerNorm",)})
    ask_for = {"image_size": "pos_embed", "num_attention_heads": "blocks.0.attn.qkv.weight"}
    return make_config(VitfT2tVitConfig, known, given, ask_for=ask_for, **overrides)


LAYOUTS = {
    "original": Layout(
        rules=rules,
        config=config_from_original,
        requires=("tokens_to_token.attention{n+1}.norm1.weight", "tokens_to_token.project.weight", "pos_embed"),
        suffix=".pth",
        wrapper="state_dict_ema",
    ),
}
