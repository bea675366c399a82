"""
Reads frames from video files that nobody has checked. It needs PyAV, whose wheels carry FFmpeg with its codecs, and
numpy.

Frame i of a file is the i-th frame that decoding the whole file gives, in the order in which frames are shown. The code
that the published weights were measured with counts so too, at a constant frame rate and at a variable one: decord,
lists of frames that PyAV decodes, torchvision.io.read_video.

A file is read in two passes. The first looks at its packets without decoding them, and so learns when each frame is
shown and where the key frames are: headers are not believed, since many give no number of frames, a guess, or that of
frames that an edit list hides. The second jumps to the key frame before each wanted frame and decodes from there. Of a
long file little more is decoded than of a short one, but all its bytes are read. Each decoded frame must have the time
that the packets foretold. Where one has not (a damaged packet, an AVI file, which stores no times of display), the
whole file is decoded and its frames are counted.
"""

import bisect
import contextlib
import functools
import io
import itertools
import logging
import os
import shutil
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

import numpy as np
from huggingface_hub import HfFileSystem
from torch.utils.data import get_worker_info

logger = logging.getLogger(__name__)

# From the number of frames of a video, and how many are shown a second where that is known, to the indices of those to
# read.
ChooseFrames = Callable[[int, float | None], np.ndarray]

# Containers only: FFmpeg also opens playlists, which name other files and addresses, and pictures.
FORMATS = (
    *("mov", "mp4", "m4a", "3gp", "3g2", "mj2", "matroska", "webm", "avi", "mpegts", "mpeg", "mpegvideo", "m4v", "flv"),
    *("asf", "ogg", "gif", "mxf", "nut", "ivf", "dv", "h264", "hevc", "wtv", "rm"),
)
# Their headers say how long a whole file is. For others FFmpeg measures the file, or guesses.
FORMATS_WITH_LENGTH = {"mov", "matroska", "avi", "asf", "flv"}
# A file that ends earlier than it says, or cannot be decoded, by more than this share is refused.
LARGEST_GAP = 0.1
# Decoding so many frames takes no longer than jumping over them.
SHORTEST_JUMP = 10
# In seconds. Seeking in transport streams may land after the time that was asked for.
SEEK_MARGIN = 10


@functools.cache
def pyav() -> ModuleType:
    """PyAV, from the first file on: processors take arrays without it."""
    try:
        import av
    except ImportError:
        raise ImportError(
            "PyAV reads video files: install it with 'pip install av', or give arrays of frames"
        ) from None
    return av


class UnreadableFileError(ValueError):
    """A file cannot be decoded. The message names it and the reason in one line."""

    def __init__(self, message: str):
        # A DataLoader re-raises a worker's error with the worker's traceback in front; the last line is the message.
        cls = type(self)
        super().__init__(message.strip().rsplit("\n", 1)[-1].removeprefix(f"{cls.__module__}.{cls.__name__}: "))


class UnreadableVideoError(UnreadableFileError):
    """A video cannot be decoded."""


class _UnforeseenError(Exception):
    """Frames that were decoded are not those that the packets foretold."""


@dataclass
class KeyFrame:
    """
    A frame that decoding can start from.

    Args:
        index: Which of the frames shown it is. times: Timestamps to seek to, of which one should land on it.
    """

    index: int
    times: tuple[int, ...]


@dataclass
class Timeline:
    """
    What the packets of a file say about its frames.

    Args:
        total: Number of frames that are shown.
        fps: How many of them are shown a second, on average; None where nothing tells.
        times: When each is shown, ascending, in units of the stream; None where packets do not say so.
        keys: Frames that decoding can start from, ascending.
    """

    total: int
    fps: float | None
    times: list[int] | None
    keys: list[KeyFrame]


