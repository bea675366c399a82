"""The video processor: frames prepared as images are, whatever form a video comes in; the right frames of it."""

import contextlib
import io
import itertools
import json
import subprocess
import sys
import types
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoVideoProcessor
from transformers.video_utils import VideoMetadata
from video_files import make_frame, number_of, write_video

from hf_vit_family import ARCHITECTURES, create_processor
from hf_vit_family.modeling.configuration_vitf import VitfVideoConfig
from hf_vit_family.modeling.image_processing_vitf import VitfImageProcessor
from hf_vit_family.modeling.video_processing_vitf import (
    SAMPLINGS,
    VitfVideoProcessor,
    frame_indices,
    resampled_frames,
    spatial_crops,
)
from hf_vit_family.modeling.video_reading_vitf import UnreadableVideoError

FIELDS = {
    "size": {"height": 32, "width": 48},
    "crop_pct": 0.9,
    "image_mean": [0.4, 0.5, 0.6],
    "image_std": [0.2, 0.25, 0.3],
}
# Without normalisation and resizing the output is the pixels themselves.
PLAIN = {"do_resize": False, "do_center_crop": False, "do_rescale": False, "do_normalize": False}


@pytest.fixture(scope="module")
def video() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (9, 70, 91, 3), np.uint8)


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("videos") / "clip.mp4"
    write_video(path, range(60))
    return path


def process(processor, video, **kwargs) -> torch.Tensor:
    return processor(video, return_tensors="pt", **kwargs)["pixel_values"]


@pytest.mark.parametrize("resample", [2, 3])
@pytest.mark.parametrize("crop_pct", [0.875, 1.0, None])
def test_frames_are_prepared_as_images(video, resample, crop_pct):
    video = video[:, :66, :84]  # even margins, which both split alike
    fields = {**FIELDS, "crop_pct": crop_pct, "resample": resample}
    ours = process(VitfVideoProcessor(num_frames=4, **fields), video)
    assert ours.shape == (1, 4, 3, 32, 48)
    frames = list(video[frame_indices(9, 4, "uniform")])
    assert torch.equal(ours[0], VitfImageProcessor(**fields)(frames, return_tensors="pt")["pixel_values"])


def test_every_form_of_input_gives_the_same(video):
    processor = VitfVideoProcessor(num_frames=4, **FIELDS)
    expected = process(processor, video)
    tensor = torch.from_numpy(video)
    forms = [
        video.transpose(0, 3, 1, 2),
        tensor,
        tensor.permute(0, 3, 1, 2),
        list(video),
        tuple(tensor),
        [Image.fromarray(frame) for frame in video],
    ]
    for form in forms:
        assert torch.equal(process(processor, form), expected)
        assert torch.equal(process(processor, [form, form]), expected.expand(2, -1, -1, -1, -1))
    assert torch.equal(process(processor, np.stack([video, video])), expected.expand(2, -1, -1, -1, -1))


def test_grey_videos(video):
    grey = VitfVideoProcessor(num_frames=3, size=32, image_mean=[0.5], image_std=[0.25])
    assert process(grey, video[..., :1]).shape == (1, 3, 1, 32, 32)
    colour = VitfVideoProcessor(num_frames=3, size=32)
    assert torch.equal(process(colour, video[..., :1]), process(colour, video[..., :1].repeat(3, -1)))


class Pipe(io.RawIOBase):
    """A file in which nothing can go back, such as a response of a server."""

    def __init__(self, encoded: bytes):
        self.file = io.BytesIO(encoded)

    def readable(self):
        return True

    def readinto(self, buffer):
        return self.file.readinto(buffer)


class DatasetsDecoder:
    """The value that `datasets` makes of a cell of a Video column: torchcodec's decoder, and what it was made from."""

    def __init__(self, cell: dict):
        self._hf_encoded = cell


class Decoder:
    """The interface of torchcodec's VideoDecoder."""

    metadata = types.SimpleNamespace(average_fps=10.0)

    def __len__(self):
        return 60

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(make_frame(index)).permute(2, 0, 1)

    def get_frames_at(self, indices):
        raise AssertionError("frames are asked for one by one")


