"""
Video processor of the whole family: which frames of a video a model sees, and how they are prepared.

Frames are prepared as `VitfImageProcessor` prepares images, all of a clip alike. Which frames are taken follows the code
that the published weights were measured with: facebookresearch/SlowFast@287ec00 slowfast/datasets/decoder.py and
kinetics.py (dense), facebookresearch/TimeSformer@a5ef29a timesformer/datasets/ssv2.py (segments).

Shapes: N frames of a video, B videos, V views, T frames of a clip, C channels, H x W pixels.
"""

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_utils import SizeDict
from transformers.processing_utils import VideosKwargs
from transformers.utils import is_torchcodec_available
from transformers.video_processing_utils import BaseVideoProcessor
from transformers.video_utils import VideoMetadata, load_video, read_video_pyav

from .configuration_vitf import unknown_name_message
from .image_processing_pil_vitf import VitfImageProcessorMixin, covering_size, to_channels_first

# Names the indices of the frames to read, of a video with so many frames.
ChooseFrames = Callable[[int], np.ndarray]


def uniform_frames(total: int, num_frames: int, sampling_rate: int, view: int, num_views: int) -> np.ndarray:
    """Frames that are evenly spread over the whole video, its first and its last among them; views take turns."""
    return np.linspace(0, total - 1, num_frames * num_views).astype(np.int64)[view::num_views]


def dense_frames(total: int, num_frames: int, sampling_rate: int, view: int, num_views: int) -> np.ndarray:
    """
    Every `sampling_rate`-th frame of a window: one view lies in the middle of the video, several are spread evenly over
    it. A video that is shorter than the window holds its last frame.
    """
    room = max(total - (num_frames - 1) * sampling_rate - 1, 0)
    start = room // 2 if num_views == 1 else view * room // (num_views - 1)
    return (start + np.arange(num_frames) * sampling_rate).clip(max=total - 1)


def segment_frames(total: int, num_frames: int, sampling_rate: int, view: int, num_views: int) -> np.ndarray:
    """
    One frame from each of `num_frames` equal parts of the video (TSN, arXiv 1608.00859): the middle one of each part;
    several views are spread from the first frame of each part to its last.
    """
    edges = np.round(np.arange(num_frames + 1) * ((total - 1) / num_frames)).astype(np.int64)
    first, last = edges[:-1], edges[1:]
    if num_views == 1:
        return (first + last) // 2
    return first + view * (last - first) // (num_views - 1)


SAMPLINGS = {"uniform": uniform_frames, "dense": dense_frames, "segments": segment_frames}
VIEW_AVERAGES = ("logits", "softmax")


def frame_indices(
    total: int, num_frames: int | None, frame_sampling: str, sampling_rate: int = 1, view: int = 0, num_views: int = 1
) -> np.ndarray:
    """
    The frames of a clip.

    A video with exactly `num_frames` frames counts as sampled already, and `num_frames=None` takes every frame. Where a
    video has too few frames, some come more than once.

    Args:
        total: Frames of the video.
        num_frames: Frames of the clip.
        frame_sampling: A key of `SAMPLINGS`. sampling_rate: Distance of the frames of a dense clip.
        view: Which of `num_views` clips, from 0.

    Returns:
        int64 (T,), in ascending order.
    """
    if num_frames is None or total == num_frames:
        return np.arange(total)
    return SAMPLINGS[frame_sampling](total, num_frames, sampling_rate, view, num_views)


def spatial_crops(clip: torch.Tensor, size: tuple[int, int], num_crops: int) -> list[torch.Tensor]:
    """
    Crops of (T, C, *size) from (T, C, H, W), evenly spread from edge to edge of the direction with more room: for three
    left, centre and right, or top, centre and bottom.
    """
    margins = [have - keep for have, keep in zip(clip.shape[-2:], size, strict=True)]
    crops = []
    for index in range(num_crops):
        start = [round(margin / 2) for margin in margins]
        if num_crops > 1:
            longer = int(margins[1] >= margins[0])
            start[longer] = round(margins[longer] * index / (num_crops - 1))
        top, left = start
        crops.append(clip[..., top : top + size[0], left : left + size[1]])
    return crops


