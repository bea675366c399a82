"""Twins (arXiv 2104.13840): attention within windows and to smaller maps in turn, and positions from a convolution.

Order of operations from Meituan-AutoML/Twins@c1ff671 gvt.py (timm 0.3.2 for the blocks); maps that are not made of
whole windows are padded as in its detection/gvt.py.

Shapes: B batch, N tokens, row by row, C channels, H x W pixels, h x w grid of a map, W windows of a map, n tokens of a
window, M tokens of a reduced map.
"""

from itertools import pairwise

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .attention import SelfAttention
from .configuration_twins import VitfTwinsConfig
from .embeddings import check_input
from .layers import RECORDED_HIDDEN_STATES, DropPath, HiddenState, Mlp, drop_path_rates
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
    init_fan_out,
    spatial_reduction_attention,
)
from .windows import from_windows, to_windows


class TwinsEmbeddings(nn.Module):
    """(B, num_channels, H, W) to the tokens of the first stage (B, N, C)."""

    def __init__(self, config: VitfTwinsConfig):
        super().__init__()
        self.patch_embeddings = PyramidPatchEmbeddings(config, 0, config.patch_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, pixel_values, bool_masked_pos=None, mask_token=None) -> torch.Tensor:
        return self.dropout(masked_embeddings(self.patch_embeddings(pixel_values), bool_masked_pos, mask_token))