def test_files_and_bytes(clip):
    processor = VitfVideoProcessor(num_frames=6, **PLAIN)
    encoded = clip.read_bytes()
    opened = open(clip, "rb")  # noqa: SIM115 - that it stays open is part of the test
    opened.read(1000)
    cell, decoder = {"path": None, "bytes": encoded}, DatasetsDecoder({"path": str(clip), "bytes": None})
    forms = [
        str(clip),
        clip,
        encoded,
        bytearray(encoded),
        memoryview(encoded),
        io.BytesIO(encoded),
        Pipe(encoded),
        opened,
    ]
    forms += [cell, {"path": str(clip), "bytes": None}, {"path": "elsewhere.mp4", "bytes": encoded}, decoder]
    for form in [*forms, [opened], [cell, cell], Decoder()]:
        frames = process(processor, form)[0].permute(0, 2, 3, 1).byte().numpy()
        assert [number_of(frame) for frame in frames] == [0, 11, 23, 35, 47, 59]
    assert not opened.closed
    opened.close()
    missing = str(clip.with_name("missing.mp4"))
    for form in (missing, {"path": missing}, {"path": missing, "bytes": None}, {"path": missing, "bytes": b"no video"}):
        with pytest.raises(UnreadableVideoError, match=r"missing\.mp4"):
            processor(form)
    with pytest.raises(UnreadableVideoError, match="the cell is empty"):
        processor({"path": None, "bytes": None})


def sampled_like_the_authors() -> list:
    table = json.loads(Path(__file__).with_name("frame_indices.json").read_text(encoding="utf-8"))
    return [pytest.param(name, entry["rows"], id=name) for name, entry in table.items()]


@pytest.mark.parametrize(("variant", "rows"), sampled_like_the_authors())
def test_frames_are_those_that_the_authors_take(variant, rows):
    """
    `frame_indices.json` was made by running the functions that it names, on files of 1.3, 10 and 60 seconds: of
    TimeSformer and X-ViT on a container of PyAV's kind, of SlowFast as its decoder of torchvision, of DMVR on float32
    as TensorFlow's.
    """
    processor = create_processor(variant)
    assert {row["fps"] for row in rows} == {10, 15, 25, 30, 50, 60}
    for row in rows:
        num_views = len(row["views"])
        for view, expected in enumerate(row["views"]):
            indices = processor.frame_chooser(view, num_views)(row["frames"], float(row["fps"]))
            assert indices.tolist() == expected, (row["frames"], row["fps"], num_views, view)


def test_every_video_architecture_is_in_the_table():
    variants = {param.values[0] for param in sampled_like_the_authors()}
    for architecture in ARCHITECTURES.values():
        if issubclass(architecture.config_class, VitfVideoConfig):
            assert variants & set(architecture.config_class.VARIANTS), architecture.config_class.model_type


@pytest.mark.parametrize("rate", [10, 15, 25, 30, 50, 60])
def test_files_of_any_rate_give_the_frames_of_the_table(tmp_path, rate):
    write_video(tmp_path / "clip.mp4", range(10 * rate), rate=rate)
    table = {param.values[0]: param.values[1] for param in sampled_like_the_authors()}
    for variant in ("timesformer_base_k400", "mvit_base_16x4_k400", "vivit_base_16x2_k400", "mvitv2_small_16_ssv2"):
        processor = create_processor(variant, num_views=1, num_crops=1, **PLAIN)
        row = next(row for row in table[variant] if row["frames"] == 10 * rate and len(row["views"]) == 1)
        for clip in (process(processor, tmp_path / "clip.mp4")[0], processor.make_views(tmp_path / "clip.mp4")[0]):
            assert [number_of(frame) for frame in clip.permute(0, 2, 3, 1).byte().numpy()] == row["views"][0]


def test_uniform_sampling():
    assert frame_indices(300, 8, "uniform").tolist() == [0, 42, 85, 128, 170, 213, 256, 299]
    views = [frame_indices(300, 8, "uniform", view=view, num_views=3).tolist() for view in range(3)]
    assert sorted(frame for view in views for frame in view) == frame_indices(300, 24, "uniform").tolist()


def test_frames_without_a_rate_count_at_that_of_the_processor():
    for sampling in ("dense", "dense_from_start", "strided", "segments"):
        unknown = frame_indices(300, 16, sampling, 4, 30)
        assert unknown.tolist() == frame_indices(300, 16, sampling, 4, 30, 30.0).tolist()
        assert unknown.tolist() == frame_indices(300, 16, sampling, 4, None, 60.0).tolist()
    assert frame_indices(8, 8, "dense", 4, 30).tolist() == list(range(8))
    assert frame_indices(8, 8, "dense", 4, 30, 30.0).tolist() == [0, 4, 7, 7, 7, 7, 7, 7]


