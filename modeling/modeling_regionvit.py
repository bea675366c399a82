"""RegionViT (arXiv 2106.02689): stages of local tokens in windows, with one regional token for each window.

Order of operations from IBM/RegionViT@77000c2 regionvit/regionvit.py and regionvit/attention/attention_variants.py,
including what the published weights were trained with: a table of relative positions that is rotated, and a mask of
padding that is not exact in the last window (`padding_mask`).

Shapes: B batch, C channels, H x W pixels, h x w map of local tokens, R = r0 * r1 map of regional tokens (one for each
window), n tokens of a window, row by row.
"""

import torch
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .attention import attend
from .caches import Resizable, size_table
from .configuration_regionvit import VitfRegionvitConfig
from .configuration_vitf import pair
from .embeddings import check_input
from .layers import DropPath, Mlp, drop_path_rates, init_trunc_normal
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
from .windows import from_windows, static_size, to_windows

# The original holds 1e-5 as a float32 number.
MAP_NORM_EPS = 9.999999747378752e-06


class RegionvitMapNorm(nn.LayerNorm):
    """LayerNorm over the channels of a map (B, C, h, w), which it returns channels last in memory."""

    def __init__(self, num_channels: int):
        super().__init__(num_channels, eps=MAP_NORM_EPS)

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        return super().forward(feature_map.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class RegionvitPatchEmbeddings(nn.Module):
    """One convolution, or three with norm and activation in between: (B, num_channels, H, W) to (B, C, h, w)."""

    def __init__(self, config: VitfRegionvitConfig):
        super().__init__()
        channels, width, patch = config.num_channels, config.hidden_sizes[0], pair(config.patch_size)
        self.norms = nn.ModuleList()
        if config.patch_conv_type == "1conv":
            kernel, padding = tuple(2 * side for side in patch), tuple(side - 1 for side in patch)
            self.convs = nn.ModuleList([nn.Conv2d(channels, width, kernel, stride=patch, padding=padding)])
        else:
            widths, strides = (channels, width // 4, width // 2, width), (2, 2, 1)
            self.convs = nn.ModuleList(
                [
                    nn.Conv2d(widths[i], widths[i + 1], kernel_size=3, stride=stride, padding=1)
                    for i, stride in enumerate(strides)
                ]
            )
            self.norms = nn.ModuleList([RegionvitMapNorm(size) for size in widths[1:-1]])
        self.activation = ACT2FN[config.hidden_act]

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        feature_map = self.convs[0](pixel_values)
        for norm, conv in zip(self.norms, self.convs[1:], strict=True):
            feature_map = conv(self.activation(norm(feature_map)))
        return feature_map


class RegionvitEmbeddings(nn.Module):
    """(B, num_channels, H, W) to the maps of local tokens (B, C, h, w) and of regional tokens (B, C, r0, r1)."""

    def __init__(self, config: VitfRegionvitConfig):
        super().__init__()
        self.num_channels = config.num_channels
        self.patch_size = pair(config.patch_size)
        # One convolution reaches no token on a side of one pixel.
        self.min_side = 2 if config.patch_conv_type == "1conv" else 1
        self.patch_embeddings = RegionvitPatchEmbeddings(config)
        region = tuple(side * config.window_sizes[0] for side in self.patch_size)
        self.region_embeddings = nn.Conv2d(config.num_channels, config.hidden_sizes[0], region, stride=region)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, pixel_values, bool_masked_pos=None, mask_token=None) -> tuple[torch.Tensor, torch.Tensor]:
        sides = zip(static_size(pixel_values.shape[-2:]), self.patch_size, strict=True)
        check_input(pixel_values, self.num_channels, tuple(p if side < self.min_side else 1 for side, p in sides))
        local = self.patch_embeddings(pixel_values)
        if bool_masked_pos is not None:
            grid = local.shape[-2:]
            cells = tuple(
                -(-side // p) for side, p in zip(pixel_values.shape[-2:], self.patch_size, strict=True)
            )  # where one convolution does not reach the last pixel, there is a cell without token
            mask = bool_masked_pos.reshape(-1, *cells)[:, : grid[0], : grid[1]]
            tokens = masked_embeddings(local.flatten(2).transpose(1, 2), mask, mask_token)
            local = split_dim(tokens.transpose(1, 2), 2, grid)
        return self.dropout(local), self.region_embeddings(self.pad_to_regions(pixel_values))

    def pad_to_regions(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Zeros around an image that does not divide into regions; a side that does then gets one region more."""
        rows, columns = self.region_embeddings.stride
        height, width = static_size(pixel_values.shape[-2:])
        if height % rows == 0 and width % columns == 0:
            return pixel_values
        below, right = rows - height % rows, columns - width % columns
        top, left = below // 2, right // 2
        return nn.functional.pad(pixel_values, (left, right - left, top, below - top))


class RegionvitDownsampling(nn.Module):
    """Norm, activation and a convolution that halves a map and widens it; local and regional tokens share it."""

    def __init__(self, config: VitfRegionvitConfig, narrow: int, wide: int):
        super().__init__()
        self.norm = RegionvitMapNorm(narrow)
        self.activation = ACT2FN[config.hidden_act]
        self.conv = nn.Conv2d(narrow, wide, kernel_size=3, stride=2, padding=1, groups=narrow)

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        return self.conv(self.activation(self.norm(feature_map)))


def rotated_position_index(window: int, device: torch.device | None = None) -> torch.Tensor:
    """
    Where a table of relative positions has that of each pair of tokens. Distances are counted from `-(window // 2)`,
    and those below it wrap around: the original indexes with negative numbers, so its table is a rotated one.

    Returns:
        `torch.LongTensor` of shape `(n, n)`, for query and key.
    """
    positions, side = torch.arange(window, device=device), 2 * window - 1
    distances = (positions - positions[:, None] + window // 2) % side
    return (distances[:, None, :, None] * side + distances[None, :, None, :]).reshape(window**2, window**2)


def padding_mask(
    regions: tuple[int, int], padding: tuple[int, int], window: int, device: torch.device | None = None
) -> torch.Tensor:
    """
    Which pairs of query and key of a window (the regional token, then n local ones) may attend, when the map of local
    tokens was padded below and to the right.

    As in the original, the last window allows what either its row or its column allows, where both are meant: padding
    is attended to there.

    Args:
        regions (`(int, int)`): r0 and r1. padding (`(int, int)`): Rows and columns of padding. window (`int`): Its
        side.

    Returns:
        `torch.BoolTensor` of shape `(R, 1 + n, 1 + n)`.
    """
    positions = torch.arange(window * window, device=device)
    rows, columns = positions // window < window - padding[0], positions % window < window - padding[1]
    by_row, by_column = (
        keep[:, None] & keep for keep in (nn.functional.pad(each, (1, 0), value=True) for each in (rows, columns))
    )
    anything = torch.ones_like(by_row)
    (last_row, last_column) = (torch.arange(count, device=device) == count - 1 for count in regions)
    last_row, last_column = last_row[:, None, None, None], last_column[:, None, None]
    allowed = torch.where(last_column, by_column, anything)
    allowed = torch.where(last_row, torch.where(last_column, by_row | by_column, by_row), allowed)
    return allowed.flatten(0, 1)


class RegionvitPositionBias(Resizable):
    """
    What attention within windows adds to its scores: a learned bias for each head and relative position of two local
    tokens, `weight` (heads, (2 * window - 1) ** 2), and a mask where the map was padded.
    """

    def __init__(self, window: int, num_heads: int):
        super().__init__()
        self.window = window
        self.weight = nn.Parameter(torch.zeros(num_heads, (2 * window - 1) ** 2))

    def forward(self, batch: int, regions: tuple[int, int], padding: tuple[int, int]) -> torch.Tensor:
        """(B * R, heads, 1 + n, 1 + n), for `regions` of a map with `padding` rows and columns."""
        weight = self.weight

        def make() -> torch.Tensor:
            index = size_table(rotated_position_index, self.window, weight.device)
            bias = split_dim(weight.index_select(1, index.flatten()), 1, index.shape)
            bias = nn.functional.pad(bias, (1, 0, 1, 0))[None]  # the regional token has no position
            if any(padding):
                allowed = size_table(padding_mask, regions, padding, self.window, bias.device)
                bias = torch.where(allowed[:, None], bias, torch.finfo(bias.dtype).min)
            return bias

        bias = self.for_size((regions, padding) if any(padding) else (), make)
        return bias.expand(batch, regions[0] * regions[1], *bias.shape[1:]).flatten(0, 1)


class RegionvitScores(nn.Module):
    """Softmax attention of given queries, keys and values, and its map; it has no parameters."""

    is_causal = False

    def __init__(self, config: VitfRegionvitConfig):
        super().__init__()
        self.config = config

    def forward(self, query, key, value, **kwargs) -> tuple[torch.Tensor, torch.Tensor | None]:
        return attend(self, query, key, value, query.shape[-1] ** -0.5, **kwargs)


class RegionvitAttention(nn.Module):
    """Self-attention whose projections serve the regional tokens among themselves and the tokens of a window alike."""

    def __init__(self, config: VitfRegionvitConfig, stage: int):
        super().__init__()
        hidden_size = config.hidden_sizes[stage]
        self.num_heads = config.num_heads[stage]
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size, bias=config.qkv_bias)
        self.proj = nn.Linear(hidden_size, hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.position_bias = RegionvitPositionBias(config.window_sizes[stage], self.num_heads)
        self.regional = RegionvitScores(config)
        self.local = RegionvitScores(config)

    def attend_by(self, scores: RegionvitScores, tokens: torch.Tensor, **kwargs) -> torch.Tensor:
        """(B, N, C) to (B, N, C), by `regional` or `local`."""
        qkv = split_dim(self.qkv(tokens), -1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        context, _ = scores(*qkv.unbind(0), **kwargs)
        return self.dropout(self.proj(context))

    def forward(self, tokens: torch.Tensor, regions=None, padding=None, **kwargs) -> torch.Tensor:
        """Of regional tokens (B, R, C), or, given the map's `regions` and `padding`, of windows (B * R, 1 + n, C)."""
        if regions is None:
            return self.attend_by(self.regional, tokens, **kwargs)
        batch = tokens.shape[0] // (regions[0] * regions[1])
        return self.attend_by(self.local, tokens, position_bias=self.position_bias(batch, regions, padding), **kwargs)


class RegionvitLayer(GradientCheckpointingLayer):
    """
    Regional tokens r + attention(norm(r)); then windows x = (r, local tokens) + attention(norm(x)), then x +
    mlp(norm(x)); drop path on all three branches. The first two share their projections, not their norms. Takes
    windows, (B * R, 1 + n, C).
    """

    def __init__(self, config: VitfRegionvitConfig, stage: int, drop_path_rate: float):
        super().__init__()
        hidden_size = config.hidden_sizes[stage]
        self.layernorm_regional = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.layernorm_before = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.attention = RegionvitAttention(config, stage)
        self.layernorm_after = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.mlp = Mlp(config, hidden_size, int(config.mlp_ratio * hidden_size))
        self.drop_path = DropPath(drop_path_rate)

    def forward(
        self, windows: torch.Tensor, regions: tuple[int, int], padding: tuple[int, int], **kwargs
    ) -> torch.Tensor:
        regional = split_dim(windows[:, 0], 0, (-1, regions[0] * regions[1]))
        regional = regional + self.drop_path(self.attention(self.layernorm_regional(regional), **kwargs))
        windows = torch.cat((regional.flatten(0, 1)[:, None], windows[:, 1:]), dim=1)
        windows = windows + self.drop_path(self.attention(self.layernorm_before(windows), regions, padding, **kwargs))
        return windows + self.drop_path(self.mlp(self.layernorm_after(windows)))


def join_regions(local: torch.Tensor, regional: torch.Tensor, window: int) -> torch.Tensor:
    """Maps (B, C, h, w) and (B, C, r0, r1) to windows (B * R, 1 + n, C), zeros where local tokens are missing."""
    padding = missing_tokens(local.shape[-2:], regional.shape[-2:], window)
    local = local.permute(0, 2, 3, 1)
    if any(padding):
        local = nn.functional.pad(local, (0, 0, 0, padding[1], 0, padding[0]))
    regional = regional.permute(0, 2, 3, 1).flatten(0, 2)[:, None]
    return torch.cat((regional, to_windows(local, window)), dim=1)


def split_regions(
    windows: torch.Tensor, grid: tuple[int, int], regions: tuple[int, int], window: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Windows (B * R, 1 + n, C) to maps (B, C, h, w) with h and w of `grid`, and (B, C, r0, r1): undoes `join_regions`.
    """
    local = from_windows(windows[:, 1:], tuple(count * window for count in regions), window)
    regional = split_dim(windows[:, 0], 0, (-1, *regions))
    return local[:, : grid[0], : grid[1]].permute(0, 3, 1, 2), regional.permute(0, 3, 1, 2)


def missing_tokens(grid: tuple[int, int], regions: tuple[int, int], window: int) -> tuple[int, int]:
    """Rows and columns of local tokens that a map of `grid` lacks to fill its `regions`."""
    return tuple(count * window - side for side, count in zip(grid, regions, strict=True))


class RegionvitStage(nn.Module):
    """Downsampling, except in the first stage, then layers: maps (B, C, h, w) and (B, C, r0, r1) to such maps."""

    def __init__(self, config: VitfRegionvitConfig, stage: int, drop_path_rates: list[float]):
        super().__init__()
        narrow, wide = config.stage_channels[stage : stage + 2]
        self.window = config.window_sizes[stage]
        self.downsampling = RegionvitDownsampling(config, narrow, wide) if stage else None
        self.layers = nn.ModuleList([RegionvitLayer(config, stage, rate) for rate in drop_path_rates])
        self.peg = nn.Conv2d(wide, wide, kernel_size=3, padding=1, groups=wide, bias=False) if config.peg else None
        self.norm = RegionvitMapNorm(wide) if config.stage_norms else None

    def forward(self, local: torch.Tensor, regional: torch.Tensor, **kwargs) -> tuple[torch.Tensor, torch.Tensor]:
        if self.downsampling is not None:
            local, regional = self.downsampling(local), self.downsampling(regional)
        grid, regions = tuple(local.shape[-2:]), tuple(regional.shape[-2:])
        padding = missing_tokens(grid, regions, self.window)
        windows = join_regions(local, regional, self.window)
        for number, layer in enumerate(self.layers):
            windows = layer(windows, regions, padding, **kwargs)
            if self.peg is not None and number == 0:
                local, regional = (each + self.peg(each) for each in split_regions(windows, grid, regions, self.window))
                windows = join_regions(local, regional, self.window)
        local, regional = split_regions(windows, grid, regions, self.window)
        return local if self.norm is None else self.norm(local), regional


class VitfRegionvitPreTrainedModel(VitfPreTrainedModel):
    config: VitfRegionvitConfig
    base_model_prefix = "regionvit"
    _no_split_modules = ["RegionvitEmbeddings", "RegionvitDownsampling", "RegionvitLayer"]
    _can_record_outputs = {"hidden_states": RegionvitStage, "attentions": RegionvitScores}
    # It would drop the bias without a word.
    _supports_flash_attn = False

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Linear layers and position biases truncated normal, convolutions as PyTorch has them."""
        init_trunc_normal(module, self.config.initializer_range)
        if isinstance(module, RegionvitPositionBias):
            init.trunc_normal_(module.weight, std=self.config.initializer_range)


class VitfRegionvitModel(VitfRegionvitPreTrainedModel):
    """
    The bare encoder. `pooler_output` is the mean of the regional tokens after the last norm.

    Args:
        add_pooling_layer (`bool`, *optional*, defaults to `True`):
            Whether to make that norm; heads that do not read `pooler_output` would not train it.
    """

    def __init__(self, config: VitfRegionvitConfig, add_pooling_layer: bool = True):
        super().__init__(config)
        self.embeddings = RegionvitEmbeddings(config)
        rates = iter(drop_path_rates(config.drop_path_rate, sum(config.depths)))
        self.stages = nn.ModuleList(
            [
                RegionvitStage(config, stage, [next(rates) for _ in range(depth)])
                for stage, depth in enumerate(config.depths)
            ]
        )
        self.layernorm = nn.LayerNorm(config.hidden_sizes[-1], eps=config.layer_norm_eps) if add_pooling_layer else None
        self.post_init()

    def layer_groups(self) -> list[LayerGroup]:
        groups: list[LayerGroup] = [[self.embeddings]]
        for stage in self.stages:
            groups += stage_groups(stage, norm="norm")
            if stage is not self.stages[-1] and stage.norm is not None:
                groups[-1].append(stage.norm)
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
            pixel_values (`torch.Tensor` of shape `(B, num_channels, H, W)`). bool_masked_pos (`torch.BoolTensor` of
            shape `(B, ceil(H / patch_size) * ceil(W / patch_size))`, *optional*):
                Local tokens to mask.
            mask_token (`torch.Tensor` of shape `(1, 1, C)`, *optional*): What masked local tokens become.

        Returns:
            `last_hidden_state` (B, h * w, C), the local tokens of the last stage; `pooler_output` (B, C);
            `hidden_states`: the local tokens before the first stage and after each, (B, C, h, w) with C, h and w of the
            stage; `attentions`: for each layer (B, heads, R, R) and (B * R, heads, 1 + n, 1 + n).
        """
        local, regional = self.embeddings(pixel_values, bool_masked_pos, mask_token)
        for stage in self.stages:
            local, regional = stage(local, regional, **kwargs)
        pooled = None
        if self.layernorm is not None:
            pooled = self.layernorm(regional.flatten(2).transpose(1, 2)).mean(1)
        return BaseModelOutputWithPooling(last_hidden_state=local.flatten(2).transpose(1, 2), pooler_output=pooled)


class VitfRegionvitForImageClassification(ImageClassificationMixin, VitfRegionvitPreTrainedModel):
    """RegionViT with a linear classifier on the mean of the regional tokens."""

    encoder_class = VitfRegionvitModel


class VitfRegionvitForMaskedImageModeling(MaskedImageModelingMixin, VitfRegionvitPreTrainedModel):
    """RegionViT that predicts the pixels of masked local tokens."""

    encoder_class = VitfRegionvitModel
    encoder_kwargs = {"add_pooling_layer": False}


class VitfRegionvitBackbone(VitfBackboneMixin, VitfRegionvitPreTrainedModel):
    """RegionViT as a backbone: the map of local tokens of each stage, as the original's detectors take it."""

    encoder_class = VitfRegionvitModel
    encoder_kwargs = {"add_pooling_layer": False}

    def normalize_stage(self, hidden_states: torch.Tensor, stage: int) -> torch.Tensor:
        return hidden_states


__all__ = [
    "VitfRegionvitBackbone",
    "VitfRegionvitForImageClassification",
    "VitfRegionvitForMaskedImageModeling",
    "VitfRegionvitModel",
    "VitfRegionvitPreTrainedModel",
]
