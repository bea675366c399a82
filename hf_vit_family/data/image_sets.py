"""
Sets of labelled images: decoded on demand or kept in memory, map-style or streamed, and the order of an epoch.

Samples of map-style sets depend only on (seed, epoch, index), so that a resumed run sees what the interrupted one
would have seen, with any number of loader workers.

Shapes: C channels, H x W pixels.
"""

import itertools
import os
import tempfile
import uuid
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset, Sampler, get_worker_info
from tqdm import tqdm

from ..errors import UserError
from ..notices import printable
from .augmentation import mix_seed, seeded
from .images import UnreadableFileError
from .sources import Split

OnBadImage = Literal["skip", "error"]
IGNORED_LABEL = -100  # torch's cross entropy leaves it out


class BadImages:
    """
    The images that could not be read, as any loader worker found them: iterate for `"name: reason"` lines, sorted.

    A temporary file holds the lines, since it is what processes share whatever way they were started; appending a short
    line is atomic. The first broken image makes the file: a run that is killed leaves nothing if all are sound.
    """

    def __init__(self):
        self.path = Path(tempfile.gettempdir()) / f"bad_images_{uuid.uuid4().hex}.txt"
        weakref.finalize(self, _remove_in, os.getpid(), self.path)

    def add(self, error: UnreadableFileError) -> None:
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

    Kept images are read at once: those that are broken are left out, so that positions count only readable images.
    Where images are decoded one by one, a broken one shows only when its turn comes.

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
            except UnreadableFileError:
                continue  # it is reported when its turn comes
            sizes.append(image.width * image.height * self.num_channels)
        return np.mean(sizes) * len(self.labels) if sizes else 0.0

    def _fill_cache(self) -> None:
        """Decodes everything into one buffer: forked workers share its pages, and nothing touches a reference count."""
        parts, shapes, kept = [], [], []
        for index in tqdm(
            self.indices, desc=printable(f"decoding {self.split.name}"), unit="img", leave=False, delay=1
        ):
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
        except UnreadableFileError as error:
            if self.on_bad_image == "error":
                raise
            self.bad_images.add(error)
            return None

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, position: int) -> str:
        """The name that a user knows the image by."""
        return self.split.image_name(int(self.indices[position]))

    def blank(self, size: tuple[int, int]) -> torch.Tensor:
        """A black image of this height and width, uint8 (C, H, W)."""
        return torch.zeros(self.num_channels, *size, dtype=torch.uint8)

    def pixels(self, position: int) -> torch.Tensor | None:
        """The image as uint8 (C, H, W), or None where it is broken and bad images are skipped."""
        if self.cache is None:
            return self._decode(int(self.indices[position]))
        buffer, offsets, shapes = self.cache
        return buffer[offsets[position] : offsets[position + 1]].view(*shapes[position].tolist())


def _draw(store, position: int, transform: Callable) -> torch.Tensor | list[torch.Tensor] | None:
    """
    What a transform takes of an example: an image, a clip, or with an attribute `clips` a list of clips, each with
    frames that are drawn anew. None where it is broken.
    """
    if not hasattr(transform, "clips"):
        return store.pixels(position)
    clips = [store.pixels(position) for _ in range(transform.clips)]
    return None if any(clip is None for clip in clips) else clips


class TrainingImages(Dataset):
    """
    Augmented images, or clips: index to `{"pixel_values": float32 ([T,] C, H, W), "labels": int, "seed": int}`. All
    frames of a clip are varied alike.

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
        seed = mix_seed(self.seed, int(self.epoch), index)
        with seeded(seed):
            for position in itertools.chain(range(start, len(self)), range(start)):
                pixels = _draw(self.store, position, self.transform)  # of a video, frames are random
                if pixels is not None:
                    break
            else:
                raise UserError(f"split {self.store.split.name!r} has nothing that can be read")
            pixel_values = self.transform(pixels)
        return {"pixel_values": pixel_values, "labels": int(self.store.labels[position]), "seed": seed}


class EvaluationImages(Dataset):
    """
    Images as the processor prepares them: index to `{"pixel_values": float32 (C, H, W), "labels": int, "seed": int}`;
    or clips of videos, as a transform does. The seed follows from the index: what is drawn is the same in every
    evaluation.

    A broken image that could not be left out beforehand has the label -100, which evaluation ignores.

    Args:
        transform: From uint8 ([T,] C, any, any), or a list of `clips`, to what is `pixel_values`, with `size`, the
            height and width it makes.
    """

    def __init__(self, store, transform: Callable[[torch.Tensor], Any]):
        self.store = store
        self.transform = transform

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, index: int) -> dict[str, Any]:
        seed, label = mix_seed(index), int(self.store.labels[index])
        with seeded(seed):
            pixels = _draw(self.store, index, self.transform)
            if pixels is None:
                pixels, label = self.store.blank(self.transform.size), IGNORED_LABEL
                if hasattr(self.transform, "clips"):
                    pixels = [pixels] * self.transform.clips
            pixel_values = self.transform(pixels)
        return {"pixel_values": pixel_values, "labels": label, "seed": seed}


class StreamedImages(IterableDataset):
    """
    The images of a streamed split, in the form of [`TrainingImages`]; broken ones are left out. Workers share the
    stream.

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
        self.numbers = None  # of each label, the number to give instead
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Chooses order and variations of an epoch; call it before iterating."""
        self.epoch.fill_(epoch)
        self.rows.set_epoch(epoch)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        worker_id = 0 if worker is None else worker.id
        for position, row in enumerate(self.rows):
            read, label, _ = self.unpack(row)
            try:
                pixels = to_pixels(read(), self.num_channels)
            except UnreadableFileError as error:
                if self.on_bad_image == "error":
                    raise
                self.bad_images.add(error)
                continue
            seed = mix_seed(self.seed, int(self.epoch), worker_id, position)
            with seeded(seed):
                pixel_values = self.transform(pixels)
            number = label if self.numbers is None else int(self.numbers[label])
            yield {"pixel_values": pixel_values, "labels": number, "seed": seed}


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
        repeats: With more than one, each image comes that often in a row, as indices `repeat * length + position`, and
            an epoch shows that many times fewer images (repeated augmentation, arXiv 1901.09335).
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
