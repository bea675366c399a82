"""T2T-ViT (arXiv 2101.11986): tokens made in three steps of unfolding and attention, then a narrow pre-norm encoder.

Order of operations from yitu-opensource/T2T-ViT@0f63dc9 models/{t2t_vit,token_performer,token_transformer}.py.

Shapes: B batch, N tokens (in the encoder: class token, then the map row by row), C channels, E channels of a token
inside the tokenizer, m random features, H x W pixels, h x w grid of tokens.
"""

import contextlib
import math

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .attention import SelfAttention, attend
from .configuration_t2t_vit import VitfT2tVitConfig
from .configuration_vitf import pair
from .embeddings import (
    FrozenPositionEmbeddings,
    PositionEmbeddings,
    check_input,
)
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


def sinusoid_table(num_positions: int, hidden_size: int) -> torch.Tensor:
    """
    The fixed table over [class token, flattened map], (1, num_positions, C): sines on even channels, cosines on odd
    ones.
    """
    channels = torch.arange(hidden_size)
    # Made in double and rounded once: the table that the original's files hold.
    wavelengths = 10000.0 ** (2 * (channels // 2).double() / hidden_size)
    angles = torch.arange(num_positions)[:, None] / wavelengths
    return torch.where(channels % 2 == 0, angles.sin(), angles.cos()).float()[None]


class T2tVitTokenAttention(nn.Module):
    """
    Softmax attention with one head: (B, N, input width) to (B, N, E) and the map (B, 1, N, N).

    The residual is the value, since the width changes; scores are scaled by the width of the input.
    """

    is_causal = False

    def __init__(self, config: VitfT2tVitConfig, input_size: int):
        super().__init__()
        self.config = config
        self.scaling = input_size**-0.5
        self.qkv = nn.Linear(input_size, 3 * config.token_dim, bias=False)
        self.proj = nn.Linear(config.token_dim, config.token_dim)
        self.dropout = nn.Dropout(config.token_dropout_prob)

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> tuple[torch.Tensor, torch.Tensor | None]:
        query, key, value = self.qkv(hidden_states)[:, None].chunk(3, dim=-1)
        context, probabilities = attend(self, query, key, value, self.scaling, **kwargs)
        return value.squeeze(1) + self.dropout(self.proj(context)), probabilities


class T2tVitKernelAttention(FrozenParametersMixin, nn.Module):
    """
    Performer attention (arXiv 2009.14794) with one head: (B, N, input width) to (B, N, E), and the map (B, 1, N, N) for
    a call that asks for it.

    A weight is the product of positive random features of query and key, over its sum for all keys: the map is never
    made where only the result is wanted. The residual is the value.
    """

    # Drawn once and never trained: the weights around them only fit this draw, so they are part of a checkpoint.
    frozen_parameters = ("random_features",)

    def __init__(self, config: VitfT2tVitConfig, input_size: int):
        super().__init__()
        self.kqv = nn.Linear(input_size, 3 * config.token_dim)  # the original's order: keys, queries, values
        self.proj = nn.Linear(config.token_dim, config.token_dim)
        self.dropout = nn.Dropout(config.token_dropout_prob)
        self.random_features = nn.Parameter(torch.zeros(config.token_dim // 2, config.token_dim))  # (m, E)

    def log_features(self, states: torch.Tensor) -> torch.Tensor:
        """Logarithm of the positive random features, but for their factor 1 / sqrt(m): (B, N, E) to (B, N, m)."""
        norms = states.square().sum(-1, keepdim=True) / 2
        return nn.functional.linear(states, self.random_features.to(states.dtype)) - norms

    def forward(
        self, hidden_states: torch.Tensor, output_attentions: bool | None = None, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        key, query, value = self.kqv(hidden_states).chunk(3, dim=-1)
        # Half precision is too narrow for exponentials and their sums; double stays double.
        accumulate = torch.float32 if value.dtype in (torch.float16, torch.bfloat16) else value.dtype
        # Autocast would multiply in half precision all the same.
        device = value.device.type
        narrow = torch.is_autocast_enabled(device)
        with torch.autocast(device, enabled=False) if narrow else contextlib.nullcontext():
            log_query, log_key = (self.log_features(states.to(accumulate)) for states in (query, key))
            query_features, key_features = log_query.exp(), log_key.exp()
            totals = torch.matmul(query_features, key_features.sum(1)[..., None])
            sums = torch.matmul(query_features, torch.matmul(key_features.transpose(1, 2), value.to(accumulate)))
            # 1e-8 of the original, times m: so the factors 1 / m of both sums cancel, and are left out.
            context = (sums / (totals + 1e-8 * self.random_features.shape[0])).to(value.dtype)
            probabilities = None
            if output_attentions:
                # Factors of a whole row or map cancel: taken out first, no row can underflow to 0 / 0.
                query_features = (log_query - log_query.amax(-1, keepdim=True)).exp()
                key_features = (log_key - log_key.amax((1, 2), keepdim=True)).exp()
                kernel = torch.matmul(query_features, key_features.transpose(1, 2))
                probabilities = (kernel / kernel.sum(-1, keepdim=True)).to(value.dtype)[:, None]
        return value + self.dropout(self.proj(context)), probabilities


class T2tVitTokenLayer(nn.Module):
    """attention(norm(x)), whose residual is its value, then x + mlp(norm(x)): (B, N, input width) to (B, N, E)."""

    def __init__(self, config: VitfT2tVitConfig, input_size: int):
        super().__init__()
        attention_class = {"performer": T2tVitKernelAttention, "transformer": T2tVitTokenAttention}[config.tokens_type]
        self.layernorm_before = nn.LayerNorm(input_size, eps=config.layer_norm_eps)
        self.attention = attention_class(config, input_size)
        self.layernorm_after = nn.LayerNorm(config.token_dim, eps=config.layer_norm_eps)
        self.mlp = Mlp(config, config.token_dim, config.token_dim)
        self.dropout = nn.Dropout(config.token_dropout_prob)

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> torch.Tensor:
        hidden_states, _ = self.attention(self.layernorm_before(hidden_states), **kwargs)
        return hidden_states + self.dropout(self.mlp(self.layernorm_after(hidden_states)))


class T2tVitTokenizer(nn.Module):
    """
    (B, num_channels, H, W) to (B, h * w, C): soft splits into overlapping windows, with a token layer after two of
    them.
    """

    def __init__(self, config: VitfT2tVitConfig):
        super().__init__()
        self.config = config
        self.soft_splits = config.SOFT_SPLITS
        self.num_channels = config.num_channels
        widths = (config.num_channels, config.token_dim, config.token_dim)
        unfolded = [width * kernel**2 for width, (kernel, _, _) in zip(widths, self.soft_splits, strict=True)]
        self.layers = nn.ModuleList([T2tVitTokenLayer(config, size) for size in unfolded[:-1]])
        self.projection = nn.Linear(unfolded[-1], config.hidden_size)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of tokens of an image of `height` x `width` pixels."""
        return self.config.feature_map_sizes(height, width)[0]

    def split_grid(self, split: tuple[int, int, int], height: int, width: int) -> tuple[int, int]:
        """Rows and columns of windows of one soft split."""
        kernel, stride, padding = split
        return tuple((size + 2 * padding - kernel) // stride + 1 for size in (height, width))

    def forward(self, pixel_values: torch.Tensor, **kwargs) -> torch.Tensor:
        height, width = pixel_values.shape[-2:]
        # Padded windows fit any size but one that is smaller than a window.
        check_input(pixel_values, self.num_channels, (1, 1) if min(height, width) >= 3 else (16, 16))
        feature_map = pixel_values
        for split, layer in zip(self.soft_splits, self.layers, strict=False):
            tokens = self.unfold(split, feature_map)
            grid = self.split_grid(split, *feature_map.shape[-2:])
            feature_map = split_dim(layer(tokens, **kwargs).transpose(1, 2), 2, grid)
        return self.projection(self.unfold(self.soft_splits[-1], feature_map))

    def unfold(self, split: tuple[int, int, int], feature_map: torch.Tensor) -> torch.Tensor:
        """The windows of one soft split as tokens: (B, C, h, w) to (B, number of windows, C * kernel * kernel)."""
        kernel, stride, padding = split
        return nn.functional.unfold(feature_map, kernel, padding=padding, stride=stride).transpose(1, 2)


class T2tVitEmbeddings(nn.Module):
    """(B, num_channels, H, W) to tokens (B, N, C): class token, then the tokenizer's; positions added to all."""

    def __init__(self, config: VitfT2tVitConfig):
        super().__init__()
        self.patch_embeddings = T2tVitTokenizer(config)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        # The sinusoid table.
        self.position_embeddings = FrozenPositionEmbeddings(
            config.hidden_size,
            self.patch_embeddings.grid(*pair(config.image_size)),
            num_prefix_tokens=1,
            interpolation="bicubic",
        )
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, pixel_values, bool_masked_pos=None, mask_token=None, **kwargs) -> torch.Tensor:
        tokens = self.patch_embeddings(pixel_values, **kwargs)
        tokens = masked_embeddings(tokens, bool_masked_pos, mask_token)
        tokens = torch.cat((self.cls_token.expand(tokens.shape[0], -1, -1), tokens), dim=1)
        grid = self.patch_embeddings.grid(*pixel_values.shape[-2:])
        return self.dropout(tokens + self.position_embeddings(grid, tokens))


class T2tVitLayer(GradientCheckpointingLayer):
    """x + attention(norm(x)), then x + mlp(norm(x)); drop path on both branches."""

    def __init__(self, config: VitfT2tVitConfig, drop_path_rate: float):
        super().__init__()
        hidden_size = config.hidden_size
        self.layernorm_before = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.attention = SelfAttention(config, hidden_size, config.num_attention_heads, config.qkv_bias)
        self.layernorm_after = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.mlp = Mlp(config, hidden_size, round(config.mlp_ratio * hidden_size))
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> torch.Tensor:
        hidden_states = hidden_states + self.drop_path(
            self.attention(self.layernorm_before(hidden_states), **kwargs)[0]
        )
        return hidden_states + self.drop_path(self.mlp(self.layernorm_after(hidden_states)))


class VitfT2tVitPreTrainedModel(VitfPreTrainedModel):
    config: VitfT2tVitConfig
    base_model_prefix = "t2t_vit"
    _no_split_modules = ["T2tVitEmbeddings", "T2tVitLayer"]
    _can_record_outputs = {
        "hidden_states": T2tVitLayer,
        "attentions": [T2tVitKernelAttention, T2tVitTokenAttention, SelfAttention],
    }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        init_trunc_normal(module, std)
        if isinstance(module, T2tVitEmbeddings):
            init.trunc_normal_(module.cls_token, std=std)
        elif isinstance(module, PositionEmbeddings):
            init.copy_(module.weight, sinusoid_table(*module.weight.shape[1:]).to(module.weight.device))
        elif isinstance(module, T2tVitKernelAttention):
            features = torch.empty_like(module.random_features, dtype=torch.float32)  # half precision has no QR
            nn.init.orthogonal_(features, gain=math.sqrt(len(features)))
            init.copy_(module.random_features, features)


class VitfT2tVitModel(VitfT2tVitPreTrainedModel):
    """The bare encoder. `pooler_output` is the class token after the last norm."""

    num_prefix_tokens = 1

    def __init__(self, config: VitfT2tVitConfig):
        super().__init__(config)
        self.embeddings = T2tVitEmbeddings(config)
        rates = drop_path_rates(config.drop_path_rate, config.num_hidden_layers)
        self.layers = nn.ModuleList([T2tVitLayer(config, rate) for rate in rates])
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
            pixel_values (`torch.Tensor` of shape `(B, num_channels, H, W)`): H and W at least 3; a token is 16 x 16
            pixels. bool_masked_pos (`torch.BoolTensor` of shape `(B, number of map tokens)`, *optional*): Tokens to
            mask. mask_token (`torch.Tensor` of shape `(1, 1, C)`, *optional*): What masked tokens become.

        Returns:
            `last_hidden_state` (B, N, C), after the last norm; `pooler_output` (B, C); `hidden_states`: the input of
            the first layer and the output of each; `attentions`: the two maps of the tokenizer, (B, 1, number of
            windows, number of windows), then (B, heads, N, N) a layer.
        """
        hidden_states = self.embeddings(pixel_values, bool_masked_pos, mask_token, **kwargs)
        for layer in self.layers:
            hidden_states = layer(hidden_states, **kwargs)
        hidden_states = self.layernorm(hidden_states)
        return BaseModelOutputWithPooling(last_hidden_state=hidden_states, pooler_output=hidden_states[:, 0])


class VitfT2tVitForImageClassification(ImageClassificationMixin, VitfT2tVitPreTrainedModel):
    """T2T-ViT with a linear classifier on the class token."""

    encoder_class = VitfT2tVitModel


class VitfT2tVitForMaskedImageModeling(MaskedImageModelingMixin, VitfT2tVitPreTrainedModel):
    """T2T-ViT that predicts the pixels under masked tokens."""

    encoder_class = VitfT2tVitModel


class VitfT2tVitBackbone(VitfBackboneMixin, VitfT2tVitPreTrainedModel):
    """T2T-ViT as a backbone: the tokens of chosen layers as feature maps, all at a stride of 16 pixels."""

    encoder_class = VitfT2tVitModel


__all__ = [
    "VitfT2tVitBackbone",
    "VitfT2tVitForImageClassification",
    "VitfT2tVitForMaskedImageModeling",
    "VitfT2tVitModel",
    "VitfT2tVitPreTrainedModel",
]
