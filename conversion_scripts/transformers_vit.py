"""
transformers' own models that are a ViT or one of its relatives: ViT, ViT-MSN, ViTMAE, I-JEPA, DeiT where
its distillation token has no head, DINOv2 with and without registers, and the image encoders of CLIP and SigLIP.

Facts from transformers 5.24 models/<model_type>/modeling_<model_type>.py and conversion_mapping.py.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import (
    CLIPConfig,
    CLIPVisionConfig,
    DeiTConfig,
    Dinov2Config,
    Dinov2WithRegistersConfig,
    IJepaConfig,
    PreTrainedModel,
    SiglipConfig,
    SiglipVisionConfig,
    ViTConfig,
    ViTMAEConfig,
    ViTMSNConfig,
)

from ..conversion.convert import Layout, make_config, shape_of
from ..conversion.rules import Concatenate, Reshape, Rule, Split
from ..errors import ConversionError
from ..modeling.configuration_vit import VitfVitConfig
from ..modeling.configuration_vitf import pair
from .transformers_names import (
    MASK_TOKEN,
    MASKED_RULES,
    TRANSFORMERS_NAMES,
    head_of,
    native_class,
    tanh_pooler,
    transformers_fields,
    transformers_labels,
    transformers_layer_rules,
    transformers_native_fields,
    transformers_rules,
)

# ---------------------------------------------------------------------------------------------------------------------
# What they have in common

# What the plain ViT has of the fields by which its relatives differ.
PLAIN_VIT = {
    "head_dim": (None,),
    "proj_bias": (True,),
    "attention_proj_bias": (True,),
    "mlp_type": ("plain",),
    "norm_type": ("layernorm",),
    "norm_position": ("pre",),
    "sub_layernorm": (False,),
    "patch_bias": (True,),
    "pixel_layernorm": (False,),
    "patch_layernorm": (False,),
    "pre_layernorm": (False,),
    "final_layernorm": ("tokens",),
    "pool_prefix_tokens": (False,),
    "register_position_embeddings": (False,),
}
# The relatives replace some of these.
_HOLDS = {
    **PLAIN_VIT,
    "resnet_depths": (None,),
    "use_cls_token": (True,),
    "pooling": ("cls",),
    "num_register_tokens": (0,),
    "position_embedding_type": ("learned",),
    "prefix_position_embeddings": (True,),
    "layer_scale_init_value": (None,),
}


def _common(known: Mapping[str, Any]) -> dict[str, Any]:
    """Fields that are the same for all: what transformers does where it says nothing."""
    sizes = zip(pair(known["image_size"]), pair(known["patch_size"]), strict=True)
    return {
        "position_interpolation": "bicubic",
        "initialization": "trunc_normal",
        "drop_incomplete_patches": any(edge % side for edge, side in sizes),
    }


def _square(config: VitfVitConfig, name: str) -> None:
    """ConversionError unless images and patches are square."""
    for field in ("image_size", "patch_size"):
        if len({*pair(getattr(config, field))}) > 1:
            raise ConversionError(f"{name} takes square images and patches only, not {field}={getattr(config, field)}")


# ---------------------------------------------------------------------------------------------------------------------
# ViT, ViT-MSN, ViTMAE, I-JEPA and DeiT, which have the same names


# Fields of MAE's decoder and of its loss, which transformers' ViTMAEConfig has under the same names.
_OF_MAE = (
    *("decoder_hidden_size", "decoder_num_hidden_layers", "decoder_num_attention_heads", "decoder_intermediate_size"),
    *("mask_ratio", "norm_pix_loss"),
)


def _decoder_rules(names: Mapping[str, Any]) -> list[Rule]:
    return [
        Rule("decoder.decoder_embed.*", "decoder.projection.*"),
        Rule("decoder.mask_token", "decoder.mask_token"),
        Rule("decoder.decoder_pos_embed", "decoder.position_embeddings.weight"),
        *transformers_layer_rules(names, names["decoder_layer"], "decoder.layers.{i}."),
        Rule("decoder.decoder_norm.*", "decoder.layernorm.*"),
        Rule("decoder.decoder_pred.*", "decoder.prediction.*"),
    ]


def _vit_rules(names: Mapping[str, Any]) -> Callable[[VitfVitConfig], list[Rule]]:
    def rules(config: VitfVitConfig) -> list[Rule]:
        table = [*transformers_rules(names), Rule("classifier.*", "classifier.*"), *MASKED_RULES]
        table += _decoder_rules(names)
        if not config.use_cls_token:
            table = [rule for rule in table if rule.targets != ("embeddings.cls_token",)]
        if config.num_register_tokens:
            table.append(Rule("embeddings.distillation_token", "embeddings.register_tokens"))
        if config.representation_size is not None:
            table.append(Rule("pooler.dense.*", "pre_logits.*"))
        return table

    return rules


def _vit_config(**fields: Any) -> Callable[..., VitfVitConfig]:
    def config(kwargs: Mapping[str, Any], state_dict: Mapping[str, Tensor], **overrides: Any) -> VitfVitConfig:
        """`kwargs` is transformers' config.json."""
        known = transformers_fields(kwargs, state_dict, "classifier")
        if "pooler.dense.weight" in state_dict:
            known["representation_size"] = tanh_pooler(kwargs, state_dict)
        known |= {name: kwargs[name] for name in _OF_MAE if name in kwargs}
        return make_config(VitfVitConfig, _common(known), known, fields, **overrides)

    return config


