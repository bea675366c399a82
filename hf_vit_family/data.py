"""
Labelled images for training and evaluation, from a name to batches.

`load_data` gives map-style data sets whose samples depend on (seed, epoch, index) alone, so that a resumed run sees what
the interrupted one would have seen, with any number of loader workers. With `streaming`, they are iterable instead.

Shapes: B batch, C channels, H x W pixels.
"""

import itertools
import os
import tempfile
import uuid
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset, Sampler, get_worker_info
from tqdm import tqdm

from .augmentation import AugmentationConfig, MixingCollate, mix_seed, seeded, stack_samples, training_transform
from .errors import UserError
from .images import UnreadableImageError
from .sources import (
    Split,
    TableSource,
    evaluation_split,
    hold_out,
    open_source,
    part_of,
    training_split,
)

OnBadImage = Literal["skip", "error"]
IGNORED_LABEL = -100  # torch's cross entropy leaves it out


@dataclass
class DataConfig(AugmentationConfig):
    """Which images, how they are read, and how they are varied. Raises UserError for a value outside its range."""

    dataset: str = field(
        default="digits",
        metadata={
            "help": "Hub id, parquet file, folder of parquet files, folder of class folders, or digits (built in)"
        },
    )
    dataset_config_name: str | None = field(
        default=None, metadata={"help": "which configuration of a Hub data set that has several"}
    )
    train_split: str = field(default="train", metadata={"help": "split to train on"})
    eval_split: str | None = field(
        default=None, metadata={"help": "split to evaluate on (default: validation, val, valid, dev or test)"}
    )
    eval_fraction: float = field(
        default=0.1, metadata={"help": "part of each class held out for evaluation where no split is meant for it"}
    )
    image_column: str | None = field(default=None, metadata={"help": "column with the images (default: found)"})
    label_column: str | None = field(default=None, metadata={"help": "column with the labels (default: found)"})
    streaming: bool = field(default=False, metadata={"help": "read images as they come, for sets larger than the disk"})
    shuffle_buffer: int = field(
        default=10_000, metadata={"help": "images among which a streamed set is shuffled, in encoded form"}
    )
    image_size: int | None = field(
        default=None, metadata={"help": "height and width in pixels (default: the processor's)"}
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
        for name in ("image_size", "max_train_samples", "max_eval_samples"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be at least 1")


class BadImages:
    """
    The images that could not be read, as any loader worker found them: iterate for `"name: reason"` lines, sorted.

    A temporary file holds the lines, since it is what processes share whatever way they were started; appending a short
    line is atomic. The first broken image makes the file: a run that is killed leaves nothing behind if all are sound.
    """

    def __init__(self):
        self.path = Path(tempfile.gettempdir()) / f"bad_images_{uuid.uuid4().hex}.txt"
        weakref.finalize(self, _remove_in, os.getpid(), self.path)

    def add(self, error: UnreadableImageError) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(f"{error}\n")

    def __iter__(self) -> Iterator[str]:
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        return iter(sorted(set(lines)))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _remove_in(process: int, path: Path) -> None:
    """Removes the file, unless this is a forked copy of the process that owns it."""
    if os.getpid() == process:
        path.unlink(missing_ok=True)


def to_pixels(image: Image.Image, num_channels: int) -> torch.Tensor:
    """A PIL image as uint8 (num_channels, H, W): grey for 1 channel, RGB for 3."""
    array = np.array(image.convert("L" if num_channels == 1 else "RGB"))
    return torch.from_numpy(array).view(image.height, image.width, num_channels).permute(2, 0, 1).contiguous()


class ImageStore:
    """
    Decoded images of a split, kept in memory when they are few and small.

    Kept images are read at once: those that are broken are left out, so that positions count readable images alone. Where
    images are decoded one by one, a broken one shows only when its turn comes.

    Args:
        split: Its images. labels: What to return as their labels. num_channels: 1 or 3.
        cache_bytes: No more than this is kept. on_bad_image: "skip" or "error". bad_images: Told of what is broken.
    """

    def __init__(
        self,
        split: Split,
        labels: np.ndarray,
        num_channels: int,
        cache_bytes: int,
        on_bad_image: OnBadImage,
        bad_images: BadImages,
    ):
        self.split = split
        self.num_channels = num_channels
        self.on_bad_image = on_bad_image
        self.bad_images = bad_images
        self.indices = np.arange(len(labels))
        self.labels = labels
        self.cache = None
        if self._estimate_bytes() <= cache_bytes:
            self._fill_cache()
        if not len(self.labels):
            raise UserError(f"split {split.name!r} has no readable image; {next(iter(bad_images), 'it is empty')}")

    def _estimate_bytes(self) -> float:
        """Memory for all decoded images, judged by some that are spread over the split."""
        probes = np.unique(np.linspace(0, len(self.labels) - 1, 32).astype(int)) if len(self.labels) else []
        sizes = []
        for index in probes:
            try:
                image = self.split.read(int(index))
            except UnreadableImageError:
                continue  # it is reported when its turn comes
            sizes.append(image.width * image.height * self.num_channels)
        return np.mean(sizes) * len(self.labels) if sizes else 0.0

    def _fill_cache(self) -> None:
        """Decodes everything into one buffer: forked workers share its pages, and nothing touches a reference count."""
        parts, shapes, kept = [], [], []
        for index in tqdm(self.indices, desc=f"decoding {self.split.name}", unit="img", leave=False, delay=1):
            pixels = self._decode(int(index))
            if pixels is not None:
                parts.append(pixels.flatten())
                shapes.append(pixels.shape)
                kept.append(index)
        self.indices = np.array(kept, dtype=np.int64)
        self.labels = self.labels[self.indices]
        if parts:
            offsets = np.cumsum([0] + [len(part) for part in parts])
            self.cache = (torch.cat(parts), offsets, np.array(shapes))

    def _decode(self, index: int) -> torch.Tensor | None:
        try:
            return to_pixels(self.split.read(index), self.num_channels)
        except UnreadableImageError as error:
            if self.on_bad_image == "error":
                raise
            self.bad_images.add(error)
            return None

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, position: int) -> str:
        """What a user knows the image by."""
        return self.split.image_name(int(self.indices[position]))

    def pixels(self, position: int) -> torch.Tensor | None:
        """The image as uint8 (C, H, W), or None where it is broken and bad images are skipped."""
        if self.cache is None:
            return self._decode(int(self.indices[position]))
        buffer, offsets, shapes = self.cache
        return buffer[offsets[position] : offsets[position + 1]].view(*shapes[position].tolist())


class TrainingImages(Dataset):
    """
    Augmented images: index to `{"pixel_values": float32 (C, H, W), "labels": int, "seed": int}`.

    An index is `repeat * len(self) + position`, as [`EpochSampler`] gives them: each repeat is another variation of the
    image. A broken image is replaced by the next readable one, which keeps batches whole whatever worker meets it.
    """

    def __init__(self, store: ImageStore, transform: Callable[[torch.Tensor], torch.Tensor], seed: int):
        self.store = store
        self.transform = transform
        self.seed = seed
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # workers that outlive an epoch see it change

    def set_epoch(self, epoch: int) -> None:
        """Chooses the variations of an epoch; call it before iterating."""
        self.epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, index: int) -> dict[str, Any]:
        start = index % len(self)
        for position in itertools.chain(range(start, len(self)), range(start)):
            pixels = self.store.pixels(position)
            if pixels is not None:
                break
        else:
            raise UserError(f"split {self.store.split.name!r} has no readable image")
        seed = mix_seed(self.seed, int(self.epoch), index)
        with seeded(seed):
            pixel_values = self.transform(pixels)
        return {"pixel_values": pixel_values, "labels": int(self.store.labels[position]), "seed": seed}


