"""Every golden case: outputs equal to the original authors' code, and weights there and back bit for bit."""

import golden
import pytest
import torch

from hf_vit_family.conversion import convert_checkpoint, export_checkpoint

# Folder of cases to the architecture that runs them.
ARCHITECTURE = {
    "vit": "vit",
    "vit_hybrid": "vit",
    "deit": "deit",
    "deit3": "vit",
    "cct": "cct",
    "rvt": "rvt",
    "pit": "pit",
    "convit": "convit",
    "cait": "cait",
    "t2t_vit": "t2t_vit",
    "deepvit": "deepvit",
    "localvit": "localvit",
    "crossvit": "crossvit",
    "timesformer": "timesformer",
    "vivit": "vivit",
    "xvit": "xvit",
    "levit": "levit",
    "cvt": "cvt",
    "pvt": "pvt",
    "localvit_pvt": "localvit_pvt",
    "localvit_tnt": "localvit_tnt",
    "nest": "nest",
    "swin": "swin",
    "localvit_swin": "localvit_swin",
    "swinv2": "swinv2",
    "pvt_v2": "pvt_v2",
    "twins": "twins",
    "regionvit": "regionvit",
    "coatnet": "coatnet",
    "mvit": "mvit",
    "mvit_video": "mvit_video",
}
CASES = [(folder, case) for folder in ARCHITECTURE for case in golden.cases(folder)]
_FLAX_CLIPS = "B,T,H,W,C"
# Name in a case, or folder and name, to what our classifier returns under it.
OUTPUTS = {
    "logits": lambda model, outputs, encoded: outputs.logits,
    "logits_cls": lambda model, outputs, encoded: outputs.cls_logits,
    "logits_dist": lambda model, outputs, encoded: outputs.distillation_logits,
    "last_hidden_state": lambda model, outputs, encoded: encoded.last_hidden_state,
    "tokens": lambda model, outputs, encoded: encoded.last_hidden_state,
    "rvt/last_hidden_state": lambda model, outputs, encoded: encoded.hidden_states[-1],
    "features": lambda model, outputs, encoded: encoded.pooler_output,
    "xvit/features": lambda model, outputs, encoded: encoded.last_hidden_state[:, :, 0],
    "features_dist": lambda model, outputs, encoded: encoded.last_hidden_state[:, 1],
    "features_0": lambda model, outputs, encoded: encoded.pooler_output[:, : model.config.hidden_sizes[0]],
    "features_1": lambda model, outputs, encoded: encoded.pooler_output[:, model.config.hidden_sizes[0] :],
    "logits_branch0": lambda model, outputs, encoded: model.classifier.branch_logits(encoded.pooler_output)[0],
    "logits_branch1": lambda model, outputs, encoded: model.classifier.branch_logits(encoded.pooler_output)[1],
    "probs": lambda model, outputs, encoded: outputs.logits.softmax(-1),
    # Those of the models with a tanh layer stand before the norm.
    "coatnet/features": lambda model, outputs, encoded: (
        encoded.last_hidden_state if model.config.representation_size is None else encoded.hidden_states[-1]
    ),
    "pit/features": lambda model, outputs, encoded: encoded.last_hidden_state[:, : model.pit.num_prefix_tokens],
}
# Outputs whose float32 strays further, by this factor: timm's float32 run of the same weights is off by 1.08e-5 as well.
COARSER = {"crossvit/features_1": 2, "crossvit/logits_branch1": 2}
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


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize(("folder", "name"), CASES)
def test_outputs_equal_the_originals(folder, name, dtype, tolerance):
    case = golden.load(folder, name)
    model, _ = convert(case)
    model.to(dtype)
    pixel_values = pixels(case).to(dtype)
    with torch.no_grad():
        outputs, encoded = model(pixel_values), model.base_model(pixel_values, output_hidden_states=True)
    expected = (case.outputs.keys() | case.samples.keys()) - {EXACT_GELU}
    assert "logits" in expected
    assert expected & {"features", "features_0"}
    for output in expected:
        read = OUTPUTS.get(f"{folder}/{output}") or OUTPUTS[output]
        allowed = tolerance * COARSER.get(f"{folder}/{output}", 1)
        assert case.compare(output, read(model, outputs, encoded)) < allowed, output


@pytest.mark.parametrize(("folder", "name"), [row for row in CASES if row[0] in ("vit", "vit_hybrid")])
def test_exact_gelu_equals_timms_reading_of_the_file(folder, name):
    case = golden.load(folder, name)
    model, _ = convert(case, hidden_act="gelu")
    with torch.no_grad():
        logits = model.double()(case.inputs["pixel_values"].double()).logits
    assert case.compare(EXACT_GELU, logits) < 1e-10
    assert case.compare("logits", logits) > 1e-6  # the comparison tells the two activations apart


@pytest.mark.parametrize(("folder", "name"), CASES)
def test_there_and_back_is_the_same_file(folder, name):
    case = golden.load(folder, name)
    model, report = convert(case)
    back = export_checkpoint(model, report.layout)
    assert back.keys() == case.state_dict.keys()
    for key, tensor in case.state_dict.items():
        assert torch.equal(back[key], tensor), key
