"""Learning from labels.

Shapes: B batch, C classes.
"""

from collections.abc import Callable

import torch
from torch import nn
from transformers import PreTrainedModel

from .objective import Objective

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def soft_targets(labels: torch.Tensor, num_labels: int, smoothing: float) -> torch.Tensor:
    """
    Labels as distributions, smoothed.

    Args:
        labels: `(B,)` class indices or `(B, C)` shares that sum to 1, as MixUp and CutMix give.
        smoothing: Share of each target that is spread evenly over all C classes (arXiv 1512.00567, section 7).

    Returns:
        `(B, C)` floats.
    """
    if labels.ndim == 1:
        labels = nn.functional.one_hot(labels, num_labels).float()
    return labels * (1 - smoothing) + smoothing / num_labels


def make_loss(name: str, smoothing: float) -> Loss:
    """
    A loss of logits `(B, C)` and labels as in `soft_targets`: `"cross_entropy"`, or `"bce"`, the mean over batch and
    classes of binary cross-entropies (arXiv 2110.00476, section 4.1).
    """

    def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(logits, labels, label_smoothing=smoothing)

    def bce(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        targets = soft_targets(labels, logits.shape[-1], smoothing)
        return nn.functional.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype))

    return {"cross_entropy": cross_entropy, "bce": bce}[name]


def head_logits(outputs) -> list[torch.Tensor]:
    """The logits of each head of a classifier's output: two for a distilled DeiT, its class head first, else one."""
    if getattr(outputs, "distillation_logits", None) is not None:
        return [outputs.cls_logits, outputs.distillation_logits]
    return [outputs.logits]


class ClassificationObjective(Objective):
    """
    The loss of the labels, averaged over the model's heads, and the accuracy of its prediction.

    Args:
        model: An image classifier. Where its backbone is frozen (no parameter of it has a gradient), the backbone stays
            in evaluation mode: a linear probe learns from what inference will see.
        loss: What `make_loss` returns.
    """

    def __init__(self, model: PreTrainedModel, loss: Loss):
        super().__init__(model)
        self.loss = loss
        self.frozen_backbone = not any(p.requires_grad for p in model.base_model.parameters())

    def train(self, mode: bool = True) -> "ClassificationObjective":
        super().train(mode)
        if self.frozen_backbone:
            self.model.base_model.eval()
        return self

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        outputs = self.model(pixel_values=batch["pixel_values"])
        if "labels" not in batch:
            return {"logits": outputs.logits}
        losses = self.losses(outputs, batch)
        with torch.no_grad():
            labels = batch["labels"]
            hits = outputs.logits.argmax(-1) == (labels if labels.ndim == 1 else labels.argmax(-1))
        return {**losses, "accuracy": hits.float().mean()}

    def losses(self, outputs, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """`loss` from the classifier's outputs, and its parts where it has several."""
        heads = head_logits(outputs)
        return {"loss": sum(self.loss(logits, batch["labels"]) for logits in heads) / len(heads)}
