"""RegionViT: the original .pth files."""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..conversion.convert import (
    Layout,
    Source,
    common_size,
    count_indices,
    fields_from_kwargs,
    ignored,
    layer_norm_eps,
    make_config,
    one_or_two,
    shape_of,
)
from ..conversion.rules import Reshape, Rule, Unify
from ..errors import ConversionError
from ..modeling.configuration_regionvit import VitfRegionvitConfig

SOURCE = Source("IBM/RegionViT", "77000c2fcfbe9a5735d7a27a8a7821f69c0440ec", "regionvit/regionvit.py", "apache-2.0")


def _map_norm(source: str, target: str, channels: int, *operations) -> list[Rule]:
    """A norm over the channels of a map is stored with the shape of one."""
    shape = Reshape((1, channels, 1, 1), (channels,))
    return [
        Rule(tuple(f"{name}.{part}" for name in source.split()), f"{target}.{part}", *operations, shape)
        for part in ("weight", "bias")
    ]


def rules(config: VitfRegionvitConfig) -> list[Rule]:
    """The table of the published `.pth` files."""
    block, layer = "layers.{s}.block.{i+1}.", "stages.{s}.layers.{i}."
    table = [
        Rule("cls_token.proj.*", "embeddings.region_embeddings.*"),
        Rule(block + "norm0.*", layer + "layernorm_regional.*"),
        Rule(block + "norm1.*", layer + "layernorm_before.*"),
        Rule(block + "attn.qkv.*", layer + "attention.qkv.*"),
        Rule(block + "attn.proj.*", layer + "attention.proj.*"),
        Rule(block + "attn.rel_pos", layer + "attention.position_bias.weight"),
        Rule(block + "norm2.*", layer + "layernorm_after.*"),
        Rule(block + "mlp.fc1.*", layer + "mlp.fc1.*"),
        Rule(block + "mlp.fc2.*", layer + "mlp.fc2.*"),
        Rule("norm.*", "layernorm.*"),
        Rule("head.*", "classifier.*"),
    ]
    stem = "embeddings.patch_embeddings."
    if config.patch_conv_type == "1conv":
        table.append(Rule("patch_embed.proj.*", stem + "convs.0.*"))
    else:
        table += [Rule(f"patch_embed.proj.{3 * n}.*", f"{stem}convs.{n}.*") for n in range(3)]
        for n, channels in enumerate((config.hidden_sizes[0] // 4, config.hidden_sizes[0] // 2)):
            table += _map_norm(f"patch_embed.proj.{3 * n + 1}", f"{stem}norms.{n}", channels)
    for stage, (narrow, wide) in enumerate(zip(config.stage_channels, config.hidden_sizes, strict=False)):
        source, target = f"layers.{stage}.block.0", f"stages.{stage}"
        if stage:
            # One module for both kinds of tokens, whose tensors are stored twice.
            table.append(
                Rule((f"{source}.proj.2.*", f"{source}.proj_cls.2.*"), f"{target}.downsampling.conv.*", Unify(2))
            )
            table += _map_norm(f"{source}.proj.0 {source}.proj_cls.0", f"{target}.downsampling.norm", narrow, Unify(2))
        if config.stage_norms:
            table += _map_norm(f"norm{stage}", f"{target}.norm", wide)
    if config.peg:
        table.append(Rule("layers.{s}.peg.weight", "stages.{s}.peg.weight"))
    return table


def _widths(widths: list[int]) -> dict[str, Any]:
    """The first entry of `embed_dim` is the width before the first stage, which leaves it as it is."""
    if widths[0] != widths[1]:
        raise ConversionError(
            f"original argument embed_dim={widths!r} is not supported: the first two widths must be equal", "embed_dim"
        )
    return {"hidden_sizes": list(widths[1:])}


_KWARGS = {
    "img_size": "image_size",
    "patch_size": "patch_size",
    "in_chans": "num_channels",
    "num_classes": "num_labels",
    "embed_dim": _widths,
    "depth": lambda depths: {"depths": list(depths)},
    "num_heads": lambda heads: {"num_heads": list(heads)},
    "mlp_ratio": "mlp_ratio",
    "qkv_bias": "qkv_bias",
    "drop_rate": "hidden_dropout_prob",
    "attn_drop_rate": "attention_probs_dropout_prob",
    "drop_path_rate": "drop_path_rate",
    "norm_layer": layer_norm_eps,
    "kernel_sizes": lambda sizes: {"window_sizes": list(sizes)},
    "downsampling": ignored,  # "c" in the first stage, "sc" in the others: the weights tell
    "patch_conv_type": "patch_conv_type",
    "peg": "peg",
    "det_norm": "stage_norms",
}
_FIXED = {"qk_scale": (None,), "computed_cls_token": (True,)}


def config_from_original(
    kwargs: Mapping[str, Any], state_dict: Mapping[str, Tensor], **overrides: Any
) -> VitfRegionvitConfig:
    """
    The configuration of a RegionViT checkpoint. Shapes tell all.

    Args:
        kwargs: Keyword arguments of `RegionViT`; may be empty.
        state_dict: The checkpoint.
        overrides: Fields that replace what arguments and shapes say.
    """
    _, channels, *region = shape_of("cls_token.proj.weight", state_dict, 4)
    stages = range(count_indices("layers.{s}.block.{i}.norm1.weight", state_dict, "s"))
    blocks = [f"layers.{s}.block.1." for s in stages]
    tables = [shape_of(block + "attn.rel_pos", state_dict, 2) for block in blocks]
    windows = [(math.isqrt(size) + 1) // 2 for _, size in tables]
    widths = [
        common_size({block + key: 0 for key in ("norm1.weight", "norm2.weight", "attn.proj.bias")}, state_dict)
        for block in blocks
    ]
    mlp = {blocks[0] + "mlp.fc1.weight": 0, blocks[0] + "mlp.fc1.bias": 0, blocks[0] + "mlp.fc2.weight": 1}
    known = {
        "patch_size": one_or_two([side // windows[0] for side in region]),
        "num_channels": channels,
        "hidden_sizes": widths,
        "depths": [count_indices(f"layers.{s}.block.{{i+1}}.norm1.weight", state_dict) for s in stages],
        "num_heads": [heads for heads, _ in tables],
        "window_sizes": windows,
        "patch_conv_type": "1conv" if "patch_embed.proj.weight" in state_dict else "3conv",
        "peg": "layers.0.peg.weight" in state_dict,
        "stage_norms": "norm0.weight" in state_dict,
        "mlp_ratio": common_size(mlp, state_dict) / widths[0],
        "qkv_bias": blocks[0] + "attn.qkv.bias" in state_dict,
    }
    if "head.weight" in state_dict:
        known["num_labels"] = common_size({"head.weight": 0, "head.bias": 0}, state_dict)
    return make_config(VitfRegionvitConfig, known, fields_from_kwargs(kwargs, _KWARGS, _FIXED), **overrides)


LAYOUTS = {
    "original": Layout(
        rules=rules,
        config=config_from_original,
        requires=(
            "cls_token.proj.weight",
            "layers.{s}.block.{i}.attn.rel_pos",
            "layers.{s}.block.{i}.norm0.weight",
        ),
        suffix=".pth",
        wrapper="model",
    ),
}
