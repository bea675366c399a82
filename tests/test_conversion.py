"""
Conversion: rules, recognition, and agreement with timm, transformers and the originals' way of resizing positions.
"""

import argparse
import dataclasses
import json
import pathlib
import re

import golden
import numpy as np
import pytest
import timm
import torch
import transformers
from models import tiny_model
from safetensors.torch import load_file, save_file
from test_goldens import ARCHITECTURE, CASES, convert, pixels
from torch.nn import functional
from vit_family_launcher import main

from hf_vit_family import ARCHITECTURES
from hf_vit_family.conversion.convert import (
    TIMM_REPOSITORY,
    ConversionError,
    convert_checkpoint,
    export_checkpoint,
    find_layout,
    make_config,
    recognize,
)
from hf_vit_family.conversion.parity import compare, compare_models
from hf_vit_family.conversion.rules import (
    Concatenate,
    Constant,
    Derived,
    InsertZeros,
    Pattern,
    Permute,
    Reshape,
    Rule,
    make_plan,
    run_plan,
)
from hf_vit_family.modeling.configuration_deit import VitfDeitConfig
from hf_vit_family.modeling.embeddings import resize_positions
from hf_vit_family.registry import modality_of

# ---------------------------------------------------------------------------------------------------------------------
# Rules


@pytest.mark.parametrize(
    ("pattern", "key", "values"),
    [
        ("blocks.{i}.norm1.*", "blocks.11.norm1.bias", {"i": 11, "*": "bias"}),
        ("block{s+1}.{i}.x", "block3.0.x", {"s": 2, "i": 0}),
        ("a/{i}/b_{i}", "a/4/b_4", {"i": 4}),
        ("norm.*", "norm.running_mean", {"*": "running_mean"}),
    ],
)
def test_pattern_matches_and_writes_back(pattern, key, values):
    assert Pattern(pattern).match(key) == values
    assert Pattern(pattern).format(values) == key


@pytest.mark.parametrize(
    ("pattern", "key"),
    [
        ("a/{i}/b_{i}", "a/4/b_5"),
        ("block{s+1}.x", "block0.x"),
        ("b.{i}", "b.01"),
        ("norm.*", "norm.a.b"),
        ("n.w", "nxw"),
    ],
)
def test_pattern_refuses(pattern, key):
    assert Pattern(pattern).match(key) is None


def _round_trip(rules, state_dict):
    there = run_plan(make_plan(state_dict, rules), state_dict)
    return there, run_plan(make_plan(there, [rule.inverse for rule in rules]), there)


@pytest.mark.parametrize(
    ("rule", "shapes", "targets"),
    [
        (Rule("s{s+1}.{i}.*", "stages.{s}.layers.{i}.*"), {"s1.0.w": (2,), "s2.3.b": (3,)}, 2),
        (Rule(("{i}.q", "{i}.k"), "{i}.qk", Concatenate(2)), {"0.q": (2, 3), "0.k": (2, 3)}, 1),
        (Rule(("q", "kv"), "qkv", Concatenate((2, 4), dim=1)), {"q": (3, 2), "kv": (3, 4)}, 1),
        (Rule("qk", ("q", "k"), Concatenate(2).inverse), {"qk": (4, 3)}, 2),
        (Rule("k", "w", Reshape((2, 3, 4), (2, 12)), Permute(1, 0)), {"k": (2, 3, 4)}, 1),
        (Rule("c", "conv", Permute(3, 2, 0, 1)), {"c": (1, 2, 3, 4)}, 1),
        (Rule(("q", "v"), "qkv", InsertZeros(1), Concatenate(3)), {"q": (2,), "v": (2,)}, 1),
    ],
    ids=repr,
)
def test_rule_runs_both_ways(rule, shapes, targets):
    state_dict = {key: torch.randn(shape) for key, shape in shapes.items()}
    there, back = _round_trip([rule], state_dict)
    assert len(there) == targets
    assert back.keys() == state_dict.keys()
    assert all(torch.equal(back[key], tensor) for key, tensor in state_dict.items())


def test_derived_tensors_are_checked_left_out_and_made_anew():
    def make(i):
        return torch.arange(3) + i if i else None  # as a mask that the first layer does not have

    rules = [Rule("{i}.w", "layers.{i}.w"), Derived("{i}.index", make, like="layers.{i}.w")]
    state_dict = {"0.w": torch.zeros(1), "1.w": torch.ones(1), "1.index": torch.arange(3) + 1}
    there, back = _round_trip(rules, state_dict)
    assert there.keys() == {"layers.0.w", "layers.1.w"}
    assert back.keys() == state_dict.keys()
    assert torch.equal(back["1.index"], state_dict["1.index"])
    with pytest.raises(ConversionError, match=r"1\.index.*differs"):
        _round_trip(rules, {**state_dict, "1.index": torch.arange(3)})


def test_constants_are_filled_in_and_left_out_when_writing_back():
    rules = [Rule("{i}.w", "layers.{i}.w"), Constant("layers.{i}.b", lambda i: torch.zeros(2), like="{i}.w")]
    state_dict = {"0.w": torch.ones(1)}
    there, back = _round_trip(rules, state_dict)
    assert torch.equal(there["layers.0.b"], torch.zeros(2))
    assert back.keys() == state_dict.keys()
    changed = {**there, "layers.0.b": torch.ones(2)}
    plan = make_plan(changed, [rule.inverse for rule in rules])
    with pytest.raises(ConversionError, match=r"layers\.0\.b"):
        run_plan(plan, changed)


