"""Contrastive objectives: losses and steps compared with the originals', and on every architecture of images."""

import copy
import itertools
import math
from types import SimpleNamespace

import golden
import numpy as np
import pytest
import torch
from models import PLAIN_CASES, VIDEO_CASES, tiny_model
from test_training import forget_accelerate, losses, weights  # noqa: F401 - a fixture that applies to all tests
from test_training_resume import check_killed_run
from torch import nn
from training_runs import STILL_RUN, TINY_RUN, read_lines, train_in_two, train_tiny
from transformers import AutoModelForImageClassification

from hf_vit_family.conversion.convert import convert_checkpoint, export_checkpoint
from hf_vit_family.data.augmentation import seeded
from hf_vit_family.errors import UserError
from hf_vit_family.loading import load_saved_model
from hf_vit_family.modeling.configuration_vitf import pair
from hf_vit_family.publishing.cards import Training
from hf_vit_family.publishing.publish import stage
from hf_vit_family.training.config import ObjectiveOptions
from hf_vit_family.training.objectives.contrastive import (
    ByolObjective,
    Head,
    MocoObjective,
    Mocov3Objective,
    SimclrObjective,
    batch_contrast,
    nt_xent,
    regression,
    spread,
    supervised_contrast,
    unit,
)
from hf_vit_family.training.objectives.sit import (
    CorruptViewsCollate,
    corrupt,
    draw_groups,
    masked_error,
    weigh,
)
from hf_vit_family.training.optim import cosine
from hf_vit_family.training.pretraining import PRETEXTS

NAMES = ["simclr", "moco", "mocov3", "byol", "supcon", "sit", "sit_tasks"]
# Those with a moving average, and those of them whose average follows the weights after a step.
FOLLOWED, FOLLOWED_AFTER = {"moco", "mocov3", "byol", "sit"}, {"byol", "sit"}
# What they measure besides the loss.
PARTS = {"sit": {"contrast", "reconstruction"}, "sit_tasks": {"rotation", "contrast", "reconstruction"}}
IMAGE_CASES = [case for case in PLAIN_CASES if case not in VIDEO_CASES]
SMALL = {"projection_size": 8, "projection_hidden_size": 12}
OWN = {"moco": {"queue_size": 40}}
RUN = {key: value for key, value in TINY_RUN.items() if key not in ("mixup", "crop", "crop_padding")} | SMALL
STILL = {key: value for key, value in STILL_RUN.items() if key not in ("mixup", "crop", "crop_padding")} | SMALL
objectives = pytest.mark.parametrize("name", NAMES)


def part(tensors: dict, prefix: str) -> dict[str, torch.Tensor]:
    """The tensors below a prefix, without it."""
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}


def batch_of(*views: torch.Tensor) -> dict[str, torch.Tensor]:
    pixel_values = torch.stack([view.double() for view in views], dim=1)
    return {"pixel_values": pixel_values, "labels": torch.zeros(len(pixel_values), dtype=torch.int64)}


def compare_state(
    case: golden.Golden, state: dict[str, torch.Tensor], name: str = "weights_after/", without: str = "nothing"
) -> None:
    """
    Each tensor with that of the case below a name, within 1e-8 of its scale; counts are equal. Keys that hold `without`
    are left out.
    """
    state = {key: value for key, value in state.items() if without not in key}
    expected = {key for key in {**case.outputs, **case.samples} if key.startswith(name) and without not in key}
    assert {name + key for key in state} == expected
    # Of a gradient that is 0, Adam divides what rounding left of it by 1e-8.
    dead = case.metadata.get("dead_keys", ())
    for key, value in state.items():
        if value.is_floating_point():
            assert case.compare(name + key, value) < (1e-6 if key in dead else 1e-8), key
        else:
            assert torch.equal(value.view(-1), case.outputs[name + key].view(-1)), key


# SimCLR


def test_nt_xent_equals_the_original():
    case = golden.load("simclr", "ntxent_t05")
    views = torch.stack([case.inputs["z1"], case.inputs["z2"]]).double().requires_grad_()
    loss = nt_xent(views, case.kwargs["temperature"])
    assert loss.shape == (6,)
    loss.mean().backward()
    assert case.compare("loss", loss.mean().detach()) < 1e-10
    assert case.compare("grad_z1", views.grad[0]) < 1e-10
    assert case.compare("grad_z2", views.grad[1]) < 1e-10
    # The published TensorFlow code sums both views.
    assert case.compare("loss_google", 2 * loss.mean().detach()) < 1e-10


