"""Every golden case: outputs equal to the original authors' code, and weights there and back bit for bit."""

import golden
import pytest
import torch
from architectures import DOSSIERS

from hf_vit_family import ARCHITECTURES
from hf_vit_family.conversion.convert import convert_checkpoint, export_checkpoint, find_layout
from hf_vit_family.errors import ConversionError

# Folder of cases to the architecture that runs them.
ARCHITECTURE = {folder: name for name, each in DOSSIERS.items() for folder in (name, *each.more_goldens)}
CASES = [(folder, case) for folder in ARCHITECTURE for case in golden.cases(folder)]
_FLAX_CLIPS = "B,T,H,W,C"
# Their losses are compared in tests/test_pretraining.py, tests/test_dino.py and tests/test_contrastive.py.
OBJECTIVES = {
    "mpp",
    "simmim",
    "dino_step",
    "dino_vit_pytorch",
    "simclr",
    "infonce",
    "mocov3",
    "byol",
    "sit",
    "frame_order",
}
# Name in a case to what our classifier returns under it; a dossier has others.
OUTPUTS = {
    "logits": lambda model, outputs, encoded: outputs.logits,
    "logits_cls": lambda model, outputs, encoded: outputs.cls_logits,
    "logits_dist": lambda model, outputs, encoded: outputs.distillation_logits,
    "last_hidden_state": lambda model, outputs, encoded: encoded.last_hidden_state,
    "tokens": lambda model, outputs, encoded: encoded.last_hidden_state,
    "features": lambda model, outputs, encoded: encoded.pooler_output,
    "features_dist": lambda model, outputs, encoded: encoded.last_hidden_state[:, 1],
    "probs": lambda model, outputs, encoded: outputs.logits.softmax(-1),
}
# The same flax files run with exact GELU, as timm and transformers do.
EXACT_GELU = "logits_gelu_erf"


def convert(case: golden.Golden, **overrides):
    # The flax modules learn it from their input.
    if "image_size" in case.metadata:
        overrides["image_size"] = case.metadata["image_size"]
    elif case.metadata.get("input_layout") == _FLAX_CLIPS:
        overrides["image_size"] = tuple(case.inputs["pixel_values"].shape[2:4])
    # Some cases name the class of a model among its arguments.
    kwargs = {name: value for name, value in case.kwargs.items() if name != "__class__"}
    return convert_checkpoint(case.state_dict, ARCHITECTURE[case.architecture], kwargs, **overrides)


def pixels(case: golden.Golden) -> torch.Tensor:
    """The input as our models take it: of a clip the originals have the channels before the frames, or last."""
    values, layout = case.inputs["pixel_values"], case.metadata.get("input_layout")
    if layout == _FLAX_CLIPS:
        return values.movedim(-1, 2)
    return values.transpose(1, 2) if layout == "B,C,T,H,W" else values


def test_generator_follows_its_specification():
    values = golden.generate("deit/distilled/cls_token", [1, 1, 32], -0.0824335, 0.502177).flatten()
    assert [f"{value:.9g}" for value in values[:3].tolist()] == ["-0.87201637", "-0.306831479", "-0.783017933"]
    assert values.double().sum().item() == pytest.approx(-3.51596175, abs=1e-8)
    one = golden.generate("levit/distilled/patch_embed.0.bn.running_var", [4], 1.17896, 0.204238)
    assert one.double().sum().item() == pytest.approx(4.27528042, abs=1e-8)


def test_every_case_belongs_to_an_architecture_or_an_objective():
    folders = {file.parent.name for file in golden.FOLDER.glob("*/*.safetensors")}
    assert folders == ARCHITECTURE.keys() | {folder for folder, _, _ in PRETRAINED} | OBJECTIVES


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize(("folder", "name"), CASES)
def test_outputs_equal_the_originals(folder, name, dtype, tolerance):
    case, dossier = golden.load(folder, name), DOSSIERS[ARCHITECTURE[folder]]
    model, _ = convert(case)
    model.to(dtype)
    pixel_values = pixels(case).to(dtype)
    with torch.no_grad():
        outputs, encoded = model(pixel_values), model.base_model(pixel_values, output_hidden_states=True)
    expected = (case.outputs.keys() | case.samples.keys()) - {EXACT_GELU}
    assert "logits" in expected
    assert expected & {"features", "features_0"}
    for output in expected:
        read = dossier.outputs.get(output) or OUTPUTS[output]
        allowed = tolerance * dossier.coarser.get(output, 1)
        assert case.compare(output, read(model, outputs, encoded)) < allowed, output


