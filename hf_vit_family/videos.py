"""
Reading frames from video files that nobody has checked.

PyAV decodes, whose wheels carry FFmpeg with its codecs; torchcodec does where it is installed and finds FFmpeg. Only what
is needed is decoded: a reader jumps to the key frame before each wanted frame, so that an hour costs as much time and
memory as a minute.

Frames are counted in time: frame i of a video of N frames is what is on the screen in the middle of the i-th of N equal
spans. Where frames come at a constant rate that is the i-th frame; where they do not, clips keep their speed.
"""

import io
import os
import shutil
import tempfile
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
from torch.utils.data import get_worker_info

from .images import UnreadableFileError
from .modeling.video_processing_vitf import ChooseFrames

# Containers alone: FFmpeg also opens playlists, which name other files and addresses, and pictures.
FORMATS = (
    *("mov", "mp4", "m4a", "3gp", "3g2", "mj2", "matroska", "webm", "avi", "mpegts", "mpeg", "mpegvideo", "m4v", "flv"),
    *("asf", "ogg", "gif", "mxf", "nut", "ivf", "dv", "h264", "hevc", "wtv", "rm"),
)
# A file that ends earlier than it says, by more than this share of its length, is truncated.
LARGEST_GAP = 0.1


class UnreadableVideoError(UnreadableFileError):
    """A video cannot be decoded. The message names it and the reason."""


class _EndsEarlyError(Exception):
    """There are fewer frames than the container says."""


@dataclass
class Timeline:
    """
    When frames are shown.

    Args:
        start: Of the first frame, in seconds. total: Number of frames. rate: Frames a second, on average.
    """

    start: float
    total: int
    rate: float

    def middle(self, index: int) -> float:
        """A time in seconds at which frame `index` is on the screen."""
        return self.start + (index + 0.5) / self.rate


class VideoReader:
    """
    Frames of an open video, in ascending order of time.

    Args:
        file: The encoded video.

    Raises:
        UnreadableVideoError, av.error.FFmpegError: if it is no video, is broken, or has no frame.
    """

    def __init__(self, file: BinaryIO):
        self.file = file
        self.container = None
        self.timeline = None
        self.patience = 1.0  # seconds to decode rather than look for a key frame in between
        try:
            self.rewind()
            self.first_time = self.ahead_time
            self.timeline = self._declared() or self._scanned()
        except BaseException:
            self.close()
            raise

    def rewind(self) -> None:
        """Goes back to the first frame, in a way that works for every container."""
        self.close()
        self.container = _open_container(self.file)
        attached = av.stream.Disposition.attached_pic
        self.stream = next((s for s in self.container.streams.video if not s.disposition & attached), None)
        if self.stream is None:
            raise UnreadableVideoError("it has no video stream")
        if get_worker_info() is None:
            self.stream.thread_type = "AUTO"  # loader workers share the cores already
        self.count = 0
        self._start_decoding()
        if self.ahead is None:
            raise UnreadableVideoError("it has no frame that can be decoded")

    def close(self) -> None:
        """
        Frees the decoder and its threads now.

        Left to the garbage collector, they might be freed in a forked loader worker, which would wait for ever: threads
        are not copied with a process.
        """
        if self.container is not None:
            self.container.close()
        self.container = self.stream = self.frames = self.current = self.ahead = None

    def _start_decoding(self) -> None:
        self.frames = self.container.decode(self.stream)
        self.current = None  # what is on the screen, and
        self.ahead = None  # what comes next
        self._advance()

    def _advance(self) -> None:
        self.current, self.ahead = self.ahead, next(self.frames, None)
        if self.ahead is not None:
            # Raw streams have no times: their frames are counted instead.
            self.ahead_time = float(self.count) if self.ahead.time is None else self.ahead.time
            self.count += 1

    def _declared(self) -> Timeline | None:
        """The timeline that the header gives; None where it does not."""
        seconds = None
        if self.stream.duration:
            seconds = float(self.stream.duration * self.stream.time_base)
        elif self.container.duration:
            seconds = self.container.duration / av.time_base
        rate = self.stream.average_rate or self.stream.guessed_rate
        if self.ahead.time is None or not seconds or not (self.stream.frames or rate):
            return None
        total = max(self.stream.frames or round(seconds * rate), 1)
        return Timeline(self.first_time, total, total / seconds)

    def _scanned(self) -> Timeline:
        """The timeline from every packet of the file, undecoded. UnreadableVideoError if much less is there than declared."""
        declared = self.timeline
        container_seconds = (self.container.duration or 0) / av.time_base
        times, last_end, number = [], 0.0, 0
        with _open_container(self.file) as container:
            try:
                for packet in container.demux():
                    if not packet.size:
                        continue
                    time = packet.pts if packet.pts is not None else packet.dts
                    seconds = None if time is None else float(time * packet.time_base)
                    if packet.stream.index == self.stream.index:
                        number += 1
                        times += [] if seconds is None else [seconds]
                    if seconds is not None:
                        last_end = max(last_end, seconds + float((packet.duration or 0) * packet.time_base))
            except av.error.FFmpegError:
                pass  # what came before the damage tells how much is missing
        self.rewind()
        if len(times) < number or self.ahead.time is None:
            return Timeline(0.0, number, 1.0)
        slack = 2 / declared.rate if declared else 0.0
        if last_end - self.first_time < container_seconds * (1 - LARGEST_GAP) - slack:
            raise UnreadableVideoError(
                f"it ends after {last_end:.1f} of {container_seconds:.1f} seconds: truncated or damaged"
            )
        seconds = max(times) - self.first_time
        rate = (number - 1) / seconds if seconds > 0 else 1.0
        return Timeline(self.first_time, number, rate)

    def at(self, times: list[float]) -> Iterator[av.VideoFrame]:
        """
        What is on the screen at each of some ascending times, in seconds.

        Raises:
            _EndsEarlyError: if the video ends before the last of them.
        """
        for time in times:
            if self.ahead is not None and time - self.ahead_time > self.patience:
                self._jump(time)
            while self.ahead is not None and self.ahead_time <= time:
                self._advance()
            shown = self.current or self.ahead
            if self.ahead is None:
                held = float((shown.duration or 0) * shown.time_base) if shown.time_base else 0.0
                if time > self.ahead_time + max(held, 1 / self.timeline.rate) + 0.5 / self.timeline.rate:
                    raise _EndsEarlyError
            yield shown

    def _jump(self, time: float) -> None:
        """To the last key frame before a time, unless that lies behind; to the start where the container finds none."""
        if self.ahead.time is None:
            return
        before = self.ahead_time
        for margin in (0.0, 10.0):  # transport streams may land after the time that they were asked for
            offset = int((time - margin) / self.stream.time_base)
            try:
                self.container.seek(offset, stream=self.stream, backward=True)
                self._start_decoding()
            except av.error.FFmpegError:
                break
            if self.ahead is not None and self.ahead_time <= time:
                if self.ahead_time <= before:
                    self.patience = 2 * (time - before)
                return
        self.patience = float("inf")
        self.rewind()


