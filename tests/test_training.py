"""The training loop: what must be equal is equal, and each option does what it says."""

import json
import math
import os
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
import safetensors.torch
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from models import tiny_config
from PIL import Image
from torch import nn
from training_runs import STILL_RUN, TINY_RUN, read_lines, train_in_two, train_tiny
from transformers import AutoImageProcessor, AutoModelForImageClassification
from vit_family_launcher import main

from hf_vit_family import create_model
from hf_vit_family.errors import UserError
from hf_vit_family.evaluation.evaluate import evaluate_model
from hf_vit_family.evaluation.metrics import HIGHER_IS_BETTER
from hf_vit_family.modeling.modeling_cct import VitfCctForImageClassification
from hf_vit_family.modeling.modeling_deit import VitfDeitForImageClassification
from hf_vit_family.modeling.modeling_vit import VitfVitForImageClassification
from hf_vit_family.options import make_options
from hf_vit_family.publishing.cards import Evaluation, Training
from hf_vit_family.publishing.publish import stage
from hf_vit_family.training.config import ModelOptions, OptimizationOptions, RunOptions
from hf_vit_family.training.loop import TrainingBatches, TrainingLoop
from hf_vit_family.training.objectives.classification import ClassificationObjective, make_loss, soft_targets
from hf_vit_family.training.optim import (
    WeightAverage,
    layer_depths,
    learning_rate,
    make_optimizer,
    parameter_groups,
)
from hf_vit_family.training.overhead import loop_overhead
from hf_vit_family.training.recipes import RECIPES, read_recipe
from hf_vit_family.training.run import TrainingOptions


@pytest.fixture(autouse=True)
def forget_accelerate():
    """Accelerate keeps its settings for the whole process."""

    def forget():
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()

    forget()
    return forget


def weights(output: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(output / "model.safetensors")


def losses(output: Path) -> list[float]:
    return [line["loss"] for line in read_lines(output, "train")]


def test_output_folder_is_a_model_with_its_records(tmp_path):
    output = tmp_path / "run"
    metrics = train_tiny(output, epochs=2)
    model = AutoModelForImageClassification.from_pretrained(output)
    processor = AutoImageProcessor.from_pretrained(output)
    assert model.config.id2label == {i: str(i) for i in range(10)}
    assert (processor.size["height"], processor.size["width"]) == (8, 8)
    training, evaluation = Training.read(output), Evaluation.read(output)
    assert evaluation.metrics == metrics
    assert evaluation.num_images == 40
    assert evaluation.parameters == model.num_parameters()
    assert training.num_images == 96
    assert training.command == "vit-family train"
    assert (output / "curves.png").read_bytes().startswith(b"\x89PNG")
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [(line["split"], line["step"]) for line in lines if line["split"] == "evaluation"] == [
        ("evaluation", 6),
        ("evaluation", 12),
    ]
    assert {"loss", "accuracy", "lr", "images_per_second", "data_wait"} <= lines[0].keys()
    assert not list(output.glob(".*"))


@pytest.mark.parametrize("mask", [0o022, 0o027])
def test_saved_files_have_the_mode_of_new_files(tmp_path, mask):
    before = os.umask(mask)
    try:
        train_tiny(tmp_path / "run", max_steps=1)
        stage(tmp_path / "run", tmp_path / "staged", "owner/name", "apache-2.0")
    finally:
        os.umask(before)
    for folder in ("run", "staged"):
        files = [path for path in (tmp_path / folder).rglob("*") if path.is_file()]
        assert any(path.suffix == ".safetensors" for path in files)
        assert {oct(path.stat().st_mode & 0o777) for path in files} == {oct(0o666 & ~mask)}
        folders = [path for path in ((tmp_path / folder), *(tmp_path / folder).rglob("*")) if path.is_dir()]
        assert {oct(path.stat().st_mode & 0o777) for path in folders} == {oct(0o777 & ~mask)}


def test_saved_weights_score_what_the_record_says(tmp_path):
    from hf_vit_family.data.load import DataConfig, load_evaluation

    output = tmp_path / "run"
    metrics = train_tiny(output, epochs=2, lr=3e-2)
    model = AutoModelForImageClassification.from_pretrained(output)
    images, _, _ = load_evaluation(
        DataConfig(max_eval_samples=40, num_workers=0), AutoImageProcessor.from_pretrained(output)
    )
    again = evaluate_model(model, torch.utils.data.DataLoader(images, batch_size=7))
    assert again["loss"] == pytest.approx(metrics["loss"], rel=1e-5)
    assert again["accuracy"] == metrics["accuracy"]


def test_accumulation_equals_one_large_batch(tmp_path):
    train_tiny(tmp_path / "large", STILL_RUN, batch_size=8, max_steps=6)
    train_tiny(tmp_path / "small", STILL_RUN, batch_size=4, gradient_accumulation_steps=2, max_steps=6)
    assert losses(tmp_path / "small") == pytest.approx(losses(tmp_path / "large"), rel=1e-5)
    first, second = weights(tmp_path / "large"), weights(tmp_path / "small")
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=1e-3, atol=1e-5)


