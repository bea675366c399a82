"""Reading videos: whatever a file holds, the right frames or one clear error come out, and little is decoded."""

import functools
import gc
import io
import multiprocessing
import pickle
import tempfile
import threading
from fractions import Fraction
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from video_files import make_frame, number_of, write_video

from hf_vit_family.modeling import video_reading_vitf
from hf_vit_family.modeling.video_processing_vitf import every_frame
from hf_vit_family.modeling.video_reading_vitf import UnreadableVideoError, VideoDecoder, read_frames, read_timeline

ALL = every_frame


def numbers(source, choose=ALL) -> list[int]:
    return [number_of(frame) for frame in read_frames(source, choose)[0]]


SOUND = [
    ("mp4", {}),
    ("mov", {}),
    ("mkv", {}),
    ("ts", {}),
    ("flv", {"codec": "flv"}),
    ("avi", {"codec": "mpeg4"}),
    ("webm", {"codec": "libvpx-vp9"}),
    ("gif", {"codec": "gif", "pixel_format": "rgb8"}),
    ("h264", {}),  # no container: no times, no length
    ("mp4", {"options": {"movflags": "frag_keyframe+empty_moov"}}),
    ("mp4", {"size": (47, 63), "pixel_format": "yuv444p"}),
    ("avi", {"size": (47, 63), "codec": "ffv1", "pixel_format": "bgr0"}),
    ("mp4", {"times": [5 + i / 10 for i in range(30)]}),
    ("ts", {"times": [5 + i / 10 for i in range(30)]}),
    ("mkv", {"audio_seconds": 4.0}),  # longer than the pictures, and the header gives only the longest
    ("webm", {"codec": "libvpx-vp9", "format": "webm", "audio_seconds": 4.0}),
]


@pytest.mark.parametrize(("suffix", "settings"), SOUND)
def test_every_frame_of_every_container(tmp_path, suffix, settings):
    path = tmp_path / f"video.{suffix}"
    write_video(path, **settings)
    frames, total = read_frames(path, ALL)
    assert total == 30
    assert [number_of(frame) for frame in frames] == list(range(30))
    height, width = settings.get("size", (48, 64))
    assert all(frame.shape == (height, width, 3) and frame.dtype == np.uint8 for frame in frames)
    red, blue = frames[3][-5, 5].astype(int), frames[3][-5, -5].astype(int)
    assert red[0] > 180 > 60 > red[2]
    assert blue[2] > 180 > 60 > blue[0]


def count_decoded(monkeypatch) -> list:
    """A list that gets an entry for each frame decoded from here on."""
    decoded = []
    frames = VideoDecoder.frames

    def counted(self):
        for frame in frames(self):
            decoded.append(frame.pts)
            yield frame

    monkeypatch.setattr(VideoDecoder, "frames", counted)
    return decoded


@pytest.mark.parametrize(
    ("suffix", "codec"), [("mp4", "libx264"), ("mkv", "libx264"), ("ts", "libx264"), ("avi", "mpeg4")]
)
def test_wanted_frames_alone_are_decoded(tmp_path, monkeypatch, suffix, codec):
    path = tmp_path / f"video.{suffix}"
    write_video(path, range(900), codec=codec, keyframes=25)
    wanted = [0, 3, 3, 300, 301, 340, 700, 899]
    decoded = count_decoded(monkeypatch)
    assert numbers(path, lambda total, fps: np.array(wanted)) == wanted
    assert len(decoded) < 900 / 2


def test_far_apart_key_frames_are_not_looked_for_again_and_again(tmp_path, monkeypatch):
    path = tmp_path / "video.mp4"
    write_video(path, range(900), keyframes=900)
    decoded = count_decoded(monkeypatch)
    wanted = list(range(0, 900, 30))
    assert numbers(path, lambda total, fps: np.array(wanted)) == wanted
    assert len(decoded) <= 900


def decode_all(file) -> list[np.ndarray]:
    """Every frame of FFmpeg's best stream, in the order in which the decoder gives them."""
    with av.open(file) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(container.streams.best("video"))]


