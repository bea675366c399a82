"""ViViT: the original flax checkpoints of scenic, and transformers' own ViViT."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, VivitConfig

from ..conversion import (
    Layout,
    Published,
    Source,
    common_size,
    count_indices,
    fields_from_kwargs,
    has_head,
    ignored,
    make_config,
    shape_of,
    square_image,
)
from ..errors import ConversionError
from ..modeling.configuration_vitf import pair
from ..modeling.configuration_vivit import VitfVivitConfig
from ..rules import Permute, Reshape, Rule
from .flax_names import flax_attention_rules, flax_dense_rules, flax_mlp_rules, flax_norm_rules
from .transformers_names import TRANSFORMERS_NAMES, transformers_fields, transformers_native_fields, transformers_rules

SOURCE = Source(
    "google-research/scenic",
    "4a38d475ee89cb821078c0e2bf2065ee030e1535",
    "projects/vivit/model.py",
    "apache-2.0",
)

_PROJECTION = "embeddings.patch_embeddings.projection."
_POSITIONS = "posembed_input/pos_embedding"


def _tubelets(config: VitfVivitConfig, *order: int) -> tuple[Permute, Reshape]:
    """From a 3-D filter, whose dimensions are brought in the order (out, frames, channels, height, width), to ours in 2-D."""
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
        Rule("embedding/kernel", _PROJECTION + "weight", *_tubelets(config, 4, 0, 3, 1, 2)),
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
    names = {name: _one_of(name, "tubelet_initialization", _INITIALIZATIONS)}
    return fields_from_kwargs(config, names, {"method": ("3d_conv",)})


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
        "patches": lambda patches: {"patch_size": tuple(patches["size"][:2]), "tubelet_size": patches["size"][2]},
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


def _grid(
    rows: int, patch_size: tuple[int, int], tubelet_size: int, given: Mapping[str, Any], key: str
) -> dict[str, Any]:
    """
    Frames and size of the clip that a table of so many rows in space and time is for. Their product alone is in the file: one
    of both must be given, or be that of the published models.
    """
    num_frames = given.get("num_frames", VitfVivitConfig.num_frames)
    if "image_size" in given:
        places = math.prod(edge // patch for edge, patch in zip(pair(given["image_size"]), patch_size, strict=True))
        if places == 0 or rows % places:
            raise ConversionError(f"key {key!r} has {rows} places, not a multiple of {places} for image_size", key)
        return {"image_size": given["image_size"], "num_frames": rows // places * tubelet_size}
    groups = num_frames // tubelet_size
    image = square_image(rows // groups, patch_size) if groups and rows % groups == 0 else None
    if image is None:
        raise ConversionError(
            f"image_size is not told by the checkpoint (key {key!r} has {rows} places in space and time); give it, as "
            f"image_size=...",
            key,
        )
    return {"image_size": image, "num_frames": num_frames}


def config_from_original(
    kwargs: Mapping[str, Any], state_dict: Mapping[str, Tensor], **overrides: Any
) -> VitfVivitConfig:
    """
    The configuration of a flax checkpoint. Shapes tell all but the frames and the size of the clip, of which the file has the
    product (`image_size` or `num_frames`; by default 32 square frames), and without a class token whether the attention of
    models 1 and 4 is factorised (`attention_type`).

    Args:
        kwargs: Keyword arguments of `ViViT` or `SpaceTimeViViT` in projects/vivit/model.py; may be empty.
        state_dict: The checkpoint.
        overrides: Fields that replace what arguments and shapes say.
    """
    tubelet_size, rows, columns, channels, _ = shape_of("embedding/kernel", state_dict, 5)
    patch_size = (rows, columns)
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
    width = common_size({"embedding/kernel": 4, "embedding/bias": 0, f"{encoder}/encoder_norm/scale": 0}, state_dict)
    layers, heads, mlp_dim = _encoder(state_dict, encoder, modules)
    known |= {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "mlp_ratio": mlp_dim / width,
    }
    table = f"{encoder}/{_POSITIONS}"
    places = shape_of(table, state_dict, 3)[1] - prefix
    if encoder == "Transformer":
        known |= _grid(places, patch_size, tubelet_size, overrides, table)
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
    given = fields_from_kwargs(kwargs, _kwargs(width))
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
    known |= _grid(places, known["patch_size"], tubelet_size, {"image_size": known["image_size"], **overrides}, table)
    known["tubelet_size"] = tubelet_size
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
        requires=("embedding/kernel", *requires),
        forbids=("head/*",),  # of ViT, whose other keys may be the same
        suffix=".npz",
        holds={"attention_type": types, "qkv_bias": (True,)},
    )


LAYOUTS = {
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

_HOST = "https://storage.googleapis.com/scenic-bucket/vivit"
# Variant, folder, top-1 of the README (Epic-Kitchens: of actions), data.
_FILES = (
    ("vivit_base_16x2_k400", "kinetics_400/vivit_base_16x2_unfactorized", 79.9, "Kinetics-400"),
    ("vivit_base_16x2_fe_k400", "kinetics_400/vivit_base_16x2_fe", 78.4, "Kinetics-400"),
    ("vivit_large_16x2_fe_k400", "kinetics_400/vivit_large_16x2_fe", 80.3, "Kinetics-400"),
    ("vivit_large_16x2_fe_k600", "kinetics_600/vivit_large_16x2_fe", 81.6, "Kinetics-600"),
    ("vivit_large_16x2_fe_epic_kitchens", "epic_kitchens/vivit_large_16x2_fe", 43.6, "Epic-Kitchens-100"),
)
CHECKPOINTS: dict[str, Published] = {
    f"{variant}.scenic": Published(
        f"{_HOST}/{folder}/checkpoint",
        training=f"ImageNet-21k, then {data} ({top1}% top-1 there, README of projects/vivit in google-research/scenic@4a38d47)",
        license="apache-2.0",
        license_source="that of the repository; none is stated for the weights",
        wrapper="optimizer/target",
    )
    for variant, folder, top1, data in _FILES
}
