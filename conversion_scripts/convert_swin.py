"""Swin: the original .pth files, timm's, where a stage holds the merging before it, and transformers' own."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, SwinConfig

from ..conversion.convert import (
    Layout,
    Source,
    common_size,
    count_indices,
    fields_from_kwargs,
    has_head,
    ignored,
    layer_norm_eps,
    make_config,
    one_or_two,
    shape_of,
)
from ..conversion.rules import Concatenate, Derived, Rule
from ..errors import ConversionError
from ..modeling.configuration_swin import VitfSwinConfig, stage_windows
from ..modeling.configuration_vitf import VitfPyramidConfig, pair
from ..modeling.windows import relative_position_index, shift_mask
from .transformers_names import MASK_TOKEN, MASKED_RULES, head_of, native_class, transformers_labels

COMMIT = "f82860bfb5225915aca09c3227159ee9e1df874d"
SOURCE = Source("microsoft/Swin-Transformer", COMMIT, "models/swin_transformer.py", "mit")

# ---------------------------------------------------------------------------------------------------------------------
# Rules; those of patches, merging, feed-forward layers and heads are Swin V2's too

BLOCK, LAYER = "layers.{s}.blocks.{i}.", "stages.{s}.layers.{i}."


def configured_windows(config: VitfPyramidConfig) -> list[int]:
    """Side of the windows of each stage, in tokens, at the configured image size."""
    grids = config.feature_map_sizes(*pair(config.image_size))[1:]
    return [min(window, *grid) for window, grid in zip(stage_windows(config), grids, strict=True)]


def configured_mask(config: VitfPyramidConfig, stage: int, layer: int) -> Tensor | None:
    """The mask that the original keeps for a layer: (windows, tokens, tokens), `None` where it does not shift."""
    grid = config.feature_map_sizes(*pair(config.image_size))[1:][stage]
    window = stage_windows(config)[stage]
    if layer % 2 == 0 or min(grid) <= window:
        return None
    return shift_mask(grid, window, window // 2)


def buffer_rules(config: VitfPyramidConfig) -> list[Rule]:
    """The rules for what the original's files hold besides the weights of Swin and Swin V2."""
    windows = configured_windows(config)
    like = LAYER + "attention.proj.weight"
    return [
        Derived(BLOCK + "attn.relative_position_index", lambda s, i: relative_position_index(windows[s]), like),
        Derived(BLOCK + "attn_mask", lambda s, i: configured_mask(config, s, i), like),
    ]


def common_rules(config: VitfPyramidConfig, merging: str, head: str) -> list[Rule]:
    """
    What Swin and Swin V2 name alike, in the original's and in timm's files.

    Args:
        merging: Pattern of the stage that holds the merging before stage `s + 1`. head: Prefix of the classifier.
    """
    table = [
        Rule("patch_embed.proj.*", "embeddings.patch_embeddings.projection.*"),
        Rule(merging + "downsample.norm.*", "stages.{s+1}.downsample.norm.*"),
        Rule(merging + "downsample.reduction.weight", "stages.{s+1}.downsample.reduction.weight"),
        Rule(BLOCK + "attn.proj.*", LAYER + "attention.proj.*"),
        Rule(BLOCK + "mlp.fc1.*", LAYER + "mlp.fc1.*"),
        Rule(BLOCK + "mlp.fc2.*", LAYER + "mlp.fc2.*"),
        Rule("norm.*", "layernorm.*"),
        Rule(head + "*", "classifier.*"),
    ]
    if config.patch_norm:
        table.append(Rule("patch_embed.norm.*", "embeddings.norm.*"))
    if config.use_absolute_embeddings:
        table.append(Rule("absolute_pos_embed", "embeddings.position_embeddings.weight"))
    return table


def _rules(config: VitfSwinConfig, merging: str, head: str) -> list[Rule]:
    return [
        *common_rules(config, merging, head),
        Rule(BLOCK + "norm1.*", LAYER + "layernorm_before.*"),
        Rule(BLOCK + "attn.qkv.*", LAYER + "attention.qkv.*"),
        Rule(BLOCK + "attn.relative_position_bias_table", LAYER + "attention.position_bias.weight"),
        Rule(BLOCK + "norm2.*", LAYER + "layernorm_after.*"),
    ]


def rules(config: VitfSwinConfig) -> list[Rule]:
    """The table of the published `.pth` files."""
    return [*_rules(config, "layers.{s}.", "head."), *buffer_rules(config)]


def timm_rules(config: VitfSwinConfig) -> list[Rule]:
    """The table of timm 1.0's SwinTransformer, which keeps no index and no mask."""
    return _rules(config, "layers.{s+1}.", "head.fc.")


# ---------------------------------------------------------------------------------------------------------------------
# Configuration

