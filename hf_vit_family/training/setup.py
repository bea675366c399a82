"""The parts of a run from its options: processor, model, objective."""

import contextlib
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import LoggerType
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

from ..data.class_names import Classes, find_match, model_classes
from ..data.load import DataBundle, DataConfig
from ..errors import UserError
from ..hub import check_revision
from ..loading import quiet_loading
from ..modeling.configuration_vitf import pair, unknown_name_message
from ..modeling.embeddings import PositionEmbeddings, TimeEmbeddings
from ..modeling.video_processing_vitf import SAMPLING_FIELDS
from ..notices import listed, notice
from ..refusals import LOADING_ERRORS, loading_reason
from ..registry import CLIPS, modality_of
from ..variants import create_model, create_processor, list_variants
from .config import ModelOptions, ObjectiveOptions
from .lora import add_adapters
from .objectives.classification import ClassificationObjective, make_loss
from .objectives.distillation import DistillationObjective, load_teacher
from .objectives.objective import Objective
from .state import first_not_finite


def load_processor(options: ModelOptions, data: DataConfig) -> BaseImageProcessor:
    """
    The image or video processor of a variant, folder or Hub id, for the size, and of videos the frames, that are
    wanted.

    Raises:
        UserError: if there is none, or frames are asked for of images.
    """
    fields = {name: getattr(data, name) for name in SAMPLING_FIELDS if getattr(data, name) is not None}
    if data.image_size is not None:
        fields["size"] = {"height": data.image_size, "width": data.image_size}
    if "image_size" in options.set:
        height, width = pair(options.set["image_size"])
        fields.setdefault("size", {"height": height, "width": width})
    if "num_frames" in options.set:
        fields.setdefault("num_frames", options.set["num_frames"])
    is_variant = options.model in list_variants()
    check_revision(
        "revision", options.revision, f"model {options.model}", not is_variant and not Path(options.model).exists()
    )
    if is_variant:
        return create_processor(options.model, **fields)
    if not Path(options.model).exists() and options.model.startswith((".", "/", "~")):
        raise UserError(f"model {options.model!r}: no such folder")
    if not Path(options.model).exists() and "/" not in options.model:
        raise UserError(
            unknown_name_message("variant", options.model, list_variants()) + "; nor is it a folder or Hub id"
        )
    try:
        config = AutoConfig.from_pretrained(
            options.model, revision=options.revision, trust_remote_code=options.trust_remote_code
        )
        return modality_of(config).auto_processor.from_pretrained(
            options.model, revision=options.revision, trust_remote_code=options.trust_remote_code, **fields
        )
    except LOADING_ERRORS as error:
        raise UserError(
            f"model {options.model!r} has no processor that can be loaded: {loading_reason(error)}"
        ) from error


def check_channels(config: PreTrainedConfig, bundle: DataBundle) -> None:
    """Raises UserError where the model takes other channels than the processor prepares."""
    if getattr(config, "num_channels", bundle.num_channels) != bundle.num_channels:
        raise UserError(
            f"num_channels={config.num_channels} does not fit: the processor's image_mean prepares images of "
            f"{bundle.num_channels} channels"
        )


def variant_fields(bundle: DataBundle) -> dict[str, Any]:
    """The fields of a new variant that follow from the data."""
    size = bundle.description["image_size"]
    fields = {"image_size": size[0] if size[0] == size[1] else size, "num_channels": bundle.num_channels}
    if bundle.modality is CLIPS:
        fields["num_frames"] = bundle.description["num_frames"]
    return fields


def read_config(options: ModelOptions, bundle: DataBundle) -> PreTrainedConfig:
    """
    The configuration of a folder or Hub id with the fields of `options.set`. UserError for a field that does not exist,
    or other channels than those of the data.
    """
    config, unknown = AutoConfig.from_pretrained(
        options.model,
        return_unused_kwargs=True,
        revision=options.revision,
        trust_remote_code=options.trust_remote_code,
        **options.set,
    )
    if unknown:
        raise UserError(unknown_name_message(f"field of {type(config).__name__}", next(iter(unknown)), vars(config)))
    check_channels(config, bundle)
    return config