def assert_reads_as_decoded(path, shown: list[np.ndarray] | None = None) -> None:
    """All frames are those of a decoding of the whole file, and a few of them are the same as among all."""
    shown = decode_all(str(path)) if shown is None else shown
    frames, total = read_frames(path, ALL)
    assert total == len(shown)
    assert [i for i in range(total) if not np.array_equal(frames[i], shown[i])] == []
    for wanted in (
        [total - 1],
        [0, total // 2, total - 1],
        [total // 3, total // 3, total // 3 + 1],
        [1, total * 2 // 3],
    ):
        frames, _ = read_frames(path, lambda total, fps, wanted=wanted: np.array(wanted))
        assert all(np.array_equal(frame, shown[index]) for frame, index in zip(frames, wanted, strict=True))


# Containers, and the codecs that FFmpeg writes into them and reads again.
MUXED = {
    "mp4": ("libx264", "libx265", "mpeg4", "libvpx-vp9", "libsvtav1", "mjpeg"),
    "mov": ("libx264", "libx265", "mpeg4", "prores", "mjpeg"),
    "3gp": ("libx264", "mpeg4", "h263"),
    "matroska": ("libx264", "libx265", "mpeg4", "mpeg2video", "libvpx", "libvpx-vp9", "libsvtav1", "ffv1", "mjpeg"),
    "webm": ("libvpx", "libvpx-vp9", "libsvtav1"),
    "avi": ("libx264", "mpeg4", "mpeg2video", "msmpeg4", "mjpeg", "ffv1", "huffyuv", "dvvideo"),
    "mpegts": ("libx264", "libx265", "mpeg4", "mpeg2video"),
    "mpeg": ("mpeg1video", "mpeg2video", "mpeg4", "libx264"),
    "vob": ("mpeg2video",),
    "flv": ("flv", "libx264"),
    "ogg": ("libvpx",),
    "nut": ("libx264", "mpeg4", "ffv1", "libvpx"),
    "asf": ("wmv2", "msmpeg4", "libx264", "mpeg4"),
    "dv": ("dvvideo",),
    "mxf": ("mpeg2video", "libx264"),
    "gif": ("gif",),
    "ivf": ("libvpx", "libvpx-vp9", "libsvtav1"),
    "rm": ("rv20",),
    "h264": ("libx264",),
    "hevc": ("libx265",),
    "m4v": ("mpeg4",),
    "mpeg1video": ("mpeg1video",),
    "mpeg2video": ("mpeg2video",),
}
# What a codec needs. Those of television have its sizes and rates only.
CODECS = {
    "libx264": {"b_frames": 2},
    "libx265": {"b_frames": 2, "codec_options": {"x265-params": "log-level=none"}},
    "mpeg4": {"b_frames": 2},
    "mpeg1video": {"b_frames": 2, "rate": 25},
    "mpeg2video": {"b_frames": 2, "rate": 25},
    "mjpeg": {"pixel_format": "yuvj420p"},
    "prores": {"pixel_format": "yuv422p10le"},
    "huffyuv": {"pixel_format": "yuv422p"},
    "gif": {"pixel_format": "rgb8"},
    "h263": {"size": (144, 176)},
    "rv20": {"size": (144, 176)},
    "dvvideo": {"size": (576, 720), "rate": 25},
}
VARIABLE = [i * 0.05 for i in range(20)] + [1 + i * 0.25 for i in range(10)]


def _variants():
    for format, codecs in MUXED.items():
        for codec in codecs:
            settings = {"codec": codec, "format": format, **CODECS.get(codec, {})}
            if format == "mxf":
                settings["rate"] = 25
            yield pytest.param(settings, id=f"{format}-{codec}")
            if settings.pop("b_frames", 0):
                yield pytest.param(settings, id=f"{format}-{codec}-without B-frames")


@pytest.mark.parametrize("settings", _variants())
def test_frames_are_those_of_a_whole_decoding(tmp_path, capfd, settings):
    path = tmp_path / "video"
    write_video(path, range(40), **settings)
    assert_reads_as_decoded(path)
    assert len(decode_all(str(path))) == 40


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"audio_seconds": 9.0}, id="longer sound"),
        pytest.param({"times": VARIABLE}, id="variable rate"),
        pytest.param({"times": [20 + i / 10 for i in range(30)]}, id="late start"),
        pytest.param({"times": [20 + i / 10 for i in range(30)], "audio_seconds": 23.0}, id="late start with sound"),
    ],
)
@pytest.mark.parametrize(
    ("format", "codec"),
    [
        *(
            ("mp4", "libx264"),
            ("mov", "libx264"),
            ("matroska", "libx264"),
            ("matroska", "libvpx"),
            ("mpegts", "libx264"),
        ),
        *(("webm", "libvpx"), ("webm", "libvpx-vp9"), ("nut", "libx264"), ("flv", "flv"), ("avi", "libx264")),
        *(("asf", "wmv2"), ("mp4", "mpeg4"), ("matroska", "mjpeg"), ("avi", "mjpeg")),
    ],
)
def test_sound_and_times_change_neither_number_nor_order(tmp_path, format, codec, change):
    path = tmp_path / "video"
    write_video(path, range(30), format=format, codec=codec, **{**CODECS.get(codec, {}), **change})
    assert_reads_as_decoded(path)
    assert len(decode_all(str(path))) == 30
    seconds = np.ptp(change["times"]) if "times" in change else 2.9
    timeline = read_timeline(io.BytesIO(path.read_bytes()))
    assert timeline.total == 30
    if format != "avi":  # which has a place for a frame at each tick, and no time before the first
        assert timeline.fps == pytest.approx(29 / seconds, rel=0.02)


