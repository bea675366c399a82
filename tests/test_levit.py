"""
LeViT's own abilities: batch norms folded for inference, biases by offset on maps of any size, other libraries' files.
"""

import golden
import pytest
import timm
import torch
from huggingface_hub.errors import StrictDataclassError
from models import assert_same_weights, random_pixels, tiny_model
from torch import nn
from transformers import (
    AutoModelForImageClassification,
    LevitForImageClassification,
    LevitForImageClassificationWithTeacher,
)
from transformers import LevitConfig as NativeConfig

from hf_vit_family import create_model
from hf_vit_family.conversion.convert import ConversionError, convert_checkpoint, export_checkpoint, recognize
from hf_vit_family.modeling.modeling_levit import LevitPositionBias

HEADS = ("Model", "ForImageClassification", "ForMaskedImageModeling", "Backbone")
# Parameters of the original after its own folding (utils.replace_batchnorm of facebookresearch/LeViT@3772b8e).
FUSED_COUNTS = {
    "levit_128s": 7756466,
    "levit_128": 9188864,
    "levit_192": 10918613,
    "levit_256": 18856276,
    "levit_384": 39074100,
}
_SIZES = {"embed_dim": (16, 24, 32), "key_dim": 8, "depth": (1, 2, 1), "num_heads": (2, 3, 4), "num_classes": 5}


def with_statistics(model: nn.Module) -> nn.Module:
    """Random running statistics of every batch norm: those of a new model, 0 and 1, hide mistakes."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.running_mean.copy_(torch.randn(module.running_mean.shape, generator=generator))
            module.running_var.copy_(torch.rand(module.running_var.shape, generator=generator) + 0.5)
            module.num_batches_tracked.fill_(3)
    return model


def randomised(peer: nn.Module) -> nn.Module:
    """Another library's model with noise in every parameter and buffer, in evaluation mode and double precision."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in peer.parameters():
            parameter.copy_(parameter + torch.randn(parameter.shape, generator=generator) * 0.2)
    return with_statistics(peer).double().eval()


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)) for module in model.modules())


# Folding


