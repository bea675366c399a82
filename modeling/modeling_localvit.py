"""LocalViT (arXiv 2104.05707) on the body of DeiT: feed-forward layers with a depth-wise convolution over the map of
patches.

Order of operations from ofsoundof/LocalViT@f497260 models/localvit.py (timm 0.3.2 vision_transformer.py around the
blocks).

Shapes: B batch, N tokens (class, then patches row by row), C channels, D channels inside a feed-forward layer, H x W
pixels, h x w grid of patches.
"""

import math

import torch
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .attention import SelfAttention
from .configuration_localvit import VitfLocalvitConfig
from .configuration_vitf import pair
from .embeddings import PatchEmbeddings, PositionEmbeddings
from .layers import (
    BatchNorm2d,
    DropPath,
    drop_path_rates,
    init_torch_default,
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


class LocalvitEmbeddings(nn.Module):
    """(B, num_channels, H, W) to tokens (B, N, C): class token, patches; positions added to all."""

    def __init__(self, config: VitfLocalvitConfig):
        super().__init__()
        hidden_size = config.hidden_size
        self.patch_embeddings = PatchEmbeddings(config.num_channels, hidden_size, config.patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, hidden_size))
        self.position_embeddings = PositionEmbeddings(
            hidden_size,
            self.patch_embeddings.grid(*pair(config.image_size)),
            num_prefix_tokens=1,
            interpolation="bicubic",
        )
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, pixel_values, bool_masked_pos=None, mask_token=None) -> torch.Tensor:
        patches = self.patch_embeddings(pixel_values)
        patches = masked_embeddings(patches, bool_masked_pos, mask_token)
        grid = self.patch_embeddings.grid(*pixel_values.shape[-2:])
        tokens = torch.cat((self.cls_token.expand(patches.shape[0], -1, -1), patches), dim=1)
        return self.dropout(tokens + self.position_embeddings(grid, patches))


class LocalvitSqueezeExcitation(nn.Module):
    """Weights the channels of (B, D, h, w) by two layers on their means."""

    def __init__(self, channels: int, squeezed: int):
        super().__init__()
        self.fc1 = nn.Linear(channels, squeezed)
        self.fc2 = nn.Linear(squeezed, channels)
        self.gate = nn.Hardsigmoid()

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        weights = self.gate(self.fc2(self.fc1(hidden_states.mean((2, 3))).relu()))
        return hidden_states * weights[:, :, None, None]


