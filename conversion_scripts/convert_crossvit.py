"""CrossViT: the original .pth files, and timm's, which write the numbers of class tokens and positions otherwise."""

from collections.abc import Mapping
from fractions import Fraction
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
    layer_norm_eps,
    make_config,
    one_or_two,
    shape_of,
    square_image,
)
from ..conversion.rules import Concatenate, Rule
from ..errors import ConversionError
from ..modeling.configuration_crossvit import VitfCrossvitConfig
from ..modeling.configuration_vitf import pair

SOURCE = Source("IBM/CrossViT", "3f7ab77c5728b1c31a2d5cc6185ee9c7e754d952", "models/crossvit.py", "apache-2.0")

_BRANCHES = (0, 1)


def _rules(config: VitfCrossvitConfig, separator: str) -> list[Rule]:
    branch, patches = "embeddings.branches.{b}.", "patch_embed.{b}.proj."
    convolution = "{n}." if config.patch_embedding_type == "convolutional" else ""
    block, layer = "blocks.{s}.blocks.{b}.{i}.", "stages.{s}.layers.{b}.{i}."
    theirs, fusion = "blocks.{s}.fusion.{b}.", "stages.{s}.fusions.{b}."
    into, back = "blocks.{s}.projs.{b}.", "blocks.{s}.revert_projs.{b}."
    return [
        Rule(f"cls_token{separator}{{b}}", branch + "cls_token"),
        Rule(f"pos_embed{separator}{{b}}", branch + "position_embeddings.weight"),
        Rule(f"{patches}{convolution}*", f"{branch}patch_embeddings.projection.{convolution}*"),
        Rule(block + "norm1.*", layer + "layernorm_before.*"),
        Rule(block + "attn.qkv.*", layer + "attention.qkv.*"),
        Rule(block + "attn.proj.*", layer + "attention.proj.*"),
        Rule(block + "norm2.*", layer + "layernorm_after.*"),
        Rule(block + "mlp.fc1.*", layer + "mlp.fc1.*"),
        Rule(block + "mlp.fc2.*", layer + "mlp.fc2.*"),
        Rule(into + "0.*", fusion + "into.layernorm.*"),
        Rule(into + "2.*", fusion + "into.linear.*"),
        Rule(theirs + "norm1.*", fusion + "layernorm.*"),
        Rule(theirs + "attn.wq.*", fusion + "attention.query.*"),
        Rule((theirs + "attn.wk.*", theirs + "attn.wv.*"), fusion + "attention.key_value.*", Concatenate(2)),
        Rule(theirs + "attn.proj.*", fusion + "attention.proj.*"),
        Rule(back + "0.*", fusion + "back.layernorm.*"),
        Rule(back + "2.*", fusion + "back.linear.*"),
        Rule("norm.0.*", "layernorm.*"),
        Rule("norm.1.*", "large_layernorm.*"),
        Rule("head.{b}.*", "classifier.heads.{b}.*"),
    ]


def rules(config: VitfCrossvitConfig) -> list[Rule]:
    """The table of the published `.pth` files."""
    return _rules(config, ".")


def timm_rules(config: VitfCrossvitConfig) -> list[Rule]:
    """The table of timm 1.0's CrossVit."""
    return _rules(config, "_")


def _depths(depth: list[list[int]]) -> dict[str, Any]:
    if any(stage[-1] for stage in depth):
        raise ConversionError(
            f"original argument depth={depth!r} is not supported: further cross attention in a stage (a last number "
            f"that is not 0) was never published",
            "depth",
        )
    return {"depths": [list(stage[:-1]) for stage in depth]}


# Arguments of `VisionTransformer` in crossvit.py, and of timm's `CrossVit`.
_KWARGS = {
    "patch_size": "patch_sizes",
    "in_chans": "num_channels",
    "num_classes": "num_labels",
    "embed_dim": "hidden_sizes",
    "depth": _depths,
    "num_heads": "num_heads",
    "mlp_ratio": lambda ratios: {"mlp_ratios": list(ratios[:2])},  # the third is of layers that do not exist
    "qkv_bias": "qkv_bias",
    "drop_rate": "hidden_dropout_prob",
    "attn_drop_rate": "attention_probs_dropout_prob",
    "drop_path_rate": "drop_path_rate",
    "norm_layer": layer_norm_eps,
    "multi_conv": lambda convolutional: {"patch_embedding_type": "convolutional" if convolutional else "linear"},
}


