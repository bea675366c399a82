"""NesT: the original's flax parameters, and timm's nest and jx_nest models."""

import math
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
    ignored,
    layer_norm_eps,
    make_config,
    one_or_two,
    shape_of,
)
from ..conversion.rules import Concatenate, Each, Permute, Reshape, Rule, Split
from ..errors import ConversionError
from ..modeling.configuration_nest import VitfNestConfig
from ..modeling.configuration_vitf import pair

SOURCE = Source(
    "google-research/nested-transformer",
    "59c0d6aa1a0526fbca15507a172f3dc110f52a3c",
    "models/nest_net.py, libml/self_attention.py",
    "apache-2.0",
)


def _position_rules(config: VitfNestConfig, source: str) -> list[Rule]:
    """Positions are stored block by block, (1, blocks, tokens of a block, C); here they are a map, row by row."""
    rules, side = [], config.block_size
    for stage, width in enumerate(config.hidden_sizes):
        rows, columns = config.feature_map_sizes(*pair(config.image_size))[stage + 1]
        if rows % side or columns % side:
            raise ConversionError(
                f"image_size={config.image_size}: the map of stage {stage + 1} has {rows}x{columns} tokens, no "
                f"multiple of block_size={side}, and the original has no place for it"
            )
        blocks = (rows // side, columns // side)
        rules.append(
            Rule(
                source.format(s=stage),
                f"stages.{stage}.position_embeddings.weight",
                Reshape((1, blocks[0] * blocks[1], side * side, width), (*blocks, side, side, width)),
                Permute(0, 2, 1, 3, 4),
                Reshape((blocks[0], side, blocks[1], side, width), (1, rows * columns, width)),
            )
        )
    return rules


def _linear(source: str, target: str) -> list[Rule]:
    return [Rule(f"{source}/kernel", f"{target}.weight", Permute(1, 0)), Rule(f"{source}/bias", f"{target}.bias")]


def _norm(source: str, target: str) -> list[Rule]:
    return [Rule(f"{source}/scale", f"{target}.weight"), Rule(f"{source}/bias", f"{target}.bias")]


def _conv(source: str, target: str) -> list[Rule]:
    return [
        Rule(f"{source}/kernel", f"{target}.weight", Permute(3, 2, 0, 1)),
        Rule(f"{source}/bias", f"{target}.bias"),
    ]


# Kind of attention to the flax module's name.
_ATTENTION = {"multi_head": "MultiHeadAttention_0", "multi_query": "MultiQueryAttention_0"}


def _attention_rules(config: VitfNestConfig, stage: int, source: str, target: str) -> list[Rule]:
    width, heads = config.hidden_sizes[stage], config.num_heads[stage]
    head = width // heads
    if config.attention_type == "multi_head":
        # The last axis of keys and values holds a head's key, then its value.
        names = (f"{source}/DenseGeneral_0", f"{source}/DenseGeneral_1")
        weight = (
            Concatenate((head, 2 * head), dim=2),
            Split(3, dim=2),
            Reshape((width, heads, head), (width, width)),
            Permute(1, 0),
            Concatenate(3),
        )
        bias = (
            Concatenate((head, 2 * head), dim=1),
            Split(3, dim=1),
            Reshape((heads, head), (width,)),
            Concatenate(3),
        )
    else:
        names = (f"{source}/DenseGeneral_0", f"{source}/Dense_0")
        weight = (
            Each(Reshape((width, heads, head), (width, width)), None),
            Permute(1, 0),
            Concatenate((width, 2 * head)),
        )
        bias = (Each(Reshape((heads, head), (width,)), None), Concatenate((width, 2 * head)))
    rules = [
        Rule(tuple(f"{name}/kernel" for name in names), f"{target}.qkv.weight", *weight),
        Rule(
            f"{source}/proj_kernel",
            f"{target}.proj.weight",
            Reshape((heads, head, width), (width, width)),
            Permute(1, 0),
        ),
        Rule(f"{source}/bias", f"{target}.proj.bias"),
    ]
    if config.qkv_bias:
        rules.append(Rule(tuple(f"{name}/bias" for name in names), f"{target}.qkv.bias", *bias))
    return rules


def rules(config: VitfNestConfig) -> list[Rule]:
    """The table of the flax parameters. They count the layers of all stages in one sequence."""
    table = [
        *_conv("PatchEmbedding_0/Conv_0", "embeddings.patch_embeddings.projection"),
        *_position_rules(config, "PositionEmbedding_{s}/pos_embedding"),
        *_conv("ConvPool_{s}/Conv_0", "stages.{s+1}.aggregation.conv"),
        *_norm("ConvPool_{s}/LayerNorm_0", "stages.{s+1}.aggregation.norm"),
        *_norm("LayerNorm_0", "layernorm"),
        *_linear("Dense_0", "classifier"),
    ]
    layers = [(stage, layer) for stage, depth in enumerate(config.depths) for layer in range(depth)]
    for number, (stage, layer) in enumerate(layers):
        source, target = f"EncoderNDBlock_{number}", f"stages.{stage}.layers.{layer}"
        table += [
            *_norm(f"{source}/LayerNorm_0", f"{target}.layernorm_before"),
            *_norm(f"{source}/LayerNorm_1", f"{target}.layernorm_after"),
            *_attention_rules(config, stage, f"{source}/{_ATTENTION[config.attention_type]}", f"{target}.attention"),
            *_linear(f"{source}/MlpBlock_0/Dense_0", f"{target}.mlp.fc1"),
            *_linear(f"{source}/MlpBlock_0/Dense_1", f"{target}.mlp.fc2"),
        ]
    return table


_ATTENTION_TYPES = {f"local_{name}": name for name in _ATTENTION}


def _model_config(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields from the `config` of `NestNet`. Heads and widths are told by the shapes."""
    names = {
        "init_patch_embed_size": "patch_size",
        "patch_size": "block_size",
        "num_layers_per_block": lambda depths: {"depths": list(depths)},
        "embedding_dim": ignored,
        "num_heads": ignored,
        "scale_hidden_dims": ignored,
        "attn_type": lambda name: {"attention_type": _ATTENTION_TYPES.get(name, name)},
        "mlp_ratio": "mlp_ratio",
        "qkv_bias": "qkv_bias",
        "attn_drop": "attention_probs_dropout_prob",
        "proj_drop": "hidden_dropout_prob",
        "stochastic_depth_drop": "drop_path_rate",
    }
    return fields_from_kwargs(fields, names, {"norm_type": ("LN",)})


def _geometry(positions: list[tuple[int, ...]], patch_size: tuple[int, ...]) -> dict[str, Any]:
    """Sizes from the shapes of the position tables, (1, blocks, tokens of a block, C): as many rows as columns."""
    block_size, blocks = math.isqrt(positions[0][2]), math.isqrt(positions[0][1])
    return {
        "hidden_sizes": [shape[3] for shape in positions],
        "block_size": block_size,
        "patch_size": one_or_two(patch_size),
        "image_size": one_or_two([blocks * block_size * side for side in patch_size]),
    }


def _published_depths(known: Mapping[str, Any], num_layers: int) -> dict[str, list[int]]:
    """The depths of the published variants with these widths and that many layers in all."""
    for variant in map(VitfNestConfig.from_variant, VitfNestConfig.VARIANTS):
        if variant.hidden_sizes == known["hidden_sizes"] and sum(variant.depths) == num_layers:
            return {"depths": variant.depths}
    return {}


def config_from_original(
    kwargs: Mapping[str, Any], state_dict: Mapping[str, Tensor], **overrides: Any
) -> VitfNestConfig:
    """
    The configuration of the flax parameters. Shapes tell all but the depths of stages that are equally wide, which come
    from `kwargs` or from the published variant with as many layers.

    Args:
        kwargs: Keyword arguments of `NestNet`; may be empty.
        state_dict: The parameters, paths joined by "/".
        overrides: Fields that replace what arguments and shapes say.
    """
    *patch_size, channels, _ = shape_of("PatchEmbedding_0/Conv_0/kernel", state_dict, 4)
    stages = count_indices("PositionEmbedding_{s}/pos_embedding", state_dict, "s")
    positions = [shape_of(f"PositionEmbedding_{s}/pos_embedding", state_dict, 4) for s in range(stages)]
    block = "EncoderNDBlock_{i}/"
    num_layers = count_indices(block + "MlpBlock_0/Dense_0/bias", state_dict)
    widths = [
        common_size({f"{block}LayerNorm_0/scale": 0, f"{block}MlpBlock_0/Dense_1/bias": 0}, state_dict)
        for block in map("EncoderNDBlock_{}/".format, range(num_layers))
    ]
    kind = next((kind for kind, name in _ATTENTION.items() if any(f"/{name}/" in key for key in state_dict)))
    attention = f"EncoderNDBlock_0/{_ATTENTION[kind]}"
    _, heads, head = shape_of(f"{attention}/DenseGeneral_0/kernel", state_dict, 3)
    known = {
        **_geometry(positions, patch_size),
        "num_channels": channels,
        "attention_type": kind,
        "qkv_bias": f"{attention}/DenseGeneral_0/bias" in state_dict,
        "mlp_ratio": shape_of("EncoderNDBlock_0/MlpBlock_0/Dense_0/kernel", state_dict, 2)[1] / widths[0],
    }
    if "Dense_0/bias" in state_dict:
        known["num_labels"] = common_size({"Dense_0/bias": 0, "Dense_0/kernel": 1}, state_dict)
    known["num_heads"] = [width // head for width in known["hidden_sizes"]]
    if heads != known["num_heads"][0]:
        raise ConversionError(f"shapes contradict each other: {heads} heads of {head} channels", attention)
    if len(set(known["hidden_sizes"])) == stages:
        known["depths"] = [widths.count(width) for width in known["hidden_sizes"]]
    else:
        known |= _published_depths(known, num_layers)
    given = fields_from_kwargs(
        kwargs,
        {
            "num_classes": "num_labels",
            "config": _model_config,
            "image_size": "image_size",
            "dtype": ignored,
            "train": ignored,
        },
    )
    return make_config(VitfNestConfig, known, given, ask_for={"depths": block + "LayerNorm_0/scale"}, **overrides)


# ---------------------------------------------------------------------------------------------------------------------
# timm, which merges the heads of a token channel by channel instead of head by head


def timm_rules(config: VitfNestConfig) -> list[Rule]:
    """The table of timm 1.0's Nest."""
    source, target = "levels.{s}.transformer_encoder.{i}.", "stages.{s}.layers.{i}."
    table = [
        Rule("patch_embed.proj.*", "embeddings.patch_embeddings.projection.*"),
        *_position_rules(config, "levels.{s}.pos_embed"),
        Rule("levels.{s}.pool.conv.*", "stages.{s}.aggregation.conv.*"),
        Rule("levels.{s}.pool.norm.*", "stages.{s}.aggregation.norm.*"),
        Rule(source + "norm1.*", target + "layernorm_before.*"),
        Rule(source + "attn.qkv.*", target + "attention.qkv.*"),
        Rule(source + "attn.proj.bias", target + "attention.proj.bias"),
        Rule(source + "norm2.*", target + "layernorm_after.*"),
        Rule(source + "mlp.fc1.*", target + "mlp.fc1.*"),
        Rule(source + "mlp.fc2.*", target + "mlp.fc2.*"),
        Rule("norm.*", "layernorm.*"),
        Rule("head.*", "classifier.*"),
    ]
    for stage, (width, heads) in enumerate(zip(config.hidden_sizes, config.num_heads, strict=True)):
        head = width // heads
        table.append(
            Rule(
                f"levels.{stage}.transformer_encoder.{{i}}.attn.proj.weight",
                f"stages.{stage}.layers.{{i}}.attention.proj.weight",
                Reshape((width, width), (width, head, heads)),
                Permute(0, 2, 1),
                Reshape((width, heads, head), (width, width)),
            )
        )
    return table


# Ours to timm's name of it.
_TIMM_PADDINGS = {"same": "same", "symmetric": ""}
_TIMM_ACTIVATIONS = {"gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh"}


def _renamed(field: str, names: Mapping[str, str]):
    """A function from timm's value of an argument to our field; `None` is timm's default, which the caller knows."""
    ours = {theirs: our for our, theirs in names.items()}

    def read(value: str | None) -> dict[str, str]:
        if value is not None and value not in ours:
            raise ConversionError(
                f"original argument for {field}: {value!r} is not supported, only {list(ours)}", field
            )
        return {} if value is None else {field: ours[value]}

    return read


_TIMM_KWARGS = {
    "img_size": "image_size",
    "in_chans": "num_channels",
    "patch_size": "patch_size",
    "embed_dims": lambda widths: {"hidden_sizes": list(widths)},
    "num_heads": lambda heads: {"num_heads": list(heads)},
    "depths": lambda depths: {"depths": list(depths)},
    "num_levels": ignored,  # the weights tell it
    "num_classes": "num_labels",
    "mlp_ratio": "mlp_ratio",
    "qkv_bias": "qkv_bias",
    "attn_drop_rate": "attention_probs_dropout_prob",
    "drop_path_rate": "drop_path_rate",
    "norm_layer": layer_norm_eps,
    "act_layer": _renamed("hidden_act", _TIMM_ACTIVATIONS),
    "pad_type": _renamed("pool_padding", _TIMM_PADDINGS),
    "weight_init": ignored,
}


def timm_config(kwargs: Mapping[str, Any], state_dict: Mapping[str, Tensor], **overrides: Any) -> VitfNestConfig:
    """
    The configuration of a timm Nest. Nothing in the weights tells `pool_padding`: without `pad_type` among `kwargs` it
    is that of the jx models, the published ones. Numbers of heads come from `kwargs`, or from the published variant
    with the same widths.

    Args:
        kwargs: Keyword arguments of timm's `Nest`; may be empty.
        state_dict: The weights.
        overrides: Fields that replace what arguments and shapes say.
    """
    _, channels, *patch_size = shape_of("patch_embed.proj.weight", state_dict, 4)
    stages = range(count_indices("levels.{s}.pos_embed", state_dict, "s"))
    positions = [shape_of(f"levels.{s}.pos_embed", state_dict, 4) for s in stages]
    first = "levels.0.transformer_encoder.0."
    mlp = {first + "mlp.fc1.weight": 0, first + "mlp.fc1.bias": 0, first + "mlp.fc2.weight": 1}
    known = {
        **_geometry(positions, patch_size),
        "num_channels": channels,
        "depths": [count_indices(f"levels.{s}.transformer_encoder.{{i}}.norm1.weight", state_dict) for s in stages],
        "mlp_ratio": common_size(mlp, state_dict) / positions[0][3],
        "qkv_bias": first + "attn.qkv.bias" in state_dict,
        "hidden_act": "gelu",
    }
    if "head.weight" in state_dict:
        known["num_labels"] = common_size({"head.weight": 0, "head.bias": 0}, state_dict)
    for variant in map(VitfNestConfig.from_variant, VitfNestConfig.VARIANTS):
        if variant.attention_type == "multi_head" and variant.hidden_sizes == known["hidden_sizes"]:
            known["num_heads"] = variant.num_heads
    given = fields_from_kwargs(kwargs, _TIMM_KWARGS, {"global_pool": ("avg",)})
    return make_config(VitfNestConfig, known, given, ask_for={"num_heads": first + "attn.qkv.weight"}, **overrides)


def _timm_native(model: PreTrainedModel) -> dict[str, Any]:
    config = model.config
    if (config.hidden_act, config.layer_norm_eps) != ("gelu", 1e-6):
        # A config.json names an activation; the class takes no names.
        raise ConversionError(
            f"timm's NesT has hidden_act='gelu' with layer_norm_eps=1e-06, not {config.hidden_act!r} with "
            f"{config.layer_norm_eps}"
        )
    side = config.block_size * 2 ** (len(config.depths) - 1)
    height, width = pair(config.image_size)
    if height != width or (height, width) != tuple(side * patch for patch in pair(config.patch_size)):
        raise ConversionError(f"image_size={config.image_size}: timm's NesT has one square block in the last stage")
    return {
        "architecture": _timm_name(config),
        "model_args": {
            "img_size": height,
            "in_chans": config.num_channels,
            "patch_size": one_or_two(config.patch_size),
            "num_classes": config.num_labels if has_head(model) else 0,
            "mlp_ratio": config.mlp_ratio,
            "qkv_bias": config.qkv_bias,
        },
    }


def _timm_name(config: VitfNestConfig) -> str:
    """timm's model of these sizes: its functions take no others."""
    names = [name for name in VitfNestConfig.VARIANTS if VitfNestConfig.VARIANTS[name].get("hidden_act") == "gelu"]
    same = ("hidden_sizes", "num_heads", "depths", "pool_padding")
    for name in names:
        variant = VitfNestConfig.from_variant(name)
        if all(getattr(variant, field) == getattr(config, field) for field in same):
            return name
    raise ConversionError(f"timm's NesT has only the {', '.join(same[:-1])} of {', '.join(names)}")


LAYOUTS = {
    "original": Layout(
        rules=rules,
        config=config_from_original,
        requires=(
            "PatchEmbedding_0/Conv_0/kernel",
            "PositionEmbedding_{s}/pos_embedding",
            "EncoderNDBlock_{i}/MlpBlock_0/Dense_0/kernel",
        ),
        suffix=".npz",
    ),
    "timm": Layout(
        rules=timm_rules,
        config=timm_config,
        requires=(
            "patch_embed.proj.weight",
            "levels.{s}.pos_embed",
            "levels.{s}.transformer_encoder.{i}.attn.qkv.weight",
        ),
        holds={"attention_type": ("multi_head",)},
        native_config=_timm_native,
    ),
}
