"""LeViT (arXiv 2104.01136): a convolutional stem, then stages of attention and feed-forward layers with batch norms.

Order of operations from facebookresearch/LeViT@3772b8e levit.py.

Shapes: B batch, N tokens (the map row by row), M key tokens, C channels, H x W pixels, h heads, (rows, columns) a map's
    size.
"""

import torch
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .attention import attend
from .caches import Resizable, size_table
from .configuration_levit import VitfLevitConfig
from .configuration_vitf import pair
from .embeddings import check_input
from .layers import (
    BatchNorm1d,
    BatchNorm2d,
    DropPath,
    init_batch_norm,
    init_torch_default,
)
from .modeling_vitf import (
    DistilledImageClassificationMixin,
    LayerGroup,
    MaskedImageModelingMixin,
    PyramidBackboneMixin,
    VitfPreTrainedModel,
    encoder_forward,
    masked_embeddings,
)
from .shapes import split_dim


def scale_and_shift(norm: nn.BatchNorm1d | nn.BatchNorm2d) -> tuple[torch.Tensor, torch.Tensor]:
    """The scale and shift of a batch norm in evaluation: x * scale + shift, in double precision."""
    scale = norm.weight.double() * (norm.running_var.double() + norm.eps).rsqrt()
    return scale, norm.bias.double() - norm.running_mean.double() * scale


class LevitConvNorm(nn.Module):
    """A 3 x 3 convolution that halves the map, and batch norm: (B, C, h, w) to (B, C', ceil(h / 2), ceil(w / 2))."""

    def __init__(self, config: VitfLevitConfig, narrow: int, wide: int):
        super().__init__()
        self.conv = nn.Conv2d(narrow, wide, kernel_size=3, stride=2, padding=1, bias=config.fused)
        self.norm = None if config.fused else BatchNorm2d(wide)

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        feature_map = self.conv(feature_map)
        return feature_map if self.norm is None else self.norm(feature_map)

    def fuse(self) -> None:
        scale, shift = scale_and_shift(self.norm)
        weight = self.conv.weight
        self.conv.bias = nn.Parameter(shift.to(weight.dtype))
        self.conv.weight = nn.Parameter((weight.double() * scale[:, None, None, None]).to(weight.dtype))
        self.norm = None


class LevitLinearNorm(nn.Module):
    """A linear layer and batch norm over all tokens of a batch: (B, N, C) to (B, N, C')."""

    def __init__(self, config: VitfLevitConfig, in_features: int, out_features: int, norm_init: float = 1.0):
        super().__init__()
        self.norm_init = norm_init
        self.linear = nn.Linear(in_features, out_features, bias=config.fused)
        self.norm = None if config.fused else BatchNorm1d(out_features)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = self.linear(hidden_states)
        if self.norm is None:
            return hidden_states
        return self.norm(hidden_states.flatten(0, 1)).view_as(hidden_states)

    def fuse(self) -> None:
        scale, shift = scale_and_shift(self.norm)
        weight = self.linear.weight
        self.linear.bias = nn.Parameter(shift.to(weight.dtype))
        self.linear.weight = nn.Parameter((weight.double() * scale[:, None]).to(weight.dtype))
        self.norm = None


class LevitClassifier(nn.Module):
    """Batch norm and a linear layer: (B, C) to (B, num_labels)."""

    def __init__(self, config: VitfLevitConfig):
        super().__init__()
        self.norm = None if config.fused else BatchNorm1d(config.pooler_output_size)
        self.linear = nn.Linear(config.pooler_output_size, config.num_labels)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.linear(features if self.norm is None else self.norm(features))

    def fuse(self) -> None:
        scale, shift = scale_and_shift(self.norm)
        weight, bias = self.linear.weight, self.linear.bias
        self.linear.bias = nn.Parameter((bias.double() + weight.double() @ shift).to(bias.dtype))
        self.linear.weight = nn.Parameter((weight.double() * scale).to(weight.dtype))
        self.norm = None


class LevitPatchEmbeddings(nn.Module):
    """The stem, (B, num_channels, H, W) to tokens (B, N, C): convolutions with the activation between them."""

    def __init__(self, config: VitfLevitConfig):
        super().__init__()
        self.num_channels = config.num_channels
        num_convs = config.patch_size.bit_length() - 1
        widths = [config.hidden_sizes[0] >> i for i in range(num_convs)][::-1]
        self.convs = nn.ModuleList(
            [
                LevitConvNorm(config, narrow, wide)
                for narrow, wide in zip([config.num_channels, *widths], widths, strict=False)
            ]
        )
        self.activation = ACT2FN[config.hidden_act]

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        check_input(pixel_values, self.num_channels, (1, 1))
        feature_map = self.convs[0](pixel_values)
        for conv in self.convs[1:]:
            feature_map = self.activation(feature_map)
            feature_map = conv(feature_map)
        return feature_map.flatten(2).transpose(1, 2)


