"""CoAtNet (arXiv 2106.04803): stages of inverted bottlenecks, then stages of attention with a bias by relative
position.

Order of operations from timm 1.0.31 timm/models/maxxvit.py; there is no official code.

Shapes: B batch, C channels, H x W pixels, h x w feature map, N = h * w tokens (the map row by row), (rows, columns) a
map's size. Maps lie in memory with the channels last, so that tokens are a view of them.
"""

import torch
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .attention import attend
from .caches import Resizable, size_table
from .configuration_coatnet import VitfCoatnetConfig
from .configuration_vitf import pair
from .embeddings import check_input
from .layers import (
    BatchNorm2d,
    DropPath,
    LayerScale,
    Mlp,
    drop_path_rates,
    init_batch_norm,
    init_torch_default,
)
from .modeling_vitf import (
    ImageClassificationMixin,
    MaskedImageModelingMixin,
    PyramidBackboneMixin,
    VitfPreTrainedModel,
    encoder_forward,
    masked_embeddings,
)
from .shapes import split_dim
from .windows import relative_position_index, static_size

# Initial layer scale of ConvNeXt layers.
_CONVNEXT_LAYER_SCALE = 1e-5
# Strides of the average, the first and the depth-wise convolution in a layer that halves the map.
_STRIDES = {"pool": (2, 1, 1), "1x1": (1, 2, 1), "dw": (1, 1, 2)}


def to_tokens(feature_map: torch.Tensor) -> torch.Tensor:
    """(B, C, h, w) to (B, N, C)."""
    return feature_map.flatten(2).transpose(1, 2)


