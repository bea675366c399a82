"""The layouts of ViT and SimpleViT of lucidrains' vit-pytorch, and the parts that its other layouts share."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..conversion.convert import (
    Layout,
    Source,
    common_size,
    count_indices,
    fields_from_kwargs,
    ignored,
    make_config,
    one_or_two,
    shape_of,
    square_image,
)
from ..conversion.rules import Derived, Permute, Reshape, Rule
from ..errors import ConversionError
from ..modeling.configuration_vit import VitfVitConfig
from ..modeling.configuration_vitf import VitfConfig, pair
from ..notices import listed

REPOSITORY, VERSION = "lucidrains/vit-pytorch", "1.26.11"
NOTE = (
    "vit-pytorch does not say how images are prepared; the processor does it in its default way, which may be another"
)

# ---------------------------------------------------------------------------------------------------------------------
# What its layouts share


def pixels_last(config: VitfConfig, *before: int) -> tuple[Reshape, Permute]:
    """
    Operations on a tensor of shape `(*before, pixels of a patch)`: vit-pytorch flattens these as (row, column,
    channel), a convolution as (channel, row, column).
    """
    (rows, columns), channels, first = pair(config.patch_size), config.num_channels, len(before)
    flat, split = (*before, rows * columns * channels), (*before, rows, columns, channels)
    return Reshape(flat, split), Permute(*range(first), first + 2, first, first + 1)


def ask(class_name: str, known: Mapping[str, Any], questions: Mapping[str, str]) -> None:
    """
    Raises a ConversionError that names, at once, all the fields of `questions` that are not known.

    Args:
        questions: Field to the key that leaves it open.
    """
    missing = [name for name in questions if known.get(name) is None]
    if missing:
        raise ConversionError(
            f"{listed(missing, len(missing))} {'is' if len(missing) == 1 else 'are'} not told by the checkpoint (key "
            f"{questions[missing[0]]!r}); give {'it' if len(missing) == 1 else 'them'}, as --set "
            f"{' '.join(f'{name}=...' for name in missing)}, or the arguments of vit-pytorch's {class_name}, as "
            "--kwargs '{...}' or in a config.json next to the weights",
            questions[missing[0]],
        )


def width_of_heads(inner: int, num_heads: int, key: str) -> int:
    """
    Channels of each of the heads, which have `inner` together. Raises a ConversionError, which names `key`, for no such
    number.
    """
    if not isinstance(num_heads, int) or num_heads < 1 or inner % num_heads:
        raise ConversionError(
            f"key {key!r}: num_attention_heads={num_heads!r} does not divide the {inner} channels of all heads", key
        )
    return inner // num_heads


def whole_call(kwargs: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """
    The arguments with the constructor's `defaults`, if they are those of a whole call: of all that it cannot do
    without. Of fewer, which answer a question, no default follows.
    """
    required = {"image_size", "patch_size", "num_classes", "dim", "depth", "heads", "mlp_dim"}
    return {**defaults, **kwargs} if required <= kwargs.keys() else dict(kwargs)


def dropout(rate: float) -> dict[str, float]:
    """Its one rate is that of attention's probabilities and of all that layers return."""
    return {"hidden_dropout_prob": rate, "attention_probs_dropout_prob": rate}


def num_labels(num_classes: int) -> dict[str, int]:
    """Without classes there is no head, which the keys tell."""
    return {"num_labels": num_classes} if num_classes else {}


# Arguments that its classes have in common, to our fields.
COMMON_KWARGS = {
    "image_size": "image_size",
    "patch_size": "patch_size",
    "num_classes": num_labels,
    "dim": "hidden_size",
    "depth": "num_hidden_layers",
    "heads": "num_attention_heads",
    "dim_head": "head_dim",
    "channels": "num_channels",
}


def constructor_arguments(config: VitfConfig) -> dict[str, Any]:
    """The arguments that its ViT, SimpleViT, RvT and DeepViT have in common."""
    return {
        "image_size": one_or_two(config.image_size),
        "patch_size": one_or_two(config.patch_size),
        "num_classes": config.num_labels,
        "dim": config.hidden_size,
        "depth": config.num_hidden_layers,
        "heads": config.num_attention_heads,
        "dim_head": getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        "mlp_dim": round(config.mlp_ratio * config.hidden_size),
        "channels": config.num_channels,
    }


# ---------------------------------------------------------------------------------------------------------------------
# ViT and SimpleViT

