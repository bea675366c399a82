"""Learning from a teacher (arXiv 2012.12877, section 4), and what becomes of the distillation token afterwards.

Shapes: B batch, C classes, H x W pixels.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from ...data.class_names import Classes, match_classes, model_classes
from ...errors import UserError
from ...hub import check_revision
from ...loading import load_classifier
from ...modeling.configuration_deit import VitfDeitConfig
from ...modeling.configuration_vit import VitfVitConfig
from ...modeling.modeling_deit import VitfDeitForImageClassification
from ...modeling.modeling_vit import VitfVitForImageClassification
from ...notices import notice
from ...refusals import loading_reason
from ...registry import IMAGES, modality_of
from ..state import first_not_finite
from .classification import ClassificationObjective, Loss, head_logits
from .objective import Frozen

Statistics = tuple[Sequence[float], Sequence[float]]


class Teacher(nn.Module):
    """
    A classifier that reads images prepared for its student.

    Args:
        model: From `(B, channels, H, W)` to logits, or to an output that has `logits`.
        given, wanted: Mean and standard deviation of each channel that the images were normalised with, and that the
            model expects.
        image_size: Height and width in pixels that images are resized to; the student's size by default.
        order: For each class of the student the model's; the same by default.
    """

    def __init__(
        self,
        model: nn.Module,
        given: Statistics,
        wanted: Statistics,
        image_size: int | None = None,
        order: Sequence[int] | None = None,
    ):
        super().__init__()
        self.model = model
        self.image_size = image_size
        self.register_buffer("order", None if order is None else torch.as_tensor(order))
        (mean, std), (teacher_mean, teacher_std) = (map(torch.tensor, statistics) for statistics in (given, wanted))
        self.register_buffer("scale", (std / teacher_std).view(1, -1, 1, 1))
        self.register_buffer("shift", ((mean - teacher_mean) / teacher_std).view(1, -1, 1, 1))

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """`(B, channels, H, W)` to `(B, C)`."""
        if self.image_size is not None:
            pixel_values = nn.functional.interpolate(
                pixel_values, size=(self.image_size, self.image_size), mode="bicubic", antialias=True
            )
        outputs = self.model(pixel_values * self.scale + self.shift)
        logits = getattr(outputs, "logits", outputs)
        return logits if self.order is None else logits[:, self.order]


@contextlib.contextmanager
def _tensors_only() -> Iterator[None]:
    """Both libraries keep what they download; torchvision reads its files again as pickles that may run code."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _timm_model(name: str, file: str | None, num_labels: int) -> tuple[nn.Module, Statistics | None]:
    try:
        import timm
    except ImportError:
        raise UserError("a timm: teacher needs timm: pip install timm") from None
    if file is None:
        with _tensors_only():
            model = timm.create_model(name, pretrained=True)
        return model, (model.pretrained_cfg["mean"], model.pretrained_cfg["std"])
    model = timm.create_model(name, num_classes=num_labels)
    timm.models.load_checkpoint(model, file, weights_only=True)
    return model, None


def _torchvision_model(name: str, file: str | None, num_labels: int) -> tuple[nn.Module, Statistics | None]:
    import torchvision

    if file is None:
        weights = torchvision.models.get_model_weights(name).DEFAULT
        preset = weights.transforms()
        with _tensors_only():
            return torchvision.models.get_model(name, weights=weights), (preset.mean, preset.std)
    model = torchvision.models.get_model(name, weights=None, num_classes=num_labels)
    model.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    return model, None


