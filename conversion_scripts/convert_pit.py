"""PiT, plain and distilled: the original .pth files, and timm's, which number the poolings otherwise."""

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
    make_config,
    one_or_two,
    shape_of,
)
from ..conversion.rules import Permute, Reshape, Rule
from ..errors import ConversionError
from ..modeling.configuration_pit import VitfPitConfig
from ..modeling.configuration_vitf import pair

SOURCE = Source("naver-ai/pit", "9d97a62e6a2a72a86685003998fcae700f952e18", "pit.py", "apache-2.0")


def _rules(config: VitfPitConfig, pool: str) -> list[Rule]:
    width, grid = config.stage_channels[0], config.feature_map_sizes(*pair(config.image_size))[0]
    block, layer = "transformers.{s}.blocks.{i}.", "stages.{s}.layers.{i}."
    table = [
        Rule("cls_token", "embeddings.prefix_tokens"),
        # A map there, a table of tokens here.
        Rule(
            "pos_embed",
            "embeddings.position_embeddings.weight",
            Reshape((1, width, *grid), (1, width, grid[0] * grid[1])),
            Permute(0, 2, 1),
        ),
        Rule("patch_embed.conv.*", "embeddings.patch_embeddings.projection.*"),
        Rule(pool + "conv.*", "stages.{s+1}.pool.conv.*"),
        Rule(pool + "fc.*", "stages.{s+1}.pool.fc.*"),
        Rule(block + "norm1.*", layer + "layernorm_before.*"),
        Rule(block + "attn.qkv.*", layer + "attention.qkv.*"),
        Rule(block + "attn.proj.*", layer + "attention.proj.*"),
        Rule(block + "norm2.*", layer + "layernorm_after.*"),
        Rule(block + "mlp.fc1.*", layer + "mlp.fc1.*"),
        Rule(block + "mlp.fc2.*", layer + "mlp.fc2.*"),
        Rule("norm.*", "layernorm.*"),
        Rule("head.*", "classifier.*"),
    ]
    if config.distilled:
        table.append(Rule("head_dist.*", "distillation_classifier.*"))
    return table


def rules(config: VitfPitConfig) -> list[Rule]:
    """The table of the published `.pth` files."""
    return _rules(config, "pools.{s}.")


def timm_rules(config: VitfPitConfig) -> list[Rule]:
    """The table of timm 1.0's PoolingVisionTransformer, where a stage holds the pooling before it."""
    return _rules(config, "transformers.{s+1}.pool.")


# Arguments of `PoolingTransformer` in pit.py, and of timm's class where it names them otherwise.
_KWARGS = {
    "image_size": "image_size",
    "img_size": "image_size",
    "patch_size": "patch_size",
    "stride": "stride",
    "base_dims": "base_dims",
    "depth": "depths",
    "heads": "num_heads",
    "mlp_ratio": "mlp_ratio",
    "num_classes": "num_labels",
    "in_chans": "num_channels",
    "distilled": "distilled",
    "drop_rate": "hidden_dropout_prob",
    "attn_drop_rate": "attention_probs_dropout_prob",
    "drop_path_rate": "drop_path_rate",
}


