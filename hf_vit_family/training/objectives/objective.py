"""The base classes of what the training loop minimises."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

from ...data.augmentation import stack_samples
from ...registry import IMAGES, Modality

Samples = list[dict[str, Any]]


class Objective(nn.Module):
    """
    Base of everything the loop can train: it holds the model in training as `model`, and whatever else the loss needs,
    and goes through `accelerator.prepare` as a whole. Other modules and parameters that it has are trained with the
    model, and kept in checkpoints only.

    Args:
        model: The model in training, and what is saved in the end.
    """

    # Of what an evaluation measures, what tells which checkpoint is the best, unless the user says otherwise.
    best_metric: ClassVar[str] = "accuracy"
    # The module whose weights are saved in the end, with the configuration of `model`.
    saved: ClassVar[str] = "model"
    # Whether weight decay also acts on norms, biases, positions and tokens.
    decays_vectors: ClassVar[bool] = False

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """
        Returns `loss`, a scalar with a gradient, and scalar metrics to log, without.

        With no `labels` in the batch, that is in evaluation: `logits` (B, num_labels).
        """
        raise NotImplementedError

    def names_without_decay(self) -> set[str]:
        """The parameters of `model` that weight decay leaves alone."""
        return set() if self.decays_vectors else self.model.parameters_without_decay()

    def begin(self, total_steps: int, steps_per_epoch: int | None, step: int) -> None:
        """
        Called once before training, or before it goes on after `step` steps: what schedules need to know. A stream has
        no known `steps_per_epoch`.
        """

    def before_step(self, step: int) -> None:
        """Called before the forward passes of optimiser step `step`, counted from 0."""

    def after_backward(self, step: int) -> None:
        """Called when the gradients of optimiser step `step`, counted from 0, are complete and clipped."""

    def after_step(self, step: int) -> None:
        """Called after optimiser step `step`, counted from 1: the place to move a momentum teacher."""

    def watch(self, means: dict[str, float]) -> str | None:
        """What a user should hear of the metrics of a line of the log, which are means over steps."""
        return None


class PretextObjective(Objective):
    """
    Base of objectives that learn from images, or clips of videos, without labels.

    `collate` makes a batch from a list of samples, `{"pixel_values": ([T,] C, H, W), "labels": int, "seed": int}`. It
    draws what is random from the seed of each sample, which follows from (seed, epoch, example) in training and from
    the example in evaluation: a run that is resumed, or shared by several processes, then learns the same. It runs in
    loader processes, so that it must be a function or an object that can be pickled. By default it stacks pixels and
    labels, the latter to tell images that could not be read (-100) and for nothing else.

    `forward` returns `loss`, and scalar metrics to log; in evaluation mode instead, by name, one number for each
    example (B,), among them `loss`, which are averaged over the images that could be read.
    """

    best_metric = "loss"
    # What it learns from.
    modalities: ClassVar[tuple[Modality, ...]] = (IMAGES,)
    # Whether labels are read.
    labelled: ClassVar[bool] = False
    # Options that have no meaning here, and why, as the end of a sentence.
    refused: ClassVar[dict[str, str]] = {}
    # What the records of a run and the card call it, with its source.
    title: ClassVar[str]
    # The class of the model that is trained and saved, a suffix as in `create_model`.
    head: ClassVar[str] = "Model"

    def __init__(self, model: PreTrainedModel):
        super().__init__(model)
        self.collate: Callable[[Samples], dict[str, torch.Tensor]] = stack_samples

    @classmethod
    def from_options(
        cls, model: PreTrainedModel, options: Any, processor: BaseImageProcessor, image_size: tuple[int, int]
    ) -> "PretextObjective":
        """
        The objective for a model, with the [`~config.ObjectiveOptions`] of a run, the processor of its images, and
        their height and width in pixels. One that needs none of these leaves it as it is.
        """
        return cls(model)

    def image_transform(self, horizontal_flip: float) -> Callable[[torch.Tensor], Any] | None:
        """
        What makes the `pixel_values` of a sample of an image, uint8 (C, any, any), in training and in evaluation, with
        what is random from torch's generator, which is seeded for each sample. None for what the options of the data
        say, and the processor in evaluation.

        One with an attribute `clips` gets a list of so many clips of a video, uint8 (T, C, any, any), each with frames
        that are drawn anew.

        Args:
            horizontal_flip: Probability of mirroring left and right.
        """
        return None


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
