"""
Sets of labelled videos: which frames are decoded, for training and for testing.

Shapes: N frames of a video, V views, T frames of a clip, C channels, H x W pixels.
"""

from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from ..errors import UserError
from ..modeling.video_processing_vitf import VitfVideoProcessor
from ..modeling.video_reading_vitf import UnreadableVideoError
from .augmentation import mix_seed
from .image_sets import IGNORED_LABEL, BadImages, OnBadImage
from .sources import Split


class BrokenVideoError(UnreadableVideoError, UserError):
    """A video of a data set cannot be decoded. The message says which it is."""


class VideoStore:
    """
    The videos of a split, decoded when their turn comes; what `ImageStore` is to images.

    Args:
        split: Its videos. labels: What to return as their labels. processor: Says which frames are taken.
        on_bad_image: "skip" or "error". bad_images: Told of what is broken.
    """

    def __init__(
        self,
        split: Split,
        labels: np.ndarray,
        processor: VitfVideoProcessor,
        on_bad_image: OnBadImage,
        bad_images: BadImages,
    ):
        if not len(labels):
            raise UserError(f"split {split.name!r} has no video")
        self.split = split
        self.labels = labels
        self.processor = processor
        self.on_bad_image = on_bad_image
        self.bad_images = bad_images

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, position: int) -> str:
        """The name that a user knows the video by."""
        return self.split.image_name(position)

    def _read(self, position: int, read) -> torch.Tensor | None:
        """Returns what `read` makes of a video, or None where it is broken and bad videos are skipped."""
        video = None
        try:
            video = self.split.read(position)
            return read(video)
        except UnreadableVideoError as error:
            # Nothing in bytes says which they are.
            broken = BrokenVideoError(f"{error}: {self.name(position)}" if isinstance(video, bytes) else str(error))
            if self.on_bad_image == "error":
                raise broken from error
            self.bad_images.add(broken)
            return None

    def blank(self, size: tuple[int, int]) -> torch.Tensor:
        """A black clip of this height and width, uint8 (T, C, H, W)."""
        return torch.zeros(self.processor.num_frames, len(self.processor.image_mean), *size, dtype=torch.uint8)

    def pixels(self, position: int) -> torch.Tensor | None:
        """Frames drawn at random, as they are: uint8 (T, C, H, W)."""
        choose = self.processor.frame_chooser(view=None)
        return self._read(position, lambda video: self.processor.read_clip(video, choose))

    def views(self, position: int, num_views: int, num_crops: int) -> torch.Tensor | None:
        """The views that a model is tested on: float32 (V, T, C, H, W)."""
        return self._read(position, lambda video: self.processor.make_views(video, num_views, num_crops))


class EvaluationVideos(Dataset):
    """
    Videos as the processor prepares them: index to `{"pixel_values": float32, "labels": int, "seed": int}`. The seed
    follows from the index.

    A broken video has the label -100, which evaluation ignores.

    Args:
        store: The videos.
        views: Clips of each video, and crops of each clip. `pixel_values` are (V, T, C, H, W), or without views, which
            is one clip and its centre, (T, C, H, W).
    """

    def __init__(self, store: VideoStore, views: tuple[int, int] | None = None):
        self.store = store
        self.views = views

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, index: int) -> dict[str, Any]:
        num_views, num_crops = self.views or (1, 1)
        pixel_values, label = self.store.views(index, num_views, num_crops), int(self.store.labels[index])
        if pixel_values is None:
            size = self.store.processor.size
            blank = self.store.blank((size["height"], size["width"])).float()
            pixel_values, label = blank.expand(num_views * num_crops, -1, -1, -1, -1), IGNORED_LABEL
        pixel_values = pixel_values if self.views else pixel_values[0]
        return {"pixel_values": pixel_values, "labels": label, "seed": mix_seed(index)}
