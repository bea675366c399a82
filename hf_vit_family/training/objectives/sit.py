"""
Group masked model learning with contrast, SiT (arXiv 2104.03602): groups of pixels are replaced, and the model tells
what was there and which image it is. Definitions are those of Sara-Ahmed/SiT, of its released version @7f22e9c and of
its first one @726bc6e.

Shapes: B examples, V = 2 views, C channels, H x W pixels, D channels of a projection.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from transformers import PreTrainedModel

from ...errors import UserError
from ...registry import IMAGES
from ..config import ObjectiveOptions
from .contrastive import ContrastiveObjective, Head, MomentumContrast, batch_contrast, nt_xent
from .gathering import gather
from .objective import Samples
from .views import View, stack_views

# From (low, high), a whole number of low to high - 1.
Draw = Callable[[int, int], int]
# What corrupted pixels become: 0, noise, what is elsewhere in the image, or what is there in another image.
Corruption = Literal["zeros", "noise", "copy", "other"]


def draw_groups(
    size: tuple[int, int], share: float, align: int, draw: Draw, elsewhere: bool = False
) -> list[tuple[int, ...]]:
    """
    Rectangles that together cover a share of an image, as (row, column, height, width) and, with `elsewhere`, the row
    and column of a place to copy from. Each has up to 0.3 of the image's height and width, and they may overlap.

    Args:
        size: H and W. share: Of all pixels. align: What rows, columns, heights and widths are multiples of.
        draw: Gives the random numbers, of each rectangle row, column, height, width, and what is elsewhere.
    """
    height, width = size
    covered = torch.zeros(size, dtype=torch.bool)
    groups = []
    while covered.sum() < share * height * width:
        row = draw(0, height - align) // align * align
        column = draw(0, width - align) // align * align
        # round() goes to the even neighbour of a half, and a group may have no pixels.
        rows = round(min(draw(align, int(0.3 * height)), height - row) / align) * align
        columns = round(min(draw(align, int(0.3 * width)), width - column) / align) * align
        place = (draw(0, height - rows), draw(0, width - columns)) if elsewhere else ()
        covered[row : row + rows, column : column + columns] = True
        groups.append((row, column, rows, columns, *place))
    return groups


def corrupt(
    image: torch.Tensor, groups: list[tuple[int, ...]], replacement: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    An image (C, H, W) whose groups show another one's pixels, or copies from elsewhere in it, and which pixels these
    are, (H, W) booleans.

    Args:
        replacement: (C, H, W); None for copies.
    """
    changed, mask = image.clone(), torch.zeros(image.shape[1:], dtype=torch.bool)
    for row, column, rows, columns, *place in groups:
        here = slice(row, row + rows), slice(column, column + columns)
        if replacement is None:
            from_row, from_column = place
            part = image[:, from_row : from_row + rows, from_column : from_column + columns]
        else:
            part = replacement[:, *here]
        changed[:, *here] = part
        mask[here] = True
    return changed, mask


