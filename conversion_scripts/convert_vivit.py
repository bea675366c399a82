"""ViViT: the original flax checkpoints of scenic, and transformers' own ViViT."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, VivitConfig

from ..conversion.convert import (
    Layout,
    Source,
    common_size,
    count_indices,
    fields_from_kwargs,
    has_head,
    ignored,
    make_config,
    published_like,
    shape_of,
    square_image,
)
from ..conversion.rules import Permute, Reshape, Rule
from ..errors import ConversionError
from ..modeling.configuration_vitf import pair
from ..modeling.configuration_vivit import VitfVivitConfig
from .flax_names import flax_attention_rules, flax_dense_rules, flax_mlp_rules, flax_norm_rules
from .transformers_names import TRANSFORMERS_NAMES, transformers_fields, transformers_native_fields, transformers_rules

SOURCE = Source(
    "google-research/scenic",
    "4a38d475ee89cb821078c0e2bf2065ee030e1535",
    "projects/vivit/model.py",
    "apache-2.0",
)

_PROJECTION = "embeddings.patch_embeddings.projection."
_KERNEL = "embedding/kernel"
_POSITIONS = "posembed_input/pos_embedding"


def _tubelets(config: VitfVivitConfig, *order: int) -> tuple[Permute, Reshape]:
    """
    From a 3-D filter, whose dimensions are brought in the order (out, frames, channels, height, width), to ours in 2-D.
    """
    channels, patch = config.num_channels, pair(config.patch_size)
    before = (config.hidden_size, config.tubelet_size, channels, *patch)
    return Permute(*order), Reshape(before, (config.hidden_size, config.tubelet_size * channels, *patch))


# ---------------------------------------------------------------------------------------------------------------------
# The original: flax parameters

# Modules of a layer: norm and attention over space (or of all), norm of the feed-forward layer and that layer.
_PLAIN = ("LayerNorm_0", "MultiHeadDotProductAttention_0", "LayerNorm_1", "MlpBlock_0")
_FACTORISED = ("LayerNorm_space", "MultiHeadDotProductAttention_space", "LayerNorm_mlp", "MlpBlock")


def _encoder_rules(source: str, target: str, width: int, heads: int, modules: tuple[str, ...]) -> list[Rule]:
    block, layer = f"{source}/encoderblock_{{i}}/", f"{target}layers.{{i}}."
    norm1, attention, norm2, mlp = (block + module for module in modules)
    return [
        *flax_norm_rules(norm1, layer + "layernorm_before"),
        *flax_attention_rules(attention, layer + "attention", width, heads),
        *flax_norm_rules(norm2, layer + "layernorm_after"),
        *flax_mlp_rules(mlp, layer + "mlp"),
        *flax_norm_rules(f"{source}/encoder_norm", f"{target}layernorm"),
    ]


def _flax_rules(config: VitfVivitConfig, encoder: str, modules: tuple[str, ...]) -> list[Rule]:
    width, heads = config.hidden_size, config.num_attention_heads
    table = [
        Rule(_KERNEL, _PROJECTION + "weight", *_tubelets(config, 4, 0, 3, 1, 2)),
        Rule("embedding/bias", _PROJECTION + "bias"),
        Rule(f"{encoder}/{_POSITIONS}", "embeddings.position_embeddings.weight"),
        *_encoder_rules(encoder, "", width, heads, modules),
        *flax_dense_rules("output_projection", "classifier"),
    ]
    if config.pooling == "cls":
        table.append(Rule("cls" if encoder == "Transformer" else f"cls_{encoder}", "embeddings.cls_token"))
    if config.representation_size is not None:
        table += flax_dense_rules("pre_logits", "pre_logits")
    return table


def rules(config: VitfVivitConfig) -> list[Rule]:
    """The table of models 1 and 4, which have the same keys but for the class token."""
    return _flax_rules(config, "Transformer", _PLAIN)


def factorised_encoder_rules(config: VitfVivitConfig) -> list[Rule]:
    """The table of model 2."""
    target, width = "temporal_encoder.", config.hidden_size
    table = [
        *_flax_rules(config, "SpatialTransformer", _PLAIN),
        Rule(f"TemporalTransformer/{_POSITIONS}", target + "time_embeddings.weight"),
        *_encoder_rules("TemporalTransformer", target, width, config.num_temporal_heads, _PLAIN),
    ]
    if config.pooling == "cls":
        table.append(Rule("cls_TemporalTransformer", target + "cls_token"))
    return table


def factorised_self_attention_rules(config: VitfVivitConfig) -> list[Rule]:
    """The table of model 3."""
    block, layer = "Transformer/encoderblock_{i}/", "layers.{i}.temporal_"
    return [
        *_flax_rules(config, "Transformer", _FACTORISED),
        *flax_norm_rules(block + "LayerNorm_time", layer + "layernorm"),
        *flax_attention_rules(
            block + "MultiHeadDotProductAttention_time",
            layer + "attention",
            config.hidden_size,
            config.num_attention_heads,
        ),
    ]


def _of_sampled_frames(table: Callable[[VitfVivitConfig], list[Rule]]) -> Callable[[VitfVivitConfig], list[Rule]]:
    """
    The table of a model that embeds sampled frames one by one ("temporal_sampling"), by a filter without a time axis.
    """

    def rules(config: VitfVivitConfig) -> list[Rule]:
        rest = [rule for rule in table(config) if rule.sources != (_KERNEL,)]
        return [Rule(_KERNEL, _PROJECTION + "weight", Permute(3, 2, 0, 1)), *rest]

    return rules


# Values of the original's arguments to ours.
_ATTENTION_TYPES = {
    "spacetime": "joint_space_time",
    "factorized_encoder": "factorised_encoder",
    "factorized_self_attention_block": "factorised_self_attention",
    "factorized_dot_product_attention": "factorised_dot_product",
}
_POOLINGS = {"token": "cls", "gap": "mean"}
_INITIALIZATIONS = {"central_frame_initializer": "central_frame", "average_frame_initializer": "average_frame"}


def _one_of(argument: str, field: str, values: Mapping[str, str]) -> Callable[[str], dict[str, str]]:
    """For the table of `fields_from_kwargs`: a value that has another name here."""

    def translate(value: str) -> dict[str, str]:
        if value not in values:
            raise ConversionError(
                f"original argument {argument}={value!r} is not supported, only {list(values)}", argument
            )
        return {field: values[value]}

    return translate


def _attention(config: Mapping[str, Any]) -> dict[str, Any]:
    names = {
        "type": _one_of("attention_config.type", "attention_type", _ATTENTION_TYPES),
        "attention_order": "attention_order",
        "attention_kernel_init_method": ignored,
    }
    return fields_from_kwargs(config, names)


def _tubelet_encoding(config: Mapping[str, Any]) -> dict[str, Any]:
    name = "kernel_init_method"
    names = {name: _one_of(name, "tubelet_initialization", _INITIALIZATIONS), "n_sampled_frames": "num_frames"}
    return fields_from_kwargs(config, names, {"method": ("3d_conv", "temporal_sampling")})


def _patches(patches: Mapping[str, Any]) -> dict[str, Any]:
    """Rows and columns, and of tubelets frames."""
    rows, columns, *frames = patches["size"]
    return {"patch_size": (rows, columns), "tubelet_size": frames[0] if frames else 1}


def _kwargs(width: int) -> dict[str, Any]:
    """Arguments of `ViViT` and `SpaceTimeViViT` of projects/vivit/model.py."""

    def ratio(field: str):
        return lambda mlp_dim: {field: mlp_dim / width}

    layers = {
        "num_layers": "num_hidden_layers",
        "num_heads": "num_attention_heads",
        "mlp_dim": ratio("mlp_ratio"),
    }
    return {
        **layers,
        **{f"spatial_{name}": target for name, target in layers.items()},
        "temporal_num_layers": "num_temporal_layers",
        "temporal_num_heads": "num_temporal_heads",
        "temporal_mlp_dim": ratio("temporal_mlp_ratio"),
        "num_classes": "num_labels",
        "hidden_size": "hidden_size",
        "representation_size": "representation_size",
        "dropout_rate": "hidden_dropout_prob",
        "attention_dropout_rate": "attention_probs_dropout_prob",
        "stochastic_droplayer_rate": "drop_path_rate",
        "patches": _patches,
        "attention_config": _attention,
        "temporal_encoding_config": _tubelet_encoding,
        "classifier": _one_of("classifier", "pooling", _POOLINGS),
        **dict.fromkeys(("cls", "dtype", "return_prelogits", "return_preclassifier"), ignored),
    }


def _encoder(state_dict: Mapping[str, Tensor], encoder: str, modules: tuple[str, ...]) -> tuple[int, int, int]:
    """Number of layers, heads, and width of the feed-forward layer of an encoder."""
    block = f"{encoder}/encoderblock_{{i}}/"
    attention, mlp = (block.format(i=0) + modules[place] for place in (1, 3))
    return (
        count_indices(f"{block}{modules[1]}/out/bias", state_dict),
        common_size({f"{attention}/{name}/bias": 0 for name in ("query", "key", "value")}, state_dict),
        common_size({f"{mlp}/Dense_0/bias": 0, f"{mlp}/Dense_0/kernel": 1, f"{mlp}/Dense_1/kernel": 0}, state_dict),
    )


def _places_of(image_size: Any, patch_size: tuple[int, int]) -> int:
    return math.prod(edge // patch for edge, patch in zip(pair(image_size), patch_size, strict=True))


def _readings(rows: int, patch_size: tuple[int, int], tubelet_size: int) -> str:
    """The square clips that a table of so many rows may be for, the shortest first, in words."""
    clips = [
        f"{groups * tubelet_size} frames of {image[0]} x {image[1]}"
        for groups in range(1, rows + 1)
        if rows % groups == 0 and (image := square_image(rows // groups, patch_size)) is not None
    ]
    return " or ".join(clips if len(clips) < 5 else [*clips[:3], clips[-1]])


def clip_of_table(known: Mapping[str, Any], rows: int, given: Mapping[str, Any], key: str) -> dict[str, Any]:
    """
    Frames and size of the clip that a table of so many rows in space and time is for. The file has their product only:
    one of both must be given, or the model be one of the published ones.

    Args:
        known: Fields that other shapes tell. given: Fields that arguments and the user tell. key: Of the table.

    Raises:
        ConversionError: if neither is given and no published model has these shapes, or what is given does not fit.
    """
    patch_size, tubelet_size = known["patch_size"], known["tubelet_size"]
    if "num_frames" not in given and "image_size" not in given:
        clips = {
            (variant.num_frames, pair(variant.image_size))
            for variant in published_like(VitfVivitConfig, known)
            if rows == variant.num_frames // tubelet_size * _places_of(variant.image_size, patch_size)
        }
        if len(clips) != 1:
            squares = _readings(rows, patch_size, tubelet_size)
            raise ConversionError(
                f"num_frames and image_size are not told by the checkpoint: key {key!r} has {rows} places in space "
                f"and time together"
                + (f", as of {squares} pixels" if squares else "")
                + "; give one of them, as --set num_frames=...",
                key,
            )
        ((num_frames, image),) = clips
        return {"num_frames": num_frames, "image_size": image}
    num_frames, image = given.get("num_frames"), given.get("image_size")
    groups = None if num_frames is None else num_frames // tubelet_size
    if image is None:
        image = square_image(rows // groups, patch_size) if groups and rows % groups == 0 else None
        if image is None:
            raise ConversionError(
                f"image_size is not told by the checkpoint: key {key!r} has {rows} places in space and time together, "
                f"which is no square image in {num_frames} frames; give it, as --set image_size=...",
                key,
            )
    places = _places_of(image, patch_size)
    if places == 0 or rows % places or groups not in (None, rows // places):
        clip = f"image_size={image}" + ("" if groups is None else f" and num_frames={num_frames}")
        raise ConversionError(f"key {key!r} has {rows} places in space and time, which {clip} does not fit", key)
    return {"image_size": image, "num_frames": rows // places * tubelet_size}


def config_from_original(
    kwargs: Mapping[str, Any], state_dict: Mapping[str, Tensor], **overrides: Any
) -> VitfVivitConfig:
    """
    The configuration of a flax checkpoint. Shapes tell all but the frames and the size of the clip, of which the file
    of another model than the published ones has the product only (`image_size` or `num_frames`), and without a class
    token whether the attention of models 1 and 4 is factorised (`attention_type`).

    Args:
        kwargs: Keyword arguments of `ViViT` or `SpaceTimeViViT` in projects/vivit/model.py; may be empty.
        state_dict: The checkpoint.
        overrides: Fields that replace what arguments and shapes say.
    """
    sampled = _KERNEL in state_dict and state_dict[_KERNEL].ndim == 4
    *tubelet, rows, columns, channels, _ = shape_of(_KERNEL, state_dict, 4 if sampled else 5)
    tubelet_size, patch_size = (tubelet or [1])[0], (rows, columns)
    known: dict[str, Any] = {"patch_size": patch_size, "tubelet_size": tubelet_size, "num_channels": channels}
    ask_for = {}
    if any(key.startswith("SpatialTransformer/") for key in state_dict):
        encoder, modules = "SpatialTransformer", _PLAIN
        known["attention_type"] = "factorised_encoder"
    elif any("LayerNorm_time/" in key for key in state_dict):
        encoder, modules = "Transformer", _FACTORISED
        known["attention_type"] = "factorised_self_attention"
    else:
        encoder, modules = "Transformer", _PLAIN
        if "cls" in state_dict:
            known["attention_type"] = "joint_space_time"
        else:
            ask_for["attention_type"] = "Transformer/encoderblock_0/MultiHeadDotProductAttention_0/query/kernel"
    prefix = int("cls" in state_dict or "cls_SpatialTransformer" in state_dict)
    known["pooling"] = "cls" if prefix else "mean"
    width = common_size({_KERNEL: -1, "embedding/bias": 0, f"{encoder}/encoder_norm/scale": 0}, state_dict)
    layers, heads, mlp_dim = _encoder(state_dict, encoder, modules)
    known |= {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "mlp_ratio": mlp_dim / width,
    }
    table = f"{encoder}/{_POSITIONS}"
    places = shape_of(table, state_dict, 3)[1] - prefix
    given = fields_from_kwargs(kwargs, _kwargs(width))
    if encoder == "Transformer":
        known |= clip_of_table(known, places, {**given, **overrides}, table)
    else:
        layers, heads, mlp_dim = _encoder(state_dict, "TemporalTransformer", _PLAIN)
        groups = shape_of(f"TemporalTransformer/{_POSITIONS}", state_dict, 3)[1] - prefix
        known |= {
            "num_temporal_layers": layers,
            "num_temporal_heads": heads,
            "temporal_mlp_ratio": mlp_dim / width,
            "num_frames": groups * tubelet_size,
        }
        if (image := square_image(places, patch_size)) is not None:
            known["image_size"] = image
        ask_for["image_size"] = table
    if "pre_logits/bias" in state_dict:
        known["representation_size"] = shape_of("pre_logits/bias", state_dict, 1)[0]
    if "output_projection/bias" in state_dict:
        known["num_labels"] = common_size({"output_projection/bias": 0, "output_projection/kernel": 1}, state_dict)
    return make_config(VitfVivitConfig, known, given, ask_for=ask_for, **overrides)


# ---------------------------------------------------------------------------------------------------------------------
# transformers' own ViViT: model 1, with the names of its ViT.

# What transformers calls the tanh approximation of GELU, in versions of its own; PyTorch's kernel is faster.
_TANH_GELU = ("gelu_fast", "gelu_new")


def _transformers_rules(names: Mapping[str, Any]) -> Callable[[VitfVivitConfig], list[Rule]]:
    def rules(config: VitfVivitConfig) -> list[Rule]:
        table = [rule for rule in transformers_rules(names) if _PROJECTION + "*" not in rule.sources]
        table += [
            Rule(_PROJECTION + "weight", _PROJECTION + "weight", *_tubelets(config, 0, 2, 1, 3, 4)),
            Rule(_PROJECTION + "bias", _PROJECTION + "bias"),
            Rule("classifier.*", "classifier.*"),
        ]
        if config.representation_size is not None:
            table.append(Rule("pooler.dense.*", "pre_logits.*"))
        return table

    return rules


def transformers_config(
    kwargs: Mapping[str, Any], state_dict: Mapping[str, Tensor], **overrides: Any
) -> VitfVivitConfig:
    """The configuration of transformers' own ViViT; `kwargs` is its config.json."""
    tubelet_size, *patch_size = shape_of(_PROJECTION + "weight", state_dict, 5)[2:]
    known = transformers_fields({**kwargs, "patch_size": tuple(patch_size)}, state_dict, "classifier")
    if known["hidden_act"] in _TANH_GELU:
        known["hidden_act"] = "gelu_pytorch_tanh"
    table = "embeddings.position_embeddings"
    places = shape_of(table, state_dict, 3)[1] - 1
    known["tubelet_size"] = tubelet_size
    clip = {name: kwargs[name] for name in ("num_frames", "image_size") if name in kwargs}
    known |= clip_of_table(known, places, {**clip, **overrides}, table)
    if "pooler.dense.weight" in state_dict:
        if (activation := kwargs.get("pooler_act", "tanh")) != "tanh":
            raise ConversionError(f"pooler_act={activation!r} is not supported, only 'tanh'", "pooler_act")
        known["representation_size"] = shape_of("pooler.dense.weight", state_dict, 2)[0]
    return make_config(VitfVivitConfig, known, **overrides)


