"""RvT: vit-pytorch's names. No weights are published; what people train with vit-pytorch can move here and back."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..conversion.convert import (
    Layout,
    Source,
    count_indices,
    fields_from_kwargs,
    ignored,
    make_config,
    shape_of,
)
from ..conversion.rules import Derived, Rule
from ..modeling.configuration_rvt import VitfRvtConfig
from ..modeling.configuration_vitf import pair
from .vit_pytorch import (
    COMMON_KWARGS,
    NOTE,
    REPOSITORY,
    VERSION,
    ask,
    constructor_arguments,
    dropout,
    pixels_last,
    whole_call,
    width_of_heads,
)

SOURCE = Source(REPOSITORY, VERSION, "vit_pytorch/rvt.py", "mit")


def rules(config: VitfRvtConfig) -> list[Rule]:
    """The table of `RvT`'s state dict."""
    width, highest = config.hidden_size, max(pair(config.image_size)) / 2
    attention, mlp = "transformer.layers.{i}.0.", "transformer.layers.{i}.1.net."
    layer = "layers.{i}."
    table = [
        Rule("cls_token", "embeddings.cls_token"),
        Rule(
            "to_patch_embedding.1.weight",
            "embeddings.patch_embeddings.projection.weight",
            *pixels_last(config, width),
        ),
        Rule("to_patch_embedding.1.bias", "embeddings.patch_embeddings.projection.bias"),
        Rule(attention + "norm.*", layer + "layernorm_before.*"),
        Rule(attention + "to_kv.weight", layer + "attention.key_value.weight"),
        Rule(attention + "to_out.0.*", layer + "attention.proj.*"),
        Rule(mlp + "0.*", layer + "layernorm_after.*"),
        Rule(mlp + "1.*", layer + "mlp.fc1.*"),
        Rule(mlp + "4.*", layer + "mlp.fc2.*"),
        Rule("mlp_head.0.*", "layernorm.*"),
        Rule("mlp_head.1.*", "classifier.*"),
        # It is there without rotations, too.
        Derived(
            "transformer.pos_emb.scales",
            lambda: torch.linspace(1.0, highest, config.head_dim // 4),
            like="embeddings.cls_token",
        ),
    ]
    if config.query_projection == "conv":
        table += [
            Rule(attention + "to_q.conv.net.0.weight", layer + "attention.query.depthwise.weight"),
            Rule(attention + "to_q.conv.net.1.weight", layer + "attention.query.pointwise.weight"),
        ]
        if config.num_attention_heads * config.head_dim != width:
            table.append(Rule(attention + "to_q.cls_proj.*", layer + "attention.query.cls_projection.*"))
    else:
        table.append(Rule(attention + "to_q.weight", layer + "attention.query.weight"))
    return table


_KWARGS = {
    **COMMON_KWARGS,
    "dropout": dropout,
    "emb_dropout": ignored,
    "use_rotary": lambda given: {"position_embedding_type": "rotary" if given else "none"},
    "use_ds_conv": lambda given: {"query_projection": "conv" if given else "linear"},
    "use_glu": lambda given: {"mlp_type": "gated" if given else "plain"},
}


# What its constructor does unless told otherwise, where no tensor tells.
_DEFAULTS = {"dim_head": 64, "channels": 3, "use_rotary": True}


def _sizes_of_scales(scales: Tensor, inner: int) -> dict[str, Any]:
    """
    What the frequencies tell: they end at half the size of an image, and there is one for four channels of a head,
    which divide the `inner` channels of all heads.
    """
    known = {}
    if len(scales) > 1:
        known["image_size"] = round(2 * scales[-1].item())
    widths = [4 * len(scales) + rest for rest in range(4)]
    fitting = [width for width in widths if width and inner % width == 0]
    if len(fitting) == 1:
        known |= {"head_dim": fitting[0], "num_attention_heads": inner // fitting[0]}
    return known


def config_from_original(
    kwargs: Mapping[str, Any], state_dict: Mapping[str, Tensor], **overrides: Any
) -> VitfRvtConfig:
    """
    The configuration of a vit-pytorch RvT; `kwargs` are those of `RvT`. Of these, `patch_size` and `use_rotary` are
    asked for: no tensor tells them. The other sizes are asked for where the frequencies of the rotations leave them
    open.
    """
    width = shape_of("cls_token", state_dict, 3)[2]
    first, second = (shape_of(f"transformer.layers.0.1.net.{n}.weight", state_dict, 2) for n in (1, 4))
    inner = shape_of("transformer.layers.0.0.to_kv.weight", state_dict, 2)[0] // 2
    known = {
        "hidden_size": width,
        "num_hidden_layers": count_indices("transformer.layers.{i}.0.norm.*", state_dict),
        "mlp_ratio": second[1] / width,
        "mlp_type": "gated" if first[0] == 2 * second[1] else "plain",
        "query_projection": "linear" if "transformer.layers.0.0.to_q.weight" in state_dict else "conv",
    }
    if "transformer.pos_emb.scales" in state_dict:
        known |= _sizes_of_scales(state_dict["transformer.pos_emb.scales"], inner)
    if "mlp_head.1.weight" in state_dict:
        known["num_labels"] = shape_of("mlp_head.1.weight", state_dict, 2)[0]
    given = fields_from_kwargs(
        whole_call(kwargs, _DEFAULTS),
        {**_KWARGS, "mlp_dim": lambda mlp_dim: {"mlp_ratio": mlp_dim / width}},
    )
    known |= {**given, **overrides}
    questions = {
        "image_size": "transformer.pos_emb.scales",
        "patch_size": "to_patch_embedding.1.weight",
        "num_attention_heads": "transformer.layers.0.0.to_kv.weight",
        "position_embedding_type": "transformer.pos_emb.scales",
    }
    ask("RvT", known, questions)
    known.setdefault("head_dim", width_of_heads(inner, known["num_attention_heads"], questions["num_attention_heads"]))
    return make_config(VitfRvtConfig, known)


def _arguments(model: PreTrainedModel) -> dict[str, Any]:
    config = model.config
    return {
        **constructor_arguments(config),
        "use_rotary": config.position_embedding_type == "rotary",
        "use_ds_conv": config.query_projection == "conv",
        "use_glu": config.mlp_type == "gated",
    }


LAYOUTS = {
    "original": Layout(
        rules=rules,
        config=config_from_original,
        requires=(
            "to_patch_embedding.1.weight",
            "transformer.layers.{i}.0.to_kv.weight",
            "transformer.pos_emb.scales",
            "mlp_head.0.weight",
        ),
        suffix=".pth",
        constructor=_arguments,
        note=NOTE,
        computes_with={"hidden_act": ("gelu",), "layer_norm_eps": (1e-5,)},
    ),
}