def _vit_native(model: PreTrainedModel) -> dict[str, Any]:
    config, head = model.config, head_of(model)
    fields = transformers_native_fields(config)
    if head == "Model" and config.representation_size is None:
        # transformers' ViTModel always has a pooler; ViT-MSN is the same model without one.
        return ViTMSNConfig(**fields, architectures=["ViTMSNModel"]).to_diff_dict()
    if head == "ForPreTraining":
        _square(config, "transformers' ViTMAEForPreTraining")
        fields |= {name: getattr(config, name) for name in _OF_MAE}
        return ViTMAEConfig(**fields, architectures=["ViTMAEForPreTraining"]).to_diff_dict()
    if head != "Model" and config.representation_size is not None:
        raise ConversionError(f"transformers' ViT{head} has no layer before its head (representation_size)")
    if head == "ForMaskedImageModeling":
        _square(config, "transformers' ViTForMaskedImageModeling")
        fields["encoder_stride"] = pair(config.patch_size)[0]
    return ViTConfig(
        **fields,
        pooler_output_size=config.representation_size or config.hidden_size,
        architectures=[native_class(model, "ViT")],
    ).to_diff_dict()


def _deit_native(model: PreTrainedModel) -> dict[str, Any]:
    config, head = model.config, head_of(model)
    fields = transformers_native_fields(config)
    if (head == "Model") != (config.representation_size is not None):
        raise ConversionError(
            "transformers' DeiTModel has a pooler, and its heads have no layer before them: representation_size="
            f"{config.representation_size} has no place in DeiT{head}"
        )
    if head == "ForMaskedImageModeling":
        _square(config, "transformers' DeiTForMaskedImageModeling")
        fields["encoder_stride"] = pair(config.patch_size)[0]
    return DeiTConfig(
        **fields,
        pooler_output_size=config.representation_size or config.hidden_size,
        architectures=[native_class(model, "DeiT")],
    ).to_diff_dict()


def _ijepa_native(model: PreTrainedModel) -> dict[str, Any]:
    heads = ("Model", "ForImageClassification")
    fields = transformers_native_fields(model.config)
    return IJepaConfig(**fields, architectures=[native_class(model, "IJepa", heads)]).to_diff_dict()


_PATCHES = "embeddings.patch_embeddings.projection.weight"
_NO_CLS = {"use_cls_token": (False,), "pooling": ("mean",), "prefix_position_embeddings": (True, False)}


