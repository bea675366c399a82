"""MViT (arXiv 2104.11227) and MViTv2 (arXiv 2112.01526) for images: attention between pooled queries, keys and values.

Order of operations from facebookresearch/mvit@dfbdfdf mvit/models/{mvit_model,attention}.py and
facebookresearch/SlowFast@287ec00 slowfast/models/{video_model_builder,attention}.py. Its layers take maps with or
without a time axis: modeling_mvit_video.py has them too.

Shapes: B batch, N tokens (class token, if there is one, then patches, frame by frame and row by row), M tokens that are
attended to, C channels, h heads, d head width, T groups of frames. A grid is (rows, columns) or (T, rows, columns).
"""

import math

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .attention import attend
from .caches import Resizable, size_table
from .configuration_mvit import VitfMvitConfig
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
from .windows import static_size

Grid = tuple[int, ...]
CONVOLUTIONS = {2: nn.functional.conv2d, 3: nn.functional.conv3d}
AXES = ("time", "height", "width")


def pooled_grid(grid: Grid, stride: int) -> Grid:
    """The grid after pooling with padding: each begun cell counts. Time is not pooled."""
    return (*grid[:-2], (grid[-2] + stride - 1) // stride, (grid[-1] + stride - 1) // stride)


class MvitPatchEmbeddings(nn.Module):
    """Overlapping patches, each projected to a token: (B, num_channels, H, W) to (B, N, C), row by row."""

    convolution = nn.Conv2d

    def __init__(self, config: VitfMvitConfig, stride: tuple[int, ...]):
        super().__init__()
        self.config = config
        kernel, padding = tuple(2 * step - 1 for step in stride), tuple(step - 1 for step in stride)
        self.projection = self.convolution(config.num_channels, config.hidden_sizes[0], kernel, stride, padding)

    def grid(self, height: int, width: int) -> Grid:
        """Rows and columns of patches of an image of `height` x `width` pixels."""
        return self.config.feature_map_sizes(height, width)[0]

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.projection(pixel_values).flatten(2).transpose(1, 2)


class MvitEmbeddings(nn.Module):
    """Patches, class token and absolute positions, as far as configured: (B, num_channels, H, W) to (B, N, C)."""

    def __init__(self, config: VitfMvitConfig):
        super().__init__()
        hidden_size, num_prefix_tokens = config.hidden_sizes[0], int(config.use_cls_token)
        self.patch_embeddings = self.make_patch_embeddings(config)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, hidden_size)) if config.use_cls_token else None
        self.position_embeddings = None
        if config.position_embedding_type == "absolute":
            grid = config.token_grid[-2:]
            self.position_embeddings = PositionEmbeddings(
                hidden_size, grid, num_prefix_tokens, interpolation="bilinear_half_pixel"
            )
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def make_patch_embeddings(self, config: VitfMvitConfig) -> MvitPatchEmbeddings:
        return MvitPatchEmbeddings(config, pair(config.patch_size))

    def with_cls_token(self, patches: torch.Tensor) -> torch.Tensor:
        """Puts the class token, if there is one, before patches (B, N, C)."""
        if self.cls_token is None:
            return patches
        return torch.cat((self.cls_token.expand(patches.shape[0], -1, -1), patches), dim=1)

    def forward(
        self,
        pixel_values: torch.Tensor,
        grid: Grid,
        bool_masked_pos: torch.Tensor | None = None,
        mask_token: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """`grid` is that of the patches."""
        patches = masked_embeddings(self.patch_embeddings(pixel_values), bool_masked_pos, mask_token)
        tokens = self.with_cls_token(patches)
        if self.position_embeddings is not None:
            tokens = tokens + self.position_embeddings(grid, tokens)
        return self.dropout(tokens)


class MvitPool(nn.Module):
    """
    A depth-wise convolution over the map, the same for each head, and a norm of each head; the class token takes part
    only in the norm. (B, N, h, d) to (B, M, h, d).

    Heads are channels of one convolution, and channels stay last in memory: several times as fast on CPUs as the
    original's heads as part of the batch.
    """

    def __init__(self, config: VitfMvitConfig, head_dim: int, kernel_size: int, stride: int):
        super().__init__()
        kernel = config.pool_kernel(kernel_size)
        self.stride = (1, stride, stride)[-len(kernel) :]
        self.weight = nn.Parameter(torch.zeros(head_dim, 1, *kernel))
        self.layernorm = nn.LayerNorm(head_dim, eps=config.layer_norm_eps)

    def forward(self, states: torch.Tensor, grid: Grid) -> torch.Tensor:
        (heads,) = static_size(states.shape[2:3])  # a number of kernels: no exporter takes one that is not known
        num_prefix_tokens = states.shape[1] - math.prod(grid)
        maps = split_dim(states[:, num_prefix_tokens:].flatten(2), 1, grid).movedim(len(grid) + 1, 1)
        weight = self.weight.repeat(heads, *(1 for _ in self.weight.shape[1:]))
        padding = tuple(side // 2 for side in weight.shape[2:])
        maps = CONVOLUTIONS[len(grid)](maps, weight, None, self.stride, padding, groups=maps.shape[1])
        pooled = split_dim(maps.movedim(1, len(grid) + 1).flatten(1, -2), -1, (heads, -1))
        if num_prefix_tokens:
            pooled = torch.cat((states[:, :num_prefix_tokens], pooled), dim=1)
        return self.layernorm(pooled)


class MvitAxisPositions(Resizable):
    """
    A vector for each distance between a query and a key along one axis.

    Args:
        size (`int`): Length of the longer of the two maps along the axis, in tokens.
    """

    def __init__(self, head_dim: int, size: int):
        super().__init__()
        self.size = size
        self.weight = nn.Parameter(torch.zeros(2 * size - 1, head_dim))

    def resized(self, size: int) -> torch.Tensor:
        """
        The table for maps of another length, (2 * size - 1, d), as SlowFast's slowfast/models/attention.py resizes it.
        """
        if size == self.size:
            return self.weight
        return nn.functional.interpolate(self.weight.t()[None], size=2 * size - 1, mode="linear")[0].t()

    def forward(self, queries: int, keys: int) -> torch.Tensor:
        """The vector for each query and key along the axis, (queries, d, keys)."""

        def make():
            # In float32 and this order, as the original: what is rounded off below depends on it.
            query_step, key_step = max(keys / queries, 1.0), max(queries / keys, 1.0)
            rows = torch.arange(queries, device=self.weight.device, dtype=torch.float32)[:, None] * query_step
            columns = torch.arange(keys, device=self.weight.device, dtype=torch.float32)[None] * key_step
            distance = (rows - columns) + (keys - 1) * key_step
            return self.resized(max(queries, keys))[distance.long()].transpose(1, 2).contiguous()

        return self.for_size((queries, keys), make)


def place_marks(
    grid: Grid, num_prefix_tokens: int, mark: float, dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """(M, sum of the grid's sides): for each patch and axis a mark at its place; nothing for prefix tokens."""
    marks = [torch.eye(size, dtype=dtype, device=device) * mark for size in grid]
    shape = [[size if other == axis else 1 for other in range(len(grid))] for axis, size in enumerate(grid)]
    marks = [mark.view(*own, -1).expand(*grid, -1) for mark, own in zip(marks, shape, strict=True)]
    return nn.functional.pad(torch.cat(marks, dim=-1).flatten(0, -2), (0, 0, num_prefix_tokens, 0))


class MvitRelativePositions(nn.Module):
    """
    What a query makes of the distance to a key along each axis, added to its scores (arXiv 2112.01526, equation 4).

    The sum over axes of products with vectors that depend on the query and the key's place along the axis equals a
    product of longer queries and keys: those products, one for each place along each axis, follow the query, and marks
    of the own places follow the key. So there is no bias as large as the scores, and any implementation of attention
    serves.

    Args:
        sizes (`tuple[int, ...]`): Length along each axis, in tokens, that tables are built for.
    """

    def __init__(self, head_dim: int, sizes: Grid):
        super().__init__()
        self.axes = nn.ModuleDict(
            {name: MvitAxisPositions(head_dim, size) for name, size in zip(AXES[-len(sizes) :], sizes, strict=True)}
        )
        # The original does not scale these products. Undone here is the scaling of the scores.
        self.mark = math.sqrt(head_dim)

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, query_grid: Grid, key_grid: Grid
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        Queries (B, N, h, d), keys and values (B, M, h, d) to longer ones; values get zeros, to stay as wide as keys.
        """
        num_prefix_tokens = query.shape[1] - math.prod(query_grid)
        patches = split_dim(query[:, num_prefix_tokens:], 1, query_grid)
        products = []
        for axis, positions in enumerate(self.axes.values(), start=1):
            lines = patches.movedim(axis, 0)
            product = lines.flatten(1, -2) @ positions(query_grid[axis - 1], key_grid[axis - 1])
            products.append(product.view(*lines.shape[:-1], -1).movedim(0, axis))
        products = torch.cat(products, dim=-1).flatten(1, -3)
        products = nn.functional.pad(products, (0, 0, 0, 0, num_prefix_tokens, 0))
        marks = size_table(place_marks, key_grid, num_prefix_tokens, self.mark, key.dtype, key.device)
        marks = marks[:, None].expand(*key.shape[:-1], -1)
        value = nn.functional.pad(value, (0, marks.shape[-1]))
        return torch.cat((query, products), dim=-1), torch.cat((key, marks), dim=-1), value


class MvitAttention(nn.Module):
    """
    Attention between pooled queries, keys and values.

    Args:
        in_size (`int`): Channels of the tokens; C, the stage's, are those of the result.
        grid (`tuple[int, ...]`): Of the tokens at the configured size. stride (`int`): That of the queries.
    """

    is_causal = False

    def __init__(self, config: VitfMvitConfig, stage: int, in_size: int, grid: Grid, stride: int):
        super().__init__()
        hidden_size, kernel_size, kv_stride = (
            values[stage] for values in (config.hidden_sizes, config.kv_kernel_sizes, config.kv_strides)
        )
        head_dim = hidden_size // config.num_heads[stage]
        self.config = config
        self.num_heads = config.num_heads[stage]
        self.stride, self.kv_stride = stride, kv_stride
        self.scaling = head_dim**-0.5
        self.qkv = nn.Linear(in_size, 3 * hidden_size, bias=config.qkv_bias)
        self.query_pool = self.key_pool = self.value_pool = self.relative_positions = None
        if stride > 1 or config.query_pooling == "every_layer":
            self.query_pool = MvitPool(config, head_dim, 3, stride)
        if kv_stride > 1 or kernel_size > 1:
            self.key_pool = MvitPool(config, head_dim, kernel_size, kv_stride)
            self.value_pool = MvitPool(config, head_dim, kernel_size, kv_stride)
        if config.position_embedding_type == "relative":
            # Rounded down, as the original counts; maps of odd sides are one longer, and their tables resized.
            sides = [max(side // stride, side // kv_stride, 1) for side in grid[-2:]]
            self.relative_positions = MvitRelativePositions(head_dim, (*grid[:-2], *sides))
        self.proj = nn.Linear(hidden_size, hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: torch.Tensor, grid: Grid, **kwargs) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Tokens on a `grid` to (B, N, C) on the grid of pooled queries, and the map (B, h, N, M)."""
        query, key, value = split_dim(self.qkv(hidden_states), -1, (3, self.num_heads, -1)).unbind(2)
        if self.query_pool is not None:
            query = self.query_pool(query, grid)
        if self.key_pool is not None:
            key, value = self.key_pool(key, grid), self.value_pool(value, grid)
        residual, query_grid = query, pooled_grid(grid, self.stride)
        if self.relative_positions is not None:
            key_grid = pooled_grid(grid, self.kv_stride)
            query, key, value = self.relative_positions(query, key, value, query_grid, key_grid)
        query, key, value = (states.transpose(1, 2) for states in (query, key, value))
        context, probabilities = attend(self, query, key, value, self.scaling, **kwargs)
        context = split_dim(context, -1, (self.num_heads, -1))[..., : residual.shape[-1]]
        if self.config.residual_pooling and self.config.residual_cls_token:
            context = context + residual
        elif self.config.residual_pooling:
            num_prefix_tokens = residual.shape[1] - math.prod(query_grid)
            patches = context[:, num_prefix_tokens:] + residual[:, num_prefix_tokens:]
            context = torch.cat((context[:, :num_prefix_tokens], patches), dim=1) if num_prefix_tokens else patches
        return self.dropout(self.proj(context.flatten(2))), probabilities


class MvitMlp(Mlp):
    """A feed-forward layer that may widen the tokens: (B, N, C) to (B, N, out_size)."""

    def __init__(self, config: VitfMvitConfig, hidden_size: int, out_size: int):
        intermediate_size = int(hidden_size * config.mlp_ratio)
        super().__init__(config, hidden_size, intermediate_size)
        self.fc2 = nn.Linear(intermediate_size, out_size)


def max_pooled(hidden_states: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Halves the maps of tokens (B, N, C) by the largest of 3 x 3; prefix tokens are kept."""
    batch, tokens, channels = hidden_states.shape
    num_prefix_tokens = tokens - math.prod(grid)
    maps = hidden_states[:, num_prefix_tokens:].reshape(-1, *grid[-2:], channels).permute(0, 3, 1, 2)
    maps = nn.functional.max_pool2d(maps, kernel_size=3, stride=2, padding=1)
    patches = maps.permute(0, 2, 3, 1).reshape(batch, -1, channels)
    return torch.cat((hidden_states[:, :num_prefix_tokens], patches), dim=1) if num_prefix_tokens else patches


class MvitLayer(GradientCheckpointingLayer):
    """
    x + attention(norm(x)), then x + mlp(norm(x)); drop path on both branches. Where a branch widens the tokens, x is
    projected from their norm; where it pools them, x is pooled.
    """

    def __init__(self, config: VitfMvitConfig, stage: int, index: int, grid: Grid, drop_path_rate: float):
        super().__init__()
        hidden_size = in_size = out_size = config.hidden_sizes[stage]
        self.stride = 2 if stage and not index else 1
        if config.dim_mul_in_att and self.stride > 1:
            in_size = config.hidden_sizes[stage - 1]
        elif not config.dim_mul_in_att and index == config.depths[stage] - 1:
            out_size = config.stage_channels[stage + 1]
        self.layernorm_before = nn.LayerNorm(in_size, eps=config.layer_norm_eps)
        self.attention = MvitAttention(config, stage, in_size, grid, self.stride)
        self.attention_shortcut = nn.Linear(in_size, hidden_size) if in_size != hidden_size else None
        self.layernorm_after = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.mlp = MvitMlp(config, hidden_size, out_size)
        self.mlp_shortcut = nn.Linear(hidden_size, out_size) if out_size != hidden_size else None
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, hidden_states: torch.Tensor, grid: Grid, **kwargs) -> torch.Tensor:
        normed = self.layernorm_before(hidden_states)
        attention_output, _ = self.attention(normed, grid, **kwargs)
        if self.attention_shortcut is not None:
            hidden_states = self.attention_shortcut(normed)
        if self.stride > 1:
            hidden_states = max_pooled(hidden_states, grid)
        hidden_states = hidden_states + self.drop_path(attention_output)
        normed = self.layernorm_after(hidden_states)
        if self.mlp_shortcut is not None:
            hidden_states = self.mlp_shortcut(normed)
        return hidden_states + self.drop_path(self.mlp(normed))


class MvitStage(nn.Module):
    """Layers, of which the first, except in the first stage, halves the map."""

    def __init__(self, config: VitfMvitConfig, stage: int, grid: Grid, drop_path_rates: list[float]):
        super().__init__()
        self.layers = nn.ModuleList()
        for index, rate in enumerate(drop_path_rates):
            self.layers.append(MvitLayer(config, stage, index, grid, rate))
            grid = (*grid[:-2], *(max(side // self.layers[-1].stride, 1) for side in grid[-2:]))
        # At the configured size, rounded down.
        self.grid = grid

    def forward(self, hidden_states: torch.Tensor, grid: Grid, **kwargs) -> torch.Tensor:
        """Tokens on the `grid` of the stage before it to those on its own."""
        for layer in self.layers:
            hidden_states = layer(hidden_states, grid, **kwargs)
            grid = pooled_grid(grid, layer.stride)
        return hidden_states


class VitfMvitPreTrainedModel(VitfPreTrainedModel):
    config: VitfMvitConfig
    base_model_prefix = "mvit"
    _no_split_modules = ["MvitEmbeddings", "MvitLayer"]
    _can_record_outputs = {"hidden_states": MvitStage, "attentions": MvitAttention}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        init_trunc_normal(module, std)
        if isinstance(module, (PositionEmbeddings, MvitAxisPositions)):
            init.trunc_normal_(module.weight, std=std)
        elif isinstance(module, MvitEmbeddings) and module.cls_token is not None:
            init.trunc_normal_(module.cls_token, std=std)
        elif isinstance(module, MvitPool):
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))  # PyTorch's own for convolutions


class MvitEncoder:
    """The part that the base models for images and for clips share: stages, the last norm, and what a head reads."""

    def add_stages(self, config: VitfMvitConfig) -> None:
        """Adds stages and the last norm."""
        rates = iter(drop_path_rates(config.drop_path_rate, sum(config.depths)))
        self.stages, grid = nn.ModuleList(), config.token_grid
        for stage, depth in enumerate(config.depths):
            self.stages.append(MvitStage(config, stage, grid, [next(rates) for _ in range(depth)]))
            grid = self.stages[-1].grid
        self.layernorm = nn.LayerNorm(config.hidden_sizes[-1], eps=config.layer_norm_eps)
        self.num_prefix_tokens = int(config.use_cls_token)

    def encode(self, hidden_states: torch.Tensor, grid: Grid, **kwargs) -> BaseModelOutputWithPooling:
        """Tokens of the first stage, on a `grid`, to the outputs of the model."""
        for index, stage in enumerate(self.stages):
            hidden_states = stage(hidden_states, grid, **kwargs)
            grid = pooled_grid(grid, 2) if index else grid
        tokens = self.layernorm(hidden_states)
        if self.config.final_layernorm == "pooled":
            pooled = self.layernorm(hidden_states[:, self.num_prefix_tokens :].mean(dim=1))
        else:
            pooled = tokens[:, 0] if self.num_prefix_tokens else tokens.mean(dim=1)
        return BaseModelOutputWithPooling(last_hidden_state=tokens, pooler_output=pooled)


class VitfMvitModel(MvitEncoder, VitfMvitPreTrainedModel):
    """The bare encoder. `pooler_output` is the class token, or where there is none the mean of all tokens."""

    def __init__(self, config: VitfMvitConfig):
        super().__init__(config)
        self.embeddings = MvitEmbeddings(config)
        self.add_stages(config)
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
            pixel_values (`torch.Tensor` of shape `(B, num_channels, H, W)`): H and W of any size.
            bool_masked_pos (`torch.BoolTensor` of shape `(B, number of patches)`, *optional*):
                Patches of the first stage to mask.
            mask_token (`torch.Tensor` of shape `(1, 1, C)`, *optional*): What masked patches become.

        Returns:
            `last_hidden_state` (B, N, C), all tokens of the last stage after the norm; `pooler_output` (B, C);
            `hidden_states`: the input of the first stage and the output of each, (B, N, C) with N and C of the stage;
            `attentions`: (B, h, N, M) a layer.
        """
        check_input(pixel_values, self.config.num_channels, (1, 1))
        grid = self.embeddings.patch_embeddings.grid(*static_size(pixel_values.shape[-2:]))
        hidden_states = self.embeddings(pixel_values, grid, bool_masked_pos, mask_token)
        return self.encode(hidden_states, grid, **kwargs)


class VitfMvitForImageClassification(ImageClassificationMixin, VitfMvitPreTrainedModel):
    """MViT with a linear classifier on the class token or the mean of all tokens."""

    encoder_class = VitfMvitModel


class VitfMvitForMaskedImageModeling(MaskedImageModelingMixin, VitfMvitPreTrainedModel):
    """MViT that predicts the pixels of masked patches."""

    encoder_class = VitfMvitModel


class VitfMvitBackbone(PyramidBackboneMixin, VitfMvitPreTrainedModel):
    """MViT as a backbone: the map of each stage, that of the last one after the norm."""

    encoder_class = VitfMvitModel


__all__ = [
    "VitfMvitBackbone",
    "VitfMvitForImageClassification",
    "VitfMvitForMaskedImageModeling",
    "VitfMvitModel",
    "VitfMvitPreTrainedModel",
]
