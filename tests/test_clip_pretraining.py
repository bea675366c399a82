"""Pretraining on clips: frame order modelling compared with the original, and contrast between two clips of a video."""

import random

import golden
import pytest
import torch
from models import PLAIN_CASES, VIDEO_CASES, random_pixels, tiny_model
from test_training import forget_accelerate, losses, weights  # noqa: F401 - a fixture that applies to all tests
from test_training_resume import check_killed_run
from torch import nn
from training_runs import read_lines, train_in_two, train_tiny
from transformers import AutoModelForVideoClassification

from hf_vit_family import create_processor
from hf_vit_family.data.augmentation import seeded
from hf_vit_family.data.image_sets import IGNORED_LABEL, EvaluationImages, TrainingImages
from hf_vit_family.errors import UserError
from hf_vit_family.loading import load_saved_model
from hf_vit_family.modeling.configuration_vitf import pair
from hf_vit_family.publishing.cards import Training
from hf_vit_family.publishing.publish import stage
from hf_vit_family.training.config import ObjectiveOptions
from hf_vit_family.training.objectives.frame_order import (
    NOT_SELECTED,
    FrameOrderObjective,
    OrderHead,
    ShuffleCollate,
    put_in_place,
    reorder,
)
from hf_vit_family.training.objectives.views import ClipViews, View, ViewTransform
from hf_vit_family.training.pretraining import PRETEXTS

PLAIN_VIDEO_CASES = [case for case in PLAIN_CASES if case in VIDEO_CASES]
CONTRASTIVE = ["simclr", "moco", "mocov3", "byol", "supcon"]
SMALL = {"projection_size": 8, "projection_hidden_size": 12}
OWN = {"moco": {"queue_size": 40}}
# A model of two layers on a few clips.
RUN = {
    "model": "timesformer_base_k400",
    "set": {
        "patch_size": 8,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "mlp_ratio": 2,
        "initializer_range": 0.1,
    },
    "drop_path_rate": 0.0,
    "dataset": "moving_digits",
    "image_size": 16,
    "num_frames": 4,
    "max_train_samples": 48,
    "max_eval_samples": 10,
    "eval_batch_size": 10,
    "num_workers": 0,
    "epochs": 3,
    "batch_size": 16,
    "lr": 0.02,
    "optimizer": "SGD",
    "warmup_steps": 1,
    "log_steps": 1,
    "mixed_precision": "no",
}
RUNS = {
    "frame_order": {"objective": "frame_order", "crop": "center", "horizontal_flip": 0.0, "shuffle_ratio": 0.5},
    "simclr": {"objective": "simclr", "blur_sigma": 0.5, **SMALL},
}
every_run = pytest.mark.parametrize("name", RUNS)


# Frame order


@pytest.mark.parametrize("case", golden.cases("frame_order"))
def test_frame_order_equals_the_original(case):
    """Which frames are selected, and how they are shuffled, is drawn as there, with Python's generator."""
    case = golden.load("frame_order", case)
    generator = random.Random(int(case.inputs["seed"]))
    features, probability = case.inputs["frame_features"].double(), case.kwargs["random_reorder_p"]
    orders, targets = [], []
    for count in case.inputs["num_frames"].tolist():
        selected = [place for place in range(count) if generator.random() < probability]
        shuffled = list(selected)
        generator.shuffle(shuffled)
        drawn = reorder(torch.tensor(selected, dtype=torch.int64), torch.tensor(shuffled, dtype=torch.int64), count)
        padding = features.shape[1] - count
        orders.append(torch.cat((drawn[0], torch.arange(count, count + padding))))
        targets.append(nn.functional.pad(drawn[1], (0, padding), value=NOT_SELECTED))
    orders, targets = torch.stack(orders), torch.stack(targets)
    assert torch.equal(orders, case.outputs["orders"])
    assert torch.equal(targets, case.outputs["targets"])
    shuffled = put_in_place(features, orders)
    assert torch.equal(shuffled, case.outputs["shuffled_features"])
    head = OrderHead(case.kwargs["hidden_size"], case.kwargs["max_clip_len"]).double()
    head.load_state_dict({key.replace("LayerNorm", "layernorm"): value for key, value in case.state_dict.items()})
    logits = head(shuffled)
    assert case.compare("logits", logits.flatten(0, 1)) < 1e-10
    loss = nn.functional.cross_entropy(logits.transpose(1, 2), targets, ignore_index=NOT_SELECTED)
    assert case.compare("loss", loss) < 1e-10