def test_two_processes_equal_one_with_the_double_batch(tmp_path):
    train_tiny(tmp_path / "one", STILL_RUN, batch_size=16)
    train_in_two(tmp_path / "two", STILL_RUN, batch_size=8)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    first, second = read_lines(tmp_path / "one", "evaluation"), read_lines(tmp_path / "two", "evaluation")
    assert [line["num_images"] for line in second] == [40, 40, 40]
    assert [line["loss"] for line in second] == pytest.approx([line["loss"] for line in first], rel=1e-4)
    for name, tensor in weights(tmp_path / "one").items():
        torch.testing.assert_close(tensor, weights(tmp_path / "two")[name], rtol=1e-3, atol=1e-4)


def test_bf16_and_float32_losses_are_close(tmp_path, forget_accelerate):
    train_tiny(tmp_path / "float32", STILL_RUN, max_steps=8)
    forget_accelerate()
    train_tiny(tmp_path / "bf16", STILL_RUN, max_steps=8, mixed_precision="bf16")
    exact, coarse = losses(tmp_path / "float32"), losses(tmp_path / "bf16")
    assert coarse == pytest.approx(exact, abs=0.05)
    assert coarse != exact


@pytest.mark.parametrize("option", [{"gradient_checkpointing": True}, {"eval_batch_size": 3}, {"num_workers": 2}])
def test_options_that_change_no_number(tmp_path, option):
    train_tiny(tmp_path / "plain", max_steps=4)
    train_tiny(tmp_path / "other", max_steps=4, **option)
    assert losses(tmp_path / "other") == pytest.approx(losses(tmp_path / "plain"), rel=1e-6)
    first, second = weights(tmp_path / "plain"), weights(tmp_path / "other")
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=1e-5, atol=1e-7)


def test_compiled_model_learns_the_same(tmp_path):
    train_tiny(tmp_path / "plain", STILL_RUN, max_steps=3)
    train_tiny(tmp_path / "compiled", STILL_RUN, max_steps=3, compile=True, max_eval_samples=16)
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "plain"), rel=1e-4)
    assert weights(tmp_path / "compiled").keys() == weights(tmp_path / "plain").keys()


def test_linear_probe_trains_the_head_alone(tmp_path):
    train_tiny(tmp_path / "base", max_steps=2)
    start = str(tmp_path / "base")
    train_tiny(tmp_path / "probe", model=start, set={}, drop_path_rate=None, freeze="backbone", max_steps=3)
    before, after = weights(tmp_path / "base"), weights(tmp_path / "probe")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"classifier.weight", "classifier.bias"}


