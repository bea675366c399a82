"""
What a masked autoencoder draws where it did not look.

Shapes: B batch, C channels, H x W pixels, N patches, row by row.
"""

from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from ..errors import UserError
from ..modeling.configuration_vitf import pair


class Reconstruction(NamedTuple):
    """
    Args:
        hidden: Booleans (B, 1, H, W): the pixels that the encoder did not see.
        prediction: All pixels (B, C, H, W), normalised as the images are.
        completed: The image with the prediction in place of what was hidden, (B, C, H, W).
    """

    hidden: torch.Tensor
    prediction: torch.Tensor
    completed: torch.Tensor


@torch.no_grad()
def reconstruct(model: PreTrainedModel, pixel_values: torch.Tensor, seed: int | None = None) -> Reconstruction:
    """
    Images as a masked autoencoder completes them.

    Args:
        model: A `...ForPreTraining` in evaluation mode.
        pixel_values: (B, C, H, W). H and W of the result are those of whole patches.
        seed: Chooses the patches to hide, the same of every image; by default those of the model's evaluation mode.

    Raises:
        UserError: if the prediction is not finite.
    """
    rows, columns = model.config.feature_map_sizes(*pixel_values.shape[-2:])[-1]
    noise = None
    if seed is not None:
        noise = torch.rand(rows * columns, generator=torch.Generator().manual_seed(seed))
        noise = noise.to(pixel_values.device).expand(len(pixel_values), -1)
    outputs = model(pixel_values, noise=noise)
    prediction = model.reconstruct(pixel_values, outputs.logits)
    if not prediction.isfinite().all():
        raise UserError("the model's outputs are not finite: its weights are broken, or its precision is too low")
    height, width = pair(model.config.patch_size)
    hidden = outputs.mask.view(-1, 1, rows, columns).bool().repeat_interleave(height, 2).repeat_interleave(width, 3)
    seen = pixel_values[..., : prediction.shape[-2], : prediction.shape[-1]]
    return Reconstruction(hidden, prediction, torch.where(hidden, prediction, seen))