@pytest.mark.parametrize("probability", [0.01, 0.15, 1.0])
def test_shuffles_are_drawn_by_the_seed_and_leave_something_to_learn(probability):
    collate = ShuffleCollate(8, probability)
    samples = [{"pixel_values": torch.zeros(8, 1, 2, 2), "labels": 0, "seed": seed} for seed in range(200)]
    batch = collate(samples)
    orders, targets = batch["orders"], batch["targets"]
    assert torch.equal(orders.sort(1).values, torch.arange(8).expand(200, -1))
    chosen = targets != NOT_SELECTED
    assert chosen.sum(1).min() >= 2
    assert torch.equal(put_in_place(torch.arange(8).expand(200, -1), orders)[chosen], targets[chosen])
    assert torch.equal(orders.where(chosen, -1) == -1, ~chosen)
    kept = torch.arange(8).expand(200, -1)
    assert torch.equal(put_in_place(kept, orders)[~chosen], kept[~chosen])  # what is not selected stays
    assert torch.equal(collate(samples[7:9])["orders"], orders[7:9])
    if probability == 1.0:
        assert chosen.all()


def frame_order(case: str, **options) -> FrameOrderObjective:
    model = tiny_model(case, "Backbone")
    processor = create_processor("timesformer_base_k400", num_frames=model.config.num_frames)
    torch.manual_seed(0)
    size = pair(model.config.image_size)
    return FrameOrderObjective.from_options(model, ObjectiveOptions(**options), processor, size)


