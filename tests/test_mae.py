"""MAE: equal to the original's goldens, blind to what is hidden, and its files there and back."""

import re
import shlex
from pathlib import Path

import golden
import pytest
import torch
from dossier import PLAIN
from models import TINY, random_noise, random_pixels, tiny_config, tiny_model
from PIL import Image
from sklearn.datasets import load_digits
from test_pretraining import RUN
from test_training import forget_accelerate  # noqa: F401 - a fixture that applies to all tests
from training_runs import train_tiny
from transformers import AutoModelForImageClassification, AutoModelForPreTraining, ViTMAEConfig
from vit_family_launcher import main

from hf_vit_family import ARCHITECTURES, create_processor
from hf_vit_family.conversion.convert import convert_checkpoint, export_checkpoint, find_published
from hf_vit_family.conversion.published import published_checkpoints
from hf_vit_family.conversion.rules import make_plan
from hf_vit_family.conversion_scripts.convert_vit import LAYOUTS
from hf_vit_family.errors import ConversionError, UserError
from hf_vit_family.explain.reconstruction import reconstruct
from hf_vit_family.modeling.embeddings import FrozenPositionEmbeddings, PositionEmbeddings, sincos_positions
from hf_vit_family.modeling.mae_decoder import fixed_noise, from_patches, to_patches
from hf_vit_family.modeling.modeling_vit import VitfVitForPreTraining
from hf_vit_family.publishing.cards import Training
from hf_vit_family.training.config import ObjectiveOptions
from hf_vit_family.training.objectives.masked_autoencoder import MaeObjective, NoiseCollate
from hf_vit_family.training.optim import make_optimizer
from hf_vit_family.training.recipes import RECIPES
from hf_vit_family.training.run import TrainingOptions

PRETRAINING = ["pretrain_normpix_randpos", "pretrain_sincos"]
CASES = [case for case in TINY if case.partition("-")[0] == "vit"]


def load(name: str):
    """A golden case, and the model of its file."""
    case = golden.load("mae", name)
    kwargs = {key: value for key, value in case.kwargs.items() if key != "__class__"}
    return case, *convert_checkpoint({"model": case.state_dict}, original_kwargs=kwargs)


@pytest.mark.parametrize("name", PRETRAINING)
def test_the_model_equals_the_original(name):
    case, model, report = load(name)
    assert (report.layout, report.head) == ("mae", "ForPreTraining")
    model.double().config.mask_ratio = case.inputs["mask_ratio"].item()
    pixel_values, noise = case.inputs["pixel_values"].double(), case.inputs["noise"]
    with torch.no_grad():
        outputs = model(pixel_values, noise)
        read = outputs.ids_restore.argsort(dim=1)[:, : model.num_visible(noise.shape[1])]
        features = model.base_model(pixel_values, visible=read).last_hidden_state
    for key, value in {"loss": outputs.loss, "pred": outputs.logits, "features": features}.items():
        assert case.compare(key, value) < 1e-10, key
    assert torch.equal(outputs.ids_restore, case.outputs["ids_restore"])
    assert torch.equal(outputs.mask, case.outputs["mask"].double())


@pytest.mark.parametrize("name", PRETRAINING)
def test_a_file_with_its_decoder_comes_and_goes_back(name, tmp_path):
    case, model, report = load(name)
    assert not any("left out" in note for note in report.notes)
    back = export_checkpoint(model, "mae")
    assert back.keys() == case.state_dict.keys()
    assert all(torch.equal(back[key], tensor) for key, tensor in case.state_dict.items())
    # Without its decoder it is the encoder's file, as the authors publish it.
    encoder = {key: value for key, value in back.items() if not key.startswith(("decoder", "mask_token"))}
    heads = model.config.num_attention_heads
    alone, report = convert_checkpoint({"model": encoder}, "vit", num_attention_heads=heads)
    assert (report.layout, report.head) == ("timm", "Model")
    state = model.base_model.state_dict()
    assert all(torch.equal(state[key], tensor) for key, tensor in alone.state_dict().items())
    again = export_checkpoint(alone, "timm")
    assert all(torch.equal(again[key], tensor) for key, tensor in encoder.items())
    assert again.keys() == encoder.keys()
    # The encoder goes into a classifier, which learns the positions on.
    model.save_pretrained(tmp_path)
    classifier, info = AutoModelForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert set(info["missing_keys"]) == {"classifier.weight", "classifier.bias"}
    assert classifier.vit.embeddings.position_embeddings.weight.requires_grad
    assert torch.equal(classifier.vit.embeddings.position_embeddings.weight, case.state_dict["pos_embed"])


