"""TimeSformer (arXiv 2102.05095): ViT on the patches of a clip, with attention over time and over space by turns.

Order of operations from facebookresearch/TimeSformer@a5ef29a timesformer/models/vit.py. Its tokens have time run
fastest; here frame follows frame, which changes no weight and no result. Where a grid of another shape has as many
patches as the configured one, the original leaves the position table as it is; here it is resized like any other.

Shapes: B batch, T frames, N patches of a frame, C channels, H x W pixels, h heads. Tokens of a clip are (B, 1 + T * N,
C): class token, then frame by frame and row by row; with `attention_type="space_only"` (B, T, 1 + N, C), each frame for
itself.
"""

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .attention import SelfAttention
from .configuration_timesformer import VitfTimesformerConfig
from .configuration_vitf import pair
from .embeddings import PatchEmbeddings, PositionEmbeddings, TimeEmbeddings, frames_of
from .inflation import InflationMixin
from .layers import DropPath, Mlp, drop_path_rates, init_trunc_normal
from .modeling_vitf import (
    VideoBackboneMixin,
    VideoClassificationMixin,
    VitfPreTrainedModel,
    encoder_forward,
)
from .shapes import split_dim


class TimesformerEmbeddings(nn.Module):
    """(B, T, num_channels, H, W) to the tokens of a clip, or of each frame; positions in space and time added."""

    def __init__(self, config: VitfTimesformerConfig):
        super().__init__()
        self.num_channels = config.num_channels
        self.space_only = config.attention_type == "space_only"
        self.patch_embeddings = PatchEmbeddings(config.num_channels, config.hidden_size, config.patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        grid = self.patch_embeddings.grid(*pair(config.image_size))
        self.position_embeddings = PositionEmbeddings(
            config.hidden_size, grid, num_prefix_tokens=1, interpolation="nearest"
        )
        self.time_embeddings = None if self.space_only else TimeEmbeddings(config.hidden_size, config.num_frames)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        images = frames_of(pixel_values, self.num_channels)
        batch, num_frames = pixel_values.shape[:2]
        patches = split_dim(self.patch_embeddings(images), 0, (batch, num_frames))
        positions = self.position_embeddings(self.patch_embeddings.grid(*images.shape[-2:]), patches)
        cls_token = (self.cls_token + positions[:, :1]).expand(batch, -1, -1)
        patches = patches + positions[:, 1:]
        if self.space_only:
            return self.dropout(torch.cat((cls_token[:, None].expand(-1, num_frames, -1, -1), patches), dim=2))
        patches = patches + self.time_embeddings(num_frames)[:, :, None]
        return self.dropout(torch.cat((cls_token, patches.flatten(1, 2)), dim=1))


class TimesformerLayer(GradientCheckpointingLayer):
    """The layer of ViT, over all tokens of a clip (joint space-time) or those of each frame (space only)."""

    def __init__(self, config: VitfTimesformerConfig, drop_path_rate: float):
        super().__init__()
        hidden_size = config.hidden_size
        self.layernorm_before = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.attention = SelfAttention(config, hidden_size, config.num_attention_heads, config.qkv_bias)
        self.layernorm_after = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.mlp = Mlp(config, hidden_size, round(config.mlp_ratio * hidden_size))
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, hidden_states: torch.Tensor, num_frames: int, **kwargs) -> torch.Tensor:
        """
        Tokens (B, N, C) or (B, T, N, C) to the same; `num_frames` is for the divided layer, which shares the call.
        """
        tokens = hidden_states.flatten(0, -3)
        tokens = tokens + self.drop_path(self.attention(self.layernorm_before(tokens), **kwargs)[0])
        return (tokens + self.drop_path(self.mlp(self.layernorm_after(tokens)))).view_as(hidden_states)


class TimesformerDividedLayer(TimesformerLayer):
    """
    Attention over time at each place, then attention over space in each frame, then the feed-forward layer.

    The class token takes no part in time, looks at every frame apart, and takes up the mean of what it sees.
    """

    def __init__(self, config: VitfTimesformerConfig, drop_path_rate: float):
        super().__init__(config, drop_path_rate)
        hidden_size = config.hidden_size
        self.temporal_layernorm = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.temporal_attention = SelfAttention(config, hidden_size, config.num_attention_heads, config.qkv_bias)
        self.temporal_dense = nn.Linear(hidden_size, hidden_size)

    def attend_over_time(self, patches: torch.Tensor, **kwargs) -> torch.Tensor:
        """(B, T, N, C) to the residual, a view of the same shape in which the frames of a place lie together."""
        places = self.temporal_layernorm(patches).transpose(1, 2).contiguous()
        context, _ = self.temporal_attention(places.flatten(0, 1), **kwargs)
        return self.temporal_dense(self.drop_path(context)).view(places.shape).transpose(1, 2)

    def attend_over_space(self, cls_token: torch.Tensor, patches: torch.Tensor, **kwargs) -> torch.Tensor:
        """Class token (B, 1, C) and patches (B, T, N, C) to the residual (B, T, 1 + N, C)."""
        batch, num_frames = patches.shape[:2]
        frames = torch.cat((cls_token[:, None].expand(-1, num_frames, -1, -1), patches), dim=2).flatten(0, 1)
        context, _ = self.attention(self.layernorm_before(frames), **kwargs)
        return split_dim(self.drop_path(context), 0, (batch, num_frames))

    def forward(self, hidden_states: torch.Tensor, num_frames: int, **kwargs) -> torch.Tensor:
        cls_token, patches = hidden_states[:, :1], split_dim(hidden_states[:, 1:], 1, (num_frames, -1))
        patches = patches + self.attend_over_time(patches, **kwargs)
        residual = self.attend_over_space(cls_token, patches, **kwargs)
        cls_token = cls_token + residual[:, :, 0].mean(dim=1, keepdim=True)
        tokens = torch.cat((cls_token, (patches + residual[:, :, 1:]).flatten(1, 2)), dim=1)
        return tokens + self.drop_path(self.mlp(self.layernorm_after(tokens)))


