"""CoAtNet: timm's weights, which are the only ones."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from ..conversion.convert import (
    Layout,
    Source,
    fields_from_kwargs,
    has_head,
    ignored,
    make_config,
    one_or_two,
    shape_of,
)
from ..conversion.rules import Reshape, Rule, find_indices
from ..errors import ConversionError
from ..modeling.configuration_coatnet import VitfCoatnetConfig
from ..modeling.modeling_coatnet import expanded_channels, squeezed_channels

SOURCE = Source("huggingface/pytorch-image-models", "v1.0.31", "timm/models/maxxvit.py", "apache-2.0")


def _flat(source: str, target: str, out_features: int, in_features: int) -> list[Rule]:
    """A 1 x 1 convolution that is a linear layer here."""
    kernel = Reshape((out_features, in_features, 1, 1), (out_features, in_features))
    return [Rule(f"{source}.weight", f"{target}.weight", kernel), Rule(f"{source}.bias", f"{target}.bias")]


def _layer_rules(config: VitfCoatnetConfig, stage: int, layer: int) -> list[Rule]:
    """The rules of one layer, by its kind."""
    source, target = f"stages.{stage}.blocks.{layer}.", f"stages.{stage}.layers.{layer}."
    wide = config.hidden_sizes[stage]
    narrow = wide if layer else config.stage_channels[stage]

    def names(pairs: Mapping[str, str]) -> list[Rule]:
        return [Rule(f"{source}{theirs}.*", f"{target}{ours}.*") for theirs, ours in pairs.items()]

    def mlp(width: int) -> list[Rule]:
        return [
            *_flat(f"{source}mlp.fc1", f"{target}mlp.fc1", width, wide),
            *_flat(f"{source}mlp.fc2", f"{target}mlp.fc2", wide, width),
        ]

    shortcut = {} if narrow == wide else {"shortcut.expand": "shortcut.expand"}
    if layer >= config.conv_depths[stage]:
        inner = wide if config.expand_first else narrow
        norm = {"norm1": "layernorm_before"} if layer else {"norm1.norm": "layernorm_before"}
        table = [
            *names({**shortcut, **norm, "norm2": "layernorm_after"}),
            *_flat(f"{source}attn.qkv", f"{target}attention.qkv", 3 * inner, narrow),
            *_flat(f"{source}attn.proj", f"{target}attention.proj", wide, inner),
            *mlp(int(wide * config.mlp_ratio)),
        ]
        for n in (1, 2) if config.layer_scale_init_value is not None else ():
            table.append(Rule(f"{source}ls{n}.gamma", f"{target}layer_scale{n}.weight"))
        bias, ours = f"{source}attn.rel_pos.", f"{target}attention.position_bias."
        if config.position_bias_type == "table":
            return [*table, Rule(f"{bias}relative_position_bias_table", f"{ours}weight")]
        for fc in ("fc1", "fc2"):
            table += [Rule(f"{bias}mlp.{fc}.{part}", f"{ours}{fc}_{part}") for part in ("weight", "bias")]
        return table
    if config.conv_layer_type == "convnext":
        return [
            *names({**shortcut, "conv_dw": "depthwise", "norm": "norm"}),
            *mlp(int(wide * config.conv_expand_ratio)),
            Rule(f"{source}ls.gamma", f"{target}layer_scale.weight"),
        ]
    inner = expanded_channels(config, narrow, wide)
    squeezed = squeezed_channels(config, inner, wide)
    se = source + ("se_early" if config.se_position == "before_norm" else "se")
    return [
        *names(
            {
                **shortcut,
                "pre_norm": "norm_before",
                "conv1_1x1": "expand",
                "norm1": "norm_expanded",
                "conv2_kxk": "depthwise",
                "norm2": "norm_depthwise",
                "conv3_1x1": "reduce",
            }
        ),
        *_flat(f"{se}.fc1", f"{target}squeeze_excitation.fc1", squeezed, inner),
        *_flat(f"{se}.fc2", f"{target}squeeze_excitation.fc2", inner, squeezed),
    ]


def rules(config: VitfCoatnetConfig) -> list[Rule]:
    """The table of timm's keys."""
    table = [
        Rule("stem.conv1.*", "patch_embeddings.conv1.*"),
        Rule("stem.norm1.*", "patch_embeddings.norm.*"),
        Rule("stem.conv2.*", "patch_embeddings.conv2.*"),
        Rule("head.fc.*", "classifier.*"),
    ]
    if config.representation_size is None:
        table.append(Rule("norm.*", "layernorm.*"))
    else:
        table += [Rule("head.norm.*", "layernorm.*"), Rule("head.pre_logits.fc.*", "pre_logits.*")]
    for stage, depth in enumerate(config.depths):
        for layer in range(depth):
            table += _layer_rules(config, stage, layer)
    return table


