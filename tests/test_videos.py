"""Reading videos: whatever a file holds, the right frames or one clear error come out, and little is decoded."""

import functools
import gc
import io
import multiprocessing
import pickle
import sys
import tempfile
import threading
import types
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from video_files import make_frame, number_of, write_video

from hf_vit_family import videos
from hf_vit_family.videos import UnreadableVideoError, VideoReader, read_frames

ALL = np.arange


def numbers(source, choose=ALL) -> list[int]:
    return [number_of(frame) for frame in read_frames(source, choose)[0]]


@pytest.fixture(params=["pyav", "torchcodec"])
def every_decoder(request, monkeypatch):
    monkeypatch.setattr(videos, "_torchcodec_works", lambda: request.param == "torchcodec")
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", types.SimpleNamespace(VideoDecoder=StandInDecoder))


class StandInDecoder:
    """Does what torchcodec's decoder does, as far as it is used, for the videos of these tests, all at 10 frames a second."""

    def __init__(self, file, dimension_order):
        assert dimension_order == "NHWC"
        with av.open(file) as container:
            self.frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]

    def get_frames_played_at(self, seconds):
        return types.SimpleNamespace(data=torch.stack([torch.from_numpy(self.frames[int(s * 10)]) for s in seconds]))


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


@pytest.mark.parametrize(
    ("suffix", "codec"), [("mp4", "libx264"), ("mkv", "libx264"), ("ts", "libx264"), ("avi", "mpeg4")]
)
def test_wanted_frames_alone_are_decoded(tmp_path, monkeypatch, suffix, codec):
    path = tmp_path / f"video.{suffix}"
    write_video(path, range(900), codec=codec, keyframes=25)
    wanted = [0, 3, 3, 300, 301, 340, 700, 899]
    decoded = []
    advance = VideoReader._advance
    monkeypatch.setattr(VideoReader, "_advance", lambda self: (decoded.append(1), advance(self)))
    assert numbers(path, lambda total: np.array(wanted)) == wanted
    assert len(decoded) < 900 / 2


def test_far_apart_key_frames_are_not_looked_for_again_and_again(tmp_path, monkeypatch):
    path = tmp_path / "video.mp4"
    write_video(path, range(900), keyframes=900)
    decoded = []
    advance = VideoReader._advance
    monkeypatch.setattr(VideoReader, "_advance", lambda self: (decoded.append(1), advance(self)))
    wanted = list(range(0, 900, 30))
    assert numbers(path, lambda total: np.array(wanted)) == wanted
    assert len(decoded) < 900 * 2.5


def test_variable_rate_is_counted_in_time(tmp_path):
    times = [i * 0.05 for i in range(20)] + [1 + i * 0.25 for i in range(8)]
    for suffix in ("mp4", "mkv"):
        path = tmp_path / f"video.{suffix}"
        write_video(path, range(28), times=times)
        with open(path, "rb") as file:
            timeline = VideoReader(file).timeline
        middles = [timeline.middle(index) for index in range(timeline.total)]
        expected = [max(n for n, time in enumerate(times) if time <= middle + 1e-3) for middle in middles]
        assert numbers(path) == expected
        assert sum(number >= 20 for number in expected) > 14  # 8 of the frames last for two thirds of the time


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_rotated_videos_come_upright(tmp_path, rotation):
    """A camera on its side stores the picture turned, and notes how it is to be turned back."""
    write_video(tmp_path / "upright.mp4", [5])
    write_video(tmp_path / "turned.mp4", [5], rotation=rotation)
    [upright], _ = read_frames(tmp_path / "upright.mp4", ALL)
    [turned], _ = read_frames(tmp_path / "turned.mp4", ALL)
    assert np.array_equal(turned, np.rot90(upright, rotation // 90))


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts", "webm", "gif"])
def test_one_frame(tmp_path, suffix):
    codec = {"webm": "libvpx-vp9", "gif": "gif"}.get(suffix, "libx264")
    path = tmp_path / f"video.{suffix}"
    write_video(path, [7], codec=codec, pixel_format="rgb8" if suffix == "gif" else "yuv420p")
    assert numbers(path) == [7]
    assert numbers(path, lambda total: np.zeros(4, int)) == [7] * 4


def test_extension_does_not_matter(tmp_path):
    write_video(tmp_path / "video.mp4")
    for name in ("video.avi", "video.txt", "video"):
        (tmp_path / name).write_bytes((tmp_path / "video.mp4").read_bytes())
        assert numbers(tmp_path / name) == list(range(30))


def test_forms_of_source(tmp_path, every_decoder):
    write_video(tmp_path / "video.mp4")
    for source in (tmp_path / "video.mp4", str(tmp_path / "video.mp4"), (tmp_path / "video.mp4").read_bytes()):
        assert numbers(source, lambda total: np.array([4, 4, 29, 0])) == [4, 4, 29, 0]


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


def test_torchcodec_gives_way_to_pyav_where_it_fails(tmp_path, monkeypatch, every_decoder):
    write_video(tmp_path / "video.mp4")

    def fail(file, choose):
        raise RuntimeError("no more frames left to decode")

    monkeypatch.setattr(videos, "_read_with_torchcodec", fail)
    assert numbers(tmp_path / "video.mp4") == list(range(30))


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
    "a header alone": (lambda: _container("matroska")[:300], "no video"),
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

    gc.collect()
    gc.disable()
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
