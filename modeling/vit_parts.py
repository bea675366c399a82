"""Parts of a ViT that some of its relatives replace: norms, attention, feed-forward layers, and pooling by attention.

Shapes: B batch, N tokens, C channels, H x W pixels, h heads.
"""

import torch
from torch import nn

from .attention import SelfAttention, attend
from .configuration_vitf import pair
from .embeddings import check_input
from .layers import Mlp


def make_norm(config, size: int | None = None) -> nn.LayerNorm | nn.RMSNorm:
    """A norm over `size` channels (`config.hidden_size`) of the kind that the configuration names."""
    norm = nn.RMSNorm if config.norm_type == "rmsnorm" else nn.LayerNorm
    return norm(size or config.hidden_size, eps=config.layer_norm_eps)


class PixelLayerNorm(nn.LayerNorm):
    """
    Layer norm over all pixels of each patch (arXiv 2302.01327): (B, num_channels, H, W), and the same shape again.
    """

    def __init__(self, num_channels: int, patch_size, eps: float):
        self.num_channels, self.patch_size = num_channels, pair(patch_size)
        super().__init__(num_channels * self.patch_size[0] * self.patch_size[1], eps=eps)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        check_input(pixel_values, self.num_channels, self.patch_size)
        (batch, channels, height, width), (rows, columns) = pixel_values.shape, self.patch_size
        patches = pixel_values.reshape(batch, channels, height // rows, rows, width // columns, columns)
        patches = patches.permute(0, 2, 4, 1, 3, 5)
        patches = super().forward(patches.flatten(3)).view(patches.shape)
        return patches.permute(0, 3, 1, 4, 2, 5).reshape(pixel_values.shape)


class VitAttention(SelfAttention):
    """
    Self-attention, with a norm of what the heads read where `sub_layernorm` says so (timm 1.0.31 layers/attention.py).
    """

    def __init__(self, config):
        super().__init__(config, config.hidden_size, config.num_attention_heads, config.qkv_bias, config.head_dim)
        if not (config.proj_bias and config.attention_proj_bias):
            self.proj.register_parameter("bias", None)
        self.layernorm = make_norm(config, self.proj.in_features) if config.sub_layernorm else nn.Identity()

    def output(self, context: torch.Tensor) -> torch.Tensor:
        return super().output(self.layernorm(context))


class VitMlp(Mlp):
    """
    The feed-forward layer of a ViT. A gated one multiplies the activation of the first half of `fc1` with the second
    half; `sub_layernorm` normalises what `fc2` reads (timm 1.0.31 layers/mlp.py: Mlp, SwiGLUPacked).
    """

    def __init__(self, config):
        width = round(config.mlp_ratio * config.hidden_size)
        super().__init__(config, config.hidden_size, width)
        self.gated = config.mlp_type == "gated"
        if self.gated:
            self.fc1 = nn.Linear(config.hidden_size, 2 * width)
        if not config.proj_bias:
            self.fc1.register_parameter("bias", None)
            self.fc2.register_parameter("bias", None)
        self.layernorm = make_norm(config, width) if config.sub_layernorm else nn.Identity()

    def activate(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Activation of what `fc1` returns, gated or not."""
        if not self.gated:
            return self.activation(hidden_states)
        gate, value = hidden_states.chunk(2, dim=-1)
        return self.activation(gate) * value

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.fc2(self.layernorm(self.dropout(self.activate(self.fc1(hidden_states))))))


class AttentionPooling(nn.Module):
    """
    Multihead attention pooling (arXiv 2106.04560; google-research/big_vision@0127fb6 models/vit.py MAPHead): a learned
    query attends to all tokens (B, N, C), and a feed-forward layer follows; (B, C).
    """

    is_causal = False

    def __init__(self, config):
        super().__init__()
        hidden_size = config.hidden_size
        self.config = config
        self.num_heads = config.num_attention_heads
        self.scaling = (hidden_size // self.num_heads) ** -0.5
        self.query = nn.Parameter(torch.zeros(1, 1, hidden_size))
        self.q = nn.Linear(hidden_size, hidden_size)
        self.kv = nn.Linear(hidden_size, 2 * hidden_size)
        self.proj = nn.Linear(hidden_size, hidden_size)
        self.layernorm = make_norm(config)
        self.mlp = Mlp(config, hidden_size, round(config.mlp_ratio * hidden_size))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        batch, tokens, _ = hidden_states.shape
        query = self.q(self.query).expand(batch, -1, -1).view(batch, 1, self.num_heads, -1).transpose(1, 2)
        key, value = self.kv(hidden_states).view(batch, tokens, 2, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        context, _ = attend(self, query, key, value, self.scaling)
        pooled = self.proj(context)
        return (pooled + self.mlp(self.layernorm(pooled)))[:, 0]
