"""
What models of clips can do beyond the common tests: start from image models, run in pipelines, be read from other
libraries.
"""

import struct

import av
import golden
import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from models import VIDEO_CASES, architecture_of, fresh, random_pixels, randomise, tiny_config, tiny_model
from safetensors.torch import load_file
from transformers import (
    AutoModelForVideoClassification,
    AutoVideoProcessor,
    TimesformerConfig,
    TimesformerForVideoClassification,
    VivitConfig,
    VivitForVideoClassification,
    VivitModel,
    pipeline,
)
from vit_family_launcher import main

from hf_vit_family import create_processor
from hf_vit_family.conversion.convert import convert_checkpoint, export_checkpoint
from hf_vit_family.conversion.parity import compare_models
from hf_vit_family.conversion_scripts.convert_vivit import clip_of_table
from hf_vit_family.errors import ConversionError, UnreadableCheckpointError
from hf_vit_family.explain.attention_maps import rollout
from hf_vit_family.explain.video_attention_maps import video_relevance, video_rollout
from hf_vit_family.modeling.configuration_vitf import pair

PLAIN_VIDEO_CASES = [case for case in VIDEO_CASES if "-" not in case]


# Starting from an image model


@pytest.mark.parametrize("image_case", ["vit", "deit-plain"])
@pytest.mark.parametrize("case", ["timesformer", "timesformer-joint", "timesformer-space"])
def test_timesformer_starts_from_an_image_model(case, image_case):
    image_model = tiny_model(image_case)
    fields = {"attention_type": tiny_config(case).attention_type, "num_labels": 7}
    model_class = architecture_of(case).model_class("ForVideoClassification")
    model = model_class.from_image_model(image_model, num_frames=3, **fields).eval()
    assert model.config.num_frames == 3
    assert model.classifier.weight.shape[0] == 7
    assert model.config.hidden_act == image_model.config.hidden_act
    weights, image_weights = model.base_model.state_dict(), image_model.base_model.state_dict()
    for name in image_weights.keys() & weights.keys():
        assert torch.equal(weights[name], image_weights[name]), name
    for name in weights.keys() - image_weights.keys():
        if "temporal_attention" in name or "temporal_layernorm" in name:
            source = name.replace("temporal_attention", "attention").replace("temporal_layernorm", "layernorm_before")
            assert torch.equal(weights[name], image_weights[source]), name
        else:
            assert weights[name].count_nonzero() == 0, name
    if case != "timesformer-joint":
        # Time does nothing yet: one image in all frames is seen as the image model sees it.
        image = random_pixels(image_model.config)
        with torch.no_grad():
            expected = image_model.base_model(image).last_hidden_state[:, 0]
            seen = model.base_model(image[:, None].expand(-1, 3, -1, -1, -1)).pooler_output
        torch.testing.assert_close(seen, expected, rtol=1e-4, atol=1e-5)


def test_positions_of_an_image_model_are_resized_to_the_video_model():
    image_model = tiny_model("vit")
    model_class = architecture_of("timesformer").model_class("Model")
    model = model_class.from_image_model(image_model.base_model, image_size=(48, 64))
    table = model.embeddings.position_embeddings.weight
    assert torch.equal(table, image_model.base_model.embeddings.position_embeddings((6, 8), like=table))


@pytest.mark.parametrize(
    ("image_case", "message"),
    [
        ("deit", "no place for 'embeddings.distillation_token'"),
        ("vit-rotary", "VitfVitForImageClassification has no 'embeddings.cls_token'"),
        ("vit-deit3", "no place for 'layers.0.layer_scale1.weight'"),
    ],
)
def test_image_models_that_do_not_fit_are_refused(image_case, message):
    with pytest.raises(ValueError, match=message):
        architecture_of("timesformer").model_class("Model").from_image_model(tiny_model(image_case))


def _vivit_from(image_model, head="Model", **fields):
    model_class = architecture_of("vivit").model_class(head)
    return model_class.from_image_model(image_model, num_frames=6, tubelet_size=2, **fields).eval()


