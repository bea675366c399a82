"""LocalViT (arXiv 2104.05707) on the body of TNT (arXiv 2103.00112): a transformer among the pixel tokens of each patch
and one among the patches, and feed-forward layers with a depth-wise convolution over the map of patches.

Order of operations from ofsoundof/LocalViT@f497260 models/localvit_tnt.py, tnt.py.

Shapes: B batch, N patches, row by row, P pixel tokens of a patch, row by row, C channels of a patch token, c of a pixel
token, H x W pixels, h x w grid of patches.
"""

import torch
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .attention import SelfAttention
from .configuration_localvit_tnt import VitfLocalvitTntConfig
from .configuration_vitf import pair
from .embeddings import PatchEmbeddings, PositionEmbeddings, check_input
from .layers import DropPath, Mlp, drop_path_rates, init_trunc_normal
from .modeling_localvit import LocalvitFeedForward
from .modeling_vitf import (
    ImageClassificationMixin,
    MaskedImageModelingMixin,
    VitfBackboneMixin,
    VitfPreTrainedModel,
    encoder_forward,
    masked_embeddings,
)
from .shapes import split_dim


class LocalvitTntPatchEmbeddings(PatchEmbeddings):
    """Pixel tokens by a 7x7 convolution, gathered by patch: (B, num_channels, H, W) to (B, N, P * c)."""

    def __init__(self, config: VitfLocalvitTntConfig):
        width = config.pixel_hidden_size
        super().__init__(config.num_channels, width, config.patch_size)
        self.pixel_grid = config.pixel_grid
        self.projection = nn.Conv2d(config.num_channels, width, 7, config.pixel_stride, padding=3)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        check_input(pixel_values, self.num_channels, self.patch_size)
        rows, columns = self.pixel_grid
        blocks = split_dim(split_dim(self.projection(pixel_values), 3, (-1, columns)), 2, (-1, rows))
        return blocks.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2).flatten(2)


class LocalvitTntEmbeddings(nn.Module):
    """(B, num_channels, H, W) to tokens (B, 1 + N, C), the class token first, and pixel tokens (B * N, P, c)."""

    def __init__(self, config: VitfLocalvitTntConfig):
        super().__init__()
        hidden_size = config.hidden_size
        self.patch_embeddings = LocalvitTntPatchEmbeddings(config)
        rows, columns = config.pixel_grid
        channels = rows * columns * config.pixel_hidden_size
        self.pixel_positions = nn.Parameter(torch.zeros(1, rows * columns, config.pixel_hidden_size))
        self.pixel_layernorm = nn.LayerNorm(channels, eps=config.layer_norm_eps)
        self.projection = nn.Linear(channels, hidden_size)
        self.layernorm = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, hidden_size))
        grid = self.patch_embeddings.grid(*pair(config.image_size))
        self.position_embeddings = PositionEmbeddings(hidden_size, grid, num_prefix_tokens=1, interpolation="bicubic")
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, pixel_values, bool_masked_pos=None, mask_token=None) -> tuple[torch.Tensor, torch.Tensor]:
        # Every layer adds pixel tokens to their patch: those of a masked patch are only positions.
        pixels = masked_embeddings(self.patch_embeddings(pixel_values), bool_masked_pos, None)
        pixels = split_dim(pixels, 2, self.pixel_positions.shape[1:]) + self.pixel_positions
        patches = self.layernorm(self.projection(self.pixel_layernorm(pixels.flatten(2))))
        patches = masked_embeddings(patches, bool_masked_pos, mask_token)
        grid = self.patch_embeddings.grid(*pixel_values.shape[-2:])
        tokens = torch.cat((self.cls_token.expand(patches.shape[0], -1, -1), patches), dim=1)
        return self.dropout(tokens + self.position_embeddings(grid, patches)), pixels.flatten(0, 1)


class LocalvitTntPixelLayer(nn.Module):
    """The transformer within patches: x + attention(norm(x)), then x + mlp(norm(x)), on (B * N, P, c)."""

    def __init__(self, config: VitfLocalvitTntConfig, drop_path_rate: float):
        super().__init__()
        hidden_size = config.pixel_hidden_size
        self.layernorm_before = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.attention = SelfAttention(config, hidden_size, config.num_pixel_attention_heads, config.qkv_bias)
        self.layernorm_after = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.mlp = Mlp(config, hidden_size, int(config.pixel_mlp_ratio * hidden_size))
        self.mlp.activation = ACT2FN[config.pixel_hidden_act]
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, pixels: torch.Tensor, **kwargs) -> torch.Tensor:
        pixels = pixels + self.drop_path(self.attention(self.layernorm_before(pixels), **kwargs)[0])
        return pixels + self.drop_path(self.mlp(self.layernorm_after(pixels)))


