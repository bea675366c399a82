"""Pretraining without labels: SimMIM and masked patch prediction, on every architecture of images."""

import json

import datasets
import golden
import pytest
import torch
from models import PLAIN_CASES, architecture_of, tiny_config, tiny_model
from PIL import Image
from test_training import forget_accelerate, losses, weights  # noqa: F401 - a fixture that applies to all tests
from test_training_resume import check_killed_run
from training_runs import STILL_RUN, TINY_RUN, read_lines, train_in_two, train_tiny
from transformers import AutoBackbone, AutoModelForImageClassification, AutoModelForMaskedImageModeling

from hf_vit_family.conversion.convert import convert_checkpoint
from hf_vit_family.errors import UserError
from hf_vit_family.loading import load_saved_model
from hf_vit_family.modeling.configuration_vitf import pair
from hf_vit_family.publishing.cards import Evaluation, Training
from hf_vit_family.publishing.publish import stage
from hf_vit_family.training.objectives.masked_images import (
    BlockGrid,
    BlockMaskCollate,
    CorruptPatchesCollate,
    MaskedPatchObjective,
    SimmimObjective,
)
from hf_vit_family.training.pretraining import PRETEXTS

STEPS = 80
IMAGE_CASES = [case for case in PLAIN_CASES if "ForMaskedImageModeling" in architecture_of(case).heads]
IMAGENET = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
# Small runs of each objective; MixUp is for labels. The decoder is MAE's.
DECODER = {
    "decoder_hidden_size": 12,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 16,
}
RUN = {key: value for key, value in TINY_RUN.items() if key != "mixup"}
RUN["set"] = {**TINY_RUN["set"], **DECODER}
STILL = {key: value for key, value in STILL_RUN.items() if key != "mixup"}
# Blocks that fill the tiny images.
OWN = {"simmim": {"mask_patch_size": 4}, "mpp": {}, "mae": {}}
objectives = pytest.mark.parametrize("name", ["simmim", "mpp", "mae"])
# Those that train every architecture of images, by a token in place of what is masked; of MAE see tests/test_mae.py.
by_tokens = pytest.mark.parametrize("name", ["simmim", "mpp"])


def make_objective(case: str, name: str):
    """An objective on a tiny model with all its weights random, and three easy images with their seeds."""
    head = PRETEXTS[name].head
    model = tiny_model(case, head)
    size, block = pair(model.config.image_size), model.config.stage_strides[-1]
    if name == "simmim":
        objective = SimmimObjective(model, BlockGrid.for_model(model, size, block, 0.6, "a block of"))
    else:
        grid = BlockGrid.for_model(model, size, block, 0.5, "a patch of")
        objective = MaskedPatchObjective(model, grid, *([0.5] * model.config.num_channels,) * 2)
    colors = torch.tensor([[-0.9, 0.3, 0.6], [0.7, -0.6, 0.1], [0.2, 0.9, -0.8]])[:, : model.config.num_channels]
    samples = [
        {"pixel_values": color[:, None, None].expand(-1, *size).clone(), "labels": 0, "seed": seed}
        for seed, color in enumerate(colors)
    ]
    return objective, samples


# Goldens


def test_simmim_equals_the_original():
    case = golden.load("simmim", "swin_pretrain")
    kwargs = {key: value for key, value in case.kwargs["encoder"].items() if key != "__class__"}
    taken = {key: tensor for key, tensor in case.state_dict.items() if key.startswith("encoder.")}
    token = taken.pop("encoder.mask_token")
    head = {"encoder.head.weight": torch.zeros(2, 64), "encoder.head.bias": torch.zeros(2)}
    classifier, _ = convert_checkpoint({**taken, **head}, "swin", {**kwargs, "num_classes": 2})
    encoder = classifier.base_model
    model = AutoModelForMaskedImageModeling.from_config(encoder.config)
    model.base_model.load_state_dict(encoder.state_dict())
    with torch.no_grad():
        model.mask_token.copy_(token)
        model.decoder.weight.copy_(case.state_dict["decoder.0.weight"])
        model.decoder.bias.copy_(case.state_dict["decoder.0.bias"])
    model = model.double().eval()
    objective = SimmimObjective(model, BlockGrid.for_model(model, (64, 64), (4, 4), 0.6, "a block of")).train()
    model.eval()  # no stochastic depth
    mask, pixel_values = case.inputs["mask"].flatten(1).bool(), case.inputs["pixel_values"].double()
    batch = {"pixel_values": pixel_values, "bool_masked_pos": mask}
    assert case.compare("loss", objective(batch)["loss"].detach()) < 1e-10
    assert case.compare("reconstruction", model(pixel_values, bool_masked_pos=mask).reconstruction.detach()) < 1e-10
    # Of each example by itself: those of one mask have the mean that the batch has.
    each = objective.eval()(batch)["loss"]
    assert each.shape == (2,)
    counts = mask.sum(1)
    torch.testing.assert_close(
        ((each * counts).sum() / counts.sum()).double(), case.outputs["loss"], rtol=1e-6, atol=0.0
    )