def test_simclrs_head_equals_the_original():
    case = golden.load("simclr", "head2_step")
    sizes = case.kwargs["head"]
    build = Head(sizes["num_layers"], sizes["hidden_dim"], sizes["output_dim"], last_affine=True).build

    def made():
        head = build(sizes["input_dim"])
        head.load_state_dict(part(case.state_dict, "layers."))
        return head.double().train()

    features = [case.inputs[f"features{i}"].double().requires_grad_() for i in (1, 2)]
    head = made()
    views = torch.stack([head(each) for each in features])
    loss = nt_xent(views, case.kwargs["temperature"]).mean()
    loss.backward()
    assert case.compare("z1", views[0].detach()) < 1e-10
    assert case.compare("z2", views[1].detach()) < 1e-10
    assert case.compare("loss", loss.detach()) < 1e-10
    for index, each in enumerate(features, 1):
        assert case.compare(f"grad_features{index}", each.grad) < 1e-10
    compare_state(case, {f"layers.{name}": p.grad for name, p in head.named_parameters()}, "grad/")
    compare_state(case, {f"layers.{name}": b for name, b in head.named_buffers()})
    # As the objective has it: both views in one pass, so that the batch norm sees both.
    model = nn.Identity()
    model.forward = lambda pixels: SimpleNamespace(pooler_output=pixels)
    objective = SimclrObjective(model, made(), case.kwargs["temperature"]).train()
    outputs = objective({"pixel_values": torch.stack([each.detach() for each in features], 1)})
    assert case.compare("loss_views_in_one_batch", outputs["loss"].detach()) < 1e-10
    views = objective.project(torch.stack([each.detach() for each in features], 1), model, made())
    assert case.compare("z_views_in_one_batch", views.flatten(0, 1).detach()) < 1e-10


# Supervised contrast


def one_by_one(views, labels, temperature):
    """Equation 2 of arXiv 2004.11362, pair by pair: the mean over all 2B anchors."""
    z = unit(views).flatten(0, 1)
    classes = labels.repeat(2)
    total = 0.0
    for i in range(len(z)):
        others = [a for a in range(len(z)) if a != i]
        denominator = sum(math.exp(z[i] @ z[a] / temperature) for a in others)
        right = [p for p in others if classes[p] == classes[i]]
        total += -sum(math.log(math.exp(z[i] @ z[p] / temperature) / denominator) for p in right) / len(right)
    return total / len(z)


def test_supervised_contrast_equals_its_equation():
    generator = torch.Generator().manual_seed(0)
    views = torch.randn(2, 7, 5, generator=generator, dtype=torch.float64)
    labels = torch.tensor([0, 1, 0, 2, 1, 0, 3])
    loss = supervised_contrast(views, labels, 0.1)
    assert loss.mean().item() == pytest.approx(one_by_one(views, labels, 0.1), rel=1e-12)
    # Without two examples of a class it is NT-Xent.
    torch.testing.assert_close(supervised_contrast(views, torch.arange(7), 0.1), nt_xent(views, 0.1))


# MoCo


