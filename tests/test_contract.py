"""The contract that every architecture keeps: one suite over the registry. Differences stand in the dossiers."""

import copy
import io
import json
import re

import onnxruntime
import pytest
import torch
from architectures import DOSSIERS
from dossier import WIDTH
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
    assert_same_weights,
    classification_head,
    dossier_of,
    fresh,
    random_mask,
    random_noise,
    random_pixels,
    randomise,
    size_multiple,
    tiny_config,
    tiny_model,
    training_inputs,
)
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument
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
from hf_vit_family.modeling.configuration_vitf import logger, pair
from hf_vit_family.modeling.embeddings import PositionEmbeddings, TimeEmbeddings
from hf_vit_family.modeling.layers import BatchTooSmallError
from hf_vit_family.registry import AUTO_CLASSES, get_architecture

every_case = pytest.mark.parametrize("case", TINY)
image_case = pytest.mark.parametrize("case", IMAGE_CASES)
video_case = pytest.mark.parametrize("case", VIDEO_CASES)
plain_case = pytest.mark.parametrize("case", PLAIN_CASES)
every_head = pytest.mark.parametrize(("case", "head"), HEADS)
trainable_head = pytest.mark.parametrize(("case", "head"), TRAINABLE_HEADS)

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def first_of(outputs) -> torch.Tensor:
    """Logits, feature map, reconstruction or last hidden state: the first output that is no loss."""
    output = outputs[1] if getattr(outputs[0], "ndim", None) == 0 else outputs[0]
    return output[0] if isinstance(output, (tuple, list)) else output


def first_output(model, *args, **kwargs) -> torch.Tensor:
    """The same of a model, without gradient."""
    with torch.no_grad():
        return first_of(model(*args, **kwargs))


def is_trained(model, name: str) -> bool:
    """Whether the loss depends on a parameter."""
    architecture = get_architecture(model.config.model_type)
    untrained, head = DOSSIERS[architecture.name].untrained, type(model).__name__.removeprefix(architecture.prefix)
    patterns = [untrained[each] for each in ("*", head) if each in untrained]
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
    assert_same_weights(loaded, model)
    torch.testing.assert_close(first_output(loaded, pixel_values), first_output(model, pixel_values), **CLOSE)
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
    assert_same_weights(base, model.base_model)
    torch.testing.assert_close(first_output(base, pixel_values), first_output(model.base_model, pixel_values), **CLOSE)


@every_case
def test_another_number_of_labels(case, tmp_path):
    model = tiny_model(case)
    model.save_pretrained(tmp_path)
    loaded, report = type(model).from_pretrained(
        tmp_path, num_labels=3, ignore_mismatched_sizes=True, output_loading_info=True
    )
    assert report["mismatched_keys"]
    assert loaded(random_pixels(model.config)).logits.shape == (2, 3)
    assert_same_weights(loaded.base_model, model.base_model)


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
        (height, width + columns),
        (height + 2 * rows, width),
    ]:
        pixel_values = random_pixels(model.config, size=size)
        output = first_output(model, pixel_values)
        assert output.isfinite().all()
        # No image sees another, and the content matters.
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
        if hasattr(module, "resized"):  # tables of offsets on a map, which each stage has of its own, or along an axis
            size = module.grid if hasattr(module, "grid") else module.size
            state[f"{name}.weight"] = model.get_submodule(name).resized(size)
    rebuilt.load_state_dict(state)
    torch.testing.assert_close(first_output(rebuilt, pixel_values), expected, **CLOSE)


