"""
Image processor of the whole family, Pillow backend, and what both backends share.

An image becomes RGB, is resized so that it covers `size / crop_pct`, cropped to `size` at the centre, rescaled and
normalised. This is the evaluation transform of huggingface/pytorch-image-models@aa4b585 timm/data/transforms_factory.py
(crop mode "center"), which holds the preprocessing that the published weights of the family were measured with.
"""

import math
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, ImageOps
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import PILImageResampling, SizeDict, load_image
from transformers.processing_utils import ImagesKwargs

from .code_files import CodeFilesMixin
from .configuration_vitf import HALF_MEAN, HALF_STD, unknown_name_message

if TYPE_CHECKING:
    # Never run, but read by the Hub's code loader: a processor that was loaded with one backend has the code of both beside
    # it, and is whole when it is saved again.
    from .image_processing_vitf import VitfImageProcessor  # noqa: F401

# Keys of a preprocessor_config.json that are not the processor's own.
_TRANSFORMERS_KEYS = {
    "auto_map",
    "custom_pipelines",
    "feature_extractor_type",
    "image_processor_type",
    "processor_class",
    "video_processor_type",
}


class VitfImageProcessorKwargs(ImagesKwargs, total=False):
    r"""
    crop_pct (`float`, *optional*, defaults to `self.crop_pct`):
        Share of the resized image that the centre crop keeps, above 0 and at most 1. `None` resizes to `size` without
        a crop.
    """

    crop_pct: float | int | None


def covering_size(height: int, width: int, size: tuple[int, int], crop_pct: float) -> tuple[int, int]:
    """
    The (height, width) in pixels, of an unchanged aspect ratio, that an image is resized to before the centre crop.

    Rounds as timm does: down for the longer edge where `size / crop_pct` is square, to the nearest elsewhere
    (`ResizeKeepRatio` of huggingface/pytorch-image-models@aa4b585 timm/data/transforms.py).
    """
    target_height, target_width = (math.floor(edge / crop_pct) for edge in size)
    if target_height != target_width:
        ratio = min(height / target_height, width / target_width)
        return round(height / ratio), round(width / ratio)
    if width <= height:
        return int(target_width * height / width), target_width
    return target_height, int(target_height * width / height)


def crop_centre(image, size: tuple[int, int]):
    """
    The (..., height, width) centre of an array or tensor (..., H, W).

    An odd margin is split as in torchvision's `CenterCrop` (half to even), not as in transformers (down), which would be
    one pixel away from timm.
    """
    margins = [have - keep for have, keep in zip(image.shape[-2:], size, strict=True)]
    if min(margins) < 0:
        raise ValueError(f"an image of {tuple(image.shape[-2:])} pixels is too small to be cropped to {size}")
    top, left = (round(margin / 2) for margin in margins)
    return image[..., top : top + size[0], left : left + size[1]]


