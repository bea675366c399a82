"""Reads and writes the preprocessing of a converted checkpoint, in the words of its publisher."""

import math
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import transformers
from transformers import TimesformerVideoProcessor, ViTImageProcessor, VivitVideoProcessor
from transformers.image_utils import PILImageResampling

from ..errors import ConversionError, UserError
from ..modeling.configuration_vitf import IMAGENET_MEAN, IMAGENET_STD, VitfConfig, pair
from ..modeling.image_processing_pil_vitf import CROP_MODES
from ..modeling.image_processing_vitf import VitfImageProcessor
from ..modeling.video_processing_vitf import VitfVideoProcessor
from ..notices import notice
from ..registry import Architecture
from .checkpoint_files import CheckpointFile
from .published import published_checkpoints

# transformers' processors of clips, by model type. None of them chooses frames.
_VIDEO_PROCESSORS = {"timesformer": TimesformerVideoProcessor, "vivit": VivitVideoProcessor}


def nearest_variant(config: VitfConfig) -> str | None:
    """The published variant with the most fields in common; the first of equals; None where nothing is published."""
    names = [field.name for field in fields(config) if not field.name.startswith("_")]
    own = {name: getattr(config, name) for name in names}

    def differences(variant: str) -> int:
        other = type(config).from_variant(variant)
        return sum(getattr(other, name) != value for name, value in own.items())

    return min(type(config).VARIANTS, key=differences, default=None)


def _crop_fraction(crop: int, edge: int) -> float:
    """The `crop_pct` for which an edge before the crop is just that, which rounding must not make smaller."""
    fraction = crop / edge
    while math.floor(crop / fraction) < edge:
        fraction = math.nextafter(fraction, 0)
    return fraction


def _from_timm(pretrained_cfg: Mapping[str, Any], has_own_size: bool) -> dict[str, Any]:
    """
    What timm 1.0.31 data/config.py `resolve_data_config` reads, its defaults among it.

    Args:
        has_own_size: Whether the arguments of the model give it another size than the configuration of its weights.
    """
    mode = pretrained_cfg.get("crop_mode") or "center"
    if mode not in CROP_MODES:
        raise ConversionError(
            f"config.json: crop_mode={mode!r} is not supported, only {', '.join(CROP_MODES)}", "crop_mode"
        )
    result = {
        "crop_pct": pretrained_cfg.get("crop_pct") or 0.875,
        "crop_mode": mode,
        "image_mean": list(pretrained_cfg.get("mean") or IMAGENET_MEAN),
        "image_std": list(pretrained_cfg.get("std") or IMAGENET_STD),
        "resample": pretrained_cfg.get("interpolation") or "bicubic",
    }
    if mode == "squash" and result["crop_pct"] == 1:  # nothing is cropped
        result |= {"crop_pct": None, "crop_mode": "center"}
    if pretrained_cfg.get("input_size") and not has_own_size:
        result["size"] = dict(zip(("height", "width"), pretrained_cfg["input_size"][1:], strict=True))
    return result


# transformers' processors by what old files call them, and what reads files of no name, by model type.
_UNNAMED = {"vivit": "VivitImageProcessor", "timesformer": "VideoMAEImageProcessor", "levit": "LevitImageProcessor"}
_UNNAMED |= {"cvt": "ConvNextImageProcessor", "clip": "CLIPImageProcessor", "deit": "DeiTImageProcessor"}
# They resize by rules of their own.
_CONVNEXT = ("ConvNextImageProcessor", "ConvNextImageProcessorPil")
_LEVIT = ("LevitImageProcessor", "LevitImageProcessorPil")


def _their_processor(preprocessor: Mapping[str, Any], model_type: str) -> Any:
    """transformers' own processor with what a file says, which knows the defaults of what it does not say."""
    names = (preprocessor.get(f"{kind}_type") for kind in ("video_processor", "image_processor", "feature_extractor"))
    name = next(filter(None, names), None) or _UNNAMED.get(model_type, "ViTImageProcessor")
    name = name.replace("FeatureExtractor", "ImageProcessor").removesuffix("Fast")
    processor_class = getattr(transformers, name, None)
    if processor_class is None:
        raise ConversionError(f"preprocessor_config.json names {name}, which transformers does not have")
    # Their constructors know less than files hold: what else is in them says which class it is of.
    kept = {key: value for key, value in preprocessor.items() if not key.endswith("_type") and key != "processor_class"}
    return processor_class.from_dict(kept)


def _resizing(processor: Any) -> dict[str, Any]:
    """Fields that say how images are resized and cropped."""
    size = {name: edge for name, edge in dict(processor.size).items() if edge}
    crop = dict(processor.crop_size) if getattr(processor, "do_center_crop", None) and processor.crop_size else None
    shortest, name = size.get("shortest_edge"), type(processor).__name__
    mode = "center"
    if name in _CONVNEXT:
        if shortest >= 384:  # squashed
            return {"size": {"height": shortest, "width": shortest}, "crop_pct": None}
        crop, shortest = {"height": shortest, "width": shortest}, int(shortest / processor.crop_pct)
    elif name in _LEVIT and shortest:
        shortest = int(256 / 224 * shortest)
    if crop is None:
        if not {"height", "width"} <= size.keys():
            raise ConversionError(
                f"preprocessor_config.json: {name} with size={size} and without a crop gives images of no fixed size; "
                f"give it a height and a width, or do_center_crop and crop_size"
            )
        return {"size": {"height": size["height"], "width": size["width"]}, "crop_pct": None}
    if shortest:
        edges = [shortest, shortest]
    else:
        edges, mode = [size["height"], size["width"]], "squash"
    fractions = {_crop_fraction(*pair) for pair in zip((crop["height"], crop["width"]), edges, strict=True)}
    if len(fractions) > 1 or max(fractions) > 1:
        raise ConversionError(f"preprocessor_config.json: a crop of {crop} from size={size} is not supported")
    return {
        "size": {"height": crop["height"], "width": crop["width"]},
        "crop_pct": fractions.pop(),
        "crop_mode": mode,
        "crop_rounding": "down",
    }


