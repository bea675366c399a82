"""Learning from a teacher, and life after the distillation token."""

import pytest
import safetensors.torch
import timm
import torch
from models import randomise, tiny_config
from torch import nn

from hf_vit_family.errors import UserError
from hf_vit_family.modeling.modeling_deit import VitfDeitForImageClassification
from hf_vit_family.modeling.modeling_vit import VitfVitForImageClassification
from hf_vit_family.training.objectives.classification import make_loss
from hf_vit_family.training.objectives.distillation import (
    DistillationObjective,
    Teacher,
    load_teacher,
    without_distillation_token,
)
from hf_vit_family.training.objectives.objective import Frozen
from hf_vit_family.training.state import without_frozen

HALF = ([0.5] * 3, [0.5] * 3)


class Linear(nn.Module):
    """A teacher that reads the mean of each channel."""

    def __init__(self, num_labels: int = 5):
        super().__init__()
        self.linear = nn.Linear(3, num_labels)
        self.dropout = nn.Dropout(0.5)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.linear(self.dropout(pixel_values.mean((2, 3))))


def make_objective(student, distillation: str, alpha: float = 0.3, temperature: float = 2.0) -> DistillationObjective:
    teacher = Frozen(Teacher(Linear(), HALF, HALF))
    return DistillationObjective(student, make_loss("cross_entropy", 0.0), teacher, distillation, alpha, temperature)


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.randn(4, 3, 32, 32), "labels": torch.tensor([0, 1, 4, 2])}


@pytest.mark.parametrize("distillation", ["hard", "soft"])
@pytest.mark.parametrize("with_token", [True, False])
def test_each_loss_reaches_its_head(batch, distillation, with_token):
    student = randomise(VitfDeitForImageClassification(tiny_config("deit", distilled=with_token))).eval()
    objective = make_objective(student, distillation).eval()
    outputs = student(batch["pixel_values"])
    to_labels, to_teacher = outputs.logits, outputs.logits
    if with_token:
        to_labels, to_teacher = outputs.cls_logits, outputs.distillation_logits
    teacher = objective.teacher(batch["pixel_values"])
    if distillation == "hard":
        expected = nn.functional.cross_entropy(to_teacher, teacher.argmax(-1))
    else:
        p, q = (teacher / 2.0).softmax(-1), (to_teacher / 2.0).softmax(-1)
        expected = 4.0 * (p * (p / q).log()).sum(-1).mean()
    expected = 0.7 * nn.functional.cross_entropy(to_labels, batch["labels"]) + 0.3 * expected
    torch.testing.assert_close(objective(batch)["loss"], expected)


def test_teacher_stays_frozen_and_out_of_checkpoints(batch):
    objective = make_objective(VitfDeitForImageClassification(tiny_config("deit")), "soft").train()
    assert objective.model.training
    assert not any(module.training for module in objective.teacher.modules())
    objective(batch)["loss"].backward()
    assert all(parameter.grad is None for parameter in objective.teacher.parameters())
    assert objective.model.distillation_classifier.weight.grad.abs().sum() > 0
    assert all(name.startswith("model.") for name in without_frozen(objective, objective.state_dict()))


def test_teacher_reads_the_images_that_the_student_gets():
    images = torch.rand(2, 3, 8, 8)
    mean, std = torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1), torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1)
    model = Linear().eval()
    teacher = Teacher(model, ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6]), HALF).eval()
    torch.testing.assert_close(teacher((images - mean) / std), model((images - 0.5) / 0.5))
    resized = Teacher(nn.Identity(), HALF, HALF, image_size=4)
    assert resized(images).shape == (2, 3, 4, 4)


@pytest.mark.parametrize("spec", ["timm:test_vit", "torchvision:squeezenet1_1"])
def test_teachers_from_checkpoint_files(tmp_path, spec):
    library, _, name = spec.partition(":")
    if library == "timm":
        model = timm.create_model(name, num_classes=5)
    else:
        model = __import__("torchvision").models.get_model(name, weights=None, num_classes=5)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    images = torch.randn(2, 3, 160, 160)
    teacher = load_teacher(f"{spec}@{tmp_path / 'weights.pth'}", 5, HALF, image_size=160)
    torch.testing.assert_close(teacher(images), model.eval()(images))