@pytest.mark.parametrize("image_case", ["vit", "deit-plain"])
@pytest.mark.parametrize("initialization", ["central_frame", "average_frame"])
def test_filters_of_patches_become_those_of_tubelets(image_case, initialization):
    image_model = tiny_model(image_case)
    model = _vivit_from(image_model, tubelet_initialization=initialization)
    weights, image_weights = model.state_dict(), image_model.base_model.state_dict()
    changed = ("embeddings.patch_embeddings.projection.weight", "embeddings.position_embeddings.weight")
    for name in weights.keys() - set(changed):
        assert torch.equal(weights[name], image_weights[name]), name
    first, second = weights[changed[0]].unflatten(1, (2, 3)).unbind(1)
    filters = image_weights[changed[0]]
    if initialization == "central_frame":
        assert first.count_nonzero() == 0
        assert torch.equal(second, filters)
    else:
        assert torch.equal(first, filters / 2)
        assert torch.equal(second, filters / 2)
    # Each group of frames has the positions of the image; a clip that stands still has the same tokens in each.
    table, image_table = weights[changed[1]], image_weights[changed[1]]
    assert torch.equal(table[:, :1], image_table[:, :1])
    for places in table[:, 1:].unflatten(1, (3, -1)).unbind(1):
        assert torch.equal(places, image_table[:, 1:])
    image = random_pixels(image_model.config)
    with torch.no_grad():
        tokens = model.embeddings(image[:, None].expand(-1, 6, -1, -1, -1))
        expected = image_model.base_model.embeddings(image)
    torch.testing.assert_close(tokens, torch.cat((expected[:, :1], *[expected[:, 1:]] * 3), dim=1))


@pytest.mark.parametrize("image_case", ["vit", "deit-plain"])
def test_a_clip_that_stands_still_is_seen_as_an_image(image_case):
    image_model = tiny_model(image_case)
    image = random_pixels(image_model.config)
    clip = image[:, None].expand(-1, 6, -1, -1, -1)
    with torch.no_grad():
        # Model 2: the layers over space are those of the image model; what follows them starts anew.
        model = _vivit_from(image_model, attention_type="factorised_encoder")
        seen = model(clip, output_hidden_states=True).hidden_states
        expected = image_model.base_model(image, output_hidden_states=True).hidden_states
        for each, of_image in zip(seen, expected, strict=True):
            torch.testing.assert_close(each, of_image[:, None].expand_as(each), rtol=1e-4, atol=1e-5)
        # Model 3, without class token: attention over time does nothing yet.
        model = _vivit_from(image_model, attention_type="factorised_self_attention", pooling="mean")
        assert torch.equal(
            model.layers[0].temporal_attention.qkv.weight, image_model.base_model.layers[0].attention.qkv.weight
        )
        space_only = [model.embeddings(clip)[:, 0]]
        for layer in image_model.base_model.layers:
            space_only.append(layer(space_only[-1]))
        seen = model(clip, output_hidden_states=True).hidden_states
        for each, of_image in zip(seen, space_only, strict=True):
            torch.testing.assert_close(each, of_image[:, None].expand_as(each), rtol=1e-4, atol=1e-5)


def test_heads_over_time_and_over_space_start_from_those_of_the_image_model():
    image_model = tiny_model("vit")
    model = _vivit_from(image_model, attention_type="factorised_dot_product", pooling="mean")
    image_weights = image_model.base_model.state_dict()
    assert "embeddings.cls_token" not in model.state_dict()
    for name, weight in model.state_dict().items():
        if not name.startswith("embeddings."):
            assert torch.equal(weight, image_weights[name]), name
    places = image_weights["embeddings.position_embeddings.weight"][:, 1:]
    assert torch.equal(model.embeddings.position_embeddings.weight, places.repeat(1, 3, 1))
    with pytest.raises((ValueError, StrictDataclassError)):  # it has no class token
        _vivit_from(image_model, attention_type="factorised_dot_product")


