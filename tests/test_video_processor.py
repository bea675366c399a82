"""The video processor: frames prepared as images are, whatever form a video comes in; the right frames of it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoVideoProcessor
from video_files import make_frame, number_of, write_video

from hf_vit_family.modeling.image_processing_vitf import VitfImageProcessor
from hf_vit_family.modeling.video_processing_vitf import (
    VitfVideoProcessor,
    frame_indices,
    read_with_transformers,
    spatial_crops,
)
from hf_vit_family.videos import UnreadableVideoError

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


def test_files_and_bytes(clip):
    processor = VitfVideoProcessor(num_frames=6, **PLAIN)
    for form in (str(clip), clip, clip.read_bytes()):
        frames = process(processor, form)[0].permute(0, 2, 3, 1).byte().numpy()
        assert [number_of(frame) for frame in frames] == [0, 11, 23, 35, 47, 59]
    with pytest.raises(UnreadableVideoError, match=r"missing\.mp4"):
        processor(str(clip.with_name("missing.mp4")))


def test_transformers_reads_files_where_the_package_is_not_there(clip):
    wanted = np.array([3, 3, 40, 12])
    for source in (str(clip), clip.read_bytes()):
        frames, total = read_with_transformers(source, lambda total: wanted)
        assert total == 60
        assert [number_of(frame) for frame in frames] == wanted.tolist()
    with pytest.raises(ValueError, match="no such video file"):
        read_with_transformers("missing.mp4", lambda total: wanted)


def test_uniform_sampling():
    assert frame_indices(300, 8, "uniform").tolist() == [0, 42, 85, 128, 170, 213, 256, 299]
    views = [frame_indices(300, 8, "uniform", 1, view, 3).tolist() for view in range(3)]
    assert sorted(frame for view in views for frame in view) == frame_indices(300, 24, "uniform").tolist()


def test_dense_sampling():
    """The windows are those of PySlowFast: one in the middle, several from the first frame to the last."""
    assert frame_indices(100, 4, "dense", 8).tolist() == [37, 45, 53, 61]
    views = [frame_indices(100, 4, "dense", 8, view, 3) for view in range(3)]
    assert [view[0] for view in views] == [0, 37, 75]
    assert views[2][-1] == 99


def test_segments_are_those_of_tsn():
    """TimeSformer on Something-Something: frame (start + end) // 2 of each segment."""
    total, frames = 50, 8
    length = (total - 1) / frames
    edges = [(round(length * i), round(length * (i + 1))) for i in range(frames)]
    assert frame_indices(total, frames, "segments").tolist() == [(start + end) // 2 for start, end in edges]
    # X-ViT's three views: start, middle and end of each.
    assert frame_indices(total, frames, "segments", 1, 0, 3).tolist() == [start for start, _ in edges]
    assert frame_indices(total, frames, "segments", 1, 1, 3).tolist() == [(start + end) // 2 for start, end in edges]
    assert frame_indices(total, frames, "segments", 1, 2, 3).tolist() == [end for _, end in edges]


@pytest.mark.parametrize("sampling", ["uniform", "dense", "segments"])
@pytest.mark.parametrize("total", [1, 2, 5, 8, 9, 1000])
def test_short_and_long_videos(sampling, total):
    for view in range(3):
        indices = frame_indices(total, 8, sampling, 4, view, 3)
        assert indices.shape == (8,)
        assert (np.diff(indices) >= 0).all()
        assert indices[0] >= 0
        assert indices[-1] < total
        if total == 8:
            assert indices.tolist() == list(range(8))
    assert frame_indices(total, None, sampling).tolist() == list(range(total))


def test_dense_holds_the_last_frame_of_a_short_video():
    assert frame_indices(5, 4, "dense", 2).tolist() == [0, 2, 4, 4]


def test_calls_override_fields(video):
    processor = VitfVideoProcessor(num_frames=4, **FIELDS)
    assert process(processor, video, num_frames=2).shape[1] == 2
    assert process(processor, video, do_sample_frames=False).shape[1] == 9
    dense = processor(video, num_frames=3, frame_sampling="dense", sampling_rate=2, return_metadata=True)
    assert dense["video_metadata"][0].frames_indices.tolist() == [2, 4, 6]


def test_views_of_a_video(video):
    fields = {**FIELDS, "size": {"height": 32, "width": 32}, "crop_pct": 0.8}
    processor = VitfVideoProcessor(num_frames=2, frame_sampling="dense", sampling_rate=2, num_views=2, **fields)
    assert torch.equal(processor.make_views(video, 1, 1), process(processor, video))
    views = processor.make_views(video, num_crops=3)
    assert views.shape == (6, 2, 3, 32, 32)
    for view, frames in enumerate(([0, 2], [6, 8])):
        image = VitfImageProcessor(**{**fields, "size": {"height": 40, "width": 52}, "crop_pct": None})
        resized = image(list(video[frames]), return_tensors="pt")["pixel_values"]
        for crop, left in enumerate((0, 10, 20)):
            assert torch.equal(views[3 * view + crop], resized[..., 4:36, left : left + 32])


def test_crops_follow_the_longer_side():
    wide, high = torch.rand(2, 3, 32, 60), torch.rand(2, 3, 61, 32)
    assert torch.equal(torch.cat(spatial_crops(wide, (32, 30), 2), -1), wide)
    top, middle, bottom = spatial_crops(high, (32, 32), 3)
    assert torch.equal(top, high[..., :32, :])
    assert torch.equal(middle, high[..., 14:46, :])
    assert torch.equal(bottom, high[..., 29:, :])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_frame": 3}, "did you mean 'num_frames'"),
        ({"frame_sampling": "denes"}, "did you mean 'dense'"),
        ({"num_frames": 0}, "num_frames=0 is not a whole number above 0"),
        ({"sampling_rate": 0}, "sampling_rate=0 is not a whole number above 0"),
        ({"fps": 4}, "fps is not used"),
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
        (np.zeros((4, 8, 8, 5), np.uint8), "does not have 1 or 3 or 4 channels"),
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
        **FIELDS,
    )
    processor.save_pretrained(tmp_path)
    loaded = VitfVideoProcessor.from_pretrained(tmp_path)
    assert loaded.to_dict() == processor.to_dict()
    assert torch.equal(process(loaded, video), process(processor, video))
    assert VitfVideoProcessor.from_pretrained(tmp_path, num_frames=2).num_frames == 2


def test_loads_with_nothing_but_its_own_code(video, clip, tmp_path):
    """As from the Hub: `AutoVideoProcessor` with the code beside the file, in a process without this package."""
    processor = VitfVideoProcessor(num_frames=4, **FIELDS)
    processor.auto_map = {"AutoVideoProcessor": "video_processing_vitf.VitfVideoProcessor"}
    processor.save_pretrained(tmp_path)
    assert (tmp_path / "video_processing_vitf.py").is_file()
    expected = [process(processor, video), process(processor, str(clip))]
    np.save(tmp_path / "video.npy", video)
    torch.save(expected, tmp_path / "expected.pt")
    script = (
        "import sys; sys.modules.update(hf_vit_family=None, vit_family_launcher=None)\n"
        "import numpy as np, torch\n"
        "from transformers import AutoVideoProcessor\n"
        f"folder = {str(tmp_path)!r}\n"
        "processor = AutoVideoProcessor.from_pretrained(folder, trust_remote_code=True)\n"
        "expected = torch.load(folder + '/expected.pt')\n"
        f"for video, wanted in zip((np.load(folder + '/video.npy'), {str(clip)!r}), expected):\n"
        "    assert torch.equal(processor(video, return_tensors='pt')['pixel_values'], wanted)\n"
        "processor.save_pretrained(folder + '/again')\n"
    )
    environment = {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin"}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment, cwd=tmp_path)
    assert (tmp_path / "again" / "image_processing_pil_vitf.py").is_file()
    assert "auto_map" in json.loads((tmp_path / "again" / "video_preprocessor_config.json").read_text())


def test_auto_class_takes_it_for_a_video_processor(tmp_path):
    VitfVideoProcessor(num_frames=4).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "vitf_timesformer"}')
    assert type(AutoVideoProcessor.from_pretrained(tmp_path)) is VitfVideoProcessor


def test_frames_of_one_list_are_one_video():
    frames = [make_frame(number) for number in range(6)]
    processor = VitfVideoProcessor(num_frames=6, **PLAIN)
    assert process(processor, frames).shape == (1, 6, 3, 48, 64)
    assert process(processor, [frames, frames[:3]]).shape == (2, 6, 3, 48, 64)
