"""DINO: its losses, schedules and steps compared with the originals', and on every architecture of images."""

import argparse
import math
from types import SimpleNamespace

import datasets
import golden
import pytest
import safetensors.torch
import torch
from accelerate import Accelerator
from models import PLAIN_CASES, VIDEO_CASES, tiny_model
from PIL import Image
from sklearn.datasets import load_digits
from test_training import forget_accelerate, losses, weights  # noqa: F401 - a fixture that applies to all tests
from test_training_resume import check_killed_run
from torch import nn
from torchvision.transforms.v2 import functional
from training_runs import STILL_RUN, TINY_RUN, read_lines, train_in_two, train_tiny
from transformers import AutoModelForImageClassification

from hf_vit_family.conversion.convert import convert_checkpoint, export_checkpoint
from hf_vit_family.data.augmentation import seeded
from hf_vit_family.errors import ConversionError, UserError
from hf_vit_family.modeling.configuration_vitf import pair
from hf_vit_family.publishing.cards import Evaluation, Training
from hf_vit_family.publishing.publish import stage
from hf_vit_family.training.config import ObjectiveOptions, OptimizationOptions, RunOptions
from hf_vit_family.training.loop import TrainingLoop
from hf_vit_family.training.objectives.dino import DinoHead, DinoObjective
from hf_vit_family.training.objectives.views import gaussian_blur, grey, rotate_hue, stack_views
from hf_vit_family.training.optim import cosine


def original_parts(case: golden.Golden, network: str) -> tuple[dict, dict]:
    """The weights of a network of a case: of its backbone and of its head."""
    parts = []
    for part in ("backbone.", "head."):
        prefix = f"{network}.{part}"
        parts.append({k.removeprefix(prefix): v for k, v in case.state_dict.items() if k.startswith(prefix)})
    return tuple(parts)


def golden_objective(case: golden.Golden):
    """The objective of a case, in float64 with both networks' weights, and how to write a backbone back."""
    arguments, head = case.kwargs["args"], dict(case.kwargs["head"])
    backbone = {key: value for key, value in case.kwargs["backbone"].items() if key != "__class__"}
    models = {}
    for network in ("student", "teacher"):
        state, _ = original_parts(case, network)
        models[network], report = convert_checkpoint(state, "vit", backbone, position_interpolation="bicubic_offset")
    options = ObjectiveOptions(
        out_dim=head["out_dim"],
        norm_last_layer=head["norm_last_layer"],
        freeze_last_layer_epochs=arguments["freeze_last_layer"],
        teacher_temperature=arguments["teacher_temp"],
        teacher_warmup_temperature=arguments["warmup_teacher_temp"],
        teacher_temperature_warmup_epochs=arguments["warmup_teacher_temp_epochs"],
        teacher_momentum=arguments["momentum_teacher"],
    )
    projector = DinoHead(
        backbone["embed_dim"],
        head["out_dim"],
        head["hidden_dim"],
        head["bottleneck_dim"],
        head["nlayers"],
        head["norm_last_layer"],
        batch_norm=head["use_bn"],
    )
    objective = DinoObjective(models["student"], projector, options).double()
    objective.teacher.module.load_state_dict(models["teacher"].state_dict())
    for module, network in ((objective.projector, "student"), (objective.teacher_projector.module, "teacher")):
        module.load_state_dict(original_parts(case, network)[1])
    objective.center.copy_(case.state_dict["dino_loss.center"][0])
    return objective, lambda model: export_checkpoint(model, report.layout)


class GoldenBatches:
    """What a loop asks of its batches, of runs whose batches are given."""

    batch_size, steps_per_epoch = 4, 2


