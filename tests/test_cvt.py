"""CvT's own abilities: masks at sizes that leave a border without tokens, and transformers' own files."""

import golden
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from models import random_pixels, tiny_model
from test_goldens import convert
from torch import nn
from transformers import CvtConfig, CvtForImageClassification

from hf_vit_family.conversion.convert import ConversionError, convert_checkpoint, export_checkpoint, recognize

CASES = golden.cases("cvt")


def randomised(peer: nn.Module) -> nn.Module:
    """Noise in every parameter and running statistic, in evaluation mode and double precision."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in peer.parameters():
            parameter.copy_(parameter + torch.randn(parameter.shape, generator=generator) * 0.2)
        for name, buffer in peer.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
    return peer.double().eval()


@pytest.mark.parametrize("size", [(32, 32), (33, 30), (47, 61), (3, 5)])
def test_any_size_has_the_originals_maps(size):
    model = tiny_model("cvt", "Backbone", out_features=["stage1", "stage2", "stage3"])
    sides, expected = size, []
    for kernel, stride, padding in ((7, 4, 2), (3, 2, 1), (3, 2, 1)):
        sides = tuple((side + 2 * padding - kernel) // stride + 1 for side in sides)
        expected.append(sides)
    with torch.no_grad():
        maps = model(random_pixels(model.config, size=size)).feature_maps
    assert [tuple(each.shape[-2:]) for each in maps] == expected


def test_a_size_below_the_first_kernel_is_refused_with_what_fits():
    model = tiny_model("cvt")
    with pytest.raises(ValueError, match="2x32 does not fit: height must be a multiple of 3"):
        model(random_pixels(model.config, size=(2, 32)))


def test_cells_without_a_token_are_left_out_of_the_mask():
    model = tiny_model("cvt", "Model")
    pixel_values, token = random_pixels(model.config, size=(33, 32)), torch.randn(1, 1, 8)
    mask = torch.zeros(2, 9, 8, dtype=torch.bool)
    mask[:, :8] = torch.arange(64).view(8, 8) % 3 == 0
    with torch.no_grad():
        expected = model(pixel_values, bool_masked_pos=mask.flatten(1), mask_token=token).last_hidden_state
        mask[:, 8] = True  # of one row of pixels, which has no tokens
        outputs = model(pixel_values, bool_masked_pos=mask.flatten(1), mask_token=token).last_hidden_state
        assert torch.equal(outputs, expected)
        assert not torch.allclose(outputs, model(pixel_values).last_hidden_state)


def test_maps_have_fewer_keys_than_queries_and_the_class_token_in_the_last_stage():
    model = tiny_model("cvt")
    attentions = model(random_pixels(model.config), output_attentions=True).attentions
    assert [tuple(each.shape[1:]) for each in attentions] == [(1, 64, 16), (2, 16, 4), (3, 5, 2), (3, 5, 2)]


@pytest.mark.parametrize("name", CASES)
def test_outputs_depend_on_the_activation_and_the_scale(name):
    case = golden.load("cvt", name)
    model, _ = convert(case, hidden_act="gelu")
    with torch.no_grad():
        logits = model.double()(case.inputs["pixel_values"].double()).logits
    assert case.compare("logits", logits) > 1e-4  # the goldens tell exact GELU from the original's


def test_logits_equal_transformers_there_and_back():
    config = CvtConfig(embed_dim=[8, 16, 24], num_heads=[1, 2, 3], depth=[1, 2, 3], num_labels=5)
    peer = randomised(CvtForImageClassification(config))
    model, report = convert_checkpoint(peer.state_dict(), original_kwargs=config.to_dict())
    assert (report.architecture, report.layout, model.config.hidden_act) == ("cvt", "transformers", "gelu")
    for size in [(64, 64), (56, 77)]:
        pixel_values = torch.randn(2, 3, *size, dtype=torch.double)
        with torch.no_grad():
            torch.testing.assert_close(model(pixel_values).logits, peer(pixel_values).logits, rtol=1e-10, atol=1e-10)
    exported = export_checkpoint(model, "transformers")
    assert exported.keys() == peer.state_dict().keys()
    assert all(torch.equal(exported[key], tensor) for key, tensor in peer.state_dict().items())
    # The authors' activation on request.
    model, _ = convert_checkpoint(peer.state_dict(), original_kwargs=config.to_dict(), hidden_act="quick_gelu")
    assert model.config.hidden_act == "quick_gelu"


def test_transformers_builds_the_model_from_what_is_written_for_it():
    model = randomised(tiny_model("cvt", hidden_act="gelu", depths=[1, 2, 3], drop_path_rate=0.2))
    state = export_checkpoint(model, "transformers")
    native = recognize(state, None, "transformers")[0].layout.native_config(model)
    assert native["architectures"] == ["CvtForImageClassification"]
    peer = CvtForImageClassification(CvtConfig(**native))
    peer.load_state_dict(state)
    pixel_values = random_pixels(model.config).double()
    with torch.no_grad():
        logits = peer.double().eval()(pixel_values).logits
        torch.testing.assert_close(model(pixel_values).logits, logits, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_act": "gelu"}, "needs one layer more in each stage"),
        ({"depths": [1, 2, 3]}, "computes with hidden_act='gelu', not 'quick_gelu'"),
    ],
)
def test_what_transformers_cannot_compute_is_refused(fields, message):
    model = tiny_model("cvt", **fields)
    layout = recognize(export_checkpoint(model, "transformers"), None, "transformers")[0].layout
    with pytest.raises(ConversionError, match=message):
        layout.native_config(model)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"QKV_PROJ_METHOD": ["avg"] * 3}, "QKV_PROJ_METHOD=.* is not supported, only 'dw_bn'"),
        ({"PATCH_STRIDE": [4, 2, 1]}, "PATCH_STRIDE=.*later stages must halve the map"),
        ({"CLS_TOKEN": [True, False, True]}, "CLS_TOKEN=.*only the last stage"),
        ({"DROP_PATH_RATE": [0.1, 0.1, 0.1]}, "DROP_PATH_RATE=.*only the last stage"),
        ({"MLP_RATIO": [4.0, 2.0, 4.0]}, "MLP_RATIO=.*the stages must not differ"),
        ({"PADDING_KV": [1, 0, 1]}, "PADDING_KV=.*half the kernel"),
        ({"WINDOW": [7, 7, 7]}, "unknown entry 'WINDOW'"),
    ],
)
def test_what_the_configuration_cannot_express_is_named(entry, message):
    case = golden.load("cvt", CASES[0])
    kwargs = {**case.kwargs, "spec": {**case.kwargs["spec"], **entry}}
    with pytest.raises(ConversionError, match=message):
        convert_checkpoint(case.state_dict, "cvt", kwargs)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_sizes": [8, 16, 25]}, "is not a multiple of num_heads"),
        ({"kernel_size": 2}, "kernel_size=2 is not odd"),
        ({"patch_paddings": [2, 1]}, "each field needs one entry a stage"),
    ],
)
def test_fields_that_do_not_fit_are_named(fields, message):
    with pytest.raises(StrictDataclassError, match=message):
        tiny_model("cvt", **fields)