def masked_error(reconstruction: torch.Tensor, target: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """
    The sum (...,) over the pixels under a mask (..., H, W) of the absolute error of images (..., C, H, W), as a mean
    over channels.
    """
    return ((reconstruction - target).abs().mean(-3) * mask).sum((-2, -1))


@dataclass(frozen=True)
class CorruptViewsCollate:
    """
    Stacks views (B, V, C, H, W) and corrupts them: also `corrupted`, and `mask` (B, V, H, W), True for changed pixels.

    Args:
        share: Of the pixels. align: As in `draw_groups`. corruption: What pixels become.
        rotate: Whether all views of an image are turned first by a quarter of a circle, up to three times: then
            `rotation` (B,) says how often.
    """

    share: float
    align: int
    corruption: Corruption
    rotate: bool = False

    def __call__(self, samples: Samples) -> dict[str, torch.Tensor]:
        batch = stack_views(samples)
        views = batch["pixel_values"]
        generators = [torch.Generator().manual_seed(sample["seed"]) for sample in samples]
        if self.rotate:
            turns = [int(torch.randint(4, (), generator=generator)) for generator in generators]
            views = torch.stack([torch.rot90(view, k, (2, 3)) for view, k in zip(views, turns, strict=True)])
            batch |= {"pixel_values": views, "rotation": torch.tensor(turns)}
        corrupted, mask = views.clone(), torch.zeros(*views.shape[:2], *views.shape[3:], dtype=torch.bool)
        for example, generator in enumerate(generators):
            # Neighbours lend each other pixels, so that it does not matter how processes share a batch.
            partner = example ^ 1 if example ^ 1 < len(views) else example
            for index, image in enumerate(views[example]):
                groups = self._groups(tuple(image.shape[1:]), generator)
                replacement = {
                    "zeros": lambda image=image: torch.zeros_like(image),
                    "noise": lambda image=image, generator=generator: torch.randn(image.shape, generator=generator),
                    "copy": lambda: None,
                    "other": lambda partner=partner, index=index: views[partner, index],
                }[self.corruption]()
                corrupted[example, index], mask[example, index] = corrupt(image, groups, replacement)
        return {**batch, "corrupted": corrupted, "mask": mask}

    def _groups(self, size: tuple[int, int], generator: torch.Generator) -> list[tuple[int, ...]]:
        def draw(low: int, high: int) -> int:
            return int(torch.randint(low, high, (), generator=generator))

        return draw_groups(size, self.share, self.align, draw, self.corruption == "copy")


class ReconstructionHead(nn.Module):
    """The last feature map (B, D, h, w) to pixels (B, C, H, W): three linear layers with GELU, then a patch a token."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        config = model.config
        width, patch = config.stage_channels[-1], config.stage_strides[-1]
        layers = [layer for _ in range(3) for layer in (nn.Conv2d(width, width, 1), nn.GELU())]
        self.layers = nn.Sequential(*layers, nn.ConvTranspose2d(width, config.num_channels, patch, stride=patch))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.layers(features)


class _Groups(ContrastiveObjective):
    """What both versions share: corrupted views, and their reconstruction."""

    modalities = (IMAGES,)
    rotates = False

    @classmethod
    def from_options(cls, model, options, processor, image_size) -> "_Groups":
        objective = super().from_options(model, options, processor, image_size)
        objective.add_groups(options, image_size)
        return objective

    def add_groups(self, options: ObjectiveOptions, image_size: tuple[int, int]) -> None:
        """Adds what reconstructs, and how views are corrupted. UserError for a size that does not fit."""
        align, share = options.corruption_align, 0.5 if options.mask_ratio is None else options.mask_ratio
        if any(int(0.3 * side) <= align for side in image_size):
            raise UserError(
                f"corruption_align {align}: groups have at most 0.3 of an image's height and width, so that it is less "
                f"than {int(0.3 * min(image_size))} for images of {image_size[0]} x {image_size[1]} pixels"
            )
        if self.rotates and image_size[0] != image_size[1]:
            raise UserError(f"image_size {image_size[0]} x {image_size[1]}: images that are turned must be square")
        self.decoder = ReconstructionHead(self.model)
        self.reconstruction_weight = options.reconstruction_weight
        self.collate = CorruptViewsCollate(share, align, options.corruption, self.rotates)

    @classmethod
    def views_of(cls, options: ObjectiveOptions) -> list[View]:
        return [View((0, 0), (0.2, 1.0), blur=1.0), View((0, 0), (0.2, 1.0), blur=0.1, solarize=0.2)]

    def encode(self, corrupted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of views (B, V, C, H, W) pooled features (V, B, ...) and reconstructions (B, V, C, H, W)."""
        count, views, *_, height, width = corrupted.shape
        outputs = self.model(corrupted.transpose(0, 1).flatten(0, 1))
        pixels = self.decoder(self.model.feature_map(outputs.last_hidden_state, height, width))
        if pixels.shape[-2:] != (height, width):
            rows, columns = self.model.config.stage_strides[-1]
            raise ValueError(
                f"image size {height}x{width}: it is a multiple of the {rows}x{columns} pixels that a token stands for"
            )
        return outputs.pooler_output.unflatten(0, (views, count)), pixels.unflatten(0, (views, count)).transpose(0, 1)


class SitObjective(_Groups, MomentumContrast):
    """
    The released version: the model sees corrupted views, its moving average clean ones. The loss is MoCo v3's between
    both, without a predictor, and the mean absolute error of the pixels that were replaced.

    Metrics are also its parts, `contrast` and `reconstruction`. The average moves after a step, as DINO's does.
    """

    title = "SiT (arXiv 2104.03602)"
    projection = Head(layers=3, hidden_size=2048, out_size=256)
    temperature = 0.2
    published_momentum = 0.996
    follows_the_step = True

    def losses(self, batch):
        features, pixels = self.encode(batch["corrupted"])
        students = torch.stack([self.projector(each) for each in features])
        teachers = self.project(batch["pixel_values"], self.teacher, self.teacher_projector)
        contrast = sum(
            batch_contrast(students[i], teachers[1 - i], self.contrast_temperature, everyone=self.training)
            for i in (0, 1)
        )
        errors = masked_error(pixels, batch["pixel_values"], batch["mask"]).sum(1)
        counts = batch["mask"].flatten(1).sum(1).to(errors.dtype)
        # Of a batch the mean over all replaced pixels, of whichever image.
        errors = errors / (gather(counts).mean() if self.training else counts)
        losses = contrast + self.reconstruction_weight * errors
        return {"loss": losses, "contrast": contrast, "reconstruction": errors}, students[0], teachers[1]


class SitTasksObjective(_Groups):
    """
    The first version: of corrupted views the model tells by how much they are turned, which belong together (NT-Xent)
    and, of all pixels, what they were. The three losses are weighted by what is learnt of their uncertainty.

    Metrics are also these losses, `rotation`, `contrast` and `reconstruction`.
    """

    title = "SiT with three tasks (arXiv 2104.03602v1)"
    projection = Head(layers=1, hidden_size=None, out_size=512, last_norm=False, last_bias=True)
    temperature = 0.5
    rotates = True

    def __init__(self, model: PreTrainedModel, projector: nn.Module, *args: Any, **kwargs: Any):
        super().__init__(model, projector, *args, **kwargs)
        self.rotation = nn.Linear(model.config.pooler_output_size, 4)
        self.uncertainties = nn.Parameter(torch.ones(3))

    def losses(self, batch):
        features, pixels = self.encode(batch["corrupted"])
        turns = batch["rotation"].repeat(2)
        rotation = nn.functional.cross_entropy(self.rotation(features).flatten(0, 1), turns, reduction="none")
        views = torch.stack([self.projector(each) for each in features])
        parts = {
            "rotation": rotation.view(2, -1).mean(0),
            "contrast": nt_xent(views, self.contrast_temperature, everyone=self.training),
            "reconstruction": (pixels - batch["pixel_values"]).abs().flatten(1).mean(1),
        }
        return {"loss": weigh(parts.values(), self.uncertainties), **parts}, *views


def weigh(parts: Iterable[torch.Tensor], uncertainties: torch.Tensor) -> torch.Tensor:
    """
    The losses of rotation, contrast and reconstruction as one: each times `exp(-s)`, the last one halved, plus `s / 2`.

    Args:
        parts: Three, of one shape. uncertainties: (3,), s of each.
    """
    factors = (1.0, 1.0, 0.5)
    weighed = [a * (-s).exp() * each + s / 2 for a, s, each in zip(factors, uncertainties, parts, strict=True)]
    return weighed[0] + weighed[1] + weighed[2]
