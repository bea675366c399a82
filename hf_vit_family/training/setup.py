"""The parts of a run from its options: processor, model, objective, output folder."""

import shutil
from pathlib import Path

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import LoggerType
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForVideoClassification,
    AutoVideoProcessor,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.image_processing_utils import BaseImageProcessor

from ..data import DataBundle, DataConfig
from ..errors import UserError
from ..modeling.configuration_vitf import pair, unknown_name_message
from ..variants import create_model, create_processor, list_variants
from .classification import ClassificationObjective, make_loss
from .config import ModelOptions, ObjectiveOptions, RunOptions
from .distillation import DistillationObjective, load_teacher
from .loop import METRICS
from .lora import add_adapters
from .objective import Objective

# Options of the data that are fields of a video processor.
VIDEO_FIELDS = ("num_frames", "frame_sampling", "sampling_rate")


def load_processor(options: ModelOptions, data: DataConfig) -> BaseImageProcessor:
    """
    The image or video processor of a variant, folder or Hub id, for the size, and of videos the frames, that are wanted.

    Raises:
        UserError: if there is none, or frames are asked for of images.
    """
    fields = {name: getattr(data, name) for name in VIDEO_FIELDS if getattr(data, name) is not None}
    if data.image_size is not None:
        fields["size"] = {"height": data.image_size, "width": data.image_size}
    if options.model in list_variants():
        if "image_size" in options.set:
            height, width = pair(options.set["image_size"])
            fields.setdefault("size", {"height": height, "width": width})
        if "num_frames" in options.set:
            fields.setdefault("num_frames", options.set["num_frames"])
        return create_processor(options.model, **fields)
    if not Path(options.model).exists() and options.model.startswith((".", "/", "~")):
        raise UserError(f"model {options.model!r}: no such folder")
    if not Path(options.model).exists() and "/" not in options.model:
        raise UserError(
            unknown_name_message("variant", options.model, list_variants()) + "; nor is it a folder or Hub id"
        )
    try:
        loader = AutoVideoProcessor if classifies_videos(options.model) else AutoImageProcessor
        return loader.from_pretrained(options.model, **fields)
    except (OSError, ValueError) as error:
        raise UserError(f"model {options.model!r} has no processor that can be loaded: {error}") from error


def classifies_videos(model: str) -> bool:
    """Whether a folder or Hub id holds a model of videos, by its configuration. OSError or ValueError if it has none."""
    return type(AutoConfig.from_pretrained(model)) in AutoModelForVideoClassification._model_mapping


def _check_channels(config: PreTrainedConfig, bundle: DataBundle) -> None:
    """Raises UserError where the model takes other channels than the processor prepares."""
    if getattr(config, "num_channels", bundle.num_channels) != bundle.num_channels:
        raise UserError(
            f"num_channels={config.num_channels} does not fit: the processor's image_mean prepares images of "
            f"{bundle.num_channels} channels"
        )


def load_model(options: ModelOptions, bundle: DataBundle) -> PreTrainedModel:
    """
    The model to train, with a head for the classes of the data.

    Raises:
        UserError: if there is no such variant, folder or Hub id, a field does not exist, or a loaded head has fewer classes
            than the data.
    """
    if options.model in list_variants():
        size = bundle.description["image_size"]
        fields = {"image_size": size[0] if size[0] == size[1] else size, "num_channels": bundle.num_channels}
        if "num_frames" in bundle.description:
            fields["num_frames"] = bundle.description["num_frames"]
        model = create_model(options.model, id2label=bundle.id2label, **{**fields, **options.set})
        _check_channels(model.config, bundle)
        return model
    try:
        config, unknown = AutoConfig.from_pretrained(options.model, return_unused_kwargs=True, **options.set)
        if unknown:
            raise UserError(
                unknown_name_message(f"field of {type(config).__name__}", next(iter(unknown)), vars(config))
            )
        _check_channels(config, bundle)
        classes = len(bundle.id2label)
        if options.reset_head or config.num_labels == classes:
            config.id2label = bundle.id2label
            config.label2id = {label: index for index, label in bundle.id2label.items()}
        elif config.num_labels < classes:
            raise UserError(
                f"the data have {classes} classes, the head of {options.model} {config.num_labels}: give it a new one with "
                "--reset_head"
            )
        loader = (
            AutoModelForVideoClassification if "num_frames" in bundle.description else AutoModelForImageClassification
        )
        return loader.from_pretrained(options.model, config=config, ignore_mismatched_sizes=options.reset_head)
    except UserError:
        raise
    except (OSError, ValueError, RuntimeError, StrictDataclassError) as error:
        raise UserError(f"model {options.model!r} cannot be loaded: {error}") from error


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
    model: PreTrainedModel, options: ObjectiveOptions, processor: BaseImageProcessor, num_labels: int
) -> Objective:
    """The loss of the labels, and of a teacher where there is one."""
    loss = make_loss(options.loss, options.label_smoothing)
    if options.teacher is None:
        return ClassificationObjective(model, loss)
    given = (processor.image_mean, processor.image_std)
    teacher = load_teacher(options.teacher, num_labels, given, options.teacher_image_size)
    return DistillationObjective(
        model, loss, teacher, options.distillation, options.distillation_alpha, options.temperature
    )


def check_output(options: RunOptions) -> None:
    """Raises UserError if the output folder has something in it and the run neither resumes nor may overwrite it."""
    output = Path(options.output)
    if output.exists() and not output.is_dir():
        raise UserError(f"output {output} is a file")
    if not output.exists() or not any(output.iterdir()) or options.resume:
        return
    if not options.overwrite:
        raise UserError(
            f"output {output} is not empty: go on with --resume, replace it with --overwrite, or choose another folder"
        )
    if not (output / METRICS).exists():
        raise UserError(f"output {output} holds no earlier run: --overwrite leaves it alone, choose another folder")


def make_output(options: RunOptions) -> None:
    """Makes the output folder, without an earlier run in it if the run overwrites. UserError if it cannot be made."""
    output = Path(options.output)
    try:
        if options.overwrite and output.exists():
            shutil.rmtree(output)
        output.mkdir(parents=True, exist_ok=True)
        (output / METRICS).touch()
    except OSError as error:
        raise UserError(f"output {output} cannot be made: {error}") from error


def check_trackers(names: list[str]) -> None:
    """Raises UserError for a tracker that Accelerate does not know or that is not installed."""
    available = [str(name) for name in get_available_trackers()]
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise UserError(unknown_name_message("tracker", name, LOGGER_TYPE_TO_CLASS))
        if name in LoggerType.list() and name not in available:
            raise UserError(f"tracker {name} is not installed: pip install {name}")