def decode(image: Image.Image, rgb: bool) -> np.ndarray:
    """
    The pixels of a Pillow image, upright, as (H, W) or (H, W, C).

    An EXIF orientation is applied, as transformers and datasets do when they open a file. With `rgb`, every mode becomes
    RGB, or RGBA where there is transparency.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        return np.array(image)  # Pillow would clip 16-bit samples at 255; `to_uint8` scales them
    if image.mode in ("I", "F"):
        raise ValueError(f"an image of mode {image.mode!r} has no defined range; convert it to 8 or 16 bits")
    if not rgb:
        # A palette's indices and bits are no intensities.
        return np.array(image.convert("L") if image.mode in ("1", "P", "PA") else image)
    transparent = "A" in image.getbands() or "transparency" in image.info
    return np.array(image.convert("RGBA" if transparent else "RGB"))


def to_uint8(image: torch.Tensor) -> torch.Tensor:
    """8-bit samples, from 16 bits by scaling 65535 to 255, from a bit as black or white; floating point as float32."""
    if image.dtype == torch.uint16:
        return ((image.to(torch.int32) + 128) // 257).to(torch.uint8)
    if image.dtype == torch.bool:
        return image.to(torch.uint8) * 255
    if image.is_floating_point():
        return image.float()
    if image.dtype != torch.uint8:
        raise ValueError(
            f"an image of {image.dtype} has no defined range; convert it to uint8, uint16 or floating point"
        )
    return image


def to_rgb(image: torch.Tensor) -> torch.Tensor:
    """(1, 3 or 4, H, W) to (3, H, W): grey is repeated, transparency shows white."""
    if image.shape[0] == 1:
        return image.expand(3, -1, -1)
    if image.shape[0] == 3:
        return image
    if image.is_floating_point():
        if image.min() < 0 or image.max() > 1:
            raise ValueError("the alpha channel of a floating-point image needs values from 0 to 1")
        return image[:3] * image[3:] + (1 - image[3:])
    # In integers, so that Pillow, numpy and torch input give the same pixels on every device.
    color, alpha = image[:3].to(torch.int32), image[3:].to(torch.int32)
    return ((color * alpha + 255 * (255 - alpha) + 127) // 255).to(torch.uint8)


def to_channels_first(image: Any, num_channels: int, rgb: bool, input_data_format: str | None = None) -> torch.Tensor:
    """
    One image in the form that both backends work on.

    Args:
        image: A Pillow image, or an array or tensor of (H, W), (H, W, C) or (C, H, W).
        num_channels: Channels of the result.
        rgb: Whether one and four channels (grey, RGBA) are turned into three.
        input_data_format: `"channels_first"` or `"channels_last"`. By default the first dimension that fits is taken for
            the channels, as transformers does.

    Returns:
        A tensor (num_channels, H, W), uint8 or float32, on the device of the input.

    Raises:
        ValueError: if the number of channels, the shape or the type of the samples does not fit.
    """
    if isinstance(image, Image.Image):
        image, input_data_format = decode(image, rgb), "channels_last"
    if isinstance(image, np.ndarray):
        if not image.dtype.isnative:
            image = image.astype(image.dtype.newbyteorder("="))
        image = torch.from_numpy(
            np.require(image, requirements=("C", "W"))
        )  # torch takes no reversed or read-only views
    if not isinstance(image, torch.Tensor):
        raise ValueError(f"an image is a Pillow image, a numpy array or a torch tensor, not {type(image).__name__}")
    shape, accepted = tuple(image.shape), (1, 3, 4) if rgb else (num_channels,)
    if image.ndim == 2:
        image = image[None]
    elif image.ndim != 3 or 0 in shape:
        raise ValueError(f"an image of shape {shape} is neither (H, W), (H, W, C) nor (C, H, W)")
    else:
        fits_last_only = shape[0] not in accepted and shape[-1] in accepted
        if (input_data_format or ("channels_last" if fits_last_only else "channels_first")) == "channels_last":
            image = image.permute(2, 0, 1)
    if image.shape[0] not in accepted:
        wanted = " or ".join(map(str, accepted))
        raise ValueError(f"an image of shape {shape} does not have {wanted} channels, as image_mean asks for")
    image = to_uint8(image)
    return to_rgb(image) if rgb else image


class VitfImageProcessorMixin(CodeFilesMixin):
    """What both backends share. Stands before the backend among the bases of a processor."""

    valid_kwargs = VitfImageProcessorKwargs
    resample = PILImageResampling.BICUBIC
    image_mean = list(HALF_MEAN)
    image_std = list(HALF_STD)
    size = {"height": 224, "width": 224}
    crop_pct = None
    do_convert_rgb = do_resize = do_center_crop = do_rescale = do_normalize = True

    def __init__(self, **kwargs):
        for name in kwargs:
            if name not in self.valid_kwargs.__annotations__ and name not in _TRANSFORMERS_KEYS:
                message = unknown_name_message("field", name, self.valid_kwargs.__annotations__)
                raise ValueError(f"{type(self).__name__}: {message}")
        super().__init__(**kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class="AutoImageProcessor"):
        """Does nothing: `CodeFilesMixin` saves the code, where transformers would put one class in place of both backends."""

    def fetch_images(self, images):
        """Opens paths and URLs with Pillow in both backends: decoders of JPEG differ by more than resizing does."""
        if isinstance(images, str):
            return Image.open(images) if os.path.isfile(images) else load_image(images)
        if getattr(images, "ndim", None) == 2:  # grey: transformers takes images without channels from Pillow alone
            return images[None]
        return super().fetch_images(images)

    def process_image(self, image, do_convert_rgb, image_mean, input_data_format=None, device=None, **kwargs):
        """One image in any form as (C, H, W); see `to_channels_first`."""
        num_channels = len(image_mean)
        image = to_channels_first(image, num_channels, bool(do_convert_rgb) and num_channels == 3, input_data_format)
        return image if device is None else image.to(device)

    def _standardize_kwargs(self, **kwargs):
        kwargs = super()._standardize_kwargs(**kwargs)
        name = type(self).__name__
        for field in ("crop_size", "pad_size", "do_pad"):
            if kwargs.get(field):
                raise ValueError(
                    f"{name}: {field} is not used; size is what comes out, crop_pct says how it is cropped"
                )
        size = kwargs["size"]
        if not all(isinstance(edge, int) and edge > 0 for edge in (size.height, size.width)):
            raise ValueError(f"{name}: size needs a positive height and width in pixels, not {dict(size)}")
        crop_pct = kwargs["crop_pct"]
        if crop_pct is not None and not (isinstance(crop_pct, int | float) and 0 < crop_pct <= 1):
            raise ValueError(f"{name}: crop_pct={crop_pct!r} is not above 0 and at most 1")
        mean, std = kwargs["image_mean"], kwargs["image_std"]
        if not (isinstance(mean, tuple) and isinstance(std, tuple) and len(mean) == len(std) > 0):
            raise ValueError(f"{name}: image_mean={mean} and image_std={std} do not have one value for each channel")
        return kwargs

    def _validate_preprocess_kwargs(self, do_center_crop=None, **kwargs):
        # transformers' check would ask for crop_size, which does not exist here: the crop is of `size`.
        super()._validate_preprocess_kwargs(**kwargs)

    def _preprocess(self, images, do_resize, size, resample, do_center_crop, crop_pct, **kwargs):
        """Resizes and crops; the backend rescales and normalises."""
        output_size, crops = (size.height, size.width), do_center_crop and crop_pct is not None
        processed = []
        for image in images:
            if do_resize:
                height, width = covering_size(*image.shape[-2:], output_size, crop_pct) if crops else output_size
                image = self.resize(image, SizeDict(height=height, width=width), resample=resample)
            processed.append(crop_centre(image, output_size) if crops else image)
        return super()._preprocess(
            processed, do_resize=False, size=size, resample=resample, do_center_crop=False, **kwargs
        )


class VitfImageProcessorPil(VitfImageProcessorMixin, PilBackend):
    r"""
    The image processor of the family without torchvision: Pillow resizes, numpy does the rest.

    Args:
        size (`dict` or `int` or `(int, int)`, *optional*, defaults to 224 x 224): Height and width of the result, in pixels.
        crop_pct (`float`, *optional*):
            Share of the resized image that the centre crop keeps. `None`, or `do_center_crop=False`, resizes to `size`
            and crops nothing, as transformers' `ViTImageProcessor`.
        resample (`PILImageResampling`, *optional*, defaults to bicubic): Interpolation, antialiased.
        image_mean, image_std (`list[float]`, *optional*, defaults to 0.5):
            One value for each channel, for samples from 0 to 1. Their number is the number of channels that come out.
        do_convert_rgb (`bool`, *optional*, defaults to `True`):
            With three channels: whether other kinds of images become RGB. Grey is repeated, transparency shows white,
            palettes and CMYK are converted by Pillow, 16-bit samples are scaled to 8. A Pillow image, or a file, is
            turned upright as its EXIF orientation says; an array has none.
        do_resize, do_center_crop, do_rescale, do_normalize (`bool`, *optional*, defaults to `True`): Switch steps off.
        rescale_factor (`float`, *optional*, defaults to 1 / 255): What samples are multiplied by.

    Call it on one image or a list of Pillow images, paths, URLs, numpy arrays or torch tensors; floating-point images
    hold values from 0 to 1 and need `do_rescale=False`. Returns `pixel_values` of (B, C, height, width) with
    `return_tensors="pt"`.

    Raises:
        ValueError: for a field that does not exist, a size that is not positive, a crop_pct outside (0, 1], or an image
            with a wrong number of channels.
    """

    def process_image(self, image, **kwargs) -> np.ndarray:
        return super().process_image(image, **{**kwargs, "device": "cpu"}).numpy()

    def resize(self, image: np.ndarray, size: SizeDict, **kwargs) -> np.ndarray:
        if image.shape[0] == 3:
            return super().resize(image, size, **kwargs)
        # Pillow would take two and four channels for transparency and knows no others.
        return np.concatenate([super(VitfImageProcessorPil, self).resize(band[None], size, **kwargs) for band in image])


__all__ = ["VitfImageProcessorPil"]
