"""X-ViT (arXiv 2106.05968): ViT on each frame, whose keys and values are mixed with those of the neighbouring frames.

Order of operations from 1adrianb/video-transformers@82ca176 slowfast/models (video_model_builder.py,
transformers/vit.py, temporal_shift.py, head_helper.py). There a clip must be whole segments; here the last one may be
shorter, and another number of frames than the embeddings in time are for takes the nearest ones.

Shapes: B batch, T frames, N patches of a frame, C channels, H x W pixels, h heads. Tokens are (B, T, 1 + N, C): each
frame with its class token, then row by row.
"""

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .attention import SelfAttention, attend
from .configuration_vitf import pair
from .configuration_xvit import VitfXvitConfig
from .embeddings import PatchEmbeddings, PositionEmbeddings, TimeEmbeddings, frames_of
from .inflation import InflationMixin
from .layers import (
    DropPath,
    FrozenParametersMixin,
    Mlp,
    drop_path_rates,
    init_torch_default,
    init_trunc_normal,
)
from .modeling_vitf import (
    LayerGroup,
    VideoBackboneMixin,
    VideoClassificationMixin,
    VitfPreTrainedModel,
    encoder_forward,
    stage_groups,
)
from .shapes import split_dim


class PeriodicTimeEmbeddings(nn.Module):
    """A learned position in time for each frame of a period, after which they begin again."""

    def __init__(self, hidden_size: int, period: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, period, hidden_size))

    def forward(self, num_frames: int) -> torch.Tensor:
        """The table for that many frames: (1, num_frames, C)."""
        periods = -(-num_frames // self.weight.shape[1])
        return self.weight.repeat(1, periods, 1)[:, :num_frames]


class XvitEmbeddings(nn.Module):
    """(B, T, num_channels, H, W) to tokens (B, T, 1 + N, C), positions in space and time added."""

    def __init__(self, config: VitfXvitConfig):
        super().__init__()
        hidden_size = config.hidden_size
        self.num_channels = config.num_channels
        self.patch_embeddings = PatchEmbeddings(config.num_channels, hidden_size, config.patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, hidden_size))
        grid = self.patch_embeddings.grid(*pair(config.image_size))
        self.position_embeddings = PositionEmbeddings(hidden_size, grid, num_prefix_tokens=1, interpolation="bicubic")
        if config.time_embedding_period is None:
            self.time_embeddings = TimeEmbeddings(hidden_size, config.num_frames)
        else:
            self.time_embeddings = PeriodicTimeEmbeddings(hidden_size, config.time_embedding_period)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        images = frames_of(pixel_values, self.num_channels)
        batch, num_frames = pixel_values.shape[:2]
        patches = self.patch_embeddings(images)
        positions = self.position_embeddings(self.patch_embeddings.grid(*images.shape[-2:]), patches)
        cls_token = (self.cls_token + positions[:, :1]).expand(images.shape[0], -1, -1)
        tokens = self.dropout(torch.cat((cls_token, patches + positions[:, 1:]), dim=1))
        return split_dim(tokens, 0, (batch, num_frames)) + self.time_embeddings(num_frames)[:, :, None]


