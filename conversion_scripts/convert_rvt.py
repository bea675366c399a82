"""RvT: vit-pytorch's names. No weights are published; what people train with vit-pytorch can move here and back."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..conversion import Layout, Published, Source, count_indices, fields_from_kwargs, make_config, shape_of
from ..modeling.configuration_rvt import VitfRvtConfig
from ..modeling.configuration_vitf import pair
from ..rules import Derived, Permute, Reshape, Rule

SOURCE = Source("lucidrains/vit-pytorch", "1.26.11", "vit_pytorch/rvt.py", "mit")


def rules(config: VitfRvtConfig) -> list[Rule]:
    """The table of `RvT`'s state dict."""
    rows, columns = pair(config.patch_size)
    width, channels = config.hidden_size, config.num_channels
    attention, mlp = "transformer.layers.{i}.0.", "transformer.layers.{i}.1.net."
    layer = "layers.{i}."
    table = [
        Rule("cls_token", "embeddings.cls_token"),
        # Pixels of a patch are flattened as (row, column, channel) there, as (channel, row, column) in a convolution.
        Rule(
            "to_patch_embedding.1.weight",
            "embeddings.patch_embeddings.projection.weight",
            Reshape((width, rows * columns * channels), (width, rows, columns, channels)),
            Permute(0, 3, 1, 2),
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
    if config.position_embedding_type == "rotary":
        highest = max(pair(config.image_size)) / 2
        table.append(
            Derived(
                "transformer.pos_emb.scales",
                lambda: torch.linspace(1.0, highest, config.head_dim // 4),
                like="embeddings.cls_token",
            )
        )
    return table


_KWARGS = {
    "image_size": "image_size",
    "patch_size": "patch_size",
    "num_classes": "num_labels",
    "dim": "hidden_size",
    "depth": "num_hidden_layers",
    "heads": "num_attention_heads",
    "dim_head": "head_dim",
    "channels": "num_channels",
    "dropout": "attention_probs_dropout_prob",
    "use_rotary": lambda given: {"position_embedding_type": "rotary" if given else "none"},
    "use_ds_conv": lambda given: {"query_projection": "conv" if given else "linear"},
    "use_glu": lambda given: {"mlp_type": "gated" if given else "plain"},
}


def config_from_original(
    kwargs: Mapping[str, Any], state_dict: Mapping[str, Tensor], **overrides: Any
) -> VitfRvtConfig:
    """
    The configuration of a vit-pytorch RvT; `kwargs` are those of `RvT`. Of these, `heads`, `dim_head`, `patch_size` and
    `image_size` are asked for: shapes do not tell them.
    """
    width = shape_of("cls_token", state_dict, 3)[2]
    first, second = (shape_of(f"transformer.layers.0.1.net.{n}.weight", state_dict, 2) for n in (1, 4))
    known = {
        "hidden_size": width,
        "num_hidden_layers": count_indices("transformer.layers.{i}.0.norm.weight", state_dict),
        "mlp_ratio": second[1] / width,
        "mlp_type": "gated" if first[0] == 2 * second[1] else "plain",
        "query_projection": "linear" if "transformer.layers.0.0.to_q.weight" in state_dict else "conv",
        "position_embedding_type": "rotary" if "transformer.pos_emb.scales" in state_dict else "none",
    }
    if "mlp_head.1.weight" in state_dict:
        known["num_labels"] = shape_of("mlp_head.1.weight", state_dict, 2)[0]
    given = fields_from_kwargs(
        kwargs,
        {**_KWARGS, "mlp_dim": lambda mlp_dim: {"mlp_ratio": mlp_dim / width}},
        {"emb_dropout": (0.0,)},
    )
    ask_for = {
        "image_size": "transformer.pos_emb.scales",
        "patch_size": "to_patch_embedding.1.weight",
        "num_attention_heads": "transformer.layers.0.0.to_kv.weight",
        "head_dim": "transformer.layers.0.0.to_kv.weight",
    }
    return make_config(VitfRvtConfig, known, given, ask_for=ask_for, **overrides)


LAYOUTS = {
    "original": Layout(
        rules=rules,
        config=config_from_original,
        requires=("to_patch_embedding.1.weight", "transformer.layers.{i}.0.to_kv.weight", "mlp_head.0.weight"),
        suffix=".pth",
    ),
}
CHECKPOINTS: dict[str, Published] = {}