def _scale(small: int, large: int) -> list[int]:
    return list(Fraction(large, small).as_integer_ratio())


_ORIGINAL_KWARGS = {
    **_KWARGS,
    "img_size": lambda sizes: {"image_size": sizes[0], "large_branch_scale": _scale(*sizes)},
}
_TIMM_KWARGS = {
    **_KWARGS,
    "img_size": "image_size",
    "img_scale": lambda scales: {
        "large_branch_scale": list(Fraction(scales[1] / scales[0]).limit_denominator(1000).as_integer_ratio())
    },
}
_ORIGINAL_FIXED = {"qk_scale": (None,), "hybrid_backbone": (None,)}
_TIMM_FIXED = {
    "crop_scale": (False,),
    "global_pool": ("token",),
}


def _shapes(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """The fields that shapes tell, but for the sizes of images."""
    convolutional = "patch_embed.0.proj.0.weight" in state_dict
    first = "patch_embed.{b}.proj.0.weight" if convolutional else "patch_embed.{b}.proj.weight"
    widths = [
        common_size({key.format(b=b): 0 for key in ("norm.{b}.weight", "norm.{b}.bias")}, state_dict) for b in _BRANCHES
    ]
    stages = range(count_indices("blocks.{s}.projs.0.0.weight", state_dict, "s"))
    layers = "blocks.{s}.blocks.{b}.{{i}}.norm1.weight"
    fc1, fc2 = "blocks.0.blocks.{b}.0.mlp.fc1.{key}", "blocks.0.blocks.{b}.0.mlp.fc2.weight"
    inner = [
        common_size({fc1.format(b=b, key="weight"): 0, fc1.format(b=b, key="bias"): 0, fc2.format(b=b): 1}, state_dict)
        for b in _BRANCHES
    ]
    known = {
        "input_resizing": "fixed",
        "patch_embedding_type": "convolutional" if convolutional else "linear",
        "num_channels": shape_of(first.format(b=0), state_dict, 4)[1],
        "hidden_sizes": widths,
        "depths": [[count_indices(layers.format(s=s, b=b), state_dict) for b in _BRANCHES] for s in stages],
        "mlp_ratios": [size / width for size, width in zip(inner, widths, strict=True)],
        "qkv_bias": "blocks.0.blocks.0.0.attn.qkv.bias" in state_dict,
    }
    if not convolutional:
        known["patch_sizes"] = [shape_of(first.format(b=b), state_dict, 4)[2] for b in _BRANCHES]
    if "head.0.weight" in state_dict:
        known["num_labels"] = common_size({"head.0.weight": 0, "head.0.bias": 0, "head.1.weight": 0}, state_dict)
    for variant in map(VitfCrossvitConfig.from_variant, VitfCrossvitConfig.VARIANTS):
        if (variant.hidden_sizes, variant.depths) == (widths, known["depths"]):
            known = {"num_heads": variant.num_heads, "patch_sizes": variant.patch_sizes} | known
    return known


def _config(
    known: dict[str, Any], given: Mapping[str, Any], tables: tuple[str, str], state_dict: Mapping[str, Tensor]
) -> VitfCrossvitConfig:
    """The configuration from what shapes tell and what is given; `tables` are the keys of the positions."""
    query = "blocks.0.blocks.0.0.attn.qkv.weight"
    needed = {"num_heads": query, "patch_sizes": "patch_embed.0.proj.0.weight"}
    for name, key in needed.items():
        if name not in known and name not in given:
            raise ConversionError(f"{name} is not told by the checkpoint (key {key!r}); give it, as {name}=...", key)
    patches = given.get("patch_sizes", known.get("patch_sizes"))
    rows = [shape_of(key, state_dict, 3)[1] - 1 for key in tables]
    images = [square_image(count, patch) for count, patch in zip(rows, patches, strict=True)]
    if all(images):
        small, large = images
        known |= {"image_size": small[0], "large_branch_scale": _scale(small[0], large[0])}
    ask_for = dict.fromkeys(("image_size", "large_branch_scale"), tables[0])
    for name, key in ask_for.items():
        if name not in known and name not in given:
            raise ConversionError(f"{name} is not told by the checkpoint (key {key!r}); give it, as {name}=...", key)
    return make_config(VitfCrossvitConfig, known, given)


def config_from_original(
    kwargs: Mapping[str, Any], state_dict: Mapping[str, Tensor], **overrides: Any
) -> VitfCrossvitConfig:
    """
    The configuration of a CrossViT checkpoint. Numbers of heads, and sizes of convolutional patches, come from
    `kwargs`, or from the published variant with the same widths and depths. As the original does, the model resizes
    every image to the configured size; `input_resizing="native"` among the overrides lets it see images as they are.

    Args:
        kwargs: Keyword arguments of `VisionTransformer` in crossvit.py; may be empty.
        state_dict: The checkpoint.
        overrides: Fields that replace what arguments and shapes say.
    """
    given = {**fields_from_kwargs(kwargs, _ORIGINAL_KWARGS, _ORIGINAL_FIXED), **overrides}
    return _config(_shapes(state_dict), given, ("pos_embed.0", "pos_embed.1"), state_dict)


def timm_config(kwargs: Mapping[str, Any], state_dict: Mapping[str, Tensor], **overrides: Any) -> VitfCrossvitConfig:
    """The configuration of a timm CrossViT; `kwargs` are those of timm's `CrossVit`."""
    given = {**fields_from_kwargs(kwargs, _TIMM_KWARGS, _TIMM_FIXED), **overrides}
    return _config(_shapes(state_dict), given, ("pos_embed_0", "pos_embed_1"), state_dict)


def _timm_native(model: PreTrainedModel) -> dict[str, Any]:
    config = model.config
    if config.layer_norm_eps != 1e-6:
        raise ConversionError(f"timm's CrossViT has layer_norm_eps=1e-06, not {config.layer_norm_eps}")
    size = pair(config.image_size)
    large = config.branch_image_size(1, *size)
    # timm cuts fractions of a pixel off: a hair more than the ratio keeps whole pixels whole.
    scale = large[0] / size[0] + 1e-9
    if tuple(int(side * scale) for side in size) != large:
        raise ConversionError(f"timm's CrossViT has no image_size={config.image_size} with a large branch of {large}")
    return {
        "architecture": "crossvit_15_240",
        "model_args": {
            "img_size": one_or_two(size),
            "img_scale": [1.0, scale],
            "patch_size": config.patch_sizes,
            "in_chans": config.num_channels,
            "num_classes": config.num_labels if has_head(model) else 0,
            "embed_dim": config.hidden_sizes,
            "depth": [[*stage, 0] for stage in config.depths],
            "num_heads": config.num_heads,
            "mlp_ratio": [*config.mlp_ratios, 1],
            "qkv_bias": config.qkv_bias,
            "multi_conv": config.patch_embedding_type == "convolutional",
        },
    }


_REQUIRES = ("blocks.{s}.blocks.{b}.{i}.attn.qkv.weight", "blocks.{s}.fusion.{b}.attn.wq.weight")
_HOLDS = {"hidden_act": ("gelu",)}
LAYOUTS = {
    "original": Layout(
        rules=rules,
        config=config_from_original,
        requires=(*_REQUIRES, "cls_token.{b}", "pos_embed.{b}"),
        suffix=".pth",
        holds=_HOLDS,
    ),
    "timm": Layout(
        rules=timm_rules,
        config=timm_config,
        requires=(*_REQUIRES, "cls_token_{b}", "pos_embed_{b}"),
        holds=_HOLDS,
        native_config=_timm_native,
    ),
}