def test_adapters_are_merged_into_a_plain_model(tmp_path):
    train_tiny(tmp_path / "base", max_steps=2)
    start = str(tmp_path / "base")
    metrics = train_tiny(
        tmp_path / "lora", STILL_RUN, model=start, set={}, drop_path_rate=None, lora_rank=2, max_steps=6, lr=0.1
    )
    before, after = weights(tmp_path / "base"), weights(tmp_path / "lora")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    linears = {"attention.qkv.weight", "attention.proj.weight", "mlp.fc1.weight", "mlp.fc2.weight"}
    expected = {f"vit.layers.{i}.{name}" for i in range(2) for name in linears}
    assert changed == expected | {"classifier.weight", "classifier.bias"}
    for name in expected:
        assert torch.linalg.matrix_rank(after[name] - before[name], rtol=1e-3) <= 2
    assert Evaluation.read(tmp_path / "lora").metrics == metrics
    from hf_vit_family.data.load import DataConfig, load_evaluation

    model = AutoModelForImageClassification.from_pretrained(tmp_path / "lora")
    processor = AutoImageProcessor.from_pretrained(tmp_path / "lora")
    images, _, _ = load_evaluation(DataConfig(max_eval_samples=40), processor)
    again = evaluate_model(model, torch.utils.data.DataLoader(images, batch_size=40))
    assert again["loss"] == pytest.approx(metrics["loss"], rel=1e-5)


@pytest.mark.parametrize(("best_metric", "choose"), [("accuracy", max), ("loss", min), ("ece", min)])
def test_best_weights_are_saved_on_demand(tmp_path, best_metric, choose):
    options = {"epochs": 4, "lr": 1.0, "warmup_steps": 14, "clip_grad_norm": 1.0, "ema_decay": None}
    metrics = train_tiny(tmp_path / "run", STILL_RUN, final_weights="best", best_metric=best_metric, **options)
    by_step = {line["step"]: line for line in read_lines(tmp_path / "run", "evaluation")}
    best = choose(by_step, key=lambda step: by_step[step][best_metric])
    assert metrics[best_metric] == by_step[best][best_metric]
    saved = safetensors.torch.load_file(tmp_path / "run" / "checkpoints" / f"step-{best:09d}" / "objective.safetensors")
    for name, tensor in weights(tmp_path / "run").items():
        assert torch.equal(tensor, saved[f"model.{name}"])


def test_trained_folder_takes_the_classes_of_the_data(tmp_path, capsys):
    train_tiny(tmp_path / "base", max_steps=2)
    config_file = tmp_path / "base" / "config.json"
    small = AutoModelForImageClassification.from_pretrained(
        tmp_path / "base", num_labels=4, ignore_mismatched_sizes=True
    )
    small.save_pretrained(tmp_path / "base")
    assert len(json.loads(config_file.read_text())["id2label"]) == 4
    options = {"model": str(tmp_path / "base"), "set": {}, "drop_path_rate": None, "max_steps": 2}
    with pytest.raises(UserError, match="did you mean 'hidden_size'"):
        train_tiny(tmp_path / "more", **{**options, "set": {"hiden_size": 3}})
    assert not (tmp_path / "more").exists()
    train_tiny(tmp_path / "more", **options)
    assert weights(tmp_path / "more")["classifier.weight"].shape[0] == 10
    assert "gets a new head for the classes of the data: 0, 1, 2" in capsys.readouterr().err


class RecordingTracker(GeneralTracker):
    """Keeps what it is told."""

    name = "recording"
    requires_logging_directory = False
    told: ClassVar[list] = []

    def __init__(self, run_name: str, **kwargs):
        super().__init__()

    @property
    def tracker(self):
        return self.told

    def store_init_configuration(self, values: dict):
        self.told.append(values)

    def log(self, values: dict, step: int | None, **kwargs):
        self.told.append((step, values))


def test_trackers_hear_options_and_metrics(tmp_path, monkeypatch):
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "recording", RecordingTracker)
    monkeypatch.setattr(RecordingTracker, "told", [])
    train_tiny(tmp_path / "run", max_steps=2, trackers=["recording"])
    options, *logged = RecordingTracker.told
    assert options["batch_size"] == 16
    assert [step for step, _ in logged] == [1, 2, 2]
    assert "train/loss" in logged[0][1]
    assert "evaluation/accuracy" in logged[2][1]