def _from_transformers(preprocessor: Mapping[str, Any], model_type: str) -> dict[str, Any]:
    processor = _their_processor(preprocessor, model_type)
    result = _resizing(processor)
    result["resample"] = PILImageResampling(processor.resample).name.lower()
    is_vivit = type(processor).__name__ == VivitVideoProcessor.__name__
    # What they subtract before they normalise, and the largest sample before that; ours are from 0 to 1.
    offset = 1.0 if is_vivit or getattr(processor, "offset", False) else 0.0
    largest = 255 * processor.rescale_factor
    mean, std = processor.image_mean, processor.image_std
    if not processor.do_normalize:
        channels = len(mean) if mean else 3
        mean, std = [0.0] * channels, [1.0] * channels
    if not processor.do_rescale:
        result["do_rescale"], offset, largest = False, 0.0, 1.0
    if not processor.do_resize:
        result["do_resize"] = False
    result["image_mean"] = [(value + offset) / largest for value in mean]
    result["image_std"] = [value / largest for value in std]
    return result


def find_preprocessing(
    file: CheckpointFile, architecture: Architecture, config: VitfConfig, published: str | None
) -> dict[str, Any]:
    """
    The fields of the processor: `size`, `crop_pct`, `image_mean`, `image_std`, `resample`, and the fields of clips.

    The first that there is: timm's config.json or transformers' preprocessor_config.json next to the weights, the
    checkpoint that is `published` under that name, the nearest published variant, the default of the architecture. A
    mean and standard deviation of 3 channels say nothing about another number of channels, for which both are 0.5.
    """
    height, width = pair(config.image_size)
    variant = published.split(".")[0] if published else nearest_variant(config)
    result = {**architecture.config_class.preprocessing(variant), "size": {"height": height, "width": width}}
    del result["image_size"]
    if "num_frames" in result:
        result["num_frames"] = config.num_frames
    if len(result["image_mean"]) != config.num_channels:
        result |= {"image_mean": [0.5] * config.num_channels, "image_std": [0.5] * config.num_channels}
    if file.is_timm:
        has_own_size = "img_size" in file.metadata.get("model_args", {})
        return result | _from_timm(file.metadata["pretrained_cfg"], has_own_size)
    if file.preprocessor:
        return result | _from_transformers(file.preprocessor, file.metadata.get("model_type", ""))
    return result | (dict(published_checkpoints(architecture.name)[published].preprocessing) if published else {})


def write_preprocessing(
    processor: VitfImageProcessor | VitfVideoProcessor, native_config: Mapping[str, Any], folder: Path
) -> dict[str, Any]:
    """
    Says in the words of timm or transformers how images or clips are prepared: what belongs into config.json is
    returned, a file of its own is written.

    Args:
        processor: Ours. native_config: The config.json of the model, by which its library is known. folder: Where it
            goes.

    Raises:
        UserError: if that library's processor cannot do it.
    """
    height, width = processor.size["height"], processor.size["width"]
    model_type = native_config.get("model_type")
    if model_type is None:  # timm
        pretrained_cfg = {
            "input_size": [len(processor.image_mean), height, width],
            "crop_pct": processor.crop_pct or 1.0,
            "crop_mode": "squash" if processor.crop_pct is None else processor.crop_mode,
            "interpolation": PILImageResampling(processor.resample).name.lower(),
            "mean": list(processor.image_mean),
            "std": list(processor.image_std),
        }
        return {"pretrained_cfg": pretrained_cfg}
    values = {"size": {"height": height, "width": width}, "do_center_crop": False}
    if processor.crop_pct is not None:
        edges = [math.floor(edge / processor.crop_pct) for edge in (height, width)]
        resized = {"shortest_edge": edges[0]}
        if processor.crop_mode == "border":
            raise UserError("transformers' processor makes no borders (crop_mode); change it in the processor's file")
        if processor.crop_mode == "squash":
            resized = dict(zip(("height", "width"), edges, strict=True))
        elif height != width:
            raise UserError("transformers' processor crops squares only; set crop_pct to null in the processor's file")
        values = {
            "size": resized,
            "crop_size": {"height": height, "width": width},
            "do_center_crop": True,
        }
        if processor.crop_rounding != "down" and edges != [height, width]:
            notice(
                "transformers' processor crops odd margins half a pixel further left and up than this one "
                f"(crop_rounding={processor.crop_rounding!r})"
            )
    values |= {name: getattr(processor, name) for name in ("resample", "image_mean", "image_std")}
    if model_type == "vivit":  # which has made pixels lie between -1 and 1 before it normalises them
        values["image_mean"] = [2 * mean - 1 for mean in values["image_mean"]]
        values["image_std"] = [2 * std for std in values["image_std"]]
    _VIDEO_PROCESSORS.get(model_type, ViTImageProcessor)(**values).save_pretrained(folder)
    return {}