def offset_index(grid: tuple[int, int], stride: int, device: torch.device) -> torch.Tensor:
    """
    Where the bias of a query and a key stands in a table of offsets.

    Args:
        grid (`(int, int)`): Rows and columns of the keys. stride (`int`): Of the queries among them, from the first on.

    Returns:
        `torch.LongTensor` of shape `(N, M)`: the vertical distance * columns + the horizontal distance.
    """
    rows, columns = (
        (torch.arange(0, side, stride, device=device)[:, None] - torch.arange(side, device=device)).abs()
        for side in grid
    )
    return (rows[:, None, :, None] * grid[1] + columns[None, :, None, :]).flatten(2, 3).flatten(0, 1)


class LevitPositionBias(Resizable):
    """
    A learned bias of each head for each pair of vertical and horizontal distance between query and key, in tokens.

    Built for maps of `grid`. On a smaller map the distances that occur keep their biases. On a larger one the table is
    stretched by bicubic interpolation, along each axis that is larger, so that distance 0 stays where it is and the
    farthest stays the farthest, as positions of ViT are at another resolution. The original runs at only one size.
    """

    def __init__(self, num_heads: int, grid: tuple[int, int], stride: int):
        super().__init__()
        self.grid = grid
        self.stride = stride
        self.weight = nn.Parameter(torch.zeros(num_heads, grid[0] * grid[1]))

    def resized(self, grid: tuple[int, int]) -> torch.Tensor:
        """The table for maps of another size: (h, rows * columns)."""
        if grid == self.grid:
            return self.weight
        table = split_dim(self.weight, 1, self.grid)
        larger = tuple(max(sides) for sides in zip(grid, self.grid, strict=True))
        if larger != self.grid:
            wide = table.float() if table.dtype in (torch.float16, torch.bfloat16) else table
            table = nn.functional.interpolate(wide[None], size=larger, mode="bicubic", align_corners=True)[0]
        return table[:, : grid[0], : grid[1]].flatten(1).to(self.weight.dtype)

    def forward(self, grid: tuple[int, int]) -> torch.Tensor:
        """The bias for keys on a map of `grid`: (1, h, N, M)."""

        def make():
            index = size_table(offset_index, grid, self.stride, self.weight.device)
            # Unlike indexing, its gradient is a fast sum.
            return self.resized(grid).index_select(1, index.flatten()).view(1, -1, *index.shape)

        return self.for_size(grid, make)