def test_broken_images_are_counted_and_listed(tmp_path, capsys):
    for label, colour in enumerate(((255, 0, 0), (0, 255, 0))):
        folder = tmp_path / "photos" / "train" / f"class{label}"
        folder.mkdir(parents=True)
        for number in range(12):
            Image.new("RGB", (8, 8), colour).save(folder / f"{number}.png")
        (folder / "broken.png").write_bytes(b"not an image")
    options = {"dataset": str(tmp_path / "photos"), "max_train_samples": None, "batch_size": 8, "max_steps": 2}
    train_tiny(tmp_path / "run", **options)
    lines = (tmp_path / "run" / "bad_images.txt").read_text().splitlines()
    assert len(lines) == 2
    assert all("broken.png" in line for line in lines)
    assert "skipped 2 images" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"broken\.png"):
        train_tiny(tmp_path / "strict", on_bad_image="error", **options)


# Optimiser


def test_weight_average_follows_its_formula():
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    average = WeightAverage(model, decay=0.7)
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for update in range(12):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
            model[1].running_mean.add_(1.0)
            model[1].num_batches_tracked.add_(1)
        average.update()
        d = min(0.7, (1 + update) / (10 + update))
        for name, tensor in model.state_dict().items():
            moves = tensor.is_floating_point()
            expected[name] = d * expected[name] + (1 - d) * tensor if moves else tensor.clone()
    own = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with average.applied():
        for name, tensor in model.state_dict().items():
            torch.testing.assert_close(tensor, expected[name])
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, own[name])


def test_decay_leaves_norms_biases_positions_and_tokens_alone():
    model = VitfDeitForImageClassification(tiny_config("deit"))
    decaying = dict(model.named_parameters()).keys() - model.parameters_without_decay()
    inside = {
        f"deit.layers.{i}.{part}.weight"
        for i in range(2)
        for part in ("attention.qkv", "attention.proj", "mlp.fc1", "mlp.fc2")
    }
    heads = {"classifier.weight", "distillation_classifier.weight"}
    assert decaying == inside | heads | {"deit.embeddings.patch_embeddings.projection.weight"}


@pytest.mark.parametrize(
    ("model_class", "case", "depths"),
    [
        (
            VitfVitForImageClassification,
            "vit",
            {
                "vit.embeddings.cls_token": 0,
                "vit.embeddings.patch_embeddings.projection.weight": 0,
                "vit.layers.0.mlp.fc1.weight": 1,
                "vit.layers.1.attention.qkv.bias": 2,
                "vit.layernorm.weight": 3,
                "classifier.weight": 3,
            },
        ),
        (
            VitfCctForImageClassification,
            "cct",
            {"cct.layers.0.attention.qkv.weight": 1, "cct.layers.1.attention.qkv.weight": 2, "classifier.bias": 3},
        ),
    ],
)
def test_layers_learn_at_rates_by_their_depth(model_class, case, depths):
    model = model_class(tiny_config(case))
    found = layer_depths(model)
    assert {name: found[name] for name in depths} == depths
    assert found.keys() == dict(model.named_parameters()).keys()
    groups = parameter_groups(model, weight_decay=0.1, layer_decay=0.5)
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        assert scale[id(parameter)] == 0.5 ** (3 - found[name])
        assert decay[id(parameter)] == (0.0 if name in model.parameters_without_decay() else 0.1)


# LeViT has a batch norm before its classifier, which sees one value of each channel for an image.
_LEVIT_RUN = {
    **STILL_RUN,
    "model": "levit_128s",
    "image_size": 32,
    "set": {"hidden_sizes": [8, 16, 16], "depths": [1, 1, 1], "num_heads": [1, 1, 1], "key_dim": 4},
    "epochs": 1,
    "max_eval_samples": 5,
    "warmup_steps": 0,
}


