"""
Labelled images or videos for training and evaluation, from a name to batches: the options, and what they open. Which of
the two it is, the processor says.

Shapes: B batch, T frames of a clip, C channels, H x W pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch.utils.data import Dataset

from ..errors import UserError
from ..modeling.configuration_vitf import unknown_name_message
from ..notices import listed, notice
from ..registry import CLIPS, Modality, modality_of
from .augmentation import AugmentationConfig, MixingCollate, stack_samples, training_transform
from .class_names import Classes, match_classes
from .image_sets import (
    BadImages,
    EvaluationImages,
    ImageStore,
    OnBadImage,
    ProcessorTransform,
    StreamedImages,
    TrainingImages,
)
from .sources import (
    Split,
    TableSource,
    evaluation_split,
    hold_out,
    open_source,
    part_of,
    stratified_draw,
    training_split,
)
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
            "help": "Hub id, parquet file, folder of parquet files, folder of class folders, or digits (built in); "
            "for videos also a csv file of paths and labels, and moving_digits (built in)"
        },
    )
    dataset_config_name: str | None = field(
        default=None, metadata={"help": "which configuration of a Hub data set that has several"}
    )
    dataset_revision: str | None = field(
        default=None, metadata={"help": "branch, tag or commit of a data set on the Hub; its default branch by default"}
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
    match_classes: Literal["name", "number"] = field(
        default="name",
        metadata={
            "help": "how classes of the data find those of a trained model or a teacher: by name, or by number where "
            "you know that both count alike"
        },
    )
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
    frame_sampling: Literal["uniform", "dense", "dense_from_start", "strided", "segments"] | None = field(
        default=None,
        metadata={"help": "which frames: evenly, a window, or one of each part; the processor's by default"},
    )
    sampling_rate: int | None = field(
        default=None, metadata={"help": "distance between frames of a window; the processor's by default"}
    )
    sampling_fps: float | None = field(
        default=None, metadata={"help": "frames a second that sampling_rate counts in; the processor's by default"}
    )
    fps: float | None = field(
        default=None,
        metadata={"help": "frames that are taken a second, in place of sampling_rate and sampling_fps"},
    )
    train_share: float | None = field(
        default=None,
        metadata={"help": "train on this share of the images of each class, drawn at random, always the same ones"},
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
        if self.match_classes not in ("name", "number"):
            raise UserError(f"match_classes={self.match_classes!r}: choose one of name, number")
        if not 0 < self.eval_fraction < 1:
            raise UserError(f"eval_fraction={self.eval_fraction} must lie between 0 and 1")
        if self.train_share is not None and not 0 < self.train_share <= 1:
            raise UserError(f"train_share={self.train_share} must be above 0 and at most 1")
        for name, low in (("num_workers", 0), ("cache_megabytes", 0), ("shuffle_buffer", 1)):
            if getattr(self, name) < low:
                raise UserError(f"{name}={getattr(self, name)} must be at least {low}")
        for name in ("image_size", "num_frames", "sampling_rate", "max_train_samples", "max_eval_samples"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("sampling_fps", "fps"):
            if getattr(self, name) is not None and not 0 < getattr(self, name) < float("inf"):
                raise UserError(f"{name}={getattr(self, name)} must be a number of frames a second above 0")


@dataclass
class DataBundle:
    """
    Args:
        train: [`TrainingImages`], or [`StreamedImages`] with `streaming`.
        evaluation: [`EvaluationImages`], [`EvaluationVideos`], or [`StreamedImages`].
        classes: The classes that labels count.
        num_channels: 1 (grey) or 3 (RGB), as the processor's mean has.
        description: What the data are, as JSON: names, numbers of images, size.
        bad_images: What could not be read so far.
        modality: Whether they are images or videos.
    """

    train: Dataset
    evaluation: Dataset
    classes: Classes
    num_channels: int
    description: dict[str, Any]
    bad_images: BadImages
    modality: Modality

    @property
    def id2label(self) -> dict[int, str]:
        """Name of each class."""
        return dict(enumerate(self.classes.names))

    def renumbered(self, indices: np.ndarray, classes: Classes) -> "DataBundle":
        """
        The same images with the labels of other classes, in place.

        Args:
            indices: The number that each class has among the others.
            classes: The others.
        """
        for images in (self.train, self.evaluation):
            if isinstance(images, StreamedImages):
                images.numbers = indices
            else:
                images.store.labels = indices[images.store.labels]
        return replace(self, classes=classes, description={**self.description, "num_classes": len(classes.names)})


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


def _share_of(split: Split, share: float | None) -> Split:
    """This share of the images of each class. UserError where that is none at all."""
    if share is None:
        return split
    indices = stratified_draw(split.labels, share)
    if not len(indices):
        raise UserError(f"train_share={share:g} leaves none of the {len(split.labels)} images of {split.name!r}")
    return part_of(split, indices, split.name)


def _open(config: DataConfig, processor, labelled: bool = True):
    """The source of images, or of videos for a video processor. Streaming reads tables, whatever is next to them."""
    if modality_of(processor) is CLIPS:
        return open_video_source(
            config.dataset,
            config.dataset_config_name,
            config.video_column,
            config.label_column,
            config.dataset_revision,
        )
    return open_source(
        config.dataset,
        config.dataset_config_name,
        config.image_column,
        config.label_column,
        config.streaming,
        config.dataset_revision,
        labelled,
    )


def _store(config: DataConfig, split: Split, labels: np.ndarray, processor, bad_images: BadImages):
    """The images or videos of a split, with these labels."""
    if modality_of(processor) is CLIPS:
        return VideoStore(split, labels, processor, config.on_bad_image, bad_images)
    num_channels, _ = input_geometry(config, processor)
    cache_bytes = config.cache_megabytes * 2**20
    return ImageStore(split, labels, num_channels, cache_bytes, config.on_bad_image, bad_images)


def _open_splits(config: DataConfig, processor, labelled: bool) -> tuple[Split, Split]:
    """The split to train on and the split to evaluate on."""
    source = _open(config, processor, labelled)
    train = source.open(training_split(source, config.train_split))
    eval_name = evaluation_split(source, config.eval_split)
    if eval_name is not None:
        evaluation = source.open(eval_name)
    else:
        train, evaluation = hold_out(train, config.eval_fraction)
    train = _share_of(train, config.train_share)
    return _at_most(train, config.max_train_samples), _at_most(evaluation, config.max_eval_samples)


def _labels_for(split: Split, classes: Classes, remedy: str, by_number: bool = False) -> np.ndarray:
    """The labels of a split as numbers of other classes, which a user hears of where they change."""
    match = match_classes(split.named_classes, classes, remedy, split.labels, by_number)
    if match.notice:
        notice(match.notice)
    return match.indices[split.labels]


def _of_classes(labels: np.ndarray, classes: Classes) -> str:
    """The classes that occur, and how often."""
    counts = np.bincount(labels, minlength=len(classes.names))
    used = np.flatnonzero(counts)
    return f"{len(used)} classes: {listed(f'{classes.names[i]} ({counts[i]})' for i in used)}"


def _check_training_labels(labels: np.ndarray, classes: Classes) -> None:
    """Says which classes cannot be learnt."""
    counts = np.bincount(labels, minlength=len(classes.names))
    if (counts > 0).sum() == 1:
        notice(
            f"all {len(labels)} training examples are of one class, {classes.names[int(counts.argmax())]!r}: nothing "
            f"can be learnt from them; class folders belong directly below a split, as in train/cat and train/dog"
        )
    elif not counts.all():
        missing = [classes.names[i] for i in np.flatnonzero(counts == 0)]
        notice(f"{len(missing)} of {len(counts)} classes have no training example: {listed(missing)}")


def load_data(config: DataConfig, processor, seed: int, labelled: bool = True) -> DataBundle:
    """
    Opens a data set for training.

    Args:
        config: What to load, and how to vary it.
        processor: A transformers image processor, or a video processor of the family: its `image_mean`, `image_std`,
            `size` and `resample` serve training, itself prepares what is evaluated on.
        seed: Of the augmentation.
        labelled: Whether labels are read and checked. Images without any are data too where they are not.

    Raises:
        UserError: if the data set, a split or a column does not exist, a label is out of range, no image is readable,
            or one is broken under `on_bad_image="error"`.
    """
    num_channels, size = input_geometry(config, processor)
    augment = training_transform(config, size, processor.image_mean, processor.image_std, processor.resample)
    bad_images = BadImages()
    if config.streaming:
        prepare = ProcessorTransform(processor, size)
        train, evaluation, classes, description = _stream(
            config, processor, num_channels, augment, prepare, seed, bad_images, labelled
        )
    else:
        train_split, eval_split = _open_splits(config, processor, labelled)
        classes, eval_labels, counted = train_split.named_classes, eval_split.labels, "labels are not used"
        if labelled:
            remedy = f"give both splits the same classes, or take another than {eval_split.name!r} by eval_split"
            eval_labels = _labels_for(eval_split, classes, remedy)
            counted = _of_classes(train_split.labels, classes)
        notice(
            f"{config.dataset}: {len(train_split.labels)} examples of {train_split.name!r} to train on, "
            f"{len(eval_labels)} of {eval_split.name!r} to evaluate on; {counted}"
        )
        if labelled:
            _check_training_labels(train_split.labels, classes)
        train_store = _store(config, train_split, train_split.labels, processor, bad_images)
        eval_store = _store(config, eval_split, eval_labels, processor, bad_images)
        train = TrainingImages(train_store, augment, seed)
        evaluation = _evaluation_set(eval_store, processor, size)
        description = {
            "train_split": train_split.name,
            "eval_split": eval_split.name,
            "num_train": len(train),
            "num_eval": len(evaluation),
        }
    if modality_of(processor) is CLIPS:
        description["num_frames"] = processor.num_frames
    return DataBundle(
        train=train,
        evaluation=evaluation,
        classes=classes,
        num_channels=num_channels,
        description={
            "dataset": config.dataset,
            **description,
            "num_classes": len(classes.names),
            "image_size": list(size),
        },
        bad_images=bad_images,
        modality=modality_of(processor),
    )


def _evaluation_set(
    store: ImageStore | VideoStore, processor, size: tuple[int, int], views: tuple[int, int] | None = None
) -> EvaluationImages | EvaluationVideos:
    if isinstance(store, VideoStore):
        return EvaluationVideos(store, views)
    return EvaluationImages(store, ProcessorTransform(processor, size))


def _stream(
    config: DataConfig,
    processor,
    num_channels: int,
    augment,
    prepare,
    seed: int,
    bad_images: BadImages,
    labelled: bool,
) -> tuple:
    """The two streamed sets, the classes and the description."""
    if modality_of(processor) is CLIPS:
        raise UserError("streaming is for images: videos are read from their files when their turn comes")
    if config.train_share is not None:
        raise UserError(
            "train_share needs to know all labels beforehand: leave streaming out, or give the number of "
            "images as max_train_samples"
        )
    source = _open(config, processor, labelled)
    if not isinstance(source, TableSource):
        raise UserError(f"streaming reads parquet files and Hub data sets, not {config.dataset!r}")
    train_name = training_split(source, config.train_split)
    eval_name = evaluation_split(source, config.eval_split)
    if eval_name is None:
        raise UserError(f"streaming cannot hold images out: name an eval_split of {', '.join(source.split_names)}")
    streams, named = [], []
    for name, transform, count in (
        (train_name, augment, config.max_train_samples),
        (eval_name, prepare, config.max_eval_samples),
    ):
        rows, classes, unpack = source.stream(name)
        named.append(Classes(classes, f"split {name!r}"))
        if transform is augment:
            rows = rows.shuffle(seed=seed, buffer_size=config.shuffle_buffer)
        rows = rows if count is None else rows.take(count)
        streams.append(StreamedImages(rows, unpack, transform, num_channels, seed, config.on_bad_image, bad_images))
    match = match_classes(named[1], named[0], "name an eval_split that has the classes of the training split")
    if match.notice:
        notice(match.notice)
    streams[1].numbers = match.indices
    counted = f"{len(named[0].names)} classes: {listed(named[0].names)}" if labelled else "labels are not used"
    notice(f"{config.dataset}: streams {train_name!r} to train on and {eval_name!r} to evaluate on; {counted}")
    return *streams, named[0], {"train_split": train_name, "eval_split": eval_name}


def load_evaluation(
    config: DataConfig,
    processor,
    classes: list[str] | Classes | None = None,
    fraction: float | None = None,
    views: tuple[int, int] | None = None,
) -> tuple[EvaluationImages | EvaluationVideos, str, BadImages]:
    """
    Opens the images or videos to evaluate on: `eval_split`, or a usual split of that kind, or else the only split, all
    of it.

    Args:
        classes: Names of a model's classes. Labels are matched to them as `match_classes` does.
        fraction: Of a data set with no split for evaluation, the part that training with this `eval_fraction` held out.
        views: Of videos, clips and crops of each clip; by default one clip and its centre.

    Returns:
        The images or videos, the name of their split, and what could not be read so far.

    Raises:
        UserError: as `load_data`, or where a class of the images is none of the model's.
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
    if classes is None:
        classes = split.named_classes
    elif not isinstance(classes, Classes):
        classes = Classes(classes, "the model")
    used = len(np.unique(split.labels))
    if used > len(classes.names):
        raise UserError(
            f"{config.dataset} has {used} classes, the model only {len(classes.names)} "
            f"({split.named_classes}; {classes}): train "
            f"a model whose head has that many (num_labels={used})"
        )
    remedy = "rename the classes of the data, or give match_classes=number if both lists count alike"
    labels = _labels_for(split, classes, remedy, config.match_classes == "number")
    notice(f"{config.dataset}: {len(labels)} examples of {split.name!r}; {_of_classes(labels, classes)}")
    _, size = input_geometry(config, processor)
    bad_images = BadImages()
    store = _store(config, split, labels, processor, bad_images)
    return _evaluation_set(store, processor, size, views), split.name, bad_images


