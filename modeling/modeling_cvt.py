"""CvT (arXiv 2103.15808): stages whose tokens and whose queries, keys and values come from convolutions.

Order of operations from microsoft/CvT@f851e68 lib/models/cls_cvt.py.

Shapes: B batch, P prefix tokens (the class token in the last stage, else none), N tokens (prefix, then the map row by
row), M key tokens, C channels, H x W pixels, h heads, (rows, columns) a map's size.
"""

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .attention import attend
from .configuration_cvt import VitfCvtConfig
from .embeddings import check_input
from .layers import (
    BatchNorm2d,
    DropPath,
    Mlp,
    drop_path_rates,
    init_trunc_normal,
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


def to_map(tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """The last tokens of (B, N, C) as a map (B, C, rows, columns), in the memory of the tokens: channels last."""
    return split_dim(tokens[:, -grid[0] * grid[1] :].transpose(1, 2), 2, grid)


class CvtPatchEmbeddings(nn.Module):
    """
    Overlapping patches of pixels or of a map, each projected to a token and normalised: (B, C, h, w) to (B, N, C').
    """

    def __init__(self, config: VitfCvtConfig, stage: int):
        super().__init__()
        self.num_channels = config.hidden_sizes[stage - 1] if stage else config.num_channels
        self.projection = nn.Conv2d(
            self.num_channels,
            config.hidden_sizes[stage],
            kernel_size=config.patch_kernel_sizes[stage],
            stride=config.patch_strides[stage],
            padding=config.patch_paddings[stage],
        )
        self.norm = nn.LayerNorm(config.hidden_sizes[stage], eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, feature_map: torch.Tensor, bool_masked_pos=None, mask_token=None) -> torch.Tensor:
        # Any size that one kernel fits; what is smaller is told its size.
        needed = self.projection.kernel_size[0] - 2 * self.projection.padding[0]
        multiple = tuple(needed if side < needed else 1 for side in feature_map.shape[-2:])
        check_input(feature_map, self.num_channels, multiple)
        feature_map = self.projection(feature_map)
        tokens = self.norm(feature_map.flatten(2).transpose(1, 2))
        return self.dropout(masked_embeddings(tokens, bool_masked_pos, mask_token))


class CvtProjection(nn.Module):
    """
    A depth-wise convolution over the map, batch norm, and a linear layer. The prefix tokens pass only through the
    linear layer.
    """

    def __init__(self, config: VitfCvtConfig, hidden_size: int, stride: int):
        super().__init__()
        kernel = config.kernel_size
        self.conv = nn.Conv2d(
            hidden_size, hidden_size, kernel, stride, padding=kernel // 2, groups=hidden_size, bias=False
        )
        self.norm = BatchNorm2d(hidden_size)
        self.linear = nn.Linear(hidden_size, hidden_size, bias=config.qkv_bias)

    def forward(self, prefix: torch.Tensor, feature_map: torch.Tensor) -> torch.Tensor:
        """Prefix tokens (B, P, C) and a map (B, C, h, w) to tokens (B, P + ceil(h / stride) * ceil(w / stride), C)."""
        tokens = self.norm(self.conv(feature_map)).flatten(2).transpose(1, 2)
        if prefix.shape[1]:
            tokens = torch.cat((prefix, tokens), dim=1)
        return self.linear(tokens)


class CvtAttention(nn.Module):
    """Attention to fewer tokens than there are queries; scores are scaled by the width of all heads together."""

    is_causal = False

    def __init__(self, config: VitfCvtConfig, hidden_size: int, num_heads: int):
        super().__init__()
        self.config = config
        self.num_heads = num_heads
        self.scaling = hidden_size**-0.5
        self.query = CvtProjection(config, hidden_size, stride=1)
        self.key = CvtProjection(config, hidden_size, config.kv_stride)
        self.value = CvtProjection(config, hidden_size, config.kv_stride)
        self.proj = nn.Linear(hidden_size, hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self, hidden_states: torch.Tensor, grid: tuple[int, int], **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(B, N, C), whose last tokens are a map of `grid`, to (B, N, C), and the attention map (B, h, N, M)."""
        prefix = hidden_states[:, : hidden_states.shape[1] - grid[0] * grid[1]]
        feature_map = to_map(hidden_states, grid)
        query, key, value = (
            split_dim(projection(prefix, feature_map), 2, (self.num_heads, -1)).transpose(1, 2)
            for projection in (self.query, self.key, self.value)
        )
        context, probabilities = attend(self, query, key, value, self.scaling, **kwargs)
        return self.dropout(self.proj(context)), probabilities


class CvtLayer(GradientCheckpointingLayer):
    """x + attention(norm(x)), then x + mlp(norm(x)); drop path on both branches."""

    def __init__(self, config: VitfCvtConfig, stage: int, drop_path_rate: float):
        super().__init__()
        hidden_size = config.hidden_sizes[stage]
        self.layernorm_before = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.attention = CvtAttention(config, hidden_size, config.num_heads[stage])
        self.layernorm_after = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.mlp = Mlp(config, hidden_size, int(hidden_size * config.mlp_ratio))
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, hidden_states: torch.Tensor, grid: tuple[int, int], **kwargs) -> torch.Tensor:
        hidden_states = hidden_states + self.drop_path(
            self.attention(self.layernorm_before(hidden_states), grid, **kwargs)[0]
        )
        return hidden_states + self.drop_path(self.mlp(self.layernorm_after(hidden_states)))


class CvtStage(nn.Module):
    """Tokens of the map before it, except in the first stage, a class token in the last one, then layers."""

    def __init__(self, config: VitfCvtConfig, stage: int):
        super().__init__()
        is_last = stage == len(config.depths) - 1
        self.patch_embeddings = CvtPatchEmbeddings(config, stage) if stage else None
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_sizes[stage])) if is_last else None
        rates = drop_path_rates(config.drop_path_rate if is_last else 0.0, config.depths[stage])
        self.layers = nn.ModuleList([CvtLayer(config, stage, rate) for rate in rates])

    def forward(
        self, hidden_states: torch.Tensor, grid_before: tuple[int, int], grid: tuple[int, int], **kwargs
    ) -> torch.Tensor:
        """Tokens on the grid of the stage before it to those on its own `grid`."""
        if self.patch_embeddings is not None:
            hidden_states = self.patch_embeddings(to_map(hidden_states, grid_before))
        if self.cls_token is not None:
            hidden_states = torch.cat((self.cls_token.expand(hidden_states.shape[0], -1, -1), hidden_states), dim=1)
        for layer in self.layers:
            hidden_states = layer(hidden_states, grid, **kwargs)
        return hidden_states


class VitfCvtPreTrainedModel(VitfPreTrainedModel):
    config: VitfCvtConfig
    base_model_prefix = "cvt"
    _no_split_modules = ["CvtPatchEmbeddings", "CvtLayer"]
    _can_record_outputs = {"hidden_states": CvtStage, "attentions": CvtAttention}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        init_trunc_normal(module, self.config.initializer_range)
        if isinstance(module, CvtStage) and module.cls_token is not None:
            init.trunc_normal_(module.cls_token, std=self.config.initializer_range)


class VitfCvtModel(VitfCvtPreTrainedModel):
    """The bare encoder. `pooler_output` is the class token after the last norm."""

    num_prefix_tokens = 1
    exports_any_size = True

    def __init__(self, config: VitfCvtConfig):
        super().__init__(config)
        self.patch_embeddings = CvtPatchEmbeddings(config, 0)
        self.stages = nn.ModuleList([CvtStage(config, stage) for stage in range(len(config.depths))])
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
            pixel_values (`torch.Tensor` of shape `(B, num_channels, H, W)`): Any H and W that one kernel fits.
            bool_masked_pos (`torch.BoolTensor` of shape `(B, ceil(H / patch_size) * ceil(W / patch_size))`,
            *optional*):
                Cells to mask. Those at the border that no token stands for are left out.
            mask_token (`torch.Tensor` of shape `(1, 1, C)`, *optional*): What tokens of masked cells become.

        Returns:
            `last_hidden_state` (B, 1 + N, C) of the last stage after the norm, class token first; `pooler_output` (B,
            C); `hidden_states`: the input of the first stage and the output of each, (B, N, C) with N and C of the
            stage; `attentions`: (B, heads, N, M) of each layer, the class token among N and M in the last stage.
        """
        height, width = pixel_values.shape[-2:]
        grids = self.config.feature_map_sizes(height, width)
        if bool_masked_pos is not None:
            rows, columns = self.config.stage_strides[0]
            cells = bool_masked_pos.reshape(-1, -(-height // rows), -(-width // columns))
            bool_masked_pos = cells[:, : grids[0][0], : grids[0][1]]
        hidden_states = self.patch_embeddings(pixel_values, bool_masked_pos, mask_token)
        for number, stage in enumerate(self.stages):
            hidden_states = stage(hidden_states, grids[number], grids[number + 1], **kwargs)
        hidden_states = self.layernorm(hidden_states)
        return BaseModelOutputWithPooling(last_hidden_state=hidden_states, pooler_output=hidden_states[:, 0])


class VitfCvtForImageClassification(ImageClassificationMixin, VitfCvtPreTrainedModel):
    """CvT with a linear classifier on the class token."""

    encoder_class = VitfCvtModel

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self and self.config.num_labels > 0:  # outside of what the original initialises
            bound = self.config.pooler_output_size**-0.5
            init.uniform_(self.classifier.bias, -bound, bound)


class VitfCvtForMaskedImageModeling(MaskedImageModelingMixin, VitfCvtPreTrainedModel):
    """CvT that predicts the pixels of masked cells."""

    encoder_class = VitfCvtModel


class VitfCvtBackbone(PyramidBackboneMixin, VitfCvtPreTrainedModel):
    """CvT as a backbone: the map of each stage, that of the last one after the norm."""

    encoder_class = VitfCvtModel


__all__ = [
    "VitfCvtBackbone",
    "VitfCvtForImageClassification",
    "VitfCvtForMaskedImageModeling",
    "VitfCvtModel",
    "VitfCvtPreTrainedModel",
]