def test_vivit_takes_image_models_of_another_size_and_gives_its_head_the_labels():
    image_model = tiny_model("vit")
    model = _vivit_from(image_model, "ForVideoClassification", image_size=(48, 64), num_labels=7)
    table = model.vivit.embeddings.position_embeddings.weight
    expected = image_model.vit.embeddings.position_embeddings((6, 8), like=table)
    assert torch.equal(table, torch.cat((expected[:, :1], *[expected[:, 1:]] * 3), dim=1))
    assert model.classifier.weight.shape[0] == 7
    with pytest.raises(ValueError, match=r"embeddings\.distillation_token"):
        _vivit_from(tiny_model("deit"))
    with pytest.raises(ValueError, match=r"patch_embeddings\.projection\.weight"):
        _vivit_from(image_model, patch_size=16)


def test_a_clip_that_does_not_divide_into_tubelets_is_refused():
    model = tiny_model("vivit")
    with pytest.raises(ValueError, match="3 frames does not fit: their number must be a multiple of tubelet_size=2"):
        model(random_pixels(model.config, num_frames=3))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"attention_type": "factorised_self_attention"}, "needs pooling='mean'"),
        ({"attention_type": "factorised_dot_product", "pooling": "mean", "num_attention_heads": 1}, "even number"),
        ({"num_frames": 5}, "num_frames=5 is not a multiple of tubelet_size=2"),
        ({"num_temporal_heads": 3}, "num_temporal_heads=3"),
    ],
)
def test_vivit_names_fields_that_do_not_fit(fields, message):
    with pytest.raises((ValueError, StrictDataclassError)) as caught:
        tiny_config("vivit", **fields)
    assert message in f"{caught.value} {caught.value.__cause__}"


# X-ViT's mixing


@pytest.mark.parametrize("num_frames", [1, 2, 3, 7, 8])
def test_keys_and_values_come_from_the_frames_beside(num_frames):
    """Against a loop over frames; segments of three, the last of which may be shorter."""
    attention = tiny_model("xvit-segments").xvit.layers[1].attention
    states = torch.randn(2, num_frames, 5, 2, 32, generator=torch.Generator().manual_seed(0))
    expected = states.clone()
    for frame in range(num_frames):
        last = frame % 3 == 2 or frame == num_frames - 1
        expected[:, frame, ..., :8] = 0 if last else states[:, frame + 1, ..., :8]
        expected[:, frame, ..., 8:16] = 0 if frame % 3 == 0 else states[:, frame - 1, ..., 8:16]
    assert torch.equal(attention.mix(states), expected)


def test_only_mixing_layers_mix():
    model = tiny_model("xvit-segments")
    pixel_values = random_pixels(model.config)
    changed = pixel_values.clone()
    changed[:, 0] += 1
    with torch.no_grad():
        before, after = (model(p, output_hidden_states=True).hidden_states for p in (pixel_values, changed))
    # The first layer does not mix; the second sees one frame away; the fourth frame begins another segment.
    differs = [
        [not torch.equal(a[:, frame], b[:, frame]) for frame in range(4)] for a, b in zip(before, after, strict=True)
    ]
    assert differs == [[True, False, False, False], [True, False, False, False], [True, True, False, False]]


def test_embeddings_in_time_begin_again_after_their_period():
    model = tiny_model("xvit-segments")
    table = model.xvit.embeddings.time_embeddings
    assert torch.equal(table(7), torch.cat((table.weight, table.weight, table.weight[:, :1]), dim=1))
    # Two segments alike are seen alike, each for itself.
    clip = random_pixels(model.config, num_frames=3)
    with torch.no_grad():
        alone = model.xvit(clip).last_hidden_state
        twice = model.xvit(clip.repeat(1, 2, 1, 1, 1)).last_hidden_state
    torch.testing.assert_close(twice, alone.repeat(1, 2, 1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("image_case", ["vit", "deit-plain"])
def test_xvit_starts_from_an_image_model(image_case):
    image_model = tiny_model(image_case)
    model_class = architecture_of("xvit").model_class("ForVideoClassification")
    model = model_class.from_image_model(image_model, num_frames=3, mixing_layers=[], num_labels=7).eval()
    image = random_pixels(image_model.config)
    clip = image[:, None].expand(-1, 3, -1, -1, -1)
    with torch.no_grad():
        seen, expected = model.xvit(clip).last_hidden_state, image_model.base_model(image).last_hidden_state
    torch.testing.assert_close(seen, expected.repeat(1, 3, 1), rtol=1e-4, atol=1e-5)
    assert model(clip).logits.shape == (2, 7)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mixing_layers": [0, 2]}, "names layer 2"),
        ({"shift_div": 1}, "shift_div=1 is less than 2"),
        ({"segment_size": 0}, "segment_size=0 is less than 1"),
        ({"num_temporal_heads": 5}, "num_temporal_heads=5"),
    ],
)
def test_xvit_names_fields_that_do_not_fit(fields, message):
    with pytest.raises((ValueError, StrictDataclassError)) as caught:
        tiny_config("xvit", **fields)
    assert message in f"{caught.value} {caught.value.__cause__}"