class EvaluationImages(Dataset):
    """
    Images as the processor prepares them: index to `{"pixel_values": float32 (C, H, W), "labels": int}`.

    A broken image that could not be left out beforehand has the label -100, which evaluation ignores.
    """

    def __init__(self, store: ImageStore, transform: "ProcessorTransform"):
        self.store = store
        self.transform = transform

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, index: int) -> dict[str, Any]:
        pixels = self.store.pixels(index)
        label = int(self.store.labels[index])
        if pixels is None:
            pixels, label = torch.zeros(self.store.num_channels, *self.transform.size, dtype=torch.uint8), IGNORED_LABEL
        return {"pixel_values": self.transform(pixels), "labels": label}


class StreamedImages(IterableDataset):
    """
    The images of a streamed split, in the form of [`TrainingImages`]; broken ones are left out. Workers share the stream.

    What a worker's n-th image becomes follows from (seed, epoch, worker, n): the same again with as many workers.
    """

    def __init__(self, rows, unpack, transform, num_channels: int, seed: int, on_bad_image: OnBadImage, bad_images):
        self.rows = rows
        self.unpack = unpack
        self.transform = transform
        self.num_channels = num_channels
        self.seed = seed
        self.on_bad_image = on_bad_image
        self.bad_images = bad_images
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Chooses order and variations of an epoch; call it before iterating."""
        self.epoch.fill_(epoch)
        self.rows.set_epoch(epoch)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        worker_id = 0 if worker is None else worker.id
        for number, row in enumerate(self.rows):
            read, label, _ = self.unpack(row)
            try:
                pixels = to_pixels(read(), self.num_channels)
            except UnreadableImageError as error:
                if self.on_bad_image == "error":
                    raise
                self.bad_images.add(error)
                continue
            seed = mix_seed(self.seed, int(self.epoch), worker_id, number)
            with seeded(seed):
                pixel_values = self.transform(pixels)
            yield {"pixel_values": pixel_values, "labels": label, "seed": seed}


class ProcessorTransform:
    """The processor's whole pipeline for one image: uint8 (C, any, any) to float32 (C, H, W)."""

    def __init__(self, processor, size: tuple[int, int]):
        self.processor = processor
        self.size = size

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        height, width = self.size
        outputs = self.processor(
            images=pixels,
            size={"height": height, "width": width},
            input_data_format="channels_first",  # one channel leaves it open
            return_tensors="pt",
        )
        return outputs["pixel_values"][0]


