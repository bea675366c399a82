"""NesT (arXiv 2105.12723): a ViT in stages, with attention within blocks of one size, of which four become one.

Order of operations from google-research/nested-transformer@59c0d6a models/nest_net.py and libml/self_attention.py.

The original takes images of one size, whose last map is one block. Here maps of another size divide into more blocks;
one that does not is padded below and to the right, and what is padded is no key of any query. Positions are resized to
the map of each stage (bicubic, as timm@aa4b585 timm/models/nest.py does before fine-tuning).

Shapes: B batch, N = h * w tokens row by row, C channels, H x W pixels, h x w feature map, W blocks of a map, n tokens
of a block.
"""

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .attention import attend
from .caches import size_table
from .configuration_nest import VitfNestConfig
from .configuration_vitf import pair
from .embeddings import PatchEmbeddings, PositionEmbeddings
from .layers import DropPath, Mlp, drop_path_rates
from .modeling_vitf import (
    ImageClassificationMixin,
    MaskedImageModelingMixin,
    PyramidBackboneMixin,
    VitfPreTrainedModel,
    encoder_forward,
    masked_embeddings,
)
from .shapes import split_dim
from .windows import from_windows, padded_size, static_size, to_windows


class NestEmbeddings(nn.Module):
    """(B, num_channels, H, W) to tokens (B, N, C). An image that does not divide into patches is padded with zeros."""

    def __init__(self, config: VitfNestConfig):
        super().__init__()
        self.patch_embeddings = PatchEmbeddings(config.num_channels, config.hidden_sizes[0], config.patch_size)

    def forward(self, pixel_values, bool_masked_pos=None, mask_token=None) -> torch.Tensor:
        height, width = pixel_values.shape[-2:]
        rows, columns = self.patch_embeddings.patch_size
        padding = (0, -width % columns, 0, -height % rows)
        if any(padding):
            pixel_values = nn.functional.pad(pixel_values, padding)
        return masked_embeddings(self.patch_embeddings(pixel_values), bool_masked_pos, mask_token)


