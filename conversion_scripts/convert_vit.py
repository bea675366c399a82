"""ViT and DeiT III: the original .npz files, DeiT III's .pth, timm's and transformers' own ViT."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, ViTConfig

from ..conversion import (
    Layout,
    Published,
    Source,
    common_size,
    count_indices,
    fields_from_kwargs,
    ignored,
    layer_norm_eps,
    make_config,
    shape_of,
    square_image,
)
from ..errors import ConversionError
from ..modeling.configuration_vit import VitfVitConfig, resnet_stride
from ..modeling.configuration_vitf import pair
from ..rules import Concatenate, Permute, Reshape, Rule, find_indices

SOURCE = Source(
    "google-research/vision_transformer",
    "c6de1e5378c9831a8477feb30994971bdc409e46",
    "vit_jax/models_vit.py",
    "apache-2.0",
)

# Of DeiT III, and of DeiT.
FACEBOOK_COMMIT = "7e160fe43f0252d17191b71cbb5826254114ea5b"

# ---------------------------------------------------------------------------------------------------------------------
# The original: flax parameters. Published files number the modules of a block in one sequence ("pre-linen"); big_vision
# (google-research/big_vision@0127fb6 models/vit.py) and flax linen itself count per class.

_PRE_LINEN = ("LayerNorm_0", "MultiHeadDotProductAttention_1", "LayerNorm_2", "MlpBlock_3")
_LINEN = ("LayerNorm_0", "MultiHeadDotProductAttention_0", "LayerNorm_1", "MlpBlock_0")


def _resnet_rules(config: VitfVitConfig) -> list[Rule]:
    """The ResNet of a hybrid. Its norms are stored with the shape of a map."""
    kernel = Permute(3, 2, 0, 1)

    def norm(source: str, target: str, channels: int) -> list[Rule]:
        shape = Reshape((1, 1, 1, channels), (channels,))
        return [
            Rule(f"{source}/scale", f"{target}.weight", shape),
            Rule(f"{source}/bias", f"{target}.bias", shape),
        ]

    stem = "embeddings.patch_embeddings."
    table = [
        Rule("conv_root/kernel", stem + "root.weight", kernel),
        *norm("gn_root", stem + "root_norm", config.resnet_width),
    ]
    for stage in range(len(config.resnet_depths)):
        width = config.resnet_width * 2**stage
        source, target = f"block{stage + 1}/unit{{u+1}}/", f"{stem}stages.{stage}.{{u}}."
        for name, channels in {"1": width, "2": width, "3": 4 * width}.items():
            table.append(Rule(f"{source}conv{name}/kernel", f"{target}conv{name}.weight", kernel))
            table += norm(f"{source}gn{name}", f"{target}norm{name}", channels)
        table.append(Rule(source + "conv_proj/kernel", target + "shortcut.weight", kernel))
        table += norm(source + "gn_proj", target + "shortcut_norm", 4 * width)
    return table


def flax_norm_rules(source: str, target: str) -> list[Rule]:
    """A LayerNorm of flax."""
    return [Rule(f"{source}/scale", f"{target}.weight"), Rule(f"{source}/bias", f"{target}.bias")]


def flax_dense_rules(source: str, target: str) -> list[Rule]:
    """A linear layer of flax."""
    return [Rule(f"{source}/kernel", f"{target}.weight", Permute(1, 0)), Rule(f"{source}/bias", f"{target}.bias")]


def flax_mlp_rules(source: str, target: str) -> list[Rule]:
    """The feed-forward layer of flax's ViT and its descendants."""
    return [
        *flax_dense_rules(f"{source}/Dense_0", f"{target}.fc1"),
        *flax_dense_rules(f"{source}/Dense_1", f"{target}.fc2"),
    ]


