"""LocalViT on the body of TNT: the original .pth files."""

from collections.abc import Mapping
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
from ..conversion.rules import Concatenate, Permute, Reshape, Rule
from ..modeling.configuration_localvit_tnt import VitfLocalvitTntConfig
from .convert_localvit import COMMIT, DEPTHWISE, feed_forward_fields, with_feed_forward
from .timm_names import TIMM_KWARGS

SOURCE = Source("ofsoundof/LocalViT", COMMIT, "models/localvit_tnt.py", "mit")


def rules(config: VitfLocalvitTntConfig) -> list[Rule]:
    """The table of the published `.pth` files."""
    width, pixel_width = config.hidden_size, config.pixel_hidden_size
    rows, columns = config.pixel_grid
    block, layer, pixel_layer = "blocks.{i}.", "layers.{i}.", "layers.{i}.pixel_layer."
    flat = Reshape((1, rows, columns, pixel_width), (1, rows * columns, pixel_width))
    body = [
        Rule("cls_token", "embeddings.cls_token"),
        Rule("patch_pos", "embeddings.position_embeddings.weight"),
        Rule("pixel_pos", "embeddings.pixel_positions", Permute(0, 2, 3, 1), flat),
        Rule("pixel_embed.proj.*", "embeddings.patch_embeddings.projection.*"),
        Rule("norm1_proj.*", "embeddings.pixel_layernorm.*"),
        Rule("proj.*", "embeddings.projection.*"),
        Rule("norm2_proj.*", "embeddings.layernorm.*"),
        Rule(block + "norm_in.*", pixel_layer + "layernorm_before.*"),
        Rule(
            (block + "attn_in.qk.*", block + "attn_in.v.*"),
            pixel_layer + "attention.qkv.*",
            Concatenate((2 * pixel_width, pixel_width)),
        ),
        Rule(block + "attn_in.proj.*", pixel_layer + "attention.proj.*"),
        Rule(block + "norm_mlp_in.*", pixel_layer + "layernorm_after.*"),
        Rule(block + "mlp_in.fc1.*", pixel_layer + "mlp.fc1.*"),
        Rule(block + "mlp_in.fc2.*", pixel_layer + "mlp.fc2.*"),
        Rule(block + "norm1_proj.*", layer + "pixel_layernorm.*"),
        Rule(block + "proj.*", layer + "pixel_projection.*"),
        Rule(block + "norm_out.*", layer + "layernorm_before.*"),
        Rule(
            (block + "attn_out.qk.*", block + "attn_out.v.*"),
            layer + "attention.qkv.*",
            Concatenate((2 * width, width)),
        ),
        Rule(block + "attn_out.proj.*", layer + "attention.proj.*"),
        Rule("norm.*", "layernorm.*"),
        Rule("head.*", "classifier.*"),
    ]
    return with_feed_forward(body, config, block, layer)


_KWARGS = {
    **{name: field for name, field in TIMM_KWARGS.items() if name != "act_layer"},
    "in_dim": "pixel_hidden_size",
    "in_num_head": "num_pixel_attention_heads",
    "first_stride": "pixel_stride",
}
_OPEN = {
    "num_attention_heads": "blocks.0.attn_out.qk.weight",
    "num_pixel_attention_heads": "blocks.0.attn_in.qk.weight",
    "image_size": "patch_pos",
}


def config_from_original(
    kwargs: Mapping[str, Any], state_dict: Mapping[str, Tensor], **overrides: Any
) -> VitfLocalvitTntConfig:
    """
    The configuration of a LocalViT-TNT checkpoint. Numbers of heads and the size of patches come from `kwargs`, or from
    the published variant with the same shapes; the image size from the positions, if they are square.

    Args:
        kwargs: Keyword arguments of `LocalViT_TNT`; may be empty.
        state_dict: The checkpoint.
        overrides: Fields that replace what arguments and shapes say.
    """
    pixel_width, channels, *_ = shape_of("pixel_embed.proj.weight", state_dict, 4)
    pixels = shape_of("pixel_pos", state_dict, 4)[2:]
    width = common_size({"proj.weight": 0, "proj.bias": 0, "norm.weight": 0}, state_dict)
    pixel_inner = common_size({"blocks.0.mlp_in.fc1.weight": 0, "blocks.0.mlp_in.fc1.bias": 0}, state_dict)
    feed_forward, ask_for = feed_forward_fields(width, state_dict)
    known = {
        "num_channels": channels,
        "hidden_size": width,
        "pixel_hidden_size": pixel_width,
        "num_hidden_layers": count_indices("blocks.{i}.norm_out.weight", state_dict),
        "pixel_mlp_ratio": pixel_inner / pixel_width,
        "qkv_bias": "blocks.0.attn_out.qk.bias" in state_dict,
        **feed_forward,
    }
    if "head.weight" in state_dict:
        known["num_labels"] = common_size({"head.weight": 0, "head.bias": 0}, state_dict)
    given = fields_from_kwargs(kwargs, _KWARGS, {})
    stride = overrides.get("pixel_stride", given.get("pixel_stride", VitfLocalvitTntConfig.pixel_stride))
    known["patch_size"] = tuple(side * stride for side in pixels)
    if image := square_image(shape_of("patch_pos", state_dict, 3)[1] - 1, known["patch_size"]):
        known["image_size"] = image
    return make_config(VitfLocalvitTntConfig, known, given, ask_for={**_OPEN, **ask_for}, **overrides)


LAYOUTS = {
    "original": Layout(
        rules=rules,
        config=config_from_original,
        requires=(
            "pixel_embed.proj.weight",
            "patch_pos",
            "pixel_pos",
            "blocks.{i}.attn_in.qk.weight",
            "blocks.{i}." + DEPTHWISE,
        ),
        suffix=".pth",
        wrapper="model",
    ),
}
