"""Attention maps, rollout and relevance: against hand computations, and on every kind of readout."""

import copy
import math

import numpy as np
import pytest
import torch
from models import random_pixels, tiny_model
from PIL import Image
from vit_family_launcher import main

from hf_vit_family.errors import UserError
from hf_vit_family.explain.attention_maps import (
    AttentionRecorder,
    attention_maps,
    attention_rollout,
    class_relevance,
    gradient_rollout,
    heat_picture,
    overlay,
    rollout,
    to_picture,
)
from hf_vit_family.modeling.image_processing_vitf import VitfImageProcessor
from hf_vit_family.variants import create_model

SMALL = {"image_size": 16, "patch_size": 4, "hidden_size": 12, "num_hidden_layers": 3, "num_labels": 5}
# Readout of the head: a variant and overrides.
MODELS = {
    "class token": ("vit_tiny_patch16_224", SMALL),
    "class and register tokens": ("vit_tiny_patch16_224", {**SMALL, "num_register_tokens": 2}),
    "mean": ("vit_small_patch16_gap_224", {**SMALL, "num_attention_heads": 3}),
    "class and distillation token": ("deit_tiny_distilled_patch16_224", SMALL),
}


def make_model(kind: str = "class token", **overrides):
    """A model whose every weight is random: a new head of ViT would be zero, and no class would have a gradient."""
    torch.manual_seed(0)
    variant, options = MODELS[kind]
    model = create_model(variant, **{**options, **overrides}).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture
def images():
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def hooks(model) -> list[int]:
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_forward_pre_hooks_with_kwargs")
    return [len(getattr(module, name)) for module in model.modules() for name in names]


def random_maps(layers: int, heads: int, tokens: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, heads, tokens, tokens, generator=generator).softmax(-1) for _ in range(layers)]


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_the_recorder_gives_predictions_and_maps_and_leaves_no_hooks(images, implementation):
    model = make_model(attn_implementation=implementation)
    before = hooks(model)
    plain = model(images).logits
    with AttentionRecorder(model) as recorder:
        logits, maps = recorder(images)
        assert hooks(model) != before
        recorder(images)
        assert len(recorder.maps) == 3  # of the last pass only
    assert hooks(model) == before
    assert maps.shape == (2, 3, 3, 17, 17)
    torch.testing.assert_close(logits, plain)
    torch.testing.assert_close(maps.sum(-1), torch.ones(maps.shape[:-1]))
    expected = torch.stack(model(images, output_attentions=True).attentions, dim=1)
    torch.testing.assert_close(maps, expected)
    assert model.config._attn_implementation == implementation


def test_the_recorder_leaves_no_hooks_after_an_error(images):
    model = make_model()
    before = hooks(model)
    with pytest.raises(ValueError, match="does not fit"), AttentionRecorder(model) as recorder:
        recorder(images[..., :15])
    assert hooks(model) == before


def test_rollout_of_one_head_equals_the_hand_computation():
    first = torch.tensor([[0.2, 0.8], [0.5, 0.5]])
    second = torch.tensor([[0.9, 0.1], [0.4, 0.6]])
    # (A + 1) / 2 of each: [[.6, .4], [.25, .75]] and [[.95, .05], [.2, .8]]; the second times the first.
    expected = torch.tensor([[[0.95 * 0.6 + 0.05 * 0.25, 0.95 * 0.4 + 0.05 * 0.75], [0.32, 0.68]]])
    torch.testing.assert_close(rollout([first[None, None], second[None, None]]), expected)


def test_rollout_averages_heads_and_keeps_rows_normalised():
    maps = random_maps(4, 3, 6)
    result = rollout(maps)
    torch.testing.assert_close(result.sum(-1), torch.ones(2, 6))
    torch.testing.assert_close(result, rollout([attention.mean(1, keepdim=True) for attention in maps]))


def test_gradient_rollout_equals_the_hand_computation():
    maps, gradients = random_maps(2, 3, 5), [torch.randn(2, 3, 5, 5) for _ in range(2)]
    first, second = ((g * a).clamp(min=0).mean(1) for a, g in zip(maps, gradients, strict=True))
    identity = torch.eye(5)
    torch.testing.assert_close(gradient_rollout(maps, gradients), (identity + second) @ (identity + first))


