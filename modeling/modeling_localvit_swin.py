"""LocalViT (arXiv 2104.05707) on the body of Swin: feed-forward layers with a depth-wise convolution over the map.

Order of operations from ofsoundof/LocalViT@f497260 models/localvit_swin.py; all but the feed-forward layers is Swin's.

Shapes: B batch, N = h * w tokens row by row, C channels, h x w feature map.
"""

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_localvit_swin import VitfLocalvitSwinConfig
from .layers import DropPath, init_torch_default
from .modeling_localvit import LocalvitFeedForward
from .modeling_swin import (
    PaddedWindowsMixin,
    SwinAttention,
    SwinBackboneMixin,
    SwinEncoderMixin,
    SwinStage,
    VitfSwinPreTrainedModel,
)
from .modeling_vitf import ImageClassificationMixin, MaskedImageModelingMixin


class LocalvitSwinLayer(GradientCheckpointingLayer):
    """x + attention(norm(x)) with drop path, then the feed-forward layer on the map, without norm or drop path."""

    def __init__(self, config: VitfLocalvitSwinConfig, stage: int, window: int, drop_path_rate: float):
        super().__init__()
        hidden_size = config.hidden_sizes[stage]
        self.layernorm_before = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.attention = SwinAttention(config, stage, window)
        self.drop_path = DropPath(drop_path_rate)
        self.feed_forward = LocalvitFeedForward(
            config, hidden_size, config.inner_channels[stage], config.se_reductions[stage]
        )

    def forward(
        self, hidden_states: torch.Tensor, grid: tuple[int, int], window: int, shift: int, **kwargs
    ) -> torch.Tensor:
        """(B, N, C) to the same; `grid` is (h, w)."""
        hidden_states = hidden_states + self.drop_path(
            self.attention(self.layernorm_before(hidden_states), grid, window, shift, **kwargs)[0]
        )
        return self.feed_forward(hidden_states, grid)


class LocalvitSwinStage(SwinStage):
    layer_class = LocalvitSwinLayer


class VitfLocalvitSwinPreTrainedModel(VitfSwinPreTrainedModel):
    config: VitfLocalvitSwinConfig
    base_model_prefix = "localvit_swin"
    _no_split_modules = ["SwinEmbeddings", "SwinPatchMerging", "LocalvitSwinLayer"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Conv1d):
            init_torch_default(module)


class VitfLocalvitSwinModel(SwinEncoderMixin, VitfLocalvitSwinPreTrainedModel):
    """The bare encoder. `pooler_output` is the mean of all tokens after the last norm."""

    stage_class = LocalvitSwinStage


class VitfLocalvitSwinForImageClassification(ImageClassificationMixin, VitfLocalvitSwinPreTrainedModel):
    """LocalViT-Swin with a classifier on the mean of all tokens."""

    encoder_class = VitfLocalvitSwinModel


class VitfLocalvitSwinForMaskedImageModeling(MaskedImageModelingMixin, VitfLocalvitSwinPreTrainedModel):
    """LocalViT-Swin that predicts the pixels of masked patches."""

    encoder_class = VitfLocalvitSwinModel


class LocalvitSwinDenseModel(PaddedWindowsMixin, VitfLocalvitSwinModel):
    """The encoder of the backbone."""


class VitfLocalvitSwinBackbone(SwinBackboneMixin, VitfLocalvitSwinPreTrainedModel):
    """
    LocalViT-Swin as a backbone: the map of each stage, after a norm; windows padded and shifted at every size, as
    Swin's.
    """

    encoder_class = LocalvitSwinDenseModel


__all__ = [
    "VitfLocalvitSwinBackbone",
    "VitfLocalvitSwinForImageClassification",
    "VitfLocalvitSwinForMaskedImageModeling",
    "VitfLocalvitSwinModel",
    "VitfLocalvitSwinPreTrainedModel",
]
