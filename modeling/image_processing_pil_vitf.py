"""
Image processor of the whole family, Pillow backend, and what both backends share.

An image becomes RGB, or grey where the model has one channel, is resized so that it covers `size / crop_pct`, cropped
to `size` at the centre, rescaled and normalised. This is the evaluation transform of
huggingface/pytorch-image-models@aa4b585 timm/data/transforms_factory.py (crop mode "center"), which holds the
preprocessing that the published weights of the family were measured with.
"""

import base64
import functools
import io
import math
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from huggingface_hub import get_session
from PIL import Image, ImageOps
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import PILImageResampling, SizeDict
from transformers.processing_utils import ImagesKwargs
from transformers.utils import logging

from .code_files import CodeFilesMixin
from .configuration_vitf import HALF_MEAN, HALF_STD, keep_unknown_keys, unknown_name_message

if TYPE_CHECKING:
    # Never run, but read by the Hub's code loader: a processor that was loaded with one backend has the code of both
    # next to it, and is whole when it is saved again.
    from .image_processing_vitf import VitfImageProcessor  # noqa: F401

logger = logging.get_logger(__name__)

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
    crop_mode (`str`, *optional*, defaults to `self.crop_mode`): How the image is resized before it is cropped.
    crop_rounding (`str`, *optional*, defaults to `self.crop_rounding`): Where half a pixel goes in the centre crop.
    """

    crop_pct: float | int | None
    crop_mode: str | None
    crop_rounding: str | None


# Where a crop begins when half a pixel is over: after it if that number is even (torchvision), before it, or after it.
CROP_ROUNDINGS = {"nearest": round, "down": math.floor, "up": math.ceil}


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


def fitting_size(height: int, width: int, size: tuple[int, int], crop_pct: float) -> tuple[int, int]:
    """
    The (height, width) of the largest image of an unchanged aspect ratio within `size / crop_pct`; rounded as timm
    does.
    """
    target_height, target_width = (math.floor(edge / crop_pct) for edge in size)
    ratio = max(height / target_height, width / target_width)
    return round(height / ratio), round(width / ratio)


def squashed_size(height: int, width: int, size: tuple[int, int], crop_pct: float) -> tuple[int, int]:
    """`size / crop_pct`, whatever the aspect ratio."""
    return math.floor(size[0] / crop_pct), math.floor(size[1] / crop_pct)


# What an image is resized to before the crop; see huggingface/pytorch-image-models@aa4b585
# timm/data/transforms_factory.py.
CROP_MODES = {"center": covering_size, "squash": squashed_size, "border": fitting_size}


def with_border(image, size: tuple[int, int], mean: tuple[float, ...]):
    """
    An array or tensor (..., C, H, W) with a border in the colour `mean` (C values from 0 to 1) where it is smaller than
    `size`, at the centre; of an odd border the larger half is on the right and below.
    """
    height, width = (max(have, keep) for have, keep in zip(image.shape[-2:], size, strict=True))
    if (height, width) == tuple(image.shape[-2:]):
        return image
    top, left = (height - image.shape[-2]) // 2, (width - image.shape[-1]) // 2
    shape = (*image.shape[:-2], height, width)
    canvas = image.new_empty(shape) if isinstance(image, torch.Tensor) else np.empty(shape, image.dtype)
    is_8_bit = str(image.dtype).endswith("uint8")
    for channel, value in enumerate(mean):
        level = round(255 * value)
        canvas[..., channel, :, :] = level if is_8_bit else level / 255
    canvas[..., top : top + image.shape[-2], left : left + image.shape[-1]] = image
    return canvas


def crop_centre(image, size: tuple[int, int], rounding: Callable[[float], int] = round):
    """
    The (..., height, width) centre of an array or tensor (..., H, W).

    An odd margin is split by `rounding`: by default as in torchvision's `CenterCrop` (half to even), which timm uses;
    transformers rounds down.
    """
    margins = [have - keep for have, keep in zip(image.shape[-2:], size, strict=True)]
    if min(margins) < 0:
        raise ValueError(f"an image of {tuple(image.shape[-2:])} pixels is too small to be cropped to {size}")
    top, left = (rounding(margin / 2) for margin in margins)
    return image[..., top : top + size[0], left : left + size[1]]


@functools.cache
def raster_formats() -> tuple[str, ...]:
    """
    What files are opened as. Raster formats only: Pillow's EPS reader, for one, runs Ghostscript on what a file
    contains. Which of them there are depends on how Pillow was built, and is known once its plugins are loaded.
    """
    Image.init()
    names = ("JPEG", "MPO", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
    return tuple(name for name in names if name in Image.OPEN)


def open_image(source: str | os.PathLike | bytes) -> Image.Image:
    """
    Opens an image with Pillow, and decodes it when its pixels are asked for.

    Args:
        source: A path, a URL that begins with `http://` or `https://`, an image encoded in base64, also with
            `data:image/...;base64,` before it, or the bytes of a file.

    Raises:
        ValueError, OSError: if there is no such image, or its format is not in `raster_formats`.
    """
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        response = get_session().get(source, follow_redirects=True)
        response.raise_for_status()
        source = response.content
    elif isinstance(source, str) and not os.path.isfile(source):
        try:
            encoded = source.partition(",")[2] if source.startswith("data:image/") else source
            source = base64.b64decode(encoded, validate=True)
        except ValueError as error:
            raise ValueError(f"{source[:100]!r} is neither an image file, nor a URL, nor an image in base64") from error
    return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=raster_formats())


def decode(image: Image.Image) -> np.ndarray:
    """
    The pixels of a Pillow image, upright, in one of four kinds: grey (H, W), grey with alpha (H, W, 2), RGB (H, W, 3)
    or RGBA (H, W, 4), of 8 bits, or of 16 for grey.

    An EXIF orientation is applied, as transformers and datasets do when they open a file. Of an animation it is the
    frame that Pillow shows, the first of a file.

    Raises:
        ValueError: for 32-bit pixels, integer or floating point, whose range nothing tells.
    """
    # Pillow reads 16-bit PGM files as 32-bit integers from 0 to 65535.
    sixteen_bits = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM")
    image = ImageOps.exif_transpose(image)
    if sixteen_bits:
        levels = np.array(image).astype(np.uint16)  # Pillow itself would clip them at 255; `to_uint8` scales them
        if (transparent := image.info.get("transparency")) is None:
            return levels
        return np.stack([levels, np.where(levels == transparent, 0, 65535).astype(np.uint16)], axis=2)
    if image.mode in ("I", "F"):
        kind = "32-bit integer" if image.mode == "I" else "floating-point"
        raise ValueError(
            f"{kind} pixels (mode {image.mode!r}) have no known range; scale them to 8 or 16 bits, in the same way "
            f"for all images of a model"
        )
    if image.mode == "La":  # premultiplied, which Pillow converts to nothing else
        image = image.convert("LA")
    if image.mode == "RGBa":
        image = image.convert("RGBA")
    # Of a palette, of colour spaces and of bits, Pillow converts the values; indices are no intensities.
    grey = image.mode in ("1", "L", "LA")
    if image.has_transparency_data:
        return np.array(image.convert("LA" if grey else "RGBA"))
    return np.array(image.convert("L" if grey else "RGB"))


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
            f"pixels of {image.dtype} have no known range; convert them to uint8, uint16 or floating point, in the "
            f"same way for all images of a model"
        )
    return image


def onto_white(image: torch.Tensor) -> torch.Tensor:
    """Grey with alpha (2, H, W) to grey (1, H, W), RGBA (4, H, W) to RGB (3, H, W): transparency shows white."""
    if image.shape[0] in (1, 3):
        return image
    if image.is_floating_point():
        if image.min() < 0 or image.max() > 1:
            raise ValueError("the alpha channel of a floating-point image needs values from 0 to 1")
        return image[:-1] * image[-1:] + (1 - image[-1:])
    # In integers, so that Pillow, numpy and torch input give the same pixels on every device.
    color, alpha = image[:-1].to(torch.int32), image[-1:].to(torch.int32)
    return ((color * alpha + 255 * (255 - alpha) + 127) // 255).to(torch.uint8)


# Parts of red, green and blue in grey, of 65536: ITU-R BT.601, as Pillow computes it.
_LUMA = (19595, 38470, 7471)


def to_colors(image: torch.Tensor, num_channels: int) -> torch.Tensor:
    """An image of 1 to 4 channels (C, H, W) as grey (1, H, W) or RGB (3, H, W), as `num_channels` says."""
    image = onto_white(image)
    if image.shape[0] == num_channels:
        return image
    if num_channels == 3:
        return image.expand(3, -1, -1)
    red, green, blue = (
        part * (band if image.is_floating_point() else band.to(torch.int32))
        for part, band in zip(_LUMA, image, strict=True)
    )
    grey = red + green + blue
    return (grey / 65536 if image.is_floating_point() else (grey + 32768 >> 16).to(torch.uint8))[None]


def read_pixels(image: Image.Image) -> torch.Tensor:
    """
    The pixels of a Pillow image, as people see it: turned as its EXIF data says, palettes and colour spaces converted,
    16-bit samples scaled, white where it is transparent.

    Returns:
        uint8 of (1, H, W) for a grey image, (3, H, W) for any other.

    Raises:
        ValueError: for pixels without a known range.
    """
    pixels = torch.from_numpy(decode(image))
    return onto_white(to_uint8(pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)))


def to_channels_first(
    image: Any, num_channels: int, convert: bool, input_data_format: str | None = None
) -> torch.Tensor:
    """
    One image in the form that both backends work on.

    Args:
        image: A Pillow image, or an array or tensor of (H, W), (H, W, C) or (C, H, W).
        num_channels: Channels of the result.
        convert: Whether grey, RGB, and either with an alpha channel become one another, where `num_channels` is 1 or 3.
        input_data_format: `"channels_first"` or `"channels_last"`. By default the first dimension that fits is taken
            for the channels, as transformers does.

    Returns:
        A tensor (num_channels, H, W), uint8 or float32, on the device of the input.

    Raises:
        ValueError: if the number of channels, the shape or the type of the samples does not fit.
    """
    convert = convert and num_channels in (1, 3)
    if isinstance(image, Image.Image):
        if convert:
            return to_colors(read_pixels(image), num_channels)
        image, input_data_format = decode(image), "channels_last"
    if isinstance(image, np.ndarray):
        if not image.dtype.isnative:
            image = image.astype(image.dtype.newbyteorder("="))
        image = torch.from_numpy(
            np.require(image, requirements=("C", "W"))
        )  # torch takes no reversed or read-only views
    if not isinstance(image, torch.Tensor):
        raise ValueError(f"an image is a Pillow image, a numpy array or a torch tensor, not {type(image).__name__}")
    shape, accepted = tuple(image.shape), (1, 2, 3, 4) if convert else (num_channels,)
    if image.ndim == 2:
        image = image[None]
    elif image.ndim != 3 or 0 in shape:
        raise ValueError(f"an image of shape {shape} is neither (H, W), (H, W, C) nor (C, H, W)")
    else:
        first_fits, last_fits = shape[0] in accepted, shape[-1] in accepted
        if convert and shape[0] == 2 and last_fits and shape[-1] != 2:
            first_fits = False  # two rows of an image, since grey with alpha is rare
        if (
            input_data_format or ("channels_last" if last_fits and not first_fits else "channels_first")
        ) == "channels_last":
            image = image.permute(2, 0, 1)
    if image.shape[0] not in accepted:
        wanted = "1 to 4" if convert else num_channels
        raise ValueError(f"an image of shape {shape} does not have {wanted} channels, as image_mean asks for")
    image = to_uint8(image)
    return to_colors(image, num_channels) if convert else image


def resize_bands(image: np.ndarray, size: tuple[int, int], resample: int) -> np.ndarray:
    """
    Resizes (C, H, W), uint8 or float32, to (C, *size) with Pillow, antialiased; the type stays.

    Floating-point samples are neither rounded nor clipped to a range.
    """
    height, width = size
    if image.dtype == np.uint8 and image.shape[0] == 3:
        resized = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).resize((width, height), resample)
        return np.array(resized).transpose(2, 0, 1)
    # Band by band: Pillow would take two and four channels for transparency, and knows no colours in floating point.
    return np.stack([np.asarray(Image.fromarray(band).resize((width, height), resample)) for band in image])


class VitfImageProcessorMixin(CodeFilesMixin):
    """The part that both backends share. It stands before the backend among the bases of a processor."""

    valid_kwargs = VitfImageProcessorKwargs
    resample = PILImageResampling.BICUBIC
    image_mean = list(HALF_MEAN)
    image_std = list(HALF_STD)
    size = {"height": 224, "width": 224}
    crop_pct = None
    crop_mode = "center"
    crop_rounding = "nearest"
    crop_roundings = ("nearest", "down")
    do_convert_rgb = do_resize = do_center_crop = do_rescale = do_normalize = True

    def __init__(self, **kwargs):
        for name in kwargs:
            if name not in self.valid_kwargs.__annotations__ and name not in _TRANSFORMERS_KEYS:
                message = unknown_name_message("field", name, self.valid_kwargs.__annotations__)
                raise ValueError(f"{type(self).__name__}: {message}")
        super().__init__(**kwargs)

    @classmethod
    def from_dict(cls, processor_dict: dict[str, Any], **kwargs):
        """
        The processor that a file holds; `kwargs` replace its values. Unknown keys of the file are kept with a warning.
        """
        valid = cls.valid_kwargs.__annotations__
        unknown = {name: processor_dict[name] for name in processor_dict if name not in {*valid, *_TRANSFORMERS_KEYS}}
        known = {name: value for name, value in processor_dict.items() if name not in unknown}
        made = super().from_dict(known, **kwargs)
        keep_unknown_keys(made[0] if isinstance(made, tuple) else made, unknown, valid)
        return made

    @classmethod
    def register_for_auto_class(cls, auto_class="AutoImageProcessor"):
        """
        Does nothing: `CodeFilesMixin` saves the code, where transformers would put one class in place of both backends.
        """

    def fetch_images(self, images):
        """Opens paths and URLs with Pillow in both backends: decoders of JPEG differ by more than resizing does."""
        if isinstance(images, str | os.PathLike):
            return open_image(images)
        if getattr(images, "ndim", None) == 2:  # grey: transformers takes images without channels only from Pillow
            return images[None]
        return super().fetch_images(images)

    def process_image(
        self, image, do_convert_rgb, image_mean, input_data_format=None, device=None, do_rescale=None, **kwargs
    ):
        """One image in any form as (C, H, W); see `to_channels_first`."""
        image = to_channels_first(image, len(image_mean), bool(do_convert_rgb), input_data_format)
        if do_rescale and image.is_floating_point() and image.max() <= 1:
            logger.warning_once(
                "A floating-point image has values up to 1 only, and do_rescale divides them by 255, which makes it "
                "black; give do_rescale=False for values from 0 to 1."
            )
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
        for field, choices in (("crop_mode", tuple(CROP_MODES)), ("crop_rounding", self.crop_roundings)):
            if kwargs.get(field, getattr(self, field)) not in choices:
                raise ValueError(f"{name}: {field}={kwargs[field]!r} is not one of {', '.join(choices)}")
        mean, std = kwargs["image_mean"], kwargs["image_std"]
        if not (isinstance(mean, tuple) and isinstance(std, tuple) and len(mean) == len(std) > 0):
            raise ValueError(f"{name}: image_mean={mean} and image_std={std} do not have one value for each channel")
        return kwargs

    def _validate_preprocess_kwargs(self, do_center_crop=None, **kwargs):
        # transformers' check would ask for crop_size, which does not exist here: the crop is of `size`.
        super()._validate_preprocess_kwargs(**kwargs)

    def _preprocess(
        self, images, do_resize, size, resample, do_center_crop, crop_pct, crop_mode, crop_rounding, **kwargs
    ):
        """Resizes and crops; the backend rescales and normalises."""
        resized_size, rounding = CROP_MODES[crop_mode], CROP_ROUNDINGS[crop_rounding]
        output_size, crops = (size.height, size.width), do_center_crop and crop_pct is not None
        processed = []
        for image in images:
            if do_resize:
                height, width = resized_size(*image.shape[-2:], output_size, crop_pct) if crops else output_size
                image = self.resize(image, SizeDict(height=height, width=width), resample=resample)
            if crops and crop_mode == "border":
                image = with_border(image, output_size, kwargs["image_mean"])
            processed.append(crop_centre(image, output_size, rounding) if crops else image)
        return super()._preprocess(
            processed, do_resize=False, size=size, resample=resample, do_center_crop=False, **kwargs
        )


class VitfImageProcessorPil(VitfImageProcessorMixin, PilBackend):
    r"""
    The image processor of the family without torchvision: Pillow resizes, numpy does the rest.

    Args:
        size (`dict` or `int` or `(int, int)`, *optional*, defaults to 224 x 224): Height and width of the result, in
        pixels. crop_pct (`float`, *optional*):
            Share of the resized image that the centre crop keeps. `None`, or `do_center_crop=False`, resizes to `size`
            and crops nothing, as transformers' `ViTImageProcessor`.
        crop_mode (`str`, *optional*, defaults to `"center"`): What the image becomes before the crop: `"center"`, the
            smallest that covers `size / crop_pct`; `"squash"`, of just that size, whatever its aspect ratio; or
            `"border"`, the largest within it, with a border in the mean colour.
        crop_rounding (`str`, *optional*, defaults to `"nearest"`): Where the crop begins when half a pixel is over:
            `"nearest"`, as timm, or `"down"`, before it, as transformers.
        resample (`PILImageResampling`, *optional*, defaults to bicubic): Interpolation, antialiased.
        image_mean, image_std (`list[float]`, *optional*, defaults to 0.5):
            One value for each channel, for samples from 0 to 1. Their number is the number of channels that come out.
        do_convert_rgb (`bool`, *optional*, defaults to `True`): With three channels, whether other kinds of images
            become RGB, and with one, whether they become grey. Grey is repeated, colours are weighted as Pillow does,
            transparency shows white, palettes and colour spaces are converted by Pillow, 16-bit samples are scaled to
            8. 32-bit samples are refused, because nothing tells their range. A Pillow image, or a file, is turned
            upright as its EXIF orientation says; an array has none.
        do_resize, do_center_crop, do_rescale, do_normalize (`bool`, *optional*, defaults to `True`): Switch steps off.
        rescale_factor (`float`, *optional*, defaults to 1 / 255): What samples are multiplied by.

    Call it on one image or a list of Pillow images, paths, URLs, numpy arrays or torch tensors; floating-point images
    hold values from 0 to 1 and need `do_rescale=False`. Returns `pixel_values` of (B, C, height, width) with
    `return_tensors="pt"`. (transformers' pipelines open a path themselves and hand over 8-bit RGB, without transparency
    and with 16-bit samples clipped; give them the image as an array where that matters.)

    Raises:
        ValueError: for a field that does not exist, a size that is not positive, a crop_pct outside (0, 1], or an image
            with a wrong number of channels.
    """

    def process_image(self, image, **kwargs) -> np.ndarray:
        return super().process_image(image, **{**kwargs, "device": "cpu"}).numpy()

    def resize(self, image: np.ndarray, size: SizeDict, resample=None, **kwargs) -> np.ndarray:
        return resize_bands(
            image, (size.height, size.width), PILImageResampling.BILINEAR if resample is None else resample
        )


__all__ = ["VitfImageProcessorPil"]