@pytest.mark.parametrize(
    ("rules", "keys", "message"),
    [
        ([Rule("a", "b")], ["a", "c"], "'c'"),
        ([Rule("a.*", "b.*"), Rule("a.w", "c")], ["a.w"], "'a.w' is matched by"),
        ([Rule(("q", "k"), "qk", Concatenate(2))], ["q"], "'k' is missing"),
        ([Rule("a", "x"), Rule("b", "x")], ["a", "b"], "both become 'x'"),
    ],
)
def test_plan_names_the_key_at_fault(rules, keys, message):
    with pytest.raises(ConversionError, match=message):
        make_plan(keys, rules)


# ---------------------------------------------------------------------------------------------------------------------
# Recognition and configuration


@pytest.mark.parametrize(("folder", "name"), CASES)
def test_architecture_and_layout_are_recognised_from_the_keys(folder, name):
    case = golden.load(folder, name)
    found = recognize(case.state_dict, None, None)[0]
    assert found.architecture.name == ARCHITECTURE[folder]
    assert found.name.startswith("original")


def _own_fields(config) -> dict:
    """The fields of an architecture's configuration, without those of every model of transformers."""
    general = {field.name for field in dataclasses.fields(transformers.PreTrainedConfig)}
    names = {field.name for field in dataclasses.fields(config)} - general
    return {name: getattr(config, name) for name in names if not name.startswith("_")}


@pytest.mark.parametrize(("folder", "name"), CASES)
def test_every_layout_is_recognised_and_comes_back_bit_for_bit(folder, name):
    model, _ = convert(golden.load(folder, name))
    architecture = ARCHITECTURES[model.config.model_type.removeprefix("vitf_")]
    own = _own_fields(model.config)
    # Layouts with a decoder are those of another head: see tests/test_mae.py.
    layouts = [
        name
        for name, each in architecture.conversion.LAYOUTS.items()
        if each.misfit(model.config) is None and not any("decoder" in key for key in each.requires)
    ]
    assert layouts
    for layout in layouts:
        exported = export_checkpoint(model, layout)
        assert layout in [candidate.name for candidate in recognize(exported, architecture, None)]
        kwargs = own if layout.startswith("transformers") else {}
        again, _ = convert_checkpoint(exported, architecture.name, kwargs, layout, **own)
        assert type(again) is type(model)
        for key, tensor in model.state_dict().items():
            assert torch.equal(again.state_dict()[key], tensor), (layout, key)


def test_published_sizes_tell_the_number_of_heads():
    config = make_config(VitfDeitConfig, {"hidden_size": 192}, ask_for={"num_attention_heads": "qkv"})
    assert config.num_attention_heads == 3


def test_what_nothing_tells_is_asked_for_by_name():
    state_dict = golden.load("deit", "plain").state_dict
    with pytest.raises(ConversionError, match="num_attention_heads"):
        convert_checkpoint(state_dict, "deit")
    state_dict = golden.load("vit", "nonsquare").state_dict
    with pytest.raises(ConversionError, match="image_size"):
        convert_checkpoint(state_dict, "vit")


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_head": 3}, "did you mean 'num_heads'"),
        ({"num_heads": 3, "qk_scale": 0.5}, "qk_scale=0.5"),
        ({"num_heads": 3, "norm_layer": "BatchNorm"}, "norm_layer"),
        ({"num_heads": 5}, "num_attention_heads"),
        ({"num_heads": 3, "depth": 2}, "blocks.2"),
    ],
)
def test_bad_original_arguments_are_named(kwargs, message):
    with pytest.raises(ConversionError, match=message):
        convert_checkpoint(golden.load("deit", "plain").state_dict, "deit", kwargs)


# Golden cases of models that nobody published, to the fields that leave no trace in their weights.
_WITHOUT_TRACE = {
    ("cvt", "cls"): {"num_heads", "patch_size", "patch_paddings", "kv_stride"},
    ("xvit", "k600_16frames_seg8"): {
        *("num_frames", "num_attention_heads", "segment_size", "shift_div", "mixing_layers", "num_temporal_heads"),
    },
    ("mvit", "v2_image_t_like"): {"kv_strides", "residual_pooling"},
    ("mvit_video", "v1_video_16x4_like"): {"kv_strides", "residual_pooling"},
    ("deit", "plain"): {"num_attention_heads"},
    ("vit", "nonsquare"): {"image_size"},
}


@pytest.mark.parametrize(("folder", "name"), _WITHOUT_TRACE)
def test_all_that_leaves_no_trace_is_asked_for_at_once_and_suffices(folder, name):
    case, fields = golden.load(folder, name), _WITHOUT_TRACE[folder, name]
    architecture = ARCHITECTURE[folder]
    with pytest.raises(ConversionError, match="not told by the checkpoint") as error:
        convert_checkpoint(case.state_dict, architecture)
    assert set(re.findall(r"(\w+)=\.\.\.", str(error.value))) == fields
    whole, report = convert(case)
    told = {name: getattr(whole.config, name) for name in fields}
    again, _ = convert_checkpoint(case.state_dict, architecture, layout=report.layout, **told)
    pixel_values = pixels(case)
    with torch.no_grad():
        assert torch.equal(again(pixel_values).logits, whole(pixel_values).logits)
    for field in fields - {"num_temporal_heads"}:  # that of the encoder by default
        with pytest.raises(ConversionError, match=f"{field} is not told"):
            convert_checkpoint(case.state_dict, architecture, **{n: v for n, v in told.items() if n != field})


def _bare_vit(size, **arguments):
    shape = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4, "num_classes": 3}
    return timm.models.VisionTransformer(img_size=size, **{**shape, **arguments}).state_dict()