class NestAggregation(nn.Module):
    """Convolution, norm over channels and max-pool: (B, h * w, C) to (B, ceil(h / 2) * ceil(w / 2), C')."""

    def __init__(self, config: VitfNestConfig, narrow: int, wide: int):
        super().__init__()
        self.conv = nn.Conv2d(narrow, wide, kernel_size=3, padding=1)
        self.norm = nn.LayerNorm(wide, eps=config.layer_norm_eps)
        self.pads_all_sides = config.pool_padding == "symmetric"

    def forward(self, hidden_states: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        # Seen as a map, tokens lie channels last, and so they stay.
        feature_map = self.conv(split_dim(hidden_states, 1, grid).permute(0, 3, 1, 2))
        feature_map = self.norm(feature_map.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        # TensorFlow's SAME pads an odd side by one at both ends, an even side only at the far end: rounding up does
        # that.
        padding = (1, 1) if self.pads_all_sides else (grid[0] % 2, grid[1] % 2)
        feature_map = nn.functional.max_pool2d(
            feature_map, 3, stride=2, padding=padding, ceil_mode=not self.pads_all_sides
        )
        return feature_map.permute(0, 2, 3, 1).flatten(1, 2)


class NestAttention(nn.Module):
    """
    Self-attention within blocks, (B * W, n, C) to (B * W, n, C). Rows of `qkv` are [queries; keys; values], each by
    head; with `"multi_query"` there is one key and one value for all heads.
    """

    is_causal = False

    def __init__(self, config: VitfNestConfig, hidden_size: int, num_heads: int):
        super().__init__()
        self.config = config
        head_dim = hidden_size // num_heads
        keys = {"multi_head": num_heads, "multi_query": 1}[config.attention_type]
        self.parts = (num_heads, keys, keys)
        self.scaling = head_dim**-0.5
        self.qkv = nn.Linear(hidden_size, sum(self.parts) * head_dim, bias=config.qkv_bias)
        self.proj = nn.Linear(hidden_size, hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, blocks: torch.Tensor, **kwargs) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The second output is the map (B * W, heads, n, n)."""
        qkv = split_dim(self.qkv(blocks), -1, (sum(self.parts), -1)).transpose(1, 2)
        query, key, value = qkv.split(self.parts, dim=1)
        key, value = key.expand_as(query), value.expand_as(query)
        context, probabilities = attend(self, query, key, value, self.scaling, **kwargs)
        return self.dropout(self.proj(context)), probabilities


class NestLayer(GradientCheckpointingLayer):
    """x + attention(norm(x)), then x + mlp(norm(x)); drop path on both branches. Takes blocks, (B * W, n, C)."""

    def __init__(self, config: VitfNestConfig, stage: int, drop_path_rate: float):
        super().__init__()
        hidden_size = config.hidden_sizes[stage]
        self.layernorm_before = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.attention = NestAttention(config, hidden_size, config.num_heads[stage])
        self.layernorm_after = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.mlp = Mlp(config, hidden_size, round(config.mlp_ratio * hidden_size))
        self.drop_path = DropPath(drop_path_rate)

    def drop_images(self, branch: torch.Tensor, num_blocks: int) -> torch.Tensor:
        """Drop path for all blocks of an image at once."""
        return self.drop_path(split_dim(branch, 0, (-1, num_blocks))).flatten(0, 1)

    def forward(self, blocks: torch.Tensor, num_blocks: int, **kwargs) -> torch.Tensor:
        blocks = blocks + self.drop_images(self.attention(self.layernorm_before(blocks), **kwargs)[0], num_blocks)
        return blocks + self.drop_images(self.mlp(self.layernorm_after(blocks)), num_blocks)


def padding_mask(grid: tuple[int, int], block: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """The mask that keeps padding from being a key, to be added to scores: (W, 1, 1, n), 0 or the lowest number."""
    padding = 1 - to_windows(torch.ones(1, *grid, 1, dtype=dtype, device=device), block)
    return padding.transpose(1, 2)[:, None] * torch.finfo(dtype).min


class NestStage(nn.Module):
    """
    Aggregation, except in the first stage, positions, then layers on blocks: tokens (B, N, C) to tokens (B, N', C').
    """

    def __init__(self, config: VitfNestConfig, stage: int, drop_path_rates: list[float]):
        super().__init__()
        hidden_size = config.hidden_sizes[stage]
        self.block_size = config.block_size
        self.num_heads = config.num_heads[stage]
        self.aggregation = NestAggregation(config, config.hidden_sizes[stage - 1], hidden_size) if stage else None
        grid = config.feature_map_sizes(*pair(config.image_size))[stage + 1]
        self.position_embeddings = PositionEmbeddings(hidden_size, grid, num_prefix_tokens=0, interpolation="bicubic")
        self.layers = nn.ModuleList([NestLayer(config, stage, rate) for rate in drop_path_rates])

    def forward(
        self, hidden_states: torch.Tensor, old_grid: tuple[int, int], grid: tuple[int, int], **kwargs
    ) -> torch.Tensor:
        """`old_grid` is that of the tokens that it is given, `grid` of those that it returns."""
        if self.aggregation is not None:
            hidden_states = self.aggregation(hidden_states, old_grid)
        hidden_states = hidden_states + self.position_embeddings(grid, hidden_states)
        block = min(self.block_size, max(grid))  # more would only be padding
        blocks = to_windows(split_dim(hidden_states, 1, grid), block)
        num_blocks = blocks.shape[0] // hidden_states.shape[0]
        if padded_size(grid, block) != tuple(grid):
            mask = size_table(padding_mask, tuple(grid), block, hidden_states.dtype, hidden_states.device)
            mask = mask.repeat(hidden_states.shape[0], 1, 1, 1)
            # As wide as the scores: flex attention reads each of them.
            kwargs["position_bias"] = mask.expand(-1, self.num_heads, block * block, -1)
        for layer in self.layers:
            blocks = layer(blocks, num_blocks, **kwargs)
        return from_windows(blocks, grid, block).flatten(1, 2)


class VitfNestPreTrainedModel(VitfPreTrainedModel):
    config: VitfNestConfig
    base_model_prefix = "nest"
    _no_split_modules = ["NestEmbeddings", "NestAggregation", "NestLayer"]
    _can_record_outputs = {"hidden_states": NestStage, "attentions": NestAttention}
    # It would drop the mask of padded blocks without a word.
    _supports_flash_attn = False

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """All weights and positions from a normal cut at two standard deviations (libml/attn_utils.py), biases 0."""
        std = self.config.initializer_range
        if isinstance(module, (nn.Linear, nn.Conv2d, PositionEmbeddings)):
            init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
            if getattr(module, "bias", None) is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)


class VitfNestModel(VitfNestPreTrainedModel):
    """The bare encoder. `pooler_output` is the mean of the tokens after the last norm."""

    def __init__(self, config: VitfNestConfig):
        super().__init__(config)
        self.embeddings = NestEmbeddings(config)
        rates = iter(drop_path_rates(config.drop_path_rate, sum(config.depths)))
        self.stages = nn.ModuleList(
            [NestStage(config, stage, [next(rates) for _ in range(depth)]) for stage, depth in enumerate(config.depths)]
        )
        self.layernorm = nn.LayerNorm(config.hidden_sizes[-1], eps=config.layer_norm_eps)
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
            pixel_values (`torch.Tensor` of shape `(B, num_channels, H, W)`). bool_masked_pos (`torch.BoolTensor` of
            shape `(B, ceil(H / patch_size) * ceil(W / patch_size))`, *optional*):
                Patches to mask.
            mask_token (`torch.Tensor` of shape `(1, 1, C)`, *optional*): What masked patches become.

        Returns:
            `last_hidden_state` (B, N, C), the tokens of the last stage after the norm; `pooler_output` (B, C);
            `hidden_states`: the input of the first stage and the output of each, (B, N, C) with N and C of the stage;
            `attentions`: (B * W, heads, n, n) a layer.
        """
        grids = self.config.feature_map_sizes(*static_size(pixel_values.shape[-2:]))
        hidden_states = self.embeddings(pixel_values, bool_masked_pos, mask_token)
        for stage, old_grid, grid in zip(self.stages, grids[:-1], grids[1:], strict=True):
            hidden_states = stage(hidden_states, old_grid, grid, **kwargs)
        hidden_states = self.layernorm(hidden_states)
        return BaseModelOutputWithPooling(last_hidden_state=hidden_states, pooler_output=hidden_states.mean(1))


class VitfNestForImageClassification(ImageClassificationMixin, VitfNestPreTrainedModel):
    """NesT with a linear classifier on the mean of the tokens."""

    encoder_class = VitfNestModel


class VitfNestForMaskedImageModeling(MaskedImageModelingMixin, VitfNestPreTrainedModel):
    """NesT that predicts the pixels of masked patches."""

    encoder_class = VitfNestModel


class VitfNestBackbone(PyramidBackboneMixin, VitfNestPreTrainedModel):
    """NesT as a backbone: the map of each stage, that of the last one after the norm."""

    encoder_class = VitfNestModel


__all__ = [
    "VitfNestBackbone",
    "VitfNestForImageClassification",
    "VitfNestForMaskedImageModeling",
    "VitfNestModel",
    "VitfNestPreTrainedModel",
]
