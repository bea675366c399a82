"""PVT v2 (arXiv 2106.13797): the pyramid of PVT with overlapping patches and convolutions in place of positions.

Order of operations from whai362/PVT@57e2dfa classification/pvt_v2.py. As there, every stage ends with a norm.

Shapes: B batch, N tokens, row by row, M tokens of the reduced map, C channels, D channels inside a feed-forward layer,
H x W pixels, h x w grid of a map.
"""

from itertools import pairwise

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .configuration_pvt_v2 import VitfPvtV2Config
from .configuration_vitf import pair
from .layers import DropPath, drop_path_rates
from .modeling_vitf import (
    ImageClassificationMixin,
    LayerGroup,
    MaskedImageModelingMixin,
    VitfBackboneMixin,
    VitfPreTrainedModel,
    encoder_forward,
    masked_embeddings,
    stage_groups,
)
from .shapes import split_dim
from .spatial_reduction import (
    PyramidPatchEmbeddings,
    SpatialReductionAttention,
    check_pyramid_input,
    init_fan_out,
    spatial_reduction_attention,
)


def overlapping_patches(config: VitfPvtV2Config, stage: int) -> PyramidPatchEmbeddings:
    """Patches that reach to the next but one: 7 x 7 pixels at a distance of 4, then 3 x 3 tokens at a distance of 2."""
    return PyramidPatchEmbeddings(config, stage, 3 if stage else [2 * side - 1 for side in pair(config.patch_size)])


class PvtV2Embeddings(nn.Module):
    """(B, num_channels, H, W) to the tokens of the first stage (B, N, C)."""

    def __init__(self, config: VitfPvtV2Config):
        super().__init__()
        self.patch_embeddings = overlapping_patches(config, 0)

    def forward(self, pixel_values, bool_masked_pos=None, mask_token=None) -> torch.Tensor:
        return masked_embeddings(self.patch_embeddings(pixel_values), bool_masked_pos, mask_token)


