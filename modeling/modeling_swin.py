"""Swin (arXiv 2103.14030): a ViT in stages, with attention within windows that are shifted in every second layer.

Order of operations from microsoft/Swin-Transformer@f82860b models/swin_transformer.py; maps that do not divide into
windows as in SwinTransformer/Swin-Transformer-Semantic-Segmentation@87e6f90 mmseg/models/backbones/swin_transformer.py.

Shapes: B batch, N = h * w tokens row by row, C channels, H x W pixels, h x w feature map, W windows of a map, n tokens
of a window.
"""

from typing import ClassVar

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .attention import SelfAttention
from .caches import size_table
from .configuration_swin import VitfSwinConfig, stage_windows
from .configuration_vitf import pair
from .embeddings import PatchEmbeddings, PositionEmbeddings, resize_positions
from .layers import RECORDED_HIDDEN_STATES, DropPath, HiddenState, Mlp, drop_path_rates, init_trunc_normal
from .modeling_vitf import (
    ImageClassificationMixin,
    MaskedImageModelingMixin,
    PyramidBackboneMixin,
    VitfPreTrainedModel,
    encoder_forward,
    masked_embeddings,
)
from .shapes import split_dim
from .windows import WindowBias, from_windows, relative_position_index, static_size, to_windows


class SwinEmbeddings(nn.Module):
    """(B, num_channels, H, W) to tokens (B, N, C). An image that does not divide into patches is padded with zeros."""

    def __init__(self, config):
        super().__init__()
        hidden_size = config.stage_channels[0]
        self.patch_embeddings = PatchEmbeddings(config.num_channels, hidden_size, config.patch_size)
        self.norm = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps) if config.patch_norm else None
        self.position_embeddings = None
        if config.use_absolute_embeddings:
            grid = config.feature_map_sizes(*pair(config.image_size))[0]
            self.position_embeddings = PositionEmbeddings(
                hidden_size, grid, num_prefix_tokens=0, interpolation="bicubic"
            )
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, pixel_values, bool_masked_pos=None, mask_token=None) -> torch.Tensor:
        height, width = pixel_values.shape[-2:]
        rows, columns = self.patch_embeddings.patch_size
        padding = (0, -width % columns, 0, -height % rows)
        if any(padding):
            pixel_values = nn.functional.pad(pixel_values, padding)
        patches = self.patch_embeddings(pixel_values)
        if self.norm is not None:
            patches = self.norm(patches)
        patches = masked_embeddings(patches, bool_masked_pos, mask_token)
        if self.position_embeddings is not None:
            grid = self.patch_embeddings.grid(*pixel_values.shape[-2:])
            patches = patches + self.position_embeddings(grid, patches)
        return self.dropout(patches)