@pytest.mark.parametrize(("format", "codec"), [("webm", "libvpx"), ("webm", "libvpx-vp9"), ("matroska", "libx264")])
def test_recordings_of_browsers(tmp_path, format, codec):
    """Written as they come: neither a duration nor a table of key frames, and frames at the times that the page had."""
    path = tmp_path / "recording"
    times = np.cumsum(np.random.default_rng(0).uniform(0.005, 0.2, 150)).tolist()
    write_video(path, range(150), format=format, codec=codec, times=times, keyframes=40, options={"live": "1"})
    with av.open(str(path)) as container:
        assert container.duration is None
    timeline = read_timeline(io.BytesIO(path.read_bytes()))
    assert timeline.total == 150
    assert timeline.fps == pytest.approx(149 / (times[-1] - times[0]), rel=0.01)
    assert numbers(path) == list(range(150))
    assert_reads_as_decoded(path)


def test_declared_rate_is_exact(tmp_path):
    """Matroska rounds times to milliseconds; what chooses frames multiplies with the rate and rounds down."""
    for suffix in ("mp4", "mkv", "webm", "avi", "ts"):
        path = tmp_path / f"video.{suffix}"
        write_video(path, range(100), codec={"webm": "libvpx", "avi": "mpeg4"}.get(suffix, "libx264"), rate=30)
        assert read_timeline(io.BytesIO(path.read_bytes())).fps == 30


def pack(path, target) -> None:
    """
    Rewrites an AVI file of MPEG-4 with two B-frames in a row as DivX and XviD wrote it: a packet with the frame that
    the two refer to also holds the first of them, and an empty frame follows the second.
    """
    with av.open(str(path)) as read, av.open(str(target), "w") as written:
        stream = written.add_stream_from_template(read.streams.video[0])
        frames = [bytes(packet) for packet in read.demux(read.streams.video[0]) if packet.size]
        kinds = [frame[frame.index(b"\0\0\1\xb6") + 4] >> 6 for frame in frames]  # 0: I, 1: P, 2: B
        packets, position = [], 0
        while position < len(frames):
            group = frames[position : position + 3]
            if kinds[position + 1 : position + 3] == [2, 2]:
                packets += [group[0] + group[1], group[2], b"\0\0\1\xb6\x51\xcf"]
                position += 3
            else:
                packets += group[:1]
                position += 1
        for number, data in enumerate(packets):
            start = data.index(b"\0\0\1\xb6")
            packet = av.Packet(data[:start] + b"\0\0\1\xb2DivX503b1393p" * (not number) + data[start:])
            packet.pts = packet.dts = number
            packet.time_base, packet.stream = Fraction(1, 10), stream
            packet.is_keyframe = data[start + 4] >> 6 == 0
            written.mux(packet)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("keyframes", [30, 300])
def test_avi_files_with_b_frames(tmp_path, packed, keyframes):
    """AVI has no times of display: what FFmpeg gives out as such is wrong for many files of UCF-101 and HMDB-51."""
    path = tmp_path / "video.avi"
    write_video(path, range(90), codec="mpeg4", b_frames=2, keyframes=keyframes)
    if packed:
        pack(path, tmp_path / "packed.avi")
        path = tmp_path / "packed.avi"
        with av.open(str(path)) as container:
            times = [frame.pts for frame in container.decode(video=0)]
        assert times != sorted(times)
    wanted = [0, 1, 2, 29, 31, 45, 60, 61, 62, 89]
    assert numbers(path, lambda total, fps: np.array(wanted)) == wanted
    assert numbers(path) == list(range(90))
    assert_reads_as_decoded(path)