class PvtV2PooledReduction(nn.Module):
    """A map of any size pooled to 7 x 7 (section 3.2): (B, N, C) to (B, 49, C). Smaller ones repeat their tokens."""

    def __init__(self, config: VitfPvtV2Config, hidden_size: int):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(7)
        self.conv = nn.Conv2d(hidden_size, hidden_size, kernel_size=1)
        self.layernorm = nn.LayerNorm(hidden_size, eps=config.conv_norm_eps)
        self.activation = nn.GELU()

    def forward(self, hidden_states: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        reduced = self.conv(self.pool(split_dim(hidden_states.transpose(1, 2), 2, grid)))
        return self.activation(self.layernorm(reduced.flatten(2).transpose(1, 2)))


class PvtV2Mlp(nn.Module):
    """`fc1`, with linear attention a ReLU, a depth-wise 3x3 convolution on the map, activation, `fc2`."""

    def __init__(self, config: VitfPvtV2Config, hidden_size: int, intermediate_size: int):
        super().__init__()
        self.fc1 = nn.Linear(hidden_size, intermediate_size)
        self.relu = nn.ReLU() if config.linear_attention else nn.Identity()
        self.depthwise = nn.Conv2d(intermediate_size, intermediate_size, 3, padding=1, groups=intermediate_size)
        self.activation = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(intermediate_size, hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        hidden_states = self.relu(self.fc1(hidden_states))
        hidden_states = self.depthwise(split_dim(hidden_states.transpose(1, 2), 2, grid)).flatten(2).transpose(1, 2)
        hidden_states = self.activation(hidden_states)
        return self.dropout(self.fc2(self.dropout(hidden_states)))


class PvtV2Layer(GradientCheckpointingLayer):
    """x + attention(norm(x)), then x + mlp(norm(x)); drop path on both branches."""

    def __init__(self, config: VitfPvtV2Config, stage: int, drop_path_rate: float):
        super().__init__()
        hidden_size = config.hidden_sizes[stage]
        self.layernorm_before = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        if config.linear_attention:
            reduction = PvtV2PooledReduction(config, hidden_size)
            self.attention = SpatialReductionAttention(config, hidden_size, config.num_heads[stage], reduction)
        else:
            self.attention = spatial_reduction_attention(config, stage)
        self.layernorm_after = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.mlp = PvtV2Mlp(config, hidden_size, int(hidden_size * config.mlp_ratios[stage]))
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, hidden_states: torch.Tensor, grid: tuple[int, int], **kwargs) -> torch.Tensor:
        hidden_states = hidden_states + self.drop_path(
            self.attention(self.layernorm_before(hidden_states), grid, **kwargs)[0]
        )
        return hidden_states + self.drop_path(self.mlp(self.layernorm_after(hidden_states), grid))


class PvtV2Stage(nn.Module):
    """Patches of the map before it, except in the first stage, then layers and a norm."""

    def __init__(self, config: VitfPvtV2Config, stage: int, drop_path_rates: list[float]):
        super().__init__()
        self.patch_embeddings = overlapping_patches(config, stage) if stage else None
        self.layers = nn.ModuleList([PvtV2Layer(config, stage, rate) for rate in drop_path_rates])
        self.layernorm = nn.LayerNorm(config.hidden_sizes[stage], eps=config.layer_norm_eps)

    def forward(
        self, hidden_states: torch.Tensor, grid_before: tuple[int, int], grid: tuple[int, int], **kwargs
    ) -> torch.Tensor:
        """Tokens on the grid of the stage before it to those on its own `grid`."""
        if self.patch_embeddings is not None:
            hidden_states = self.patch_embeddings(split_dim(hidden_states.transpose(1, 2), 2, grid_before))
        for layer in self.layers:
            hidden_states = layer(hidden_states, grid, **kwargs)
        return self.layernorm(hidden_states)


class VitfPvtV2PreTrainedModel(VitfPreTrainedModel):
    config: VitfPvtV2Config
    base_model_prefix = "pvt_v2"
    _no_split_modules = ["PvtV2Embeddings", "PvtV2Layer"]
    _can_record_outputs = {"hidden_states": PvtV2Stage, "attentions": SpatialReductionAttention}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        init_fan_out(module, self.config.initializer_range)


class VitfPvtV2Model(VitfPvtV2PreTrainedModel):
    """The bare encoder. `pooler_output` is the mean of the last stage's tokens, after its norm."""

    exports_any_size = True

    def __init__(self, config: VitfPvtV2Config):
        super().__init__(config)
        self.embeddings = PvtV2Embeddings(config)
        rates = iter(drop_path_rates(config.drop_path_rate, sum(config.depths)))
        self.stages = nn.ModuleList(
            [
                PvtV2Stage(config, stage, [next(rates) for _ in range(depth)])
                for stage, depth in enumerate(config.depths)
            ]
        )
        self.num_prefix_tokens = 0
        self.post_init()

    def layer_groups(self) -> list[LayerGroup]:
        groups: list[LayerGroup] = [[self.embeddings]]
        for stage in self.stages:
            groups += stage_groups(stage, norm="layernorm")
            if stage is not self.stages[-1]:
                groups[-1].append(stage.layernorm)
        return groups

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
                H and W of any size whose maps are no smaller than what `sr_ratios` makes one key of.
            bool_masked_pos (`torch.BoolTensor` of shape `(B, number of patches)`, *optional*):
                Patches of the first stage to mask.
            mask_token (`torch.Tensor` of shape `(1, 1, C)`, *optional*): What masked patches become.

        Returns:
            `last_hidden_state` (B, N, C), the tokens of the last stage; `pooler_output` (B, C);
            `hidden_states`: the input of the first stage and the output of each, (B, N, C) with N and C of the stage;
            `attentions`: (B, heads, N, M) a layer.
        """
        config = self.config
        smallest_maps = [1 for _ in config.depths] if config.linear_attention else config.sr_ratios
        check_pyramid_input(pixel_values, config, smallest_maps)
        grids = config.feature_map_sizes(*pixel_values.shape[-2:])
        hidden_states = self.embeddings(pixel_values, bool_masked_pos, mask_token)
        for stage, (grid_before, grid) in zip(self.stages, pairwise(grids), strict=True):
            hidden_states = stage(hidden_states, grid_before, grid, **kwargs)
        return BaseModelOutputWithPooling(last_hidden_state=hidden_states, pooler_output=hidden_states.mean(1))


class VitfPvtV2ForImageClassification(ImageClassificationMixin, VitfPvtV2PreTrainedModel):
    """PVT v2 with a linear classifier on the mean of its tokens."""

    encoder_class = VitfPvtV2Model


class VitfPvtV2ForMaskedImageModeling(MaskedImageModelingMixin, VitfPvtV2PreTrainedModel):
    """PVT v2 that predicts the pixels of masked patches."""

    encoder_class = VitfPvtV2Model


class VitfPvtV2Backbone(VitfBackboneMixin, VitfPvtV2PreTrainedModel):
    """PVT v2 as a backbone: the map of each stage."""

    encoder_class = VitfPvtV2Model

    def normalize_stage(self, hidden_states: torch.Tensor, stage: int) -> torch.Tensor:
        """Nothing: the stages have their norms."""
        return hidden_states


__all__ = [
    "VitfPvtV2Backbone",
    "VitfPvtV2ForImageClassification",
    "VitfPvtV2ForMaskedImageModeling",
    "VitfPvtV2Model",
    "VitfPvtV2PreTrainedModel",
]