def test_the_positions_of_the_original_are_what_a_new_model_starts_from():
    case, model, _ = load("pretrain_sincos")
    loaded = VitfVitForPreTraining.from_pretrained(None, config=model.config, state_dict={})
    for made in (VitfVitForPreTraining(model.config), loaded):
        for key, table in (("pos_embed", made.vit.embeddings), ("decoder_pos_embed", made.decoder)):
            assert torch.equal(table.position_embeddings.weight, case.state_dict[key])
            assert not table.position_embeddings.weight.requires_grad


def test_what_the_weights_do_not_tell_is_asked_for():
    state = golden.load("mae", "pretrain_sincos").state_dict
    with pytest.raises(ConversionError, match="decoder_num_attention_heads is not told"):
        convert_checkpoint(state)
    with pytest.raises(ConversionError, match=r"norm_pix_loss is not told .* mae_visualize"):
        convert_checkpoint(state, decoder_num_attention_heads=2)
    with pytest.raises(ConversionError, match="num_attention_heads is not told"):
        convert_checkpoint(state, decoder_num_attention_heads=2, norm_pix_loss=False)
    answers = {"decoder_num_attention_heads": 2, "num_attention_heads": 4, "norm_pix_loss": True}
    model, _ = convert_checkpoint(state, **answers)
    assert model.config.norm_pix_loss
    # Who wants the encoder only names its layout.
    encoder, report = convert_checkpoint(state, layout="timm", num_attention_heads=4)
    assert report.head == "Model"
    assert any("left out the decoder of MAE" in note for note in report.notes)
    assert torch.equal(encoder.layernorm.weight, model.vit.layernorm.weight)


def test_the_sizes_of_the_published_files_are_known():
    """ViT-B with the decoder of 512 channels, of which nothing but the targets is asked."""
    layout, config = LAYOUTS["mae"], VitfVitForPreTraining.config_class(hidden_act="gelu")
    with torch.device("meta"):
        model = VitfVitForPreTraining(config)
    tensors = {key.removeprefix("vit."): tensor for key, tensor in model.state_dict().items()}
    plan = make_plan(tensors, [rule.inverse for rule in layout.rules(config)])
    state = {step.targets[0]: tensors[step.sources[0]] for step in plan}
    assert sum(tensor.numel() for tensor in state.values()) == 111_907_840
    found = layout.config({}, state, norm_pix_loss=True)
    assert (found.num_attention_heads, found.decoder_num_attention_heads) == (12, 16)
    assert (found.decoder_num_hidden_layers, found.decoder_intermediate_size) == (8, 2048)


@pytest.mark.parametrize(
    ("file", "head", "fields", "tag"),
    [
        ("mae_pretrain_vit_base", "Model", {}, "mae_in1k"),
        ("mae_pretrain_vit_base", "ForPreTraining", {}, "mae_in1k"),
        ("mae_finetuned_vit_base", "ForImageClassification", {"num_labels": 1000}, "mae_in1k_ft_in1k"),
        ("mae_finetuned_vit_base", "ForImageClassification", {"num_labels": 10}, None),
        ("mae_pretrain_vit_base", "Model", {"hidden_size": 384}, None),
    ],
)
def test_published_files_are_known_by_name_and_size(file, head, fields, tag):
    architecture = ARCHITECTURES["vit"]
    with torch.device("meta"):
        model = architecture.model_class(head)(architecture.config_class(**fields))
    found = find_published(architecture, f"{file}.pth", model)
    assert found == (tag and f"vit_base_patch16_224.{tag}")
    if found:
        assert published_checkpoints("vit")[found].license == "cc-by-nc-4.0"


