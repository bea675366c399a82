"""Runs that learn from images or clips without labels: what they refuse, their model, and what is measured of them."""

from collections.abc import Callable, Iterable
from dataclasses import fields, replace
from functools import partial

import torch
from accelerate import Accelerator
from torch import nn
from transformers import AutoConfig, PreTrainedModel

from ..data.augmentation import seeded
from ..data.image_sets import IGNORED_LABEL, EvaluationImages
from ..data.load import DataBundle, DataConfig
from ..errors import UserError
from ..notices import listed
from ..registry import ARCHITECTURES, AUTO_CLASSES, CLIPS, IMAGE_HEADS, IMAGES, Modality
from ..variants import create_model, find_variant, list_variants
from .config import ModelOptions, ObjectiveOptions, OptimizationOptions
from .objectives.contrastive import (
    ByolObjective,
    MocoObjective,
    Mocov3Objective,
    SimclrObjective,
    SupconObjective,
)
from .objectives.dino import DinoObjective
from .objectives.frame_order import FrameOrderObjective
from .objectives.masked_autoencoder import MaeObjective
from .objectives.masked_images import MaskedPatchObjective, SimmimObjective
from .objectives.objective import PretextObjective
from .objectives.sit import SitObjective, SitTasksObjective
from .setup import (
    check_channels,
    check_finite,
    copy_weights,
    naming_the_model,
    read_config,
    read_weights,
    tell_missing,
    variant_fields,
)

# What the option `objective` chooses, besides learning from labels.
PRETEXTS: dict[str, type[PretextObjective]] = {
    "simmim": SimmimObjective,
    "mpp": MaskedPatchObjective,
    "mae": MaeObjective,
    "dino": DinoObjective,
    "simclr": SimclrObjective,
    "moco": MocoObjective,
    "mocov3": Mocov3Objective,
    "byol": ByolObjective,
    "supcon": SupconObjective,
    "sit": SitObjective,
    "sit_tasks": SitTasksObjective,
    "frame_order": FrameOrderObjective,
}

# Options that mean something only where labels are learnt.
_FOR_LABELS = (
    *("loss", "label_smoothing", "teacher", "mixup", "cutmix", "label_column"),
    *("reset_head", "freeze", "lora_rank"),
)


def check_options(
    objective: type[PretextObjective], *options: ModelOptions | DataConfig | ObjectiveOptions | OptimizationOptions
) -> None:
    """
    Raises UserError for the first option that is not at its default and that only learning from labels has, or that
    the objective refuses.
    """
    for part in options:
        for field in fields(part):
            if field.name not in (*_FOR_LABELS, *objective.refused) or getattr(part, field.name) == field.default:
                continue
            reason = objective.refused.get(field.name)
            if reason is None and objective.labelled and field.name == "label_column":
                continue
            if reason is None:
                what = "classifying" if objective.labelled else "learning from labels"
                raise UserError(
                    f"option {field.name!r} is for {what}, which {objective.title} does without: leave "
                    f"it at {field.default}"
                )
            raise UserError(
                f"option {field.name!r} has no meaning for {objective.title}: {reason}; leave it at {field.default}"
            )


def check_modality(objective: type[PretextObjective], model: str, modality: Modality) -> None:
    """Raises UserError for a model of what an objective does not learn from."""
    if modality in objective.modalities:
        return
    kinds = {IMAGES: "images", CLIPS: "clips"}
    others = [name for name, each in PRETEXTS.items() if modality in each.modalities]
    raise UserError(
        f"objective: {objective.title} learns from {listed(kinds[each] for each in objective.modalities)}, and {model} "
        f"is a model of {kinds[modality]}, which {listed(others)} take"
    )