@pytest.mark.parametrize("name", golden.cases("dino_step"))
def test_steps_equal_the_originals(name, tmp_path):
    case = golden.load("dino_step", name)
    arguments = case.kwargs["args"]
    objective, export = golden_objective(case)
    steps = len(case.outputs["lr"])
    GoldenBatches.steps_per_epoch = per_epoch = steps // arguments["epochs"]
    optimization = OptimizationOptions(
        epochs=arguments["epochs"],
        lr=arguments["lr"] * arguments["batch_size_per_gpu"] / 256,
        min_lr=arguments["min_lr"],
        schedule="open_cosine",
        warmup_epochs=arguments["warmup_epochs"],
        weight_decay=arguments["weight_decay"],
        weight_decay_end=arguments["weight_decay_end"],
        clip_grad_norm=arguments["clip_grad"] or None,
        clip_grad_by="parameter",
    )
    run = RunOptions(output=str(tmp_path))
    loop = TrainingLoop(objective, GoldenBatches(), optimization, run, Accelerator(cpu=True), identity={})
    objective.begin(loop.total_steps, per_epoch, 0)
    objective.train()

    every = range(steps)
    schedules = {
        "lr": [loop.learning_rate(step) for step in every],
        "weight_decay": [loop.weight_decay(step) for step in every],
        "momentum": [cosine(objective.options.teacher_momentum, 1.0, step / steps) for step in every],
    }
    for schedule, values in schedules.items():
        assert case.compare(schedule, torch.tensor(values, dtype=torch.float64)) < 1e-10, schedule

    found = {"loss": [], "center": [], "teacher_temp": [], "grad_norm": []}
    for step, (whole, parts) in enumerate(zip(case.inputs["global_crops"], case.inputs["local_crops"], strict=True)):
        samples = [
            {"pixel_values": [*whole[:, i].double(), *parts[:, i].double()], "labels": 0} for i in range(len(whole[0]))
        ]
        metrics = loop.step([stack_views(samples)])
        loop.position.step += 1
        found["loss"].append(metrics["loss"])
        found["grad_norm"].append(metrics.get("grad_norm"))
        found["center"].append(objective.center[None].clone())
        found["teacher_temp"].append(torch.tensor(objective.teacher_temperature, dtype=torch.float64))
        torch.testing.assert_close(metrics["teacher_entropy"] + metrics["teacher_student_kl"], metrics["loss"])
        if step == per_epoch - 1:
            for key, value in objective.projector.last_layer.state_dict().items():
                assert case.compare(f"after_epoch0/student.head.last_layer.{key}", value) < 1e-8, key
    for output in ("loss", "center", "teacher_temp"):
        assert case.compare(output, torch.stack(found[output])) < 1e-10, output
    if "grad_norms_before_clipping" in case.outputs:
        norms = case.outputs["grad_norms_before_clipping"].norm(dim=1)
        torch.testing.assert_close(torch.stack(found["grad_norm"]), norms, rtol=1e-9, atol=0.0)

    after = {f"student.backbone.{key}": value for key, value in export(objective.model).items()}
    after |= {f"teacher.backbone.{key}": value for key, value in export(objective.teacher.module).items()}
    after |= {f"student.head.{key}": value for key, value in objective.projector.state_dict().items()}
    after |= {f"teacher.head.{key}": value for key, value in objective.teacher_projector.module.state_dict().items()}
    expected = {key for key in (case.outputs | case.samples) if key.startswith("weights_after/")}
    assert {f"weights_after/{key}" for key in after} == expected
    for key, value in after.items():
        if key.endswith("num_batches_tracked"):
            assert value == case.outputs[f"weights_after/{key}"]
        else:
            assert case.compare(f"weights_after/{key}", value) < 1e-8, key


# On every architecture

IMAGE_CASES = [case for case in PLAIN_CASES if case not in VIDEO_CASES]
SMALL = {"out_dim": 32, "head_hidden_size": 16, "head_bottleneck_size": 8, "local_crops": 2}