def _of_vit(names: Mapping[str, Any], config: Callable[..., VitfVitConfig], **fields: Any) -> Layout:
    return Layout(
        rules=_vit_rules(names),
        config=config,
        head_keys_in_base=(MASK_TOKEN,),
        **{
            "requires": (_PATCHES, names["layer"] + names["qkv"][0] + "weight", *fields.pop("requires", ())),
            "native_config": _vit_native,
            "prefix": "vit.",
            **fields,
        },
    )


def _of_mae(names: Mapping[str, Any], requires: tuple[str, ...]) -> Layout:
    return _of_vit(
        names,
        _vit_config(),
        requires=("embeddings.cls_token", *requires),
        forbids=("embeddings.distillation_token",),
        model_types=("vit_mae",),
        holds=_HOLDS,
        note="transformers' ViTMAEModel leaves out most patches at random; here only VitfVitForPreTraining does",
    )


# What transformers 5 makes of the names of version 4 when it saves a decoder: it takes `decoder_layers.` for `layers.`.
_SAVED_BY_5 = {**TRANSFORMERS_NAMES["transformers"], "decoder_layer": "decoder.decoder_encoder.layer.{i}."}


def _layouts_of_vit(suffix: str, names: Mapping[str, Any]) -> dict[str, Layout]:
    """The layouts whose names are `names`, a value of `TRANSFORMERS_NAMES`; `suffix` ends their own."""
    token = "embeddings.cls_token"
    return {
        f"transformers{suffix}": _of_vit(
            names,
            _vit_config(),
            requires=(token,),
            forbids=("embeddings.distillation_token", "embeddings.register_tokens"),
            model_types=("vit", "vit_msn"),
            holds=_HOLDS,
        ),
        f"transformers_mae{suffix}": _of_mae(names, ()),
        f"transformers_deit{suffix}": _of_vit(
            names,
            _vit_config(num_register_tokens=1, register_position_embeddings=True),
            requires=(token, "embeddings.distillation_token"),
            # With both heads, or with neither head nor pooler, it is DeiT itself.
            forbids=("cls_classifier.*", "distillation_classifier.*", "decoder.0.*"),
            model_types=("deit",),
            prefix="deit.",
            holds={**_HOLDS, "num_register_tokens": (1,), "register_position_embeddings": (True,)},
            native_config=_deit_native,
            note="DeiT's distillation token has no head of its own in this class, and is a register token here",
        ),
        f"transformers_ijepa{suffix}": _of_vit(
            names,
            _vit_config(use_cls_token=False, pooling="mean"),
            forbids=(token,),
            model_types=("ijepa",),
            prefix="ijepa.",
            holds={**_HOLDS, **_NO_CLS, "representation_size": (None,)},
            native_config=_ijepa_native,
        ),
    }


# ---------------------------------------------------------------------------------------------------------------------
# DINOv2

_DINO_NAMES = {
    "": {
        "qkv": tuple(f"attention.attention.{name}." for name in ("query", "key", "value")),
        "proj": "attention.output.dense.",
        "gate": ("mlp.weights_in.",),
        "down": "mlp.weights_out.",
    },
    "_5": {
        "qkv": tuple(f"attention.{name}_proj." for name in "qkv"),
        "proj": "attention.o_proj.",
        "gate": ("mlp.gate_proj.", "mlp.up_proj."),
        "down": "mlp.down_proj.",
    },
}


