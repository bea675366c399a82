"""How images and clips are prepared for a converted checkpoint, read and written in the words of its publisher."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from transformers import TimesformerVideoProcessor, ViTImageProcessor, VivitVideoProcessor
from transformers.image_utils import PILImageResampling

from .checkpoints import CheckpointFile
from .errors import ConversionError, UserError
from .modeling.configuration_vitf import VitfConfig, pair
from .modeling.image_processing_vitf import VitfImageProcessor
from .modeling.video_processing_vitf import VitfVideoProcessor
from .registry import Architecture

# transformers' processors of clips, by model type. None of them chooses frames.
_VIDEO_PROCESSORS = {"timesformer": TimesformerVideoProcessor, "vivit": VivitVideoProcessor}


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
    if preprocessor.get("video_processor_type") == VivitVideoProcessor.__name__:  # of pixels from -1 to 1, see below
        result["image_mean"] = [(mean + 1) / 2 for mean in preprocessor["image_mean"]]
        result["image_std"] = [std / 2 for std in preprocessor["image_std"]]
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


def write_preprocessing(
    processor: VitfImageProcessor | VitfVideoProcessor, native_config: Mapping[str, Any], folder: Path
) -> dict[str, Any]:
    """
    Says in the words of timm or transformers how images or clips are prepared: what belongs into config.json is returned, a
    file of its own is written.

    Args:
        processor: Ours. native_config: The config.json of the model, by which its library is known. folder: Where it goes.

    Raises:
        UserError: if that library's processor cannot do it.
    """
    height, width = processor.size["height"], processor.size["width"]
    model_type = native_config.get("model_type")
    if model_type is None:  # timm
        pretrained_cfg = {
            "input_size": [len(processor.image_mean), height, width],
            "crop_pct": processor.crop_pct or 1.0,
            "crop_mode": "squash" if processor.crop_pct is None else "center",
            "interpolation": PILImageResampling(processor.resample).name.lower(),
            "mean": list(processor.image_mean),
            "std": list(processor.image_std),
        }
        return {"pretrained_cfg": pretrained_cfg}
    values = {"size": {"height": height, "width": width}, "do_center_crop": False}
    if processor.crop_pct is not None:
        if height != width:
            raise UserError("transformers' processor crops squares only; set crop_pct to null in the processor's file")
        values = {
            "size": {"shortest_edge": int(height / processor.crop_pct)},
            "crop_size": {"height": height, "width": width},
            "do_center_crop": True,
        }
    values |= {name: getattr(processor, name) for name in ("resample", "image_mean", "image_std")}
    if model_type == "vivit":  # which has made pixels lie between -1 and 1 before it normalises them
        values["image_mean"] = [2 * mean - 1 for mean in values["image_mean"]]
        values["image_std"] = [2 * std for std in values["image_std"]]
    _VIDEO_PROCESSORS.get(model_type, ViTImageProcessor)(**values).save_pretrained(folder)
    return {}