def read_weights(options: ModelOptions, model_class: type[Any]) -> tuple[PreTrainedModel, set[str]]:
    """A folder or Hub id as this class, and the names that it has no weights for."""
    with quiet_loading():
        model, info = model_class.from_pretrained(
            options.model,
            output_loading_info=True,
            revision=options.revision,
            trust_remote_code=options.trust_remote_code,
        )
    return model, set(info["missing_keys"])


@contextlib.contextmanager
def naming_the_model(options: ModelOptions) -> Iterator[None]:
    """Turns what loading raises into a UserError that names the model."""
    try:
        yield
    except UserError:
        raise
    except LOADING_ERRORS as error:
        raise UserError(f"model {options.model!r} cannot be loaded: {loading_reason(error)}") from error


def check_finite(options: ModelOptions, model: PreTrainedModel) -> None:
    """UserError that names the first weight with an infinity or a NaN."""
    if (name := first_not_finite(model.state_dict().items())) is not None:
        raise UserError(
            f"model {options.model!r} cannot be trained: its weights are not finite: {name} has an infinity or a NaN"
        )


def tell_missing(options: ModelOptions, missing: set[str]) -> None:
    """Says which weights start at random."""
    if missing:
        notice(f"{options.model} has no weights for {listed(sorted(missing), 4)}, which start at random")


def load_model(
    options: ModelOptions, bundle: DataBundle, by_number: bool = False
) -> tuple[PreTrainedModel, DataBundle]:
    """
    The model to train, with a head for the classes of the data.

    A loaded head is kept where all classes of the data are among the model's, and the labels then count as the model
    does. Where they are not, the model gets a new head: the names of the data win.

    Args:
        by_number: Whether the classes of the data are those of the model by their numbers, whatever their names.

    Returns:
        The model, and the data with labels that count the model's classes.

    Raises:
        UserError: if there is no such variant, folder or Hub id, a field does not exist, or a weight of the model does
            not fit a field that was replaced.
    """
    if options.model in list_variants():
        fields = {**variant_fields(bundle), **options.set}
        model = create_model(options.model, id2label=bundle.id2label, **fields)
        check_channels(model.config, bundle)
        return model, bundle
    auto_class = bundle.modality.auto_classifier
    with naming_the_model(options):
        config = read_config(options, bundle)
        model, missing = read_weights(options, auto_class)
        head = head_names(model)
        names = None
        if config.problem_type == "regression":
            config.problem_type = None
        elif not options.reset_head and not head & missing:
            names, bundle = _keep_head(options.model, model, bundle, by_number)
        if names is None or options.set:
            set_classes(config, bundle.id2label if names is None else names)
            fresh = auto_class.from_config(config, trust_remote_code=options.trust_remote_code).to(model.dtype)
            missing |= copy_weights(options, model, fresh, head if names is None else frozenset())
            model = fresh
        else:
            set_classes(model.config, names)
    check_finite(options, model)
    if names is None:
        notice(f"{options.model} gets a new head for the classes of the data: {listed(bundle.classes.names)}")
    tell_missing(options, missing - head)
    return model, bundle


def set_classes(config: PreTrainedConfig, id2label: dict[int, str]) -> None:
    """Gives a configuration these classes."""
    config.id2label = id2label
    config.label2id = {label: index for index, label in id2label.items()}


def head_names(model: PreTrainedModel) -> frozenset[str]:
    """
    The weights of a classifier that there is a part of for each class: those whose shape follows the number of classes.
    """
    shapes = []
    for count in (2, 3):
        config = copy.deepcopy(model.config)
        set_classes(config, {i: f"LABEL_{i}" for i in range(count)})
        with torch.device("meta"):
            shapes.append({name: tensor.shape for name, tensor in type(model)(config).state_dict().items()})
    return frozenset(name for name, shape in shapes[0].items() if shapes[1][name] != shape)