def test_xvit_asks_for_what_a_file_leaves_open():
    state_dict = golden.load("xvit", "k600_16frames_seg8").state_dict
    with pytest.raises(ConversionError, match=r"num_attention_heads.* are not told by the checkpoint"):
        convert_checkpoint(state_dict)
    fields = {
        "num_attention_heads": 6,
        "num_temporal_heads": 3,
        "segment_size": 8,
        "shift_div": 8,
        "mixing_layers": None,
    }
    for num_frames, period in ((16, 8), (8, None)):  # as many frames as the table has rows, or twice as many
        model, report = convert_checkpoint(state_dict, num_frames=num_frames, **fields)
        assert (report.architecture, model.config.time_embedding_period) == ("xvit", period)
        assert model.config.num_frames == num_frames


# What a model looks at


@pytest.mark.parametrize("case", [case for case in VIDEO_CASES if case.startswith(("vivit", "xvit"))])
def test_attention_is_followed_through_space_and_time(case):
    model = tiny_model(case)
    pixel_values = random_pixels(model.config, size=(32, 40))
    logits, heat = video_rollout(model, pixel_values)
    torch.testing.assert_close(logits, model(pixel_values).logits.detach())
    relevance = video_relevance(model, pixel_values, torch.tensor([0, 3]))[1]
    for each in (heat, relevance):
        assert each.shape == (2, model.config.num_frames, 4, 5)
        assert each.isfinite().all()
        assert (each >= 0).all()
        # No clip sees another, and the frames of a tubelet are as one.
        groups = each.unflatten(1, (-1, model.config.frame_stride))
        assert torch.equal(groups[:, :, :1].expand_as(groups), groups)
    torch.testing.assert_close(video_rollout(model, pixel_values[1:])[1], heat[1:])
    # What the rollout shares out is no more than one token.
    total = heat.sum((1, 2, 3)) / model.config.frame_stride
    assert (total <= 1 + 1e-5).all()
    assert (total > 0.1).all()


def test_rollout_over_groups_weighs_the_rollout_within_them():
    model = tiny_model("vivit-encoder")
    pixel_values = random_pixels(model.config)
    maps = [m.mean(1) for m in model(pixel_values, output_attentions=True).attentions]
    within, over = (rollout([m[:, None] for m in part])[:, 0, 1:] for part in (maps[:2], maps[2:]))
    expected = within.detach().unflatten(0, (2, 2)) * over.detach()[..., None]
    _, heat = video_rollout(model, pixel_values)
    torch.testing.assert_close(heat[:, ::2].flatten(2), expected)


# Pipelines


@pytest.fixture
def clip(tmp_path):
    """A video of 12 frames of 40 x 48 pixels, as an array and as a file without loss."""
    frames = np.random.default_rng(0).integers(0, 256, (12, 40, 48, 3), np.uint8)
    path = tmp_path / "clip.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = 48, 40, "bgr0"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return frames, str(path)


@pytest.mark.parametrize("case", PLAIN_VIDEO_CASES)
def test_pipeline_takes_arrays_and_files(case, clip, tmp_path):
    model = tiny_model(case)
    variant = next(iter(type(model.config).VARIANTS))
    processor = create_processor(variant, size=32, num_frames=model.config.num_frames, frame_sampling="uniform")
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert type(AutoVideoProcessor.from_pretrained(tmp_path)) is type(processor)
    frames, path = clip
    with torch.no_grad():
        expected = model(**processor(frames, return_tensors="pt")).logits[0].softmax(-1)
    classify = pipeline("video-classification", model=str(tmp_path))
    for video in (frames, path):
        found = {result["label"]: result["score"] for result in classify(video, top_k=5)}
        assert found == {f"LABEL_{i}": pytest.approx(score, abs=1e-6) for i, score in enumerate(expected.tolist())}


