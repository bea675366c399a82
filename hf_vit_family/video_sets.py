"""
Sets of labelled videos: which frames are decoded, for training and for testing.

Shapes: N frames of a video, V views, T frames of a clip, C channels, H x W pixels.
"""

from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from .errors import UserError
from .image_sets import IGNORED_LABEL, BadImages, OnBadImage
from .modeling.video_processing_vitf import VitfVideoProcessor
from .sources import Split
from .videos import UnreadableVideoError


def random_frames(total: int, num_frames: int | None, frame_sampling: str, sampling_rate: int) -> np.ndarray:
    """
    The frames of a training clip, drawn with torch's generator: a window at a random place ("dense"), a random frame of each
    part ("segments"), or frames at equal distances with a random offset ("uniform").

    Arguments and result are those of `frame_indices`. As there, a video of exactly `num_frames` frames is taken as it is,
    and a clip that a video is too short for repeats frames.
    """
    if num_frames is None or total == num_frames:
        return np.arange(total)
    if frame_sampling == "dense":
        room = max(total - (num_frames - 1) * sampling_rate - 1, 0)
        start = int(torch.randint(room + 1, ()))
        return (start + np.arange(num_frames) * sampling_rate).clip(max=total - 1)
    offset = torch.rand(num_frames if frame_sampling == "segments" else 1).double().numpy()
    return ((np.arange(num_frames) + offset) * total / num_frames).astype(np.int64).clip(max=total - 1)


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
        """What a user knows the video by."""
        return self.split.image_name(position)

    def _read(self, position: int, read) -> torch.Tensor | None:
        """What `read` makes of a video, or None where it is broken and bad videos are skipped."""
        try:
            video = self.split.read(position)
            try:
                return read(video)
            except UnreadableVideoError as error:
                if isinstance(video, bytes):  # nothing in them says which they are
                    raise UnreadableVideoError(f"{error}: {self.name(position)}") from error
                raise
        except UnreadableVideoError as error:
            if self.on_bad_image == "error":
                raise
            self.bad_images.add(error)
            return None

    def pixels(self, position: int) -> torch.Tensor | None:
        """Frames drawn at random, as they are: uint8 (T, C, H, W)."""
        processor = self.processor

        def choose(total: int) -> np.ndarray:
            return random_frames(total, processor.num_frames, processor.frame_sampling, processor.sampling_rate)

        return self._read(position, lambda video: processor.read_clip(video, choose))

    def views(self, position: int, num_views: int, num_crops: int) -> torch.Tensor | None:
        """What a model is tested on: float32 (V, T, C, H, W)."""
        return self._read(position, lambda video: self.processor.make_views(video, num_views, num_crops))


class EvaluationVideos(Dataset):
    """
    Videos as the processor prepares them: index to `{"pixel_values": float32, "labels": int}`.

    A broken video has the label -100, which evaluation ignores.

    Args:
        store: The videos.
        views: Clips of each video, and crops of each clip. `pixel_values` are (V, T, C, H, W), or without views, which is
            one clip and its centre, (T, C, H, W).
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
            processor = self.store.processor
            frames, size = processor.num_frames, (processor.size["height"], processor.size["width"])
            channels = len(processor.image_mean)
            pixel_values, label = torch.zeros(num_views * num_crops, frames, channels, *size), IGNORED_LABEL
        return {"pixel_values": pixel_values if self.views else pixel_values[0], "labels": label}