def remux(source, target, format: str, change=lambda position, packet: None, options: dict | None = None) -> None:
    """Copies the packets of the first video stream to another container, each as `change` leaves it."""
    with av.open(str(source)) as read, av.open(str(target), "w", format=format, options=options or {}) as written:
        stream = written.add_stream_from_template(read.streams.video[0])
        for position, packet in enumerate(read.demux(read.streams.video[0])):
            if packet.size:
                packet = change(position, packet) or packet
                packet.stream = stream
                written.mux(packet)


@pytest.mark.parametrize("b_frames", [0, 2])
@pytest.mark.parametrize("format", ["mp4", "mov"])
def test_edit_lists_hide_frames(tmp_path, format, b_frames):
    """Phones and editors cut a file without encoding it again: what comes before the cut stays, and is not shown."""
    write_video(tmp_path / "whole.mp4", range(98), b_frames=b_frames, keyframes=36)

    def earlier(position, packet):
        packet.pts -= round(3.6 / packet.time_base)
        packet.dts -= round(3.6 / packet.time_base)

    path = tmp_path / f"cut.{format}"
    remux(tmp_path / "whole.mp4", path, format, earlier, {"avoid_negative_ts": "disabled"})
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 98
    assert numbers(path) == list(range(36, 98))
    assert numbers(path, lambda total, fps: np.array([0, 30, total - 1])) == [36, 66, 97]
    assert_reads_as_decoded(path)


@pytest.mark.parametrize("codec", ["libvpx", "libvpx-vp9"])
@pytest.mark.parametrize("format", ["webm", "matroska", "ivf"])
def test_frames_that_only_others_refer_to_are_not_counted(tmp_path, format, codec):
    write_video(tmp_path / "whole.webm", range(40), codec=codec, keyframes=12)
    hidden = []

    def hide(position, packet):
        data = bytearray(packet)
        if packet.is_keyframe and position:
            data[0] &= ~(1 << 4) if codec == "libvpx" else ~(1 << 1)  # show_frame
            hidden.append(position)
        changed = av.Packet(bytes(data))
        changed.pts, changed.dts, changed.time_base = packet.pts, packet.dts, packet.time_base
        changed.is_keyframe = packet.is_keyframe
        return changed

    path = tmp_path / f"video.{format}"
    remux(tmp_path / "whole.webm", path, format, hide)
    assert len(hidden) == 3
    assert read_timeline(io.BytesIO(path.read_bytes())).total == 37
    assert_reads_as_decoded(path)


# Display matrices of the eight orientations, and what Pillow calls them.
ORIENTATIONS = {
    (1, 0, 0, 1): None,
    (-1, 0, 0, 1): Image.Transpose.FLIP_LEFT_RIGHT,
    (1, 0, 0, -1): Image.Transpose.FLIP_TOP_BOTTOM,
    (-1, 0, 0, -1): Image.Transpose.ROTATE_180,
    (0, 1, -1, 0): Image.Transpose.ROTATE_270,
    (0, -1, 1, 0): Image.Transpose.ROTATE_90,
    (0, 1, 1, 0): Image.Transpose.TRANSPOSE,
    (0, -1, -1, 0): Image.Transpose.TRANSVERSE,
}