def load_teacher(
    teacher: str,
    num_labels: int,
    given: Statistics,
    image_size: int | None = None,
    classes: Classes | None = None,
    by_number: bool = False,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Frozen:
    """
    A teacher, frozen, whose logits are in the order of the student's classes.

    Args:
        teacher: A model folder or Hub id; `timm:NAME` or `torchvision:NAME`, with pretrained weights; or either with
            `@FILE`, a checkpoint of `num_labels` classes that reads images as the student does.
        num_labels: C, the student's.
        given: Mean and standard deviation of each channel that the student's images are normalised with.
        image_size: As in `Teacher`.
        classes: The student's. A folder's or Hub id's are matched to them as `match_classes` does, all others by
            number. Without them only the number of classes is compared.
        by_number: Match by number whatever the names are.
        revision: Branch, tag or commit of a Hub id.
        trust_remote_code: Whether Python code that a folder or Hub id brings may run.

    Raises:
        UserError: if the teacher cannot be loaded, or does not have the student's classes.
    """
    library, colon, name = teacher.partition(":")
    name, _, file = name.partition("@")
    loaders = {"timm": _timm_model, "torchvision": _torchvision_model}
    is_other = bool(colon) and library in loaders
    on_hub = not is_other and not Path(teacher).exists()
    check_revision("teacher_revision", revision, f"teacher {teacher}", on_hub)
    try:
        if is_other:
            model, wanted = loaders[library](name, file or None, num_labels)
        else:
            model, processor = load_classifier(teacher, "cpu", revision, trust_remote_code)
            if modality_of(processor) is not IMAGES:
                raise UserError("it classifies videos, and distillation is for images")
            wanted = processor.image_mean, processor.image_std
    except UserError as error:
        raise UserError(f"teacher {teacher!r} cannot be loaded: {error}") from error
    except Exception as error:  # five libraries load these files; each has its own exceptions for a wrong name or file
        raise UserError(f"teacher {teacher!r} cannot be loaded: {loading_reason(error)}") from error
    if (broken := first_not_finite(model.state_dict().items())) is not None:
        raise UserError(f"teacher {teacher!r}: its weights are not finite: {broken} has an infinity or a NaN")
    order, by = _class_order(teacher, model, classes, by_number)
    size = image_size or 224
    frozen = Frozen(Teacher(model, given, wanted or given, image_size))
    outputs = frozen(torch.zeros(1, len(given[0]), size, size)).shape[-1]
    if by == "number" and outputs != num_labels:
        raise UserError(f"teacher {teacher!r} tells {outputs} classes apart, the student {num_labels}")
    return frozen if order is None else Frozen(Teacher(model, given, wanted or given, image_size, order))


def _class_order(
    teacher: str, model: nn.Module, classes: Classes | None, by_number: bool
) -> tuple[Sequence[int] | None, str]:
    """For each class of the student the teacher's, None where they are the same, and what they were matched by."""
    if classes is None:
        return None, "number"
    if not isinstance(model, PreTrainedModel):
        notice(f"teacher {teacher!r} has no names of classes: its classes are the student's by number")
        return None, "number"
    own = model_classes(model.config, f"the teacher {teacher}")
    remedy = "take a teacher of the same classes, or give match_classes=number if both lists count alike"
    if own.unnamed and len(own.names) != len(classes.names):
        return None, "number"
    match = match_classes(classes, own, remedy, by_number=by_number)
    if match.notice:
        notice(match.notice)
    return match.indices, match.by


class DistillationObjective(ClassificationObjective):
    """
    `(1 - alpha) * (loss of the labels) + alpha * (loss of the teacher)`.

    The teacher speaks to the distillation token where the student has one, and the labels to the class token; otherwise
    both speak to the only head. Hard: cross-entropy with the teacher's decision. Soft: `temperature ** 2` times the
    Kullback-Leibler divergence of both distributions at that temperature, summed over classes and averaged over the
    batch as in the paper's equation 2 (facebookresearch/deit@7e160fe losses.py divides by C as well).

    Args:
        model: The student. loss: Of the labels, as `make_loss` returns it. teacher: As `load_teacher` returns it.
        distillation: `"hard"` or `"soft"`. alpha, temperature: As above.
    """

    def __init__(
        self, model: PreTrainedModel, loss: Loss, teacher: Frozen, distillation: str, alpha: float, temperature: float
    ):
        super().__init__(model, loss)
        self.teacher = teacher
        self.alpha = alpha
        self.temperature = temperature
        self.teacher_loss = {"hard": self.hard_loss, "soft": self.soft_loss}[distillation]

    def hard_loss(self, logits: torch.Tensor, teacher_logits: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(logits, teacher_logits.argmax(-1))

    def soft_loss(self, logits: torch.Tensor, teacher_logits: torch.Tensor) -> torch.Tensor:
        student, teacher = ((x.float() / self.temperature).log_softmax(-1) for x in (logits, teacher_logits))
        divergence = nn.functional.kl_div(student, teacher, reduction="batchmean", log_target=True)
        return divergence * self.temperature**2

    def losses(self, outputs, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        heads = head_logits(outputs)
        labels_loss = self.loss(heads[0], batch["labels"])
        teacher_loss = self.teacher_loss(heads[-1], self.teacher(batch["pixel_values"]))
        return {
            "loss": (1 - self.alpha) * labels_loss + self.alpha * teacher_loss,
            "labels_loss": labels_loss.detach(),
            "teacher_loss": teacher_loss.detach(),
        }


# Classes that a student without its distillation token can become: configuration, model, and what DeiT always does that
# the other only does when told.
_PLAIN_CLASSES = {
    "deit": (VitfDeitConfig, VitfDeitForImageClassification, {"distilled": False}),
    "vit": (
        VitfVitConfig,
        VitfVitForImageClassification,
        {"position_interpolation": "bicubic", "initialization": "trunc_normal"},
    ),
}
_SHARED_FIELDS = [
    "image_size",
    "patch_size",
    "num_channels",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "mlp_ratio",
    "hidden_act",
    "qkv_bias",
    "layer_norm_eps",
    "initializer_range",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "drop_path_rate",
    "id2label",
]


def without_distillation_token(
    student: VitfDeitForImageClassification, architecture: str = "deit"
) -> VitfDeitForImageClassification | VitfVitForImageClassification:
    """
    A DeiT as a plain model with the same weights.

    Dropped, where the student is distilled: the distillation token, its row of the positions, and its classifier. The
    others attended to that token, so that outputs change and the model wants a short fine-tuning; a student that is not
    distilled gives the same outputs.

    Args:
        student: A DeiT classifier.
        architecture: What to make: `"deit"` with `distilled=False`, or `"vit"`.

    Raises:
        UserError: for another model or architecture.
    """
    if architecture not in _PLAIN_CLASSES:
        raise UserError(f"a DeiT becomes one of {', '.join(_PLAIN_CLASSES)}, not {architecture!r}")
    if student.config.model_type != VitfDeitConfig.model_type:
        raise UserError(f"only a DeiT has a distillation token to drop, not {type(student).__name__}")
    config_class, model_class, own_fields = _PLAIN_CLASSES[architecture]
    plain = model_class(config_class(**{name: getattr(student.config, name) for name in _SHARED_FIELDS}, **own_fields))
    weights = {
        name.replace("deit.", f"{plain.base_model_prefix}.", 1): tensor
        for name, tensor in student.state_dict().items()
        if "distillation" not in name
    }
    if student.config.distilled:
        positions = f"{plain.base_model_prefix}.embeddings.position_embeddings.weight"
        weights[positions] = torch.cat((weights[positions][:, :1], weights[positions][:, 2:]), dim=1)
    plain.load_state_dict(weights)
    return plain.train(student.training)