def test_a_last_batch_of_one_does_not_stop_a_run(tmp_path):
    train_tiny(tmp_path, _LEVIT_RUN, max_train_samples=9, batch_size=4)
    assert [line["step"] for line in read_lines(tmp_path, "train")] == [1, 2]


def test_batches_that_are_too_small_for_batch_norms_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"batch_size=1 on each process: .* at least two images"):
        train_tiny(tmp_path, _LEVIT_RUN, max_train_samples=4, batch_size=1)


def test_one_rate_for_all_without_layer_decay():
    groups = parameter_groups(VitfVitForImageClassification(tiny_config("vit")), weight_decay=0.1)
    assert [(group["weight_decay"], group["lr_scale"]) for group in groups] == [(0.0, 1.0), (0.1, 1.0)] or [
        (group["weight_decay"], group["lr_scale"]) for group in groups
    ] == [(0.1, 1.0), (0.0, 1.0)]


def test_schedules():
    def rates(schedule):
        return [learning_rate(step, 10, 4, lr=1.0, min_lr=0.1, schedule=schedule) for step in range(10)]

    assert rates("constant") == [0.25, 0.5, 0.75, 1.0] + [1.0] * 6
    assert rates("linear") == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 0.82, 0.64, 0.46, 0.28, 0.1])
    cosine = [0.1 + 0.9 * (1 + math.cos(math.pi * step / 5)) / 2 for step in range(6)]
    assert rates("cosine") == pytest.approx([0.25, 0.5, 0.75, 1.0, *cosine])


def test_optimizer_by_name_with_its_arguments(tmp_path):
    groups = [{"params": [nn.Parameter(torch.zeros(2))]}]
    optimizer = make_optimizer("SGD", groups, 0.1, {"momentum": 0.9, "nesterov": True})
    assert isinstance(optimizer, torch.optim.SGD)
    assert optimizer.defaults["momentum"] == 0.9
    with pytest.raises(UserError, match="did you mean 'Adam"):
        make_optimizer("AdamV", groups, 0.1, {})
    with pytest.raises(UserError, match=r"optimizer SGD: .*momentun"):
        make_optimizer("SGD", groups, 0.1, {"momentun": 0.9})


# Loop and loss


class Constant(torch.utils.data.Dataset):
    """Images that tell where they are from."""

    def __init__(self, length: int):
        self.length = length

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict:
        return {"pixel_values": torch.full((1,), float(index)), "labels": self.epoch}


def test_batches_from_the_middle_are_those_of_the_whole_epoch():
    batches = TrainingBatches(
        Constant(50), torch.utils.data.default_collate, 4, 3, seed=1, accelerator=Accelerator(cpu=True)
    )
    assert batches.steps_per_epoch == 4
    whole, rest = list(batches.epoch(2)), list(batches.epoch(2, first_step=1))
    assert [len(step) for step in whole] == [3] * 4
    seen = torch.cat([batch["pixel_values"] for step in whole for batch in step])
    assert len(seen.unique()) == 48
    for one, other in zip(whole[1:], rest, strict=True):
        for batch, same in zip(one, other, strict=True):
            assert torch.equal(batch["pixel_values"], same["pixel_values"])
    (other_epoch, *_) = batches.epoch(3)
    assert not torch.equal(other_epoch[0]["pixel_values"], whole[0][0]["pixel_values"])


class Stream(torch.utils.data.IterableDataset):
    """An epoch is 11 numbers."""

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self):
        yield from ({"pixel_values": torch.tensor(100.0 * self.epoch + i), "labels": i % 2} for i in range(11))


def test_streams_have_positions_too():
    batches = TrainingBatches(
        Stream(), torch.utils.data.default_collate, 2, 2, seed=1, accelerator=Accelerator(cpu=True)
    )
    assert batches.steps_per_epoch is None
    steps = [[batch["pixel_values"].tolist() for batch in step] for step in batches.epoch(1)]
    assert steps == [[[100, 101], [102, 103]], [[104, 105], [106, 107]]]
    rest = [[batch["pixel_values"].tolist() for batch in step] for step in batches.epoch(1, first_step=1)]
    assert rest == steps[1:]