def golden_patches(case: golden.Golden, model, mean, std) -> tuple[MaskedPatchObjective, dict[str, torch.Tensor]]:
    """The objective of a case, and the batch that its decisions make."""
    size = tuple(case.inputs["pixel_values"].shape[2:])
    ratio = case.kwargs["mask_prob"]
    objective = MaskedPatchObjective(model, BlockGrid.for_model(model, size, (8, 8), ratio, "a patch of"), mean, std)
    kind, own = case.outputs["kind"], torch.arange(case.outputs["kind"].shape[1])
    batch = {
        "pixel_values": case.inputs["pixel_values"].double(),
        "chosen": kind > 0,
        "masked": kind == 3,
        "source": torch.where(kind == 2, case.inputs["random_patches"], own),
    }
    assert ((kind > 0).sum(1) == objective.grid.masked).all()
    return objective.double(), batch


def test_masked_patch_prediction_equals_the_original():
    """Means that are exactly on the edge of two bins among its labels."""
    case = golden.load("mpp", "paper_probabilities")
    state = {key.removeprefix("transformer."): tensor for key, tensor in case.state_dict.items()}
    encoder = {key: tensor for key, tensor in state.items() if not key.startswith(("mask_token", "to_bits"))}
    head = {"mlp_head.weight": torch.zeros(5, 20), "mlp_head.bias": torch.zeros(5)}
    classifier, _ = convert_checkpoint(
        {**encoder, **head}, "vit", pooling="cls", num_attention_heads=4, patch_size=8, image_size=32
    )
    model = AutoBackbone.from_config(classifier.config)
    model.base_model.load_state_dict(classifier.base_model.state_dict())
    objective, batch = golden_patches(case, model.eval(), [0.0] * 3, [1.0] * 3)
    with torch.no_grad():
        # The original's token is pixels, which become an embedding.
        token = state["mask_token"].double().view(1, 8, 8, 3).permute(0, 3, 1, 2)
        embeddings = model.base_model.double().embeddings
        patch = embeddings.patch_embeddings(embeddings.pixel_layernorm(token))
        objective.mask_token.copy_(embeddings.patch_layernorm(patch).flatten())
        objective.colors.weight.copy_(state["to_bits.weight"])
        objective.colors.bias.copy_(state["to_bits.bias"])
        assert torch.equal(objective.color_labels(batch["pixel_values"]), case.outputs["labels"])
        logits = objective.logits(batch["pixel_values"], batch["masked"], batch["source"])
        assert case.compare("logits", logits) < 1e-10
        objective.train()
        model.eval()
        assert case.compare("loss", objective(batch)["loss"]) < 1e-10


@pytest.mark.parametrize("name", golden.cases("mpp"))
def test_patches_are_corrupted_and_labelled_as_in_the_original(name):
    case = golden.load("mpp", name)
    mean, std = (case.kwargs[key] or [default] * 3 for key, default in (("mean", 0.0), ("std", 1.0)))
    height, width = case.inputs["pixel_values"].shape[2:]
    model = AutoBackbone.from_config(tiny_config("vit", image_size=(height, width)))
    objective, batch = golden_patches(case, model, mean, std)
    labels = objective.color_labels(batch["pixel_values"])
    assert torch.equal(labels, case.outputs["labels"])
    none = torch.zeros_like(batch["masked"])
    patches = objective.split_patches(objective.corrupt(batch["pixel_values"], none, batch["source"]))
    ours = patches.transpose(2, 3).flatten(2)  # channel last
    if "mask_token" in case.state_dict:
        token = case.state_dict["mask_token"].double().view(1, 1, -1)
        ours = torch.where(batch["masked"][..., None], token, ours)
    sample = case.metadata["samples"]["masked_patches"]
    shown = (
        ~batch["masked"][..., None].expand_as(ours) if "mask_token" not in case.state_dict else torch.ones_like(ours)
    )
    shown = shown.flatten()[:: sample["stride"]].bool()
    assert torch.equal(ours.flatten()[:: sample["stride"]][shown], case.samples["masked_patches"].double()[shown])


