"""
Self-distillation without labels: DINO (arXiv 2104.14294).

Shapes: B batch, V views of which the first G = 2 are global, C channels, H x W pixels, D channels of the model's
`pooler_output`, K outputs of the head.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

from ...errors import UserError
from ..config import ObjectiveOptions
from ..optim import cosine
from .gathering import GatheredBatchNorm1d
from .momentum import MomentumTeacher, mean_over_processes
from .objective import PretextObjective
from .views import View, Views, stack_views

# Side of the local crops in parts of that of the global ones: 96 of 224 pixels.
LOCAL_SHARE = Fraction(96, 224)
# Nearer than this part of log K to a distribution that is the same for all images, a teacher has collapsed.
_COLLAPSED = 0.01


class WeightNormLinear(nn.Module):
    """
    A linear layer without bias whose rows are directions `weight_v` (K, D) times lengths `weight_g` (K, 1).

    Args:
        train_lengths: Whether lengths are learnt; they are 1 otherwise.
    """

    def __init__(self, in_features: int, out_features: int, train_lengths: bool):
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(out_features, 1), requires_grad=train_lengths)
        self.weight_v = nn.Parameter(nn.Linear(in_features, out_features, bias=False).weight.detach())

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(..., D) to (..., K)."""
        return nn.functional.linear(features, torch._weight_norm(self.weight_v, self.weight_g, 0))


class DinoHead(nn.Module):
    """
    The projection of DINO: an MLP with GELU to a bottleneck, which is normalised, then prototypes
    (facebookresearch/dino@7c446df vision_transformer.py, DINOHead).

    Args:
        in_features: D. out_features: K.
        hidden_size, bottleneck_size, num_layers: Of the MLP; the bottleneck is its last layer.
        norm_last_layer: Whether the prototypes keep the length 1, which is steadier.
        batch_norm: Whether a batch norm, over all processes, follows each layer but the last, as for convolutional
            networks.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        hidden_size: int = 2048,
        bottleneck_size: int = 256,
        num_layers: int = 3,
        norm_last_layer: bool = True,
        batch_norm: bool = False,
    ):
        super().__init__()
        widths = [in_features, *[hidden_size] * (num_layers - 1), bottleneck_size]
        layers: list[nn.Module] = []
        for number, (width, next_width) in enumerate(itertools.pairwise(widths), 1):
            linear = nn.Linear(width, next_width)
            nn.init.trunc_normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)
            layers.append(linear)
            if number < num_layers:
                layers += [GatheredBatchNorm1d(next_width)] if batch_norm else []
                layers.append(nn.GELU())
        self.mlp = nn.Sequential(*layers)
        self.last_layer = WeightNormLinear(bottleneck_size, out_features, train_lengths=not norm_last_layer)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(..., D) to (..., K)."""
        return self.last_layer(nn.functional.normalize(self.mlp(features), dim=-1))


def dino_views(options: ObjectiveOptions, image_size: tuple[int, int], local_size: tuple[int, int]) -> list[View]:
    """Two global crops, then the local ones (facebookresearch/dino@7c446df main_dino.py, DataAugmentationDINO)."""
    sigma = (min(0.1, options.blur_sigma), options.blur_sigma)
    whole = View(image_size, tuple(options.global_crop_scale), blur_sigma=sigma)
    part = View(local_size, tuple(options.local_crop_scale), blur_sigma=sigma, blur=0.5)
    return [replace(whole, blur=1.0), replace(whole, blur=0.1, solarize=0.2), *[part] * options.local_crops]