class Counting(ClassificationObjective):
    """Remembers its steps."""

    def __init__(self, model):
        super().__init__(model, make_loss("cross_entropy", 0.0))
        self.steps = []

    def after_step(self, step: int) -> None:
        self.steps.append(step)


class Pixels(Constant):
    def __getitem__(self, index: int) -> dict:
        generator = torch.Generator().manual_seed(index)
        return {"pixel_values": torch.randn(3, 32, 32, generator=generator), "labels": index % 5}


def make_loop(objective, output, run=None, evaluate=None, **options) -> TrainingLoop:
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=options.get("gradient_accumulation_steps", 1))
    optimization = OptimizationOptions(batch_size=4, **options)
    batches = TrainingBatches(
        Pixels(24), torch.utils.data.default_collate, 4, optimization.gradient_accumulation_steps, 0, accelerator
    )
    run = RunOptions(output=str(output), **(run or {}))
    return TrainingLoop(objective, batches, optimization, run, accelerator, identity={}, evaluate=evaluate)


def test_any_objective_plugs_in_and_hears_of_its_steps(tmp_path):
    objective = Counting(VitfVitForImageClassification(tiny_config("vit")))
    position = make_loop(objective, tmp_path, epochs=2, gradient_accumulation_steps=3).run()
    assert objective.steps == [1, 2, 3, 4] == list(range(1, position.step + 1))


@pytest.mark.parametrize("metric", HIGHER_IS_BETTER)
def test_the_best_value_of_each_metric_is_kept(tmp_path, metric):
    values = [math.nan, 0.5, 0.2, 0.9, 0.2, 0.9]
    given = iter(values)
    loop = make_loop(
        Counting(VitfVitForImageClassification(tiny_config("vit"))),
        tmp_path,
        run={"best_metric": metric},
        evaluate=lambda objective: {metric: next(given)},
        epochs=len(values),
    )
    position = loop.run()
    best = (
        max(values[1:]) if metric in ("accuracy", "top5_accuracy", "mean_per_class_accuracy", "real_accuracy") else 0.2
    )
    assert position.best_value == best
    assert position.best_step == 6 * (values.index(best) + 1)


def test_every_number_of_an_evaluation_has_a_direction():
    labels = torch.arange(5).repeat(4)
    batch = {"pixel_values": torch.randn(20, 5), "labels": labels}
    model = nn.Linear(5, 5)
    model.config = SimpleNamespace(num_labels=5)
    model.forward = lambda pixel_values: SimpleNamespace(logits=nn.functional.linear(pixel_values, model.weight))
    results = evaluate_model(model, [batch], progress=False, valid_labels=[[label] for label in labels.tolist()])
    assert {name for name, value in results.items() if isinstance(value, float)} == set(HIGHER_IS_BETTER)


@pytest.mark.parametrize(("epochs", "max_steps"), [(1, 20), (5, 4), (2, 12)])
def test_max_steps_says_how_long_to_train(tmp_path, epochs, max_steps):
    """As in transformers' Trainer: epochs follow, and the schedule ends with the last step. An epoch has 6 steps."""
    objective = Counting(VitfVitForImageClassification(tiny_config("vit")))
    loop = make_loop(objective, tmp_path, epochs=epochs, max_steps=max_steps, warmup_steps=2)
    rates = [loop.learning_rate(step) for step in range(max_steps)]
    position = loop.run()
    assert objective.steps == list(range(1, max_steps + 1))
    assert position.epoch == math.ceil(max_steps / 6)
    assert rates == [learning_rate(step, max_steps, 2, 1e-3, 0.0, "cosine") for step in range(max_steps)]