def tiny_objective(case: str, **options) -> tuple[DinoObjective, list[dict]]:
    """An objective on a tiny model with all weights random, and samples of scanned digits."""
    model = tiny_model(case, "Model")
    channels = model.config.num_channels
    processor = SimpleNamespace(image_mean=[0.5] * channels, image_std=[0.25] * channels, resample=3)
    size = pair(model.config.image_size)
    objective = DinoObjective.from_options(model, ObjectiveOptions(**SMALL, **options), processor, size)
    transform, digits = objective.image_transform(0.5), load_digits().images
    samples = []
    for seed in range(4):
        with seeded(seed):
            pixels = torch.from_numpy(digits[seed] * 15).byte().expand(channels, -1, -1)
            samples.append({"pixel_values": transform(pixels), "labels": 0, "seed": seed})
    return objective, samples


def take_step(objective: DinoObjective, batch: dict, step: int, optimizer: torch.optim.Optimizer) -> dict:
    """What the loop does in a step."""
    objective.before_step(step)
    metrics = objective(batch)
    metrics["loss"].backward()
    objective.after_backward(step)
    optimizer.step()
    optimizer.zero_grad()
    objective.after_step(step + 1)
    return metrics


@pytest.mark.parametrize("case", IMAGE_CASES)
def test_every_architecture_teaches_itself(case):
    objective, samples = tiny_objective(case, teacher_momentum=0.75, freeze_last_layer_epochs=0)
    objective.begin(10, 5, 0)
    batch = objective.collate(samples)
    size, local = batch["pixel_values"].shape[3:], batch["local_values"].shape[3:]
    assert batch["pixel_values"].shape[:2] == batch["local_values"].shape[:2] == (4, 2)
    assert size == pair(objective.model.config.image_size)
    assert local[0] < size[0]
    pairs = ((objective.model, objective.teacher), (objective.projector, objective.teacher_projector))
    before = [
        {name: parameter.clone() for name, parameter in teacher.module.named_parameters()} for _, teacher in pairs
    ]
    objective.train()
    optimizer = torch.optim.SGD([p for p in objective.parameters() if p.requires_grad], lr=0.01)
    metrics = take_step(objective, batch, 0, optimizer)
    assert metrics["loss"].isfinite()
    moved = 0
    for (student, teacher), old in zip(pairs, before, strict=True):
        assert not any(parameter.requires_grad for parameter in teacher.parameters())
        assert all(parameter.grad is None for parameter in teacher.parameters())
        for name, parameter in student.named_parameters():
            found = dict(teacher.module.named_parameters())[name]
            torch.testing.assert_close(found, 0.75 * old[name] + 0.25 * parameter.detach(), rtol=1e-5, atol=1e-7)
            moved += not torch.equal(found, old[name])
    assert moved > 5
    # Without gradient in the teacher's outputs, that of the last layer is the student's share of the loss.
    assert (objective.center != 0).any()


def test_views_follow_from_the_seed_of_each_example():
    objective, _ = tiny_objective("vit")
    transform = objective.image_transform(0.5)
    pixels = torch.randint(256, (3, 40, 56), dtype=torch.uint8)

    def views(seed: int) -> torch.Tensor:
        with seeded(seed):
            return torch.cat([view.flatten() for view in transform(pixels)])

    first = views(3)
    torch.rand(5)
    assert torch.equal(views(3), first)
    assert not torch.equal(views(4), first)
    with seeded(3):
        whole, again, *_ = transform(pixels)
    assert not torch.equal(whole, again)


@pytest.mark.parametrize(("size", "patch", "local"), [(224, 16, 96), (224, 8, 96), (32, 4, 16), (32, 8, 16)])
def test_small_crops_are_three_sevenths_of_large_ones(size, patch, local):
    model = tiny_model("vit", "Model", image_size=size, patch_size=patch)
    objective = DinoObjective.from_options(model, ObjectiveOptions(**SMALL), None, (size, size))
    assert [view.size for view in objective.views] == [(size, size)] * 2 + [(local, local)] * 2