# Other libraries


@pytest.mark.parametrize("case", ["timesformer", "timesformer-joint"])
def test_timesformer_equals_transformers_own(case):
    model = tiny_model(case, drop_path_rate=0.1).double()
    config = model.config
    layout = architecture_of(case).conversion.LAYOUTS["transformers"]
    native = TimesformerForVideoClassification(TimesformerConfig(**layout.native_config(model)))
    native.load_state_dict(export_checkpoint(model, "transformers"))
    pixel_values = random_pixels(config).double()
    with torch.no_grad():
        theirs = native.eval().double()(pixel_values).logits
        torch.testing.assert_close(model(pixel_values).logits, theirs, rtol=1e-12, atol=1e-12)
    again, report = convert_checkpoint(native.state_dict(), original_kwargs=native.config.to_dict())
    assert (report.architecture, report.layout) == ("timesformer", "transformers")
    assert compare_models(again.double(), fresh(model), tolerance=0).passed


@pytest.mark.parametrize("original_names", [True, False])
@pytest.mark.parametrize("head", ["ForVideoClassification", "Model"])
def test_vivit_equals_transformers_own(tmp_path, head, original_names):
    torch.manual_seed(0)
    native_class = {"ForVideoClassification": VivitForVideoClassification, "Model": VivitModel}[head]
    native = native_class(
        VivitConfig(
            image_size=(16, 24),
            num_frames=6,
            tubelet_size=[2, 8, 8],
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=48,
            num_labels=3,
        )
    )
    for parameter in native.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    native = native.double().eval()
    native.save_pretrained(tmp_path, save_original_format=original_names)
    model, report = convert_checkpoint(tmp_path)
    assert (report.architecture, report.head) == ("vivit", head)
    assert report.layout == ("transformers" if original_names else "transformers_5")
    assert model.config.hidden_act == "gelu_pytorch_tanh"
    # Its "gelu_fast" has constants of fewer digits.
    parity = compare_models(model, native, tolerance=1e-10)
    assert parity.passed, parity
    assert parity.differences.keys() & {"logits", "pooler_output"}
    stored, exported = load_file(tmp_path / "model.safetensors"), export_checkpoint(model, report.layout)
    assert exported.keys() == stored.keys()
    assert all(torch.equal(exported[key], tensor) for key, tensor in stored.items())


@pytest.mark.parametrize("case", ["timesformer", "vivit"])
def test_transformers_reads_the_folder_that_is_written_for_it(tmp_path, case):
    model = tiny_model(case)
    config = model.config
    processor = create_processor(
        next(iter(type(config).VARIANTS)),
        size=config.image_size,
        num_frames=config.num_frames,
        crop_pct=0.8,
        crop_rounding="down",
        image_mean=[0.4, 0.5, 0.6],
        image_std=[0.2, 0.3, 0.4],
    )
    model.save_pretrained(tmp_path / "ours")
    processor.save_pretrained(tmp_path / "ours")
    assert main(["convert", f"{tmp_path}/ours", "--to", "transformers", "--output", f"{tmp_path}/native"]) == 0
    native = AutoModelForVideoClassification.from_pretrained(tmp_path / "native")
    their_processor = AutoVideoProcessor.from_pretrained(tmp_path / "native")
    assert (native.config.model_type, type(their_processor).__module__.split(".")[0]) == (case, "transformers")
    clip = torch.randint(0, 256, (config.num_frames, 3, 41, 67), dtype=torch.uint8)
    theirs, ours = (each(clip, return_tensors="pt").pixel_values for each in (their_processor, processor))
    torch.testing.assert_close(theirs, ours, atol=2 / 255 / 0.2, rtol=0)
    with torch.no_grad():
        torch.testing.assert_close(native(ours).logits, model(ours).logits, atol=1e-5, rtol=1e-5)
    assert main(["convert", f"{tmp_path}/native", "--output", f"{tmp_path}/again"]) == 0
    again = AutoVideoProcessor.from_pretrained(tmp_path / "again")
    assert again.crop_rounding == "down"
    for field in ("image_mean", "image_std", "crop_pct"):
        assert getattr(again, field) == pytest.approx(getattr(processor, field), abs=0.02)


