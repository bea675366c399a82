"""
Labelled videos: where they come from, which frames are taken, how they are varied, and what moving digits give away.
"""

import csv
import pickle

import datasets
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from torchvision.transforms import v2
from video_files import number_of, write_video

from hf_vit_family.data.augmentation import AugmentationConfig, seeded, training_transform
from hf_vit_family.data.image_sets import IGNORED_LABEL
from hf_vit_family.data.load import DataConfig, load_data, load_evaluation, train_collate
from hf_vit_family.data.video_sources import MovingDigitsSource
from hf_vit_family.errors import UserError
from hf_vit_family.evaluation.evaluate import average_views, evaluate_model
from hf_vit_family.modeling.video_processing_vitf import VitfVideoProcessor
from hf_vit_family.training.config import ModelOptions
from hf_vit_family.training.setup import load_processor

SIZE = {"height": 48, "width": 64}
PLAIN = {"crop": "center", "horizontal_flip": 0.0, "num_workers": 0}


def make_processor(**fields) -> VitfVideoProcessor:
    return VitfVideoProcessor(**{"num_frames": 4, "size": SIZE, **fields})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes of three clips each."""
    root = tmp_path_factory.mktemp("videos")
    for label, name in enumerate(("jump", "run")):
        (root / name).mkdir()
        for number in range(3):
            write_video(root / name / f"{number}.mp4", range(100 * label + 20 * number, 100 * label + 20 * number + 12))
    return root


def numbers(clip: torch.Tensor) -> list[int]:
    """Finds the frames that a normalised clip (T, C, H, W) consists of."""
    return [number_of(((frame * 0.5 + 0.5) * 255).byte().permute(1, 2, 0).numpy()) for frame in clip]


def test_folder_of_class_folders(folder):
    bundle = load_data(DataConfig(dataset=str(folder), eval_fraction=0.34, **PLAIN), make_processor(), seed=0)
    assert bundle.id2label == {0: "jump", 1: "run"}
    assert (len(bundle.train), len(bundle.evaluation)) == (4, 2)
    assert bundle.description["num_frames"] == 4
    for index in range(4):
        sample = bundle.train[index]
        assert sample["pixel_values"].shape == (4, 3, 48, 64)
        frames = numbers(sample["pixel_values"])
        assert frames == sorted(frames)
        assert {number // 100 for number in frames} == {sample["labels"]}
        assert len({number // 20 for number in frames}) == 1
    for index in range(2):
        sample = bundle.evaluation[index]
        assert np.array_equal(np.array(numbers(sample["pixel_values"])) % 20, [0, 3, 7, 11])


def write_table(folder, path, relative: bool) -> None:
    files = sorted(folder.rglob("*.mp4"))
    rows = [(str(file.relative_to(path.parent) if relative else file), file.parent.name) for file in files]
    if path.suffix == ".csv":
        with open(path, "w", newline="") as file:
            csv.writer(file).writerows([("path", "label"), *rows])
    else:
        datasets.Dataset.from_dict({"path": [r[0] for r in rows], "label": [r[1] for r in rows]}).to_parquet(path)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_tables_of_paths(folder, suffix):
    path = folder / f"table.{suffix}"
    write_table(folder, path, relative=True)
    try:
        split, _, bad = load_evaluation(DataConfig(dataset=str(path)), make_processor())
        assert [split[index]["labels"] for index in range(6)] == [0, 0, 0, 1, 1, 1]
        assert numbers(split[4]["pixel_values"]) == [120, 123, 127, 131]
        assert "run/1.mp4" in split.store.name(4)
        assert not len(bad)
    finally:
        path.unlink()


def test_table_with_encoded_videos(folder, tmp_path):
    """As Hub data sets hold them: bytes, or a column of type Video."""
    files = sorted(folder.rglob("*.mp4"))
    features = datasets.Features(
        {
            "clip": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")},
            "label": datasets.ClassLabel(names=["a", "b"]),
        }
    )
    rows = {"clip": [{"bytes": f.read_bytes(), "path": f.name} for f in files] + [{"bytes": b"no video", "path": "x"}]}
    rows["label"] = [0, 0, 0, 1, 1, 1, 1]
    table = datasets.Dataset.from_dict(rows, features=features)
    table.to_parquet(tmp_path / "train.parquet")
    for column in (None, "clip"):
        split, _, bad = load_evaluation(DataConfig(dataset=str(tmp_path), video_column=column), make_processor())
        assert numbers(split[4]["pixel_values"]) == [120, 123, 127, 131]
        assert split[6]["labels"] == IGNORED_LABEL
        assert list(bad) == ["cannot read video of 8 bytes: no video of a known format, or damaged: x (row 6 of train)"]
    video = table.cast_column("clip", datasets.Video(decode=False))
    video.to_parquet(tmp_path / "train.parquet")
    split, _, _ = load_evaluation(DataConfig(dataset=str(tmp_path)), make_processor())
    assert numbers(split[1]["pixel_values"]) == [20, 23, 27, 31]


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ("./missing", "does not exist"),
        ("missing.csv", "does not exist"),
        ("{folder}/jump/0.mp4", "no csv or parquet file"),
        ("{folder}/jump", "class folders"),
    ],
)
def test_wrong_sources_are_named(folder, dataset, message):
    with pytest.raises(UserError, match=message):
        load_data(DataConfig(dataset=dataset.format(folder=folder)), make_processor(), seed=0)


def test_streaming_is_refused(folder):
    with pytest.raises(UserError, match="streaming is for images"):
        load_data(DataConfig(dataset=str(folder), streaming=True), make_processor(), seed=0)


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_videos_are_skipped_and_listed(folder, tmp_path, workers):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "good.mp4").write_bytes((folder / "jump" / "0.mp4").read_bytes())
        (tmp_path / name / "bad.mp4").write_bytes(b"no video")
    config = DataConfig(dataset=str(tmp_path), eval_fraction=0.5, **PLAIN)
    split, _, bad = load_evaluation(config, make_processor())
    labels = torch.cat([batch["labels"] for batch in DataLoader(split, batch_size=2, num_workers=workers)])
    assert labels.tolist() == [IGNORED_LABEL, 0, IGNORED_LABEL, 1]
    assert [line.split(": ")[0] for line in bad] == [f"cannot read video {tmp_path / n / 'bad.mp4'}" for n in "ab"]
    config = DataConfig(dataset=str(tmp_path), on_bad_image="error", **PLAIN)
    split, _, _ = load_evaluation(config, make_processor())
    with pytest.raises(UserError, match=r"cannot read video .*bad\.mp4"):
        list(DataLoader(split, num_workers=workers))


def test_training_clips_follow_from_seed_and_epoch_with_any_number_of_workers(folder):
    config = DataConfig(dataset=str(folder), eval_fraction=0.34, auto_augment="randaugment")
    bundle = load_data(config, make_processor(frame_sampling="dense", sampling_rate=2), seed=3)
    collate = train_collate(config, 2)
    epochs = []
    for epoch, workers in ((0, 0), (0, 2), (1, 0)):
        bundle.train.set_epoch(epoch)
        loader = DataLoader(bundle.train, batch_size=4, num_workers=workers, collate_fn=collate)
        epochs.append(next(iter(loader))["pixel_values"])
    assert torch.equal(epochs[0], epochs[1])
    assert not torch.equal(epochs[0], epochs[2])


def test_rates_are_options_of_a_run():
    processor = load_processor(
        ModelOptions(model="timesformer_base_k400"), DataConfig(sampling_fps=15.0, sampling_rate=4)
    )
    assert (processor.sampling_fps, processor.sampling_rate, processor.fps) == (15.0, 4, None)
    processor = load_processor(ModelOptions(model="timesformer_base_k400"), DataConfig(fps=2.5))
    # Eight frames, 12 apart, of which the last ends the window.
    assert processor.frame_chooser()(1000, 30.0).tolist() == [0, 13, 27, 40, 54, 67, 81, 95]
    for name in ("fps", "sampling_fps"):
        with pytest.raises(UserError, match=f"^{name}=0.0 must be a number of frames a second above 0"):
            DataConfig(**{name: 0.0})


@pytest.mark.parametrize("policy", ["none", "randaugment", "trivialaugment", "autoaugment"])
def test_frames_of_a_clip_are_varied_alike(policy):
    config = AugmentationConfig(auto_augment=policy, color_jitter=0.4, random_erasing=0.5)
    transform = training_transform(config, (32, 32), [0.5] * 3, [0.25] * 3, resample=3)
    clip = torch.randint(256, (1, 3, 40, 50), dtype=torch.uint8).expand(4, -1, -1, -1)
    variations = []
    for seed in range(10):
        with seeded(seed):
            varied = transform(clip)
        assert varied.shape == (4, 3, 32, 32)
        assert torch.equal(varied, varied[:1].expand_as(varied))
        variations.append(varied)
    assert not torch.equal(variations[0], variations[1])


def test_mixing_takes_whole_clips():
    config = AugmentationConfig(cutmix=1.0)
    clips = [torch.full((4, 3, 16, 16), float(value)) for value in range(4)]
    samples = [{"pixel_values": clip, "labels": label, "seed": 7} for label, clip in enumerate(clips)]
    batch = pickle.loads(pickle.dumps(train_collate(config, 4)))(samples)
    assert batch["pixel_values"].shape == (4, 4, 3, 16, 16)
    first = batch["pixel_values"][:, :1, :1]
    assert torch.equal(batch["pixel_values"], first.expand(-1, 4, 3, -1, -1))
    shares = [(batch["pixel_values"][1] == value).float().mean() for value in range(4)]
    assert torch.allclose(batch["labels"][1], torch.tensor(shares), atol=1e-6)


def test_moving_digits_are_the_same_every_time_and_held_out_digits_are_new():
    source = MovingDigitsSource()
    train, test = source.open("train"), source.open("test")
    assert np.array_equal(train.read(17), source.open("train").read(17))
    assert train.read(17).shape == (8, 32, 32, 3)
    assert np.bincount(train.labels).tolist() == [len(train.labels) // 4] * 4
    assert len(train.labels) + len(test.labels) == 4 * 1797
    digits = [{split.image_name(i).split(" going")[0] for i in range(len(split.labels))} for split in (train, test)]
    assert not digits[0] & digits[1]


def test_moving_digits_differ_in_the_order_of_frames_alone():
    """A motion is the opposite one backwards, at the same place."""
    source = MovingDigitsSource()
    digit = np.arange(64).reshape(8, 8) / 4
    places = np.array([(16, 4), (0, 9)])
    left, up = np.split(source.draw(digit, source.classes.index("left-up"), places), 2)
    for label, name in enumerate(source.classes):
        across, down = np.split(source.draw(digit, label, places), 2)
        assert np.array_equal(across, left if name.startswith("left") else left[::-1])
        assert np.array_equal(down, up if name.endswith("up") else up[::-1])
    for number in range(3):
        assert np.array_equal(np.roll(left[number], -source.step, axis=1), left[number + 1])
        assert np.array_equal(np.roll(up[number], -source.step, axis=0), up[number + 1])


def test_places_of_moving_digits_do_not_depend_on_the_class():
    source = MovingDigitsSource()
    for label in range(4):
        places = np.stack([source.places(row, label) for row in range(1797)])
        for (motion, axis), sides in {(0, 0): 17, (0, 1): 5, (1, 0): 5, (1, 1): 17}.items():
            counts = np.bincount(places[:, motion, axis], minlength=sides)
            assert len(counts) == sides
            assert ((counts - 1797 / sides) ** 2 / (1797 / sides)).sum() < 45  # chi-squared, 16 degrees: 0.9998


def test_horizontal_flip_would_change_the_class():
    """Why the recipe switches it off."""
    source = MovingDigitsSource()
    right, left = (
        source.draw(np.ones((8, 8)), source.classes.index(name), np.array([(0, 2), (2, 8)]))
        for name in ("right-up", "left-up")
    )
    mirrored = v2.functional.horizontal_flip(torch.from_numpy(right).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    assert np.array_equal(mirrored.numpy(), left)


class Brightness(torch.nn.Module):
    """A classifier of clips whose logits are known: minus and plus the mean brightness."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))
        self.config = type("Config", (), {"num_labels": 2})

    def forward(self, pixel_values):
        mean = pixel_values.flatten(1).mean(1) * self.scale
        return type("Output", (), {"logits": torch.stack([-mean, mean], dim=1)})


