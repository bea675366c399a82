"""ConViT (arXiv 2103.10697): gated positional self-attention over the patches, then plain layers with the class token.

Order of operations from facebookresearch/convit@0a9340a convit.py (timm 0.3.2 for patches and feed-forward layers).

Shapes: B batch, N tokens (patches row by row; the class token first once it has joined), C channels, H x W pixels,
r x c grid of patches, h heads, d head width.
"""

import math

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .attention import SelfAttention, attend
from .caches import Resizable
from .configuration_convit import VitfConvitConfig
from .configuration_vitf import pair
from .embeddings import PatchEmbeddings, PositionEmbeddings
from .layers import (
    DropPath,
    FrozenParametersMixin,
    Mlp,
    drop_path_rates,
    init_trunc_normal,
)
from .modeling_vitf import (
    ImageClassificationMixin,
    MaskedImageModelingMixin,
    VitfBackboneMixin,
    VitfPreTrainedModel,
    encoder_forward,
    masked_embeddings,
)
from .shapes import split_dim


class ConvitEmbeddings(nn.Module):
    """
    (B, num_channels, H, W) to patch tokens (B, N, C), positions added, and the class token (B, 1, C), without one.
    """

    def __init__(self, config: VitfConvitConfig):
        super().__init__()
        self.patch_embeddings = PatchEmbeddings(config.num_channels, config.hidden_size, config.patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.position_embeddings = None
        if config.position_embedding_type == "learned":
            self.position_embeddings = PositionEmbeddings(
                config.hidden_size,
                self.patch_embeddings.grid(*pair(config.image_size)),
                num_prefix_tokens=0,
                interpolation="bicubic",
            )
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, pixel_values, bool_masked_pos=None, mask_token=None) -> tuple[torch.Tensor, torch.Tensor]:
        patches = self.patch_embeddings(pixel_values)
        patches = masked_embeddings(patches, bool_masked_pos, mask_token)
        grid = self.patch_embeddings.grid(*pixel_values.shape[-2:])
        if self.position_embeddings is not None:
            patches = patches + self.position_embeddings(grid, patches)
        patches = self.dropout(patches)
        return patches, self.cls_token.expand(patches.shape[0], -1, -1)


