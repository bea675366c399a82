"""PVT v2: the original .pth files, timm's, and transformers' own PVT v2."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, PvtV2Config

from ..conversion.convert import (
    Layout,
    Source,
    count_indices,
    fields_from_kwargs,
    has_head,
    ignored,
    make_config,
    shape_of,
)
from ..conversion.rules import Rule
from ..errors import ConversionError
from ..modeling.configuration_pvt_v2 import VitfPvtV2Config
from ..modeling.configuration_vitf import pair
from .convert_pvt import (
    ORIGINAL_NAMES,
    PYRAMID_FIXED,
    PYRAMID_KWARGS,
    TRANSFORMERS_NAMES,
    num_labels,
    pyramid_block_rules,
    pyramid_shapes,
    transformers_block_rules,
    transformers_pyramid_fields,
    transformers_pyramid_native,
)
from .transformers_names import native_class

SOURCE = Source("whai362/PVT", "57e2dfaa5a46f9050d76f306a4fcd9a7c061f520", "classification/pvt_v2.py", "apache-2.0")


def _reduces(config: VitfPvtV2Config) -> bool:
    return config.linear_attention or max(config.sr_ratios) > 1


def _embedding_rules(first: str, later: str, conv: str, norm: str) -> list[Rule]:
    """The prefixes of the layers that make the tokens of the first stage, and of those after it."""
    stem, stage = "embeddings.patch_embeddings.", "stages.{s+1}.patch_embeddings."
    return [
        Rule(f"{first}{conv}.*", stem + "projection.*"),
        Rule(f"{first}{norm}.*", stem + "layernorm.*"),
        Rule(f"{later}{conv}.*", stage + "projection.*"),
        Rule(f"{later}{norm}.*", stage + "layernorm.*"),
    ]


def rules(config: VitfPvtV2Config) -> list[Rule]:
    """The table of the published `.pth` files."""
    block = "block{s+1}.{i}."
    return [
        *_embedding_rules("patch_embed1.", "patch_embed{s+2}.", "proj", "norm"),
        *pyramid_block_rules(block, _reduces(config)),
        Rule(block + "mlp.dwconv.dwconv.*", "stages.{s}.layers.{i}.mlp.depthwise.*"),
        Rule("norm{s+1}.*", "stages.{s}.layernorm.*"),
        Rule("head.*", "classifier.*"),
    ]


def timm_rules(config: VitfPvtV2Config) -> list[Rule]:
    """The table of timm 1.0's PyramidVisionTransformerV2."""
    block = "stages.{s}.blocks.{i}."
    return [
        *_embedding_rules("patch_embed.", "stages.{s+1}.downsample.", "proj", "norm"),
        *pyramid_block_rules(block, _reduces(config)),
        Rule(block + "mlp.dwconv.*", "stages.{s}.layers.{i}.mlp.depthwise.*"),
        Rule("stages.{s}.norm.*", "stages.{s}.layernorm.*"),
        Rule("head.*", "classifier.*"),
    ]


_NATIVE_STAGE = "encoder.layers.{s}."
_NATIVE_BLOCK = _NATIVE_STAGE + "blocks.{i}."


def transformers_rules(config: VitfPvtV2Config) -> list[Rule]:
    """The table of transformers' PvtV2Model."""
    names = {"qkv": "attention.", "proj": "attention.proj", "reduction": "spatial_reduction"}
    return [
        *_embedding_rules(
            "encoder.layers.0.patch_embedding.", "encoder.layers.{s+1}.patch_embedding.", "proj", "layer_norm"
        ),
        *transformers_block_rules(_NATIVE_BLOCK, _reduces(config), names),
        Rule(_NATIVE_BLOCK + "mlp.dwconv.dwconv.*", "stages.{s}.layers.{i}.mlp.depthwise.*"),
        Rule(_NATIVE_STAGE + "layer_norm.*", "stages.{s}.layernorm.*"),
        Rule("classifier.*", "classifier.*"),
    ]


