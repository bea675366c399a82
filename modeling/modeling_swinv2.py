"""Swin V2 (arXiv 2111.09883): Swin with norms after each branch, cosine attention, and a bias from the log of the
distance.

Order of operations from microsoft/Swin-Transformer@f82860b models/swin_transformer_v2.py.

Shapes: B batch, N = h * w tokens row by row, C channels, h x w feature map, W windows of a map, n tokens of a window, d
head width.
"""

import math

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer

from .attention import attend
from .caches import size_table
from .configuration_swinv2 import VitfSwinv2Config
from .embeddings import PositionEmbeddings
from .layers import RECORDED_HIDDEN_STATES, DropPath, Mlp, init_trunc_normal
from .modeling_swin import PaddedWindowsMixin, SwinBackboneMixin, SwinEncoderMixin, SwinStage, merge_patches
from .modeling_vitf import ImageClassificationMixin, MaskedImageModelingMixin, VitfPreTrainedModel
from .shapes import split_dim
from .windows import WindowBias, from_windows, relative_position_index, to_windows

# Width of the network that makes the bias of distances.
_BIAS_WIDTH = 512
# Largest factor of the cosine of queries and keys.
_MAX_SCALE = 100.0


class Swinv2PatchMerging(nn.Module):
    """Halves the map and widens it: (B, h * w, C) to (B, ceil(h / 2) * ceil(w / 2), C'). The norm comes last."""

    def __init__(self, config: VitfSwinv2Config, narrow: int, wide: int):
        super().__init__()
        self.reduction = nn.Linear(4 * narrow, wide, bias=False)
        self.norm = nn.LayerNorm(wide, eps=config.layer_norm_eps)

    def forward(self, hidden_states: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        return self.norm(self.reduction(merge_patches(hidden_states, grid)))


def log_distances(
    window: int, reference: int, dtype: torch.dtype = torch.float32, device: torch.device | None = None
) -> torch.Tensor:
    """
    Log-spaced relative positions (arXiv 2111.09883, equation 4).

    Args:
        window (`int`): w0, the side of windows. reference (`int`): The side for which distances go from -8 to 8.

    Returns:
        `torch.Tensor` of shape `((2 * w0 - 1) ** 2, 2)`, computed in float32 as the original does: rows first, then
        columns.
    """
    distances = torch.arange(1 - window, window, dtype=torch.float32) / max(reference - 1, 1) * 8
    distances = distances.sign() * torch.log2(distances.abs() + 1.0) / 3.0
    table = torch.stack(torch.meshgrid(distances, distances, indexing="ij"), dim=-1).flatten(0, 1)
    return table.to(device=device, dtype=dtype)


class Swinv2PositionBias(WindowBias):
    """
    A bias for each head that a network of two layers makes of the relative position, for windows of any side. Its
    weights are parameters of this module: what is cached follows from them, wherever they are moved to.
    """

    def __init__(self, reference: int, num_heads: int):
        super().__init__()
        self.reference = reference
        self.fc1_weight = nn.Parameter(torch.zeros(_BIAS_WIDTH, 2))
        self.fc1_bias = nn.Parameter(torch.zeros(_BIAS_WIDTH))
        self.fc2_weight = nn.Parameter(torch.zeros(num_heads, _BIAS_WIDTH))

    def relative_bias(self, window: int) -> torch.Tensor:
        like = self.fc1_weight
        distances = size_table(log_distances, window, self.reference, like.dtype, like.device)
        index = size_table(relative_position_index, window, like.device)
        hidden = nn.functional.linear(distances, self.fc1_weight, self.fc1_bias).relu()
        table = 16 * nn.functional.linear(hidden, self.fc2_weight).sigmoid()
        return split_dim(table.t().index_select(1, index.flatten()), 1, index.shape)


class Swinv2QKV(nn.Linear):
    """The projection to queries, keys and values, (..., C) to (..., 3 C): `q_bias` and `v_bias`, none for keys."""

    def __init__(self, hidden_size: int):
        super().__init__(hidden_size, 3 * hidden_size, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(hidden_size))
        self.v_bias = nn.Parameter(torch.zeros(hidden_size))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        bias = torch.cat((self.q_bias, torch.zeros_like(self.q_bias), self.v_bias))
        return nn.functional.linear(hidden_states, self.weight, bias)


def to_length(vectors: torch.Tensor, length: torch.Tensor | float) -> torch.Tensor:
    """
    Vectors (..., d) at another length, those of padding still zero. Half precision has no room for torch's epsilon.
    """
    wide = torch.promote_types(vectors.dtype, torch.float32)
    norm = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True, dtype=wide).clamp(min=1e-12)
    return (vectors * (length / norm)).to(vectors.dtype)