def config_from_original(
    kwargs: Mapping[str, Any], state_dict: Mapping[str, Tensor], **overrides: Any
) -> VitfPitConfig:
    """
    The configuration of a PiT checkpoint. Numbers of heads and the distance of patches come from `kwargs`, or from the
    published variant with the same widths.

    Args:
        kwargs: Keyword arguments of `PoolingTransformer`, or of timm's `PoolingVisionTransformer`; may be empty.
        state_dict: The checkpoint.
        overrides: Fields that replace what arguments and shapes say.
    """
    _, channels, *patch_size = shape_of("patch_embed.conv.weight", state_dict, 4)
    stages = range(count_indices("transformers.{s}.blocks.{i}.norm1.weight", state_dict, "s"))
    widths = [
        common_size(
            {f"transformers.{s}.blocks.0.{key}": 0 for key in ("norm1.weight", "norm2.weight", "attn.proj.bias")},
            state_dict,
        )
        for s in stages
    ]
    mlp = {f"transformers.0.blocks.0.mlp.{key}": 0 for key in ("fc1.weight", "fc1.bias")}
    known = {
        "distilled": shape_of("cls_token", state_dict, 3)[1] == 2,
        "patch_size": one_or_two(patch_size),
        "num_channels": channels,
        "depths": [count_indices(f"transformers.{s}.blocks.{{i}}.norm1.weight", state_dict) for s in stages],
        "mlp_ratio": common_size({**mlp, "transformers.0.blocks.0.mlp.fc2.weight": 1}, state_dict) / widths[0],
    }
    if "head.weight" in state_dict:
        known["num_labels"] = common_size({"head.weight": 0, "head.bias": 0}, state_dict)
    for variant in map(VitfPitConfig.from_variant, VitfPitConfig.VARIANTS):
        if [variant.patch_size, variant.stage_channels[1:]] == [known["patch_size"], widths]:
            known |= {"stride": variant.stride, "num_heads": variant.num_heads}
    fixed = {"stem_type": ("overlap",), "global_pool": ("token",)}
    given = {**fields_from_kwargs(kwargs, _KWARGS, fixed), **overrides}
    if "base_dims" in given and "num_heads" not in given:
        known["num_heads"] = [width // dim for width, dim in zip(widths, given["base_dims"], strict=True)]
    for name, key in {"stride": "pos_embed", "num_heads": "transformers.0.blocks.0.attn.qkv.weight"}.items():
        if name not in known and name not in given:
            raise ConversionError(f"{name} is not told by the checkpoint (key {key!r}); give it, as {name}=...", key)
    told = {**known, **given}
    grid, patch, stride = shape_of("pos_embed", state_dict, 4)[2:], pair(told["patch_size"]), pair(told["stride"])
    shapes = {
        "base_dims": [width // heads for width, heads in zip(widths, told["num_heads"], strict=True)],
        "image_size": one_or_two([(n - 1) * s + p for n, s, p in zip(grid, stride, patch, strict=True)]),
    }
    return make_config(VitfPitConfig, shapes, known, given)


def _timm_native(model: PreTrainedModel) -> dict[str, Any]:
    config = model.config
    if config.hidden_act != "gelu" or config.layer_norm_eps != 1e-6:
        raise ConversionError(
            f"timm's PiT is hidden_act='gelu' with layer_norm_eps=1e-06, not {config.hidden_act!r} with "
            f"{config.layer_norm_eps}"
        )
    if pair(config.stride)[0] != pair(config.stride)[1]:
        raise ConversionError(f"timm's PiT has one stride for rows and columns, not {config.stride}")
    return {
        "architecture": "pit_s_distilled_224" if config.distilled else "pit_s_224",
        "model_args": {
            "img_size": one_or_two(config.image_size),
            "patch_size": one_or_two(config.patch_size),
            "stride": one_or_two(config.stride),
            "base_dims": config.base_dims,
            "depth": config.depths,
            "heads": config.num_heads,
            "mlp_ratio": config.mlp_ratio,
            "in_chans": config.num_channels,
            "num_classes": config.num_labels if has_head(model) else 0,
            "distilled": config.distilled,
        },
    }


_REQUIRES = ("patch_embed.conv.weight", "pos_embed", "transformers.{s}.blocks.{i}.attn.qkv.weight")
LAYOUTS = {
    "original": Layout(
        rules=rules, config=config_from_original, requires=(*_REQUIRES, "pools.{s}.conv.weight"), suffix=".pth"
    ),
    "timm": Layout(
        rules=timm_rules,
        config=config_from_original,
        requires=(*_REQUIRES, "transformers.{s+1}.pool.conv.weight"),
        native_config=_timm_native,
    ),
}