def to_map(tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """(B, N, C) to (B, C, *grid)."""
    return split_dim(tokens.transpose(1, 2), 2, grid)


class CoatnetMapNorm(nn.LayerNorm):
    """LayerNorm over the channels of a map (B, C, h, w)."""

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        return super().forward(feature_map.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


NORMS = {"layer": CoatnetMapNorm, "batch": BatchNorm2d}


def make_pool(pool_type: str) -> nn.Module:
    """A layer that halves a map, (B, C, h, w) to (B, C, ceil(h / 2), ceil(w / 2)): borders average what there is."""
    return nn.AvgPool2d(2, ceil_mode=True) if pool_type == "average" else nn.MaxPool2d(3, stride=2, padding=1)


class CoatnetShortcut(nn.Module):
    """The shortcut past a layer that halves the map: pooling, and a 1 x 1 convolution where channels change."""

    def __init__(self, config: VitfCoatnetConfig, narrow: int, wide: int, bias: bool):
        super().__init__()
        self.pool = make_pool(config.pool_type)
        self.expand = nn.Conv2d(narrow, wide, 1, bias=bias) if narrow != wide else nn.Identity()

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        return self.expand(self.pool(feature_map))


class CoatnetSqueezeExcitation(nn.Module):
    """Weights the channels of (B, C, h, w) by two layers on their means."""

    def __init__(self, config: VitfCoatnetConfig, channels: int, squeezed: int):
        super().__init__()
        self.fc1 = nn.Linear(channels, squeezed)
        self.activation = ACT2FN[config.se_act]
        self.fc2 = nn.Linear(squeezed, channels)

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        weights = self.fc2(self.activation(self.fc1(feature_map.mean((2, 3))))).sigmoid()
        return feature_map * weights[:, :, None, None]


def expanded_channels(config: VitfCoatnetConfig, narrow: int, wide: int) -> int:
    """Channels inside an inverted bottleneck: a multiple of 8 that is not below 0.9 of what the ratio asks for."""
    wanted = (wide if config.expand_output else narrow) * config.conv_expand_ratio
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * wanted else rounded


def squeezed_channels(config: VitfCoatnetConfig, inner: int, wide: int) -> int:
    """Channels that squeeze-and-excitation of `inner` channels squeezes to."""
    return int(config.se_ratio * (wide if config.expand_output else inner))


class CoatnetConvLayer(GradientCheckpointingLayer):
    """
    x + bottleneck(norm(x)): 1 x 1, depth-wise 3 x 3 and 1 x 1 convolutions, with squeeze-and-excitation before or after
    the norm of the second.
    """

    def __init__(self, config: VitfCoatnetConfig, stage: int, narrow: int, stride: int, drop_path_rate: float):
        super().__init__()
        wide = config.hidden_sizes[stage]
        inner = expanded_channels(config, narrow, wide)
        strides = _STRIDES[config.stride_mode] if stride == 2 else (1, 1, 1)
        self.shortcut = CoatnetShortcut(config, narrow, wide, config.conv_bias) if stride == 2 else nn.Identity()
        self.norm_before = BatchNorm2d(narrow)
        self.activation = ACT2FN[config.conv_act]
        self.activation_before = self.activation if config.pre_norm_act else nn.Identity()
        self.pool = make_pool("average") if strides[0] == 2 else nn.Identity()
        self.expand = nn.Conv2d(narrow, inner, 1, strides[1], bias=False)
        self.norm_expanded = BatchNorm2d(inner)
        self.depthwise = nn.Conv2d(inner, inner, 3, strides[2], padding=1, groups=inner, bias=False)
        self.norm_depthwise = BatchNorm2d(inner)
        self.squeeze_excitation = CoatnetSqueezeExcitation(config, inner, squeezed_channels(config, inner, wide))
        self.se_position = config.se_position
        self.reduce = nn.Conv2d(inner, wide, 1, bias=config.conv_bias)
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, feature_map: torch.Tensor, grid: tuple[int, int], **kwargs) -> torch.Tensor:
        # One step a line: no line holds on to a wide map that the next one no longer needs.
        hidden_states = self.pool(self.activation_before(self.norm_before(feature_map)))
        hidden_states = self.expand(hidden_states)
        hidden_states = self.norm_expanded(hidden_states)
        hidden_states = self.activation(hidden_states)
        hidden_states = self.depthwise(hidden_states)
        if self.se_position == "before_norm":
            hidden_states = self.squeeze_excitation(hidden_states)
        hidden_states = self.norm_depthwise(hidden_states)
        hidden_states = self.activation(hidden_states)
        if self.se_position == "after_norm":
            hidden_states = self.squeeze_excitation(hidden_states)
        hidden_states = self.reduce(hidden_states)
        return self.shortcut(feature_map) + self.drop_path(hidden_states)


class CoatnetConvNextLayer(GradientCheckpointingLayer):
    """x + scale(mlp(norm(conv(x)))), the convolution depth-wise 7 x 7 (arXiv 2201.03545)."""

    def __init__(self, config: VitfCoatnetConfig, stage: int, narrow: int, stride: int, drop_path_rate: float):
        super().__init__()
        wide = config.hidden_sizes[stage]
        strides = _STRIDES[config.stride_mode] if stride == 2 else (1, 1, 1)
        self.shortcut = CoatnetShortcut(config, narrow, wide, bias=True) if stride == 2 else nn.Identity()
        self.pool = make_pool("average") if strides[0] == 2 else nn.Identity()
        self.depthwise = nn.Conv2d(narrow, wide, 7, strides[2], padding=3, groups=narrow)
        self.norm = nn.LayerNorm(wide, eps=config.layer_norm_eps)
        self.mlp = Mlp(config, wide, int(config.conv_expand_ratio * wide))
        self.layer_scale = LayerScale(wide, _CONVNEXT_LAYER_SCALE)
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, feature_map: torch.Tensor, grid: tuple[int, int], **kwargs) -> torch.Tensor:
        tokens = to_tokens(self.depthwise(self.pool(feature_map)))
        tokens = self.drop_path(self.layer_scale(self.mlp(self.norm(tokens))))
        return self.shortcut(feature_map) + to_map(tokens, grid)


CONV_LAYERS = {"mbconv": CoatnetConvLayer, "convnext": CoatnetConvNextLayer}


