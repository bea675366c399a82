"""ViT's relatives as fields: equal to timm's in float64, and back."""

import json
from functools import partial

import pytest
import timm
import torch
from models import randomise
from timm.layers import LayerNorm, RmsNorm, SwiGLU, SwiGLUPacked
from timm.models.vision_transformer import ResPostBlock, VisionTransformer

from hf_vit_family.conversion.convert import convert_checkpoint, export_checkpoint

_SMALL = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 32,
    "depth": 2,
    "num_heads": 2,
    "num_classes": 5,
    "mlp_ratio": 2,
}
_EPS5 = partial(LayerNorm, eps=1e-5)
_GAP = {"class_token": False, "global_pool": "avg"}
# What timm's constructor takes; the arguments that are classes are given to the converter by name.
RELATIVES = {
    "plain": {},
    "gap": {**_GAP, "fc_norm": False},
    "gap_norm_after": _GAP,
    "mean_of_patches_with_cls": {"global_pool": "avg"},
    "clip": {"pre_norm": True, "norm_layer": _EPS5, "act_layer": "quick_gelu"},
    "siglip": {"class_token": False, "global_pool": "map"},
    "siglip2": {"class_token": False, "global_pool": "map", "act_layer": "gelu_tanh"},
    "siglip_incomplete_patches": {"class_token": False, "global_pool": "map", "img_size": 37},
    "map_with_registers": {
        "class_token": False,
        "global_pool": "map",
        "reg_tokens": 2,
        "pool_include_prefix": True,
        "init_values": 0.1,
    },
    "dinov2": {"init_values": 1e-5},
    "dinov2_registers": {"init_values": 1e-5, "reg_tokens": 4, "no_embed_class": True},
    "dinov2_giant": {"init_values": 1e-5, "mlp_layer": SwiGLUPacked, "act_layer": "silu", "mlp_ratio": 5.33334},
    "registers_gap": {**_GAP, "reg_tokens": 3, "no_embed_class": True, "init_values": 1e-5},
    "registers_with_positions": {**_GAP, "reg_tokens": 3, "init_values": 1e-5, "qkv_bias": False},
    "cls_and_registers_with_positions": {"reg_tokens": 2},
    "radio": {"reg_tokens": 7, "no_embed_class": True, "final_norm": False},
    "intern": {"init_values": 0.1, "final_norm": False},
    "res_post_norm": {**_GAP, "block_fn": ResPostBlock, "qkv_bias": False, "init_values": 1e-5},
    "aimv2": {
        **_GAP,
        "fc_norm": False,
        "qkv_bias": False,
        "proj_bias": False,
        "act_layer": "silu",
        "mlp_layer": SwiGLU,
        **dict.fromkeys(("norm_layer", "embed_norm_layer"), partial(RmsNorm, eps=1e-5)),
    },
    "beit3": {"global_pool": "avg", "norm_layer": _EPS5, "scale_attn_norm": True, "scale_mlp_norm": True},
    "no_positions": {**_GAP, "pos_embed": "none"},
    "flexivit": {"no_embed_class": True},
}
_NAMES = {ResPostBlock: "ResPostBlock", SwiGLU: "SwiGLU", SwiGLUPacked: "SwiGLUPacked"}


def named(value):
    """An argument as `convert_checkpoint` takes it: classes by name."""
    if isinstance(value, partial) and value is not SwiGLUPacked:
        return f"{value.func.__name__}(eps={value.keywords['eps']})"
    return _NAMES.get(value, value) if callable(value) else value


@pytest.mark.parametrize("relative", RELATIVES)
def test_a_relative_of_vit_equals_timms_and_goes_back(relative):
    arguments = {**_SMALL, **RELATIVES[relative]}
    theirs = randomise(VisionTransformer(**arguments)).double().eval()
    kwargs = {name: named(value) for name, value in arguments.items()}
    ours, report = convert_checkpoint(theirs.state_dict(), "vit", kwargs)
    assert report.layout.startswith("timm")
    side = arguments["img_size"]
    pixels = torch.randn(2, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, logits = theirs(pixels), ours(pixels).logits
    assert (expected - logits).abs().max() < 1e-12 * expected.abs().max()
    back = export_checkpoint(ours, "timm")
    assert back.keys() == theirs.state_dict().keys()
    assert all(torch.equal(tensor, back[key]) for key, tensor in theirs.state_dict().items())


@pytest.mark.parametrize("relative", [each for each in RELATIVES if each != "no_positions"])
def test_what_is_written_for_timm_is_what_timm_builds(relative):
    arguments = {**_SMALL, **RELATIVES[relative]}
    theirs = randomise(VisionTransformer(**arguments)).double().eval()
    ours, _ = convert_checkpoint(theirs.state_dict(), "vit", {name: named(value) for name, value in arguments.items()})
    layout = ours_layout(ours)
    native = json.loads(json.dumps(layout.native_config(ours)))
    again = timm.create_model(native["architecture"], **native["model_args"]).double().eval()
    again.load_state_dict(export_checkpoint(ours, "timm"))
    side = arguments["img_size"]
    pixels = torch.randn(1, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(theirs(pixels), again(pixels))


def ours_layout(model):
    """The layout in which a model is written for timm."""
    from hf_vit_family.conversion.convert import find_layout
    from hf_vit_family.registry import get_architecture

    return find_layout(get_architecture(model.config.model_type), model.config, "timm")[1]


@pytest.mark.parametrize(
    ("name", "side"), [("vit_tiny_r_s16_p8_224", 64), ("vit_small_r26_s32_224", 64), ("vit_base_r50_s16_224", 32)]
)
def test_a_hybrid_equals_timms_and_goes_back(name, side):
    arguments = {"img_size": side, "embed_dim": 32, "depth": 1, "num_heads": 2, "num_classes": 5}
    theirs = randomise(timm.create_model(name, **arguments)).double().eval()
    ours, _ = convert_checkpoint(theirs.state_dict(), "vit", arguments)
    pixels = torch.randn(2, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, logits = theirs(pixels), ours(pixels).logits
    assert (expected - logits).abs().max() < 1e-12 * expected.abs().max()
    native = json.loads(json.dumps(ours_layout(ours).native_config(ours)))
    again = timm.create_model(native["architecture"], **native["model_args"]).double().eval()
    again.load_state_dict(export_checkpoint(ours, "timm"))
    with torch.no_grad():
        assert torch.equal(theirs(pixels), again(pixels))


def test_the_head_of_a_linear_probe_is_one_layer():
    """As MAE's main_linprobe.py builds it: a batch norm without weights before timm's head."""
    theirs = VisionTransformer(**_SMALL)
    theirs.head = torch.nn.Sequential(torch.nn.BatchNorm1d(32, affine=False, eps=1e-6), theirs.head)
    theirs = randomise(theirs).double().eval()
    theirs.head[0].running_var.uniform_(0.1, 2.0)
    theirs.head[0].running_mean.normal_()
    kwargs = {name: value for name, value in _SMALL.items() if name != "num_classes"}
    model, report = convert_checkpoint({"model": theirs.state_dict()}, "vit", kwargs)
    assert "merged the batch norm before the head of a linear probe with the head" in report.notes
    pixels = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(model.double()(pixels).logits, theirs(pixels), rtol=1e-12, atol=1e-12)