def test_gradients_are_clipped_after_accumulation(tmp_path):
    model = VitfVitForImageClassification(tiny_config("vit"))
    options = {
        "gradient_accumulation_steps": 3,
        "optimizer": "SGD",
        "lr": 1.0,
        "weight_decay": 0.0,
        "schedule": "constant",
    }
    loop = make_loop(Counting(model), tmp_path, clip_grad_norm=1e-3, max_steps=1, **options)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    loop.run()
    moved = torch.stack([(p.detach() - q).norm() for p, q in zip(model.parameters(), before, strict=True)]).norm()
    assert moved == pytest.approx(1e-3, rel=1e-2)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    objective = Counting(VitfVitForImageClassification(tiny_config("vit")))
    with torch.no_grad():
        objective.model.classifier.bias.fill_(math.inf)
    with pytest.raises(UserError, match="the loss is nan"):
        make_loop(objective, tmp_path, epochs=1, max_steps=1).run()


def test_losses_of_soft_and_smoothed_labels():
    logits, labels = torch.randn(6, 5), torch.tensor([0, 1, 2, 3, 4, 0])
    onehot = nn.functional.one_hot(labels, 5).float()
    for name in ("cross_entropy", "bce"):
        hard, soft = (make_loss(name, 0.1)(logits, target) for target in (labels, onehot))
        torch.testing.assert_close(hard, soft)
    targets = 0.9 * onehot + 0.1 / 5
    torch.testing.assert_close(soft_targets(labels, 5, 0.1), targets)
    expected = -(targets * logits.log_softmax(-1)).sum(-1).mean()
    torch.testing.assert_close(make_loss("cross_entropy", 0.1)(logits, labels), expected)
    p = logits.sigmoid()
    expected = -(targets * p.log() + (1 - targets) * (1 - p).log()).mean()
    torch.testing.assert_close(make_loss("bce", 0.1)(logits, labels), expected)


def test_objective_without_teacher_has_the_models_own_loss():
    for case, model_class in (("deit", VitfDeitForImageClassification), ("vit", VitfVitForImageClassification)):
        model = model_class(tiny_config(case)).eval()
        batch = {"pixel_values": torch.randn(3, 3, 32, 32), "labels": torch.tensor([0, 4, 2])}
        objective = ClassificationObjective(model, make_loss("cross_entropy", 0.0)).eval()
        torch.testing.assert_close(objective(batch)["loss"], model(**batch).loss)
        assert objective({"pixel_values": batch["pixel_values"]})["logits"].shape == (3, 5)


def test_overhead_is_measured_on_equal_steps():
    model = create_model("vit_tiny_patch16_224", hidden_size=12, num_hidden_layers=1, num_labels=3, image_size=16)
    overhead = loop_overhead(model, (3, 16, 16), batch_size=2, steps=3)
    assert overhead.bare_milliseconds > 0
    assert overhead.loop_milliseconds > 0


# Recipes, options and bad input


@pytest.mark.parametrize("name", RECIPES)
def test_shipped_recipes_are_valid(name):
    recipe = RECIPES[name]
    options = TrainingOptions.from_values({**read_recipe(name), "output": name})
    assert options.flat()["model"] == recipe.options["model"]
    options.objective.check_read()
    assert recipe.expected_time
    assert f"--recipe {name}" in recipe.command


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("true", True),
        ("false", False),
        ("1e-3", 1e-3),
        ("3", 3),
        ("gelu", "gelu"),
        ("yes", "yes"),
        ("no", "no"),
        ("[1, true]", [1, True]),
    ],
)
def test_words_of_set_are_read_as_yaml(word, value):
    (options,) = make_options([ModelOptions], {"model": "any", "set": [f"field={word}"]})
    assert options.set == {"field": value}
    assert type(options.set["field"]) is type(value)


