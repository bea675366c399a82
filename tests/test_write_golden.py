"""The writer of golden cases: known cases are made again from other libraries, and our models equal new ones."""

import json
import re

import golden
import pytest
import torch
import write_golden
from timm.models.pvt_v2 import PyramidVisionTransformerV2
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from transformers import PvtV2Config, PvtV2ForImageClassification
from vit_pytorch.rvt import RvT
from write_golden import sample_stride, write_case, write_module_case

from hf_vit_family.conversion.convert import convert_checkpoint

# Case to the class in another library that has the same tensors, its arguments of that case, and where its outputs are.
SAME_TENSORS = {
    ("rvt", "dsconv_glu"): (
        RvT,
        lambda kwargs: kwargs,
        {"features": "mlp_head.0:output", "last_hidden_state": "transformer:output"},
    ),
    ("deit", "plain"): (
        VisionTransformer,
        lambda kwargs: {
            name: kwargs[name]
            for name in ("img_size", "patch_size", "num_classes", "embed_dim", "depth", "num_heads", "mlp_ratio")
        },
        {"features": "head:input", "last_hidden_state": "norm:output"},
    ),
}
MADE = ("weights", "literal", "same_as", "input", "input_literal", "stored_dtype", "samples", "kwargs", "generator")
PVT_V2 = {"depths": [1, 1, 2, 1], "embed_dims": [8, 16, 24, 32], "num_heads": [1, 2, 3, 4], "num_classes": 5}


@pytest.mark.parametrize(("architecture", "case"), SAME_TENSORS)
def test_a_case_made_again_is_the_same(architecture, case, tmp_path):
    known = golden.load(architecture, case)
    factory, arguments, record = SAME_TENSORS[architecture, case]
    write_module_case(
        architecture,
        case,
        factory(**arguments(known.kwargs)),
        {name: tuple(value.shape) for name, value in known.inputs.items()},
        known.kwargs,
        known.metadata["source"],
        record=record,
        statistics={re.escape(key): (mean, std) for key, _, _, mean, std in known.metadata["weights"]},
        folder=tmp_path,
    )
    again = golden.load(architecture, case, tmp_path)
    assert {name: again.metadata[name] for name in MADE} == {name: known.metadata[name] for name in MADE}
    for own, expected in ((again.state_dict, known.state_dict), (again.inputs, known.inputs)):
        assert own.keys() == expected.keys()
        assert all(torch.equal(own[key], expected[key]) for key in own)
    assert again.outputs.keys() | again.samples.keys() == known.outputs.keys() | known.samples.keys()
    assert all(known.compare(name, value) < 1e-12 for name, value in again.outputs.items())


def test_samples_are_those_of_the_known_cases():
    shapes = [
        each
        for file in golden.FOLDER.glob("*/*.safetensors")
        for name, each in golden.load(file.parent.name, file.stem).metadata["samples"].items()
        if not name.startswith("weights_after/")  # of which a case has many, and takes fewer values each
    ]
    assert len(shapes) > 5
    assert all(sample_stride(each["shape"]) == each["stride"] for each in shapes)


def equals_ours(architecture: str, case: golden.Golden) -> None:
    model, _ = convert_checkpoint(case.state_dict, architecture, case.kwargs)
    with torch.no_grad():
        outputs = model.double()(case.inputs["pixel_values"].double())
    assert case.compare("logits", outputs.logits) < 1e-10


def test_the_command_writes_a_case_that_our_model_equals(tmp_path, capsys):
    words = ["pvt_v2/new", "timm.models.pvt_v2:PyramidVisionTransformerV2", "--source", "timm", "--kwargs"]
    words += [
        json.dumps(PVT_V2),
        "--input",
        "2",
        "3",
        "64",
        "96",
        "--record",
        "features=head:input",
        "map=stages:output",
    ]
    write_golden.main([*words, "--folder", str(tmp_path)])
    assert str(tmp_path / "pvt_v2" / "new.safetensors") in capsys.readouterr().out
    case = golden.load("pvt_v2", "new", tmp_path)
    assert case.outputs.keys() == {"logits", "features", "map"}
    assert case.metadata["source"] == "timm"
    assert case.state_dict.keys() == PyramidVisionTransformerV2(**PVT_V2).state_dict().keys()
    equals_ours("pvt_v2", case)