@pytest.mark.parametrize(("folder", "name"), [row for row in CASES if row[0] in ("vit", "vit_hybrid")])
def test_exact_gelu_equals_timms_reading_of_the_file(folder, name):
    case = golden.load(folder, name)
    model, _ = convert(case, hidden_act="gelu")
    with torch.no_grad():
        logits = model.double()(case.inputs["pixel_values"].double()).logits
    assert case.compare(EXACT_GELU, logits) < 1e-10
    assert case.compare("logits", logits) > 1e-6  # the comparison tells the two activations apart
    with pytest.raises(
        ConversionError, match="hidden_act='gelu' has no place"
    ):  # the authors' code would compute otherwise
        find_layout(ARCHITECTURES["vit"], model.config, "original")


@pytest.mark.parametrize(("folder", "name"), CASES)
def test_there_and_back_is_the_same_file(folder, name):
    case = golden.load(folder, name)
    model, report = convert(case)
    back = export_checkpoint(model, report.layout)
    assert back.keys() == case.state_dict.keys()
    for key, tensor in case.state_dict.items():
        assert torch.equal(back[key], tensor), key


# ---------------------------------------------------------------------------------------------------------------------
# Models that were trained without labels, or go on from there: folder and case to the architectures that read them.
PRETRAINED = [
    *(("dino", case, architecture) for case in golden.cases("dino") for architecture in ("deit", "vit")),
    # The others, with their decoder, are in tests/test_mae.py.
    ("mae", "finetune_global_pool", "vit"),
]


def _of_dino(model, case) -> dict[str, torch.Tensor]:
    pixel_values = case.inputs["pixel_values"].double()
    encoded = model(pixel_values, output_hidden_states=True, output_attentions=True)
    if case.case == "multicrop_head":  # the crops of the model's own size, which come first
        return {"features": encoded.pooler_output}
    tokens, width = encoded.last_hidden_state, model.config.hidden_size
    last = [model.layernorm(states)[:, 0] for states in encoded.hidden_states[-2:]]
    # Interleaved channel by channel, as its eval_linear.py joins them.
    joined = torch.stack((tokens[:, 0], tokens[:, 1:].mean(1)), dim=-1).view(-1, 2 * width)
    return {
        "logits": encoded.pooler_output,
        "features": tokens,
        "attn_last": encoded.attentions[-1],
        "linear_features_n2": torch.cat(last, dim=-1),
        "linear_features_n1_avgpool": joined,
    }


def _of_mae(model, case) -> dict[str, torch.Tensor]:
    pixel_values = case.inputs["pixel_values"].double()
    return {"logits": model(pixel_values).logits, "features": model.base_model(pixel_values).pooler_output}


@pytest.mark.parametrize(("folder", "name", "architecture"), PRETRAINED)
def test_encoders_of_dino_and_mae_equal_the_originals(folder, name, architecture):
    case = golden.load(folder, name)
    # Of several arguments DINO's case has those of the encoder under a name.
    kwargs = case.kwargs.get("backbone", {key: value for key, value in case.kwargs.items() if key != "__class__"})
    model, report = convert_checkpoint(case.state_dict, architecture, kwargs)
    taken = {report.key_prefix + key: tensor for key, tensor in export_checkpoint(model, report.layout).items()}
    assert all(torch.equal(case.state_dict[key], tensor) for key, tensor in taken.items())
    for key in case.state_dict.keys() - taken.keys():  # what is left out is said
        assert key.startswith("head.")
        assert any("left out" in note for note in report.notes)
    with torch.no_grad():
        found = {"dino": _of_dino, "mae": _of_mae}[folder](model.double(), case)
    for output, value in found.items():
        if name == "multicrop_head":
            expected = case.outputs[output][: len(value)]
            assert (value - expected).abs().max() < 1e-10 * expected.abs().max()
        else:
            assert case.compare(output, value) < 1e-10, output
    assert case.outputs.keys() | case.samples.keys() <= found.keys() | {"logits"}
