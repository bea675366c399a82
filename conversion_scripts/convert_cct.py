"""CCT, CVT and ViT-Lite: the original .pth files; vit-pytorch's CCT has the same tensors, names and maths."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..conversion.convert import (
    Layout,
    Source,
    count_indices,
    fields_from_kwargs,
    ignored,
    make_config,
    shape_of,
)
from ..conversion.rules import Rule
from ..modeling.configuration_cct import VitfCctConfig
from ..modeling.modeling_cct import sine_table

SOURCE = Source(
    "SHI-Labs/Compact-Transformers",
    "cd11f0912749d376f7465cb83534e768b6701d7d",
    "src/cct.py, src/utils/transformers.py, src/utils/tokenizer.py",
    "apache-2.0",
)


def rules(config: VitfCctConfig) -> list[Rule]:
    """The table of the published `.pth` files."""
    block, layer = "classifier.blocks.{i}.", "layers.{i}."
    table = [
        Rule("tokenizer.conv_layers.{n}.0.*", "embeddings.patch_embeddings.conv_layers.{n}.*"),
        Rule(block + "pre_norm.*", layer + "layernorm_before.*"),
        Rule(block + "self_attn.qkv.weight", layer + "attention.qkv.weight"),
        Rule(block + "self_attn.proj.*", layer + "attention.proj.*"),
        Rule(block + "norm1.*", layer + "layernorm_after.*"),
        Rule(block + "linear1.*", layer + "mlp.fc1.*"),
        Rule(block + "linear2.*", layer + "mlp.fc2.*"),
        Rule("classifier.norm.*", "layernorm.*"),
        Rule("classifier.fc.*", "classifier.*"),
    ]
    if config.position_embedding_type != "none":
        table.append(Rule("classifier.positional_emb", "embeddings.position_embeddings.weight"))
    if config.pooling == "cls":
        table.append(Rule("classifier.class_emb", "embeddings.cls_token"))
    else:
        table.append(Rule("classifier.attention_pool.*", "attention_pool.*"))
    return table


_KWARGS = {
    "img_size": "image_size",
    "embedding_dim": "hidden_size",
    "n_input_channels": "num_channels",
    "n_conv_layers": "num_conv_layers",
    "kernel_size": ignored,  # the weights tell it
    "stride": "stride",
    "padding": "padding",
    "pooling_kernel_size": "pooling_kernel_size",
    "pooling_stride": "pooling_stride",
    "pooling_padding": "pooling_padding",
    "dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "stochastic_depth": "drop_path_rate",
    # vit-pytorch's words for two of these.
    "dropout_rate": "hidden_dropout_prob",
    "stochastic_depth_rate": "drop_path_rate",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "mlp_ratio": "mlp_ratio",
    "num_classes": "num_labels",
    # At this commit the factories swallow this argument: what the file holds decides.
    "positional_embedding": ignored,
}


def _tokenizer(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """
    Patches have a bias and tile the image; the strides of convolutions follow from their kernel (src/cct.py), which the
    number of positions confirms.
    """
    first = "tokenizer.conv_layers.0.0.weight"
    _, channels, kernel, _ = shape_of(first, state_dict, 4)
    known = {"num_channels": channels, "kernel_size": kernel}
    if "tokenizer.conv_layers.0.0.bias" in state_dict:
        return {**known, "num_conv_layers": 0, "stride": kernel, "padding": 0}
    known["num_conv_layers"] = count_indices("tokenizer.conv_layers.{n}.0.weight", state_dict, "n")
    if "classifier.positional_emb" not in state_dict:
        return known  # the class has other defaults than src/cct.py, and no number of tokens tells which were taken
    return {**known, "stride": max(1, kernel // 2 - 1), "padding": max(1, kernel // 2)}


def _position_type(state_dict: Mapping[str, Tensor]) -> str:
    """Whether the file's table is the sine table, bit for bit; another one was learned."""
    table = state_dict.get("classifier.positional_emb")
    if table is None:
        return "none"
    return "sine" if table.ndim == 3 and table.float().equal(sine_table(*table.shape[1:])) else "learned"


def config_from_original(
    kwargs: Mapping[str, Any], state_dict: Mapping[str, Tensor], **overrides: Any
) -> VitfCctConfig:
    """
    The configuration of a checkpoint of CCT, CVT or ViT-Lite. The number of heads and the image size come from
    `kwargs`, or from the published variant with the same shapes.

    Args:
        kwargs: Keyword arguments of `CCT`, `CVT` or `ViTLite`; may be empty.
        state_dict: The checkpoint.
        overrides: Fields that replace what arguments and shapes say.
    """
    width = shape_of("classifier.norm.weight", state_dict, 1)[0]
    known = {
        **_tokenizer(state_dict),
        "hidden_size": width,
        "num_hidden_layers": count_indices("classifier.blocks.{i}.norm1.weight", state_dict),
        "mlp_ratio": shape_of("classifier.blocks.0.linear1.weight", state_dict, 2)[0] / width,
        "pooling": "cls" if "classifier.class_emb" in state_dict else "sequence",
        "position_embedding_type": _position_type(state_dict),
    }
    if "classifier.fc.weight" in state_dict:
        known["num_labels"] = shape_of("classifier.fc.weight", state_dict, 2)[0]
    given = fields_from_kwargs(kwargs, _KWARGS)
    first = "tokenizer.conv_layers.0.0.weight"
    ask_for = {
        "stride": first,
        "padding": first,
        "image_size": "classifier.positional_emb",
        "num_attention_heads": "classifier.blocks.0.self_attn.qkv.weight",
    }
    return make_config(VitfCctConfig, known, given, ask_for=ask_for, **overrides)


LAYOUTS = {
    "original": Layout(
        rules=rules,
        config=config_from_original,
        requires=("tokenizer.conv_layers.{n}.0.weight", "classifier.blocks.{i}.self_attn.qkv.weight"),
        forbids=("tokenizer.conv_layers.{n}.0.num_batches_tracked",),
        suffix=".pth",
    ),
}
