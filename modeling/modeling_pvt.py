"""PVT (arXiv 2102.12122): a pyramid of stages, with attention to maps that a convolution made smaller.

Order of operations from whai362/PVT@57e2dfa classification/pvt.py; without class token, as a backbone, from
detection/pvt.py. Positions are resized from each stage's own grid at every size but the configured one. (The original
takes the table as it is wherever a map has as many tokens as the first stage's table.)

Shapes: B batch, N tokens (in the last stage the class token, then patches, row by row), M tokens of the reduced map,
C channels, H x W pixels, h x w grid of a map.
"""

from itertools import pairwise
from typing import ClassVar

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .configuration_pvt import VitfPvtConfig
from .configuration_vitf import pair
from .embeddings import PositionEmbeddings, check_input
from .layers import DropPath, Mlp, drop_path_rates, init_trunc_normal
from .modeling_vitf import (
    ImageClassificationMixin,
    MaskedImageModelingMixin,
    PyramidBackboneMixin,
    VitfPreTrainedModel,
    encoder_forward,
    masked_embeddings,
)
from .shapes import split_dim
from .spatial_reduction import (
    PyramidPatchEmbeddings,
    SpatialReductionAttention,
    check_pyramid_input,
    spatial_reduction_attention,
)


class PvtEmbeddings(nn.Module):
    """The tokens of a stage, with positions: (B, channels, H, W), pixels or a map, to (B, N, C)."""

    def __init__(self, config: VitfPvtConfig, stage: int, use_cls_token: bool):
        super().__init__()
        hidden_size = config.hidden_sizes[stage]
        is_last = stage == len(config.depths) - 1
        self.patch_embeddings = PyramidPatchEmbeddings(config, stage, 2 if stage else config.patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, hidden_size)) if is_last and use_cls_token else None
        # A model without class token keeps its row, unused, so that it loads the weights of one with it.
        self.position_embeddings = PositionEmbeddings(
            hidden_size,
            self.patch_embeddings.grid(*pair(config.image_size)),
            num_prefix_tokens=int(is_last),
            interpolation="bilinear_half_pixel",
        )
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self, feature_map: torch.Tensor, grid: tuple[int, int], bool_masked_pos=None, mask_token=None
    ) -> torch.Tensor:
        """`grid` is that of the tokens that it makes."""
        tokens = masked_embeddings(self.patch_embeddings(feature_map), bool_masked_pos, mask_token)
        if self.cls_token is not None:
            tokens = torch.cat((self.cls_token.expand(tokens.shape[0], -1, -1), tokens), dim=1)
        positions = self.position_embeddings(grid, tokens)
        return self.dropout(tokens + positions[:, -tokens.shape[1] :])


class PvtLayer(GradientCheckpointingLayer):
    """x + attention(norm(x)), then x + mlp(norm(x)); drop path on both branches."""

    def __init__(self, config: VitfPvtConfig, stage: int, drop_path_rate: float):
        super().__init__()
        hidden_size = config.hidden_sizes[stage]
        self.layernorm_before = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.attention = spatial_reduction_attention(config, stage)
        self.layernorm_after = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.mlp = Mlp(config, hidden_size, int(hidden_size * config.mlp_ratios[stage]))
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, hidden_states: torch.Tensor, grid: tuple[int, int], **kwargs) -> torch.Tensor:
        hidden_states = hidden_states + self.drop_path(
            self.attention(self.layernorm_before(hidden_states), grid, **kwargs)[0]
        )
        return hidden_states + self.drop_path(self.mlp(self.layernorm_after(hidden_states)))


class PvtStage(nn.Module):
    """Embeddings of the map before it, except in the first stage, then layers."""

    layer_class: ClassVar[type[nn.Module]] = PvtLayer

    def __init__(self, config: VitfPvtConfig, stage: int, drop_path_rates: list[float], use_cls_token: bool):
        super().__init__()
        self.embeddings = PvtEmbeddings(config, stage, use_cls_token) if stage else None
        self.layers = nn.ModuleList([self.layer_class(config, stage, rate) for rate in drop_path_rates])

    def forward(
        self, hidden_states: torch.Tensor, grid_before: tuple[int, int], grid: tuple[int, int], **kwargs
    ) -> torch.Tensor:
        """Tokens on the grid of the stage before it to those on its own `grid`."""
        if self.embeddings is not None:
            hidden_states = self.embeddings(split_dim(hidden_states.transpose(1, 2), 2, grid_before), grid)
        for layer in self.layers:
            hidden_states = layer(hidden_states, grid, **kwargs)
        return hidden_states


