"""LocalViT (arXiv 2104.05707) on the body of PVT: feed-forward layers with a depth-wise convolution over the map of
patches.

Order of operations from ofsoundof/LocalViT@f497260 models/localvit_pvt.py; all but the feed-forward layers is PVT's.

Shapes: B batch, N tokens (in the last stage the class token, then patches, row by row), C channels, h x w grid of a
    map.
"""

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_localvit_pvt import VitfLocalvitPvtConfig
from .layers import DropPath, init_torch_default
from .modeling_localvit import LocalvitFeedForward
from .modeling_pvt import PvtEncoderMixin, PvtStage, VitfPvtPreTrainedModel
from .modeling_vitf import ImageClassificationMixin, MaskedImageModelingMixin, PyramidBackboneMixin
from .spatial_reduction import SpatialReductionAttention, spatial_reduction_attention


class LocalvitPvtLayer(GradientCheckpointingLayer):
    """
    x + attention(norm(x)) with drop path, then the feed-forward layer on only the patches, without norm or drop path.
    """

    def __init__(self, config: VitfLocalvitPvtConfig, stage: int, drop_path_rate: float):
        super().__init__()
        hidden_size = config.hidden_sizes[stage]
        self.layernorm_before = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.attention = spatial_reduction_attention(config, stage)
        self.drop_path = DropPath(drop_path_rate)
        self.feed_forward = LocalvitFeedForward(
            config, hidden_size, config.inner_channels[stage], config.se_reductions[stage]
        )

    def forward(self, hidden_states: torch.Tensor, grid: tuple[int, int], **kwargs) -> torch.Tensor:
        """(B, N, C) to the same; `grid` is (h, w), and tokens before the map are class tokens."""
        hidden_states = hidden_states + self.drop_path(
            self.attention(self.layernorm_before(hidden_states), grid, **kwargs)[0]
        )
        num_prefix_tokens = hidden_states.shape[1] - grid[0] * grid[1]
        if num_prefix_tokens == 0:
            return self.feed_forward(hidden_states, grid)
        prefix, patches = hidden_states[:, :num_prefix_tokens], hidden_states[:, num_prefix_tokens:]
        return torch.cat((prefix, self.feed_forward(patches, grid)), dim=1)


class LocalvitPvtStage(PvtStage):
    layer_class = LocalvitPvtLayer


class VitfLocalvitPvtPreTrainedModel(VitfPvtPreTrainedModel):
    config: VitfLocalvitPvtConfig
    base_model_prefix = "localvit_pvt"
    _no_split_modules = ["PvtEmbeddings", "LocalvitPvtLayer"]
    _can_record_outputs = {"hidden_states": LocalvitPvtStage, "attentions": SpatialReductionAttention}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Conv1d):
            init_torch_default(module)


class VitfLocalvitPvtModel(PvtEncoderMixin, VitfLocalvitPvtPreTrainedModel):
    """
    The bare encoder. `pooler_output` is the class token after the last norm, without class token there is none; the
    last layer's feed-forward layer changes only the patches, so that no classifier trains it.
    """

    stage_class = LocalvitPvtStage


class VitfLocalvitPvtForImageClassification(ImageClassificationMixin, VitfLocalvitPvtPreTrainedModel):
    """LocalViT-PVT with a linear classifier on the class token."""

    encoder_class = VitfLocalvitPvtModel


class VitfLocalvitPvtForMaskedImageModeling(MaskedImageModelingMixin, VitfLocalvitPvtPreTrainedModel):
    """LocalViT-PVT that predicts the pixels of masked patches."""

    encoder_class = VitfLocalvitPvtModel


class VitfLocalvitPvtBackbone(PyramidBackboneMixin, VitfLocalvitPvtPreTrainedModel):
    """LocalViT-PVT as a backbone, without class token: the map of each stage, that of the last one after the norm."""

    encoder_class = VitfLocalvitPvtModel
    encoder_kwargs = {"use_cls_token": False}


__all__ = [
    "VitfLocalvitPvtBackbone",
    "VitfLocalvitPvtForImageClassification",
    "VitfLocalvitPvtForMaskedImageModeling",
    "VitfLocalvitPvtModel",
    "VitfLocalvitPvtPreTrainedModel",
]