class VideoDecoder:
    """
    An open video that gives its frames in the order in which they are shown.

    Args:
        file: The encoded video. threads: Whether decoding may use several.

    Raises:
        UnreadableVideoError: if it is no video, or has no video stream.
    """

    def __init__(self, file: BinaryIO, threads: bool = True):
        file.seek(0)
        try:
            self.container = pyav().open(file, options={"format_whitelist": ",".join(FORMATS)})
        except pyav().error.FFmpegError as error:
            raise UnreadableVideoError("no video of a known format, or damaged") from error
        try:
            self.stream = _best_stream(self.container)
            if not threads:
                self.stream.thread_type = "NONE"
            elif get_worker_info() is None:
                self.stream.thread_type = "AUTO"  # loader workers share the cores already
        except BaseException:
            self.close()
            raise
        self.failures = 0  # packets that could not be decoded

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def close(self) -> None:
        """
        Frees the decoder and its threads now.

        Left to the garbage collector, they might be freed in a forked loader worker, which would wait for ever: threads
        are not copied with a process.
        """
        self.container.close()
        self.container = self.stream = None

    def packets(self, *streams: Any) -> Iterator[Any]:
        """The packets from here to the end, or to where the file is broken."""
        with contextlib.suppress(pyav().error.FFmpegError):
            yield from (packet for packet in self.container.demux(*streams) if packet.size)

    def frames(self) -> Iterator[Any]:
        """The frames from here to the end. `failures` counts the packets that cannot be decoded, which give none."""
        for packet in itertools.chain(self.packets(self.stream), [None]):
            try:
                yield from self.stream.codec_context.decode(packet)
            except pyav().error.FFmpegError:
                self.failures += 1

    def seek(self, time: int) -> bool:
        """Goes to a key frame, usually the last one not after a timestamp. Whether the container could."""
        try:
            self.container.seek(time, stream=self.stream, backward=True)
        except pyav().error.FFmpegError:
            return False
        return True


def _best_stream(container: Any) -> Any:
    """The video stream that FFmpeg would take; never the picture on the cover of a recording."""
    attached = pyav().stream.Disposition.attached_pic
    best = container.streams.best("video")
    for stream in (best, *container.streams.video):
        if stream is not None and not stream.disposition & attached:
            return stream
    raise UnreadableVideoError("it has no video stream")


def _is_shown(codec: str, packet: Any) -> bool:
    """
    Whether a packet gives a frame to show. An edit list may hide it, and VP8 and VP9 have frames that others only refer
    to (RFC 6386, section 9.1; VP9 Bitstream Specification, sections 6.1 and 6.2 and annex B).
    """
    if packet.is_discard:
        return False
    if codec == "vp8":
        return bool(memoryview(packet)[0] >> 4 & 1)
    if codec == "vp9":
        data = memoryview(packet)
        if data[-1] >> 5 == 0b110:  # several frames in one packet, the last of which is shown
            return True
        bits = f"{data[0]:08b}"[2:]
        bits = bits[3:] if bits[:2] == "11" else bits[2:]
        return bits[0] == "1" or bits[2] == "1"
    return True


def read_timeline(file: BinaryIO) -> Timeline:
    """
    What the packets of a file say about its frames; nothing is decoded.

    Raises:
        UnreadableVideoError: if the file is no video or has no frame, or much less is there than its header declares.
    """
    with VideoDecoder(file) as decoder:
        container, stream = decoder.container, decoder.stream
        codec, unit = stream.codec_context.name, stream.time_base
        shown, decoded, key_packets, total = [], [], [], 0
        starts, ends = {}, {}  # of each stream, in its units
        for packet in decoder.packets():
            index, pts, dts = packet.stream_index, packet.pts, packet.dts
            time = dts if pts is None else pts
            if time is not None:
                starts[index] = min(starts.get(index, 0), time)
                ends[index] = max(ends.get(index, 0), time + (packet.duration or 0))
            if index == stream.index and _is_shown(codec, packet):
                total += 1
                if dts is not None:
                    decoded.append(dts)
                if pts is not None:
                    shown.append(pts)
                    if packet.is_keyframe:
                        key_packets.append((pts, dts))
        start = min((float(time * container.streams[index].time_base) for index, time in starts.items()), default=0.0)
        end = max((float(time * container.streams[index].time_base) for index, time in ends.items()), default=0.0)
        if not total:
            raise UnreadableVideoError("it has no frame that can be decoded")
        formats = container.format.name.split(",")
        declared = (container.duration or 0) / pyav().time_base if FORMATS_WITH_LENGTH & set(formats) else 0.0
        rate = stream.average_rate or stream.guessed_rate
        slack = 2 / float(rate) if rate else 0.0
        if end - start < declared * (1 - LARGEST_GAP) - slack:
            raise UnreadableVideoError(f"it ends after {end:.1f} of {declared:.1f} seconds: truncated or damaged")
        # The times of AVI files are those of decoding, and FFmpeg's guesses at the others are wrong for some encoders.
        guessed = "avi" in formats and stream.codec_context.has_b_frames
        times = sorted(set(shown))
        reliable = len(times) == total and not guessed
        fps = float(rate) if rate else None
        clock = times if reliable else decoded
        if len(clock) == total > 1 and clock[-1] > clock[0]:
            seconds = float((clock[-1] - clock[0]) * unit)
            # Timestamps are rounded, so that a declared rate that agrees with them is the more exact one.
            if fps is None or abs(seconds * fps - (total - 1)) > 1:
                fps = (total - 1) / seconds
        if not reliable:
            return Timeline(total, fps, None, [])
        margin = round(SEEK_MARGIN / unit)
        keys = []
        for pts, dts in sorted(key_packets):
            first = pts if dts is None else min(pts, dts)
            keys.append(KeyFrame(bisect.bisect_left(times, pts), tuple(dict.fromkeys((pts, first, first - margin)))))
        return Timeline(total, fps, times, keys)


