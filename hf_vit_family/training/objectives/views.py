"""
Several views of an image or a video, each another random part in other colours, as functions of the seed of its sample.

Shapes: B batch, V views, T frames of a clip, which change alike, C channels, H x W pixels.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torchvision.transforms import InterpolationMode, v2
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import PILImageResampling

from .objective import Samples


@dataclass(frozen=True)
class View:
    """
    How a view is drawn. The defaults are what all views of DINO share (facebookresearch/dino@7c446df main_dino.py,
    DataAugmentationDINO), which are BYOL's and MoCo v3's too.

    Args:
        size: Height and width in pixels.
        scale: Smallest and largest part of the image's area.
        horizontal_flip: Probability of mirroring left and right.
        jitter: Largest change of brightness, contrast, saturation (relative) and hue (of the whole circle).
        jitter_probability, grayscale, blur, solarize: Probabilities of each change.
        blur_sigma: Smallest and largest standard deviation of the blur in pixels.
    """

    size: tuple[int, int]
    scale: tuple[float, float]
    horizontal_flip: float = 0.5
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)
    jitter_probability: float = 0.8
    grayscale: float = 0.2
    blur: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarize: float = 0.0


# Shares of red, green and blue in grey (ITU-R BT.601).
_GREY = torch.tensor([0.2989, 0.587, 0.114]).view(3, 1, 1)


def grey(pixels: torch.Tensor) -> torch.Tensor:
    """([T,] C, H, W) to ([T,] 1, H, W)."""
    return pixels if pixels.shape[-3] == 1 else (pixels * _GREY).sum(-3, keepdim=True)


def _blend(pixels: torch.Tensor, other: torch.Tensor | float, factor: float) -> torch.Tensor:
    return (pixels * factor + other * (1 - factor)).clamp_(0, 1)


def rotate_hue(pixels: torch.Tensor, turn: float) -> torch.Tensor:
    """Turns the hue of colours ([T,] 3, H, W) in 0 to 1 by a part of the whole circle."""
    if pixels.shape[-3] == 1:
        return pixels
    most, which = pixels.max(-3, keepdim=True)
    chroma = most - pixels.amin(-3, keepdim=True)
    red, green, blue = pixels.unbind(-3)
    # The larger of the other two decides on which side of the largest one the hue lies.
    apart = torch.stack((green - blue, blue - red, red - green), -3).gather(-3, which)
    hue = apart / chroma.clamp(min=1e-12) + 2 * which + 6 * turn
    place = (hue + torch.tensor([5.0, 3.0, 1.0]).view(3, 1, 1)) % 6
    return most - chroma * torch.minimum(place, 4 - place).clamp_(0, 1)


_CHANGES: list[Callable[[torch.Tensor, float], torch.Tensor]] = [
    lambda pixels, factor: _blend(pixels, 0.0, factor),  # brightness
    lambda pixels, factor: _blend(pixels, grey(pixels).mean(), factor),  # contrast
    lambda pixels, factor: _blend(pixels, grey(pixels), factor),  # saturation
    lambda pixels, factor: rotate_hue(pixels, factor - 1),
]


def gaussian_blur(pixels: torch.Tensor, sigma: float) -> torch.Tensor:
    """
    Blurs ([T,] C, H, W); what is beyond the edge is a mirror image. Three standard deviations count to each side.
    """
    for axis in (-2, -1):
        length = pixels.shape[axis]
        reach = min(math.ceil(3 * sigma), length - 1)
        weights = torch.arange(-reach, reach + 1).div(sigma).square().mul(-0.5).softmax(0).tolist()
        margin = (0, 0, reach, reach) if axis == -2 else (reach, reach, 0, 0)
        padded = nn.functional.pad(pixels, margin, mode="reflect")
        pixels = torch.zeros_like(pixels)
        for start, weight in enumerate(weights):  # at 224 pixels a tenth of the time of a convolution
            pixels.add_(padded.narrow(axis, start, length), alpha=weight)
    return pixels


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand(()))


class ViewTransform:
    """
    Draws a view: uint8 ([T,] C, any, any) to normalised float32 ([T,] C, H, W). What is random comes from torch's
    generator.

    These few operations on floats take less time than torchvision's modules, which check and convert at each step; the
    colours are the same.
    """

    def __init__(self, view: View, mean: Sequence[float], std: Sequence[float], interpolation: InterpolationMode):
        self.view = view
        self.crop = v2.RandomResizedCrop(view.size, scale=view.scale, interpolation=interpolation, antialias=True)
        self.mean, self.std = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        view = self.view
        pixels = self.crop(pixels).float().div_(255)
        flip, jitter, to_grey, blur, solarize = torch.rand(5).tolist()
        if flip < view.horizontal_flip:
            pixels = pixels.flip(-1)
        if jitter < view.jitter_probability:
            for index in torch.randperm(4).tolist():
                if view.jitter[index]:
                    factor = _uniform(1 - view.jitter[index], 1 + view.jitter[index])
                    pixels = _CHANGES[index](pixels, factor)
        if to_grey < view.grayscale:
            pixels = grey(pixels).expand_as(pixels)
        if blur < view.blur and view.blur_sigma[1]:
            pixels = gaussian_blur(pixels, _uniform(*view.blur_sigma))
        if solarize < view.solarize:
            pixels = torch.where(pixels < 128 / 255, pixels, 1 - pixels)
        return (pixels - self.mean) / self.std


class Views:
    """
    An image as its views: uint8 (C, any, any) to a list of float32 (C, H, W), the views in their order.

    What is drawn comes from torch's generator, which the data sets seed for each sample by (seed, epoch, example), and
    in evaluation by the example.

    Args:
        views: Those of one size follow each other.
        processor: Gives mean, standard deviation and how images are resized.
    """

    def __init__(self, views: Sequence[View], processor: BaseImageProcessor):
        interpolation = InterpolationMode[PILImageResampling(processor.resample).name]
        self.size = views[0].size
        statistics = processor.image_mean, processor.image_std
        self.transforms = [ViewTransform(view, *statistics, interpolation) for view in views]

    def __call__(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        return [transform(pixels) for transform in self.transforms]


class ClipViews(Views):
    """
    A video as its views, each of another clip: a list of uint8 (T, C, any, any) to one of float32 (T, C, H, W).

    `clips` is their number.
    """

    @property
    def clips(self) -> int:
        return len(self.transforms)

    def __call__(self, pixels: list[torch.Tensor]) -> list[torch.Tensor]:
        return [transform(clip) for transform, clip in zip(self.transforms, pixels, strict=True)]


def stack_views(samples: Samples) -> dict[str, torch.Tensor]:
    """
    Samples whose `pixel_values` are lists of views, to a batch: `pixel_values` (B, V, [T,] C, H, W) of the views that
    have the size of the first, `local_values` of the others, where there are any, and `labels` (B,).
    """
    views = [torch.stack(same) for same in zip(*(sample["pixel_values"] for sample in samples), strict=True)]
    batch = {"labels": torch.tensor([sample["labels"] for sample in samples])}
    of_first_size = [view for view in views if view.shape == views[0].shape]
    others = [view for view in views if view.shape != views[0].shape]
    batch["pixel_values"] = torch.stack(of_first_size, dim=1)
    if others:
        batch["local_values"] = torch.stack(others, dim=1)
    return batch
