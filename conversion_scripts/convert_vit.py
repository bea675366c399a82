"""ViT and its relatives: the original .npz, DeiT III's and MAE's .pth, timm's, transformers' and vit-pytorch's own."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..conversion.convert import (
    Layout,
    Source,
    common_size,
    count_indices,
    fields_from_kwargs,
    ignored,
    make_config,
    shape_of,
    square_image,
)
from ..conversion.rules import Permute, Reshape, Rule, find_indices
from ..errors import ConversionError
from ..modeling.configuration_vit import VitfVitConfig, resnet_stride
from .convert_deit import FACEBOOK_COMMIT
from .flax_names import flax_attention_rules, flax_dense_rules, flax_mlp_rules, flax_norm_rules
from .mae import MAE_LAYOUTS
from .timm_names import TIMM_FIXED, TIMM_KWARGS, TIMM_OPEN, timm_shapes
from .timm_vit import (
    DEIT3,
    fold_probe_norm,
    timm_split_gate_rules,
    timm_vit_config,
    timm_vit_misfit,
    timm_vit_native,
    timm_vit_rules,
)
from .transformers_vit import PLAIN_VIT, TRANSFORMERS_LAYOUTS
from .vit_pytorch import VIT_PYTORCH_LAYOUTS

SOURCE = Source(
    "google-research/vision_transformer",
    "c6de1e5378c9831a8477feb30994971bdc409e46",
    "vit_jax/models_vit.py",
    "apache-2.0",
)

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
    """Units of each stage; none where the ResNet is only its root."""
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


def deit3_rules(config: VitfVitConfig) -> list[Rule]:
    """The table of DeiT III, facebookresearch/deit@7e160fe models_v2.py."""
    return timm_vit_rules(config, "gamma_{n}")


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
    known = {**timm_shapes(state_dict, (0,)), **DEIT3, "layer_scale_init_value": 1e-4}
    del names["act_layer"]  # a class here
    given = fields_from_kwargs(kwargs, names, _DEIT3_FIXED)
    return make_config(VitfVitConfig, known, given, ask_for=TIMM_OPEN, **overrides)


_PLAIN_POSITIONS = {
    **PLAIN_VIT,
    "drop_incomplete_patches": (False,),
    "resnet_epsilons": ("jax",),
    "position_embedding_type": ("learned",),
    "num_register_tokens": (0,),
}
_FLAX_HOLDS = {
    **_PLAIN_POSITIONS,
    "prefix_position_embeddings": (True,),
    "layer_scale_init_value": (None,),
    "qkv_bias": (True,),
    "pooling": ("cls", "mean"),
}
_FLAX_COMPUTES_WITH = {"hidden_act": ("gelu_pytorch_tanh",)}
_TIMM_HOLDS = {
    "head_dim": (None,),
    "attention_proj_bias": (True,),
    "pixel_layernorm": (False,),
    "position_embedding_type": ("learned", "none"),
    "representation_size": (None,),
    "pooling": ("cls", "mean", "map"),
}
LAYOUTS = {
    "original": Layout(
        rules=rules,
        config=config_from_original,
        requires=("embedding/kernel", f"Transformer/encoderblock_{{i}}/{_PRE_LINEN[1]}/query/kernel"),
        suffix=".npz",
        holds=_FLAX_HOLDS,
        computes_with=_FLAX_COMPUTES_WITH,
    ),
    "original_linen": Layout(
        rules=linen_rules,
        config=config_from_original,
        requires=("embedding/kernel", f"Transformer/encoderblock_{{i}}/{_LINEN[1]}/query/kernel"),
        # ViViT, whose keys are the same but for the head.
        forbids=("output_projection/*",),
        suffix=".npz",
        holds=_FLAX_HOLDS,
        computes_with=_FLAX_COMPUTES_WITH,
    ),
    "original_deit3": Layout(
        rules=deit3_rules,
        config=deit3_config,
        requires=("patch_embed.proj.weight", "blocks.{i}.attn.qkv.weight", "blocks.{i}.gamma_1"),
        forbids=("blocks_token_only.{i}.*", "rel_pos_bias.*"),
        same_keys="a ViT with rotary positions (rope_ape of timm, naver-ai/rope-vit)",
        names=r"deit_?3",
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
        config=timm_vit_config,
        requires=("patch_embed.proj.weight", "blocks.{i}.attn.qkv.weight", "blocks.{i}.mlp.fc1.weight"),
        forbids=("dist_token", "blocks.{i}.gamma_1"),
        drops={"decoder_": "the decoder of MAE", "mask_token": "the token of masked patches"},
        folds=fold_probe_norm,
        holds={**_TIMM_HOLDS, "norm_type": ("layernorm",)},
        fits=timm_vit_misfit,
        native_config=timm_vit_native,
    ),
    "timm_aimv2": Layout(
        rules=timm_split_gate_rules,
        config=timm_vit_config,
        requires=("patch_embed.proj.weight", "blocks.{i}.attn.qkv.weight", "blocks.{i}.mlp.fc1_g.weight"),
        holds={**_TIMM_HOLDS, "norm_type": ("rmsnorm",), "mlp_type": ("gated",)},
        fits=timm_vit_misfit,
        native_config=timm_vit_native,
    ),
    **MAE_LAYOUTS,
    **TRANSFORMERS_LAYOUTS,
    **VIT_PYTORCH_LAYOUTS,
}