class Body(nn.Module):
    """The encoder of the cases: a linear layer and tanh."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(48, 10)

    def forward(self, pixels):
        return SimpleNamespace(pooler_output=self.body(pixels.flatten(1)).tanh())


@pytest.mark.parametrize("name", golden.cases("infonce"))
def test_moco_equals_the_original(name):
    case = golden.load("infonce", name)
    sizes = case.kwargs
    head = Head(1 + sizes["mlp"], None, sizes["dim"], False, False, False, True, True)
    objective = MocoObjective(Body(), head.build(10), sizes["m"], sizes["K"], sizes["dim"], sizes["T"])

    def named(state):
        """Keys of the original's encoder."""
        return {key if key.startswith("body.") else f"fc.{key}" for key in state}

    def load(model, projector, prefix):
        state = part(case.state_dict, prefix)
        model.load_state_dict({key: value for key, value in state.items() if key.startswith("body.")})
        rest = part(state, "fc.")
        projector.load_state_dict(rest if sizes["mlp"] else {f"0.{key}": value for key, value in rest.items()})

    def state_of(model, projector, prefix, of=lambda p: p.detach()):
        rest = {f"fc.{key}": of(p) for key, p in projector.named_parameters()}
        if not sizes["mlp"]:
            rest = {key.replace("fc.0.", "fc."): value for key, value in rest.items()}
        return {
            prefix + key: value for key, value in {**{k: of(p) for k, p in model.named_parameters()}, **rest}.items()
        }

    load(objective.model, objective.projector, "encoder_q.")
    load(objective.teacher.module, objective.teacher_projector.module, "encoder_k.")
    objective.queue.copy_(case.state_dict["queue"])
    objective.queue_pointer.copy_(case.state_dict["queue_ptr"])
    objective = objective.double().train()
    objective.begin(10, 5, 0)
    objective.before_step(3)  # the momentum stays as it is
    batch = batch_of(case.inputs["im_q"], case.inputs["im_k"])
    each, queries, keys = objective.losses(batch)
    assert case.compare("logits", objective.logits(queries, keys).detach()) < 1e-10
    objective._keys.clear()
    loss = objective(batch)["loss"]
    loss.backward()
    assert case.compare("loss", loss.detach()) < 1e-10
    torch.testing.assert_close(each["loss"].mean(), loss)
    objective.after_step(4)
    assert case.compare("queue_after", objective.queue) < 1e-10
    assert torch.equal(objective.queue_pointer, case.outputs["queue_ptr_after"])
    compare_state(case, state_of(objective.model, objective.projector, "encoder_q.", lambda p: p.grad), "grad/")
    teacher = objective.teacher.module, objective.teacher_projector.module
    compare_state(case, state_of(*teacher, "encoder_k."))


def test_a_queue_is_longer_than_a_step():
    objective = MocoObjective(Body(), nn.Linear(10, 4), 0.9, 7, 4).train()
    images = [torch.randn(5, 3, 4, 4) for _ in range(2)]
    for expected in (5, 3):  # round the end
        objective(batch_of(*images) | {"pixel_values": torch.stack(images, 1)})
        objective.after_step(1)
        assert objective.queue_pointer.item() == expected
        torch.testing.assert_close(objective.queue.norm(dim=0), torch.ones(7))
    for _ in range(2):  # as with two batches a step
        objective({"pixel_values": torch.stack(images, 1)})
    with pytest.raises(UserError, match="queue_size=7: a step has 10 images"):
        objective.after_step(3)


# MoCo v3


