"""
Learning that two views of an image, or of two clips of a video, are of the same one: SimCLR (arXiv 2002.05709), MoCo
(arXiv 1911.05722 and 2003.04297), MoCo v3 (arXiv 2104.02057), BYOL (arXiv 2006.07733), and with labels supervised
contrastive learning (arXiv 2004.11362).

Shapes: B examples of this process, N of all processes, D channels of a projection, K keys of a queue, C channels, H x W
pixels. Losses are of each example, (B,), and their mean over all processes is the loss.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

from ...errors import UserError
from ...registry import CLIPS, IMAGES, modality_of
from ..config import ObjectiveOptions
from ..optim import cosine
from .dino import DinoObjective
from .gathering import GatheredBatchNorm1d, gather, process_index
from .momentum import MomentumTeacher
from .objective import PretextObjective
from .views import ClipViews, View, Views, stack_views

# Projections that are spread evenly over the sphere have a `spread` of 1; one direction for all images has 0.
_COLLAPSED = 0.05


def unit(features: torch.Tensor) -> torch.Tensor:
    """Vectors of length 1, in float32 or what is more precise."""
    return nn.functional.normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=-1)


# Losses


def _pair_logits(views: torch.Tensor, everyone: bool, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Similarities over the temperature of each view to all views of all examples, (2B, 2N), that of a view to itself at
    minus infinity; and the place of each view among them, (2B,).

    Args:
        views: (2, B, D). everyone: Whether N is the examples of all processes.
    """
    own = unit(views)
    others = gather(own.transpose(0, 1)).transpose(0, 1) if everyone else own
    count, total = own.shape[1], others.shape[1]
    first = process_index() * count if everyone else 0
    places = torch.arange(first, first + count, device=views.device)
    places = torch.cat((places, places + total))
    logits = own.flatten(0, 1) @ others.flatten(0, 1).T / temperature
    return logits.scatter(1, places[:, None], -math.inf), places


def nt_xent(views: torch.Tensor, temperature: float, everyone: bool = False) -> torch.Tensor:
    """
    The normalised temperature-scaled cross-entropy (arXiv 2002.05709, equation 1) of each example (B,), the mean of its
    two views: among all other views of all examples, which is the other one of the same image? The published TensorFlow
    code has the sum of both views instead.

    Args:
        views: (2, B, D) projections. everyone: Whether the examples of all processes are among the others.
    """
    logits, places = _pair_logits(views, everyone, temperature)
    half = logits.shape[1] // 2
    losses = nn.functional.cross_entropy(logits, (places + half) % (2 * half), reduction="none")
    return losses.view(2, -1).mean(0)


def supervised_contrast(
    views: torch.Tensor, labels: torch.Tensor, temperature: float, everyone: bool = False
) -> torch.Tensor:
    """
    The supervised contrastive loss with the sum outside of the logarithm (arXiv 2004.11362, equation 2) of each example
    (B,), the mean of its two views: all other views of the same class are right.

    Args:
        views: (2, B, D) projections. labels: (B,). everyone: As in `nt_xent`.
    """
    logits, places = _pair_logits(views, everyone, temperature)
    others = gather(labels) if everyone else labels
    same = labels.repeat(2)[:, None] == others.repeat(2)
    same = same.scatter(1, places[:, None], False)
    log_probabilities = logits.log_softmax(1).masked_fill(~same, 0)
    return -(log_probabilities.sum(1) / same.sum(1)).view(2, -1).mean(0)


def batch_contrast(
    queries: torch.Tensor, keys: torch.Tensor, temperature: float, everyone: bool = False
) -> torch.Tensor:
    """
    MoCo v3's loss of one direction (arXiv 2104.02057, algorithm 1): the cross-entropy of each query (B, D) among the
    keys of all examples (B, D), times twice the temperature.
    """
    queries, keys = unit(queries), unit(keys)
    everything = gather(keys) if everyone else keys
    first = process_index() * len(queries) if everyone else 0
    labels = torch.arange(first, first + len(queries), device=queries.device)
    logits = queries @ everything.T / temperature
    return 2 * temperature * nn.functional.cross_entropy(logits, labels, reduction="none")


