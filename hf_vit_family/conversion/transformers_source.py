"""Reads transformers' own config.json: the model that it belongs to, and the defaults of what it leaves out."""

from collections.abc import Mapping
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING

from ..errors import ConversionError

# What people call a model that is not in this library, by its `model_type`; others are named as their configuration.
_NAMES = {
    "beit": "BEiT",
    "data2vec-vision": "data2vec for images",
    "dinov3_vit": "DINOv3",
    "mobilevit": "MobileViT",
    "mobilevitv2": "MobileViTV2",
    "poolformer": "PoolFormer",
    "siglip2": "SigLIP 2 of variable resolution (NaFlex)",
    "siglip2_vision_model": "SigLIP 2 of variable resolution (NaFlex)",
    "videomae": "VideoMAE",
    "vjepa2": "V-JEPA 2",
    "vit_hybrid": "ViT hybrid",
    "yolos": "YOLOS",
}
# Classes whose `model_type` is known here, but which have no counterpart.
REFUSED_NAMES = {
    "CvtModel": (
        "not in this library, whose CvT normalises its last tokens; in transformers this norm is of the head. Convert "
        "a CvtForImageClassification"
    ),
}


def native_model_type(metadata: Mapping[str, Any]) -> str | None:
    """The `model_type` of a config.json that is transformers' own; `None` for one of this library or of timm."""
    model_type = metadata.get("model_type")
    if "pretrained_cfg" in metadata or not isinstance(model_type, str) or model_type.startswith("vitf_"):
        return None
    return model_type


def _class_name(metadata: Mapping[str, Any]) -> str:
    names = metadata.get("architectures") or []
    if names:
        return str(names[0])
    model_type = metadata["model_type"]
    if model_type not in CONFIG_MAPPING:
        return ""
    return CONFIG_MAPPING[model_type].__name__.removesuffix("Config") + "Model"


def native_name(metadata: Mapping[str, Any]) -> str:
    """Names the model of a transformers config.json, for a sentence: `"BEiT (transformers' BeitModel)"`."""
    model_type, class_name = metadata["model_type"], _class_name(metadata)
    if model_type not in CONFIG_MAPPING:
        return f"a model of model_type={model_type!r}" + (f" ({class_name})" if class_name else "")
    name = _NAMES.get(model_type, CONFIG_MAPPING[model_type].__name__.removesuffix("Config"))
    return f"{name} (transformers' {class_name})"


def refused_class(metadata: Mapping[str, Any]) -> str | None:
    """Why the class that a config.json names cannot be converted, or `None` if it can."""
    return REFUSED_NAMES.get(_class_name(metadata))


def with_defaults(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """
    A config.json with transformers' defaults for what it does not say: older versions wrote fewer fields, and none
    writes all. Labels are as they are, and a config.json of another library is too.

    Raises:
        ConversionError: for a value that transformers refuses.
    """
    model_type = native_model_type(metadata)
    if model_type not in CONFIG_MAPPING:
        return dict(metadata)
    try:
        fields = CONFIG_MAPPING[model_type].from_dict(dict(metadata)).to_dict()
    except (StrictDataclassError, TypeError, ValueError) as error:
        raise ConversionError(f"config.json: {str(error.__cause__ or error).strip()}") from error
    labels = {name: metadata[name] for name in ("id2label", "label2id") if name in metadata}
    return {name: value for name, value in fields.items() if name not in ("id2label", "label2id")} | labels
