"""LocalViT on the body of DeiT: the original .pth files."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..conversion import (
    Layout,
    Published,
    Source,
    common_size,
    count_indices,
    fields_from_kwargs,
    make_config,
    shape_of,
    square_image,
)
from ..errors import ConversionError
from ..modeling.configuration_localvit import VitfLocalvitConfig
from ..rules import Rule
from .convert_vit import TIMM_FIXED, TIMM_KWARGS, TIMM_OPEN, timm_rules

SOURCE = Source(
    "ofsoundof/LocalViT",
    "f49726087006ddbd55eb18a40cf6eebca18e2b8e",
    "models/localvit.py",
    "mit",
)

# The argument `act`: activation and channel attention of the feed-forward layer.
_ACTIVATIONS = {
    1: {"hidden_act": "relu6", "channel_attention": "none"},
    2: {"hidden_act": "hardswish", "channel_attention": "none"},
    3: {"hidden_act": "hardswish", "channel_attention": "se"},
    4: {"hidden_act": "hardswish", "channel_attention": "eca"},
    5: {"hidden_act": "hardswish", "channel_attention": "eca_hard"},
}
_BLOCK = "blocks.{i}.conv.conv."
# Kind of channel attention to the names of its layers: theirs, ours.
_SE = (("6.fc.0.*", "fc1.*"), ("6.fc.2.*", "fc2.*"))
_ECA = (("6.conv.weight", "conv.weight"),)
_CHANNEL_ATTENTION = {"none": (), "se": _SE, "eca": _ECA, "eca_hard": _ECA}


def rules(config: VitfLocalvitConfig) -> list[Rule]:
    """The table of the published `.pth` files, which number the steps of a feed-forward layer."""
    target = "layers.{i}.feed_forward."
    last = 6 if config.channel_attention == "none" else 7
    steps = {0: "expansion", 3: "depthwise", last: "reduction"}
    table = [rule for rule in timm_rules(config) if not any(".norm2." in key or ".mlp." in key for key in rule.sources)]
    for number, name in steps.items():
        table += [
            Rule(f"{_BLOCK}{number}.weight", f"{target}{name}.weight"),
            Rule(f"{_BLOCK}{number + 1}.*", f"{target}{name}_norm.*"),
        ]
    table += [
        Rule(_BLOCK + theirs, f"{target}channel_attention.{ours}")
        for theirs, ours in _CHANNEL_ATTENTION[config.channel_attention]
    ]
    return table


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


def config_from_original(
    kwargs: Mapping[str, Any], state_dict: Mapping[str, Tensor], **overrides: Any
) -> VitfLocalvitConfig:
    """
    The configuration of a LocalViT checkpoint. The number of heads, and the activation where weights leave it open, come from
    `kwargs` or from the published variant with the same shapes.

    Args:
        kwargs: Keyword arguments of `LocalVisionTransformer`; may be empty.
        state_dict: The checkpoint.
        overrides: Fields that replace what arguments and shapes say.
    """
    _, channels, *patch_size = shape_of("patch_embed.proj.weight", state_dict, 4)
    width = common_size({"patch_embed.proj.weight": 0, "patch_embed.proj.bias": 0, "norm.weight": 0}, state_dict)
    block = _BLOCK.format(i=0)
    inner = common_size({block + "0.weight": 0, block + "1.weight": 0, block + "3.weight": 0}, state_dict)
    known = {
        "patch_size": tuple(patch_size),
        "num_channels": channels,
        "hidden_size": width,
        "num_hidden_layers": count_indices("blocks.{i}.norm1.weight", state_dict),
        "mlp_ratio": inner / width,
        "qkv_bias": "blocks.0.attn.qkv.bias" in state_dict,
    }
    ask_for = dict(TIMM_OPEN)
    if block + "6.fc.0.weight" in state_dict:
        squeezed = shape_of(block + "6.fc.0.weight", state_dict, 2)[0]
        known |= {**_ACTIVATIONS[3], "se_reduction": inner // squeezed}
    elif block + "6.conv.weight" in state_dict:
        known["hidden_act"] = "hardswish"
        ask_for["channel_attention"] = block + "6.conv.weight"
    else:
        known["channel_attention"] = "none"
        ask_for["hidden_act"] = block + "6.weight"
    if "head.weight" in state_dict:
        known["num_labels"] = common_size({"head.weight": 0, "head.bias": 0}, state_dict)
    if image := square_image(shape_of("pos_embed", state_dict, 3)[1] - 1, patch_size):
        known["image_size"] = image
    given = fields_from_kwargs(kwargs, _KWARGS, _FIXED)
    return make_config(VitfLocalvitConfig, known, given, ask_for=ask_for, **overrides)


LAYOUTS = {
    "original": Layout(
        rules=rules,
        config=config_from_original,
        requires=(
            "patch_embed.proj.weight",
            "pos_embed",
            "cls_token",
            "blocks.{i}.attn.qkv.weight",
            _BLOCK + "3.weight",
        ),
        suffix=".pth",
        wrapper="model",
    ),
}

# Variant, file, top-1 of the README.
_FILES = (
    ("localvit_tiny_mlp4_act3_r192", "localvit_t", 74.84),
    ("localvit_tiny_mlp4_act3_r4", "localvit_t_se4", 75.74),
    ("localvit_small_mlp4_act3_r384", "localvit_s", 80.78),
)
CHECKPOINTS: dict[str, Published] = {
    f"{variant}.in1k": Published(
        f"https://github.com/ofsoundof/LocalViT/releases/download/v1.0.0/{file}.pth",
        top1,
        "README of ofsoundof/LocalViT@f497260",
        "ImageNet-1k",
        license="mit",
        license_source="that of the repository; none is stated for the weights",
        wrapper="model",
    )
    for variant, file, top1 in _FILES
}