class TwinsLocalAttention(SelfAttention):
    """Self-attention within windows (section 3.3, LSA). Padding takes part in it, unmasked."""

    def __init__(self, config: VitfTwinsConfig, stage: int):
        super().__init__(config, config.hidden_sizes[stage], config.num_heads[stage], config.qkv_bias)
        self.window = config.window_sizes[stage]

    def forward(
        self, hidden_states: torch.Tensor, grid: tuple[int, int], **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(B, N, C) to (B, N, C) and the map (B * W, heads, n, n)."""
        windows = to_windows(split_dim(hidden_states, 1, grid), self.window)
        context, probabilities = super().forward(windows, **kwargs)
        return from_windows(context, grid, self.window).flatten(1, 2), probabilities


# Kind of attention to what makes it from the configuration and the stage.
ATTENTION = {"local": TwinsLocalAttention, "global": spatial_reduction_attention}


class TwinsLayer(GradientCheckpointingLayer):
    """x + attention(norm(x)), then x + mlp(norm(x)); drop path on both branches."""

    def __init__(self, config: VitfTwinsConfig, stage: int, attention: str, drop_path_rate: float):
        super().__init__()
        hidden_size = config.hidden_sizes[stage]
        self.layernorm_before = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.attention = ATTENTION[attention](config, stage)
        self.layernorm_after = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.mlp = Mlp(config, hidden_size, int(hidden_size * config.mlp_ratios[stage]))
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, hidden_states: torch.Tensor, grid: tuple[int, int], **kwargs) -> torch.Tensor:
        hidden_states = hidden_states + self.drop_path(
            self.attention(self.layernorm_before(hidden_states), grid, **kwargs)[0]
        )
        return hidden_states + self.drop_path(self.mlp(self.layernorm_after(hidden_states)))


class TwinsPositionGenerator(nn.Module):
    """Adds a depth-wise 3x3 convolution of the map, whose padding with zeros tells where the border is: the positional
    encoding generator of CPVT (arXiv 2102.10882, section 3.2)."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.conv = nn.Conv2d(hidden_size, hidden_size, 3, padding=1, groups=hidden_size)

    def forward(self, hidden_states: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """(B, N, C) to (B, N, C)."""
        positions = self.conv(split_dim(hidden_states.transpose(1, 2), 2, grid))
        return hidden_states + positions.flatten(2).transpose(1, 2)


class TwinsStage(nn.Module):
    """
    Patches of the map before it, except in the first stage, then layers; positions join after the first one. The
    encoder runs them (see [`HiddenState`]).
    """

    def __init__(self, config: VitfTwinsConfig, stage: int, drop_path_rates: list[float]):
        super().__init__()
        self.patch_embeddings = PyramidPatchEmbeddings(config, stage, 2) if stage else None
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        pattern = config.attention_pattern
        self.layers = nn.ModuleList(
            [
                TwinsLayer(config, stage, pattern[layer % len(pattern)], rate)
                for layer, rate in enumerate(drop_path_rates)
            ]
        )
        self.position_generator = TwinsPositionGenerator(config.hidden_sizes[stage])


class VitfTwinsPreTrainedModel(VitfPreTrainedModel):
    config: VitfTwinsConfig
    base_model_prefix = "twins"
    _no_split_modules = ["TwinsEmbeddings", "TwinsLayer", "TwinsPositionGenerator"]
    _can_record_outputs = {
        "hidden_states": RECORDED_HIDDEN_STATES,
        "attentions": [TwinsLocalAttention, SpatialReductionAttention],
    }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        init_fan_out(module, self.config.initializer_range)


class VitfTwinsModel(VitfTwinsPreTrainedModel):
    """The bare encoder. `pooler_output` is the mean of the last stage's tokens, after the last norm."""

    exports_any_size = True

    def __init__(self, config: VitfTwinsConfig):
        super().__init__(config)
        self.embeddings = TwinsEmbeddings(config)
        rates = iter(drop_path_rates(config.drop_path_rate, sum(config.depths)))
        self.stages = nn.ModuleList(
            [
                TwinsStage(config, stage, [next(rates) for _ in range(depth)])
                for stage, depth in enumerate(config.depths)
            ]
        )
        self.layernorm = nn.LayerNorm(config.hidden_sizes[-1], eps=config.layer_norm_eps)
        self.hidden_state = HiddenState()
        self.num_prefix_tokens = 0
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
            pixel_values (`torch.Tensor` of shape `(B, num_channels, H, W)`): H and W of any size whose maps are no
                smaller than what `sr_ratios` makes one key of; pixels beyond the last whole patch are not seen.
            bool_masked_pos (`torch.BoolTensor` of shape `(B, number of patches)`, *optional*):
                Patches of the first stage to mask; H and W must be multiples of the last stage's stride then.
            mask_token (`torch.Tensor` of shape `(1, 1, C)`, *optional*): What masked patches become.

        Returns:
            `last_hidden_state` (B, N, C), the tokens of the last stage after the norm; `pooler_output` (B, C);
            `hidden_states`: the input of the first stage and the output of each, (B, N, C) with N and C of the stage;
            `attentions`: for each layer (B * W, heads, n, n) where it is local, (B, heads, N, M) where it is global.
        """
        check_pyramid_input(pixel_values, self.config, self.config.sr_ratios)
        if bool_masked_pos is not None:
            check_input(pixel_values, self.config.num_channels, self.config.stage_strides[-1])
        grids = self.config.feature_map_sizes(*pixel_values.shape[-2:])
        hidden_states = self.hidden_state(self.embeddings(pixel_values, bool_masked_pos, mask_token))
        for stage, (grid_before, grid) in zip(self.stages, pairwise(grids), strict=True):
            if stage.patch_embeddings is not None:
                feature_map = split_dim(hidden_states.transpose(1, 2), 2, grid_before)
                hidden_states = stage.dropout(stage.patch_embeddings(feature_map))
            for number, layer in enumerate(stage.layers):
                hidden_states = layer(hidden_states, grid, **kwargs)
                if number == 0:
                    hidden_states = stage.position_generator(hidden_states, grid)
            hidden_states = self.hidden_state(hidden_states)
        hidden_states = self.layernorm(hidden_states)
        return BaseModelOutputWithPooling(last_hidden_state=hidden_states, pooler_output=hidden_states.mean(1))


class VitfTwinsForImageClassification(ImageClassificationMixin, VitfTwinsPreTrainedModel):
    """Twins with a linear classifier on the mean of its tokens."""

    encoder_class = VitfTwinsModel


class VitfTwinsForMaskedImageModeling(MaskedImageModelingMixin, VitfTwinsPreTrainedModel):
    """Twins that predicts the pixels of masked patches."""

    encoder_class = VitfTwinsModel


class VitfTwinsBackbone(PyramidBackboneMixin, VitfTwinsPreTrainedModel):
    """Twins as a backbone: the map of each stage, that of the last one after the norm."""

    encoder_class = VitfTwinsModel


__all__ = [
    "VitfTwinsBackbone",
    "VitfTwinsForImageClassification",
    "VitfTwinsForMaskedImageModeling",
    "VitfTwinsModel",
    "VitfTwinsPreTrainedModel",
]
