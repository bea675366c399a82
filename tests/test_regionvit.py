"""RegionViT: what its weights were trained with, written out pair by pair, and its two kinds of maps."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from models import random_pixels, tiny_config, tiny_model

from hf_vit_family.modeling.modeling_regionvit import (
    RegionvitPositionBias,
    join_regions,
    padding_mask,
    rotated_position_index,
    split_regions,
)


@pytest.mark.parametrize("window", [1, 3, 4, 7])
def test_positions_count_from_half_a_window_and_wrap_around(window):
    side = 2 * window - 1
    table = torch.arange(side * side).reshape(side, side)
    index = rotated_position_index(window)
    for query in range(window * window):
        for key in range(window * window):
            row = key // window - query // window + window // 2
            column = key % window - query % window + window // 2
            assert index[query, key] == table[row, column]  # indexing wraps negative numbers around


def test_the_mask_is_exact_but_in_the_last_window():
    window, regions, padding = 3, (2, 3), (1, 2)
    allowed = padding_mask(regions, padding, window)
    assert allowed.shape == (6, 10, 10)

    def is_real(region: int, token: int, by_row: bool, by_column: bool) -> bool:
        """Whether a token of a window is the regional one or no padding, looking at its row, its column or both."""
        if token == 0:
            return True
        row, column = divmod(token - 1, window)
        below = region // regions[1] == regions[0] - 1 and row >= window - padding[0]
        right = region % regions[1] == regions[1] - 1 and column >= window - padding[1]
        return not (by_row and below) and not (by_column and right)

    for region in range(6):
        for query in range(10):
            for key in range(10):
                by_row, by_column = (
                    is_real(region, query, rows, not rows) and is_real(region, key, rows, not rows)
                    for rows in (True, False)
                )
                expected = (by_row or by_column) if region == 5 else (by_row and by_column)
                assert allowed[region, query, key] == expected


def test_the_regional_token_has_no_position_bias():
    module = RegionvitPositionBias(window=3, num_heads=2)
    torch.nn.init.normal_(module.weight)
    with torch.no_grad():
        bias = module(2, (2, 2), (0, 0))
        masked = module(2, (2, 2), (1, 0))
    assert bias.shape == masked.shape == (8, 2, 10, 10)
    assert (bias[:, :, 0] == 0).all()
    assert (bias[:, :, :, 0] == 0).all()
    assert torch.equal(bias[0, :, 1:, 1:], module.weight[:, rotated_position_index(3)])
    assert torch.equal(masked[0], bias[0])
    assert (masked[2, :, 0, 7:] == torch.finfo(torch.float32).min).all()


@pytest.mark.parametrize(("grid", "regions"), [((6, 9), (2, 3)), ((5, 7), (2, 3)), ((6, 7), (3, 3))])
def test_windows_go_there_and_back(grid, regions):
    local, regional = torch.randn(2, 4, *grid), torch.randn(2, 4, *regions)
    windows = join_regions(local, regional, 3)
    assert windows.shape == (2 * regions[0] * regions[1], 10, 4)
    for given, returned in zip((local, regional), split_regions(windows, grid, regions, 3), strict=True):
        assert torch.equal(given, returned)


def test_an_image_that_fits_along_one_side_alone_gets_one_region_more_there():
    embeddings = tiny_model("regionvit").regionvit.embeddings
    shapes = {
        size: tuple(embeddings(torch.randn(1, 3, *size))[1].shape[-2:]) for size in [(24, 36), (24, 35), (23, 35)]
    }
    assert shapes == {(24, 36): (2, 3), (24, 35): (3, 3), (23, 35): (2, 3)}


def test_norms_of_stages_are_those_of_the_local_maps():
    plain, normed = (
        tiny_model("regionvit", "Backbone", stage_norms=norms, out_features=["stage1"]) for norms in (False, True)
    )
    normed.load_state_dict(plain.state_dict(), strict=False)
    pixel_values = random_pixels(plain.config)
    with torch.no_grad():
        (expected,), (feature_map,) = plain(pixel_values).feature_maps, normed(pixel_values).feature_maps
        torch.testing.assert_close(feature_map, normed.regionvit.stages[0].norm(expected))
    assert not torch.allclose(feature_map, expected)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"patch_size": 8}, "patch_size=8 does not fit patch_conv_type='3conv'"),
        ({"window_sizes": [3, 3, 4]}, "must be equal"),
        ({"hidden_sizes": [16, 24, 32]}, "each must be a multiple of the one before"),
        ({"num_heads": [2, 3, 4]}, "not a multiple of num_heads"),
    ],
)
def test_fields_that_do_not_fit_are_named(fields, message):
    with pytest.raises(StrictDataclassError) as caught:
        tiny_config("regionvit", **fields)
    assert message in str(caught.value.__cause__ or caught.value)