class EpochSampler(Sampler[int]):
    """
    A permutation of `range(length)` that follows from (seed, epoch).

    Args:
        length: Images of the data set; also the number of indices of an epoch.
        repeats: With more than one, each image comes that often in a row, as indices `repeat * length + position`, and an
            epoch shows that many times fewer images (repeated augmentation, arXiv 1901.09335).
    """

    def __init__(self, length: int, seed: int, repeats: int = 1):
        self.length = length
        self.seed = seed
        self.repeats = repeats
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the permutation; call it before iterating."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(mix_seed(self.seed, self.epoch))
        order = torch.randperm(self.length, generator=generator).tolist()
        for count in range(self.length):
            image, repeat = divmod(count, self.repeats)
            yield repeat * self.length + order[image]


@dataclass
class DataBundle:
    """
    Args:
        train: [`TrainingImages`], or [`StreamedImages`] with `streaming`.
        evaluation: [`EvaluationImages`], or [`StreamedImages`].
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


def _open_splits(config: DataConfig) -> tuple[Split, Split]:
    """The split to train on and the split to evaluate on."""
    source = open_source(config.dataset, config.dataset_config_name, config.image_column, config.label_column)
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
        processor: A transformers image processor: its `image_mean`, `image_std`, `size` and `resample` serve training,
            itself prepares evaluation images.
        seed: Of the augmentation.

    Raises:
        UserError: if the data set, a split or a column does not exist, a label is out of range, no image is readable, or
            one is broken under `on_bad_image="error"`.
    """
    num_channels, size = input_geometry(config, processor)
    augment = training_transform(config, size, processor.image_mean, processor.image_std, processor.resample)
    prepare = ProcessorTransform(processor, size)
    bad_images = BadImages()
    if config.streaming:
        train, evaluation, classes, description = _stream(config, num_channels, augment, prepare, seed, bad_images)
    else:
        train_split, eval_split = _open_splits(config)
        classes = train_split.classes
        stores = [
            ImageStore(
                split,
                split.labels_for(classes),
                num_channels,
                config.cache_megabytes * 2**20,
                config.on_bad_image,
                bad_images,
            )
            for split in (train_split, eval_split)
        ]
        train, evaluation = TrainingImages(stores[0], augment, seed), EvaluationImages(stores[1], prepare)
        description = {
            "train_split": train_split.name,
            "eval_split": eval_split.name,
            "num_train": len(train),
            "num_eval": len(evaluation),
        }
    return DataBundle(
        train=train,
        evaluation=evaluation,
        id2label=dict(enumerate(classes)),
        num_channels=num_channels,
        description={"dataset": config.dataset, **description, "num_classes": len(classes), "image_size": list(size)},
        bad_images=bad_images,
    )


def _stream(config: DataConfig, num_channels: int, augment, prepare, seed: int, bad_images: BadImages) -> tuple:
    """The two streamed sets, the classes and the description."""
    source = open_source(config.dataset, config.dataset_config_name, config.image_column, config.label_column)
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
    config: DataConfig, processor, classes: list[str] | None = None, fraction: float | None = None
) -> tuple[EvaluationImages, str, BadImages]:
    """
    Opens the images to evaluate on: `eval_split`, or a usual split of that kind, or else the only split, all of it.

    Args:
        classes: Names of a model's classes. Labels are matched to them by name where all names occur, else by number.
        fraction: Of a data set with no split for evaluation, the part that training with this `eval_fraction` held out.

    Returns:
        The images, the name of their split, and what could not be read so far.
    """
    source = open_source(config.dataset, config.dataset_config_name, config.image_column, config.label_column)
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
    num_channels, size = input_geometry(config, processor)
    bad_images = BadImages()
    cache_bytes = config.cache_megabytes * 2**20
    store = ImageStore(split, labels, num_channels, cache_bytes, config.on_bad_image, bad_images)
    return EvaluationImages(store, ProcessorTransform(processor, size)), split.name, bad_images


def train_collate(config: AugmentationConfig, num_labels: int) -> Callable[[list[dict]], dict[str, torch.Tensor]]:
    """
    How samples of [`TrainingImages`] become a batch of `pixel_values` (B, C, H, W) and `labels`: (B,) class indices, or
    with MixUp or CutMix (B, num_labels) floats. It can be pickled.
    """
    if config.mix_probability and (config.mixup or config.cutmix):
        return MixingCollate(config, num_labels)
    return stack_samples
