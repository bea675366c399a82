"""
What transformers' own models name alike, and what their config.json tells. Files hold the names of version 4, which
version 5 writes by default as well; the other names are those of version 5 in memory, written by
save_pretrained(save_original_format=False).
"""

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from ..conversion.convert import one_or_two, shape_of
from ..conversion.rules import Concatenate, Rule
from ..errors import ConversionError
from ..registry import get_architecture

_VERSION_4 = {
    "layer": "encoder.layer.{i}.",
    "qkv": tuple(f"attention.attention.{name}." for name in ("query", "key", "value")),
    "proj": "attention.output.dense.",
    "fc1": "intermediate.dense.",
    "fc2": "output.dense.",
    "decoder_layer": "decoder.decoder_layers.{i}.",
}
_VERSION_5 = {
    "layer": "layers.{i}.",
    "qkv": tuple(f"attention.{name}_proj." for name in "qkv"),
    "proj": "attention.o_proj.",
    "fc1": "mlp.fc1.",
    "fc2": "mlp.fc2.",
    "decoder_layer": "decoder.decoder_layers.{i}.",
}
TRANSFORMERS_NAMES = {"transformers": _VERSION_4, "transformers_5": _VERSION_5}


# What a masked patch becomes: a part of the head here, of the encoder there.
MASK_TOKEN = "embeddings.mask_token"
MASKED_RULES = [
    Rule(MASK_TOKEN, "mask_token"),
    *(Rule(f"decoder.0.{name}", f"decoder.{name}") for name in ("weight", "bias")),
]


def head_of(model: PreTrainedModel) -> str:
    """The suffix of its class, a key of `registry.AUTO_CLASSES`."""
    return type(model).__name__.removeprefix(get_architecture(model.config.model_type).prefix)


def native_class(model: PreTrainedModel, family: str, heads: Collection[str] | None = None) -> str:
    """
    The class of transformers that a model becomes.

    Args:
        family: What the names of its classes begin with. heads: Suffixes that there are, those of images by default.

    Raises:
        ConversionError: if it has no such head.
    """
    heads = heads or ("Model", "ForImageClassification", "ForMaskedImageModeling")
    if (head := head_of(model)) not in heads:
        raise ConversionError(f"transformers' {family} of this kind has no {head}, only {' and '.join(heads)}")
    return family + head


def tanh_pooler(metadata: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> int:
    """The width of the pooler. ConversionError if its activation is another than that of `representation_size`."""
    if (activation := metadata.get("pooler_act", "tanh")) != "tanh":
        raise ConversionError(f"pooler_act={activation!r} is not supported, only 'tanh'", "pooler_act")
    return shape_of("pooler.dense.weight", state_dict, 2)[0]


def transformers_layer_rules(names: Mapping[str, Any], source: str, target: str) -> list[Rule]:
    """The rules of a layer, whose names begin with `source` there and with `target` here."""
    return [
        Rule(source + "layernorm_before.*", target + "layernorm_before.*"),
        Rule(tuple(source + name + "*" for name in names["qkv"]), target + "attention.qkv.*", Concatenate(3)),
        Rule(source + names["proj"] + "*", target + "attention.proj.*"),
        Rule(source + "layernorm_after.*", target + "layernorm_after.*"),
        Rule(source + names["fc1"] + "*", target + "mlp.fc1.*"),
        Rule(source + names["fc2"] + "*", target + "mlp.fc2.*"),
    ]


def transformers_rules(names: Mapping[str, Any]) -> list[Rule]:
    """The rules for tensors that transformers' ViT and DeiT name alike; `names` is a value of `TRANSFORMERS_NAMES`."""
    return [
        Rule("embeddings.cls_token", "embeddings.cls_token"),
        Rule("embeddings.position_embeddings", "embeddings.position_embeddings.weight"),
        Rule("embeddings.patch_embeddings.projection.*", "embeddings.patch_embeddings.projection.*"),
        *transformers_layer_rules(names, names["layer"], "layers.{i}."),
        Rule("layernorm.*", "layernorm.*"),
    ]


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
                f"{name} is not told by the weights; keep transformers' config.json next to them, or give its fields "
                f"as original_kwargs",
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