@pytest.mark.parametrize("kind", MODELS)
def test_every_method_covers_the_grid_of_patches(images, kind):
    model = make_model(kind)
    expected = model(images).logits
    logits, maps = attention_maps(model, images)
    torch.testing.assert_close(logits, expected)
    assert [tuple(attention.shape) for attention in maps] == [(2, 3, 4, 4)] * 3
    logits, heat = attention_rollout(model, images)
    assert heat.shape == (2, 4, 4)
    assert (heat > 0).all()
    logits, relevance = class_relevance(model, images, torch.tensor([1, 3]))
    torch.testing.assert_close(logits, expected)
    assert relevance.shape == (2, 4, 4)
    assert relevance.isfinite().all()
    assert (relevance >= 0).all()
    assert (relevance > 0).any()


def test_an_image_that_is_not_square_keeps_its_grid(images):
    model = make_model()
    wide = torch.randn(1, 3, 8, 24)
    assert attention_maps(model, wide)[1][0].shape == (1, 3, 2, 6)
    assert attention_rollout(model, wide)[1].shape == (1, 2, 6)


def test_maps_are_the_rows_of_the_class_token(images):
    model = make_model("class and register tokens")
    full = model(images, output_attentions=True).attentions
    for attention, shown in zip(full, attention_maps(model, images)[1], strict=True):
        torch.testing.assert_close(shown.flatten(2), attention[:, :, 0, 3:])


def test_relevance_is_specific_to_the_class_and_the_image(images):
    model = make_model()
    first, second = (class_relevance(model, images, torch.full((2,), c))[1] for c in (0, 1))
    assert not torch.allclose(first, second, rtol=0.05)
    alone = class_relevance(model, images[:1], torch.tensor([0]))[1]
    torch.testing.assert_close(alone, first[:1])


def test_relevance_needs_no_trainable_parameter_and_leaves_no_gradient(images):
    model = make_model()
    expected = class_relevance(model, images, torch.tensor([1, 3]))[1]
    frozen = copy.deepcopy(model).requires_grad_(False)
    with torch.no_grad():
        torch.testing.assert_close(class_relevance(frozen, images, torch.tensor([1, 3]))[1], expected)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_relevance_finds_the_patch_that_decides():
    """
    One layer, whose values are zero but for one patch of the image: only attention to that patch can speak for a class.
    """
    model = make_model(num_hidden_layers=1)
    patch = 5
    attention = model.vit.layers[0].attention

    def keep_one_value(module, args, output):
        width = output.shape[-1] // 3
        values = torch.zeros_like(output[..., 2 * width :])
        values[:, 1 + patch] = output[:, 1 + patch, 2 * width :]
        return torch.cat((output[..., : 2 * width], values), dim=-1)

    handle = attention.qkv.register_forward_hook(keep_one_value)
    image = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    speaking = [class_relevance(model, image, torch.tensor([c]))[1].flatten() for c in range(5)]
    handle.remove()
    best = [int(relevance.argmax()) for relevance in speaking if relevance.max() > 0]
    assert best
    assert set(best) == {patch}


def test_models_without_square_maps_say_which_method_applies(images):
    model = make_model()

    class Pooled(torch.nn.Module):
        """Attends from all tokens to every second one."""

        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, hidden_states, **kwargs):
            output, attention = self.inner(hidden_states, **kwargs)
            return output, attention[..., ::2]

    model.vit.layers[1].attention = Pooled(model.vit.layers[1].attention)
    model.vit._can_record_outputs = {"attentions": Pooled}
    for function in (attention_rollout, lambda m, x: class_relevance(m, x, torch.tensor([0, 0]))):
        with pytest.raises(UserError, match="the method 'maps' may show them"):
            function(model, images)
    with pytest.raises(UserError, match="no method shows"):
        attention_maps(model, images)
    model.vit._can_record_outputs = {}
    with pytest.raises(UserError, match="has no attention layer"):
        attention_maps(model, images)


def test_maps_of_windows_are_refused(images):
    model = make_model()

    def into_windows(module, args, output):
        return output[0], output[1].unflatten(2, (1, -1)).transpose(1, 2).repeat(2, 1, 1, 1, 1).flatten(1, 2)

    handle = model.vit.layers[0].attention.register_forward_hook(into_windows)
    with pytest.raises(UserError, match="within windows"):
        attention_maps(model, images)
    handle.remove()


