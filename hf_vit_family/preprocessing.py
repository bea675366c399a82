"""How images are prepared for a converted checkpoint, from what its publisher says."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from transformers.image_utils import PILImageResampling

from .checkpoints import CheckpointFile
from .errors import ConversionError
from .modeling.configuration_vitf import VitfConfig, pair
from .registry import Architecture


def nearest_variant(config: VitfConfig) -> str:
    """The published variant with the most fields in common; the first of equals."""
    names = [field.name for field in fields(config) if not field.name.startswith("_")]
    own = {name: getattr(config, name) for name in names}

    def differences(variant: str) -> int:
        other = type(config).from_variant(variant)
        return sum(getattr(other, name) != value for name, value in own.items())

    return min(type(config).VARIANTS, key=differences)


def _from_timm(pretrained_cfg: Mapping[str, Any]) -> dict[str, Any]:
    names = {"crop_pct": "crop_pct", "mean": "image_mean", "std": "image_std", "interpolation": "resample"}
    result = {target: pretrained_cfg[name] for name, target in names.items() if name in pretrained_cfg}
    mode = pretrained_cfg.get("crop_mode") or "center"
    if mode == "squash":  # to the very size, whatever the aspect ratio
        result["crop_pct"] = None
    elif mode != "center":
        raise ConversionError(
            f"config.json: crop_mode={mode!r} is not supported, only 'center' and 'squash'", "crop_mode"
        )
    return result


def _edge(size: int | Mapping[str, int]) -> int:
    """One number for a size as transformers writes it."""
    return size if isinstance(size, int) else min(size.values())


def _from_transformers(preprocessor: Mapping[str, Any]) -> dict[str, Any]:
    result = {name: preprocessor[name] for name in ("image_mean", "image_std") if preprocessor.get(name)}
    if isinstance(preprocessor.get("resample"), int):
        result["resample"] = PILImageResampling(preprocessor["resample"]).name.lower()
    cropped = preprocessor.get("do_center_crop") and preprocessor.get("crop_size") and preprocessor.get("size")
    result["crop_pct"] = _edge(preprocessor["crop_size"]) / _edge(preprocessor["size"]) if cropped else None
    return result


def find_preprocessing(
    file: CheckpointFile, architecture: Architecture, config: VitfConfig, published: str | None
) -> dict[str, Any]:
    """
    What `create_processor` needs: `size`, `crop_pct`, `image_mean`, `image_std`, `resample`, and the fields of clips.

    The first that there is: timm's config.json or transformers' preprocessor_config.json next to the weights, the entry
    `published` of `CHECKPOINTS`, the nearest published variant.
    """
    height, width = pair(config.image_size)
    variant = published.split(".")[0] if published else nearest_variant(config)
    result = {**architecture.config_class.preprocessing(variant), "size": {"height": height, "width": width}}
    del result["image_size"]
    if "num_frames" in result:
        result["num_frames"] = config.num_frames
    if file.is_timm:
        return result | _from_timm(file.metadata["pretrained_cfg"])
    if file.preprocessor:
        return result | _from_transformers(file.preprocessor)
    return result | (dict(architecture.conversion.CHECKPOINTS[published].preprocessing) if published else {})
