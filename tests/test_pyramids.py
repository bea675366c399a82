"""PVT, PVT v2 and Twins compared with timm's and transformers' own: the same weights and results, there and back."""

import json
import weakref
from pathlib import Path

import golden
import pytest
import timm
import torch
import transformers
from models import tiny_config, tiny_model
from safetensors.torch import load_file
from test_goldens import convert
from vit_family_launcher import main

from hf_vit_family import ARCHITECTURES
from hf_vit_family.conversion.convert import ConversionError, convert_checkpoint, export_checkpoint
from hf_vit_family.conversion.parity import compare
from hf_vit_family.modeling.configuration_pvt_v2 import VitfPvtV2Config
from hf_vit_family.modeling.configuration_twins import VitfTwinsConfig
from hf_vit_family.modeling.image_processing_vitf import VitfImageProcessor
from hf_vit_family.modeling.modeling_pvt import VitfPvtBackbone

_SIZES = {"depths": (1, 2, 1, 2), "num_heads": (1, 2, 3, 4), "mlp_ratios": (2, 2, 2, 3)}
_TIMM = {**_SIZES, "embed_dims": (8, 16, 24, 32), "sr_ratios": (8, 4, 2, 1), "num_classes": 5}
_NATIVE = {
    "hidden_sizes": [8, 16, 24, 32],
    "depths": [1, 2, 1, 2],
    "num_attention_heads": [1, 2, 3, 4],
    "mlp_ratios": [2, 2, 2, 3],
    "image_size": 64,
    "id2label": {0: "ant", 1: "bee", 2: "cat"},
}
TIMM_CASES = [
    ("pvt_v2_b2", _TIMM),
    ("pvt_v2_b2_li", {**_TIMM, "linear": True}),
    ("twins_svt_small", {**_TIMM, "depths": (2, 2, 1, 3), "wss": (3, 7, 4, 2)}),
    ("twins_pcpvt_small", _TIMM),
]
NATIVE_CASES = [("Pvt", {"num_labels": 3}), ("PvtV2", {}), ("PvtV2", {"linear_attention": True})]


def _randomise(model: torch.nn.Module) -> torch.nn.Module:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model.double().eval()


def _written(model: torch.nn.Module, layout: str, folder: Path) -> Path:
    """The folder that the command writes for another library."""
    model.save_pretrained(folder / "ours")
    VitfImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder / "ours")
    assert main(["convert", str(folder / "ours"), "--to", layout, "--output", str(folder / layout)]) == 0
    return folder / layout