_ATTENTION, _MLP, _LAYER = "transformer.layers.{i}.0.", "transformer.layers.{i}.1.net.", "layers.{i}."


def _encoder_rules(config: VitfVitConfig, second: int, bias: bool) -> list[Rule]:
    """
    What both have: `second` is the number of the second linear layer; `bias`, whether the output of attention has one.
    """
    patches = "embeddings.patch_embeddings.projection"
    return [
        *(
            Rule(f"to_patch_embedding.1.{name}", f"embeddings.pixel_layernorm.{name}", *_flat(config))
            for name in ("weight", "bias")
        ),
        Rule("to_patch_embedding.2.weight", f"{patches}.weight", *pixels_last(config, config.hidden_size)),
        Rule("to_patch_embedding.2.bias", f"{patches}.bias"),
        Rule("to_patch_embedding.3.*", "embeddings.patch_layernorm.*"),
        Rule(_ATTENTION + "norm.*", _LAYER + "layernorm_before.*"),
        Rule(_ATTENTION + "to_qkv.weight", _LAYER + "attention.qkv.weight"),
        Rule(
            _ATTENTION + ("to_out.0.*" if bias else "to_out.weight"),
            _LAYER + f"attention.proj.{'*' if bias else 'weight'}",
        ),
        Rule(_MLP + "0.*", _LAYER + "layernorm_after.*"),
        Rule(_MLP + "1.*", _LAYER + "mlp.fc1.*"),
        Rule(f"{_MLP}{second}.*", _LAYER + "mlp.fc2.*"),
        Rule("transformer.norm.*", "layernorm.*"),
    ]


def _flat(config: VitfVitConfig) -> tuple[Reshape | Permute, ...]:
    """The operations of [`pixels_last`], and flat again, as the norm of pixels is."""
    (rows, columns), channels = pair(config.patch_size), config.num_channels
    return *pixels_last(config), Reshape((channels, rows, columns), (channels * rows * columns,))


def vit_rules(config: VitfVitConfig) -> list[Rule]:
    """The table of `ViT` since it has tokens and positions of two dimensions (1.16)."""
    width, positions = config.hidden_size, config.num_prefix_positions + _num_patches(config)
    table = [
        *_encoder_rules(config, second=4, bias=True),
        Rule(
            "pos_embedding", "embeddings.position_embeddings.weight", Reshape((positions, width), (1, positions, width))
        ),
        Rule("mlp_head.*", "classifier.*"),
    ]
    if config.use_cls_token:
        return [*table, Rule("cls_token", "embeddings.cls_token", Reshape((1, width), (1, 1, width)))]
    return [*table, Derived("cls_token", lambda: torch.zeros(0, width), like="embeddings.position_embeddings.weight")]


def vit_of_old_rules(config: VitfVitConfig) -> list[Rule]:
    """The table of `ViT` from 1.6 on, while it always had a class token."""
    return [
        *_encoder_rules(config, second=4, bias=True),
        Rule("pos_embedding", "embeddings.position_embeddings.weight"),
        Rule("cls_token", "embeddings.cls_token"),
        Rule("mlp_head.*", "classifier.*"),
    ]


def simple_rules(config: VitfVitConfig) -> list[Rule]:
    """The table of `SimpleViT`."""
    return [*_encoder_rules(config, second=3, bias=False), Rule("linear_head.*", "classifier.*")]