# Arguments of the original constructors and of timm's.
KWARGS = {
    "img_size": "image_size",
    "patch_size": "patch_size",
    "in_chans": "num_channels",
    "num_classes": "num_labels",
    "embed_dim": ignored,  # the weights tell it
    "depths": "depths",
    "num_heads": "num_heads",
    "window_size": "window_size",
    "mlp_ratio": ignored,  # the weights tell it
    "qkv_bias": "qkv_bias",
    "drop_rate": "hidden_dropout_prob",
    "attn_drop_rate": "attention_probs_dropout_prob",
    "drop_path_rate": "drop_path_rate",
    "norm_layer": layer_norm_eps,
    "ape": "use_absolute_embeddings",
    "patch_norm": "patch_norm",
    "use_checkpoint": ignored,
    "fused_window_process": ignored,
}
FIXED = {"global_pool": ("avg",), "always_partition": (False,)}
_BIAS_TABLE = "layers.{s}.blocks.{i}.attn.relative_position_bias_table"


def sides(count: int) -> int:
    """The root of a square number. ConversionError for another number."""
    side = round(count**0.5)
    if side * side != count:
        raise ConversionError(f"{count} is not the number of cells of a square")
    return side


# The names of a layer that matter to shapes: key to dimension of C and of D, the inner width.
NAMES = {
    "width": {"norm1.weight": 0, "norm2.weight": 0, "attn.proj.bias": 0},
    "inner": {"mlp.fc1.weight": 0, "mlp.fc1.bias": 0, "mlp.fc2.weight": 1},
}


def common_shapes(state_dict: Mapping[str, Tensor], names: Mapping[str, Mapping[str, int]] = NAMES) -> dict[str, Any]:
    """The fields of Swin and Swin V2 that shapes tell under the original's and timm's names; `names` as `NAMES`."""
    _, channels, *patch_size = shape_of("patch_embed.proj.weight", state_dict, 4)
    stages = range(count_indices(BLOCK + "norm1.weight", state_dict, "s"))
    first = [f"layers.{s}.blocks.0." for s in stages]
    widths = [common_size({block + key: dim for key, dim in names["width"].items()}, state_dict) for block in first]
    inner = common_size({first[0] + key: dim for key, dim in names["inner"].items()}, state_dict)
    known = {
        "patch_size": one_or_two(patch_size),
        "num_channels": channels,
        "hidden_sizes": widths,
        "depths": [count_indices(f"layers.{s}.blocks.{{i}}.norm1.weight", state_dict) for s in stages],
        "mlp_ratio": inner / widths[0],
        "patch_norm": "patch_embed.norm.weight" in state_dict,
        "use_absolute_embeddings": "absolute_pos_embed" in state_dict,
    }
    for head in ("head", "head.fc"):
        if f"{head}.weight" in state_dict:
            known["num_labels"] = common_size({f"{head}.weight": 0, f"{head}.bias": 0}, state_dict)
    cells = None
    if "absolute_pos_embed" in state_dict:
        cells = shape_of("absolute_pos_embed", state_dict, 3)[1]
    elif "layers.0.blocks.1.attn_mask" in state_dict:
        windows, tokens, _ = shape_of("layers.0.blocks.1.attn_mask", state_dict, 3)
        cells = windows * tokens
    if cells is not None and round(cells**0.5) ** 2 == cells:  # another map is no square, and must be given
        known["image_size"] = one_or_two([sides(cells) * side for side in patch_size])
    return known


