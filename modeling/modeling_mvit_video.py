"""MViT (arXiv 2104.11227) and MViTv2 (arXiv 2112.01526) for clips: the layers of modeling_mvit.py on maps with a time
axis.

Order of operations from facebookresearch/SlowFast@287ec00
slowfast/models/{video_model_builder,attention,stem_helper}.py.

Shapes: B batch, T frames, t groups of frames, N tokens (class token, if there is one, then patches, group by group and
row by row), M tokens that are attended to, C channels, h heads, H x W pixels.
"""

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .configuration_mvit_video import VitfMvitVideoConfig
from .configuration_vitf import pair
from .embeddings import PositionEmbeddings, frames_of
from .inflation import InflationMixin
from .layers import init_torch_default
from .modeling_mvit import (
    Grid,
    MvitEmbeddings,
    MvitEncoder,
    MvitPatchEmbeddings,
    MvitPool,
    VitfMvitPreTrainedModel,
)
from .modeling_vitf import (
    PyramidBackboneMixin,
    VideoBackboneMixin,
    VideoClassificationMixin,
    encoder_forward,
)
from .windows import static_size


class MvitTubeletEmbeddings(MvitPatchEmbeddings):
    """Patches that overlap in time too: (B, num_channels, T, H, W) to (B, N, C), group by group and row by row."""

    convolution = nn.Conv3d


class MvitVideoEmbeddings(MvitEmbeddings):
    """Patches, class token and absolute positions, as far as configured: (B, T, num_channels, H, W) to (B, N, C)."""

    def __init__(self, config: VitfMvitVideoConfig):
        super().__init__(config)
        self.time_embeddings = None
        if config.position_embedding_type == "absolute":
            self.time_embeddings = PositionEmbeddings(
                config.hidden_sizes[0], config.token_grid[:1], num_prefix_tokens=0, interpolation="linear_half_pixel"
            )

    def make_patch_embeddings(self, config: VitfMvitVideoConfig) -> MvitTubeletEmbeddings:
        return MvitTubeletEmbeddings(config, (config.tubelet_size, *pair(config.patch_size)))

    def forward(self, pixel_values: torch.Tensor, grid: Grid) -> torch.Tensor:
        """`grid` is that of the patches."""
        tokens = self.with_cls_token(self.patch_embeddings(pixel_values.transpose(1, 2)))
        if self.position_embeddings is not None:
            positions = self.position_embeddings(grid[1:], tokens)
            num_prefix_tokens = self.position_embeddings.num_prefix_tokens
            # The two interpolations together are the original's trilinear one of the sum.
            patches = positions[:, None, num_prefix_tokens:] + self.time_embeddings(grid[:1], tokens)[:, :, None]
            tokens = tokens + torch.cat((positions[:, :num_prefix_tokens], patches.flatten(1, 2)), dim=1)
        return self.dropout(tokens)


class MvitVideoClassifier(nn.Linear):
    """A linear layer after dropout: (B, C) to (B, num_labels)."""

    def __init__(self, config: VitfMvitVideoConfig):
        super().__init__(config.pooler_output_size, config.num_labels)
        self.dropout = nn.Dropout(config.classifier_dropout_prob)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return super().forward(self.dropout(features))


class VitfMvitVideoPreTrainedModel(InflationMixin, VitfMvitPreTrainedModel):
    config: VitfMvitVideoConfig
    base_model_prefix = "mvit_video"
    input_modalities = ("video",)
    _no_split_modules = ["MvitVideoEmbeddings", "MvitLayer"]
    inflation_keeps = (r"\.axes\.time\.", r"time_embeddings\.")

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # SlowFast's slowfast/models/video_model_builder.py, which differs from facebookresearch/mvit in biases and
        # kernels.
        super()._init_weights(module)
        if isinstance(module, nn.Conv3d):
            init_torch_default(module)
        if isinstance(module, (nn.Conv3d, MvitPool)):
            init.trunc_normal_(module.weight, std=self.config.initializer_range)
        elif isinstance(module, (nn.Linear, nn.LayerNorm)) and module.bias is not None:
            init.constant_(module.bias, 0.02)

    @torch.no_grad()
    def inflated(self, name: str, weight: torch.Tensor, image_model: PreTrainedModel) -> torch.Tensor:
        # Kernels are repeated in time and divided by their length: SlowFast's slowfast/utils/checkpoint.py.
        parameter = self.base_model.get_parameter(name)
        if weight.ndim == 4 and parameter.ndim == 5:
            return weight[:, :, None].expand(-1, -1, parameter.shape[2], -1, -1) / parameter.shape[2]
        if ".axes." in name:
            image_positions, positions = (
                model.base_model.get_submodule(name.removesuffix(".weight")) for model in (image_model, self)
            )
            return image_positions.resized(positions.size)
        return super().inflated(name, weight, image_model)


class VitfMvitVideoModel(MvitEncoder, VitfMvitVideoPreTrainedModel):
    """The bare encoder. `pooler_output` is the class token, or where there is none the mean of all tokens."""

    def __init__(self, config: VitfMvitVideoConfig):
        super().__init__(config)
        self.embeddings = MvitVideoEmbeddings(config)
        self.add_stages(config)
        self.post_init()

    @encoder_forward
    def forward(self, pixel_values: torch.Tensor, **kwargs) -> BaseModelOutputWithPooling:
        r"""
        Args:
            pixel_values (`torch.Tensor` of shape `(B, T, num_channels, H, W)`): T, H and W of any size.

        Returns:
            `last_hidden_state` (B, N, C), all tokens of the last stage after the norm; `pooler_output` (B, C);
            `hidden_states`: the input of the first stage and the output of each, (B, N, C) with N and C of the stage;
            `attentions`: (B, h, N, M) a layer.
        """
        frames = frames_of(pixel_values, self.config.num_channels)
        num_frames, height, width = static_size((pixel_values.shape[1], *frames.shape[-2:]))
        num_groups = (num_frames + self.config.tubelet_size - 1) // self.config.tubelet_size
        grid = (num_groups, *self.embeddings.patch_embeddings.grid(height, width))
        return self.encode(self.embeddings(pixel_values, grid), grid, **kwargs)


class VitfMvitVideoForVideoClassification(VideoClassificationMixin, VitfMvitVideoPreTrainedModel):
    """MViT with dropout and a linear classifier on the class token."""

    encoder_class = VitfMvitVideoModel

    def make_classifier(self) -> nn.Module:
        return MvitVideoClassifier(self.config) if self.config.num_labels > 0 else nn.Identity()


class VitfMvitVideoBackbone(VideoBackboneMixin, PyramidBackboneMixin, VitfMvitVideoPreTrainedModel):
    """MViT as a backbone: a map of each stage for each group of frames, that of the last stage after the norm."""

    encoder_class = VitfMvitVideoModel


__all__ = [
    "VitfMvitVideoBackbone",
    "VitfMvitVideoForVideoClassification",
    "VitfMvitVideoModel",
    "VitfMvitVideoPreTrainedModel",
]