class LocalvitEfficientChannelAttention(nn.Module):
    """Weights the channels of (B, D, h, w) by a convolution over the means of neighbouring ones."""

    def __init__(self, channels: int, gate: nn.Module):
        super().__init__()
        size = int((math.log2(channels) + 1) / 2)
        size += 1 - size % 2  # the next odd number
        self.conv = nn.Conv1d(1, 1, size, padding=size // 2, bias=False)
        self.gate = gate

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        means = hidden_states.mean((2, 3))[:, None]
        return hidden_states * self.gate(self.conv(means)).transpose(1, 2)[..., None]


# Name of a channel attention to what makes it from the number of channels and from that of squeezed ones.
CHANNEL_ATTENTION = {
    "none": lambda channels, squeezed: nn.Identity(),
    "se": LocalvitSqueezeExcitation,
    "eca": lambda channels, squeezed: LocalvitEfficientChannelAttention(channels, nn.Sigmoid()),
    "eca_hard": lambda channels, squeezed: LocalvitEfficientChannelAttention(channels, nn.Hardsigmoid()),
}


class LocalvitFeedForward(nn.Module):
    """
    x + block(x) on the map of patches: 1x1, depth-wise 3x3 and 1x1 convolutions, each with batch norm.

    Args:
        config: Gives `hidden_act` and `channel_attention`.
        channels (`int`): C. inner (`int`): D. se_reduction (`int`): D over the channels that `"se"` squeezes them to.
    """

    def __init__(self, config, channels: int, inner: int, se_reduction: int):
        super().__init__()
        self.expansion = nn.Conv2d(channels, inner, 1, bias=False)
        self.expansion_norm = BatchNorm2d(inner)
        self.depthwise = nn.Conv2d(inner, inner, 3, padding=1, groups=inner, bias=False)
        self.depthwise_norm = BatchNorm2d(inner)
        self.channel_attention = CHANNEL_ATTENTION[config.channel_attention](inner, inner // se_reduction)
        self.reduction = nn.Conv2d(inner, channels, 1, bias=False)
        self.reduction_norm = BatchNorm2d(channels)
        self.activation = ACT2FN[config.hidden_act]

    def forward(self, patches: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """(B, h * w, C) to the same; `grid` is (h, w)."""
        feature_map = split_dim(patches.transpose(1, 2), 2, grid)
        hidden_states = self.activation(self.expansion_norm(self.expansion(feature_map)))
        hidden_states = self.activation(self.depthwise_norm(self.depthwise(hidden_states)))
        hidden_states = self.channel_attention(hidden_states)
        feature_map = feature_map + self.reduction_norm(self.reduction(hidden_states))
        return feature_map.flatten(2).transpose(1, 2)


class LocalvitLayer(GradientCheckpointingLayer):
    """
    x + attention(norm(x)) with drop path, then the feed-forward layer on only the patches, without norm or drop path.
    """

    def __init__(self, config: VitfLocalvitConfig, drop_path_rate: float):
        super().__init__()
        hidden_size = config.hidden_size
        self.layernorm_before = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.attention = SelfAttention(config, hidden_size, config.num_attention_heads, config.qkv_bias)
        self.drop_path = DropPath(drop_path_rate)
        self.feed_forward = LocalvitFeedForward(config, hidden_size, config.inner_channels, config.se_reduction)

    def forward(self, hidden_states: torch.Tensor, grid: tuple[int, int], **kwargs) -> torch.Tensor:
        """(B, 1 + h * w, C) to the same; `grid` is (h, w)."""
        hidden_states = hidden_states + self.drop_path(
            self.attention(self.layernorm_before(hidden_states), **kwargs)[0]
        )
        cls_token, patches = hidden_states[:, :1], hidden_states[:, 1:]
        return torch.cat((cls_token, self.feed_forward(patches, grid)), dim=1)


class VitfLocalvitPreTrainedModel(VitfPreTrainedModel):
    config: VitfLocalvitConfig
    base_model_prefix = "localvit"
    _no_split_modules = ["LocalvitEmbeddings", "LocalvitLayer"]
    _can_record_outputs = {"hidden_states": LocalvitLayer, "attentions": SelfAttention}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        init_trunc_normal(module, std)
        if isinstance(module, nn.Conv1d):
            init_torch_default(module)
        elif isinstance(module, PositionEmbeddings):
            init.trunc_normal_(module.weight, std=std)
        elif isinstance(module, LocalvitEmbeddings):
            init.trunc_normal_(module.cls_token, std=std)


class VitfLocalvitModel(VitfLocalvitPreTrainedModel):
    """
    The bare encoder. `pooler_output` is the class token after the last norm; the last layer's feed-forward layer
    changes only the patches, so that no classifier trains it.
    """

    def __init__(self, config: VitfLocalvitConfig):
        super().__init__(config)
        self.embeddings = LocalvitEmbeddings(config)
        rates = drop_path_rates(config.drop_path_rate, config.num_hidden_layers)
        self.layers = nn.ModuleList([LocalvitLayer(config, rate) for rate in rates])
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
            `last_hidden_state` (B, N, C), after the last norm; `pooler_output` (B, C); `hidden_states`: the input of
            the first layer and the output of each; `attentions`: (B, heads, N, N) a layer.
        """
        hidden_states = self.embeddings(pixel_values, bool_masked_pos, mask_token)
        grid = self.embeddings.patch_embeddings.grid(*pixel_values.shape[-2:])
        for layer in self.layers:
            hidden_states = layer(hidden_states, grid, **kwargs)
        hidden_states = self.layernorm(hidden_states)
        return BaseModelOutputWithPooling(last_hidden_state=hidden_states, pooler_output=hidden_states[:, 0])


class VitfLocalvitForImageClassification(ImageClassificationMixin, VitfLocalvitPreTrainedModel):
    """LocalViT with a linear classifier on the class token."""

    encoder_class = VitfLocalvitModel


class VitfLocalvitForMaskedImageModeling(MaskedImageModelingMixin, VitfLocalvitPreTrainedModel):
    """LocalViT that predicts the pixels of masked patches."""

    encoder_class = VitfLocalvitModel


class VitfLocalvitBackbone(VitfBackboneMixin, VitfLocalvitPreTrainedModel):
    """LocalViT as a backbone: the tokens of chosen layers as feature maps, all at the stride of the patch."""

    encoder_class = VitfLocalvitModel


__all__ = [
    "VitfLocalvitBackbone",
    "VitfLocalvitForImageClassification",
    "VitfLocalvitForMaskedImageModeling",
    "VitfLocalvitModel",
    "VitfLocalvitPreTrainedModel",
]
