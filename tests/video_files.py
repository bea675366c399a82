"""Videos made with PyAV, whose frames say which they are."""

import io
import itertools
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

BITS = 10


def make_frame(number: int, height: int = 48, width: int = 64) -> np.ndarray:
    """(H, W, 3): the upper half is the number in stripes, black or white, the lower half a red and a blue quarter."""
    frame = np.zeros((height, width, 3), np.uint8)
    edges = np.linspace(0, width, BITS + 1).astype(int)
    for bit, (left, right) in enumerate(itertools.pairwise(edges)):
        frame[: height // 2, left:right] = 255 * ((number >> bit) & 1)
    frame[height // 2 :, : width // 2, 0] = 220
    frame[height // 2 :, width // 2 :, 2] = 220
    return frame


def number_of(frame: np.ndarray) -> int:
    """Tells which frame it is, whatever a codec made of it."""
    height, width = frame.shape[:2]
    edges = np.linspace(0, width, BITS + 1).astype(int)
    row = frame[height // 4]
    return sum(
        int(row[(left + right) // 2].mean() > 127) << bit for bit, (left, right) in enumerate(itertools.pairwise(edges))
    )


def write_video(
    file: str | Path | io.BytesIO,
    numbers=range(30),
    size: tuple[int, int] = (48, 64),
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    rate: int = 10,
    times=None,
    keyframes: int = 12,
    rotation: int | None = None,
    audio_seconds: float = 0.0,
    format: str | None = None,
    options: dict | None = None,
    b_frames: int = 0,
    codec_options: dict | None = None,
    matrix: list[int] | None = None,
) -> None:
    """
    Encodes frames.

    Args:
        numbers: Of the frames. times: Of each, in seconds; evenly at `rate` by default. keyframes: Frames between them.
        rotation: Degrees, as a phone would note it. matrix: The whole display matrix, instead.
        audio_seconds: Of silence next to the pictures. options: Of the container. codec_options: Of the encoder.
        b_frames: Most frames in a row that refer to later ones.
    """
    target = file if isinstance(file, io.BytesIO) else str(file)
    with av.open(target, "w", format=format, options=options or {}) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width, stream.pix_fmt = *size, pixel_format
        stream.codec_context.gop_size = keyframes
        if b_frames:
            stream.codec_context.max_b_frames = b_frames
        stream.options = codec_options or {}
        base = Fraction(1, 1000) if times is not None else Fraction(1, rate)
        stream.codec_context.time_base = stream.time_base = base
        if rotation is not None:
            stream.set_display_rotation(rotation)
        if matrix is not None:
            stream.set_display_matrix(matrix)
        sound = container.add_stream("aac" if format != "webm" else "libopus", rate=48000) if audio_seconds else None
        for position, number in enumerate(numbers):
            frame = av.VideoFrame.from_ndarray(make_frame(number, *size), format="rgb24")
            frame.pts = position if times is None else round(times[position] * 1000)
            frame.time_base = base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if sound is not None:
            for start in range(0, int(audio_seconds * 48000), 960):
                silence = av.AudioFrame.from_ndarray(np.zeros((1, 960), np.float32), format="fltp", layout="mono")
                silence.sample_rate, silence.pts = 48000, start
                container.mux(sound.encode(silence))
            container.mux(sound.encode())