def test_views_are_averaged(folder):
    processor = make_processor(size={"height": 24, "width": 24}, crop_pct=0.9, frame_sampling="dense", sampling_rate=2)
    config, model = DataConfig(dataset=str(folder)), Brightness()
    split, _, _ = load_evaluation(config, processor, views=(2, 3))
    sample = split[0]["pixel_values"]
    assert sample.shape == (6, 4, 3, 24, 24)
    batch = {"pixel_values": torch.stack([split[i]["pixel_values"] for i in range(6)]), "labels": torch.tensor([0] * 6)}
    for view_average in ("logits", "softmax"):
        result = evaluate_model(model, [batch], progress=False, view_average=view_average)
        views = model(batch["pixel_values"].flatten(0, 1)).logits.unflatten(0, (6, 6))
        scores = views.mean(1).softmax(-1) if view_average == "logits" else views.softmax(-1).mean(1)
        assert result["loss"] == pytest.approx(-scores[:, 0].log().mean().item(), rel=1e-5)
    one, _, _ = load_evaluation(config, processor)
    assert torch.equal(
        one[0]["pixel_values"], processor(str(folder / "jump" / "0.mp4"), return_tensors="pt")["pixel_values"][0]
    )


def test_averages_differ_where_one_view_is_sure():
    logits = torch.tensor([[[8.0, 0.0], [0.0, 1.0], [0.0, 1.0]]])
    assert average_views(logits, "logits").argmax() == 0
    logits = torch.tensor([[[4.0, 0.0], [0.0, 1.5], [0.0, 1.5]]])
    assert average_views(logits, "logits")[0].argmax() == 0
    assert average_views(logits, "softmax")[0].argmax() == 1
    assert average_views(logits, "softmax").exp().sum() == pytest.approx(1.0)