def test_views_of_segments():
    """X-ViT's order: the middle of each part, its first frame, its last one; more views are spread over it."""
    edges = [(round(49 / 8 * i), round(49 / 8 * (i + 1))) for i in range(8)]
    views = [frame_indices(50, 8, "segments", view=view, num_views=3).tolist() for view in range(3)]
    first, last = [start for start, _ in edges], [end for _, end in edges]
    assert views == [[(start + end) // 2 for start, end in edges], first, last]
    five = [frame_indices(50, 8, "segments", view=view, num_views=5).tolist() for view in range(5)]
    assert (five[0], five[4]) == (first, last)


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("fps", [None, 7.5, 30.0, 60.0])
@pytest.mark.parametrize("total", [1, 2, 5, 8, 9, 1000])
def test_short_and_long_videos(sampling, fps, total):
    for view in (None, *range(5)):
        indices = frame_indices(total, 8, sampling, 4, 30, fps, view, 5)
        assert indices.shape == (8,)
        assert indices.min() >= 0
        assert indices.max() < total
        if sampling != "strided" or total == 1000:
            assert (np.diff(indices) >= 0).all()
        if total == 8 and fps is None:
            assert indices.tolist() == list(range(8))
    assert frame_indices(total, None, sampling).tolist() == list(range(total))


def test_what_short_videos_give():
    assert frame_indices(5, 4, "dense", 2).tolist() == [0, 2, 4, 4]
    assert frame_indices(5, 4, "strided", 2).tolist() == [0, 2, 4, 1]


@pytest.mark.parametrize(("fps", "target"), [(10, 25), (12, 30), (15, 25), (30, 25), (60, 25), (50, 30), (25, 25)])
@pytest.mark.parametrize("total", [1, 13, 120])
def test_resampling_is_that_of_ffmpeg(fps, target, total):
    graph = av.filter.Graph()
    nodes = [
        graph.add_buffer(width=16, height=16, format="gray", time_base=Fraction(1, fps)),
        graph.add("fps", str(target)),
        graph.add("buffersink"),
    ]
    for node, following in itertools.pairwise(nodes):
        node.link_to(following)
    graph.configure()
    for number in range(total):
        frame = av.VideoFrame.from_ndarray(np.full((16, 16), number, np.uint8), format="gray")
        frame.pts, frame.time_base, frame.duration = number, Fraction(1, fps), 1
        graph.push(frame)
    graph.push(None)
    shown = []
    with contextlib.suppress(av.EOFError):
        while True:
            shown.append(int(graph.pull().to_ndarray()[0, 0]))
    assert resampled_frames(total, fps, target).tolist() == (shown or [0])  # a video has at least one frame


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_random_clips_begin_wherever_the_authors_let_them(sampling):
    """Uniformly over what a window leaves of the video; segments draw from their first frame to their last."""
    seen = []
    for seed in range(2000):
        torch.manual_seed(seed)
        seen.append(frame_indices(200, 8, sampling, 4, 30, 60.0, view=None))
    first, last = np.array(seen)[:, 0], np.array(seen)[:, -1]
    # At half the rate of the video, strided clips and segments see every second frame.
    lowest, highest, end = {
        "dense": (1, 136, 199),
        "dense_from_start": (1, 136, 199),
        "strided": (0, 142, 198),
        "uniform": (0, 24, 199),
        "segments": (0, 24, 198),
    }[sampling]
    assert (first.min(), first.max(), last.max()) == (lowest, highest, end)
    assert abs(first.mean() / highest - 0.5) < 0.1  # seeds are fixed
    assert (
        set(np.diff(seen).ravel().tolist())
        <= {
            "dense": {9},
            "dense_from_start": {9},
            "strided": {8},
            "uniform": {25},
            "segments": set(range(51)),
        }[sampling]
    )


@pytest.mark.parametrize("name", ["dense", "dense_from_start", "strided"])
def test_frames_a_second_in_a_call(tmp_path, name):
    write_video(tmp_path / "clip.mp4", range(100), rate=20)
    processor = VitfVideoProcessor(num_frames=4, frame_sampling=name, sampling_rate=3, num_views=2, **PLAIN)

    def numbers(clip):
        return [number_of(frame) for frame in clip.permute(0, 2, 3, 1).byte().numpy()]

    asked = numbers(process(processor, tmp_path / "clip.mp4", fps=5)[0])
    assert (
        np.diff(asked).tolist() == [4, 5, 4]
        or np.diff(asked).tolist() == [4, 4, 4]
        or np.diff(asked).tolist() == [5, 5, 5]
    )
    assert numbers(process(processor, tmp_path / "clip.mp4", sampling_fps=15)[0]) == asked
    own = VitfVideoProcessor(**{**processor.to_dict(), "fps": 5})
    assert numbers(process(own, tmp_path / "clip.mp4")[0]) == asked
    assert numbers(own.make_views(tmp_path / "clip.mp4", 1)[0]) == asked
    video = np.stack([make_frame(number) for number in range(100)])
    metadata = {"total_num_frames": 100, "fps": 20.0}
    assert numbers(process(processor, video, fps=5, video_metadata=[metadata])[0]) == asked
    assert numbers(processor.make_views(video, 1, video_metadata=VideoMetadata(**metadata))[0]) == numbers(
        processor.make_views(tmp_path / "clip.mp4", 1)[0]
    )
    with pytest.raises(ValueError, match="name it in video_metadata"):
        processor(video, fps=5)


def test_the_whole_video_at_another_rate(tmp_path):
    write_video(tmp_path / "clip.mp4", range(40), rate=20)
    output = VitfVideoProcessor(num_frames=None, **PLAIN)(tmp_path / "clip.mp4", fps=4, return_metadata=True)
    [metadata] = output["video_metadata"]
    assert metadata.fps == 20
    assert metadata.total_num_frames == 40
    assert metadata.frames_indices.tolist() == [2, 7, 12, 17, 22, 27, 32, 37]


def test_metadata_is_one_for_each_video(video):
    with pytest.raises(ValueError, match="video_metadata has 1 entries for 2 videos"):
        VitfVideoProcessor(num_frames=2)([video, video], video_metadata=[{"total_num_frames": 9, "fps": 5.0}])


def test_calls_override_fields(video):
    processor = VitfVideoProcessor(num_frames=4, **FIELDS)
    assert process(processor, video, num_frames=2).shape[1] == 2
    assert process(processor, video, do_sample_frames=False).shape[1] == 9
    dense = processor(video, num_frames=3, frame_sampling="dense", sampling_rate=2, return_metadata=True)
    assert dense["video_metadata"][0].frames_indices.tolist() == [1, 3, 6]


def test_views_of_a_video(video):
    fields = {**FIELDS, "size": {"height": 32, "width": 32}, "crop_pct": 0.8}
    processor = VitfVideoProcessor(num_frames=2, frame_sampling="dense", sampling_rate=2, num_views=2, **fields)
    assert torch.equal(processor.make_views(video, 1, 1), process(processor, video))
    views = processor.make_views(video, num_crops=3)
    assert views.shape == (6, 2, 3, 32, 32)
    for view, frames in enumerate(([0, 3], [5, 8])):
        image = VitfImageProcessor(**{**fields, "size": {"height": 40, "width": 52}, "crop_pct": None})
        resized = image(list(video[frames]), return_tensors="pt")["pixel_values"]
        for crop, left in enumerate((0, 10, 20)):
            assert torch.equal(views[3 * view + crop], resized[..., 4:36, left : left + 32])


@pytest.mark.parametrize(
    ("shape", "crops"),
    [
        ((32, 61), [(0, 0), (0, 15), (0, 29)]),
        ((61, 32), [(0, 0), (15, 0), (29, 0)]),
        ((33, 60), [(1, 0), (1, 14), (1, 28)]),
        ((60, 33), [(0, 1), (14, 1), (28, 1)]),
        ((45, 45), [(7, 0), (7, 7), (7, 13)]),
        ((32, 32), [(0, 0), (0, 0), (0, 0)]),
    ],
)
def test_crops_begin_where_those_of_the_authors_do(shape, crops):
    """
    `crops` by uniform_crop of TimeSformer, X-ViT and SlowFast and deterministic_crop of scenic, with size 32. A single
    crop is the middle one of SlowFast, and of DMVR the centre as TensorFlow's resize_with_crop_or_pad takes it.
    """
    video = np.arange(shape[0] * shape[1] * 3, dtype=np.float32).reshape(1, *shape, 3)
    places = [
        divmod(int(crop[0, 0, 0, 0]) // 3, shape[1])
        for crop in spatial_crops(torch.from_numpy(video).permute(0, 3, 1, 2), (32, 32), 3)
    ]
    assert places == crops
    plain = {**PLAIN, "do_center_crop": True, "size": 32}
    for variant, expected in (
        ("timesformer_base_k400", crops[1]),
        ("xvit_base_16_k600", crops[1]),
        ("mvit_base_16x4_k400", crops[1]),
        ("vivit_base_16x2_k400", tuple((have - 32) // 2 for have in shape)),
    ):
        centre = process(create_processor(variant, **plain), video, do_sample_frames=False)[0]
        assert divmod(int(centre[0, 0, 0, 0]) // 3, shape[1]) == expected


def test_crops_follow_the_longer_side():
    wide, high = torch.rand(2, 3, 32, 60), torch.rand(2, 3, 61, 32)
    assert torch.equal(torch.cat(spatial_crops(wide, (32, 30), 2), -1), wide)
    top, middle, bottom = spatial_crops(high, (32, 32), 3)
    assert torch.equal(top, high[..., :32, :])
    assert torch.equal(middle, high[..., 15:47, :])
    assert torch.equal(bottom, high[..., 29:, :])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_frame": 3}, "did you mean 'num_frames'"),
        ({"frame_sampling": "denes"}, "did you mean 'dense'"),
        ({"num_frames": 0}, "num_frames=0 is not a whole number above 0"),
        ({"sampling_rate": 0}, "sampling_rate=0 is not a whole number above 0"),
        ({"sampling_fps": -1}, "sampling_fps=-1 is not a number of frames a second above 0"),
        ({"fps": 4}, "frame_sampling='uniform' spreads 8 frames over the whole video"),
        ({"crop_rounding": "half"}, "crop_rounding='half' is not one of up, down"),
        ({"view_average": "mean"}, "view_average='mean' is not one of logits, softmax"),
        ({"crop_size": 32}, "crop_size is not used"),
    ],
)
def test_wrong_fields_are_named(video, fields, message):
    with pytest.raises(ValueError, match=message):
        VitfVideoProcessor(**fields)(video)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (np.zeros((4, 4), np.uint8), r"shape \(4, 4\) is no video"),
        (np.zeros((0, 8, 8, 3), np.uint8), "is no video"),
        ([], "an empty list is no video"),
        ({"video": 1}, "not dict"),
        ([np.zeros((8, 8, 3), np.uint8), np.zeros((9, 8, 3), np.uint8)], "differ in shape"),
        (np.zeros((4, 8, 8, 5), np.uint8), "does not have 1 to 4 channels"),
    ],
)
def test_what_is_no_video_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        VitfVideoProcessor(num_frames=2)(wrong)


def test_saved_and_loaded(video, tmp_path):
    processor = VitfVideoProcessor(
        num_frames=4,
        frame_sampling="dense",
        sampling_rate=2,
        num_views=4,
        num_crops=3,
        view_average="softmax",
        sampling_fps=25,
        crop_rounding="down",
        **FIELDS,
    )
    processor.save_pretrained(tmp_path)
    loaded = VitfVideoProcessor.from_pretrained(tmp_path)
    assert loaded.to_dict() == processor.to_dict()
    assert torch.equal(process(loaded, video), process(processor, video))
    assert VitfVideoProcessor.from_pretrained(tmp_path, num_frames=2).num_frames == 2


def test_files_from_before_rates_count_at_thirty_a_second(tmp_path):
    processor = VitfVideoProcessor(num_frames=4, frame_sampling="dense", sampling_rate=2)
    processor.save_pretrained(tmp_path)
    path = tmp_path / "video_preprocessor_config.json"
    values = json.loads(path.read_text())
    for name in ("sampling_fps", "crop_rounding"):
        del values[name]
    path.write_text(json.dumps(values))
    loaded = VitfVideoProcessor.from_pretrained(tmp_path)
    assert (loaded.sampling_fps, loaded.crop_rounding) == (30, "up")
    assert loaded.sample_frames(60, 60.0).tolist() == processor.sample_frames(60, 60.0).tolist() == [22, 27, 32, 37]


# Where this package cannot be imported, the code that is published next to a processor prepares these.
CLIPS = {
    "clip.mp4": {},
    "turned.mp4": {"rotation": 90},
    "clip.webm": {"codec": "libvpx-vp9"},
    "clip.mkv": {},
    "clip.avi": {"codec": "mpeg4"},
    "clip.ts": {},
}


def run_published(folder: Path, script: str, **hidden: None) -> None:
    """Runs lines in a process without this package, after those that load the processor of a folder as from the Hub."""
    hidden = {"hf_vit_family": None, "vit_family_launcher": None, **hidden}
    lines = (
        f"import sys; sys.modules.update({hidden})",
        "import numpy as np, torch",
        "from transformers import AutoVideoProcessor",
        f"folder = {str(folder)!r}",
        "processor = AutoVideoProcessor.from_pretrained(folder, trust_remote_code=True)",
        script,
    )
    environment = {"HF_MODULES_CACHE": str(folder / "modules"), "HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin"}
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True, env=environment, cwd=folder)


@pytest.fixture
def published(tmp_path) -> tuple[VitfVideoProcessor, Path]:
    """A processor, and a folder that it is saved to together with its code."""
    processor = VitfVideoProcessor(num_frames=4, **FIELDS)
    processor.auto_map = {"AutoVideoProcessor": "video_processing_vitf.VitfVideoProcessor"}
    processor.save_pretrained(tmp_path)
    return processor, tmp_path


def test_published_code_gives_the_same_pixels_of_every_file(video, published):
    processor, folder = published
    assert (folder / "video_processing_vitf.py").is_file()
    for name, settings in CLIPS.items():
        write_video(folder / name, range(40), **settings)
    expected = {name: process(processor, str(folder / name)) for name in CLIPS}
    assert len({pixels.numpy().tobytes() for pixels in expected.values()}) >= 4  # codecs and directions differ
    np.save(folder / "video.npy", video)
    torch.save({"video.npy": process(processor, video), **expected}, folder / "expected.pt")
    run_published(
        folder,
        "for name, wanted in torch.load(folder + '/expected.pt').items():\n"
        "    source = np.load(folder + '/' + name) if name.endswith('npy') else folder + '/' + name\n"
        "    assert torch.equal(processor(source, return_tensors='pt')['pixel_values'], wanted), name\n"
        "processor.save_pretrained(folder + '/again')",
    )
    assert (folder / "again" / "video_reading_vitf.py").is_file()
    assert "auto_map" in json.loads((folder / "again" / "video_preprocessor_config.json").read_text())


def test_arrays_need_no_decoder_and_files_say_which_one(video, published):
    processor, folder = published
    np.save(folder / "video.npy", video)
    torch.save(process(processor, video), folder / "expected.pt")
    run_published(
        folder,
        "pixels = processor(np.load(folder + '/video.npy'), return_tensors='pt')['pixel_values']\n"
        "assert torch.equal(pixels, torch.load(folder + '/expected.pt'))\n"
        "try:\n"
        "    processor(folder + '/clip.mp4')\n"
        "except ImportError as error:\n"
        "    assert 'pip install av' in str(error) and '\\n' not in str(error), error\n"
        "else:\n"
        "    raise AssertionError('read without a decoder')",
        av=None,
    )


def test_auto_class_takes_it_for_a_video_processor(tmp_path):
    VitfVideoProcessor(num_frames=4).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "vitf_timesformer"}')
    assert type(AutoVideoProcessor.from_pretrained(tmp_path)) is VitfVideoProcessor


def test_frames_of_one_list_are_one_video():
    frames = [make_frame(number) for number in range(6)]
    processor = VitfVideoProcessor(num_frames=6, **PLAIN)
    assert process(processor, frames).shape == (1, 6, 3, 48, 64)
    assert process(processor, [frames, frames[:3]]).shape == (2, 6, 3, 48, 64)


def test_colour_and_grey_frames_for_processors_of_either(video):
    frames = [Image.fromarray(frame) for frame in video]
    for channels, mode in ((1, "L"), (3, "RGB")):
        processor = VitfVideoProcessor(num_frames=4, image_mean=[0.5] * channels, image_std=[0.5] * channels)
        for given in (frames, [frame.convert("L") for frame in frames]):
            expected = process(processor, [frame.convert(mode) for frame in given])
            assert expected.shape[2] == channels
            assert torch.equal(process(processor, given), expected)