class Swinv2Attention(nn.Module):
    """Attention within windows by the cosine of queries and keys, times a learned factor, plus a bias by distance."""

    is_causal = False

    def __init__(self, config: VitfSwinv2Config, stage: int, window: int):
        super().__init__()
        hidden_size = config.hidden_sizes[stage]
        self.config = config
        self.num_heads = config.num_heads[stage]
        self.qkv = Swinv2QKV(hidden_size) if config.qkv_bias else nn.Linear(hidden_size, 3 * hidden_size, bias=False)
        self.logit_scale = nn.Parameter(torch.full((self.num_heads, 1, 1), math.log(10)))
        self.position_bias = Swinv2PositionBias(config.pretrained_window_sizes[stage] or window, self.num_heads)
        self.proj = nn.Linear(hidden_size, hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def project(self, windows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(B * W, n, C) to queries of the learned length, keys of length 1 and values, each (B * W, heads, n, d)."""
        query, key, value = split_dim(self.qkv(windows), 2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        scale = self.logit_scale.clamp(max=math.log(_MAX_SCALE)).exp()
        return to_length(query, scale), to_length(key, 1.0), value

    def forward(
        self, hidden_states: torch.Tensor, grid: tuple[int, int], window: int, shift: int, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(B, h * w, C) to (B, h * w, C) and the map (B * W, heads, n, n); `grid` is (h, w)."""
        position_bias = self.position_bias(hidden_states.shape[0], grid, window, shift)
        # Nested, not named step by step: what a name holds stays in memory until the windows are put together again.
        context, probabilities = attend(
            self,
            *self.project(to_windows(split_dim(hidden_states, 1, grid), window, shift)),
            1.0,
            position_bias=position_bias,
            **kwargs,
        )
        windows = self.dropout(self.proj(context))
        return from_windows(windows, grid, window, shift).flatten(1, 2), probabilities


class Swinv2Layer(GradientCheckpointingLayer):
    """x + norm(attention(x)), then x + norm(mlp(x)); drop path on both branches."""

    def __init__(self, config: VitfSwinv2Config, stage: int, window: int, drop_path_rate: float):
        super().__init__()
        hidden_size = config.hidden_sizes[stage]
        self.attention = Swinv2Attention(config, stage, window)
        self.layernorm_attention = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.mlp = Mlp(config, hidden_size, round(config.mlp_ratio * hidden_size))
        self.layernorm_mlp = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.drop_path = DropPath(drop_path_rate)

    def forward(
        self, hidden_states: torch.Tensor, grid: tuple[int, int], window: int, shift: int, **kwargs
    ) -> torch.Tensor:
        hidden_states = hidden_states + self.drop_path(
            self.layernorm_attention(self.attention(hidden_states, grid, window, shift, **kwargs)[0])
        )
        return hidden_states + self.drop_path(self.layernorm_mlp(self.mlp(hidden_states)))


class Swinv2Stage(SwinStage):
    """A stage of Swin with the layers and the merging of Swin V2."""

    merging_class = Swinv2PatchMerging
    layer_class = Swinv2Layer


class VitfSwinv2PreTrainedModel(VitfPreTrainedModel):
    config: VitfSwinv2Config
    base_model_prefix = "swinv2"
    _no_split_modules = ["SwinEmbeddings", "Swinv2PatchMerging", "Swinv2Layer"]
    _can_record_outputs = {"hidden_states": RECORDED_HIDDEN_STATES, "attentions": Swinv2Attention}
    _supports_flash_attn = False  # its kernels take no bias
    # As the original's utils and timm have it.
    without_weight_decay = (*VitfPreTrainedModel.without_weight_decay, r"logit_scale$")

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """As Swin; factors of the cosine start at 10, and layers as the identity: their norms are zero."""
        std = self.config.initializer_range
        init_trunc_normal(module, std)
        if isinstance(module, PositionEmbeddings):
            init.trunc_normal_(module.weight, std=std)
        elif isinstance(module, Swinv2PositionBias):
            init.trunc_normal_(module.fc1_weight, std=std)
            init.zeros_(module.fc1_bias)
            init.trunc_normal_(module.fc2_weight, std=std)
        elif isinstance(module, Swinv2QKV):
            init.zeros_(module.q_bias)
            init.zeros_(module.v_bias)
        elif isinstance(module, Swinv2Attention):
            init.constant_(module.logit_scale, math.log(10))
        elif isinstance(module, Swinv2Layer):
            for norm in (module.layernorm_attention, module.layernorm_mlp):
                init.zeros_(norm.weight)
                init.zeros_(norm.bias)


class VitfSwinv2Model(SwinEncoderMixin, VitfSwinv2PreTrainedModel):
    """The bare encoder. `pooler_output` is the mean of all tokens after the last norm."""

    stage_class = Swinv2Stage


class VitfSwinv2ForImageClassification(ImageClassificationMixin, VitfSwinv2PreTrainedModel):
    """Swin V2 with a classifier on the mean of all tokens."""

    encoder_class = VitfSwinv2Model


class VitfSwinv2ForMaskedImageModeling(MaskedImageModelingMixin, VitfSwinv2PreTrainedModel):
    """Swin V2 that predicts the pixels of masked patches (SimMIM)."""

    encoder_class = VitfSwinv2Model


class Swinv2DenseModel(PaddedWindowsMixin, VitfSwinv2Model):
    """The encoder of the backbone."""


class VitfSwinv2Backbone(SwinBackboneMixin, VitfSwinv2PreTrainedModel):
    """
    Swin V2 as a backbone: the map of each stage, after a norm; windows padded and shifted at every size, as Swin's.
    """

    encoder_class = Swinv2DenseModel


__all__ = [
    "VitfSwinv2Backbone",
    "VitfSwinv2ForImageClassification",
    "VitfSwinv2ForMaskedImageModeling",
    "VitfSwinv2Model",
    "VitfSwinv2PreTrainedModel",
]