def _to_rgb(frame: Any, size: tuple[int, int]) -> np.ndarray:
    """
    (H, W, 3), turned and mirrored as the file's display matrix says.

    Args:
        size: Width and height of the file's first frame, to which later ones of another size are scaled, as ffmpeg
            does.
    """
    scaling = {}
    if (frame.width, frame.height) != size:
        scaling = {"width": size[0], "height": size[1], "interpolation": "BICUBIC"}
    # One thread, because a frame keeps its converter: see VideoDecoder.close.
    pixels = frame.reformat(format="rgb24", threads=1, **scaling).to_ndarray()
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is not None:
        # The pixel at (x, y) is shown at (a x + c y, b x + d y).
        a, b, _, c, d, *_ = np.frombuffer(matrix, np.int32).tolist()
        if abs(b) + abs(c) > abs(a) + abs(d):
            pixels, a, d = pixels.transpose(1, 0, 2), c, b
        pixels = pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
    return np.ascontiguousarray(pixels)


class _JumpingReader:
    """
    Gives frames of a file in ascending order, and decodes little else.

    Args:
        decoder: Of the file, at its start. timeline: Of the file, with times.
    """

    def __init__(self, decoder: VideoDecoder, timeline: Timeline):
        self.decoder = decoder
        self.timeline = timeline
        self.frames = decoder.frames()
        self.index = -1  # of the frame that was decoded last
        self._advance()
        self.size = (self.frame.width, self.frame.height)

    def _advance(self) -> None:
        self.index += 1
        self.frame = next(self.frames, None)
        if self.frame is None or self.frame.pts != self.timeline.times[self.index]:
            raise _UnforeseenError

    def at(self, index: int) -> np.ndarray:
        """Frame `index`, which is not before the last one asked for. Raises _UnforeseenError if it is not found."""
        keys = self.timeline.keys
        position = bisect.bisect_right(keys, index, key=lambda key: key.index) - 1
        if position >= 0 and keys[position].index > self.index + SHORTEST_JUMP:
            self._jump(keys[position])
        while self.index < index:
            self._advance()
        return _to_rgb(self.frame, self.size)

    def _jump(self, key: KeyFrame) -> None:
        wanted = self.timeline.times[key.index]
        for time in key.times:
            if self.decoder.seek(time):
                self.frames = self.decoder.frames()
                # What is shown before a key frame but follows it in the file may lack what it refers to.
                self.frame = next((frame for frame in self.frames if frame.pts is None or frame.pts >= wanted), None)
                if self.frame is not None and self.frame.pts == wanted and self.frame.key_frame:
                    self.index = key.index
                    return
        raise _UnforeseenError


def _read_by_jumping(file: BinaryIO, timeline: Timeline, choose: ChooseFrames) -> tuple[list[np.ndarray], int]:
    """Raises _UnforeseenError where the frames are not those of the timeline."""
    wanted = choose(timeline.total, timeline.fps).tolist()
    for keys in (timeline.keys, []):  # where the container cannot seek, decoding starts at the beginning
        with VideoDecoder(file) as decoder, contextlib.suppress(_UnforeseenError):
            reader = _JumpingReader(decoder, Timeline(timeline.total, timeline.fps, timeline.times, keys))
            frames = {index: reader.at(index) for index in sorted(set(wanted))}
            return [frames[index] for index in wanted], timeline.total
    raise _UnforeseenError