def _msgpack(value) -> bytes:
    """Serialises nested dictionaries of arrays, numbers and texts as flax does."""
    if isinstance(value, dict):
        items = [_msgpack(part) for item in value.items() for part in item]
        return struct.pack(">BH", 0xDE, len(value)) + b"".join(items)
    if isinstance(value, (list, tuple)):
        return bytes([0x90 + len(value)]) + b"".join(map(_msgpack, value))
    if isinstance(value, str):
        return struct.pack(">BB", 0xD9, len(value.encode())) + value.encode()
    if isinstance(value, bytes):
        return struct.pack(">BI", 0xC6, len(value)) + value
    if isinstance(value, int):
        return struct.pack(">Bq", 0xD3, value)
    assert isinstance(value, np.ndarray)
    content = _msgpack((list(value.shape), value.dtype.name, value.tobytes()))
    return struct.pack(">BIb", 0xC9, len(content), 1) + content


@pytest.fixture
def flax_checkpoint(tmp_path):
    """A golden case of ViViT as scenic stores it, among the state of training."""
    case = golden.load("vivit", "model2_factorised_encoder")
    target: dict = {}
    for key, tensor in case.state_dict.items():
        *path, name = key.split("/")
        inside = target
        for part in path:
            inside = inside.setdefault(part, {})
        inside[name] = tensor.numpy()
    momentum = {"param_states": {"cls": np.zeros(2, np.float32)}, "step": np.asarray(7)}
    content = {"optimizer": {"target": target, "state": momentum}, "global_step": 7, "model_state": {}, "rng": "x"}
    path = tmp_path / "checkpoint"
    path.write_bytes(_msgpack(content))
    return case, path


def test_flax_checkpoints_of_scenic_are_read(flax_checkpoint):
    case, path = flax_checkpoint
    model, report = convert_checkpoint(path, image_size=(16, 24))
    assert (report.architecture, report.layout) == ("vivit", "original_factorised_encoder")
    assert report.key_prefix == "optimizer/target/"
    back = export_checkpoint(model, report.layout)
    assert back.keys() == case.state_dict.keys()
    assert all(torch.equal(back[key], tensor) for key, tensor in case.state_dict.items())


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda content: content + b"\x01",
        lambda content: b"PK\x03\x04" + content,
        lambda content: b"",
        lambda content: content.replace(b"float32", b"object_"),
        lambda content: b"\x91" * 100_000,
        lambda content: content.replace(struct.pack(">BI", 0xC6, 32 * 4), struct.pack(">BI", 0xC6, 32 * 4 - 3), 1),
    ],
    ids=["cut", "longer", "zip", "empty", "objects", "nested", "array"],
)
def test_damaged_flax_files_give_one_line(flax_checkpoint, damage):
    _, path = flax_checkpoint
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UnreadableCheckpointError, match=r"checkpoint: cannot be read as \.msgpack"):
        convert_checkpoint(path)


def _flax_vivit(case="vivit", **fields):
    """A random model of ViViT, and its file as scenic names it."""
    model = randomise(tiny_model(case, "ForVideoClassification", **fields))
    return model, export_checkpoint(model)


# Cases whose one table has places in space and time; what a user must say of those without a class token.
_ONE_TABLE = {
    "vivit": {},
    "vivit-self": {"attention_order": "time_space"},
    "vivit-dot": {"attention_type": "factorised_dot_product"},
}


