"""ViViT (arXiv 2103.15691): ViT on the tubelets of a clip, with four ways to factorise attention over space and time.

Order of operations from google-research/scenic@4a38d47 projects/vivit/model.py and model_utils.py. Positions for other
sizes are interpolated linearly along each axis, as model_utils.py does for one axis; its resizing of a table of space
and time takes all places for one square, and is not followed.

Shapes: B batch, T frames, G groups of `tubelet_size` frames, N tubelets of a group, C channels, H x W pixels, h heads,
d head width. Tokens of a clip are group by group, row by row: (B, 1 + G * N, C) for joint attention, class token first;
(B, G, 1 + N, C) in a factorised encoder, each group with its class token; (B, G, N, C) in models 3 and 4.
"""

import math

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .attention import SelfAttention, attend
from .configuration_vitf import pair
from .configuration_vivit import VitfVivitConfig
from .embeddings import PatchEmbeddings, PositionEmbeddings, frames_of
from .inflation import InflationMixin
from .layers import DropPath, Mlp, drop_path_rates, init_jax, init_lecun_normal
from .modeling_vitf import (
    LayerGroup,
    VideoBackboneMixin,
    VideoClassificationMixin,
    VitfPreTrainedModel,
    encoder_forward,
    stage_groups,
)
from .shapes import split_dim


def add_positions(tokens: torch.Tensor, positions: torch.Tensor, cls_token: nn.Parameter | None) -> torch.Tensor:
    """Adds (1, [1 +] N, C) to the tokens (..., N, C), and puts the class token before them, if there is one."""
    if cls_token is None:
        return tokens + positions
    prefix = (cls_token + positions[:, :1]).expand(*tokens.shape[:-2], -1, -1)
    return torch.cat((prefix, tokens + positions[:, 1:]), dim=-2)