def flax_attention_rules(source: str, target: str, width: int, heads: int) -> list[Rule]:
    """An attention layer of flax, whose matrices have a dimension of heads."""
    split, square = (heads, width // heads), (width, width)
    qkv = [f"{source}/{name}/" for name in ("query", "key", "value")]
    return [
        Rule(
            tuple(name + "kernel" for name in qkv),
            target + ".qkv.weight",
            Reshape((width, *split), square),
            Permute(1, 0),
            Concatenate(3),
        ),
        Rule(tuple(name + "bias" for name in qkv), target + ".qkv.bias", Reshape(split, (width,)), Concatenate(3)),
        Rule(f"{source}/out/kernel", target + ".proj.weight", Reshape((*split, width), square), Permute(1, 0)),
        Rule(f"{source}/out/bias", target + ".proj.bias"),
    ]


def _flax_rules(config: VitfVitConfig, modules: tuple[str, ...]) -> list[Rule]:
    block, layer = "Transformer/encoderblock_{i}/", "layers.{i}."
    norm1, attention, norm2, mlp = (block + module for module in modules)
    rules = [
        Rule("embedding/kernel", "embeddings.patch_embeddings.projection.weight", Permute(3, 2, 0, 1)),
        Rule("embedding/bias", "embeddings.patch_embeddings.projection.bias"),
        Rule("Transformer/posembed_input/pos_embedding", "embeddings.position_embeddings.weight"),
        *flax_norm_rules(norm1, layer + "layernorm_before"),
        *flax_attention_rules(attention, layer + "attention", config.hidden_size, config.num_attention_heads),
        *flax_norm_rules(norm2, layer + "layernorm_after"),
        *flax_mlp_rules(mlp, layer + "mlp"),
        *flax_norm_rules("Transformer/encoder_norm", "layernorm"),
        *flax_dense_rules("head", "classifier"),
    ]
    if config.resnet_depths is not None:
        rules += _resnet_rules(config)
    if config.use_cls_token:
        rules.append(Rule("cls", "embeddings.cls_token"))
    if config.representation_size is not None:
        rules += flax_dense_rules("pre_logits", "pre_logits")
    return rules


def rules(config: VitfVitConfig) -> list[Rule]:
    """The table of the published `.npz` files."""
    return _flax_rules(config, _PRE_LINEN)


def linen_rules(config: VitfVitConfig) -> list[Rule]:
    """The table of files with linen's numbering."""
    return _flax_rules(config, _LINEN)


_CLASSIFIERS = {
    "token": {"use_cls_token": True, "pooling": "cls"},
    "gap": {"use_cls_token": False, "pooling": "mean"},
}


def _classifier(name: str) -> dict[str, Any]:
    if name not in _CLASSIFIERS:
        raise ConversionError(f"original argument classifier={name!r} is not supported, only {list(_CLASSIFIERS)}")
    return _CLASSIFIERS[name]


def _resnet_depths(state_dict: Mapping[str, Tensor]) -> list[int]:
    """Units of each stage; none where the ResNet is its root alone."""
    units = [(each["s"], each["u"]) for each in find_indices("block{s+1}/unit{u+1}/conv1/kernel", state_dict)]
    stages = range(max((stage for stage, _ in units), default=-1) + 1)
    return [count_indices(f"block{stage + 1}/unit{{u+1}}/conv1/kernel", state_dict, "u") for stage in stages]


def _resnet(resnet: Mapping[str, Any] | None) -> dict[str, Any]:
    if resnet is None:
        return {}
    return {"resnet_depths": list(resnet["num_layers"]), "resnet_width": int(64 * resnet["width_factor"])}


def _encoder(kwargs: Mapping[str, Any], width: int) -> dict[str, Any]:
    names = {
        "num_heads": "num_attention_heads",
        "num_layers": "num_hidden_layers",
        "mlp_dim": lambda mlp_dim: {"mlp_ratio": mlp_dim / width},
        "dropout_rate": "hidden_dropout_prob",
        "attention_dropout_rate": "attention_probs_dropout_prob",
    }
    return fields_from_kwargs(kwargs, names)


def config_from_original(
    kwargs: Mapping[str, Any], state_dict: Mapping[str, Tensor], **overrides: Any
) -> VitfVitConfig:
    """
    The configuration of a flax checkpoint. Shapes tell all but the image of a grid that is not square (`image_size`).

    Args:
        kwargs: Keyword arguments of `VisionTransformer` in models_vit.py; may be empty.
        state_dict: The checkpoint.
        overrides: Fields that replace what arguments and shapes say.
    """
    rows, columns, channels, _ = shape_of("embedding/kernel", state_dict, 4)
    known, stride = {}, 1
    if "conv_root/kernel" in state_dict:
        _, _, channels, known["resnet_width"] = shape_of("conv_root/kernel", state_dict, 4)
        known["resnet_depths"] = _resnet_depths(state_dict)
        stride = resnet_stride(known["resnet_depths"])
    width = common_size({"embedding/kernel": 3, "embedding/bias": 0, "Transformer/encoder_norm/scale": 0}, state_dict)
    block = "Transformer/encoderblock_{i}/"
    modules = _PRE_LINEN if any(f"/{_PRE_LINEN[1]}/" in key for key in state_dict) else _LINEN
    attention, mlp = (block.format(i=0) + module for module in (modules[1], modules[3]))
    known |= {
        "patch_size": (rows * stride, columns * stride),
        "num_channels": channels,
        "hidden_size": width,
        "num_hidden_layers": count_indices(f"{block}{modules[1]}/out/bias", state_dict),
        "num_attention_heads": common_size(
            {f"{attention}/query/bias": 0, f"{attention}/key/bias": 0, f"{attention}/value/bias": 0}, state_dict
        ),
        "mlp_ratio": common_size(
            {f"{mlp}/Dense_0/bias": 0, f"{mlp}/Dense_0/kernel": 1, f"{mlp}/Dense_1/kernel": 0}, state_dict
        )
        / width,
        **_CLASSIFIERS["token" if "cls" in state_dict else "gap"],
    }
    if "pre_logits/bias" in state_dict:
        known["representation_size"] = common_size({"pre_logits/bias": 0, "pre_logits/kernel": 1}, state_dict)
    if "head/bias" in state_dict:
        known["num_labels"] = common_size({"head/bias": 0, "head/kernel": 1}, state_dict)
    table = "Transformer/posembed_input/pos_embedding"
    positions = shape_of(table, state_dict, 3)[1]
    image = square_image(positions - int(known["use_cls_token"]), known["patch_size"])
    if image is not None:
        known["image_size"] = image
    elif "cls" not in state_dict and square_image(positions - 1, 1) and "image_size" not in overrides:
        raise ConversionError(f"key 'cls' is missing, for which {table!r} has a row", "cls")
    given = fields_from_kwargs(
        kwargs,
        {
            "num_classes": "num_labels",
            "hidden_size": "hidden_size",
            "representation_size": "representation_size",
            "patches": lambda patches: {"patch_size": tuple(side * stride for side in patches["size"])},
            "resnet": _resnet,
            "classifier": _classifier,
            "transformer": lambda encoder: _encoder(encoder, width),
            "head_bias_init": ignored,
            "model_name": ignored,
        },
    )
    return make_config(VitfVitConfig, known, given, ask_for={"image_size": table}, **overrides)


# ---------------------------------------------------------------------------------------------------------------------
# timm's names, which DeiT and DeiT III keep but for their layer scale


def timm_rules(config) -> list[Rule]:
    """What timm's ViT, DeiT (timm 0.3.2 inside) and DeiT III name alike: patches, layers, last norm and head."""
    source, target = "blocks.{i}.", "layers.{i}."
    return [
        Rule("cls_token", "embeddings.cls_token"),
        Rule("pos_embed", "embeddings.position_embeddings.weight"),
        Rule("patch_embed.proj.*", "embeddings.patch_embeddings.projection.*"),
        Rule(source + "norm1.*", target + "layernorm_before.*"),
        Rule(source + "attn.qkv.*", target + "attention.qkv.*"),
        Rule(source + "attn.proj.*", target + "attention.proj.*"),
        Rule(source + "norm2.*", target + "layernorm_after.*"),
        Rule(source + "mlp.fc1.*", target + "mlp.fc1.*"),
        Rule(source + "mlp.fc2.*", target + "mlp.fc2.*"),
        Rule("norm.*", "layernorm.*"),
        Rule("head.*", "classifier.*"),
    ]


def _timm_vit_rules(config: VitfVitConfig, layer_scale: str) -> list[Rule]:
    absent = set() if config.use_cls_token else {"cls_token"}
    rules = [rule for rule in timm_rules(config) if not absent.intersection(rule.sources)]
    if config.num_register_tokens:
        rules.append(Rule("reg_token", "embeddings.register_tokens"))
    if config.layer_scale_init_value is not None:
        rules += [Rule("blocks.{i}." + layer_scale.format(n=n), f"layers.{{i}}.layer_scale{n}.weight") for n in (1, 2)]
    return rules


def deit3_rules(config: VitfVitConfig) -> list[Rule]:
    """The table of DeiT III, facebookresearch/deit@7e160fe models_v2.py."""
    return _timm_vit_rules(config, "gamma_{n}")


def timm_vit_rules(config: VitfVitConfig) -> list[Rule]:
    """The table of timm 1.0's VisionTransformer."""
    return _timm_vit_rules(config, "ls{n}.gamma")


def timm_shapes(state_dict: Mapping[str, Tensor], num_prefix_rows: tuple[int, ...]) -> dict[str, Any]:
    """
    The fields that shapes tell under timm's names.

    Args:
        num_prefix_rows: Numbers of rows of the position table that may precede the patches'.
    """
    _, channels, *patch_size = shape_of("patch_embed.proj.weight", state_dict, 4)
    width = common_size({"patch_embed.proj.weight": 0, "patch_embed.proj.bias": 0, "norm.weight": 0}, state_dict)
    mlp = {"blocks.0.mlp.fc1.weight": 0, "blocks.0.mlp.fc1.bias": 0, "blocks.0.mlp.fc2.weight": 1}
    known = {
        "patch_size": tuple(patch_size),
        "num_channels": channels,
        "hidden_size": width,
        "num_hidden_layers": count_indices("blocks.{i}.norm1.weight", state_dict),
        "mlp_ratio": common_size(mlp, state_dict) / width,
        "qkv_bias": "blocks.0.attn.qkv.bias" in state_dict,
    }
    if "head.weight" in state_dict:
        known["num_labels"] = common_size({"head.weight": 0, "head.bias": 0}, state_dict)
    positions = shape_of("pos_embed", state_dict, 3)[1]
    images = (square_image(positions - rows, patch_size) for rows in num_prefix_rows)
    if image := next(filter(None, images), None):
        known["image_size"] = image
    return known


# Activation to timm's name of it.
_TIMM_ACTIVATIONS = {"gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh"}


def _timm_activation(name: str | None) -> dict[str, str]:
    names = {theirs: ours for ours, theirs in _TIMM_ACTIVATIONS.items()}
    if name is not None and name not in names:
        raise ConversionError(f"original argument act_layer={name!r} is not supported, only {list(names)}", "act_layer")
    return {} if name is None else {"hidden_act": names[name]}


# Arguments of timm's constructors, 0.3.2 as in DeiT and 1.0, and of models_v2.py.
TIMM_KWARGS = {
    "img_size": "image_size",
    "patch_size": "patch_size",
    "in_chans": "num_channels",
    "num_classes": "num_labels",
    "embed_dim": "hidden_size",
    "depth": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "mlp_ratio": "mlp_ratio",
    "qkv_bias": "qkv_bias",
    "drop_rate": "hidden_dropout_prob",
    "attn_drop_rate": "attention_probs_dropout_prob",
    "drop_path_rate": "drop_path_rate",
    "norm_layer": layer_norm_eps,
    "act_layer": _timm_activation,
}
# What shapes under timm's names leave open, and where.
TIMM_OPEN = {"image_size": "pos_embed", "num_attention_heads": "blocks.0.attn.qkv.weight"}
TIMM_FIXED = {"qk_scale": (None,), "hybrid_backbone": (None,)}

# What makes a ViT a DeiT III: see modeling/configuration_vit.py.
_DEIT3 = {
    "hidden_act": "gelu",
    "prefix_position_embeddings": False,
    "drop_path_schedule": "constant",
    "position_interpolation": "bicubic",
    "initialization": "trunc_normal",
}
_DEIT3_FIXED = {
    **TIMM_FIXED,
    "global_pool": (None,),
    "block_layers": ("models_v2.Layer_scale_init_Block",),
    "Patch_layer": ("timm.models.vision_transformer.PatchEmbed",),
    "act_layer": ("torch.nn.GELU",),
    "Attention_block": ("models_v2.Attention",),
    "Mlp_block": ("timm.models.vision_transformer.Mlp",),
}


def deit3_config(kwargs: Mapping[str, Any], state_dict: Mapping[str, Tensor], **overrides: Any) -> VitfVitConfig:
    """The configuration of a DeiT III checkpoint; `kwargs` are those of `vit_models` in models_v2.py."""
    names = {
        **TIMM_KWARGS,
        "init_scale": "layer_scale_init_value",
        "dpr_constant": lambda constant: {"drop_path_schedule": "constant" if constant else "linear"},
        "mlp_ratio_clstk": ignored,  # of class attention blocks, which these models do not have
    }
    known = {**timm_shapes(state_dict, (0,)), **_DEIT3, "layer_scale_init_value": 1e-4}
    del names["act_layer"]  # a class here
    given = fields_from_kwargs(kwargs, names, _DEIT3_FIXED)
    return make_config(VitfVitConfig, known, given, ask_for=TIMM_OPEN, **overrides)


def timm_config(kwargs: Mapping[str, Any], state_dict: Mapping[str, Tensor], **overrides: Any) -> VitfVitConfig:
    """The configuration of a timm ViT or DeiT III; `kwargs` are those of timm's `VisionTransformer`."""
    known = {**timm_shapes(state_dict, (1, 0)), "hidden_act": "gelu"}
    if "blocks.0.ls1.gamma" in state_dict:
        known |= {**_DEIT3, "layer_scale_init_value": 1e-4}
    if "cls_token" in state_dict:
        rows = shape_of("pos_embed", state_dict, 3)[1]
        if (image := overrides.get("image_size", kwargs.get("img_size"))) is None:
            known["prefix_position_embeddings"] = square_image(rows, 1) is None
        else:
            height, width = (edge // patch for edge, patch in zip(pair(image), known["patch_size"], strict=True))
            known["prefix_position_embeddings"] = rows > height * width
    else:
        known |= {"use_cls_token": False, "pooling": "mean"}
    if "reg_token" in state_dict:
        known["num_register_tokens"] = shape_of("reg_token", state_dict, 3)[1]
    names = {
        **TIMM_KWARGS,
        "class_token": "use_cls_token",
        "reg_tokens": "num_register_tokens",
        "init_values": "layer_scale_init_value",
        "no_embed_class": lambda without: {"prefix_position_embeddings": not without},
        "global_pool": lambda pool: {"pooling": {"token": "cls", "avg": "mean"}.get(pool, pool)},
    }
    given = fields_from_kwargs(kwargs, names, {**TIMM_FIXED, "fc_norm": (False,)})
    return make_config(VitfVitConfig, known, given, ask_for=TIMM_OPEN, **overrides)


# ---------------------------------------------------------------------------------------------------------------------
# transformers' own ViT. Files hold the names of version 4, which version 5 writes by default as well; the other names are
# those of version 5 in memory, written by save_pretrained(save_original_format=False).

_VERSION_4 = {
    "layer": "encoder.layer.{i}.",
    "qkv": tuple(f"attention.attention.{name}." for name in ("query", "key", "value")),
    "proj": "attention.output.dense.",
    "fc1": "intermediate.dense.",
    "fc2": "output.dense.",
}
_VERSION_5 = {
    "layer": "layers.{i}.",
    "qkv": tuple(f"attention.{name}_proj." for name in "qkv"),
    "proj": "attention.o_proj.",
    "fc1": "mlp.fc1.",
    "fc2": "mlp.fc2.",
}
TRANSFORMERS_NAMES = {"transformers": _VERSION_4, "transformers_5": _VERSION_5}


def transformers_rules(names: Mapping[str, Any]) -> list[Rule]:
    """What transformers' ViT and DeiT name alike; `names` is a value of `TRANSFORMERS_NAMES`."""
    source, target = names["layer"], "layers.{i}."
    return [
        Rule("embeddings.cls_token", "embeddings.cls_token"),
        Rule("embeddings.position_embeddings", "embeddings.position_embeddings.weight"),
        Rule("embeddings.patch_embeddings.projection.*", "embeddings.patch_embeddings.projection.*"),
        Rule(source + "layernorm_before.*", target + "layernorm_before.*"),
        Rule(tuple(source + name + "*" for name in names["qkv"]), target + "attention.qkv.*", Concatenate(3)),
        Rule(source + names["proj"] + "*", target + "attention.proj.*"),
        Rule(source + "layernorm_after.*", target + "layernorm_after.*"),
        Rule(source + names["fc1"] + "*", target + "mlp.fc1.*"),
        Rule(source + names["fc2"] + "*", target + "mlp.fc2.*"),
        Rule("layernorm.*", "layernorm.*"),
    ]


def _transformers_vit_rules(names: Mapping[str, Any]):
    def rules(config: VitfVitConfig) -> list[Rule]:
        head = Rule("classifier.*", "classifier.*")
        pooler = [Rule("pooler.dense.*", "pre_logits.*")] if config.representation_size is not None else []
        return [*transformers_rules(names), head, *pooler]

    return rules


# Fields that mean the same in transformers' ViTConfig and DeiTConfig.
TRANSFORMERS_FIELDS = [
    "image_size",
    "patch_size",
    "num_channels",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "hidden_act",
    "qkv_bias",
    "layer_norm_eps",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "initializer_range",
]


def transformers_fields(metadata: Mapping[str, Any], state_dict: Mapping[str, Tensor], head: str) -> dict[str, Any]:
    """
    Fields from transformers' own config.json, and the number of labels from the `head`.

    Raises:
        ConversionError: if the config.json is not there or lacks a field.
    """
    fields = {}
    for name in TRANSFORMERS_FIELDS:
        if name not in metadata:
            raise ConversionError(
                f"{name} is not told by the weights; keep transformers' config.json next to them, or give its fields as "
                f"original_kwargs",
                name,
            )
        fields[name] = metadata[name]
    fields["mlp_ratio"] = metadata.get("intermediate_size", 4 * fields["hidden_size"]) / fields["hidden_size"]
    return fields | transformers_labels(metadata, state_dict, head)


def transformers_labels(metadata: Mapping[str, Any], state_dict: Mapping[str, Tensor], head: str) -> dict[str, Any]:
    """The labels of transformers' own config.json; where it has none that fit the `head`, their number."""
    fields = {}
    if f"{head}.weight" in state_dict:
        fields["num_labels"] = shape_of(f"{head}.weight", state_dict, 2)[0]
    labels = metadata.get("id2label") or {}
    if labels and len(labels) == fields.get("num_labels", len(labels)):
        fields.pop("num_labels", None)  # the labels say how many there are
        fields["id2label"] = {int(index): label for index, label in labels.items()}
        fields["label2id"] = {label: index for index, label in fields["id2label"].items()}
    return fields


def transformers_config(kwargs: Mapping[str, Any], state_dict: Mapping[str, Tensor], **overrides: Any) -> VitfVitConfig:
    """The configuration of transformers' own ViT; `kwargs` is its config.json."""
    known = {
        **transformers_fields(kwargs, state_dict, "classifier"),
        "position_interpolation": "bicubic",
        "initialization": "trunc_normal",
    }
    if "pooler.dense.weight" in state_dict:
        if (activation := kwargs.get("pooler_act", "tanh")) != "tanh":
            raise ConversionError(f"pooler_act={activation!r} is not supported, only 'tanh'", "pooler_act")
        known["representation_size"] = shape_of("pooler.dense.weight", state_dict, 2)[0]
    return make_config(VitfVitConfig, known, **overrides)


def has_head(model: PreTrainedModel) -> bool:
    """Whether it is more than the encoder."""
    return model.base_model is not model


def one_or_two(size: Any) -> int | list[int]:
    """A size as one number where height and width are equal."""
    height, width = pair(size)
    return height if height == width else [height, width]


def transformers_native_fields(config) -> dict[str, Any]:
    """The fields of `TRANSFORMERS_FIELDS` and the labels, for transformers' own configuration."""
    return {
        **{name: getattr(config, name) for name in TRANSFORMERS_FIELDS},
        "image_size": one_or_two(config.image_size),
        "patch_size": one_or_two(config.patch_size),
        "intermediate_size": round(config.mlp_ratio * config.hidden_size),
        "id2label": config.id2label,
        "label2id": config.label2id,
    }


def _transformers_native(model: PreTrainedModel) -> dict[str, Any]:
    config = model.config
    if has_head(model) and config.representation_size is not None:
        raise ConversionError(
            "transformers' ViTForImageClassification has no layer before its head (representation_size)"
        )
    return ViTConfig(
        **transformers_native_fields(config),
        pooler_output_size=config.representation_size or config.hidden_size,
        architectures=["ViTForImageClassification" if has_head(model) else "ViTModel"],
    ).to_diff_dict()


def timm_native_fields(model: PreTrainedModel) -> dict[str, Any]:
    """The arguments of timm 1.0's VisionTransformer that ViT and DeiT have in common."""
    config = model.config
    if config.hidden_act not in _TIMM_ACTIVATIONS or config.layer_norm_eps != 1e-6:
        raise ConversionError(
            f"timm's config.json cannot say hidden_act={config.hidden_act!r} with layer_norm_eps={config.layer_norm_eps}, "
            f"only {' or '.join(_TIMM_ACTIVATIONS)} with 1e-06; convert with --set to change them"
        )
    return {
        "img_size": one_or_two(config.image_size),
        "patch_size": one_or_two(config.patch_size),
        "in_chans": config.num_channels,
        "num_classes": config.num_labels if has_head(model) else 0,
        "embed_dim": config.hidden_size,
        "depth": config.num_hidden_layers,
        "num_heads": config.num_attention_heads,
        "mlp_ratio": config.mlp_ratio,
        "qkv_bias": config.qkv_bias,
        "act_layer": _TIMM_ACTIVATIONS[config.hidden_act],
    }


def _timm_native(model: PreTrainedModel) -> dict[str, Any]:
    config = model.config
    return {
        "architecture": "vit_base_patch16_224" if config.layer_scale_init_value is None else "deit3_base_patch16_224",
        "model_args": {
            **timm_native_fields(model),
            "class_token": config.use_cls_token,
            "reg_tokens": config.num_register_tokens,
            "no_embed_class": not config.prefix_position_embeddings,
            "global_pool": {"cls": "token", "mean": "avg"}[config.pooling],
            "fc_norm": False,
            "init_values": config.layer_scale_init_value,
        },
    }


_PLAIN_POSITIONS = {"position_embedding_type": ("learned",), "num_register_tokens": (0,)}
_TRANSFORMERS_HOLDS = {
    **_PLAIN_POSITIONS,
    "resnet_depths": (None,),
    "use_cls_token": (True,),
    "pooling": ("cls",),
    "prefix_position_embeddings": (True,),
    "layer_scale_init_value": (None,),
}
_FLAX_HOLDS = {
    **_PLAIN_POSITIONS,
    "prefix_position_embeddings": (True,),
    "layer_scale_init_value": (None,),
    "qkv_bias": (True,),
}
LAYOUTS = {
    "original": Layout(
        rules=rules,
        config=config_from_original,
        requires=("embedding/kernel", f"Transformer/encoderblock_{{i}}/{_PRE_LINEN[1]}/query/kernel"),
        suffix=".npz",
        holds=_FLAX_HOLDS,
    ),
    "original_linen": Layout(
        rules=linen_rules,
        config=config_from_original,
        requires=("embedding/kernel", f"Transformer/encoderblock_{{i}}/{_LINEN[1]}/query/kernel"),
        # ViViT, whose keys are the same but for the head.
        forbids=("output_projection/*",),
        suffix=".npz",
        holds=_FLAX_HOLDS,
    ),
    "original_deit3": Layout(
        rules=deit3_rules,
        config=deit3_config,
        requires=("patch_embed.proj.weight", "blocks.{i}.attn.qkv.weight", "blocks.{i}.gamma_1"),
        forbids=("blocks_token_only.{i}.*", "rel_pos_bias.*"),
        suffix=".pth",
        wrapper="model",
        source=Source("facebookresearch/deit", FACEBOOK_COMMIT, "models_v2.py", "apache-2.0"),
        holds={
            **_PLAIN_POSITIONS,
            "resnet_depths": (None,),
            "prefix_position_embeddings": (False,),
            "use_cls_token": (True,),
            "pooling": ("cls",),
            "representation_size": (None,),
        },
    ),
    "timm": Layout(
        rules=timm_vit_rules,
        config=timm_config,
        requires=("patch_embed.proj.weight", "blocks.{i}.attn.qkv.weight", "pos_embed"),
        forbids=("dist_token", "blocks.{i}.gamma_1", "fc_norm.*"),
        holds={
            "position_embedding_type": ("learned",),
            "representation_size": (None,),
            # timm's hybrids standardise weights and normalise groups with other epsilons than the original.
            "resnet_depths": (None,),
        },
        native_config=_timm_native,
    ),
    **{
        name: Layout(
            rules=_transformers_vit_rules(names),
            config=transformers_config,
            requires=(
                "embeddings.patch_embeddings.projection.weight",
                names["layer"] + names["qkv"][0] + "weight",
            ),
            forbids=("embeddings.distillation_token",),
            prefix="vit.",
            holds=_TRANSFORMERS_HOLDS,
            native_config=_transformers_native,
        )
        for name, names in TRANSFORMERS_NAMES.items()
    },
}

# ---------------------------------------------------------------------------------------------------------------------
# Published checkpoints

# Of DeiT too, which shares the repository.
FACEBOOK = "https://dl.fbaipublicfiles.com/deit"
FACEBOOK_README = "README of facebookresearch/deit"
FACEBOOK_LICENSE = {
    "license": "apache-2.0",
    "license_source": "no statement for the weights; the READMEs say that the repository is Apache-2.0",
}
_GOOGLE = "https://storage.googleapis.com/vit_models"
_GOOGLE_LICENSE = {
    "license": "apache-2.0",
    "license_source": "no statement for the weights; the code is Apache-2.0, and timm's cards of them say apache-2.0",
}
TIMM_EVAL = "timm's evaluation, bicubic: huggingface/pytorch-image-models@aa4b585 results/results-imagenet.csv"
_README_AUGREG = "README of google-research/vision_transformer, recommended AugReg checkpoints"
_README_ORIGINAL = "README of google-research/vision_transformer before 2021-06: a fine-tuning like this one, not an evaluation of this file"
_TRAINING = {
    "in21k": "ImageNet-21k",
    "in21k_ft_in1k": "ImageNet-21k, fine-tuned on ImageNet-1k",
    "in1k": "ImageNet-1k",
    "in22k_ft_in1k": "ImageNet-21k, fine-tuned on ImageNet-1k",
}

# Key, file, top-1, who measured it. arXiv 2010.11929 ("orig") and 2106.01548 ("sam").
_ORIGINAL = (
    ("vit_base_patch16_224_in21k_pre_logits.orig_in21k", "imagenet21k/ViT-B_16", None, ""),
    ("vit_base_patch32_224_in21k_pre_logits.orig_in21k", "imagenet21k/ViT-B_32", None, ""),
    ("vit_base_patch8_224_in21k_pre_logits.orig_in21k", "imagenet21k/ViT-B_8", None, ""),
    ("vit_large_patch16_224_in21k_pre_logits.orig_in21k", "imagenet21k/ViT-L_16", None, ""),
    ("vit_large_patch32_224_in21k_pre_logits.orig_in21k", "imagenet21k/ViT-L_32", None, ""),
    ("vit_huge_patch14_224_in21k_pre_logits.orig_in21k", "imagenet21k/ViT-H_14", None, ""),
    ("vit_base_patch16_384.orig_in21k_ft_in1k", "imagenet21k+imagenet2012/ViT-B_16", 84.212, TIMM_EVAL),
    ("vit_base_patch16_224.orig_in21k_ft_in1k", "imagenet21k+imagenet2012/ViT-B_16-224", 81.782, TIMM_EVAL),
    ("vit_base_patch32_384.orig_in21k_ft_in1k", "imagenet21k+imagenet2012/ViT-B_32", 81.79, _README_ORIGINAL),
    ("vit_base_patch8_384.orig_in21k_ft_in1k", "imagenet21k+imagenet2012/ViT-B_8", None, ""),
    ("vit_large_patch16_384.orig_in21k_ft_in1k", "imagenet21k+imagenet2012/ViT-L_16", 85.07, _README_ORIGINAL),
    ("vit_large_patch16_224.orig_in21k_ft_in1k", "imagenet21k+imagenet2012/ViT-L_16-224", None, ""),
    ("vit_large_patch32_384.orig_in21k_ft_in1k", "imagenet21k+imagenet2012/ViT-L_32", 81.508, TIMM_EVAL),
    ("vit_base_patch16_224.sam_in1k", "sam/ViT-B_16", 80.246, TIMM_EVAL),
    ("vit_base_patch32_224.sam_in1k", "sam/ViT-B_32", 73.704, TIMM_EVAL),
    ("vit_large_patch16_224.sam_in1k", "sam/ViT-L_16", None, ""),
    ("vit_large_patch32_224.sam_in1k", "sam/ViT-L_32", None, ""),
    ("vit_small_patch16_224.sam_in1k", "sam/ViT-S_16", None, ""),
    ("vit_base_r50_s16_224_in21k_pre_logits.orig_in21k", "imagenet21k/R50+ViT-B_16", None, ""),
    ("vit_base_r26_s32_224_in21k_pre_logits.orig_in21k", "imagenet21k/R26+ViT-B_32", None, ""),
    ("vit_large_r50_s32_224_in21k_pre_logits.orig_in21k", "imagenet21k/R50+ViT-L_32", None, ""),
    ("vit_base_r50_s16_384.orig_in21k_ft_in1k", "imagenet21k+imagenet2012/R50+ViT-B_16", 84.988, TIMM_EVAL),
)
# Key, model, data, augmentation, weight decay, dropout and stochastic depth, fine-tuning (learning rate, size), top-1, who
# measured it. arXiv 2106.10270; where the README of the repository and timm chose different runs, both are here.
_AUGREG = (
    ("vit_large_patch16_224_in21k.augreg_in21k", "L_16", "i21k", "strong1", 0.1, 0.0, None, None, ""),
    (
        "vit_large_patch16_384.augreg_readme_in21k_ft_in1k",
        "L_16",
        "i21k",
        "strong1",
        0.1,
        0.0,
        (0.01, 384),
        85.59,
        _README_AUGREG,
    ),
    ("vit_base_patch16_224_in21k.augreg_in21k", "B_16", "i21k", "medium1", 0.1, 0.0, None, None, ""),
    (
        "vit_base_patch16_384.augreg_readme_in21k_ft_in1k",
        "B_16",
        "i21k",
        "medium1",
        0.1,
        0.0,
        (0.03, 384),
        85.49,
        _README_AUGREG,
    ),
    ("vit_small_patch16_224_in21k.augreg_in21k", "S_16", "i21k", "light1", 0.03, 0.0, None, None, ""),
    ("vit_small_patch16_384.augreg_in21k_ft_in1k", "S_16", "i21k", "light1", 0.03, 0.0, (0.03, 384), 83.814, TIMM_EVAL),
    ("vit_tiny_patch16_224_in21k.augreg_in21k", "Ti_16", "i21k", "none", 0.03, 0.0, None, None, ""),
    ("vit_tiny_patch16_384.augreg_in21k_ft_in1k", "Ti_16", "i21k", "none", 0.03, 0.0, (0.03, 384), 78.438, TIMM_EVAL),
    ("vit_base_patch32_224_in21k.augreg_in21k", "B_32", "i21k", "light1", 0.1, 0.0, None, None, ""),
    (
        "vit_base_patch32_384.augreg_readme_in21k_ft_in1k",
        "B_32",
        "i21k",
        "light1",
        0.1,
        0.0,
        (0.01, 384),
        83.59,
        _README_AUGREG,
    ),
    ("vit_small_patch32_224_in21k.augreg_in21k", "S_32", "i21k", "none", 0.1, 0.0, None, None, ""),
    (
        "vit_small_patch32_384.augreg_readme_in21k_ft_in1k",
        "S_32",
        "i21k",
        "none",
        0.1,
        0.0,
        (0.01, 384),
        79.58,
        _README_AUGREG,
    ),
    ("vit_base_patch8_224.augreg_medium2_in21k_ft_in1k", "B_8", "i21k", "medium2", 0.1, 0.0, (0.03, 224), None, ""),
    ("vit_tiny_patch16_224.augreg_in21k_ft_in1k", "Ti_16", "i21k", "none", 0.03, 0.0, (0.03, 224), 75.452, TIMM_EVAL),
    ("vit_small_patch32_224.augreg_in21k_ft_in1k", "S_32", "i21k", "light1", 0.03, 0.0, (0.03, 224), 76.01, TIMM_EVAL),
    ("vit_small_patch32_384.augreg_in21k_ft_in1k", "S_32", "i21k", "light1", 0.03, 0.0, (0.03, 384), 80.476, TIMM_EVAL),
    ("vit_small_patch16_224.augreg_in21k_ft_in1k", "S_16", "i21k", "light1", 0.03, 0.0, (0.03, 224), 81.402, TIMM_EVAL),
    ("vit_small_patch16_224.augreg_in1k", "S_16", "i1k", "medium2", 0.1, 0.0, (0.01, 224), 78.842, TIMM_EVAL),
    ("vit_small_patch16_384.augreg_in1k", "S_16", "i1k", "medium2", 0.1, 0.0, (0.01, 384), 81.13, TIMM_EVAL),
    ("vit_base_patch32_224.augreg_in21k_ft_in1k", "B_32", "i21k", "medium1", 0.03, 0.0, (0.03, 224), 80.732, TIMM_EVAL),
    ("vit_base_patch32_384.augreg_in21k_ft_in1k", "B_32", "i21k", "light1", 0.1, 0.0, (0.03, 384), 83.358, TIMM_EVAL),
    ("vit_base_patch32_224.augreg_in1k", "B_32", "i1k", "medium2", 0.1, 0.1, (0.01, 224), 74.908, TIMM_EVAL),
    ("vit_base_patch32_384.augreg_in1k", "B_32", "i1k", "medium2", 0.1, 0.1, (0.01, 384), 78.75, TIMM_EVAL),
    ("vit_base_patch16_224.augreg_in21k_ft_in1k", "B_16", "i21k", "medium1", 0.1, 0.0, (0.01, 224), 84.534, TIMM_EVAL),
    ("vit_base_patch16_384.augreg_in21k_ft_in1k", "B_16", "i21k", "medium1", 0.1, 0.0, (0.01, 384), 86.01, TIMM_EVAL),
    ("vit_base_patch16_224.augreg_in1k", "B_16", "i1k", "strong2", 0.1, 0.1, (0.01, 224), 79.154, TIMM_EVAL),
    ("vit_base_patch16_384.augreg_in1k", "B_16", "i1k", "strong2", 0.1, 0.1, (0.01, 384), 81.102, TIMM_EVAL),
    ("vit_base_patch8_224.augreg_in21k_ft_in1k", "B_8", "i21k", "medium1", 0.1, 0.0, (0.01, 224), 85.838, TIMM_EVAL),
    ("vit_large_patch16_224.augreg_in21k_ft_in1k", "L_16", "i21k", "medium1", 0.1, 0.1, (0.01, 224), 85.856, TIMM_EVAL),
    ("vit_large_patch16_384.augreg_in21k_ft_in1k", "L_16", "i21k", "medium1", 0.1, 0.1, (0.01, 384), 87.096, TIMM_EVAL),
    ("vit_large_r50_s32_224_in21k.augreg_in21k", "R50_L_32", "i21k", "medium1", 0.1, 0.1, None, None, ""),
    (
        "vit_large_r50_s32_384.augreg_readme_in21k_ft_in1k",
        "R50_L_32",
        "i21k",
        "medium1",
        0.1,
        0.1,
        (0.01, 384),
        85.99,
        _README_AUGREG,
    ),
    ("vit_small_r26_s32_224_in21k.augreg_in21k", "R26_S_32", "i21k", "light1", 0.1, 0.0, None, None, ""),
    (
        "vit_small_r26_s32_384.augreg_readme_in21k_ft_in1k",
        "R26_S_32",
        "i21k",
        "light1",
        0.1,
        0.0,
        (0.01, 384),
        83.85,
        _README_AUGREG,
    ),
    ("vit_tiny_r_s16_p8_224_in21k.augreg_in21k", "R_Ti_16", "i21k", "none", 0.03, 0.0, None, None, ""),
    (
        "vit_tiny_r_s16_p8_384.augreg_in21k_ft_in1k",
        "R_Ti_16",
        "i21k",
        "none",
        0.03,
        0.0,
        (0.03, 384),
        75.962,
        TIMM_EVAL,
    ),
    ("vit_tiny_r_s16_p8_224.augreg_in21k_ft_in1k", "R_Ti_16", "i21k", "none", 0.03, 0.0, (0.03, 224), 71.8, TIMM_EVAL),
    (
        "vit_small_r26_s32_224.augreg_in21k_ft_in1k",
        "R26_S_32",
        "i21k",
        "light0",
        0.03,
        0.1,
        (0.03, 224),
        81.856,
        TIMM_EVAL,
    ),
    (
        "vit_small_r26_s32_384.augreg_in21k_ft_in1k",
        "R26_S_32",
        "i21k",
        "medium2",
        0.03,
        0.0,
        (0.03, 384),
        84.066,
        TIMM_EVAL,
    ),
    (
        "vit_large_r50_s32_224.augreg_in21k_ft_in1k",
        "R50_L_32",
        "i21k",
        "medium1",
        0.1,
        0.1,
        (0.01, 224),
        84.434,
        TIMM_EVAL,
    ),
    (
        "vit_large_r50_s32_384.augreg_in21k_ft_in1k",
        "R50_L_32",
        "i21k",
        "medium2",
        0.1,
        0.0,
        (0.01, 384),
        86.188,
        TIMM_EVAL,
    ),
)
# Key, file, top-1 of the repository's README (README_revenge.md of facebookresearch/deit@7e160fe). arXiv 2204.07118.
_DEIT3_FILES = (
    ("deit3_small_patch16_224.fb_in1k", "deit_3_small_224_1k", 81.4),
    ("deit3_small_patch16_384.fb_in1k", "deit_3_small_384_1k", 83.4),
    ("deit3_medium_patch16_224.fb_in1k", "deit_3_medium_224_1k", 83.0),
    ("deit3_base_patch16_224.fb_in1k", "deit_3_base_224_1k", 83.8),
    ("deit3_base_patch16_384.fb_in1k", "deit_3_base_384_1k", 85.0),
    ("deit3_large_patch16_224.fb_in1k", "deit_3_large_224_1k", 84.9),
    ("deit3_large_patch16_384.fb_in1k", "deit_3_large_384_1k", 85.8),
    ("deit3_huge_patch14_224.fb_in1k", "deit_3_huge_224_1k", 85.2),
    ("deit3_small_patch16_224.fb_in22k_ft_in1k", "deit_3_small_224_21k", 83.1),
    ("deit3_small_patch16_384.fb_in22k_ft_in1k", "deit_3_small_384_21k", 84.8),
    ("deit3_medium_patch16_224.fb_in22k_ft_in1k", "deit_3_medium_224_21k", 84.5),
    ("deit3_base_patch16_224.fb_in22k_ft_in1k", "deit_3_base_224_21k", 85.7),
    ("deit3_base_patch16_384.fb_in22k_ft_in1k", "deit_3_base_384_21k", 86.7),
    ("deit3_large_patch16_224.fb_in22k_ft_in1k", "deit_3_large_224_21k", 87.0),
    ("deit3_large_patch16_384.fb_in22k_ft_in1k", "deit_3_large_384_21k", 87.7),
    ("deit3_huge_patch14_224.fb_in22k_ft_in1k", "deit_3_huge_224_21k_v1", 87.2),
)


def _training(key: str) -> str:
    """What the end of the tag says about the data."""
    return _TRAINING[re.search(r"(in2[12]k_ft_in1k|in21k|in1k)$", key)[1]]


def _augreg_file(model, data, augmentation, weight_decay, dropout, fine_tuning) -> str:
    run = f"{model}-{data}-300ep-lr_0.001-aug_{augmentation}-wd_{weight_decay}-do_{dropout}-sd_{dropout}"
    return run if fine_tuning is None else f"{run}--imagenet2012-steps_20k-lr_{fine_tuning[0]}-res_{fine_tuning[1]}"


CHECKPOINTS: dict[str, Published] = {
    **{
        key: Published(f"{_GOOGLE}/{file}.npz", top1, source, _training(key), **_GOOGLE_LICENSE)
        for key, file, top1, source in _ORIGINAL
    },
    **{
        key: Published(f"{_GOOGLE}/augreg/{_augreg_file(*run)}.npz", top1, source, _training(key), **_GOOGLE_LICENSE)
        for key, *run, top1, source in _AUGREG
    },
    **{
        key: Published(
            f"{FACEBOOK}/{file}.pth", top1, FACEBOOK_README, _training(key), wrapper="model", **FACEBOOK_LICENSE
        )
        for key, file, top1 in _DEIT3_FILES
    },
}