@every_case
@pytest.mark.parametrize("frozen", [False, True])
def test_outputs_follow_the_weights(case, frozen):
    model = tiny_model(case)
    if frozen:
        model.freeze_caches()
    height, width = pair(model.config.image_size)
    images = [random_pixels(model.config, size=size) for size in ((2 * height, width), (height, width))]

    def check(model):
        new = fresh(model)
        for pixel_values in images:
            pixel_values = pixel_values.to(model.dtype)
            expected = first_output(new, pixel_values)
            for _ in range(1 + frozen):  # what is kept is read the second time
                assert torch.equal(first_output(model, pixel_values), expected)

    check(model)
    for pixel_values in images:
        expected = first_output(model, pixel_values)
        # With gradients the table is on the graph of its parameters again.
        torch.testing.assert_close(model(pixel_values)[0].detach(), expected, **CLOSE)
        with torch.inference_mode():
            assert torch.equal(model(pixel_values)[0], expected)
    gradients(model, training_inputs(model))
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    torch.optim.AdamW(model.parameters(), lr=0.05, fused=True).step()  # fused kernels write past autograd's counters
    check(model)
    model.load_state_dict(randomise(copy.deepcopy(model), seed=1).state_dict())
    check(model)
    model.load_state_dict(randomise(copy.deepcopy(model), seed=2).state_dict(), assign=True)
    check(model)
    clone = copy.deepcopy(model)
    check(randomise(clone, seed=3))
    check(model)
    # Weights written without autograd's knowledge, as moving averages and some distributed optimisers do: frozen caches
    # end with training.
    if frozen:
        model.train()
    for parameter in model.parameters():
        parameter.data.mul_(1.1)
    model.eval()
    check(model)
    check(model.to(torch.float64))


@every_case
def test_frozen_caches_resize_once_a_size(case, monkeypatch):
    """The second forward pass at a size resizes no table; another size, or changed weights, do so again."""
    calls = []
    interpolate = nn.functional.interpolate
    model = tiny_model(case).freeze_caches()
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
    """
    A model built for another number of frames equals the model that is given that number, its positions in time
    resized.
    """
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
            elif hasattr(module, "resized"):  # of distances along time, or as they are
                state[f"{name}.weight"] = module.resized(rebuilt.get_submodule(name).size)
        rebuilt.load_state_dict(state)
        torch.testing.assert_close(first_output(rebuilt, pixel_values), first_output(model, pixel_values), **CLOSE)


@video_case
def test_the_order_of_frames_counts(case):
    """Unless a model is made to look at each frame by itself."""
    model = tiny_model(case)
    pixel_values = random_pixels(model.config)
    forth, back = first_output(model, pixel_values), first_output(model, pixel_values.flip(1))
    assert torch.allclose(forth, back, **CLOSE) == (case in dossier_of(case).without_time)


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
    assert model.has_attention_maps == ("attentions" in model.base_model._can_record_outputs)
    if not model.has_attention_maps:
        assert not outputs.attentions
        return
    recorded = model.base_model._can_record_outputs["attentions"]
    recorded = recorded if isinstance(recorded, list) else [recorded]
    attention_classes = tuple(getattr(each, "target_class", each) for each in recorded)
    # A decoder's are not among them.
    layers = [module for module in model.base_model.modules() if isinstance(module, attention_classes)]
    assert len(outputs.attentions) == len(layers) > 0
    for attention in outputs.attentions:
        assert attention.ndim == 4
        sums = attention.sum(-1)
        if dossier_of(case).mixes_heads:  # after the softmax: any sum, but one for all rows of a head
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
    assert torch.equal(first_of(as_tuple), first_output(model, pixel_values))


def users_own_attention(module, query, key, value, attention_mask, **kwargs):
    """Softmax attention that counts its calls."""
    module.calls = getattr(module, "calls", 0) + 1
    return eager_attention_forward(module, query, key, value, attention_mask, **kwargs)


def attention_without_scores(module, query, key, value, attention_mask, **kwargs):
    """An attention that no softmax returns: one value for all queries."""
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
    taken_over = model.has_attention_maps and head not in dossier_of(case).own_maps
    assert (calls > 0) == taken_over
    model.set_attn_implementation("without_scores")
    assert torch.allclose(first_output(model, pixel_values), expected, **CLOSE) != taken_over


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
        outputs = first_output(model, pixel_values), first_output(model, pixel_values)
        assert torch.allclose(*outputs) != model.has_attention_maps
        model.eval()
        assert torch.equal(first_output(model, pixel_values), first_output(model, pixel_values))


# Training