def test_the_sizes_of_a_published_fine_tuned_file_are_known():
    """Which pools by the mean, and has its last norm after it."""
    config = VitfVitForPreTraining.config_class(pooling="mean", final_layernorm="pooled", num_labels=1000)
    with torch.device("meta"):
        model = ARCHITECTURES["vit"].model_class("ForImageClassification")(config)
    tensors = {key.removeprefix("vit."): tensor for key, tensor in model.state_dict().items()}
    plan = make_plan(tensors, [rule.inverse for rule in LAYOUTS["timm"].rules(config)])
    found = LAYOUTS["timm"].config({}, {step.targets[0]: tensors[step.sources[0]] for step in plan})
    assert (found.num_attention_heads, found.pooling, found.final_layernorm) == (12, "mean", "pooled")


def test_layouts_that_cannot_hold_a_model_say_why():
    config = tiny_config("vit", decoder_intermediate_size=32)
    with pytest.raises(ConversionError, match="hidden_act='gelu_pytorch_tanh' has no place"):
        export_checkpoint(VitfVitForPreTraining(config), "mae")
    config = tiny_config("vit", hidden_act="gelu")
    with pytest.raises(ConversionError, match="decoder_intermediate_size=24 has no place"):
        export_checkpoint(VitfVitForPreTraining(config), "mae")


def test_positions_that_are_computed_are_written_as_the_table():
    config = tiny_config("vit", hidden_act="gelu", decoder_intermediate_size=32, position_embedding_type="sincos")
    model = VitfVitForPreTraining(config)
    state = export_checkpoint(model, "mae")
    assert torch.equal(state["pos_embed"][:, 1:], sincos_positions(32, (4, 4), torch.float32))
    assert not state["pos_embed"][:, 0].any()
    answers = {"decoder_num_attention_heads": 2, "num_attention_heads": 2, "norm_pix_loss": False}
    same, _ = convert_checkpoint(state, **answers)
    assert isinstance(same.vit.embeddings.position_embeddings, FrozenPositionEmbeddings)
    pixel_values, noise = random_pixels(config), random_noise(config)
    torch.testing.assert_close(model.eval()(pixel_values, noise).logits, same(pixel_values, noise).logits)


# What is hidden


@pytest.mark.parametrize("case", CASES)
def test_no_value_of_a_hidden_pixel_reaches_the_prediction(case):
    model = tiny_model(case, "ForPreTraining", mask_ratio=0.6)
    pixel_values, noise = random_pixels(model.config).requires_grad_(), random_noise(model.config)
    outputs = model(pixel_values, noise)
    count = noise.shape[1]
    assert outputs.logits.shape == (2, count, model.decoder.prediction.out_features)
    assert (outputs.mask.sum(1) == count - int(count * 0.4)).all()
    smallest = noise.argsort(dim=1)[:, : int(count * 0.4)]
    assert not outputs.mask.gather(1, smallest).any()
    # A number of its own for each prediction, lest they cancel out.
    (outputs.logits * torch.rand_like(outputs.logits)).sum().backward()
    patches = to_patches(pixel_values.grad, model.config.size_multiple).abs().amax(-1)
    assert (patches[outputs.mask.bool()] == 0).all()
    assert (patches[~outputs.mask.bool()] > 0).all()


@pytest.mark.parametrize("case", CASES)
def test_what_is_read_are_the_tokens_of_the_whole_image(case):
    """With nothing hidden, in any order, the encoder gives each patch the token that it has without MAE."""
    model = tiny_model(case, "ForPreTraining").double()
    pixel_values = random_pixels(model.config).double()
    order = random_noise(model.config).argsort(dim=1)
    prefix = model.base_model.num_prefix_tokens
    with torch.no_grad():
        whole = model.base_model(pixel_values).last_hidden_state
        shuffled = model.base_model(pixel_values, visible=order).last_hidden_state
    torch.testing.assert_close(shuffled[:, :prefix], whole[:, :prefix])
    index = order[..., None].expand(-1, -1, whole.shape[-1])
    torch.testing.assert_close(shuffled[:, prefix:], whole[:, prefix:].gather(1, index))


