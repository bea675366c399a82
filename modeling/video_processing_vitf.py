"""
Video processor of the whole family: which frames of a video a model sees, and how they are prepared.

Frames are prepared as `VitfImageProcessor` prepares images, all of a clip alike. Which frames are taken follows the
code that the published weights were measured with: facebookresearch/SlowFast@287ec00 slowfast/datasets/decoder.py and
kinetics.py (dense), facebookresearch/TimeSformer@a5ef29a timesformer/datasets/decoder.py (dense_from_start) and ssv2.py
(segments), google-deepmind/dmvr@77cceda dmvr/processors.py (strided).

All of them count frames at a rate of their own, `sampling_fps`, whatever that of a file. Dense windows last as long as
so many frames at that rate. For strided clips and segments the authors had FFmpeg make files of that rate first:
`resampled_frames` names the frames that such a file would repeat or leave out, and nothing is encoded again.

Shapes: N frames of a video, B videos, V views, T frames of a clip, C channels, H x W pixels.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_utils import SizeDict
from transformers.processing_utils import VideosKwargs
from transformers.video_processing_utils import BaseVideoProcessor
from transformers.video_utils import VideoMetadata

from .configuration_vitf import unknown_name_message
from .image_processing_pil_vitf import VitfImageProcessorMixin, covering_size, to_channels_first
from .video_reading_vitf import ChooseFrames, is_encoded_video, read_frames


def resampled_frames(total: int, fps: float | None, target: float | None) -> np.ndarray:
    """
    Which frame is shown at each tick of a constant rate: what FFmpeg's filter `fps` makes of frames at equal distances.

    A frame is shown from the tick nearest to its time, of two the later one, to that of the next frame.

    Args:
        total: Frames of the video. fps: How many of them a second. target: Ticks a second.

    Returns:
        int64 (ticks,); every frame once where a rate is not known.
    """
    if fps is None or target is None:
        return np.arange(total)
    first_ticks = np.floor(np.arange(total + 1) * target / fps + 0.5)
    return np.searchsorted(first_ticks[:-1], np.arange(max(first_ticks[-1], 1)), side="right") - 1


def uniform_frames(total: int, num_frames: int, view: int | None, num_views: int) -> np.ndarray:
    """
    Frames that are evenly spread over the whole video, its first and its last among them; views take turns. At random:
    at equal distances too, all moved by a part of one.
    """
    if view is None:
        offset = float(torch.rand((), dtype=torch.float64))
        return ((np.arange(num_frames) + offset) * total / num_frames).astype(np.int64)
    return np.linspace(0, total - 1, num_frames * num_views).astype(np.int64)[view::num_views]


def segment_frames(total: int, num_frames: int, view: int | None, num_views: int) -> np.ndarray:
    """
    One frame from each of `num_frames` equal parts of the video (TSN, arXiv 1608.00859): the middle one of each part in
    the first view, its first in the second, its last in the third. More than three views are spread from first to last.
    """
    edges = np.round(np.arange(num_frames + 1) * ((total - 1) / num_frames)).astype(np.int64)
    first, last = edges[:-1], edges[1:]
    if view is None:
        return first + (torch.rand(num_frames, dtype=torch.float64).numpy() * (last - first + 1)).astype(np.int64)
    if num_views > 3:
        return first + view * (last - first) // (num_views - 1)
    return ((first + last) // 2, first, last)[view]


def strided_frames(total: int, num_frames: int, sampling_rate: int, view: int | None, num_views: int) -> np.ndarray:
    """Every `sampling_rate`-th frame from some frame on; after the last frame of the video comes its first."""
    if view is None:
        start = int(torch.randint(max(total - (num_frames - 1) * sampling_rate, 1), ()))
    else:
        room = max(total - num_frames * sampling_rate, 0)
        start = room // 2 if num_views == 1 else view * room // (num_views - 1)
    return (start + np.arange(num_frames) * sampling_rate) % total


def window_frames(
    total: int, num_frames: int, size: float, view: int | None, num_views: int, from_start: bool
) -> np.ndarray:
    """
    Frames at equal distances from the first to the last of a window of `size` frames of the video; where the video ends
    within it, its last frame is held.
    """
    size = max(size, 1.0)
    room = max(total - size, 0.0)
    if view is None:
        start = float(torch.rand((), dtype=torch.float64)) * room
    elif from_start:
        start = room * view / num_views
    else:
        start = room // 2 if num_views == 1 else view * (room // (num_views - 1))
    # Decoders begin with the first frame that is not before the start, whose time files round.
    first = math.ceil(round(start, 3))
    # Single precision, as where the weights were measured: it decides what is rounded down.
    return (first + torch.linspace(0, size - 1, num_frames).long().numpy()).clip(max=total - 1)


SAMPLINGS = ("uniform", "dense", "dense_from_start", "strided", "segments")
# Fields of a processor that say which frames are taken.
SAMPLING_FIELDS = ("num_frames", "frame_sampling", "sampling_rate", "sampling_fps", "fps")
VIEW_AVERAGES = ("logits", "softmax")


def frame_indices(
    total: int,
    num_frames: int | None,
    frame_sampling: str,
    sampling_rate: int = 1,
    sampling_fps: float | None = None,
    fps: float | None = None,
    view: int | None = 0,
    num_views: int = 1,
) -> np.ndarray:
    """
    The frames of a clip.

    `num_frames=None` takes every frame. Of a video whose rate is not known, exactly `num_frames` frames count as
    sampled already. Where a video has too few frames, some come more than once.

    Args:
        total: Frames of the video.
        num_frames: Frames of the clip.
        frame_sampling: One of `SAMPLINGS`.
        sampling_rate: Distance of the frames of a clip at the rate `sampling_fps`, for all but uniform and segments.
        sampling_fps: Frames a second at which frames are counted. None: those of the video, whatever their rate.
        fps: Frames a second of the video. None: not known, and taken for `sampling_fps`.
        view: Which of `num_views` clips, from 0. None: a clip at random, as for training, drawn with torch's generator.

    Returns:
        int64 (T,), in ascending order but for strided clips that begin again.
    """
    if num_frames is None or (fps is None and total == num_frames):
        return np.arange(total)
    if frame_sampling == "uniform":
        return uniform_frames(total, num_frames, view, num_views)
    if frame_sampling.startswith("dense"):
        # In this order: rounding decides where windows begin.
        size = sampling_rate * num_frames
        size = float(size) if fps is None or sampling_fps is None else size / sampling_fps * fps
        return window_frames(total, num_frames, size, view, num_views, frame_sampling == "dense_from_start")
    shown = resampled_frames(total, fps, sampling_fps)
    if frame_sampling == "strided":
        return shown[strided_frames(len(shown), num_frames, sampling_rate, view, num_views)]
    return shown[segment_frames(len(shown), num_frames, view, num_views)]


def every_frame(total: int, fps: float | None) -> np.ndarray:
    """A `ChooseFrames` that takes all."""
    return np.arange(total)


def spatial_crops(clip: torch.Tensor, size: tuple[int, int], num_crops: int) -> list[torch.Tensor]:
    """
    Crops of (T, C, *size) from (T, C, H, W), evenly spread from edge to edge of the direction with more room: for three
    left, centre and right, or top, centre and bottom. Where half a pixel is over, crops begin after it, as those of
    facebookresearch/SlowFast@287ec00 slowfast/datasets/transform.py and google-research/scenic@4a38d47
    scenic/dataset_lib/video_ops.py.
    """
    margins = [have - keep for have, keep in zip(clip.shape[-2:], size, strict=True)]
    crops = []
    for index in range(num_crops):
        start = [math.ceil(margin / 2) for margin in margins]
        if num_crops > 1:
            longer = int(margins[1] >= margins[0])
            start[longer] = math.ceil(margins[longer] * index / (num_crops - 1))
        top, left = start
        crops.append(clip[..., top : top + size[0], left : left + size[1]])
    return crops


def frame_rates(video_metadata: Any, num_videos: int) -> list[float | None]:
    """
    Frames a second of each video, from what transformers calls `video_metadata`: a `VideoMetadata` or dict with a key
    `fps`, or a list of them. None where it is not said.

    Raises:
        ValueError: if there is not one entry for each video.
    """
    if video_metadata is None:
        return [None] * num_videos
    entries = [video_metadata] if isinstance(video_metadata, Mapping) else list(video_metadata)
    entries = [entry for part in entries for entry in ([part] if isinstance(part, Mapping) else part)]
    if len(entries) != num_videos:
        raise ValueError(f"video_metadata has {len(entries)} entries for {num_videos} videos; give one for each")
    return [entry.get("fps") for entry in entries]


def split_videos(videos: Any) -> list:
    """
    A list with one entry for each video: an encoded one in any form that `read_frames` takes, an array or tensor of 4
    dimensions, a list of frames, or a decoder that gives frames by their index, as torchcodec's VideoDecoder does.

    Args:
        videos: One of these, a list of them, or an array or tensor of 5 dimensions.

    Raises:
        ValueError: if it is something else, or empty.
    """
    if is_encoded_video(videos) or hasattr(videos, "get_frames_at"):
        return [videos]
    if isinstance(videos, np.ndarray | torch.Tensor):
        if videos.ndim not in (4, 5) or 0 in videos.shape:
            raise ValueError(
                f"an array of shape {tuple(videos.shape)} is no video; (T, H, W, C) and (T, C, H, W) are, or a batch "
                f"of them"
            )
        return [videos] if videos.ndim == 4 else list(videos)
    if not isinstance(videos, list | tuple):
        raise ValueError(
            f"a video is a path, a file, bytes, an array, a tensor or a list of frames, not {type(videos).__name__}"
        )
    if not videos:
        raise ValueError("an empty list is no video: give at least one frame")
    is_frame = isinstance(videos[0], Image.Image) or getattr(videos[0], "ndim", 4) in (2, 3)
    return [list(videos)] if is_frame else [video for part in videos for video in split_videos(part)]


class VitfVideoProcessorKwargs(VideosKwargs, total=False):
    r"""
    crop_pct (`float`, *optional*, defaults to `self.crop_pct`): Share of the resized frame that the centre crop keeps.
    frame_sampling (`str`, *optional*, defaults to `self.frame_sampling`): Which frames are taken. sampling_rate (`int`,
    *optional*, defaults to `self.sampling_rate`): Distance of frames of a clip. sampling_fps (`float`, *optional*,
    defaults to `self.sampling_fps`): Frames a second at which that distance is counted. crop_mode (`str`, *optional*,
    defaults to `self.crop_mode`): How frames are resized before they are cropped. crop_rounding (`str`, *optional*,
    defaults to `self.crop_rounding`): Where half a pixel goes in the centre crop. num_views (`int`, *optional*),
    num_crops (`int`, *optional*): Clips and crops of `make_views`. view_average (`str`, *optional*): What is averaged
    over views.
    """

    crop_pct: float | int | None
    frame_sampling: str | None
    sampling_rate: int | None
    sampling_fps: float | int | None
    crop_mode: str | None
    crop_rounding: str | None
    num_views: int | None
    num_crops: int | None
    view_average: str | None


class VitfVideoProcessor(VitfImageProcessorMixin, BaseVideoProcessor):
    r"""
    The video processor of the family.

    Args:
        num_frames (`int`, *optional*, defaults to 8): Frames that are taken of a video; `None`, or
            `do_sample_frames=False` in a call, takes all. An array of exactly that many frames, whose rate is not
            given, counts as sampled already.
        frame_sampling (`str`, *optional*, defaults to `"uniform"`): `"uniform"`: evenly over the whole video.
            `"segments"`: the middle frame of each of `num_frames` equal parts. `"dense"`: evenly over a window of
            `sampling_rate * num_frames` frames in its middle, as SlowFast and MViT; `"dense_from_start"`: such a window
            at its start, as TimeSformer and X-ViT. `"strided"`: every `sampling_rate`-th frame around its middle, as
            ViViT. Where a video has too few frames, uniform and segments repeat some, dense clips hold the last, and
            strided clips begin again.
        sampling_rate (`int`, *optional*, defaults to 1): Distance between the frames of a dense or strided clip, in
        frames. sampling_fps (`float`, *optional*, defaults to 30):
            How many of these frames make a second: a clip lasts as long at every rate of a file. Segments are counted
            in them too. `None`: they are those of the file, whatever its rate. Files that do not name this field count
            at 30.
        fps (`float`, *optional*): Frames that are taken a second, in place of `sampling_rate` and `sampling_fps`: of a
            dense or strided clip, or with `num_frames=None` of the whole video.
        num_views, num_crops (`int`, *optional*, defaults to 1): Clips, and crops of each, that the architecture's
            authors test with; see `make_views`. A plain call gives one clip and its centre.
        view_average (`str`, *optional*, defaults to `"logits"`): What they average over views, `"logits"` or
        `"softmax"`. crop_rounding (`str`, *optional*, defaults to `"up"`):
            Where the centre crop of a call begins when half a pixel is over: `"up"`, after it, or `"down"`, before it.
        size, crop_pct, crop_mode, resample, image_mean, image_std, do_convert_rgb, do_resize, do_center_crop,
        do_rescale, do_normalize, rescale_factor: As those of [`VitfImageProcessor`].

    Call it on one video or a list of videos: arrays or tensors of (T, H, W, C) or (T, C, H, W), lists of frames, paths,
    URLs, open files, encoded bytes, `{"path", "bytes"}` cells, or what `datasets` gives for a Video column. Files say
    how many frames they show a second; for arrays say it as `video_metadata=[{"total_num_frames": 300, "fps": 25.0}]`,
    one entry for each video, or they count as frames at `sampling_fps`. Returns `pixel_values` of (B, T, C, height,
    width) with `return_tensors="pt"`.

    Raises:
        ValueError: for a field that does not exist or a value that does not fit, and for input that is no video.
    """

    valid_kwargs = VitfVideoProcessorKwargs
    model_input_names = ["pixel_values"]
    num_frames = 8
    frame_sampling = "uniform"
    sampling_rate = 1
    sampling_fps = 30
    num_views = num_crops = 1
    crop_rounding = "up"
    crop_roundings = ("up", "down")
    view_average = "logits"
    do_sample_frames = True

    @classmethod
    def register_for_auto_class(cls, auto_class="AutoVideoProcessor"):
        """Does nothing: `CodeFilesMixin` saves the code."""

    def frame_chooser(self, view: int | None = 0, num_views: int = 1, **fields: Any) -> ChooseFrames:
        """
        What names the frames of a view, or at random with `view=None`; `fields` replace those of `SAMPLING_FIELDS` that
        the processor has.
        """
        values = {name: fields.get(name, getattr(self, name, None)) for name in SAMPLING_FIELDS}
        self._check_sampling(**values)
        wanted_fps = values.pop("fps")
        if wanted_fps is None:
            return lambda total, fps: frame_indices(total, **values, fps=fps, view=view, num_views=num_views)
        values["sampling_fps"] = wanted_fps * values["sampling_rate"]

        def choose(total: int, fps: float | None) -> np.ndarray:
            if fps is None:
                raise ValueError(
                    f"{type(self).__name__}: fps={wanted_fps} needs the rate of the video; name it in video_metadata"
                )
            if values["num_frames"] is None:
                return resampled_frames(total, fps, wanted_fps)
            return frame_indices(total, **values, fps=fps, view=view, num_views=num_views)

        return choose

    def _check_sampling(
        self,
        num_frames: int | None,
        frame_sampling: str,
        sampling_rate: int,
        sampling_fps: float | None,
        fps: float | None,
    ) -> None:
        name = type(self).__name__
        if frame_sampling not in SAMPLINGS:
            raise ValueError(f"{name}: {unknown_name_message('frame_sampling', str(frame_sampling), SAMPLINGS)}")
        for field, value in (("num_frames", num_frames), ("sampling_rate", sampling_rate)):
            if not (isinstance(value, int) and value > 0) and (field, value) != ("num_frames", None):
                raise ValueError(f"{name}: {field}={value!r} is not a whole number above 0")
        for field, value in (("sampling_fps", sampling_fps), ("fps", fps)):
            if value is not None and not (isinstance(value, int | float) and 0 < value < math.inf):
                raise ValueError(f"{name}: {field}={value!r} is not a number of frames a second above 0")
        if fps is not None and num_frames is not None and frame_sampling in ("uniform", "segments"):
            raise ValueError(
                f"{name}: frame_sampling={frame_sampling!r} spreads {num_frames} frames over the whole video, so "
                f"fps={fps} cannot hold; set frame_sampling to 'dense', or num_frames to None"
            )

    def _standardize_kwargs(self, **kwargs):
        kwargs = super()._standardize_kwargs(**kwargs)
        if kwargs["view_average"] not in VIEW_AVERAGES:
            name, choices = type(self).__name__, ", ".join(VIEW_AVERAGES)
            raise ValueError(f"{name}: view_average={kwargs['view_average']!r} is not one of {choices}")
        return kwargs

    def load_clips(
        self, video: Any, choosers: list[ChooseFrames], fps: float | None = None
    ) -> list[tuple[list, np.ndarray, int]]:
        """
        The frames of several clips of one video, decoded once.

        Args:
            video: An entry of what `split_videos` returns. choosers: What names the frames of each clip.
            fps: Frames a second; by default what a file says, and for arrays not known.

        Returns:
            For each clip its frames as they came, their indices, and how many frames the video has.
        """
        chosen: list[np.ndarray] = []

        def choose(total: int, file_fps: float | None) -> np.ndarray:
            chosen[:] = [chooser(total, file_fps if fps is None else fps) for chooser in choosers]
            return np.concatenate(chosen)

        if is_encoded_video(video):
            frames, total = read_frames(video, choose)
        else:
            total = len(video)
            own_fps = getattr(getattr(video, "metadata", None), "average_fps", None)  # of a VideoDecoder
            frames = [video[index] for index in choose(total, own_fps).tolist()]
        ends = np.cumsum([len(indices) for indices in chosen])
        return [(frames[end - len(indices) : end], indices, total) for end, indices in zip(ends, chosen, strict=True)]

    def read_clip(self, video: Any, choose: ChooseFrames) -> torch.Tensor:
        """
        Frames of one video as they are, before they are resized.

        Args:
            video: One video in any form that a call takes. choose: Names the frames, see `ChooseFrames`.

        Returns:
            (T, C, H, W), uint8 or float32.
        """
        [video] = split_videos(video)
        [(frames, _, _)] = self.load_clips(video, [choose])
        return self._stack(frames, self.do_convert_rgb)

    def _decode_and_sample_videos(self, videos, video_metadata=None, do_sample_frames=None, sample_indices_fn=None):
        """
        Videos as lists of frames. transformers calls it with `sample_indices_fn`, a partial `sample_frames`, or None.
        """
        videos = split_videos(videos)
        clips, metadata = [], []
        for video, given_fps in zip(videos, frame_rates(video_metadata, len(videos)), strict=True):
            rates = []

            def choose(total: int, fps: float | None, rates=rates) -> np.ndarray:
                rates.append(fps)
                return (sample_indices_fn or every_frame)(total, fps)

            [(frames, indices, total)] = self.load_clips(video, [choose], given_fps)
            clips.append(frames)
            metadata.append(VideoMetadata(total_num_frames=total, fps=rates[-1], frames_indices=indices))
        return clips, metadata

    def sample_frames(self, total: int, video_fps: float | None = None, /, **kwargs) -> np.ndarray:
        """
        Indices (T,) of the frames taken of a video of `total` frames, `video_fps` of them a second; keyword arguments
        replace fields.
        """
        return self.frame_chooser(**{name: kwargs[name] for name in SAMPLING_FIELDS if name in kwargs})(
            total, video_fps
        )

    def _prepare_input_videos(self, videos, do_convert_rgb=None, input_data_format=None, device=None):
        """Each clip as (T, C, H, W): every frame as the image processor would have it."""
        return [self._stack(frames, do_convert_rgb, input_data_format, device) for frames in videos]

    def _stack(self, frames: list, do_convert_rgb: bool | None, input_data_format=None, device=None) -> torch.Tensor:
        channels = len(self.image_mean)
        convert = bool(do_convert_rgb)
        tensors = [to_channels_first(frame, channels, convert, input_data_format) for frame in frames]
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
                    f"image_mean of a call has {channels} values, that of {type(self).__name__} {clip.shape[1]}: set "
                    f"it there"
                )
        prepared = super()._preprocess(videos, return_tensors=None, **kwargs)["pixel_values_videos"]
        return BatchFeature(data={"pixel_values": prepared}, tensor_type=return_tensors)

    def make_views(
        self, video: Any, num_views: int | None = None, num_crops: int | None = None, video_metadata: Any = None
    ) -> torch.Tensor:
        """
        What a model is tested on: several clips of one video, and of each several crops.

        Args:
            video: One video in any form that a call takes.
            num_views: Clips; the processor's own number by default. num_crops: Crops of each, likewise.
            video_metadata: As in a call.

        Returns:
            (V, T, C, height, width), V = `num_views * num_crops`; the crops of a clip follow each other. With one crop
            it is the centre, as in a call.
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
        [fps] = frame_rates(video_metadata, 1)
        loaded = self.load_clips(videos[0], choosers, fps)
        clips = [self._stack(frames, self.do_convert_rgb) for frames, _, _ in loaded]
        settings = {"do_sample_frames": False, "input_data_format": "channels_first", "return_tensors": "pt"}
        if num_crops > 1:
            size = (self.size["height"], self.size["width"])
            height, width = covering_size(*clips[0].shape[-2:], size, self.crop_pct or 1.0)
            resized = [self.resize(clip, SizeDict(height=height, width=width), self.resample) for clip in clips]
            clips = [crop for clip in resized for crop in spatial_crops(clip, size, num_crops)]
            settings |= {"do_resize": False, "do_center_crop": False}
        return self(clips, **settings)["pixel_values"]


__all__ = ["VitfVideoProcessor"]