class VitfTimesformerPreTrainedModel(InflationMixin, VitfPreTrainedModel):
    config: VitfTimesformerConfig
    base_model_prefix = "timesformer"
    input_modalities = ("video",)
    _no_split_modules = ["TimesformerEmbeddings", "TimesformerLayer", "TimesformerDividedLayer"]
    _can_record_outputs = {"hidden_states": TimesformerLayer, "attentions": SelfAttention}
    # timesformer/models/helpers.py: attention over time starts as that over space; what follows it starts at zero.
    inflation_sources = {r"temporal_attention\.": "attention.", r"temporal_layernorm\.": "layernorm_before."}
    inflation_keeps = (r"time_embeddings\.", r"temporal_dense\.")

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        init_trunc_normal(module, std)
        if isinstance(module, PositionEmbeddings):
            init.trunc_normal_(module.weight, std=std)
        elif isinstance(module, TimeEmbeddings):
            init.zeros_(module.weight)
        elif isinstance(module, TimesformerEmbeddings):
            init.trunc_normal_(module.cls_token, std=std)
        elif isinstance(module, TimesformerDividedLayer):
            init.zeros_(module.temporal_dense.weight)
            init.zeros_(module.temporal_dense.bias)


class VitfTimesformerModel(VitfTimesformerPreTrainedModel):
    """The bare encoder. `pooler_output` is the class token."""

    num_prefix_tokens = 1

    def __init__(self, config: VitfTimesformerConfig):
        super().__init__(config)
        self.embeddings = TimesformerEmbeddings(config)
        layer = TimesformerDividedLayer if config.attention_type == "divided_space_time" else TimesformerLayer
        rates = drop_path_rates(config.drop_path_rate, config.num_hidden_layers)
        self.layers = nn.ModuleList([layer(config, rate) for rate in rates])
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    @encoder_forward
    def forward(self, pixel_values: torch.Tensor, **kwargs) -> BaseModelOutputWithPooling:
        r"""
        Args:
            pixel_values (`torch.Tensor` of shape `(B, T, num_channels, H, W)`):
                Any number of frames; H and W multiples of the patch size.

        Returns:
            `last_hidden_state` (B, 1 + T * N, C), after the last norm; space only: (B, 1 + N, C), the mean over frames.
            `pooler_output` (B, C). `hidden_states`: the input of the first layer and the output of each, (B, 1 + T * N,
            C); space only: (B, T, 1 + N, C). `attentions`: divided: for each layer two, over time (B * N, h, T, T) and
            over space (B * T, h, 1 + N, 1 + N); joint: (B, h, 1 + T * N, 1 + T * N); space only: (B * T, h, 1 + N, 1 +
            N).
        """
        hidden_states = self.embeddings(pixel_values)
        for layer in self.layers:
            hidden_states = layer(hidden_states, num_frames=pixel_values.shape[1], **kwargs)
        if self.embeddings.space_only:
            hidden_states = hidden_states.mean(dim=1)
        hidden_states = self.layernorm(hidden_states)
        return BaseModelOutputWithPooling(last_hidden_state=hidden_states, pooler_output=hidden_states[:, 0])


class VitfTimesformerForVideoClassification(VideoClassificationMixin, VitfTimesformerPreTrainedModel):
    """TimeSformer with a linear classifier on the class token."""

    encoder_class = VitfTimesformerModel


class VitfTimesformerBackbone(VideoBackboneMixin, VitfTimesformerPreTrainedModel):
    """
    TimeSformer as a backbone: the patches of chosen layers as a feature map for each frame, at the stride of the patch.
    """

    encoder_class = VitfTimesformerModel


__all__ = [
    "VitfTimesformerBackbone",
    "VitfTimesformerForVideoClassification",
    "VitfTimesformerModel",
    "VitfTimesformerPreTrainedModel",
]
