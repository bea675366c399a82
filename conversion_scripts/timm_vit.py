"""timm's VisionTransformer: ViT and its relatives under one set of names, with all their variations (timm 1.0.31)."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from ..conversion.convert import (
    as_lists,
    common_size,
    count_indices,
    fields_from_kwargs,
    has_head,
    ignored,
    layer_norm_eps,
    make_config,
    one_or_two,
    shape_of,
    square_image,
)
from ..conversion.rules import Concatenate, Rule, find_indices
from ..errors import ConversionError
from ..modeling.configuration_vit import VitfVitConfig, resnet_stride
from ..modeling.configuration_vitf import pair
from .timm_names import TIMM_FIXED, TIMM_KWARGS, TIMM_OPEN, image_size_of, timm_activation_name, timm_rules
from .timm_variants import timm_vit_arguments, timm_vit_names

_STAGE = "patch_embed.backbone.stages.{s}.blocks.{u}."


def _resnet_rules(config: VitfVitConfig) -> list[Rule]:
    source, target = _STAGE, "embeddings.patch_embeddings.stages.{s}.{u}."
    stem = "patch_embed.backbone." + ("stem." if config.resnet_depths else "")
    rules = [
        Rule(stem + "conv.weight", "embeddings.patch_embeddings.root.weight"),
        Rule(stem + "norm.*", "embeddings.patch_embeddings.root_norm.*"),
    ]
    if config.resnet_depths:
        rules += [
            Rule(source + "downsample.conv.weight", target + "shortcut.weight"),
            Rule(source + "downsample.norm.*", target + "shortcut_norm.*"),
        ]
        for number in (1, 2, 3):
            rules += [
                Rule(f"{source}conv{number}.weight", f"{target}conv{number}.weight"),
                Rule(f"{source}norm{number}.*", f"{target}norm{number}.*"),
            ]
    return rules


def timm_vit_rules(config: VitfVitConfig, layer_scale: str = "ls{n}.gamma", split_gate: bool = False) -> list[Rule]:
    """
    The table of timm's VisionTransformer.

    Args:
        layer_scale: How a layer's two scales are named, by their number `{n}`.
        split_gate: Whether the two halves of a gated layer's first linear layer are layers of their own (AIMv2).
    """
    block, layer, pool = "blocks.{i}.", "layers.{i}.", "attention_pooling."
    left_out = {
        "norm.*": config.final_layernorm != "tokens",
        "cls_token": not config.use_cls_token,
        "pos_embed": config.position_embedding_type != "learned",
        block + "mlp.fc1.*": split_gate,
    }
    halves = tuple(f"{block}mlp.fc1_{half}.*" for half in "gx")
    optional = [
        (split_gate, [Rule(halves, layer + "mlp.fc1.*", Concatenate(2))]),
        (config.num_register_tokens, [Rule("reg_token", "embeddings.register_tokens")]),
        (config.resnet_depths is not None, _resnet_rules(config)),
        (config.patch_layernorm, [Rule("patch_embed.norm.*", "embeddings.patch_layernorm.*")]),
        (config.pre_layernorm, [Rule("norm_pre.*", "embeddings.layernorm.*")]),
        (
            config.layer_scale_init_value is not None,
            [Rule(block + layer_scale.format(n=n), f"{layer}layer_scale{n}.weight") for n in (1, 2)],
        ),
        (
            config.sub_layernorm,
            [
                Rule(block + "attn.norm.*", layer + "attention.layernorm.*"),
                Rule(block + "mlp.norm.*", layer + "mlp.layernorm.*"),
            ],
        ),
        (config.final_layernorm == "pooled", [Rule("fc_norm.*", "pooled_layernorm.*")]),
        (
            config.pooling == "map",
            [
                Rule("attn_pool.latent", pool + "query"),
                *(Rule(f"attn_pool.{name}.*", f"{pool}{name}.*") for name in ("q", "kv", "proj")),
                Rule("attn_pool.norm.*", pool + "layernorm.*"),
                *(Rule(f"attn_pool.mlp.{name}.*", f"{pool}mlp.{name}.*") for name in ("fc1", "fc2")),
            ],
        ),
    ]
    rules = timm_rules(*(source for source, absent in left_out.items() if absent))
    return rules + [rule for present, added in optional if present for rule in added]


def timm_split_gate_rules(config: VitfVitConfig) -> list[Rule]:
    """The table of timm's AIMv2."""
    return timm_vit_rules(config, split_gate=True)


