"""CoAtNet compared with timm's code: every choice of the configuration, other sizes, what its layout cannot hold."""

import pytest
import timm
import torch
from huggingface_hub.errors import StrictDataclassError
from models import tiny_config, tiny_model

from hf_vit_family.conversion.convert import ConversionError, convert_checkpoint, export_checkpoint, find_layout
from hf_vit_family.errors import UserError
from hf_vit_family.explain.attention_maps import attention_maps, attention_rollout
from hf_vit_family.modeling.configuration_coatnet import VitfCoatnetConfig
from hf_vit_family.modeling.modeling_coatnet import axis_weights
from hf_vit_family.registry import ARCHITECTURES

# What timm's function of a variant is asked for besides: a model of few channels.
_TINY = {
    "img_size": 64,
    "num_classes": 5,
    "embed_dim": (8, 16, 24, 32),
    "depths": (1, 2, 2, 1),
    "stem_width": (6, 8),
    "conv_expand_ratio": 4.0,
    "transformer_dim_head": 8,
}
_CHOICES = [
    ("coatnet_0_224", {"head_hidden_size": 20}),
    ("coatnet_0_rw_224", {}),
    ("coatnet_2_rw_224", {"conv_stride_mode": "1x1", "in_chans": 4}),
    ("coatnet_bn_0_rw_224", {}),
    ("coatnet_rmlp_1_rw_224", {"transformer_rel_pos_dim": 24}),
    ("coatnet_rmlp_2_rw_224", {"transformer_rel_pos_dim": 24}),
    ("coatnet_nano_cc_224", {"depths": (1, 2, 3, 2)}),
    ("coatnext_nano_rw_224", {"embed_dim": (8, 16, 32, 64)}),
    ("coatnext_nano_rw_224", {"embed_dim": (8, 16, 32, 64), "conv_stride_mode": "pool"}),
]


def timm_model(name: str, **model_args) -> torch.nn.Module:
    """timm's model with every tensor random, in double precision."""
    model = timm.create_model(name, **{**_TINY, **model_args}).double().eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
        for key, buffer in model.named_buffers():
            if key.endswith("running_var"):
                buffer.uniform_(0.5, 2)
            elif key.endswith("running_mean"):
                buffer.normal_(std=0.3)
    return model


def timm_arguments(name: str, **model_args) -> dict:
    """The arguments of `MaxxVit` that timm's function makes of these."""
    cfg = timm.models.maxxvit.model_cfgs[name.removesuffix("_224")]
    nested = {**vars(cfg), "conv_cfg": vars(cfg.conv_cfg), "transformer_cfg": vars(cfg.transformer_cfg)}
    return {"cfg": nested, **_TINY, **model_args}


def converted(name: str, **model_args):
    """timm's model, and ours with its weights."""
    theirs = timm_model(name, **model_args)
    ours, _ = convert_checkpoint(theirs.state_dict(), "coatnet", timm_arguments(name, **model_args))
    return theirs, ours.double()


def assert_same(ours, theirs, pixel_values) -> None:
    with torch.no_grad():
        expected = theirs(pixel_values)
        torch.testing.assert_close(
            ours(pixel_values).logits, expected, rtol=1e-9, atol=1e-9 * expected.abs().max().item()
        )


@pytest.mark.parametrize(("name", "model_args"), _CHOICES)
def test_equals_timm_there_and_back(name, model_args):
    theirs, ours = converted(name, **model_args)
    pixel_values = torch.randn(2, ours.config.num_channels, 64, 64, dtype=torch.float64)
    assert_same(ours, theirs, pixel_values)
    state_dict = export_checkpoint(ours)
    assert state_dict.keys() == theirs.state_dict().keys()
    for key, tensor in theirs.state_dict().items():
        assert torch.equal(state_dict[key], tensor), key
    # timm makes the same model of the config.json that a folder in its layout has.
    native = find_layout(ARCHITECTURES["coatnet"], ours.config, "original")[1].native_config(ours)
    again = timm.create_model(native["architecture"], **native["model_args"]).double().eval()
    again.load_state_dict(state_dict)
    assert_same(ours, again, pixel_values)