@trainable_head
def test_what_learns_after_loading(case, head, tmp_path):
    """
    The parameters that a step of training gives a gradient, and those only: data parallel training waits for each.
    """
    made = tiny_model(case, head)
    made.save_pretrained(tmp_path)
    loaded = type(made).from_pretrained(tmp_path).train()
    assigned = type(made)(made.config)
    assigned.load_state_dict(made.state_dict(), assign=True)
    for model in (loaded, assigned, copy.deepcopy(loaded)):
        assert [(name, p.requires_grad) for name, p in model.named_parameters()] == [
            (name, p.requires_grad) for name, p in made.named_parameters()
        ]
    loaded(**training_inputs(loaded)).loss.backward()
    for name, parameter in loaded.named_parameters():
        assert parameter.requires_grad == (parameter.grad is not None), name


@trainable_head
def test_a_batch_of_one(case, head):
    """A step of training works, at the size where the last map is one token too, or the way out is named."""
    model = tiny_model(case, head).train()
    for size in (pair(model.config.image_size), size_multiple(model.config)):
        inputs = training_inputs(model, batch=1)
        inputs["pixel_values"] = random_pixels(model.config, 1, size)
        if "bool_masked_pos" in inputs:
            inputs["bool_masked_pos"] = random_mask(model.config, 1, size)
        elif "noise" in inputs:
            inputs["noise"] = random_noise(model.config, 1, size)
        message = ""
        try:
            loss = model(**inputs).loss
        except BatchTooSmallError as error:
            message = str(error)
            loss = model(**{name: torch.cat((value, value)) for name, value in inputs.items()}).loss
        assert not message or "dataloader_drop_last=True" in message
        assert loss.isfinite()
        loss.backward()


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