@pytest.mark.parametrize("head", HEADS)
def test_fusing_keeps_the_outputs(head):
    model = with_statistics(tiny_model("levit", head)).double()
    pixel_values = random_pixels(model.config).double()
    with torch.no_grad():
        expected = model(pixel_values, output_hidden_states=True, output_attentions=True)
        assert norms(model) > 0
        assert model.train().fuse() is model
        assert norms(model) == 0
        assert not model.training
        outputs = model(pixel_values, output_hidden_states=True, output_attentions=True)
    for name in ("hidden_states", "attentions"):
        for ours, before in zip(outputs[name], expected[name], strict=True):
            torch.testing.assert_close(ours, before, rtol=1e-10, atol=1e-10)
    first, before = (each[0][0] if head == "Backbone" else each[0] for each in (outputs, expected))
    torch.testing.assert_close(first, before, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", golden.cases("levit"))
def test_the_fused_model_equals_the_original(name):
    case = golden.load("levit", name)
    model, _ = convert_checkpoint(case.state_dict, "levit", case.kwargs)
    model.double().fuse()
    with torch.no_grad():
        assert case.compare("logits", model(case.inputs["pixel_values"].double()).logits) < 1e-10


@pytest.mark.parametrize("variant", FUSED_COUNTS)
def test_the_fused_form_has_the_originals_number_of_parameters(variant):
    with torch.device("meta"):
        model = create_model(variant, fused=True)
    assert sum(parameter.numel() for parameter in model.parameters()) == FUSED_COUNTS[variant]
    assert not list(model.buffers())


def test_a_fused_model_is_saved_and_loaded_as_such(tmp_path):
    model = with_statistics(tiny_model("levit")).fuse()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.fuse()  # there is nothing left to fold
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    model.save_pretrained(tmp_path)
    loaded, report = AutoModelForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    assert loaded.config.fused
    assert_same_weights(loaded, model)
    pixel_values = random_pixels(model.config)
    with torch.no_grad():
        torch.testing.assert_close(loaded(pixel_values).logits, model(pixel_values).logits)


def test_no_other_layout_takes_a_fused_model():
    model = tiny_model("levit").fuse()
    for layout in ("original", "timm", "transformers"):
        with pytest.raises(ConversionError, match="fused=True has no place in it"):
            export_checkpoint(model, layout)


def test_a_fused_model_can_be_trained_further():
    model = tiny_model("levit").fuse().train()
    model(random_pixels(model.config), labels=torch.tensor([0, 1])).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


# Biases by offset


def test_a_bias_belongs_to_the_distances_of_query_and_key():
    bias = LevitPositionBias(num_heads=2, grid=(3, 5), stride=1)
    nn.init.normal_(bias.weight)
    table = bias.weight.detach().view(2, 3, 5)
    for grid in [(3, 5), (2, 4), (1, 5)]:
        with torch.no_grad():
            found = bias(grid)[0].view(2, *grid, *grid)
        for row, column, key_row, key_column in [(0, 0, 0, 0), (0, 1, grid[0] - 1, 3), (grid[0] - 1, 3, 0, 0)]:
            expected = table[:, abs(row - key_row), abs(column - key_column)]
            assert torch.equal(found[:, row, column, key_row, key_column], expected)


def test_queries_of_a_shrinking_layer_are_every_second_token():
    full, half = (LevitPositionBias(num_heads=2, grid=(5, 4), stride=stride) for stride in (1, 2))
    nn.init.normal_(full.weight)
    half.load_state_dict(full.state_dict())
    with torch.no_grad():
        queries = full((5, 4))[0].view(2, 5, 4, 20)[:, ::2, ::2].flatten(1, 2)
        assert torch.equal(half((5, 4))[0], queries)


def test_a_larger_map_stretches_the_table_between_its_ends():
    bias = LevitPositionBias(num_heads=2, grid=(4, 4), stride=1)
    nn.init.normal_(bias.weight)
    before = bias.weight.detach().view(2, 4, 4)
    after = bias.resized((7, 3)).detach().view(2, 7, 3)
    # Rows 0, 2, 4, 6 of seven are the four there were; columns 0 to 2 keep theirs.
    torch.testing.assert_close(after[:, ::2], before[:, :, :3])


def test_the_original_is_square_but_timm_is_not():
    arguments = {**_SIZES, "img_size": (96, 160)}
    peer = randomised(timm.create_model("levit_128", **arguments))
    kwargs = {**arguments, "img_size": [96, 160]}
    model, _ = convert_checkpoint(peer.state_dict(), "levit", kwargs, layout="timm")
    pixel_values = torch.randn(2, 3, 96, 160, dtype=torch.double)
    with torch.no_grad():
        torch.testing.assert_close(model(pixel_values).logits, peer(pixel_values), rtol=1e-10, atol=1e-10)


# Other libraries


@pytest.mark.parametrize(("distilled", "name"), [(True, "levit_128"), (False, "levit_512")])
def test_logits_equal_timms_there_and_back(distilled, name):
    arguments = {**_SIZES, "img_size": 112, "act_layer": "hard_swish"}
    peer = randomised(timm.create_model(name, **arguments))
    model, report = convert_checkpoint(peer.state_dict(), original_kwargs=arguments)
    assert (report.architecture, report.layout, model.config.distilled) == ("levit", "timm", distilled)
    pixel_values = torch.randn(2, 3, 112, 112, dtype=torch.double)
    with torch.no_grad():
        torch.testing.assert_close(model(pixel_values).logits, peer(pixel_values), rtol=1e-10, atol=1e-10)
    exported = export_checkpoint(model, "timm")
    assert exported.keys() == peer.state_dict().keys()
    assert all(torch.equal(exported[key], tensor) for key, tensor in peer.state_dict().items())


@pytest.mark.parametrize("peer_class", [LevitForImageClassificationWithTeacher, LevitForImageClassification])
def test_logits_equal_transformers_there_and_back(peer_class):
    config = NativeConfig(
        image_size=112,
        hidden_sizes=[16, 24, 32],
        depths=[1, 2, 1],
        num_attention_heads=[2, 3, 4],
        key_dim=[8, 8, 8],
        num_labels=5,
    )
    peer = randomised(peer_class(config))
    model, report = convert_checkpoint(peer.state_dict())
    assert (report.architecture, report.layout) == ("levit", "transformers")
    pixel_values = torch.randn(2, 3, 112, 112, dtype=torch.double)
    with torch.no_grad():
        torch.testing.assert_close(model(pixel_values).logits, peer(pixel_values).logits, rtol=1e-10, atol=1e-10)
    exported = export_checkpoint(model, "transformers")
    assert exported.keys() == peer.state_dict().keys()
    assert all(torch.equal(exported[key], tensor) for key, tensor in peer.state_dict().items())
    # As transformers 4 wrote it, with the tables of indices.
    buffers = {name: buffer for name, buffer in peer.named_buffers() if name.endswith("attention_bias_idxs")}
    old = {**peer.state_dict(), **buffers}
    again, report = convert_checkpoint(old)
    assert report.layout == "transformers_4"
    assert all(torch.equal(again.state_dict()[key], tensor) for key, tensor in model.state_dict().items())
    assert export_checkpoint(again, "transformers_4").keys() == old.keys()


@pytest.mark.parametrize("case", ["levit", "levit-plain"])
@pytest.mark.parametrize("library", ["timm", "transformers"])
def test_other_libraries_build_the_model_from_what_is_written_for_them(case, library):
    model = with_statistics(tiny_model(case)).double()
    state = export_checkpoint(model, library)
    native = recognize(state, None, library)[0].layout.native_config(model)
    if library == "timm":
        peer = timm.create_model(native["architecture"], **native["model_args"])
    else:
        peer_class = {True: LevitForImageClassificationWithTeacher, False: LevitForImageClassification}
        peer = peer_class[model.config.distilled](NativeConfig(**native))
        assert native["architectures"] == [type(peer).__name__]
    peer.load_state_dict(state)
    pixel_values = random_pixels(model.config).double()
    with torch.no_grad():
        logits = peer.double().eval()(pixel_values)
        logits = logits if library == "timm" else logits.logits
        torch.testing.assert_close(model(pixel_values).logits, logits, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"patch_size": 12}, "patch_size=12 is not a power of two"),
        ({"hidden_sizes": [20, 24, 32]}, "needs the first to be a multiple of patch_size / 2 = 8"),
        ({"key_dim": 20}, "must not be below key_dim=20"),
        ({"depths": [1, 2]}, "each field needs one entry a stage"),
    ],
)
def test_fields_that_do_not_fit_are_named(fields, message):
    with pytest.raises(StrictDataclassError, match=message):
        tiny_model("levit", **fields)