def _open_container(file: BinaryIO) -> av.container.InputContainer:
    file.seek(0)
    try:
        return av.open(file, options={"format_whitelist": ",".join(FORMATS)})
    except av.error.FFmpegError as error:
        raise UnreadableVideoError("no video of a known format, or damaged") from error


def _open(source: bytes | str | Path) -> BinaryIO:
    """A file to read and seek in; what is at a URL is copied to a temporary file, since servers need not seek."""
    if isinstance(source, bytes):
        return io.BytesIO(source)
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        file = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
        with urllib.request.urlopen(source, timeout=60) as response:
            shutil.copyfileobj(response, file)
        return file
    return open(source, "rb")


def _to_rgb(frame: av.VideoFrame) -> np.ndarray:
    """(H, W, 3), upright as the file's display matrix says."""
    # One thread, because a frame keeps its converter: see VideoReader.close.
    pixels = frame.reformat(format="rgb24", threads=1).to_ndarray()
    return np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90) % 4))


def _read_with_pyav(file: BinaryIO, choose: ChooseFrames) -> tuple[list[np.ndarray], int]:
    reader = VideoReader(file)
    try:
        for attempt in ("declared", "scanned"):
            timeline = reader.timeline
            wanted = choose(timeline.total).tolist()
            distinct = sorted(set(wanted))
            try:
                shown = reader.at([timeline.middle(index) for index in distinct])
                frames = {index: _to_rgb(frame) for index, frame in zip(distinct, shown, strict=True)}
            except (_EndsEarlyError, av.error.FFmpegError) as error:
                if attempt == "declared":  # with one thread, a decoder fails where the file was cut off
                    reader.timeline = reader._scanned()
                elif isinstance(error, _EndsEarlyError):
                    raise UnreadableVideoError("its last frames cannot be decoded") from None
                else:
                    raise
            else:
                return [frames[index] for index in wanted], timeline.total
    finally:
        reader.close()


def _read_with_torchcodec(file: BinaryIO, choose: ChooseFrames) -> tuple[list[np.ndarray], int]:
    from torchcodec.decoders import VideoDecoder

    # PyAV opens nothing but the formats above, and tells when frames are shown: decoders disagree on where a video ends.
    reader = VideoReader(file)
    timeline = reader.timeline
    reader.close()
    file.seek(0)
    decoder = VideoDecoder(file, dimension_order="NHWC")
    wanted = choose(timeline.total).tolist()
    distinct = sorted(set(wanted))
    batch = decoder.get_frames_played_at([timeline.middle(index) for index in distinct])
    frames = dict(zip(distinct, batch.data.numpy(), strict=True))
    return [frames[index] for index in wanted], timeline.total


def _torchcodec_works() -> bool:
    """Whether torchcodec is installed, fits this torch, and finds the libraries of FFmpeg, which it does not bring."""
    try:
        import torchcodec.decoders  # noqa: F401
    except (ImportError, RuntimeError, OSError):
        return False
    return True


def _read(file: BinaryIO, choose: ChooseFrames) -> tuple[list[np.ndarray], int]:
    if _torchcodec_works():
        try:
            return _read_with_torchcodec(file, choose)
        except (RuntimeError, ValueError, IndexError):
            pass  # it knows neither raw streams nor all transport streams: PyAV reads them, or says what is wrong
    return _read_with_pyav(file, choose)


def read_frames(
    source: bytes | str | Path, choose: ChooseFrames, name: str | None = None
) -> tuple[list[np.ndarray], int]:
    """
    Decodes some frames of a video as people see them: RGB, turned as the file says.

    Args:
        source: The encoded video, its path, or a URL.
        choose: From the number of frames to the indices wanted, which may repeat.
        name: What error messages call the video; the path by default.

    Returns:
        For each index a frame, uint8 (H, W, 3); and the number of frames.

    Raises:
        UnreadableVideoError: if it is missing, empty, truncated, damaged, or no video of a known format.
    """
    if name is None:
        name = f"of {len(source)} bytes" if isinstance(source, bytes) else str(source)
    try:
        with _open(source) as file:
            if not file.seek(0, os.SEEK_END):
                raise UnreadableVideoError("empty file")
            return _read(file, choose)
    except (UnreadableVideoError, av.error.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        if isinstance(error, av.error.FFmpegError):
            reason = f"damaged: {reason}"
        raise UnreadableVideoError(f"cannot read video {name}: {' '.join(str(reason).split())}") from error