def split_videos(videos: Any) -> list:
    """
    A list with one entry for each video: a path, a URL, encoded bytes, an array or tensor of 4 dimensions, or a list of
    frames.

    Args:
        videos: One of these, a list of them, or an array or tensor of 5 dimensions.

    Raises:
        ValueError: if it is something else, or empty.
    """
    if isinstance(videos, str | bytes | Path):
        return [videos]
    if isinstance(videos, np.ndarray | torch.Tensor):
        if videos.ndim not in (4, 5) or 0 in videos.shape:
            raise ValueError(
                f"an array of shape {tuple(videos.shape)} is no video; (T, H, W, C) and (T, C, H, W) are, or a batch of them"
            )
        return [videos] if videos.ndim == 4 else list(videos)
    if not isinstance(videos, list | tuple):
        raise ValueError(
            f"a video is a path, bytes, an array, a tensor or a list of frames, not {type(videos).__name__}"
        )
    if not videos:
        raise ValueError("an empty list is no video: give at least one frame")
    is_frame = isinstance(videos[0], Image.Image) or getattr(videos[0], "ndim", 4) in (2, 3)
    return [list(videos)] if is_frame else [video for part in videos for video in split_videos(part)]


def read_with_transformers(source: str | bytes, choose: ChooseFrames) -> tuple[list[np.ndarray], int]:
    """
    Reads frames with transformers' own decoders: torchcodec where it is installed, else PyAV.

    Args:
        source: A path, a URL or encoded bytes. choose: From the number of frames to the indices wanted.

    Returns:
        A frame (H, W, 3) for each index, RGB of 8 bits, and the number of frames.

    Raises:
        ValueError: if there is no such file, or it does not say how many frames it has, or has fewer.
    """
    if isinstance(source, str) and not source.startswith(("http://", "https://")) and not os.path.isfile(source):
        raise ValueError(f"{source}: no such video file")
    wanted: list[int] = []
    total = 0

    def choose_once(metadata: VideoMetadata, **_) -> np.ndarray:
        nonlocal total
        total = int(metadata.total_num_frames or 0)
        if not total:
            raise ValueError("the video does not say how many frames it has; hf_vit_family reads such files")
        wanted.extend(choose(total).tolist())
        return np.unique(wanted)  # decoders give a frame once, however often it is asked for

    if isinstance(source, bytes):
        frames, _ = read_video_pyav(io.BytesIO(source), choose_once)
    else:
        backend = "torchcodec" if is_torchcodec_available() else "pyav"
        frames, _ = load_video(source, backend=backend, sample_indices_fn=choose_once)
    position = {index: i for i, index in enumerate(sorted(set(wanted)))}
    if len(frames) != len(position):
        raise ValueError(f"the video says that it has {total} frames, but some cannot be read")
    return [np.asarray(frames[position[index]]) for index in wanted], total


class VitfVideoProcessorKwargs(VideosKwargs, total=False):
    r"""
    crop_pct (`float`, *optional*, defaults to `self.crop_pct`): Share of the resized frame that the centre crop keeps.
    frame_sampling (`str`, *optional*, defaults to `self.frame_sampling`): Which frames are taken.
    sampling_rate (`int`, *optional*, defaults to `self.sampling_rate`): Distance of frames of a dense clip.
    num_views (`int`, *optional*), num_crops (`int`, *optional*): Clips and crops of `make_views`.
    view_average (`str`, *optional*): What is averaged over views.
    """

    crop_pct: float | int | None
    frame_sampling: str | None
    sampling_rate: int | None
    num_views: int | None
    num_crops: int | None
    view_average: str | None