class VivitEmbeddings(nn.Module):
    """(B, T, num_channels, H, W) to the tokens of a clip, positions added."""

    def __init__(self, config: VitfVivitConfig):
        super().__init__()
        self.num_channels = config.num_channels
        self.tubelet_size = config.tubelet_size
        self.attention_type = config.attention_type
        # The frames of a tubelet are channels: a convolution over them that steps from tubelet to tubelet is one over
        # space.
        self.patch_embeddings = PatchEmbeddings(
            config.tubelet_size * config.num_channels, config.hidden_size, config.patch_size
        )
        has_cls_token = config.pooling == "cls"
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size)) if has_cls_token else None
        grid, interpolation = self.patch_embeddings.grid(*pair(config.image_size)), "bilinear"
        if self.attention_type != "factorised_encoder":
            grid, interpolation = (config.num_frames // config.tubelet_size, *grid), "trilinear"
        self.position_embeddings = PositionEmbeddings(config.hidden_size, grid, int(has_cls_token), interpolation)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def groups_of(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Clips (B, T, num_channels, H, W) as (B, G, tubelet_size * num_channels, H, W), without a copy."""
        frames_of(pixel_values, self.num_channels)
        num_frames = pixel_values.shape[1]
        if num_frames % self.tubelet_size:
            raise ValueError(
                f"a clip of {num_frames} frames does not fit: their number must be a multiple of "
                f"tubelet_size={self.tubelet_size}"
            )
        return split_dim(pixel_values, 1, (num_frames // self.tubelet_size, self.tubelet_size)).flatten(2, 3)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        groups = self.groups_of(pixel_values)
        batch, num_groups, _, height, width = groups.shape
        tubelets = split_dim(self.patch_embeddings(groups.flatten(0, 1)), 0, (batch, num_groups))
        grid = self.patch_embeddings.grid(height, width)
        if self.attention_type == "factorised_encoder":
            return self.dropout(add_positions(tubelets, self.position_embeddings(grid, tubelets), self.cls_token))
        positions = self.position_embeddings((num_groups, *grid), tubelets)
        tokens = self.dropout(add_positions(tubelets.flatten(1, 2), positions, self.cls_token))
        return tokens if self.attention_type == "joint_space_time" else tokens.view_as(tubelets)


class VivitEncoderLayer(GradientCheckpointingLayer):
    """x + attention(norm(x)), then x + mlp(norm(x)), with drop path, on tokens (..., N, C)."""

    def __init__(self, config: VitfVivitConfig, attention: nn.Module, mlp_ratio: float, drop_path_rate: float):
        super().__init__()
        hidden_size = config.hidden_size
        self.layernorm_before = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.attention = attention
        self.layernorm_after = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.mlp = Mlp(config, hidden_size, round(mlp_ratio * hidden_size))
        self.drop_path = DropPath(drop_path_rate)

    def attend(self, hidden_states: torch.Tensor, **kwargs) -> torch.Tensor:
        """The residual of attention among the tokens of the last two dimensions, (..., N, C)."""
        tokens = self.layernorm_before(hidden_states).flatten(0, -3)
        return self.attention(tokens, **kwargs)[0].view_as(hidden_states)

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> torch.Tensor:
        hidden_states = hidden_states + self.drop_path(self.attend(hidden_states, **kwargs))
        return hidden_states + self.drop_path(self.mlp(self.layernorm_after(hidden_states)))


class VivitLayer(VivitEncoderLayer):
    """The layer of ViT: of joint attention, or over space in a factorised encoder."""

    def __init__(self, config: VitfVivitConfig, drop_path_rate: float):
        attention = SelfAttention(config, config.hidden_size, config.num_attention_heads, config.qkv_bias)
        super().__init__(config, attention, config.mlp_ratio, drop_path_rate)


class VivitTemporalLayer(VivitEncoderLayer):
    """The layer of ViT, over time in a factorised encoder."""

    def __init__(self, config: VitfVivitConfig, drop_path_rate: float):
        attention = SelfAttention(config, config.hidden_size, config.num_temporal_heads, config.qkv_bias)
        super().__init__(config, attention, config.temporal_mlp_ratio, drop_path_rate)


class VivitFactorisedLayer(VivitLayer):
    """Model 3: attention over time at each place and over space in each group by turns, then the feed-forward layer."""

    def __init__(self, config: VitfVivitConfig, drop_path_rate: float):
        super().__init__(config, drop_path_rate)
        hidden_size = config.hidden_size
        self.temporal_layernorm = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.temporal_attention = SelfAttention(config, hidden_size, config.num_attention_heads, config.qkv_bias)
        self.time_first = config.attention_order == "time_space"

    def attend_over_time(self, hidden_states: torch.Tensor, **kwargs) -> torch.Tensor:
        """(B, G, N, C) to the residual, a view of the same shape in which the groups of a place lie together."""
        places = self.temporal_layernorm(hidden_states).transpose(1, 2).contiguous()
        return self.temporal_attention(places.flatten(0, 1), **kwargs)[0].view_as(places).transpose(1, 2)

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> torch.Tensor:
        first, second = self.attend_over_time, self.attend
        if not self.time_first:
            first, second = second, first
        hidden_states = hidden_states + self.drop_path(first(hidden_states, **kwargs))
        hidden_states = hidden_states + self.drop_path(second(hidden_states, **kwargs))
        return hidden_states + self.drop_path(self.mlp(self.layernorm_after(hidden_states)))


class VivitHeads(nn.Module):
    """
    Some heads of an attention layer: (B, h, N, d) each of query, key and value to (B, N, h * d) and the map (B, h, N,
    N).
    """

    is_causal = False

    def __init__(self, config: VitfVivitConfig):
        super().__init__()
        self.config = config
        self.scaling = (config.hidden_size // config.num_attention_heads) ** -0.5

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **kwargs):
        return attend(self, query, key, value, self.scaling, **kwargs)


class VivitDotProductAttention(nn.Module):
    """
    Model 4: the first half of the heads attends over time at each place, the second half over space in each group.
    """

    def __init__(self, config: VitfVivitConfig):
        super().__init__()
        hidden_size = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size, bias=config.qkv_bias)
        self.over_time = VivitHeads(config)
        self.over_space = VivitHeads(config)
        self.proj = nn.Linear(hidden_size, hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> torch.Tensor:
        """(B, G, N, C) to the same."""
        batch, groups, places, _ = hidden_states.shape
        heads = self.qkv(hidden_states).view(batch, groups, places, 3, 2, self.num_heads // 2, -1)
        in_time, in_space = heads.unbind(4)
        in_time = in_time.permute(3, 0, 2, 4, 1, 5).flatten(1, 2)
        in_space = in_space.permute(3, 0, 1, 4, 2, 5).flatten(1, 2)
        over_time, _ = self.over_time(*in_time.unbind(0), **kwargs)
        over_space, _ = self.over_space(*in_space.unbind(0), **kwargs)
        over_time = split_dim(over_time, 0, (batch, places)).transpose(1, 2)
        over_space = split_dim(over_space, 0, (batch, groups))
        return self.dropout(self.proj(torch.cat((over_time, over_space), dim=-1)))


class VivitDotProductLayer(VivitLayer):
    """Model 4: the layer of ViT, with heads over time and heads over space."""

    def __init__(self, config: VitfVivitConfig, drop_path_rate: float):
        attention = VivitDotProductAttention(config)
        super(VivitLayer, self).__init__(config, attention, config.mlp_ratio, drop_path_rate)

    def attend(self, hidden_states: torch.Tensor, **kwargs) -> torch.Tensor:
        return self.attention(self.layernorm_before(hidden_states), **kwargs)


LAYERS = {
    "joint_space_time": VivitLayer,
    "factorised_encoder": VivitLayer,
    "factorised_self_attention": VivitFactorisedLayer,
    "factorised_dot_product": VivitDotProductLayer,
}


class VivitTemporalEncoder(nn.Module):
    """
    Model 2: what was pooled of each group, (B, G, C), to the tokens of a second encoder, (B, [1 +] G, C), after its
    norm.
    """

    def __init__(self, config: VitfVivitConfig):
        super().__init__()
        hidden_size, has_cls_token = config.hidden_size, config.pooling == "cls"
        self.cls_token = nn.Parameter(torch.zeros(1, 1, hidden_size)) if has_cls_token else None
        grid = (config.num_frames // config.tubelet_size,)
        self.time_embeddings = PositionEmbeddings(hidden_size, grid, int(has_cls_token), "linear")
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        rates = drop_path_rates(config.drop_path_rate, config.num_temporal_layers)
        self.layers = nn.ModuleList([VivitTemporalLayer(config, rate) for rate in rates])
        self.layernorm = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)

    def forward(self, groups: torch.Tensor, **kwargs) -> torch.Tensor:
        positions = self.time_embeddings((groups.shape[1],), groups)
        hidden_states = self.dropout(add_positions(groups, positions, self.cls_token))
        for layer in self.layers:
            hidden_states = layer(hidden_states, **kwargs)
        return self.layernorm(hidden_states)


class VitfVivitPreTrainedModel(InflationMixin, VitfPreTrainedModel):
    config: VitfVivitConfig
    base_model_prefix = "vivit"
    input_modalities = ("video",)
    _no_split_modules = [
        "VivitEmbeddings",
        "VivitLayer",
        "VivitFactorisedLayer",
        "VivitDotProductLayer",
        "VivitTemporalEncoder",
    ]
    _can_record_outputs = {"hidden_states": VivitLayer, "attentions": [SelfAttention, VivitHeads]}
    # Section 3.4 of the paper. Models without class tokens leave that of the image model.
    inflation_sources = {r"temporal_attention\.": "attention."}
    inflation_keeps = (r"^temporal_encoder\.", r"temporal_layernorm\.")
    inflation_leaves = (*InflationMixin.inflation_leaves, r"^embeddings\.cls_token$")

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        init_jax(module)
        if isinstance(module, PositionEmbeddings):
            init.normal_(module.weight, std=self.config.initializer_range)
        elif isinstance(module, (VivitEmbeddings, VivitTemporalEncoder)) and module.cls_token is not None:
            init.zeros_(module.cls_token)
        elif isinstance(module, VitfVivitModel) and module.pre_logits is not None:
            init_lecun_normal(module.pre_logits.weight)

    def inflated(self, name: str, weight: torch.Tensor, image_model: PreTrainedModel) -> torch.Tensor:
        if name == "embeddings.patch_embeddings.projection.weight":
            frames = weight.new_zeros(weight.shape[0], self.config.tubelet_size, *weight.shape[1:])
            if self.config.tubelet_initialization == "central_frame":
                frames[:, self.config.tubelet_size // 2] = weight
            else:
                frames[:] = weight[:, None] / self.config.tubelet_size
            return frames.flatten(1, 2)
        if name == "embeddings.position_embeddings.weight":
            own, other = (model.base_model.embeddings.position_embeddings for model in (self, image_model))
            table = other(own.grid[-2:], like=weight)
            prefix, places = table[:, : own.num_prefix_tokens], table[:, other.num_prefix_tokens :]
            return torch.cat((prefix, places.repeat(1, math.prod(own.grid[:-2]), 1)), dim=1)
        if "temporal_attention.proj." in name:
            # At first attention over time passes on what it gets, as in the paper. There all of its weights are zero:
            # then none has a gradient.
            return torch.zeros_like(weight)
        return super().inflated(name, weight, image_model)


class VitfVivitModel(VitfVivitPreTrainedModel):
    """
    The bare encoder. `pooler_output` is the class token or the mean, through `pre_logits` where there is one.

    Args:
        add_pooling_layer (`bool`, *optional*, defaults to `True`):
            Whether to make what reads the tokens of the groups: the temporal encoder of a factorised encoder, and
            `pre_logits`. Without them `pooler_output` is the mean over groups.
    """

    def __init__(self, config: VitfVivitConfig, add_pooling_layer: bool = True):
        super().__init__(config)
        self.embeddings = VivitEmbeddings(config)
        rates = drop_path_rates(config.drop_path_rate, config.num_hidden_layers)
        self.layers = nn.ModuleList([LAYERS[config.attention_type](config, rate) for rate in rates])
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.temporal_encoder = self.pre_logits = None
        if add_pooling_layer and config.attention_type == "factorised_encoder":
            self.temporal_encoder = VivitTemporalEncoder(config)
        if add_pooling_layer and config.representation_size is not None:
            self.pre_logits = nn.Linear(config.hidden_size, config.representation_size)
        self.num_prefix_tokens = int(config.pooling == "cls")
        self.post_init()

    def pool(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """The class token of (..., N, C), or the mean over tokens where there is none."""
        return hidden_states[..., 0, :] if self.config.pooling == "cls" else hidden_states.mean(dim=-2)

    def layer_groups(self) -> list[LayerGroup]:
        groups = super().layer_groups()
        if self.temporal_encoder is not None:
            groups[-1].append(self.layernorm)  # more layers follow it
            groups += stage_groups(self.temporal_encoder, norm="layernorm")
        return groups

    @encoder_forward
    def forward(self, pixel_values: torch.Tensor, **kwargs) -> BaseModelOutputWithPooling:
        r"""
        Args:
            pixel_values (`torch.Tensor` of shape `(B, T, num_channels, H, W)`):
                T a multiple of the tubelet size, H and W of the patch size.

        Returns:
            With `P` 1 if there are class tokens, else 0: `last_hidden_state` after the last norm, (B, P + G * N, C), of
            a factorised encoder (B, P + G, C). `pooler_output` (B, C or `representation_size`). `hidden_states`: the
            input of the first layer and the output of each, of a factorised encoder those over space: joint (B, P + G *
            N, C), else (B, G, P + N, C). `attentions`: joint (B, h, P + G * N, P + G * N) for each layer; factorised
            encoder (B * G, h, P + N, P + N) for each layer over space, then (B, h, P + G, P + G) for each over time;
            factorised self-attention for each layer two, over space (B * G, h, N, N) and over time (B * N, h, G, G), in
            the order in which they come; factorised dot-product (B * N, h / 2, G, G), then (B * G, h / 2, N, N).
        """
        hidden_states = self.embeddings(pixel_values)
        for layer in self.layers:
            hidden_states = layer(hidden_states, **kwargs)
        hidden_states = self.layernorm(hidden_states)
        pooled = self.pool(hidden_states)
        if self.temporal_encoder is not None:
            hidden_states = self.temporal_encoder(pooled, **kwargs)
            pooled = self.pool(hidden_states)
        elif hidden_states.ndim == 4:
            hidden_states, pooled = hidden_states.flatten(1, 2), pooled.mean(dim=1)
        if self.pre_logits is not None:
            pooled = torch.tanh(self.pre_logits(pooled))
        return BaseModelOutputWithPooling(last_hidden_state=hidden_states, pooler_output=pooled)


class VitfVivitForVideoClassification(VideoClassificationMixin, VitfVivitPreTrainedModel):
    """ViViT with a linear classifier on the pooled output."""

    encoder_class = VitfVivitModel


class VitfVivitBackbone(VideoBackboneMixin, VitfVivitPreTrainedModel):
    """
    ViViT as a backbone: the tubelets of chosen layers as a feature map for each group of frames, at the patch's stride.
    """

    encoder_class = VitfVivitModel
    encoder_kwargs = {"add_pooling_layer": False}


__all__ = [
    "VitfVivitBackbone",
    "VitfVivitForVideoClassification",
    "VitfVivitModel",
    "VitfVivitPreTrainedModel",
]
