"""
Augmentation on torchvision v2, as a function of a seed: what happens to an image depends only on (seed, epoch, index),
never on how many workers load the data or on what ran before.

Shapes: B batch, C channels, H x W pixels.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
import torch
from torchvision.transforms import InterpolationMode, v2
from transformers.image_utils import PILImageResampling

from ..errors import UserError

Crop = Literal["random_resized", "random", "center"]
Policy = Literal["none", "randaugment", "trivialaugment", "autoaugment"]


@dataclass
class AugmentationConfig:
    """Options that vary training images; evaluation is never varied. Raises UserError for a value outside its range."""

    crop: Crop = field(
        default="random_resized",
        metadata={
            "help": "random_resized: a random part at random aspect (ImageNet); random: the image padded by "
            "crop_padding and cropped to size (CIFAR); center: the middle, nothing random"
        },
    )
    crop_min_scale: float = field(
        default=0.08, metadata={"help": "smallest part of the image's area that crop=random_resized keeps"}
    )
    crop_padding: int = field(default=4, metadata={"help": "zero pixels on each side before crop=random"})
    horizontal_flip: float = field(default=0.5, metadata={"help": "probability of mirroring left and right"})
    auto_augment: Policy = field(
        default="none", metadata={"help": "policy of colour and geometry changes: none, or the policy's name"}
    )
    randaugment_num_ops: int = field(default=2, metadata={"help": "changes per image for auto_augment=randaugment"})
    randaugment_magnitude: int = field(default=9, metadata={"help": "strength, 0 to 30, for auto_augment=randaugment"})
    color_jitter: float = field(
        default=0.0, metadata={"help": "largest relative change of brightness, contrast and saturation"}
    )
    random_erasing: float = field(
        default=0.0, metadata={"help": "probability of replacing a rectangle by the mean colour"}
    )
    mixup: float = field(default=0.0, metadata={"help": "alpha of MixUp (0: off)"})
    cutmix: float = field(
        default=0.0, metadata={"help": "alpha of CutMix (0: off); with MixUp, each batch draws one of the two"}
    )
    mix_probability: float = field(default=1.0, metadata={"help": "part of the batches that MixUp or CutMix changes"})
    repeated_augmentation: int = field(
        default=1, metadata={"help": "how often an epoch shows an image, in as many variations; fewer images per epoch"}
    )

    def __post_init__(self):
        for name, choices in (("crop", get_args(Crop)), ("auto_augment", get_args(Policy))):
            if getattr(self, name) not in choices:
                raise UserError(f"{name}={getattr(self, name)!r}: choose one of {', '.join(choices)}")
        for name, low, high in (
            ("crop_min_scale", 0.001, 1),
            ("crop_padding", 0, 1024),
            ("horizontal_flip", 0, 1),
            ("randaugment_num_ops", 1, 14),
            ("randaugment_magnitude", 0, 30),
            ("color_jitter", 0, 1),
            ("random_erasing", 0, 1),
            ("mixup", 0, 1000),
            ("cutmix", 0, 1000),
            ("mix_probability", 0, 1),
            ("repeated_augmentation", 1, 64),
        ):
            if not low <= getattr(self, name) <= high:
                raise UserError(f"{name}={getattr(self, name)} lies outside {low} to {high}")


def mix_seed(*numbers: int) -> int:
    """One seed of 32 bits that depends on every number, without visible relation between neighbours."""
    return int(np.random.SeedSequence([abs(n) for n in numbers]).generate_state(1)[0])


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Torch's CPU randomness follows from `seed` inside, and goes on outside as if nothing had happened."""
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would also queue a call for every accelerator
    try:
        yield
    finally:
        torch.set_rng_state(state)


class Cover(torch.nn.Module):
    """Resizes (C, H, W) with its aspect kept, so that it just covers `size` (height, width) in pixels."""

    def __init__(self, size: tuple[int, int], interpolation: InterpolationMode):
        super().__init__()
        self.size = size
        self.interpolation = interpolation

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        height, width = pixels.shape[-2:]
        scale = max(self.size[0] / height, self.size[1] / width)
        size = [max(round(height * scale), self.size[0]), max(round(width * scale), self.size[1])]
        return v2.functional.resize(pixels, size, interpolation=self.interpolation, antialias=True)