@dataclass
class PreparedSplit:
    """
    A split whose images or videos are all prepared as in an evaluation.

    Args:
        name: The split's name.
        images: Index to `pixel_values` and `labels`; -100 for one that cannot be read.
        classes: Names of the classes that labels count; None where labels are not known.
    """

    name: str
    images: EvaluationImages | EvaluationVideos
    classes: list[str] | None


def _prepared(config: DataConfig, processor, split: Split, labels: np.ndarray, bad_images: BadImages) -> PreparedSplit:
    """Nothing of it is kept: each image is needed once."""
    once = replace(config, cache_megabytes=0)
    store = _store(once, split, labels, processor, bad_images)
    images = _evaluation_set(store, processor, input_geometry(config, processor)[1])
    return PreparedSplit(split.name, images, split.classes)


def load_probe(
    config: DataConfig, processor, fraction: float | None = None
) -> tuple[PreparedSplit, PreparedSplit, BadImages]:
    """
    A split to learn from and one to test on, both prepared as in an evaluation, with labels that count the classes of
    the first one.

    Args:
        fraction: Of a data set with no split for evaluation, the part of each class to test on.

    Raises:
        UserError: as `load_data`, or where there is one split only and no `fraction`.
    """
    source = _open(config, processor)
    name = evaluation_split(source, config.eval_split)
    train_name = training_split(source, config.train_split)
    if name is None and fraction is None:
        raise UserError(
            f"{config.dataset} has only the split {train_name!r}: a probe learns from one and is tested on another; "
            f"hold a part out with eval_fraction=0.1"
        )
    if name is not None and fraction is not None:
        raise UserError(f"eval_fraction: {config.dataset} has the split {name!r} to evaluate on")
    if name == train_name:
        raise UserError(f"eval_split={name} is also the train_split: a probe is tested on images it has not seen")
    train, evaluation = _open_splits(
        config if fraction is None else replace(config, eval_fraction=fraction), processor, True
    )
    classes = train.named_classes
    remedy = f"give both splits the same classes, or take another than {evaluation.name!r} by eval_split"
    labels = _labels_for(evaluation, classes, remedy)
    notice(
        f"{config.dataset}: {len(train.labels)} examples of {train.name!r} to learn from, {len(labels)} of "
        f"{evaluation.name!r} to test on; {_of_classes(train.labels, classes)}"
    )
    bad_images = BadImages()
    return (
        _prepared(config, processor, train, train.labels, bad_images),
        _prepared(config, processor, evaluation, labels, bad_images),
        bad_images,
    )