def test_a_vit_whose_rows_are_a_square_with_and_without_its_class_token_is_asked_about():
    state_dict = _bare_vit((24, 40))  # 3 x 5 patches and a class token, or 4 x 4 patches
    with pytest.raises(ConversionError, match="image_size is not told"):
        convert_checkpoint(state_dict, "vit", num_attention_heads=4)
    model, _ = convert_checkpoint(state_dict, "vit", num_attention_heads=4, image_size=(24, 40))
    assert model.config.prefix_position_embeddings
    state_dict = _bare_vit(32, no_embed_class=True)
    model, _ = convert_checkpoint(state_dict, "vit", num_attention_heads=4, image_size=32)
    assert not model.config.prefix_position_embeddings


@pytest.mark.parametrize(("size", "told", "said"), [((32, 72), {}, True), ((32, 72), {"image_size": 48}, False)])
def test_that_an_image_is_taken_to_be_square_is_said(size, told, said):
    """4 x 9 patches are as many as 6 x 6, and nothing in bare weights tells which."""
    _, report = convert_checkpoint(_bare_vit(size), "vit", num_attention_heads=4, **told)
    assert any("square, 48 x 48 pixels" in note for note in report.notes) == said
    model, report = convert_checkpoint(_bare_vit(size), "vit", num_attention_heads=4, image_size=size)
    assert not report.notes
    assert model.config.image_size == size


def test_a_published_size_is_taken_without_a_word():
    state_dict = timm.models.VisionTransformer(img_size=224, embed_dim=192, depth=12, num_heads=3).state_dict()
    assert not convert_checkpoint(state_dict, "deit")[1].notes


@pytest.mark.parametrize("left_out", [11, 5])
def test_a_layer_that_is_missing_is_refused_or_said(left_out):
    state_dict = timm.models.VisionTransformer(img_size=224, embed_dim=192, depth=12, num_heads=3).state_dict()
    cut = {key: tensor for key, tensor in state_dict.items() if not key.startswith(f"blocks.{left_out}.")}
    if left_out == 5:  # a gap
        with pytest.raises(ConversionError, match=r"'blocks\.5\..* and 9 others are missing"):
            convert_checkpoint(cut, "deit", num_attention_heads=3)
        return
    _, report = convert_checkpoint(cut, "deit", num_attention_heads=3)
    assert any("holds 11 layers, and published models of its width have 12" in note for note in report.notes)
    assert not convert_checkpoint(cut, "deit", num_attention_heads=3, num_hidden_layers=11)[1].notes
    with pytest.raises(ConversionError, match=r"blocks\.11\."):
        convert_checkpoint(cut, variant="deit_tiny_patch16_224")


def test_the_first_three_keys_that_do_not_fit_are_named():
    case = golden.load("deit", "plain")
    extra = {f"blocks.0.extra{n}.weight": torch.zeros(2) for n in range(5)}
    message = (
        "read as deit .*keys 'blocks.0.extra0.weight', 'blocks.0.extra1.weight', 'blocks.0.extra2.weight' and 2 others"
    )
    with pytest.raises(ConversionError, match=message + " are matched by no rule"):
        convert_checkpoint({**case.state_dict, **extra}, "deit", case.kwargs)
    lost = ("blocks.1.norm1.weight", "blocks.1.norm1.bias", "blocks.1.mlp.fc2.bias")
    short = {key: tensor for key, tensor in case.state_dict.items() if key not in lost}
    with pytest.raises(ConversionError, match=r"read as deit .*keys .* are missing from the checkpoint") as error:
        convert_checkpoint(short, "deit", case.kwargs)
    assert all(key in str(error.value) for key in lost)
    distilled = golden.load("deit", "distilled")
    with pytest.raises(ConversionError, match=r"keys .*dist"):
        convert_checkpoint(distilled.state_dict, "deit", {**distilled.kwargs}, distilled=False)


def test_a_headless_checkpoint_becomes_the_base_model():
    case = golden.load("vit", "plain")
    headless = {key: tensor for key, tensor in case.state_dict.items() if not key.startswith("head/")}
    model, report = convert_checkpoint(headless)
    assert report.head == "Model"
    whole, _ = convert(case)
    pixel_values = case.inputs["pixel_values"]
    with torch.no_grad():
        expected = whole.vit(pixel_values).last_hidden_state
        assert torch.equal(model(pixel_values).last_hidden_state, expected)
    assert export_checkpoint(model).keys() == headless.keys()


def test_linen_numbering_is_read_and_written():
    case = golden.load("vit", "plain")
    model, _ = convert(case)
    linen = export_checkpoint(model, "original_linen")
    assert "Transformer/encoderblock_0/MultiHeadDotProductAttention_0/query/kernel" in linen
    again, report = convert_checkpoint(linen)
    assert report.layout == "original_linen"
    assert compare_models(again, model, tolerance=0).passed


@pytest.mark.parametrize(
    ("nesting", "prefix"), [(["model"], ""), (["state_dict"], "module."), (["state_dict_ema"], "")]
)
def test_nested_files_are_unwrapped(tmp_path, nesting, prefix):
    case = golden.load("deit", "distilled")
    content = {prefix + key: tensor for key, tensor in case.state_dict.items()}
    torch.save({nesting[0]: content, "epoch": 3}, tmp_path / "file.pth")
    model, report = convert_checkpoint(tmp_path / "file.pth", original_kwargs=case.kwargs)
    assert (report.wrapper, report.key_prefix) == (nesting, prefix)
    assert all(torch.equal(t, case.state_dict[key]) for key, t in export_checkpoint(model).items())


