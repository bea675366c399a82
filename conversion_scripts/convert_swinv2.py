"""Swin V2: the original .pth files, timm's, where a stage holds the merging before it, and transformers' own."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, Swinv2Config

from ..conversion.convert import Layout, Source, fields_from_kwargs, make_config, shape_of
from ..conversion.rules import Concatenate, Derived, Rule
from ..modeling.configuration_swinv2 import VitfSwinv2Config
from ..modeling.modeling_swinv2 import log_distances
from .convert_swin import (
    BLOCK,
    COMMIT,
    ENCODER_BLOCK,
    FIXED,
    KWARGS,
    LAYER,
    TRANSFORMERS_FIELDS,
    buffer_rules,
    common_rules,
    common_shapes,
    configured_windows,
    sides,
    timm_arguments,
    transformers_arguments,
    transformers_common_rules,
    transformers_fields,
)
from .transformers_names import MASK_TOKEN

SOURCE = Source("microsoft/Swin-Transformer", COMMIT, "models/swin_transformer_v2.py", "mit")

_ATTENTION, _TARGET = BLOCK + "attn.", LAYER + "attention."


def _rules(config: VitfSwinv2Config, merging: str, head: str) -> list[Rule]:
    table = [
        *common_rules(config, merging, head),
        Rule(_ATTENTION + "qkv.weight", _TARGET + "qkv.weight"),
        Rule(_ATTENTION + "logit_scale", _TARGET + "logit_scale"),
        Rule(_ATTENTION + "cpb_mlp.0.*", _TARGET + "position_bias.fc1_*"),
        Rule(_ATTENTION + "cpb_mlp.2.weight", _TARGET + "position_bias.fc2_weight"),
        Rule(BLOCK + "norm1.*", LAYER + "layernorm_attention.*"),
        Rule(BLOCK + "norm2.*", LAYER + "layernorm_mlp.*"),
    ]
    if config.qkv_bias:
        table += [Rule(_ATTENTION + name, _TARGET + "qkv." + name) for name in ("q_bias", "v_bias")]
    return table


def rules(config: VitfSwinv2Config) -> list[Rule]:
    """The table of the published `.pth` files."""
    windows = configured_windows(config)

    def distances(s: int, i: int) -> Tensor:
        side = 2 * windows[s] - 1
        return log_distances(windows[s], config.pretrained_window_sizes[s] or windows[s]).view(1, side, side, 2)

    return [
        *_rules(config, "layers.{s}.", "head."),
        *buffer_rules(config),
        Derived(_ATTENTION + "relative_coords_table", distances, LAYER + "attention.proj.weight"),
    ]


def timm_rules(config: VitfSwinv2Config) -> list[Rule]:
    """The table of timm 1.0's SwinTransformerV2, which keeps no tables and no mask."""
    return _rules(config, "layers.{s+1}.", "head.fc.")


def _pretrained_window(largest: float, window: int) -> int:
    """
    The window for which distances were scaled, from the largest entry of the table; 0 for that of the table itself.
    """
    scaled = 2 ** (3 * largest) - 1  # 8 * (window - 1) / (pretrained - 1)
    pretrained = round(8 * (window - 1) / scaled) + 1 if scaled else window
    return 0 if pretrained == window else pretrained