def load_splits(config: DataConfig, processor, names: list[str] | None = None) -> tuple[list[PreparedSplit], BadImages]:
    """
    Splits as they are, prepared as in an evaluation; of images also such as have no labels.

    Args:
        names: Of the splits; all of them by default.

    Raises:
        UserError: if the data set, a split or a named column does not exist.
    """
    labelled = True
    try:
        source = _open(config, processor)
        splits = [source.open(_find(source, name)) for name in names or source.split_names]
    except UserError as error:
        if config.label_column is not None or modality_of(processor) is CLIPS:
            raise
        source = _open(config, processor, labelled=False)
        splits = [source.open(_find(source, name)) for name in names or source.split_names]
        labelled = False
        notice(f"labels are left out: {error}")
    bad_images = BadImages()
    prepared = [_prepared(config, processor, split, split.labels, bad_images) for split in splits]
    return [part if labelled else replace(part, classes=None) for part in prepared], bad_images


def _find(source, name: str) -> str:
    """The name, if it is that of a split. UserError names those that exist."""
    if name not in source.split_names:
        raise UserError(unknown_name_message("split", name, source.split_names))
    return name


def train_collate(config: AugmentationConfig, num_labels: int) -> Callable[[list[dict]], dict[str, torch.Tensor]]:
    """
    How samples of [`TrainingImages`] become a batch of `pixel_values` (B, [T,] C, H, W) and `labels`: (B,) class
    indices, or with MixUp or CutMix (B, num_labels) floats. It can be pickled.
    """
    if config.mix_probability and (config.mixup or config.cutmix):
        return MixingCollate(config, num_labels)
    return stack_samples
