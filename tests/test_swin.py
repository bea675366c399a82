"""
Windows of Swin and Swin V2: how they are cut, masked and padded, and that what they add to scores is computed once a
size.
"""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from models import fresh, random_pixels, tiny_config, tiny_model
from torch.nn import functional

from hf_vit_family.errors import UserError
from hf_vit_family.explain.attention_maps import attention_maps
from hf_vit_family.modeling import modeling_swin, modeling_swinv2, windows

both = pytest.mark.parametrize("case", ["swin", "swinv2"])


@pytest.mark.parametrize("shift", [0, 2])
@pytest.mark.parametrize("grid", [(8, 12), (5, 6), (3, 3)])
def test_windows_are_put_together_as_they_were_cut(grid, shift):
    feature_map = torch.randn(2, *grid, 3)
    cut = windows.to_windows(feature_map, 4, shift)
    height, width = windows.padded_size(grid, 4)
    assert cut.shape == (2 * (height // 4) * (width // 4), 16, 3)
    assert torch.equal(windows.from_windows(cut, grid, 4, shift), feature_map)
    # The first token of the first window of the second image.
    assert torch.equal(cut[len(cut) // 2, 0], feature_map[1, shift, shift])


@pytest.mark.parametrize(("grid", "window", "shift"), [((8, 12), 4, 2), ((5, 6), 4, 2), ((7, 7), 7, 3), ((4, 9), 3, 1)])
def test_shift_mask_is_that_of_the_original(grid, window, shift):
    """Nine regions, numbered as microsoft/Swin-Transformer@f82860b models/swin_transformer.py does."""
    height, width = windows.padded_size(grid, window)
    regions = torch.zeros(1, height, width, 1)
    parts = (slice(0, -window), slice(-window, -shift), slice(-shift, None))
    for number, (rows, columns) in enumerate((rows, columns) for rows in parts for columns in parts):
        regions[:, rows, columns] = number
    cut = windows.to_windows(regions, window)[..., 0]
    expected = (cut[:, None] != cut[:, :, None]) * -100.0
    assert torch.equal(windows.shift_mask(grid, window, shift), expected)


@both
@pytest.mark.parametrize("shift", [0, 2])
def test_padded_windows_equal_attention_token_by_token(case, shift):
    """Each token attends to those of its window that are its neighbours on the padded map, padding included."""
    window, grid = 4, (5, 6)
    attention = tiny_model(case).base_model.stages[1].layers[1].attention.double()
    attention.config._attn_implementation = "eager"
    feature_map = torch.randn(1, *grid, 16, dtype=torch.float64)
    with torch.no_grad():
        output = attention(feature_map.flatten(1, 2), grid, window, shift)[0].unflatten(1, grid)
        bias = attention.position_bias.relative_bias(window)
        padded = functional.pad(feature_map, (0, 0, 0, 2, 0, 3))[0]  # 8 x 8
        query, key, value = attention.qkv(padded).unflatten(-1, (3, attention.num_heads, -1)).unbind(2)
        if case == "swinv2":
            query, key = functional.normalize(query, dim=-1), functional.normalize(key, dim=-1)
            scaling = attention.logit_scale.clamp(max=torch.tensor(100.0).double().log()).exp().view(-1)
        else:
            scaling = torch.full((attention.num_heads,), attention.scaling, dtype=torch.float64)
        for row, column in [(0, 0), (1, 3), (4, 5), (2, 2), (3, 1)]:
            # Windows begin at multiples of the side, moved by the shift; at the border they are cut off.
            starts = [(side - shift) // window * window + shift for side in (row, column)]
            rows, columns = (range(max(start, 0), min(start + window, 8)) for start in starts)
            keys = [(y, x) for y in rows for x in columns]
            scores = torch.stack([(query[row, column] * key[y, x]).sum(-1) * scaling for y, x in keys], dim=-1)

            def place(y, x, starts=starts):
                return (y - starts[0]) * window + x - starts[1]

            scores = scores + torch.stack([bias[:, place(row, column), place(y, x)] for y, x in keys], dim=-1)
            values = torch.stack([value[y, x] for y, x in keys], dim=1)
            context = (scores.softmax(-1)[..., None] * values).sum(1).flatten()
            torch.testing.assert_close(output[0, row, column], attention.proj(context))


@both
@pytest.mark.parametrize(
    ("size", "classification"),
    [
        ((32, 32), [(4, 2), (4, 2), (4, 0)]),  # grids of 16, 8 and 4 tokens: the last is one window
        ((64, 32), [(4, 2), (4, 2), (4, 0)]),
        ((64, 64), [(4, 2), (4, 2), (4, 2)]),
        ((16, 16), [(4, 2), (4, 0), (2, 0)]),  # a map that is smaller than a window shrinks it
        ((40, 32), [(4, 2), (4, 2), (4, 2)]),  # where the original cannot run, windows are padded and shifted
        ((31, 32), [(4, 2), (4, 2), (4, 2)]),
    ],
)
def test_windows_of_a_size(case, size, classification):
    assert tiny_model(case).base_model.plan_windows(*size) == classification
    # Dense prediction always pads and shifts.
    assert tiny_model(case, "Backbone").base_model.plan_windows(*size) == [(4, 2)] * 3


def test_a_table_for_another_window_is_resized_as_the_original_does():
    """utils.py load_pretrained of microsoft/Swin-Transformer@f82860b."""
    bias = modeling_swin.SwinPositionBias(4, 3)
    torch.nn.init.normal_(bias.weight)
    table = functional.interpolate(bias.weight.t().reshape(1, 3, 7, 7), size=(11, 11), mode="bicubic").reshape(3, -1)
    expected = table[:, windows.relative_position_index(6)]
    torch.testing.assert_close(bias.relative_bias(6), expected)


@both
def test_masks_and_indices_are_made_once_a_size(case, monkeypatch):
    calls = []

    def counted(function):
        def count(*args, **kwargs):
            calls.append(function.__name__)
            return function(*args, **kwargs)

        return count

    monkeypatch.setattr(windows, "shift_mask", counted(windows.shift_mask))
    for module in (modeling_swin, modeling_swinv2):
        monkeypatch.setattr(module, "relative_position_index", counted(module.relative_position_index))
    model = tiny_model(case)
    pixel_values = random_pixels(model.config, batch=3)
    with torch.no_grad():
        first = model(pixel_values).logits
        made = list(calls)
        assert made.count("shift_mask") == 2  # the second layers of two stages
        assert made.count("relative_position_index") == 1  # all windows are of one size
        # Another batch of the same size, and another model.
        torch.testing.assert_close(model(pixel_values[:1]).logits, first[:1], rtol=1e-4, atol=1e-5)
        assert calls == made
        assert torch.equal(fresh(model)(pixel_values).logits, first)
    # What has no parameters is kept while training, too.
    model.train()
    model(pixel_values).logits.sum().backward()
    assert calls == made


@both
def test_a_backbone_has_a_norm_for_each_stage_that_it_returns(case, tmp_path):
    classifier = tiny_model(case)
    classifier.save_pretrained(tmp_path)
    names = ["stage1", "stage3"]
    backbone_class = type(tiny_model(case, "Backbone"))
    backbone, loading = backbone_class.from_pretrained(tmp_path, out_features=names, output_loading_info=True)
    assert set(loading["missing_keys"]) == {"stage_norms.stage1.weight", "stage_norms.stage1.bias"}
    assert (backbone.stage_norms["stage1"].weight == 1).all()
    with torch.no_grad():
        maps = backbone(random_pixels(backbone.config)).feature_maps
    # A new norm leaves every pixel with mean 0 and variance 1.
    torch.testing.assert_close(maps[0].mean(1), torch.zeros_like(maps[0][:, 0]), atol=1e-5, rtol=0)
    assert [tuple(feature_map.shape[1:]) for feature_map in maps] == [(8, 16, 16), (32, 4, 4)]


@both
def test_maps_within_windows_are_not_drawn(case):
    model = tiny_model(case)
    with pytest.raises(UserError, match="windows"):
        attention_maps(model, random_pixels(model.config))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"window_size": 0}, "window_size=0 must be at least 1"),
        ({"num_heads": [3, 2, 4]}, "not a multiple of num_heads"),
        ({"depths": [1, 2]}, "one entry a stage"),
    ],
)
@both
def test_fields_that_do_not_fit_are_named(case, fields, message):
    with pytest.raises(StrictDataclassError, match=message):
        tiny_config(case, **fields)


@pytest.mark.parametrize("case", ["swin", "swinv2", "swinv2-unbiased", "localvit_swin"])
def test_padded_windows_are_finite_in_half_precision(case):
    """
    Keys of padding are zero where they have no bias, and the epsilon of their length is less than half precision can
    tell.
    """
    model = tiny_model(case)
    image = torch.randn(2, 3, 37, 42)
    with torch.no_grad():
        expected = model(image).logits
        logits = model.half()(image.half()).logits
    assert (logits - expected).abs().max() < 0.1 * expected.abs().max()