def _shapes(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    known = common_shapes(state_dict)
    first = [f"layers.{s}.blocks.0.attn." for s in range(len(known["depths"]))]
    known["num_heads"] = [shape_of(key + "logit_scale", state_dict, 3)[0] for key in first]
    known["qkv_bias"] = first[0] + "q_bias" in state_dict
    if first[0] + "relative_position_index" in state_dict:
        windows = [sides(shape_of(key + "relative_position_index", state_dict, 2)[0]) for key in first]
        # A stage with a smaller map has a smaller window.
        known["window_size"] = max(windows)
        tables = [key + "relative_coords_table" for key in first]
        known["pretrained_window_sizes"] = [
            _pretrained_window(state_dict[table].max().item(), window)
            for table, window in zip(tables, windows, strict=True)
            if shape_of(table, state_dict, 4)
        ]
    return known


_OPEN = {
    "window_size": BLOCK.format(s=0, i=0) + "attn.relative_position_index",
    "image_size": BLOCK.format(s=0, i=1) + "attn_mask",
    "pretrained_window_sizes": BLOCK.format(s=0, i=0) + "attn.relative_coords_table",
}


def config_from_original(
    kwargs: Mapping[str, Any], state_dict: Mapping[str, Tensor], **overrides: Any
) -> VitfSwinv2Config:
    """
    The configuration of a Swin V2 checkpoint. Its tables tell the windows; timm's files hold none, and these fields are
    asked for unless only one published variant has the same shapes.

    Args:
        kwargs: Keyword arguments of `SwinTransformerV2` in swin_transformer_v2.py, or of timm's; may be empty.
        state_dict: The checkpoint.
        overrides: Fields that replace what arguments and shapes say.
    """
    names = {**KWARGS, "pretrained_window_sizes": "pretrained_window_sizes"}
    given = fields_from_kwargs(kwargs, names, FIXED)
    return make_config(VitfSwinv2Config, _shapes(state_dict), given, ask_for=_OPEN, **overrides)


# ---------------------------------------------------------------------------------------------------------------------
# transformers' own Swin V2

_NAMES = {"proj": "attention.output.dense.", "fc1": "intermediate.dense.", "fc2": "output.dense."}


def transformers_rules(config: VitfSwinv2Config) -> list[Rule]:
    """The table of transformers' Swin V2."""
    source = ENCODER_BLOCK + "attention.self."
    network = source + "continuous_position_bias_mlp."
    weights = tuple(f"{source}{name}.weight" for name in ("query", "key", "value"))
    table = [
        *transformers_common_rules(_NAMES),
        Rule(weights, _TARGET + "qkv.weight", Concatenate(3)),
        Rule(source + "logit_scale", _TARGET + "logit_scale"),
        Rule(network + "0.*", _TARGET + "position_bias.fc1_*"),
        Rule(network + "2.weight", _TARGET + "position_bias.fc2_weight"),
        Rule(ENCODER_BLOCK + "layernorm_before.*", LAYER + "layernorm_attention.*"),
        Rule(ENCODER_BLOCK + "layernorm_after.*", LAYER + "layernorm_mlp.*"),
    ]
    if config.qkv_bias:
        table += [Rule(source + f"{name}.bias", _TARGET + f"qkv.{name[0]}_bias") for name in ("query", "value")]
    return table


def transformers_config(
    kwargs: Mapping[str, Any], state_dict: Mapping[str, Tensor], **overrides: Any
) -> VitfSwinv2Config:
    """The configuration of transformers' own Swin V2; `kwargs` is its config.json."""
    known = transformers_fields(kwargs, state_dict, [*TRANSFORMERS_FIELDS, "pretrained_window_sizes"])
    return make_config(VitfSwinv2Config, known, **overrides)


def _timm_native(model: PreTrainedModel) -> dict[str, Any]:
    arguments = {**timm_arguments(model), "pretrained_window_sizes": model.config.pretrained_window_sizes}
    return {"architecture": "swinv2_tiny_window8_256", "model_args": arguments}


def _transformers_native(model: PreTrainedModel) -> dict[str, Any]:
    return Swinv2Config(
        **transformers_arguments(model, "Swinv2"),
        pretrained_window_sizes=model.config.pretrained_window_sizes,
    ).to_diff_dict()


_HOLDS = {"patch_norm": (True,), "use_absolute_embeddings": (False,), "layer_norm_eps": (1e-5,)}
LAYOUTS = {
    "original": Layout(
        rules=rules,
        config=config_from_original,
        requires=(
            "patch_embed.proj.weight",
            _ATTENTION + "logit_scale",
            _ATTENTION + "cpb_mlp.0.weight",
            _ATTENTION + "relative_coords_table",
        ),
        suffix=".pth",
        wrapper="model",
    ),
    "timm": Layout(
        rules=timm_rules,
        config=config_from_original,
        requires=("patch_embed.proj.weight", _ATTENTION + "logit_scale", _ATTENTION + "cpb_mlp.0.weight"),
        forbids=(_ATTENTION + "relative_coords_table",),
        holds=_HOLDS,
        native_config=_timm_native,
    ),
    "transformers": Layout(
        rules=transformers_rules,
        config=transformers_config,
        requires=(
            "embeddings.patch_embeddings.projection.weight",
            ENCODER_BLOCK + "attention.self.continuous_position_bias_mlp.0.weight",
        ),
        prefix="swinv2.",
        head_keys_in_base=(MASK_TOKEN,),
        holds=_HOLDS,
        native_config=_transformers_native,
    ),
}

_ONE, _BOTH, _22K = "ImageNet-1k", "ImageNet-22k, fine-tuned on ImageNet-1k", "ImageNet-22k"
