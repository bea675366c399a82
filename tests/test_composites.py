"""
Models of transformers that contain ours: built, trained, saved, and loaded with equal outputs, for every architecture.
"""

import pytest
import torch
from models import (
    IMAGE_CASES,
    PLAIN_CASES,
    architecture_of,
    assert_same_weights,
    dossier_of,
    random_pixels,
    tiny_config,
)
from transformers import (
    BertConfig,
    DetrConfig,
    DetrForObjectDetection,
    MaskFormerConfig,
    MaskFormerForInstanceSegmentation,
    PreTrainedModel,
    UperNetConfig,
    UperNetForSemanticSegmentation,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
)

from hf_vit_family.modeling.configuration_vitf import pair

_BERT = {
    "vocab_size": 20,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "pad_token_id": 0,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
_DETR = {
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "num_queries": 3,
    "num_labels": 2,
    "dropout": 0.0,
}
TOKENS = torch.tensor([[1, 5, 6, 7], [1, 8, 9, 2]])


def backbone_config(case: str):
    """A tiny configuration that returns the map of each stage."""
    stages = tiny_config(case).stage_names[1:]
    return tiny_config(case, out_features=stages)


def odd_images(case: str) -> torch.Tensor:
    """Images whose sides are no multiple of any patch, stride or window, as a detector's processor makes them."""
    config = tiny_config(case)
    height, width = pair(config.image_size)
    return random_pixels(config, size=(height + 3, width + 7))


def upernet(case: str) -> tuple[PreTrainedModel, dict]:
    config = UperNetConfig(
        backbone_config=backbone_config(case),
        hidden_size=16,
        num_labels=3,
        use_auxiliary_head=False,
        pool_scales=[1, 2],
    )
    images = odd_images(case)
    return UperNetForSemanticSegmentation(config), {
        "pixel_values": images,
        "labels": torch.arange(images[:, 0].numel()).view(images[:, 0].shape) % 3,
    }


def detr(case: str) -> tuple[PreTrainedModel, dict]:
    config = DetrConfig(backbone_config=tiny_config(case), **_DETR)
    box = {"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.3, 0.4]])}
    return DetrForObjectDetection(config), {"pixel_values": odd_images(case), "labels": [box, box]}


def maskformer(case: str) -> tuple[PreTrainedModel, dict]:
    config = MaskFormerConfig(
        backbone_config=backbone_config(case),
        decoder_config=DetrConfig(**_DETR),
        fpn_feature_size=32,  # group norm has 32 groups
        mask_feature_size=32,
        num_labels=2,
    )
    images = odd_images(case)
    mask = torch.zeros(1, *images.shape[-2:])
    mask[:, 4:20, 6:20] = 1
    return MaskFormerForInstanceSegmentation(config), {
        "pixel_values": images,
        "mask_labels": [mask, mask],
        "class_labels": [torch.tensor([1])] * 2,
    }


def dual_encoder(case: str) -> tuple[PreTrainedModel, dict]:
    config = VisionTextDualEncoderConfig.from_vision_text_configs(
        tiny_config(case, **dossier_of(case).composite_fields.get("dual_encoder", {})),
        BertConfig(**_BERT),
        projection_dim=8,
    )
    images = random_pixels(config.vision_config)
    return VisionTextDualEncoderModel(config), {"pixel_values": images, "input_ids": TOKENS, "return_loss": True}


def encoder_decoder(case: str) -> tuple[PreTrainedModel, dict]:
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(tiny_config(case), BertConfig(**_BERT))
    config.pad_token_id, config.decoder_start_token_id = 0, 1
    images = random_pixels(config.encoder)
    return VisionEncoderDecoderModel(config), {"pixel_values": images, "labels": TOKENS}


COMPOSITES = {build.__name__: build for build in (upernet, detr, maskformer, dual_encoder, encoder_decoder)}
# Clips: an encoder of them captions or is compared with text. Detectors and segmenters of transformers take images.
PAIRS = [
    (case, composite)
    for case in PLAIN_CASES
    for composite in COMPOSITES
    if case in IMAGE_CASES or composite in ("dual_encoder", "encoder_decoder")
]
every_pair = pytest.mark.parametrize(("case", "composite"), PAIRS)


def encoder_of(model: PreTrainedModel) -> PreTrainedModel:
    """Our model inside a composite."""
    return next(module for module in model.modules() if type(module).__name__.startswith("Vitf"))


def outputs_of(model: PreTrainedModel, inputs: dict) -> list[torch.Tensor]:
    """All tensors that a model returns, without gradient."""
    with torch.no_grad():
        return [output for output in model(**inputs).to_tuple() if isinstance(output, torch.Tensor)]


@every_pair
def test_composite_trains_and_loads_equal(case, composite, tmp_path):
    torch.manual_seed(0)
    model, inputs = COMPOSITES[composite](case)
    encoder = encoder_of(model)
    head = "Model" if composite in ("dual_encoder", "encoder_decoder") else "Backbone"
    assert type(encoder) is architecture_of(case).model_class(head)
    loss = model.train()(**inputs).loss
    loss.backward()
    assert loss.isfinite()
    without = [name for name, p in encoder.named_parameters() if p.requires_grad and p.grad is None]
    pooling = dossier_of(case).pooling if composite == "encoder_decoder" else None  # a decoder reads all tokens
    assert [name for name in without if pooling is None or not name.startswith(pooling)] == []
    torch.optim.SGD(model.parameters(), lr=1e-3).step()  # buffers and parameters that no initialisation gives
    model.eval().save_pretrained(tmp_path)
    loaded, report = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    expected, found = outputs_of(model, inputs), outputs_of(loaded, inputs)
    assert len(expected) == len(found) > 0
    assert_same_weights(loaded, model)
    for output, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(output, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("case", IMAGE_CASES)
def test_backbone_pads_what_does_not_fit(case):
    """The maps of an odd image are those of the image with zeros to the right and below, rounded up."""
    config = backbone_config(case)
    model = architecture_of(case).model_class("Backbone")(config).eval()
    images = odd_images(case)
    missing = [-side % step for side, step in zip(images.shape[-2:], config.size_multiple, strict=True)]
    padded = torch.nn.functional.pad(images, (0, missing[1], 0, missing[0]))
    with torch.no_grad():
        maps, expected = model(images).feature_maps, model(padded).feature_maps
    assert all(torch.equal(*each) for each in zip(maps, expected, strict=True))
    assert all(each.is_contiguous() for each in maps)


def test_representation_size_of_another_width_has_no_dual_encoder():
    """transformers reads the width of `pooler_output` in `hidden_size`: what differs is refused, not used."""
    config = VisionTextDualEncoderConfig.from_vision_text_configs(tiny_config("vit"), BertConfig(**_BERT))
    assert config.vision_config.pooler_output_size != config.vision_config.hidden_size
    inputs = {"pixel_values": random_pixels(config.vision_config), "input_ids": TOKENS}
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        VisionTextDualEncoderModel(config)(**inputs)
