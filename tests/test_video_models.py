"""What models of clips can do beyond the common tests: start from image models, run in pipelines, be read from other libraries."""

import av
import numpy as np
import pytest
import torch
from models import VIDEO_CASES, architecture_of, fresh, random_pixels, tiny_config, tiny_model
from transformers import AutoVideoProcessor, TimesformerConfig, TimesformerForVideoClassification, pipeline

from hf_vit_family import create_processor
from hf_vit_family.conversion import convert_checkpoint, export_checkpoint
from hf_vit_family.parity import compare_models

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