def test_a_model_of_transformers_and_large_outputs(tmp_path):
    config = {
        "depths": [1, 1, 2, 1],
        "hidden_sizes": [8, 16, 24, 32],
        "num_attention_heads": [1, 2, 3, 4],
        "num_labels": 5,
    }
    model, inputs = PvtV2ForImageClassification(PvtV2Config(**config)), {"pixel_values": (2, 3, 128, 128)}
    write_module_case(
        "pvt_v2",
        "large",
        model,
        inputs,
        config,
        "transformers",
        record={"map": "pvt_v2.encoder.layers.0.patch_embedding.proj:output"},
        folder=tmp_path,
    )
    case = golden.load("pvt_v2", "large", tmp_path)
    assert case.samples.keys() == {"map"}
    assert case.metadata["samples"]["map"]["shape"] == [2, 8, 32, 32]
    assert 400 <= case.samples["map"].numel() <= 500
    assert (
        case.compare("map", model.pvt_v2.encoder.layers[0].patch_embedding.proj(case.inputs["pixel_values"].double()))
        == 0
    )


def test_what_is_computed_is_kept_and_what_is_shared_is_named(tmp_path):
    class Original(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(6)
            self.head, self.second = nn.Linear(6, 3), nn.Linear(6, 3)
            self.second.weight = self.head.weight
            self.fixed = nn.Parameter(torch.linspace(0, 1, 6), requires_grad=False)
            self.register_buffer("index", torch.arange(300))
            self.register_buffer("again", torch.arange(300))
            self.register_buffer("mask", torch.tensor([0.0, -100.0]))

        def forward(self, pixel_values, scale):
            assert pixel_values.dtype == torch.float64
            states = self.norm(pixel_values + self.fixed) * scale
            return self.head(states) + self.second(states) + self.mask[self.index[1]]

    model = Original()
    inputs = {"pixel_values": (4, 6), "scale": torch.tensor([3])}
    write_module_case("any", "case", model, inputs, {}, "here", statistics={r"head\.bias": (5.0, 0.1)}, folder=tmp_path)
    case = golden.load("any", "case", tmp_path)
    assert case.metadata["literal"] == ["fixed", "index", "mask", "norm.num_batches_tracked"]
    assert case.metadata["same_as"] == {"again": "index", "second.weight": "head.weight"}
    assert case.metadata["stored_dtype"] == {
        "input/scale": "int64",
        "weights/index": "int64",
        "weights/mask": "float32",
        "weights/norm.num_batches_tracked": "int64",
    }
    assert case.state_dict["norm.running_var"].min() > 0.5
    assert case.state_dict["head.bias"].min() > 4
    reference = Original()
    reference.load_state_dict(case.state_dict)
    logits = reference.double().eval()(case.inputs["pixel_values"].double(), case.inputs["scale"])
    assert case.compare("logits", logits) == 0


def test_a_function_of_any_framework(tmp_path):
    """Without a module: names of flax, weights as they stand in a file."""
    template = {"head/kernel": torch.empty(12, 3), "head/bias": torch.empty(3)}

    def run(state_dict, inputs):
        features = inputs["pixel_values"].flatten(1)
        return {"features": features, "logits": features @ state_dict["head/kernel"] + state_dict["head/bias"]}

    path = write_case(
        "any",
        "flax",
        template,
        run,
        {"pixel_values": (2, 2, 2, 3)},
        {"width": 3},
        "here",
        notes=["NHWC"],
        folder=tmp_path,
    )
    case = golden.load("any", "flax", tmp_path)
    assert case.kwargs == {"width": 3}
    assert case.metadata["notes"] == ["NHWC"]
    assert (
        case.compare(
            "logits",
            run(
                {k: v.double() for k, v in case.state_dict.items()},
                {"pixel_values": case.inputs["pixel_values"].double()},
            )["logits"],
        )
        == 0
    )
    assert path.stat().st_size < 4000


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ({"features": torch.ones(2)}, "need 'logits'"),
        ({"logits": torch.tensor([1.0, torch.nan])}, "not finite: logits"),
    ],
)
def test_outputs_that_tell_nothing_are_refused(outputs, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        write_case("any", "bad", {"w": torch.empty(2)}, lambda *_: outputs, {"x": (2,)}, {}, "here", folder=tmp_path)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_place_without_a_side_is_refused(tmp_path):
    model = SwinTransformer(img_size=32, patch_size=2, embed_dim=8, depths=[2, 2], num_heads=[1, 2], window_size=4)
    with pytest.raises(ValueError, match="'norm': expected '<module>:input' or '<module>:output'"):
        write_module_case("any", "x", model, {"x": (1, 3, 32, 32)}, {}, "here", record={"y": "norm"}, folder=tmp_path)