# What is masked


def test_masked_counts_are_exact_and_follow_from_the_seed_of_each_example():
    model = tiny_model("swin", "ForMaskedImageModeling", image_size=64)
    grid = BlockGrid.for_model(model, (64, 64), (16, 16), 0.6, "mask_patch_size")
    samples = [{"pixel_values": torch.zeros(3, 64, 64), "labels": 0, "seed": seed} for seed in range(200)]
    masks = BlockMaskCollate(grid)(samples)["bool_masked_pos"].view(200, 4, 8, 4, 8)
    blocks = masks[:, :, 0, :, 0]
    assert (masks == blocks[:, :, None, :, None]).all()  # whole blocks of 16 pixels, 8 cells of 2
    assert (blocks.flatten(1).sum(1) == 10).all()  # the part 0.6 of 16, rounded up
    assert (blocks.sum(0) > 0).all()
    assert len({tuple(each.flatten().tolist()) for each in blocks}) > 150
    alone = BlockMaskCollate(grid)(samples[150:151])["bool_masked_pos"]
    assert torch.equal(alone[0], masks[150].flatten())

    batch = CorruptPatchesCollate(grid)(samples)
    assert (batch["chosen"].sum(1) == 10).all()
    assert not (batch["masked"] & ~batch["chosen"]).any()
    moved = batch["source"] != torch.arange(16)
    assert not (moved & (batch["masked"] | ~batch["chosen"])).any()
    # 80%, 10% and 10% of 2,000 patches: five standard deviations are 4.5% and 3.4%.
    assert batch["masked"].sum() / 2000 == pytest.approx(0.8, abs=0.045)
    assert moved.sum() / 2000 == pytest.approx(0.1, abs=0.034)