def inputs_of_other_sizes(config) -> list[torch.Tensor]:
    """
    Larger maps, maps of as many tokens in another shape (which no count of tokens tells from the configured one), and
    those of one token, which broadcast; of clips also more and fewer frames.
    """
    (height, width), multiple = config.input_shape[-2:], size_multiple(config)
    sizes = [(height + multiple[0], width + 2 * multiple[1]), (2 * height, width // 2), multiple]
    inputs = [random_pixels(config, size=size) for size in sizes]
    if len(config.input_shape) == 4:
        inputs += [
            random_pixels(config, num_frames=number) for number in (2 * config.num_frames, config.num_frames // 2)
        ]
    return inputs


def assert_right_or_refused(case, model, run, refusal: str) -> None:
    """`run` is what was exported or traced of `model` at the configured size, from pixels to logits."""
    for pixel_values in inputs_of_other_sizes(model.config):
        with torch.no_grad():
            if model.base_model.exports_any_size:
                torch.testing.assert_close(run(pixel_values), first_output(model, pixel_values), **CLOSE)
            else:
                with pytest.raises(Exception, match=refusal):
                    run(pixel_values)


def in_onnxruntime(file: bytes):
    """An ONNX file as a function from pixels to logits."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # refusals are raised as well
    session = onnxruntime.InferenceSession(file, options)
    return lambda pixel_values: torch.from_numpy(session.run(None, {"pixel_values": pixel_values.numpy()})[0])


def dynamic_dims(config) -> list[int]:
    """Batch, height and width, and for clips the number of frames."""
    return [0, 1, 3, 4] if len(config.input_shape) == 4 else [0, 2, 3]


@every_head
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(case, head, dtype):
    model = tiny_model(case, head)
    pixel_values = random_pixels(model.config)
    expected = first_output(model, pixel_values)
    # Pixels of another precision are cast to that of the patch embeddings.
    output = first_output(model.to(dtype), pixel_values)
    assert output.dtype == dtype
    assert torch.equal(output, first_output(model, pixel_values.to(dtype)))
    assert (output.float() - expected).abs().max() < 0.1 * expected.abs().max()


@every_case
def test_integer_pixels_are_refused(case):
    model = tiny_model(case)
    with pytest.raises(TypeError, match=r"pixel_values are torch\.uint8.*processor"):
        model(random_pixels(model.config).abs().to(torch.uint8))


@every_head
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(case, head, dtype):
    """
    Forward passes with and without maps, and a training step in which the same parameters learn as without autocast.
    """
    model = tiny_model(case, head)
    pixel_values = random_pixels(model.config)
    expected = first_output(model, pixel_values)
    with torch.autocast("cpu", dtype):
        outputs = [first_output(model, pixel_values, output_attentions=maps) for maps in (False, True)]
        # Its own first layer casts the pixels: they are not made wide before.
        narrow = pixel_values.to(dtype)
        assert model.cast_pixels(narrow) is narrow
    for output in outputs:
        assert (output.float() - expected).abs().max() < 0.1 * expected.abs().max()
    if (case, head) not in TRAINABLE_HEADS:
        return
    inputs = training_inputs(model.train())
    trained = gradients(model, inputs).keys()
    model.zero_grad()
    with torch.autocast("cpu", dtype):
        loss = model(**inputs).loss
    loss.backward()
    assert loss.isfinite()
    for name in trained:
        assert model.get_parameter(name).grad.isfinite().all(), name


# Of these the whole backward graph is captured as well, and of these a second size, for which a graph becomes dynamic:
# both take longer than all else, and what they find is in code that architectures share.
CAPTURED_BACKWARD = ("vit", "timesformer")
COMPILED_AT_TWO_SIZES = ("vit", "cvt", "swin", "coatnet", "timesformer")


# Backbones share the code that collects their maps.
@pytest.mark.parametrize(
    ("case", "head"),
    [(case, head) for case, head in COSTLY_HEADS if head != "Backbone" or case in COMPILED_AT_TWO_SIZES],
)
def test_compiled_equals_eager(case, head):
    """
    A forward pass, of some classifiers at two sizes, and a training step where there is a loss.

    What keeps a model from being one graph shows when it is captured; the backends after that know operators only. The
    graph as captured is run, therefore, which takes a third of the time.
    """
    model = tiny_model(case, head)
    images = [random_pixels(model.config)]
    if head != "Backbone" and case in COMPILED_AT_TWO_SIZES:
        images.append(random_pixels(model.config, size=tuple(2 * side for side in pair(model.config.image_size))))
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
    backend = "aot_eager" if case in CAPTURED_BACKWARD else "eager"
    torch.compile(model, fullgraph=True, backend=backend)(**inputs).loss.backward()
    for name, gradient in expected.items():
        torch.testing.assert_close(
            model.get_parameter(name).grad, gradient, **CLOSE, msg=lambda text, name=name: f"{name}: {text}"
        )


# ONNX exports classifiers in this way, too.
@pytest.mark.parametrize(
    ("case", "head"), [(case, head) for case, head in COSTLY_HEADS if not head.endswith("Classification")]
)
def test_export_with_a_dynamic_batch(case, head):
    model = tiny_model(case, head)
    example = {"pixel_values": random_pixels(model.config)}
    program = torch.export.export(model, (), example, dynamic_shapes={"pixel_values": {0: torch.export.Dim("batch")}})
    for batch in (2, 5):
        pixel_values = random_pixels(model.config, batch)
        output = first_of(program.module()(pixel_values=pixel_values))
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


class Logits(nn.Module):
    """A classifier from pixels to logits: TorchScript's exporters take tensors only."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.model(pixel_values).logits


@plain_case
@pytest.mark.filterwarnings("ignore")  # of the exporter, about itself and each size that it fixes
def test_onnx_of_torchscript_with_a_dynamic_batch(case):
    model, file = tiny_model(case), io.BytesIO()
    torch.onnx.export(
        Logits(model).eval(),
        (random_pixels(model.config),),
        file,
        dynamo=False,
        input_names=["pixel_values"],
        output_names=["logits"],
        dynamic_axes={"pixel_values": {0: "batch"}, "logits": {0: "batch"}},
    )
    session = onnxruntime.InferenceSession(file.getvalue())
    for batch in (1, 5):
        pixel_values = random_pixels(model.config, batch)
        (logits,) = session.run(None, {"pixel_values": pixel_values.numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), first_output(model, pixel_values), **CLOSE)


@plain_case
@pytest.mark.filterwarnings("ignore")  # of the tracer, about each size that it fixes
def test_torchscript_trace_passes_its_own_check(case):
    """
    The tracer runs the model with and without gradients, and compares the graphs; another batch goes through as well.
    """
    model = tiny_model(case)
    traced = torch.jit.trace(Logits(model).eval(), random_pixels(model.config))
    for batch in (1, 5):
        pixel_values = random_pixels(model.config, batch)
        with torch.no_grad():
            torch.testing.assert_close(traced(pixel_values), first_output(model, pixel_values), **CLOSE)
    assert_right_or_refused(case, model, traced, r"split_with_sizes expects")


@plain_case
@pytest.mark.filterwarnings("ignore")  # of the exporter, about itself and each size that it fixes
def test_onnx_of_torchscript_at_other_sizes(case):
    model, file = tiny_model(case), io.BytesIO()
    torch.onnx.export(
        Logits(model).eval(),
        (random_pixels(model.config),),
        file,
        dynamo=False,
        input_names=["pixel_values"],
        dynamic_axes={"pixel_values": {dim: f"size_{dim}" for dim in dynamic_dims(model.config)}},
    )
    assert_right_or_refused(case, model, in_onnxruntime(file.getvalue()), r"running Split node")


@plain_case
def test_export_at_other_sizes(case):
    """
    Sizes that are not followed become static, and so they are in an ONNX file of the program, which has no other
    checks.
    """
    model = tiny_model(case)
    dims = dynamic_dims(model.config)
    program = torch.export.export(
        Logits(model).eval(),
        (random_pixels(model.config),),
        dynamic_shapes={"pixel_values": dict.fromkeys(dims, torch.export.Dim.AUTO)},
    )
    (pixel_values,) = (node for node in program.graph.nodes if node.name == "pixel_values")
    static = [dim for dim in dims if str(pixel_values.meta["val"].shape[dim]).isdigit()]
    assert static == ([] if model.base_model.exports_any_size else dims[1:])
    run = program.module()
    for pixel_values in inputs_of_other_sizes(model.config):
        try:
            logits = run(pixel_values)
        except AssertionError as error:  # what torch.export itself checks, such as a range of sizes
            if "Guard failed" not in str(error):
                raise
        else:
            assert model.base_model.exports_any_size
            torch.testing.assert_close(logits, first_output(model, pixel_values), **CLOSE)


# Few, since each takes long: of those that are followed one that the exporter can and one that it cannot, and one
# static one.
@pytest.mark.parametrize("case", [name for name, each in DOSSIERS.items() if each.onnx_at_any_size is not None])
@pytest.mark.filterwarnings("ignore")  # of the exporter, about itself
def test_onnx_of_export_at_other_sizes(case, tmp_path):
    model, file = tiny_model(case), tmp_path / "model.onnx"
    torch.onnx.export(
        Logits(model).eval(),
        (random_pixels(model.config),),
        file,
        dynamo=True,
        external_data=False,
        dynamic_shapes={"pixel_values": dict.fromkeys(dynamic_dims(model.config), torch.export.Dim.AUTO)},
    )
    run = in_onnxruntime(file.read_bytes())
    for pixel_values in inputs_of_other_sizes(model.config):
        try:
            logits = run(pixel_values)
        except (Fail, InvalidArgument):
            assert not dossier_of(case).onnx_at_any_size
        else:
            assert model.base_model.exports_any_size
            torch.testing.assert_close(logits, first_output(model, pixel_values), **CLOSE)


@every_case
def test_offloading_to_disk(case, tmp_path):
    model = tiny_model(case)
    model.save_pretrained(tmp_path)
    # Of half of it old versions of accelerate put none into memory.
    most = sum(parameter.nbytes for parameter in model.parameters()) * 3 // 4
    loaded = type(model).from_pretrained(
        tmp_path, device_map="auto", max_memory={"cpu": most}, offload_folder=tmp_path / "offload"
    )
    assert "disk" in loaded.hf_device_map.values()
    # Twice the configured size: a cached table must survive its parameter going to disk and back.
    for size in (1, 2, 2):
        pixel_values = random_pixels(model.config, size=tuple(size * side for side in pair(model.config.image_size)))
        torch.testing.assert_close(first_output(loaded, pixel_values), first_output(model, pixel_values))


@every_case
@pytest.mark.parametrize("saved", [None, ["classifier"]], ids=["every head", "classifier"])
@pytest.mark.filterwarnings("ignore::UserWarning")  # PEFT on layers it wraps twice
def test_lora(case, saved):
    model = tiny_model(case)
    pixel_values = random_pixels(model.config)
    base = first_output(model, pixel_values)
    heads = [name for name, _ in model.named_children() if name != model.base_model_prefix]
    adapted = get_peft_model(model, LoraConfig(target_modules="all-linear", r=2, modules_to_save=saved or heads))
    torch.testing.assert_close(first_output(adapted.eval(), pixel_values), base)
    trained = {name: p for name, p in adapted.named_parameters() if p.requires_grad}
    assert all(("lora_" in name) != ("modules_to_save" in name) for name in trained)
    learned = [name for name, _ in model.named_children() if any(f".{name}.modules_to_save." in key for key in trained)]
    assert learned == heads  # a distilled model has two
    assert sum("lora_A" in name for name in trained) >= 2 * model.config.num_hidden_layers
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
    assert (len(outputs.attentions or ()) > 0) == model.has_attention_maps
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

INITIALISATION = {case: each for dossier in DOSSIERS.values() for case, each in dossier.initialisation.items()}


def test_every_architecture_states_its_initialisation():
    assert set(PLAIN_CASES) <= set(INITIALISATION)


@pytest.mark.parametrize("case", INITIALISATION)
def test_initialisation(case, tmp_path):
    patterns, overrides = INITIALISATION[case]
    sizes = {"hidden_size": WIDTH, "num_labels": 64} if "hidden_size" in TINY[case] else {}
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
    assert bool(config_class.VARIANTS) == DOSSIERS[architecture.name].has_variants
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


@every_case
def test_unknown_keys_of_a_config_file_are_kept_with_a_warning(case, tmp_path, caplog):
    tiny_model(case).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    note = {"author": f"tester of {case}", "runs": [1, 2]}
    own = {"optimum_version": "1.2", "_attn_implementation_autoset": True, "my_note": note, "initialiser_range": 0.1}
    clashes = {"to_dict": 3, "input_shape": [1], "top_k": 5}
    path.write_text(json.dumps({**json.loads(path.read_text()), **own, **clashes}))
    logger.warning_once.cache_clear()
    config, again = (AutoConfig.from_pretrained(tmp_path) for _ in range(2))
    for name in own:
        assert sum(f"key {name!r}" in record.getMessage() for record in caplog.records) == 1, name
    assert "Did you mean 'initializer_range'?" in caplog.text
    assert {name: getattr(again, name) for name in own} == own
    expected = {**settings(tiny_model(case).config), **own, "architectures": config.architectures, "dtype": "float32"}
    assert settings(config) == expected
    model = type(tiny_model(case)).from_pretrained(tmp_path)
    model.save_pretrained(tmp_path / "again")
    saved = json.loads((tmp_path / "again" / "config.json").read_text())
    assert {name: saved[name] for name in own} == own
    assert not clashes.keys() & saved.keys()
    # What a person types stays strict, whatever stands in the file.
    with pytest.raises(ValueError, match="'input_shape' follows from other fields"):
        AutoConfig.from_pretrained(tmp_path, input_shape=[3, 8, 8])


@every_case
def test_renamed_fields_of_a_config_file_are_read(case, tmp_path, monkeypatch):
    config_class = architecture_of(case).config_class
    monkeypatch.setattr(config_class, "RENAMED", {"channels": "num_channels", "classes_dropped": "hidden_dropout_prob"})
    config = tiny_config(case, num_channels=1, hidden_dropout_prob=0.25)
    values = config.to_dict()
    former = {**values, "channels": values.pop("num_channels"), "classes_dropped": 0.5}
    del former["num_channels"]
    # A file that has both names was written by a version that knows the present one.
    (tmp_path / "config.json").write_text(json.dumps(former))
    for loaded in (AutoConfig.from_pretrained(tmp_path), config_class.from_json_file(tmp_path / "config.json")):
        assert (loaded.num_channels, loaded.hidden_dropout_prob) == (1, 0.25)
        assert settings(loaded) == settings(config)
    with pytest.raises(ValueError, match="unknown field 'channels': it is called 'num_channels' now"):
        config_class(**TINY[case], channels=1)


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