def test_help_names_every_option(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = capsys.readouterr().out
    options = TrainingOptions.from_values({"model": "m", "output": "o"}).flat()
    assert all(f"--{name}" in text for name in options)
    assert all(name in text for name in RECIPES)


def test_command_line_overrides_the_recipe(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("\n".join(f"{name}: {json.dumps(value)}" for name, value in TINY_RUN.items()))
    output = tmp_path / "run"
    options = ["--max_steps", "2", "--lr", "1e-3", "--set", "hidden_size=24", "patch_size=4", "num_attention_heads=2"]
    assert main(["train", "--recipe", str(recipe), "--output", str(output), *options]) == 0
    config = json.loads((output / "config.json").read_text())
    assert (config["hidden_size"], config["patch_size"]) == (24, 4)
    assert read_lines(output, "train")[-1]["step"] == 2


def _write_run(folder: Path) -> None:
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")


BAD_INPUT = {
    "unknown option in a recipe": ("bath_size: 8", [], "did you mean 'batch_size'"),
    "no mapping": ("- 1", [], "does not map option names"),
    "not a number": ("{}", ["--lr", "fast"], "'lr' takes a number"),
    "no finite number": ("{}", ["--min_lr", "nan"], "'min_lr' takes a number"),
    "too large a number": ("warmup_epochs: 1" + 5000 * "0", [], "recipe"),
    "negative": ("{}", ["--weight_decay", "-1"], "'weight_decay' is at least 0"),
    "negative seed": ("{}", ["--seed", "-1"], "'seed' is at least 0"),
    "negative batch": ("{}", ["--eval_batch_size", "-1"], "'eval_batch_size' is at least 1"),
    "no probability": ("{}", ["--drop_path_rate", "2"], "'drop_path_rate' is at least 0"),
    "not whole": ("epochs: 1.5", [], "'epochs' takes a whole number"),
    "not one of": ("{}", ["--schedule", "cosin"], "cosine, linear, constant"),
    "unknown field": ("{}", ["--set", "hiden_size=3"], "hidden_size"),
    "unknown variant": ("{}", ["--model", "vit_tiny_patch16_225"], "did you mean"),
    "unknown optimizer": ("{}", ["--optimizer", "Adan"], "unknown optimizer"),
    "unknown tracker": ("{}", ["--trackers", "wandbb"], "did you mean 'wandb'"),
    "no such data": ("{}", ["--dataset", "./nothing-here"], "nothing-here"),
    "batch too large": ("{}", ["--batch_size", "4096"], "smaller batch_size"),
    "zero epochs": ("{}", ["--epochs", "0"], "'epochs' is greater than 0"),
    "both ways": ("{}", ["--resume", "--overwrite"], "exclude each other"),
    "no such teacher": ("{}", ["--teacher", "timm:nothing"], "teacher 'timm:nothing' cannot be loaded"),
    "patch does not fit": ("{}", ["--set", "patch_size=3"], "patch_size"),
    "no such metric": ("{}", ["--best_metric", "beauty", "--max_steps", "1"], "best_metric=beauty"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_line(tmp_path, capsys, case):
    text, arguments, expected = BAD_INPUT[case]
    base = {**TINY_RUN, "output": str(tmp_path / "run")}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text if text != "{}" else json.dumps(base))
    if text not in ("{}", "- 1"):
        recipe.write_text("\n".join([text, *(f"{k}: {json.dumps(v)}" for k, v in base.items() if k not in text)]))
    assert main(["train", "--recipe", str(recipe), *arguments]) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("vit-family train: ")
    assert expected in message


def test_folders_of_others_are_left_alone(tmp_path):
    folder = tmp_path / "run"
    _write_run(folder)
    with pytest.raises(UserError, match="not empty"):
        train_tiny(folder)
    with pytest.raises(UserError, match="holds no earlier run"):
        train_tiny(folder, overwrite=True)
    assert (folder / "notes.txt").read_text() == "mine"


def test_overwriting_waits_until_the_new_run_can_start(tmp_path):
    folder = tmp_path / "run"
    train_tiny(folder, max_steps=1)
    with pytest.raises(UserError, match="nothing-here"):
        train_tiny(folder, overwrite=True, dataset="./nothing-here")
    assert (folder / "model.safetensors").exists()
    train_tiny(folder, overwrite=True, max_steps=2)
    assert [line["step"] for line in read_lines(folder, "train")] == [1, 2]