class ConvitPositionalAttention(FrozenParametersMixin, Resizable):
    """
    Attention by relative position only: for a key `dx` columns and `dy` rows from the query the softmax of
    w0 dx + w1 dy + w2 (dx^2 + dy^2), with `weight` (h, 3).

    Rows and columns enter as a sum, so the softmax is the product of one over rows and one over columns. These two are
    all that is computed: 2 N (r + c) d operations instead of 2 N^2 d. (The original makes the whole map.)
    """

    # A softmax does not see what is added to all keys alike: it is carried along only.
    frozen_parameters = ("bias",)

    def __init__(self, num_heads: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_heads, 3))
        self.bias = nn.Parameter(torch.zeros(num_heads))

    def axis_map(self, linear: torch.Tensor, length: int) -> torch.Tensor:
        """The softmax along one axis, (h, length, length); `linear` (h) is the factor of the distance."""
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        places = torch.arange(length, device=self.weight.device, dtype=dtype)
        distance = places[None] - places[:, None]
        scores = linear.to(dtype)[:, None, None] * distance + self.weight[:, 2].to(dtype)[:, None, None] * distance**2
        return scores.softmax(-1).to(self.weight.dtype)

    def maps(self, grid: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        """For a grid of `(r, c)` patches the softmax over rows (h, r, r) and that over columns (h, c, c)."""

        def make():
            return self.axis_map(self.weight[:, 1], grid[0]), self.axis_map(self.weight[:, 0], grid[1])

        return self.for_size(grid, make)

    def forward(self, value: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """Values (B, h, N, d) to the context (B, h, N, d)."""
        rows, columns = self.maps(grid)
        context = torch.matmul(columns[:, None], split_dim(value, 2, grid)).flatten(3)  # (B, h, r, c * d)
        return torch.matmul(rows, context).view(value.shape)

    def full_map(self, grid: tuple[int, int]) -> torch.Tensor:
        """The map (h, N, N)."""
        rows, columns = self.maps(grid)
        return (rows[:, :, None, :, None] * columns[:, None, :, None, :]).flatten(3, 4).flatten(1, 2)


class ConvitGatedAttention(nn.Module):
    """(1 - sigmoid(gate)) * attention by content + sigmoid(gate) * attention by position, one gate a head."""

    is_causal = False

    def __init__(self, config: VitfConvitConfig):
        super().__init__()
        self.config = config
        self.num_heads = config.num_attention_heads
        self.scaling = (config.hidden_size // config.num_attention_heads) ** -0.5
        self.query_key = nn.Linear(config.hidden_size, 2 * config.hidden_size, bias=config.qkv_bias)
        self.value = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.position = ConvitPositionalAttention(self.num_heads)
        self.gate = nn.Parameter(torch.ones(self.num_heads))
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self, hidden_states: torch.Tensor, grid: tuple[int, int], **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(B, N, C), the patches of `grid`, to (B, N, C) and the gated map (B, h, N, N)."""
        batch, tokens, _ = hidden_states.shape
        query, key = self.query_key(hidden_states).view(batch, tokens, 2, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        value = self.value(hidden_states).view(batch, tokens, self.num_heads, -1).transpose(1, 2)
        content, probabilities = attend(self, query, key, value, self.scaling, **kwargs)
        gate = self.gate.sigmoid().to(content.dtype)  # under autocast parameters are wider than states
        # Both maps have rows that sum to 1, and so has what the original divides by the sum of its rows.
        by_position = self.position(value, grid).transpose(1, 2)
        context = torch.lerp(content.view(by_position.shape), by_position, gate[:, None]).flatten(2)
        if probabilities is not None:
            probabilities = torch.lerp(probabilities, self.position.full_map(grid).to(gate.dtype), gate[:, None, None])
        return self.dropout(self.proj(context)), probabilities


class ConvitLayer(GradientCheckpointingLayer):
    """x + attention(norm(x)), then x + mlp(norm(x)); drop path on both branches."""

    def __init__(self, config: VitfConvitConfig, attention: nn.Module, drop_path_rate: float):
        super().__init__()
        self.layernorm_before = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = attention
        self.layernorm_after = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = Mlp(config, config.hidden_size, round(config.mlp_ratio * config.hidden_size))
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> torch.Tensor:
        hidden_states = hidden_states + self.drop_path(
            self.attention(self.layernorm_before(hidden_states), **kwargs)[0]
        )
        return hidden_states + self.drop_path(self.mlp(self.layernorm_after(hidden_states)))


def convolution_weights(weight: torch.Tensor, strength: float) -> torch.Tensor:
    """
    The position weights (h, 3) with which k * k heads look like a k x k convolution, k = floor(sqrt(h)): head a + k b
    has its centre a rows and b columns from the kernel's corner. Heads beyond them keep their row of `weight`.
    (`local_init`)
    """
    side = math.isqrt(weight.shape[0])
    offsets = 2 * (torch.arange(side, dtype=weight.dtype, device=weight.device) - (side - 1) / 2)
    columns, rows = offsets.repeat_interleave(side), offsets.repeat(side)
    kernel = torch.stack((columns, rows, torch.full_like(rows, -1.0)), dim=1) * strength
    return torch.cat((kernel, weight[side * side :] * strength))


class VitfConvitPreTrainedModel(VitfPreTrainedModel):
    config: VitfConvitConfig
    base_model_prefix = "convit"
    _no_split_modules = ["ConvitEmbeddings", "ConvitLayer"]
    _can_record_outputs = {"hidden_states": ConvitLayer, "attentions": [ConvitGatedAttention, SelfAttention]}
    # The attention by position decays: no_weight_decay of the original names the table and the token only.
    without_weight_decay = (r"position_embeddings", r"tokens?$")

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        init_trunc_normal(module, std)
        if isinstance(module, PositionEmbeddings):
            init.trunc_normal_(module.weight, std=std)
        elif isinstance(module, ConvitEmbeddings):
            init.trunc_normal_(module.cls_token, std=std)
        elif isinstance(module, ConvitPositionalAttention):
            random = nn.init.trunc_normal_(torch.empty_like(module.weight), std=std)
            init.copy_(module.weight, convolution_weights(random, self.config.locality_strength))
            init.zeros_(module.bias)
        elif isinstance(module, ConvitGatedAttention):
            init.eye_(module.value.weight)
            init.ones_(module.gate)


class VitfConvitModel(VitfConvitPreTrainedModel):
    """The bare encoder. `pooler_output` is the class token after the last norm."""

    num_prefix_tokens = 1

    def __init__(self, config: VitfConvitConfig):
        super().__init__(config)
        self.embeddings = ConvitEmbeddings(config)
        self.layers = nn.ModuleList()
        for i, rate in enumerate(drop_path_rates(config.drop_path_rate, config.num_hidden_layers)):
            if i < config.local_up_to_layer:
                attention = ConvitGatedAttention(config)
            else:
                attention = SelfAttention(config, config.hidden_size, config.num_attention_heads, config.qkv_bias)
            self.layers.append(ConvitLayer(config, attention, rate))
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
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
            pixel_values (`torch.Tensor` of shape `(B, num_channels, H, W)`): H and W multiples of the patch size.
            bool_masked_pos (`torch.BoolTensor` of shape `(B, number of patches)`, *optional*): Patches to mask.
            mask_token (`torch.Tensor` of shape `(1, 1, C)`, *optional*): What masked patches become.

        Returns:
            `last_hidden_state` (B, N, C), after the last norm; `pooler_output` (B, C); `hidden_states`: the input of
            the first layer and the output of each, up to `local_up_to_layer` without class token; `attentions`: (B, h,
            N, N) a layer, with the N of that layer.
        """
        hidden_states, cls_token = self.embeddings(pixel_values, bool_masked_pos, mask_token)
        grid = self.embeddings.patch_embeddings.grid(*pixel_values.shape[-2:])
        local = self.config.local_up_to_layer
        for layer in self.layers[:local]:
            hidden_states = layer(hidden_states, grid=grid, **kwargs)
        hidden_states = torch.cat((cls_token, hidden_states), dim=1)
        for layer in self.layers[local:]:
            hidden_states = layer(hidden_states, **kwargs)
        hidden_states = self.layernorm(hidden_states)
        return BaseModelOutputWithPooling(last_hidden_state=hidden_states, pooler_output=hidden_states[:, 0])


class VitfConvitForImageClassification(ImageClassificationMixin, VitfConvitPreTrainedModel):
    """ConViT with a linear classifier on the class token."""

    encoder_class = VitfConvitModel


class VitfConvitForMaskedImageModeling(MaskedImageModelingMixin, VitfConvitPreTrainedModel):
    """ConViT that predicts the pixels of masked patches."""

    encoder_class = VitfConvitModel


class VitfConvitBackbone(VitfBackboneMixin, VitfConvitPreTrainedModel):
    """ConViT as a backbone: the patches of chosen layers as feature maps, all at the stride of the patch."""

    encoder_class = VitfConvitModel


__all__ = [
    "VitfConvitBackbone",
    "VitfConvitForImageClassification",
    "VitfConvitForMaskedImageModeling",
    "VitfConvitModel",
    "VitfConvitPreTrainedModel",
]