def test_maps_of_stages_are_laid_out_on_the_grid_of_their_stage(images):
    model = tiny_model("pit")
    pixel_values = random_pixels(model.config, batch=1)
    _, maps = attention_maps(model, pixel_values)
    sizes = model.config.feature_map_sizes(*pixel_values.shape[-2:])[1:]
    expected = [size for size, depth in zip(sizes, model.config.depths, strict=True) for _ in range(depth)]
    assert [tuple(attention.shape[-2:]) for attention in maps] == expected
    assert len(set(expected)) > 1


def test_before_the_class_token_joins_a_map_is_the_mean_over_patches():
    model = tiny_model("pvt")
    pixel_values = random_pixels(model.config, batch=1)
    with torch.no_grad():
        first, *_, last = model(pixel_values, output_attentions=True).attentions
    _, maps = attention_maps(model, pixel_values)
    torch.testing.assert_close(maps[0], first.mean(-2).unflatten(-1, (4, 4)))
    torch.testing.assert_close(maps[-1], last[:, :, 0, 1:].unflatten(-1, (4, 4)))


def test_stacking_maps_of_different_shapes_is_refused():
    recorder = AttentionRecorder(make_model())
    recorder.maps = [torch.zeros(1, 2, 4, 4), torch.zeros(1, 4, 4, 4)]
    with pytest.raises(UserError, match="differ in shape"):
        recorder.stacked()


# Pictures


def test_the_picture_is_what_the_model_saw():
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    processor = VitfImageProcessor(size={"height": 16, "width": 16})
    pixel_values = processor(Image.fromarray(pixels), return_tensors="pt")["pixel_values"][0]
    picture = to_picture(pixel_values, processor.image_mean, processor.image_std)
    assert picture.size == (224, 224)
    assert np.array_equal(np.asarray(picture)[::14, ::14], pixels)
    assert to_picture(torch.zeros(1, 16, 16), [0.5], [0.5]).getpixel((0, 0)) == (128, 128, 128)


def test_an_overlay_is_strongest_where_the_map_is_largest():
    picture = Image.new("RGB", (224, 224), "gray")
    heat = torch.zeros(4, 4)
    heat[1, 2] = 3.0
    change = np.abs(np.asarray(overlay(picture, heat), dtype=int) - 128).sum(-1)
    row, column = np.unravel_index(change.argmax(), change.shape)
    assert (row // 56, column // 56) == (1, 2)
    assert overlay(picture, torch.ones(4, 4)).size == (224, 224)  # nothing stands out
    assert heat_picture(heat).getpixel((2, 1)) == (252, 255, 164)  # the end of the scale
    assert math.isclose(sum(heat_picture(torch.ones(2, 2)).getpixel((0, 0))), 4, abs_tol=4)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    make_model().save_pretrained(folder)
    VitfImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    Image.new("RGB", (20, 30), "red").save(folder / "a.png")
    return folder


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--method", "relevance", "--top", "3"],
        ["--method", "maps"],
        ["--method", "maps", "--layer", "2", "--head", "1"],
    ],
)
def test_the_command_writes_one_sheet(model_folder, tmp_path, options):
    images = [str(model_folder / "a.png")] * 2
    output = tmp_path / "sheet.png"
    assert main(["attend", *images, "--model", str(model_folder), "--output", str(output), *options]) == 0
    sheet = np.asarray(Image.open(output).convert("L"))
    assert min(sheet.shape) > 100
    assert sheet.std() > 5
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "maps", "--layer", "4"], "--layer 4: the model has 3, counted from 1"),
        (["--method", "maps", "--head", "0"], "--head 0: the model has 3"),
        (["--layer", "1"], "--layer and --head choose among --method maps"),
        (["--top", "0"], "--top 0"),
        (["--output", "x.jpg"], "the picture is a PNG"),
    ],
)
def test_bad_options_of_the_command_are_one_line(model_folder, capsys, options, message):
    assert main(["attend", str(model_folder / "a.png"), "--model", str(model_folder), *options]) == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]


def test_a_broken_image_is_one_line(model_folder, tmp_path, capsys):
    (tmp_path / "bad.png").write_text("x")
    assert main(["attend", str(tmp_path / "bad.png"), "--model", str(model_folder)]) == 2
    assert "no image of a known format" in capsys.readouterr().err