def original_shapes(state_dict: Mapping[str, Tensor], names: Mapping[str, Mapping[str, int]] = NAMES) -> dict[str, Any]:
    """The fields that only Swin has and that shapes tell; `names` as `NAMES`."""
    known = common_shapes(state_dict, names)
    tables = [shape_of(_BIAS_TABLE.format(s=s, i=0), state_dict, 2) for s in range(len(known["depths"]))]
    known["num_heads"] = [heads for _, heads in tables]
    windows = [(sides(rows) + 1) // 2 for rows, _ in tables]
    # A stage with a smaller map has a smaller window; a larger one than before is a stage's own (swin_s3 of timm).
    known["window_size"] = windows[0] if windows == sorted(windows, reverse=True) else windows
    known["qkv_bias"] = "layers.0.blocks.0.attn.qkv.bias" in state_dict
    return known


# Field that shapes may leave open, to the key that does.
OPEN = {"image_size": "layers.0.blocks.1.attn_mask"}


def config_from_original(
    kwargs: Mapping[str, Any], state_dict: Mapping[str, Tensor], **overrides: Any
) -> VitfSwinConfig:
    """
    The configuration of a Swin checkpoint. Shapes tell all but an image that is not square, or whose size leaves no
    trace (timm's files hold no masks).

    Args:
        kwargs: Keyword arguments of `SwinTransformer` in swin_transformer.py, or of timm's; may be empty.
        state_dict: The checkpoint.
        overrides: Fields that replace what arguments and shapes say.
    """
    given = fields_from_kwargs(kwargs, {**KWARGS, "qk_scale": "qk_scale"}, FIXED)
    return make_config(VitfSwinConfig, original_shapes(state_dict), given, ask_for=OPEN, **overrides)


# ---------------------------------------------------------------------------------------------------------------------
# transformers' own Swin, under the names of its files, and those of version 5 in memory

_VERSION_4 = {
    "qkv": tuple(f"attention.self.{name}." for name in ("query", "key", "value")),
    "bias": "attention.self.relative_position_bias_table",
    "proj": "attention.output.dense.",
    "fc1": "intermediate.dense.",
    "fc2": "output.dense.",
}
_VERSION_5 = {
    "qkv": tuple(f"attention.{name}_proj." for name in "qkv"),
    "bias": "attention.relative_position_bias.relative_position_bias_table",
    "proj": "attention.o_proj.",
    "fc1": "mlp.fc1.",
    "fc2": "mlp.fc2.",
}
ENCODER_BLOCK = "encoder.layers.{s}.blocks.{i}."


def transformers_common_rules(names: Mapping[str, Any]) -> list[Rule]:
    """The rules for tensors that transformers' Swin and Swin V2 name alike; `names` has the keys of `_VERSION_4`."""
    merging = "encoder.layers.{s}.downsample."
    return [
        Rule("embeddings.patch_embeddings.projection.*", "embeddings.patch_embeddings.projection.*"),
        Rule("embeddings.norm.*", "embeddings.norm.*"),
        Rule(merging + "norm.*", "stages.{s+1}.downsample.norm.*"),
        Rule(merging + "reduction.weight", "stages.{s+1}.downsample.reduction.weight"),
        Rule(ENCODER_BLOCK + names["proj"] + "*", LAYER + "attention.proj.*"),
        Rule(ENCODER_BLOCK + names["fc1"] + "*", LAYER + "mlp.fc1.*"),
        Rule(ENCODER_BLOCK + names["fc2"] + "*", LAYER + "mlp.fc2.*"),
        Rule("layernorm.*", "layernorm.*"),
        Rule("classifier.*", "classifier.*"),
        *MASKED_RULES,
    ]


def _transformers_rules(names: Mapping[str, Any]):
    def rules(config: VitfSwinConfig) -> list[Rule]:
        table = [
            *transformers_common_rules(names),
            Rule(ENCODER_BLOCK + "layernorm_before.*", LAYER + "layernorm_before.*"),
            Rule(tuple(ENCODER_BLOCK + name + "*" for name in names["qkv"]), LAYER + "attention.qkv.*", Concatenate(3)),
            Rule(ENCODER_BLOCK + names["bias"], LAYER + "attention.position_bias.weight"),
            Rule(ENCODER_BLOCK + "layernorm_after.*", LAYER + "layernorm_after.*"),
        ]
        if config.use_absolute_embeddings:
            table.append(Rule("embeddings.position_embeddings", "embeddings.position_embeddings.weight"))
        return table

    return rules


# Fields that mean the same in transformers' SwinConfig and Swinv2Config.
TRANSFORMERS_FIELDS = [
    "image_size",
    "patch_size",
    "num_channels",
    "depths",
    "num_heads",
    "window_size",
    "mlp_ratio",
    "qkv_bias",
    "hidden_act",
    "layer_norm_eps",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "drop_path_rate",
    "initializer_range",
]


def transformers_fields(
    metadata: Mapping[str, Any], state_dict: Mapping[str, Tensor], names: list[str]
) -> dict[str, Any]:
    """
    The fields `names` from transformers' own config.json, channels and the number of labels from the weights.

    Raises:
        ConversionError: if the config.json is not there or lacks a field.
    """
    for name in names:
        if name not in metadata:
            raise ConversionError(
                f"{name} is not told by the weights; keep transformers' config.json next to them, or give its fields "
                f"as original_kwargs",
                name,
            )
    fields = {name: metadata[name] for name in names}
    stages = range(count_indices(ENCODER_BLOCK + "layernorm_before.weight", state_dict, "s"))
    fields["hidden_sizes"] = [
        shape_of(f"encoder.layers.{s}.blocks.0.layernorm_before.weight", state_dict, 1)[0] for s in stages
    ]
    fields["use_absolute_embeddings"] = "embeddings.position_embeddings" in state_dict
    return {**fields, **transformers_labels(metadata, state_dict, "classifier")}


def transformers_config(
    kwargs: Mapping[str, Any], state_dict: Mapping[str, Tensor], **overrides: Any
) -> VitfSwinConfig:
    """The configuration of transformers' own Swin; `kwargs` is its config.json."""
    known = transformers_fields(kwargs, state_dict, TRANSFORMERS_FIELDS)
    return make_config(VitfSwinConfig, known, **overrides)


# ---------------------------------------------------------------------------------------------------------------------
# What the other libraries read


def check_doubling(config: VitfPyramidConfig, library: str) -> None:
    """ConversionError unless each stage is twice as wide as the one before, all that timm and transformers can say."""
    widths = [config.hidden_sizes[0] * 2**stage for stage in range(len(config.depths))]
    if config.hidden_sizes != widths:
        raise ConversionError(f"{library}'s stages double their channels, but hidden_sizes={config.hidden_sizes}")


def timm_arguments(model: PreTrainedModel) -> dict[str, Any]:
    """The arguments of timm 1.0's SwinTransformer and SwinTransformerV2 that are ours."""
    config = model.config
    check_doubling(config, "timm")
    if config.hidden_act != "gelu":
        raise ConversionError(f"timm's Swin is hidden_act='gelu', not {config.hidden_act!r}")
    return {
        "img_size": one_or_two(config.image_size),
        "patch_size": one_or_two(config.patch_size),
        "in_chans": config.num_channels,
        "num_classes": config.num_labels if has_head(model) else 0,
        "embed_dim": config.hidden_sizes[0],
        "depths": config.depths,
        "num_heads": config.num_heads,
        "window_size": config.window_size,
        "mlp_ratio": config.mlp_ratio,
        "qkv_bias": config.qkv_bias,
    }


def _timm_native(model: PreTrainedModel) -> dict[str, Any]:
    return {"architecture": "swin_tiny_patch4_window7_224", "model_args": timm_arguments(model)}


def transformers_arguments(model: PreTrainedModel, family: str) -> dict[str, Any]:
    """
    The fields of transformers' SwinConfig and Swinv2Config that are ours; `family` is what names of classes begin with.
    """
    config = model.config
    check_doubling(config, "transformers")
    if head_of(model) == "ForMaskedImageModeling":
        for name in ("image_size", "patch_size"):
            if len({*pair(getattr(config, name))}) > 1:
                raise ConversionError(
                    f"transformers' {family}ForMaskedImageModeling takes square images and patches only, not "
                    f"{name}={getattr(config, name)}"
                )
    return {
        **{name: getattr(config, name) for name in TRANSFORMERS_FIELDS},
        "mlp_ratio": float(config.mlp_ratio),  # its configurations take no whole number
        "image_size": one_or_two(config.image_size),
        "patch_size": one_or_two(config.patch_size),
        "embed_dim": config.hidden_sizes[0],
        "use_absolute_embeddings": config.use_absolute_embeddings,
        "encoder_stride": config.stage_strides[-1][0],
        "id2label": config.id2label,
        "label2id": config.label2id,
        "architectures": [native_class(model, family)],
    }


def _transformers_native(model: PreTrainedModel) -> dict[str, Any]:
    config = model.config
    windows = configured_windows(config)
    if windows != [config.window_size] * len(windows):
        raise ConversionError(
            f"transformers' Swin has tables of window_size={config.window_size} only, not of {windows}"
        )
    return SwinConfig(**transformers_arguments(model, "Swin")).to_diff_dict()


# ---------------------------------------------------------------------------------------------------------------------

_BIAS = BLOCK + "attn.relative_position_bias_table"
_TIMM_HOLDS = {
    "patch_norm": (True,),
    "use_absolute_embeddings": (False,),
    "qk_scale": (None,),
    "layer_norm_eps": (1e-5,),
}
LAYOUTS = {
    "original": Layout(
        rules=rules,
        config=config_from_original,
        requires=("patch_embed.proj.weight", _BIAS, BLOCK + "attn.relative_position_index"),
        suffix=".pth",
        wrapper="model",
    ),
    "timm": Layout(
        rules=timm_rules,
        config=config_from_original,
        requires=("patch_embed.proj.weight", _BIAS),
        forbids=(BLOCK + "attn.relative_position_index",),
        holds=_TIMM_HOLDS,
        native_config=_timm_native,
    ),
    **{
        name: Layout(
            rules=_transformers_rules(names),
            config=transformers_config,
            requires=("embeddings.patch_embeddings.projection.weight", ENCODER_BLOCK + names["bias"]),
            prefix="swin.",
            head_keys_in_base=(MASK_TOKEN,),
            # Its norms of patches and merging have this epsilon whatever its configuration says.
            holds={"patch_norm": (True,), "qk_scale": (None,), "layer_norm_eps": (1e-5,)},
            native_config=_transformers_native,
        )
        for name, names in {"transformers": _VERSION_4, "transformers_5": _VERSION_5}.items()
    },
}

MODELHUB = "MODELHUB.md of microsoft/Swin-Transformer"
