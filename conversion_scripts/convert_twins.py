"""Twins-SVT and Twins-PCPVT: the original .pth files, whose names timm keeps."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from ..conversion.convert import (
    Layout,
    Source,
    count_indices,
    fields_from_kwargs,
    has_head,
    ignored,
    make_config,
    one_or_two,
    shape_of,
)
from ..conversion.rules import Rule, find_indices
from ..errors import ConversionError
from ..modeling.configuration_twins import VitfTwinsConfig
from ..modeling.configuration_vitf import pair
from .convert_pvt import PYRAMID_FIXED, PYRAMID_KWARGS, num_labels, pyramid_block_rules, pyramid_shapes

SOURCE = Source("Meituan-AutoML/Twins", "c1ff6714969ad8ef330e75cf97bd310f7488f529", "gvt.py", "apache-2.0")

_BLOCK = "blocks.{s}.{i}."
_QKV = _BLOCK + "attn.qkv.weight"


def _has(config: VitfTwinsConfig, kind: str) -> bool:
    """Whether any layer has this kind of attention: in short stages a pattern does not come to its end."""
    return kind in config.attention_pattern[: max(config.depths)]


def _reduces(config: VitfTwinsConfig) -> bool:
    """Whether any layer reduces its map."""
    pattern = config.attention_pattern
    stages = zip(config.depths, config.sr_ratios, strict=True)
    return any(ratio > 1 and "global" in pattern[:depth] for depth, ratio in stages)


def rules(config: VitfTwinsConfig) -> list[Rule]:
    """The table of the published `.pth` files."""
    table = [
        Rule("patch_embeds.0.proj.*", "embeddings.patch_embeddings.projection.*"),
        Rule("patch_embeds.0.norm.*", "embeddings.patch_embeddings.layernorm.*"),
        Rule("patch_embeds.{s+1}.proj.*", "stages.{s+1}.patch_embeddings.projection.*"),
        Rule("patch_embeds.{s+1}.norm.*", "stages.{s+1}.patch_embeddings.layernorm.*"),
        Rule("pos_block.{s}.proj.0.*", "stages.{s}.position_generator.conv.*"),
        *pyramid_block_rules(_BLOCK, _reduces(config)),
        Rule("norm.*", "layernorm.*"),
        Rule("head.*", "classifier.*"),
    ]
    if not _has(config, "global"):
        table = [rule for rule in table if not {_BLOCK + "attn.q.*", _BLOCK + "attn.kv.*"}.intersection(rule.sources)]
    if _has(config, "local"):
        table.append(Rule(_BLOCK + "attn.qkv.*", "stages.{s}.layers.{i}.attention.qkv.*"))
    return table


def _window_sizes(sizes: list[int] | None) -> dict[str, Any]:
    """The argument `wss`, which timm has for Twins-PCPVT as well: None."""
    return {} if sizes is None else {"window_sizes": list(sizes)}


_KWARGS = {
    **PYRAMID_KWARGS,
    "wss": _window_sizes,
    "block_cls": ignored,  # the weights tell it
}


def config_from_original(
    kwargs: Mapping[str, Any], state_dict: Mapping[str, Tensor], **overrides: Any
) -> VitfTwinsConfig:
    """
    The configuration of a Twins checkpoint. Numbers of heads and sizes of windows come from `kwargs`, or from the
    published variant with the same shapes.

    Args:
        kwargs: Keyword arguments of `ALTGVT` or `CPVTV2`, or of timm's `Twins`; may be empty.
        state_dict: The checkpoint.
        overrides: Fields that replace what arguments and shapes say.
    """
    stages = range(count_indices("patch_embeds.{s}.proj.weight", state_dict, "s"))
    is_svt = bool(find_indices(_QKV, state_dict))
    first = "blocks.0.0.attn." + ("qkv" if is_svt else "q")
    known = {
        **pyramid_shapes(
            state_dict,
            [f"patch_embeds.{stage}.proj" for stage in stages],
            [f"blocks.{stage}.{{i}}." for stage in stages],
            "attn.sr",
        ),
        "patch_size": one_or_two(shape_of("patch_embeds.0.proj.weight", state_dict, 4)[2:]),
        "attention_pattern": ["local", "global"] if is_svt else ["global"],
        "qkv_bias": f"{first}.bias" in state_dict,
        **num_labels("head", state_dict),
    }
    given = fields_from_kwargs(kwargs, _KWARGS, {**PYRAMID_FIXED, "global_pool": ("avg",)})
    ask_for = {"num_heads": f"{first}.weight", **({"window_sizes": f"{first}.weight"} if is_svt else {})}
    return make_config(VitfTwinsConfig, known, given, ask_for=ask_for, **overrides)


def _timm_native(model: PreTrainedModel) -> dict[str, Any]:
    config = model.config
    held = {"hidden_act": "gelu", "layer_norm_eps": 1e-6, "conv_norm_eps": 1e-5, "qkv_bias": True}
    for name, value in held.items():
        if getattr(config, name) != value:
            raise ConversionError(f"timm's Twins is {name}={value!r}, not {getattr(config, name)!r}")
    patterns = {("local", "global"): "twins_svt_small", ("global",): "twins_pcpvt_small"}
    pattern = tuple(config.attention_pattern)
    if pattern not in patterns or len(set(pair(config.patch_size))) > 1:
        raise ConversionError(
            f"timm's Twins has square patches and the patterns {list(map(list, patterns))}, not "
            f"patch_size={config.patch_size} with attention_pattern={config.attention_pattern}"
        )
    return {
        "architecture": patterns[pattern],
        "model_args": {
            "img_size": one_or_two(config.image_size),
            "patch_size": pair(config.patch_size)[0],
            "in_chans": config.num_channels,
            "num_classes": config.num_labels if has_head(model) else 0,
            "embed_dims": config.hidden_sizes,
            "num_heads": config.num_heads,
            "mlp_ratios": config.mlp_ratios,
            "depths": config.depths,
            "sr_ratios": config.sr_ratios,
            "wss": config.window_sizes if "local" in pattern else None,
        },
    }


_REQUIRES = ("patch_embeds.{s}.proj.weight", "pos_block.{s}.proj.0.weight", _BLOCK + "attn.proj.weight")
LAYOUTS = {
    "original": Layout(rules=rules, config=config_from_original, requires=_REQUIRES, suffix=".pth"),
    "timm": Layout(rules=rules, config=config_from_original, requires=_REQUIRES, native_config=_timm_native),
}