@pytest.mark.parametrize("format", ["mp4", "mov"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_turned_and_mirrored_videos_come_upright(tmp_path, format, orientation):
    """A camera on its side, or one that looks at its owner, notes in a matrix how its picture is to be shown."""
    a, b, c, d = (value << 16 for value in orientation)
    write_video(tmp_path / "plain", [5, 6], format=format)
    write_video(tmp_path / "turned", [5, 6], format=format, matrix=[a, b, 0, c, d, 0, 0, 0, 1 << 30])
    transpose = ORIENTATIONS[orientation]
    plain, _ = read_frames(tmp_path / "plain", ALL)
    turned, _ = read_frames(tmp_path / "turned", ALL)
    for expected, frame in zip(plain, turned, strict=True):
        image = Image.fromarray(expected)
        assert np.array_equal(frame, np.asarray(image if transpose is None else image.transpose(transpose)))


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_rotation_is_counterclockwise(tmp_path, rotation):
    write_video(tmp_path / "upright.mp4", [5])
    write_video(tmp_path / "turned.mp4", [5], rotation=rotation)
    [upright], _ = read_frames(tmp_path / "upright.mp4", ALL)
    [turned], _ = read_frames(tmp_path / "turned.mp4", ALL)
    assert np.array_equal(turned, np.rot90(upright, rotation // 90))


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_frames_of_another_size_are_scaled_to_the_first(tmp_path, codec):
    """Broadcasts and calls change their size on the way."""
    settings = {"codec": codec, "format": "mpegts", "rate": 25}
    write_video(tmp_path / "small", range(30), times=[i / 25 for i in range(30)], **settings)
    write_video(tmp_path / "large", range(30, 60), size=(96, 160), times=[2 + i / 25 for i in range(30)], **settings)
    path = tmp_path / "video.ts"
    path.write_bytes((tmp_path / "small").read_bytes() + (tmp_path / "large").read_bytes())
    frames, total = read_frames(path, ALL)
    assert total == 60
    assert {frame.shape for frame in frames} == {(48, 64, 3)}
    assert [number_of(frame) for frame in frames] == list(range(60))
    [late], _ = read_frames(path, lambda total, fps: np.array([50]))
    assert np.array_equal(late, frames[50])


def test_best_of_several_streams_is_taken(tmp_path):
    path = tmp_path / "video.mkv"
    with av.open(str(path), "w") as container:
        streams = []
        for size in ((32, 32), (48, 64)):
            stream = container.add_stream("libx264", rate=10)
            stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
            stream.disposition = av.stream.Disposition.default if streams else 0
            streams.append(stream)
        for number in range(30):
            for stream, seen in zip(streams, (0, number), strict=True):
                frame = av.VideoFrame.from_ndarray(make_frame(seen, stream.height, stream.width), format="rgb24")
                frame.pts = number
                container.mux(stream.encode(frame))
        for stream in streams:
            container.mux(stream.encode())
    with av.open(str(path)) as container:
        assert container.streams.best("video").index == 1
    assert numbers(path) == list(range(30))


def test_cover_of_a_recording_is_no_video(tmp_path):
    for name, has_video in (("film.mp4", True), ("song.mp4", False)):
        with av.open(str(tmp_path / name), "w") as container:
            cover = container.add_stream("png", rate=1)
            cover.height, cover.width, cover.pix_fmt = 480, 640, "rgb24"
            cover.disposition = av.stream.Disposition.attached_pic
            film = container.add_stream("libx264", rate=10) if has_video else None
            sound = container.add_stream("aac", rate=48000)
            if film is not None:
                film.height, film.width, film.pix_fmt = 48, 64, "yuv420p"
            container.mux(cover.encode(av.VideoFrame.from_ndarray(make_frame(1, 480, 640), format="rgb24")))
            container.mux(cover.encode())
            for number in range(30 * has_video):
                container.mux(film.encode(av.VideoFrame.from_ndarray(make_frame(number), format="rgb24")))
            if film is not None:
                container.mux(film.encode())
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            silence.sample_rate = 48000
            container.mux(sound.encode(silence))
            container.mux(sound.encode())
    assert numbers(tmp_path / "film.mp4") == list(range(30))
    with pytest.raises(UnreadableVideoError, match="it has no video stream"):
        read_frames(tmp_path / "song.mp4", ALL)


def spoil(source, target, format: str, positions) -> None:
    """Copies a file, with packets in it that cannot be decoded."""

    def change(position, packet):
        if position not in positions:
            return packet
        changed = av.Packet(b"\xff" * packet.size)
        changed.pts, changed.dts, changed.time_base = packet.pts, packet.dts, packet.time_base
        changed.duration, changed.is_keyframe = packet.duration, packet.is_keyframe
        return changed

    remux(source, target, format, change)


@pytest.mark.parametrize(
    ("format", "codec", "keyframes"),
    [
        ("matroska", "ffv1", 1),
        ("avi", "ffv1", 1),
        ("nut", "ffv1", 1),
        ("webm", "libvpx-vp9", 5),
        ("matroska", "libvpx-vp9", 5),
    ],
)
def test_what_can_be_decoded_is_used_with_a_notice(tmp_path, caplog, format, codec, keyframes):
    write_video(tmp_path / "whole.mkv", range(60), codec=codec, keyframes=keyframes)
    path = tmp_path / "spoilt"
    spoil(tmp_path / "whole.mkv", path, format, {34})  # what comes before a key frame takes no other with it
    assert numbers(path) == [number for number in range(60) if number != 34]
    assert f"video {path}: 1 of 60 frames cannot be decoded; the others are used" in caplog.text
    assert numbers(path, lambda total, fps: np.array([40]))  # a clip next to the damage
    spoil(tmp_path / "whole.mkv", path, format, set(range(10, 35)))
    with pytest.raises(UnreadableVideoError, match=r"damaged: 2\d of 60 frames cannot be decoded"):
        read_frames(path, ALL)
    assert numbers(path, lambda total, fps: np.array([0, 1])) == [0, 1]


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts", "webm", "gif"])
def test_one_frame(tmp_path, suffix):
    codec = {"webm": "libvpx-vp9", "gif": "gif"}.get(suffix, "libx264")
    path = tmp_path / f"video.{suffix}"
    write_video(path, [7], codec=codec, pixel_format="rgb8" if suffix == "gif" else "yuv420p")
    assert numbers(path) == [7]
    assert numbers(path, lambda total, fps: np.zeros(4, int)) == [7] * 4


def test_extension_does_not_matter(tmp_path):
    write_video(tmp_path / "video.mp4")
    for name in ("video.avi", "video.txt", "video"):
        (tmp_path / name).write_bytes((tmp_path / "video.mp4").read_bytes())
        assert numbers(tmp_path / name) == list(range(30))


def test_forms_of_source(tmp_path):
    write_video(tmp_path / "video.mp4")
    for source in (tmp_path / "video.mp4", str(tmp_path / "video.mp4"), (tmp_path / "video.mp4").read_bytes()):
        assert numbers(source, lambda total, fps: np.array([4, 4, 29, 0])) == [4, 4, 29, 0]


def test_url(tmp_path):
    write_video(tmp_path / "video.mp4")
    handler = functools.partial(SimpleHTTPRequestHandler, directory=tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        assert numbers(f"{address}/video.mp4") == list(range(30))
        with pytest.raises(UnreadableVideoError, match=rf"cannot read video {address}/missing\.mp4: .*404"):
            numbers(f"{address}/missing.mp4")
        server.shutdown()


def test_address_on_the_hub(tmp_path, monkeypatch):
    """The record that `datasets` keeps for a video that lies in a repository."""
    write_video(tmp_path / "video.mp4")
    address = "hf://datasets/someone/clips@main/video.mp4"
    hub = {address: tmp_path / "video.mp4"}

    class FileSystem:
        def open(self, path, mode):
            return open(hub[path], mode)

    monkeypatch.setattr(video_reading_vitf, "HfFileSystem", FileSystem)
    assert numbers(address) == list(range(30))
    assert numbers({"path": address, "bytes": None}) == list(range(30))


def _mp4(**settings) -> bytes:
    file = io.BytesIO()
    write_video(file, format="mp4", **settings)
    return file.getvalue()


def _without_frames(format: str) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format=format) as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        container.start_encoding()
    return file.getvalue()


def _audio(format: str) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format=format) as container:
        stream = container.add_stream("aac" if format == "mp4" else "mp3", rate=48000)
        for start in range(0, 48000, 960):
            sound = av.AudioFrame.from_ndarray(np.zeros((1, 960), np.float32), format="fltp", layout="mono")
            sound.sample_rate, sound.pts = 48000, start
            container.mux(stream.encode(sound))
        container.mux(stream.encode())
    return file.getvalue()


def _picture() -> bytes:
    file = io.BytesIO()
    Image.fromarray(make_frame(3)).save(file, "PNG")
    return file.getvalue()


def _container(format: str, **settings) -> bytes:
    file = io.BytesIO()
    write_video(file, range(100), format=format, **settings)
    return file.getvalue()


def _half_of_a_streamable_mp4() -> bytes:
    """Its index comes before the pictures, as on a web server: cut off, it still opens and says what it should hold."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "clip.mp4")
        write_video(path, range(100), options={"movflags": "faststart"})
        video = path.read_bytes()
    return video[: len(video) * 6 // 10]


def _zeros_in_the_middle() -> bytes:
    video = _container("avi", codec="ffv1", pixel_format="bgr0")
    third = len(video) // 3
    return video[:third] + bytes(third) + video[2 * third :]


BROKEN = {
    "empty": (lambda: b"", "empty file"),
    "text": (lambda: b"this is no video\n" * 50, "no video"),
    "noise": (lambda: np.random.default_rng(0).bytes(5000), "no video"),
    "picture": (_picture, "no video"),
    "playlist": (lambda: b"#EXTM3U\n#EXTINF:9,\n/etc/hostname\n#EXT-X-ENDLIST\n", "no video"),
    "audio in mp4": (lambda: _audio("mp4"), "no video stream"),
    "audio in avi": (lambda: _audio("avi"), "no video stream"),
    "no frames in mp4": (lambda: _without_frames("mp4"), "no "),
    "no frames in avi": (lambda: _without_frames("avi"), "no "),
    "mp4 without its index": (lambda: _mp4()[:-600], "no video"),
    "half a Matroska file": (lambda: (v := _container("matroska"))[: len(v) // 2], "truncated"),
    "half an AVI file": (lambda: (v := _container("avi", codec="mpeg4"))[: len(v) // 2], "truncated"),
    "only a header": (lambda: _container("matroska")[:300], "no video"),
    "half a streamable mp4": (_half_of_a_streamable_mp4, "truncated"),
    "zeros in the middle": (_zeros_in_the_middle, "damaged"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_files_give_one_line_that_names_them(tmp_path, kind):
    make, reason = BROKEN[kind]
    path = tmp_path / "clip.mp4"
    path.write_bytes(make())
    with pytest.raises(UnreadableVideoError) as error:
        read_frames(path, ALL)
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith(f"cannot read video {path}: ")
    assert reason in message
    assert len(message) > len(f"cannot read video {path}: ") + 5


@pytest.mark.parametrize("kind", ["sound", *BROKEN])
def test_forked_process_can_free_what_a_reader_left(kind):
    """Threads are not copied with a process: a decoder that waits for its own would wait for ever."""
    video = _container("mp4") if kind == "sound" else BROKEN[kind][0]()

    def leave_garbage():
        try:
            read_frames(video, ALL)
        except UnreadableVideoError as error:
            cycle = error  # the error holds its traceback, and that this frame  # noqa: F841
            return True
        return False

    gc.disable()
    gc.freeze()  # the child looks at what comes after this only
    try:
        assert leave_garbage() == (kind != "sound")
        process = multiprocessing.get_context("fork").Process(target=gc.collect)
        process.start()
        process.join(timeout=60)
        process.kill()
        process.join()
    finally:
        gc.enable()
    assert process.exitcode == 0


def test_missing_files_and_folders(tmp_path):
    for path in (tmp_path / "missing.mp4", tmp_path):
        with pytest.raises(UnreadableVideoError, match=f"cannot read video {path}"):
            read_frames(path, ALL)


def test_name_of_a_video_without_a_path():
    with pytest.raises(UnreadableVideoError, match="cannot read video of 4 bytes: no video"):
        read_frames(b"abcd", ALL)
    with pytest.raises(UnreadableVideoError, match="cannot read video in row 7: no video"):
        read_frames(b"abcd", ALL, "in row 7")


def test_few_missing_frames_are_made_up_by_the_last(tmp_path):
    """A recording that was cut off by less than a tenth is used."""
    video = _container("matroska", keyframes=5)
    path = tmp_path / "clip.mkv"
    path.write_bytes(video[: int(len(video) * 0.93)])
    frames, total = read_frames(path, ALL)
    assert 85 < total < 100
    assert [number_of(frame) for frame in frames][:80] == list(range(80))


def test_errors_of_loader_workers_stay_one_line(tmp_path):
    (tmp_path / "clip.mp4").write_bytes(b"no video")

    class Videos(torch.utils.data.Dataset):
        def __len__(self):
            return 1

        def __getitem__(self, index):
            return read_frames(tmp_path / "clip.mp4", ALL)

    def error_of_worker():
        try:
            next(iter(DataLoader(Videos(), num_workers=1, collate_fn=list)))
        except UnreadableVideoError as error:
            return error.with_traceback(None)  # which would keep the loader and its process alive

    error = error_of_worker()
    assert str(error).startswith("cannot read video ")
    assert pickle.loads(pickle.dumps(error)).args == error.args