def test_an_optimizer_around_flax_weights_is_left_out(tmp_path):
    case = golden.load("vit", "plain")
    arrays = {f"opt/target/{key}": tensor.numpy() for key, tensor in case.state_dict.items()}
    np.savez(tmp_path / "file.npz", **arrays, **{"opt/state/step": np.asarray(7)})
    _, report = convert_checkpoint(tmp_path / "file.npz")
    assert (report.key_prefix, report.num_tensors) == ("opt/target/", len(case.state_dict))


def test_half_precision_is_kept():
    case = golden.load("deit", "distilled")
    half = {key: tensor.to(torch.bfloat16) for key, tensor in case.state_dict.items()}
    model, _ = convert_checkpoint(half, original_kwargs=case.kwargs)
    assert model.dtype == model.config.dtype == torch.bfloat16
    assert all(torch.equal(tensor, half[key]) for key, tensor in export_checkpoint(model).items())


# ---------------------------------------------------------------------------------------------------------------------
# The same weights in timm and in transformers


def _timm_layout(architecture) -> str | None:
    """The name of an architecture's layout whose code is timm's."""
    conversion = architecture.conversion
    return next(
        (
            name
            for name, layout in conversion.LAYOUTS.items()
            if name == "timm" or (layout.source or conversion.SOURCE).repository == TIMM_REPOSITORY
        ),
        None,
    )


# What makes a tiny model one that timm has too.
_TIMM_OVERRIDES = {
    "vit": {"representation_size": None},
    "mvit": {"use_cls_token": False, "query_pooling": "every_layer", "residual_pooling": True},
}


@pytest.mark.parametrize("name", [name for name, each in ARCHITECTURES.items() if _timm_layout(each)])
def test_timms_dropout_is_read_in_one_way(name):
    architecture = ARCHITECTURES[name]
    layout = _timm_layout(architecture)
    model = tiny_model(name, **_TIMM_OVERRIDES.get(name, {}))
    state_dict = export_checkpoint(model, layout)
    fields = {name: value for name, value in _own_fields(model.config).items() if name != "hidden_dropout_prob"}

    def read(**rates):
        return convert_checkpoint(state_dict, name, rates, layout, **fields)

    plain, report = read()
    assert not report.notes
    converted, report = read(drop_rate=0.1, proj_drop_rate=0.2, pos_drop_rate=0.2)
    assert converted.config.hidden_dropout_prob == 0.2
    assert converted.config.to_diff_dict() == {**plain.config.to_diff_dict(), "hidden_dropout_prob": 0.2}
    assert ["drop_rate=0.1" in note for note in report.notes] == [True]
    converted, report = read(drop_rate=0.0, proj_drop_rate=0.2)
    assert converted.config.hidden_dropout_prob == 0.2
    assert ["pos_drop_rate=0.0" in note for note in report.notes] == [True]


def test_older_timms_dropout_is_that_of_the_layers():
    case = golden.load("deit", "plain")
    model, report = convert_checkpoint(case.state_dict, "deit", {**case.kwargs, "drop_rate": 0.1}, "original")
    assert model.config.hidden_dropout_prob == 0.1
    assert not report.notes


def _randomise(model):
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model.double().eval()


_TIMM = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4, "num_classes": 5}
_TIMM_CROSSVIT = {
    "img_size": 48,
    "img_scale": (1.0, 2 / 3),
    "patch_size": [12, 16],
    "embed_dim": [24, 48],
    "depth": [[1, 2, 0], [1, 1, 0]],
    "num_heads": [3, 4],
    "mlp_ratio": [2, 3, 1],
    "num_classes": 5,
}
_TIMM_SWIN = {
    "img_size": 32,
    "patch_size": 2,
    "embed_dim": 8,
    "depths": [2, 2, 1],
    "num_heads": [1, 2, 4],
    "window_size": 4,
}
_TIMM_PIT = {"img_size": 32, "patch_size": 8, "stride": 4, "depth": [1, 2], "heads": [2, 4], "base_dims": [8, 8]}


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("vit_base_patch16_224", _TIMM),
        ("vit_base_patch16_224", _TIMM | {"reg_tokens": 3, "no_embed_class": True}),
        ("vit_base_patch16_224", _TIMM | {"class_token": False, "global_pool": "avg", "fc_norm": False}),
        ("vit_base_patch16_224", _TIMM | {"img_size": (32, 48), "qkv_bias": False, "act_layer": "gelu_tanh"}),
        ("deit3_base_patch16_224", _TIMM),
        ("deit_base_patch16_224", _TIMM),
        ("deit_base_distilled_patch16_224", _TIMM),
        ("cait_s24_224", _TIMM | {"img_size": (32, 48), "depth_token_only": 1, "mlp_ratio_token_only": 3}),
        ("pit_s_224", _TIMM_PIT),
        ("pit_s_distilled_224", _TIMM_PIT | {"img_size": (32, 48)}),
        ("convit_base", _TIMM | {"embed_dim": 8, "local_up_to_layer": 1}),
        ("crossvit_15_240", _TIMM_CROSSVIT),
        ("crossvit_15_dagger_240", _TIMM_CROSSVIT | {"img_size": (48, 72), "multi_conv": True}),
        ("swin_tiny_patch4_window7_224", _TIMM_SWIN),
        ("swin_tiny_patch4_window7_224", _TIMM_SWIN | {"img_size": (32, 64), "depths": [2, 3], "num_heads": [1, 2]}),
        ("swinv2_tiny_window8_256", _TIMM_SWIN | {"pretrained_window_sizes": [2, 4, 0]}),
        ("swinv2_tiny_window8_256", _TIMM_SWIN | {"window_size": 8, "pretrained_window_sizes": [0, 0, 0]}),
    ],
)
def test_logits_equal_timms(name, arguments):
    peer = _randomise(timm.create_model(name, **arguments))
    family = name.partition("_")[0]
    architecture = {"deit3": "vit"}.get(family, family)
    model, _ = convert_checkpoint(peer.state_dict(), architecture, arguments, layout="timm")
    size = arguments["img_size"]
    image = torch.randn(2, 3, *((size, size) if isinstance(size, int) else size), dtype=torch.float64)
    with torch.no_grad():
        assert compare({"logits": model(image).logits}, {"logits": peer(image)}, tolerance=1e-12).passed
    exported = export_checkpoint(model, "timm")
    peer.load_state_dict(exported, strict=True)
    assert all(torch.equal(tensor, exported[key]) for key, tensor in peer.state_dict().items())