def _dino_rules(names: Mapping[str, Any]) -> Callable[[VitfVitConfig], list[Rule]]:
    source, target = "encoder.layer.{i}.", "layers.{i}."

    def rules(config: VitfVitConfig) -> list[Rule]:
        table = [
            Rule("embeddings.cls_token", "embeddings.cls_token"),
            Rule("embeddings.position_embeddings", "embeddings.position_embeddings.weight"),
            Rule("embeddings.patch_embeddings.projection.*", "embeddings.patch_embeddings.projection.*"),
            Rule(source + "norm1.*", target + "layernorm_before.*"),
            Rule(tuple(source + name + "*" for name in names["qkv"]), target + "attention.qkv.*", Concatenate(3)),
            Rule(source + names["proj"] + "*", target + "attention.proj.*"),
            Rule(source + "layer_scale1.lambda1", target + "layer_scale1.weight"),
            Rule(source + "norm2.*", target + "layernorm_after.*"),
            Rule(source + "layer_scale2.lambda1", target + "layer_scale2.weight"),
            Rule("layernorm.*", "layernorm.*"),
            Rule("classifier.*", "classifier.*"),
        ]
        if config.num_register_tokens:
            table.append(Rule("embeddings.register_tokens", "embeddings.register_tokens"))
        if config.mlp_type == "plain":
            return [*table, *(Rule(f"{source}mlp.{name}.*", f"{target}mlp.{name}.*") for name in ("fc1", "fc2"))]
        gate = tuple(source + name + "*" for name in names["gate"])
        joined = (Concatenate(2),) if len(gate) == 2 else ()
        return [
            *table,
            Rule(gate, target + "mlp.fc1.*", *joined),
            Rule(source + names["down"] + "*", target + "mlp.fc2.*"),
        ]

    return rules


def _dino_config(kwargs: Mapping[str, Any], state_dict: Mapping[str, Tensor], **overrides: Any) -> VitfVitConfig:
    """The configuration of transformers' own DINOv2, with registers or without; `kwargs` is its config.json."""
    # It has no intermediate_size.
    known = transformers_fields(kwargs, state_dict, "classifier")
    gated = "encoder.layer.0.mlp.fc2.weight" not in state_dict
    layer = "encoder.layer.0.mlp."
    last = next((name for name in ("fc2", "weights_out") if f"{layer}{name}.weight" in state_dict), "down_proj")
    known |= {
        "mlp_ratio": shape_of(f"{layer}{last}.weight", state_dict, 2)[1] / known["hidden_size"],
        "mlp_type": "gated" if gated else "plain",
        "layer_scale_init_value": kwargs.get("layerscale_value", 1.0),
        "drop_path_rate": kwargs.get("drop_path_rate", 0.0),
        "drop_path_schedule": "constant",
        "pooling": "cls_mean" if "classifier.weight" in state_dict else "cls",
    }
    if gated:
        known["hidden_act"] = "silu"
    if "embeddings.register_tokens" in state_dict:
        known["num_register_tokens"] = shape_of("embeddings.register_tokens", state_dict, 3)[1]
    common = _common(known)
    if "embeddings.register_tokens" in state_dict:
        common["position_interpolation"] = "bicubic_antialias"
    return make_config(VitfVitConfig, common, known, **overrides)


def _dino_misfit(config: VitfVitConfig) -> str | None:
    if config.layer_scale_init_value is None:
        return "layer_scale_init_value=None has no place in it"
    if config.mlp_type == "gated" and config.hidden_act != "silu":
        return f"hidden_act={config.hidden_act!r} has no place in its gated layers, only 'silu'"
    if _dino_mlp_ratio(config) is None:
        return f"mlp_ratio={config.mlp_ratio} has no place in it, which has whole numbers, of gated layers two thirds"
    return None


def _dino_mlp_ratio(config: VitfVitConfig) -> int | None:
    """The whole number from which transformers makes the width of the feed-forward layers; `None` if there is none."""
    width = round(config.mlp_ratio * config.hidden_size)
    for ratio in range(1, 65):
        hidden = config.hidden_size * ratio
        if config.mlp_type == "gated":
            hidden = (int(hidden * 2 / 3) + 7) // 8 * 8
        if hidden == width:
            return ratio
    return None