def _num_patches(config: VitfVitConfig) -> int:
    sizes = zip(pair(config.image_size), pair(config.patch_size), strict=True)
    rows, columns = (edge // side for edge, side in sizes)
    return rows * columns


def _config(
    class_name: str,
    kwargs: Mapping[str, Any],
    state_dict: Mapping[str, Tensor],
    fixed: Mapping[str, Any],
    positions: int | None,
    **overrides: Any,
) -> VitfVitConfig:
    """
    The configuration of either. Shapes tell neither the number of heads nor the size of a patch.

    Args:
        fixed: Fields by which the two differ. positions: Patches that have a position, where the file says it.
    """
    width, pixels = shape_of("to_patch_embedding.2.weight", state_dict, 2)
    first, second = (f"{_MLP.format(i=0)}{n}." for n in (1, 4 if class_name == "ViT" else 3))
    hidden = common_size({first + "weight": 0, first + "bias": 0, second + "weight": 1}, state_dict)
    inner = shape_of("transformer.layers.0.0.to_qkv.weight", state_dict, 2)[0] // 3
    known = {
        "hidden_size": width,
        "num_hidden_layers": count_indices(_ATTENTION + "norm.*", state_dict),
        "mlp_ratio": hidden / width,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
        "qkv_bias": False,
        "pixel_layernorm": True,
        "patch_layernorm": True,
        "initialization": "trunc_normal",
        **fixed,
    }
    for head in ("mlp_head.weight", "linear_head.weight"):
        if head in state_dict:
            known["num_labels"] = shape_of(head, state_dict, 2)[0]
    names = {**COMMON_KWARGS, "mlp_dim": lambda mlp_dim: {"mlp_ratio": mlp_dim / width}}
    if class_name == "ViT":
        names |= {"pool": "pooling", "dropout": dropout, "emb_dropout": ignored}
    known |= {**fields_from_kwargs(kwargs, names), **overrides}
    questions = {
        "num_attention_heads": "transformer.layers.0.0.to_qkv.weight",
        "patch_size": "to_patch_embedding.2.weight",
    }
    if "pooling" not in known:
        questions["pooling"] = "cls_token"
    if "patch_size" in known:
        sides = known["patch_size"] if isinstance(known["patch_size"], list | tuple) else [known["patch_size"]]
        if len(sides) not in (1, 2) or not all(isinstance(side, int) and side > 0 for side in sides):
            raise ConversionError(f"patch_size={known['patch_size']!r}: expected one or two numbers of pixels")
        rows, columns = sides[0], sides[-1]
        if pixels % (rows * columns):
            raise ConversionError(
                f"key 'to_patch_embedding.2.weight': patches of {rows} x {columns} do not have {pixels} values",
                "to_patch_embedding.2.weight",
            )
        # Another number than the constructor's default may be frames, too: SimpleViT for clips has the same keys.
        if "num_channels" not in known and pixels == 3 * rows * columns:
            known["num_channels"] = 3
    if "num_channels" not in known and ("patch_size" in known or pixels % 3):
        questions["num_channels"] = "to_patch_embedding.2.weight"
    if "image_size" not in known:
        image = square_image(positions, known["patch_size"]) if positions and "patch_size" in known else None
        if image is not None:
            known["image_size"] = image
        elif positions is None or square_image(positions, 1) is None:
            questions["image_size"] = "pos_embedding" if positions else "to_patch_embedding.2.weight"
    ask(class_name, known, questions)
    known.setdefault("head_dim", width_of_heads(inner, known["num_attention_heads"], questions["num_attention_heads"]))
    if known["head_dim"] * known["num_attention_heads"] == width:
        known["head_dim"] = None
    if known["pooling"] == "mean" and known["use_cls_token"]:
        known["pool_prefix_tokens"] = True
    return make_config(VitfVitConfig, known)


def vit_config(kwargs: Mapping[str, Any], state_dict: Mapping[str, Tensor], **overrides: Any) -> VitfVitConfig:
    """The configuration of a `ViT`; `kwargs` are those of its constructor. The class token tells what is pooled."""
    tokens = state_dict["cls_token"].shape[0]
    if tokens > 1:
        raise ConversionError(f"key 'cls_token': expected one class token or none, got {tokens}", "cls_token")
    fixed = {"use_cls_token": bool(tokens), "pooling": "cls" if tokens else "mean"}
    positions = shape_of("pos_embedding", state_dict, 2)[0] - tokens
    return _config("ViT", kwargs, state_dict, fixed, positions, **overrides)


def vit_of_old_config(kwargs: Mapping[str, Any], state_dict: Mapping[str, Tensor], **overrides: Any) -> VitfVitConfig:
    """
    The configuration of a `ViT` that always has a class token, which the mean is of, too. What is pooled is asked for.
    """
    kwargs = whole_call(kwargs, {"pool": "cls"})
    positions = shape_of("pos_embedding", state_dict, 3)[1] - 1
    return _config("ViT", kwargs, state_dict, {"use_cls_token": True}, positions, **overrides)


def simple_config(kwargs: Mapping[str, Any], state_dict: Mapping[str, Tensor], **overrides: Any) -> VitfVitConfig:
    """The configuration of a `SimpleViT`, whose size of image no tensor tells: `image_size` is asked for, too."""
    fixed = {
        "use_cls_token": False,
        "pooling": "mean",
        "position_embedding_type": "sincos_simple",
        "attention_proj_bias": False,
    }
    return _config("SimpleViT", kwargs, state_dict, fixed, None, **overrides)


def _fits(config: VitfVitConfig) -> str | None:
    """Says why no ViT of vit-pytorch can hold a configuration."""
    if config.num_attention_heads == 1 and config.head_dim in (None, config.hidden_size):
        return "vit-pytorch leaves the output projection out where one head has all channels"
    return None


def _fits_vit(config: VitfVitConfig) -> str | None:
    if config.use_cls_token != (config.pooling == "cls"):
        return f"pooling={config.pooling!r} has no place in it with use_cls_token={config.use_cls_token}"
    return _fits(config)


def _fits_old(config: VitfVitConfig) -> str | None:
    if config.pooling == "mean" and not config.pool_prefix_tokens:
        return "pooling='mean' has no place in it with pool_prefix_tokens=False"
    return _fits(config)


def _vit_arguments(model: PreTrainedModel) -> dict[str, Any]:
    return {**constructor_arguments(model.config), "pool": model.config.pooling}


_HOLDS = {
    "qkv_bias": (False,),
    "proj_bias": (True,),
    "mlp_type": ("plain",),
    "norm_type": ("layernorm",),
    "norm_position": ("pre",),
    "sub_layernorm": (False,),
    "patch_bias": (True,),
    "pixel_layernorm": (True,),
    "patch_layernorm": (True,),
    "pre_layernorm": (False,),
    "final_layernorm": ("tokens",),
    "num_register_tokens": (0,),
    "representation_size": (None,),
    "drop_incomplete_patches": (False,),
    "resnet_depths": (None,),
    "layer_scale_init_value": (None,),
}
_VIT_HOLDS = {
    **_HOLDS,
    "attention_proj_bias": (True,),
    "position_embedding_type": ("learned",),
    "prefix_position_embeddings": (True,),
    "pooling": ("cls", "mean"),
}
_COMPUTES_WITH = {"hidden_act": ("gelu",), "layer_norm_eps": (1e-5,)}
_PATCHES = tuple(f"to_patch_embedding.{n}.weight" for n in (1, 2, 3))
_VIT_REQUIRES = (
    *_PATCHES,
    *("cls_token", "pos_embedding", "transformer.norm.weight"),
    *(_ATTENTION + "to_qkv.weight", _ATTENTION + "to_out.0.weight", _MLP + "4.weight"),
)


def _layout(
    file: str,
    rules: Callable[[VitfVitConfig], list[Rule]],
    config: Callable[..., VitfVitConfig],
    version: str = VERSION,
    **kwargs: Any,
) -> Layout:
    source = Source(REPOSITORY, version, f"vit_pytorch/{file}", "mit")
    return Layout(
        rules=rules, config=config, source=source, note=NOTE, suffix=".pth", computes_with=_COMPUTES_WITH, **kwargs
    )


# Of its ViT, in versions before 1.6 layers have other names; before 1.16 a class token and positions have three
# dimensions.
VIT_PYTORCH_LAYOUTS = {
    "vit_pytorch": _layout(
        "vit.py",
        vit_rules,
        vit_config,
        requires=_VIT_REQUIRES,
        ndims={"cls_token": 2, "pos_embedding": 2},
        holds=_VIT_HOLDS,
        fits=_fits_vit,
        constructor=_vit_arguments,
    ),
    "vit_pytorch_of_old": _layout(
        "vit.py",
        vit_of_old_rules,
        vit_of_old_config,
        version="1.10.1",
        requires=_VIT_REQUIRES,
        ndims={"cls_token": 3, "pos_embedding": 3},
        holds={**_VIT_HOLDS, "use_cls_token": (True,)},
        fits=_fits_old,
        constructor=_vit_arguments,
    ),
    "vit_pytorch_simple": _layout(
        "simple_vit.py",
        simple_rules,
        simple_config,
        requires=(
            *_PATCHES,
            *("linear_head.weight", "transformer.norm.weight"),
            *(_ATTENTION + "to_qkv.weight", _ATTENTION + "to_out.weight", _MLP + "3.weight"),
        ),
        forbids=("cls_token", "pos_embedding", "register_tokens"),
        holds={
            **_HOLDS,
            "attention_proj_bias": (False,),
            "position_embedding_type": ("sincos_simple",),
            "use_cls_token": (False,),
            "pooling": ("mean",),
        },
        fits=_fits,
        constructor=lambda model: constructor_arguments(model.config),
    ),
}