class LevitAttention(nn.Module):
    """
    Attention with a bias by relative offset. Values are wider than keys; the activation comes before the last
    projection.

    Rows of `qkv` are grouped by head: its queries, keys, values.
    """

    is_causal = False

    def __init__(self, config: VitfLevitConfig, hidden_size: int, num_heads: int, grid: tuple[int, int]):
        super().__init__()
        self.add_common(config, num_heads, config.attention_ratio)
        self.qkv = LevitLinearNorm(config, hidden_size, num_heads * (2 * self.key_dim + self.value_dim))
        self.proj = LevitLinearNorm(config, num_heads * self.value_dim, hidden_size, norm_init=0.0)
        self.position_bias = LevitPositionBias(num_heads, grid, stride=1)

    def add_common(self, config: VitfLevitConfig, num_heads: int, attention_ratio: float) -> None:
        """The part that shrinking and other attention share."""
        self.config = config
        self.num_heads = num_heads
        self.key_dim, self.value_dim = config.key_dim, int(attention_ratio * config.key_dim)
        self.scaling = config.key_dim**-0.5
        self.activation = ACT2FN[config.hidden_act]
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def split_heads(self, states: torch.Tensor, *widths: int) -> tuple[torch.Tensor, ...]:
        """(B, N, h * sum(widths)) to one (B, h, N, width) for each width."""
        # Split before they are transposed: the gradient is put together in the order of memory.
        parts = split_dim(states, 2, (self.num_heads, -1)).split(widths, dim=-1)
        return tuple(part.transpose(1, 2) for part in parts)

    def project(self, hidden_states: torch.Tensor, grid: tuple[int, int]) -> tuple[torch.Tensor, ...]:
        """Queries, keys and values of (B, N, C), each (B, h, N, width)."""
        return self.split_heads(self.qkv(hidden_states), self.key_dim, self.key_dim, self.value_dim)

    def forward(
        self, hidden_states: torch.Tensor, grid: tuple[int, int], **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(B, M, C) on a map of `grid` to (B, N, C'), and the map (B, h, N, M)."""
        query, key, value = self.project(hidden_states, grid)
        if not self.training:
            # Fused kernels need one width for keys and values; where the bias needs a gradient none of them runs.
            padding = max(self.value_dim - self.key_dim, 0)
            query, key = (nn.functional.pad(states, (0, padding)) for states in (query, key))
        bias = self.position_bias(grid)
        context, probabilities = attend(self, query, key, value, self.scaling, position_bias=bias, **kwargs)
        return self.dropout(self.proj(self.activation(context))), probabilities


class LevitShrinkingAttention(LevitAttention):
    """Attention whose queries are every second token of every second row: (B, M, C) to (B, N, C'), N a quarter of M."""

    stride = 2

    def __init__(self, config: VitfLevitConfig, narrow: int, wide: int, grid: tuple[int, int]):
        nn.Module.__init__(self)
        num_heads = narrow // config.key_dim
        self.add_common(config, num_heads, config.shrinking_attention_ratio)
        self.kv = LevitLinearNorm(config, narrow, num_heads * (self.key_dim + self.value_dim))
        self.query = LevitLinearNorm(config, narrow, num_heads * self.key_dim)
        self.proj = LevitLinearNorm(config, num_heads * self.value_dim, wide)
        self.position_bias = LevitPositionBias(num_heads, grid, self.stride)

    def project(self, hidden_states: torch.Tensor, grid: tuple[int, int]) -> tuple[torch.Tensor, ...]:
        sampled = split_dim(hidden_states, 1, grid)[:, :: self.stride, :: self.stride].flatten(1, 2)
        (query,) = self.split_heads(self.query(sampled), self.key_dim)
        return (query, *self.split_heads(self.kv(hidden_states), self.key_dim, self.value_dim))


class LevitMlp(nn.Module):
    """Feed-forward layer with batch norms: (B, N, C) to (B, N, C)."""

    def __init__(self, config: VitfLevitConfig, hidden_size: int):
        super().__init__()
        intermediate_size = round(config.mlp_ratio * hidden_size)
        self.fc1 = LevitLinearNorm(config, hidden_size, intermediate_size)
        self.activation = ACT2FN[config.hidden_act]
        self.fc2 = LevitLinearNorm(config, intermediate_size, hidden_size, norm_init=0.0)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.fc2(self.activation(self.fc1(hidden_states))))


class LevitLayer(GradientCheckpointingLayer):
    """x + attention(x), then x + mlp(x); drop path on both branches."""

    def __init__(self, config: VitfLevitConfig, hidden_size: int, num_heads: int, grid: tuple[int, int]):
        super().__init__()
        self.attention = LevitAttention(config, hidden_size, num_heads, grid)
        self.mlp = LevitMlp(config, hidden_size)
        self.drop_path = DropPath(config.drop_path_rate)

    def forward(self, hidden_states: torch.Tensor, grid: tuple[int, int], **kwargs) -> torch.Tensor:
        hidden_states = hidden_states + self.drop_path(self.attention(hidden_states, grid, **kwargs)[0])
        return hidden_states + self.drop_path(self.mlp(hidden_states))


class LevitShrinkingLayer(GradientCheckpointingLayer):
    """attention(x), which shrinks the map and has no residual, then x + mlp(x)."""

    def __init__(self, config: VitfLevitConfig, narrow: int, wide: int, grid: tuple[int, int]):
        super().__init__()
        self.attention = LevitShrinkingAttention(config, narrow, wide, grid)
        self.mlp = LevitMlp(config, wide)
        self.drop_path = DropPath(config.drop_path_rate)

    def forward(self, hidden_states: torch.Tensor, grid: tuple[int, int], **kwargs) -> torch.Tensor:
        hidden_states, _ = self.attention(hidden_states, grid, **kwargs)
        return hidden_states + self.drop_path(self.mlp(hidden_states))


class LevitStage(nn.Module):
    """A shrinking layer, except in the first stage, then layers; `grids` are the map's sizes before and after it."""

    def __init__(self, config: VitfLevitConfig, stage: int):
        super().__init__()
        narrow, wide = config.stage_channels[stage : stage + 2]
        before, after = config.feature_map_sizes(*pair(config.image_size))[stage : stage + 2]
        self.shrink = LevitShrinkingLayer(config, narrow, wide, before) if stage else None
        num_heads = config.num_heads[stage]
        self.layers = nn.ModuleList([LevitLayer(config, wide, num_heads, after) for _ in range(config.depths[stage])])

    def forward(
        self, hidden_states: torch.Tensor, grids: tuple[tuple[int, int], tuple[int, int]], **kwargs
    ) -> torch.Tensor:
        before, after = grids
        if self.shrink is not None:
            hidden_states = self.shrink(hidden_states, before, **kwargs)
        for layer in self.layers:
            hidden_states = layer(hidden_states, after, **kwargs)
        return hidden_states


class VitfLevitPreTrainedModel(VitfPreTrainedModel):
    config: VitfLevitConfig
    base_model_prefix = "levit"
    _no_split_modules = ["LevitPatchEmbeddings", "LevitLayer", "LevitShrinkingLayer"]
    _can_record_outputs = {"hidden_states": LevitStage, "attentions": LevitAttention}
    _supports_flash_attn = False  # it has no place for a bias

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """
        Layers as PyTorch makes them; the last batch norm of a residual branch 0, so that the branch starts as nothing.
        """
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            init_torch_default(module)
        elif isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            init_batch_norm(module)
        elif isinstance(module, LevitPositionBias):
            init.zeros_(module.weight)
        elif isinstance(module, LevitLinearNorm) and module.norm is not None:
            init.constant_(module.norm.weight, module.norm_init)
        elif isinstance(module, LevitClassifier):
            init.trunc_normal_(module.linear.weight, std=self.config.initializer_range)
            init.zeros_(module.linear.bias)

    @torch.no_grad()
    def fuse(self) -> "VitfLevitPreTrainedModel":
        """
        Folds every batch norm into the layer next to it, for faster inference with the same outputs
        (`replace_batchnorm` of the original's utils.py).

        Changes the model in place and puts it into evaluation mode. There is no way back: what is saved afterwards is
        the fused form (`config.fused`, smaller by the norms), which `from_pretrained` loads as such and no other
        library's layout can hold. Training goes on without batch norms, which no recipe is made for: keep the model
        from before for that. Call it on a whole model, not on the encoder inside one.

        Returns:
            The model itself.
        """
        for module in self.modules():
            if isinstance(module, (LevitConvNorm, LevitLinearNorm, LevitClassifier)) and module.norm is not None:
                module.fuse()
        self.config.fused = True
        return self.eval()


class VitfLevitModel(VitfLevitPreTrainedModel):
    """The bare encoder. `pooler_output` is the mean of the last tokens."""

    num_prefix_tokens = 0

    def __init__(self, config: VitfLevitConfig):
        super().__init__(config)
        self.patch_embeddings = LevitPatchEmbeddings(config)
        self.stages = nn.ModuleList([LevitStage(config, stage) for stage in range(len(config.depths))])
        self.post_init()

    def layer_groups(self) -> list[LayerGroup]:
        layers = [layer for stage in self.stages for layer in (stage.shrink, *stage.layers) if layer is not None]
        return [[self.patch_embeddings], *([layer] for layer in layers)]

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
            pixel_values (`torch.Tensor` of shape `(B, num_channels, H, W)`): Any H and W. bool_masked_pos
            (`torch.BoolTensor` of shape `(B, ceil(H / patch_size) * ceil(W / patch_size))`, *optional*):
                Tokens of the stem to mask.
            mask_token (`torch.Tensor` of shape `(1, 1, C)`, *optional*): What masked tokens become.

        Returns:
            `last_hidden_state` (B, N, C) of the last stage; `pooler_output` (B, C); `hidden_states`: the input of the
            first stage and the output of each, (B, N, C) with N and C of the stage; `attentions`: (B, heads, N, M) of
            each layer, where M is four times N (rounded) in the layers that shrink the map, and N in the others.
        """
        hidden_states = masked_embeddings(self.patch_embeddings(pixel_values), bool_masked_pos, mask_token)
        grids = self.config.feature_map_sizes(*pixel_values.shape[-2:])
        for number, stage in enumerate(self.stages):
            hidden_states = stage(hidden_states, (grids[number], grids[number + 1]), **kwargs)
        return BaseModelOutputWithPooling(last_hidden_state=hidden_states, pooler_output=hidden_states.mean(1))


class VitfLevitForImageClassification(DistilledImageClassificationMixin, VitfLevitPreTrainedModel):
    """
    LeViT with a classifier on the mean of the last tokens and, when distilled, another one for a teacher's labels.
    """

    encoder_class = VitfLevitModel

    def make_classifier(self) -> nn.Module:
        return LevitClassifier(self.config) if self.config.num_labels > 0 else nn.Identity()

    def distillation_features(self, outputs: BaseModelOutputWithPooling) -> torch.Tensor:
        return outputs.pooler_output


class VitfLevitForMaskedImageModeling(MaskedImageModelingMixin, VitfLevitPreTrainedModel):
    """LeViT that predicts the pixels under masked tokens of the stem."""

    encoder_class = VitfLevitModel


class VitfLevitBackbone(PyramidBackboneMixin, VitfLevitPreTrainedModel):
    """LeViT as a backbone: the map of each stage, before the next one shrinks it."""

    encoder_class = VitfLevitModel

    def normalize_stage(self, hidden_states: torch.Tensor, stage: int) -> torch.Tensor:
        return hidden_states  # there is no last norm


__all__ = [
    "VitfLevitBackbone",
    "VitfLevitForImageClassification",
    "VitfLevitForMaskedImageModeling",
    "VitfLevitModel",
    "VitfLevitPreTrainedModel",
]