def _read_by_counting(
    file: BinaryIO, timeline: Timeline, choose: ChooseFrames, name: str
) -> tuple[list[np.ndarray], int]:
    """Decodes the whole file, a second time if it has other than the expected number of frames."""
    total, fps = timeline.total, timeline.fps
    while True:
        wanted = choose(total, fps).tolist()
        frames, count, size, kept = {}, 0, None, set(wanted)
        # With one thread, a packet that cannot be decoded takes no other frame with it.
        with VideoDecoder(file, threads=False) as decoder:
            for frame in decoder.frames():
                size = size or (frame.width, frame.height)
                if count in kept:
                    frames[count] = _to_rgb(frame, size)
                count += 1
        if not count:
            raise UnreadableVideoError("it has no frame that can be decoded")
        damage = f"{decoder.failures} of {decoder.failures + count} frames cannot be decoded"
        if decoder.failures > LARGEST_GAP * (decoder.failures + count):
            raise UnreadableVideoError(f"damaged: {damage}")
        if count == total:
            if decoder.failures:
                logger.warning("video %s: %s; the others are used", name, damage)
            return [frames[index] for index in wanted], total
        total, fps = count, fps and fps * count / total


def _read(file: BinaryIO, choose: ChooseFrames, name: str) -> tuple[list[np.ndarray], int]:
    if not file.seek(0, os.SEEK_END):
        raise UnreadableVideoError("empty file")
    timeline = read_timeline(file)
    choose = functools.cache(choose)  # it may draw at random
    if timeline.times is not None:
        with contextlib.suppress(_UnforeseenError):
            return _read_by_jumping(file, timeline, choose)
    return _read_by_counting(file, timeline, choose, name)


def is_encoded_video(source: Any) -> bool:
    """Whether something is a video that `read_frames` reads."""
    if isinstance(source, dict):
        return bool({"bytes", "path"} & source.keys())
    # `datasets` notes what a decoder of a Video column was made from.
    is_file = isinstance(source, str | bytes | bytearray | memoryview | Path) or hasattr(source, "read")
    return is_file or hasattr(source, "_hf_encoded")


def _name_of(source: Any) -> str:
    """The name of a video in error messages."""
    if isinstance(source, bytes | bytearray | memoryview):
        return f"of {len(source)} bytes"
    if isinstance(source, io.BytesIO):
        return f"of {source.getbuffer().nbytes} bytes"
    return str(source if isinstance(source, str | Path) else getattr(source, "name", source))


@contextlib.contextmanager
def _open(source: Any) -> Iterator[BinaryIO]:
    """
    A file to read and seek in. What is not a local file is copied to a temporary one, since servers need not seek.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        yield io.BytesIO(source)
    elif hasattr(source, "read"):
        yield source if source.seekable() else io.BytesIO(source.read())
    elif isinstance(source, str) and source.startswith(("http://", "https://", "hf://")):
        if source.startswith("hf://"):
            remote = HfFileSystem().open(source, "rb")
        else:
            remote = urllib.request.urlopen(source, timeout=60)
        with remote, tempfile.TemporaryFile() as file:
            shutil.copyfileobj(remote, file)
            yield file
    else:
        with open(source, "rb") as file:
            yield file


def read_frames(source: Any, choose: ChooseFrames, name: str | None = None) -> tuple[list[np.ndarray], int]:
    """
    Decodes some frames of a video as people see them: RGB, turned and mirrored as the file says, all of the first one's
    size.

    Args:
        source: The encoded video as bytes, its path, a URL (http, https, hf), a file opened for reading bytes, a
            `{"path", "bytes"}` cell of a data set, or what `datasets` makes of such a cell in a Video column.
        choose: From the number of frames, and how many are shown a second on average, to the indices wanted, which may
            repeat. It may be called again, with other numbers, where a file has other frames than its packets said.
        name: What error messages call the video; the path by default.

    Returns:
        For each index a frame, uint8 (H, W, 3); and the number of frames.

    Raises:
        UnreadableVideoError: if it is missing, empty, truncated, damaged, or no video of a known format. A few damaged
            frames are left out with a warning.
        ImportError: if PyAV is not installed.
    """
    av = pyav()
    source = getattr(source, "_hf_encoded", source)
    if isinstance(source, dict):
        name = name or source.get("path")
        source = source["bytes"] if source.get("bytes") is not None else source.get("path")
        if source is None:
            raise UnreadableVideoError(f"cannot read video {name or 'of a cell'}: the cell is empty")
    name = name or _name_of(source)
    try:
        with _open(source) as file:
            return _read(file, choose, name)
    except (UnreadableVideoError, av.error.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        if isinstance(error, av.error.FFmpegError):
            reason = f"damaged: {reason}"
        raise UnreadableVideoError(f"cannot read video {name}: {' '.join(str(reason).split())}") from error
