"""What every architecture can do: one suite over the registry. A new architecture is covered by its line in models.py."""

import copy
import json
import math
import re

import onnxruntime
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from models import (
    COSTLY_HEADS,
    HEADS,
    IMAGE_CASES,
    PLAIN_CASES,
    TINY,
    TRAINABLE_HEADS,
    VIDEO_CASES,
    architecture_of,
    classification_head,
    fresh,
    random_mask,
    random_pixels,
    randomise,
    size_multiple,
    tiny_config,
    tiny_model,
    training_inputs,
)
from peft import LoraConfig, get_peft_model
from torch import nn
from torchao.quantization import Int8WeightOnlyConfig
from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoModel,
    DetrConfig,
    DetrForObjectDetection,
    TorchAoConfig,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)
from transformers.exporters import OnnxConfig, OnnxExporter
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from hf_vit_family import ARCHITECTURES
from hf_vit_family.modeling.attention import eager_attention_forward
from hf_vit_family.modeling.configuration_vitf import pair
from hf_vit_family.modeling.embeddings import PositionEmbeddings, TimeEmbeddings
from hf_vit_family.modeling.modeling_coatnet import CoatnetTableBias
from hf_vit_family.modeling.modeling_levit import LevitPositionBias
from hf_vit_family.modeling.modeling_mvit import MvitAxisPositions
from hf_vit_family.modeling.modeling_t2t_vit import sinusoid_table
from hf_vit_family.registry import AUTO_CLASSES

every_case = pytest.mark.parametrize("case", TINY)
image_case = pytest.mark.parametrize("case", IMAGE_CASES)
video_case = pytest.mark.parametrize("case", VIDEO_CASES)
plain_case = pytest.mark.parametrize("case", PLAIN_CASES)
every_head = pytest.mark.parametrize(("case", "head"), HEADS)
costly_head = pytest.mark.parametrize(("case", "head"), COSTLY_HEADS)
trainable_head = pytest.mark.parametrize(("case", "head"), TRAINABLE_HEADS)

CLOSE = {"rtol": 1e-4, "atol": 1e-5}

# Architectures that no one published trained models of.
WITHOUT_VARIANTS = {"rvt"}
# Architectures that mix the heads' maps after the softmax.
MIXES_HEADS = {"cait", "deepvit"}
# Models that look at each frame alone.
WITHOUT_TIME = {"timesformer-space"}
# Models all of whose attention layers mix heads: no implementation can take that over from them.
OWN_MAPS = {("cait", "ForMaskedImageModeling"), ("cait", "Backbone")}
# Beginning of a class name to the parameters that cannot change its loss while training: rounding is all their gradient.
UNTRAINED = {
    "VitfCait": r"mix_scores\.bias$",  # one number for all keys, which the softmax takes out
    # The class token alone is read, and its query passes by the convolution.
    "VitfCvtForImageClassification": r"stages\.2\.layers\.1\.attention\.query\.(conv|norm)\.",
    "VitfCoatnet": r"position_bias\.fc2_bias$",  # one number for all keys
    "VitfDeepvit": r"mixing\.bias$",  # one number for all entries of a map, which batch norm takes out
    # It changes the patches, of which the class token sees nothing more.
    "VitfLocalvitForImageClassification": r"layers\.1\.feed_forward\.",
    "VitfLocalvitTntForImageClassification": r"layers\.1\.feed_forward\.",
    "VitfLocalvitPvtForImageClassification": r"stages\.1\.layers\.1\.feed_forward\.",
    # One number for all keys; and in the last layer the class token, which alone is read, has no distances and is not pooled.
    "VitfMvit": r"key_pool\.layernorm\.bias$",
    "VitfMvitVideoFor": r"key_pool\.layernorm\.bias$|stages\.1\.layers\.1\.attention\.(relative|query_pool\.weight)",
    # In the last layer the classifier reads what the class token asks for, and the decoder what the patches do.
    "VitfRvtForImageClassification": r"layers\.1\.attention\.query\.(depthwise|pointwise)\.",
    "VitfRvtForMaskedImageModeling": r"layers\.1\.attention\.query\.cls_projection\.",
    # In the last layer the classifier reads regional tokens alone, whose scores have no bias.
    "VitfRegionvitForImageClassification": r"stages\.2\.layers\.0\.attention\.position_bias\.",
}


def first_output(model, *args, **kwargs) -> torch.Tensor:
    """Logits, feature map, reconstruction or last hidden state, without gradient."""
    with torch.no_grad():
        output = model(*args, **kwargs)[0]
    return output[0] if isinstance(output, tuple) else output


def is_trained(model, name: str) -> bool:
    """Whether the loss depends on a parameter."""
    patterns = [pattern for prefix, pattern in UNTRAINED.items() if type(model).__name__.startswith(prefix)]
    return model.get_parameter(name).requires_grad and not any(re.search(pattern, name) for pattern in patterns)


def gradients(model, inputs) -> dict[str, torch.Tensor]:
    """The gradient of the loss for each parameter that it depends on, by name."""
    model.zero_grad()
    model(**inputs).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if is_trained(model, name)}


def test_every_architecture_has_a_tiny_case():
    assert list(ARCHITECTURES) == PLAIN_CASES


# Auto classes, saving, loading


@every_head
def test_auto_classes_and_round_trip(case, head, tmp_path):
    config, model = tiny_config(case), tiny_model(case, head)
    assert type(AUTO_CLASSES[head].from_config(config)) is type(model)
    model.save_pretrained(tmp_path)
    loaded_config = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded_config) is type(config)
    loaded, report = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    pixel_values = random_pixels(config)
    assert torch.equal(first_output(loaded, pixel_values), first_output(model, pixel_values))
    if AUTO_CLASSES[head] is not AutoBackbone:  # AutoBackbone.from_pretrained needs the network
        assert type(AUTO_CLASSES[head].from_pretrained(tmp_path)) is type(model)


@every_case
def test_base_model_loads_from_a_classifier(case, tmp_path):
    model = tiny_model(case)
    model.save_pretrained(tmp_path)
    base, report = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["mismatched_keys"]
    pixel_values = random_pixels(model.config)
    assert torch.equal(first_output(base, pixel_values), first_output(model.base_model, pixel_values))


@every_case
def test_another_number_of_labels(case, tmp_path):
    model = tiny_model(case)
    model.save_pretrained(tmp_path)
    loaded, report = type(model).from_pretrained(
        tmp_path, num_labels=3, ignore_mismatched_sizes=True, output_loading_info=True
    )
    assert report["mismatched_keys"]
    assert loaded(random_pixels(model.config)).logits.shape == (2, 3)
    pixel_values = random_pixels(model.config)
    assert torch.equal(first_output(loaded.base_model, pixel_values), first_output(model.base_model, pixel_values))