def test_colours_and_blur_are_torchvisions():
    pixels = torch.rand(3, 24, 20)
    for turn in (-0.5, -0.1, 0.03, 0.4):
        torch.testing.assert_close(rotate_hue(pixels, turn), functional.adjust_hue(pixels, turn), rtol=0, atol=1e-5)
    torch.testing.assert_close(grey(pixels), functional.rgb_to_grayscale(pixels), rtol=0, atol=1e-6)
    for sigma in (0.3, 1.5):
        taps = 2 * math.ceil(3 * sigma) + 1
        expected = functional.gaussian_blur(pixels, [taps, taps], [sigma, sigma])
        torch.testing.assert_close(gaussian_blur(pixels, sigma), expected, rtol=0, atol=1e-5)
    one = pixels[:1]
    assert torch.equal(rotate_hue(one, 0.2), one)
    assert gaussian_blur(torch.rand(3, 2, 2), 2.0).isfinite().all()


def test_student_learns_what_a_teacher_at_rest_tells():
    """With a teacher that hardly moves, the loss of the same crops falls to the teacher's entropy."""
    objective, samples = tiny_objective("vit", teacher_momentum=1.0, freeze_last_layer_epochs=0, center_momentum=1.0)
    objective.begin(100, 10, 0)
    batch = objective.collate(samples)
    objective.train()
    optimizer = torch.optim.Adam([p for p in objective.parameters() if p.requires_grad], lr=3e-3)
    history = [take_step(objective, batch, step, optimizer) for step in range(100)]
    assert history[-1]["teacher_student_kl"] < 0.3 * history[0]["teacher_student_kl"]
    assert history[-1]["loss"] < history[0]["loss"]


@pytest.mark.parametrize("entropy", [0.0, math.log(32)])
def test_a_collapse_is_told_once(entropy):
    objective, _ = tiny_objective("vit")
    sound = {"teacher_entropy": 2.0, "teacher_student_kl": 0.5}
    collapsed = {"teacher_entropy": entropy, "teacher_student_kl": 1e-4}
    assert objective.watch(sound) is None
    assert objective.watch({**collapsed, "teacher_student_kl": 1.0}) is None  # the student does not agree
    told = objective.watch(collapsed)
    assert "has collapsed" in told
    assert ("to one output" in told) == (entropy == 0.0)
    assert objective.watch(collapsed) is None
    assert objective.watch(sound) is None
    assert objective.watch(collapsed) == told


# Runs

OTHERS = ("mixup", "crop", "crop_padding", "ema_decay")
RUN = {k: v for k, v in TINY_RUN.items() if k not in OTHERS} | {"objective": "dino", **SMALL}
STILL = {k: v for k, v in STILL_RUN.items() if k not in OTHERS} | {"objective": "dino", **SMALL}


def test_a_run_leaves_the_teacher_with_its_records(tmp_path, capsys):
    output = tmp_path / "pretrained"
    metrics = train_tiny(output, RUN, epochs=2)
    assert metrics.keys() == {"loss", "teacher_entropy", "teacher_student_kl"}
    for split in ("train", "evaluation"):
        for line in read_lines(output, split):
            assert line["teacher_entropy"] + line["teacher_student_kl"] == pytest.approx(line["loss"], rel=1e-4)
    last = safetensors.torch.load_file(output / "checkpoints" / "step-000000012" / "objective.safetensors")
    parts = {name.partition(".")[0] for name in last}
    assert parts == {"model", "projector", "teacher", "teacher_projector", "center"}
    saved = weights(output)
    assert saved.keys() == {name.removeprefix("teacher.module.") for name in last if name.startswith("teacher.")}
    for name, tensor in saved.items():
        assert torch.equal(tensor, last[f"teacher.module.{name}"]), name
    assert any(not torch.equal(saved[name], last[f"model.{name}"]) for name in saved)
    classifier, info = AutoModelForImageClassification.from_pretrained(output, output_loading_info=True)
    assert {name.partition(".")[0] for name in info["missing_keys"]} == {"classifier"}
    assert torch.equal(classifier.base_model.state_dict()["layernorm.weight"], saved["layernorm.weight"])
    assert Training.read(output).objective == DinoObjective.title
    assert Evaluation.read(output).metrics == metrics

    capsys.readouterr()
    fine = {key: value for key, value in TINY_RUN.items() if key not in ("model", "set", "drop_path_rate")}
    train_tiny(tmp_path / "tuned", fine, model=str(output), epochs=1)
    said = "".join(capsys.readouterr())
    assert "gets a new head" in said
    assert "start at random" not in said
    for folder, sentence in (("pretrained", "Pretrained by "), ("tuned", ", which was pretrained by ")):
        stage(tmp_path / folder, tmp_path / f"{folder}-staged", "someone/model")
        card = (tmp_path / f"{folder}-staged" / "README.md").read_text(encoding="utf-8")
        assert f"{sentence}{DinoObjective.title}" in card
        assert ("accuracy" in card) == (folder == "tuned")