def test_patches_are_cut_as_in_the_original():
    pixels = torch.arange(2 * 3 * 4 * 6.0).view(2, 3, 4, 6)
    patches = to_patches(pixels, (2, 3))
    assert torch.equal(patches[1, 3], pixels[1, :, 2:, 3:].permute(1, 2, 0).flatten())
    assert torch.equal(from_patches(patches, (2, 3), (2, 2)), pixels)


def test_masks_are_random_in_training_and_fixed_in_evaluation():
    model, pixel_values = tiny_model("vit", "ForPreTraining"), random_pixels(tiny_config("vit"), 64)
    fixed = model(pixel_values).mask
    assert torch.equal(fixed, fixed[:1].expand(64, -1))
    assert torch.equal(model(pixel_values).mask, fixed)
    drawn = model.train()(pixel_values).mask
    assert (drawn.sum(1) == 12).all()
    assert len({tuple(mask.tolist()) for mask in drawn}) > 60
    # Fixed, but scattered: each quarter of a larger image is read in part.
    noise = fixed_noise(196, torch.device("cpu"))[0]
    assert noise.unique().numel() == 196
    visible = (noise.argsort().argsort() < 49).view(2, 7, 2, 7).sum((1, 3))
    assert visible.min() > 5
    assert visible.max() < 20


@pytest.mark.parametrize("normalised", [False, True])
def test_the_targets_as_a_reconstruction_are_the_image(normalised):
    model = tiny_model("vit", "ForPreTraining", norm_pix_loss=normalised)
    pixel_values = random_pixels(model.config, size=(32, 48))
    targets, _, _ = model.targets(pixel_values)
    torch.testing.assert_close(model.reconstruct(pixel_values, targets), pixel_values)
    assert model.patch_errors(pixel_values, targets).abs().max() < 1e-6
    outputs = model(pixel_values)
    errors = model.patch_errors(pixel_values, outputs.logits)
    torch.testing.assert_close(outputs.loss, errors[outputs.mask.bool()].mean())


def test_noise_of_another_size_is_refused():
    model = tiny_model("vit", "ForPreTraining")
    with pytest.raises(ValueError, match=r"noise has shape \(2, 15\), .* 16 patches of 2 images: \(2, 16\)"):
        model(random_pixels(model.config), torch.rand(2, 15))


def test_the_decoder_follows_the_implementation_of_attention():
    model = tiny_model("vit", "ForPreTraining", attn_implementation="eager")
    (layer,) = model.decoder.layers
    for implementation in ("sdpa", "eager"):
        model.set_attn_implementation(implementation)
        assert layer.attention.config._attn_implementation == implementation


def test_a_width_that_four_does_not_divide_has_positions_too():
    fields = {**PLAIN, "hidden_size": 30, "decoder_hidden_size": 10, "decoder_num_attention_heads": 5}
    model = AutoModelForPreTraining.from_config(tiny_config("vit", **fields))
    table = model.decoder.position_embeddings.weight
    assert torch.equal(table[0, 1:], sincos_positions(12, (4, 4), torch.float32)[0, :, :10])
    assert isinstance(model.vit.embeddings.position_embeddings, PositionEmbeddings)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mask_ratio": 1.0}, "mask_ratio=1.0 is not at least 0 and less than 1"),
        ({"decoder_num_attention_heads": 3}, "decoder_hidden_size=16 is not a multiple of decoder_num_attention_heads"),
    ],
)
def test_fields_that_do_not_fit_are_refused(fields, message):
    with pytest.raises(Exception, match=message):
        tiny_config("vit", **fields)