def regression(predictions: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """BYOL's loss of one direction: the squared distance (B,) of unit vectors (arXiv 2006.07733, equation 2)."""
    return (unit(predictions) - unit(targets)).square().sum(-1)


def spread(features: torch.Tensor) -> torch.Tensor:
    """
    The standard deviation over examples of each channel of unit vectors (..., D), times the root of D, as a mean over
    channels: 1 where they are spread evenly, 0 where all are one (arXiv 2011.10566, section 4.1).
    """
    return unit(features).flatten(0, -2).std(0, unbiased=False).mean() * features.shape[-1] ** 0.5


# Heads


@dataclass(frozen=True)
class Head:
    """
    A projection of features, as the published code has it.

    Args:
        layers: Linear layers.
        hidden_size: Width of those between; None for that of the features.
        out_size: D.
        hidden_norm, last_norm: Whether a batch norm follows a layer between, and the last one.
        last_affine: Whether the last one has scales and offsets.
        hidden_bias, last_bias: Whether linear layers have biases.
    """

    layers: int
    hidden_size: int | None
    out_size: int
    hidden_norm: bool = True
    last_norm: bool = True
    last_affine: bool = False
    hidden_bias: bool = False
    last_bias: bool = False

    def build(self, in_features: int) -> nn.Sequential:
        """From (B, in_features) to (B, D), with ReLU between layers."""
        widths = [in_features, *[self.hidden_size or in_features] * (self.layers - 1), self.out_size]
        modules: list[nn.Module] = []
        for number, (width, next_width) in enumerate(itertools.pairwise(widths), 1):
            is_last = number == self.layers
            modules.append(nn.Linear(width, next_width, bias=self.last_bias if is_last else self.hidden_bias))
            if self.last_norm if is_last else self.hidden_norm:
                modules.append(GatheredBatchNorm1d(next_width, affine=self.last_affine or not is_last))
            if not is_last:
                modules.append(nn.ReLU(inplace=True))
        return nn.Sequential(*modules)


# Views. google-research/simclr@383d414 data_util.py; facebookresearch/moco@2eeee76 main_moco.py, version 1 and 2; and
# those of BYOL, which MoCo v3 shares (facebookresearch/moco-v3@c349e6e main_moco.py).
_ANY = (0, 0)  # the size is that of the run
_WIDE, _NARROW = (0.08, 1.0), (0.2, 1.0)
_SIMCLR = [View(_ANY, _WIDE, jitter=(0.8, 0.8, 0.8, 0.2), blur=0.5)] * 2
_MOCO = {
    1: [View(_ANY, _NARROW, jitter=(0.4, 0.4, 0.4, 0.4), jitter_probability=1.0)] * 2,
    2: [View(_ANY, _NARROW, jitter=(0.4, 0.4, 0.4, 0.1), blur=0.5)] * 2,
}
_BYOL = [View(_ANY, _WIDE, blur=1.0), View(_ANY, _WIDE, blur=0.1, solarize=0.2)]


class ContrastiveObjective(PretextObjective):
    """
    Base of objectives on two views of each image, which a model and a `projector` see.

    Metrics are also `similarity`, the mean cosine between both views' projections, and in training `spread`, which
    tells of a collapse.

    Args:
        model: A base model with a `pooler_output`: what is trained and saved.
        projector: From (B, features) to (B, D).
        temperature: Of similarities, where the loss has one.
        views: How views are drawn. processor: What normalises and resizes them.
    """

    head = "Model"
    modalities = (IMAGES, CLIPS)
    refused = {
        name: "its views are drawn by options of their own, such as jitter_strength"
        for name in DinoObjective.refused
        if name != "ema_decay"
    }
    # What the options leave open.
    projection: ClassVar[Head]
    temperature: ClassVar[float | None] = None
    # Whether both views go through the networks as one batch: batch norms then see both.
    one_pass: ClassVar[bool] = False

    def __init__(
        self,
        model: PreTrainedModel,
        projector: nn.Module,
        temperature: float | None = None,
        views: Sequence[View] = (),
        processor: BaseImageProcessor | None = None,
    ):
        super().__init__(model)
        self.projector = projector
        self.contrast_temperature = temperature if temperature is not None else self.temperature
        self.views, self.processor = views, processor
        self.collate = stack_views
        self._has_collapsed = False

    # From options

    @classmethod
    def head_of(cls, options: ObjectiveOptions) -> Head:
        """The projection with what the options say of it."""
        given = {
            "layers": options.projection_layers,
            "hidden_size": options.projection_hidden_size,
            "out_size": options.projection_size,
        }
        return replace(cls.projection, **{name: value for name, value in given.items() if value is not None})

    @classmethod
    def views_of(cls, options: ObjectiveOptions) -> list[View]:
        """The published views, without their size."""
        raise NotImplementedError

    @classmethod
    def parts(
        cls, model: PreTrainedModel, options: ObjectiveOptions, image_size: tuple[int, int]
    ) -> tuple[nn.Module, float | None, list[View]]:
        """Projector, temperature and views."""
        sigma = (min(0.1, options.blur_sigma), options.blur_sigma)
        strength, scale = options.jitter_strength, options.view_scale
        views = [
            replace(
                view,
                size=image_size,
                jitter=tuple(strength * each for each in view.jitter),
                blur_sigma=sigma,
                scale=view.scale if scale is None else tuple(scale),
            )
            for view in cls.views_of(options)
        ]
        most = 1 / max(max(view.jitter) for view in cls.views_of(options))
        if strength > most:
            raise UserError(f"option 'jitter_strength' is at most {most:g} for {cls.title}, not {strength:g}")
        temperature = options.contrast_temperature
        if temperature is not None and cls.temperature is None:
            raise UserError(f"option 'contrast_temperature' has no meaning for {cls.title}, whose loss has none")
        return cls.head_of(options).build(model.config.pooler_output_size), temperature, views

    @classmethod
    def from_options(
        cls,
        model: PreTrainedModel,
        options: ObjectiveOptions,
        processor: BaseImageProcessor,
        image_size: tuple[int, int],
    ) -> "ContrastiveObjective":
        projector, temperature, views = cls.parts(model, options, image_size)
        return cls(model, projector, temperature, views, processor)

    def image_transform(self, horizontal_flip: float) -> Callable[[torch.Tensor], Any]:
        views = [replace(view, horizontal_flip=horizontal_flip) for view in self.views]
        return (ClipViews if modality_of(self.processor) is CLIPS else Views)(views, self.processor)

    # The loss

    def project(self, pixel_values: torch.Tensor, *networks: nn.Module) -> torch.Tensor:
        """
        What networks, one after the other, make of views (B, V, [T,] C, H, W): (V, B, D). The first is a model.
        """
        views = pixel_values.transpose(0, 1)
        if self.one_pass:
            return self._through(views.flatten(0, 1), networks).unflatten(0, (len(views), -1))
        return torch.stack([self._through(view, networks) for view in views])

    @staticmethod
    def _through(pixels: torch.Tensor, networks: Sequence[nn.Module]) -> torch.Tensor:
        model, *heads = networks
        features = model(pixels).pooler_output
        for each in heads:
            features = each(features)
        return features

    def losses(self, batch: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
        """
        The `loss` of each example (B,) and its parts where it has several; and what is compared of its two views,
        (B, D) each.
        """
        raise NotImplementedError

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        losses, first, second = self.losses(batch)
        first, second = first.detach(), second.detach()
        similarity = nn.functional.cosine_similarity(first, second, dim=-1)
        if not self.training:
            return {**losses, "similarity": similarity}
        means = {name: each.mean() for name, each in losses.items()}
        return {**means, "similarity": similarity.mean(), "spread": spread(first)}

    def watch(self, means: dict[str, float]) -> str | None:
        before, self._has_collapsed = self._has_collapsed, means["spread"] < _COLLAPSED
        if before or not self._has_collapsed:
            return None
        return (
            f"the training has collapsed: all images have nearly the same projection (their spread is "
            f"{means['spread']:.4f}, where 1 is even): try a lower lr, a longer warm-up or a larger batch_size"
        )


class SimclrObjective(ContrastiveObjective):
    """SimCLR: NT-Xent among both views of all images of the batch."""

    title = "SimCLR (arXiv 2002.05709)"
    projection = Head(layers=2, hidden_size=None, out_size=128, last_affine=True)
    temperature = 0.1
    one_pass = True

    @classmethod
    def views_of(cls, options: ObjectiveOptions) -> list[View]:
        return _SIMCLR

    def losses(self, batch):
        views = self.project(batch["pixel_values"], self.model, self.projector)
        return {"loss": nt_xent(views, self.contrast_temperature, everyone=self.training)}, *views


class SupconObjective(SimclrObjective):
    """Supervised contrastive learning: every view of the same class is right. It reads labels."""

    title = "supervised contrastive learning (arXiv 2004.11362)"
    labelled = True
    # Section 3.1 of the paper.
    projection = Head(
        layers=2,
        hidden_size=2048,
        out_size=128,
        hidden_norm=False,
        last_norm=False,
        hidden_bias=True,
        last_bias=True,
    )
    decays_vectors = True

    def losses(self, batch):
        views = self.project(batch["pixel_values"], self.model, self.projector)
        losses = supervised_contrast(views, batch["labels"], self.contrast_temperature, everyone=self.training)
        return {"loss": losses}, *views


class MomentumContrast(ContrastiveObjective):
    """
    Base of objectives whose second network is a moving average of model and projector.

    Args:
        momentum: Share that a step keeps of the average, at the start.
    """

    # What the option `teacher_momentum` leaves open.
    published_momentum: ClassVar[float]
    # Of the momentum: whether a cosine leads to 1 at the end.
    rising: ClassVar[bool] = True
    # Whether the average takes in the weights that a step ends with, or those that it starts from.
    follows_the_step: ClassVar[bool] = False

    def __init__(self, model: PreTrainedModel, projector: nn.Module, momentum: float, *args: Any, **kwargs: Any):
        super().__init__(model, projector, *args, **kwargs)
        self.teacher = MomentumTeacher(model)
        self.teacher_projector = MomentumTeacher(projector)
        self.momentum = momentum
        self.total_steps = 1

    @classmethod
    def momentum_of(cls, options: ObjectiveOptions) -> float:
        """What the options say, or what was published."""
        return cls.published_momentum if options.teacher_momentum is None else options.teacher_momentum

    @classmethod
    def from_options(cls, model, options, processor, image_size) -> "MomentumContrast":
        projector, temperature, views = cls.parts(model, options, image_size)
        return cls(model, projector, cls.momentum_of(options), temperature, views, processor)

    def begin(self, total_steps: int, steps_per_epoch: int | None, step: int) -> None:
        self.total_steps = total_steps

    def move(self, step: int) -> None:
        """Moves the average as in optimiser step `step`, counted from 0."""
        momentum = cosine(self.momentum, 1.0, step / self.total_steps) if self.rising else self.momentum
        self.teacher.update(self.model, momentum)
        self.teacher_projector.update(self.projector, momentum)

    def before_step(self, step: int) -> None:
        if not self.follows_the_step:
            self.move(step)

    def after_step(self, step: int) -> None:
        if self.follows_the_step:
            self.move(step - 1)


class MocoObjective(MomentumContrast):
    """
    MoCo: which key is that of the other view, and which are those of earlier images, in a queue? With a linear
    projection it is version 1, with an MLP version 2.

    Args:
        queue_size: K.
    """

    title = "MoCo (arXiv 1911.05722, 2003.04297)"
    projection = Head(
        layers=2, hidden_size=None, out_size=128, hidden_norm=False, last_norm=False, hidden_bias=True, last_bias=True
    )
    temperature = 0.2
    published_momentum = 0.999
    rising = False
    decays_vectors = True

    def __init__(self, model, projector, momentum: float, queue_size: int, out_size: int, *args, **kwargs):
        super().__init__(model, projector, momentum, *args, **kwargs)
        self.register_buffer("queue", nn.functional.normalize(torch.randn(out_size, queue_size), dim=0))
        self.register_buffer("queue_pointer", torch.zeros(1, dtype=torch.int64))
        self._keys: list[torch.Tensor] = []  # of this step

    @classmethod
    def from_options(cls, model, options, processor, image_size) -> "MocoObjective":
        projector, temperature, views = cls.parts(model, options, image_size)
        if cls.head_of(options).layers == 1 and temperature is None:
            temperature = 0.07  # version 1
        out_size = cls.head_of(options).out_size
        rest = (temperature, views, processor)
        return cls(model, projector, cls.momentum_of(options), options.queue_size, out_size, *rest)

    @classmethod
    def views_of(cls, options: ObjectiveOptions) -> list[View]:
        return _MOCO[min(2, cls.head_of(options).layers)]

    def logits(self, queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """Similarities over the temperature (B, 1 + K): to the key of the other view, then to those of the queue."""
        right = (queries * keys).sum(1, keepdim=True)
        return torch.cat((right, queries @ self.queue.to(queries)), 1) / self.contrast_temperature

    def losses(self, batch):
        pixel_values = batch["pixel_values"]
        queries = unit(self.project(pixel_values[:, :1], self.model, self.projector)[0])
        keys = unit(self.project(pixel_values[:, 1:2], self.teacher, self.teacher_projector)[0])
        logits = self.logits(queries, keys)
        labels = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
        if self.training:
            self._keys.append(gather(keys))
        return {"loss": nn.functional.cross_entropy(logits, labels, reduction="none")}, queries, keys

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        keys = torch.cat(self._keys)
        self._keys.clear()
        count, size = len(keys), self.queue.shape[1]
        if count > size:
            raise UserError(f"queue_size={size}: a step has {count} images, more than the queue holds")
        places = (self.queue_pointer + torch.arange(count, device=keys.device)) % size
        self.queue[:, places] = keys.T.to(self.queue)
        self.queue_pointer.copy_((self.queue_pointer + count) % size)


class Mocov3Objective(MomentumContrast):
    """
    MoCo v3: the prediction of one view's key by the other among the keys of the batch, in both directions.

    Args:
        predictor: From (B, D) to (B, D).
        freeze_patches: Whether the projection of patches stays as it is, which is steadier (section 4 of the paper).
    """

    title = "MoCo v3 (arXiv 2104.02057)"
    projection = Head(layers=3, hidden_size=4096, out_size=256)
    predictor_layers: ClassVar[int] = 2
    temperature = 0.2
    published_momentum = 0.99
    decays_vectors = True

    def __init__(
        self, model, projector, momentum: float, predictor: nn.Module, freeze_patches: bool = False, *args, **kwargs
    ):
        if freeze_patches:
            for parameter in model.get_input_embeddings().parameters():
                parameter.requires_grad_(False)
        super().__init__(model, projector, momentum, *args, **kwargs)
        self.predictor = predictor

    @classmethod
    def from_options(cls, model, options, processor, image_size) -> "Mocov3Objective":
        projector, temperature, views = cls.parts(model, options, image_size)
        chosen = cls.head_of(options)
        predictor = replace(chosen, layers=cls.predictor_layers).build(chosen.out_size)
        rest = (temperature, views, processor)
        return cls(model, projector, cls.momentum_of(options), predictor, options.freeze_patches, *rest)

    @classmethod
    def views_of(cls, options: ObjectiveOptions) -> list[View]:
        return _BYOL

    def direction(self, predictions: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The loss (B,) of predictions (B, D) of the other view's targets."""
        return batch_contrast(predictions, targets, self.contrast_temperature, everyone=self.training)

    def losses(self, batch):
        pixel_values = batch["pixel_values"]
        predictions = self.project(pixel_values, self.model, self.projector, self.predictor)
        targets = self.project(pixel_values, self.teacher, self.teacher_projector)
        losses = self.direction(predictions[0], targets[1]) + self.direction(predictions[1], targets[0])
        return {"loss": losses}, predictions[0], targets[1]


class ByolObjective(Mocov3Objective):
    """
    BYOL: the prediction of one view's target by the other, in both directions, without other images to tell it from.
    The average moves after a step.
    """

    title = "BYOL (arXiv 2006.07733)"
    projection = Head(layers=2, hidden_size=4096, out_size=256, last_norm=False, hidden_bias=True)
    temperature = None
    published_momentum = 0.996
    decays_vectors = False
    follows_the_step = True

    def direction(self, predictions: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return regression(predictions, targets)