def test_a_killed_run_ends_with_the_same_bits(tmp_path):
    """With the last layer frozen at first, and temperatures and momenta that change."""
    options = {
        "epochs": 3,
        "teacher_temperature": 0.07,
        "teacher_temperature_warmup_epochs": 3,
        "weight_decay_end": 0.4,
        "clip_grad_norm": 0.5,
        "clip_grad_by": "parameter",
        "head_batch_norm": True,
    }
    check_killed_run(tmp_path, RUN, **options)


def test_two_processes_and_two_parts_of_a_batch_equal_one(tmp_path, forget_accelerate):  # noqa: F811
    options = {"epochs": 2, "center_momentum": 0.5, "freeze_last_layer_epochs": 0}
    train_tiny(tmp_path / "one", STILL, batch_size=16, **options)
    forget_accelerate()
    train_tiny(tmp_path / "parts", STILL, batch_size=8, gradient_accumulation_steps=2, **options)
    train_in_two(tmp_path / "two", STILL, batch_size=8, **options)
    centers = {}
    for folder in ("one", "parts", "two"):
        assert losses(tmp_path / folder) == pytest.approx(losses(tmp_path / "one"), rel=1e-3)
        state = safetensors.torch.load_file(tmp_path / folder / "checkpoints/step-000000012/objective.safetensors")
        centers[folder] = state["center"]
        torch.testing.assert_close(centers[folder], centers["one"], rtol=1e-3, atol=1e-5)
        for key, tensor in weights(tmp_path / "one").items():
            torch.testing.assert_close(tensor, weights(tmp_path / folder)[key], rtol=1e-3, atol=1e-4)
    first, second = (read_lines(tmp_path / folder, "evaluation") for folder in ("one", "two"))
    assert [line["num_images"] for line in second] == [40, 40]
    assert [line["loss"] for line in second] == pytest.approx([line["loss"] for line in first], rel=1e-3)


def test_streams_and_loader_processes_make_views_too(tmp_path, forget_accelerate):  # noqa: F811
    images = [Image.new("RGB", (8, 8), (6 * i, 90, 200 - 3 * i)) for i in range(40)]
    for split in ("train", "validation"):
        table = datasets.Dataset.from_dict({"image": images}, features=datasets.Features(image=datasets.Image()))
        table.to_parquet(tmp_path / "data" / f"{split}.parquet")
    options = {"dataset": str(tmp_path / "data"), "max_steps": 2}
    train_tiny(tmp_path / "stream", RUN, streaming=True, freeze_last_layer_epochs=0, **options)
    for workers in (0, 2):
        forget_accelerate()
        train_tiny(tmp_path / f"{workers}", RUN, num_workers=workers, **options)
    assert losses(tmp_path / "0") == losses(tmp_path / "2")
    for folder in ("stream", "0", "2"):
        assert Evaluation.read(tmp_path / folder).num_images == 40


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"local_crops": -1}, "'local_crops' is at least 0, not -1"),
        ({"local_crop_size": 6}, "local_crop_size 6: .* a multiple of the 4 pixels"),
        ({"local_crop_size": 12}, "local_crop_size 12: it is no larger than the image of 8 x 8"),
        ({"image_size": 10}, "multiple of|divisible"),
        ({"local_crop_scale": [0.5]}, "'local_crop_scale' is two rising numbers"),
        ({"global_crop_scale": [0.9, 0.4]}, "'global_crop_scale' is two rising numbers"),
        ({"teacher_temperature": 0.0}, "'teacher_temperature' is greater than 0"),
        ({"teacher_momentum": 1.5}, "'teacher_momentum' is between 0 and 1"),
        ({"crop": "center"}, "'crop' has no meaning for DINO .*: its crops are drawn by options of their own"),
        ({"ema_decay": 0.9}, "'ema_decay' has no meaning for DINO .*: its teacher is a moving average"),
        ({"mixup": 0.5}, "'mixup' is for learning from labels"),
        ({"model": "timesformer_base_k400", "drop_path_rate": None, "set": {}}, "is a model of clips"),
    ],
)
def test_what_does_not_fit_is_one_line(options, message, tmp_path):
    with pytest.raises(UserError, match=message) as raised:
        train_tiny(tmp_path / "run", RUN, **options)
    assert "\n" not in str(raised.value)