class DinoObjective(PretextObjective):
    """
    DINO: the student tells of every crop what the teacher, its moving average, tells of another, global one.

    The loss is the mean, over all pairs of a global crop and another crop, of the cross-entropy between the teacher's
    distribution of the first, centred and sharpened, and the student's of the second. The centre is a moving average of
    the teacher's outputs over all processes, and takes in a step after its loss.

    Metrics are also `teacher_entropy` and `teacher_student_kl`, the Kullback-Leibler divergence of both networks, which
    add up to the loss. They tell of a collapse (section 5.3 of the paper).

    Args:
        model: A base model with a `pooler_output`, the student.
        projector: From (..., D) to (..., K), with a `last_layer`.
        options: Temperatures, momenta and schedules.
        views: How crops are drawn, two global ones first.
        processor: What normalises and resizes them.
    """

    title = "DINO (arXiv 2104.14294)"
    head = "Model"
    # What the option `teacher_momentum` leaves open.
    published_momentum: ClassVar[float] = 0.996
    saved = "teacher.module"
    refused = {
        **dict.fromkeys(
            (
                *("crop", "crop_min_scale", "crop_padding", "auto_augment", "randaugment_num_ops"),
                *("randaugment_magnitude", "color_jitter", "random_erasing"),
            ),
            "its crops are drawn by options of their own, such as local_crops",
        ),
        "ema_decay": "its teacher is a moving average, which is what is saved",
    }

    def __init__(
        self,
        model: PreTrainedModel,
        projector: nn.Module,
        options: ObjectiveOptions,
        views: Sequence[View] = (),
        processor: BaseImageProcessor | None = None,
    ):
        super().__init__(model)
        self.projector = projector
        self.teacher = MomentumTeacher(model)
        self.teacher_projector = MomentumTeacher(projector)
        self.options = options
        self.views, self.processor = views, processor
        self.collate = stack_views
        self.register_buffer("center", torch.zeros(options.out_dim))
        self.teacher_temperature = options.teacher_warmup_temperature
        self.total_steps, self.steps_per_epoch = 1, None
        self._outputs: list[torch.Tensor] = []  # the teacher's of this step, as means over each batch
        self._has_collapsed = False

    @classmethod
    def from_options(
        cls,
        model: PreTrainedModel,
        options: ObjectiveOptions,
        processor: BaseImageProcessor,
        image_size: tuple[int, int],
    ) -> "DinoObjective":
        local_size = tuple(
            options.local_crop_size or math.ceil(side * LOCAL_SHARE / multiple) * multiple
            for side, multiple in zip(image_size, model.config.size_multiple, strict=True)
        )
        if options.local_crops and any(
            local > side or local % multiple
            for local, side, multiple in zip(local_size, image_size, model.config.size_multiple, strict=True)
        ):
            raise UserError(
                f"local_crop_size {local_size[0]}: it is no larger than the image of {image_size[0]} x {image_size[1]} "
                f"pixels, and a multiple of the {model.config.size_multiple[0]} pixels that {type(model).__name__} "
                f"takes at a time"
            )
        projector = DinoHead(
            model.config.pooler_output_size,
            options.out_dim,
            options.head_hidden_size,
            options.head_bottleneck_size,
            options.head_layers,
            options.norm_last_layer,
            options.head_batch_norm,
        )
        return cls(model, projector, options, dino_views(options, image_size, local_size), processor)

    def image_transform(self, horizontal_flip: float) -> Callable[[torch.Tensor], Any]:
        return Views([replace(view, horizontal_flip=horizontal_flip) for view in self.views], self.processor)

    def names_without_decay(self) -> set[str]:
        """Biases and vectors. Tokens and positions decay (facebookresearch/dino@7c446df utils.py)."""
        return {name for name, p in self.model.named_parameters() if p.ndim < 2 or name.endswith(".bias")}

    # Schedules

    def begin(self, total_steps: int, steps_per_epoch: int | None, step: int) -> None:
        options = self.options
        if steps_per_epoch is None:
            for name in ("freeze_last_layer_epochs", "teacher_temperature_warmup_epochs"):
                if getattr(options, name):
                    raise UserError(f"a stream has no known length, which {name} counts in: set it to 0")
        self.total_steps, self.steps_per_epoch = total_steps, steps_per_epoch
        self.before_step(max(0, step - 1))

    def _epoch(self, step: int) -> int:
        return 0 if self.steps_per_epoch is None else step // self.steps_per_epoch

    def before_step(self, step: int) -> None:
        options, epoch = self.options, self._epoch(step)
        start, end = options.teacher_warmup_temperature, options.teacher_temperature
        warmup = options.teacher_temperature_warmup_epochs
        share = epoch / max(1, warmup - 1) if epoch < warmup else 1.0
        self.teacher_temperature = start + (end - start) * share

    def after_backward(self, step: int) -> None:
        if self._epoch(step) < self.options.freeze_last_layer_epochs:
            # Without a gradient the optimiser leaves a parameter alone: nor does it decay, nor are moments kept.
            for parameter in self.projector.last_layer.parameters():
                parameter.grad = None

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        outputs = mean_over_processes(torch.stack(self._outputs).mean(0))
        self._outputs.clear()
        momentum = self.options.center_momentum
        self.center.mul_(momentum).add_(outputs.to(self.center.dtype), alpha=1 - momentum)
        start = self.options.teacher_momentum
        start = self.published_momentum if start is None else start
        momentum = cosine(start, 1.0, (step - 1) / self.total_steps)
        self.teacher.update(self.model, momentum)
        self.teacher_projector.update(self.projector, momentum)

    # The loss

    def outputs(self, model: nn.Module, projector: nn.Module, *crops: torch.Tensor) -> torch.Tensor:
        """
        What a network says of crops (B, V, C, H, W) of one or several sizes: (V, B, K), with one pass of the model a
        size and one of the head.
        """
        features = [model(views.transpose(0, 1).flatten(0, 1)).pooler_output for views in crops]
        return projector(torch.cat(features)).unflatten(0, (-1, len(crops[0])))

    def losses(self, student: torch.Tensor, teacher: torch.Tensor) -> dict[str, torch.Tensor]:
        """
        The loss and its two parts of each example, (B,).

        Args:
            student: (V, B, K). teacher: (G, B, K), of the first G of these views.
        """
        dtype = torch.promote_types(student.dtype, torch.float32)
        told = (student.to(dtype) / self.options.student_temperature).log_softmax(-1)
        expected = ((teacher.to(dtype) - self.center) / self.teacher_temperature).softmax(-1)
        pairs = -torch.einsum("gbk,vbk->bgv", expected, told)
        others = 1 - torch.eye(*pairs.shape[1:], dtype=dtype, device=pairs.device)
        losses = (pairs * others).sum((1, 2)) / others.sum()
        entropy = torch.special.entr(expected).sum(-1).mean(0)
        return {
            "loss": losses,
            "teacher_entropy": entropy,
            "teacher_student_kl": losses.detach() - entropy,
        }

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        crops = [batch[name] for name in ("pixel_values", "local_values") if name in batch]
        teacher = self.outputs(self.teacher, self.teacher_projector, crops[0])
        student = self.outputs(self.model, self.projector, *crops)
        losses = self.losses(student, teacher)
        if not self.training:
            return losses
        self._outputs.append(teacher.detach().to(losses["loss"].dtype).mean((0, 1)))
        return {name: each.mean() for name, each in losses.items()}

    def watch(self, means: dict[str, float]) -> str | None:
        most = math.log(self.options.out_dim)
        entropy, near = means["teacher_entropy"], _COLLAPSED * most
        before, to_one = self._has_collapsed, entropy < near
        self._has_collapsed = means["teacher_student_kl"] < near and (to_one or entropy > most - near)
        if before or not self._has_collapsed:
            return None
        what, remedy = (
            ("gives all images to one output", "a higher teacher_temperature, or a lower center_momentum")
            if to_one
            else ("gives all images to all outputs alike", "a lower teacher_temperature")
        )
        return (
            f"the training has collapsed: the teacher {what} (its entropy is {entropy:.4f} of at most {most:.4f}, and "
            f"the student agrees): try a lower lr, or {remedy}"
        )
