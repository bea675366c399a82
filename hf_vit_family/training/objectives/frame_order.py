"""
Learning in which order the frames of a clip were: frame order modelling (HERO, arXiv 2005.00200, section 3.2).

A part of a clip that has one place in time is a group: the `config.frame_stride` frames that a token stands for.
Positions in time are added by place, after the groups were shuffled, so that a model sees them at wrong times.

Shapes: B batch, T frames, G groups of a clip, C channels, H x W pixels, D channels of a feature.
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from ...data.augmentation import stack_samples
from ...errors import UserError
from ...registry import CLIPS
from .gathering import gather
from .objective import PretextObjective, Samples

NOT_SELECTED = -1


def reorder(selected: torch.Tensor, shuffled: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Shuffles some of `count` groups among themselves.

    Args:
        selected: Numbers of the groups that are shuffled, (S,). shuffled: The same in the order of their new places.

    Returns:
        `orders` (G,): the place that each group is put at; and `targets` (G,): for each place the group that is there
        now, -1 where nothing was selected (linjieli222/HERO@32c1c52 data/fom.py).
    """
    orders = torch.arange(count)
    targets = torch.full((count,), NOT_SELECTED)
    orders[selected] = shuffled
    targets[shuffled] = selected
    return orders, targets


def put_in_place(groups: torch.Tensor, orders: torch.Tensor) -> torch.Tensor:
    """Groups (B, G, ...), each at its place of `orders` (B, G)."""
    index = orders.view(*orders.shape, *[1] * (groups.ndim - 2)).expand_as(groups)
    return torch.zeros_like(groups).scatter(1, index, groups)


class OrderHead(nn.Module):
    """Features (..., D) to a number for each of `positions`, as MLPLayer of HERO's model/layers.py."""

    def __init__(self, width: int, positions: int):
        super().__init__()
        self.linear_1 = nn.Linear(width, 2 * width)
        self.layernorm = nn.LayerNorm(2 * width, eps=1e-5)
        self.linear_2 = nn.Linear(2 * width, positions)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.linear_2(self.layernorm(nn.functional.gelu(self.linear_1(features))))


@dataclass(frozen=True)
class ShuffleCollate:
    """
    Stacks clips and draws for each `orders` and `targets`, (B, G).

    Each group is selected with a probability on its own. Where fewer than two are, two that are drawn among all take
    their place, so that every clip has something to learn from; in the original a batch without any gives NaN.

    Args:
        count: G. probability: Of each group.
    """

    count: int
    probability: float

    def __call__(self, samples: Samples) -> dict[str, torch.Tensor]:
        drawn = [self._draw(torch.Generator().manual_seed(sample["seed"])) for sample in samples]
        orders, targets = (torch.stack(each) for each in zip(*drawn, strict=True))
        return {**stack_samples(samples), "orders": orders, "targets": targets}

    def _draw(self, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        selected = (torch.rand(self.count, generator=generator) < self.probability).nonzero()[:, 0]
        if len(selected) < 2:
            selected = torch.randperm(self.count, generator=generator)[:2].sort().values
        shuffled = selected[torch.randperm(len(selected), generator=generator)]
        return reorder(selected, shuffled, self.count)


class FrameOrderObjective(PretextObjective):
    """
    Frame order modelling: the cross-entropy of the original place of each group that was shuffled, among all places.

    `order_accuracy` is the part of these whose place is found.

    Args:
        model: A backbone of clips.
        count: G. probability: Of a group to be shuffled.
    """

    title = "frame order modelling (arXiv 2005.00200)"
    modalities = (CLIPS,)
    head = "Backbone"

    def __init__(self, model: PreTrainedModel, count: int, probability: float):
        super().__init__(model)
        self.collate = ShuffleCollate(count, probability)
        self.order = OrderHead(model.config.stage_channels[-1], count)

    @classmethod
    def from_options(cls, model, options, processor, image_size) -> "FrameOrderObjective":
        """
        UserError for a clip of one group, or a model none of whose layers looks at more than one: where a frame belongs
        cannot be told from itself.
        """
        frames, stride = processor.num_frames, model.config.frame_stride
        if frames % stride or frames < 2 * stride:
            raise UserError(
                f"num_frames={frames}: {cls.title} needs at least two groups of the {stride} frames that a token of "
                f"{type(model).__name__} stands for, and whole ones"
            )
        objective = cls(model, frames // stride, options.shuffle_ratio)
        if not objective.looks_further(torch.zeros(1, frames, model.config.num_channels, *image_size)):
            raise UserError(
                f"objective: no layer of this model looks at more than one group of frames, so that it cannot learn by "
                f"{cls.title}: choose another attention_type or variant"
            )
        return objective

    @torch.no_grad()
    def looks_further(self, clip: torch.Tensor) -> bool:
        """Whether what the first group is turned into can change with the second one, of a clip (1, T, C, H, W)."""
        generator, stride = torch.Generator().manual_seed(0), self.model.config.frame_stride
        clip = torch.randn(clip.shape, generator=generator)
        other = clip.clone()
        other[:, stride : 2 * stride] *= -1
        # Layers over time may start at zero, and pass nothing on yet.
        zeros = [parameter for parameter in self.model.parameters() if not parameter.any()]
        mode, _ = self.model.training, self.model.eval()
        for parameter in zeros:
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        first, second = (self.features(each)[:, 0] for each in (clip, other))
        for parameter in zeros:
            parameter.zero_()
        self.model.train(mode)
        return not torch.equal(first, second)

    def features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Clips (B, T, C, H, W) to the mean of the last map of each group, (B, G, D)."""
        return self.model(pixel_values).feature_maps[-1].mean((-2, -1))

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """Features (B, G, D) to a number for each of the places (B, G, G) that a group may come from."""
        logits = self.order(features)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        orders, targets = batch["orders"], batch["targets"]
        groups = batch["pixel_values"].unflatten(1, (orders.shape[1], -1))
        logits = self.logits(self.features(put_in_place(groups, orders).flatten(1, 2)))
        chosen = targets != NOT_SELECTED
        losses = nn.functional.cross_entropy(
            logits.transpose(1, 2), targets, ignore_index=NOT_SELECTED, reduction="none"
        )
        found = (logits.argmax(2) == targets) & chosen
        if self.training:
            # Over the clips of all processes: their gradients are averaged.
            count = gather(chosen.sum()[None]).float().mean()
            return {"loss": losses.sum() / count, "order_accuracy": found.sum() / count}
        return {"loss": losses.sum(1) / chosen.sum(1), "order_accuracy": found.sum(1) / chosen.sum(1)}