def _dino_native(model: PreTrainedModel) -> dict[str, Any]:
    config = model.config
    name, config_class = "Dinov2", Dinov2Config
    own = {"use_mask_token": False}
    if config.num_register_tokens:
        name, config_class = "Dinov2WithRegisters", Dinov2WithRegistersConfig
        own = {"num_register_tokens": config.num_register_tokens}
    class_name = native_class(model, name, ("Model", "ForImageClassification"))
    needed = "cls" if head_of(model) == "Model" else "cls_mean"
    if config.pooling != needed:
        raise ConversionError(f"transformers' {class_name} is pooling={needed!r}, not {config.pooling!r}")
    _square(config, f"transformers' {class_name}")
    fields = transformers_native_fields(config)
    del fields["intermediate_size"]
    return config_class(
        **{**fields, "hidden_act": "gelu" if config.mlp_type == "gated" else config.hidden_act},
        **own,
        mlp_ratio=_dino_mlp_ratio(config),
        use_swiglu_ffn=config.mlp_type == "gated",
        layerscale_value=float(config.layer_scale_init_value),
        drop_path_rate=config.drop_path_rate,
        architectures=[class_name],
    ).to_diff_dict()


def _dino_mask_token(config: VitfVitConfig) -> dict[str, Tensor]:
    return {"embeddings.mask_token": torch.zeros(1, config.hidden_size)}


def _layouts_of_dino(suffix: str, names: Mapping[str, Any]) -> dict[str, Layout]:
    requires = (_PATCHES, "encoder.layer.{i}." + names["qkv"][0] + "weight", "encoder.layer.{i}.layer_scale1.lambda1")
    common = {
        "rules": _dino_rules(names),
        "config": _dino_config,
        "drops": {"embeddings.mask_token": "the mask token of pre-training"},
        "fits": _dino_misfit,
        "native_config": _dino_native,
    }
    holds = {
        **_HOLDS,
        "mlp_type": ("plain", "gated"),
        "pooling": ("cls", "cls_mean"),
        "representation_size": (None,),
    }
    del holds["layer_scale_init_value"], holds["num_register_tokens"]
    return {
        f"transformers_dinov2{suffix}": Layout(
            **common,
            requires=requires,
            forbids=("embeddings.register_tokens",),
            model_types=("dinov2",),
            prefix="dinov2.",
            holds={**holds, "num_register_tokens": (0,)},
        ),
        f"transformers_dinov2_registers{suffix}": Layout(
            **common,
            requires=(*requires, "embeddings.register_tokens"),
            model_types=("dinov2_with_registers",),
            prefix="dinov2_with_registers.",
            holds=holds,
            adds=_dino_mask_token,
        ),
    }


# ---------------------------------------------------------------------------------------------------------------------
# The image encoders of CLIP and SigLIP


def _clip_rules(config: VitfVitConfig) -> list[Rule]:
    source, target, width = "encoder.layers.{i}.", "layers.{i}.", config.hidden_size
    norm = {"tokens": "layernorm.*", "pooled": "pooled_layernorm.*"}
    rows, columns = config.feature_map_sizes(*pair(config.image_size))[-1]
    positions = (config.num_prefix_positions + rows * columns, width)
    table = [
        Rule("embeddings.patch_embedding.*", "embeddings.patch_embeddings.projection.*"),
        Rule(
            "embeddings.position_embedding.weight",
            "embeddings.position_embeddings.weight",
            Reshape(positions, (1, *positions)),
        ),
        Rule(source + "layer_norm1.*", target + "layernorm_before.*"),
        Rule(tuple(f"{source}self_attn.{name}_proj.*" for name in "qkv"), target + "attention.qkv.*", Concatenate(3)),
        Rule(source + "self_attn.out_proj.*", target + "attention.proj.*"),
        Rule(source + "layer_norm2.*", target + "layernorm_after.*"),
        Rule(source + "mlp.fc1.*", target + "mlp.fc1.*"),
        Rule(source + "mlp.fc2.*", target + "mlp.fc2.*"),
        Rule("classifier.*", "classifier.*"),
    ]
    if config.final_layernorm in norm:
        table.append(Rule("post_layernorm.*", norm[config.final_layernorm]))
    if config.use_cls_token:
        table.append(Rule("embeddings.class_embedding", "embeddings.cls_token", Reshape((width,), (1, 1, width))))
    if config.pre_layernorm:
        table.append(Rule("pre_layrnorm.*", "embeddings.layernorm.*"))
    if config.pooling == "map":
        pool = "attention_pooling."
        table += [
            Rule("head.probe", pool + "query"),
            *(
                Rule(
                    f"head.attention.in_proj_{name}", (f"{pool}q.{name}", f"{pool}kv.{name}"), Split((width, 2 * width))
                )
                for name in ("weight", "bias")
            ),
            Rule("head.attention.out_proj.*", pool + "proj.*"),
            Rule("head.layernorm.*", pool + "layernorm.*"),
            Rule("head.mlp.fc1.*", pool + "mlp.fc1.*"),
            Rule("head.mlp.fc2.*", pool + "mlp.fc2.*"),
        ]
    return table


