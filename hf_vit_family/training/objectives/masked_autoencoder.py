"""
Learning to draw what was left out of an image: MAE (arXiv 2111.06377).

Shapes: B batch, N patches of an image, row by row.
"""

import math
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

from ...data.augmentation import stack_samples
from ...errors import UserError
from .objective import PretextObjective, Samples


@dataclass(frozen=True)
class NoiseCollate:
    """Stacks samples and draws for each the numbers that decide which of `count` patches are read: `noise` (B, N)."""

    count: int

    def __call__(self, samples: Samples) -> dict[str, torch.Tensor]:
        generators = [torch.Generator().manual_seed(sample["seed"]) for sample in samples]
        noise = torch.stack([torch.rand(self.count, generator=generator) for generator in generators])
        return {**stack_samples(samples), "noise": noise}


class MaeObjective(PretextObjective):
    """
    MAE: the mean squared error of the patches that the encoder did not see, as `...ForPreTraining` computes it.

    Args:
        model: A `...ForPreTraining`.
        count: N, the patches of an image.
    """

    title = "MAE (arXiv 2111.06377)"
    head = "ForPreTraining"

    def __init__(self, model: PreTrainedModel, count: int):
        super().__init__(model)
        self.collate = NoiseCollate(count)

    @classmethod
    def from_options(
        cls, model: PreTrainedModel, options, processor: BaseImageProcessor, image_size: tuple[int, int]
    ) -> "MaeObjective":
        """`options.mask_ratio` becomes the model's own."""
        if options.mask_ratio is not None:
            model.config.mask_ratio = options.mask_ratio
        count = math.prod(model.config.feature_map_sizes(*image_size)[-1])
        hidden = count - model.num_visible(count)
        if not 0 < hidden < count:
            raise UserError(
                f"mask_ratio {model.config.mask_ratio:g} hides {hidden} of the {count} patches of an image of "
                f"{image_size[0]} x {image_size[1]} pixels: choose smaller patches, or another ratio"
            )
        return cls(model, count)

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        outputs = self.model(pixel_values=batch["pixel_values"], noise=batch["noise"])
        if self.training:
            return {"loss": outputs.loss}
        errors = self.model.patch_errors(batch["pixel_values"], outputs.logits) * outputs.mask
        return {"loss": errors.sum(1) / outputs.mask.sum(1)}