def merge_patches(hidden_states: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """
    The channels of 2 x 2 neighbouring tokens become those of one: (B, h * w, C) to (B, ceil(h / 2) * ceil(w / 2), 4 C),
    in the order upper left, lower left, upper right, lower right. An odd map is padded with zeros.
    """
    feature_map = split_dim(hidden_states, 1, grid)
    padding = (0, 0, 0, grid[1] % 2, 0, grid[0] % 2)
    if any(padding):
        feature_map = nn.functional.pad(feature_map, padding)
    blocks = split_dim(split_dim(feature_map, 2, (-1, 2)), 1, (-1, 2))  # (B, h / 2, 2, w / 2, 2, C)
    return blocks.permute(0, 1, 3, 4, 2, 5).flatten(3).flatten(1, 2)


class SwinPatchMerging(nn.Module):
    """Halves the map and widens it: (B, h * w, C) to (B, ceil(h / 2) * ceil(w / 2), C')."""

    def __init__(self, config, narrow: int, wide: int):
        super().__init__()
        self.norm = nn.LayerNorm(4 * narrow, eps=config.layer_norm_eps)
        self.reduction = nn.Linear(4 * narrow, wide, bias=False)

    def forward(self, hidden_states: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        return self.reduction(self.norm(merge_patches(hidden_states, grid)))


class SwinPositionBias(WindowBias):
    """
    A learned bias for each relative position and head, `weight` ((2 * w0 - 1) ** 2, heads) for windows of w0 x w0
    tokens.

    Windows of another side get a table that is resized as the original does before fine-tuning (utils.py,
    load_pretrained).
    """

    def __init__(self, window: int, num_heads: int):
        super().__init__()
        self.window = window
        self.weight = nn.Parameter(torch.zeros((2 * window - 1) ** 2, num_heads))

    def relative_bias(self, window: int) -> torch.Tensor:
        table = self.weight
        if window != self.window:
            old, new = ((2 * side - 1,) * 2 for side in (self.window, window))
            table = resize_positions(table[None], old, new, num_prefix_tokens=0, interpolation="bicubic")[0]
        index = size_table(relative_position_index, window, table.device)
        return split_dim(table.t().index_select(1, index.flatten()), 1, index.shape)


class SwinAttention(SelfAttention):
    """Self-attention within windows, with a bias by relative position."""

    def __init__(self, config: VitfSwinConfig, stage: int, window: int):
        super().__init__(config, config.hidden_sizes[stage], config.num_heads[stage], config.qkv_bias)
        if config.qk_scale is not None:
            self.scaling = config.qk_scale
        self.position_bias = SwinPositionBias(window, self.num_heads)

    def forward(
        self, hidden_states: torch.Tensor, grid: tuple[int, int], window: int, shift: int, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(B, h * w, C) to (B, h * w, C) and the map (B * W, heads, n, n); `grid` is (h, w)."""
        position_bias = self.position_bias(hidden_states.shape[0], grid, window, shift)
        windows = to_windows(split_dim(hidden_states, 1, grid), window, shift)
        windows, probabilities = super().forward(windows, position_bias=position_bias, **kwargs)
        return from_windows(windows, grid, window, shift).flatten(1, 2), probabilities


class SwinLayer(GradientCheckpointingLayer):
    """x + attention(norm(x)), then x + mlp(norm(x)); drop path on both branches."""

    def __init__(self, config: VitfSwinConfig, stage: int, window: int, drop_path_rate: float):
        super().__init__()
        hidden_size = config.hidden_sizes[stage]
        self.layernorm_before = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.attention = SwinAttention(config, stage, window)
        self.layernorm_after = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.mlp = Mlp(config, hidden_size, round(config.mlp_ratio * hidden_size))
        self.drop_path = DropPath(drop_path_rate)

    def forward(
        self, hidden_states: torch.Tensor, grid: tuple[int, int], window: int, shift: int, **kwargs
    ) -> torch.Tensor:
        # Nested, not named step by step: what a name holds stays in memory until the layer ends.
        hidden_states = hidden_states + self.drop_path(
            self.attention(self.layernorm_before(hidden_states), grid, window, shift, **kwargs)[0]
        )
        return hidden_states + self.drop_path(self.mlp(self.layernorm_after(hidden_states)))


class SwinStage(nn.Module):
    """
    Merging of patches, except in the first stage, then layers, of which every second one shifts its windows. The
    encoder runs them (see [`HiddenState`]).
    """

    merging_class: ClassVar[type[nn.Module]] = SwinPatchMerging
    layer_class: ClassVar[type[nn.Module]] = SwinLayer

    def __init__(self, config, stage: int, window: int, drop_path_rates: list[float]):
        super().__init__()
        narrow, wide = config.stage_channels[stage : stage + 2]
        self.downsample = self.merging_class(config, narrow, wide) if stage else None
        self.layers = nn.ModuleList([self.layer_class(config, stage, window, rate) for rate in drop_path_rates])


class SwinEncoderMixin:
    """All of the base models of Swin and Swin V2; `stage_class` tells them apart."""

    stage_class: ClassVar[type[nn.Module]]
    num_prefix_tokens = 0

    def __init__(self, config):
        super().__init__(config)
        self.embeddings = SwinEmbeddings(config)
        grids = config.feature_map_sizes(*pair(config.image_size))[1:]
        # What a bias by relative position is made for.
        self.configured_windows = [
            min(window, *grid) for window, grid in zip(stage_windows(config), grids, strict=True)
        ]
        rates = iter(drop_path_rates(config.drop_path_rate, sum(config.depths)))
        self.stages = nn.ModuleList(
            [
                self.stage_class(config, stage, window, [next(rates) for _ in range(depth)])
                for stage, (window, depth) in enumerate(zip(self.configured_windows, config.depths, strict=True))
            ]
        )
        self.layernorm = nn.LayerNorm(config.stage_channels[-1], eps=config.layer_norm_eps)
        self.hidden_state = HiddenState()
        self.post_init()

    def plan_windows(self, height: int, width: int) -> list[tuple[int, int]]:
        """
        Side and shift of the windows of each stage, in tokens, for an image of `height` x `width` pixels: those of the
        classification code wherever it runs; it shrinks windows to smaller maps, and does not shift a single one.
        """
        config = self.config
        grids = config.feature_map_sizes(height, width)[1:]
        rows, columns = config.stage_strides[-1]
        windows = [min(window, *grid) for window, grid in zip(stage_windows(config), grids, strict=True)]
        undivided = any(side % window for window, grid in zip(windows, grids, strict=True) for side in grid)
        if undivided or height % rows or width % columns:
            return self.plan_padded_windows()
        return [(window, window // 2 if window < min(grid) else 0) for window, grid in zip(windows, grids, strict=True)]

    def plan_padded_windows(self) -> list[tuple[int, int]]:
        """
        The same for any image, as the dense-prediction code has it: it pads maps to whole windows, and always shifts.
        """
        return [(window, window // 2) for window in self.configured_windows]

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
            pixel_values (`torch.Tensor` of shape `(B, num_channels, H, W)`): Of any size.
            bool_masked_pos (`torch.BoolTensor` of shape `(B, N)`, *optional*): Patches to mask.
            mask_token (`torch.Tensor` of shape `(1, 1, C)`, *optional*): What masked patches become, before positions.

        Returns:
            `last_hidden_state` (B, N, C), the tokens of the last stage after the norm; `pooler_output` (B, C), their
            mean; `hidden_states`: the input of the first stage and the output of each, (B, N, C) with N and C of the
            stage; `attentions`: (B * W, heads, n, n) a layer, the windows of an image together.
        """
        height, width = static_size(pixel_values.shape[-2:])
        hidden_states = self.hidden_state(self.embeddings(pixel_values, bool_masked_pos, mask_token))
        grids = self.config.feature_map_sizes(height, width)
        plan = self.plan_windows(height, width)
        for stage, grid_before, grid, (window, shift) in zip(self.stages, grids[:-1], grids[1:], plan, strict=True):
            if stage.downsample is not None:
                hidden_states = stage.downsample(hidden_states, grid_before)
            for number, layer in enumerate(stage.layers):
                hidden_states = layer(hidden_states, grid, window, shift if number % 2 else 0, **kwargs)
            hidden_states = self.hidden_state(hidden_states)
        hidden_states = self.layernorm(hidden_states)
        return BaseModelOutputWithPooling(last_hidden_state=hidden_states, pooler_output=hidden_states.mean(1))


class PaddedWindowsMixin:
    """An encoder for dense prediction: windows are padded and shifted whatever the size of the image."""

    def plan_windows(self, height: int, width: int) -> list[tuple[int, int]]:
        return self.plan_padded_windows()


class SwinBackboneMixin(PyramidBackboneMixin):
    """
    A backbone with a norm for each stage that it returns, as the dense-prediction code has. That of the last stage is
    the encoder's, the only one that classification has trained; the others are new.
    """

    def add_encoder(self) -> None:
        super().add_encoder()
        channels = zip(self.stage_names[:-1], self.config.stage_channels[:-1], strict=True)
        self.stage_norms = nn.ModuleDict(
            {
                name: nn.LayerNorm(width, eps=self.config.layer_norm_eps)
                for name, width in channels
                if name in self.out_features
            }
        )

    def normalize_stage(self, hidden_states: torch.Tensor, stage: int) -> torch.Tensor:
        name = self.stage_names[stage]
        return (
            self.stage_norms[name](hidden_states)
            if name in self.stage_norms
            else self.base_model.layernorm(hidden_states)
        )


class VitfSwinPreTrainedModel(VitfPreTrainedModel):
    config: VitfSwinConfig
    base_model_prefix = "swin"
    _no_split_modules = ["SwinEmbeddings", "SwinPatchMerging", "SwinLayer"]
    _can_record_outputs = {"hidden_states": RECORDED_HIDDEN_STATES, "attentions": SwinAttention}
    _supports_flash_attn = False  # its kernels take no bias

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """As DeiT, and tables truncated normal too."""
        std = self.config.initializer_range
        init_trunc_normal(module, std)
        if isinstance(module, (PositionEmbeddings, SwinPositionBias)):
            init.trunc_normal_(module.weight, std=std)


class VitfSwinModel(SwinEncoderMixin, VitfSwinPreTrainedModel):
    """The bare encoder. `pooler_output` is the mean of all tokens after the last norm."""

    stage_class = SwinStage


class VitfSwinForImageClassification(ImageClassificationMixin, VitfSwinPreTrainedModel):
    """Swin with a classifier on the mean of all tokens."""

    encoder_class = VitfSwinModel


class VitfSwinForMaskedImageModeling(MaskedImageModelingMixin, VitfSwinPreTrainedModel):
    """Swin that predicts the pixels of masked patches (SimMIM)."""

    encoder_class = VitfSwinModel


class SwinDenseModel(PaddedWindowsMixin, VitfSwinModel):
    """The encoder of the backbone."""


class VitfSwinBackbone(SwinBackboneMixin, VitfSwinPreTrainedModel):
    """
    Swin as a backbone: the map of each stage, after a norm; windows as in the dense-prediction code at every size.
    """

    encoder_class = SwinDenseModel


__all__ = [
    "VitfSwinBackbone",
    "VitfSwinForImageClassification",
    "VitfSwinForMaskedImageModeling",
    "VitfSwinModel",
    "VitfSwinPreTrainedModel",
]