def _transformers_native(model: PreTrainedModel) -> dict[str, Any]:
    config = model.config
    if has_head(model) and config.representation_size is not None:
        raise ConversionError(
            "transformers' VivitForVideoClassification has no layer before its head (representation_size)"
        )
    fields = transformers_native_fields(config)
    del fields["patch_size"]
    return VivitConfig(
        **fields,
        num_frames=config.num_frames,
        tubelet_size=[config.tubelet_size, *pair(config.patch_size)],
        pooler_output_size=config.representation_size,
        architectures=["VivitForVideoClassification" if has_head(model) else "VivitModel"],
    ).to_diff_dict()


_QUERY = "encoderblock_{i}/MultiHeadDotProductAttention_0/query/kernel"


def _flax_layout(table: Callable[[VitfVivitConfig], list[Rule]], types: tuple[str, ...], *requires: str) -> Layout:
    return Layout(
        rules=table,
        config=config_from_original,
        requires=(_KERNEL, *requires),
        forbids=("head/*",),  # of ViT, whose other keys may be the same
        ndims={_KERNEL: 5},
        suffix=".npz",
        holds={"attention_type": types, "qkv_bias": (True,)},
    )


_ORIGINALS = {
    "original": _flax_layout(rules, ("joint_space_time", "factorised_dot_product"), "Transformer/" + _QUERY),
    "original_factorised_encoder": _flax_layout(
        factorised_encoder_rules,
        ("factorised_encoder",),
        "SpatialTransformer/" + _QUERY,
        "TemporalTransformer/" + _QUERY,
    ),
    "original_factorised_self_attention": _flax_layout(
        factorised_self_attention_rules,
        ("factorised_self_attention",),
        *(
            f"Transformer/encoderblock_{{i}}/MultiHeadDotProductAttention_{axis}/query/kernel"
            for axis in ("time", "space")
        ),
    ),
}
LAYOUTS = {
    **_ORIGINALS,
    **{
        f"{name}_sampled_frames": replace(
            layout,
            rules=_of_sampled_frames(layout.rules),
            ndims={_KERNEL: 4},
            # But for the head, a file of models 1 and 4 has the keys of a ViT.
            requires=(*layout.requires, *(["output_projection/kernel"] if name == "original" else [])),
            holds={**layout.holds, "tubelet_size": (1,)},
            note="the original takes num_frames frames at equal distances from a longer clip (temporal_sampling); "
            "here the processor samples a clip, and the model takes each of its frames",
        )
        for name, layout in _ORIGINALS.items()
    },
    **{
        name: Layout(
            rules=_transformers_rules(names),
            config=transformers_config,
            requires=(_PROJECTION + "weight", names["layer"] + names["qkv"][0] + "weight"),
            prefix="vivit.",
            holds={"attention_type": ("joint_space_time",), "pooling": ("cls",)},
            native_config=_transformers_native,
        )
        for name, names in TRANSFORMERS_NAMES.items()
    },
}