class XvitMixingAttention(SelfAttention):
    """
    Self-attention in each frame to keys and values of which a part of the channels is that of the next frame, and a
    part that of the previous one: nothing is computed for other frames (section 3.2 of the paper).
    """

    def __init__(self, config: VitfXvitConfig):
        super().__init__(config, config.hidden_size, config.num_attention_heads, config.qkv_bias)
        self.segment_size = config.segment_size
        # Of all channels, heads one after another: a part may end within a head.
        self.num_mixed = config.hidden_size // config.shift_div

    def mix(self, states: torch.Tensor) -> torch.Tensor:
        """(B, T, ..., C) to the same; what would come from beyond the segment is zero."""
        num_frames, mixed = states.shape[1], self.num_mixed
        following, preceding, own = states.split((mixed, mixed, states.shape[-1] - 2 * mixed), dim=-1)
        nothing = torch.zeros_like(following[:, :1])
        following = torch.cat((following[:, 1:], nothing), dim=1)
        preceding = torch.cat((nothing, preceding[:, :-1]), dim=1)
        if num_frames > self.segment_size:
            place = torch.arange(num_frames, device=states.device) % self.segment_size
            place = place.view(-1, *(1,) * (states.ndim - 2))
            following = following.masked_fill(place == self.segment_size - 1, 0)
            preceding = preceding.masked_fill(place == 0, 0)
        return torch.cat((following, preceding, own), dim=-1)

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(B, T, 1 + N, C) to the same, and the map (B * T, h, 1 + N, 1 + N)."""
        qkv = split_dim(self.qkv(hidden_states), -1, (3, -1))
        query, mixed = qkv[..., 0, :], self.mix(qkv[..., 1:, :])
        # (B, T, N, C) to (B * T, h, N, d)
        query, key, value = (
            split_dim(states.flatten(0, 1), -1, (self.num_heads, -1)).transpose(1, 2)
            for states in (query, *mixed.unbind(-2))
        )
        context, probabilities = attend(self, query, key, value, self.scaling, **kwargs)
        return self.dropout(self.proj(context)).view_as(hidden_states), probabilities


class XvitLayer(GradientCheckpointingLayer):
    """The layer of ViT, in each frame: x + attention(norm(x)), then x + mlp(norm(x)), with drop path."""

    def __init__(self, config: VitfXvitConfig, drop_path_rate: float, mixes: bool):
        super().__init__()
        hidden_size = config.hidden_size
        self.layernorm_before = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        if mixes:
            self.attention = XvitMixingAttention(config)
        else:
            self.attention = SelfAttention(config, hidden_size, config.num_attention_heads, config.qkv_bias)
        self.mixes = mixes
        self.layernorm_after = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.mlp = Mlp(config, hidden_size, round(config.mlp_ratio * hidden_size))
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> torch.Tensor:
        """(B, T, 1 + N, C) to the same. Without mixing, no frame sees another."""
        tokens = hidden_states if self.mixes else hidden_states.flatten(0, 1)
        tokens = tokens + self.drop_path(self.attention(self.layernorm_before(tokens), **kwargs)[0])
        return (tokens + self.drop_path(self.mlp(self.layernorm_after(tokens)))).view_as(hidden_states)


class XvitTemporalLayer(GradientCheckpointingLayer):
    """The layer of ViT over the class tokens of the frames, (B, 1 + T, C)."""

    def __init__(self, config: VitfXvitConfig):
        super().__init__()
        hidden_size, eps = config.hidden_size, config.temporal_layer_norm_eps
        self.layernorm_before = nn.LayerNorm(hidden_size, eps=eps)
        self.attention = SelfAttention(config, hidden_size, config.num_temporal_heads, qkv_bias=False)
        self.layernorm_after = nn.LayerNorm(hidden_size, eps=eps)
        self.mlp = Mlp(config, hidden_size, 4 * hidden_size)

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> torch.Tensor:
        hidden_states = hidden_states + self.attention(self.layernorm_before(hidden_states), **kwargs)[0]
        return hidden_states + self.mlp(self.layernorm_after(hidden_states))


class XvitTemporalEncoder(nn.Module):
    """The class tokens of the frames (B, T, C) to one that has attended to them, (B, C)."""

    def __init__(self, config: VitfXvitConfig):
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.layers = nn.ModuleList([XvitTemporalLayer(config) for _ in range(config.num_temporal_layers)])

    def forward(self, frames: torch.Tensor, **kwargs) -> torch.Tensor:
        hidden_states = torch.cat((self.cls_token.expand(frames.shape[0], -1, -1), frames), dim=1)
        for layer in self.layers:
            hidden_states = layer(hidden_states, **kwargs)
        return hidden_states[:, 0]


class XvitHead(nn.Module):
    """From the pooled output to logits by a hidden layer."""

    def __init__(self, config: VitfXvitConfig):
        super().__init__()
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.temporal_layer_norm_eps)
        self.dense = nn.Linear(config.hidden_size, config.classifier_hidden_size)
        self.dropout = nn.Dropout(config.classifier_dropout_prob)
        self.out_proj = nn.Linear(config.classifier_hidden_size, config.num_labels)

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        return self.out_proj(self.dropout(nn.functional.gelu(self.dense(self.layernorm(pooled)))))


class VitfXvitPreTrainedModel(InflationMixin, VitfPreTrainedModel):
    config: VitfXvitConfig
    base_model_prefix = "xvit"
    input_modalities = ("video",)
    _no_split_modules = ["XvitEmbeddings", "XvitLayer", "XvitTemporalEncoder"]
    _can_record_outputs = {"hidden_states": XvitLayer, "attentions": SelfAttention}
    inflation_keeps = (r"time_embeddings\.", r"^temporal_encoder\.")

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        init_trunc_normal(module, std)
        if isinstance(module, PositionEmbeddings):
            init.trunc_normal_(module.weight, std=std)
        elif isinstance(module, (TimeEmbeddings, PeriodicTimeEmbeddings)):
            init.zeros_(module.weight)
        elif isinstance(module, XvitEmbeddings):
            init.trunc_normal_(module.cls_token, std=std)
        elif isinstance(module, (XvitTemporalEncoder, XvitHead)):
            for child in module.modules():
                if isinstance(child, nn.Linear):
                    init_torch_default(child)
            if isinstance(module, XvitTemporalEncoder):
                init.zeros_(module.cls_token)
        elif isinstance(module, VitfXvitForVideoClassification):
            if self.config.temporal_pooling == "attention":
                init.normal_(module.frame_classifier_weight, std=0.001)
                init.zeros_(module.frame_classifier_bias)
            elif isinstance(module.classifier, nn.Linear):
                init.normal_(module.classifier.weight, std=0.001)


class VitfXvitModel(VitfXvitPreTrainedModel):
    """
    The bare encoder. `pooler_output` is made of the class tokens of the frames, by attention or as their mean.

    Args:
        add_pooling_layer (`bool`, *optional*, defaults to `True`):
            Whether to make the layers over the frames; without them `pooler_output` is the mean.
    """

    num_prefix_tokens = 1

    def __init__(self, config: VitfXvitConfig, add_pooling_layer: bool = True):
        super().__init__(config)
        self.embeddings = XvitEmbeddings(config)
        rates = drop_path_rates(config.drop_path_rate, config.num_hidden_layers)
        mixing = range(len(rates)) if config.mixing_layers is None else config.mixing_layers
        self.layers = nn.ModuleList([XvitLayer(config, rate, i in mixing) for i, rate in enumerate(rates)])
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.classifier_dropout_prob)
        self.temporal_encoder = None
        if add_pooling_layer and config.temporal_pooling == "attention":
            self.temporal_encoder = XvitTemporalEncoder(config)
        self.post_init()

    def layer_groups(self) -> list[LayerGroup]:
        groups = super().layer_groups()
        if self.temporal_encoder is not None:
            groups[-1].append(self.layernorm)  # more layers follow it
            groups += stage_groups(self.temporal_encoder)
        return groups

    @encoder_forward
    def forward(self, pixel_values: torch.Tensor, **kwargs) -> BaseModelOutputWithPooling:
        r"""
        Args:
            pixel_values (`torch.Tensor` of shape `(B, T, num_channels, H, W)`):
                Any number of frames; H and W multiples of the patch size.

        Returns:
            `last_hidden_state` (B, T * (1 + N), C), frame by frame, after the last norm; `pooler_output` (B, C);
            `hidden_states`: the input of the first layer and the output of each, (B, T, 1 + N, C); `attentions`: (B *
            T, h, 1 + N, 1 + N) for each layer, whose keys are partly those of the neighbouring frames, then (B, h,
            1 + T, 1 + T) for each layer over the frames.
        """
        hidden_states = self.embeddings(pixel_values)
        for layer in self.layers:
            hidden_states = layer(hidden_states, **kwargs)
        hidden_states = self.layernorm(hidden_states)
        frames = self.dropout(hidden_states[:, :, 0])
        pooled = frames.mean(dim=1) if self.temporal_encoder is None else self.temporal_encoder(frames, **kwargs)
        return BaseModelOutputWithPooling(last_hidden_state=hidden_states.flatten(1, 2), pooler_output=pooled)


class VitfXvitForVideoClassification(FrozenParametersMixin, VideoClassificationMixin, VitfXvitPreTrainedModel):
    """
    X-ViT with a classifier on the pooled output: of the mean over frames a linear one, else one with a hidden layer.

    Beside the latter stands the linear one, `frame_classifier_weight` and `frame_classifier_bias`, which nothing reads:
    published files have it. They are bare parameters, lest a tool takes them for a layer to train.
    """

    encoder_class = VitfXvitModel
    frozen_parameters = ("frame_classifier_weight", "frame_classifier_bias")

    def add_classifiers(self) -> None:
        super().add_classifiers()
        if self.config.temporal_pooling == "attention":
            size, num_labels = self.config.hidden_size, self.config.num_labels
            self.frame_classifier_weight = nn.Parameter(torch.zeros(num_labels, size))
            self.frame_classifier_bias = nn.Parameter(torch.zeros(num_labels))

    def make_classifier(self) -> nn.Module:
        of_frames = self.config.temporal_pooling == "mean" or self.config.num_labels == 0
        return super().make_classifier() if of_frames else XvitHead(self.config)


class VitfXvitBackbone(VideoBackboneMixin, VitfXvitPreTrainedModel):
    """X-ViT as a backbone: the patches of chosen layers as a feature map for each frame, at the stride of the patch."""

    encoder_class = VitfXvitModel
    encoder_kwargs = {"add_pooling_layer": False}


__all__ = [
    "VitfXvitBackbone",
    "VitfXvitForVideoClassification",
    "VitfXvitModel",
    "VitfXvitPreTrainedModel",
]
