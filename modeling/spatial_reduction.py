"""
Spatial-reduction attention, and the pyramid that stands on it: what PVT, PVT v2 and Twins have in common.

Order of operations from whai362/PVT@57e2dfa classification/pvt.py, pvt_v2.py and Meituan-AutoML/Twins@c1ff671 gvt.py.

Shapes: B batch, N tokens, row by row, M tokens of the reduced map, C channels, H x W pixels, h x w grid of a map, d
head width.
"""

import math

import torch
from torch import nn
from transformers import initialization as init

from .attention import attend
from .configuration_vitf import pair
from .embeddings import check_input
from .shapes import split_dim


def check_pyramid_input(pixel_values: torch.Tensor, config, smallest_maps: list[int]) -> None:
    """
    Raises a ValueError that says what is needed when channels or size of (B, C, H, W) do not fit the model.

    Args:
        smallest_maps (`list[int]`): Rows and columns that the map of each stage must have at least.
    """
    check_input(pixel_values, config.num_channels, (1, 1))
    height, width = pixel_values.shape[-2:]
    maps = config.feature_map_sizes(height, width)[1:]
    if any(side < smallest for grid, smallest in zip(maps, smallest_maps, strict=True) for side in grid):
        strides = config.stage_strides[1:]
        rows, columns = (max(s[axis] * m for s, m in zip(strides, smallest_maps, strict=True)) for axis in (0, 1))
        raise ValueError(
            f"image size {height}x{width} is too small: it must be at least one multiple of {rows} pixels high and one "
            f"multiple of {columns} pixels wide"
        )


class PyramidPatchEmbeddings(nn.Module):
    """
    A convolution that makes the tokens of a stage, and a norm: (B, channels, H, W) to (B, h * w, C).

    Args:
        config: Gives strides, widths and `conv_norm_eps`.
        stage (`int`): From 0, which takes pixels; another one takes the map of the stage before it, and halves it.
        kernel_size (`int` or `(int, int)`): At least the stride, by which padding is what it exceeds.
    """

    def __init__(self, config, stage: int, kernel_size):
        super().__init__()
        self.config = config
        self.stage = stage
        channels = config.hidden_sizes[stage - 1] if stage else config.num_channels
        kernel_size, stride = pair(kernel_size), pair(2 if stage else config.patch_size)
        padding = tuple(kernel - step for kernel, step in zip(kernel_size, stride, strict=True))
        self.projection = nn.Conv2d(channels, config.hidden_sizes[stage], kernel_size, stride, padding)
        self.layernorm = nn.LayerNorm(config.hidden_sizes[stage], eps=config.conv_norm_eps)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of tokens for an image of `height` x `width` pixels, whatever the stage."""
        return self.config.feature_map_sizes(height, width)[self.stage + 1]

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        return self.layernorm(self.projection(feature_map).flatten(2).transpose(1, 2))


class SpatialReduction(nn.Module):
    """A convolution of `ratio` x `ratio` tokens to one, and a norm: (B, h * w, C) to (B, M, C). What is over at the
    border is left out."""

    def __init__(self, config, hidden_size: int, ratio: int):
        super().__init__()
        self.conv = nn.Conv2d(hidden_size, hidden_size, kernel_size=ratio, stride=ratio)
        self.layernorm = nn.LayerNorm(hidden_size, eps=config.conv_norm_eps)

    def forward(self, hidden_states: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        reduced = self.conv(split_dim(hidden_states.transpose(1, 2), 2, grid))
        return self.layernorm(reduced.flatten(2).transpose(1, 2))


class SpatialReductionAttention(nn.Module):
    """
    Attention of all tokens to those of a smaller map (arXiv 2102.12122, section 3.3). Rows of `key_value` are [keys;
    values], each by head.

    Args:
        config: Gives the attention implementation, `qkv_bias` and the two dropout rates. hidden_size (`int`): C.
        num_heads (`int`): h, divides C. reduction (`nn.Module`, *optional*): From tokens (B, N, C) and their grid to
        those that are attended to, (B, M, C);
            by default all tokens are.
    """

    is_causal = False

    def __init__(self, config, hidden_size: int, num_heads: int, reduction: nn.Module | None):
        super().__init__()
        self.config = config
        self.num_heads = num_heads
        self.scaling = (hidden_size // num_heads) ** -0.5
        self.query = nn.Linear(hidden_size, hidden_size, bias=config.qkv_bias)
        self.reduction = reduction
        self.key_value = nn.Linear(hidden_size, 2 * hidden_size, bias=config.qkv_bias)
        self.proj = nn.Linear(hidden_size, hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self, hidden_states: torch.Tensor, grid: tuple[int, int], **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(B, N, C) to (B, N, C) and the map (B, heads, N, M)."""
        batch, tokens, _ = hidden_states.shape
        query = self.query(hidden_states).view(batch, tokens, self.num_heads, -1).transpose(1, 2)
        if self.reduction is not None:
            hidden_states = self.reduction(hidden_states, grid)
        key_value = self.key_value(hidden_states).view(batch, hidden_states.shape[1], 2, self.num_heads, -1)
        key, value = key_value.permute(2, 0, 3, 1, 4).unbind(0)
        context, probabilities = attend(self, query, key, value, self.scaling, **kwargs)
        return self.dropout(self.proj(context)), probabilities


def spatial_reduction_attention(config, stage: int) -> SpatialReductionAttention:
    """The attention of a layer of a stage, which reduces the map by `config.sr_ratios`."""
    hidden_size, ratio = config.hidden_sizes[stage], config.sr_ratios[stage]
    reduction = SpatialReduction(config, hidden_size, ratio) if ratio > 1 else None
    return SpatialReductionAttention(config, hidden_size, config.num_heads[stage], reduction)


def init_fan_out(module: nn.Module, std: float) -> None:
    """
    The initialisation of PVT v2 and Twins: linear layers truncated normal, convolutions normal with variance 2 over the
    number of outputs that a pixel reaches, norms 1, biases 0.
    """
    if isinstance(module, nn.Linear):
        init.trunc_normal_(module.weight, std=std)
        if module.bias is not None:
            init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        fan_out = module.out_channels // module.groups * math.prod(module.kernel_size)
        init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        init.ones_(module.weight)
        init.zeros_(module.bias)