_NATIVE = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "id2label": {0: "ant", 1: "bee", 2: "cat"},
}


@pytest.mark.parametrize("original_names", [True, False])
@pytest.mark.parametrize(
    "peer_class",
    ["ViTForImageClassification", "ViTModel", "DeiTForImageClassificationWithTeacher"],
)
def test_outputs_equal_transformers(tmp_path, peer_class, original_names):
    peer_class = getattr(transformers, peer_class)
    peer = _randomise(peer_class(peer_class.config_class(**_NATIVE, hidden_act="gelu")))
    peer.save_pretrained(tmp_path, save_original_format=original_names)
    model, report = convert_checkpoint(tmp_path)
    assert report.layout == ("transformers" if original_names else "transformers_5")
    assert model.config.layer_norm_eps == 1e-12
    assert model.config.id2label == _NATIVE["id2label"]
    parity = compare_models(model, peer, tolerance=1e-12)
    assert parity.passed, parity
    assert "hidden_states.2" in parity.differences
    assert parity.differences.keys() & {"logits", "pooler_output"}
    stored = load_file(tmp_path / "model.safetensors")
    exported = export_checkpoint(model, report.layout)
    assert exported.keys() == stored.keys()
    assert all(torch.equal(exported[key], tensor) for key, tensor in stored.items())


_NATIVE_SWIN = {
    "image_size": 32,
    "patch_size": 2,
    "embed_dim": 8,
    "depths": [2, 2, 1],
    "num_heads": [1, 2, 4],
    "window_size": 4,
    "id2label": {0: "ant", 1: "bee", 2: "cat"},
}


@pytest.mark.parametrize("original_names", [True, False])
@pytest.mark.parametrize(
    ("peer_class", "fields"),
    [
        ("SwinForImageClassification", {"use_absolute_embeddings": True}),
        ("SwinModel", {"qkv_bias": False}),
        ("Swinv2ForImageClassification", {"pretrained_window_sizes": [2, 0, 0]}),
    ],
)
def test_pooled_outputs_equal_transformers(tmp_path, peer_class, fields, original_names):
    """Of hierarchical architectures, whose hidden states transformers takes elsewhere."""
    peer_class = getattr(transformers, peer_class)
    peer = _randomise(peer_class(peer_class.config_class(**_NATIVE_SWIN, **fields)))
    peer.save_pretrained(tmp_path, save_original_format=original_names)
    model, report = convert_checkpoint(tmp_path)
    assert model.config.id2label == _NATIVE_SWIN["id2label"]
    pixel_values = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        ours, theirs = (each.base_model(pixel_values).pooler_output for each in (model, peer))
        assert compare({"pooler_output": ours}, {"pooler_output": theirs}, tolerance=1e-12).passed
    stored = load_file(tmp_path / "model.safetensors")
    exported = export_checkpoint(model, report.layout)
    assert exported.keys() == stored.keys()
    assert all(torch.equal(exported[key], tensor) for key, tensor in stored.items())


# ---------------------------------------------------------------------------------------------------------------------
# The command


def _folder(tmp_path, folder, name):
    """A golden case converted by the command, from the file type it is published in."""
    case = golden.load(folder, name)
    if folder == "vit":
        path = tmp_path / f"{name}.npz"
        np.savez(path, **{key: tensor.numpy() for key, tensor in case.state_dict.items()})
    else:
        path = tmp_path / f"{name}.pth"
        torch.save({"model": case.state_dict}, path)
    output = tmp_path / "ours"
    assert main(["convert", str(path), "--output", str(output), "--kwargs", json.dumps(case.kwargs)]) == 0
    return case, path, output


@pytest.mark.parametrize(("folder", "name"), [("vit", "plain"), ("deit", "distilled"), ("deit3", "layer_scale")])
def test_command_converts_a_file_and_writes_it_back(tmp_path, folder, name):
    case, path, output = _folder(tmp_path, folder, name)
    assert {file.name for file in output.iterdir()} == {
        "config.json",
        "conversion.json",
        "model.safetensors",
        "preprocessor_config.json",
    }
    facts = json.loads((output / "conversion.json").read_text())
    assert facts["file"] == path.name
    assert len(facts["sha256"]) == 64
    assert facts["source"] == case.metadata["source"]
    model = transformers.AutoModelForImageClassification.from_pretrained(output)
    with torch.no_grad():
        logits = model.double().eval()(case.inputs["pixel_values"].double()).logits
    assert case.compare("logits", logits) < 1e-10
    back = tmp_path / "back"
    assert main(["convert", str(output), "--to", "original", "--output", str(back)]) == 0
    (written,) = back.iterdir()
    assert written.suffix == path.suffix
    if folder == "vit":
        content = {key: torch.from_numpy(array) for key, array in np.load(written).items()}
    else:
        content = torch.load(written, weights_only=True)["model"]
    assert content.keys() == case.state_dict.keys()
    assert all(torch.equal(content[key], tensor) for key, tensor in case.state_dict.items())