class VitfVideoProcessor(VitfImageProcessorMixin, BaseVideoProcessor):
    r"""
    The video processor of the family.

    Args:
        num_frames (`int`, *optional*, defaults to 8):
            Frames that are taken of a video; `None`, or `do_sample_frames=False` in a call, takes all. A video of exactly
            that many frames counts as sampled already.
        frame_sampling (`str`, *optional*, defaults to `"uniform"`):
            `"uniform"`: evenly over the whole video. `"dense"`: every `sampling_rate`-th frame of a window in its middle.
            `"segments"`: the middle frame of each of `num_frames` equal parts. Where a video has too few frames, uniform
            and segments repeat some, and dense holds the last.
        sampling_rate (`int`, *optional*, defaults to 1): Distance between the frames of a dense clip, in frames of the video.
        num_views, num_crops (`int`, *optional*, defaults to 1):
            Clips, and crops of each, that the architecture's authors test with; see `make_views`. A plain call gives one
            clip and its centre.
        view_average (`str`, *optional*, defaults to `"logits"`): What they average over views, `"logits"` or `"softmax"`.
        size, crop_pct, resample, image_mean, image_std, do_convert_rgb, do_resize, do_center_crop, do_rescale,
        do_normalize, rescale_factor: As those of [`VitfImageProcessor`].

    Call it on one video or a list of videos: arrays or tensors of (T, H, W, C) or (T, C, H, W), lists of frames, paths,
    URLs or encoded bytes. Returns `pixel_values` of (B, T, C, height, width) with `return_tensors="pt"`.

    Raises:
        ValueError: for a field that does not exist or a value that does not fit, and for input that is no video.
    """

    valid_kwargs = VitfVideoProcessorKwargs
    model_input_names = ["pixel_values"]
    num_frames = 8
    frame_sampling = "uniform"
    sampling_rate = 1
    num_views = num_crops = 1
    view_average = "logits"
    do_sample_frames = True
    # How files are read. hf_vit_family puts a decoder here that seeks and knows rotation and variable frame rates.
    read_frames = staticmethod(read_with_transformers)

    @classmethod
    def register_for_auto_class(cls, auto_class="AutoVideoProcessor"):
        """Does nothing: `CodeFilesMixin` saves the code."""

    def frame_chooser(self, view: int = 0, num_views: int = 1, **fields: Any) -> ChooseFrames:
        """What names the frames of a view; `fields` replace the processor's `num_frames`, `frame_sampling` and so on."""
        names = ("num_frames", "frame_sampling", "sampling_rate")
        values = {name: fields.get(name, getattr(self, name)) for name in names}
        self._check_sampling(**values)
        return lambda total: frame_indices(total, **values, view=view, num_views=num_views)

    def _check_sampling(self, num_frames: int | None, frame_sampling: str, sampling_rate: int) -> None:
        name = type(self).__name__
        if frame_sampling not in SAMPLINGS:
            raise ValueError(f"{name}: {unknown_name_message('frame_sampling', str(frame_sampling), SAMPLINGS)}")
        for field, value in (("num_frames", num_frames), ("sampling_rate", sampling_rate)):
            if not (isinstance(value, int) and value > 0) and (field, value) != ("num_frames", None):
                raise ValueError(f"{name}: {field}={value!r} is not a whole number above 0")

    def _standardize_kwargs(self, **kwargs):
        kwargs = super()._standardize_kwargs(**kwargs)
        if kwargs.get("fps") is not None:
            raise ValueError(f"{type(self).__name__}: fps is not used; sampling_rate is the distance in frames")
        if kwargs["view_average"] not in VIEW_AVERAGES:
            raise ValueError(
                f"{type(self).__name__}: view_average={kwargs['view_average']!r} is not one of {', '.join(VIEW_AVERAGES)}"
            )
        return kwargs

    def load_clips(self, video: Any, choosers: list[ChooseFrames]) -> list[tuple[list, np.ndarray, int]]:
        """
        The frames of several clips of one video, decoded once.

        Args:
            video: An entry of what `split_videos` returns. choosers: What names the frames of each clip.

        Returns:
            For each clip its frames as they came, their indices, and how many frames the video has.
        """
        chosen: list[np.ndarray] = []

        def choose(total: int) -> np.ndarray:
            chosen[:] = [chooser(total) for chooser in choosers]
            return np.concatenate(chosen)

        if isinstance(video, Path):
            video = str(video)
        if isinstance(video, str | bytes):
            frames, total = self.read_frames(video, choose)
        else:
            total = len(video)
            frames = [video[index] for index in choose(total)]
        ends = np.cumsum([len(indices) for indices in chosen])
        return [(frames[end - len(indices) : end], indices, total) for end, indices in zip(ends, chosen, strict=True)]

    def read_clip(self, video: Any, choose: ChooseFrames) -> torch.Tensor:
        """
        Frames of one video as they are, before they are resized.

        Args:
            video: One video in any form that a call takes. choose: From the number of frames to the indices wanted.

        Returns:
            (T, C, H, W), uint8 or float32.
        """
        [video] = split_videos(video)
        [(frames, _, _)] = self.load_clips(video, [choose])
        return self._stack(frames, self.do_convert_rgb)

    def _decode_and_sample_videos(self, videos, video_metadata=None, do_sample_frames=None, sample_indices_fn=None):
        """Videos as lists of frames. transformers calls it with `sample_indices_fn`, a partial `sample_frames`, or None."""
        clips, metadata = [], []
        for video in split_videos(videos):
            [(frames, indices, total)] = self.load_clips(video, [sample_indices_fn or np.arange])
            clips.append(frames)
            metadata.append(VideoMetadata(total_num_frames=total, frames_indices=indices))
        return clips, metadata

    def sample_frames(self, total: int, **kwargs) -> np.ndarray:
        """Indices (T,) of the frames taken of a video with `total` frames; keyword arguments replace fields."""
        return self.frame_chooser(**kwargs_of_sampling(kwargs))(total)

    def _prepare_input_videos(self, videos, do_convert_rgb=None, input_data_format=None, device=None):
        """Each clip as (T, C, H, W): every frame as the image processor would have it."""
        return [self._stack(frames, do_convert_rgb, input_data_format, device) for frames in videos]

    def _stack(self, frames: list, do_convert_rgb: bool | None, input_data_format=None, device=None) -> torch.Tensor:
        channels = len(self.image_mean)
        rgb = bool(do_convert_rgb) and channels == 3
        tensors = [to_channels_first(frame, channels, rgb, input_data_format) for frame in frames]
        shapes = sorted({tuple(tensor.shape) for tensor in tensors})
        if len(shapes) > 1:
            raise ValueError(f"the frames of a video differ in shape: {', '.join(map(str, shapes))}")
        clip = torch.stack(tensors)
        return clip if device is None else clip.to(device)

    def _preprocess(self, videos, return_tensors=None, **kwargs):
        channels = len(kwargs["image_mean"])
        for clip in videos:
            if clip.shape[1] != channels:
                raise ValueError(
                    f"image_mean of a call has {channels} values, that of {type(self).__name__} {clip.shape[1]}: set it there"
                )
        prepared = super()._preprocess(videos, return_tensors=None, **kwargs)["pixel_values_videos"]
        return BatchFeature(data={"pixel_values": prepared}, tensor_type=return_tensors)

    def make_views(self, video: Any, num_views: int | None = None, num_crops: int | None = None) -> torch.Tensor:
        """
        What a model is tested on: several clips of one video, and of each several crops.

        Args:
            video: One video in any form that a call takes.
            num_views: Clips; the processor's own number by default. num_crops: Crops of each, likewise.

        Returns:
            (V, T, C, height, width), V = `num_views * num_crops`; the crops of a clip follow each other. With one crop it
            is the centre, as in a call.
        """
        num_views = self.num_views if num_views is None else num_views
        num_crops = self.num_crops if num_crops is None else num_crops
        if num_views < 1 or num_crops < 1:
            raise ValueError(
                f"{type(self).__name__}: {num_views} x {num_crops} views; at least one clip and crop is needed"
            )
        videos = split_videos(video)
        if len(videos) > 1:
            raise ValueError("make_views takes one video at a time")
        choosers = [self.frame_chooser(view, num_views) for view in range(num_views)]
        clips = [self._stack(frames, self.do_convert_rgb) for frames, _, _ in self.load_clips(videos[0], choosers)]
        settings = {"do_sample_frames": False, "input_data_format": "channels_first", "return_tensors": "pt"}
        if num_crops > 1:
            size = (self.size["height"], self.size["width"])
            height, width = covering_size(*clips[0].shape[-2:], size, self.crop_pct or 1.0)
            resized = [self.resize(clip, SizeDict(height=height, width=width), self.resample) for clip in clips]
            clips = [crop for clip in resized for crop in spatial_crops(clip, size, num_crops)]
            settings |= {"do_resize": False, "do_center_crop": False}
        return self(clips, **settings)["pixel_values"]


def kwargs_of_sampling(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Those keyword arguments of a call that say which frames are taken."""
    return {name: kwargs[name] for name in ("num_frames", "frame_sampling", "sampling_rate") if name in kwargs}


__all__ = ["VitfVideoProcessor"]