class Normalize(torch.nn.Module):
    """uint8 (C, H, W) in 0 to 255 to float32 with the processor's mean and standard deviation, given for 0 to 1."""

    def __init__(self, mean: list[float], std: list[float]):
        super().__init__()
        self.mean = torch.tensor(mean).view(-1, 1, 1) * 255
        self.std = torch.tensor(std).view(-1, 1, 1) * 255

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.float().sub_(self.mean).div_(self.std)


def training_transform(
    config: AugmentationConfig,
    size: tuple[int, int],
    mean: list[float],
    std: list[float],
    resample: PILImageResampling,
) -> Callable[[torch.Tensor], torch.Tensor]:
    """
    The random pipeline of a training image or clip: uint8 ([T,] C, any, any) to normalised float32 ([T,] C, H, W). What
    is drawn holds for all frames of a clip.

    Args:
        size: H and W. mean, std: One number for each channel. resample: How crops are resized.
    """
    interpolation = InterpolationMode[PILImageResampling(resample).name]
    fill = [round(255 * m) for m in mean]
    if config.crop == "random_resized":
        scale = (config.crop_min_scale, 1.0)
        steps = [v2.RandomResizedCrop(size, scale=scale, interpolation=interpolation, antialias=True)]
    elif config.crop == "random":
        steps = [Cover(size, interpolation), v2.RandomCrop(size, padding=config.crop_padding)]
    else:
        steps = [Cover(size, interpolation), v2.CenterCrop(size)]
    if config.horizontal_flip:
        steps.append(v2.RandomHorizontalFlip(config.horizontal_flip))
    if config.auto_augment == "randaugment":
        operations, magnitude = config.randaugment_num_ops, config.randaugment_magnitude
        steps.append(v2.RandAugment(operations, magnitude, fill=fill))
    elif config.auto_augment == "trivialaugment":
        steps.append(v2.TrivialAugmentWide(fill=fill))
    elif config.auto_augment == "autoaugment":
        steps.append(v2.AutoAugment(fill=fill))
    if config.color_jitter:
        steps.append(v2.ColorJitter(config.color_jitter, config.color_jitter, config.color_jitter))
    steps.append(Normalize(mean, std))
    if config.random_erasing:
        steps.append(v2.RandomErasing(config.random_erasing))  # 0 is the mean colour after normalisation
    return v2.Compose(steps)


class MixingCollate:
    """
    Stacks samples and mixes the batch by MixUp (arXiv 1710.09412) or CutMix (arXiv 1905.04899).

    A sample is `{"pixel_values": ([T,] C, H, W), "labels": int, "seed": int}`; the first sample's seed decides the
    mixing.

    Returns:
        `pixel_values` (B, [T,] C, H, W) and soft `labels` (B, num_labels), rows summing to 1, also where nothing was
        mixed.
    """

    def __init__(self, config: AugmentationConfig, num_labels: int):
        self.num_labels = num_labels
        self.probability = config.mix_probability
        self.mixers = []
        if config.mixup:
            self.mixers.append(v2.MixUp(alpha=config.mixup, num_classes=num_labels))
        if config.cutmix:
            self.mixers.append(v2.CutMix(alpha=config.cutmix, num_classes=num_labels))

    def __call__(self, samples: list[dict]) -> dict[str, torch.Tensor]:
        batch = stack_samples(samples)
        pixel_values, labels = batch["pixel_values"], batch["labels"]
        with seeded(samples[0]["seed"]):
            if torch.rand(()) < self.probability:
                mixer = self.mixers[int(torch.randint(len(self.mixers), ()))]
                # All frames of a clip are mixed alike: as channels.
                mixed, labels = mixer(pixel_values.flatten(1, -3), labels)
                pixel_values = mixed.view_as(pixel_values)
            else:
                labels = torch.nn.functional.one_hot(labels, self.num_labels).float()
        return {"pixel_values": pixel_values, "labels": labels}


def stack_samples(samples: list[dict]) -> dict[str, torch.Tensor]:
    """Samples to `pixel_values` (B, [T,] C, H, W) and `labels` (B,)."""
    return {
        "pixel_values": torch.stack([sample["pixel_values"] for sample in samples]),
        "labels": torch.tensor([sample["labels"] for sample in samples]),
    }