@pytest.mark.parametrize(("name", "channels"), [*((name, 1) for name in ARCHITECTURES), ("rvt", 3)])
def test_command_converts_every_architecture_with_a_processor_of_its_channels(tmp_path, name, channels):
    model = tiny_model(name, num_channels=channels)
    torch.save(export_checkpoint(model), tmp_path / "file.pth")
    own = _own_fields(model.config)
    # Where nothing is an answer, as that all layers of an X-ViT mix frames, it is given too.
    answers = [field for field, value in own.items() if value is not None or field == "mixing_layers"]
    fields = [f"{field}={json.dumps(own[field])}" for field in answers]
    options = ["--architecture", name, "--output", str(tmp_path / "out"), "--set", *fields]
    assert main(["convert", str(tmp_path / "file.pth"), *options]) == 0
    processor = modality_of(model.config).auto_processor.from_pretrained(tmp_path / "out")
    assert len(processor.image_mean) == len(processor.image_std) == channels


@pytest.mark.parametrize(("folder", "name"), [("vit", "plain"), ("deit", "plain"), ("deit", "distilled")])
def test_transformers_loads_what_is_written_for_it(tmp_path, folder, name):
    case, _, output = _folder(tmp_path, folder, name)
    native = tmp_path / "native"
    assert main(["convert", str(output), "--to", "transformers", "--output", str(native)]) == 0
    peer_class = transformers.ViTForImageClassification
    if name == "distilled":
        peer_class = transformers.DeiTForImageClassificationWithTeacher
    peer, loading = peer_class.from_pretrained(native, output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    with torch.no_grad():
        logits = peer.double().eval()(case.inputs["pixel_values"].double()).logits
    assert case.compare("logits", logits) < 1e-10


def test_transformers_prepares_images_alike_from_what_is_written_for_it(tmp_path):
    _, _, output = _folder(tmp_path, "deit", "distilled")
    native = tmp_path / "native"
    assert main(["convert", str(output), "--to", "transformers", "--output", str(native)]) == 0
    ours = transformers.AutoImageProcessor.from_pretrained(output)
    theirs = transformers.AutoImageProcessor.from_pretrained(native)
    photo = torch.randint(0, 256, (3, 61, 47), dtype=torch.uint8)
    a, b = (processor(photo, return_tensors="pt").pixel_values for processor in (ours, theirs))
    assert a.shape == b.shape
    torch.testing.assert_close(a, b, atol=2 / 255 / 0.22, rtol=0)


@pytest.mark.parametrize(
    ("folder", "name"), [("vit", "plain"), ("deit", "plain"), ("deit", "distilled"), ("deit3", "layer_scale")]
)
def test_timm_loads_what_is_written_for_it(tmp_path, folder, name):
    case, _, output = _folder(tmp_path, folder, name)
    native = tmp_path / "native"
    assert main(["convert", str(output), "--to", "timm", "--output", str(native)]) == 0
    peer = timm.create_model(f"local-dir:{native}", pretrained=True).double().eval()
    with torch.no_grad():
        assert case.compare("logits", peer(case.inputs["pixel_values"].double())) < 1e-10
    again = tmp_path / "again"
    assert main(["convert", str(native), "--output", str(again)]) == 0
    for file in ("preprocessor_config.json", "model.safetensors"):
        assert (again / file).read_bytes() == (output / file).read_bytes()


def test_preprocessing_follows_the_config_next_to_the_weights(tmp_path):
    peer = timm.create_model("vit_base_patch16_224", **_TIMM)
    save_file(peer.state_dict(), tmp_path / "model.safetensors")
    pretrained_cfg = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "crop_pct": 0.95, "interpolation": "bilinear"}
    metadata = {"architecture": "vit_base_patch16_224", "model_args": _TIMM, "pretrained_cfg": pretrained_cfg}
    (tmp_path / "config.json").write_text(json.dumps(metadata))
    assert main(["convert", str(tmp_path), "--output", str(tmp_path / "out")]) == 0
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "out")
    assert (processor.crop_pct, list(processor.image_mean)) == (0.95, [0.1, 0.2, 0.3])
    assert (processor.resample, dict(processor.size)) == (2, {"height": 32, "width": 32})