# ---------------------------------------------------------------------------------------------------------------------
# Configurations


def _conv_shapes(layers: Sequence[tuple[str, int, int]], state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """Reads fields from the convolutional layers, each given by its prefix and the channels before and after it."""
    prefix, _, wide = layers[0]
    if prefix + "conv_dw.weight" in state_dict:
        return {
            "conv_layer_type": "convnext",
            "conv_expand_ratio": shape_of(prefix + "mlp.fc1.weight", state_dict, 4)[0] / wide,
            # What an inverted bottleneck would choose: as timm's ConvNeXt model has it.
            "expand_output": False,
            "initialization": "normal",
            "pre_norm_act": False,
        }
    inner = {prefix: shape_of(prefix + "conv1_1x1.weight", state_dict, 4)[0] for prefix, _, _ in layers}
    se = "se_early" if prefix + "se_early.fc1.weight" in state_dict else "se"
    known = {
        "conv_layer_type": "mbconv",
        "conv_bias": prefix + "conv3_1x1.bias" in state_dict,
        "se_position": "before_norm" if se == "se_early" else "after_norm",
    }
    # One ratio holds in all layers: to their input, or to their output.
    by_input = {inner[prefix] / narrow for prefix, narrow, _ in layers}
    by_output = {inner[prefix] / wide for prefix, _, wide in layers}
    if len(by_input) != len(by_output) and 1 in (len(by_input), len(by_output)):
        known["expand_output"] = len(by_output) == 1
        known["conv_expand_ratio"] = min(by_input, by_output, key=len).pop()
        squeezed = shape_of(f"{prefix}{se}.fc1.weight", state_dict, 4)[0]
        known["se_ratio"] = squeezed / (wide if known["expand_output"] else inner[prefix])
    return known


def _attention_shapes(layers: Sequence[tuple[str, int, int]], state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """Reads fields from the attention layers, each given as above. `head_dim` is for the caller."""
    prefix, _, wide = layers[0]
    inner = shape_of(prefix + "attn.proj.weight", state_dict, 4)[1]
    known = {
        # as in all published weights; without effect unless a layer below is wider than its input
        "expand_first": False,
        "mlp_ratio": shape_of(prefix + "mlp.fc1.weight", state_dict, 4)[0] / wide,
        "norm_type": "batch" if prefix + "norm2.running_mean" in state_dict else "layer",
        "layer_scale_init_value": 1e-6 if prefix + "ls1.gamma" in state_dict else None,
    }
    for prefix_of, narrow, wider in layers:
        if narrow != wider:
            known["expand_first"] = shape_of(prefix_of + "attn.proj.weight", state_dict, 4)[1] == wider
        if prefix_of + "shortcut.expand.weight" in state_dict:
            known["shortcut_bias"] = prefix_of + "shortcut.expand.bias" in state_dict
    if (table := prefix + "attn.rel_pos.relative_position_bias_table") in state_dict:
        known["position_bias_type"] = "table"
        heads = shape_of(table, state_dict, 2)[1]
    else:
        known["position_bias_type"] = "mlp"
        heads, known["position_bias_size"] = shape_of(prefix + "attn.rel_pos.mlp.fc2.weight", state_dict, 2)
    return {**known, "head_dim": inner // heads}


def _shapes(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """All that the shapes tell."""
    kinds = {"attn.proj": "attention", "conv3_1x1": "conv", "conv_dw": "conv"}
    first, num_channels = shape_of("stem.conv1.weight", state_dict, 4)[:2]
    stem_channels = [first, shape_of("stem.conv2.weight", state_dict, 4)[0]]
    found: dict[int, dict[int, str]] = {}
    for name in kinds:
        for values in find_indices(f"stages.{{s}}.blocks.{{i}}.{name}.weight", state_dict):
            found.setdefault(values["s"], {})[values["i"]] = name
    hidden_sizes, depths, conv_depths, narrow = [], [], [], stem_channels[-1]
    layers = {"conv": [], "attention": []}
    for stage in sorted(found):
        for number, name in sorted(found[stage].items()):
            prefix = f"stages.{stage}.blocks.{number}."
            wide = shape_of(f"{prefix}{name}.weight", state_dict, 4)[0]
            layers[kinds[name]].append((prefix, narrow, wide))
            narrow = wide
        in_order = [kinds[name] for _, name in sorted(found[stage].items())]
        if in_order != sorted(in_order, reverse=True):
            raise ConversionError(f"stage {stage}: expected convolutional layers, then attention, got {in_order}")
        hidden_sizes.append(narrow)
        depths.append(len(in_order))
        conv_depths.append(in_order.count("conv"))
    known = {
        "num_channels": num_channels,
        "stem_channels": stem_channels,
        "hidden_sizes": hidden_sizes,
        "depths": depths,
        "conv_depths": conv_depths,
    }
    if layers["conv"]:
        known |= _conv_shapes(layers["conv"], state_dict)
    known |= _attention_shapes(layers["attention"], state_dict)
    head_dim = known.pop("head_dim")
    known["num_heads"] = [max(width // head_dim, 1) for width in hidden_sizes]
    last = f"stages.{len(depths) - 1}.blocks.{depths[-1] - 1}.attn.rel_pos.relative_position_bias_table"
    if last in state_dict:
        distances = math.isqrt(shape_of(last, state_dict, 2)[0])
        if distances**2 == state_dict[last].shape[0]:
            known["image_size"] = (distances + 1) // 2 * 2 ** (len(depths) + 1)
    if "head.pre_logits.fc.weight" in state_dict:
        known["representation_size"] = shape_of("head.pre_logits.fc.weight", state_dict, 2)[0]
    if "head.fc.weight" in state_dict:
        known["num_labels"] = shape_of("head.fc.weight", state_dict, 2)[0]
    return known


def _renamed(field: str, names: Mapping[Any, Any]):
    """A function from timm's value of an argument to our field."""

    def read(value: Any) -> dict[str, Any]:
        if value not in names:
            raise ConversionError(
                f"original argument for {field}: {value!r} is not supported, only {list(names)}", field
            )
        return {field: names[value]}

    return read


_POOLS = {"avg2": "average", "max": "max"}
_NORM_LAYERS = {"layernorm2d": "layer", "batchnorm2d": "batch"}
_BIASES = {"bias": "table", "mlp": "mlp"}
_SE_POSITIONS = {False: "after_norm", True: "before_norm"}
_ACTIVATIONS = {"gelu": "gelu", "silu": "silu", "relu": "relu"}
# Our field to timm's argument and how its values are called there; `None` where alike.
_CHOICES = {
    "conv_layer_type": ("conv_block_type", None),
    "conv_act": ("conv_act_layer", _ACTIVATIONS),
    "pre_norm_act": ("conv_pre_norm_act", None),
    "conv_expand_ratio": ("conv_expand_ratio", None),
    "expand_output": ("conv_expand_output", None),
    "conv_bias": ("conv_output_bias", None),
    "stride_mode": ("conv_stride_mode", None),
    "se_ratio": ("conv_attn_ratio", None),
    "se_act": ("conv_attn_act_layer", _ACTIVATIONS),
    "se_position": ("conv_attn_early", _SE_POSITIONS),
    "mlp_ratio": ("transformer_expand_ratio", None),
    "hidden_act": ("transformer_act_layer", _ACTIVATIONS),
    "expand_first": ("transformer_expand_first", None),
    "shortcut_bias": ("transformer_shortcut_bias", None),
    "pool_type": ("transformer_pool_type", _POOLS),
    "position_bias_type": ("transformer_rel_pos_type", _BIASES),
    "position_bias_size": ("transformer_rel_pos_dim", None),
    "norm_type": ("transformer_norm_layer", _NORM_LAYERS),
    "layer_norm_eps": ("transformer_norm_eps", None),
    "layer_scale_init_value": ("transformer_init_values", None),
    "attention_probs_dropout_prob": ("transformer_attn_drop", None),
    "hidden_dropout_prob": ("transformer_proj_drop", None),
    "initialization": ("weight_init", {"vit_eff": "vit_eff", "normal": "normal"}),
    "drop_path_rate": ("drop_path_rate", None),
}
# Told by the weights, read by models of other kinds, or without effect on a trained model.
_IGNORED = (
    *("embed_dim", "depths", "block_type", "stem_width", "head_hidden_size", "transformer_dim_head"),
    *("transformer_partition_ratio", "transformer_window_size", "transformer_grid_size", "transformer_no_block_attn"),
    *("transformer_use_nchw_attn", "transformer_norm_layer_cl", "conv_norm_layer_cl", "conv_norm_layer"),
    *("conv_norm_eps", "conv_init_values"),
)
_KWARGS = {
    "img_size": "image_size",
    "in_chans": "num_channels",
    "num_classes": "num_labels",
    **{theirs: ours if names is None else _renamed(ours, names) for ours, (theirs, names) in _CHOICES.items()},
    "conv_pool_type": _renamed("pool_type", _POOLS),
    **dict.fromkeys(_IGNORED, ignored),
}
_FIXED = {
    "global_pool": ("avg",),
    "stem_bias": (False,),
    "conv_kernel_size": (3,),
    "conv_group_size": (1,),
    "conv_downsample_pool_type": ("avg2",),
    "conv_padding": ("",),
    "conv_attn_layer": ("se",),
    "transformer_head_first": (True,),
    "transformer_attn_bias": (True,),
}


def _arguments(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """
    The arguments of `MaxxVit`, those of its `cfg` under the names by which its other arguments replace them:
    `conv_act_layer` for `act_layer` of `cfg.conv_cfg`.
    """
    given = dict(kwargs)
    cfg = dict(given.pop("cfg", {}))
    for part in ("conv", "transformer"):
        cfg |= {f"{part}_{name}": value for name, value in cfg.pop(f"{part}_cfg", {}).items()}
    given = {**cfg, **given}
    pools = {given[name] for name in ("conv_pool_type", "transformer_pool_type") if name in given}
    if len(pools) > 1:
        raise ConversionError(
            f"convolutional and attention layers pool alike here, not by {sorted(pools)}", "pool_type"
        )
    return given


def config_from_original(
    kwargs: Mapping[str, Any], state_dict: Mapping[str, Tensor], **overrides: Any
) -> VitfCoatnetConfig:
    """
    The configuration of a timm CoAtNet. Nothing in the weights tells activations, what shrinks a map, and whether the
    first norm of a bottleneck is activated: these come from `kwargs`, or from the published variant with all else the
    same.

    Args:
        kwargs: Keyword arguments of timm's `MaxxVit`, with its `cfg` as nested dictionaries; may be empty.
        state_dict: The weights.
        overrides: Fields that replace what arguments and shapes say.
    """
    given = fields_from_kwargs(_arguments(kwargs), _KWARGS, _FIXED)
    first = "stages.0.blocks.0."
    ask_for = {
        "pre_norm_act": first + "pre_norm.weight",
        "stride_mode": first + "conv2_kxk.weight",
        "pool_type": first + "shortcut.expand.weight",
        "conv_act": "stem.conv1.weight",
        "se_act": first + "se.fc1.weight",
    }
    return make_config(VitfCoatnetConfig, _shapes(state_dict), given, ask_for=ask_for, **overrides)


def _native_config(model: PreTrainedModel) -> dict[str, Any]:
    config = model.config
    stages = list(zip(config.hidden_sizes, config.num_heads, config.depths, config.conv_depths, strict=True))
    head_dims = {width // heads for width, heads, depth, conv_depth in stages if conv_depth < depth}
    if len(head_dims) != 1:
        raise ConversionError(f"timm's CoAtNet has one width of heads in all stages, not {sorted(head_dims)}")
    arguments = {}
    for ours, (theirs, names) in _CHOICES.items():
        value = getattr(config, ours)
        arguments[theirs] = value if names is None else {our: their for their, our in names.items()}[value]
    if config.conv_layer_type == "convnext":
        norms = {"conv_norm_layer": "layernorm2d", "conv_norm_eps": config.layer_norm_eps}
        if not config.conv_bias or config.pool_type != "average":
            raise ConversionError("timm's ConvNeXt layers have conv_bias=True and pool_type='average'")
    else:
        norms = {"conv_norm_layer": "batchnorm2d", "conv_norm_eps": 1e-5}
    return {
        # A function that makes it; all that it chooses is given.
        "architecture": "coatnet_0_rw_224",
        "model_args": {
            **arguments,
            **norms,
            "conv_pool_type": arguments["transformer_pool_type"],
            "transformer_dim_head": head_dims.pop(),
            "img_size": one_or_two(config.image_size),
            "in_chans": config.num_channels,
            "num_classes": config.num_labels if has_head(model) else 0,
            "embed_dim": config.hidden_sizes,
            "depths": config.depths,
            "block_type": [["C"] * conv_depth + ["T"] * (depth - conv_depth) for _, _, depth, conv_depth in stages],
            "stem_width": config.stem_channels,
            "head_hidden_size": config.representation_size,
        },
    }


LAYOUTS = {
    "original": Layout(
        rules=rules,
        config=config_from_original,
        requires=("stem.conv2.weight", "stages.{s}.blocks.{i}.attn.qkv.weight", "stages.{s}.blocks.{i}.norm2.weight"),
        holds={"patch_size": (2,), **dict.fromkeys(("conv_act", "hidden_act", "se_act"), tuple(_ACTIVATIONS))},
        native_config=_native_config,
    ),
}

_IN1K, _IN12K = "ImageNet-1k", "ImageNet-12k"
