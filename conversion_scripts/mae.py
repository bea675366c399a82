"""MAE's own files with encoder and decoder, with timm's names (facebookresearch/mae@efb2a80 models_mae.py)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..conversion.convert import Layout, Source, common_size, count_indices, fields_from_kwargs, shape_of
from ..conversion.rules import Derived, Rule
from ..errors import ConversionError
from ..modeling.configuration_vit import VitfVitConfig
from ..modeling.configuration_vitf import pair
from ..modeling.embeddings import sincos_positions
from .timm_names import timm_block_rules
from .timm_vit import timm_vit_config, timm_vit_rules
from .transformers_vit import PLAIN_VIT

_BLOCKS = "decoder_blocks.{i}."


def _rules(config: VitfVitConfig) -> list[Rule]:
    def positions() -> Tensor:
        grid = config.feature_map_sizes(*pair(config.image_size))[-1]
        table = sincos_positions(config.hidden_size, grid, torch.float32)
        return torch.nn.functional.pad(table, (0, 0, 1, 0))

    table = [
        *timm_vit_rules(config),
        Rule("decoder_embed.*", "decoder.projection.*"),
        Rule("mask_token", "decoder.mask_token"),
        Rule("decoder_pos_embed", "decoder.position_embeddings.weight"),
        *timm_block_rules(_BLOCKS, "decoder.layers.{i}."),
        Rule("decoder_norm.*", "decoder.layernorm.*"),
        Rule("decoder_pred.*", "decoder.prediction.*"),
    ]
    if config.position_embedding_type == "sincos":
        table.append(Derived("pos_embed", positions, like="embeddings.cls_token"))
    return table


_KWARGS = {
    "decoder_embed_dim": "decoder_hidden_size",
    "decoder_depth": "decoder_num_hidden_layers",
    "decoder_num_heads": "decoder_num_attention_heads",
    "norm_pix_loss": "norm_pix_loss",
}


def _config(kwargs: Mapping[str, Any], state_dict: Mapping[str, Tensor], **overrides: Any) -> VitfVitConfig:
    """
    The configuration of a file with a decoder; `kwargs` are those of `MaskedAutoencoderViT`. Nothing in the weights
    tells whether they predict normalised pixels (`norm_pix_loss`), which the published files differ in.
    """
    width = common_size({"decoder_embed.weight": 0, "decoder_norm.weight": 0, "decoder_pred.weight": 1}, state_dict)
    known = {
        "decoder_hidden_size": width,
        "decoder_num_hidden_layers": count_indices(f"{_BLOCKS}norm1.weight", state_dict),
        "decoder_intermediate_size": shape_of(f"{_BLOCKS.format(i=0)}mlp.fc1.weight", state_dict, 2)[0],
    }
    given = fields_from_kwargs({name: value for name, value in kwargs.items() if name in _KWARGS}, _KWARGS)
    fields = {**known, **given, **overrides}
    # All published decoders have the same sizes.
    published = VitfVitConfig()
    if width == published.decoder_hidden_size:
        fields.setdefault("decoder_num_attention_heads", published.decoder_num_attention_heads)
    for name, key, choices in (
        ("decoder_num_attention_heads", f"{_BLOCKS.format(i=0)}attn.qkv.weight", "decoder_num_attention_heads=..."),
        (
            "norm_pix_loss",
            "decoder_pred.weight",
            "norm_pix_loss=true, as the published pre-training, or norm_pix_loss=false, as mae_visualize_*.pth",
        ),
    ):
        if name not in fields:
            raise ConversionError(f"{name} is not told by the checkpoint (key {key!r}); give it, as {choices}", key)
    rest = {name: value for name, value in kwargs.items() if name not in _KWARGS}
    return timm_vit_config(rest, state_dict, **fields)


def _misfit(config: VitfVitConfig) -> str | None:
    if round(config.mlp_ratio * config.decoder_hidden_size) != config.decoder_intermediate_size:
        return (
            f"decoder_intermediate_size={config.decoder_intermediate_size} has no place in it, whose decoder has the "
            f"mlp_ratio={config.mlp_ratio} of the encoder"
        )
    return None


MAE_LAYOUTS = {
    "mae": Layout(
        rules=_rules,
        config=_config,
        requires=(
            *("patch_embed.proj.weight", "blocks.{i}.attn.qkv.weight", "blocks.{i}.mlp.fc1.weight"),
            *("decoder_embed.weight", "decoder_blocks.{i}.attn.qkv.weight", "mask_token"),
        ),
        suffix=".pth",
        wrapper="model",
        holds={
            **PLAIN_VIT,
            "resnet_depths": (None,),
            "drop_incomplete_patches": (False,),
            "use_cls_token": (True,),
            "num_register_tokens": (0,),
            "position_embedding_type": ("learned", "sincos"),
            "prefix_position_embeddings": (True,),
            "layer_scale_init_value": (None,),
            "qkv_bias": (True,),
        },
        computes_with={"hidden_act": ("gelu",), "layer_norm_eps": (1e-6,)},
        fits=_misfit,
        source=Source(
            "facebookresearch/mae", "efb2a8062c206524e35e47d04501ed4f544c0ae8", "models_mae.py", "cc-by-nc-4.0"
        ),
    ),
}