def _tower_config(**fields: Any) -> Callable[..., VitfVitConfig]:
    def config(kwargs: Mapping[str, Any], state_dict: Mapping[str, Tensor], **overrides: Any) -> VitfVitConfig:
        """
        `kwargs` is the config.json of the image encoder, or of the model of images and texts that it is a part of.
        """
        tower = {**kwargs.get("vision_config", kwargs)}
        tower["attention_probs_dropout_prob"] = tower.get("attention_dropout", 0.0)
        # These encoders have none, and always have biases.
        tower = {"hidden_dropout_prob": 0.0, "initializer_range": 0.02, **tower, "qkv_bias": True}
        known = transformers_fields(tower, state_dict, "classifier")
        labels = transformers_labels(kwargs, state_dict, "classifier")
        return make_config(VitfVitConfig, _common(known), known, labels, fields, **overrides)

    return config


def _tower_fields(config: VitfVitConfig) -> dict[str, Any]:
    fields = transformers_native_fields(config)
    return {
        name: fields[name]
        for name in (
            *("image_size", "patch_size", "num_channels", "hidden_size", "intermediate_size", "num_hidden_layers"),
            *("num_attention_heads", "hidden_act", "layer_norm_eps"),
        )
    } | {"attention_dropout": config.attention_probs_dropout_prob}


def _tower_native(
    family: str, vision_class: type, whole_class: type, heads: tuple[str, ...], **fields: Any
) -> Callable[[PreTrainedModel], dict[str, Any]]:
    """
    Args:
        family: What its classes begin with. vision_class, whole_class: Configurations of the encoder, and of the whole.
        heads: Suffixes of our classes that can be written. fields: What the encoder's configuration needs besides.
    """

    def native(model: PreTrainedModel) -> dict[str, Any]:
        config = model.config
        _square(config, f"transformers' {family}")
        vision = {**_tower_fields(config), **fields}
        if head_of(model) == "Model":
            names = [native_class(model, f"{family}Vision", heads)]
            return vision_class(**vision, architectures=names).to_diff_dict()
        names = [native_class(model, family, heads)]
        labels = {"id2label": config.id2label, "label2id": config.label2id}
        return whole_class(vision_config=vision, **labels, architectures=names).to_diff_dict()

    return native


def _unread_norm(config: VitfVitConfig) -> dict[str, Tensor]:
    return {
        "post_layernorm.weight": torch.ones(config.hidden_size),
        "post_layernorm.bias": torch.zeros(config.hidden_size),
    }


