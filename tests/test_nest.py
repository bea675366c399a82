"""NesT: maps that do not divide into blocks, timm's layout, and what the layouts cannot hold."""

import pytest
import timm
import torch
from huggingface_hub.errors import StrictDataclassError
from models import tiny_config, tiny_model
from timm.layers import get_act_layer
from vit_family_launcher import main

from hf_vit_family import create_model
from hf_vit_family.conversion.convert import ConversionError, convert_checkpoint, export_checkpoint
from hf_vit_family.conversion.parity import compare
from hf_vit_family.conversion.rules import Each, Permute, Repeat, Reshape, Unify
from hf_vit_family.modeling.image_processing_vitf import VitfImageProcessor

_TIMM = {
    "img_size": 32,
    "patch_size": 2,
    "embed_dims": (16, 24, 32),
    "num_heads": (2, 2, 4),
    "depths": (1, 2, 1),
    "mlp_ratio": 2,
    "num_classes": 5,
}


def randomise(model: torch.nn.Module) -> torch.nn.Module:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model.double().eval()


@pytest.mark.parametrize("case", ["nest", "nest-multiquery"])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_padding_of_a_map_is_seen_by_no_token(case, implementation):
    """A block in the corner of a padded map equals the tokens of the image that attend only to each other."""
    model = tiny_model(case, attn_implementation=implementation).double()
    stage = model.nest.stages[0]
    tokens = torch.randn(2, 6 * 7, 16, dtype=torch.float64)
    with torch.no_grad():
        output = stage(tokens, (6, 7), (6, 7)).unflatten(1, (6, 7))
        positions = stage.position_embeddings((6, 7), tokens)
        corner = (tokens + positions).unflatten(1, (6, 7))[:, 4:, 4:].flatten(1, 2)
        for layer in stage.layers:
            corner = layer(corner, 1)
    torch.testing.assert_close(output[:, 4:, 4:].flatten(1, 2), corner)


def test_a_small_map_is_one_smaller_block():
    model = tiny_model("nest")
    with torch.no_grad():
        attentions = model(torch.randn(1, 3, 8, 6), output_attentions=True).attentions
    assert [attention.shape[-1] for attention in attentions] == [16, 4, 4, 1]


@pytest.mark.parametrize(
    "kwargs", [{}, {"pad_type": ""}, {"act_layer": "gelu_tanh", "qkv_bias": False, "img_size": 64}]
)
def test_timms_weights_give_timms_logits_and_go_back(kwargs):
    options = {key: get_act_layer(value) for key, value in kwargs.items() if key == "act_layer"}
    peer = randomise(timm.models.nest.Nest(**{**_TIMM, "pad_type": "same", **kwargs, **options}))
    model, report = convert_checkpoint(peer.state_dict(), original_kwargs={**_TIMM, **kwargs})
    assert (report.architecture, report.layout) == ("nest", "timm")
    side = {**_TIMM, **kwargs}["img_size"]
    image = torch.randn(2, 3, side, side, dtype=torch.float64)
    with torch.no_grad():
        assert compare({"logits": model(image).logits}, {"logits": peer(image)}, tolerance=1e-12).passed
    exported = export_checkpoint(model, "timm")
    assert exported.keys() == peer.state_dict().keys()
    assert all(torch.equal(tensor, exported[key]) for key, tensor in peer.state_dict().items())


@pytest.mark.parametrize("name", ["nest_tiny_jx", "nest_tiny"])
def test_timm_loads_what_is_written_for_it(tmp_path, name):
    torch.manual_seed(0)
    model = create_model(name, image_size=16, patch_size=2, block_size=2, num_labels=5, mlp_ratio=1).eval()
    model.save_pretrained(tmp_path / "ours")
    VitfImageProcessor(size={"height": 16, "width": 16}).save_pretrained(tmp_path / "ours")
    native = tmp_path / "timm"
    assert main(["convert", str(tmp_path / "ours"), "--to", "timm", "--output", str(native)]) == 0
    peer = timm.create_model(f"local-dir:{native}", pretrained=True).eval()
    image = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(peer(image), model(image).logits)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "hidden_act='gelu'"),
        ({"hidden_act": "gelu", "image_size": 64}, "one square block in the last stage"),
        ({"hidden_act": "gelu"}, "of nest_tiny_jx, nest_small_jx, "),
        ({"hidden_act": "gelu", "attention_type": "multi_query"}, "attention_type='multi_query' has no place"),
    ],
)
def test_what_timm_cannot_hold_is_refused(tmp_path, capsys, fields, message):
    model = tiny_model("nest", **fields)
    model.save_pretrained(tmp_path / "ours")
    VitfImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "ours")
    assert main(["convert", str(tmp_path / "ours"), "--to", "timm", "--output", str(tmp_path / "timm")]) == 2
    assert message in capsys.readouterr().err


def test_positions_that_are_no_blocks_have_no_place_in_the_original():
    model = tiny_model("nest", image_size=(32, 40))
    with pytest.raises(ConversionError, match="no multiple of block_size=4"):
        export_checkpoint(model, "original")


def test_fields_that_do_not_fit_are_named():
    for fields, message in (
        ({"hidden_sizes": [15, 24, 32]}, "not a multiple of num_heads"),
        ({"block_size": 0}, "block_size=0 must be at least 1"),
        ({"image_size": 33}, "image_size=33 is not a multiple of patch_size=2"),
    ):
        with pytest.raises(StrictDataclassError) as caught:
            tiny_config("nest", **fields)
        assert message in str(caught.value.__cause__ or caught.value)


def test_operations_on_several_tensors_run_both_ways():
    tensors = [torch.randn(2, 3), torch.randn(4, 5)]
    operation = Each(Reshape((2, 3), (6,)), Permute(1, 0))
    assert [tuple(tensor.shape) for tensor in operation(tensors)] == [(6,), (5, 4)]
    back = operation.inverse(operation(tensors))
    assert all(torch.equal(a, b) for a, b in zip(back, tensors, strict=True))
    copies = Repeat(2)([tensors[0]])
    assert Unify(2)(copies) == [tensors[0]]
    assert Unify(2).inverse == Repeat(2)
    with pytest.raises(ValueError, match="one tensor in the original, but differ"):
        Unify(2)([tensors[0], tensors[0] + 1])
