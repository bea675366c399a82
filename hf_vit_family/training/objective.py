"""What the training loop minimises."""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel


class Objective(nn.Module):
    """
    Base of everything the loop can train: it holds the model in training as `model`, and whatever else the loss needs,
    and goes through `accelerator.prepare` as a whole.

    Args:
        model: The model in training, and what is saved in the end.
    """

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """
        Returns `loss`, a scalar with a gradient, and scalar metrics to log, without.

        With no `labels` in the batch, that is in evaluation: `logits` (B, num_labels).
        """
        raise NotImplementedError

    def after_step(self, step: int) -> None:
        """Called after optimiser step `step`, counted from 1: the place to move a momentum teacher."""


class Frozen(nn.Module):
    """
    A module that is not in training: no gradients, in evaluation mode whatever `train()` says, and left out of
    checkpoints, since it comes from a file of its own.
    """

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "Frozen":
        return super().train(False)

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)
