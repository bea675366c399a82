"""Segmentation and detection of transformers on our backbones: a few steps of training make the loss fall."""

import pytest
import torch
from models import architecture_of, tiny_config
from torch import nn
from transformers import DetrConfig, DetrForObjectDetection, UperNetConfig, UperNetForSemanticSegmentation

# Case of `models.TINY` to the stages that a pyramid gives, and to the distance of their pixels in the image's.
CASES = {
    "vit": (["stage1", "stage2"], [8, 8]),
    "swin": (["stage1", "stage2", "stage3"], [2, 4, 8]),
    "swinv2": (["stage1", "stage2", "stage3"], [2, 4, 8]),
    "pvt_v2": (["stage1", "stage2"], [4, 8]),
    "twins": (["stage1", "stage2"], [4, 8]),
    "cvt": (["stage1", "stage2", "stage3"], [4, 8, 16]),
}
# No multiple of patches, of windows, nor of the last stride where a map is padded.
SIZE = (36, 50)
STEPS = 25

every_case = pytest.mark.parametrize("case", CASES)


def scene(case: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise with a bright rectangle in each image, and the classes of its pixels: 1 inside, 0 outside."""
    height, width = SIZE
    generator = torch.Generator().manual_seed(0)
    pixel_values = 0.1 * torch.randn(2, 3, height, width, generator=generator)
    classes = torch.zeros(2, height, width, dtype=torch.long)
    classes[0, 4:20, 6:30] = 1
    classes[1, 16:30, 10:40] = 1
    return pixel_values + classes[:, None], classes


def train(model: nn.Module, learning_rate: float, **inputs) -> list[float]:
    """The loss of each step, the first one before any update."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    losses = []
    for _ in range(STEPS):
        loss = model(**inputs).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@every_case
def test_upernet_learns_to_segment(case):
    stages, strides = CASES[case]
    pixel_values, classes = scene(case)
    torch.manual_seed(0)
    config = UperNetConfig(
        backbone_config=tiny_config(case, out_features=stages),
        hidden_size=16,
        num_labels=2,
        use_auxiliary_head=False,
        pool_scales=[1, 2],
    )
    model = UperNetForSemanticSegmentation(config).train()
    assert type(model.backbone) is architecture_of(case).model_class("Backbone")
    assert [stride for stride, _ in model.backbone.strides] == strides
    losses = train(model, 5e-3, pixel_values=pixel_values, labels=classes)
    assert losses[-1] < 0.85 * losses[0]  # what is left of it is 0.21 to 0.39
    with torch.no_grad():
        assert model.eval()(pixel_values).logits.shape == (2, 2, *classes.shape[1:])


@every_case
def test_detr_learns_to_detect(case):
    pixel_values, classes = scene(case)
    height, width = classes.shape[1:]
    labels = []
    for mask in classes:
        rows, columns = mask.nonzero().unbind(1)
        top, left, bottom, right = rows.min(), columns.min(), rows.max() + 1, columns.max() + 1
        box = [(left + right) / 2 / width, (top + bottom) / 2 / height, (right - left) / width, (bottom - top) / height]
        labels.append({"class_labels": torch.tensor([0]), "boxes": torch.tensor([box])})
    torch.manual_seed(0)
    config = DetrConfig(
        backbone_config=tiny_config(case),
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        num_queries=3,
        num_labels=2,
        dropout=0.0,
    )
    model = DetrForObjectDetection(config).train()
    losses = train(model, 1e-2, pixel_values=pixel_values, labels=labels)
    # What is left of it is 0.72 to 0.79: much of the loss says how far off boxes are, which takes long to learn.
    assert losses[-1] < 0.95 * losses[0]
    assert all(parameter.grad is not None for parameter in model.model.backbone.parameters() if parameter.requires_grad)