def test_a_new_model_starts_as_the_original_does():
    """facebookresearch/mae@efb2a80 models_mae.py: Xavier uniform layers, patches among them, and tokens of 0.02."""
    torch.manual_seed(0)
    config = tiny_config("vit", hidden_size=128, decoder_hidden_size=64)
    made = VitfVitForPreTraining(config)
    for model in (made, VitfVitForPreTraining.from_pretrained(None, config=config, state_dict={})):
        for name, parameter in model.named_parameters():
            if parameter.ndim in (2, 4):
                fan = parameter[0].numel() + parameter.shape[0]
                assert parameter.std().item() == pytest.approx((2 / fan) ** 0.5, rel=0.05), name
                assert parameter.abs().max() <= (6 / fan) ** 0.5 * (1 + 1e-6), name
            elif "token" in name:
                assert parameter.std().item() == pytest.approx(0.02, rel=0.4), name
            elif name.endswith("projection.bias") and "patch" in name:
                assert 0 < parameter.abs().max() <= 192**-0.5
            elif name.endswith("bias"):
                assert not parameter.any(), name
            elif "norm" in name:
                assert (parameter == 1).all(), name


# Training


def images() -> tuple[torch.Tensor, list[dict]]:
    """Eight real images: digits of scikit-learn, 16 x 16, with their seeds."""
    digits = torch.from_numpy(load_digits().images[:8]).float().div(8).sub(1)[:, None]
    pixels = digits.repeat_interleave(2, 2).repeat_interleave(2, 3)
    return pixels, [{"pixel_values": each, "labels": 0, "seed": seed} for seed, each in enumerate(pixels)]


@pytest.mark.parametrize("normalised", [False, True])
def test_the_loss_falls_on_real_images(normalised):
    torch.manual_seed(0)
    config = tiny_config("vit", image_size=16, patch_size=4, num_channels=1, norm_pix_loss=normalised)
    _, samples = images()
    objective = MaeObjective.from_options(VitfVitForPreTraining(config), ObjectiveOptions(), None, (16, 16))
    batch = objective.collate(samples)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=5e-3)
    history = []
    for _ in range(150):
        optimizer.zero_grad()
        loss = objective(batch)["loss"]
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert history[-1] < 0.3 * history[0]  # it was a tenth at most


def test_masks_follow_from_the_seed_of_each_example():
    _, samples = images()
    noise = NoiseCollate(49)(samples)["noise"]
    assert noise.shape == (8, 49)
    assert torch.equal(NoiseCollate(49)(samples[3:4])["noise"][0], noise[3])
    assert noise.unique().numel() > 380


def test_an_evaluation_gives_the_loss_of_each_example():
    model = tiny_model("vit", "ForPreTraining", norm_pix_loss=True)
    objective = MaeObjective(model, 16).eval()
    batch = {"pixel_values": random_pixels(model.config, 5), "noise": random_noise(model.config, 5)}
    with torch.no_grad():
        each = objective(batch)["loss"]
        assert each.shape == (5,)
        torch.testing.assert_close(each.mean(), objective.train()(batch)["loss"])


def test_the_ratio_of_a_run_becomes_the_models():
    model = tiny_model("vit", "ForPreTraining")
    MaeObjective.from_options(model, ObjectiveOptions(mask_ratio=0.5), None, (32, 32))
    assert model.config.mask_ratio == 0.5
    assert model(random_pixels(model.config)).mask.sum() == 16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"model": "swin_tiny_patch4_window7_224", "set": {}},
            r"needs a plain sequence of patches, .* trains vit, and not swin; use --objective simmim",
        ),
        ({"mask_ratio": 0.99}, "mask_ratio 0.99 hides 4 of the 4 patches of an image of 8 x 8 pixels"),
        ({"model": "vivit_base_16x2_k400", "set": {}, "dataset": "moving_digits"}, "is a model of clips"),
    ],
)
def test_what_does_not_fit_is_one_line(options, message, tmp_path):
    with pytest.raises(UserError, match=message):
        train_tiny(tmp_path / "run", RUN, objective="mae", **options)


def test_a_folder_of_another_library_is_named(tmp_path):
    config = ViTMAEConfig(
        image_size=8, patch_size=4, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    )
    config.save_pretrained(tmp_path / "theirs")
    create_processor("vit_tiny_patch16_224").save_pretrained(tmp_path / "theirs")
    with pytest.raises(UserError, match=r"a ViTMAEConfig of another library, .* vit-family convert"):
        train_tiny(tmp_path / "run", RUN, objective="mae", model=str(tmp_path / "theirs"), set={})