@pytest.mark.parametrize("name", ["coatnet_0_rw_224", "coatnet_rmlp_2_rw_224"])
@pytest.mark.parametrize("size", [(96, 96), (32, 32), (64, 128), (96, 32)])
def test_other_sizes_equal_timms_resizing(name, size):
    theirs, ours = converted(name)
    theirs.set_input_size(size)
    pixel_values = torch.randn(2, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        expected, result = theirs(pixel_values), ours(pixel_values).logits
    # timm resizes in single precision.
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("size", [(76, 60), (42, 70)])
def test_odd_maps_equal_timm_where_it_runs(size):
    theirs, ours = converted("coatnet_1_rw_224", img_size=size, conv_pool_type="max", transformer_pool_type="max")
    assert_same(ours, theirs, torch.randn(2, 3, *size, dtype=torch.float64))


def test_average_at_an_odd_border_is_of_what_there_is():
    """A map of odd sides equals the same map with its border doubled, for which timm's average is defined."""
    pool = tiny_model("coatnet").coatnet.stages[0].layers[0].shortcut.pool
    feature_map = torch.randn(2, 16, 5, 7)
    doubled = torch.nn.functional.pad(feature_map, (0, 1, 0, 1), mode="replicate")
    torch.testing.assert_close(pool(feature_map), torch.nn.functional.avg_pool2d(doubled, 2))


def test_resized_axes_keep_distance_zero():
    for old, new in ((13, 27), (27, 13), (1, 5), (5, 1), (3, 5), (13, 13)):
        weights = axis_weights(old, new)
        assert weights.shape == (new, old)
        torch.testing.assert_close(weights.sum(1), torch.ones(new, dtype=torch.float64))
        torch.testing.assert_close(weights.flip(0, 1), weights)
        assert weights[new // 2, old // 2] == 1


def test_network_of_the_bias_drops_out_only_while_training():
    model = tiny_model("coatnet-rw", position_bias_dropout_prob=0.5)
    bias = model.coatnet.stages[2].layers[0].attention.position_bias
    with torch.no_grad():
        assert torch.equal(bias((4, 4)), bias((4, 4)))
        bias.train()
        assert not torch.equal(bias((4, 4)), bias((4, 4)))


@pytest.mark.parametrize("name", VitfCoatnetConfig.VARIANTS)
def test_weights_of_a_published_model_tell_its_configuration(name):
    config = VitfCoatnetConfig.from_variant(name)
    with torch.device("meta"):
        state_dict = timm.create_model(name, num_classes=config.num_labels).state_dict()
    told = ARCHITECTURES["coatnet"].conversion.config_from_original({}, state_dict).to_dict()
    expected = config.to_dict()
    if config.position_bias_type == "mlp":  # made for no size
        told.pop("image_size"), expected.pop("image_size")
    assert told == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"conv_pool_type": "max"}, "pool alike"),
        ({"conv_kernel_size": 5}, "conv_kernel_size=5"),
        ({"transformer_rel_pos_type": "bias_tf"}, "bias_tf"),
        ({"conv_act_layer": "relu6"}, "relu6"),
        ({"transformer_head_frist": True}, "transformer_head_first"),
    ],
)
def test_arguments_that_do_not_fit_are_named(arguments, message):
    state_dict = timm_model("coatnet_0_rw_224").state_dict()
    with pytest.raises(ConversionError, match=message):
        convert_checkpoint(state_dict, "coatnet", {**timm_arguments("coatnet_0_rw_224"), **arguments})


def test_activations_are_asked_for_where_nothing_tells_them():
    with pytest.raises(ConversionError, match="pre_norm_act, stride_mode, pool_type, conv_act and se_act are not told"):
        convert_checkpoint(timm_model("coatnet_0_rw_224").state_dict(), "coatnet", {})


def test_convolutions_behind_attention_are_refused():
    state_dict = timm_model("coatnet_0_rw_224", block_type=("C", "C", ("T", "C"), "T")).state_dict()
    with pytest.raises(ConversionError, match="stage 2: expected convolutional layers, then attention"):
        convert_checkpoint(state_dict, "coatnet", {})


def test_one_width_of_heads_in_timm():
    model = tiny_model("coatnet", num_heads=[2, 3, 8])
    with pytest.raises(ConversionError, match="one width of heads"):
        find_layout(ARCHITECTURES["coatnet"], model.config, "original")[1].native_config(model)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stem_channels": [8]}, "two convolutions"),
        ({"conv_depths": [3, 1, 0]}, "conv_depths"),
        ({"conv_depths": [2, 1]}, "conv_depths 2"),
        ({"num_heads": [2, 5, 4]}, "num_heads"),
        ({"expand_first": False, "num_heads": [2, 3, 2]}, "expand_first"),
        ({"conv_layer_type": "convnext"}, "whole factors"),
        (
            {"conv_layer_type": "convnext", "hidden_sizes": [16, 32, 64], "num_heads": [2, 4, 8], "stride_mode": "1x1"},
            "1x1",
        ),
        ({"representation_size": 8, "norm_type": "batch"}, "representation_size"),
        ({"stride_mode": "2x2"}, "stride_mode"),
    ],
)
def test_configuration_that_does_not_fit_is_named(fields, message):
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        tiny_config("coatnet", **fields)


def test_attention_is_drawn_layer_by_layer():
    model = tiny_model("coatnet")
    pixel_values = torch.randn(2, 3, 64, 96)
    _, maps = attention_maps(model, pixel_values)
    assert [tuple(attention.shape) for attention in maps] == [(2, 3, 8, 12), (2, 4, 4, 6), (2, 4, 4, 6)]
    with pytest.raises(UserError, match="the method 'maps' may show them"):
        attention_rollout(model, pixel_values)