class ConvStem(nn.Module):
    """The patch embeddings of the original's convolutional ViTs."""

    def __init__(self, channels: int):
        super().__init__()
        widths = [3, *(channels // part for part in (8, 4, 2, 1))]
        layers = []
        for width, next_width in itertools.pairwise(widths):
            layers += [nn.Conv2d(width, next_width, 3, 2, 1, bias=False), nn.BatchNorm2d(next_width), nn.ReLU()]
        self.proj = nn.Sequential(*layers, nn.Conv2d(channels, channels, 1))

    def grid(self, height, width):
        return height // 16, width // 16

    def forward(self, pixels):
        return self.proj(pixels).flatten(2).transpose(1, 2)


def mocov3_encoder(case: golden.Golden, prefix: str):
    """The encoder of a case, and a function from it to the original's state dict, without head."""
    state = {k: v for k, v in part(case.state_dict, prefix).items() if not k.startswith("head.")}
    arguments = {k: v for k, v in case.kwargs["base_encoder"].items() if not k.startswith(("__", "norm", "stop"))}
    stem = arguments.pop("embed_layer", None)
    convolutions = {}
    if stem is not None:
        convolutions = {k: v for k, v in state.items() if k.startswith("patch_embed.")}
        plain = {"patch_embed.proj.weight": torch.zeros(16, 3, 16, 16), "patch_embed.proj.bias": torch.zeros(16)}
        state = {k: v for k, v in state.items() if k not in convolutions} | plain
    model, report = convert_checkpoint(state, "vit", arguments)
    untouched = copy.deepcopy(model)
    if stem is not None:
        model.embeddings.patch_embeddings = ConvStem(16)
        model.embeddings.patch_embeddings.load_state_dict(part(convolutions, "patch_embed."))
    # Sines and cosines, which are not learnt.
    model.embeddings.position_embeddings.weight.requires_grad_(False)

    def export(trained):
        if stem is None:
            return export_checkpoint(trained, report.layout)
        whole = untouched.double()
        whole.load_state_dict(trained.state_dict(), strict=False)
        exported = {k: v for k, v in export_checkpoint(whole, report.layout).items() if k not in plain}
        convolved = trained.embeddings.patch_embeddings.state_dict()
        return exported | {f"patch_embed.{key}": value for key, value in convolved.items()}

    return model, export


@pytest.mark.parametrize("name", golden.cases("mocov3"))
def test_a_step_of_mocov3_equals_the_original(name):
    case = golden.load("mocov3", name)
    sizes = case.kwargs
    (model, export), (follower, _) = (mocov3_encoder(case, f"{n}_encoder.") for n in ("base", "momentum"))
    head = Head(3, sizes["mlp_dim"], sizes["dim"])
    predictor = Head(2, sizes["mlp_dim"], sizes["dim"]).build(sizes["dim"])
    freeze = "embed_layer" not in sizes["base_encoder"]
    objective = Mocov3Objective(model, head.build(16), sizes["m"], predictor, freeze, sizes["T"])
    objective.teacher.module.load_state_dict(follower.state_dict())
    objective.projector.load_state_dict(part(case.state_dict, "base_encoder.head."))
    objective.teacher_projector.module.load_state_dict(part(case.state_dict, "momentum_encoder.head."))
    objective.predictor.load_state_dict(part(case.state_dict, "predictor."))
    objective = objective.double().train()
    frozen = [name for name, p in objective.named_parameters() if not p.requires_grad and "teacher" not in name]
    assert len(frozen) == (3 if freeze else 1)
    objective.begin(10, 5, 0)
    objective.before_step(0)
    batch = batch_of(case.inputs["view1"], case.inputs["view2"])
    # Twice through the batch norms would change their statistics.
    tried = copy.deepcopy(objective)
    predictions = tried.project(batch["pixel_values"], tried.model, tried.projector, tried.predictor)
    targets = tried.project(batch["pixel_values"], tried.teacher, tried.teacher_projector)
    for index in (0, 1):
        assert case.compare(f"q{index + 1}", predictions[index].detach()) < 1e-10
        assert case.compare(f"k{index + 1}", targets[index]) < 1e-10
        direction = batch_contrast(predictions[index], targets[1 - index], sizes["T"]).mean().detach()
        assert case.compare(f"loss_q{index + 1}_k{2 - index}", direction) < 1e-10
    optimizer = torch.optim.AdamW(
        [p for p in objective.parameters() if p.requires_grad], sizes["lr"], weight_decay=sizes["weight_decay"]
    )
    loss = objective(batch)["loss"]
    loss.backward()
    optimizer.step()
    objective.after_step(1)
    assert case.compare("loss", loss.detach()) < 1e-10
    after = {f"predictor.{key}": value for key, value in objective.predictor.state_dict().items()}
    for network, encoder, projector in (
        ("base", objective.model, objective.projector),
        ("momentum", objective.teacher.module, objective.teacher_projector.module),
    ):
        after |= {f"{network}_encoder.{key}": value for key, value in export(encoder).items()}
        after |= {f"{network}_encoder.head.{key}": value for key, value in projector.state_dict().items()}
    compare_state(case, after)


# BYOL


def test_byols_loss_and_schedule_equal_the_original():
    case = golden.load("byol", "regression_loss_schedules")
    predictions = [case.inputs[f"prediction{i}"].double().requires_grad_() for i in (1, 2)]
    targets = [case.inputs[f"target{i}"].double() for i in (1, 2)]
    one = regression(predictions[0], targets[1])
    assert case.compare("loss_per_sample_1_2", one.detach()) < 1e-10
    loss = (one + regression(predictions[1], targets[0])).mean()
    loss.backward()
    assert case.compare("loss", loss.detach()) < 1e-10
    for index, each in enumerate(predictions, 1):
        assert case.compare(f"grad_prediction{index}", each.grad) < 1e-10
    steps, total = case.inputs["steps"].tolist(), case.kwargs["max_steps"]
    tau = [cosine(case.kwargs["base_ema"], 1.0, step / total) for step in steps]
    assert case.compare("tau", torch.tensor(tau, dtype=torch.float64)) < 1e-10


class BothAtOnce(ByolObjective):
    """lucidrains' code gives both views to the networks as one batch, and its momentum is constant."""

    one_pass = True
    rising = False


def test_a_step_of_byol_equals_the_original():
    case = golden.load("byol", "vit_step")
    sizes = case.kwargs["byol"]
    models, reports = {}, {}
    for network in ("online", "target"):
        state = part(case.state_dict, f"{network}_encoder.net.")
        models[network], reports[network] = convert_checkpoint(
            state, "vit", pooling="cls", num_attention_heads=2, patch_size=8, image_size=16
        )
    head = Head(2, sizes["projection_hidden_size"], sizes["projection_size"], True, False, False, True, True)
    encoder = models["online"].base_model
    objective = BothAtOnce(encoder, head.build(12), sizes["moving_average_decay"], head.build(sizes["projection_size"]))
    objective.teacher.module.load_state_dict(models["target"].base_model.state_dict())
    objective.projector.load_state_dict(part(case.state_dict, "online_encoder.projector."))
    objective.teacher_projector.module.load_state_dict(part(case.state_dict, "target_encoder.projector."))
    objective.predictor.load_state_dict(part(case.state_dict, "online_predictor."))
    objective = objective.double().train()
    batch = batch_of(case.inputs["view1"], case.inputs["view2"])
    tried = copy.deepcopy(objective)
    outputs = {
        "online_projection": (tried.model, tried.projector),
        "target_projection": (tried.teacher, tried.teacher_projector),
        "target_representation": (tried.teacher,),
    }
    for name, networks in outputs.items():
        found = tried.project(batch["pixel_values"], *networks).flatten(0, 1).detach()
        assert case.compare(name, found) < 1e-10, name
    tried = copy.deepcopy(objective)
    found = tried.project(batch["pixel_values"], tried.model, tried.projector, tried.predictor)
    assert case.compare("prediction", found.flatten(0, 1).detach()) < 1e-10
    optimizer = torch.optim.Adam([p for p in objective.parameters() if p.requires_grad], case.kwargs["lr"])
    objective.begin(10, 5, 0)
    objective.before_step(0)
    loss = objective(batch)["loss"]
    loss.backward()
    optimizer.step()
    objective.after_step(1)
    assert case.compare("loss", loss.detach()) < 1e-10
    after = {f"online_predictor.{key}": value for key, value in objective.predictor.state_dict().items()}
    trained = {
        "online": (objective.model, objective.projector),
        "target": (objective.teacher.module, objective.teacher_projector.module),
    }
    for network, (model, projector) in trained.items():
        models[network].double().base_model.load_state_dict(model.state_dict())
        exported = export_checkpoint(models[network], reports[network].layout)
        after |= {f"{network}_encoder.net.{key}": value for key, value in exported.items()}
        after |= {f"{network}_encoder.projector.{key}": value for key, value in projector.state_dict().items()}
    # The classifier is no part of the encoder. The original averages it, and nothing reads it.
    compare_state(case, after, without="mlp_head")


# SiT


def test_groups_are_corrupted_as_in_sit():
    """Every number that the original drew is an input of the case."""
    case = golden.load("sit", "v2_zeros_aligned")
    most = case.kwargs["max_replace"]
    for index, image in enumerate(case.inputs["images"].double()):
        numbers = iter(case.inputs["raw_ints"][index].tolist())
        used = []

        def draw(low, high, numbers=numbers, used=used):
            used.append(low + next(numbers) % (high - low))
            return used[-1]

        share = min(0.5, most) + case.inputs["uniform"][index].item() * (most - min(0.5, most))
        groups = draw_groups((24, 24), share, case.kwargs["align"], draw)
        changed, mask = corrupt(image, groups, torch.zeros_like(image))
        assert len(used) == case.outputs["draws_used"][index]
        assert torch.equal(mask, case.outputs["mask"][index].bool())
        assert torch.equal(changed[:, mask], torch.zeros_like(changed[:, mask]))
        assert torch.equal(changed[:, ~mask], image[:, ~mask])


def test_sits_losses_equal_the_original():
    case = golden.load("sit", "v2_zeros_aligned")
    images, mask = case.inputs["images"].double(), case.outputs["mask"].bool()
    pixels, student = (case.inputs[name].double().requires_grad_() for name in ("reconstruction", "student"))
    one, two = student.chunk(2)
    clean_one, clean_two = case.inputs["teacher"].double().chunk(2)
    temperature = case.kwargs["temp"]
    contrast = batch_contrast(one, clean_two, temperature) + batch_contrast(two, clean_one, temperature)
    error = masked_error(pixels, images, mask).sum() / mask.sum()
    loss = contrast.mean() + case.kwargs["lmbda"] * error
    loss.backward()
    found = {"contrastive_loss": contrast.mean(), "reconstruction_loss": error, "loss": loss}
    found |= {"grad_student": student.grad, "grad_reconstruction": pixels.grad}
    for name, value in found.items():
        assert case.compare(name, value.detach()) < 1e-10, name


def test_three_tasks_are_weighed_as_in_the_original():
    case = golden.load("sit", "v1_three_tasks")
    first, s = (case.inputs[name].double().requires_grad_() for name in ("z1", "s"))
    logits, pixels, target, second = (
        case.inputs[name].double() for name in ("rot_logits", "reconstruction", "target", "z2")
    )
    parts = {
        "rotation_loss": nn.functional.cross_entropy(logits, case.inputs["rot_targets"]),
        "contrastive_loss": nt_xent(torch.stack([first, second]), case.kwargs["temperature"]).mean(),
        "reconstruction_loss": (pixels - target).abs().mean(),
    }
    loss = weigh(parts.values(), s)
    loss.backward()
    for name, value in {**parts, "loss": loss, "grad_s": s.grad, "grad_z1": first.grad}.items():
        assert case.compare(name, value.detach()) < 1e-10, name


@pytest.mark.parametrize("corruption", ["zeros", "noise", "copy", "other"])
def test_corrupted_views_show_what_they_should(corruption):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(4, 2, 3, 20, 20, generator=generator) + 10  # no noise
    samples = [{"pixel_values": list(views), "labels": 0, "seed": seed} for seed, views in enumerate(images)]
    batch = CorruptViewsCollate(0.5, 1, corruption)(samples)
    mask = batch["mask"][:, :, None].expand_as(images)
    assert torch.equal(batch["pixel_values"], images)
    assert torch.equal(batch["corrupted"][~mask], images[~mask])
    assert (batch["mask"].float().mean((2, 3)) >= 0.5).all()
    assert (batch["mask"].float().mean((2, 3)) < 0.5 + 0.3**2).all()
    changed = batch["corrupted"][mask]
    if corruption == "zeros":
        assert (changed == 0).all()
    elif corruption == "noise":
        assert changed.mean().abs() < 0.1
    elif corruption == "other":
        assert torch.equal(changed, images[[1, 0, 3, 2]][mask])
    else:
        for example in range(4):
            for view in range(2):
                shown = batch["corrupted"][example, view][:, batch["mask"][example, view]]
                assert torch.isin(shown, images[example, view]).all()
        assert not torch.equal(changed, images[mask])
    # Processes that share a batch corrupt alike.
    halves = [CorruptViewsCollate(0.5, 1, corruption)(half) for half in (samples[:2], samples[2:])]
    assert torch.equal(torch.cat([half["corrupted"] for half in halves]), batch["corrupted"])


def test_views_are_turned_as_their_label_says():
    images = torch.rand(8, 2, 3, 20, 20)
    samples = [{"pixel_values": list(views), "labels": 0, "seed": seed} for seed, views in enumerate(images)]
    batch = CorruptViewsCollate(0.5, 1, "zeros", rotate=True)(samples)
    assert len(batch["rotation"].unique()) > 2
    for image, turned, count in zip(images, batch["pixel_values"], batch["rotation"].tolist(), strict=True):
        assert torch.equal(turned, torch.rot90(image, count, (2, 3)))


# On every architecture


def tiny_objective(case: str, name: str, count: int = 4, **options):
    """An objective on a tiny model with all weights random, and a batch of random images."""
    model = tiny_model(case, "Model")
    channels, size = model.config.num_channels, pair(model.config.image_size)
    processor = SimpleNamespace(image_mean=[0.5] * channels, image_std=[0.25] * channels, resample=3)
    torch.manual_seed(0)
    objective = PRETEXTS[name].from_options(
        model, ObjectiveOptions(**SMALL, **OWN.get(name, {}), **options), processor, size
    )
    transform = objective.image_transform(0.5)
    samples = []
    for seed in range(count):
        with seeded(seed):
            pixels = torch.randint(256, (channels, *size), dtype=torch.uint8)
            samples.append({"pixel_values": transform(pixels), "labels": seed % 2, "seed": seed})
    return objective, objective.collate(samples)


def take_step(objective, batch, step: int, optimizer) -> dict[str, torch.Tensor]:
    """What the loop does in a step."""
    objective.before_step(step)
    metrics = objective(batch)
    metrics["loss"].backward()
    optimizer.step()
    optimizer.zero_grad()
    objective.after_step(step + 1)
    return metrics


@pytest.mark.parametrize(
    ("name", "momentum"), [("dino", 0.996), ("moco", 0.999), ("mocov3", 0.99), ("byol", 0.996), ("sit", 0.996)]
)
def test_moving_averages_keep_the_published_share_unless_told(name, momentum):
    """facebookresearch/dino, moco, moco-v3, deepmind's byol, and SiT's released code."""
    assert PRETEXTS[name].published_momentum == momentum
    if name != "dino":
        told = ObjectiveOptions(objective=name, teacher_momentum=0.0)
        assert [PRETEXTS[name].momentum_of(each) for each in (ObjectiveOptions(), told)] == [momentum, 0.0]


@objectives
@pytest.mark.parametrize("case", IMAGE_CASES)
def test_every_architecture_takes_a_step(case, name):
    objective, batch = tiny_objective(case, name, teacher_momentum=0.75)
    objective.begin(10, 5, 0)
    size = pair(objective.model.config.image_size)
    assert batch["pixel_values"].shape == (4, 2, objective.model.config.num_channels, *size)
    objective.train()
    optimizer = torch.optim.SGD([p for p in objective.parameters() if p.requires_grad], lr=0.01)
    teachers = {n: m for n, m in objective.named_children() if n.startswith("teacher")}
    before = {n: p.detach().clone() for n, p in objective.named_parameters()}
    metrics = take_step(objective, batch, 0, optimizer)
    assert metrics.keys() == {"loss", "similarity", "spread"} | PARTS.get(name, set())
    assert all(value.isfinite() for value in metrics.values())
    assert len(teachers) == (2 if name in FOLLOWED else 0)
    moved = 0
    for teacher_name, teacher in teachers.items():
        student_name = "model" if teacher_name == "teacher" else "projector"
        students = dict(getattr(objective, student_name).named_parameters())
        for key, parameter in teacher.module.named_parameters():
            assert not parameter.requires_grad
            assert parameter.grad is None
            own = students[key].detach() if name in FOLLOWED_AFTER else before[f"{student_name}.{key}"]
            expected = 0.75 * before[f"{teacher_name}.module.{key}"] + 0.25 * own
            torch.testing.assert_close(parameter, expected, rtol=1e-5, atol=1e-7)
            moved += not torch.equal(students[key], before[f"{student_name}.{key}"])
    assert moved > 5 or not teachers
    objective.eval()
    with torch.no_grad():
        each = objective(batch)
    assert each.keys() == {"loss", "similarity"} | PARTS.get(name, set())
    assert all(value.shape == (4,) for value in each.values())


@objectives
def test_images_are_memorised(name):
    """Views that stay the same can be told apart completely."""
    objective, batch = tiny_objective("vit", name, count=6)
    batch["labels"] = torch.arange(6)
    objective.begin(10**9, 10**9, 0)
    objective.train()
    optimizer = torch.optim.Adam([p for p in objective.parameters() if p.requires_grad], lr=3e-3)
    if name == "moco":  # in its queue, the few images would soon be negatives of themselves
        objective.after_step = lambda step: objective._keys.clear()
    history = [take_step(objective, batch, step, optimizer)["loss"].item() for step in range(60)]
    assert np.mean(history[-3:]) < 0.6 * history[0]


def test_a_collapse_is_reported():
    objective, _ = tiny_objective("vit", "byol")
    assert objective.watch({"spread": 0.9}) is None
    assert "the training has collapsed" in objective.watch({"spread": 0.01})
    assert objective.watch({"spread": 0.01}) is None  # once
    torch.testing.assert_close(spread(torch.ones(5, 8)), torch.tensor(0.0))
    assert spread(torch.randn(4000, 32, generator=torch.Generator().manual_seed(0))).item() == pytest.approx(
        1, abs=0.02
    )


# Runs


@objectives
def test_a_run_leaves_an_encoder(name, tmp_path):
    output = tmp_path / "run"
    metrics = train_tiny(output, RUN, objective=name, epochs=2, **OWN.get(name, {}))
    assert metrics.keys() == {"loss", "similarity"} | PARTS.get(name, set())
    assert type(load_saved_model(output)).__name__ == "VitfVitModel"
    assert Training.read(output).objective == PRETEXTS[name].title
    first = read_lines(output, "train")[0]
    assert {"loss", "similarity", "spread"} <= first.keys()
    stage(output, tmp_path / "staged", "someone/model")
    card = (tmp_path / "staged" / "README.md").read_text(encoding="utf-8")
    assert f"Pretrained by {PRETEXTS[name].title}, {'with' if name == 'supcon' else 'without'} labels, on" in card
    model, info = AutoModelForImageClassification.from_pretrained(output, output_loading_info=True)
    assert {key.partition(".")[0] for key in info["missing_keys"]} == {"classifier"}
    assert not info["unexpected_keys"]
    saved = weights(output)
    for key, tensor in model.base_model.state_dict().items():
        assert torch.equal(saved[key], tensor), key


@objectives
def test_a_killed_run_ends_with_the_same_bits(name, tmp_path):
    check_killed_run(tmp_path, RUN, objective=name, epochs=4, **OWN.get(name, {}))


@objectives
def test_two_processes_equal_one(name, tmp_path):
    """
    In three steps: with batch norms in the projections, each step makes about fifteen times as much of what rounding
    leaves. A wrong average of gradients shows after the first.
    """
    given = {**STILL, **OWN.get(name, {}), "objective": name, "eval_batch_size": 10, "lr": 0.005, "max_steps": 3}
    train_tiny(tmp_path / "one", given, batch_size=16)
    train_in_two(tmp_path / "two", given, batch_size=8)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-3)
    first, second = (read_lines(tmp_path / folder, "evaluation") for folder in ("one", "two"))
    assert [line["loss"] for line in second] == pytest.approx([line["loss"] for line in first], rel=1e-3)
    for key, tensor in weights(tmp_path / "one").items():
        torch.testing.assert_close(tensor, weights(tmp_path / "two")[key], rtol=1e-3, atol=2e-5)


def test_supcon_reads_labels_and_the_others_do_not(tmp_path):
    """Two labels that are one change what supcon learns, and nothing else."""
    from hf_vit_family.training.run import TrainingOptions, load_data  # what a run loads

    options = TrainingOptions.from_values({**RUN, "output": str(tmp_path), "objective": "supcon"})
    processor = SimpleNamespace(image_mean=[0.5], image_std=[0.5], size={"height": 8, "width": 8}, resample=3)
    for name in NAMES:
        bundle = load_data(options.data, processor, 0, labelled=PRETEXTS[name].labelled)
        assert PRETEXTS[name].labelled == (name == "supcon")
        assert len(bundle.classes.names) == 10
    objective, batch = tiny_objective("vit", "supcon")
    objective.eval()
    with torch.no_grad():
        first = objective(batch)["loss"]
        second = objective(batch | {"labels": torch.arange(4)})["loss"]
    assert not torch.allclose(first, second)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "simclr", "crop": "random"}, "'crop' has no meaning for SimCLR"),
        ({"objective": "simclr", "mixup": 0.2}, "'mixup' is for learning from labels"),
        ({"objective": "supcon", "mixup": 0.2}, "'mixup' is for classifying"),
        ({"objective": "byol", "contrast_temperature": 0.1}, "'contrast_temperature' has no meaning for BYOL"),
        ({"objective": "simclr", "contrast_temperature": 0.0}, "'contrast_temperature' is greater than 0"),
        ({"objective": "simclr", "jitter_strength": 2.0}, "'jitter_strength' is at most 1.25"),
        ({"objective": "moco", "queue_size": 4}, "queue_size=4: a step has 16 images"),
        ({"objective": "moco", "view_scale": [0.5]}, "'view_scale' is two rising numbers"),
        ({"objective": "sit", "corruption_align": 4}, "corruption_align 4: groups have at most 0.3"),
        ({"objective": "mocov3", "projection_layers": 0}, "'projection_layers' is at least 1"),
    ],
)
def test_what_does_not_fit_is_one_line(options, message, tmp_path):
    with pytest.raises(UserError, match=message):
        train_tiny(tmp_path / "run", {**RUN, "max_steps": 1, **options})


def test_mocos_versions_differ_by_their_projection():
    kinds = {}
    for layers in (1, 2):
        options = ObjectiveOptions(projection_layers=layers, queue_size=8)
        objective = MocoObjective.from_options(tiny_model("vit", "Model"), options, None, (8, 8))
        kinds[layers] = objective.contrast_temperature, objective.views[0].jitter[3], objective.queue.shape
    assert kinds == {1: (0.07, 0.4, (128, 8)), 2: (0.2, 0.1, (128, 8))}