def test_output_that_is_not_empty_is_refused(tmp_path, capsys):
    _, path, output = _folder(tmp_path, "deit", "distilled")
    before = {file.name: file.read_bytes() for file in output.iterdir()}
    assert main(["convert", str(path), "--output", str(output)]) == 2
    assert str(output) in capsys.readouterr().err
    assert {file.name: file.read_bytes() for file in output.iterdir()} == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--kwargs", "{"], "--kwargs"),
        (["--architecture", "deitt"], "did you mean 'deit'"),
        (["--layout", "tim"], "did you mean 'timm'"),
        (["--variant", "deit_tiny_patch16_225"], "did you mean 'deit_tiny_patch16_224'"),
        (["--variant", "deit_tiny_patch16_224.fb_in2k"], "fb_in1k"),
        (["--set", "num_attention_head=4"], "did you mean 'num_attention_heads'"),
        (["--to", "original", "--layout", "timm"], "--layout does not go with --to"),
        (["--to", "original"], "model folder"),
    ],
)
def test_bad_options_are_one_clear_line(tmp_path, capsys, arguments, message):
    torch.save(golden.load("deit", "distilled").state_dict, tmp_path / "file.pth")
    source = tmp_path if "--to" in arguments else tmp_path / "file.pth"
    assert main(["convert", str(source), "--output", str(tmp_path / "out"), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_layout_that_cannot_hold_the_model_says_why():
    model, _ = convert(golden.load("deit3", "layer_scale"))
    with pytest.raises(ConversionError, match="prefix_position_embeddings"):
        export_checkpoint(model, "transformers")
    with pytest.raises(ConversionError, match="did you mean"):
        export_checkpoint(model, "tim")
    assert find_layout(ARCHITECTURES["vit"], model.config, "original")[0] == "original_deit3"


# ---------------------------------------------------------------------------------------------------------------------
# Positions at another size


@pytest.mark.parametrize(("old", "new"), [((7, 7), (12, 12)), ((12, 12), (7, 7)), ((4, 4), (24, 24))])
def test_vit_positions_are_resized_as_the_original_does(old, new):
    """scipy.ndimage.zoom(order=1), google-research/vision_transformer@c6de1e5 vit_jax/checkpoint.py."""
    from scipy import ndimage

    table = torch.randn(1, 1 + old[0] * old[1], 8, dtype=torch.float64)
    zoom = (new[0] / old[0], new[1] / old[1], 1)
    grid = ndimage.zoom(table[0, 1:].reshape(*old, 8).numpy(), zoom, order=1)
    expected = torch.cat((table[:, :1], torch.from_numpy(grid).reshape(1, -1, 8)), dim=1)
    torch.testing.assert_close(resize_positions(table, old, new, 1, "bilinear"), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("prefix", [1, 2])
@pytest.mark.parametrize(("old", "new"), [((14, 14), (24, 24)), ((7, 7), (5, 5))])
def test_deit_positions_are_resized_as_the_original_does(old, new, prefix):
    """torch's bicubic interpolation without aligned corners, facebookresearch/deit@7e160fe main.py."""
    table = torch.randn(1, prefix + old[0] * old[1], 8, dtype=torch.float64)
    grid = table[:, prefix:].reshape(-1, *old, 8).permute(0, 3, 1, 2)
    grid = functional.interpolate(grid, size=new, mode="bicubic", align_corners=False)
    expected = torch.cat((table[:, :prefix], grid.permute(0, 2, 3, 1).flatten(1, 2)), dim=1)
    torch.testing.assert_close(resize_positions(table, old, new, prefix, "bicubic"), expected, atol=1e-12, rtol=0)


# ---------------------------------------------------------------------------------------------------------------------
# Parity


def test_parity_finds_the_layer_that_differs():
    model, _ = convert(golden.load("vit", "plain"))
    other, _ = convert(golden.load("vit", "plain"))
    assert compare_models(model, other, tolerance=0).passed
    with torch.no_grad():
        other.vit.layers[1].mlp.fc2.bias += 1e-2
    parity = compare_models(model, other)
    assert parity.first_difference == "hidden_states.2"
    assert "hidden_states.2" in str(parity)
    assert parity.max_difference > 1e-3


def test_parity_does_not_pass_what_is_not_a_number():
    value = torch.tensor([1.0])
    assert not compare({"logits": torch.tensor([float("nan")])}, {"logits": value}).passed
    with pytest.raises(ValueError, match="names"):
        compare({"logits": value}, {"loss": value})
    with pytest.raises(ValueError, match="shape"):
        compare({"logits": value}, {"logits": torch.ones(2)})


# ---------------------------------------------------------------------------------------------------------------------
# Files as training scripts leave them


def _deit():
    """The state dict of a DeiT, its constructor's arguments, and another state dict of the same shapes."""
    case = golden.load("deit", "distilled")
    return case.state_dict, case.kwargs, {key: tensor + 1 for key, tensor in case.state_dict.items()}


def _prefixed(prefix, state_dict):
    return {prefix + key: tensor for key, tensor in state_dict.items()}


# What lies in the file of each training script, made of the weights wanted and of others; the wrapper and the prefix
# that are reported; and what the note names.
WILD = {
    "timm's CheckpointSaver": (
        lambda weights, others: {"epoch": 3, "arch": "deit", "state_dict": weights, "state_dict_ema": others},
        ["state_dict"],
        "",
        "--wrapper state_dict_ema",
    ),
    "DeiT's main.py": (
        lambda weights, others: {"model": weights, "model_ema": others, "args": argparse.Namespace(lr=1e-3)},
        ["model"],
        "",
        "--wrapper model_ema",
    ),
    "DINO": (
        lambda weights, others: {
            "student": _prefixed("module.backbone.", others),
            "teacher": {**_prefixed("backbone.", weights), "head.last_layer.weight_v": torch.ones(2, 2)},
            "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"params": [0]}]},
        },
        ["teacher"],
        "backbone.",
        "head.last_layer.weight_v",
    ),
    "Lightning": (
        lambda weights, others: {
            "state_dict": {**_prefixed("model.", weights), "loss.weight": torch.ones(5)},
            "pytorch-lightning_version": "2.5.0",
            "hyper_parameters": {"lr": np.float64(0.1), "folder": pathlib.Path("runs/a"), "steps": np.int64(3)},
        },
        ["state_dict"],
        "model.",
        "loss.weight",
    ),
    "a compiled model in DistributedDataParallel": (
        lambda weights, others: {"net": _prefixed("module._orig_mod.", weights)},
        ["net"],
        "module._orig_mod.",
        None,
    ),
    "MoCo v3": (
        lambda weights, others: {
            "state_dict": _prefixed("module.base_encoder.", weights) | _prefixed("module.momentum_encoder.", others)
        },
        ["state_dict"],
        "module.base_encoder.",
        "momentum_encoder.",
    ),
    "ema-pytorch": (
        lambda weights, others: _prefixed("ema_model.", weights) | {"initted": torch.ones(1), "step": torch.ones(1)},
        [],
        "ema_model.",
        "initted",
    ),
    "an encoder in a larger module": (
        lambda weights, others: {"my_run": _prefixed("model.image_encoder.trunk.", weights)},
        ["my_run"],
        "model.image_encoder.trunk.",
        None,
    ),
}


@pytest.mark.parametrize("suffix", [".pth", ".ckpt", ".pth.tar"])
@pytest.mark.parametrize("script", WILD)
def test_files_of_training_scripts_are_read(script, suffix, tmp_path):
    make, wrapper, prefix, named = WILD[script]
    weights, kwargs, others = _deit()
    path = tmp_path / f"checkpoint{suffix}"
    torch.save(make(weights, others), path)
    model, report = convert_checkpoint(path, original_kwargs=kwargs)
    assert (report.wrapper, report.key_prefix) == (wrapper, prefix)
    exported = export_checkpoint(model)
    assert exported.keys() == weights.keys()
    assert all(torch.equal(tensor, weights[key]) for key, tensor in exported.items())
    assert named in " ".join(report.notes) if named else not report.notes


@pytest.mark.parametrize(
    ("script", "part"),
    [
        ("timm's CheckpointSaver", {"wrapper": "state_dict_ema"}),
        ("DeiT's main.py", {"wrapper": "model_ema"}),
        ("DINO", {"wrapper": "student", "prefix": "backbone."}),
        ("MoCo v3", {"prefix": "momentum_encoder."}),
    ],
)
def test_the_other_part_of_a_file_is_taken_when_it_is_named(script, part, tmp_path):
    weights, kwargs, others = _deit()
    torch.save(WILD[script][0](weights, others), tmp_path / "checkpoint.pth")
    model, _ = convert_checkpoint(tmp_path / "checkpoint.pth", original_kwargs=kwargs, **part)
    assert all(torch.equal(tensor, others[key]) for key, tensor in export_checkpoint(model).items())


@pytest.mark.parametrize(
    ("content", "part", "message"),
    [
        ({"mine": {"a": torch.ones(1)}, "yours": {"a": torch.ones(1)}}, {}, r"name one of \['mine', 'yours'\]"),
        ({"model": {"a": torch.ones(1)}}, {"wrapper": "ema"}, r"'ema'; there are \['model'\]"),
        ({"model": {"a": torch.ones(1)}}, {"prefix": "b."}, r"prefix 'b\.'; the first one is 'a'"),
        ({"model": {"module.a": torch.ones(1), "b": torch.ones(1)}}, {}, r"'b' lacks the prefix 'module\.'"),
        ({"epoch": 3}, {}, "'epoch' holds a int, not a tensor"),
        ({}, {}, "no tensors"),
    ],
)
def test_a_part_that_is_not_there_is_named(content, part, message, tmp_path):
    torch.save(content, tmp_path / "file.pth")
    with pytest.raises(ConversionError, match=rf"file\.pth: .*{message}"):
        convert_checkpoint(tmp_path / "file.pth", **part)


def test_two_readings_of_the_same_keys_are_a_question(tmp_path):
    """A TimeSformer without attention over time has the keys of a ViT that a module calls `model`."""
    case = golden.load("timesformer", "space_only_nonsquare")
    path = tmp_path / "checkpoint.pth"
    torch.save({"state_dict": case.state_dict}, path)
    with pytest.raises(
        ConversionError, match=r"timesformer.*under 'model\.' .*--architecture timesformer or --prefix model\."
    ):
        convert_checkpoint(path, original_kwargs=case.kwargs)
    model, _ = convert_checkpoint(path, "timesformer", case.kwargs)
    assert model.config.attention_type == "space_only"
    torch.save({"model_state": case.state_dict}, path)  # as the authors' code nests it
    model, _ = convert_checkpoint(path, original_kwargs=case.kwargs)
    assert model.config.attention_type == "space_only"


def test_a_dictionary_that_holds_itself_is_refused(tmp_path):
    content = {}
    content["model"] = content
    content["state_dict"] = {"model": content, "a": torch.ones(1)}
    torch.save(content, tmp_path / "file.pth")
    with pytest.raises(ConversionError, match="not a tensor"):
        convert_checkpoint(tmp_path / "file.pth")


class Settings:
    """A class that a training script might store."""


def test_a_class_that_is_not_read_is_named_with_the_remedy(tmp_path):
    torch.save({"model": _deit()[0], "settings": Settings()}, tmp_path / "file.pth")
    with pytest.raises(ConversionError, match=r"Settings could run code.*save its state dict"):
        convert_checkpoint(tmp_path / "file.pth")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_unless_asked_for(value):
    weights, kwargs, _ = _deit()
    broken = {**weights, "head.bias": torch.full_like(weights["head.bias"], value)}
    with pytest.raises(ConversionError, match=r"'head\.bias' holds 7 values that are NaN or infinite"):
        convert_checkpoint(broken, original_kwargs=kwargs)
    model, _ = convert_checkpoint(broken, original_kwargs=kwargs, allow_nonfinite=True)
    assert not model.classifier.bias.isfinite().any()


def test_several_precisions_become_the_widest_and_it_is_said(tmp_path):
    weights, kwargs, _ = _deit()
    single = {key: tensor.float() for key, tensor in weights.items()}
    mixed = {key: tensor.half() if "mlp" in key else tensor for key, tensor in single.items()}
    model, report = convert_checkpoint(mixed, original_kwargs=kwargs)
    assert "8 in float16" in report.notes[0]
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    for key, tensor in export_checkpoint(again).items():
        assert torch.equal(tensor, mixed[key].float()), key