class LocalvitTntLayer(GradientCheckpointingLayer):
    """
    Attention within each patch, whose pixel tokens join it; attention among patches; the feed-forward layer on the map.
    """

    def __init__(self, config: VitfLocalvitTntConfig, drop_path_rate: float):
        super().__init__()
        hidden_size, pixel_hidden_size = config.hidden_size, config.pixel_hidden_size
        rows, columns = config.pixel_grid
        self.pixel_layer = LocalvitTntPixelLayer(config, drop_path_rate)
        self.pixel_layernorm = nn.LayerNorm(pixel_hidden_size, eps=config.layer_norm_eps)
        self.pixel_projection = nn.Linear(rows * columns * pixel_hidden_size, hidden_size)
        self.layernorm_before = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.attention = SelfAttention(config, hidden_size, config.num_attention_heads, config.qkv_bias)
        self.drop_path = DropPath(drop_path_rate)
        self.feed_forward = LocalvitFeedForward(config, hidden_size, config.inner_channels, config.se_reduction)

    def forward(
        self, hidden_states: torch.Tensor, pixels: torch.Tensor, grid: tuple[int, int], **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, 1 + N, C) and (B * N, P, c) to the same; `grid` is (h, w)."""
        pixels = self.pixel_layer(pixels, **kwargs)
        cls_token, patches = hidden_states[:, :1], hidden_states[:, 1:]
        patches = patches + self.pixel_projection(self.pixel_layernorm(pixels).view(*patches.shape[:2], -1))
        hidden_states = torch.cat((cls_token, patches), dim=1)
        hidden_states = hidden_states + self.drop_path(
            self.attention(self.layernorm_before(hidden_states), **kwargs)[0]
        )
        cls_token, patches = hidden_states[:, :1], hidden_states[:, 1:]
        return torch.cat((cls_token, self.feed_forward(patches, grid)), dim=1), pixels


class VitfLocalvitTntPreTrainedModel(VitfPreTrainedModel):
    config: VitfLocalvitTntConfig
    base_model_prefix = "localvit_tnt"
    _no_split_modules = ["LocalvitTntEmbeddings", "LocalvitTntLayer"]
    _can_record_outputs = {"hidden_states": LocalvitTntLayer, "attentions": SelfAttention}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        init_trunc_normal(module, std)
        if isinstance(module, PositionEmbeddings):
            init.trunc_normal_(module.weight, std=std)
        elif isinstance(module, LocalvitTntEmbeddings):
            init.trunc_normal_(module.cls_token, std=std)
            init.trunc_normal_(module.pixel_positions, std=std)


class VitfLocalvitTntModel(VitfLocalvitTntPreTrainedModel):
    """
    The bare encoder. `pooler_output` is the class token after the last norm; the last layer's feed-forward layer
    changes only the patches, so that no classifier trains it.
    """

    def __init__(self, config: VitfLocalvitTntConfig):
        super().__init__(config)
        self.embeddings = LocalvitTntEmbeddings(config)
        rates = drop_path_rates(config.drop_path_rate, config.num_hidden_layers)
        self.layers = nn.ModuleList([LocalvitTntLayer(config, rate) for rate in rates])
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.num_prefix_tokens = 1
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
            `last_hidden_state` (B, 1 + N, C), after the last norm; `pooler_output` (B, C); `hidden_states`: the input
            of the first layer and the output of each; `attentions`: two a layer, within patches (B * N, heads, P, P)
            and among them (B, heads, 1 + N, 1 + N).
        """
        hidden_states, pixels = self.embeddings(pixel_values, bool_masked_pos, mask_token)
        grid = self.embeddings.patch_embeddings.grid(*pixel_values.shape[-2:])
        for layer in self.layers:
            hidden_states, pixels = layer(hidden_states, pixels, grid, **kwargs)
        hidden_states = self.layernorm(hidden_states)
        return BaseModelOutputWithPooling(last_hidden_state=hidden_states, pooler_output=hidden_states[:, 0])


class VitfLocalvitTntForImageClassification(ImageClassificationMixin, VitfLocalvitTntPreTrainedModel):
    """LocalViT on the body of TNT with a linear classifier on the class token."""

    encoder_class = VitfLocalvitTntModel


class VitfLocalvitTntForMaskedImageModeling(MaskedImageModelingMixin, VitfLocalvitTntPreTrainedModel):
    """LocalViT on the body of TNT that predicts the pixels of masked patches."""

    encoder_class = VitfLocalvitTntModel


class VitfLocalvitTntBackbone(VitfBackboneMixin, VitfLocalvitTntPreTrainedModel):
    """
    LocalViT on the body of TNT as a backbone: the patches of chosen layers as feature maps, at the stride of the patch.
    """

    encoder_class = VitfLocalvitTntModel


__all__ = [
    "VitfLocalvitTntBackbone",
    "VitfLocalvitTntForImageClassification",
    "VitfLocalvitTntForMaskedImageModeling",
    "VitfLocalvitTntModel",
    "VitfLocalvitTntPreTrainedModel",
]