def test_the_recipe_has_the_published_values():
    options = TrainingOptions.from_values({**RECIPES["mae_pretrain"].options, "output": "none"})
    optimization = options.optimization
    batch = optimization.batch_size * optimization.gradient_accumulation_steps * options.run.num_processes
    assert (batch, optimization.lr) == (4096, 1.5e-4 * 4096 / 256)
    group = [{"params": [torch.nn.Parameter(torch.zeros(1))]}]
    made = make_optimizer(optimization.optimizer, group, optimization.lr, optimization.optimizer_options)
    assert tuple(made.defaults["betas"]) == (0.9, 0.95)


def test_the_commands_of_the_page_pretrain_draw_and_fine_tune(tmp_path, monkeypatch, forget_accelerate):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[1] / "docs" / "pretraining.md").read_text(encoding="utf-8")
    commands = [shlex.split(line)[1:] for line in re.search(r"```sh\n(.*?)```", page, re.DOTALL)[1].splitlines()]
    Image.new("L", (8, 8), 90).save("digit.png")
    assert [words[0] for words in commands] == ["train", "attend", "train"]
    for words in commands:
        quick = ["--max_steps", "2", "--max_eval_samples", "20"] if words[0] == "train" else []
        forget_accelerate()
        assert main([*words, *quick]) == 0
    assert Training.read("runs/tuned").pretrained_by == [MaeObjective.title]
    assert Path("completed.png").is_file()


# Pictures


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("mae")
    tiny_model("vit", "ForPreTraining").save_pretrained(root)
    create_processor("vit_tiny_patch16_224", size=32).save_pretrained(root)
    pixels = torch.randint(256, (40, 48, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    Image.fromarray(pixels.numpy()).save(root / "image.png")
    return root


def test_what_was_seen_stays_and_the_rest_is_predicted():
    model = tiny_model("vit", "ForPreTraining", norm_pix_loss=True)
    pixel_values = random_pixels(model.config, size=(32, 48))
    parts = reconstruct(model, pixel_values)
    assert parts.hidden.shape == (2, 1, 32, 48)
    assert parts.hidden.float().mean() == 0.75
    hidden = parts.hidden.expand_as(pixel_values)
    assert torch.equal(parts.completed[~hidden], pixel_values[~hidden])
    assert torch.equal(parts.completed[hidden], parts.prediction[hidden])
    assert torch.equal(reconstruct(model, pixel_values).hidden, parts.hidden)
    assert not torch.equal(reconstruct(model, pixel_values, seed=1).hidden, parts.hidden)
    with torch.no_grad():
        model.decoder.prediction.bias.fill_(torch.inf)
    with pytest.raises(UserError, match="not finite"):
        reconstruct(model, pixel_values)


def test_attend_shows_what_is_drawn(folder, tmp_path):
    arguments = ["attend", str(folder / "image.png"), "--model", str(folder), "--method", "reconstruction"]
    for options in ([], ["--seed", "1"]):
        assert main([*arguments, *options, "--output", str(tmp_path / f"{len(options)}.png")]) == 0
    first, second = (Image.open(tmp_path / name) for name in ("0.png", "2.png"))
    assert first.size == second.size
    assert first.width > 3 * first.height
    assert first.tobytes() != second.tobytes()


@pytest.mark.parametrize(
    ("case", "options", "message"),
    [
        ("vit", [], "draws no hidden patches, as what vit-family train --objective mae makes does: it has no weights"),
        ("swin", [], "is a VitfSwinConfig, of which no model draws what was hidden of an image"),
        ("vit", ["--method", "rollout", "--seed", "1"], "--seed chooses what --method reconstruction hides"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(case, options, message, folder, tmp_path, capsys):
    tiny_model(case).save_pretrained(tmp_path)
    create_processor("vit_tiny_patch16_224", size=32).save_pretrained(tmp_path)
    capsys.readouterr()
    command = ["attend", str(folder / "image.png"), "--model", str(tmp_path), "--method", "reconstruction", *options]
    assert main([*command, "--output", str(tmp_path / "out.png")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