def _shapes(
    state_dict: Mapping[str, Tensor],
    embeddings: Sequence[str],
    blocks: Sequence[str],
    reduction: str,
    query: str,
    names: Mapping[str, str],
) -> dict[str, Any]:
    """The fields that shapes tell; with linear attention, that is a reduction of one token to one, not `sr_ratios`."""
    known = pyramid_shapes(state_dict, embeddings, blocks, reduction, names)
    kernel = shape_of(embeddings[0] + ".weight", state_dict, 4)[2:]
    known |= {
        "patch_size": [(side + 1) // 2 for side in kernel],
        "qkv_bias": f"{blocks[0].format(i=0)}{query}.bias" in state_dict,
        "linear_attention": f"{blocks[-1].format(i=0)}{reduction}.weight" in state_dict and known["sr_ratios"][-1] == 1,
    }
    if known["patch_size"][0] == known["patch_size"][1]:
        known["patch_size"] = known["patch_size"][0]
    if known["linear_attention"]:
        del known["sr_ratios"]
    return known


def config_from_original(
    kwargs: Mapping[str, Any], state_dict: Mapping[str, Tensor], **overrides: Any
) -> VitfPvtV2Config:
    """
    The configuration of a PVT v2 checkpoint. Numbers of heads come from `kwargs`, or from the published variant with
    the same shapes.

    Args:
        kwargs: Keyword arguments of `PyramidVisionTransformerV2`; may be empty.
        state_dict: The checkpoint.
        overrides: Fields that replace what arguments and shapes say.
    """
    stages = range(1, count_indices("patch_embed{s+1}.proj.weight", state_dict, "s") + 1)
    known = {
        **_shapes(
            state_dict,
            [f"patch_embed{stage}.proj" for stage in stages],
            [f"block{stage}.{{i}}." for stage in stages],
            "attn.sr",
            "attn.q",
            ORIGINAL_NAMES,
        ),
        **num_labels("head", state_dict),
    }
    # The original takes its patch size from nowhere but the code.
    names = {**PYRAMID_KWARGS, "patch_size": ignored, "linear": "linear_attention"}
    given = fields_from_kwargs(kwargs, names, PYRAMID_FIXED)
    return make_config(VitfPvtV2Config, known, given, ask_for={"num_heads": "block1.0.attn.q.weight"}, **overrides)


def timm_config(kwargs: Mapping[str, Any], state_dict: Mapping[str, Tensor], **overrides: Any) -> VitfPvtV2Config:
    """The configuration of a timm PVT v2; `kwargs` are those of `PyramidVisionTransformerV2`."""
    stages = range(count_indices("stages.{s}.norm.weight", state_dict, "s"))
    known = {
        **_shapes(
            state_dict,
            [f"stages.{stage}.downsample.proj" if stage else "patch_embed.proj" for stage in stages],
            [f"stages.{stage}.blocks.{{i}}." for stage in stages],
            "attn.sr",
            "attn.q",
            ORIGINAL_NAMES,
        ),
        **num_labels("head", state_dict),
    }
    names = {**PYRAMID_KWARGS, "linear": "linear_attention"}
    given = fields_from_kwargs(kwargs, names, {"global_pool": ("avg",)})
    ask_for = {"num_heads": "stages.0.blocks.0.attn.q.weight"}
    return make_config(VitfPvtV2Config, known, given, ask_for=ask_for, **overrides)


def transformers_config(
    kwargs: Mapping[str, Any], state_dict: Mapping[str, Tensor], **overrides: Any
) -> VitfPvtV2Config:
    """The configuration of transformers' own PVT v2; `kwargs` is its config.json."""
    stages = range(count_indices(_NATIVE_STAGE + "layer_norm.weight", state_dict, "s"))
    known = {
        **_shapes(
            state_dict,
            [f"encoder.layers.{stage}.patch_embedding.proj" for stage in stages],
            [f"encoder.layers.{stage}.blocks.{{i}}." for stage in stages],
            "attention.spatial_reduction",
            "attention.query",
            TRANSFORMERS_NAMES,
        ),
        **transformers_pyramid_fields(kwargs, state_dict),
    }
    if "image_size" in kwargs:
        known["image_size"] = kwargs["image_size"]
    # Padding is half the kernel in both; here the kernel of the first stage follows from its stride, and later ones are
    # 3.
    first = pair(known["patch_size"])[0]
    told = {"patch_sizes": [2 * first - 1, *(3 for _ in stages[1:])], "strides": [first, *(2 for _ in stages[1:])]}
    for name, values in told.items():
        if name in kwargs and list(kwargs[name]) != values:
            raise ConversionError(f"config.json: {name}={kwargs[name]} is not supported, only {values}", name)
    ask_for = {"num_heads": "encoder.layers.0.blocks.0.attention.query.weight"}
    return make_config(VitfPvtV2Config, known, ask_for=ask_for, **overrides)


def _transformers_native(model: PreTrainedModel) -> dict[str, Any]:
    config = model.config
    if len(set(pair(config.patch_size))) > 1:
        raise ConversionError(f"transformers' PVT v2 has only square patches, not patch_size={config.patch_size}")
    return PvtV2Config(
        **transformers_pyramid_native(config, "transformers' PVT v2"),
        patch_sizes=[2 * pair(config.patch_size)[0] - 1, *(3 for _ in config.depths[1:])],
        sr_ratios=config.sr_ratios,
        linear_attention=config.linear_attention,
        architectures=[native_class(model, "PvtV2", ("Model", "ForImageClassification"))],
    ).to_diff_dict()


def _timm_native(model: PreTrainedModel) -> dict[str, Any]:
    config = model.config
    held = {"patch_size": 4, "hidden_act": "gelu", "layer_norm_eps": 1e-6, "conv_norm_eps": 1e-5}
    for name, value in held.items():
        own = getattr(config, name)
        if own != value and (name != "patch_size" or pair(own) != pair(value)):
            raise ConversionError(f"timm's PVT v2 is {name}={value!r}, not {own!r}")
    return {
        "architecture": "pvt_v2_b2_li" if config.linear_attention else "pvt_v2_b2",
        "model_args": {
            "in_chans": config.num_channels,
            "num_classes": config.num_labels if has_head(model) else 0,
            "depths": config.depths,
            "embed_dims": config.hidden_sizes,
            "num_heads": config.num_heads,
            "sr_ratios": config.sr_ratios,
            "mlp_ratios": config.mlp_ratios,
            "qkv_bias": config.qkv_bias,
            "linear": config.linear_attention,
        },
    }


LAYOUTS = {
    "original": Layout(
        rules=rules,
        config=config_from_original,
        requires=("patch_embed{s+1}.proj.weight", "norm{s+1}.weight", "block{s+1}.{i}.mlp.dwconv.dwconv.weight"),
        suffix=".pth",
    ),
    "timm": Layout(
        rules=timm_rules,
        config=timm_config,
        requires=("patch_embed.proj.weight", "stages.{s}.norm.weight", "stages.{s}.blocks.{i}.mlp.dwconv.weight"),
        native_config=_timm_native,
    ),
    "transformers": Layout(
        rules=transformers_rules,
        config=transformers_config,
        requires=(_NATIVE_STAGE + "patch_embedding.proj.weight", _NATIVE_BLOCK + "mlp.dwconv.dwconv.weight"),
        prefix="pvt_v2.",
        native_config=_transformers_native,
    ),
}
