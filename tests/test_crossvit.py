"""CrossViT's own abilities: resize every image to one size, as the original does, or see images as they are."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from models import random_mask, random_pixels, tiny_model
from torch import nn


def models(head: str | None = None):
    return [tiny_model("crossvit", head, input_resizing=resizing) for resizing in ("native", "fixed")]


def test_both_resizings_agree_at_the_configured_size():
    native, fixed = models()
    pixel_values = random_pixels(native.config)
    with torch.no_grad():
        assert torch.equal(native(pixel_values).logits, fixed(pixel_values).logits)


@pytest.mark.parametrize("size", [(60, 48), (48, 60), (37, 101)])
def test_fixed_resizing_brings_every_image_to_one_size(size):
    _, fixed = models()
    pixel_values = random_pixels(fixed.config, size=size)
    seen = []
    for branch in fixed.crossvit.embeddings.branches:
        branch.patch_embeddings.projection.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        fixed(pixel_values)
    for image, side in zip(seen, (48, 32), strict=True):
        expected = nn.functional.interpolate(pixel_values, size=(side, side), mode="bicubic", align_corners=False)
        assert torch.equal(image, expected)


def test_feature_maps_of_fixed_resizing_have_one_size():
    _, fixed = models("Backbone")
    for size in [(48, 48), (37, 101)]:
        (feature_map,) = fixed(random_pixels(fixed.config, size=size)).feature_maps
        assert feature_map.shape[-2:] == fixed.config.feature_map_sizes(*size)[-1] == (4, 4)


def test_fixed_resizing_refuses_to_mask_other_sizes():
    _, fixed = models("ForMaskedImageModeling")
    config, size = fixed.config, (60, 48)
    assert fixed(random_pixels(config), bool_masked_pos=random_mask(config)).loss.isfinite()
    with pytest.raises(ValueError, match=r"60x48 does not fit: .* needs 48x48"):
        fixed(random_pixels(config, size=size), bool_masked_pos=random_mask(config, size=size))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_size": 50}, "image_size=50 is not a multiple"),
        ({"hidden_sizes": [24, 31]}, "hidden_sizes=.* is not a multiple of num_heads"),
        ({"patch_sizes": [12, 16, 20]}, "patch_sizes=.* must be two positive numbers"),
        ({"depths": [[1, 2], [1]]}, "depths=.* two positive numbers for each stage"),
        ({"patch_embedding_type": "convolutional", "patch_sizes": [8, 16]}, r"needs patch_sizes of \[12, 16\]"),
    ],
)
def test_fields_that_do_not_fit_are_named(fields, message):
    with pytest.raises(StrictDataclassError, match=message):
        tiny_model("crossvit", **fields)