@pytest.mark.parametrize("case", _ONE_TABLE)
@pytest.mark.parametrize("grid", [(4, 2, 2), (16, 1, 1), (2, 2, 4), (3, 2, 3)])
def test_vivit_asks_where_space_and_time_leave_several_readings(case, grid):
    patch = pair(tiny_model(case).config.patch_size)
    clip = {"num_frames": 2 * grid[0], "image_size": tuple(n * side for n, side in zip(grid[1:], patch, strict=True))}
    model, state_dict = _flax_vivit(case, tubelet_size=2, **clip)
    with pytest.raises(ConversionError, match="num_frames and image_size are not told") as error:
        convert_checkpoint(state_dict, **_ONE_TABLE[case])
    assert "--set num_frames=" in str(error.value)
    if grid[1] == grid[2]:
        assert f"{clip['num_frames']} frames of {clip['image_size'][0]} x {clip['image_size'][1]}" in str(error.value)
        again, _ = convert_checkpoint(state_dict, num_frames=clip["num_frames"], **_ONE_TABLE[case])
        assert pair(again.config.image_size) == clip["image_size"]
    else:
        with pytest.raises(ConversionError, match="--set image_size="):
            convert_checkpoint(state_dict, num_frames=clip["num_frames"], **_ONE_TABLE[case])
    again, _ = convert_checkpoint(state_dict, image_size=clip["image_size"], **_ONE_TABLE[case])
    assert again.config.num_frames == clip["num_frames"]
    pixels = torch.randn(1, clip["num_frames"], 3, *clip["image_size"])
    with torch.no_grad():
        assert torch.equal(model(pixels).logits, again(pixels).logits)
    for wrong in ({**clip, "num_frames": clip["num_frames"] + 2}, {"image_size": (7 * patch[0], patch[1])}):
        with pytest.raises(ConversionError, match="does not fit"):
            convert_checkpoint(state_dict, **wrong, **_ONE_TABLE[case])


@pytest.mark.parametrize("fields", [{}, {"hidden_size": 384}])
@pytest.mark.parametrize("frames", [32, 16])
def test_vivit_takes_the_clip_of_the_published_model_with_the_same_table(frames, fields):
    known = {
        "patch_size": (16, 16),
        "tubelet_size": 2,
        "attention_type": "joint_space_time",
        "pooling": "cls",
        **fields,
    }
    places = frames // 2 * 14 * 14
    if frames == 32 and not fields:
        assert clip_of_table(known, places, {}, "key") == {"num_frames": 32, "image_size": (224, 224)}
    else:
        with pytest.raises(ConversionError, match="num_frames and image_size are not told"):
            clip_of_table(known, places, {}, "key")


@pytest.mark.parametrize("representation_size", [None, 24])
@pytest.mark.parametrize("case", [*_ONE_TABLE, "vivit-encoder", "vivit-encoder-mean"])
def test_vivit_reads_filters_of_sampled_frames(case, representation_size):
    """temporal_sampling of scenic, whose filter has no time axis, is a tubelet of one frame."""
    model, state_dict = _flax_vivit(
        case, tubelet_size=1, num_frames=4, representation_size=representation_size, image_size=(32, 32), patch_size=16
    )
    state_dict["embedding/kernel"] = state_dict["embedding/kernel"][0]
    arguments = {"temporal_encoding_config": {"method": "temporal_sampling", "n_sampled_frames": 4}}
    again, report = convert_checkpoint(state_dict, original_kwargs=arguments, **_ONE_TABLE.get(case, {}))
    assert report.layout.endswith("_sampled_frames")
    assert any("temporal_sampling" in note for note in report.notes)
    pixels = torch.randn(2, 4, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(model(pixels).logits, again(pixels).logits)
    back = export_checkpoint(again, report.layout)
    assert back.keys() == state_dict.keys()
    assert all(torch.equal(back[key], tensor) for key, tensor in state_dict.items())


def test_vivit_asks_whether_its_attention_is_factorised():
    state_dict = golden.load("vivit", "model1_spacetime_nonsquare").state_dict
    model, _ = convert_checkpoint(state_dict, image_size=(16, 24))
    assert (model.config.num_frames, model.config.attention_type) == (6, "joint_space_time")
    state_dict = golden.load("vivit", "model4_factorised_dot_product").state_dict
    with pytest.raises(ConversionError, match="attention_type"):
        convert_checkpoint(state_dict, image_size=(16, 24))