def test_epochs_of_a_stream_are_unknown():
    objective, _ = tiny_objective("vit")
    with pytest.raises(UserError, match="no known length, which freeze_last_layer_epochs counts in: set it to 0"):
        objective.begin(100, None, 0)


# vit-pytorch's DINO, from the same parts


class LocalStudent(DinoObjective):
    """The student sees the local crops only, and is compared with the other view's global crop; momentum is fixed."""

    def forward(self, batch):
        teacher = self.outputs(self.teacher, self.teacher_projector, batch["pixel_values"])
        student = self.outputs(self.model, self.projector, batch["local_values"])
        self.told = student, teacher
        self._outputs.append(teacher.mean((0, 1)))
        return {name: each.mean() for name, each in self.losses(student, teacher).items()}

    def after_step(self, step):
        super().after_step(step=1)


class PlainHead(nn.Sequential):
    def forward(self, features):
        *layers, last = self
        for layer in layers:
            features = layer(features)
        return last(nn.functional.normalize(features, dim=-1, eps=1e-6))


def test_vit_pytorchs_dino_is_made_of_these_parts():
    case = golden.load("dino_vit_pytorch", "step")
    settings = case.kwargs["dino"]

    def network(name: str):
        state = {k.removeprefix(f"{name}.net."): v for k, v in case.state_dict.items() if k.startswith(f"{name}.net.")}
        net, report = convert_checkpoint(
            state, "vit", pooling="cls", num_attention_heads=2, patch_size=8, image_size=16
        )
        head = PlainHead(*(nn.Linear(10, 8), nn.GELU(), nn.Linear(8, 8), nn.GELU(), nn.Identity()), nn.Linear(8, 14))
        head.load_state_dict(
            {
                k.removeprefix(f"{name}.projector.net."): v
                for k, v in case.state_dict.items()
                if k.startswith(f"{name}.projector")
            }
        )
        return net, head, report

    classifier, head, report = network("student_encoder")
    options = ObjectiveOptions(
        out_dim=settings["num_classes_K"],
        student_temperature=settings["student_temp"],
        teacher_temperature=settings["teacher_temp"],
        teacher_momentum=settings["moving_average_decay"],
        center_momentum=settings["center_moving_average_decay"],
    )
    objective = LocalStudent(classifier.base_model, head, options).double().train()
    teacher, teacher_head, _ = network("teacher_encoder")
    objective.teacher.module.load_state_dict(teacher.base_model.state_dict())
    objective.teacher_projector.module.load_state_dict(teacher_head.state_dict())
    objective.center.copy_(case.state_dict["teacher_centers"][0])
    batch = {
        name: torch.stack([case.inputs[f"{kind}{i}"].double() for i in (1, 2)], dim=1)
        for name, kind in (("pixel_values", "global"), ("local_values", "local"))
    }
    optimizer = torch.optim.Adam([p for p in objective.parameters() if p.requires_grad], lr=case.kwargs["lr"])
    objective.teacher_temperature = options.teacher_temperature
    loss = objective(batch)["loss"]
    assert case.compare("loss", loss.detach()) < 1e-10
    for kind, values in zip(("student", "teacher"), objective.told, strict=True):
        for i in (1, 2):
            assert case.compare(f"{kind}{i}", values[i - 1].detach()) < 1e-10
    loss.backward()
    optimizer.step()
    objective.after_step(1)
    assert case.compare("weights_after/teacher_centers", objective.center[None]) < 1e-10
    networks = {
        "student_encoder": (objective.model, objective.projector, classifier),
        "teacher_encoder": (objective.teacher.module, objective.teacher_projector.module, teacher),
    }
    for name, (model, projector, whole) in networks.items():
        whole = whole.double()
        whole.base_model.load_state_dict(model.state_dict())
        after = {f"{name}.net.{k}": v for k, v in export_checkpoint(whole, report.layout).items()}
        after |= {f"{name}.projector.net.{k}": v for k, v in projector.state_dict().items()}
        for key, value in after.items():
            if "mlp_head" not in key:  # which nothing trains
                assert case.compare(f"weights_after/{key}", value) < 1e-8, key


