"""
Labelled images or videos for training and evaluation, from a name to batches: the options, and what they open. Which of the
two it is, the processor says.

Shapes: B batch, T frames of a clip, C channels, H x W pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers.video_processing_utils import BaseVideoProcessor

from .augmentation import AugmentationConfig, MixingCollate, stack_samples, training_transform
from .errors import UserError
from .image_sets import (
    BadImages,
    EvaluationImages,
    ImageStore,
    OnBadImage,
    ProcessorTransform,
    StreamedImages,
    TrainingImages,
)
from .sources import Split, TableSource, evaluation_split, hold_out, open_source, part_of, training_split
from .video_sets import EvaluationVideos, VideoStore
from .video_sources import open_video_source


@dataclass
class DataConfig(AugmentationConfig):
    """
    Data.

    Which images, how they are read, and how they are varied. Raises UserError for a value outside its range.
    """

    dataset: str = field(
        default="digits",
        metadata={
            "help": "Hub id, parquet file, folder of parquet files, folder of class folders, or digits (built in); for videos "
            "also a csv file of paths and labels, and moving_digits (built in)"
        },
    )
    dataset_config_name: str | None = field(
        default=None, metadata={"help": "which configuration of a Hub data set that has several"}
    )
    train_split: str = field(default="train", metadata={"help": "split to train on"})
    eval_split: str | None = field(
        default=None, metadata={"help": "split to evaluate on; by default validation, val, valid, dev or test"}
    )
    eval_fraction: float = field(
        default=0.1, metadata={"help": "part of each class held out for evaluation where no split is meant for it"}
    )
    image_column: str | None = field(default=None, metadata={"help": "column with the images; found by default"})
    video_column: str | None = field(
        default=None, metadata={"help": "column with the videos, or their paths; found by default"}
    )
    label_column: str | None = field(default=None, metadata={"help": "column with the labels; found by default"})
    streaming: bool = field(default=False, metadata={"help": "read images as they come, for sets larger than the disk"})
    shuffle_buffer: int = field(
        default=10_000, metadata={"help": "images among which a streamed set is shuffled, in encoded form"}
    )
    image_size: int | None = field(
        default=None, metadata={"help": "height and width in pixels; the processor's by default"}
    )
    num_frames: int | None = field(
        default=None, metadata={"help": "frames taken of a video; the processor's by default"}
    )
    frame_sampling: Literal["uniform", "dense", "segments"] | None = field(
        default=None,
        metadata={"help": "which frames: evenly, a window, or one of each part; the processor's by default"},
    )
    sampling_rate: int | None = field(
        default=None, metadata={"help": "distance between frames of a dense clip; the processor's by default"}
    )
    max_train_samples: int | None = field(
        default=None, metadata={"help": "train on no more than this many images, drawn at random"}
    )
    max_eval_samples: int | None = field(
        default=None, metadata={"help": "evaluate on no more than this many images, drawn at random"}
    )
    num_workers: int = field(default=2, metadata={"help": "processes that decode and augment"})
    cache_megabytes: int = field(
        default=1024, metadata={"help": "decoded images of a split stay in memory if they take no more than this"}
    )
    on_bad_image: OnBadImage = field(
        default="skip", metadata={"help": "an image that cannot be decoded: skip and list it, or stop with an error"}
    )

    def __post_init__(self):
        super().__post_init__()
        if self.on_bad_image not in get_args(OnBadImage):
            raise UserError(f"on_bad_image={self.on_bad_image!r}: choose one of {', '.join(get_args(OnBadImage))}")
        if not 0 < self.eval_fraction < 1:
            raise UserError(f"eval_fraction={self.eval_fraction} must lie between 0 and 1")
        for name, low in (("num_workers", 0), ("cache_megabytes", 0), ("shuffle_buffer", 1)):
            if getattr(self, name) < low:
                raise UserError(f"{name}={getattr(self, name)} must be at least {low}")
        for name in ("image_size", "num_frames", "sampling_rate", "max_train_samples", "max_eval_samples"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be at least 1")


@dataclass
class DataBundle:
    """
    Args:
        train: [`TrainingImages`], or [`StreamedImages`] with `streaming`.
        evaluation: [`EvaluationImages`], [`EvaluationVideos`], or [`StreamedImages`].
        id2label: Name of each class.
        num_channels: 1 (grey) or 3 (RGB), as the processor's mean has.
        description: What the data are, as JSON: names, numbers of images, size.
        bad_images: What could not be read so far.
    """

    train: Dataset
    evaluation: Dataset
    id2label: dict[int, str]
    num_channels: int
    description: dict[str, Any]
    bad_images: BadImages


def input_geometry(config: DataConfig, processor) -> tuple[int, tuple[int, int]]:
    """Channels and (height, width) that a processor prepares images for; `config.image_size` goes first."""
    num_channels = len(processor.image_mean)
    if num_channels not in (1, 3):
        raise UserError(f"image_mean of the processor has {num_channels} channels; images are grey (1) or RGB (3)")
    if config.image_size is not None:
        return num_channels, (config.image_size, config.image_size)
    size = dict(processor.size)
    edge = size.get("shortest_edge")
    return num_channels, (size.get("height") or edge, size.get("width") or edge)


def _at_most(split: Split, count: int | None) -> Split:
    """No more than `count` images, a random draw that is always the same: the first ones may be of one class."""
    if count is None or count >= len(split.labels):
        return split
    indices = np.sort(np.random.default_rng(0).permutation(len(split.labels))[:count])
    return part_of(split, indices, split.name)


def _open(config: DataConfig, processor):
    """The source of images, or of videos for a video processor."""
    if isinstance(processor, BaseVideoProcessor):
        return open_video_source(config.dataset, config.dataset_config_name, config.video_column, config.label_column)
    return open_source(config.dataset, config.dataset_config_name, config.image_column, config.label_column)


def _store(config: DataConfig, split: Split, labels: np.ndarray, processor, bad_images: BadImages):
    """The images or videos of a split, with these labels."""
    if isinstance(processor, BaseVideoProcessor):
        return VideoStore(split, labels, processor, config.on_bad_image, bad_images)
    num_channels, _ = input_geometry(config, processor)
    cache_bytes = config.cache_megabytes * 2**20
    return ImageStore(split, labels, num_channels, cache_bytes, config.on_bad_image, bad_images)


def _open_splits(config: DataConfig, processor) -> tuple[Split, Split]:
    """The split to train on and the split to evaluate on."""
    source = _open(config, processor)
    train = source.open(training_split(source, config.train_split))
    eval_name = evaluation_split(source, config.eval_split)
    if eval_name is not None:
        evaluation = source.open(eval_name)
    else:
        train, evaluation = hold_out(train, config.eval_fraction)
    return _at_most(train, config.max_train_samples), _at_most(evaluation, config.max_eval_samples)


def load_data(config: DataConfig, processor, seed: int) -> DataBundle:
    """
    Opens a data set for training.

    Args:
        config: What to load, and how to vary it.
        processor: A transformers image processor, or a video processor of the family: its `image_mean`, `image_std`, `size`
            and `resample` serve training, itself prepares what is evaluated on.
        seed: Of the augmentation.

    Raises:
        UserError: if the data set, a split or a column does not exist, a label is out of range, no image is readable, or
            one is broken under `on_bad_image="error"`.
    """
    num_channels, size = input_geometry(config, processor)
    augment = training_transform(config, size, processor.image_mean, processor.image_std, processor.resample)
    bad_images = BadImages()
    if config.streaming:
        prepare = ProcessorTransform(processor, size)
        train, evaluation, classes, description = _stream(
            config, processor, num_channels, augment, prepare, seed, bad_images
        )
    else:
        train_split, eval_split = _open_splits(config, processor)
        classes = train_split.classes
        train_store, eval_store = (
            _store(config, split, split.labels_for(classes), processor, bad_images)
            for split in (train_split, eval_split)
        )
        train = TrainingImages(train_store, augment, seed)
        evaluation = _evaluation_set(eval_store, processor, size)
        description = {
            "train_split": train_split.name,
            "eval_split": eval_split.name,
            "num_train": len(train),
            "num_eval": len(evaluation),
        }
    if isinstance(processor, BaseVideoProcessor):
        description["num_frames"] = processor.num_frames
    return DataBundle(
        train=train,
        evaluation=evaluation,
        id2label=dict(enumerate(classes)),
        num_channels=num_channels,
        description={"dataset": config.dataset, **description, "num_classes": len(classes), "image_size": list(size)},
        bad_images=bad_images,
    )


def _evaluation_set(
    store: ImageStore | VideoStore, processor, size: tuple[int, int], views: tuple[int, int] | None = None
) -> EvaluationImages | EvaluationVideos:
    if isinstance(store, VideoStore):
        return EvaluationVideos(store, views)
    return EvaluationImages(store, ProcessorTransform(processor, size))


def _stream(
    config: DataConfig, processor, num_channels: int, augment, prepare, seed: int, bad_images: BadImages
) -> tuple:
    """The two streamed sets, the classes and the description."""
    if isinstance(processor, BaseVideoProcessor):
        raise UserError("streaming is for images: videos are read from their files when their turn comes")
    source = _open(config, processor)
    if not isinstance(source, TableSource):
        raise UserError(f"streaming reads parquet files and Hub data sets, not {config.dataset!r}")
    train_name = training_split(source, config.train_split)
    eval_name = evaluation_split(source, config.eval_split)
    if eval_name is None:
        raise UserError(f"streaming cannot hold images out: name an eval_split of {', '.join(source.split_names)}")
    streams = []
    for name, transform, count in (
        (train_name, augment, config.max_train_samples),
        (eval_name, prepare, config.max_eval_samples),
    ):
        rows, classes, unpack = source.stream(name)
        if transform is augment:
            rows = rows.shuffle(seed=seed, buffer_size=config.shuffle_buffer)
        rows = rows if count is None else rows.take(count)
        streams.append(StreamedImages(rows, unpack, transform, num_channels, seed, config.on_bad_image, bad_images))
    return *streams, classes, {"train_split": train_name, "eval_split": eval_name}


def load_evaluation(
    config: DataConfig,
    processor,
    classes: list[str] | None = None,
    fraction: float | None = None,
    views: tuple[int, int] | None = None,
) -> tuple[EvaluationImages | EvaluationVideos, str, BadImages]:
    """
    Opens the images or videos to evaluate on: `eval_split`, or a usual split of that kind, or else the only split, all of it.

    Args:
        classes: Names of a model's classes. Labels are matched to them by name where all names occur, else by number.
        fraction: Of a data set with no split for evaluation, the part that training with this `eval_fraction` held out.
        views: Of videos, clips and crops of each clip; by default one clip and its centre.

    Returns:
        The images or videos, the name of their split, and what could not be read so far.
    """
    source = _open(config, processor)
    name = evaluation_split(source, config.eval_split)
    if name is None:
        if len(source.split_names) > 1:
            raise UserError(f"name an eval_split of {config.dataset}: {', '.join(source.split_names)}")
        name = source.split_names[0]
    split = source.open(name)
    if fraction is not None:
        if config.eval_split is not None or len(source.split_names) > 1:
            raise UserError(f"eval_fraction: {config.dataset} has the split {name!r} to evaluate on")
        _, split = hold_out(split, fraction)
    split = _at_most(split, config.max_eval_samples)
    classes = split.classes if classes is None else classes
    if set(split.classes) <= set(classes):
        labels = split.labels_for(classes)
    elif len(split.classes) <= len(classes):
        labels = split.labels
    else:
        raise UserError(
            f"{config.dataset} has {len(split.classes)} classes, the model only {len(classes)}: train a model whose head "
            f"has that many (num_labels={len(split.classes)})"
        )
    _, size = input_geometry(config, processor)
    bad_images = BadImages()
    store = _store(config, split, labels, processor, bad_images)
    return _evaluation_set(store, processor, size, views), split.name, bad_images


def train_collate(config: AugmentationConfig, num_labels: int) -> Callable[[list[dict]], dict[str, torch.Tensor]]:
    """
    How samples of [`TrainingImages`] become a batch of `pixel_values` (B, [T,] C, H, W) and `labels`: (B,) class indices, or
    with MixUp or CutMix (B, num_labels) floats. It can be pickled.
    """
    if config.mix_probability and (config.mixup or config.cutmix):
        return MixingCollate(config, num_labels)
    return stack_samples