_TOWER = {
    "rules": _clip_rules,
    "prefix": "vision_model.",
}
_OF_TEXT = {
    "text_model.": "the text encoder",
    "text_projection.": "the projection of texts",
    "visual_projection.": "the projection of images to where texts are compared with them",
    "logit_scale": "the scale of that comparison",
    "logit_bias": "the offset of that comparison",
    "embeddings.position_ids": "the numbers of positions",
}
_TOWER_REQUIRES = (
    "embeddings.patch_embedding.weight",
    "embeddings.position_embedding.weight",
    "encoder.layers.{i}.self_attn.q_proj.weight",
)
_TOWER_HOLDS = {**_HOLDS, "qkv_bias": (True,), "representation_size": (None,)}
_CLIP = {"pre_layernorm": (True,), "patch_bias": (False,)}
_CLIP_MODEL_TYPES, _SIGLIP_MODEL_TYPES = ("clip", "clip_vision_model"), ("siglip", "siglip_vision_model")
_CLIP_FIELDS = {"pre_layernorm": True, "patch_bias": False}
_SIGLIP_FIELDS = {"use_cls_token": False}
_CLASSIFIER = ("ForImageClassification",)
_TOWERS = {
    "transformers_clip": Layout(
        **_TOWER,
        config=_tower_config(**_CLIP_FIELDS, final_layernorm="pooled"),
        requires=(*_TOWER_REQUIRES, "embeddings.class_embedding", "pre_layrnorm.weight"),
        forbids=("classifier.*",),
        model_types=_CLIP_MODEL_TYPES,
        holds={**_TOWER_HOLDS, **_CLIP, "final_layernorm": ("pooled",)},
        drops=_OF_TEXT,
        native_config=_tower_native("CLIP", CLIPVisionConfig, CLIPConfig, ("Model",)),
    ),
    "transformers_clip_classifier": Layout(
        **_TOWER,
        config=_tower_config(**_CLIP_FIELDS, final_layernorm="none", pooling="mean"),
        requires=(*_TOWER_REQUIRES, "embeddings.class_embedding", "pre_layrnorm.weight", "classifier.weight"),
        model_types=_CLIP_MODEL_TYPES,
        holds={**_TOWER_HOLDS, **_CLIP, "final_layernorm": ("none",), "pooling": ("mean",)},
        drops={**_OF_TEXT, "post_layernorm.": "the last norm, which the classifier does not read"},
        adds=_unread_norm,
        native_config=_tower_native("CLIP", CLIPVisionConfig, CLIPConfig, _CLASSIFIER),
    ),
    "transformers_siglip": Layout(
        **_TOWER,
        config=_tower_config(**_SIGLIP_FIELDS, pooling="map"),
        requires=(*_TOWER_REQUIRES, "head.probe"),
        forbids=("embeddings.class_embedding", "classifier.*"),
        model_types=_SIGLIP_MODEL_TYPES,
        holds={**_TOWER_HOLDS, **_NO_CLS, "pooling": ("map",)},
        drops=_OF_TEXT,
        native_config=_tower_native("Siglip", SiglipVisionConfig, SiglipConfig, ("Model",)),
    ),
    "transformers_siglip_classifier": Layout(
        **_TOWER,
        config=_tower_config(**_SIGLIP_FIELDS, pooling="mean"),
        requires=_TOWER_REQUIRES,
        forbids=("embeddings.class_embedding",),
        model_types=_SIGLIP_MODEL_TYPES,
        holds={**_TOWER_HOLDS, **_NO_CLS},
        drops={**_OF_TEXT, "head.": "the pooling by attention, which the classifier does not read"},
        native_config=_tower_native(
            "Siglip", SiglipVisionConfig, SiglipConfig, ("Model", *_CLASSIFIER), vision_use_head=False
        ),
    ),
}

TRANSFORMERS_LAYOUTS: dict[str, Layout] = {
    **_layouts_of_vit("", TRANSFORMERS_NAMES["transformers"]),
    **_layouts_of_vit("_5", TRANSFORMERS_NAMES["transformers_5"]),
    "transformers_mae_saved_by_5": _of_mae(_SAVED_BY_5, (_SAVED_BY_5["decoder_layer"] + "layernorm_before.weight",)),
    **_layouts_of_dino("", _DINO_NAMES[""]),
    **_layouts_of_dino("_5", _DINO_NAMES["_5"]),
    **_TOWERS,
}