def _keep_head(
    name: str, model: PreTrainedModel, bundle: DataBundle, by_number: bool
) -> tuple[dict[int, str] | None, DataBundle]:
    """
    The names of a loaded head's classes and the data in their numbers; None and the data as they are for a new head.
    """
    own = model_classes(model.config, f"the model {name}")
    match = find_match(bundle.classes, own, by_number=by_number)
    if match is None:
        notice(f"{own}; the data have {listed(bundle.classes.names)}")
        return None, bundle
    names = list(own.names)
    same_count = len(bundle.classes.names) == len(names)
    if match.by == "number" and not by_number and not (own.unnamed and (same_count or bundle.classes.numbered)):
        return None, bundle
    if match.by == "number" and own.unnamed and not bundle.classes.numbered:
        for index, label in zip(match.indices, bundle.classes.names, strict=True):
            names[index] = label
    if match.notice:
        notice(match.notice)
    return dict(enumerate(names)), bundle.renumbered(match.indices, Classes(names, own.owner))


@torch.no_grad()
def copy_weights(
    options: ModelOptions, model: PreTrainedModel, fresh: PreTrainedModel, new: frozenset[str]
) -> set[str]:
    """
    Copies the weights of a model into a new one of another configuration, all but those named `new`.

    Positions of another grid, and of another number of frames, are interpolated as the model does it at call time.

    Returns:
        The names that the model has no weights for.

    Raises:
        UserError: for another weight whose shape differs.
    """
    weights, missing = model.state_dict(), set()
    for name, tensor in fresh.state_dict().items():
        if name in new:
            continue
        if name not in weights:
            missing.add(name)
            continue
        value = weights[name]
        if value.shape != tensor.shape:
            owner, target = (m.get_submodule(name.rpartition(".")[0]) for m in (model, fresh))
            if isinstance(owner, PositionEmbeddings):
                value = owner(target.grid, value)
            elif isinstance(owner, TimeEmbeddings):
                value = owner(target.num_frames)
        if value.shape != tensor.shape:
            fields = " ".join(f"{field}={value}" for field, value in options.set.items())
            raise UserError(
                f"set {fields}: {name} is {tuple(value.shape)} in {options.model} and would be {tuple(tensor.shape)}; "
                f"a trained weight is not replaced by a random one. Images of another size need no field of the "
                f"configuration: give image_size"
            )
        tensor.copy_(value)
    return missing


def choose_parameters(model: PreTrainedModel, options: ModelOptions) -> PreTrainedModel:
    """Freezes what is not to be trained, and puts LoRA adapters in place."""
    if options.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    if options.freeze == "backbone":
        model.base_model.requires_grad_(False)
    if options.lora_rank:
        add_adapters(model, options.lora_rank, options.lora_alpha)
    if options.compile:
        model.compile()
    return model


def make_objective(
    model: PreTrainedModel,
    options: ObjectiveOptions,
    processor: BaseImageProcessor,
    by_number: bool = False,
    trust_remote_code: bool = False,
) -> Objective:
    """The loss of the labels, and of a teacher where there is one, whose own code may run with `trust_remote_code`."""
    loss = make_loss(options.loss, options.label_smoothing)
    if options.teacher is None:
        return ClassificationObjective(model, loss)
    given = (processor.image_mean, processor.image_std)
    classes = model_classes(model.config, "the student")
    teacher = load_teacher(
        options.teacher,
        len(classes.names),
        given,
        options.teacher_image_size,
        classes,
        by_number,
        options.teacher_revision,
        trust_remote_code,
    )
    return DistillationObjective(
        model, loss, teacher, options.distillation, options.distillation_alpha, options.temperature
    )


def check_trackers(names: list[str]) -> None:
    """Raises UserError for a tracker that Accelerate does not know or that is not installed."""
    available = [str(name) for name in get_available_trackers()]
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise UserError(unknown_name_message("tracker", name, LOGGER_TYPE_TO_CLASS))
        if name in LoggerType.list() and name not in available:
            raise UserError(f"tracker {name} is not installed: pip install {name}")