# Files of DINO's authors


def full_checkpoint() -> tuple[dict, dict, dict]:
    """What main_dino.py saves, made of a golden case; the student's backbone and the teacher's."""
    case = golden.load("dino_step", "four_steps")
    parts = {}
    for network, prefix in (("student", "module."), ("teacher", "")):
        state = {k.partition(".")[2]: v for k, v in case.state_dict.items() if k.startswith(network)}
        parts[network] = {prefix + key: tensor for key, tensor in state.items()}
    content = {
        **parts,
        "optimizer": {"state": {0: {"step": 3, "exp_avg": torch.ones(2)}}, "param_groups": [{"params": [0]}]},
        "epoch": 3,
        "args": argparse.Namespace(arch="vit_small", patch_size=16),
        "dino_loss": {"center": case.state_dict["dino_loss.center"]},
        "fp16_scaler": {"scale": 65536.0},
    }
    return content, *(original_parts(case, network)[0] for network in ("student", "teacher"))


def test_the_teacher_of_a_full_checkpoint_is_read_and_the_student_when_named(tmp_path):
    content, student, teacher = full_checkpoint()
    path = tmp_path / "checkpoint.pth"
    torch.save(content, path)
    how = {"original_kwargs": {"num_heads": 2}}
    for part, expected, prefix in (({}, teacher, "backbone."), ({"wrapper": "student"}, student, "module.backbone.")):
        model, report = convert_checkpoint(path, **part, **how)
        assert report.key_prefix == prefix
        assert all(torch.equal(tensor, expected[key]) for key, tensor in export_checkpoint(model).items())
        notes = " ".join(report.notes)
        assert ("took the weights under 'teacher'; --wrapper student" in notes) == (not part)
        assert f"left out 8 others ({prefix.removesuffix('backbone.')}head." in notes


@pytest.mark.parametrize("wrapped", [False, True])
def test_xcit_is_refused_by_its_name(wrapped, tmp_path):
    keys = ("cls_token", "patch_embed.proj.0.0.weight", "blocks.0.attn.temperature", "blocks.0.local_mp.conv1.weight")
    weights_of_xcit = {key: torch.ones(2, 2) for key in keys}
    if wrapped:
        weights_of_xcit = {"teacher": {f"backbone.{key}": tensor for key, tensor in weights_of_xcit.items()}}
    torch.save(weights_of_xcit, tmp_path / "checkpoint.pth")
    with pytest.raises(ConversionError, match=r"this is XCiT \(by its key .*local_mp.*not in this library"):
        convert_checkpoint(tmp_path / "checkpoint.pth")