def _equal(model, peer, size: tuple[int, int]) -> bool:
    """Whether our classifier and a peer return the same for an image of that size."""
    image = torch.randn(2, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        theirs = peer(image)
        return compare({"logits": model(image).logits}, {"logits": getattr(theirs, "logits", theirs)}, 1e-12).passed


# Sizes of whole windows, and sizes that pad windows and leave pixels over.
@pytest.mark.parametrize("size", [(64, 64), (70, 93)])
@pytest.mark.parametrize(("name", "arguments"), TIMM_CASES)
def test_logits_equal_timms(name, arguments, size):
    peer = _randomise(timm.create_model(name, **arguments))
    architecture = "twins" if name.startswith("twins") else "pvt_v2"
    model, _ = convert_checkpoint(peer.state_dict(), architecture, arguments, layout="timm")
    assert _equal(model, peer, size)
    exported = export_checkpoint(model, "timm")
    peer.load_state_dict(exported, strict=True)
    assert all(torch.equal(tensor, exported[key]) for key, tensor in peer.state_dict().items())


@pytest.mark.parametrize("head", ["ForImageClassification", "Model"])
@pytest.mark.parametrize(("prefix", "fields"), NATIVE_CASES)
def test_outputs_equal_transformers(tmp_path, prefix, fields, head):
    peer_class = getattr(transformers, prefix + head)
    peer = _randomise(peer_class(peer_class.config_class(**_NATIVE, **fields)))
    peer.save_pretrained(tmp_path)
    model, report = convert_checkpoint(tmp_path)
    assert (report.layout, report.head) == ("transformers", head)
    assert model.config.layer_norm_eps == model.config.conv_norm_eps == 1e-6
    assert model.config.id2label == _NATIVE["id2label"]
    if head == "Model":
        image = torch.randn(2, 3, 64, 64, dtype=torch.float64)
        with torch.no_grad():
            states, expected = model(image).last_hidden_state, peer(image).last_hidden_state
        # Tokens of theirs are a map in PVT v2.
        expected = expected.flatten(2).transpose(1, 2) if expected.ndim == 4 else expected
        assert compare({"states": states}, {"states": expected}, 1e-12).passed
    else:
        assert _equal(model, peer, (64, 64))
    stored = load_file(tmp_path / "model.safetensors")
    exported = export_checkpoint(model, "transformers")
    assert exported.keys() == stored.keys()
    assert all(torch.equal(exported[key], tensor) for key, tensor in stored.items())


@pytest.mark.parametrize(("name", "arguments"), TIMM_CASES)
def test_timm_loads_what_is_written_for_it(tmp_path, name, arguments):
    ours = {
        "embed_dims": "hidden_sizes",
        "wss": "window_sizes",
        "linear": "linear_attention",
        "num_classes": "num_labels",
    }
    config_class = VitfTwinsConfig if name.startswith("twins") else VitfPvtV2Config
    fields = {
        ours.get(key, key): list(value) if isinstance(value, tuple) else value for key, value in arguments.items()
    }
    config = config_class.from_variant(name, **fields)
    model = _randomise(transformers.AutoModelForImageClassification.from_config(config))
    peer = timm.create_model(f"local-dir:{_written(model, 'timm', tmp_path)}", pretrained=True).double().eval()
    assert _equal(model, peer, (96, 64))


@pytest.mark.parametrize(("folder", "name"), [("pvt", "tiny_like"), ("pvt_v2", "b0_like"), ("pvt_v2", "li_nonsquare")])
def test_transformers_loads_what_is_written_for_it_with_one_epsilon(tmp_path, folder, name):
    case = golden.load(folder, name)
    model, _ = convert(case)
    with pytest.raises(ConversionError, match="conv_norm_eps=1e-05"):
        ARCHITECTURES[folder].conversion.LAYOUTS["transformers"].native_config(model)
    model, _ = convert(case, conv_norm_eps=1e-6)
    native = _written(model.double(), "transformers", tmp_path)
    assert json.loads((native / "config.json").read_text())["model_type"] == folder
    peer, loading = transformers.AutoModelForImageClassification.from_pretrained(native, output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    # transformers takes PVT's positions only at the configured size.
    assert _equal(model, peer.double().eval(), (64, 64))


def test_backbone_of_pvt_has_no_class_token():
    """As whai362/PVT@57e2dfa detection/pvt.py; the stages before the last one never saw it."""
    model = tiny_model("pvt")
    backbone = VitfPvtBackbone(model.config)
    missing, unexpected = backbone.load_state_dict(model.state_dict(), strict=False)
    assert missing == []
    assert set(unexpected) == {"pvt.stages.1.embeddings.cls_token", "classifier.weight", "classifier.bias"}
    image = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        with_token, without = (
            encoder(image, output_hidden_states=True).hidden_states for encoder in (model.pvt, backbone.eval().pvt)
        )
    assert all(torch.equal(a, b) for a, b in zip(with_token[:2], without[:2], strict=True))
    assert with_token[2].shape[1] == without[2].shape[1] + 1


@pytest.mark.parametrize("case", ["swin", "swinv2", "localvit_swin", "twins", "twins-pcpvt"])
def test_input_of_a_stage_is_freed_while_its_layers_run(case):
    """The embeddings are a tenth of the peak of a forward pass: they must be gone when the second layer starts."""
    model = tiny_model(case, "Model", depths=[2] * len(tiny_config(case).depths))
    embeddings, alive = [], []
    model.embeddings.register_forward_hook(lambda *call: embeddings.append(weakref.ref(call[2].untyped_storage())))
    model.stages[0].layers[1].register_forward_pre_hook(lambda *call: alive.append(embeddings[0]()))
    with torch.no_grad():
        model(torch.randn(2, *model.config.input_shape))
    assert alive == [None]