class VitfPvtPreTrainedModel(VitfPreTrainedModel):
    config: VitfPvtConfig
    base_model_prefix = "pvt"
    _no_split_modules = ["PvtEmbeddings", "PvtLayer"]
    _can_record_outputs = {"hidden_states": PvtStage, "attentions": SpatialReductionAttention}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        init_trunc_normal(module, std)
        if isinstance(module, PositionEmbeddings):
            init.trunc_normal_(module.weight, std=std)
        elif isinstance(module, PvtEmbeddings) and module.cls_token is not None:
            init.trunc_normal_(module.cls_token, std=std)


class PvtEncoderMixin:
    """All of the base model of PVT, and of those that differ only in their layers; `stage_class` tells them apart."""

    stage_class: ClassVar[type[nn.Module]]

    def __init__(self, config: VitfPvtConfig, use_cls_token: bool = True):
        super().__init__(config)
        self.embeddings = PvtEmbeddings(config, 0, use_cls_token)
        rates = iter(drop_path_rates(config.drop_path_rate, sum(config.depths)))
        self.stages = nn.ModuleList(
            [
                self.stage_class(config, stage, [next(rates) for _ in range(depth)], use_cls_token)
                for stage, depth in enumerate(config.depths)
            ]
        )
        self.layernorm = nn.LayerNorm(config.hidden_sizes[-1], eps=config.layer_norm_eps)
        self.num_prefix_tokens = int(use_cls_token)
        self.post_init()

    @encoder_forward
    def forward(
        self,
        pixel_values: torch.Tensor,
        bool_masked_pos: torch.Tensor | None = None,
        mask_token: torch.Tensor | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPooling:
        r"""
        Args:
            pixel_values (`torch.Tensor` of shape `(B, num_channels, H, W)`):
                H and W of any size that leaves a token in each stage; pixels beyond the last whole patch are not seen.
            bool_masked_pos (`torch.BoolTensor` of shape `(B, number of patches)`, *optional*):
                Patches of the first stage to mask; H and W must be multiples of the last stage's stride then.
            mask_token (`torch.Tensor` of shape `(1, 1, C)`, *optional*): What masked patches become.

        Returns:
            `last_hidden_state` (B, N, C), all tokens of the last stage after the norm; `pooler_output` (B, C);
            `hidden_states`: the input of the first stage and the output of each, (B, N, C) with N and C of the stage;
            `attentions`: (B, heads, N, M) a layer.
        """
        check_pyramid_input(pixel_values, self.config, self.config.sr_ratios)
        if bool_masked_pos is not None:
            check_input(pixel_values, self.config.num_channels, self.config.stage_strides[-1])
        grids = self.config.feature_map_sizes(*pixel_values.shape[-2:])
        hidden_states = self.embeddings(pixel_values, grids[0], bool_masked_pos, mask_token)
        for stage, (grid_before, grid) in zip(self.stages, pairwise(grids), strict=True):
            hidden_states = stage(hidden_states, grid_before, grid, **kwargs)
        hidden_states = self.layernorm(hidden_states)
        pooled = hidden_states[:, 0] if self.num_prefix_tokens else None
        return BaseModelOutputWithPooling(last_hidden_state=hidden_states, pooler_output=pooled)


class VitfPvtModel(PvtEncoderMixin, VitfPvtPreTrainedModel):
    """The bare encoder. `pooler_output` is the class token after the last norm; without class token there is none."""

    stage_class = PvtStage


class VitfPvtForImageClassification(ImageClassificationMixin, VitfPvtPreTrainedModel):
    """PVT with a linear classifier on the class token."""

    encoder_class = VitfPvtModel


class VitfPvtForMaskedImageModeling(MaskedImageModelingMixin, VitfPvtPreTrainedModel):
    """PVT that predicts the pixels of masked patches."""

    encoder_class = VitfPvtModel


class VitfPvtBackbone(PyramidBackboneMixin, VitfPvtPreTrainedModel):
    """PVT as a backbone, without class token: the map of each stage, that of the last one after the norm."""

    encoder_class = VitfPvtModel
    encoder_kwargs = {"use_cls_token": False}


__all__ = [
    "VitfPvtBackbone",
    "VitfPvtForImageClassification",
    "VitfPvtForMaskedImageModeling",
    "VitfPvtModel",
    "VitfPvtPreTrainedModel",
]