def _shapes(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """Reads the fields that shapes tell, except for the position table, which [`_positions`] reads."""
    known: dict[str, Any] = {}
    _, channels, *patch_size = shape_of("patch_embed.proj.weight", state_dict, 4)
    stems = ("patch_embed.backbone.stem.conv.weight", "patch_embed.backbone.conv.weight")
    stem = next((key for key in stems if key in state_dict), None)
    if stem is not None:
        known["resnet_width"], channels, *_ = shape_of(stem, state_dict, 4)
        units = find_indices(_STAGE + "conv1.weight", state_dict)
        stages = range(max((each["s"] for each in units), default=-1) + 1)
        known["resnet_depths"] = [sum(each["s"] == stage for each in units) for stage in stages]
        known["resnet_epsilons"] = "timm"
        patch_size = [side * resnet_stride(known["resnet_depths"]) for side in patch_size]
    width = common_size({"patch_embed.proj.weight": 0, "blocks.0.norm1.weight": 0}, state_dict)
    split = "blocks.0.mlp.fc1_g.weight" in state_dict
    fc1 = shape_of("blocks.0.mlp.fc1_g.weight" if split else "blocks.0.mlp.fc1.weight", state_dict, 2)[0]
    hidden = shape_of("blocks.0.mlp.fc2.weight", state_dict, 2)[1]
    if fc1 not in ((hidden,) if split else (hidden, 2 * hidden)):
        raise ConversionError("shapes of 'blocks.0.mlp.fc1.weight' and 'blocks.0.mlp.fc2.weight' contradict each other")
    final = {"tokens": "norm.weight", "pooled": "fc_norm.weight"}
    known |= {
        "patch_size": tuple(patch_size),
        "num_channels": channels,
        "hidden_size": width,
        "num_hidden_layers": count_indices("blocks.{i}.norm1.weight", state_dict),
        "mlp_ratio": hidden / width,
        "mlp_type": "gated" if split or fc1 == 2 * hidden else "plain",
        "qkv_bias": "blocks.0.attn.qkv.bias" in state_dict,
        "proj_bias": "blocks.0.attn.proj.bias" in state_dict,
        "norm_type": "layernorm" if "blocks.0.norm1.bias" in state_dict else "rmsnorm",
        "sub_layernorm": "blocks.0.attn.norm.weight" in state_dict,
        "patch_bias": "patch_embed.proj.bias" in state_dict,
        "patch_layernorm": "patch_embed.norm.weight" in state_dict,
        "pre_layernorm": "norm_pre.weight" in state_dict,
        "final_layernorm": next((place for place, key in final.items() if key in state_dict), "none"),
        "use_cls_token": "cls_token" in state_dict,
    }
    if "attn_pool.latent" in state_dict:
        known["pooling"] = "map"
    else:
        known["pooling"] = "cls" if known["use_cls_token"] and known["final_layernorm"] != "pooled" else "mean"
    if "reg_token" in state_dict:
        known["num_register_tokens"] = shape_of("reg_token", state_dict, 3)[1]
    if "blocks.0.ls1.gamma" in state_dict:
        known["layer_scale_init_value"] = 1e-5
    if "head.weight" in state_dict:
        known["num_labels"] = common_size({"head.weight": 0, "head.bias": 0}, state_dict)
    if "pos_embed" not in state_dict:
        known["position_embedding_type"] = "none"
    return known


def _positions(known: Mapping[str, Any], image: Any, state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """
    The image that a position table was made for, and which prefix tokens have rows in it.

    Args:
        known: Fields from the other shapes. image: Height and width in pixels, where they are given.
    """
    if "pos_embed" not in state_dict:
        return {} if image is None else {"image_size": pair(image)}
    rows = shape_of("pos_embed", state_dict, 3)[1]
    cls, registers = int(known["use_cls_token"]), known.get("num_register_tokens", 0)
    found = []
    for prefix in dict.fromkeys((cls + registers, cls, 0)):
        if image is None:
            size = square_image(rows - prefix, known["patch_size"])
        else:
            height, width = (edge // patch for edge, patch in zip(pair(image), known["patch_size"], strict=True))
            size = pair(image) if rows == prefix + height * width else None
        if size is not None:
            found.append((prefix, size))
    if not found and image is not None:
        raise ConversionError(
            f"key 'pos_embed' has {rows} rows, which is not what an image of {pair(image)} pixels needs", "pos_embed"
        )
    if len(found) != 1:
        return {}  # image_size is asked for
    ((prefix, size),) = found
    usual = bool(prefix) or not cls or registers or "layer_scale_init_value" in known
    if image is None and not usual:  # a class token without a row, or an image that is not square
        return {}
    return {
        "image_size": size,
        "prefix_position_embeddings": prefix > 0 or not cls,
        "register_position_embeddings": registers > 0 and prefix == cls + registers,
    }


# What makes a ViT a DeiT III: see modeling/configuration_vit.py.
DEIT3 = {
    "hidden_act": "gelu",
    "prefix_position_embeddings": False,
    "drop_path_schedule": "constant",
    "position_interpolation": "bicubic",
    "initialization": "trunc_normal",
}
_POOLING = {"token": "cls", "avg": "mean", "map": "map"}
_MLP = {"Mlp": "plain", "SwiGLUPacked": "gated", "SwiGLU": "gated"}
_BLOCKS = {"Block": "pre", "ResPostBlock": "post"}


def _norm(name: str) -> dict[str, Any]:
    if "RmsNorm" in name:
        return {"norm_type": "rmsnorm", **layer_norm_eps(name.replace("RmsNorm", "LayerNorm"))}
    return {} if name == "layernorm" else layer_norm_eps(name)


def _one_of(argument: str, field: str, names: Mapping[str, str]):
    def fields(value: str) -> dict[str, str]:
        if value not in names:
            raise ConversionError(
                f"original argument {argument}={value!r} is not supported, only {list(names)}", argument
            )
        return {field: names[value]}

    return fields


_KWARGS = {
    **{name: target for name, target in TIMM_KWARGS.items() if name not in ("img_size", "patch_size", "mlp_ratio")},
    "norm_layer": _norm,
    "class_token": "use_cls_token",
    "reg_tokens": "num_register_tokens",
    "init_values": lambda value: {"layer_scale_init_value": value or None},  # timm takes 0 for none as well
    "global_pool": _one_of("global_pool", "pooling", _POOLING),
    "pool_include_prefix": "pool_prefix_tokens",
    "proj_bias": "proj_bias",
    "mlp_layer": _one_of("mlp_layer", "mlp_type", _MLP),
    "block_fn": _one_of("block_fn", "norm_position", _BLOCKS),
    "pre_norm": lambda pre_norm: {"pre_layernorm": pre_norm, "patch_bias": not pre_norm},
    "embed_norm_layer": lambda norm: {"patch_layernorm": norm is not None},
    "pos_embed": lambda kind: {"position_embedding_type": "learned" if kind == "learn" else "none"},
    # Read together below, or told by shapes.
    **dict.fromkeys(
        ("img_size", "patch_size", "mlp_ratio", "resnet", "no_embed_class", "fc_norm", "final_norm"), ignored
    ),
    # Of MAE's decoder and of its loss.
    **dict.fromkeys(("decoder_embed_dim", "decoder_depth", "decoder_num_heads", "norm_pix_loss"), ignored),
    **dict.fromkeys(("scale_attn_norm", "scale_mlp_norm"), lambda scaled: {"sub_layernorm": scaled}),
    **dict.fromkeys(("dynamic_img_size", "dynamic_img_pad", "weight_init", "fix_init"), ignored),
    **dict.fromkeys(("pos_drop_rate", "patch_drop_rate", "proj_drop_rate"), ignored),
}


def fold_probe_norm(state_dict: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str] | None:
    """
    The head of MAE's linear probe as one linear layer: before its own stands a batch norm without weights, whose
    statistics are fixed in evaluation (facebookresearch/mae@efb2a80 main_linprobe.py, eps 1e-6).
    """
    norm = ("head.0.running_mean", "head.0.running_var", "head.0.num_batches_tracked")
    linear = ("head.1.weight", "head.1.bias")
    if not {*norm[:2], *linear} <= state_dict.keys() or "head.0.weight" in state_dict:
        return None
    mean, variance, weight, bias = (state_dict[key].double() for key in (*norm[:2], *linear))
    scaled = weight / (variance + 1e-6).sqrt()
    kept = {key: tensor for key, tensor in state_dict.items() if key not in (*norm, *linear)}
    dtype = state_dict["head.1.weight"].dtype
    head = {"head.weight": scaled.to(dtype), "head.bias": (bias - scaled @ mean).to(dtype)}
    return kept | head, "merged the batch norm before the head of a linear probe with the head"


def _check_shapes(kwargs: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Compares with the shapes what arguments say in other terms than the configuration."""
    patch = known["patch_size"]
    stride = resnet_stride(known["resnet_depths"]) if "resnet_depths" in known else 1
    gates = 2 if kwargs.get("mlp_layer") == "SwiGLUPacked" else 1
    hidden = known["mlp_ratio"] * known["hidden_size"] * gates
    told = {
        "patch_size": (tuple(side // stride for side in patch), pair),
        "resnet": (known.get("resnet_depths"), lambda depths: None if depths is None else list(depths)),
        "mlp_ratio": (round(hidden), lambda ratio: int(known["hidden_size"] * ratio)),
    }
    for name, (shape, read) in told.items():
        if name in kwargs and read(kwargs[name]) != shape:
            raise ConversionError(f"original argument {name}={kwargs[name]!r} contradicts the shapes: {shape}", name)


def timm_vit_config(kwargs: Mapping[str, Any], state_dict: Mapping[str, Tensor], **overrides: Any) -> VitfVitConfig:
    """The configuration of a timm ViT or one of its relatives; `kwargs` are those of timm's `VisionTransformer`."""
    kwargs = dict(kwargs)
    if isinstance(kwargs.get("global_pool"), bool):  # of MAE's class, facebookresearch/mae@efb2a80 models_vit.py
        kwargs["global_pool"] = "avg" if kwargs["global_pool"] else "token"
    if "img_size" in kwargs:
        kwargs["img_size"] = image_size_of(kwargs["img_size"])
    known = {**_shapes(state_dict), "hidden_act": "gelu", "position_interpolation": "bicubic_antialias"}
    given = fields_from_kwargs(kwargs, _KWARGS, {**TIMM_FIXED, "qk_norm": (False,), "attn_layer": ("attn", "")})
    _check_shapes(kwargs, known)
    image = overrides.get("image_size", kwargs.get("img_size"))
    known |= _positions(known, image, state_dict)
    scaled = "layer_scale_init_value" in known and "reg_token" not in state_dict
    if scaled and not known.get("prefix_position_embeddings", True):
        known |= DEIT3
    if "image_size" in known:
        patch = known["patch_size"]
        known["drop_incomplete_patches"] = any(
            edge % side for edge, side in zip(known["image_size"], patch, strict=True)
        )
    if kwargs.get("no_embed_class") and (known.get("prefix_position_embeddings") and known["use_cls_token"]):
        raise ConversionError("original argument no_embed_class=True, but key 'pos_embed' has a row for 'cls_token'")
    if {"fc_norm", "final_norm", "global_pool"} & kwargs.keys():
        pooled = kwargs.get("fc_norm")
        if pooled is None:
            pooled = kwargs.get("global_pool", "token") == "avg"
        given["final_layernorm"] = ("pooled" if pooled else "tokens") if kwargs.get("final_norm", True) else "none"
    if given.get("norm_position") == "post":  # what init_values sets are the norms' own weights
        given["layer_scale_init_value"] = None
    open_fields = dict(TIMM_OPEN)
    if not kwargs:  # an argument that is not given has its default; of bare weights nobody knows
        if known["mlp_type"] == "gated":
            known["hidden_act"] = "silu"
        elif known["pre_layernorm"] or known["pooling"] == "map":  # published with several
            del known["hidden_act"]
            open_fields["hidden_act"] = "norm_pre.weight" if known["pre_layernorm"] else "attn_pool.latent"
        if known["pre_layernorm"] or known["sub_layernorm"] or known["norm_type"] == "rmsnorm":
            known["layer_norm_eps"] = 1e-5
        if (
            known["final_layernorm"] == "pooled"
            and not known["use_cls_token"]
            and "layer_scale_init_value" not in known
        ):
            open_fields["norm_position"] = "blocks.0.norm1.weight"
    return make_config(VitfVitConfig, known, given, ask_for=open_fields, **overrides)


def timm_vit_misfit(config: VitfVitConfig) -> str | None:
    """Says which fields together keep timm's VisionTransformer from holding a configuration."""
    if config.resnet_depths is not None and config.resnet_epsilons != "timm":
        return "resnet_epsilons='jax' has no place in it, only 'timm'"
    registers = config.num_register_tokens and not config.register_position_embeddings
    if config.position_embedding_type == "learned" and registers and config.num_prefix_positions:
        return "it has no place for a class token with a position next to register tokens without one"
    if config.patch_bias == config.pre_layernorm:
        return f"it has no place for patch_bias={config.patch_bias} with pre_layernorm={config.pre_layernorm}"
    return None


def _arguments_of(config: VitfVitConfig) -> dict[str, Any]:
    """A configuration in the words of [`timm_variants.timm_vit_arguments`]."""
    norm = {"layernorm": "LayerNorm", "rmsnorm": "RmsNorm"}[config.norm_type] + f"(eps={config.layer_norm_eps:g})"
    norm = norm.replace("e-0", "e-")
    stride = resnet_stride(config.resnet_depths) if config.resnet_depths is not None else 1
    patch = [side // stride for side in pair(config.patch_size)]
    gated = {"rmsnorm": ("SwiGLU", 1), "layernorm": ("SwiGLUPacked", 2)}[config.norm_type]
    mlp, gates = gated if config.mlp_type == "gated" else ("Mlp", 1)
    return {
        "embed_dim": config.hidden_size,
        "depth": config.num_hidden_layers,
        "num_heads": config.num_attention_heads,
        "mlp_ratio": config.mlp_ratio * gates,
        "patch_size": one_or_two(patch),
        "global_pool": {ours: theirs for theirs, ours in _POOLING.items()}[config.pooling],
        "qkv_bias": config.qkv_bias,
        "proj_bias": config.proj_bias,
        "scale_attn_norm": config.sub_layernorm,
        "scale_mlp_norm": config.sub_layernorm,
        "init_values": config.layer_scale_init_value or 0.0,  # timm.create_model passes None over
        "class_token": config.use_cls_token,
        "no_embed_class": config.num_prefix_positions == 0 and config.use_cls_token + config.num_register_tokens > 0,
        "reg_tokens": config.num_register_tokens,
        "pre_norm": config.pre_layernorm,
        "final_norm": config.final_layernorm != "none",
        "fc_norm": config.final_layernorm == "pooled",
        "pool_include_prefix": config.pool_prefix_tokens,
        "embed_norm_layer": norm if config.patch_layernorm else None,
        "norm_layer": norm,
        "act_layer": timm_activation_name(config.hidden_act),
        "block_fn": {ours: theirs for theirs, ours in _BLOCKS.items()}[config.norm_position],
        "mlp_layer": mlp,
        "resnet": None if config.resnet_depths is None else list(config.resnet_depths),
    }


# Arguments whose values are classes or modules: no JSON file holds them, only the name of an architecture that sets
# them.
_OF_NAME = ("norm_layer", "embed_norm_layer", "block_fn", "mlp_layer", "resnet")


def _compared(name: str, arguments: Mapping[str, Any]) -> Any:
    """The value of an argument in the form in which two are compared."""
    value = arguments[name]
    if name == "fc_norm":
        return arguments["global_pool"] == "avg" if value is None else value
    if name == "mlp_ratio":
        return int(value * arguments["embed_dim"])
    if name == "init_values":
        return bool(value)  # what training began with decides nothing here
    if name == "no_embed_class" and not (arguments["class_token"] or arguments["reg_tokens"]):
        return False
    return as_lists(value)


def timm_vit_native(model: PreTrainedModel) -> dict[str, Any]:
    """The config.json by which timm builds a model: the nearest of its names, and the arguments that differ."""
    config = model.config
    own = _arguments_of(config)
    differing = {}
    for name in timm_vit_names():
        arguments = timm_vit_arguments(name)
        odd = [each for each in own if _compared(each, own) != _compared(each, arguments)]
        if not set(odd) & set(_OF_NAME):
            differing[name] = odd
    if not differing:
        values = ", ".join(f"{each}={own[each]!r}" for each in _OF_NAME)
        raise ConversionError(f"timm has no architecture with {values}; convert with --set to change them")
    name = min(differing, key=lambda each: len(differing[each]))
    arguments = {each: own[each] for each in differing[name]}
    if "mlp_ratio" in arguments:  # timm rounds down
        arguments["mlp_ratio"] = (round(own["mlp_ratio"] * config.hidden_size) + 0.5) / config.hidden_size
    if "fc_norm" not in arguments and "global_pool" in arguments:
        arguments["fc_norm"] = own["fc_norm"]
    return {
        "architecture": name,
        "num_classes": config.num_labels if has_head(model) else 0,
        "model_args": {
            **arguments,
            "img_size": one_or_two(config.image_size),
            "in_chans": config.num_channels,
            "num_classes": config.num_labels if has_head(model) else 0,
        },
    }