@by_tokens
@pytest.mark.parametrize("case", IMAGE_CASES)
def test_every_architecture_learns_and_sees_nothing_of_what_is_masked(case, name):
    objective, samples = make_objective(case, name)
    batch = objective.collate(samples)
    objective.eval()
    pixels = batch["pixel_values"].clone().requires_grad_()
    if name == "simmim":
        outputs = objective.model(pixels, bool_masked_pos=batch["bool_masked_pos"]).reconstruction
        hidden = batch["bool_masked_pos"]
        rows, columns = objective.model.config.stage_strides[0]
        hidden = hidden.view(len(hidden), 1, pixels.shape[2] // rows, -1)
        hidden = hidden.repeat_interleave(rows, 2).repeat_interleave(columns, 3)
    else:
        outputs = objective.logits(pixels, batch["masked"], batch["source"])
        shown = torch.stack(
            [torch.bincount(s[~m], minlength=len(s)) > 0 for s, m in zip(batch["source"], batch["masked"], strict=True)]
        )
        rows, columns = objective.model.config.stage_strides[-1]
        hidden = ~shown.view(len(shown), 1, objective.grid.rows, objective.grid.columns)
        hidden = hidden.repeat_interleave(rows, 2).repeat_interleave(columns, 3)
    generator = torch.Generator().manual_seed(0)
    (outputs * torch.randn(outputs.shape, generator=generator)).sum().backward()
    assert hidden.any()
    assert (pixels.grad.masked_select(hidden) == 0).all()
    assert (pixels.grad.masked_select(~hidden) != 0).any()

    objective.train()
    optimizer = torch.optim.Adam(objective.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=STEPS)
    history = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = objective(batch)["loss"]
        loss.backward()
        optimizer.step()
        schedule.step()
        history.append(loss.item())
    assert history[-1] < 0.7 * history[0]  # at most 0.3 of it were seen, and 0.1 of most architectures


@by_tokens
@pytest.mark.parametrize("case", IMAGE_CASES)
def test_the_encoder_goes_into_the_classifier(case, name, tmp_path):
    head = PRETEXTS[name].head
    model = tiny_model(case, head)
    model.save_pretrained(tmp_path)
    classifier, info = AutoModelForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    encoder = model.base_model.state_dict()
    found = classifier.base_model.state_dict()
    for key, tensor in encoder.items():
        assert torch.equal(found[key], tensor), key
    # Layers that only the class token goes through are part of what a classifier adds.
    own = {key for key in classifier.state_dict() if not key.startswith(f"{classifier.base_model_prefix}.")}
    own |= {f"{classifier.base_model_prefix}.{key}" for key in found.keys() - encoder.keys()}
    assert set(info["missing_keys"]) <= own


# Runs


@objectives
def test_a_run_leaves_an_encoder_with_its_records(name, tmp_path, capsys):
    output = tmp_path / "pretrained"
    metrics = train_tiny(output, RUN, objective=name, epochs=6, **OWN[name])
    assert metrics.keys() == {"loss"}
    model = load_saved_model(output)
    assert type(model).__name__ == f"VitfVit{PRETEXTS[name].head}"
    for split in ("train", "evaluation"):
        assert not any("accuracy" in line for line in read_lines(output, split))
    first, *_, last = read_lines(output, "evaluation")
    assert last["num_images"] == 40
    assert last["loss"] < first["loss"]
    title = PRETEXTS[name].title
    assert Training.read(output).objective == title
    with Image.open(output / "curves.png") as curves:
        assert curves.size == (540, 408)  # the loss only: an accuracy next to it would double the width
    assert Evaluation.read(output).metrics == metrics

    capsys.readouterr()
    fine = {key: value for key, value in TINY_RUN.items() if key not in ("model", "set", "drop_path_rate")}
    train_tiny(tmp_path / "tuned", fine, model=str(output), epochs=1)
    said = "".join(capsys.readouterr())
    assert "gets a new head" in said
    assert "start at random" not in said
    assert Training.read(tmp_path / "tuned").pretrained_by == [title]

    for folder, sentence in (("pretrained", "Pretrained by "), ("tuned", ", which was pretrained by ")):
        stage(tmp_path / folder, tmp_path / f"{folder}-staged", "someone/model")
        card = (tmp_path / f"{folder}-staged" / "README.md").read_text(encoding="utf-8")
        assert f"{sentence}{title}" in card
        assert ("accuracy" in card) == (folder == "tuned")


@objectives
def test_a_killed_run_ends_with_the_same_bits(name, tmp_path):
    check_killed_run(tmp_path, RUN, objective=name, epochs=4, **OWN[name])


# CaiT has layers that only a classifier's token goes through, which have no gradient.
@pytest.mark.parametrize(
    ("name", "model", "fields"),
    [("simmim", "vit_tiny_patch16_224", {}), ("mpp", "cait_xxs24_224", {}), ("mae", "vit_tiny_patch16_224", DECODER)],
)
def test_two_processes_equal_one(name, model, fields, tmp_path):
    given = {**STILL, **OWN[name], "objective": name, "model": model, "set": {**STILL["set"], **fields}}
    train_tiny(tmp_path / "one", given, batch_size=16, epochs=2)
    train_in_two(tmp_path / "two", given, batch_size=8, epochs=2)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    first, second = (read_lines(tmp_path / folder, "evaluation") for folder in ("one", "two"))
    assert [line["num_images"] for line in second] == [40, 40]
    assert [line["loss"] for line in second] == pytest.approx([line["loss"] for line in first], rel=1e-4)
    for key, tensor in weights(tmp_path / "one").items():
        torch.testing.assert_close(tensor, weights(tmp_path / "two")[key], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("layout", ["flat", "folders", "splits"])
def test_images_without_labels_are_data(layout, tmp_path):
    folders = {"flat": [""], "folders": ["a", "b/c"], "splits": ["train", "val"]}[layout]
    generator = torch.Generator().manual_seed(0)
    for number in range(40):
        path = tmp_path / "photos" / folders[number % len(folders)] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = torch.randint(256, (8, 8, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(path)
    options = {"objective": "simmim", **OWN["simmim"], "dataset": str(tmp_path / "photos"), "max_steps": 1}
    train_tiny(tmp_path / "run", RUN, **options)
    facts = json.loads((tmp_path / "run" / "training.json").read_text())
    assert facts["num_images"] == (20 if layout == "splits" else 36)
    assert Evaluation.read(tmp_path / "run").num_images == (20 if layout == "splits" else 4)


@pytest.mark.parametrize("streaming", [False, True])
def test_tables_need_no_column_of_labels(streaming, tmp_path):
    images = [Image.new("RGB", (8, 8), (6 * i, 90, 200 - 3 * i)) for i in range(40)]
    for split in ("train", "validation"):
        table = datasets.Dataset.from_dict({"image": images}, features=datasets.Features(image=datasets.Image()))
        table.to_parquet(tmp_path / "data" / f"{split}.parquet")
    train_tiny(tmp_path / "run", RUN, objective="mpp", dataset=str(tmp_path / "data"), streaming=streaming, max_steps=2)
    assert Evaluation.read(tmp_path / "run").num_images == 40


def test_pretraining_goes_on_from_a_folder(tmp_path, capsys, forget_accelerate):  # noqa: F811
    """From an encoder of either objective to either; `set` keeps what was learnt."""
    train_tiny(tmp_path / "first", RUN, objective="simmim", max_steps=2, **OWN["simmim"])
    more = {key: value for key, value in RUN.items() if key not in ("model", "set", "drop_path_rate")}
    sources = (("first", "mpp"), ("second", "simmim"))
    for (source, name), output in zip(sources, ("second", "third"), strict=True):
        forget_accelerate()
        options = {"objective": name, "model": str(tmp_path / source), "max_steps": 1, "lr": 1e-9, "ema_decay": None}
        options |= OWN[name]
        train_tiny(tmp_path / output, more, **options, set={"hidden_dropout_prob": 0.0})
        before, after = weights(tmp_path / source), weights(tmp_path / output)
        for key in before.keys() & after.keys():
            torch.testing.assert_close(before[key], after[key], rtol=0.0, atol=1e-6)
        assert any(key.startswith("vit.layers") for key in before.keys() & after.keys())
    said = "".join(capsys.readouterr())
    assert "no weights for decoder.bias, decoder.weight, mask_token, which start at random" in said
    titles = [PRETEXTS[name].title for name in ("mpp", "simmim")]
    assert Training.read(tmp_path / "third").pretrained_by == titles


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mixup": 0.2}, "'mixup' is for learning from labels"),
        ({"teacher": "someone"}, "'teacher' is for learning from labels"),
        ({"freeze": "backbone"}, "'freeze' is for learning from labels"),
        ({"mask_patch_size": 6}, "must be a multiple of the 4 pixels .* such as 8"),
        ({"mask_patch_size": 8}, "mask 1 of the 1 blocks"),
        ({"mask_ratio": 0.9}, "mask 4 of the 4 blocks"),
        ({"out_dim": 9}, "'out_dim' is for the objective dino, and simmim does not read it: leave it at 65536"),
        ({"objective": "mpp"}, "'mask_patch_size' is for the objective simmim, and mpp does not read it"),
        ({"objective": "classification", "mask_ratio": 0.5}, "'mask_ratio' .* and classification does not read it"),
        ({"mask_ratio": 1.5}, "'mask_ratio' lies between 0 and 1"),
        (
            {"image_size": 20, "mask_patch_size": 8},
            "does not divide the image's height of 20 pixels; sizes that do are 4",
        ),
        ({"best_metric": "accuracy", "max_steps": 1}, "best_metric=accuracy: choose one of loss"),
        (
            {"model": "timesformer_base_k400", "dataset": "moving_digits", "drop_path_rate": None, "set": {}},
            "timesformer_base_k400 is a model of clips",
        ),
    ],
)
def test_what_does_not_fit_is_one_line(options, message, tmp_path):
    with pytest.raises(UserError, match=message):
        train_tiny(tmp_path / "run", RUN, **{"objective": "simmim", **OWN["simmim"], **options})