def check_architecture(objective: type[PretextObjective], options: ModelOptions) -> None:
    """Raises UserError for a model whose architecture does not have the class that an objective trains."""
    if objective.head in IMAGE_HEADS:
        return
    if options.model in list_variants():
        name = find_variant(options.model).name
    else:
        with naming_the_model(options):
            config = AutoConfig.from_pretrained(
                options.model, revision=options.revision, trust_remote_code=options.trust_remote_code
            )
        name = config.model_type.removeprefix("vitf_")
        if name == config.model_type:
            raise UserError(
                f"model {options.model!r} is a {type(config).__name__} of another library, which {objective.title} "
                f"does not train: vit-family convert makes a model of this library of it"
            )
    having = [each.name for each in ARCHITECTURES.values() if objective.head in each.heads]
    if name not in having:
        raise UserError(
            f"objective: {objective.title} needs a plain sequence of patches, of which the encoder can leave some out: "
            f"it trains {listed(having)}, and not {name}; use --objective simmim, which hides patches behind a token"
        )


def load_pretext_model(options: ModelOptions, bundle: DataBundle, head: str) -> PreTrainedModel:
    """
    The model to pretrain: a variant with random weights, or that of a folder or Hub id, whose classifier is left out.

    Args:
        head: Its class, a suffix such as `"ForMaskedImageModeling"`.

    Raises:
        UserError: if there is no such variant, folder or Hub id, a field does not exist, or a weight does not fit a
            field that was replaced.
    """
    if options.model in list_variants():
        model = create_model(options.model, head, **{**variant_fields(bundle), **options.set})
        check_channels(model.config, bundle)
        return model
    with naming_the_model(options):
        config = read_config(options, bundle)
        make = partial(AUTO_CLASSES[head].from_config, config, trust_remote_code=options.trust_remote_code)
        with torch.device("meta"):  # AutoBackbone.from_pretrained takes Hub ids only (transformers 5.24)
            model_class = type(make())
        model, missing = read_weights(options, model_class)
        if options.set:
            fresh = make().to(model.dtype)
            missing |= copy_weights(options, model, fresh, frozenset())
            model = fresh
    check_finite(options, model)
    tell_missing(options, missing)
    return model


def with_transform(bundle: DataBundle, transform: Callable) -> DataBundle:
    """The data as an objective's own transform makes them, in training and in evaluation."""
    bundle.train.transform = transform
    if bundle.modality is CLIPS:
        return replace(bundle, evaluation=EvaluationImages(bundle.evaluation.store, transform))
    bundle.evaluation.transform = transform
    return bundle


def check_sizes(objective: PretextObjective, bundle: DataBundle, transform: Callable | None) -> None:
    """
    Tries one black example, before a run begins: a ValueError of the model about its size becomes a UserError.

    Args:
        transform: What the objective makes of examples, where it does.
    """
    frames = [bundle.description["num_frames"]] if bundle.modality is CLIPS else []
    pixel_values = torch.zeros(*frames, bundle.num_channels, *bundle.description["image_size"])
    if transform is not None:
        pixels = pixel_values.byte()
        with seeded(0):
            pixel_values = transform([pixels] * transform.clips if hasattr(transform, "clips") else pixels)
    sample = {"pixel_values": pixel_values, "labels": 0, "seed": 0}
    try:
        with torch.no_grad():
            objective.eval()(objective.collate([sample]))
    except ValueError as error:
        raise UserError(f"image_size: {error}") from error
    finally:
        objective.train()


@torch.no_grad()
def evaluate_pretext(objective: nn.Module, loader: Iterable[dict], accelerator: Accelerator) -> dict[str, float]:
    """
    Means over the images of what an objective in evaluation mode gives of each, and `num_images`.

    Args:
        objective: A [`~objectives.objective.PretextObjective`], prepared by `accelerator`, as `loader` is.
    """
    totals: dict[str, float] = {}
    count = 0
    for batch in loader:
        batch = {name: value.to(accelerator.device) for name, value in batch.items()}
        with accelerator.autocast():
            values = objective(batch)
        gathered = accelerator.gather_for_metrics({**values, "labels": batch["labels"]})
        kept = gathered.pop("labels") != IGNORED_LABEL
        count += int(kept.sum())
        for name, each in gathered.items():
            totals[name] = totals.get(name, 0.0) + each[kept].double().sum().item()
    return {**{name: total / count for name, total in totals.items()}, "num_images": count}
