"""LocalViT on the body of DeiT: the original .pth files."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ..conversion.convert import (
    Layout,
    Source,
    common_size,
    count_indices,
    fields_from_kwargs,
    make_config,
    shape_of,
    square_image,
)
from ..conversion.rules import Rule
from ..errors import ConversionError
from ..modeling.configuration_localvit import VitfLocalvitConfig
from ..modeling.configuration_vitf import VitfConfig
from .timm_names import TIMM_FIXED, TIMM_KWARGS, TIMM_OPEN, timm_rules

COMMIT = "f49726087006ddbd55eb18a40cf6eebca18e2b8e"
SOURCE = Source("ofsoundof/LocalViT", COMMIT, "models/localvit.py", "mit")

# The argument `act`: activation and channel attention of the feed-forward layer.
_ACTIVATIONS = {
    1: {"hidden_act": "relu6", "channel_attention": "none"},
    2: {"hidden_act": "hardswish", "channel_attention": "none"},
    3: {"hidden_act": "hardswish", "channel_attention": "se"},
    4: {"hidden_act": "hardswish", "channel_attention": "eca"},
    5: {"hidden_act": "hardswish", "channel_attention": "eca_hard"},
}
_CONVS = "conv.conv."
# Key to dimension of the channels inside a feed-forward layer, under the names of a block.
INNER = {_CONVS + "0.weight": 0, _CONVS + "1.weight": 0, _CONVS + "3.weight": 0}
# What tells the published `.pth` files from those of the body with its own feed-forward layers, under the names of a
# block.
DEPTHWISE = _CONVS + "3.weight"
# Kind of channel attention to the names of its layers: theirs, ours.
_SE = (("6.fc.0.*", "fc1.*"), ("6.fc.2.*", "fc2.*"))
_ECA = (("6.conv.weight", "conv.weight"),)
_CHANNEL_ATTENTION = {"none": (), "se": _SE, "eca": _ECA, "eca_hard": _ECA}


def with_feed_forward(body: Sequence[Rule], config: VitfConfig, block: str, layer: str) -> list[Rule]:
    """
    The table of a body whose feed-forward layers, and the norms before them, are LocalViT's, which number their steps.

    Args:
        body: The table of the body. block: Pattern of what precedes the names of a block. layer: The same of ours.
    """
    source, target = block + _CONVS, layer + "feed_forward."
    last = 6 if config.channel_attention == "none" else 7
    steps = {0: "expansion", 3: "depthwise", last: "reduction"}
    table = [rule for rule in body if not any(".norm2." in key or ".mlp." in key for key in rule.sources)]
    for number, name in steps.items():
        table += [
            Rule(f"{source}{number}.weight", f"{target}{name}.weight"),
            Rule(f"{source}{number + 1}.*", f"{target}{name}_norm.*"),
        ]
    table += [
        Rule(source + theirs, f"{target}channel_attention.{ours}")
        for theirs, ours in _CHANNEL_ATTENTION[config.channel_attention]
    ]
    return table


def rules(config: VitfLocalvitConfig) -> list[Rule]:
    """The table of the published `.pth` files."""
    return with_feed_forward(timm_rules(), config, "blocks.{i}.", "layers.{i}.")


def _activation(act: int) -> dict[str, str]:
    if act not in _ACTIVATIONS:
        raise ConversionError(f"original argument act={act!r} is not supported, only {list(_ACTIVATIONS)}", "act")
    return _ACTIVATIONS[act]


_KWARGS = {
    **{name: field for name, field in TIMM_KWARGS.items() if name != "act_layer"},
    "act": _activation,
    "reduction": "se_reduction",
}
# Ablations of the paper without a published model.
_FIXED = {**TIMM_FIXED, "wo_dp_conv": (False,), "dp_first": (False,)}


def activation_fields(block: str, state_dict: Mapping[str, Tensor]) -> tuple[dict[str, str], dict[str, str]]:
    """
    What a feed-forward layer tells of activation and channel attention, and the field that it leaves open, with the
    key.

    Args:
        block: What precedes the names of a block.
    """
    convs = block + _CONVS
    if convs + "6.fc.0.weight" in state_dict:
        return _ACTIVATIONS[3], {}
    if convs + "6.conv.weight" in state_dict:
        return {"hidden_act": "hardswish"}, {"channel_attention": convs + "6.conv.weight"}
    return {"channel_attention": "none"}, {"hidden_act": convs + "6.weight"}


def se_reduction(block: str, state_dict: Mapping[str, Tensor]) -> int:
    """The channels inside a feed-forward layer over those that they are squeezed to."""
    squeezed, inner = shape_of(block + _CONVS + "6.fc.0.weight", state_dict, 2)
    return inner // squeezed


def feed_forward_fields(width: int, state_dict: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, str]]:
    """
    As [`activation_fields`], with `mlp_ratio` and `se_reduction`, of a body without stages; `width` is `hidden_size`.
    """
    known, ask_for = activation_fields("blocks.0.", state_dict)
    inner = common_size({"blocks.0." + key: dim for key, dim in INNER.items()}, state_dict)
    squeeze = {"se_reduction": se_reduction("blocks.0.", state_dict)} if known.get("channel_attention") == "se" else {}
    return {**known, "mlp_ratio": inner / width, **squeeze}, ask_for


def pyramid_fields(blocks: Sequence[str], state_dict: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, str]]:
    """
    As [`activation_fields`], and `se_reductions`; `blocks` is what precedes the names of the first block of each stage.
    """
    known, ask_for = activation_fields(blocks[0], state_dict)
    squeezes = known.get("channel_attention") == "se"
    # Where nothing is squeezed the field means nothing, but has an entry a stage.
    return {**known, "se_reductions": [se_reduction(block, state_dict) if squeezes else 1 for block in blocks]}, ask_for


def config_from_original(
    kwargs: Mapping[str, Any], state_dict: Mapping[str, Tensor], **overrides: Any
) -> VitfLocalvitConfig:
    """
    The configuration of a LocalViT checkpoint. The number of heads, and the activation where weights leave it open,
    come from `kwargs` or from the published variant with the same shapes.

    Args:
        kwargs: Keyword arguments of `LocalVisionTransformer`; may be empty.
        state_dict: The checkpoint.
        overrides: Fields that replace what arguments and shapes say.
    """
    _, channels, *patch_size = shape_of("patch_embed.proj.weight", state_dict, 4)
    width = common_size({"patch_embed.proj.weight": 0, "patch_embed.proj.bias": 0, "norm.weight": 0}, state_dict)
    feed_forward, ask_for = feed_forward_fields(width, state_dict)
    known = {
        "patch_size": tuple(patch_size),
        "num_channels": channels,
        "hidden_size": width,
        "num_hidden_layers": count_indices("blocks.{i}.norm1.weight", state_dict),
        "qkv_bias": "blocks.0.attn.qkv.bias" in state_dict,
        **feed_forward,
    }
    if "head.weight" in state_dict:
        known["num_labels"] = common_size({"head.weight": 0, "head.bias": 0}, state_dict)
    if image := square_image(shape_of("pos_embed", state_dict, 3)[1] - 1, patch_size):
        known["image_size"] = image
    given = fields_from_kwargs(kwargs, _KWARGS, _FIXED)
    return make_config(VitfLocalvitConfig, known, given, ask_for={**TIMM_OPEN, **ask_for}, **overrides)


LAYOUTS = {
    "original": Layout(
        rules=rules,
        config=config_from_original,
        requires=(
            "patch_embed.proj.weight",
            "pos_embed",
            "cls_token",
            "blocks.{i}.attn.qkv.weight",
            "blocks.{i}." + DEPTHWISE,
        ),
        suffix=".pth",
        wrapper="model",
    ),
}