@pytest.mark.parametrize("case", PLAIN_VIDEO_CASES)
def test_every_architecture_of_clips_learns_the_order_of_frames(case):
    objective = frame_order(case, shuffle_ratio=0.5)
    config = objective.model.config
    clips = random_pixels(config, 6)
    batch = objective.collate([{"pixel_values": clip, "labels": 0, "seed": seed} for seed, clip in enumerate(clips)])
    groups = config.num_frames // config.frame_stride
    assert batch["targets"].shape == (6, groups)
    assert objective.features(clips).shape == (6, groups, config.stage_channels[-1])
    optimizer = torch.optim.AdamW(objective.parameters(), lr=3e-3)
    history = []
    for _ in range(30):
        metrics = objective(batch)
        assert metrics.keys() == {"loss", "order_accuracy"}
        metrics["loss"].backward()
        assert all(p.grad is not None for p in objective.order.parameters())
        optimizer.step()
        optimizer.zero_grad()
        history.append(metrics["loss"].item())
    assert history[-1] < 0.7 * history[0]
    with torch.no_grad():
        means, each = objective(batch), objective.eval()(batch)
    assert each["loss"].shape == each["order_accuracy"].shape == (6,)
    counts = (batch["targets"] != NOT_SELECTED).sum(1)
    torch.testing.assert_close((each["loss"] * counts).sum() / counts.sum(), means["loss"], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("case", ["vivit-encoder", "timesformer-space"])
def test_a_model_that_sees_single_frames_is_refused(case):
    with pytest.raises(UserError, match="no layer of this model looks at more than one group of frames"):
        frame_order(case)


def test_a_clip_of_one_group_is_refused():
    model = tiny_model("vivit", "Backbone")
    processor = create_processor("vivit_base_16x2_k400", num_frames=2)
    with pytest.raises(UserError, match=r"num_frames=2: .* needs at least two groups of the 2 frames"):
        FrameOrderObjective.from_options(model, ObjectiveOptions(), processor, (32, 32))


# Contrast between clips


def test_a_view_changes_all_frames_of_a_clip_alike():
    view = View((12, 12), (0.5, 1.0), blur=0.5, solarize=0.5)
    clip = torch.randint(256, (3, 20, 24), dtype=torch.uint8).expand(4, -1, -1, -1)
    transform = ViewTransform(view, [0.5] * 3, [0.25] * 3, 3)
    for seed in range(20):
        with seeded(seed):
            frames = transform(clip)
        with seeded(seed):
            frame = transform(clip[0])
        for each in frames:
            torch.testing.assert_close(each, frame)


class Clips:
    """A store whose n-th clip shows n, and how often it was drawn; the last one is broken."""

    labels = torch.tensor([0, 1, 0])
    split = None

    def __init__(self):
        self.drawn = 0

    def __len__(self):
        return 3

    def blank(self, size):
        return torch.zeros(2, 3, *size, dtype=torch.uint8)

    def pixels(self, position):
        self.drawn += 1
        return None if position == 2 else torch.full((2, 3, 8, 8), 10 * position + self.drawn, dtype=torch.uint8)


def test_each_view_is_of_another_clip_and_broken_videos_are_left_out():
    processor = create_processor("timesformer_base_k400", image_mean=[0.0] * 3, image_std=[1 / 255] * 3)
    still = View((8, 8), (1.0, 1.0), horizontal_flip=0.0, jitter_probability=0.0, grayscale=0.0)
    transform = ClipViews([still, still], processor)
    train, evaluation = TrainingImages(Clips(), transform, seed=0), EvaluationImages(Clips(), transform)
    assert [view.mean().round().item() for view in train[1]["pixel_values"]] == [11, 12]
    assert [view.mean().round().item() for view in train[2]["pixel_values"]] == [5, 6]  # the next that can be read
    assert [view.mean().round().item() for view in evaluation[0]["pixel_values"]] == [1, 2]
    broken = evaluation[2]
    assert broken["labels"] == IGNORED_LABEL
    assert [view.shape for view in broken["pixel_values"]] == [(2, 3, 8, 8)] * 2


@pytest.mark.parametrize("name", CONTRASTIVE)
@pytest.mark.parametrize("case", PLAIN_VIDEO_CASES)
def test_every_architecture_of_clips_contrasts_them(case, name):
    model = tiny_model(case, "Model")
    frames, channels, *size = model.config.input_shape
    processor = create_processor("timesformer_base_k400", num_frames=frames)
    torch.manual_seed(0)
    options = ObjectiveOptions(**SMALL, **OWN.get(name, {}))
    objective = PRETEXTS[name].from_options(model, options, processor, tuple(size))
    transform, samples = objective.image_transform(0.5), []
    for seed in range(4):
        with seeded(seed):
            clips = [torch.randint(256, (frames, channels, *size), dtype=torch.uint8) for _ in range(transform.clips)]
            samples.append({"pixel_values": transform(clips), "labels": seed % 2, "seed": seed})
    batch = objective.collate(samples)
    assert batch["pixel_values"].shape == (4, 2, frames, channels, *size)
    objective.begin(10, 5, 0)
    objective.before_step(0)
    metrics = objective(batch)
    metrics["loss"].backward()
    assert all(value.isfinite() for value in metrics.values())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    with torch.no_grad():
        assert objective.eval()(batch)["loss"].shape == (4,)


# Runs


@every_run
def test_a_run_leaves_an_encoder_that_a_classifier_takes(name, tmp_path):
    output = tmp_path / "run"
    metrics = train_tiny(output, RUN, **RUNS[name])
    assert metrics.keys() == {"loss", "order_accuracy" if name == "frame_order" else "similarity"}
    assert type(load_saved_model(output)).__name__ == (
        "VitfTimesformerBackbone" if name == "frame_order" else "VitfTimesformerModel"
    )
    assert Training.read(output).objective == PRETEXTS[name].title
    stage(output, tmp_path / "staged", "someone/model")
    card = (tmp_path / "staged" / "README.md").read_text(encoding="utf-8")
    assert f"Pretrained by {PRETEXTS[name].title}, without labels, on" in card
    model, info = AutoModelForVideoClassification.from_pretrained(output, output_loading_info=True)
    assert {key.partition(".")[0] for key in info["missing_keys"]} == {"classifier"}
    assert not info["unexpected_keys"]
    saved = load_saved_model(output).base_model.state_dict()
    assert all(torch.equal(tensor, saved[key]) for key, tensor in model.base_model.state_dict().items())


@every_run
def test_a_killed_run_on_clips_ends_with_the_same_bits(name, tmp_path):
    check_killed_run(tmp_path, RUN, **RUNS[name])


@every_run
def test_two_processes_on_clips_equal_one(name, tmp_path):
    given = {**RUN, **RUNS[name], "epochs": 1}
    train_tiny(tmp_path / "one", given)
    train_in_two(tmp_path / "two", given, batch_size=8)
    first, second = (read_lines(tmp_path / folder, "evaluation") for folder in ("one", "two"))
    assert [line["num_images"] for line in second] == [10]
    assert [line["loss"] for line in second] == pytest.approx([line["loss"] for line in first], rel=1e-4)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    for key, tensor in weights(tmp_path / "one").items():
        torch.testing.assert_close(tensor, weights(tmp_path / "two")[key], rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"objective": "simmim"},
            "SimMIM .* learns from images, and timesformer_base_k400 is a model of clips, which .*",
        ),
        (
            {"objective": "frame_order", "model": "vit_tiny_patch16_224", "set": {}, "dataset": "digits"},
            "learns from clips, and vit_tiny_patch16_224 is a model of images, which simmim",
        ),
        ({"objective": "frame_order", "shuffle_ratio": 0.0}, "'shuffle_ratio' is above 0"),
        ({"objective": "simclr", "shuffle_ratio": 0.5}, "'shuffle_ratio' is for the objective frame_order"),
    ],
)
def test_what_does_not_fit_is_refused(options, message, tmp_path):
    given = {**RUN, **options}
    if options.get("model"):
        given.pop("num_frames")
    with pytest.raises(UserError, match=message):
        train_tiny(tmp_path / "run", given)