def axis_weights(
    old: int, new: int, dtype: torch.dtype = torch.float64, device: torch.device | None = None
) -> torch.Tensor:
    """
    How an axis of a table of relative positions becomes another, as timm does it (timm/layers/pos_embed_rel.py,
    resize_rel_pos_bias_table, after BEiT): the distances of the old axis grow geometrically until they span the new
    one, and new distances in between are interpolated linearly.

    Args:
        old, new (`int`): Entries before and after, `2 * side - 1`.

    Returns:
        `torch.Tensor` of shape `(new, old)`, computed in float64: rows sum to 1.
    """
    if old == 1:
        return torch.ones(new, 1, dtype=dtype, device=device)
    low, high = 1.01, 1.5
    while high - low > 1e-6:
        ratio = (low + high) / 2
        too_far = (1 - ratio ** (old // 2)) / (1 - ratio) > new // 2
        low, high = (low, ratio) if too_far else (ratio, high)
    distances = (ratio ** torch.arange(old // 2, dtype=torch.float64)).cumsum(0)
    places = torch.cat((-distances.flip(0), distances.new_zeros(1), distances))
    wanted = torch.arange(-(new // 2), new // 2 + 1).to(places).clamp(-distances[-1], distances[-1])
    right = torch.bucketize(wanted, places).clamp(1, old - 1)
    share = (wanted - places[right - 1]) / (places[right] - places[right - 1])
    columns = torch.stack((right - 1, right), dim=1)
    weights = wanted.new_zeros(new, old).scatter(1, columns, torch.stack((1 - share, share), dim=1))
    return weights.to(device=device, dtype=dtype)


def log_distances(grid: tuple[int, int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """
    Logarithms of the vertical and horizontal distances on a map of `grid`, with their signs: (number of distances, 2).
    Computed in float32 as the original does.
    """
    axes = (torch.arange(1 - side, side, dtype=torch.float32) for side in grid)
    logarithms = (axis.sign() * (1 + axis.abs()).log() for axis in axes)
    table = torch.stack(torch.meshgrid(*logarithms, indexing="ij"), dim=-1).flatten(0, 1)
    return table.to(device=device, dtype=dtype)


class CoatnetPositionBias(Resizable):
    """A bias of each head for each relative position of two tokens on a map of any size. A subclass gives the table."""

    def table(self, grid: tuple[int, int]) -> torch.Tensor:
        """The biases on a map of `grid`: (h, (2 * rows - 1) * (2 * columns - 1)), in the order of the index."""
        raise NotImplementedError

    def forward(self, grid: tuple[int, int]) -> torch.Tensor:
        """The bias between the tokens of a map of `grid`: (1, h, N, N)."""

        def make() -> torch.Tensor:
            table = self.table(grid)
            index = size_table(relative_position_index, grid, table.device)
            # Unlike indexing, its gradient is a fast sum.
            return table.index_select(1, index.flatten()).view(1, -1, *index.shape)

        return self.for_size(grid, make)


class CoatnetTableBias(CoatnetPositionBias):
    """A learned table, `weight` ((2 * rows - 1) * (2 * columns - 1), h) for maps of `grid`; resized for others."""

    def __init__(self, config: VitfCoatnetConfig, num_heads: int, grid: tuple[int, int]):
        super().__init__()
        self.grid = grid
        self.weight = nn.Parameter(torch.zeros((2 * grid[0] - 1) * (2 * grid[1] - 1), num_heads))

    def resized(self, grid: tuple[int, int]) -> torch.Tensor:
        """The table for maps of another size: ((2 * rows - 1) * (2 * columns - 1), h)."""
        if grid == self.grid:
            return self.weight
        old, new = (tuple(2 * side - 1 for side in sides) for sides in (self.grid, grid))
        weight = self.weight
        rows, columns = (
            size_table(axis_weights, *sides, weight.dtype, weight.device) for sides in zip(old, new, strict=True)
        )
        table = torch.einsum("rs,sth,ct->rch", rows, split_dim(weight, 0, old), columns)
        return table.flatten(0, 1)

    def table(self, grid: tuple[int, int]) -> torch.Tensor:
        return self.resized(grid).t()


class CoatnetMlpBias(CoatnetPositionBias):
    """
    Made by a network of two layers from the logarithms of vertical and horizontal distance. Its weights are parameters
    of this module: what is cached follows from them, wherever they are moved to.
    """

    def __init__(self, config: VitfCoatnetConfig, num_heads: int, grid: tuple[int, int]):
        super().__init__()
        self.dropout_prob = config.position_bias_dropout_prob
        self.fc1_weight = nn.Parameter(torch.zeros(config.position_bias_size, 2))
        self.fc1_bias = nn.Parameter(torch.zeros(config.position_bias_size))
        self.fc2_weight = nn.Parameter(torch.zeros(num_heads, config.position_bias_size))
        self.fc2_bias = nn.Parameter(torch.zeros(num_heads))

    def table(self, grid: tuple[int, int]) -> torch.Tensor:
        distances = size_table(log_distances, grid, self.fc1_weight.dtype, self.fc1_weight.device)
        hidden = nn.functional.linear(distances, self.fc1_weight, self.fc1_bias).relu()
        hidden = nn.functional.dropout(hidden, self.dropout_prob, self.training)
        return nn.functional.linear(hidden, self.fc2_weight, self.fc2_bias).t()


POSITION_BIASES = {"table": CoatnetTableBias, "mlp": CoatnetMlpBias}


class CoatnetAttention(nn.Module):
    """
    Attention on the whole map, (B, N, C) to (B, N, C'). Rows of `qkv` are grouped by head: its queries, keys, values.
    """

    is_causal = False

    def __init__(self, config: VitfCoatnetConfig, stage: int, narrow: int):
        super().__init__()
        self.config = config
        wide = config.hidden_sizes[stage]
        head_dim = wide // config.num_heads[stage]
        inner = wide if config.expand_first else narrow
        self.num_heads = inner // head_dim
        self.scaling = head_dim**-0.5
        self.qkv = nn.Linear(narrow, 3 * inner)
        grid = config.feature_map_sizes(*pair(config.image_size))[stage + 1]
        self.position_bias = POSITION_BIASES[config.position_bias_type](config, self.num_heads, grid)
        self.proj = nn.Linear(inner, wide)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self, hidden_states: torch.Tensor, grid: tuple[int, int], **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(B, N, C) on a map of `grid` to (B, N, C'), and the map (B, h, N, N)."""
        states = split_dim(self.qkv(hidden_states), 2, (self.num_heads, 3, -1))
        query, key, value = states.permute(3, 0, 2, 1, 4).unbind(0)
        bias = self.position_bias(grid)
        context, probabilities = attend(self, query, key, value, self.scaling, position_bias=bias, **kwargs)
        return self.dropout(self.proj(context)), probabilities


class CoatnetAttentionLayer(GradientCheckpointingLayer):
    """x + scale(attention(pool(norm(x)))), then x + scale(mlp(norm(x))); drop path on both branches."""

    def __init__(self, config: VitfCoatnetConfig, stage: int, narrow: int, stride: int, drop_path_rate: float):
        super().__init__()
        wide, norm = config.hidden_sizes[stage], NORMS[config.norm_type]
        shrinks = stride == 2
        self.shortcut = CoatnetShortcut(config, narrow, wide, config.shortcut_bias) if shrinks else nn.Identity()
        self.layernorm_before = norm(narrow, eps=config.layer_norm_eps)
        self.pool = make_pool(config.pool_type) if shrinks else nn.Identity()
        self.attention = CoatnetAttention(config, stage, narrow)
        self.layernorm_after = norm(wide, eps=config.layer_norm_eps)
        self.mlp = Mlp(config, wide, int(wide * config.mlp_ratio))
        self.layer_scale1 = self.layer_scale2 = nn.Identity()
        if config.layer_scale_init_value is not None:
            self.layer_scale1 = LayerScale(wide, config.layer_scale_init_value)
            self.layer_scale2 = LayerScale(wide, config.layer_scale_init_value)
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, feature_map: torch.Tensor, grid: tuple[int, int], **kwargs) -> torch.Tensor:
        tokens = to_tokens(self.pool(self.layernorm_before(feature_map)))
        tokens = self.drop_path(self.layer_scale1(self.attention(tokens, grid, **kwargs)[0]))
        feature_map = self.shortcut(feature_map) + to_map(tokens, grid)
        tokens = self.mlp(to_tokens(self.layernorm_after(feature_map)))
        return feature_map + to_map(self.drop_path(self.layer_scale2(tokens)), grid)


class CoatnetStage(nn.Module):
    """
    Convolutional layers, then attention layers; the first of all halves the map. `grid` is the map's size after it.
    """

    def __init__(self, config: VitfCoatnetConfig, stage: int, drop_path_rates: list[float]):
        super().__init__()
        narrow, wide = config.stage_channels[stage : stage + 2]
        self.layers = nn.ModuleList()
        for number, rate in enumerate(drop_path_rates):
            is_conv = number < config.conv_depths[stage]
            layer = CONV_LAYERS[config.conv_layer_type] if is_conv else CoatnetAttentionLayer
            self.layers.append(layer(config, stage, wide if number else narrow, 1 if number else 2, rate))

    def forward(self, hidden_states: torch.Tensor, grid: tuple[int, int], **kwargs) -> torch.Tensor:
        for layer in self.layers:
            hidden_states = layer(hidden_states, grid, **kwargs)
        return hidden_states


class CoatnetPatchEmbeddings(nn.Module):
    """
    The stem, two 3 x 3 convolutions: (B, num_channels, H, W) to (B, C, ceil(H / patch_size), ceil(W / patch_size)).
    """

    def __init__(self, config: VitfCoatnetConfig):
        super().__init__()
        self.num_channels = config.num_channels
        first, second = config.stem_channels
        self.conv1 = nn.Conv2d(config.num_channels, first, 3, pair(config.patch_size), padding=1, bias=False)
        # The norm is that of the convolutional layers.
        is_batch = config.conv_layer_type == "mbconv"
        self.norm = BatchNorm2d(first) if is_batch else CoatnetMapNorm(first, eps=config.layer_norm_eps)
        self.activation = ACT2FN[config.conv_act]
        self.conv2 = nn.Conv2d(first, second, 3, padding=1, bias=False)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        check_input(pixel_values, self.num_channels, (1, 1))
        # Behind the first convolution, whose gradient would keep a copy of the pixels.
        feature_map = self.conv1(pixel_values).contiguous(memory_format=torch.channels_last)
        return self.conv2(self.activation(self.norm(feature_map)))


def init_by_fan_out(weight: torch.Tensor, groups: int) -> None:
    """
    EfficientNet's: normal with variance 2 / fan-out, the elements of a kernel times the channels of the output by
    group.
    """
    init.normal_(weight, std=(2 * groups * weight.shape[1] / weight.numel()) ** 0.5)


class VitfCoatnetPreTrainedModel(VitfPreTrainedModel):
    config: VitfCoatnetConfig
    base_model_prefix = "coatnet"
    _supports_flash_attn = False  # it has no place for the bias
    _no_split_modules = ["CoatnetPatchEmbeddings", "CoatnetConvLayer", "CoatnetConvNextLayer", "CoatnetAttentionLayer"]
    _can_record_outputs = {"hidden_states": CoatnetStage, "attentions": CoatnetAttention}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        is_normal = self.config.initialization == "normal"
        if isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            init_batch_norm(module)
        elif isinstance(module, LayerScale):
            init.constant_(module.weight, module.init_value)
        elif isinstance(module, (nn.Linear, nn.Conv2d)):
            init_torch_default(module)  # those of the layers below follow, from their parents
        elif isinstance(module, (CoatnetPatchEmbeddings, CoatnetConvLayer)):
            for layer in self.linear_layers(module):
                if is_normal:
                    init.normal_(layer.weight, std=self.config.initializer_range)
                else:
                    init_by_fan_out(layer.weight, getattr(layer, "groups", 1))
        elif isinstance(module, CoatnetAttentionLayer):
            for layer in self.linear_layers(module):
                self.init_attention_weight(layer.weight)
            if not is_normal:
                for layer in (module.mlp.fc1, module.mlp.fc2):
                    init.normal_(layer.bias, std=1e-6)
        elif isinstance(module, CoatnetTableBias):
            init.trunc_normal_(module.weight, std=self.config.initializer_range)
        elif isinstance(module, CoatnetMlpBias):
            for weight, bias in ((module.fc1_weight, module.fc1_bias), (module.fc2_weight, module.fc2_bias)):
                self.init_attention_weight(weight)
                init.normal_(bias, std=0.0 if is_normal else 1e-6)

    def linear_layers(self, module: nn.Module) -> list[nn.Linear | nn.Conv2d]:
        """The linear and convolution layers inside a layer, their biases set to zero."""
        layers = [layer for layer in module.modules() if isinstance(layer, (nn.Linear, nn.Conv2d))]
        for layer in layers:
            if layer.bias is not None:
                init.zeros_(layer.bias)
        return layers

    def init_attention_weight(self, weight: torch.Tensor) -> None:
        if self.config.initialization == "normal":
            init.normal_(weight, std=self.config.initializer_range)
        else:
            init.xavier_uniform_(weight)


class VitfCoatnetModel(VitfCoatnetPreTrainedModel):
    """
    The bare encoder. `pooler_output` is the mean of the last map, normalised before it is taken, or after it with a
    tanh layer after it (`representation_size`).

    Args:
        add_pooling_layer (`bool`, *optional*, defaults to `True`):
            Whether to make that layer; heads that do not read `pooler_output` would train it in vain.
    """

    num_prefix_tokens = 0

    def __init__(self, config: VitfCoatnetConfig, add_pooling_layer: bool = True):
        super().__init__(config)
        self.patch_embeddings = CoatnetPatchEmbeddings(config)
        rates = iter(drop_path_rates(config.drop_path_rate, sum(config.depths)))
        self.stages = nn.ModuleList(
            [
                CoatnetStage(config, stage, [next(rates) for _ in range(depth)])
                for stage, depth in enumerate(config.depths)
            ]
        )
        self.layernorm = NORMS[config.norm_type](config.hidden_sizes[-1], eps=config.layer_norm_eps)
        self.pre_logits = None
        if add_pooling_layer and config.representation_size is not None:
            self.pre_logits = nn.Linear(config.hidden_sizes[-1], config.representation_size)
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
            pixel_values (`torch.Tensor` of shape `(B, num_channels, H, W)`): Any H and W. bool_masked_pos
            (`torch.BoolTensor` of shape `(B, ceil(H / patch_size) * ceil(W / patch_size))`, *optional*):
                Pixels of the stem's map to mask.
            mask_token (`torch.Tensor` of shape `(1, 1, C)`, *optional*): What masked ones become.

        Returns:
            `last_hidden_state` (B, h * w, C) of the last stage after the norm; `pooler_output` (B, C or
            `representation_size`); `hidden_states`: the input of the first stage and the output of each, (B, C, h, w)
            with the sizes of the stage; `attentions`: (B, heads, N, N) of each attention layer.
        """
        grids = self.config.feature_map_sizes(*static_size(pixel_values.shape[-2:]))
        hidden_states = self.patch_embeddings(pixel_values)
        if bool_masked_pos is not None:
            hidden_states = to_map(masked_embeddings(to_tokens(hidden_states), bool_masked_pos, mask_token), grids[0])
        for stage, grid in zip(self.stages, grids[1:], strict=True):
            hidden_states = stage(hidden_states, grid, **kwargs)
        last_map = self.layernorm(hidden_states)
        if self.pre_logits is None:
            pooled = last_map.mean((2, 3))
        else:
            pooled = self.layernorm(hidden_states.mean((2, 3), keepdim=True)).flatten(1)
            pooled = torch.tanh(self.pre_logits(pooled))
        return BaseModelOutputWithPooling(last_hidden_state=to_tokens(last_map), pooler_output=pooled)


class VitfCoatnetForImageClassification(ImageClassificationMixin, VitfCoatnetPreTrainedModel):
    """CoAtNet with a linear classifier on the pooled output."""

    encoder_class = VitfCoatnetModel


class VitfCoatnetForMaskedImageModeling(MaskedImageModelingMixin, VitfCoatnetPreTrainedModel):
    """CoAtNet that predicts the pixels under masked pixels of the stem's map."""

    encoder_class = VitfCoatnetModel
    encoder_kwargs = {"add_pooling_layer": False}


class VitfCoatnetBackbone(PyramidBackboneMixin, VitfCoatnetPreTrainedModel):
    """CoAtNet as a backbone: the map of the stem and of each stage, that of the last one after the norm."""

    encoder_class = VitfCoatnetModel
    encoder_kwargs = {"add_pooling_layer": False}


__all__ = [
    "VitfCoatnetBackbone",
    "VitfCoatnetForImageClassification",
    "VitfCoatnetForMaskedImageModeling",
    "VitfCoatnetModel",
    "VitfCoatnetPreTrainedModel",
]