@every_head
def test_loading_over_the_meta_device_leaves_no_garbage(case, head, tmp_path):
    """A key that is missing from the file is initialised, and only that key; buffers outside the file are refilled."""
    model = tiny_model(case, head)
    model.save_pretrained(tmp_path)
    removed = next(iter(model.state_dict()))
    kept = {name: value for name, value in model.state_dict().items() if name != removed}
    loaded = type(model).from_pretrained(None, config=model.config, state_dict=kept)
    for name, value in loaded.state_dict().items():
        assert name == removed or torch.equal(value, model.state_dict()[name]), name
    loaded = type(model).from_pretrained(tmp_path)
    for (name, buffer), (_, expected) in zip(loaded.named_buffers(), model.named_buffers(), strict=True):
        assert torch.equal(buffer, expected), name
    assert all(tensor.device.type == "cpu" for tensor in (*loaded.parameters(), *loaded.buffers()))


# Sizes


@every_head
def test_any_input_size(case, head):
    model = tiny_model(case, head)
    (rows, columns), (height, width) = size_multiple(model.config), pair(model.config.image_size)
    for size in [
        (max(rows, height // 2 // rows * rows), max(columns, width // 2 // columns * columns)),
        (2 * height, 2 * width),
        (height, width + columns),
        (height + 2 * rows, width),
    ]:
        pixel_values = random_pixels(model.config, size=size)
        output = first_output(model, pixel_values)
        assert output.isfinite().all()
        # Each image stands alone, and the content matters.
        torch.testing.assert_close(output[:1], first_output(model, pixel_values[:1]), **CLOSE)
        assert not torch.allclose(output, first_output(model, pixel_values.flip(-1)), **CLOSE)
        if head == "ForMaskedImageModeling":
            output = model(pixel_values, bool_masked_pos=random_mask(model.config, size=size))
            assert output.reconstruction.shape == pixel_values.shape
            assert output.loss.isfinite()


@every_head
def test_non_square_images_and_patches(case, head):
    if "patch_size" not in TINY[case]:
        overrides = {"image_size": (48, 96)}
    else:
        rows, columns = pair(TINY[case]["patch_size"])
        overrides = {"patch_size": (rows, 2 * columns), "image_size": (4 * rows, 6 * columns)}
    model = tiny_model(case, head, **overrides)
    output = first_output(model, random_pixels(model.config))
    assert output.isfinite().all()
    if head == "Backbone":
        rows, columns = model.strides[0]
        height, width = pair(model.config.image_size)
        assert output.shape[-2:] == (-(-height // rows), -(-width // columns))


@every_case
def test_configured_size_needs_no_resizing(case):
    """A model built for another size equals the model that is given that size, with its positions resized."""
    model = tiny_model(case)
    rows, columns = size_multiple(model.config)
    height, width = pair(model.config.image_size)
    size = (height + rows, width + 2 * columns)
    pixel_values = random_pixels(model.config, size=size)
    expected = first_output(model, pixel_values)
    tables = {name: p for name, p in model.named_parameters() if name.endswith("position_embeddings.weight")}
    rebuilt = tiny_model(case, image_size=size)
    state = model.state_dict()
    for name in tables:
        module = model.get_submodule(name.removesuffix(".weight"))
        owner = model.get_submodule(name.removesuffix(".position_embeddings.weight"))
        if hasattr(owner, "patch_embeddings"):
            grid = owner.patch_embeddings.grid(*size)
        else:  # a stage has the positions of its own map
            grid = model.config.feature_map_sizes(*size)[int(name.split("stages.")[1].split(".")[0]) + 1]
        # A table of space and time keeps its time.
        state[name] = module((*module.grid[:-2], *grid), like=pixel_values)
        assert state[name].shape != tables[name].shape
    if getattr(model.config, "position_embedding_type", "learned") == "rotary":
        # Rotary frequencies follow the configured size, not the input.
        rebuilt.config.image_size = model.config.image_size
        rebuilt = type(model)(rebuilt.config).eval()
    for name, module in rebuilt.named_modules():
        if isinstance(
            module, (CoatnetTableBias, LevitPositionBias)
        ):  # tables of offsets on a map, which each stage has of its own
            state[f"{name}.weight"] = model.get_submodule(name).resized(module.grid)
        elif isinstance(module, MvitAxisPositions):  # tables of distances along an axis
            state[f"{name}.weight"] = model.get_submodule(name).resized(module.size)
    rebuilt.load_state_dict(state)
    torch.testing.assert_close(first_output(rebuilt, pixel_values), expected, **CLOSE)


@every_case
def test_resized_positions_are_cached_and_never_stale(case):
    model = tiny_model(case)
    height, width = pair(model.config.image_size)
    sizes = [(2 * height, 2 * width), (2 * height, width), (height, width)]

    def check(model):
        for size in sizes:
            pixel_values = random_pixels(model.config, size=size).to(model.dtype)
            outputs = [first_output(model, pixel_values) for _ in range(2)]
            expected = first_output(fresh(model), pixel_values)
            assert torch.equal(outputs[0], expected)
            assert torch.equal(outputs[1], expected)
            # With gradients the table is on the graph of its parameters again.
            torch.testing.assert_close(model(pixel_values)[0].detach(), expected, **CLOSE)
            with torch.inference_mode():
                assert torch.equal(model(pixel_values)[0], expected)

    check(model)
    for optimiser in (
        torch.optim.SGD(model.parameters(), lr=0.05),
        torch.optim.AdamW(model.parameters(), lr=0.05, foreach=True),
        torch.optim.AdamW(model.parameters(), lr=0.05, fused=True),
    ):
        gradients(model, training_inputs(model))
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        check(model)
    model.load_state_dict(randomise(copy.deepcopy(model), seed=1).state_dict())
    check(model)
    model.load_state_dict(randomise(copy.deepcopy(model), seed=2).state_dict(), assign=True)
    check(model)
    clone = copy.deepcopy(model)
    check(randomise(clone, seed=3))
    check(model)
    # Weights written behind autograd's back, as moving averages and some distributed optimisers do between phases.
    model.train()
    for parameter in model.parameters():
        parameter.data.mul_(1.1)
    model.eval()
    check(model)
    check(model.to(torch.float64))
    check(model.to(torch.float32))


@every_case
def test_resizing_happens_once_a_size(case, monkeypatch):
    """The second forward pass at a size resizes no table; another size, or changed weights, do so again."""
    calls = []
    interpolate = nn.functional.interpolate
    model = tiny_model(case)
    height, width = pair(model.config.image_size)
    pixel_values = random_pixels(model.config, size=(2 * height, width))

    def counted(table, *args, **kwargs):
        if table is not pixel_values:  # an image is another one each time
            calls.append(1)
        return interpolate(table, *args, **kwargs)

    monkeypatch.setattr(nn.functional, "interpolate", counted)
    first_output(model, pixel_values)
    resized = len(calls)
    first_output(model, pixel_values)
    assert len(calls) == resized
    first_output(randomise(model, seed=1), pixel_values)
    assert len(calls) == 2 * resized


@every_head
def test_any_number_of_frames(case, head):
    """Half and twice the configured number, and one frame, at the configured size and another."""
    if case not in VIDEO_CASES:
        return
    model = tiny_model(case, head)
    num_frames, (height, width) = model.config.num_frames, pair(model.config.image_size)
    for number in (1, num_frames // 2, 2 * num_frames):
        for size in ((height, width), (height, 2 * width)):
            pixel_values = random_pixels(model.config, size=size, num_frames=number * model.config.frame_stride)
            output = first_output(model, pixel_values)
            assert output.isfinite().all()
            torch.testing.assert_close(output[:1], first_output(model, pixel_values[:1]), **CLOSE)
            if head == "Backbone":
                assert output.shape[1] == number
    with pytest.raises(ValueError, match="frames"):
        model(random_pixels(model.config, num_frames=0))


@video_case
def test_configured_number_of_frames_needs_no_resizing(case):
    """A model built for another number of frames equals the model that is given that number, its positions in time resized."""
    model = tiny_model(case)
    num_frames, stride = model.config.num_frames, model.config.frame_stride
    for number in (num_frames // 2, num_frames + stride, 2 * num_frames):
        pixel_values = random_pixels(model.config, num_frames=number)
        rebuilt, state = tiny_model(case, num_frames=number), model.state_dict()
        for name, module in model.named_modules():
            if isinstance(module, TimeEmbeddings):
                state[f"{name}.weight"] = module(number // stride)
            elif isinstance(module, PositionEmbeddings) and len(module.grid) != 2:  # of time, or of time and space
                state[f"{name}.weight"] = module((number // stride, *module.grid[1:]), like=pixel_values)
            elif isinstance(module, MvitAxisPositions):  # along time, or as they are
                state[f"{name}.weight"] = module.resized(rebuilt.get_submodule(name).size)
        rebuilt.load_state_dict(state)
        torch.testing.assert_close(first_output(rebuilt, pixel_values), first_output(model, pixel_values), **CLOSE)


@video_case
def test_the_order_of_frames_counts(case):
    """Unless a model is made to look at each frame alone."""
    model = tiny_model(case)
    pixel_values = random_pixels(model.config)
    forth, back = first_output(model, pixel_values), first_output(model, pixel_values.flip(1))
    assert torch.allclose(forth, back, **CLOSE) == (case in WITHOUT_TIME)


@every_head
def test_size_that_does_not_fit_is_refused_with_the_multiple(case, head):
    """A size that is one pixel off either works, where the architecture pads, or is refused with a way out."""
    model = tiny_model(case, head)
    height, width = pair(model.config.image_size)
    for size in [(height + 1, width), (height, width + 1), (1, width)]:
        try:
            output = first_output(model, random_pixels(model.config, size=size))
        except ValueError as caught:
            error = str(caught)
            if f"{size[0]}x{size[1]}" not in error:
                pytest.fail(f"the message does not name the size: {error}")
            rows, columns = map(int, re.search(r"multiple of (\d+) .* multiple of (\d+)", error).groups())
            fitting = (max(size[0] // rows, 1) * rows, max(size[1] // columns, 1) * columns)
            output = first_output(model, random_pixels(model.config, size=fitting))
        assert output.isfinite().all()


@every_head
def test_channels(case, head):
    model = tiny_model(case, head, num_channels=5)
    assert first_output(model, random_pixels(model.config)).isfinite().all()
    pixel_values = random_pixels(model.config)
    with pytest.raises(ValueError, match="num_channels=5"):
        model(pixel_values[..., :3, :, :])
    with pytest.raises(ValueError, match=r"\(batch, (frames, )?5, height, width\)"):
        model(pixel_values[0])


# Attention and hidden states


@every_head
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_attentions(case, head, implementation):
    model = tiny_model(case, head, attn_implementation=implementation)
    assert model.config._attn_implementation == implementation
    pixel_values = random_pixels(model.config)
    with torch.no_grad():
        plain, outputs = model(pixel_values), model(pixel_values, output_attentions=True)
    assert plain.attentions is None
    recorded = model.base_model._can_record_outputs["attentions"]
    recorded = recorded if isinstance(recorded, list) else [recorded]
    attention_classes = tuple(getattr(each, "target_class", each) for each in recorded)
    layers = [module for module in model.modules() if isinstance(module, attention_classes)]
    assert len(outputs.attentions) == len(layers) > 0
    for attention in outputs.attentions:
        assert attention.ndim == 4
        sums = attention.sum(-1)
        if architecture_of(case).name in MIXES_HEADS:  # after the softmax: any sum, but one for all rows of a head
            expected = sums[..., :1].expand_as(sums)
        else:
            expected = torch.ones_like(sums)
        torch.testing.assert_close(sums, expected, **CLOSE)
    # Asking for maps changes neither the result nor the configuration.
    assert model.config._attn_implementation == implementation
    torch.testing.assert_close(
        first_output(model, pixel_values, output_attentions=True), first_output(model, pixel_values)
    )


@every_head
def test_hidden_states(case, head):
    model = tiny_model(case, head)
    pixel_values = random_pixels(model.config)
    assert model(pixel_values).hidden_states is None
    hidden_states = model(pixel_values, output_hidden_states=True).hidden_states
    assert len(hidden_states) == len(model.config.stage_names)
    assert all(states.requires_grad and len(states) == 2 for states in hidden_states)
    with torch.no_grad():  # with gradients, a bias may take another kernel
        as_tuple = model(pixel_values, return_dict=False)
    assert torch.equal(as_tuple[0][0] if head == "Backbone" else as_tuple[0], first_output(model, pixel_values))


def users_own_attention(module, query, key, value, attention_mask, **kwargs):
    """Softmax attention that counts its calls."""
    module.calls = getattr(module, "calls", 0) + 1
    return eager_attention_forward(module, query, key, value, attention_mask, **kwargs)


def attention_without_scores(module, query, key, value, attention_mask, **kwargs):
    """What no softmax returns: one value for all queries."""
    return value.mean(2)[:, None].expand(-1, query.shape[2], -1, -1), None


ALL_ATTENTION_FUNCTIONS.register("users_own", users_own_attention)
ALL_ATTENTION_FUNCTIONS.register("without_scores", attention_without_scores)


@every_head
def test_attention_implementations_agree(case, head):
    model = tiny_model(case, head, attn_implementation="eager")
    pixel_values = random_pixels(model.config)
    expected = first_output(model, pixel_values)
    for implementation in ("sdpa", "users_own"):
        model.set_attn_implementation(implementation)
        torch.testing.assert_close(first_output(model, pixel_values), expected, **CLOSE)
    calls = sum(getattr(module, "calls", 0) for module in model.modules())
    assert (calls == 0) == ((case, head) in OWN_MAPS)
    model.set_attn_implementation("without_scores")
    assert torch.allclose(first_output(model, pixel_values), expected, **CLOSE) == ((case, head) in OWN_MAPS)


@plain_case
def test_flex_attention_agrees(case):
    """Flex attention in its unfused form: compiling its kernel for a CPU takes a minute."""
    model = tiny_model(case, attn_implementation="eager")
    if not model._supports_flex_attn:  # refused by name instead of a wrong result
        with pytest.raises(ValueError, match="flex"):
            model.set_attn_implementation("flex_attention")
        return
    pixel_values = random_pixels(model.config)
    expected = first_output(model, pixel_values)
    model.set_attn_implementation("flex_attention")
    with torch.compiler.set_stance("force_eager"):
        torch.testing.assert_close(first_output(model, pixel_values), expected, **CLOSE)


@trainable_head
def test_sdpa_gradients_equal_eager(case, head):
    # In double precision: batch norms of two images magnify rounding.
    model = tiny_model(case, head, attn_implementation="eager").double().train()
    inputs = training_inputs(model)
    expected = gradients(model, inputs)
    model.set_attn_implementation("sdpa")
    for name, gradient in gradients(model, inputs).items():
        torch.testing.assert_close(gradient, expected[name], **CLOSE, msg=lambda text, name=name: f"{name}: {text}")


@plain_case
def test_attention_dropout_reaches_every_implementation(case):
    model = tiny_model(case, attention_probs_dropout_prob=0.5)
    pixel_values = random_pixels(model.config)
    for implementation in ("eager", "sdpa"):
        model.set_attn_implementation(implementation)
        model.train()
        assert not torch.allclose(first_output(model, pixel_values), first_output(model, pixel_values))
        model.eval()
        assert torch.equal(first_output(model, pixel_values), first_output(model, pixel_values))


# Training


@trainable_head
def test_every_parameter_is_trained(case, head):
    model = tiny_model(case, head).train()
    trained = gradients(model, training_inputs(model))
    for name, gradient in trained.items():
        assert gradient.isfinite().all(), name
        assert gradient.abs().max() > 0, name
    largest = max(gradient.abs().max() for gradient in trained.values())
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and name not in trained:
            assert parameter.grad.abs().max() < 1e-4 * largest, name


@every_case
def test_backbone_leaves_no_parameter_unused(case):
    model = tiny_model(case, "Backbone").train()
    sum(feature_map.square().mean() for feature_map in model(random_pixels(model.config)).feature_maps).backward()
    assert [
        name for name, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None
    ] == []


@trainable_head
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing(case, head, use_reentrant):
    # In double precision: batch norms of two images magnify rounding.
    model = tiny_model(case, head, drop_path_rate=0.5, hidden_dropout_prob=0.1).double().train()
    inputs = training_inputs(model)
    torch.manual_seed(0)
    expected = gradients(model, inputs)
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    model.enable_input_require_grads()
    assert model.is_gradient_checkpointing
    torch.manual_seed(0)
    for name, gradient in gradients(model, inputs).items():
        torch.testing.assert_close(gradient, expected[name], msg=lambda text, name=name: f"{name}: {text}")


@every_case
def test_drop_path_acts_only_while_training(case):
    model = tiny_model(case, drop_path_rate=0.5)
    pixel_values = random_pixels(model.config, batch=8)
    without = tiny_model(case)
    assert torch.equal(first_output(model, pixel_values), first_output(without, pixel_values))
    model.train()
    torch.manual_seed(0)
    assert not torch.allclose(first_output(model, pixel_values), first_output(model, pixel_values))
    without.train()
    for module in without.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):  # the statistics of a batch are another matter
            module.eval()
    torch.testing.assert_close(first_output(without, pixel_values), first_output(without.eval(), pixel_values))


@every_case
@pytest.mark.parametrize(
    ("problem_type", "num_labels", "labels", "loss"),
    [
        ("single_label_classification", 5, torch.tensor([1, 4]), nn.functional.cross_entropy),
        (
            "multi_label_classification",
            5,
            torch.eye(5)[:2] + torch.eye(5)[2],
            nn.functional.binary_cross_entropy_with_logits,
        ),
        ("regression", 1, torch.tensor([0.3, -2.0]), lambda x, y: nn.functional.mse_loss(x.squeeze(), y)),
        ("regression", 5, torch.linspace(-1, 1, 10).view(2, 5), nn.functional.mse_loss),
        (None, 5, torch.tensor([0, 2]), nn.functional.cross_entropy),
    ],
)
def test_losses(case, problem_type, num_labels, labels, loss):
    model = tiny_model(case, num_labels=num_labels, problem_type=problem_type)
    outputs = model(random_pixels(model.config), labels=labels)
    # An architecture with two heads teaches both: its loss is the mean of theirs.
    heads = [value for key, value in outputs.items() if key.endswith("_logits")] or [outputs.logits]
    expected = sum(loss(logits, labels) for logits in heads) / len(heads)
    torch.testing.assert_close(outputs.loss, expected)
    assert outputs.logits.shape == (2, num_labels)


@plain_case
def test_masked_loss_counts_masked_pixels_alone(case):
    if "ForMaskedImageModeling" not in architecture_of(case).heads:
        return
    model = tiny_model(case, "ForMaskedImageModeling")
    pixel_values, mask = random_pixels(model.config), random_mask(model.config)
    outputs = model(pixel_values, bool_masked_pos=mask)
    (rows, columns), (height, width) = model.config.stage_strides[0], pair(model.config.image_size)
    hidden = mask.view(2, 1, height // rows, width // columns)
    hidden = hidden.repeat_interleave(rows, 2).repeat_interleave(columns, 3).expand_as(pixel_values)
    error = (outputs.reconstruction - pixel_values).abs()
    torch.testing.assert_close(outputs.loss, error[hidden].mean(), rtol=1e-4, atol=1e-5)
    # What lies under the mask must not be seen.
    changed = torch.where(hidden, 9.0, pixel_values)
    torch.testing.assert_close(model(changed, bool_masked_pos=mask).reconstruction, outputs.reconstruction)
    assert not torch.allclose(model(changed).reconstruction, outputs.reconstruction)
    assert model(pixel_values).loss is None


# Precision, compilers, exporters, devices


@every_head
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(case, head, dtype):
    model = tiny_model(case, head)
    pixel_values = random_pixels(model.config)
    expected = first_output(model, pixel_values)
    output = first_output(model.to(dtype), pixel_values.to(dtype))
    assert output.dtype == dtype
    assert (output.float() - expected).abs().max() < 0.1 * expected.abs().max()


@costly_head
def test_compiled_equals_eager(case, head):
    """
    Forward passes at two sizes, and a training step where there is a loss.

    What keeps a model from being one graph shows when it is captured; the backends behind that know operators alone. Of
    forward passes the graph as captured is run, therefore, which takes a third of the time.
    """
    model = tiny_model(case, head)
    larger = tuple(2 * side for side in pair(model.config.image_size))
    images = [random_pixels(model.config), random_pixels(model.config, size=larger)]
    expected = [first_output(model, pixel_values) for pixel_values in images]
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    for pixel_values, output in zip(images, expected, strict=True):
        torch.testing.assert_close(first_output(compiled, pixel_values), output, **CLOSE)
    if (case, head) not in TRAINABLE_HEADS:
        return
    inputs = training_inputs(model.train())
    expected = gradients(model, inputs)
    model.zero_grad()
    torch.compiler.reset()
    torch.compile(model, fullgraph=True, backend="aot_eager")(**inputs).loss.backward()
    for name, gradient in expected.items():
        torch.testing.assert_close(
            model.get_parameter(name).grad, gradient, **CLOSE, msg=lambda text, name=name: f"{name}: {text}"
        )


@costly_head
def test_export_with_a_dynamic_batch(case, head):
    model = tiny_model(case, head)
    example = {"pixel_values": random_pixels(model.config)}
    program = torch.export.export(model, (), example, dynamic_shapes={"pixel_values": {0: torch.export.Dim("batch")}})
    for batch in (2, 5):
        pixel_values = random_pixels(model.config, batch)
        output = program.module()(pixel_values=pixel_values)[0]
        output = output[0] if isinstance(output, (tuple, list)) else output
        torch.testing.assert_close(output, first_output(model, pixel_values), **CLOSE)


@plain_case
def test_onnx_equals_eager(case, tmp_path):
    model = tiny_model(case)
    exporter, batch = OnnxExporter(), torch.export.Dim("batch")
    config = OnnxConfig(dynamic_shapes={"pixel_values": {0: batch}})
    exported = exporter.export(model, {"pixel_values": random_pixels(model.config)}, config=config)
    exported.save_pretrained(tmp_path)
    session = onnxruntime.InferenceSession(next(tmp_path.glob("*.onnx")))
    names = [output.name for output in session.get_outputs()]
    for size in (2, 5):
        pixel_values = random_pixels(model.config, size)
        outputs = dict(zip(names, session.run(None, {"pixel_values": pixel_values.numpy()}), strict=True))
        torch.testing.assert_close(torch.from_numpy(outputs["logits"]), first_output(model, pixel_values), **CLOSE)


@every_case
def test_offloading_to_disk(case, tmp_path):
    model = tiny_model(case)
    model.save_pretrained(tmp_path)
    half = sum(parameter.nbytes for parameter in model.parameters()) // 2
    loaded = type(model).from_pretrained(
        tmp_path, device_map="auto", max_memory={"cpu": half}, offload_folder=tmp_path / "offload"
    )
    assert "disk" in loaded.hf_device_map.values()
    # Twice the configured size: a cached table must survive its parameter going to disk and back.
    for size in (1, 2, 2):
        pixel_values = random_pixels(model.config, size=tuple(size * side for side in pair(model.config.image_size)))
        torch.testing.assert_close(first_output(loaded, pixel_values), first_output(model, pixel_values))


@plain_case
@pytest.mark.filterwarnings("ignore::UserWarning")  # PEFT on layers it wraps twice
def test_lora(case):
    model = tiny_model(case)
    pixel_values = random_pixels(model.config)
    base = first_output(model, pixel_values)
    heads = [name for name, _ in model.named_children() if name != model.base_model_prefix]
    adapted = get_peft_model(model, LoraConfig(target_modules="all-linear", r=2, modules_to_save=heads))
    torch.testing.assert_close(first_output(adapted.eval(), pixel_values), base)
    trained = {name: p for name, p in adapted.named_parameters() if p.requires_grad}
    assert all("lora_" in name or "modules_to_save" in name for name in trained)
    assert sum("lora_A" in name for name in trained) >= 4 * model.config.num_hidden_layers
    optimiser = torch.optim.SGD(trained.values(), lr=0.05)
    for _ in range(2):
        optimiser.zero_grad()
        adapted(**training_inputs(model)).loss.backward()
        optimiser.step()
    assert all(parameter.grad is not None for parameter in trained.values())
    tuned = first_output(adapted, pixel_values)
    assert not torch.allclose(tuned, base, **CLOSE)
    merged = adapted.merge_and_unload()
    assert type(merged) is type(model)
    torch.testing.assert_close(first_output(merged, pixel_values), tuned, **CLOSE)


@plain_case
def test_int8_weights(case, tmp_path):
    model = tiny_model(case)
    model.save_pretrained(tmp_path)
    heads = [name for name, _ in model.named_children() if name != model.base_model_prefix]
    quantization = TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=heads)
    quantized = type(model).from_pretrained(tmp_path, quantization_config=quantization)
    assert sum("Int8" in type(parameter).__name__ for parameter in quantized.parameters()) >= 4
    pixel_values = random_pixels(model.config)
    expected = first_output(model, pixel_values)
    output = first_output(quantized, pixel_values)
    assert 0 < (output - expected).abs().max() < 0.1 * expected.abs().max()


# Backbone


@every_case
def test_feature_maps(case):
    names = tiny_config(case).stage_names
    model = tiny_model(case, "Backbone", out_features=names)
    rows, columns = size_multiple(model.config)
    height, width = (3 * rows, 5 * columns)
    pixel_values = random_pixels(model.config, size=(height, width))
    with torch.no_grad():
        outputs = model(pixel_values, output_hidden_states=True, output_attentions=True)
    assert len(outputs.feature_maps) == len(model.channels) == len(model.strides) == len(names)
    sizes = model.config.feature_map_sizes(height, width)
    groups = [num_frames // model.config.frame_stride for num_frames in model.config.input_shape[:-3]]
    assert len(model.strides) == len(sizes)
    for feature_map, channels, size in zip(outputs.feature_maps, model.channels, sizes, strict=True):
        assert feature_map.shape == (2, *groups, channels, *size)
    assert len(outputs.hidden_states) == len(names)
    assert len(outputs.attentions) > 0
    # Chosen stages, by name or by index, are the same maps.
    state = model.state_dict()
    for choice in ({"out_features": names[-2:]}, {"out_indices": [len(names) - 2, len(names) - 1]}):
        chosen = tiny_model(case, "Backbone", **choice)
        # Norms of stages that are not returned do not exist.
        chosen.load_state_dict({name: state[name] for name in chosen.state_dict()})
        assert chosen.out_features == names[-2:]
        with torch.no_grad():
            maps = chosen(pixel_values).feature_maps
        for feature_map, expected in zip(maps, outputs.feature_maps[-2:], strict=True):
            torch.testing.assert_close(feature_map, expected, **CLOSE)


@every_case
def test_feature_map_follows_the_image(case):
    """A change in one corner of the image changes the map most in that corner."""
    model = tiny_model(case, "Backbone", out_features=["stem"])
    height, width = pair(model.config.image_size)
    pixel_values = random_pixels(model.config, batch=1)
    changed = pixel_values.clone()
    # Turned around, not made brighter: layers that take out means would not see that.
    changed[..., height // 2 :, : width // 2].neg_()
    before, after = first_output(model, pixel_values), first_output(model, changed)
    difference = (after - before).abs().sum(-3).flatten(0, -3).sum(0)
    rows, columns = difference.shape
    inside = difference[rows // 2 :, : columns // 2]
    assert inside.mean() > 2 * (difference.sum() - inside.sum()) / (difference.numel() - inside.numel())


@image_case
def test_dense_prediction_models_stand_on_the_backbone(case):
    config = tiny_config(case)
    height, width = pair(config.image_size)
    torch.manual_seed(0)
    detr = DetrForObjectDetection(
        DetrConfig(
            backbone_config=config,
            d_model=16,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=16,
            decoder_ffn_dim=16,
            num_queries=3,
            num_labels=2,
        )
    )
    assert detr(random_pixels(config)).logits.shape == (2, 3, 3)
    stages = tiny_config(case, out_features=config.stage_names[-2:])
    upernet = UperNetForSemanticSegmentation(
        UperNetConfig(
            backbone_config=stages, hidden_size=16, num_labels=4, use_auxiliary_head=False, pool_scales=[1, 2]
        )
    )
    assert isinstance(upernet.backbone, architecture_of(case).model_class("Backbone"))
    output = upernet(random_pixels(config), labels=torch.zeros(2, height, width, dtype=torch.long))
    assert output.logits.shape == (2, 4, height, width)
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in upernet.parameters() if parameter.requires_grad)


# Initialisation

# Parameter to its distribution, the first pattern that matches counts: ("constant", value), ("table", function of the shape),
# ("normal", standard deviation) or ("uniform", bound). Sources: google-research/vision_transformer@c6de1e5 vit_jax/models_vit.py with flax's defaults;
# facebookresearch/deit@7e160fe models.py with timm 0.3.2 and models_v2.py;
# SHI-Labs/Compact-Transformers@cd11f09 src/utils/{tokenizer,transformers}.py; vit-pytorch 1.26.11 rvt.py.
_WIDTH, _FAN_IN = 128, 8 * 8 * 3
_NORMS = {r"norm.*\.weight$": ("constant", 1.0), r"norm.*\.bias$": ("constant", 0.0)}
_TRUNC_NORMAL = {
    **_NORMS,
    r"patch_embeddings\.": ("uniform", _FAN_IN**-0.5),
    r"layer_scale": ("constant", 0.1),
    r"bias$": ("constant", 0.0),
    r"(weight|token)$": ("normal", 0.02),
}
_JAX = {
    **_NORMS,
    r"patch_embeddings.*weight$": ("normal", _FAN_IN**-0.5),
    r"qkv\.weight$": ("uniform", (6 / (2 * _WIDTH)) ** 0.5),
    r"proj\.weight$": ("uniform", (6 / (2 * _WIDTH)) ** 0.5),
    r"fc.\.weight$": ("uniform", (6 / (3 * _WIDTH)) ** 0.5),
    r"fc.\.bias$": ("normal", 1e-6),
    r"pre_logits\.weight$": ("normal", _WIDTH**-0.5),
    r"position_embeddings|register_tokens": ("normal", 0.02),
    r"cls_token|bias$|classifier": ("constant", 0.0),
}
_VIVIT = {
    **_JAX,
    r"patch_embeddings.*weight$": ("normal", (2 * _FAN_IN) ** -0.5),
    r"time_embeddings": ("normal", 0.02),
}
_LOCALVIT = {
    **_NORMS,
    r"feed_forward\.expansion\.": ("uniform", _WIDTH**-0.5),
    r"feed_forward\.depthwise\.": ("uniform", 1 / 3),
    r"feed_forward\.reduction\.": ("uniform", (2 * _WIDTH) ** -0.5),
}
INITIALISATION = {
    "vit": (_JAX, {}),
    "vit-deit3": (_TRUNC_NORMAL, {}),
    "vit-hybrid": (
        {
            r"norm3\.weight": ("constant", 0.0),
            r"root\.weight": ("normal", (7 * 7 * 3) ** -0.5),
            r"conv1|shortcut\.": ("normal", 32**-0.5),
            r"conv2": ("normal", (3 * 3 * 32) ** -0.5),
            r"conv3": ("normal", 32**-0.5),
            r"projection\.weight": ("normal", (2 * 2 * 128) ** -0.5),
            **_JAX,
        },
        {"resnet_depths": [1]},
    ),
    "vit-registers": (_JAX, {}),
    "deit": (_TRUNC_NORMAL, {}),
    "pit": (
        {
            **_NORMS,
            r"position_embeddings|prefix_tokens": ("normal", 0.02),
            r"patch_embeddings\.": ("uniform", (4 * 4 * 3) ** -0.5),
            r"pool\.conv\.": ("uniform", (3 * 3) ** -0.5),
            r"mlp\.fc2\.": ("uniform", (2 * _WIDTH) ** -0.5),
            r"": ("uniform", _WIDTH**-0.5),
        },
        {"base_dims": [64, 32, 32], "num_heads": [2, 4, 4], "num_labels": 64},
    ),
    "convit": (
        {
            r"attention\.value\.weight": ("table", lambda shape: torch.eye(shape[0])),
            r"attention\.gate": ("constant", 1.0),
            # Four heads: the corners of a 2 x 2 kernel, by column and row, and the curvature.
            r"attention\.position\.weight": (
                "table",
                lambda shape: torch.tensor([[-1.0, -1, -1], [-1, 1, -1], [1, -1, -1], [1, 1, -1]]),
            ),
            **_TRUNC_NORMAL,
        },
        {},
    ),
    "cait": (_TRUNC_NORMAL, {}),
    "t2t_vit": (
        {
            **_NORMS,
            r"position_embeddings": ("table", lambda shape: sinusoid_table(*shape[1:])),
            # Orthogonal rows of length sqrt(m), m the number of rows and 2 m that of columns.
            r"random_features": ("normal", 0.5**0.5),
            r"bias$": ("constant", 0.0),
            r"(weight|token)$": ("normal", 0.02),
        },
        {"token_dim": 64},
    ),
    "crossvit": (
        {
            **_NORMS,
            r"branches\.0\.patch_embeddings\.": ("uniform", (12 * 12 * 3) ** -0.5),
            r"branches\.1\.patch_embeddings\.": ("uniform", (16 * 16 * 3) ** -0.5),
            **_TRUNC_NORMAL,
        },
        {"hidden_sizes": [64, _WIDTH], "num_labels": 64},
    ),
    "swin": (
        {
            r"patch_embeddings\.projection": ("uniform", (2 * 2 * 3) ** -0.5),
            r"position_bias": ("normal", 0.02),
            **_TRUNC_NORMAL,
        },
        {"hidden_sizes": [32, 64, _WIDTH], "num_heads": [2, 4, 8], "num_labels": 64},
    ),
    "swinv2": (
        {
            r"patch_embeddings\.projection": ("uniform", (2 * 2 * 3) ** -0.5),
            r"layernorm_(attention|mlp)\.": ("constant", 0.0),  # layers start as the identity
            r"logit_scale": ("constant", math.log(10)),
            **_TRUNC_NORMAL,
        },
        {"hidden_sizes": [32, 64, _WIDTH], "num_heads": [2, 4, 8], "num_labels": 64},
    ),
    "deepvit": (
        {r"mixing\.": ("uniform", 16**-0.5), **_TRUNC_NORMAL},
        {"num_attention_heads": 16},
    ),
    "levit": (
        {
            # The last norm of a branch with a residual: a new layer passes on what it is given.
            r"(layers\.\d\.attention\.proj|fc2)\.norm\.weight$": ("constant", 0.0),
            **_NORMS,
            r"position_bias|classifier\.linear\.bias": ("constant", 0.0),
            r"classifier\.linear\.weight": ("normal", 0.02),
            r"convs\.0\.": ("uniform", (3 * 3 * 3) ** -0.5),
            r"convs\.1\.": ("uniform", (3 * 3 * 16) ** -0.5),
            r"convs\.2\.": ("uniform", (3 * 3 * 32) ** -0.5),
            r"convs\.3\.": ("uniform", (3 * 3 * 64) ** -0.5),
            r"shrink\.attention\.proj\.": ("uniform", (4 * _WIDTH) ** -0.5),
            r"attention\.proj\.|fc2": ("uniform", (2 * _WIDTH) ** -0.5),
            r"": ("uniform", _WIDTH**-0.5),
        },
        {"hidden_sizes": [_WIDTH] * 3, "num_heads": [16] * 3, "key_dim": 8, "num_labels": 64},
    ),
    "cvt": (
        {
            **_NORMS,
            r"cls_token": ("normal", 0.02),
            r"^cvt\.patch_embeddings\.": ("uniform", (7 * 7 * 3) ** -0.5),
            r"patch_embeddings\.": ("uniform", (3 * 3 * _WIDTH) ** -0.5),
            r"conv\.weight$": ("uniform", 1 / 3),
            r"classifier\.bias$": ("uniform", _WIDTH**-0.5),
            r"bias$": ("constant", 0.0),
            r"weight$": ("normal", 0.02),
        },
        {"hidden_sizes": [_WIDTH] * 3, "num_heads": [2] * 3, "num_labels": 64},
    ),
    "localvit": (
        {**_LOCALVIT, **_TRUNC_NORMAL},
        {},
    ),
    "localvit_tnt": (
        {
            **_LOCALVIT,
            r"patch_embeddings\.projection": ("uniform", (7 * 7 * 3) ** -0.5),
            r"pixel_positions": ("normal", 0.02),
            **_TRUNC_NORMAL,
        },
        {"pixel_hidden_size": _WIDTH},
    ),
    "localvit_swin": (
        {
            **_LOCALVIT,
            r"patch_embeddings\.projection": ("uniform", (2 * 2 * 3) ** -0.5),
            r"position_bias": ("normal", 0.02),
            **_TRUNC_NORMAL,
        },
        {"hidden_sizes": [_WIDTH] * 3, "num_heads": [2, 4, 8], "num_labels": 64},
    ),
    "localvit_pvt": (
        {
            **_LOCALVIT,
            r"^localvit_pvt\.embeddings\.patch_embeddings\.": ("uniform", (4 * 4 * 3) ** -0.5),
            r"patch_embeddings\.|attention\.reduction\.conv\.": ("uniform", (2 * 2 * _WIDTH) ** -0.5),
            **_TRUNC_NORMAL,
        },
        {"hidden_sizes": [_WIDTH] * 2, "num_labels": 64},
    ),
    "timesformer": (
        {
            r"time_embeddings|temporal_dense": ("constant", 0.0),
            **_TRUNC_NORMAL,
        },
        {},
    ),
    "vivit": (_VIVIT, {}),
    "vivit-encoder": (_VIVIT, {}),
    "xvit": (
        {
            r"time_embeddings|temporal_encoder\.cls_token|frame_classifier_bias": ("constant", 0.0),
            **_NORMS,
            r"frame_classifier": ("normal", 0.001),
            r"temporal_encoder.*fc2\.": ("uniform", (4 * _WIDTH) ** -0.5),
            r"temporal_encoder|classifier\.": ("uniform", _WIDTH**-0.5),
            **_TRUNC_NORMAL,
        },
        {"classifier_hidden_size": _WIDTH},
    ),
    "rvt": (
        {
            **_NORMS,
            r"cls_token": ("normal", 1.0),
            r"patch_embeddings\.": ("uniform", _FAN_IN**-0.5),
            r"depthwise\.": ("uniform", (5 * 5) ** -0.5),
            r"mlp\.fc2\.": ("uniform", (2 * _WIDTH) ** -0.5),
            r"": ("uniform", _WIDTH**-0.5),
        },
        {"head_dim": 64},
    ),
    "cct": (
        {
            **_NORMS,
            r"conv_layers\.": ("normal", (2 / (3 * 3 * 3)) ** 0.5),
            r"bias$": ("constant", 0.0),
            r"position_embeddings": ("normal", 0.2),
            r"weight$": ("normal", 0.02),
        },
        {},
    ),
    "pvt": (
        {
            **_NORMS,
            r"^pvt\.embeddings\.patch_embeddings\.": ("uniform", (4 * 4 * 3) ** -0.5),
            r"patch_embeddings\.|reduction\.conv\.": ("uniform", (2 * 2 * 16) ** -0.5),
            r"bias$": ("constant", 0.0),
            r"(weight|token)$": ("normal", 0.02),
        },
        {},
    ),
    # Cut at two standard deviations of the normal before the cut.
    "nest": ({**_NORMS, r"bias$": ("constant", 0.0), r"": ("normal", 0.02 * 0.87962566103423978)}, {}),
    "pvt_v2": (
        {
            **_NORMS,
            r"bias$": ("constant", 0.0),
            r"^pvt_v2\.embeddings\.": ("normal", (2 / (7 * 7 * 16)) ** 0.5),
            r"patch_embeddings\.": ("normal", (2 / (3 * 3 * 32)) ** 0.5),
            r"reduction\.conv\.": ("normal", (2 / (2 * 2 * 16)) ** 0.5),
            r"depthwise\.": ("normal", (2 / (3 * 3)) ** 0.5),
            r"weight$": ("normal", 0.02),
        },
        {},
    ),
    "twins": (
        {
            **_NORMS,
            r"bias$": ("constant", 0.0),
            r"^twins\.embeddings\.": ("normal", (2 / (4 * 4 * 16)) ** 0.5),
            r"patch_embeddings\.": ("normal", (2 / (2 * 2 * 32)) ** 0.5),
            r"reduction\.conv\.": ("normal", (2 / (2 * 2 * 16)) ** 0.5),
            r"position_generator\.": ("normal", (2 / (3 * 3)) ** 0.5),
            r"weight$": ("normal", 0.02),
        },
        {},
    ),
    "mvit": (
        {
            r"patch_embeddings\.projection": ("uniform", (7 * 7 * 3) ** -0.5),
            r"pool\.weight": ("uniform", 1 / 3),
            **_TRUNC_NORMAL,
        },
        {},
    ),
    "mvit_video": (
        {
            r"patch_embeddings.*bias": ("uniform", (3 * 7 * 7 * 3) ** -0.5),
            r"norm.*\.weight$": ("constant", 1.0),
            r"bias$": ("constant", 0.02),
            r"(weight|token)$": ("normal", 0.02),
        },
        {},
    ),
    "coatnet": (
        {
            r"norm.*weight$": ("constant", 1.0),
            r"position_bias\.": ("normal", 0.02),
            # Inverted bottlenecks and the stem by fan-out: 2 / (kernel elements * channels out / groups).
            r"conv\d\.weight$": ("normal", (2 / (3 * 3 * 64)) ** 0.5),
            r"depthwise\.weight$": ("normal", (2 / (3 * 3)) ** 0.5),
            r"stages\.[01]\.layers\.0\.(expand|squeeze_excitation\.fc2)\.weight$": ("normal", (2 / 256) ** 0.5),
            r"squeeze_excitation\.fc1\.weight$": ("normal", (2 / 16) ** 0.5),
            r"stages\.0\.layers\.0\.(reduce|shortcut\.expand)\.weight$": ("normal", (2 / 64) ** 0.5),
            # Attention layers Xavier uniform: 6 / (channels in + channels out).
            r"qkv\.weight$": ("uniform", (6 / (64 + 3 * 64)) ** 0.5),
            r"attention\.proj\.weight$": ("uniform", (6 / (64 + 64)) ** 0.5),
            r"mlp\.fc\d\.weight$": ("uniform", (6 / (64 + 128)) ** 0.5),
            r"mlp\.fc\d\.bias$": ("normal", 1e-6),
            r"classifier\.": ("uniform", 64**-0.5),
            r"bias$": ("constant", 0.0),
        },
        {
            "stem_channels": [64, 64],
            "hidden_sizes": [64, 64],
            "depths": [1, 1],
            "conv_depths": [1, 0],
            "num_heads": [4, 4],
            "num_labels": 64,
        },
    ),
    "regionvit": (
        {
            **_NORMS,
            r"patch_embeddings\.convs\.0\.": ("uniform", (3 * 3 * 3) ** -0.5),
            r"patch_embeddings\.convs\.1\.": ("uniform", (3 * 3 * 16) ** -0.5),
            r"patch_embeddings\.convs\.2\.": ("uniform", (3 * 3 * 32) ** -0.5),
            r"region_embeddings\.": ("uniform", (12 * 12 * 3) ** -0.5),
            r"downsampling\.conv\.": ("uniform", 1 / 3),
            r"bias$": ("constant", 0.0),
            r"weight$": ("normal", 0.02),
        },
        {"hidden_sizes": [64, 128, 256], "num_labels": 64},
    ),
}


def test_every_architecture_states_its_initialisation():
    assert set(PLAIN_CASES) <= set(INITIALISATION)


@pytest.mark.parametrize("case", INITIALISATION)
def test_initialisation(case, tmp_path):
    patterns, overrides = INITIALISATION[case]
    sizes = {"hidden_size": _WIDTH, "num_labels": 64} if "hidden_size" in TINY[case] else {}
    model_class = architecture_of(case).model_class(classification_head(case))
    torch.manual_seed(0)
    made = model_class(tiny_config(case, **sizes, **overrides))
    # The same distributions where a checkpoint holds nothing, over the meta device.
    loaded = model_class.from_pretrained(None, config=made.config, state_dict={})
    for model in (made, loaded):
        for name, parameter in model.named_parameters():
            kind, value = next(expected for pattern, expected in patterns.items() if re.search(pattern, name))
            if kind == "constant":
                assert (parameter == value).all(), name
                continue
            if kind == "table":
                assert torch.equal(parameter, value(parameter.shape)), name
                continue
            sample = parameter.detach().double()
            error = 5 / sample.numel() ** 0.5  # five standard errors, roughly
            bound = value * 3**0.5 if kind == "normal" else value
            std = value if kind == "normal" else value / 3**0.5
            assert abs(sample.std() / std - 1) < max(error, 0.02), f"{name}: {sample.std()} for {std}"
            assert abs(sample.mean()) < error * std, f"{name}: mean {sample.mean()}"
            if kind == "uniform":
                assert sample.abs().max() <= bound * (1 + 1e-6), name
            elif sample.numel() > 1000:
                assert sample.abs().max() > bound, f"{name}: looks uniform"


# Configuration


def settings(config) -> dict:
    """All that a configuration says, without where it was read from."""
    return {name: value for name, value in config.to_dict().items() if name != "_name_or_path"}


@pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=list(ARCHITECTURES))
def test_every_variant_is_valid(architecture, tmp_path):
    config_class = architecture.config_class
    assert bool(config_class.VARIANTS) == (architecture.name not in WITHOUT_VARIANTS)
    for name in config_class.VARIANTS:
        config = config_class.from_variant(name)
        config.save_pretrained(tmp_path)
        loaded = AutoConfig.from_pretrained(tmp_path)
        assert type(loaded) is config_class
        assert settings(loaded) == settings(config), name
        assert config_class.from_variant(name, num_labels=7).num_labels == 7
        preprocessing = config_class.preprocessing(name)
        assert preprocessing["image_size"] == pair(config.image_size)
        with pytest.raises(ValueError, match=f"did you mean '{name}'"):
            config_class.from_variant(name + "x")
        with pytest.raises(ValueError, match="did you mean 'drop_path_rate'"):
            config_class.from_variant(name, drop_path_rat=0.1)
    with pytest.raises(ValueError, match="unknown variant 'nothing_like_it'"):
        config_class.from_variant("nothing_like_it")


@every_case
def test_config_refuses_what_it_does_not_know(case, tmp_path):
    config_class = architecture_of(case).config_class
    typing_errors = {
        "initialiser_range": "initializer_range",
        "num_label": "num_labels",
        "out_feature": "out_features",
    }
    for wrong, right in typing_errors.items():
        with pytest.raises(ValueError, match=f"unknown field '{wrong}'; did you mean '{right}'"):
            config_class(**TINY[case], **{wrong: 1})
    with pytest.raises(StrictDataclassError, match="num_channels"):
        config_class(**{**TINY[case], "num_channels": "three"})
    # A config.json with a field of another version is refused too, instead of building another model.
    tiny_config(case).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "initialiser_range": 0.1}))
    with pytest.raises(ValueError, match="did you mean 'initializer_range'"):
        AutoConfig.from_pretrained(tmp_path)


@every_case
def test_config_round_trip(case, tmp_path):
    labels = {i: f"label {i}" for i in range(TINY[case]["num_labels"])}
    config = tiny_config(case, out_indices=[0, 1], id2label=labels, problem_type="regression")
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert settings(loaded) == settings(config)
    assert loaded.out_features == config.stage_names[:2]
    assert loaded.id2label == labels
    assert copy.deepcopy(config).to_dict() == config.to_dict()
    assert AutoConfig.from_pretrained(tmp_path, num_channels=1).num_channels == 1
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == architecture_of(case).model_type