def test_teacher_from_a_folder(tmp_path):
    from hf_vit_family import create_processor

    model = VitfVitForImageClassification(tiny_config("vit")).eval()
    model.save_pretrained(tmp_path)
    create_processor("vit_tiny_patch16_224", size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(load_teacher(str(tmp_path), 5, HALF, 32)(images), model(images).logits)
    with pytest.raises(UserError, match="tells 5 classes apart, the student 7"):
        load_teacher(str(tmp_path), 7, HALF, 32)
    with pytest.raises(UserError, match="cannot be loaded"):
        load_teacher(str(tmp_path / "nothing"), 5, HALF, 32)


def test_checkpoint_of_a_teacher_never_runs_code(tmp_path):
    class Trap:
        def __reduce__(self):
            return (tmp_path.joinpath("ran").touch, ())

    torch.save({"weight": Trap()}, tmp_path / "weights.pth")
    for library, name in (("timm", "test_vit"), ("torchvision", "squeezenet1_1")):
        with pytest.raises(UserError, match="cannot be loaded"):
            load_teacher(f"{library}:{name}@{tmp_path / 'weights.pth'}", 5, HALF)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("architecture", ["deit", "vit"])
def test_plain_student_gives_the_same_outputs(architecture):
    student = randomise(VitfDeitForImageClassification(tiny_config("deit", distilled=False))).eval()
    plain = without_distillation_token(student, architecture)
    assert plain.config.model_type == f"vitf_{architecture}"
    for size in (32, 48):  # positions of another grid are resized alike
        images = torch.randn(2, 3, size, size)
        torch.testing.assert_close(plain(images).logits, student(images).logits)


@pytest.mark.parametrize("architecture", ["deit", "vit"])
def test_distilled_student_loses_its_token_and_nothing_else(architecture):
    student = randomise(VitfDeitForImageClassification(tiny_config("deit"))).eval()
    plain = without_distillation_token(student, architecture)
    images = torch.randn(2, 3, 32, 32)
    hidden_states = student.deit.embeddings(images)
    hidden_states = torch.cat((hidden_states[:, :1], hidden_states[:, 2:]), dim=1)
    for layer in student.deit.layers:
        hidden_states = layer(hidden_states)
    expected = student.classifier(student.deit.layernorm(hidden_states)[:, 0])
    torch.testing.assert_close(plain(images).logits, expected)
    assert plain.config.id2label == student.config.id2label


def test_only_a_deit_has_a_token_to_drop():
    with pytest.raises(UserError, match="only a DeiT"):
        without_distillation_token(VitfVitForImageClassification(tiny_config("vit")))
    with pytest.raises(UserError, match="one of deit, vit"):
        without_distillation_token(VitfDeitForImageClassification(tiny_config("deit")), "swin")


def test_distilled_run_ends_in_a_deit(tmp_path):
    from training_runs import STILL_RUN, read_lines, train_tiny

    tiny = {"drop_path_rate": None, "max_steps": 2}
    train_tiny(tmp_path / "teacher", STILL_RUN, **tiny)
    options = {"model": "deit_tiny_distilled_patch16_224", "set": {**STILL_RUN["set"], "hidden_size": 24}}
    train_tiny(tmp_path / "student", STILL_RUN, **options, **tiny, teacher=str(tmp_path / "teacher"))
    assert {"labels_loss", "teacher_loss"} <= read_lines(tmp_path / "student", "train")[-1].keys()
    names = safetensors.torch.load_file(tmp_path / "student" / "model.safetensors").keys()
    assert "distillation_classifier.weight" in names
    assert all(name.startswith(("deit.", "classifier.", "distillation_classifier.")) for name in names)
